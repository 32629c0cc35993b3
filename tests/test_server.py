"A real uvicorn server and a real client: DESIGN section 5 and promises P1, P7 from outside"
import json, signal, socket, statistics, time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fh_saas.ids import from_iso
from util import Server, Tenant, apps, done, until

@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    "One server for the tests that leave it alive"
    t = Tenant(tmp_path_factory.mktemp('web'))
    with Server(t) as s: yield t,s
    t.close()

def words(t, *ws): return [o[1:3] for o in t.log() if o[1] in ws]

# --- the response comes first

@pytest.mark.parametrize('url', 'ft string dct tup redirect asy'.split())
def test_response_before_task(shared, url):
    "Section 5: the response is sent before the task begins, however it is returned"
    t,s = shared
    (t.dir/'go').unlink(missing_ok=True)
    r = s.get('/'+url)
    assert r.status_code in (200, 307) and (url=='redirect' or 'hello' in r.text)
    m = t.look()
    until(lambda: ['start',url] in words(t, 'start'), 3)
    assert m.get_job(r.headers['x-job']).status in ('pending','running'), 'the task holds until the gate opens'
    order = words(t, 'sent', 'start')
    assert order.index(['sent','/'+url])<order.index(['start',url])
    t.go()
    j = done(m, r.headers['x-job'])
    assert (j.result,j.retry_count)==(json.dumps(url),0)

def test_dropped_task_runs(tmp_path):
    "P1: FastHTML drops a task paired with a Response; a worker takes the job when its grace ends"
    t = Tenant(tmp_path)
    with Server(t, FH_OPTS='{"handoff":0.2}') as s:
        id = s.job('/dropped')
        j = done(t.look(), id, 5)
        assert from_iso(j.started_at)-from_iso(j.created_at)>=.2, 'not before the grace'
        assert j.run_at is None and len(t.log('ran'))==1
    t.close()

def test_job_exception_stays_out(shared):
    "A failing job neither changes the response nor logs an error of the server"
    t,s = shared
    r = s.get('/fail')
    assert r.status_code==200 and 'hello' in r.text
    j = done(t.look(), r.headers['x-job'], status='failed')
    assert 'ValueError: attempt 1' in j.error_log
    assert s.get('/ok').status_code==200
    assert not [o for o in ('Exception in ASGI', 'Traceback', 'ERROR') if o in s.text()], s.text()

def test_base_http_middleware(tmp_path):
    "Section 5 with BaseHTTPMiddleware around the app: responses are not held up, jobs run, also after a disconnect"
    t = Tenant(tmp_path)
    with Server(t, FH_MODE='base') as s:
        m,ids = t.look(),[s.job('/'+o) for o in ('ft','redirect','asy')]
        assert {m.get_job(o).status for o in ids}<={'pending','running'}
        assert s.get('/ok').status_code==200
        t.go()
        for o in ids: assert done(m, o).retry_count==0
        assert 'Exception' not in s.text(), s.text()
    t.close()

# --- others are not held up

def laps(s, url, going):
    "Seconds each request took while `going()`"
    out,last = [],0
    while time.monotonic()-last<.1 or going():
        if time.monotonic()-last>.1: last = time.monotonic()
        t = time.perf_counter(); s.get(url).raise_for_status(); out.append(time.perf_counter()-t)
    return out

@pytest.mark.alone
def test_routes_are_quick_while_slow_jobs_run(tmp_path):
    "P7: 100 slow sync jobs, all awaited by their responses, hold up neither async nor sync routes"
    t = Tenant(tmp_path)
    with Server(t, FH_OPTS='{"wait_s":null}') as s, ThreadPoolExecutor(8) as ex:
        ids = list(ex.map(lambda i: s.job(f'/plain?task=nap&name={i}&s=0.1'), range(100)))
        assert len(t.log('end'))<60, 'most still run'
        for url,until_n in (('/ok',60), ('/okay',100)):
            n0,ls = len(t.log('end')),laps(s, url, lambda: len(t.log('end'))<until_n)
            ls.sort()
            med,p95 = statistics.median(ls),ls[int(len(ls)*.95)]
            assert len(t.log('end'))>n0, 'jobs ran meanwhile'
            assert med<.05 and p95<.05, f'{url}: median {med*1e3:.1f} ms, 95th {p95*1e3:.1f} ms of {len(ls)}'
        m = t.look()
        for o in ids: assert done(m, o).retry_count==0
        assert len(t.log('start'))==100
    t.close()

# --- clients that leave

def cut(port, url):
    "Send a request; the socket, to be closed before the answer is read"
    k = socket.create_connection(('127.0.0.1', port))
    k.sendall(f'GET {url} HTTP/1.1\r\nhost: x\r\n\r\n'.encode())
    return k

