"An app of two tenants that shows its users their jobs by the components; FH_LIFESPAN=0 leaves the manager's lifespan out, FH_HTMX names files of HTMX to bring"
import os, time
from pathlib import Path
from fasthtml.common import FastHTML, H1, Main, P, Script, Title
from fh_saas.components import JobButton, JobList, JobProgress, JobStatus, jobs_head, jobs_routes
from fh_saas.web.job_streams import _boards
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import current_job
from starlette.responses import FileResponse, RedirectResponse, Response

here = Path(os.environ['FH_DIR'])
tenants = Tenants(here/'tenants', drain_s=.5)
for o in 'acme','globex':
    if o not in tenants: tenants.create(o)

@tenants.task(name='import')
def import_rows(n:int=20):
    "Goes on where the file `step` allows, so that a test says how far it comes"
    job = current_job()
    for i in range(job.cursor or 0, n):
        job.cursor = i
        job.progress(i, n, f'row {i} <b>')
        while int((here/'step').read_text() or 0)<=i: job.check(); time.sleep(.02)
    job.progress(n, n)

life = {} if os.environ.get('FH_LIFESPAN')=='0' else dict(lifespan=tenants.lifespan)
htmx = [Path(o) for o in os.environ.get('FH_HTMX', '').split(':') if o]
app = FastHTML(default_hdrs=False, hdrs=[*[Script(src=f'/htmx/{o.name}') for o in htmx], *jobs_head()], secret_key='x', htmlkw=dict(lang='en'), **life)
jobs_routes(app, tenants, tenant_of=lambda req: req.session['tenant'])

def mine(session): return tenants[session['tenant']].jobs

@app.get('/login/{tenant}')
def login(session, tenant:str): session['tenant'] = tenant; return 'hello'

@app.get('/htmx/{name}')
def its_file(name:str): return FileResponse(next(o for o in htmx if o.name==name))

@app.get('/')
def index(session, sse:int=0):
    ids = session.get('ids', [])
    return Title('Imports'), Main(H1('Imports'), JobButton('Import', submit='/import'), *[JobProgress(o, label='Import of rows', sse=bool(sse)) for o in ids],
        *[P('It is ', JobStatus(o)) for o in ids], JobList())

@app.get('/look/{id}')
def look(id:str, sse:int=0): return Title('One'), Main(H1('One'), JobProgress(id, sse=bool(sse)), JobButton('Too many', submit='/busy'), JobButton('Away', submit='/away'))

@app.post('/import')
def start(session):
    id,bg_task = mine(session).submit('import', import_rows)
    session['ids'] = [id]
    return JobProgress(id, label='Import of rows'), bg_task

@app.post('/busy')
def busy(): return Response('Two imports run already.', 422, media_type='text/plain')

@app.post('/away')
def away(): return RedirectResponse('/', 303)

@app.get('/streams')
def streams():
    rss = int(Path('/proc/self/statm').read_text().split()[1])*4096
    return dict(open=sum(map(len, _boards.values())), rss=rss, fds=len(os.listdir('/proc/self/fd')))

