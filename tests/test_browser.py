"The dashboard and the demo in a real browser, Debian's Chromium: live without a reload, retry by a click, no other host, nothing that axe-core finds"
import os, re, shutil, signal, socket, sys, threading, time
from pathlib import Path

import pytest, uvicorn
from fh_saas.dashboard import dashboard
from fh_saas.ids import to_iso
from fh_saas.tenants import Tenants

CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytest.importorskip('playwright', reason='NO BROWSER TESTS: playwright is not installed, pip install -e .[test]')
if not CHROMIUM: pytest.skip('NO BROWSER TESTS: there is no Chromium here, apt-get install chromium', allow_module_level=True)

import axe_playwright_python
from playwright.sync_api import expect, sync_playwright
from test_demo import SAMPLE, Server

AXE = (Path(axe_playwright_python.__file__).parent/'axe.min.js').read_text()
expect.set_options(timeout=60_000)
EVIL = '<img src=x onerror="document.title=\'hit\'">'
SIZES = dict(light=dict(color_scheme='light', viewport=dict(width=1280, height=900)), dark=dict(color_scheme='dark', viewport=dict(width=1280, height=900)),
             phone=dict(color_scheme='light', viewport=dict(width=390, height=844)))

def work(**kw): return kw
def boom(n): raise ConnectionError(f'{EVIL} does not answer (call {n})')

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "(Tenants, address, paths of all pages)"
    ts = Tenants(tmp_path_factory.mktemp('site'), tasks=[work, boom], worker=False)
    for o in ('acme', 'globex'): ts.create(o)
    m = ts['acme'].jobs
    for i in range(8):
        for f,kw in ((work, dict(to=EVIL)), (boom, dict(n='Q'*3000 if i==7 else i))):
            id,t = m.submit(EVIL if f is boom else 'mail', f, 1, **kw)
            t.func(*t.args)
    ts.cron('0 9 * * *', work, name='daily')
    ts['acme'].db.conn.execute('update tenant_workers set lease_until=?', (to_iso(time.time()+3600),))     # nobody renews it here: it would end between two looks
    bad = m.list_jobs(status='failed')[0].id
    s = socket.create_server(('127.0.0.1', 0))
    srv = uvicorn.Server(uvicorn.Config(dashboard(ts), log_level='warning'))
    t = threading.Thread(target=srv.run, kwargs=dict(sockets=[s]), daemon=True)
    t.start()
    yield ts, f'http://127.0.0.1:{s.getsockname()[1]}', ['/', '/tenants', '/tenant?tenant=acme', '/jobs', '/jobs?tenant=acme', f'/job?tenant=acme&id={bad}', '/failures', '/schedules', '/queues?tenant=acme', '/actions', '/nope']
    srv.should_exit = True
    t.join(10)
    ts.close()

@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield b
        b.close()

class Watched:
    "A page, with all that it complained of and asked for"
    def __init__(self, browser, **kw):
        self.context,self.errors,self.hosts = browser.new_context(**kw),[],set()
        self.context.set_default_timeout(100_000)
        self.page = self.context.new_page()
        self.page.on('console', lambda m: self.errors.append(m.text) if m.type=='error' and '404' not in m.text else None)
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))
        self.page.on('request', lambda r: self.hosts.add(re.match(r'\w+://([^/:]*)', r.url)[1]))
    def __enter__(self): return self
    def __exit__(self, *a): self.context.close()

def is_sound(w, size, where):
    "Nothing that axe-core finds serious, nothing wider than the screen"
    w.page.evaluate(AXE)
    bad = [(v['id'], v['nodes'][0]['html'][:200]) for v in w.page.evaluate('axe.run(document)')['violations'] if v['impact'] in ('serious', 'critical')]
    assert not bad, (where, bad)
    assert w.page.evaluate('document.documentElement.scrollWidth')<=SIZES[size]['viewport']['width'], where

@pytest.mark.parametrize('size', SIZES)
def test_pages_are_sound(site, browser, size):
    "Nothing that axe-core finds serious, nothing wider than the screen, no error, no other host, no markup from data"
    _,base,paths = site
    with Watched(browser, **SIZES[size], bypass_csp=True) as w:       # axe is put in from outside; the policy itself is tested below
        for p in paths:
            w.page.goto(base+p)
            is_sound(w, size, p)
            assert w.page.title()!='hit' and not w.page.query_selector('img')
            assert w.page.evaluate("[...document.querySelectorAll('td button, td:last-child > a')].every(e => e.getBoundingClientRect().height < 60)"), 'a word is not cut into letters'
        assert not w.errors and w.hosts=={'127.0.0.1'}

def test_policy_lets_its_own_script_run(site, browser):
    ts,base,_ = site
    with Watched(browser) as w:
        w.page.goto(f'{base}/jobs?tenant=globex')
        expect(w.page.locator('#live')).to_contain_text('No jobs')
        ts['globex'].jobs.submit('came later', work, to='x')
        expect(w.page.locator('#live')).to_contain_text('came later')
        assert not w.errors, 'no reload, and the policy objected to nothing'