@pytest.mark.parametrize('mode', ['', 'base'])
def test_disconnect_cancels_nothing(tmp_path, mode):
    "P1: a client that leaves, before the response or during the job, costs the job nothing"
    t = Tenant(tmp_path)
    with Server(t, FH_MODE=mode, FH_OPTS='{"handoff":0.3}') as s:
        k = cut(s.port, '/slow?name=early')
        id = until(lambda: t.log('submitted'))[0][2]
        k.close()
        ks = [cut(s.port, f'/plain?task={o}&name={o}') for o in ('gated','agated')]
        until(lambda: len(t.log('start'))==3)
        for o in ks: o.close()
        m = t.look()
        assert s.get('/ok').status_code==200
        t.go()
        js = until(lambda: len(l := m.list_jobs(status='completed'))==3 and l)
        assert id in [j.id for j in js] and {j.retry_count for j in js}=={0} and len(t.log('start'))==3
        assert not [o for o in ('Exception in ASGI', 'ERROR', 'Cancelled') if o in s.text()], s.text()
    t.close()

# --- start and end of the server

@pytest.mark.parametrize('app,url', [('web:app','/ft'), ('star:app','/job')])
def test_lifespan_with_the_apps_own(tmp_path, app, url):
    "manager.lifespan(own) serves FastHTML and Starlette; both lifespans begin and end, state goes through"
    t = Tenant(tmp_path)
    with Server(t, app, FH_MODE='composed') as s:
        r = s.get(url)
        if app=='star:app': assert r.json()==dict(mine=7)
        until(lambda: t.log('start'))
        began = time.monotonic()
        s.signal(signal.SIGTERM)
        t.go()
        s.wait()
        assert time.monotonic()-began<5
        assert words(t, 'own-up', 'own-down')==[['own-up'],['own-down']] and 'Exception' not in s.text(), s.text()
        assert t.look().get_job(r.headers['x-job']).status=='completed'
    t.close()

def test_sigterm_drains(tmp_path):
    "Section 5: SIGTERM starts the drain at once: what runs may end, nothing new begins, nothing is charged"
    t = Tenant(tmp_path)
    with Server(t, FH_MODE='lifespan', FH_OPTS='{"threads":1}') as s:
        ids = [s.job(f'/plain?task=gated&name={i}') for i in range(6)]
        until(lambda: t.log('start'))
        s.signal(signal.SIGTERM)
        until(lambda: 'Shutting down' in s.text())
        t.go()
        s.wait()
        js = [t.look().get_job(o) for o in ids]
        assert [j.status for j in js].count('completed')==len(t.log('end'))==len(t.log('start'))<=2
        assert {(j.status,j.retry_count,j.error_log) for j in js}=={('completed',0,None),('pending',0,None)}
    with Server(t, FH_MODE='lifespan') as s:
        for o in ids: assert done(t.look(), o).retry_count==0
    assert sorted(o[2] for o in t.log('end'))==list('012345'), 'each ran once in all'
    t.close()

@pytest.mark.parametrize('task', ['gated','agated'])
def test_sigterm_gives_back_what_runs_too_long(tmp_path, task):
    "P2: a job longer than drain_s goes back with no attempt used, and the server ends in time"
    t = Tenant(tmp_path)
    with Server(t, FH_MODE='lifespan', FH_OPTS='{"drain_s":0.3}') as s:
        id = s.job(f'/plain?task={task}&name=long')
        until(lambda: t.log('start'))
        began = time.monotonic()
        s.signal(signal.SIGTERM)
        s.wait()
        assert time.monotonic()-began<4
        j = t.look().get_job(id)
        assert (j.status,j.retry_count,j.error_log,j.attempts)==('pending',0,None,None)
    t.go()
    with Server(t) as s: assert done(t.look(), id).retry_count==0
    t.close()

@pytest.mark.parametrize('args,mode', [(None,''), (['web.py'],''), (['web.py'],'import')])
def test_sigterm_without_lifespan(tmp_path, args, mode):
    "Section 5: without a lifespan a job cut short is charged one attempt at most, and the restarted server ends it"
    t = Tenant(tmp_path)
    if args: args = [str(apps/args[0])]
    with Server(t, args=args, FH_MODE=mode, FH_OPTS='{"drain_s":0.3,"wait_s":0.5}') as s:
        id = s.job('/ft')
        until(lambda: t.log('start'))
        s.signal(signal.SIGTERM)
        s.wait()
    t.go()
    with Server(t) as s: assert done(t.look(), id).retry_count<=1
    t.close()
