"""Tenants on a PostgreSQL server, a web server that runs no jobs, and three workers, on this machine or on three others: see compose.yaml for Docker.

By hand, in four terminals in this folder (a fifth one may have the fourth worker):

    export DATABASE_URL=postgresql://app:secret@localhost/app
    FH_SAAS_WORKER=0 uvicorn app:app --port 8000
    fh_saas worker app:tenants --threads 2          # three times

Then: curl -d n=30 localhost:8000/acme/reports, and curl localhost:8000/acme to see which worker wrote how many. Each report is a row of the tenant's own schema,
written in the transaction that ends its job: kill workers as you like, and every report is there once.
"""
import os, socket, time

from fasthtml.common import FastHTML, JSONResponse
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import current_job

tenants = Tenants(os.environ['DATABASE_URL'], drain_s=20)
app = FastHTML(default_hdrs=False, lifespan=tenants.lifespan)
rt = app.route
me = f'{socket.gethostname()}:{os.getpid()}'

def make(id):
    "The tenant with its table; whoever comes first makes it"
    if id not in tenants:
        try: tenants.create(id)
        except ValueError: pass                 # another process was quicker
    with tenants[id].jobs.transaction() as db: db.q('create table if not exists reports(no integer primary key, worker text not null)')
for o in 'acme', 'globex': make(o)

@tenants.task(name='report')                    # a name of its own: the function may be moved
def report(no:int, seconds:float):
    time.sleep(seconds)                         # what takes so long about a report
    with current_job().transaction() as db: db.q('insert into reports values(:no, :me)', no=no, me=me)

@rt('/health', methods='get')
def health():
    h = tenants.health()
    return JSONResponse(h, 200 if h['ok'] else 503)

@rt('/{id}', methods='get')
def show(id:str):
    if id not in tenants: return JSONResponse(dict(error='no such tenant'), 404)
    t = tenants[id]
    jobs = {s:len(t.jobs.list_jobs(status=s, limit=10_000)) for s in ('pending', 'running', 'completed', 'failed')}
    with t.jobs.transaction() as db: return JSONResponse(jobs|{'reports':{o['worker']:o['n'] for o in db.q('select worker,count(*) n from reports group by 1 order by 1')}})

@rt('/{id}/reports', methods='post')
def submit(id:str, n:int, first:int=0, seconds:float=.05):
    if id not in tenants: return JSONResponse(dict(error='no such tenant'), 404)
    return JSONResponse(dict(jobs=tenants[id].jobs.submit_many('reports', report, [dict(no=first+i, seconds=seconds) for i in range(n)])), 202)