def test_retry_by_keyboard(site, browser):
    "Without a mouse: from the list to the job, retried, and said so"
    ts,base,paths = site
    with Watched(browser) as w:
        w.page.goto(base+paths[5])
        w.page.get_by_role('button', name='Retry').focus()
        w.page.keyboard.press('Enter')
        expect(w.page.locator('.said')).to_have_text('It is due now.')
        expect(w.page.locator('.badge').first).to_have_text('pending')
        assert ts['acme'].jobs.get_job(paths[5].split('id=')[1]).status=='pending'

def test_what_is_typed_stays(site, browser):
    "The page does not forget it because one goes on to the button"
    ts,base,_ = site
    with Watched(browser) as w:
        w.page.goto(f'{base}/tenant?tenant=globex')
        w.page.get_by_label('Why').fill('unpaid')
        w.page.get_by_role('button', name='Freeze').focus()
        with w.page.expect_response(lambda r: 'tenant=globex' in r.url): ts['globex'].jobs.submit('more', work)
        w.page.evaluate('new Promise(done => requestAnimationFrame(() => setTimeout(done)))')
        w.page.keyboard.press('Enter')
        expect(w.page.locator('.said')).to_have_text('It is frozen.')
        assert ts['globex'].row.reason=='unpaid'
    ts['globex'].thaw()

def test_without_script(site, browser):
    "Everything reads, and buttons work"
    ts,base,_ = site
    with Watched(browser, java_script_enabled=False) as w:
        w.page.goto(f'{base}/jobs?tenant=acme&status=failed')
        n = len(ts['acme'].jobs.list_jobs(status='failed'))
        w.page.get_by_role('button', name='Retry all…').click()
        w.page.get_by_role('button', name=f'Retry {n} jobs').click()
        expect(w.page.locator('.said')).to_contain_text(f'done to {n} jobs')
    assert not ts['acme'].jobs.list_jobs(status='failed')

@pytest.mark.parametrize('path', ['/', '/tenants', '/tenant?tenant=acme', '/jobs?tenant=acme', '/failures', '/schedules', '/queues?tenant=acme', '/actions'])
def test_pages_say_the_same_without_script(site, browser, path):
    "What is written, and what can be pressed"
    _,base,_ = site
    got = []
    for js in True,False:
        with Watched(browser, java_script_enabled=js) as w:
            w.page.goto(base+path)
            text = w.page.inner_text('main')
            got.append((re.sub(r'\d[\d.,:-]*( ?(ms|s|min|h|d))?', '#', text), w.page.locator('button, a').count()))
            assert len(text)>20
    assert got[0]==got[1]

# --- the demo

def percent(page): return int(page.locator('progress').first.get_attribute('aria-valuenow') or 0)

def passes(page, at):
    "Waits until the bar is past that; the page's policy allows no function put in from outside"
    for _ in range(600):
        if percent(page)>at: return
        page.wait_for_timeout(50)
    raise AssertionError(f'it stands at {percent(page)} %')

def test_an_upload_is_followed_to_its_end(tmp_path, browser):
    "It moves, goes on after a reload and after kill -9 of the server, whose restart the open page survives, and is done; and then the dashboard is a click away"
    s = Server(tmp_path/'data', '--pause', '.3')
    try:
        with Watched(browser) as w:
            page = w.page
            page.goto(f'{s.url}/t/acme')
            page.set_input_files('input[type=file]', str(SAMPLE))
            page.click('text=Upload and import')
            passes(page, 5)
            assert 'of 4,000 rows' in page.inner_text('.fh-job') and page.is_enabled('text=Upload and import')
            page.reload()
            passes(page, 15)
            n = len(w.errors)
            s.kill()
            page.wait_for_selector('.fh-job-away')
            w.errors[n:] = [o for o in w.errors[n:] if 'ERR_CONTENT_LENGTH_MISMATCH' not in o]      # what the kill cut
            at = percent(page)
            s = Server(tmp_path/'data', '--pause', '0', '--port', s.url.split(':')[-1])
            page.wait_for_selector('.fh-job-now.completed')
            assert 5<at<100 and percent(page)==100 and page.locator('.fh-job-away').count()==0
            page.wait_for_selector('text=3,993 in this tenant')
            page.click('text=Dashboard')
            page.click('nav >> text=Jobs')
            page.wait_for_selector('td:has-text("import")')
            assert w.hosts=={'127.0.0.1'} and not [o for o in w.errors if not re.search('ERR_CONNECTION|ERR_SOCKET_NOT_CONNECTED|Failed to fetch', o)], w.errors
    finally: s.stop(signal.SIGTERM)

@pytest.mark.parametrize('size', SIZES)
def test_the_demo_is_sound(tmp_path, browser, size):
    s = Server(tmp_path/'data', '--pause', '0')
    try:
        s.web.post('/t/acme/sample')
        with Watched(browser, **SIZES[size], bypass_csp=True) as w:
            for p in '/','/t/acme','/t/globex':
                w.page.goto(s.url+p)
                if p=='/t/acme': w.page.wait_for_selector('.fh-job-now.completed')
                is_sound(w, size, p)
            assert not w.errors and w.hosts=={'127.0.0.1'}
        with Watched(browser, **SIZES[size], java_script_enabled=False) as w:
            w.page.goto(f'{s.url}/t/globex')
            w.page.click('text=Import the sample')
            w.page.wait_for_selector('.fh-job-now.completed')       # the page renews itself
    finally: s.stop(signal.SIGTERM)
