"""Make the pictures of the components, of the dashboard's pages and of the demo, in nbs/images, from made-up data that are the same each time.

    python tools/shots.py [--out FOLDER] [NAME…]      all of them, or those whose name begins so; needs Chromium, playwright and pillow"""
import argparse, io, os, random, shutil, socket, sys, tempfile, threading
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))

import uvicorn
from fasthtml.common import Div, FastHTML, H1, H2, Input, Label, Link, Main, Meta, Section, Title
from fh_saas.web.board import Board, Process
from fh_saas.components import JobButton, JobList, JobProgress, JobStatus, jobs_head, jobs_routes
from fh_saas.dashboard import dashboard
from fh_saas.ids import from_iso
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import current_job
from PIL import Image
from playwright.sync_api import sync_playwright

NOW = from_iso('2026-11-02T09:41:00')
now,rng = [NOW-3600],random.Random(7)
SIZES = dict(light=('light', 1040, 1000), dark=('dark', 1040, 1000), phone=('light', 390, 1000))     # colours, width, most height
COLOURS = 96

# --- made-up jobs

def takes(lo, hi): now[0] += rng.uniform(lo, hi)
def send_invoice(customer, amount):
    takes(.05, .6)
    if amount>900: raise ConnectionError(f'mail.example.com does not answer to customer {customer}')
    return dict(sent=customer)
def sync_crm(account, api_token):
    takes(.2, 3)
    if account%9==0: raise PermissionError(f'account {account}: the token was refused')
    return dict(contacts=rng.randrange(4000))
