"What a task can ask and tell about its job: JobContext and current_job()"
from __future__ import annotations
import asyncio, json, threading
from typing import Optional, TYPE_CHECKING

import pytest
from fh_saas.keys import new_key
from fh_saas.running.context import JobContext, current_job
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager
from util import both as stores
from util import ddl, done, on_server, until
if TYPE_CHECKING: from fh_saas.running.context import JobContext as OnlyForTypes

# --- who am I

def facts(j): return [j.id, j.job_type, j.tenant, j.attempt, j.max_retries]
def by_class(x, job:JobContext): return facts(job)
def optional(x, *, ctx:Optional[JobContext]=None): return facts(ctx)
def in_text(x, me:"JobContext | None"): return facts(me)
def by_hand(x): return facts(current_job())
def in_kw(job:JobContext, **kw): return facts(job)
async def aclass(x, job:JobContext): return facts(job)
async def ahand(x):
    async def sub(): return facts(current_job())
    a,b = await asyncio.gather(sub(), asyncio.to_thread(lambda: facts(current_job())))
    assert a==b==facts(current_job())
    return a

@pytest.mark.parametrize('f', [by_class, optional, in_text, by_hand, in_kw, aclass, ahand])
@pytest.mark.parametrize('worker', [True, False])
def test_who(t, f, worker):
    "By annotation under any name, or by current_job(); run by the worker and called by hand"
    m = t.mgr(worker=worker, handoff=0)
    id,bg = m.submit('w', f, x=1)
    if not worker: bg.func(*bg.args, **bg.kwargs)
    assert json.loads(done(m, id).result)==[id, 'w', None, 1, 3]

def flaky(job:JobContext):
    if job.attempt<3: raise ValueError(job.attempt)
    return job.attempt

def test_attempt(t):
    "Attempts are counted from 1"
    now = [1e9]
    m = t.mgr(worker=False, clock=lambda: now[0])
    id,_ = m.submit('f', flaky)
    for i in range(3): now[0] += 100; m.run_due()
    assert m.get_job(id).result=='3'

def test_outside(t):
    "Outside a job: an error that says so, or the default; a job that ended leaves nothing behind in the thread"
    with pytest.raises(RuntimeError, match='no job runs here'): current_job()
    m = t.mgr(worker=False)
    _,bg = m.submit('w', by_hand, x=1)
    bg.func(*bg.args)
    assert current_job(None) is None

def test_not_an_argument(t):
    "The parameter is not the submitter's to give, and the others are still checked"
    m = t.mgr(worker=False)
    with pytest.raises(TypeError, match="'job' is the JobContext"): m.submit('w', by_class, x=1, job=None)
    with pytest.raises(TypeError, match="needs 'x'"): m.submit('w', by_class)
    assert not m.list_jobs()

def test_many_at_once(t):
    "Each of many jobs at once, sync and async, sees its own"
    def look(x): return current_job().id
    async def alook(x):
        a = current_job().id
        await asyncio.sleep(0)
        return [a, current_job().id]
    m = t.mgr()
    ids,aids = m.submit_many('s', look, [dict(x=i) for i in range(300)]),m.submit_many('a', alook, [dict(x=i) for i in range(300)])
    until(lambda: len(m.list_jobs(status='completed', limit=1000))==600)
    for i in ids: assert json.loads(m.get_job(i).result)==i
    for i in aids: assert json.loads(m.get_job(i).result)==[i,i]

def test_tenant(tmp_path):
    "Under Tenants the job knows whose it is, also after a rename"
    ts = Tenants(tmp_path, tasks=[by_class], handoff=0)
    try:
        a = ts.create('acme')
        id,_ = a.jobs.submit('w', by_class, x=1)
        assert json.loads(done(a.jobs, id).result)[2]=='acme'
    finally: ts.close()

def test_other_threads(t):
    "A thread that was started without the context sees no job"
    got = []
    def f():
        th = threading.Thread(target=lambda: got.append(current_job(None))); th.start(); th.join()
    m = t.mgr(worker=False)
    _,bg = m.submit('w', f)
    bg.func(*bg.args)
    assert got==[None]

# --- progress, log, cursor

from fh_saas.running.context import Cancelled, LostClaim
from fh_saas.running.lane import Lane
from util import process, run_py
import work

def counts(n, job:JobContext):
    for i in range(n): job.progress(i+1, n, f'row {i+1}')
    job.log(f'{n} rows')
async def acounts(n, job:JobContext): counts(n, job)

def writes(m):
    with m._lane.store._writer.use() as c: return c.total_changes()

@pytest.mark.parametrize('f', [counts, acounts])
@pytest.mark.parametrize('worker', [True, False])
def test_last_progress_arrives(t, f, worker):
    "Twenty thousand reports cost a few writes, and the last one is there as soon as the job is completed"
    m = t.mgr(worker=worker, handoff=0)
    n = writes(m)
    id,bg = m.submit('p', f, n=20000)
    if not worker: bg.func(*bg.args)
    j = done(m, id)
    p = json.loads(j.progress)
    assert (p['done'],p['total'],p['message'])==(20000, 20000, 'row 20000') and j.log.endswith('20000 rows')
    assert writes(m)-n<40

