"Tenants when things go wrong half-way: kill -9 at every step of a move and a delete, full and read-only files, files that cannot be upgraded"
import os, re, signal, subprocess, sys, time
from collections import Counter
from contextlib import contextmanager

import apsw, pytest, work
from fh_saas.maintenance import rescue
from fh_saas.store.base import StoreError
from fh_saas.tenants import Tenants
from test_tenants import PRE, TASKS, House, h, jobs, settled, up, worker
from util import end, env, process, run_py, said, start_py, until

# --- kill -9 at every step

DEFS = PRE+'''
import fh_saas.moving as mv
from fastlite import database
from fh_saas.tenants import Tenant
def cut(n, *funcs):
    "kill -9 before the nth line that this thread executes in any of these functions"
    codes,left = {f.__code__ for f in funcs},[n]
    def line(frame, event, arg):
        if event=='line':
            left[0] -= 1
            if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
        return line
    sys.settrace(lambda frame, event, arg: line if frame.f_code in codes else None)
def both_run(dir):
    "Wait until two jobs execute"
    end,n = time.monotonic()+15,0
    while n<2:
        if time.monotonic()>end: raise TimeoutError('two jobs should execute')
        time.sleep(.002)
        n = open(f'{dir}/log').read().count(' start ') if os.path.exists(f'{dir}/log') else 0
def data(dir, name='data', **kw): return Tenants(f'{dir}/{name}', **(dict(tasks=[quick,gated], handoff=0, threads=2)|kw))
'''
LOOP = '''
for o in sys.stdin:                   # a child for each folder and step; this process has imported everything and opened nothing
    dir,n = o.split()
    if (pid := os.fork())==0:
        try: go(dir, int(n)); os._exit(0)
        except BaseException as e: print(repr(e), file=sys.stderr, flush=True); os._exit(1)
    out(os.waitpid(pid, 0)[1])'''

def each_step(tmp_path, go, prepare, check, least):
    "For n = 1, 2, …: prepare a house, have a process do `go` and die before its nth line, and check what others find; until it gets through"
    with process(House(tmp_path), DEFS+go+LOOP, pre='') as p:
        for n in range(1, 300):
            h = House(tmp_path/str(n))
            try:
                prepare(h)
                print(h.dir, n, file=p.stdin, flush=True)
                status = p.stdout.readline().strip()
                assert status in ('9', '0'), (n, status, p.stderr.readline())
                check(h, n)
            finally: h.close()
            if status=='0': break
    assert least<n<299, f'{n} steps'

def two_run_ten_wait(h):
    "A tenant with two jobs that will hold and ten that wait behind them"
    a = h.ts().create('t000')
    h.fill(a, 2, work.gated)
    h.fill(a, 10)
    h.opened.pop().close()

def run_all(t):
    "Rescue and run what there is to run, in this thread"
    with t.jobs._using() as lane: rescue(lane)
    t.jobs.run_due()

def nothing_lost(h, t, n):
    "All twelve jobs end; those that waited run once, those that executed at most twice"
    h.go()
    run_all(t)
    js = t.jobs.list_jobs(limit=100)
    assert len(js)==12 and {j.status for j in js}=={'completed'}, (n, js)
    assert sorted(h.names())==sorted(f't000-{i}' for i in range(10)), n
    starts = Counter(h.names('start'))
    assert set(starts)=={'t000-0','t000-1'} and max(starts.values())<=2 and len(h.log('end'))>=2, (n, starts)
    assert all(j.retry_count<=(j.result is not None) for j in js), n

def files(h, *folders):
    "Names of the files in these folders, without what belongs to an open database or to processes"
    out = [f'{d}/{o}' for d in folders if (h.dir/d).exists() for o in os.listdir(h.dir/d) if o not in ('.fh_saas','host.db')]
    return sorted(o for o in out if not any(o.removesuffix(e) in out+[f'{d}/host.db' for d in folders] for e in ('-wal','-shm') if o.endswith(e)))

MOVE = '''
def go(dir, n):
    a = data(dir)['t000']; both_run(dir)
    to = %s
    cut(n, mv.move, mv._to_copy, mv._copy, mv._name, mv._receive, mv._finish, mv._remove_left, mv._unlink)
    a.move(to, drain_s=0)'''

