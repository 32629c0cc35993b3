"The dashboard as a browser and as an attacker meet it: every page, every button, and what must not get through"
import json, re
from html import unescape
from html.parser import HTMLParser
from urllib.parse import urlencode

import pytest
from fastlite import database
from fh_saas.ids import to_iso
from fh_saas.web import pages
from fh_saas.web.board import ONE, Board
from fh_saas.dashboard import dashboard
from fh_saas.web.guard import CSP, HEADERS
from fh_saas.store.overview import JobFilter, ended, kin, line, page, tally
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.testclient import TestClient
from util import PRE, end, process, said, until

EVIL = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", '</title><script>alert(1)</script>', 'javascript:alert(1)', '{{7*7}}', '&lt;b&gt;']
SECRET = 'hunter2-' + 'x'*20

def work(**kw): return kw
def shout(): raise ValueError('x'*3000)
def boom(**kw): raise ValueError(f'<b>bad</b> password={SECRET} in {kw.get("name")}')

def client(app, base='http://127.0.0.1', host='127.0.0.1', **kw): return TestClient(app, base_url=base, client=(host, 1), **kw)

ALLOWED = set("""html head meta title link script body a header nav main h1 h2 p div form label input select option button section table thead tbody tr th td strong small span time
    ul ol li dl dt dd pre details summary progress footer datalist svg path rect figure figcaption""".split())

class Tags(HTMLParser):
    "The tags of a page as a browser sees them"
    def __init__(self): super().__init__(); self.got = []
    def handle_starttag(self, tag, attrs): self.got.append((tag, attrs))
    def all(self, text): self.feed(text); self.close(); return self.got

class Web:
    "A browser with a page open"
    def __init__(self, target, **kw):
        self.c = client(dashboard(target, **kw), follow_redirects=False)
        self.csrf = re.search(r'name="csrf" value="([^"]+)"', self.get('/jobs' if not isinstance(target, Tenants) else f'/jobs?tenant={next(iter(target))}'))[1]
    def get(self, path, status=200):
        r = self.c.get(path)
        assert r.status_code==status, (path, r.status_code, r.text[:300])
        return r.text
    def post(self, path, code=303, **data):
        r = self.c.post(path, data=dict(data, csrf=self.csrf))
        assert r.status_code==code, (path, r.status_code, unescape(r.text)[:600])
        return r

def run(m, func, n=1, tries=1, kind='mail', **kw):
    "Submit jobs and run each once"
    out = []
    for _ in range(n):
        id,t = m.submit(kind, func, tries, **kw)
        t.func(*t.args)
        out.append(id)
    return out

@pytest.fixture
def m(tmp_path):
    m = BackgroundTaskManager(database(tmp_path/'t.db'), tasks=[work, boom, shout], worker=False)
    yield m
    m.close()

@pytest.fixture
def ts(tmp_path):
    ts = Tenants(tmp_path/'ts', tasks=[work, boom, shout], worker=False)
    for o in ('acme', 'globex', 'initech'): ts.create(o)
    yield ts
    ts.close()

def filled(m):
    "One job of each state, with what is nasty in all its texts"
    for e in EVIL: run(m, boom, kind=e, name=e, api_token=SECRET)
    ok, = run(m, work, name=EVIL[0], password=SECRET, nested=dict(authorization=SECRET, user=EVIL[1]))
    later,_ = m.options(delay=3600, tags=[EVIL[0]], queue=EVIL[1]).submit(EVIL[0], work, name='x')
    due,_ = m.submit('due', work, name='x')
    gone,_ = m.submit('gone', work, name='x')
    m.cancel(gone, f'{EVIL[0]} token={SECRET}')
    kid,_ = m.options(after=[due]).submit('kid', work, name='x')
    with m._using() as lane, lane.store.writing() as c:
        c.execute('update tenant_jobs set log=?, progress=?, cursor=?, attempts=? where id=?', (f'{EVIL[0]}\nAuthorization: Bearer {SECRET}', json.dumps(dict(done=1, total=2, message=f'{EVIL[0]} secret={SECRET}')),
            json.dumps(dict(token=SECRET, at=EVIL[0])), json.dumps([dict(n=1, outcome=EVIL[0], at=EVIL[1], error=f'{EVIL[0]} password: {SECRET}')]), ok))
        lane.store.keep_step(ok, EVIL[0], json.dumps(dict(token=SECRET)), '2026-01-01T00:00:00.000000Z')
    return dict(ok=ok, later=later, due=due, gone=gone, kid=kid, bad=m.list_jobs(status='failed')[0].id)