def test_progress_is_seen_while_it_runs(t):
    "The last value is seen soon, without anything else happening"
    go = threading.Event()
    def f(job:JobContext):
        for i in range(5): job.progress(i)
        go.wait(20)
    m = t.mgr(handoff=0)
    id,_ = m.submit('p', f)
    until(lambda: '"done":4' in (m.get_job(id).progress or ''), 10)
    assert m.get_job(id).status=='running'
    go.set(); done(m, id)

def test_progress_of_many(t):
    "A hundred async jobs that report at once share their writes"
    async def f(i, job:JobContext):
        for k in range(10): job.progress(k, 10); await asyncio.sleep(.001)
        job.log(str(i))
    m = t.mgr(handoff=0)
    ids = m.submit_many('p', f, [dict(i=i) for i in range(100)])
    for i,id in enumerate(ids): j = done(m, id); assert json.loads(j.progress)['done']==9 and j.log.endswith(f' {i}')

def notes_fail(job:JobContext):
    job.progress(7); job.log(f'attempt {job.attempt}'); job.cursor = [job.attempt, job.cursor]
    if job.attempt<3: raise ValueError('no')

def test_notes_of_failed_attempts(t):
    "They are written with the failure, and the next attempt goes on from them"
    now = [1e9]
    m = t.mgr(worker=False, clock=lambda: now[0])
    id,_ = m.submit('n', notes_fail)
    for i in range(3): now[0] += 100; m.run_due()
    j = m.get_job(id)
    assert j.status=='completed' and json.loads(j.cursor)==[3,[2,[1,None]]]
    assert [o.split(' ', 1)[1] for o in j.log.splitlines()]==['attempt 1','attempt 2','attempt 3']

KILLED = '''
from fh_saas.running.context import JobContext
def rows(n, job:JobContext):
    start = job.cursor or 0
    job.log(f'from {start}')
    for i in range(start, n):
        say(folder, 'row', i)
        job.cursor = i+1
        job.progress(i+1, n)
        if i==500 and not is_open(folder, 'safe'):
            while db.q('select cursor from tenant_jobs')[0]['cursor']!='501': time.sleep(.01)
            os.kill(os.getpid(), 9)
    return start
m = mgr(tasks={'rows':rows}, handoff=0)
'''
def test_cursor_survives_kill(t):
    "kill -9: the next process goes on where the cursor was last written, and keeps the log"
    run_py(t, KILLED+"m.submit('r', rows, n=1000); time.sleep(30)", rc=-9)
    m = t.look()
    job, = m.list_jobs()
    assert (job.status,job.cursor)==('running','501')
    t.go('safe')
    with process(t, KILLED+'m.run()'):
        j = done(m, job.id)
    assert (j.result,j.retry_count,json.loads(j.progress)['done'])==('501', 1, 1000)
    assert [o.split(' ', 1)[1] for o in j.log.splitlines()]==['from 0','from 501']
    assert [int(o[2]) for o in t.log('row')]==list(range(1000))

@pytest.mark.on_sqlite('locks the file')
def test_notes_wait_for_a_locked_file(t):
    "What could not be written waits for the lock, and nothing of it is lost"
    go,said = threading.Event(),threading.Event()
    def f(job:JobContext):
        go.wait(20); job.progress(1); job.log('one'); job.cursor = 1; said.set()
    m,other = t.mgr(handoff=0),t.db()
    id,_ = m.submit('n', f)
    until(lambda: m.get_job(id).status=='running')
    other.conn.execute('begin immediate')
    go.set(); said.wait(20)
    until(lambda: m._lane.pauses)
    other.conn.execute('rollback')
    j = done(m, id)
    assert json.loads(j.progress)['done']==1 and j.log.endswith(' one') and j.cursor=='1'

@pytest.mark.on_sqlite('writes SQL of its own')
def test_lost_claim(t):
    "An attempt whose job was taken over changes nothing more; check() tells it, and a catch-all does not hide that"
    go,got = threading.Event(),[]
    def f(job:JobContext):
        job.log('mine')
        go.wait(20)
        job.progress(99); job.cursor = 'mine'
        until(lambda: job.cancelled)
        try:
            try: job.check()
            except Exception: got.append('hidden')
        except LostClaim as e: got.append(e); raise
    m = t.mgr(handoff=0)
    id,_ = m.submit('l', f)
    until(lambda: m.get_job(id).log)
    m.db.q("update tenant_jobs set fence=fence+1, owner='other'")      # as another process would claim it
    go.set()
    until(lambda: got and not m._lane.hand)
    j = m.get_job(id)
    assert isinstance(got[0], LostClaim) and (j.status,j.owner,j.progress,j.cursor)==('running','other',None,None)

def test_told_to_end(t):
    "check() and `cancelled` follow what the attempt is told"
    go,got = threading.Event(),[]
    def f(job:JobContext):
        got.append(job.cancelled); go.wait(20)
        while not job.cancelled: job.check()
        job.check()
    m = t.mgr(handoff=0)
    id,_ = m.submit('c', f)
    until(lambda: got)
    a, = m._lane.hand.values()
    a.stop = 'cancelled'
    go.set()
    until(lambda: m.get_job(id).error_log)
    assert got==[False] and 'Cancelled' in m.get_job(id).error_log