def report(month): takes(2, 9); return dict(pages=rng.randrange(10, 40))
def import_rows(file, rows):
    job = current_job()
    job.log(f'reading {file}')
    for i in range(0, rows, rows//8): takes(.1, .5); job.progress(i, rows, f'reading {file}')
    if 'broken' in file: raise ValueError(f'{file}: line 3142 has 5 fields instead of 6')
    job.log('all rows are in')
    return dict(imported=rows-7, malformed=7)

def run(m, kind, f, tries=1, again=False, **kw):
    id,t = m.submit(kind, f, tries, **kw)
    takes(.002, .4 if rng.random()<.9 else 9)
    t.func(*t.args)
    while again and m.get_job(id).status=='pending': now[0] = from_iso(m.get_job(id).run_at)+.1; t.func(*t.args)
    return id

def fill(ts):
    "An hour of work, and what goes on at its end"
    for o,w in ('free',1), ('team',3), ('business',5): ts.plan(o, w)
    for id,zone,plan in (('acme','Europe/Berlin','team'), ('globex','America/New_York','business'), ('initech','UTC','free'), ('umbrella','Asia/Tokyo','free')): ts.create(id, timezone=zone, plan=plan)
    ts.cron('0 7 * * 1-5', report, name='weekday report', month='2026-10')
    ts.cron('*/15 * * * *', sync_crm, name='sync contacts', account=1, api_token='x')
    for i in range(330):
        m = ts[rng.choice(['acme', 'acme', 'acme', 'globex', 'globex', 'initech'])].jobs
        kind = rng.choice(['send invoice']*4+['sync contacts']*3+['monthly report'])
        run(m, kind, dict(zip(('send invoice', 'sync contacts', 'monthly report'), (send_invoice, sync_crm, report)))[kind],
            **(dict(customer=rng.randrange(9000), amount=rng.randrange(1000)) if kind=='send invoice' else dict(account=rng.randrange(500), api_token='tok_51Hx') if kind=='sync contacts' else dict(month='2026-10')))
        now[0] = NOW-3600+i*3590/330
    now[0] = NOW-65
    m = ts['acme'].jobs
    ids = dict(done=run(m, 'import customers', import_rows, file='customers.csv', rows=4000), bad=run(m, 'import customers', import_rows, 3, again=True, file='customers-broken.csv', rows=4000))
    first,_ = m.submit('import customers', import_rows, file='october.csv', rows=9000)
    m.options(after=[first]).submit('monthly report', report, month='2026-10')
    m.options(after=[ids['done']]).submit('send invoice', send_invoice, customer=17, amount=88)
    m.submit_many('send invoice', send_invoice, [dict(customer=i, amount=i) for i in range(3)])
    m.options(delay=5400, queue='slow').submit('monthly report', report, month='2026-11')
    m.options(queue='slow').submit('monthly report', report, month='2026-09')
    m.pause(queue='slow')
    m.pause(job_type='sync contacts')
    ids['running'] = first
    with m._using() as lane, lane.store.writing() as c:
        c.execute("update tenant_jobs set status='running', ready=null, fence=1, owner='4be1a2c09d11', started_at=?, progress=? where id=?",
            ('2026-11-02T09:40:18.000000Z', '{"done":5600,"total":9000,"message":"reading october.csv","at":"2026-11-02T09:40:58.000000Z"}', first))
        for o in c.execute("select name from sqlite_schema where name='tenant_usage'").fetchall():
            for i in range(1, 30): c.execute("insert or ignore into tenant_usage values(date('2026-11-02','-'||?||' day'),?,?,?)", (i, rng.randrange(60, 420), rng.uniform(90, 600), 0))
        c.execute("update tenant_jobs set error_log=replace(error_log, ?, '/srv/app/tasks.py')", (__file__,))
    m.pause(job_type='monthly report')
    ts['umbrella'].freeze('unpaid since September')
    now[0] = NOW
    return ids

def clicks(app_url, browser, ids):
    "What people did in the dashboard"
    page = browser.new_page()
    for t,path,label in (('acme', '/queues?tenant=acme', 'Resume sync contacts'), ('umbrella', '/tenant?tenant=umbrella', 'Thaw')):
        page.goto(app_url+path)
        page.get_by_role('button', name=label).click()
        now[0] += 40
    page.goto(app_url+'/tenant?tenant=umbrella')
    page.get_by_label('Why').fill('unpaid since September')
    page.get_by_role('button', name='Freeze').click()
    now[0] = NOW
    page.close()

# --- pages

PROCESSES = [Process('c09d11a84be1', 'here', 0, NOW-86400*3, None), Process('4be1a2c09d11', 'serves', 1, NOW-86400*3, '2026-11-02T09:41:22.000000Z'), Process('77d0e4b1c5fa', 'serves', 0, NOW-2400, '2026-11-02T09:41:25.000000Z')]
PAGES = {'overview':'/', 'tenants':'/tenants', 'tenant':'/tenant?tenant=acme', 'jobs':'/jobs?tenant=acme', 'job':'/job?tenant=acme&id={bad}', 'failures':'/failures', 'schedules':'/schedules?tenant=acme', 'queues':'/queues?tenant=acme', 'actions':'/actions'}

def components_app(ts, ids):
    "Every component in its states"
    app = FastHTML(default_hdrs=False, hdrs=(Meta(name='viewport', content='width=device-width, initial-scale=1'), Meta(name='color-scheme', content='light dark'), *jobs_head(), Link(rel='stylesheet', href='/shots.css')), sess_cls=None, secret_key='x')
    m = ts['acme'].jobs
    jobs_routes(app, m)
    import fh_saas.components as c
    c.time = type('clock', (), dict(time=staticmethod(lambda: now[0])))
    @app.get('/shots.css')
    def css():
        from starlette.responses import Response
        return Response('body{font:16px/1.5 system-ui,sans-serif;margin:0;padding:1.25rem;max-width:46rem}h2{font-size:1rem;margin:1.5rem 0 .5rem}div.fh-job{margin:.75rem 0}.fh-job-button{display:flex;flex-wrap:wrap;gap:.75rem;align-items:center}', media_type='text/css')
    @app.get('/')
    def index():
        waits = m.list_jobs('send invoice', 'pending', 1)[0]
        bar = lambda o, label: JobProgress(o.id, label=label, job=o)
        return Title('Components'), Main(H2('A button'), JobButton('Import', Input(type='file', name='file', aria_label='A CSV file'), submit='/import'),
            H2('It becomes a bar'), bar(waits, 'invoice 17'), bar(m.get_job(ids['running']), 'october.csv'), bar(m.get_job(ids['done']), 'customers.csv'), bar(m.get_job(ids['bad']), 'customers-broken.csv'),
            H2('A badge'), *[x for o in (waits, m.get_job(ids['running']), m.get_job(ids['done']), m.get_job(ids['bad'])) for x in (JobStatus(o.id, job=o), ' ')],
            H2('A list'), JobList(6, jobs=[*m.list_jobs('import customers', limit=3), *m.list_jobs('sync contacts', limit=3)]))
    return app

def demo(browser, folder, path):
    "The demo in the middle of an import"
    import fh_saas.demo as d
    folder.mkdir()
    ts = {o:d.Tenant(folder, o) for o in d.TENANTS}
    url = serve(d.make_app(ts))
    page = browser.new_page(viewport=dict(width=1040, height=900), device_scale_factor=1)
    page.goto(f'{url}/t/acme', timeout=120_000)
    page.click('text=Call a partner')
    page.set_input_files('input[type=file]', str(d.SAMPLE))
    page.click('text=Upload and import')
    page.wait_for_selector('text=about')
    page.wait_for_timeout(900)
    few(page.screenshot(), path)
    for t in ts.values(): t.manager.close()

def serve(app):
    "Its address; it ends with this process"
    s = socket.create_server(('127.0.0.1', 0))
    threading.Thread(target=uvicorn.Server(uvicorn.Config(app, log_level='warning')).run, kwargs=dict(sockets=[s]), daemon=True).start()
    return f'http://127.0.0.1:{s.getsockname()[1]}'

def shoot(browser, url, size, path):
    "A picture of the page, not higher than it may be, in few colours"
    scheme,width,most = SIZES[size]
    page = browser.new_page(color_scheme=scheme, viewport=dict(width=width, height=400), reduced_motion='reduce', device_scale_factor=1)
    page.goto(url, timeout=120_000)
    h = min(most, page.evaluate('document.documentElement.scrollHeight'))
    page.set_viewport_size(dict(width=width, height=h))
    png = page.screenshot(clip=dict(x=0, y=0, width=width, height=h))
    page.close()
    few(png, path)

def few(png, path):
    "Write it in few colours"
    im = Image.open(io.BytesIO(png))
    im.convert('RGB').quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f'{path.name}: {im.width} × {im.height}, {path.stat().st_size/1024:.0f} KiB')

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('names', nargs='*')
    a.add_argument('--out', default=root/'nbs/images', type=Path)
    a = a.parse_args()
    chromium = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('google-chrome')
    with tempfile.TemporaryDirectory() as d, sync_playwright() as p:
        ts = Tenants(Path(d)/'data', tasks=[send_invoice, sync_crm, report, import_rows], worker=False, clock=lambda: now[0])
        ids = fill(ts)
        Board.processes = lambda self, leases: PROCESSES
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        dash,comp = serve(dashboard(ts)),serve(components_app(ts, ids))
        clicks(dash, browser, ids)
        shots = {f'dashboard-{k}':dash+v.format(**ids) for k,v in PAGES.items()}|dict(components=comp)
        for name,url in shots.items():
            for size in SIZES:
                if not a.names or any(f'{name}-{size}'.startswith(o) for o in a.names): shoot(browser, url, size, a.out/f'{name}-{size}.png')
        if not a.names or 'demo' in a.names: demo(browser, Path(d)/'demo', a.out/'demo.png')
        browser.close()
        ts.close()
    os._exit(0)

if __name__=='__main__': main()
