"What else there is, on a server: retention, schedules, limits, tasks in child processes, the dashboard, `fh_saas doctor`, keys"
import itertools, re, subprocess, sys, time
from html import unescape
from types import SimpleNamespace

import cpu, pytest
from fh_saas.running.children import children
from fh_saas.dashboard import dashboard
from fh_saas.keys import new_key
from fh_saas.running.retention import Sweep
from fh_saas.store import pg_file
from fh_saas.store.base import StoreBusy
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import current_job
from starlette.testclient import TestClient
from pg import on_server as t # noqa: F401, the fixture of all tests here
from util import done, env, process, said, until

class Clock:
    def __init__(self, at=1_800_000_000.): self.at = at
    def __call__(self): return self.at
    def tick(self, s): self.at += s

def test_processes(t):
    "A result, an exception, a child that dies, and its progress and log"
    try:
        m = t.mgr(handoff=0)
        run = lambda f, status='completed', **kw: done(m, m.submit('cpu', f, 1, **kw)[0], 40, status)
        assert run(cpu.add, a=1, b=2).result=='3'
        assert "KeyError: 'no such thing'" in run(cpu.fault, 'failed', kind='raise').error_log
        assert run(cpu.fault, 'failed', kind='segv').error_log.startswith('Its process was killed by SIGSEGV')
        assert run(cpu.add, a=2, b=2).result=='4'
    finally: children.close(10.)

def test_retention(t):
    "Rules by status and type, in the clock's time; what is removed takes its steps along"
    c = Clock()
    m = t.mgr(worker=False, clock=c)
    def stepped(): current_job().step('one', lambda: 1); 1/0
    m.keep(completed=1, failed=10); m.keep(completed=5, job_type='kept')
    ids = {k:m.submit(k, f, 1)[0] for k,f in dict(gone=len_, kept=len_, bad=stepped).items()}
    m.run_due()
    assert m.prune()==0
    c.tick(2*86400)
    assert m.prune()==1 and {j.id for j in m.list_jobs()}=={ids['kept'], ids['bad']}
    c.tick(9*86400)
    assert m.prune()==2 and m.list_jobs()==[] and m._lane.store.read('select count(*) from tenant_job_steps')==[(0,)]

def test_pruning_a_server_far_away(t, monkeypatch):
    "How long an answer is on its way is not the rows' doing: where the server needs a millisecond for a commit, it removes many, though 20 pass at this end"
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=time.sleep, perf_counter=itertools.count(0., .02).__next__)
    monkeypatch.setattr(pg_file, 'time', clock)
    monkeypatch.setattr(pg_file, '_TOOK', 'select .001::float8', raising=False)
    m = t.look()
    with m._lane.store.writing() as c:
        c.own("""insert into tenant_jobs(id,job_type,status,payload,created_at,completed_at,task)
            select 'j'||i, 'a', 'completed', '{}', '2026-01-01', '2026-01-01', 'm:f' from generate_series(1,400) i""")
    s = Sweep(m._lane, {('completed',''):5*86400.}, {}, 1.8e9)
    commits = [o for o in s.steps() if o]
    assert s.n==400 and len(commits)<10, commits

def test_a_commit_that_goes_along_with_a_failure(t):
    "Nothing of a statement that stands alone stays, and the connection can be used again"
    store = t.look()._lane.store
    with pytest.raises(StoreBusy): store.alone("insert into tenant_meta select 'a','1' union all select 'a','1'")
    assert store.read("select value from tenant_meta where key='a'")==[] and store.alone("insert into tenant_meta values('a','1')")[0]==1
    assert store.read("select value from tenant_meta where key='a'")==[('1',)] and len(store.pool.free)==1

def len_(): return 1

def test_schedules(t):
    "Slots that passed are made up once, by one of two managers; a pause holds"
    c = Clock()
    ms = [t.mgr(worker=False, clock=c), t.mgr(worker=False, clock=c)]
    for m in ms: m.cron('*/10 * * * *', len_, name='tens')
    c.tick(3600)
    for m in ms: m.run_due()
    assert len(ms[0].list_jobs(job_type='tens'))==1
    ms[0].schedule('tens').pause()
    c.tick(3600)
    for m in ms: m.run_due()
    assert len(ms[0].list_jobs())==1 and [s.state for s in ms[1].schedules()]==['paused']
    ms[0].schedule('tens').run(); ms[0].run_due()
    assert len(ms[0].list_jobs(status='completed'))==2

LIMITED = """
@task(name='two', limit=2, limit_key=lambda kw: kw['key'])
def two(folder, key, name=''): gated(folder, name)
@task(name='probe')
def probe(folder, name=''): quick(folder, name)
@task(name='one', limit_all=1)
def one(folder, name=''): gated(folder, name, 'go2')
"""

