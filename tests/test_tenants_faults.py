"Tenants when things go wrong half-way: kill -9 at every step of a move and a delete, full and read-only files, files that cannot be upgraded"
import asyncio, os, re, subprocess, sys, threading, time
from collections import Counter
from contextlib import ExitStack, contextmanager

import apsw, pytest, work
from fastlite import database
from fh_saas.running.maintenance import rescue
from fh_saas.store.base import StoreError
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import StoreBusy
from test_tenants import PRE, TASKS, House, h, settled, up, worker
from util import env, process, run_py, said, until

# --- kill -9 at every step

DEFS = PRE+'''
import fh_saas.running.moving as mv
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
    cut(n, mv.move, mv._to_copy, mv._copy, mv._name, mv._receive, mv._finish, mv._let_in, mv._remove_left, mv._unlink)
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
        else: assert ts.create('t001').path==str(h.dir/'data/t001.db'), n
        assert not ts.health()['tenants'], n
    each_step(tmp_path, CREATE.replace('open=opens', f'open={open}'), prepare, check, 8)

MAKE = PRE+'''
from fastlite import database
from fh_saas.tenants import Tenants
def opens(t): return database(f'{path}/{t.id}.db')
ts,got = Tenants(path, worker=False, open=opens),[]
out('ready'); sys.stdin.readline()
for i in range(20):
    try: got.append(ts.create(f't{i:03}').id)
    except ValueError as e: assert str(e)==f"tenant 't{i:03}' exists", e
    assert ts[f't{i:03}'].jobs.list_jobs()==[]
