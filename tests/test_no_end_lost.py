"Ends that could be lost, and things that could be repeated, where a step in between goes wrong"
import asyncio, os, shutil, threading, time
from datetime import date
from enum import Enum

import pytest, work
from fh_saas.cli_jobs import Tail
from fh_saas.flow import call, chain
from fh_saas.redact import MASK, Redactor
from fh_saas.running.context import JobContext
from fh_saas.retry import Discard, RetryIn, RetryPolicy, Snooze
from fh_saas.store.base import StoreBusy
from fh_saas.web.board import Board
from util import done, heard, until

# --- what a task raises

class Unfit(Discard):
    def __init__(self, field): self.field = field          # and does not call up

class Later(Snooze):
    def __init__(self): pass

class Again(RetryIn):
    def __init__(self): pass

class Table(RetryPolicy):
    def delay(self, n, rng=None): return (1., 2.)[n+1]

class Choosy(RetryPolicy):
    def retries(self, exc): return exc.code<500

class Endless(RetryPolicy):
    def delay(self, n, rng=None): return float('inf')

def unfit(): raise Unfit('age')
def later(): raise Later()
def again(): raise Again()
def plain(): raise OSError('boom')
async def aunfit(): raise Unfit('age')
async def alater(): raise Later()
async def aplain(): raise OSError('boom')

@pytest.mark.parametrize('f,policy', [(unfit, None), (later, None), (again, None), (plain, Table()), (plain, Choosy()), (plain, Endless()),
                                      (aunfit, None), (alater, None), (aplain, Table()), (aplain, Choosy())])
def test_whatever_goes_wrong_in_saying_what_an_error_means(t, f, policy):
    "The attempt ends all the same"
    m = t.mgr(handoff=0)
    m.task(f, **(dict(backoff=policy) if policy else {}))
    id,_ = m.options(max_retries=1).submit('x', f)
    j = done(m, id, status='failed')
    assert dict(unfit='age', plain='boom', later='Later', again='Again')[f.__name__ if f in (unfit, plain, later, again) else f.__name__[1:]] in j.error_log
    id,_ = m.options(max_retries=2).submit('x', f)
    until(lambda: m.get_job(id).retry_count==1)
    until(lambda: not m._lane.hand)

class Odd(Snooze):
    def __init__(self, s): self.seconds = s

class OddRetry(RetryIn):
    def __init__(self, s): self.seconds = s

@pytest.mark.parametrize('kind', [Odd, OddRetry])
@pytest.mark.parametrize('s', ['5', float('nan'), float('inf'), -1e9, None])
def test_a_wait_that_is_none_ends_the_attempt(job_tester, kind, s):
    "And is neither waited for with the job in hand, nor begun again at once for ever"
    def odd(): raise kind(s)
    id,_ = job_tester.submit('x', odd, 1)
    assert job_tester.drain()==1 and job_tester.get_job(id).status=='failed' and kind.__name__ in job_tester.get_job(id).error_log

# --- a file that is put in the place of another

class Soon(threading.Event):
    def wait(self, timeout=None): return super().wait(.01)

def test_run_goes_on_with_a_file_that_was_put_in_its_place(t):
    "A worker does not stand by for ever without a database"
    m = t.look()
    m.submit('x', work.quick, folder=str(t.dir), name='a')
    m._lane.store.checkpoint(); m.db.conn.execute('vacuum into ?', (f'{t.dir}/backup.db',))
    stop = Soon()
    r = threading.Thread(target=m.run, kwargs=dict(stop=stop)); r.start()
    try:
        until(lambda: len(t.log('ran'))==1)
        for o in ('', '-wal', '-shm'):
            if os.path.exists(f'{t.path}{o}'): os.unlink(f'{t.path}{o}')
        shutil.move(f'{t.dir}/backup.db', t.path)
        until(lambda: len(t.log('ran'))==2)
    finally: stop.set(); r.join()

# --- what an operator is told

def test_an_action_that_was_done_is_not_said_to_have_failed(t, monkeypatch):
    "Or it would be done again"
    b,old = Board(t.look()),Board._put_line
    def put(self, sql, *a):
        if sql.startswith('update'): raise StoreBusy('t.db is locked')
        return old(self, sql, *a)
    monkeypatch.setattr(Board, '_put_line', put)
    assert b.act('ann', 'run schedule', None, 'x', lambda: 'Submitted')=='Submitted'
    with pytest.raises(ZeroDivisionError): b.act('ann', 'run schedule', None, 'x', lambda: 1/0)
    assert [o['outcome'] for o in b.actions()]==[None, None]

class _Place:
    def __init__(self, m): self.m,self.away = m,False
    def each(self, f): return {} if self.away else {'':f(self.m)}

def test_a_tail_that_begins_before_the_first_job(t):
    "Shows all that come, however many at once; and says nothing twice after a database was away"
    m = t.look()
    p = _Place(m)
    w = Tail(p, 2)
    assert w.look()==[]
    m.submit_many('x', work.quick, [dict(folder=str(t.dir)) for _ in range(5)])
    assert len(w.look())==5
    p.away = True; assert w.look()==[]
    p.away = False; assert w.look()==[]

