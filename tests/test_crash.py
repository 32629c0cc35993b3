"kill -9 at the worst moments: promises P1, P2, P6, P9 after a restart"
import signal, socket, time
from contextlib import ExitStack

import pytest, work
from util import both as stores
from util import PRE, Server, done, end, process, run_py, said, until

WORK = "m = mgr(tasks=[quick,gated,agated,fails,bomb,nap]); out('up'); m.run()"

def test_kill_server_during_job(t):
    "P1, P2: the job of a killed server runs again after the restart; the crash counted as one attempt"
    with Server(t) as s:
        ids = [s.job('/ft'), s.job('/asy')]
        until(lambda: len(t.log('start'))==2)
        s.kill()
    t.go()
    with Server(t) as s:
        for o in ids:
            j = done(t.look(), o, 30)
            assert (j.retry_count,len(j.error_log.splitlines()))==(1,1) and 'died' in j.error_log and '"crashed"' in j.attempts
    assert len(t.log('start'))==4

def test_kill_server_during_backoff(t):
    "P1: a job that waits for its second attempt keeps its time over a kill -9; the crash is not charged"
    with Server(t) as s:
        id = s.job('/plain?task=fails&name=x')
        until(lambda: t.look().get_job(id).retry_count==1)
        due = t.look().get_job(id).run_at
        s.kill()
    assert t.look().get_job(id).run_at==due
    with Server(t) as s:
        j = done(t.look(), id, 30)
        assert (j.retry_count,j.result)==(1,'2') and j.started_at>=due

def test_kill_server_before_the_response(t):
    "P1: submitted, and the server killed before the response and its task: the job runs"
    with Server(t, FH_OPTS='{"handoff":1}') as s:
        k = socket.create_connection(('127.0.0.1', s.port))
        k.sendall(b'GET /slow?name=early HTTP/1.1\r\nhost: x\r\n\r\n')
        id = until(lambda: t.log('submitted'))[0][2]
        s.kill(); k.close()
    t.go()
    with Server(t) as s: assert done(t.look(), id, 30).retry_count==0

BOMBS = '''
m = mgr(tasks=[bomb], threads=1)
bg = m.submit_many('b', bomb, [dict(folder=folder, name='warm', boom=False)]*60)
while m.list_jobs(status='pending', limit=1) or m.list_jobs(status='running', limit=1): time.sleep(.002)
m.submit_many('b', bomb, [dict(folder=folder, name=i, boom=i==3) for i in range(200)])
time.sleep(20)'''

def test_only_what_executed_is_charged(t):
    "P2: of a claimed batch only the job that executed pays for the crash; the others go back free"
    run_py(t, BOMBS, rc=-9)
    m = t.look()
    held = m.list_jobs(status='running', limit=1000)
    assert len(held)>5, 'the batch was claimed'
    t.go('safe')
    with process(t, WORK) as p:
        until(lambda: len(m.list_jobs(status='completed', limit=1000))==260)
        end(p, signal.SIGTERM)
    charged = [j for j in m.list_jobs(limit=1000) if j.retry_count or j.error_log]
    assert [(j.result,j.retry_count) for j in charged]==[('3',1)]

@pytest.mark.parametrize('tries', [1, 2])
def test_a_job_that_kills_its_process_fails(t, tries):
    "P2: it ends failed after its attempts, and brings down no more processes than that"
    id,_ = t.look().submit('b', work.bomb, max_retries=tries, folder=str(t.dir))
    for i in range(tries): run_py(t, WORK, rc=-9)
    with process(t, WORK) as p:
        j = done(t.look(), id, 30, 'failed')
        assert (j.retry_count,len(t.log('start')))==(tries,tries) and j.completed_at and 'died' in j.error_log
        assert end(p, signal.SIGTERM)==0