@pytest.mark.parametrize('call,error', [
    (lambda j: j.progress('1'), TypeError), (lambda j: j.progress(True), TypeError), (lambda j: j.progress(-1), ValueError),
    (lambda j: j.progress(float('nan')), ValueError), (lambda j: j.progress(1, float('inf')), ValueError), (lambda j: j.progress(1, 2, 3), TypeError),
    (lambda j: j.log(b'x'), TypeError), (lambda j: setattr(j, 'cursor', object()), TypeError), (lambda j: setattr(j, 'cursor', float('nan')), TypeError)])
def test_bad_notes(t, call, error):
    "A wrong value is an error there and then, and nothing of it is stored"
    def f(job:JobContext):
        with pytest.raises(error): call(job)
    m = t.mgr(worker=False)
    id,bg = m.submit('b', f)
    bg.func(*bg.args)
    j = m.get_job(id)
    assert (j.status,j.progress,j.log,j.cursor)==('completed',None,None,None)

def test_odd_text(t):
    "Half a surrogate pair, NUL and a megabyte: the log takes them all and keeps its size"
    def f(job:JobContext):
        job.log('a\ud800b\0c'); job.progress(1, message='\ud800'*1000)
        for i in range(40): job.log('é'*10**6)
    m = t.mgr(worker=False)
    id,bg = m.submit('o', f)
    bg.func(*bg.args)
    j = m.get_job(id)
    assert j.status=='completed' and len(j.log.encode())<=2**16 and 'left out' in j.log

def test_log_from_threads(t):
    "Threads of one job may log at the same time"
    async def f(job:JobContext):
        await asyncio.gather(*[asyncio.to_thread(lambda k=k: [job.log(f'{k}.{i}') for i in range(100)]) for k in range(8)])
    m = t.mgr(handoff=0)
    id,_ = m.submit('l', f)
    got = [o.split(' ')[1] for o in done(m, id).log.splitlines()]
    assert sorted(got)==sorted(f'{k}.{i}' for k in range(8) for i in range(100))

# --- steps

def steps(m, id): return [dict(name=n, result=r) for n,r in m._lane.store.read('select name,result from tenant_job_steps where job=? order by at', (id,))]

class Clocked:
    "A manager whose time is set by hand"
    def __init__(self, t, **kw): self.now = [1e9]; self.m = t.mgr(worker=False, clock=lambda: self.now[0], **kw)
    def run(self, n=1):
        for i in range(n): self.now[0] += 100; self.m.run_due()

def test_step_runs_once(t):
    "A retry gets what the step gave and does not run it again; completed, the rows go"
    c,ran = Clocked(t),[]
    def f(job:JobContext):
        a = job.step('one', lambda: (ran.append('one'), 7)[1])
        if job.attempt==1: raise ValueError('between')
        b = job.step('two', lambda x: (ran.append('two'), (x,))[1], a)
        if job.attempt==2: raise ValueError('after')
        return [a,b]
    id,_ = c.m.submit('s', f)
    c.run(); assert [o['name'] for o in steps(c.m, id)]==['one']
    c.run(); assert [o['result'] for o in steps(c.m, id)]==['7','[7]']
    c.run()
    j = c.m.get_job(id)
    assert (j.status,j.result,ran,list(steps(c.m, id)))==('completed','[7,[7]]',['one','two'],[])

def test_steps_of_a_failed_job(t):
    "They are kept: a retry by hand goes on after the last of them"
    c,ran,ok = Clocked(t),[],[]
    def f(job:JobContext):
        job.step('one', ran.append, 1)
        if not ok: raise ValueError
    id,_ = c.m.submit('s', f, max_retries=1)
    c.run(); assert c.m.get_job(id).status=='failed' and len(steps(c.m, id))==1
    ok.append(1)
    c.m._lane.store.retry_failed(c.m._lane.now()); c.m._lane.known.held[id] = c.m._lane.known.of(f, 'x')[0]
    c.run()
    assert c.m.get_job(id).status=='completed' and ran==[1] and not steps(c.m, id)

@pytest.mark.parametrize('worker', [True, False])
def test_async_steps(t, worker):
    "Async and sync functions, many at once, in an async task"
    ran = []
    async def get(i): await asyncio.sleep(0); ran.append(i); return i
    async def f(job:JobContext):
        got = await asyncio.gather(*[job.astep(f'get-{i}', get, i) for i in range(20)], job.astep('plain', lambda: 'p'))
        if job.attempt==1: raise ValueError
        return got
    m = t.mgr(worker=worker, handoff=0)
    id,bg = m.submit('s', f)
    for i in range(0 if worker else 2): bg.func(*bg.args)
    assert json.loads(done(m, id).result)==[*range(20),'p'] and sorted(ran)==list(range(20))

STEPS = '''
from fh_saas.running.context import JobContext
def die(job, at):
    if at==where and not is_open(folder, 'safe'): os.kill(os.getpid(), 9)
def f(job:JobContext):
    def one(): say(folder, 'one'); die(job, 'in'); return 'first'
    die(job, 'before')
    a = job.step('one', one)
    die(job, 'after')
    b = job.step('two', lambda: (say(folder, 'two'), 'second')[1])
    die(job, 'end')
    return [a,b]
where = sys.argv[3]
m = mgr(tasks={'f':f}, handoff=0)
'''
@pytest.mark.parametrize('where,one,two', [('before',1,1), ('in',2,1), ('after',1,1), ('end',1,1)])
def test_kill_among_steps(t, where, one, two):
    "kill -9 at each place: a step that was kept is not run again, one that was cut short is"
    run_py(t, STEPS+"m.submit('f', f); time.sleep(30)", where, rc=-9)
    t.go('safe')
    job, = t.look().list_jobs()
    with process(t, STEPS+'m.run()', where): j = done(t.look(), job.id)
    assert (j.result,j.retry_count,len(t.log('one')),len(t.log('two')))==('["first","second"]', 1, one, two)

