"On an event loop: async tasks, asubmit, transactions that span awaits, and a loop that is never held up"
import asyncio, contextvars, functools, json, threading, time

import pytest, work
from fh_saas.job_task import JobTask
from fh_saas.utils_bgtsk import StoreBusy
from util import all_done, done, process, said, until

var = contextvars.ContextVar('var', default='unset')
async def aadd(a, b=1): await asyncio.sleep(0); return a+b
def add(a, b=1): return a+b

class Pulse:
    "The longest time the loop stood still"
    async def __aenter__(self):
        self.worst,self.on = 0.,True
        self.task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self
    async def _beat(self):
        while self.on:
            t = time.monotonic(); await asyncio.sleep(.002)
            self.worst = max(self.worst, time.monotonic()-t-.002)
    async def __aexit__(self, *a): self.on = False; await self.task

LOCK = '''
db.conn.execute('begin immediate'); out('locked'); sys.stdin.readline(); db.conn.execute('commit'); out('free'); sys.stdin.readline()'''

def free(p): p.stdin.write('\n'); p.stdin.flush()

# --- tasks

def test_async_task_both_ways(t):
    "An async task runs on the worker's own loop, by hand on one of its own; neither is the caller's"
    loops = []
    async def who(): loops.append((asyncio.get_running_loop(), threading.get_ident())); return 1
    m = t.mgr()
    async def main():
        id,bg = await m.asubmit('w', who)
        await bg()
        id2,bg2 = await m.asubmit('w', who)
        bg2.func(*bg2.args, **bg2.kwargs)
        return id,id2,asyncio.get_running_loop()
    *ids,mine = asyncio.run(main())
    assert [done(m, o).result for o in ids]==['1','1']
    assert mine not in [o for o,_ in loops] and threading.get_ident() not in [o for _,o in loops]

@pytest.mark.parametrize('make', [lambda: functools.partial(aadd, b=2), lambda: functools.partial(functools.partial(aadd), b=2), lambda: (lambda a: aadd(a, 2)), lambda: Caller(), lambda: Caller().go])
def test_hidden_coroutine_functions(t, make):
    "Partials, lambdas, callable objects and methods that give a coroutine are awaited"
    m,f = t.mgr(),make()
    id,bg = m.submit('h', f, a=1)
    bg.func(*bg.args, **bg.kwargs)
    id2,bg2 = m.submit('h', f, a=1)
    asyncio.run(bg2())
    assert [done(m, o).result for o in (id,id2)]==['3','3']

class Caller:
    async def __call__(self, a): return a+2
    async def go(self, a): return a+2

def test_many_async_jobs_overlap(t):
    "Section 5: async jobs run side by side, async_jobs of them at most"
    now,most = [0],[0]
    async def both(n):
        now[0] += 1; most[0] = max(most[0], now[0])
        end = time.monotonic()+10
        while most[0]<n and time.monotonic()<end: await asyncio.sleep(.002)
        await asyncio.sleep(.01)
        now[0] -= 1
    m = t.mgr(async_jobs=20)
    m.submit_many('b', both, [dict(n=20)]*60)
    all_done(m, 60)
    assert most==[20]

def test_a_blocking_async_task_harms_sync_jobs_not(t):
    "An async task that blocks its loop holds up async tasks alone"
    gate = threading.Event()
    async def rude(): gate.wait(10)
    m = t.mgr(handoff=.05)
    id,_ = m.submit('r', rude); asyncio.run(t.mgr(wait_s=0).submit('r', rude)[1]())
    for i in range(3): asyncio.run(m.submit('a', add, a=i)[1]())
    assert len(m.list_jobs('a', 'completed'))==3
    gate.set()
    all_done(m, 5)

def test_contextvars_do_not_leak(t):
    "Context variables neither enter a task from the submitter nor go from one job to the next"
    def sync(): v = var.get(); var.set('sync'); return v
    async def asy(): v = var.get(); var.set('asy'); return v
    var.set('mine')
    m = t.mgr()
    for f in (sync, asy)*10: asyncio.run(m.submit('v', f)[1]())
    assert {j.result for j in m.list_jobs('v', 'completed')}=={'"unset"'}
    id,bg = m.submit('v', sync); bg.func(*bg.args, **bg.kwargs)
    assert m.get_job(id).result=='"unset"' and var.get()=='mine'