out(' '.join(got))'''

@pytest.mark.parametrize('open', ['opens', 'None'])
def test_the_same_tenants_made_by_many_at_once(h, open):
    "As when several web processes start: one makes each tenant, the others learn that it exists and can use it, and its file is its own"
    with ExitStack() as s:
        ps = [s.enter_context(process(h, MAKE.replace('open=opens', f'open={open}'), pre='')) for _ in range(4)]
        for p in ps: said(p, 'ready')
        for p in ps: print(file=p.stdin, flush=True)
        got = [p.stdout.readline().split() for p in ps]
        assert all(p.wait(60)==0 for p in ps), [p.stderr.read() for p in ps]
    ids = [f't{i:03}' for i in range(20)]
    assert sorted(sum(got, []))==ids
    ts = h.ts(**({'open':lambda t: database(f'{h.path}/{t.id}.db')} if open=='opens' else {}))
    assert sorted(ts)==ids and not ts.health()['tenants'] and {o.status for o in ts.values()}=={'active'}
    assert sorted(o.name for o in (h.dir/'data').glob('t*') if o.suffix in ('.db', '.new'))==[f'{o}.db' for o in ids]

# --- what others do meanwhile

def test_move_spares_a_tenant_made_at_its_destination(h):
    "Another tenant is made at the destination while the move waits for a job: the move fails, both are whole"
    ts = h.many(1)
    a, = ts.values()
    h.fill(a, 1, work.gated)
    there = str(h.dir/'there'/'t000.db')
    with worker(h), process(h, "t = tenants(worker=False)['t000']\nout('up')\ntry: t.move(folder+'/there')\nexcept ValueError as e: out(e)", pre=PRE) as p:
        until(lambda: h.log('start'))
        said(p, 'up')
        until(lambda: a.status=='moving')
        os.makedirs(h.dir/'there', exist_ok=True)
        b = ts.create('b', path=there)
        h.fill(b, 3)
        h.go()
        assert 'exists already' in p.communicate(timeout=20)[0]
        until(lambda: len(h.log('end'))==1 and len(h.log('ran'))==3)
        until(lambda: settled(ts), every=.05)
    assert (a.status, b.status, b.path, a.path)==('active', 'active', there, str(h.dir/'data'/'t000.db'))
    assert len(b.jobs.list_jobs())==3 and files(h, 'there')==['there/t000.db']

def test_recovery_spares_a_tenant_made_at_the_destination(h):
    "The mover is killed, then a tenant is made where it was moving to: recovery undoes the move and leaves that tenant alone"
    a, = h.many(1, 2).values()
    other = Tenants(h.dir/'other', worker=False, tasks=TASKS); h.opened.append(other)
    run_py(h, "import fh_saas.running.moving as mv\nmv._copy = lambda *a: os.kill(os.getpid(), 9)\nt = tenants(worker=False)\nt['t000'].move(Tenants(folder+'/other', worker=False))",
           pre=PRE, rc=-9)
    b = other.create('t000'); h.fill(b, 3)
    ts = h.ts()
    assert ts['t000'].status=='active' and len(ts['t000'].jobs.list_jobs())==2
    assert os.path.exists(b.path) and len(b.jobs.list_jobs())==3 and b.status=='active'

def test_moved_on_before_the_crash_was_noticed(h):
    "The mover dies when the other registry has the tenant already, and there it is renamed and moved on: the first registry still finishes"
    h.many(1, 2)
    run_py(h, """
import fh_saas.store.registry as r
swap = r.Registry.swap
def dies(self, id, was, **cols):
    if cols.get('status')=='deleted': os.kill(os.getpid(), 9)
    return swap(self, id, was, **cols)
r.Registry.swap = dies
tenants(worker=False)['t000'].move(Tenants(folder+'/other', worker=False))""", pre=PRE, rc=-9)
    other = Tenants(h.dir/'other', worker=False, tasks=TASKS); h.opened.append(other)
    b = other['t000'].rename('t001'); b.move(h.dir/'far')
    ts = h.ts()
    assert 't000' not in ts and files(h, 'data', 'other', 'far')==['far/t000.db'] and len(b.jobs.list_jobs())==2 and b.status=='active'

def test_delete_of_a_damaged_tenant(h):
    "Says why it fails and leaves the status as it was, in this process and the next; once the file is out of the way, it works"
    ts = h.many(2)
    path = ts['t000'].path
    ts.close()
    with open(path, 'wb') as f: f.write(b'x'*9000)
    ts = h.ts()
    with pytest.raises(StoreError, match='not a SQLite database'): ts['t000'].delete('t000')
    assert ts['t000'].status=='active' and h.ts()['t000'].status=='active'
    os.unlink(path)
    ts['t000'].delete('t000')
    assert list(ts)==['t001']

def test_a_registry_that_was_locked_when_the_move_should_end(h):
    "The registry stays locked just when the move has to be written: the move raises, and the same process finishes it at its next look"
    ts = h.ts(busy_s=.05)
    a = ts.create('t000'); h.fill(a, 2)
    reg,real = ts.registry,type(ts.registry).swap
    def locked(self, id, was, **cols):
        if 'path' in cols: raise StoreError('locked')
        return real(self, id, was, **cols)
    type(reg).swap = locked
    try:
        with pytest.raises(StoreError): a.move(h.dir/'there')
    finally: type(reg).swap = real
    assert a.status=='moving'
    ts._clear_up()
    assert a.status=='active' and a.path==str(h.dir/'there'/'t000.db') and len(a.jobs.list_jobs())==2 and files(h, 'data', 'there')==['there/t000.db']

# --- rename

RENAMES = '''
ts,i,id = tenants(worker=False),0,'t000'
out('up')
while not is_open(folder, 'stop'):
    try: ts[id].jobs.submit('j', quick, folder=folder, name=i)
    except KeyError: id = list(ts)[0]; continue
    i += 1
