"""A SaaS in one file: a database for each customer, jobs that show how far they are, and a dashboard for who runs it.

    python examples/saas.py          then http://127.0.0.1:5003, and http://127.0.0.1:5003/admin on this machine

Customers sign up by a name; a real app asks for a password too. Each has `data/NAME.db` with its invoices and its jobs. Sending invoices happens in a job:
the row that says "sent" and the end of the job are one commit, so an invoice is marked once, however often the server is killed on the way.
"""
import secrets, sys, time

import uvicorn
from fasthtml.common import A, Button, FastHTML, Form, Input, Label, Li, Meta, P, RedirectResponse, Titled, Ul
from fh_saas.components import JobList, JobProgress, jobs_head, jobs_routes
from fh_saas.dashboard import dashboard
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import JobContext

tenants = Tenants('data')
tenants.plan('free', weight=1, max_running=1)
tenants.plan('pro', weight=4)
tenants.keep(completed=7, failed=30)
phone = Meta(name='viewport', content='width=device-width, initial-scale=1')
app = FastHTML(hdrs=(phone, *jobs_head()), htmlkw=dict(lang='en'), default_hdrs=False, lifespan=tenants.lifespan, secret_key=secrets.token_hex())   # sessions end with the process
rt = app.route

def customer(req): return id if (id := req.session.get('id')) in tenants else None

jobs_routes(app, tenants, customer)
app.mount('/admin', dashboard(tenants))          # without auth= or token= it answers this machine alone

def send_invoices(month:str, seconds:float, job:JobContext):
    "The task; a pause stands for the work"
    for i in range(10):
        job.check()                              # ends here if somebody cancelled the job
        job.progress(i, 10, f'invoice {i}')
        time.sleep(seconds/10)
    with job.transaction() as db: db.t.sent.insert(month=month, n=10)

@tenants.cron('0 6 1 * *', spread=60)            # on the first of each month, within the hour after six, in the customer's own time zone
def monthly(job:JobContext): job.submit('invoices', send_invoices, month='this', seconds=1)

@rt('/', methods='get')
def index(session, req):
    if not (id := customer(req)): return Titled('Sign up', Form(Label('Your name ', Input(name='id', required=True)), Button('Sign up'), method='post', action='/signup'))
    t = tenants[id]
    return Titled(id, Form(Label('Month ', Input(name='month', value='May')), Button('Send invoices'), method='post', action='/invoices'),
                  Ul(*[Li(f'{o["month"]}: {o["n"]} sent') for o in t.db.t.sent()]), JobList(5))

@rt('/signup', methods='post')
def signup(session, id:str, plan:str='free'):
    if id not in tenants:
        try: t = tenants.create(id, plan=plan)
        except ValueError as e: return Titled('Sign up', P(str(e)), A('Back', href='/'))
        t.db.t.sent.create(id=int, month=str, n=int, pk='id', if_not_exists=True)
    session['id'] = id
    return RedirectResponse('/', 303)

@rt('/invoices', methods='post')
def invoices(req, month:str, seconds:float=3):
    if not (id := customer(req)): return RedirectResponse('/', 303)
    job_id,bg_task = tenants[id].jobs.options(unique=month).submit('invoices', send_invoices, month=month, seconds=seconds)
    return RedirectResponse(f'/invoices/{job_id}', 303, background=bg_task)

@rt('/invoices/{job_id}', methods='get')
def show(req, job_id:str):
    return Titled('Invoices', JobProgress(job_id, label='Sending'), P(f'Job {job_id}'), A('Back', href='/')) if customer(req) else RedirectResponse('/', 303)

if __name__=='__main__': uvicorn.run(app, host='127.0.0.1', port=int(sys.argv[1]) if len(sys.argv)>1 else 5003)