def test_await_outlasts_a_claim_given_back(t):
    "Section 5: the BackgroundTask awaits the end of the attempt; a claim that was given back unbegun is no end"
    gate = threading.Event()
    def sometimes(hold=False):
        if hold: gate.wait(10)
    m = t.mgr(threads=1, wait_s=None)
    m.submit_many('warm', sometimes, [{}]*100)
    all_done(m, 100)
    async def main():
        ids = m.submit_many('s', sometimes, [dict(hold=True), dict(hold=True), {}])   # claimed together, for the task was quick so far
        w = asyncio.create_task(JobTask(m, ids[2])())
        end = time.monotonic()+1
        while (m.get_job(ids[2]).status,m.get_job(ids[2]).fence)!=('pending',1) and time.monotonic()<end: await asyncio.sleep(.005)
        await asyncio.sleep(.02)
        early = w.done()
        gate.set(); await w
        return early,m.get_job(ids[2]).status
    assert asyncio.run(main())==(False,'completed')

# --- cancellation

def test_cancelled_wait(t):
    "P1: cancelling whoever awaits the BackgroundTask does not cancel the job"
    m = t.mgr(wait_s=None)
    async def main(task):
        id,bg = await m.asubmit('g', task, folder=str(t.dir))
        w = asyncio.create_task(bg.__call__())
        n = len(t.log('start'))
        while len(t.log('start'))==n: await asyncio.sleep(.005)
        w.cancel()
        with pytest.raises(asyncio.CancelledError): await w
        return id
    ids = [asyncio.run(main(o)) for o in (work.gated, work.agated)]
    assert {m.get_job(o).status for o in ids}=={'running'}
    t.go()
    for o in ids: assert done(m, o).retry_count==0

def test_cancelled_asubmit(t):
    "P1: a cancelled asubmit either stored its job, which then runs, or stored nothing"
    m = t.mgr(handoff=.05)
    async def main():
        for i in range(30):
            w = asyncio.create_task(m.asubmit('a', add, a=i))
            await asyncio.sleep(0 if i%2 else .0005)
            w.cancel()
            try: await w
            except asyncio.CancelledError: pass
    asyncio.run(main())
    until(lambda: not m.list_jobs(status='pending') and not m.list_jobs(status='running'))
    assert {j.retry_count for j in m.list_jobs()}<={0}

@pytest.mark.parametrize('how', ['raise', 'cancel inner', 'cancel self'])
def test_a_task_that_ends_by_cancellation(t, how):
    "P2: an async task out of which CancelledError comes is a failed attempt, not one that runs again for ever"
    n = [0]
    async def task():
        n[0] += 1
        if how=='raise': raise asyncio.CancelledError('mine')
        if how=='cancel inner':
            inner = asyncio.ensure_future(asyncio.sleep(9)); inner.cancel(); await inner
        else: asyncio.current_task().cancel(); await asyncio.sleep(9)
    m = t.mgr(handoff=0)
    id,bg = m.submit('c', task, max_retries=1)
    try: j = done(m, id, 3, 'failed')
    finally:
        ran = n[0]
        m._lane.closing = True      # or a job that is never charged would go on meanwhile
    assert 'CancelledError' in j.error_log and ran==1

def test_timeouts_and_groups(t):
    "asyncio.timeout and ExceptionGroup in a task are ordinary failures"
    async def late():
        async with asyncio.timeout(.01): await asyncio.sleep(9)
    async def group():
        async with asyncio.TaskGroup() as g: g.create_task(aadd('a', 1))
    m = t.mgr(handoff=0)
    for f,why in ((late,'TimeoutError'),(group,'TypeError')):
        id,_ = m.submit('f', f, max_retries=1)
        assert why in done(m, id, status='failed').error_log

async def aboom(): raise ValueError('boom')

def test_error_log_shows_the_task_alone(t):
    "The stack trace begins in the task: nothing of fh_saas, and no other exception"
    m = t.mgr(handoff=0)
    id,bg = t.look().submit('b', aboom, max_retries=1); bg.func(*bg.args)
    for i in (id, m.submit('b', aboom, max_retries=1)[0]):
        log = done(m, i, status='failed').error_log
        assert 'line' in log and 'aboom' in log and 'During handling' not in log, log

# --- asubmit and friends

def test_asubmit(t):
    "asubmit, aget_job and alist_jobs do what their sync sisters do, errors included"
    m = t.mgr()
    async def main():
        ids = await asyncio.gather(*(m.asubmit('a', (add,aadd)[i%2], a=i) for i in range(100)))
        await asyncio.gather(*(bg() for _,bg in ids))
        assert [json.loads((await m.aget_job(id)).result) for id,_ in ids]==[i+1 for i in range(100)]
        assert len(await m.alist_jobs('a', 'completed', 1000))==100
        for bad in (m.asubmit('', add), m.asubmit('a', 3), m.asubmit('a', add, a=object()), m.aget_job('nope'), m.alist_jobs(status='nope')):
            with pytest.raises((TypeError, ValueError, KeyError)): await bad
    asyncio.run(main())
    assert len(m.list_jobs(limit=1000))==100