def everything(base, ids, tenant=None):
    "Addresses of every page, with and without what they may be asked"
    t = dict(tenant=tenant) if tenant else {}
    q = lambda p,**kw: f'{base}{p}?{urlencode(t|kw)}'
    yield from (base+p for (how,p) in pages.routes if how=='get' and (p not in ('/job', '/tenant')) and (tenant or p!='/tenants'))
    yield from (q(p) for (how,p) in pages.routes if how=='get' and p!='/job' and (tenant or p not in ('/tenants','/tenant')))
    yield from (q('/job', id=i) for i in ids.values())
    for e in EVIL: yield q('/jobs', type=e); yield q('/jobs', text=e); yield q('/jobs', type=e, status='failed', text='bad')
    yield q('/jobs', since='2026-01-01', until='2036-01-01T00:00')

@pytest.mark.parametrize('many', [False, True])
def test_nothing_is_markup_and_nothing_secret(m, ts, many):
    target = ts if many else m
    ids = filled(ts['acme'].jobs if many else m)
    for base,app in (('', dashboard(target)), ('/in/admin', Starlette(routes=[Mount('/in/admin', dashboard(target))]))):
        c = client(app)
        for path in everything(base, ids, 'acme' if many else None):
            r = c.get(path)
            assert r.status_code==200, (path, r.status_code, r.text[:500])
            assert SECRET not in r.text, path
            for tag,attrs in Tags().all(r.text):
                assert tag in ALLOWED and not [k for k,_ in attrs if k.startswith('on') or k=='style'], (path, tag, attrs)
                assert tag!='form' or dict(attrs).get('method')!='post' or dict(attrs)['enctype']=='application/x-www-form-urlencoded'
                assert tag!='script' or dict(attrs)['src'].endswith('/assets/dashboard.js')
            for href in re.findall(r'(?:href|action|src)="([^"]*)"', r.text): assert href.startswith((base+'/', '#')) and not href.startswith('//'), href
            assert r.headers['content-security-policy']==CSP and r.headers['cache-control']=='no-store'
            assert not re.findall(r'''(?:https?:)?//[\w-]+\.[\w.-]+''', r.text.replace('http://www.w3.org/2000/svg', ''))

def test_redaction_of_own_names(m):
    id, = run(m, work, iban='DE00', name='iban: DE00')
    assert 'DE00' in Web(m).get(f'/job?id={id}') and 'DE00' not in Web(m, hide=['iban']).get(f'/job?id={id}')

def test_a_secret_cannot_be_searched_for(m):
    run(m, boom, name='x')
    w = Web(m)
    assert 'No jobs' not in w.get('/jobs?text=bad') and 'No jobs' in w.get(f'/jobs?text={SECRET}') and 'No jobs' in w.get(f'/jobs?text={SECRET[:3]}')
    assert 'There is none' in w.post('/bulk', 200, do='delete', text=SECRET[:3]).text

# --- who comes in

def test_only_this_machine_unless_told(m):
    app = dashboard(m)
    assert client(app).get('/jobs').status_code==200
    for c,h in ((client(app, host='10.0.0.9'), {}), (client(app, base='http://evil.example'), {}), (client(app), {'x-forwarded-for':'1.2.3.4'}), (client(app), {'forwarded':'for=1.2.3.4'}), (client(app), {'host':'127.0.0.1.evil.example'})):
        for path in ('/', '/jobs', '/nope', '/assets/dashboard.css'): assert c.get(path, headers=h).status_code==403
        assert c.post('/job', headers=h).status_code==403

def test_token(m):
    app = dashboard(m, token='correct horse battery')
    c = client(app, 'https://jobs.example', '10.0.0.9', follow_redirects=False)
    for path in ('/', '/jobs', '/job?id=1', '/assets/dashboard.js', '/?token=', '/?token=correct%20horse', '/?token=correct%20horse%20batteryy'):
        r = c.get(path)
        assert r.status_code==403 and 'job' not in r.text.lower().replace('dashboard', '') and r.headers['content-security-policy']==CSP
    r = c.get('/jobs?status=failed&token=correct+horse+battery')
    assert (r.status_code, r.headers['location'])==(303, '/jobs?status=failed') and 'correct' not in r.headers['set-cookie']
    assert c.get(r.headers['location']).status_code==200
    assert client(dashboard(m, token='another one than before'), 'https://jobs.example', cookies=dict(c.cookies)).get('/').status_code==403

def test_auth_guards_every_page(m):
    id, = run(m, work, name='x')
    app = dashboard(m, auth=lambda req: None if req.headers.get('x-user')=='ann' else PlainTextResponse('no', 404))
    c = client(app, 'https://jobs.example', '10.0.0.9')
    for how,path in pages.routes:
        r = c.request(how, path, **({} if how=='get' else dict(data=dict(a='1'))))
        assert (r.status_code, r.text)==(404, 'no') if how=='get' else r.status_code==403, (how, path)
    assert c.get(f'/job?id={id}', headers={'x-user':'ann'}).status_code==200