@pytest.mark.on_sqlite('writes SQL of its own')
def test_step_of_a_lost_attempt(t):
    "An attempt that was overtaken keeps nothing, stops at its next step, and changes nothing of the job"
    c,got = Clocked(t),[]
    def f(job:JobContext):
        job.step('one', lambda: 1)
        c.m.db.q("update tenant_jobs set fence=fence+1, owner='other'")
        try: job.step('two', got.append, 'ran')
        except Exception: got.append('hidden')
    id,_ = c.m.submit('s', f)
    c.run()
    j = c.m.get_job(id)
    assert (got,[o['name'] for o in steps(c.m, id)],j.status,j.owner,j.error_log)==(['ran'],['one'],'running','other',None)

@pytest.mark.parametrize('call,error,says', [
    (lambda j: (j.step('a', int), j.step('a', int)), ValueError, "step 'a' was in this attempt already; number them"),
    (lambda j: j.step('', int), ValueError, 'name of a step'), (lambda j: j.step(1, int), TypeError, 'name of a step'),
    (lambda j: j.step('o', object), TypeError, "step 'o': what it returned cannot be kept"),
    (lambda j: j.step('c', asyncio.sleep), TypeError, 'astep')])
def test_bad_steps(t, call, error, says):
    "Bugs are named, and fail the attempt"
    c = Clocked(t)
    def f(job:JobContext): call(job)
    id,_ = c.m.submit('s', f)
    c.run()
    assert error.__name__ in (e := c.m.get_job(id).error_log) and says in e

def test_failed_step(t):
    "What a step raises comes out as it is, and the step may be tried again under its name"
    c,n = Clocked(t),[]
    def once(): n.append(1); return len(n) if len(n)>2 else 1/0
    def f(job:JobContext):
        for i in range(2):
            with pytest.raises(ZeroDivisionError): job.step('s', once)
        return job.step('s', once)
    id,_ = c.m.submit('s', f)
    c.run()
    assert c.m.get_job(id).result=='3'

@pytest.mark.on_sqlite("counts the file's changes")
def test_no_trace_without_steps(t):
    "A job that uses nothing of this is changed as often as before: by its claim, its end and the tenant's meter"
    m = t.mgr(worker=False)
    def f(): pass
    def n():
        ids = m.submit_many('p', f, [{}]*10)
        w = writes(m); m.run_due()
        return writes(m)-w
    n()
    assert n()==30 and not m._lane.notes

# --- transaction: promise P4

def bookings(m): return [o['n'] for o in m.db.q('select n from bookings order by n')]
def with_table(m): ddl(m.db, 'create table if not exists bookings(id integer primary key, n)'); return m

def test_transaction(t):
    "The rows and the completion are one commit; before its end nobody sees either"
    m,seen = with_table(t.mgr(worker=False)),[]
    def f(n, job:JobContext):
        with job.transaction() as db:
            db.t.bookings.insert(n=n)
            job.progress(1, 1); job.log('booked')
            job.finish([n])
            seen.append((bookings(m),m.get_job(job.id).status))
        seen.append((bookings(m),m.get_job(job.id).status))
        job.progress(9); job.log('late'); job.cursor = 9
        return 'ignored'
    id,bg = m.submit('b', f, n=7)
    bg.func(*bg.args)
    j = m.get_job(id)
    assert seen==[([],'running'),([7],'completed')] and (j.status,j.result,j.cursor)==('completed','[7]',None)
    assert j.started_at<=j.completed_at and j.log.endswith('booked') and json.loads(j.progress)['done']==1
    assert [o['attempts'] for o in m._lane.store.usage()]==[1] and not m._lane.hand

@pytest.mark.parametrize('kind', ['sync','async'])
def test_transaction_on_the_worker(t, kind):
    "Fifty at once, by threads and by the loop"
    m = with_table(t.mgr(handoff=0))
    def f(n, job:JobContext):
        with job.transaction() as db: db.t.bookings.insert(n=n); job.finish(n)
    async def af(n, job:JobContext):
        async with job.transaction() as db: db.t.bookings.insert(n=n); job.finish(n)
    ids = m.submit_many('b', f if kind=='sync' else af, [dict(n=i) for i in range(50)])
    for i,id in enumerate(ids): assert done(m, id).result==str(i)
    assert bookings(m)==list(range(50))
    until(lambda: not m._lane.hand)

def test_exception_in_the_block(t):
    "Rolled back, a failed attempt, and the retry makes the rows once"
    c = Clocked(t); with_table(c.m)
    def child(): pass
    def f(job:JobContext):
        with job.transaction() as db:
            db.t.bookings.insert(n=job.attempt)
            c.m.submit('child', child)
            if job.attempt==1: raise ValueError('in the block')
    id,_ = c.m.submit('b', f)
    c.run()
    j = c.m.get_job(id)
    assert (j.status,j.retry_count)==('pending',1) and 'in the block' in j.error_log and not bookings(c.m) and not c.m.list_jobs('child')
    c.run()
    assert (c.m.get_job(id).status,bookings(c.m),len(c.m.list_jobs('child')))==('completed',[2],1)