out(i)'''

def test_rename_under_load(h):
    "Renamed twice while one process works, another submits and two jobs execute: each job runs once, nothing is lost"
    ts = h.many(1)
    a, = ts.values()
    held = h.fill(a, 2, work.gated)
    with worker(h), up(process(h, RENAMES, pre=PRE)) as s:
        until(lambda: len(h.log('start'))==2)
        for new in 'new', 't000':
            n = len(h.log('ran'))
            until(lambda: len(h.log('ran'))>n+50)
            a = a.rename(new)
        n = len(h.log('ran'))
        until(lambda: len(h.log('ran'))>n+50)
        h.go('stop')
        n = int(s.communicate(timeout=20)[0])
        h.go()
        until(lambda: len(h.log('ran'))>=n and len(h.log('end'))>=2)
        until(lambda: settled(ts), every=.05)
    assert sorted(map(int, h.names()))==list(range(n))
    assert len(h.log('start'))==2, 'what executed was not run again'
    assert {(j.status,j.retry_count) for j in a.jobs.list_jobs(limit=10**6)}=={('completed',0)} and a.status=='active'

def test_rename_in_a_rollout(h):
    "A tenant that is renamed while a rollout is under way gets its job under the new name"
    ts = h.many(3)
    r = ts.submit_all('w', work.quick, dict(folder=str(h.dir)), canaries=1, batch=1)
    ts['t000'].rename('first'); ts['t002'].rename('last')
    with worker(h): until(lambda: r.progress()['state']!='running', 20, .05)
    assert r.progress()['completed']==3 and not r.failures() and len(h.log('ran'))==3, (r.progress(), r.failures())

# --- two Tenants, one worker

BOTH = '''
a,b = tenants(),Tenants(folder+'/other', tasks=[quick,aquick,gated,nap,fails], handoff=0)
out('up'); a.run()'''

def test_move_between_tenants_that_one_worker_serves(h):
    "There and back while a worker serves both and another process submits to whichever has it: each job runs once"
    ts = h.many(1)
    other = Tenants(h.dir/'other', worker=False, tasks=TASKS); h.opened.append(other)
    a = ts['t000']
    subs = '''
both,i = [tenants(worker=False), Tenants(folder+'/other', worker=False, tasks=[quick])],0
out('up')
while not is_open(folder, 'stop'):
    try: both[0]['t000'].jobs.submit('j', quick, folder=folder, name=i); i += 1
    except (KeyError, StoreError): both.reverse()