def test_auth_says_who(m):
    def auth(req, sess): req.scope['auth'] = '<ann>'
    id, = run(m, boom, name='x')
    w = Web(m, auth=auth)
    w.post('/job', id=id, do='retry')
    assert '&lt;ann&gt;' in w.get('/actions') and Board(m).actions()[0]['who']=='<ann>'

@pytest.mark.parametrize('kw', [{}, dict(origin='http://evil.example'), dict(origin='null'), dict(site='cross-site'), dict(csrf=None), dict(csrf='x'), dict(cookie=False), dict(json=True)])
def test_every_post_is_checked(ts, kw):
    "From elsewhere, without the form's proof, without the cookie: nothing happens"
    m = ts['acme'].jobs
    id, = run(m, boom, name='x')
    for path in [p for how,p in pages.routes if how=='post']:
        w = Web(ts)
        h = ({'origin':kw['origin']} if 'origin' in kw else {})|({'sec-fetch-site':kw['site']} if 'site' in kw else {})
        data = dict(tenant='acme', id=id, do='delete', sure='1', csrf=kw.get('csrf', w.csrf), status='failed', name='x', queue='x')
        if kw.get('cookie') is False: w.c.cookies.clear()
        r = w.c.post(path, headers=h, json=data) if kw.get('json') else w.c.post(path, headers=h, data={k:v for k,v in data.items() if v is not None})
        if kw: assert r.status_code in (403, 415), (path, r.status_code)
        else: assert r.status_code not in (403, 415, 500), (path, r.status_code, r.text)
        assert w.c.get(path).status_code!=200 or ('get', path) in pages.routes
    if kw: assert m.get_job(id).status=='failed' and ts['acme'].status=='active' and Board(ts).actions()==[]

# --- what is asked

params = ['tenant','id','type','status','text','since','until','before','upto','do','sure','n','done','name','queue','after','q','token']
values = st.one_of(st.sampled_from(['', '0', '-1', '1e9', '9'*40, 'None', 'acme', 'globex', 'failed', '2026-01-01', '0000-00-00', '9999-12-31T23:59:59', '../..', '%00', '\0', "'; drop table tenant_jobs--", *EVIL]), st.text(max_size=20), st.integers().map(str))

@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(sorted(pages.routes)), args=st.dictionaries(st.sampled_from(params), values, max_size=5), many=st.booleans())
def test_no_parameter_breaks_a_page(fuzzed, path, args, many):
    how,p = path
    w = fuzzed[many]
    args = {k:v.encode('utf-8', 'surrogatepass') if isinstance(v, str) else v for k,v in args.items()}
    r = w.c.get(f'{p}?{urlencode(args)}') if how=='get' else w.c.post(p, content=urlencode(args|dict(csrf=w.csrf)), headers={'content-type':'application/x-www-form-urlencoded'})
    assert r.status_code in (200, 303, 400, 403, 404, 409), (path, args, r.status_code, r.text)
    assert 'Traceback' not in r.text and 'apsw' not in r.text and SECRET not in r.text and '<script>alert' not in r.text

@pytest.fixture(scope='module')
def fuzzed(tmp_path_factory):
    d = tmp_path_factory.mktemp('fuzz')
    m = BackgroundTaskManager(database(d/'t.db'), tasks=[work, boom, shout], worker=False)
    ts = Tenants(d/'ts', tasks=[work, boom, shout], worker=False)
    for o in ('acme', 'globex'): ts.create(o)
    filled(m); filled(ts['acme'].jobs)
    yield {False:Web(m), True:Web(ts)}
    m.close(); ts.close()

def test_what_is_not_there(m, ts):
    w = Web(m)
    for path in ('/job?id=nope', '/job', '/nope', '/assets/nope.js', '/assets/../dashboard.py', '/assets/%2e%2e/dashboard.py', '/tenants', '/tenant?tenant=acme'):
        r = w.c.get(path)
        assert r.status_code==404 and 'Traceback' not in r.text and r.headers['content-security-policy']==CSP, path
    assert 'There is no tenant' in unescape(Web(ts).get('/jobs?tenant=nope', 404))
    for p in ('/job', '/bulk'): assert w.c.get('/bulk').status_code==405
    assert w.c.put('/job').status_code==405 and w.c.delete('/job').status_code==405

def test_an_error_is_a_page(m, monkeypatch):
    def fail(*a): raise RuntimeError(f'deep inside, password={SECRET}')
    monkeypatch.setitem(pages.routes, ('get', '/jobs'), fail)
    r = client(dashboard(m), raise_server_exceptions=False).get('/jobs')
    assert r.status_code==500 and 'the log says more' in r.text and 'deep inside' not in r.text and r.headers['content-security-policy']==CSP

def test_a_damaged_tenant_spoils_no_list(ts):
    run(ts['acme'].jobs, work, name='x')
    w = Web(ts)
    for p in ('', '-wal', '-shm'):
        f = ts['globex'].path+p
        open(f, 'wb').write(b'no database at all'*300)
    html = w.get('/jobs')
    assert 'Could not be read' in html and 'globex' in html and 'mail' in html
    assert 'Traceback' not in w.get('/jobs?tenant=globex', 503)

