"Tasks in child processes: how they end, what happens to the pool, and who outlives whom"
import json, os, signal, socket, subprocess, sys, threading

import cpu, psutil, pytest
from fastlite import database
from fh_saas.running.children import Child, Handle, children
from fh_saas.ids import from_iso
from fh_saas.store.base import NewJob
from fh_saas.tasks import task
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager
from util import all_done, both, ddl, done, end, env, home, on_server, process, said, stop_worker, until

stores = both
of_processes = pytest.mark.on_sqlite('about processes, whatever the database')

def ours():
    "Processes that this one has started, without the one that watches the session's PostgreSQL"
    return [o for o in psutil.Process().children() if not any('pg_ctl' in s for s in o.cmdline())]

@pytest.fixture(autouse=True)
def no_children():
    yield
    children.close(10.)
    until(lambda: not ours(), 20)              # no child is left; one that was let go after its last job ends by itself

def gone(pid): return not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status()==psutil.STATUS_ZOMBIE

def run(m, f, s=20., status='completed', tries=1, **kw): return done(m, m.submit('cpu', f, tries, **kw)[0], s, status)

def test_result_and_exception(t):
    m = t.mgr(handoff=0)
    assert run(m, cpu.add, a=1, b=2).result=='3'
    assert run(m, cpu.me).result!=str(os.getpid())
    j = run(m, cpu.fault, status='failed', kind='raise')
    assert j.error_log.startswith('Traceback') and 'cpu.py' in j.error_log and "KeyError: 'no such thing'" in j.error_log
    assert 'executor.py' not in j.error_log and 'child.py' not in j.error_log
    assert 'SystemExit: enough' in run(m, cpu.fault, status='failed', kind='sysexit').error_log
    j = run(m, cpu.unfit)
    assert j.result is None and 'was not kept' in j.error_log
    assert len(children.idle)==1, 'all this in one process'

@pytest.mark.parametrize('kind,says', dict(segv='was killed by SIGSEGV (11)', abort='was killed by SIGABRT (6)', exit='exited with status 3',
                                           kill='was killed by SIGKILL (9), perhaps by the kernel for lack of memory').items())
@of_processes
def test_a_child_that_dies_is_a_failed_attempt(t, kind, says):
    "The signal or status is named, the job has had its attempt, the next one runs"
    m = t.mgr(handoff=0)
    assert run(m, cpu.add, a=1, b=2).result=='3'
    j = run(m, cpu.fault, status='failed', kind=kind)
    assert j.retry_count==1 and j.error_log.startswith(f'Its process {says}')
    if kind in ('segv','abort'): assert 'cpu.py' in j.error_log and 'in fault' in j.error_log, 'the stack of the crash'
    assert run(m, cpu.add, a=2, b=2).result=='4'

def test_a_crash_is_retried(t):
    now = [1e9]
    m = t.mgr(worker=False, clock=lambda: now[0])
    id,bg = m.submit('cpu', cpu.crashes, 3, folder=str(t.dir), times=2, name="x")
    for n in (1, 2):
        m.run_due()
        j = m.get_job(id)
        assert (j.status,j.retry_count)==('pending', n) and 'SIGSEGV' in j.attempts
        now[0] += 10
    m.run_due()
    assert (m.get_job(id).status,m.get_job(id).retry_count)==('completed', 2)
    assert len({o[3] for o in t.log('start')})==3, 'a process for each'

@of_processes
def test_by_hand(t):
    m = t.mgr(worker=False)
    id,bg = m.submit('cpu', cpu.add, a=1, b=2)
    bg.func(*bg.args, **bg.kwargs)
    assert m.get_job(id).result=='3'

@of_processes
def test_async_task(t):
    "A coroutine function runs on a loop of its own in the child"
    m = t.mgr(handoff=0)
    t.go()
    assert run(m, cpu.agate, folder=str(t.dir), name='x').result=='"x"'
    assert int(t.log('start')[0][3])!=os.getpid()