@pytest.mark.parametrize('how', ['raises','exits','snoozes','returns'])
def test_after_the_block(t, how, caplog):
    "What a task does after it changes nothing, and is said in the log"
    from fh_saas.retry import Snooze
    c = Clocked(t); with_table(c.m)
    def f(job:JobContext):
        with job.transaction() as db: db.t.bookings.insert(n=1)
        if how=='raises': raise ValueError('late')
        if how=='exits': raise SystemExit
        if how=='snoozes': raise Snooze(5)
        return 5
    id,_ = c.m.submit('b', f)
    c.run(3)
    j = c.m.get_job(id)
    assert (j.status,j.retry_count,j.error_log,j.result,bookings(c.m))==('completed',0,None,None,[1]) and not c.m._lane.hand
    if how!='snoozes': assert 'transaction()' in caplog.text

TX = '''
from fh_saas.running.context import JobContext
ddl(db, 'create table if not exists bookings(id integer primary key, n)')
def die(at):
    if at==where and not is_open(folder, 'safe'): os.kill(os.getpid(), 9)
def child(): say(folder, 'child')
def body(db, job):
    say(folder, 'body')
    db.t.bookings.insert(n=1); m.submit('child', child); job.finish('ok')
def f(job:JobContext):
    die('before')
    with job.transaction() as db: body(db, job); die('in')
    die('after')
async def af(job:JobContext):
    die('before')
    async with job.transaction() as db: body(db, job); die('in')
    die('after')
where = sys.argv[3]
if where=='commit':       # killed by the commit itself, when it is durable and nobody knows
    from fh_saas.running.databases import lane_of
    store = type(lane_of(db).store)
    commit = store.commit
    def then_die(self, conn): commit(self, conn); die('commit')
    store.commit = then_die
m = mgr(tasks={'f':f, 'af':af, 'child':child}, handoff=0)
'''
@pytest.mark.parametrize('task', ['f','af'])
@pytest.mark.parametrize('where,bodies,tries', [('before',1,1), ('in',2,1), ('commit',1,0), ('after',1,0)])
def test_exactly_once_over_kill(t, task, where, bodies, tries):
    "P4: kill -9 before, in and after the block: the rows, the child and the completion happen once"
    run_py(t, TX+f"m.submit('b', {task}); time.sleep(30)", where, rc=-9)
    t.go('safe')
    m = t.look()
    id = m.list_jobs('b')[0].id
    if tries==0: assert m.get_job(id).status=='completed'
    with process(t, TX+'m.run()', where):
        j = done(m, id)
        until(lambda: m.list_jobs('child', 'completed'))
    assert (j.result,j.retry_count,bookings(m),len(m.list_jobs('child')),len(t.log('body')))==('"ok"',tries,[1],1,bodies)

RACE = '''
from fh_saas.running.context import JobContext
def f(n, job:JobContext):
    with job.transaction() as db: db.t.bookings.insert(n=n); job.finish(n)
m = mgr(tasks={'f':f}, handoff=0)
'''
def test_exactly_once_among_processes(t):
    "P4: processes that are killed again and again while they work off two hundred jobs make each booking once"
    m = with_table(t.look())
    with process(t, RACE+"m.submit_many('b', f, [dict(n=i) for i in range(200)], max_retries=50); m.run()"):
        until(lambda: bookings(m))
        for k in range(4):
            with process(t, RACE+'m.run()'):
                n = len(bookings(m))
                until(lambda: len(bookings(m))>=min(n+20, 200))
    with process(t, RACE+'m.run()'): until(lambda: len(m.list_jobs(status='completed', limit=1000))==200, 60)      # one that crashed more than once waits longer each time
    assert bookings(m)==list(range(200))

@pytest.mark.on_sqlite('writes SQL of its own')
def test_transaction_of_a_lost_attempt(t):
    "P3: if another took the job over before the block, its end rolls back"
    c = Clocked(t); with_table(c.m)
    def f(job:JobContext):
        c.m.db.q("update tenant_jobs set fence=fence+1, owner='other'")
        with job.transaction() as db: db.t.bookings.insert(n=1)
    id,_ = c.m.submit('b', f)
    c.run()
    assert (c.m.get_job(id).status,c.m.get_job(id).owner,bookings(c.m))==('running','other',[])

def test_cancelled_in_the_block(t):
    "An async task that is cancelled inside the block leaves nothing; one that is cancelled while it commits is told after the commit"
    m = with_table(t.mgr(handoff=0))
    async def f(job:JobContext):
        async with job.transaction() as db:
            db.t.bookings.insert(n=1)
            asyncio.current_task().cancel()
            await asyncio.sleep(5)
    async def g(job:JobContext):
        async with job.transaction() as db:
            db.t.bookings.insert(n=2)
            asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
    a,b = m.submit('b', f, max_retries=1)[0],m.submit('b', g, max_retries=1)[0]
    assert 'CancelledError' in done(m, a, status='failed').error_log and done(m, b).error_log is None
    assert bookings(m)==[2]