# --- lists

def test_paging_shows_each_job_once(m):
    ids = m.submit_many('a', work, [dict(x=i) for i in range(120)])
    m.submit_many('b', work, [dict(x=i) for i in range(7)])
    w,path,seen = Web(m),'/jobs?type=a',[]
    while path:
        html = unescape(w.get(path))
        seen += re.findall(r'/job\?id=([0-9a-f-]{36})', html)
        m.submit('a', work, x=0)                       # what comes meanwhile shifts nothing
        path = (re.findall(r'href="(/jobs\?[^"]*before=\d+)"', html) or [None])[0]
    assert [o for o in seen if o in ids]==ids[::-1] and len(seen)==len(ids)

def test_text_goes_on_by_clicks(m, monkeypatch):
    "A rare text is looked for in bounded pieces"
    monkeypatch.setattr('fh_saas.store.overview.page.__defaults__', (JobFilter(), None, 50, 100, str, False))
    first, = run(m, boom, name='needle')
    m.submit_many('a', work, [dict(x=i) for i in range(250)])
    w,path,n = Web(m),'/jobs?text=needle',0
    while first not in (html := unescape(w.get(path))):
        n,path = n+1,re.search(r'href="(/jobs\?[^"]*before=\d+)" rel="next">Look further', html)[1]
    assert n==2

class Steps:
    "Counts what SQLite does, in thousands of its instructions"
    def __init__(self, store):
        store._open_reader()
        self.conn = store._reader.conn
    def __enter__(self): self.n = 0; self.conn.set_progress_handler(self._one, 1000); return self
    def __exit__(self, *a): self.conn.set_progress_handler(None)
    def _one(self): self.n += 1; return False

def grow(m, n):
    with m._using() as lane, lane.store.writing() as c:
        c.execute('''with recursive g(i) as (select 1 union all select i+1 from g where i<?) insert into tenant_jobs(id,job_type,status,payload,error_log,created_at,completed_at,ready,run_at,retry_count,max_retries,task)
            select printf('%08d',i), 'type'||(i%7), case when i%100=1 then 'failed' when i%50=2 then 'pending' else 'completed' end, '{}', case when i%100=1 then 'ValueError: '||i end,
            strftime('%Y-%m-%dT%H:%M:%S.000000Z','2026-01-01','+'||i||' seconds'), '2026-02-01T00:00:00.000000Z', case when i%100<>1 and i%50=2 then 1 end, '2026-01-01T00:00:00.000000Z', 0, 3, 'x' from g''', (n,))

def test_cost_does_not_grow_with_the_table(tmp_path):
    "By any filter and on any page, SQLite does about as much on 200,000 rows as on 40,000"
    fs = [JobFilter(), JobFilter('type3'), JobFilter('type3', ('failed',)), JobFilter(statuses=('failed',)), JobFilter(statuses=('failed',), text='zzz'), JobFilter(text='zzz'), JobFilter('type3', text='zzz'),
          JobFilter(since='2026-01-01T02:00:00.000000Z', until='2026-01-01T03:00:00.000000Z'), JobFilter('type3', ('failed',), since='2026-01-01T02:00:00.000000Z', until='2026-01-01T03:00:00.000000Z')]
    got = {}
    for n in (40_000, 200_000):
        m = BackgroundTaskManager(database(tmp_path/f'{n}.db'), worker=False)
        grow(m, n)
        with m._using() as lane:
            s,out = lane.store,{}
            for i,f in enumerate(fs):
                for before in (None, 30_000):
                    with Steps(s) as k: page(s, f, before, scan=100)
                    out[i,before] = k.n
            for g in (tally, line, ended, lambda s, *a: kin(s, '00000001')):
                with Steps(s) as k: g(s, *([100] if g in (tally, line, ended) else []))
                out[g.__name__] = k.n
        got[n] = out
        m.close()
    for k,v in got[200_000].items(): assert v<=2*got[40_000][k]+3, (k, got[40_000][k], v)

# --- what is done

def test_buttons_of_a_job(m):
    bad, = run(m, boom, name='x')
    w = Web(m)
    assert '>Retry<' in w.get(f'/job?id={bad}')
    r = w.post('/job', id=bad, do='retry')
    assert r.headers['location']==f'/job?id={bad}' and m.get_job(bad).status=='pending'
    assert 'It is due now.' in w.get(f'/job?id={bad}') and 'It is due now.' not in w.get(f'/job?id={bad}'), 'it is said once'
    w.post('/job', id=bad, do='cancel')
    assert m.get_job(bad).status=='cancelled' and 'Cancelled in the dashboard' in m.get_job(bad).error_log
    w.post('/job', id=bad, do='delete')
    assert m.list_jobs()==[]
    assert 'no job' in unescape(w.post('/job', 409, id=bad, do='retry').text)
    assert [(a['action'], a['outcome'].split(':')[0]) for a in Board(m).actions()]==[('retry','JobNotFound'), ('delete','It is deleted.'), ('cancel','It is cancelled.'), ('retry','It is due now.')]