def test_third_crash_waits(t):
    "P2: after its second crash a job is put off, so that a poison job does not take every process with it at once"
    id,_ = t.look().submit('b', work.bomb, max_retries=3, folder=str(t.dir))
    for i in range(2): run_py(t, WORK, rc=-9)
    with process(t, WORK.replace('mgr(', 'mgr(clock=lambda:time.time()+(3600 if is_open(folder, "late") else 0), ')) as p:
        until(lambda: t.look().get_job(id).retry_count==2, 30)
        assert t.look().get_job(id).ready==0
        t.go('late')
        p.wait(10)
    assert p.returncode==-9
    with process(t, WORK) as p: assert done(t.look(), id, 30, 'failed').retry_count==3

@pytest.mark.alone
@pytest.mark.parametrize('task', ['gated','agated'])
def test_another_process_takes_over_within_a_second(t, task):
    "P6 and the budget of section 7: a crash is noticed at once by another process on the file"
    took = []
    with ExitStack() as ps:
        a = ps.enter_context(process(t, WORK))
        for i in range(3):
            id,_ = t.look().submit('g', getattr(work, task), folder=str(t.dir), name=i)
            until(lambda: [o for o in t.log('start') if o[2:]==[str(i),str(a.pid)]])
            b = ps.enter_context(process(t, WORK))
            said(b, 'up')
            b_is_idle = t.look().submit('q', work.quick, folder=str(t.dir))[0]
            done(t.look(), b_is_idle)
            a.kill(); killed = time.time()
            again = until(lambda: [o for o in t.log('start') if o[2:]==[str(i),str(b.pid)]])
            took.append(float(again[0][0])-killed)
            t.go(); done(t.look(), id); (t.dir/'go').unlink()
            a = b
    assert max(took)<1, took

@pytest.mark.on_sqlite('writes SQL of its own')
def test_a_stopped_process_is_not_robbed(t):
    "P6: a process that stands still for a while (SIGSTOP) keeps its job; it ends once"
    id,_ = t.look().submit('g', work.gated, folder=str(t.dir), name='x')
    with process(t, WORK) as a, process(t, WORK) as b:
        said(a, 'up'); said(b, 'up')
        pid = int(until(lambda: t.log('start'))[0][3])
        one,other = (a,b) if a.pid==pid else (b,a)
        one.send_signal(signal.SIGSTOP)
        for i in range(3):      # a sweep of the other process removes the dead owner
            db = t.look().db
            db.q("insert into tenant_workers values('dead','2000-01-01T00:00:00.000000Z')")
            until(lambda: not db.q("select * from tenant_workers where id='dead'"), 5)
        assert len(t.log('start'))==1 and t.look().get_job(id).status=='running'
        one.send_signal(signal.SIGCONT)
        t.go()
        assert done(t.look(), id).retry_count==0 and len(t.log('start'))==1

# --- transactions

def test_kill_inside_transaction(t):
    "P5: killed inside the block, neither the row nor the job is there; killed after it, both are"
    code = '''
m = mgr(handoff=60)
ddl(db, 'create table if not exists note(x)')
with m.transaction() as tx:
    tx.q("insert into note values('a')")
    m.submit('q', quick, folder=folder, name='a')
    if sys.argv[3]=='inside': os.kill(os.getpid(), 9)
os.kill(os.getpid(), 9)'''
    run_py(t, code, 'inside', rc=-9)
    m = t.look()
    assert m.list_jobs()==[] and not m.db.q('select * from note')
    run_py(t, code, 'after', rc=-9)
    assert len(m.list_jobs(status='pending'))==1 and len(m.db.q('select * from note'))==1

# --- the power cut

SYNCS = '''
import apsw, sys, threading, time
syncs = []      # when a log was told to reach the disk
class File(apsw.VFSFile):
    def __init__(self, name, flags):
        self.log = str(name.filename() if hasattr(name, 'filename') else name).endswith('-wal')
        super().__init__('unix', name, flags)
    def xSync(self, flags):
        super().xSync(flags)
        if self.log: syncs.append(time.monotonic())
class Count(apsw.VFS):
    def __init__(self): super().__init__('count', 'unix', makedefault=True)
    def xOpen(self, name, flags): return File(name, flags)
count = Count()
def synced(f):
    "Whether a log was flushed while `f()` ran"
    t = time.monotonic(); v = f()
    return any(o>=t for o in list(syncs)), v
'''