out(i)'''
    with up(process(h, BOTH, pre=PRE)), up(process(h, subs, pre=PRE)) as s:
        for to in other, ts, other:
            n = len(h.log('ran'))
            until(lambda: len(h.log('ran'))>n+50)
            a = a.move(to)
        n = len(h.log('ran'))
        until(lambda: len(h.log('ran'))>n+50)
        h.go('stop')
        n = int(s.communicate(timeout=20)[0])
        until(lambda: len(h.log('ran'))>=n)
        until(lambda: settled(other), every=.05)
    assert sorted(map(int, h.names()))==list(range(n))
    assert 't000' not in ts and a.tenants is other and files(h, 'data', 'other')==['other/t000.db']
    assert {(j.status,j.retry_count) for j in a.jobs.list_jobs(limit=10**6)}=={('completed',0)}

# --- migrate

def cli_migrate(h):
    code = 'import sys; sys.argv[0] = "fh_saas"; from fh_saas.cli import main; main()'
    p = subprocess.run([sys.executable, '-c', code, 'tenants', 'migrate', '--all', str(h.path)], capture_output=True, text=True, cwd=h.dir, env=env(), timeout=60)
    assert 'Traceback' not in p.stderr, p.stderr
    return p.returncode,p.stdout.splitlines()

def test_migrate_past_files_that_fail(h):
    "A corrupt, a locked and a missing file among good ones: those are named with the reason, exit code 1, the others are migrated; repaired, it succeeds"
    ts = h.many(8)
    paths = {t.id:t.path for t in ts.values()}
    ts.close()
    for o in paths.values():
        c = apsw.Connection(o)
        c.execute("drop table tenant_usage; drop table tenant_starts; update tenant_meta set value=1 where key='schema'"); c.close()
    good = {o:open(paths[o], 'rb').read() for o in ('t001','t005')}
    with open(paths['t001'], 'wb') as f: f.write(os.urandom(8192))
    os.unlink(paths['t005'])
    c = apsw.Connection(paths['t003']); c.execute('begin immediate')
    rc,out = cli_migrate(h)
    bad = dict(o.split(': ', 1) for o in out if ': ' in o)
    assert rc==1 and set(bad)=={'t001','t003','t005'} and out[-1]=='5 upgraded, 3 failed', out
    assert re.search('not a SQLite database|damaged', bad['t001']) and 'locked' in bad['t003'] and 'missing' in bad['t005'], bad
    assert set(h.ts().behind())==set(bad)
    c.execute('rollback'); c.close()
    for o,b in good.items():
        with open(paths[o], 'wb') as f: f.write(b)
    rc,out = cli_migrate(h)
    assert rc==0 and '3 of 8' in out[0] and not h.ts().behind(), out
    rc,out = cli_migrate(h)
    assert rc==0 and '0 of 8' in out[0]

# --- a full and a read-only disk

@contextmanager
def small_disk(h, kib=400):
    "A file system of its own at `disk`, where that is allowed"
    d = h.dir/'disk'
    d.mkdir()
    if not hasattr(os, 'geteuid') or os.geteuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={kib}k', 'tmpfs', d], capture_output=True).returncode:
        pytest.skip('mounts a small file system, which is not allowed here')
    try: yield d
    finally: subprocess.run(['umount', '-l', d])

def remount(d, how): subprocess.run(['mount', '-o', f'remount,{how}', d], check=True)

def why(ts): return {k:o['why'] for k,o in ts.health()['tenants'].items()}

def test_a_full_disk_costs_its_tenant_alone(h):
    "No room for one tenant's file: submitting there says so, health says so, others go on; with room again it recovers by itself"
    with small_disk(h) as d:
        ts = h.many(2)
        a = ts.create('full', path=d/'full.db')
        ids = h.fill(a, 40)
        with worker(h):
            until(lambda: len(h.log('ran'))==40 and settled(ts), every=.05)
            h.fill(a, 1, work.gated)
            until(lambda: h.log('start'))
            fd = os.open(d/'filler', os.O_WRONLY|os.O_CREAT)
            with pytest.raises(OSError):
                while True: os.write(fd, b'x'*4096)
            os.close(fd)
            with pytest.raises(StoreError, match='full'):
                for i in range(1000): a.jobs.submit('j', work.quick, folder=str(h.dir), name='x'*4000)
            n = len(a.jobs.list_jobs(limit=10**6))
            h.go()
            until(lambda: h.log('end'))                                # its end cannot be written
            until(lambda: 'full' in why(ts), every=.05)
            assert re.search('cannot grow|disk error', why(ts)['full']) and set(why(ts))=={'full'}, why(ts)
            for o in 't000','t001': h.fill(ts[o], 3)
            until(lambda: len([o for o in h.names() if o[:2]=='t0'])==6, 5)
            os.unlink(d/'filler')
            until(lambda: settled(ts), 15, .05)
            until(lambda: not why(ts), 10, .05)
        js = a.jobs.list_jobs(limit=10**6)
        assert len(js)==n and {(j.status,j.retry_count) for j in js}=={('completed',0)} and len(h.log('start'))==1
        ts.close(); h.opened.clear()

def test_a_read_only_disk_costs_its_tenant_alone(h):
    "One tenant's disk is read-only: health says so and goes on saying so, others go on; writable again, it recovers by itself"
    with small_disk(h) as d:
        ts = h.many(2)
        h.fill(ts.create('ro', path=d/'ro.db'), 5)
        ts.close()
        remount(d, 'ro')
        ts = h.ts()
        with worker(h):
            until(lambda: 'ro' in why(ts), every=.05)
            for o in 't000','t001': h.fill(ts[o], 3)
            until(lambda: len(h.log('ran'))==6, 5)
            with pytest.raises(StoreError, match='read-only|cannot be opened'): ts['ro'].jobs.submit('j', work.quick, folder=str(h.dir))
            assert set(why(ts))=={'ro'} and re.search('read-only|cannot be opened', why(ts)['ro']), why(ts)
            ts.close()
            remount(d, 'rw')
            ts = h.ts()
            until(lambda: len(h.log('ran'))==11, 30)
            until(lambda: not why(ts), 10, .05)
        ts.close(); h.opened.clear()

# --- the first use of a file that is locked

@contextmanager
def locked(path):
    "Nobody can open it for the length of the block, as while it is restored or checked by another program"
    c = apsw.Connection(path)
    c.execute('pragma locking_mode=exclusive'); c.execute('begin exclusive')
    try: yield c
    finally: c.close()

def test_the_first_use_of_a_locked_file_waits(h):
    "Four threads submit to a tenant whose file is locked: that is no trouble of the tenant, other tenants and rollouts go on, and in the end all have their job"
    h.many(3).close()
    ts,opened,got = h.ts(busy_s=60.),[],[]
    pool,opener = ts._pool,ts._pool.opener
    def opens(e): opened.append(e.id); return opener(e)
    pool.opener = opens
    def submit(id='t000'): return ts[id].jobs.submit('j', work.quick, folder=str(h.dir), name=id)[0]
    with locked(ts['t000'].path) as c:
        threads = [threading.Thread(target=lambda: got.append(submit()), daemon=True) for _ in range(4)]
        for o in threads: o.start()
        until(lambda: opened.count('t000')>8, 30)
        assert not got and not pool.entries['t000'].tries and not pool.sick and not ts.health()['tenants']
        assert submit('t001') and ts['t001'].jobs.run_due()==1
        r = ts.submit_all('r', work.quick, dict(folder=str(h.dir), name='r'), canaries=3, stop_at_failures=1)
        assert list(r.failures())==['t000'] and 'locked' in r.failures()['t000'] and all(o.is_alive() for o in threads)
        c.close()
        for o in threads: o.join(30)
    assert len({*got})==4 and ts['t000'].jobs.run_due()==4 and not pool.sick

def test_the_first_use_of_a_file_that_stays_locked(h):
    "StoreBusy after `busy_s`, on a loop after a quarter of a second, and one failure of the tenant for each who gave up"
    h.many(2).close()
    ts = h.ts(busy_s=.7)
    e = ts._pool.entries['t000']
    def submit(id='t000'): return ts[id].jobs.submit('j', work.quick, folder=str(h.dir))
    with locked(ts['t000'].path):
        began = time.monotonic()
        with pytest.raises(StoreBusy, match='t000.* stayed locked by another connection for 0.7 s'): submit()
        assert time.monotonic()-began>=.7 and e.tries==1
        with pytest.raises(StoreBusy, match='0.7 s'): ts['t000'].db
        async def on_a_loop(): submit()
        with pytest.raises(StoreBusy, match='0.25 s'): asyncio.run(on_a_loop())
        assert e.tries==3
    assert submit() and not e.tries

def test_closed_while_somebody_waits_for_a_locked_file(h):
    h.many(1).close()
    ts,got = h.ts(busy_s=60.),[]
    opened,opener = [],ts._pool.opener
    def opens(e): opened.append(e.id); return opener(e)
    ts._pool.opener = opens
    def submit():
        try: ts['t000'].jobs.submit('j', work.quick, folder=str(h.dir))
        except Exception as e: got.append(e)
    with locked(ts['t000'].path):
        o = threading.Thread(target=submit, daemon=True); o.start()
        until(lambda: len(opened)>1)
        ts.close()
        o.join(30)
    assert [str(e) for e in got]==[f'{ts!r} is closed'], got

# --- run_due

def test_run_due_on_a_locked_file(t):
    "run_due does not say that nothing is due when it could not look: StoreBusy after `busy_s`; the job runs once the lock is gone"
    m = t.look(busy_s=.1)
    id,_ = m.submit('j', work.quick, folder=str(t.dir))
    c = apsw.Connection(str(t.path)); c.execute('begin immediate')
    with pytest.raises(StoreBusy, match='locked'): m.run_due()
    c.execute('rollback')
    assert m.run_due()==1 and m.get_job(id).status=='completed' and m.run_due()==0
    c.close()

def test_closed_while_an_opener_forgets_a_lane(tmp_path):
    "An opener closes an idle lane, and forgets it, at the moment when all are closed"
    ts = Tenants(tmp_path, worker=False)
    ts.create('a').jobs.list_jobs()
    e, = ts._pool.open.values()
    lane,mark = e.lane,e.lane.store.mark
    def forgets(): e.lane = None; return mark()
    lane.store.mark = forgets
    ts.close()
    assert lane.closed

def test_trouble_that_a_dead_process_has_noted_is_over(h):
    "P8: the worker that could not use a tenant's database was killed; the next one can, and nobody is told of the trouble any more"
    ts = h.many(2)
    shut = h.dir/'kept'
    os.rename(ts['t000'].path, shut)
    with worker(h):
        until(lambda: 't000' in why(ts))
    os.rename(shut, ts['t000'].path)
    with worker(h): until(lambda: not why(ts))