@of_processes
def test_prints_do_not_break_the_protocol(t, capfd):
    m = t.mgr(handoff=0)
    assert run(m, cpu.prints, text='x'*9).result=='"xxxxxxxxx"'
    o = capfd.readouterr()
    assert o.out.splitlines()==['x'*9, 'raw'] and o.err=='{"end":\n'

@of_processes
def test_big(t):
    m = t.mgr(handoff=0)
    text = 'aé"\\\n'*(2**20//10)
    j = run(m, cpu.big, text=text)
    assert len(j.payload)>2**19 and len(j.result)>2**19
    assert run(m, cpu.has, name='big').result=='true'

@of_processes
def test_many_on_two_threads(t):
    "Never more processes than threads, and they are used again"
    m = t.mgr(threads=2)
    m.submit_many('cpu', cpu.me, [{}]*60)
    most = 0
    def over():
        nonlocal most
        most = max(most, len(ours()))
        return len(m.list_jobs(status='completed'))==60
    until(over)
    assert most<=2 and len({o.result for o in m.list_jobs()})<=2

@of_processes
def test_mixed_with_other_tasks(t):
    "A thread that waits for a child keeps no other thread from work"
    m = t.mgr(threads=2, handoff=0)
    a = m.submit('cpu', cpu.gate, folder=str(t.dir))[0]
    until(lambda: t.log('start'))
    assert run(m, cpu.is_open, folder=str(t.dir), gate='go').result=='false'
    t.go()
    done(m, a)

@of_processes
def test_max_jobs(t):
    m = t.mgr(worker=False)
    for _ in range(5): m.submit('cpu', cpu.twice)
    m.run_due()
    pids = [o.result for o in m.list_jobs()]
    assert len(set(pids))==3 and pids[0]!=pids[1]==pids[2]!=pids[3]==pids[4]

@of_processes
def test_max_rss(t):
    m = t.mgr(worker=False)
    for mb in (1, 1, 250, 1): m.submit('cpu', cpu.hoard, mb=mb)
    m.run_due()
    d,c,b,a = [o.result for o in m.list_jobs()]
    assert a==b==c!=d

@of_processes
def test_tasks_that_are_listed(t):
    "`tasks=[f]` keeps what `@task(process=True)` has said, also under another name"
    assert run(t.mgr(handoff=0, tasks=[cpu.me]), cpu.me).result!=str(os.getpid())
    assert run(t.mgr(handoff=0, tasks=dict(other=cpu.me)), cpu.me).result!=str(os.getpid())

def test_bad_registration():
    def inner(): ...
    class A:
        def f(self): ...
    for bad in (lambda: 0, inner, A().f):
        with pytest.raises(ValueError, match='define it with `def` at module level'): task(process=True, name='bad')(bad)
    with pytest.raises(ValueError, match='max_jobs'): task(max_jobs=3)(cpu.big)
    with pytest.raises(TypeError, match='max_rss'): task(process=True, max_rss='1G')(cpu.big)
    with pytest.raises(TypeError, match='process'): task(process='yes')(cpu.big)

@of_processes
def test_what_the_child_cannot_import(t, monkeypatch):
    "A module that cannot be imported there, or has lost the function, is a failed attempt that says so; so is a broken start"
    m = t.mgr(worker=False)
    (t.dir/'gone_mod.py').write_text('def f(): return 1\ndef g(): return 2')
    monkeypatch.syspath_prepend(str(t.dir))
    import gone_mod
    for f in (gone_mod.f, gone_mod.g): task(f, process=True)
    (t.dir/'gone_mod.py').write_text('def f(): return 1')
    assert run_one(m, gone_mod.g).error_log.endswith('gone_mod has no g: a task with process=True must be found in its module by its name\n')
    children.close()
    (t.dir/'gone_mod.py').unlink()
    assert "ModuleNotFoundError: No module named 'gone_mod'" in run_one(m, gone_mod.f).error_log
    children.close()
    monkeypatch.setattr('fh_saas.running.children._CODE', 'raise SystemExit(7)')
    assert run_one(m, gone_mod.f).error_log=='Its process could not start: it exited with status 7, see stderr'
    monkeypatch.setattr('multiprocessing.spawn.get_executable', lambda: '/nowhere/python')
    assert 'FileNotFoundError' in run_one(m, gone_mod.f).error_log

def run_one(m, f, **kw):
    id = m.submit('cpu', f, 1, **kw)[0]
    m.run_due()
    return m.get_job(id)

SCRIPT = '''
import os, sys
from util import opened
from fh_saas.utils_bgtsk import *
print('top', __name__, flush=True)
@task(process=True)
def double(x): return [2*x, __name__, m.worker]
m = BackgroundTaskManager(opened(sys.argv[1] if len(sys.argv)>1 else os.environ['T']))
if __name__=='__main__':
    id,bg = m.submit('cpu', double, x=21)
    bg.func(*bg.args)
    print(m.get_job(id).result, m.get_job(id).task, m.get_job(id).error_log)
'''

@pytest.mark.parametrize('how', [['my_app.py'], ['-m', 'my_app'], ['../p/my_app.py']])
def test_a_task_of_the_script(t, how):
    "`python my_app.py`: the child loads the file under its name, without the part for `__main__`; its manager runs nothing there"
    (t.dir/'p').mkdir()
    (t.dir/'p/my_app.py').write_text(SCRIPT)
    o = subprocess.run([sys.executable, *how, str(t.path)], cwd=t.dir/'p', env=env(T=str(t.path)), capture_output=True, text=True, timeout=30)
    assert o.stdout.splitlines()==['top __main__', 'top my_app', '[42,"my_app",false] my_app:double None'], o.stderr

@of_processes
def test_descriptors(t):
    "A child holds neither the lock nor the doorbell nor the database of its parent"
    j = run(t.mgr(handoff=0), cpu.fds)
    assert not [o for o in eval(j.result) if str(t.dir) in o] and j.result.count('socket:')==1

# --- being stopped

def started(t, m, f, **kw):
    "A job that runs, and its attempt"
    id = m.submit('cpu', f, folder=str(t.dir), **kw)[0]
    until(lambda: t.log('start'))
    return id,m._lane.hand[id]

@of_processes
@pytest.mark.parametrize('f,broken', [(cpu.gate, 'Cancelled'), (cpu.agate, 'CancelledError')])
def test_kill_asks_first(t, f, broken):
    "The task is told by an exception, and may clean up; the attempt costs nothing unless somebody says what it means"
    m = t.mgr(handoff=0)
    id,a = started(t, m, f)
    a.handle.kill(30.)
    until(lambda: t.log('broken'))
    assert t.log('broken')[0][-1]==broken
    t.go()
    assert done(m, id).retry_count==0 and len(t.log('start'))==2

@of_processes
def test_kill_forces(t):
    "A task deep in C code is killed, and with it what it has started; 0 forces at once"
    m = t.mgr(handoff=0)
    id,a = started(t, m, cpu.greedy)
    a.handle.kill(.05)
    t.go()
    assert done(m, id).retry_count==0
    for pid in t.log('start')[0][3:]: until(lambda: gone(pid))

@of_processes
def test_sigterm_from_elsewhere_is_passed_over(t):
    m = t.mgr(handoff=0)
    id,a = started(t, m, cpu.gate)
    for s in (signal.SIGTERM, signal.SIGINT): os.kill(int(t.log('start')[0][3]), s)
    t.go()
    assert done(m, id).retry_count==0 and len(t.log('start'))==1

@of_processes
def test_a_late_kill_does_not_hit_the_next_job(t):
    m = t.mgr(handoff=0)
    id,a = started(t, m, cpu.gate, name='a')
    h = a.handle
    t.go()
    done(m, id)
    h.kill(0)
    pid = children.idle[0].proc.pid
    assert run(m, cpu.me).result==str(pid)

@of_processes
def test_a_forked_copy_hides_no_death(t):
    "The parent sees its child's end though something that was forked from it lives on; that goes as well"
    j = run(t.mgr(handoff=0), cpu.forks, status='failed', folder=str(t.dir))
    assert j.error_log=='Its process exited with status 4'
    until(lambda: gone(t.log('forked')[0][2]))

@of_processes
def test_cancelled(t):
    m = t.mgr(handoff=0)
    id,a = started(t, m, cpu.gate)
    m._lane.halt(a, 'cancelled')
    j = done(m, id, status='cancelled')
    assert j.error_log.startswith('Cancelled while it ran\n') and f'Cancelled: job {id} is to end: cancelled' in j.error_log and j.retry_count==0
    assert t.log('broken')[0][-1]=='Cancelled'

@of_processes
def test_cancelled_before_its_child_was_there(t, monkeypatch):
    "A job that is cancelled while its child is being made does not begin"
    made,go,spawn = threading.Event(),threading.Event(),Child._spawn
    def slow(self, *fds): made.set(); go.wait(20); return spawn(self, *fds)
    monkeypatch.setattr(Child, '_spawn', slow)
    m = t.mgr(handoff=0)
    id = m.submit('cpu', cpu.gate, folder=str(t.dir))[0]
    made.wait(20)
    m._lane.halt(m._lane.hand[id], 'cancelled')
    go.set()
    assert done(m, id, status='cancelled').error_log=='Cancelled while it ran' and not t.log()

@of_processes
@pytest.mark.parametrize('f', [cpu.gate, cpu.greedy])
def test_timed_out(t, f, monkeypatch):
    monkeypatch.setattr(Handle.kill, '__defaults__', (.5 if f is cpu.greedy else 30.,))
    m = t.mgr(handoff=0)
    assert run(m, cpu.add, a=1, b=1).result=='2', 'a child is there, so that the time is the task\'s own'
    now = m._lane.now()
    m._lane.store.insert([NewJob('late', 'cpu', json.dumps(dict(folder=str(t.dir))), 1, now, f'cpu:{f.__name__}', now, timeout_s=1.5)])
    m._serve().kick(m._lane)
    j = done(m, 'late', status='failed')
    assert j.error_log.startswith('Timed out after 1.5 s\n') and '"timeout"' in j.attempts and j.retry_count==1
    assert ('Cancelled: ' if f is cpu.gate else 'Its process was killed by SIGKILL (9)') in j.error_log
    until(lambda: gone(t.log('start')[0][3]) or children.idle)
    assert run(m, cpu.add, a=1, b=1).result=='2'

# --- what a task says of its attempt and its job

@of_processes
def test_what_an_exception_means(t):
    "Snooze, Discard, RetryIn and the task's policy hold in a child as elsewhere"
    now = [1e9]
    m = t.mgr(worker=False, clock=lambda: now[0])
    got = {}
    for o in 'snooze', 'discard', 'later', 'key', 'value':
        id = m.submit('cpu', cpu.says, what=o)[0]
        m.run_due()
        j = m.get_job(id)
        got[o] = j.status,j.retry_count,j.run_at and round(from_iso(j.run_at)-now[0])
    assert got==dict(snooze=('pending', 0, 30), discard=('failed', 1, None), later=('pending', 1, 7), key=('failed', 1, None), value=('pending', 1, 2))

@pytest.mark.parametrize('fault', ['raise', 'crash'])
def test_context(t, fault):
    "Progress, log, cursor and steps are kept over a failure, and over a crash as far as they were written"
    now = [1e9]
    m = t.mgr(worker=False, clock=lambda: now[0])
    id = m.submit('cpu', cpu.resumes, folder=str(t.dir), fault=fault)[0]
    m.run_due()
    j = m.get_job(id)
    assert (j.status,j.retry_count,j.cursor)==('pending', 1, '10') and '"done":99' in j.progress and j.log.endswith('so far')
    now[0] += 5
    m.run_due()
    j = m.get_job(id)
    assert (j.status,j.result,j.cursor)==('completed', '[2,null,10,"it"]', '20') and len(j.log.splitlines())==2
    assert len(t.log('made'))==(1 if fault=='raise' else 2)
    assert not m._lane.store.steps(id), 'steps are forgotten with the end'

def test_a_step_outlives_the_parent(t):
    "kill -9 of the parent during a step: the child writes nothing afterwards, the step runs again elsewhere"
    with process(t, HOLD, 'stuck_in_step') as p:
        pid = until(lambda: t.log('start'))[0][3]
        p.kill(); p.wait()
        until(lambda: gone(pid))            # as long as nobody has taken the job over, the child may end its step: opened before, the gate may let it
    t.go()
    m = t.mgr(handoff=0)
    all_done(m, 1)
    assert m.list_jobs()[0].result=='"-"' and len(t.log('start'))==2

@pytest.mark.parametrize('then', ['return', 'crash'])
def test_transaction(t, then, caplog):
    "P4 in a child: rows, children and the completion are one commit, whatever happens to the process after it"
    ddl(t.db(), 'create table bookings(n int)')
    m = t.mgr(handoff=0)
    t.go()
    id = m.submit('cpu', cpu.books, folder=str(t.dir), path=str(t.path), then=then)[0]
    j = done(m, id)
    assert (j.result,j.retry_count,j.error_log)==('"booked"', 0, None)
    all_done(m, 2)
    until(lambda: not m._lane.hand)
    assert m.get_job(id)==j and [o['n'] for o in t.dbs[0].q('select n from bookings')]==[1] and len(t.log('booked'))==1
    assert ('refused' in caplog.text)==(then=='crash')

def test_transaction_that_fails(t):
    ddl(t.db(), 'create table bookings(n int)')
    m = t.mgr(worker=False)
    j = run_one(m, cpu.books, folder=str(t.dir), path=str(t.path), fail=True)
    assert j.status=='failed' and 'not booked' in j.error_log and not t.dbs[0].q('select * from bookings') and len(m.list_jobs())==1

def test_transaction_and_a_killed_parent(t):
    "kill -9 of the parent after the commit: the job stays completed and does not run again"
    ddl(t.db(), 'create table bookings(n int)')
    with process(t, HOLD.replace('name=o', "then='hold', path=path"), 'books') as p:
        until(lambda: t.log('booked'))
        p.kill(); p.wait()
    t.go()
    m = t.mgr(handoff=0)
    all_done(m, 2)
    assert len(t.log('booked'))==1 and [o['n'] for o in t.dbs[0].q('select n from bookings')]==[1]

def test_context_of_a_tenant(t):
    ts = Tenants(home(t))
    ts.create('acme')
    id,_ = ts['acme'].jobs.submit('cpu', cpu.tells)
    assert json.loads(ts['acme'].jobs.wait(id, 20).result)==['acme', id]
    ts.close()
    assert on_server(t) or not [o for o in home(t).rglob('.fh_saas') if o.parent!=home(t)], 'no folder of its own beside the file'

@of_processes
def test_memory_database(t):
    "Its jobs run in children, but no child can reach it"
    db = database(':memory:')
    m = BackgroundTaskManager(db, worker=False)
    assert run_one(m, cpu.add, a=1, b=2).result=='3'
    assert 'RuntimeError: a :memory: database exists in its own process alone' in run_one(m, cpu.tells).error_log
    m.close()

def test_submit_from_a_child(t):
    "The manager of a child runs nothing itself; the parent hears of what is submitted there"
    m = t.mgr(handoff=0, tasks=[cpu.gate])
    t.go()
    j = run(m, cpu.submits, folder=str(t.dir), path=str(t.path))
    worker,id = json.loads(j.result)
    assert worker is False and done(m, id).result=='"child"'

# --- shutdown and crashes of the parent

@of_processes
def test_shutdown_waits_for_the_grace(t):
    m = t.mgr(handoff=0)
    id,a = started(t, m, cpu.gate)
    th = threading.Timer(.05, t.go); th.start()
    stop_worker(20.)
    assert t.look().get_job(id).status=='completed' and not t.log('broken')

def test_shutdown_interrupts(t):
    "After the grace the child is ended and the job goes back, uncharged"
    for f,grace in (cpu.gate, .1), (cpu.greedy, 0.):
        m = t.mgr(handoff=0)
        id,a = started(t, m, f)
        stop_worker(grace)
        pid = t.log('start')[0][3]
        until(lambda: gone(pid))
        j = t.look().get_job(id)
        assert (j.status,j.retry_count)==('pending', 0)
        t.go()
        t.look().run_due()
        assert t.look().get_job(id).status=='completed'
        for o in ('log', 'go'): (t.dir/o).unlink()

HOLD = '''
import cpu
m = mgr(tasks=[], handoff=0, threads=2)
for o in sys.argv[3:]: m.submit('cpu', getattr(cpu, o), folder=folder, name=o)
out('up')
if len(sys.argv)>4 and not os.fork(): time.sleep(60); os._exit(0)
m.run()
'''

@pytest.mark.parametrize('names', [['greedy'], ['gate', 'agate']])
def test_the_parent_is_killed(t, names):
    "kill -9 of the parent: its children go at once, in whatever code they are, and a fork of the parent does not keep them; the jobs run elsewhere"
    with process(t, HOLD, *names) as p:
        until(lambda: len(t.log('start'))==len(names))
        pids = [o for r in t.log('start') for o in r[3:]]
        copies = [o for o in psutil.Process(p.pid).children() if str(o.pid) not in pids]
        p.kill(); p.wait()
        for pid in pids: until(lambda: gone(pid), 2)
        for o in copies: o.kill()
    t.go()
    m = t.mgr(handoff=0)
    all_done(m, len(names))
    assert all(o.retry_count==1 and 'died' in o.error_log for o in m.list_jobs())

def test_two_processes(t):
    "Each has children of its own"
    with process(t, HOLD) as p, process(t, HOLD) as q:
        for o in (p, q): said(o, 'up')
        m = t.look()
        m.submit_many('cpu', cpu.gate, [dict(folder=str(t.dir), name=i) for i in range(4)])
        until(lambda: len(t.log('start'))==4)
        kids = [[o.pid for o in psutil.Process(x.pid).children()] for x in (p, q)]
        assert [len(o) for o in kids]==[2, 2]
        t.go()
        all_done(m, 4)
        for o in (p, q): assert end(o, signal.SIGTERM) in (0, -15, 143)
        assert all(gone(o) for k in kids for o in k)

@of_processes
def test_no_room_for_a_process(t, monkeypatch):
    "A child that cannot be made is a failed attempt"
    monkeypatch.setattr(Child, '_spawn', lambda *a: (_ for _ in ()).throw(BlockingIOError(11, 'Resource temporarily unavailable')))
    n = psutil.Process().num_fds()
    m = t.mgr(worker=False)
    assert 'BlockingIOError' in run_one(m, cpu.add, a=1, b=2).error_log
    assert psutil.Process().num_fds()<=n+20

def test_a_child_whose_parent_died_before_it_was_ready():
    "It goes without a word"
    ours,theirs = socket.socketpair()
    r,w = os.pipe()
    ours.close(); os.close(w)
    p = subprocess.Popen([sys.executable, '-c', f'from fh_saas.running.child import serve; serve({theirs.fileno()}, {r})'], pass_fds=(theirs.fileno(), r), env=env(),
                         start_new_session=True, stderr=subprocess.PIPE, text=True)
    assert p.communicate(timeout=20)[1]=='' and p.returncode in (0, -9)
    theirs.close(); os.close(r)

# --- what is done, and what has not begun

@of_processes
@pytest.mark.parametrize('what', ['stdout', 'database'])
def test_work_that_is_done_is_not_undone_by_what_it_left(t, what):
    "A stream that the task has closed, a database that cannot be closed: the job has completed"
    assert run(t.mgr(handoff=0), cpu.shut, what=what).result==f'"{what}"'

@of_processes
def test_a_child_that_dies_with_nothing_to_do_costs_no_attempt(t, monkeypatch):
    "The job had not begun: another child runs it"
    m,old,died = t.mgr(handoff=0),type(children).take,[]
    first = run(m, cpu.me).result
    def take(self, name):
        c = old(self, name)
        if not died: died.append(c.proc.pid); os.kill(c.proc.pid, signal.SIGKILL); os.waitid(os.P_PID, c.proc.pid, os.WEXITED|os.WNOWAIT)
        return c
    monkeypatch.setattr(type(children), 'take', take)
    j = run(m, cpu.me)
    assert died==[int(first)] and j.result!=first and j.retry_count==0