@pytest.mark.on_sqlite('its own VFS')
def test_what_is_reported_has_reached_the_disk(t):
    "P1: submit, transaction() and a reported end are flushed to the disk before they return, also among claims that are not"
    o = run_py(t, '''
def add(a): return a
def wait(id):
    while m.get_job(id).status!='completed': time.sleep(.001)
m = mgr(handoff=0, wait_s=None)
assert syncs
ids = []
for i in range(60):      # the worker claims and acks all the while
    ok,(id,_) = synced(lambda: m.submit('a', add, a=i)); assert ok, f'submit {i}'
    ids.append(id)
for o in ids: wait(o)
for i in range(30):
    def tx():
        with m.transaction() as db: m.submit('a', add, a=i)
    assert synced(tx)[0], f'transaction {i}'
    assert synced(lambda: m.submit_many('a', add, [dict(a=1)]*3))[0], f'submit_many {i}'
m2 = mgr(handoff=30, wait_s=None)
while m.list_jobs(status='pending', limit=1) or m.list_jobs(status='running', limit=1): time.sleep(.002)
for i in range(30):
    id,bg = m2.submit('a', add, a=i)
    ok,_ = synced(lambda: asyncio.run(bg())); assert ok and m.get_job(id).status=='completed', f'end {i}'
    id,bg = m2.submit('a', add, a=i)
    ok,_ = synced(lambda: bg.func(*bg.args)); assert ok, f'end by hand {i}'
out('ok', len(syncs))''', pre=SYNCS+PRE)
    assert 'ok' in o

# --- how soon that is noticed

NO_SWEEP = '''
from fh_saas.running import lane, worker
worker.SWEEP_S = worker.BEAT_S = 3600.
def says(cls, name, word):
    f = getattr(cls, name)
    def g(*args): v = f(*args); out(word); return v
    setattr(cls, name, g)
says(worker.Worker, '_sweep', 'swept')
says(lane.Lane, '_sick', 'could not')
'''
HOLDS = "m = mgr(tasks=[gated], handoff=0); m.submit('g', gated, folder=folder, name='x'); time.sleep(60)"

@pytest.mark.on_sqlite('locks the file')
@pytest.mark.parametrize('locked', [False, True])
def test_death_is_noticed_before_the_next_sweep(t, locked):
    "P6: a worker asks ten times a second whether anybody has died, and takes the jobs back then; where the file is locked just then, as soon as it is not"
    with process(t, HOLDS) as a:
        until(lambda: t.log('start'))
        with process(t, NO_SWEEP+"m = mgr(tasks=[gated], handoff=0); m.run()") as b:
            said(b, 'swept')                   # the one time without a reason
            if locked: (c := t.db().conn).execute('begin immediate')
            end(a)
            if locked: said(b, 'could not'); c.execute('rollback')
            t.go()
            until(lambda: len(t.log('start'))==2)
            assert done(t.look(), t.look().list_jobs('g')[0].id).retry_count==1

def test_a_job_cut_short_keeps_its_place_in_the_line(t):
    "P2: after its first crash a job runs before those that were submitted after it"
    run_py(t, '''
m = mgr(tasks=[quick], worker=False)
for i in range(5): m.submit('q', quick, folder=folder, name=i)
a, = m._lane.turn(1)
m._lane.start(a)
os.kill(os.getpid(), 9)''', rc=-9)
    m = t.look(tasks=[work.quick])
    assert m.run_due()==5 and [o[2] for o in t.log('ran')]==list('01234')
    assert m.list_jobs()[-1].retry_count==1