# --- a lane that cannot be closed

def test_a_lane_that_could_not_be_closed_is_there(t, monkeypatch):
    "Whoever wants it does not wait for ever"
    m = t.look()
    lane = m._lane
    monkeypatch.setattr(type(lane), 'busy', lambda self: 1/0)
    with pytest.raises(ZeroDivisionError): lane.close_idle()
    assert lane.pin()
    lane.unpin()

# --- once, and no second time

ran = []
def note(x): ran.append(x)

def two(a:date, b:date=None): pass

class Kind(str, Enum): mail = 'mail'

def test_the_same_job_in_other_words(job_tester):
    "Arguments in another order, a key as text and as an enum"
    a,b = date(2026, 1, 1),date(2026, 1, 2)
    once = job_tester.options(unique=True)
    assert once.submit('x', two, a=a, b=b)[0]==once.submit('x', two, b=b, a=a)[0]!=once.submit('x', two, a=b, b=a)[0]
    assert job_tester.options(unique='mail').submit('x', two, a=a)[0]==job_tester.options(unique=Kind.mail).submit('x', two, a=a)[0]

def test_a_step_that_was_kept_while_it_was_cancelled(t, monkeypatch):
    "Has been done; whoever goes on after a timeout does not do it again, and its jobs exist"
    m,old,kept,go = t.mgr(handoff=0),JobContext._keep,threading.Event(),threading.Event()
    def keep(self, *a):
        v = old(self, *a)
        kept.set(); go.wait(20)
        return v
    monkeypatch.setattr(JobContext, '_keep', keep)
    ran.clear()
    async def charge(job): ran.append('charged'); await job.asubmit('y', lambda: ran.append('child')); return 'ok'
    async def pay(job:JobContext):
        st = asyncio.ensure_future(job.astep('charge', charge, job))
        await asyncio.to_thread(kept.wait, 20)
        st.cancel(); asyncio.get_running_loop().call_soon(go.set)
        with pytest.raises(asyncio.CancelledError): await st
        return await job.astep('charge', charge, job)
    assert done(m, m.submit('x', pay, 1)[0]).result=='"ok"'
    until(lambda: ran==['charged', 'child'])

@pytest.mark.parametrize('twice', [False, True])
def test_a_flow_in_a_step_of_which_a_job_is_there_already(job_tester, twice):
    "Those behind it wait for the one that is there"
    ran.clear()
    if not twice: job_tester.options(unique='k', delay=5).submit('a', note, x=1)
    def flow_of(job): return chain(job.manager, *[call('a', note, x=1+i).options(unique='k') for i in range(1+twice)], call('b', note, x=3)).ids
    def parent(job:JobContext): return job.step('flow', flow_of, job)
    id,_ = job_tester.submit('p', parent, 1)
    job_tester.drain(ahead=60)
    assert job_tester.get_job(id).status=='completed' and ran==[1, 3]

# --- texts

def test_many_escaped_quotes_are_hidden_in_time(monkeypatch):
    "In one pass over the text, not in one for each quote"
    s = '\\"'*200_000
    t = time.thread_time()
    assert Redactor().text(f'password="{s}", x=1')==f'password={MASK}, x=1' and time.thread_time()-t<1

# --- what was undone

def test_a_cancel_that_was_undone_is_not_told(t, monkeypatch):
    "Nor is the function forgotten of a job that would have ended with it"
    m = t.look()
    ran.clear()
    a,_ = m.submit('x', note, x='parent')
    b,_ = m.options(after=[a]).submit('x', lambda: note('child'))
    store,old = type(m._lane.store),type(m._lane.store).over
    def over(self, *a, **k): old(self, *a, **k); raise StoreBusy('t.db is locked')
    with heard() as h:
        with monkeypatch.context() as mp, pytest.raises(StoreBusy): mp.setattr(store, 'over', over); m.cancel(a)
        m.submit('x', note, x='other')
        assert not h['job.failed', b] and m.run_due()==3 and sorted(ran)==['child', 'other', 'parent']
    c,_ = m.submit('x', note, x='parent'); d,_ = m.options(after=[c]).submit('x', note, x='child')
    with heard() as h: m.cancel(c); assert h['job.failed', d]==1

# --- alike, wherever it runs

@pytest.mark.parametrize('by_hand', [False, True])
def test_what_an_async_task_raises_means_the_same_everywhere(t, by_hand):
    "CancelledError of its own making is an exception like others: the task says that there is no retry after it"
    async def gives_up(): raise asyncio.CancelledError('of its own')
    m = t.mgr(handoff=0, worker=not by_hand)
    m.task(gives_up, name='gives_up', retry_on=OSError)
    id,_ = m.submit('x', gives_up)
    if by_hand: m.run_due()
    until(lambda: m.get_job(id).retry_count==1)
    assert m.get_job(id).status=='failed'
