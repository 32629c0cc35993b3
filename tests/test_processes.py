"Threads, processes, forks and restarts on one file: promises P3, P6, P9"
import json, os, signal, socket, subprocess, sys, threading, time
from collections import Counter
from contextlib import nullcontext
from functools import wraps
from datetime import datetime, timezone

import apsw, pytest, work
from fastlite import database
from fh_saas import utils_bgtsk
from fh_saas.keys import new_key
from fh_saas.store import sqlite_file
from fh_saas.utils_bgtsk import BackgroundTaskManager
from util import PRE, Server, all_done, apps, done, end, env, heard, process, run_py, said, start_py, until

def nothing(): pass
def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def in_threads(n, f):
    "Run `f(i)` in `n` threads that begin together; what they gave"
    out,errors,bar = [None]*n,[],threading.Barrier(n)
    def run(i):
        bar.wait()
        try: out[i] = f(i)
        except BaseException as e: errors.append(e)
    ts = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for o in ts: o.start()
    for o in ts: o.join()
    assert not errors, errors
    return out

# --- threads

ran,ran_lock = Counter(), threading.Lock()
def count(key):
    with ran_lock: ran[key] += 1
async def acount(key): ran[key] += 1

@pytest.mark.parametrize('task', [count, acount])
def test_eight_threads_of_200_jobs(t, task):
    "P3: 1,600 jobs from 8 threads, each in its own manager, run exactly once each"
    ran.clear()
    db = t.db()
    with heard() as n:
        ids = in_threads(8, lambda i: [BackgroundTaskManager(db, handoff=.05).submit('c', task, key=f'{i}-{j}')[0] for j in range(200)])
        m = t.mgr(handoff=.05)
        all_done(m, 1600)
        jobs = m.list_jobs(limit=2000)
        until(lambda: all(j.fence==1+n['job.released', j.id] for j in jobs))       # one claim more for each that was not begun in time and went back
    assert len(ran)==1600 and set(ran.values())=={1} and len({o for l in ids for o in l})==1600
    assert {(j.retry_count, n['job.started', j.id]) for j in jobs}=={(0, 1)}

def test_sixteen_threads_submit_at_once(t):
    "P1: whatever `submit` returned is there, with its own arguments; ids are in the order of the rows"
    m = t.look()
    got = in_threads(16, lambda i: {m.submit('c', count, key=f'{i}-{j}')[0]:f'{i}-{j}' for j in range(50)})
    want = {k:v for d in got for k,v in d.items()}
    assert {j.id:json.loads(j.payload)['key'] for j in m.list_jobs(limit=10**4)}==want and len(want)==800
    run_py(t, f"assert len(mgr(worker=False).list_jobs(limit=10**4))==800")

def test_one_bad_row_among_many_threads(t):
    "Commits that threads share: one thread's error is its own"
    m = t.look()
    def sub(i):
        if i==7:
            with pytest.raises(TypeError): m.submit('c', count, key=object())
            return 0
        for j in range(20): m.submit('c', count, key=f'{i}-{j}')
        return 20
    assert sum(in_threads(8, sub))==len(m.list_jobs(limit=1000))==140

def timed(at:datetime): ...
def keyed(key): ...

@pytest.mark.parametrize('keys', [None, [new_key()]], ids=['plain', 'sealed'])
def test_sixteen_threads_of_all_sorts(t, keys):
    "Commits that threads share: arguments are converted and keys worked out in the thread that submits, and errors are its own"
    m,mine = t.look(**(dict(keys=keys) if keys else {})),threading.local()
    m.task(keyed, unique=lambda kw: (mine.i, kw['key'] if mine.i==kw['key'] else 1/0))
    def sub(i):
        mine.i,got,at = i,{},datetime(2026, 1, 1+i, tzinfo=timezone.utc)
        for j in range(10):
            got[m.submit('c', count, key=f'{i}-{j}')[0]] = {'key':f'{i}-{j}'}
            got[m.submit('t', timed, at=at)[0]] = {'at':at.isoformat().replace('+00:00', 'Z')}
            got[m.submit('k', keyed, key=i)[0]] = {'key':i}
            got[m.options(priority=i).submit('o', count, key=i)[0]] = {'key':i}
            with pytest.raises(TypeError, match="no parameter 'nope'"): m.submit('c', count, nope=j)
            with pytest.raises(ValueError, match='at least 1'): m.submit('c', count, 0, key=j)
            with pytest.raises(TypeError, match="'key'"): m.submit('c', count, key={j})
        return got
    want = {k:v for d in in_threads(16, sub) for k,v in d.items()}
    jobs = m.list_jobs(limit=10**4)
    assert len(want)==16*(10+10+1+10) and {j.id:json.loads(j.payload) for j in jobs}==want
    assert {(j.job_type, j.priority) for j in jobs}=={('c',0), ('t',0), ('k',0)}|{('o',i) for i in range(16)}