@pytest.mark.parametrize('state,can', [('completed',['delete']), ('failed',['retry','delete']), ('pending',['retry','cancel']), ('cancelled',['retry','delete'])])
def test_buttons_fit_the_state(m, state, can):
    id = run(m, boom if state=='failed' else work, name='x')[0] if state in ('completed','failed') else m.options(delay=60).submit('a', work, name='x')[0]
    if state=='cancelled': m.cancel(id)
    assert sorted(set(re.findall(r'name="do" value="(\w+)"', Web(m).get(f'/job?id={id}'))))==sorted(can)

def test_bulk_counts_asks_and_does(ts):
    m = ts['acme'].jobs
    run(m, boom, 5, name='one'); run(m, boom, 3, name='two'); run(m, work, 2, name='ok')
    w,f = Web(ts),dict(tenant='acme', do='retry', text='in two')
    html = w.post('/bulk', 200, **f).text
    assert '>Retry 3 jobs<' in html and len(m.list_jobs(status='failed'))==8, 'nothing is done yet'
    hidden = dict(re.findall(r'name="(\w+)" value="([^"]*)"', html))
    run(m, boom, 1, name='two')
    r = w.post('/bulk', **{k:v for k,v in hidden.items() if k!='csrf'})
    assert r.headers['location'].startswith('/jobs?tenant=acme')
    assert len(m.list_jobs(status='pending'))==3 and len(m.list_jobs(status='failed'))==6, 'one that failed after the count stays'
    assert 'There is none' in w.post('/bulk', 200, **f, type='none').text
    assert 'cannot be' in w.post('/bulk', 409, tenant='acme', do='retry', status='completed').text
    w.post('/bulk', 400, tenant='acme'); w.post('/bulk', 400, do='retry')
    assert not ts['globex'].jobs.list_jobs()

def test_bulk_goes_on_from_request_to_request(m, monkeypatch):
    monkeypatch.setattr(Board.do_some, '__defaults__', (None, 100, 1000))
    ids = m.submit_many('a', work, [dict(x=i) for i in range(450)])
    w = Web(m)
    html,n = w.post('/bulk', 200, do='cancel').text,0
    while True:
        data = {k:unescape(v) for k,v in re.findall(r'name="(\w+)" value="([^"]*)"', html) if k!='csrf'}
        r = w.c.post('/bulk', data=data|dict(csrf=w.csrf))
        n += 1
        if r.status_code==303: break
        html = r.text
        assert 'class="inline go"' in html and '<progress' in html
    assert n==3 and len(m.list_jobs(status='cancelled', limit=1000))==450
    assert [a['outcome'] for a in Board(m).actions()]==['50 jobs', '200 jobs', '200 jobs']

# --- rows that others wrote, by hand or by another program

from fh_saas.cli_frame import table
from fh_saas.cli_jobs import COLS, _submitted, record, row
from fh_saas.components import jobs_routes
from fh_saas.store.sqlite_file import ADDED, COLUMNS

STATES = [('pending',0),('pending',1),('pending',-1),('pending',2),('pending',3),('pending',4),('running',None),('completed',None),('failed',None),('cancelled',None)]

def spoil(m, val):
    "For each column, a job in each state with this value in the column: what they are by id"
    cases = [(col, st, ready) for col in COLUMNS|ADDED if col!='id' for st,ready in STATES if col!='unique_key' or ready==1]
    ids,at = m.submit_many('mail', work, [dict(name=i) for i in range(len(cases))]),to_iso(1_700_000_000.)
    with m._using() as lane, lane.store.writing() as c:
        for id,(col,st,ready) in zip(ids, cases):
            over = st not in ('pending','running')
            c.execute("update tenant_jobs set status=?, ready=?, run_at=iif(?,run_at,null), started_at=?, completed_at=?, error_log='it broke', attempts='[{\"n\":1}]' where id=?",
                      (st, ready, st=='pending', at, at if over else None, id))
            c.execute(f'update tenant_jobs set {col}=? where id=?', (val, id))
    return dict(zip(ids, cases))