def test_no_place_for_a_transaction(t):
    "In :memory:, inside a step, inside another block, and after one; the error says what to do"
    from fastlite import database
    c = Clocked(t); with_table(c.m)
    def inside_step(job): job.step('s', lambda: job.transaction())
    def nested(job):
        with job.transaction(): job.transaction()
    def step_in(job):
        with job.transaction(): job.step('s', int)
    def managers(job):
        with c.m.transaction(): job.transaction()
    def twice(job):
        for i in range(2):
            try:
                with job.transaction(): pass
            except RuntimeError as e: assert 'already' in str(e); raise
    for f,says in ((inside_step,'inside a step'), (nested,'inside a transaction()'), (step_in,'inside a transaction()'), (managers,'inside a transaction()')):
        def task(job:JobContext, f=f): f(job)
        id,_ = c.m.submit('n', task, max_retries=1)
        c.run()
        assert says in c.m.get_job(id).error_log, f
    def task2(job:JobContext): twice(job)
    id,_ = c.m.submit('n', task2)
    c.run()
    assert c.m.get_job(id).status=='completed'
    m = BackgroundTaskManager(database(':memory:'), worker=False)
    def task3(job:JobContext): job.transaction().__enter__()
    id,bg = m.submit('n', task3, max_retries=1)
    bg.func(*bg.args)
    assert ':memory:' in m.get_job(id).error_log
    m.close()

def opens(job:JobContext):
    with job.transaction(): pass

@pytest.mark.parametrize('own', [True, False])
def test_transaction_that_cannot_begin_leaves_no_lock(t, own, monkeypatch):
    "P8: its connection is there and holds the lock, and then the app's `Database` cannot be made: the next one need not wait"
    m = t.look(busy_s=.5, tasks=[opens])
    def bad(self, conn): raise RuntimeError('no Database')
    monkeypatch.setattr(type(m._lane.store), 'as_database', bad)
    if own:
        m.submit('a', opens, max_retries=1)
        m.run_due()
        assert 'no Database' in m.list_jobs()[0].error_log
    else:
        with pytest.raises(RuntimeError, match='no Database'):
            with m.transaction(): pass
    monkeypatch.undo()
    with m.transaction(): m.submit('b', opens)
    assert m.run_due()==1 and m.list_jobs('b')[0].status=='completed'

@pytest.mark.on_sqlite('locks the file')
def test_transaction_meets_a_lock(t):
    "A file that stays locked is a failed attempt, not a lost job"
    c = Clocked(t); with_table(c.m)
    c.m._lane.store.wait_s = .05
    other = t.db()
    def f(job:JobContext):
        if job.attempt==1: other.conn.execute('begin immediate')
        try:
            with job.transaction() as db: db.t.bookings.insert(n=1)
        finally:
            if job.attempt==1: other.conn.execute('rollback')
    id,_ = c.m.submit('b', f)
    c.run()
    assert 'StoreBusy' in c.m.get_job(id).error_log
    c.run()
    assert (c.m.get_job(id).status,bookings(c.m))==('completed',[1])

# --- jobs of jobs

def kid(n): return n
def kids_of(m): return sorted(json.loads(j.payload)['n'] for j in m.list_jobs('kid'))

@pytest.mark.parametrize('how', ['job','manager','many','async'])
def test_children_of_a_step(t, how):
    "They exist only once the step is kept, and a retry does not submit them again"
    c,seen = Clocked(t),[]
    def f(job:JobContext):
        def fan_out():
            if how=='many': ids = c.m.submit_many('kid', kid, [dict(n=i) for i in range(3)])
            else: ids = [(job.submit('kid', kid, n=i) if how=='job' else c.m.submit('kid', kid, n=i)[0]) for i in range(3)]
            seen.append(kids_of(c.m))
            return ids
        ids = job.step('fan out', fan_out)
        seen.append(kids_of(c.m))
        if job.attempt==1: raise ValueError
        return ids
    async def af(job:JobContext):
        async def fan_out():
            ids = [await job.asubmit('kid', kid, n=i) for i in range(3)]
            seen.append(kids_of(c.m))
            return ids
        ids = await job.astep('fan out', fan_out)
        seen.append(kids_of(c.m))
        if job.attempt==1: raise ValueError
        return ids
    id,_ = c.m.submit('parent', af if how=='async' else f)
    c.run(2)
    assert seen==[[],[0,1,2],[0,1,2]]
    assert sorted(json.loads(c.m.get_job(id).result))==sorted(j.id for j in c.m.list_jobs('kid', 'completed')) and kids_of(c.m)==[0,1,2]

def test_children_of_a_failed_step(t):
    "A step that fails has submitted nothing; tried again it submits once. Lambdas work, and are not kept for nothing"
    c,n = Clocked(t),[]
    def f(job:JobContext):
        def fan_out():
            n.append(job.submit('kid', lambda n: n, n=1))
            if len(n)==1: raise ValueError('late')
        with pytest.raises(ValueError, match='late'): job.step('s', fan_out)
        assert not kids_of(c.m) and n[0] not in c.m._lane.known.held
        job.step('s', fan_out)
    id,_ = c.m.submit('parent', f)
    c.run()
    assert c.m.get_job(id).status=='completed' and [j.id for j in c.m.list_jobs('kid','completed')]==n[1:]

def test_plain_children(t):
    "Outside of a step a child is a commit of its own, due at once: nobody has a response to send"
    m = t.mgr(handoff=5)
    def f(job:JobContext): return [job.submit('kid', kid, n=1), m.submit('kid', kid, n=2)[0], job.submit('kid', kid, max_retries=7, n=3)]
    id = m.submit_many('parent', f, [{}])[0]
    ids = json.loads(done(m, id, 4).result)
    assert [done(m, o, 4).max_retries for o in ids]==[3,3,7]

