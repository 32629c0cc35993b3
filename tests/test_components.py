"Job components: what they draw, who may see what, streams that end, and a real browser"
import importlib.util, re, shutil, signal, socket, time
from pathlib import Path

import pytest
from fasthtml.common import FastHTML, to_xml
from fh_saas.components import PREFIX, JobButton, JobList, JobProgress, JobStatus, jobs_head, jobs_routes
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import TenantJob, current_job
from starlette.testclient import TestClient
from util import Server, until

XSS = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "' onload='alert(1)", '</span><b>', '&lt;', '\x00\x1b[2J', '{{7*7}}']
clock = [1769850000.]

def say(text):
    job = current_job()
    job.progress(1, 4, text)
    raise ValueError('secret-token-123 '+text)

@pytest.fixture
def ts(tmp_path):
    ts = Tenants(tmp_path/'data', tasks=[say], worker=False, clock=lambda: clock[0])
    for o in 'acme','globex': ts.create(o)
    yield ts
    ts.close()

@pytest.fixture
def web(ts):
    app = FastHTML(default_hdrs=False, hdrs=jobs_head(), secret_key='x')
    jobs_routes(app, ts, tenant_of=lambda req: req.session['tenant'])
    @app.get('/login/{tenant}')
    def login(session, tenant:str): session['tenant'] = tenant; return 'hello'
    @app.get('/{path:path}')
    def anything(path:str): return 'taken'
    return app

def visitor(app, tenant=None):
    c = TestClient(app, raise_server_exceptions=True)
    if tenant: c.get(f'/login/{tenant}')
    return c

# --- who may see what

def test_nobody_sees_another_tenants_job(ts, web):
    "Unknown, foreign, malformed; without a login; with a login to a tenant that is gone: one answer"
    id,_ = ts['acme'].jobs.submit('t', say, text='x')
    mine,other,nobody,gone = visitor(web, 'acme'),visitor(web, 'globex'),visitor(web),visitor(web, 'nobody')
    assert mine.get(f'{PREFIX}/{id}/progress').status_code==200 and 'taken' not in mine.get(f'{PREFIX}/assets/jobs.js').text
    def answer(c, url):
        r = c.get(PREFIX+url)
        return r.status_code,r.content,sorted((k,v) for k,v in r.headers.items() if k!='set-cookie')
    want = answer(mine, '/nothing/progress')
    assert want[:2]==(404, b'Not found')
    for kind in 'progress','status','events','x':
        for c in other,nobody,gone: assert answer(c, f'/{id}/{kind}')==want
    for url in '/list','/list?type=t': assert answer(nobody, url)==answer(gone, url)==want
    assert id not in other.get(PREFIX+'/list').text and 'Nothing yet' in other.get(PREFIX+'/list').text

@pytest.mark.parametrize('col,val', [('progress','not json'), ('progress','[]'), ('progress','{"done":"x","total":2,"message":5,"at":"no"}'), ('progress','{"done":1,"total":0}'),
    ('progress','{"done":1,"total":2,"at":null}'), ('started_at','soon'), ('created_at','soon'), ('run_at','soon'), ('completed_at','soon')])
@pytest.mark.parametrize('status', ['pending', 'running', 'failed'])
def test_a_row_that_somebody_else_wrote(ts, web, status, col, val):
    "It is shown as far as it can be, and costs no list"
    m,c = ts['acme'].jobs,visitor(web, 'acme')
    id,_ = m.submit('theirs', say, text='x')
    m.submit('mine', say, text='x')
    with m._using() as lane, lane.store.writing() as con:
        con.execute('update tenant_jobs set status=?, retry_count=1, started_at=?, completed_at=? where id=?', (status, *['2026-01-01T00:00:00.000000Z']*2, id))
        con.execute(f'update tenant_jobs set {col}=? where id=?', (val, id))
    for kind in 'progress','status': assert c.get(f'{PREFIX}/{id}/{kind}').status_code in (200, 286)
    assert 'theirs' in (s := c.get(f'{PREFIX}/list').text) and 'mine' in s

def test_no_parameter_makes_an_error(ts, web):
    c = visitor(web, 'acme')
    bad = [*XSS, '', '..', '%', '%00', '%ff', 'a'*5000, '-1', '1e9', '٣', '\ud800'.encode('utf-8', 'replace').decode(), '[]', 'progress']
    for o in bad:
        for url in (f'/{o}/progress', f'/{o}/events', f'/x/{o}', '/list'):
            for q in (None, dict(kind=o), dict(type=o), dict(limit=o), dict(status=o), dict(type=o, limit='3')):
                try: r = c.get(PREFIX+url, params=q)
                except Exception as e:
                    if type(e).__name__!='InvalidURL': raise
                    continue      # the client would not send it
                assert r.status_code in (200, 404) and 'Traceback' not in r.text and 'alert(1)>' not in r.text, (url, q, r.text)
    for m in 'POST','PUT','DELETE': assert c.request(m, f'{PREFIX}/x/progress').status_code in (404, 405)