@pytest.mark.parametrize('val', [None, 'odd', b'\xff\0', '[7]'], ids=repr)
def test_rows_that_somebody_else_wrote(m, val):
    "Whatever is missing or odd in a row, each page, list and command shows it as far as it can be, and the other jobs"
    cases,web = spoil(m, val),Web(m)
    jobs_routes(app := Starlette(), m)
    c = client(app, raise_server_exceptions=False)
    for id,what in cases.items():
        r = web.c.get(f'/job?id={id}')
        assert r.status_code==200 and 'What happened' in r.text, (what, r.text[-300:])
        assert c.get(f'/_jobs/{id}/progress').status_code in (200, 286), what
    js = m.list_jobs(limit=1000)
    for j in js: assert m.explain(j.id) and json.dumps(record('', j)) and row('', j) and _submitted(j)>=0, cases[j.id]
    assert len(js)==len(cases) and len(table([row('', j) for j in js], COLS.split(), None).splitlines())==len(js)+1
    for o in '/', '/jobs?type=mail', '/jobs?status=failed', '/jobs?text=broke', '/failures', '/queues', '/schedules': web.get(o)
    assert 'mail' in c.get('/_jobs/list?limit=100').text
    seen,at = set(),'/jobs'
    while at:
        seen |= set(re.findall(r'/job\?id=([-\w]+)', html := unescape(web.get(at))))
        at = (re.search(r'href="([^"]+)" rel="next"', html) or [None]*2)[1]
    assert seen==set(cases)

def test_due_rows_without_a_time(m):
    "In a line of their own, by queue and by priority"
    for q,p in (('mail',0), ('mail',5), (None,7)):
        id,_ = m.options(queue=q, priority=p).submit('mail', work)
        with m._using() as lane, lane.store.writing() as c: c.execute('update tenant_jobs set ready=1, run_at=null where id=?', (id,))
    web = Web(m)
    assert 'mail' in web.get('/queues') and 'default' in web.get('/queues') and web.get('/')
    assert m.run_due()==3

def test_a_row_without_an_id(m):
    m.submit('mail', work)
    with m._using() as lane, lane.store.writing() as c: c.execute("insert into tenant_jobs(job_type,status) values('theirs','failed')")
    web = Web(m)
    assert 'theirs' in web.get('/jobs') and 'mail' in web.get('/jobs') and 'theirs' in web.get('/failures')
    assert len(table([row('', j) for j in m.list_jobs()], COLS.split(), None).splitlines())==3

def test_deleting_leaves_what_others_need(m):
    due,_ = m.submit('due', work, name='x')
    kid,_ = m.options(after=[due]).submit('kid', work, name='x')
    keyed,_ = m.options(unique='k', unique_for=3600).submit('keyed', work, name='x')
    m._execute_with_retry(keyed)
    w = Web(m)
    assert 'cannot be deleted' in unescape(w.post('/job', 409, id=keyed, do='delete').text)
    w.post('/bulk', do='delete', sure='1')
    assert {o.id for o in m.list_jobs()}=={due, kid, keyed}

def test_nothing_is_done_without_a_line(m, monkeypatch):
    id, = run(m, boom, name='x')
    w = Web(m)
    from fh_saas.store.base import StoreError
    monkeypatch.setattr(Board, '_put_line', lambda *a: (_ for _ in ()).throw(StoreError('the disk is full')))
    w.post('/job', 503, id=id, do='delete')
    assert m.get_job(id).status=='failed'

def test_bulk_retries_parents_before_children(m, monkeypatch):
    monkeypatch.setattr('fh_saas.web.board.BATCH', 1)
    first,_ = m.options(max_retries=1).submit('a', boom, name='x')
    kid,_ = m.options(after=[first]).submit('b', work, name='x')
    grandkid,_ = m.options(after=[kid]).submit('c', work, name='x')
    m._execute_with_retry(first)
    assert {o.status for o in m.list_jobs()}=={'failed'}
    w = Web(m)
    w.post('/bulk', do='retry', sure='1', type='c')
    assert {o.status for o in m.list_jobs()}=={'failed'}, 'a child alone would only fail again'
    w.post('/bulk', do='retry', sure='1')
    assert [(m.get_job(o).status, m.get_job(o).ready) for o in (first, kid, grandkid)]==[('pending',1), ('pending',4), ('pending',4)]

# --- tenants

def test_overview_opens_few(tmp_path):
    ts = Tenants(tmp_path/'many', worker=False, tasks=[work])
    for i in range(60): ts.create(f't{i:02}')
    run(ts['t07'].jobs, work, name='x')
    html = client(dashboard(ts)).get('/').text
    assert '60' in html and 't07' in html and len(ts._pool.open)<=33
    assert 't59' in client(dashboard(ts)).get('/tenants').text
    ts.close()

def test_overview_shows_workers_of_other_processes(t):
    "One that runs jobs, with what it executes; one that was killed, until its jobs are taken back; not one that has gone"
    m = t.look()
    w = Web(m)
    def seen(): return [re.findall(r'<td[^>]*>(.*?)</td>', o) for o in re.search(r'aria-label="Workers".*?</table>', w.get('/'), re.S)[0].split('<tr>')[2:]]
    def said_of(state): return [o for o in seen() if state in o[1]]
    assert len(seen())==1 and 'this process' in seen()[0][1]
    with process(t, "m = mgr(tasks=[sleepy])\nm.submit('t', sleepy)\nout('up')\ntime.sleep(600)", pre=PRE+'def sleepy(): time.sleep(600)\n') as p:
        said(p, 'up')
        until(lambda: [o for o in said_of('runs jobs') if o[2]=='1' and '>in ' in o[4]], 60)
        end(p)
        until(lambda: said_of('died'), 60)
    assert not said_of('runs jobs')