def test_nothing_is_kept_of_functions_that_are_made_on_the_way(t):
    m,was = t.look(),set(utils_bgtsk._own)
    for i in range(20): m.submit('w', wraps(count)(lambda key: None), key=i)
    assert utils_bgtsk._own==was

class Text(str): pass

@pytest.mark.parametrize('job_type', [Text('x'), Text(' ')], ids=['fit', 'unfit'])
def test_a_subclass_of_text_is_asked_in_the_thread_that_submits(t, monkeypatch, job_type):
    m = t.look()
    m.submit('c', count, key=0)                         # the function is known from here on
    monkeypatch.setattr(m._lane.store, 'insert_made', lambda *a: pytest.fail('another thread might make the row'))
    with nullcontext() if job_type.isalpha() else pytest.raises(ValueError, match='must not be empty'): m.submit(job_type, count, key=1)

# --- processes

def test_four_processes_on_one_file(t):
    "P3: four processes submit and work at once; each of 800 jobs is run once, by some, and all take part"
    code = '''
m = mgr(tasks=[quick,aquick], handoff=.1)
out('up'); sys.stdin.readline()
for i in range(200): m.submit('q', (quick,aquick)[i%2], folder=folder, name=f'{sys.argv[3]}-{i}')
sys.stdin.readline()'''
    ps = [start_py(t, code, i) for i in range(4)]
    try:
        for o in ps: said(o, 'up')
        for o in ps: o.stdin.write('go\n'); o.stdin.flush()
        m = t.look()
        all_done(m, 800, 60)
        for o in ps: o.stdin.write('end\n'); o.stdin.flush()
        for o in ps: assert o.wait(10)==0, o.stderr.read()
    finally:
        for o in ps:
            if o.poll() is None: o.kill()
            o.communicate()
    rows = t.log('ran')
    assert len(rows)==len({o[2] for o in rows})==800, Counter(o[2] for o in rows).most_common(3)
    assert {j.retry_count for j in m.list_jobs(limit=1000)}=={0}