@pytest.mark.parametrize('s', XSS)
def test_text_stays_text(ts, web, s):
    "In the type, the message, the label, the words; and what went wrong is not shown to a user at all"
    m = ts['acme'].jobs
    id,_ = m.submit(s, say, 1, text=s)
    c = visitor(web, 'acme')
    before = c.get(f'{PREFIX}/{id}/progress').text+c.get(PREFIX+'/list').text
    m.run_due()
    html = before+''.join(c.get(PREFIX+o).text for o in (f'/{id}/progress', f'/{id}/status', f'/{id}/events', '/list'))
    html += to_xml(JobProgress(id, label=s, words=dict(pending=s))) + to_xml(JobProgress(s)) + to_xml(JobStatus(s, sse=True)) + to_xml(JobList(job_type=s, label=s))+ to_xml(JobButton(s, submit='/x', refused=s))
    assert not re.search(r'<(script|img|b)[ >]', html) and not re.search(r'<[^>]*\son(error|load)=', re.sub(r'"[^"]*"|\'[^\']*\'', '""', html))
    assert 'secret-token-123' not in html and 'Traceback' not in html and 'failed' in html

# --- the life of a job

def test_the_life_of_a_job(ts, web):
    m = ts['acme'].jobs
    id,_ = m.submit('t', say, 2, text='at it')
    c = visitor(web, 'acme')
    def get(kind='progress'): return c.get(f'{PREFIX}/{id}/{kind}')
    def pause(): return int(re.search(r'every (\d+)ms', get().text)[1])
    assert get().status_code==200 and 'waiting' in get().text and 'value=' not in get().text.replace('aria-value', '') and pause()==700
    clock[0] += 30
    assert pause()==5000
    clock[0] += 3000
    assert pause()==10000, 'less and less often'
    m.run_due()
    assert get().status_code==200 and 'trying again in 2 s' in get().text and 'value="25"' in get().text
    clock[0] += 3
    m.run_due()
    r = get()
    assert r.status_code==286 and 'failed' in r.text and 'hx-' not in r.text and get('status').status_code==286
    assert [o for o in get('events').text.splitlines() if o.startswith('event: ')]==['event: job', 'event: end']
    assert c.get(PREFIX+'/list').status_code==200 and 'every 10000ms' in c.get(PREFIX+'/list').text

def test_one_manager_and_a_dict(t):
    m = t.look()
    id,_ = m.submit('t', say, text='x')
    app = FastHTML(default_hdrs=False)
    jobs_routes(app, m, prefix='/a')
    async def who(req): return req.query_params.get('who')
    jobs_routes(app, dict(one=m), tenant_of=who, prefix='/b', words=dict(pending='wartet'))
    jobs_routes(app, m, tenant_of=lambda req: False, prefix='/c')
    c = TestClient(app)
    assert c.get(f'/a/{id}/status').status_code==200 and 'hx-get="/a/' in c.get(f'/a/{id}/status').text
    assert 'wartet' in c.get(f'/b/{id}/status?who=one').text and c.get(f'/b/{id}/status?who=two').status_code==404
    assert c.get(f'/c/{id}/status').status_code==404
    for kw in dict(jobs=dict(one=m)), dict(jobs=m, prefix='jobs'), dict(jobs=m, prefix='/j/'):
        with pytest.raises(ValueError): jobs_routes(app, **kw)
    with pytest.raises(TypeError): jobs_routes(app, m, tenant_of='acme')

def test_nothing_from_elsewhere_and_nothing_inline():
    html = to_xml(jobs_head())+to_xml(JobProgress('x'))+to_xml(JobProgress('x', sse=True))+to_xml(JobList())+to_xml(JobButton('x', submit='/x'))
    assert '//' not in html and not re.search(r'style=|<style|onclick|hx-on', html) and '<script>' not in html
    css = (Path(__file__).parent.parent/'fh_saas/assets/jobs.css').read_text()
    assert 'url(' not in css and '@import' not in css and 'prefers-reduced-motion' in css