def test_kill_at_each_step_of_a_move(tmp_path):
    "kill -9 before each line of a move with jobs in flight: another process finishes or undoes it, nothing is lost, one file is left"
    places = set()
    def check(h, n):
        a = h.ts()['t000']
        assert a.status=='active' and a.row.moving_to is None and a.row.operator is None, (n, a.row)
        left = files(h, 'data', 'there')
        assert left==[os.path.relpath(a.path, h.dir)], (n, left)
        places.add(left[0])
        nothing_lost(h, a, n)
        a.move(h.dir/'later'); assert a.jobs.list_jobs(limit=1), n          # nothing stands in the way of the next one
        again = h.ts().create('t001', path=h.dir/left[0]); assert again.status=='active'
    each_step(tmp_path, MOVE%"dir+'/there'", two_run_ten_wait, check, 40)
    assert places=={'data/t000.db', 'there/t000.db'}

@pytest.mark.parametrize('first', ['data', 'other'])
def test_kill_at_each_step_of_a_move_to_another_registry(tmp_path, first):
    "The same between two registries, whichever is opened first afterwards: one of them has the tenant"
    places = set()
    def check(h, n):
        opened = {o:Tenants(h.dir/o, worker=False, tasks=TASKS) for o in sorted(('data','other'), key=lambda o: o!=first)}
        h.opened += opened.values()
        has = [o for o in opened if 't000' in opened[o]]
        assert len(has)==1, (n, has)
        a = opened[has[0]]['t000']
        assert a.status=='active' and a.row.operator is None, (n, a.row)
        assert (left := files(h, 'data', 'other'))==[f'{has[0]}/t000.db'], (n, left)
        places.add(has[0])
        nothing_lost(h, a, n)
        rest, = set(opened)-set(has)
        b = a.move(opened[rest])                           # and back, or there at last
        assert len(b.jobs.list_jobs())==12 and b.path==str(h.dir/rest/'t000.db'), n
    each_step(tmp_path, MOVE%"data(dir, 'other', worker=False)", two_run_ten_wait, check, 40)
    assert places=={'data', 'other'}

DELETE = '''
def go(dir, n):
    ts = data(dir, worker=False)
    cut(n, Tenant.delete, Tenant._empty, mv.take, mv.drain, mv.remove_left, mv._remove_left, mv._unlink)
    ts['t000'].delete('t000')'''

def test_kill_at_each_step_of_a_delete(tmp_path):
    "kill -9 before each line of a delete: the tenant is there whole, or gone with its files; either way its id can be used again"
    seen = set()
    def prepare(h): h.many(1, 5); h.opened.pop().close()
    def check(h, n):
        ts = h.ts()
        seen.add(there := 't000' in ts)
        if there:
            assert ts['t000'].status=='active' and files(h, 'data')==['data/t000.db'], n
            run_all(ts['t000'])
            assert sorted(h.names())==[f't000-{i}' for i in range(5)], n
            ts['t000'].delete('t000')
        assert not files(h, 'data') and ts.registry.get('t000').status=='deleted' and ts.registry.get('t000').path is None, n
        assert ts.create('t000').path==str(h.dir/'data/t000.db'), n
    each_step(tmp_path, DELETE, prepare, check, 20)
    assert seen=={True, False}

CREATE = '''
from fh_saas.tenants import Tenants
def opens(t):
    os.makedirs(f'{path}/homes', exist_ok=True)
    return database(f'{t.tenants.root}/{t.id}.sqlite')
def go(dir, n):
    Tenants.root = dir
    ts = data(dir, worker=False, open=opens)
    cut(n, Tenants._create_with_app, Tenants._make_with_app, Tenants._create_file, Tenants.create, opens)
    ts.create('t001')'''

@pytest.mark.parametrize('open', ['opens', 'None'])
def test_kill_at_each_step_of_a_create(tmp_path, open):
    "kill -9 while a tenant is made: the host opens, its other tenants run, and the id can be had"
    def prepare(h): h.many(1, 2); h.opened.pop().close()
    def opens(t): raise AssertionError('not asked for')
    def check(h, n):
        ts = h.ts()
        run_all(ts['t000'])
        assert len(h.names())==2 and ts['t000'].status=='active', n
        if 't001' in ts: assert ts['t001'].status=='active' and ts['t001'].jobs.list_jobs()==[], n
        else: ts.create('t001', path=h.dir/'data/t001.db' if (h.dir/'data/t001.db').exists() else None)
        assert not ts.health()['tenants'] or 'belonged' in ts.health()['tenants']['t001']['why'], n
    each_step(tmp_path, CREATE.replace('open=opens', f'open={open}'), prepare, check, 8)