def test_freeze_and_thaw(ts):
    w = Web(ts)
    w.post('/tenant', tenant='acme', do='freeze', why=f'<b>they asked</b> password={SECRET}')
    html = w.get('/tenant?tenant=acme')
    assert ts['acme'].status=='frozen' and '&lt;b&gt;they asked' in html and SECRET not in html and '>Thaw<' in html
    w.post('/tenant', tenant='acme', do='thaw')
    assert ts['acme'].status=='active'
    assert 'not in quarantine' in unescape(w.post('/tenant', 409, tenant='acme', do='resume').text)
    w.post('/tenant', 404, tenant='nope', do='freeze'); w.post('/tenant', 400, tenant='acme', do='delete')
    assert [a['action'] for a in Board(ts).actions()]==['resume','thaw','freeze']

def test_failures_are_grouped(m):
    for i in range(5): run(m, boom, name=f'n{i}')
    html = unescape(Web(m).get('/failures'))
    assert '>5<' in html and html.count('class="err"')==1
    link = re.search(r'href="(/jobs\?status=failed[^"]*)"', html)[1]
    assert 'No jobs' not in Web(m).get(link) and SECRET not in html

def test_names_as_they_stand(m):
    "A type or a schedule with blanks around it, or one of great length, is found by the links and buttons of its own pages"
    for kind in ' padded ', 'x'*3000:
        id, = run(m, boom, kind=kind, name='x')
        w = Web(m)
        for page in '/failures', f'/job?id={id}', '/jobs':
            link = next(o for o in map(unescape, re.findall(r'href="(/jobs\?[^"]*type=[^"]*)"', w.get(page)+w.get('/failures'))) if kind.strip() in o)
            assert id[-6:] in w.get(link)
        assert '1 jobs' in re.sub('<[^>]*>', '', unescape(w.post('/bulk', 200, **pressed(w.get(link), '/bulk', 'Retry all…')).text))
    m.cron('0 9 * * *', work, name=' daily ')
    w.post('/schedules', **pressed(w.get('/schedules'), '/schedules', 'Run now'))

def test_a_count_that_ended_says_so(ts):
    "Where not all were counted, no number is given as if they had been"
    ts['acme'].jobs.submit_many('a', work, [{} for _ in range(1100)])
    ts['globex'].jobs.submit_many('a', work, [{} for _ in range(7)])
    html = Web(ts).get('/')
    assert '<strong>1,007+</strong>' in html and '>1,000+<' in html and '1,001' not in html
    assert '>1,000+<' in Web(ts).get('/tenant?tenant=acme') and 'tenant=initech' not in html, 'where there is no job nobody is busy'

def test_a_time_that_is_none_costs_no_overview(ts):
    "Of one tenant's row that somebody else has written"
    for o in 'acme','globex': ts[o].jobs.submit('a', work)
    with ts['acme'].jobs._using() as lane, lane.store.writing() as c: c.execute("update tenant_jobs set run_at='soon', ready=1")
    assert 'globex' in Web(ts).get('/')

def test_a_chart_says_of_what_it_is(m):
    "Of 600 that are over, 500 are looked at: a job that was submitted first and ended last is not among them, and so it is said"
    from fh_saas.store.base import Ack
    m.submit_many('a', work, [{} for _ in range(600)])
    assert 'submitted last' not in Web(m).get('/')
    with m._using() as lane:
        with lane.store.writing(): cs = lane.store.claim('me', '2026-01-01T00:00:00.000000Z', 600, lease_until='2036-01-01T00:00:00.000000Z')
        with lane.store.writing() as c: c.execute("update tenant_jobs set status='completed', ready=null, run_at=null, completed_at=?", (f'2036-01-01T00:00:00.000000Z',))
    assert 'of the 500 submitted last' in Web(m).get('/')

def test_a_broken_tenant_looks_it(ts):
    "Its state is no good news, and a reason of any length leaves the buttons in sight"
    w,path = Web(ts),ts['acme'].path
    ts._pool.close()
    open(path, 'wb').write(b'x'*8000)
    ts.registry.set('acme', trouble='its file is broken')
    html = w.get('/tenant?tenant=acme')
    assert 'class="badge bad">active' in html and 'class="badge active"' not in html
    id,t = ts['globex'].jobs.submit('a', shout, 1); t.func(*t.args)
    why = re.search(r'class="why">([^<]*)', w.get(f'/job?tenant=globex&id={id}'))[1]
    assert len(why)<=401 and why.endswith('…')

