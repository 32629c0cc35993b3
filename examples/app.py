"""A durable background job in one file.

    python examples/app.py            then http://127.0.0.1:5002/acme

Every tenant has a database of its own under `data`. Kill the server while a report is being made and start it again: the report
is made all the same.
"""
import sys, time
from pathlib import Path

import uvicorn
from fasthtml.common import Button, FastHTML, Form, Li, Meta, P, RedirectResponse, Titled, Ul
from fastlite import database
from fh_saas.utils_bgtsk import BackgroundTaskManager

data = Path('data')
data.mkdir(exist_ok=True)

def make_report(name, seconds):
    "The task: any function of this module, with arguments that JSON can carry"
    time.sleep(seconds)
    return f'report for {name}'

# Making the managers takes up what an earlier process left unfinished
managers = {o:BackgroundTaskManager(database(data/f'{o}.db')) for o in ('acme', 'globex')}
phone = Meta(name='viewport', content='width=device-width, initial-scale=1')
app = FastHTML(hdrs=(phone,), htmlkw=dict(lang='en'), default_hdrs=False, lifespan=managers['acme'].lifespan)   # the lifespan drains the worker that all managers share
rt = app.route

@rt('/{tenant}', methods='get')
def index(tenant:str):
    if tenant not in managers: return P('No such tenant')
    jobs = managers[tenant].list_jobs(limit=10)
    return Titled(tenant, Form(Button('Make a report'), method='post', action=f'/{tenant}/reports'),
                  Ul(*[Li(f'{o.created_at} {o.status} {o.result or ""}') for o in jobs]))

@rt('/{tenant}/reports', methods='post')
def make(tenant:str):
    if tenant not in managers: return P('No such tenant')
    job_id, bg_task = managers[tenant].submit('report', make_report, name=tenant, seconds=2)
    return RedirectResponse(f'/{tenant}', status_code=303, background=bg_task)

if __name__=='__main__': uvicorn.run(app, host='127.0.0.1', port=int(sys.argv[1]) if len(sys.argv)>1 else 5002)
