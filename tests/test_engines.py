"Doorbells between machines: no ring is lost, each reaches one worker, whatever is killed"
import subprocess, sys, threading, time, warnings
from contextlib import contextmanager

import psycopg, pytest
from util import env, until

pytest.importorskip('psycopg')

class Work:
    "Jobs by tenant, and a `drain` for them"
    def __init__(self, most=10): self.left,self.log,self.most,self.lock,self.gate = {},[],most,threading.Lock(),threading.Event(); self.gate.set()
    def put(self, tenant, n=1):
        with self.lock: self.left[tenant] = self.left.get(tenant, 0)+n
    def drain(self, tenant):
        self.gate.wait(30)
        with self.lock:
            n = min(self.most, self.left.get(tenant, 0))
            self.left[tenant] = self.left.get(tenant, 0)-n
            self.log.append((tenant, n))
            return bool(self.left[tenant]) or None
    def over(self): return not any(self.left.values())

@contextmanager
def serving(e, drain):
    t = threading.Thread(target=e.serve, args=(drain,), daemon=True)
    t.start()
    try: yield e
    finally: e.stop(); t.join(30); assert not t.is_alive()

def pg_engine(url, **kw):
    from fh_saas.engines.postgres import PgEngine
    return PgEngine(url, **kw)

def procrastinate_engine(url, **kw):
    pytest.importorskip('procrastinate')
    from fh_saas.engines.procrastinate import ProcrastinateEngine
    return ProcrastinateEngine(url, **kw)

@pytest.fixture(params=['postgres', 'procrastinate'])
def make(request):
    made,f = [],dict(postgres=pg_engine, procrastinate=procrastinate_engine)[request.param]
    def make(url, **kw): made.append(e := f(url, **kw)); return e
    make.kind = request.param
    yield make
    for e in made: e.stop()

def rows(url, q, *a):
    with psycopg.connect(url, autocommit=True) as c: return c.execute(q, a).fetchall()

def waiting(make, url):
    "How many rings wait"
    return rows(url, 'select count(*) from tenant_rings' if make.kind=='postgres' else "select count(*) from procrastinate_jobs where status='todo'")[0][0]

def test_many_rings_fold_into_one_for_each_tenant(pg, make):
    e = make(pg)
    for i in range(3):
        for t in ('acme', 'globex'): e.ring(t)
        assert e.flush()
    assert waiting(make, pg)==2

def test_what_was_rung_is_drained_by_one_worker(pg, make):
    a,b,c = (make(pg) for _ in range(3))
    w = Work()
    for i in range(20): w.put(f't{i}')
    with serving(b, w.drain), serving(c, w.drain):
        for i in range(20): a.ring(f't{i}')
        until(w.over)
        until(lambda: waiting(make, pg)==0)
    assert sorted(t for t,n in w.log if n)==sorted(f't{i}' for i in range(20))
    assert len(w.log)<=25            # hardly any look for nothing

def test_rings_again_while_work_is_left(pg, make):
    e,w = make(pg),Work(most=10)
    w.put('acme', 95)
    with serving(e, w.drain):
        e.ring('acme')
        until(w.over)
        until(lambda: waiting(make, pg)==0)
    assert [n for _,n in w.log][:10]==[10]*9+[5]

def test_a_ring_in_the_middle_of_a_drain_is_not_lost(pg, make):
    e,w = make(pg, width=1),Work()
    began,go = threading.Event(),threading.Event()
    def drain(t):
        if not began.is_set(): began.set(); go.wait(30); return None       # looked before the second job came
        return w.drain(t)
    with serving(e, drain):
        e.ring('acme')
        assert began.wait(20)
        w.put('acme'); e.ring('acme'); assert e.flush()
        go.set()
        until(w.over)

def test_a_later_ring_comes_at_its_time_and_a_nearer_one_wins(pg, make):
    e,w = make(pg),Work()
    e.ring('acme', time.time()+3600); e.ring('globex', time.time()+3600)
    assert e.flush()
    w.put('acme')
    with serving(e, w.drain):
        e.ring('acme', time.time()+.3)
        until(w.over)
        e.ring('acme'); w.put('acme')
        until(w.over)
    assert {t for t,_ in w.log}=={'acme'}

def test_a_drain_that_raises_is_tried_again(pg, make):
    e,w,calls = make(pg),Work(),[]
    e.again_s = .1
    def drain(t):
        calls.append(t)
        if len(calls)==1: raise RuntimeError('not today')
        return w.drain(t)
    w.put('acme')
    with serving(e, drain):
        e.ring('acme')
        until(w.over)

def test_the_server_goes_away_and_comes_back(pg_private, make):
    with pg_private.fresh() as url:
        a,b,w = make(url),make(url),Work()
        with serving(b, w.drain):
            w.put('acme'); a.ring('acme'); until(w.over)
            for mode in ('immediate', 'fast'):
                pg_private.stop(mode)
                w.put('globex', 3); a.ring('globex')           # neither waits nor raises
                pg_private.start()
                until(w.over, 40)
                w.put('acme'); a.ring('acme'); until(w.over, 40)