# --- pressed twice

def pressed(page, path, button):
    "The form behind a button, as a browser sends it"
    for f in re.findall(rf'<form[^>]*action="{path}".*?</form>', page, re.S):
        if f'>{button}<' in f: return {k:unescape(v) for k,v in re.findall(r'<input[^>]*name="([^"]*)"[^>]*value="([^"]*)"', f)}
    raise AssertionError(f'no button {button}')

@pytest.mark.parametrize('many', [False, True])
def test_pressed_twice_is_done_once(m, ts, many):
    "A double click submits, retries, cancels and deletes once, and its answer is that of the first; pressed on the page that comes after, it is done again"
    t = ts if many else m
    jobs = ts['acme'].jobs if many else m
    t.cron('0 9 * * *', work, name='daily')
    w = Web(t)
    q = '?tenant=acme' if many else ''
    for n in 1,2:
        form = pressed(w.get('/schedules'+q), '/schedules', 'Run now')
        for _ in range(2):
            w.post('/schedules', **form)
            assert 'Submitted' in w.get('/schedules'+q)
        assert len(jobs.list_jobs())==n
    id, = run(jobs, boom, name='x')
    at = f'/job?id={id}'+('&tenant=acme' if many else '')
    form = pressed(w.get(at), '/job', 'Retry')
    w.post('/job', **form)
    jobs._execute_with_retry(id)
    w.post('/job', **form)
    assert 'It is due now.' in w.get(at) and jobs.get_job(id).status=='failed'
    form = pressed(w.get(at), '/job', 'Delete for good')
    for _ in range(2): assert 'It is deleted.' in w.get(w.post('/job', **form).headers['location'])

def test_an_old_page_is_not_a_second_press(m, monkeypatch):
    "What somebody asked for from another page, a while ago, is not what is asked for now"
    m.cron('0 9 * * *', work, name='daily')
    w,clock = Web(m),[m.clock()]
    monkeypatch.setattr(Board, 'now', lambda self: clock[0])
    form = pressed(w.get('/schedules'), '/schedules', 'Run now')
    w.post('/schedules', **form)
    clock[0] += 11
    w.post('/schedules', **form)
    assert len(m.list_jobs())==2

def test_pressed_again_while_it_is_done(m, monkeypatch):
    "Who cannot wait does not have it twice"
    m.cron('0 9 * * *', work, name='daily')
    b = Board(m)
    def f(): assert b.act('ann', 'run', None, 'x', lambda: 1/0, 0)=='It is being done.'; return 'done'
    assert b.act('ann', 'run', None, 'x', f, 0)=='done'
    assert b.act('bob', 'run', None, 'x', lambda: 'his', 0)=='his', 'another person means it'

# --- schedules and queues

def test_schedules(m, ts):
    m.cron('0 9 * * *', work, name='<daily>')
    w = Web(m)
    html = w.get('/schedules')
    assert '&lt;daily&gt;' in html and '09:00' in html
    w.post('/schedules', name='<daily>', do='pause')
    assert m.schedule('<daily>').state=='paused' and '>Resume<' in w.get('/schedules')
    w.post('/schedules', name='<daily>', do='resume')
    w.post('/schedules', name='<daily>', do='run')
    assert m.schedule('<daily>').state=='active' and len(m.list_jobs())==1
    w.post('/schedules', 409, name='nope', do='run'); w.post('/schedules', 400, name='<daily>', do='remove')
    ts.cron('0 9 * * *', work, name='all')
    w = Web(ts)
    w.post('/schedules', name='all', do='pause', tenant='acme')
    assert (ts['acme'].jobs.schedule('all').state, ts['globex'].jobs.schedule('all').state)==('paused', 'active')
    assert 'all' in w.get('/schedules') and 'paused' in w.get('/schedules?tenant=acme')

def test_queues(ts):
    m = ts['acme'].jobs
    m.options(queue='<mail>').submit('a', work, name='x')
    w = Web(ts)
    assert 'Choose a tenant' in w.get('/queues') and '&lt;mail&gt;' in w.get('/queues?tenant=acme')
    w.post('/queues', tenant='acme', queue='<mail>', do='pause'); w.post('/queues', tenant='acme', type='a', do='pause')
    assert (list(m.controls()['paused_queues']), list(m.controls()['paused_types']))==(['<mail>'], ['a']) and 'paused' in w.get('/queues?tenant=acme')
    w.post('/queues', tenant='acme', queue='<mail>', do='resume'); w.post('/queues', tenant='acme', type='a', do='resume')
    assert not m.controls()['paused_queues'] and not m.controls()['paused_types'] and not ts['globex'].jobs.controls()['paused_types']
    w.post('/queues', 409, tenant='acme', do='pause'); w.post('/queues', 400, queue='x', do='pause')