def test_bad_children(t):
    "As bad as anywhere: an error, and nothing stored"
    c = Clocked(t)
    def f(job:JobContext):
        def fan_out():
            job.submit('kid', kid, n=1)
            job.submit('kid', kid, m=1)
        job.step('s', fan_out)
    id,_ = c.m.submit('parent', f)
    c.run()
    assert "no parameter 'm'" in c.m.get_job(id).error_log and not kids_of(c.m)

FAN = '''
from fh_saas.running.context import JobContext
def kid(n): say(folder, 'kid', n)
def f(job:JobContext):
    def fan_out():
        for i in range(20): job.submit('kid', kid, n=i)
        die('in')
    die('before')
    job.step('fan out', fan_out)
    die('after')
def die(at):
    if at==where and not is_open(folder, 'safe'): os.kill(os.getpid(), 9)
where = sys.argv[3]
m = mgr(tasks={'f':f, 'kid':kid}, handoff=0)
'''
@pytest.mark.parametrize('where', ['before','in','after'])
def test_kill_while_fanning_out(t, where):
    "kill -9 before, in and after the step: each child exists once"
    run_py(t, FAN+"m.submit('parent', f); time.sleep(30)", where, rc=-9)
    t.go('safe')
    m = t.look()
    with process(t, FAN+'m.run()', where):
        done(m, m.list_jobs('parent')[0].id)
        until(lambda: len(m.list_jobs('kid', 'completed'))==20)
    assert kids_of(m)==list(range(20))

def grand(job:JobContext): return [job.tenant, job.submit('kid', kid, n=1)]
def test_children_without_a_manager(tmp_path, t):
    "Under Tenants, and where the manager is gone"
    import gc
    ts = Tenants(tmp_path/'ts', tasks=[grand,kid], handoff=0)
    try:
        a = ts.create('acme')
        name,id = json.loads(done(a.jobs, a.jobs.submit('parent', grand)[0]).result)
        assert name=='acme' and done(a.jobs, id).job_type=='kid'
    finally: ts.close()
    m = t.mgr(tasks=[grand,kid])
    lane,go = m._lane,threading.Event()
    def late(job:JobContext): go.wait(20); return job.submit('kid', kid, n=1)
    id, = m.submit_many('parent', late, [{}])
    until(lambda: lane.byhand or lane.hand)
    t.managers.clear(); del m; gc.collect()
    assert not list(lane.users)
    go.set()
    until(lambda: lane.store.get(id)['status']=='completed')
    until(lambda: lane.store.get(json.loads(lane.store.get(id)['result']))['status']=='completed', 10)
    t.mgr()

# --- with flows

from fh_saas import flow

def book(job:JobContext):
    with job.transaction() as db: db.t.bookings.insert(n=1); job.finish(1)

@pytest.mark.parametrize('worker', [True, False])
def test_transaction_frees_children(t, worker):
    "Who waits for a job that its transaction completes is released by that commit"
    m = with_table(t.mgr(worker=worker, handoff=0))
    f = flow.chain(m, flow.call('a', book), flow.call('kid', kid, n=2))
    if not worker: m.run_due()
    assert done(m, f.last).result=='2' and bookings(m)==[1]

def test_released_with_the_commit(t):
    "kill -9 after the commit, before the attempt has ended: the child is released already"
    run_py(t, TX+'''
from fh_saas import flow
print(flow.chain(m, flow.call('b', f), flow.call('late', child)).last)
time.sleep(30)''', 'commit', rc=-9)
    m = t.look()
    late, = m.list_jobs('late')
    assert m.list_jobs('b')[0].status=='completed' and late.ready==1 and not m.db.q('select * from tenant_job_parents')

def test_a_flow_from_a_step(t):
    "A chain that a step submits commits with the step, in order"
    c,ran = Clocked(t),[]
    def note(n): ran.append(n)
    def f(job:JobContext):
        job.step('flow', lambda: flow.chain(job.manager, flow.call('kid', note, n=1), flow.call('kid', note, n=2)).ids)
        if job.attempt==1: raise ValueError
    id,_ = c.m.submit('parent', f)
    c.run(2)
    assert (c.m.get_job(id).status,ran,len(c.m.list_jobs('kid')))==('completed',[1,2],2)

def test_unique_children(t):
    "In a step and in a transaction a key counts once: in the block itself, among jobs that wait, and again when its time is over"
    c,got = Clocked(t),[]; with_table(c.m)
    def sub(job, **kw): return job.manager.options(unique='k', **kw).submit('kid', kid, n=1)[0]
    def f(job:JobContext):
        got.extend(job.step('s', lambda: [sub(job), sub(job)]))
        with job.transaction(): got.append(sub(job)); job.finish(0)
    c.m.submit('parent', f); c.run()
    assert len(set(got))==1 and len(c.m.list_jobs('kid'))==1 and kids_of(c.m)==[1]
    times = []
    def g(job:JobContext): times.append(job.step('s', lambda: sub(job, unique_for=50)))
    for i in range(3): c.m.submit('parent', g); c.run()
    assert len(set(times))==3 and len(c.m.list_jobs('kid'))==4