@pytest.mark.parametrize('first', ['fh_saas', 'fastlite'])
def test_four_processes_open_a_new_file_at_once(tmp_path, first):
    "An app that starts four times on a file that is not there yet: none of them meets a locked file, whichever package it imports first"
    imports = dict(fastlite='from fastlite import database\n', fh_saas='from fh_saas.utils_bgtsk import *\n')
    code = imports.pop(first)+imports.popitem()[1]+'''
import sys
def job(): pass
print('up', flush=True)
for path in sys.argv[1:]:
    sys.stdin.readline()
    m = BackgroundTaskManager(database(path), worker=False)
    m.submit('j', job)
    print('up', flush=True)'''
    paths = [str(tmp_path/f'{i}.db') for i in range(5)]
    ps = [subprocess.Popen([sys.executable, '-c', code, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env())
          for _ in range(4)]
    try:
        for _ in paths:
            for o in ps: said(o, 'up')
            for o in ps: o.stdin.write('go\n'); o.stdin.flush()
        for o in ps: said(o, 'up'); assert o.wait(10)==0
    finally:
        for o in ps:
            if o.poll() is None: o.kill()
            o.communicate()
    for o in paths: assert len(BackgroundTaskManager(database(o), worker=False).list_jobs())==4

def test_the_apps_own_write_waits_for_a_locked_file(tmp_path, monkeypatch):
    "fastlite gives up after 100 ms; with a manager on it, `database` waits as jobs do. What the app has chosen itself stays"
    path = tmp_path/'a.db'
    mine,own,holder = database(path),database(path),apsw.Connection(str(path))
    own.conn.set_busy_timeout(20)
    for o in (mine, own): BackgroundTaskManager(o, worker=False)
    mine.q('create table notes(n)')
    holder.execute('begin immediate')
    with pytest.raises(apsw.BusyError): own.q('insert into notes values(1)')
    tries = []
    def rest(n, end):
        tries.append(n)
        assert end-time.monotonic()<=sqlite_file.SHORT_S       # other threads that share the connection fail after some 330 ms
        if n==100: holder.execute('rollback')
        return n<=100
    monkeypatch.setattr(sqlite_file, '_rest', rest)
    mine.q('insert into notes values(2)')
    assert tries==list(range(101)) and [o['n'] for o in own.q('select n from notes')]==[2]

def test_a_manager_is_made_while_the_apps_connection_is_in_use(tmp_path):
    "A route may make a manager at each request; apsw lets one thread at a time into the connection that it is made on"
    db,inside,go = database(tmp_path/'a.db'),threading.Event(),threading.Event()
    def hold(): inside.set(); go.wait(60); return 1
    db.conn.create_scalar_function('hold', hold)
    BackgroundTaskManager(db, worker=False)
    th = threading.Thread(target=lambda: db.q('select hold()')); th.start()
    try:
        assert inside.wait(60)
        with pytest.raises(apsw.ThreadingViolationError): db.conn.filename
        m = BackgroundTaskManager(db, worker=False)
        assert m.get_job(m.submit('j', nothing)[0]).status=='pending'
    finally: go.set(); th.join()

@pytest.mark.alone
def test_work_flows_to_the_idle_process(t):
    "Section 5: a process with `worker=False` submits, another one runs it at once"
    with process(t, "m = mgr(tasks=[quick]); out('up'); m.run()") as p:
        said(p, 'up')
        m = t.look()
        done(m, m.submit('q', work.quick, folder=str(t.dir), name='warm')[0])
        began = time.time()
        done(m, m.submit('q', work.quick, folder=str(t.dir), name='x')[0])
        assert float([o for o in t.log('ran') if o[2]=='x'][0][0])-began<.3
        assert end(p, signal.SIGTERM)==0

@pytest.mark.parametrize('what', ["mgr(tasks=[quick], worker=False)", "Tenants(folder+'/ts', tasks=[quick], worker=False)"])
def test_told_to_end_while_it_starts(t, what):
    "P1: a process that runs jobs and is told to end when `run` has just begun ends as it does later: drained, with 0"
    run_py(t, f'''
from fh_saas.tenants import Tenants
from fh_saas.running.worker import Worker
m = {what}
def start(self, former=Worker.start):
    os.kill(os.getpid(), signal.SIGTERM)
    former(self)
Worker.start = start
m.run()
out('ended')''')

RUNS = dict(
    manager="m = mgr(tasks=[quick], worker=False); begins(); m.run()",
    tenants="from fh_saas.tenants import Tenants; ts = Tenants(folder, worker=False, tasks=[quick]); begins(); ts.run()",
    cli="m = mgr(tasks=[quick], worker=False); sys.modules['app'] = sys.modules['__main__']; sys.argv = ['fh_saas', 'worker', 'app:m']; from fh_saas.cli import main; begins(); main()")

@pytest.mark.parametrize('how', RUNS)
def test_told_to_end_by_another_thread(t, how):
    "The system gives a signal to any thread, seldom to the main one where the process was frozen and let go again; only that one can see to it, and nothing wakes it"
    code = """
def tells():
    "Once the main thread waits for what may come"
    at,n = None,0
    while n<40:
        f = sys._current_frames()[threading.main_thread().ident]
        at,n = (f.f_code, f.f_lasti),n+1 if at==(f.f_code, f.f_lasti) else 0
        time.sleep(.005)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
def begins(): threading.Thread(target=tells, daemon=True).start()
"""+RUNS[how]
    with process(t, code) as p:
        p.communicate(timeout=30)
        assert p.returncode==0

# --- forks

FORK = '''
m = mgr(tasks=[quick,gated], handoff=.05)
def ran(name): return any(o.split()[1:3]==['ran',name] for o in open(folder+'/log')) if is_open(folder, 'log') else False
def wait(f):
    end = time.monotonic()+15
    while not f():
        if time.monotonic()>end: raise SystemExit('waited too long')
        time.sleep(.005)
def go(name):
    id,_ = m.submit('q', quick, folder=folder, name=name)
    wait(lambda: m.get_job(id).status=='completed')
go('before')
'''

@pytest.mark.parametrize('how', ['os', 'mp'])
def test_fork_after_the_manager(t, how):
    "P6: after a fork parent and child both submit and run on the manager made before it; the child's end changes nothing"
    code = FORK+'''
def child():
    os.kill(os.getppid(), signal.SIGSTOP)      # so that nobody else can run it
    go('child')
    os.kill(os.getppid(), signal.SIGCONT)
    open(folder+'/both', 'w')
    for i in range(20): m.submit('q', quick, folder=folder, name=f'c{i}')
    wait(lambda: not m.list_jobs(status='pending', limit=1) and not m.list_jobs(status='running', limit=1))
if sys.argv[3]=='os':
    pid = os.fork()
    if pid==0:
        try: child(); os._exit(0)
        except BaseException as e: print(repr(e), file=sys.stderr, flush=True); os._exit(1)
    wait(lambda: is_open(folder, 'both'))
    for i in range(20): m.submit('q', quick, folder=folder, name=f'p{i}')
    assert os.waitpid(pid, 0)[1]==0
else:
    import multiprocessing as mp
    p = mp.get_context('fork').Process(target=child); p.start()
    wait(lambda: is_open(folder, 'both'))
    for i in range(20): m.submit('q', quick, folder=folder, name=f'p{i}')
    p.join(); assert p.exitcode==0
go('after')
wait(lambda: len(m.list_jobs(status='completed'))==43)'''
    run_py(t, code, how)
    rows = t.log('ran')
    assert len(rows)==len({o[2] for o in rows})==43
    pids = {o[2]:o[3] for o in rows}
    assert pids['before']==pids['after']!=pids['child']

def test_child_that_ends_leaves_the_parents_claims(t):
    "P6: forked children that come and go never let others take the parent's running job"
    code = FORK+'''
id,_ = m.submit('g', gated, folder=folder, name='x')
wait(lambda: m.get_job(id).status=='running')
for i in range(3):
    if (pid := os.fork())==0: m.get_job(id); os._exit(0)
    os.waitpid(pid, 0)
out('forked'); sys.stdin.readline()'''
    with process(t, code) as a, process(t, "m = mgr(tasks=[quick]); out('up'); m.run()") as b:
        said(b, 'up'); said(a, 'forked')
        m = t.look()
        m.db.q("insert into tenant_workers values('dead','2000-01-01T00:00:00.000000Z')")
        until(lambda: not m.db.q("select * from tenant_workers where id='dead'"), 5)     # the other process has looked around
        j, = m.list_jobs('g')
        assert (j.status,j.retry_count)==('running',0)
        t.go()
        assert done(m, j.id).retry_count==0 and len(t.log('start'))==1

@pytest.mark.parametrize('how', ['os', 'mp'])
def test_parent_killed_while_its_child_lives(t, how):
    "P6: the lock dies with the process that made it, although a forked child lives on"
    code = FORK+'''
id,_ = m.submit('g', gated, folder=folder, name='x')
wait(lambda: m.get_job(id).status=='running')
def child():
    out('child'); out(os.getpid())
    end = time.monotonic()+25
    while not is_open(folder, 'over') and time.monotonic()<end: time.sleep(.01)
    os._exit(0)
if sys.argv[3]=='os':
    if os.fork()==0: child()
else:
    import multiprocessing as mp
    mp.get_context('fork').Process(target=child).start()
time.sleep(30)'''
    with process(t, code, how) as a:
        try:
            said(a, 'child')                # the job runs there, since nobody else was there to take it
            with process(t, "m = mgr(tasks=[gated]); out('up'); m.run()") as b:
                said(b, 'up')
                os.kill(a.pid, signal.SIGKILL); os.waitpid(a.pid, 0)
                until(lambda: len(t.log('start'))==2, 5)
                t.go()
                assert done(t.look(), t.look().list_jobs('g')[0].id).retry_count==1
        finally: t.go('over')

RUN_FORKS = '''
m = mgr(tasks=[forks], worker=False)
id,_ = m.submit('f', forks)
stop = threading.Event()
def end():
    until = time.monotonic()+20
    while m.get_job(id).status!='completed' and time.monotonic()<until: time.sleep(.01)
    stop.set()
threading.Thread(target=end).start()
m.run(stop=stop)
'''   # a process whose main thread runs jobs, until the one of `forks` is done

def test_children_of_tasks_end_in_a_process_that_runs_jobs(t):
    "A child that a task has forked dies of SIGTERM, although its parent only begins to drain: a `multiprocessing.Pool` ends its children so"
    run_py(t, '''
import multiprocessing as mp
def sq(x): return x*x
def forks():
    with mp.get_context('fork').Pool(2) as p: got = p.map(sq, [2,3])
    if (pid := os.fork())==0: time.sleep(20); os._exit(0)
    os.kill(pid, signal.SIGTERM)
    return got,os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
'''+RUN_FORKS+'''
assert m.get_job(id).result=='[[4,9],-15]', m.get_job(id)''')

@pytest.mark.parametrize('own', [False, True])
def test_a_forked_child_has_the_handler_that_the_app_had(t, own):
    "One of this package, in Python, would not be called while the child waits for a lock, as those of a `multiprocessing.Pool` do: it would never end"
    run_py(t, f"own = {own}"+'''
def mine(sig, frame): os._exit(3)
if own: signal.signal(signal.SIGTERM, mine)
def forks():
    r,w = os.pipe()
    if (pid := os.fork())==0: os.write(w, str(signal.getsignal(signal.SIGTERM)).encode()); os._exit(0)
    os.waitpid(pid, 0)
    return os.read(r, 1000).decode()
'''+RUN_FORKS+'''
got = m.get_job(id).result
assert 'mine' in got or 'handler' in got if own else got==f'"{signal.SIG_DFL}"', got''')

def test_child_of_a_task(t):
    "A task may fork or start processes of its own"
    code = FORK+'''
import multiprocessing as mp, subprocess
def sq(x): return x*x
def forks():
    if (pid := os.fork())==0: os._exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with mp.get_context('fork').Pool(2) as p: return [code, p.map(sq, [2,3]), subprocess.check_output(['echo','hi'], text=True)]
id,_ = m.submit('f', forks)
wait(lambda: m.get_job(id).status in ('completed','failed'))
j = m.get_job(id)
out(j.status, j.result, j.error_log)'''
    assert run_py(t, code).strip()=='completed [7,[4,9],"hi\\n"] None'

# --- restarts

@pytest.mark.parametrize('first,second', [('uvicorn','uvicorn'), ('python','uvicorn'), ('uvicorn','python')])
def test_the_snippet_survives_a_restart(t, first, second):
    "P9: a plain function of the module that made the manager is found again, however the app is started, with nothing submitted"
    args = dict(uvicorn=None, python=[str(apps/'snippet.py')])
    with Server(t, 'snippet:app', args=args[first], FH_SAAS_WORKER='0') as s:      # so the job is left over
        id = s.job('/sync')
        s.kill()
    j = t.look().get_job(id)
    assert (j.status,j.task)==('pending','snippet:my_sync_func') and not t.log()
    with Server(t, 'snippet:app', args=args[second]) as s:
        j = done(t.look(), id, 8)
        assert (j.retry_count,j.result)==(0,'"123"') and len(t.log('sync'))==1

@pytest.mark.parametrize('args', [{}, dict(FH_WORKERS='2')], ids=['reloader', 'workers'])
def test_serve_runs_jobs_where_it_serves(t, args):
    "FastHTML's `serve()`, or uvicorn with `workers`: the process above, which never loads changed code, runs no job that was left over"
    m = t.look(tasks={'served:where':nothing})
    ids = [m.submit('w', nothing)[0] for _ in range(5)]
    with Server(t, args=[str(apps/'served.py')], FH_PORT=str(free_port()), **args) as s:
        try:
            for o in ids: done(m, o)
            assert {o[3] for o in t.log('ran')}=={str(s.p.pid)}, 'in the child'
        finally: s.signal(signal.SIGTERM); s.wait()

def test_names_in_spawned_processes(t):
    "A script's functions have the same names in the processes that multiprocessing spawns of it"
    (t.dir/'script.py').write_text(PRE+'''
import multiprocessing as mp
def task(): pass
def child(): print(mgr(worker=False).get_job(mgr(worker=False).submit('s', task)[0]).task, flush=True)
if __name__=='__main__': p = mp.get_context('spawn').Process(target=child); p.start(); p.join()
''')
    r = subprocess.run([sys.executable, 'script.py', str(t.path), str(t.dir)], cwd=t.dir, env=env(), capture_output=True, text=True, timeout=30)
    assert r.stdout=='script:task\n', r.stdout+r.stderr


def test_lambda_of_a_dead_process_is_parked(t):
    "P9: a job that nobody can run is pending, visible and uncharged, over restarts; others go past it"
    with Server(t, 'snippet:app', FH_SAAS_WORKER='0') as s:
        id = s.job('/nameless')
        s.kill()
    with Server(t, 'snippet:app') as s:
        other = s.job('/sync')
        done(t.look(), other, 8)
        j = until(lambda: (j := t.look().get_job(id)).ready==2 and j, 8)
        assert (j.status,j.retry_count,j.error_log,j.attempts)==('pending',0,None,None)
        assert id in [o.id for o in t.look().list_jobs(status='pending')]
        s.kill()
    assert '<lambda>' in t.look().get_job(id).task

def test_tasks_close_the_door(t):
    "P9: with `tasks=[...]` a plain function of the module is not run because of a row"
    t.look().submit('q', work.quick, folder=str(t.dir), name='a')
    db = t.dbs[0]
    db.q("update tenant_jobs set task='__main__:secret', payload='{}'")
    code = '''
def secret(): say(folder, 'secret')
m = mgr(%s)
id,bg = m.submit('q', quick, folder=folder, name='fence')
end = time.monotonic()+10
while m.get_job(id).status!='completed' and time.monotonic()<end: time.sleep(.005)
end = time.monotonic()+10
while not (is_open(folder, 'log') and 'secret' in open(folder+'/log').read()) and m.list_jobs('q')[-1].ready!=2 and time.monotonic()<end: time.sleep(.005)'''
    run_py(t, code % 'tasks=[quick], handoff=0')
    assert len(t.log('ran'))==1 and not t.log('secret') and t.look().list_jobs('q')[-1].status=='pending'

DOOR = '''
from fh_saas.utils_bgtsk import task
@task
def shared_one(x): say(folder, 'shared', x); return x
@task(name='steady', max_retries=7)
def renamed(x): say(folder, 'steady', x); return x
m = BackgroundTaskManager(db, tasks=[])
@m.task(name='own')
def mine(x): say(folder, 'own', x); return x
'''

def test_registered_tasks_survive_a_restart(t):
    "P9: module-level @task, @task(name=, max_retries=) and @manager.task(name=) are found by the next process"
    run_py(t, DOOR+'''
for f in (shared_one, renamed, mine): out(m.submit('q', f, x=1)[0])''', FH_SAAS_WORKER='0')
    m = t.look()
    js = {j.task:j for j in m.list_jobs()}
    assert set(js)=={'__main__:shared_one','steady','own'} and js['steady'].max_retries==7
    with process(t, DOOR+"m.run()"):
        for j in js.values(): assert done(m, j.id, 8).result=='1'

def test_data_never_imports(t):
    "P9: a row that names a function of another module runs nothing and imports nothing"
    t.look().submit('q', work.quick, folder=str(t.dir))
    t.dbs[0].q("update tenant_jobs set task='wsgiref.util:guess_scheme', payload='{}'")
    run_py(t, '''
m = mgr(handoff=0)
id,_ = m.submit('q', quick, folder=folder)
end = time.monotonic()+10
while m.get_job(id).status!='completed' and time.monotonic()<end: time.sleep(.005)
while m.list_jobs()[-1].ready!=2 and time.monotonic()<end: time.sleep(.005)
assert m.list_jobs()[-1].status=='pending' and m.list_jobs()[-1].retry_count==0
assert not [o for o in sys.modules if o.startswith('wsgiref')]''')

def test_a_parked_job_runs_when_its_task_appears(t):
    "P9: parked is not lost: a process that knows the task takes it"
    t.look().submit('g', work.gated, folder=str(t.dir), name='x')
    t.go()
    with process(t, "m = mgr(tasks=[quick]); out('up'); m.run()"):
        until(lambda: t.look().list_jobs()[0].ready==2)
        with process(t, "m = mgr(tasks=[gated]); m.run()"): assert done(t.look(), t.look().list_jobs()[0].id, 8).retry_count==0