def test_rings_with_the_transaction(pg, make):
    e = make(pg)
    with psycopg.connect(pg) as c:
        e.ring_in(c, 'acme'); e.ring_in(c, 'acme'); c.execute('create table t as select 1'); c.rollback()
        e.ring_in(c, 'globex'); e.ring_in(c, 'globex'); c.commit()
        e.ring_in(c, 'globex'); c.commit()
    assert waiting(make, pg)==1
    w = Work(); w.put('globex')
    with serving(e, w.drain): until(w.over)
    assert {t for t,_ in w.log}=={'globex'}

KILL = '''
import sys, time
from fh_saas.engines.engine import engine
e = engine(sys.argv[1], sys.argv[2], take_s=2.)
def drain(t): print('took', t, flush=True); time.sleep(60)
e.serve(drain)
'''

def test_the_ring_of_a_killed_worker_is_taken_by_another(pg, make):
    e = make(pg, take_s=2.)
    e.ring('acme'); assert e.flush()
    p = subprocess.Popen([sys.executable, '-c', KILL, make.kind, pg], stdout=subprocess.PIPE, text=True, env=env())
    try: assert p.stdout.readline().split()==['took', 'acme']
    finally: p.kill(); p.communicate()
    w = Work(); w.put('acme')
    with serving(e, w.drain): until(w.over, 40)

def test_a_worker_that_is_at_it_keeps_the_ring(pg):
    a,b = pg_engine(pg, take_s=.6),pg_engine(pg, take_s=.6)
    began,go,seen = threading.Event(),threading.Event(),[]
    def slow(t): began.set(); go.wait(30)
    def other(t): seen.append(t)
    with serving(a, slow):
        a.ring('acme'); assert began.wait(20)
        with serving(b, other):
            t0 = rows(pg, 'select at from tenant_rings')[0][0]
            until(lambda: rows(pg, 'select at from tenant_rings')[0][0]>t0)
            until(lambda: rows(pg, 'select at from tenant_rings')[0][0]>t0 and rows(pg, "select now()>%s+interval '1 s'", t0)[0][0])
            assert not seen
        go.set()

def test_without_listen_it_looks_by_itself(pg):
    a,b,w = pg_engine(pg),pg_engine(pg, listen=False, look_s=.05),Work()
    w.put('acme')
    with serving(b, w.drain):
        a.ring('acme')
        until(w.over)
    a.stop()

FORK = '''
import os, sys
from fh_saas.engines.engine import engine
e = engine(sys.argv[1], sys.argv[2])
e.ring('acme'); assert e.flush()
if not os.fork():
    e.ring('globex'); os._exit(not e.flush())
assert os.wait()[1]==0
e.ring('umbrella'); assert e.flush()
'''

def test_a_forked_child_rings_too(pg, make):
    subprocess.run([sys.executable, '-c', FORK, make.kind, pg], check=True, env=env(), timeout=60)
    assert waiting(make, pg)==3

@pytest.mark.parametrize('name,mod,extra', [('postgres','psycopg','fh-saas[postgres]'), ('procrastinate','procrastinate','fh-saas[procrastinate]')])
def test_a_missing_extra_is_named(name, mod, extra):
    code = f'import sys; sys.modules[{mod!r}] = None\nfrom fh_saas.engines.engine import engine\ntry: engine({name!r}, "postgresql://x/y")\nexcept ImportError as e: print(e)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env())
    assert extra in out.stdout, out.stderr

def test_the_driver_warns_of_nothing(pg):
    "The listener hears in one way alone: two beside each other may lose what is said"
    e,w = pg_engine(pg, look_s=60.),Work()
    with warnings.catch_warnings(record=True) as got:
        warnings.simplefilter('always')
        with serving(e, w.drain):
            until(lambda: rows(pg, "select 1 from pg_stat_activity where application_name='fh_saas ring' and datname=current_database() and query in ('listen fh_saas_rings', 'select 1')"))
            for i in range(5):
                w.put('acme'); e.ring('acme')
                until(w.over, 30)
    assert not [o for o in got if issubclass(o.category, RuntimeWarning)]

END = '''
import sys, threading, time
from fh_saas.engines.engine import engine
e,over = engine(sys.argv[1], sys.argv[2]),threading.Event()
def drain(t): print('took', flush=True); over.wait(600)
threading.Thread(target=e.serve, args=(drain,), daemon=True).start()
sys.stdin.readline()
if sys.argv[3]=='ends': over.set()
'''

@pytest.mark.parametrize('how', ['ends', 'hangs'])
def test_the_end_of_the_process_waits_for_a_drain_but_not_for_ever(pg, make, how):
    "One that ends meanwhile says so; one that waits for a server that never answers is given up, and its ring is another worker's once nothing holds it"
    e = make(pg)
    e.ring('acme'); assert e.flush()
    p = subprocess.Popen([sys.executable, '-c', END, make.kind, pg, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env())
    try:
        assert p.stdout.readline()=='took\n'
        p.stdin.close()
        assert p.wait(30)==0
    finally: p.kill(); p.wait(); p.stdout.close()
    if make.kind=='postgres': assert len(rows(pg, 'select 1 from tenant_rings'))==(how=='hangs')