@pytest.mark.alone
def test_locked_file_holds_the_loop_briefly(t):
    "Section 5: with the file locked by somebody else, a plain submit on a loop gives up within 0.25 s; asubmit waits, and the loop runs"
    m = t.look(busy_s=5)
    with process(t, LOCK) as p:
        said(p, 'locked')
        async def main():
            began = time.monotonic()
            with pytest.raises(StoreBusy, match=r't\.db.*0\.25 s'): m.submit('a', add, a=1)
            assert .2<time.monotonic()-began<.5
            async with Pulse() as pulse:
                w = asyncio.create_task(m.asubmit('a', add, a=2))
                await asyncio.sleep(.3)
                assert not w.done()
                free(p)
                id,_ = await w
            assert pulse.worst<.1, f'the loop stood still for {pulse.worst:.2f} s'
            return id
        id = asyncio.run(main())
    assert [j.id for j in m.list_jobs()]==[id]

@pytest.mark.alone
def test_slow_file_and_the_awaited_task(t):
    "With the file locked, awaiting the BackgroundTask holds up neither the loop nor more than wait_s"
    m = t.mgr(wait_s=.6)
    id,bg = m.submit('a', add, a=1)
    with process(t, LOCK) as p:
        said(p, 'locked')
        async def main():
            async with Pulse() as pulse:
                began = time.monotonic(); await bg(); took = time.monotonic()-began
                await bg()
            return took,pulse.worst
        took,worst = asyncio.run(main())
        assert took<1.5 and worst<.1, (took, worst)
        free(p)
        assert done(m, id, 2).retry_count==0, 'soon after the lock is gone, not when the grace ends'

# --- transactions

@pytest.fixture
def notes(t):
    t.db().q('create table note(id integer primary key, x text)')
    return lambda: sorted(o['x'] for o in t.dbs[0].q('select x from note'))

def test_async_transaction(t, notes):
    "P5 on a loop: the block commits or vanishes as a whole; submit and asubmit both join it"
    m = t.mgr(handoff=0)
    async def main(undo):
        async with m.transaction() as tx:
            tx.t.note.insert(dict(x=str(undo)))
            m.submit('s', add, a=1)
            await m.asubmit('s', aadd, a=1)
            await asyncio.gather(m.asubmit('s', add, a=1), m.asubmit('s', add, a=1))
            if undo: raise ValueError
    with pytest.raises(ValueError): asyncio.run(main(True))
    assert notes()==[] and m.list_jobs()==[]
    asyncio.run(main(False))
    all_done(m, 4)
    assert notes()==['False']

@pytest.mark.alone
def test_async_transaction_of_one_request_among_others(t, notes):
    "P5: coroutines that run meanwhile do not join the block, and the loop is not held up by it"
    m = t.look()
    async def block(inside, go):
        async with m.transaction() as tx:
            tx.t.note.insert(dict(x='a')); await m.asubmit('tx', add, a=1)
            inside.set(); await go.wait()
            raise ValueError
    async def main():
        inside,go = asyncio.Event(),asyncio.Event()
        b = asyncio.create_task(block(inside, go)); await inside.wait()
        async with Pulse() as pulse:
            p = asyncio.create_task(m.asubmit('plain', add, a=1))
            await asyncio.sleep(.05)
            assert not p.done()
            go.set(); id,_ = await p
            with pytest.raises(ValueError): await b
        assert pulse.worst<.1
        return id
    id = asyncio.run(main())
    assert [j.id for j in m.list_jobs()]==[id] and notes()==[]

def test_async_transaction_cancelled(t, notes):
    "P5: a request cancelled inside its block leaves nothing, and no lock"
    m = t.look(busy_s=1)
    async def block(inside):
        async with m.transaction() as tx:
            tx.t.note.insert(dict(x='a')); await m.asubmit('tx', add, a=1)
            inside.set(); await asyncio.sleep(9)
    async def main():
        inside = asyncio.Event()
        b = asyncio.create_task(block(inside)); await inside.wait()
        b.cancel()
        with pytest.raises(asyncio.CancelledError): await b
        await m.asubmit('after', add, a=1)
    asyncio.run(main())
    assert [j.job_type for j in m.list_jobs()]==['after'] and notes()==[]

def test_async_transaction_cancelled_while_it_waits(t, notes):
    "P5: cancelled while it waits for the lock, a block leaves no lock behind once it would have had it"
    m = t.look(busy_s=3)
    with process(t, LOCK) as p:
        said(p, 'locked')
        async def main():
            async def block():
                async with m.transaction(): raise AssertionError('must not come here')
            b = asyncio.create_task(block())
            await asyncio.sleep(.1)
            b.cancel()
            with pytest.raises(asyncio.CancelledError): await b
            free(p); 
            await asyncio.to_thread(said, p, 'free')
            return await m.asubmit('after', add, a=1)
        id,_ = asyncio.run(main())
    assert [j.id for j in m.list_jobs()]==[id]
