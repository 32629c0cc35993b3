"""A web server that runs no jobs, and workers that do: see myapp-web.service and myapp-worker.service for systemd, compose.yaml for Docker.

By hand, in two terminals in this folder:

    FH_SAAS_WORKER=0 uvicorn app:app --port 8000
    fh_saas worker app:tenants --threads 4

Then: curl -d n=90 localhost:8000/acme/primes, and curl localhost:8000/acme. Any number of workers may run on the machine; a worker that dies is noticed
at once, and its job goes to another.
"""
import os

from fasthtml.common import FastHTML, JSONResponse
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import JobContext

tenants = Tenants(os.environ.get('APP_DATA', 'data'), drain_s=20)
for o in 'acme', 'globex':
    if o not in tenants:
        try: tenants.create(o)
        except ValueError: pass                 # another process was quicker
app = FastHTML(default_hdrs=False, lifespan=tenants.lifespan)
rt = app.route

@tenants.task(name='primes')                    # a name of its own: the function may be moved
def primes(n:int, job:JobContext):
    "Work that keeps a processor busy, and so is kept away from the web server"
    found:list[int] = []
    for i in range(2, n):
        if all(i%p for p in found): found.append(i)
        if i%100==0: job.check(); job.progress(i, n)
    return dict(primes=len(found), by=os.getpid())

@rt('/health', methods='get')
def health():
    h = tenants.health()
    return JSONResponse(h, 200 if h['ok'] else 503)

@rt('/{id}', methods='get')
def show(id:str):
    if id not in tenants: return JSONResponse(dict(error='no such tenant'), 404)
    return JSONResponse([dict(id=o.id, status=o.status, result=o.result, failed=o.retry_count) for o in tenants[id].jobs.list_jobs(limit=20)])

@rt('/{id}/primes', methods='post')
def submit(id:str, n:int):
    if id not in tenants: return JSONResponse(dict(error='no such tenant'), 404)
    job_id,_ = tenants[id].jobs.submit('primes', primes, n=n)      # nothing is to be called here: a worker takes it
    return JSONResponse(dict(job=job_id), 202)