def test_limits(t):
    "limit with limit_key over two machines; limit_all on each"
    code = LIMITED+"m = mgr(threads=8, handoff=0); m._serve(); out('up'); time.sleep(600)"
    ns = {}
    exec('from fh_saas.tasks import task\nfrom work import *\n'+LIMITED, ns)
    try:
        m = t.look()
        for i in range(6): m.submit('two', ns['two'], folder=str(t.dir), key=f'k{i%2}', name=f'two{i}')
        for n in 'ab': (t.dir/n).mkdir()
        def probed(i):
            "Somebody has claimed what may run by then"
            m.submit('probe', ns['probe'], folder=str(t.dir), name=f'probe{i}')
            until(lambda: [o for o in t.log('ran') if o[2]==f'probe{i}'])
        with process(t, code, FH_SAAS_RUN_DIR=str(t.dir/'a')) as a, process(t, code, FH_SAAS_RUN_DIR=str(t.dir/'b')) as b:
            said(a, 'up'); said(b, 'up')
            until(lambda: len(t.log('start'))==4)
            for i in range(10): probed(i)
            assert sorted(int(o[2][-1])%2 for o in t.log('start'))==[0, 0, 1, 1]
            t.go()
            until(lambda: len(t.log('end'))==6)
            for i in range(6): m.submit('one', ns['one'], folder=str(t.dir), name=f'one{i}')
            began = lambda: [o for o in t.log('start') if o[2].startswith('one')]
            until(lambda: len(began())>=1)
            for i in range(10, 20): probed(i)
            assert len({o[3] for o in began()})==len(began())<=2
            t.go('go2')
            until(lambda: len(m.list_jobs(status='completed'))==12+20)
    finally:
        from fh_saas.tasks import shared
        for o in ('two', 'one', 'probe'):
            if k := shared._named.pop(o, None): shared._of.pop(k.func, None)

def refuse(name): raise ValueError(f'nobody is called {name}')

def test_keys(t):
    "Columns are sealed and read with the key; a server cannot look into sealed errors, so no job is found by their text; a new key takes over"
    old,new = new_key(),new_key()
    m = t.mgr(keys=[old], worker=False)
    for o in 'anna', 'bob': m.submit('r', refuse, 1, name=o)
    m.run_due()
    assert 'anna' not in str(m._lane.store.read('select payload,error_log,attempts from tenant_jobs'))
    assert m.retry_failed(error_contains='nobody is called anna')==0
    assert {'anna' in j.error_log for j in m.list_jobs()}=={True, False} and len(m.list_jobs(status='failed'))==2
    m.close()
    m = t.mgr(keys=[new, old], worker=False)
    assert m.reseal()==2
    m.close()
    assert [o.status for o in t.mgr(keys=[new], worker=False).list_jobs()]==['failed']*2

@pytest.mark.parametrize('many', [False, True])
def test_dashboard(t, pg, many):
    "Every page opens, and a button works"
    if many:
        ts = Tenants(pg, worker=False, tasks=[refuse, len_])
        m = ts.create('acme').jobs
    else: m = ts = t.mgr(worker=False)
    try:
        i,_ = m.submit('bad', refuse, 1, name='x'); m.submit('good', len_); m.options(delay=60).submit('late', len_)
        m.cron('0 4 * * *', len_, name='nightly')
        m.run_due()
        c = TestClient(dashboard(ts), base_url='http://127.0.0.1', client=('127.0.0.1', 1), follow_redirects=False)
        pages,seen = ['/', '/jobs?tenant=acme' if many else '/jobs'],set()
        while pages:
            p = pages.pop()
            if p in seen or len(seen)>60: continue
            seen.add(p)
            r = c.get(p)
            assert r.status_code in (200, 303, 307), (p, r.status_code, r.text[:300])
            pages += [o for o in map(unescape, re.findall(r'href="([^"#]+)"', r.text)) if o.startswith('/') and '.' not in o and 'stream' not in o]
        assert any(i in o for o in seen) and len(seen)>8, seen
        at = '?tenant=acme' if many else ''
        csrf = re.search(r'name="csrf" value="([^"]+)"', c.get(f'/jobs{at}').text)[1]
        if many: assert 'acme' in c.get('/tenants?q=AC').text
        assert m.get_job(i).status=='failed'
        assert c.post('/job', data=dict(csrf=csrf, id=i, do='retry')|(dict(tenant='acme') if many else {})).status_code==303 and m.get_job(i).status=='pending'
        assert 'retry' in c.get('/actions').text
        page = c.get(f'/schedules{at}').text
        form = dict(csrf=csrf, seen=re.search(r'name="seen" value="(\d+)"', page)[1], name='nightly', do='run')|(dict(tenant='acme') if many else {})
        n = len(m.list_jobs())
        for _ in range(2): assert c.post('/schedules', data=form).status_code==303
        assert len(m.list_jobs())==n+1, 'pressed twice'
    finally:
        if many: ts.close()

def test_doctor(t, pg):
    "It looks at an app with a manager on a server, and at one with tenants there"
    (t.dir/'docapp.py').write_text(f"""
from fastsql import database
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager
def f(): pass
manager = BackgroundTaskManager(database({pg!r}), worker=False, tasks=[f])
tenants = Tenants({pg!r}, worker=False, tasks=[f])
if 'acme' not in tenants: tenants.create('acme').jobs.submit('x', f)
""")
    for o in 'manager', 'tenants':
        p = subprocess.run([sys.executable, '-c', 'import sys; sys.argv[0] = "fh_saas"; from fh_saas.cli import main; main()', 'doctor', f'docapp:{o}'], capture_output=True, text=True, cwd=t.dir, env=env(), timeout=60)
        assert 'Traceback' not in p.stdout+p.stderr and p.returncode in (0, 3) and p.stdout, (o, p.stdout, p.stderr)
        print(o, p.returncode, p.stdout)