def test_accessible():
    html = to_xml(JobProgress('x', job=TenantJob('x', 't', status='running', progress='{"done":1,"total":4,"message":"m","at":"2026-01-31T09:00:00.000000Z"}'), label='Import'))
    for o in 'role="progressbar"','aria-valuenow="25"','aria-valuemax="100"','aria-valuetext="running, 25 %"','aria-labelledby="fh-job-name-x"','id="fh-job-name-x"','aria-live="polite"':
        assert o in html, o

# --- a real server

def server(t, **kw):
    (t.dir/'step').write_text('0')
    return Server(t, 'shown:app', **kw)

def start(s, tenant='acme'):
    s.get(f'/login/{tenant}')
    return re.search(r'/_jobs/([0-9a-f-]{36})/', s.c.post('/import').text)[1]

def sse(s, id):
    "A stream as a raw connection; its headers are read"
    k = socket.create_connection(('127.0.0.1', s.port))
    cookie = '; '.join(f'{k}={v}' for k,v in s.c.cookies.items())
    k.sendall(f'GET /_jobs/{id}/events HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n'.encode())
    k.settimeout(60)
    return k

def test_a_stream_follows_a_job(t):
    with server(t) as s:
        id = start(s)
        with s.c.stream('GET', f'/_jobs/{id}/events') as r:
            assert r.status_code==200 and r.headers['content-type'].startswith('text/event-stream') and 'content-length' not in r.headers
            seen = []
            for line in r.iter_lines():
                seen.append(line)
                if m := re.search(r'aria-valuenow="(\d+)"', line): (t.dir/'step').write_text(str(int(m[1])//5+7))
        assert seen[-3:]==['event: end', 'data: ', ''] and 'done' in ''.join(seen[-9:])
        assert len({o for o in seen if 'row ' in o})>=2, 'it moved'
        assert until(lambda: s.get('/streams').json()['open']==0)

@pytest.mark.parametrize('life', ['1', '0'])
def test_a_shutdown_does_not_wait_for_streams(t, life):
    "With the manager's lifespan and without it; a reader who does not read makes no difference"
    with server(t, FH_LIFESPAN=life) as s:
        id = start(s)
        ks = [sse(s, id) for _ in range(50)]
        until(lambda: s.get('/streams').json()['open']==50)
        for k in ks[:25]: assert b'event: job' in k.recv(100_000)
        at = time.monotonic()
        s.signal(signal.SIGTERM)
        s.wait(15)
        assert time.monotonic()-at<6 and 'Traceback' not in s.text(), s.text()
        for k in ks: k.close()

def test_streams_do_not_pile_up(t):
    "10,000 are opened and dropped: none is left, and memory and descriptors do not grow"
    with server(t) as s:
        id = start(s)
        def some(n):
            for _ in range(n//200):
                ks = [sse(s, id) for _ in range(200)]
                for k in ks: k.recv(1)
                for k in ks: k.close()
            return until(lambda: (o := s.get('/streams').json())['open']==0 and o)
        before = some(1000)
        after = some(10_000)
        assert after['rss']-before['rss']<8*2**20 and after['fds']<=before['fds']+5, (before, after)
        assert 'Traceback' not in s.text(), s.text()

def test_a_restart(t):
    "What the browser holds works with the next process"
    with server(t) as s:
        id = start(s)
        cookies = s.c.cookies
        s.kill()
    with Server(t, 'shown:app') as s:
        s.c.cookies = cookies
        assert s.get(f'/_jobs/{id}/progress').status_code==200
        (t.dir/'step').write_text('99')
        assert until(lambda: s.get(f'/_jobs/{id}/progress').status_code==286)

# --- a real browser

chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')

@pytest.fixture(scope='module')
def browser():
    try: from playwright.sync_api import sync_playwright
    except ImportError: pytest.skip('NO BROWSER TESTS: playwright is not installed; pip install playwright')
    if not chromium: pytest.skip('NO BROWSER TESTS: there is no Chromium; apt-get install chromium')
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        yield b
        b.close()

def page_of(browser, s, url='/'):
    "A page of tenant acme, which notes what is asked of whom and what goes wrong"
    page = browser.new_context(base_url=f'http://127.0.0.1:{s.port}').new_page()
    page.set_default_timeout(100_000)
    page.hosts,page.wrong = set(),[]
    page.on('request', lambda r: page.hosts.add(r.url.split('/')[2]))
    page.on('pageerror', lambda e: page.wrong.append(str(e)))
    page.goto('/login/acme'); page.goto(url)
    return page

def shown(page): return int(page.locator('progress').first.get_attribute('aria-valuenow') or 0)

def htmx_files(*names):
    "Files of HTMX in the wheel of django-htmx, whose Django is not needed for that"
    spec = importlib.util.find_spec('django_htmx')
    if names and not spec: pytest.skip('NO TEST WITH HTMX: pip install django-htmx')
    return ':'.join(str(Path(spec.origin).parent/'static/django_htmx'/o) for o in names)

HTMX = {'ours':(), 'HTMX':('htmx-2.min.js',), 'HTMX and its extension':('htmx-2.min.js', 'ext/hx-sse-2.min.js')}

@pytest.mark.parametrize('htmx', HTMX)
@pytest.mark.parametrize('url', ['/', '/?sse=1'])
def test_in_a_browser(t, browser, url, htmx):
    "The button becomes the bar, the bar moves, a reload and a restart of the server do not stop it, and it ends: with HTMX in the page and without"
    kw = dict(FH_HTMX=htmx_files(*HTMX[htmx]))
    s = server(t, **kw)
    page = page_of(browser, s)
    assert page.evaluate('[!!window.htmx, !!window.htmx?.createEventSource]')==[htmx!='ours', 'ext' in htmx]
    step = t.dir/'step'
    page.click('button')
    page.wait_for_selector('progress')
    if '?' in url: page.goto(url)
    step.write_text('5')
    page.wait_for_function("document.querySelector('progress').value===25")
    assert 'row 5 <b>' in page.inner_text('.fh-job-facts >> nth=0')
    page.reload()
    page.wait_for_function("document.querySelector('progress').value===25")
    port = s.port
    s.kill()
    if '?' not in url: page.wait_for_selector('.fh-job-away')
    with Server(t, args=['-m', 'uvicorn', 'shown:app', '--port', str(port), '--no-access-log'], **kw) as s:
        step.write_text('12')
        page.wait_for_function("document.querySelector('progress').value===60", timeout=60_000)
        step.write_text('99')
        page.wait_for_selector('.fh-job-now.completed', timeout=60_000)
        page.wait_for_function("[...document.querySelectorAll('.fh-job-say')].some(o => o.textContent==='done')")
        assert shown(page)==100 and not page.wrong and page.hosts=={f'127.0.0.1:{port}'}, page.wrong
        s.get('/login/acme')
        page.wait_for_selector('td:has-text("import")')

@pytest.mark.parametrize('htmx', ['ours', 'HTMX'])
def test_a_foreign_job_and_a_refusal_in_a_browser(t, browser, htmx):
    "Somebody puts another tenant's id into a page: it is no longer here, and is asked for no more. What a route refuses is said beside the button"
    with server(t, FH_HTMX=htmx_files(*HTMX[htmx])) as s:
        id = start(s, 'globex')
        for url in f'/look/{id}',f'/look/{id}?sse=1','/look/nothing':
            page = page_of(browser, s, url)
            asked = []
            page.on('request', lambda r: asked.append(r.url))
            page.wait_for_selector('.fh-job-gone')
            assert page.inner_text('.fh-job-gone')==page.inner_text('.fh-job-say')=='This job is no longer here.' and 'import' not in page.inner_text('.fh-job')
            n = len(asked)
            page.click('text=Too many')
            page.wait_for_selector('.fh-job-alert:visible')
            assert page.inner_text('.fh-job-alert')=='Two imports run already.' and page.is_enabled('text=Too many') and not page.wrong
            assert [o for o in asked[n:] if '/_jobs/' in o]==[]
            if htmx=='ours' and url=='/look/nothing':
                page.click('text=Away')
                page.wait_for_selector('h1:has-text("Imports")')
                assert page.url.endswith(f':{s.port}/'), 'a redirect leads elsewhere, and is not put into the page'
            page.context.close()

def test_axe(t, browser):
    try: from axe_playwright_python.sync_playwright import Axe
    except ImportError: pytest.skip('NO ACCESSIBILITY TEST: pip install axe-playwright-python')
    with server(t) as s:
        page = page_of(browser, s)
        page.click('button')
        page.wait_for_selector('progress')
        page.reload()
        page.wait_for_selector('td:has-text("import")')
        page.add_style_tag(content='@media (prefers-color-scheme: dark) { body { background: #14181c; color: #e6eaed } }')
        for scheme,width in ('light',1280),('dark',1280),('light',390):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size(dict(width=width, height=844))
            assert page.evaluate('document.documentElement.scrollWidth')<=width
            bad = [(o['id'], [n['html'] for n in o['nodes']]) for o in Axe().run(page).response['violations'] if o['impact'] in ('serious', 'critical')]
            assert not bad, bad