@pytest.mark.parametrize('how', [{}, dict(unique_for='pending'), dict(unique_for=500)], ids=str)
@pytest.mark.parametrize('keys', [None, [new_key()]], ids=['plain','sealed'])
def test_a_unique_key_taken_during_a_step(t, how, keys):
    "Somebody takes the key between a `submit` in a step and the step's commit: what the step gives names that job, and the other id is of one that says so"
    c,early,first = Clocked(t, keys=keys),[],[]
    def sub(m, n): return m.options(unique='k', **how).submit('kid', kid, n=n)[0]
    def kids(job):
        early.append(sub(job.manager, 1))
        after = job.manager.options(after=[early[0]]).submit('after', kid, n=2)[0]
        o = threading.Thread(target=lambda: first.append(sub(c.m, 3))); o.start(); o.join(20)
        return dict(kid=early[0], after=[after])
    def f(job:JobContext):
        got = job.step('s', lambda: kids(job))
        if job.attempt==1: raise ValueError('again')
        return got
    id,_ = c.m.submit('parent', f, max_retries=2)
    c.run()
    (a,),(b,) = early,first
    j,late = c.m.get_job(a),c.m.list_jobs('after')[0]
    assert (j.status,j.error_log,j.started_at)==('cancelled',f'Not run: job {b} has its unique key',None) and json.loads(late.parents)==[b]
    c.run(3)
    assert json.loads(c.m.get_job(id).result)==dict(kid=b, after=[late.id])
    assert (c.m.get_job(a).status,c.m.get_job(b).status,c.m.get_job(late.id).status)==('cancelled','completed','completed') and kids_of(c.m)==[1,3]
    assert c.m.wait(a, 1).status=='cancelled' and sub(c.m, 4)!=a

def test_many_unique_children(t):
    "Two thousand keyed children of one step"
    c = Clocked(t)
    def f(job:JobContext):
        return job.step('s', lambda: len({job.manager.options(unique=f'k{i%1500}').submit('kid', kid, n=i)[0] for i in range(2000)}))
    id,_ = c.m.submit('parent', f)
    c.run()
    assert c.m.get_job(id).result=='1500' and len(c.m.list_jobs('kid', limit=5000))==1500

# --- ends from outside

def late(m): return next(iter(m._lane.hand.values())).late

@pytest.mark.on_sqlite('on a server the block holds no lock, see the next')
def test_timeout_inside_the_block(t):
    "The time is up while the block holds the lock: the commit comes first, and it stands"
    m = with_table(t.mgr(handoff=0))
    def f(job:JobContext):
        with job.transaction() as db:
            db.t.bookings.insert(n=1)
            until(lambda: late(m))
            job.finish('in time')
    id,_ = m.options(timeout=.05).submit('b', f, max_retries=1)
    j = done(m, id)
    until(lambda: not m._lane.hand)
    assert (j.result,bookings(m),m.get_job(id).status)==('"in time"',[1],'completed')

def test_timeout_inside_the_block_on_a_server(t):
    "There the block holds nothing up: the failure is written first, and nothing of the block remains"
    if not on_server(t): pytest.skip('see the one before')
    m,ends = with_table(t.mgr(handoff=0)),[]
    def f(job:JobContext):
        try:
            with job.transaction() as db:
                db.t.bookings.insert(n=1)
                until(lambda: m.get_job(job.id).status=='failed')
        except BaseException as e: ends.append(type(e).__name__); raise
    id,_ = m.options(timeout=.05).submit('b', f, max_retries=1)
    j = done(m, id, status='failed')
    until(lambda: ends)
    assert (ends,bookings(m),m.get_job(id))==(['LostClaim'],[],j)

def test_timeout_before_the_block(t):
    "The time is up before the block begins: it does not begin, and the failure stands"
    m,got = with_table(t.mgr(handoff=0)),[]
    def f(job:JobContext):
        until(lambda: job.cancelled)
        for g in (job.transaction, lambda: job.step('s', int), job.check):
            try: g()
            except Cancelled as e: got.append(str(e))
    id,_ = m.options(timeout=.05).submit('b', f, max_retries=1)
    j = done(m, id, status='failed')
    until(lambda: len(got)==3)
    assert 'Timed out' in j.error_log and all('timeout' in o for o in got) and bookings(m)==[]

def test_one_locked_file_holds_up_no_other(tenants):
    "P8: twenty async jobs that wait for a locked file leave the threads to others: steps and transactions of a neighbour go on"
    a,b = tenants('a'),tenants('b')
    ma,mb = with_table(a.mgr(handoff=0)),with_table(b.mgr(handoff=0))
    ready = []
    async def stuck(i, job:JobContext):
        ready.append(i)
        while len(ready)<20 or not locked: await asyncio.sleep(.005)
        if i%2: await job.astep('s', int)
        else:
            async with job.transaction(): pass
    async def free(job:JobContext):
        n = await job.astep('s', lambda: 7)
        async with job.transaction() as db: db.t.bookings.insert(n=n); job.finish(n)
    locked,other = [],a.db()
    ids = ma.submit_many('s', stuck, [dict(i=i) for i in range(20)])
    until(lambda: len(ready)==20)
    other.conn.execute('begin immediate'); locked.append(1)
    for i in range(5): assert done(mb, mb.submit('f', free)[0], 4).result=='7'
    other.conn.execute('rollback')
    for i in ids: done(ma, i)
