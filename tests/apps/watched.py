"An app whose jobs are watched by many: /begin starts jobs that go on until the file `over` is there, /drain runs others beside them and says how long that took"
import asyncio, os, threading, time
from pathlib import Path
from fasthtml.common import FastHTML
from fh_saas.components import jobs_routes
from fh_saas.web.job_streams import _boards
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import current_job

here = Path(os.environ['FH_DIR'])
tenants = Tenants(here/'tenants', drain_s=.5)
for o in 'acme','globex':
    if o not in tenants: tenants.create(o)
m = tenants['acme'].jobs
left,none_left = [0],threading.Event()

@tenants.task(name='long')
async def long():
    job,i = current_job(),0
    while not (here/'over').exists(): job.progress(i % 1000, 1000, f'row {i}'); i += 1; await asyncio.sleep(.2)

@tenants.task(name='nap')
def nap(i:int, ms:float):
    if ms: time.sleep(ms/1000)
    left[0] -= 1
    if not left[0]: none_left.set()

app = FastHTML(default_hdrs=False, sess_cls=None, secret_key='x', lifespan=tenants.lifespan)
jobs_routes(app, tenants, tenant_of=lambda req: req.headers.get('x-tenant', 'acme'))     # stands for a session; nobody but the tests comes in here

@app.get('/begin')
def begin(n:int): return dict(ids=m.submit_many('long', long, [{}]*n))

@app.get('/other')
def other(): return dict(id=tenants['globex'].jobs.options(delay=9999).submit('nap', nap, i=0, ms=0.)[0])

@app.get('/drain')
def drain(n:int, ms:float=0.):
    left[0] = n
    none_left.clear()
    at = time.perf_counter()
    m.submit_many('nap', nap, [dict(i=i, ms=ms) for i in range(n)])
    none_left.wait(300)
    return dict(s=time.perf_counter()-at)

@app.get('/state')
def state():
    rss = int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')
    mine = [o for o in threading.enumerate() if not o.name.startswith('AnyIO')]        # Starlette's pool takes up to 40, as many as were ever needed at once
    return dict(open=sum(map(len, _boards.values())), rss=rss, fds=len(os.listdir('/proc/self/fd')), threads=len(mine))
