"When jobs run, how many at once, and how they end: options, limits, pauses, unique keys, cancellation, timeouts"
import asyncio, json, threading, time
from datetime import datetime, timedelta, timezone

import pytest, work
from fh_saas.running import worker as _w
from fh_saas.running.executor import INTERRUPTED, call
from fh_saas.ids import from_iso, to_iso
from fh_saas.retry import Discard, RetryIn, RetryPolicy, Snooze
from fh_saas.utils_bgtsk import JobNotFound, StoreBusy
from util import both as stores
from util import all_done, done, end, process, run_py, said, stop_worker, until

ran,gate,begun = [],threading.Event(),threading.Event()
def note(x=None): ran.append(x); return x
def boom(x=None): raise OSError(f'boom {x}')
def waits(x=None): begun.set(); ran.append(x); gate.wait(20); return x
async def awaits(x=None):
    begun.set()
    try: await asyncio.sleep(20)
    except asyncio.CancelledError: ran.append('cancelled'); raise
async def astubborn(x=None):
    begun.set()
    try: await asyncio.sleep(20)
    except asyncio.CancelledError: return 'finished all the same'
def snooze(s): raise Snooze(s)
def discard(why): raise Discard(why)
def retry_in(s): raise RetryIn(s)

@pytest.fixture(autouse=True)
def fresh(): ran.clear(); gate.clear(); begun.clear(); yield; gate.set()

@pytest.fixture
def clock(job_clock): return job_clock
@pytest.fixture
def m(t, clock): return t.mgr(worker=False, clock=clock)      # nothing runs but by run_due(), and time stands still

def statuses(m, *ids): return [m.get_job(o).status for o in ids]
def utc(t): return datetime.fromtimestamp(t, timezone.utc)

# --- when

def test_delay_and_run_at(m, clock):
    a,bg = m.options(delay=60).submit('a', note, x='delay')
    b,_ = m.options(run_at=utc(clock.t+30)).submit('a', note, x='at')
    c,_ = m.options(run_at=utc(clock.t-30)).submit('a', note, x='past')
    d, = m.options(delay=timedelta(hours=1)).submit_many('a', note, [dict(x='many')])
    assert (m.run_due(), ran)==(1, ['past'])
    clock.tick(30); assert (m.run_due(), ran[1:])==(1, ['at'])
    clock.tick(30); assert (m.run_due(), ran[2:])==(1, ['delay'])
    asyncio.run(bg()); clock.tick(3599)
    assert m.run_due()==1 and statuses(m, a, b, c, d)==['completed']*4

def test_background_task_of_a_later_job_returns_at_once(t):
    m = t.mgr()
    id,bg = m.options(delay=3600).submit('a', note)
    began = time.monotonic()
    asyncio.run(bg())
    assert time.monotonic()-began<2 and m.get_job(id).status=='pending' and from_iso(m.get_job(id).run_at)>time.time()+3000

def test_worker_takes_a_delayed_job_when_it_is_due(t):
    m = t.mgr()
    id,_ = m.options(delay=.3).submit('a', note, x=1)
    at = from_iso(m.get_job(id).run_at)
    assert from_iso(done(m, id).started_at)>=at

def test_priority(m):
    for p in (5, 0, 9, 5, 1): m.options(priority=p).submit('a', note, x=p)
    m.submit('a', note, x='default')
    assert m.run_due()==6 and ran==[0, 'default', 1, 5, 5, 9]

def test_priority_across_queues(m):
    for q,p in (('mail', 3), ('default', 2), ('report', 1), ('mail', 0)): m.options(priority=p, queue=q).submit('a', note, x=f'{q}{p}')
    assert m.run_due()==4 and ran==['mail0', 'report1', 'default2', 'mail3']

def test_task_defaults_and_the_job_wins(m, clock):
    f = lambda x=None: ran.append(x)
    f.__qualname__ = f.__name__ = 'with_defaults'
    m.task(f, name='d', priority=7, queue='slow', tags=['b', 'a'], timeout=30, delay=5, max_retries=9)
    j = m.get_job(m.submit('a', f)[0])
    assert (j.priority,j.queue,j.tags,j.timeout_s,j.max_retries)==(7, 'slow', '["a","b"]', 30., 9) and from_iso(j.run_at)==pytest.approx(clock.t+5)
    j = m.get_job(m.options(priority=1, queue='default', tags=['c'], timeout=2, delay=0, max_retries=2).submit('a', f)[0])
    assert (j.priority,j.queue,j.tags,j.timeout_s,j.max_retries,j.ready)==(1, None, '["c"]', 2., 2, 1)
    j = m.get_job(m.options(run_at=utc(clock.t+50)).submit('a', f, 4)[0])
    assert (from_iso(j.run_at),j.max_retries)==(pytest.approx(clock.t+50), 4)

BAD = [(dict(delay=-1), ValueError), (dict(delay='5'), TypeError), (dict(delay=float('nan')), ValueError), (dict(run_at=datetime(2026,1,1)), ValueError), (dict(run_at=5), TypeError),
       (dict(priority=-1), ValueError), (dict(priority=1.5), TypeError), (dict(queue=''), ValueError), (dict(queue=5), TypeError), (dict(unique=['a']), TypeError), (dict(unique={}), TypeError),
       (dict(unique='a', unique_for=-5), ValueError), (dict(timeout=0), ValueError), (dict(timeout='1'), TypeError), (dict(backoff=-1), ValueError), (dict(backoff=lambda n: n), TypeError),
       (dict(tags='a'), TypeError), (dict(tags=[1]), TypeError), (dict(after=[1]), TypeError), (dict(after='nope'), ValueError), (dict(priorty=1), TypeError), (dict(limit=1), TypeError),
       (dict(max_retries=0), ValueError), (dict(limit_key=1.5), TypeError),
       (dict(limit_key='a'), ValueError)]
@pytest.mark.parametrize('opts,exc', BAD, ids=lambda o: str(o).partition(' at 0x')[0][:40])
def test_bad_options(m, opts, exc):
    "The option is named, and nothing is stored"
    with pytest.raises(exc, match=list(opts)[-1]): m.options(**opts).submit('a', note)
    assert m.list_jobs()==[]

@pytest.mark.parametrize('opts', [dict(limit=0), dict(rate=5), dict(rate=(1, 0)), dict(limit_key='a'), dict(retry_on='x'), dict(queue=''), dict(nope=1), dict(unique_for='ever', unique=True)], ids=str)
def test_bad_task_options(m, opts):
    with pytest.raises((TypeError, ValueError), match=list(opts)[0]): m.task(note, name='bad', **opts)
    assert 'bad' not in m._lane.known.tasks

# --- retries

def test_backoff_of_task_and_job(m, clock):
    m.task(boom, name='boom', backoff=RetryPolicy(base=10, cap=50))
    waits_s = lambda id: from_iso(m.get_job(id).run_at)-clock.t
    a,_ = m.submit('a', boom)
    b,_ = m.options(backoff=7).submit('a', boom)
    assert m.run_due()==2 and (waits_s(a), waits_s(b))==(pytest.approx(10), pytest.approx(7))
    clock.tick(10); m.run_due()
    assert waits_s(a)==pytest.approx(50)

def test_retry_on(m):
    m.task(boom, name='boom', no_retry_on=OSError)
    id,_ = m.submit('a', boom)
    m.run_due()
    j = m.get_job(id)
    assert (j.status, j.retry_count)==('failed', 1) and 'boom' in j.error_log

def test_snooze_discard_retry_in(m, clock):
    a,b,c = [m.submit('a', f, 2, **kw)[0] for f,kw in ((snooze, dict(s=100)), (discard, dict(why='gone')), (retry_in, dict(s=33)))]
    m.run_due()
    ja,jb,jc = map(m.get_job, (a, b, c))
    assert (ja.status, ja.retry_count, from_iso(ja.run_at)-clock.t)==('pending', 0, pytest.approx(100))
    assert (jb.status, jb.error_log)==('failed', 'Discarded: gone')
    assert (jc.status, jc.retry_count, from_iso(jc.run_at)-clock.t)==('pending', 1, pytest.approx(33))
    for i in range(5): clock.tick(100); m.run_due()
    assert (m.get_job(a).status, m.get_job(a).retry_count)==('pending', 0)      # for ever, if it likes

def test_retry_by_hand(m, clock):
    a,_ = m.submit('a', boom, 1)
    b,_ = m.options(delay=500).submit('a', note, x='b')
    m.run_due()
    assert m.get_job(a).status=='failed'
    assert (m.retry(a).status, m.retry(a).retry_count, m.retry(b).ready)==('pending', 0, 1)
    assert m.run_due()==2 and statuses(m, a, b)==['failed', 'completed']
    with pytest.raises(ValueError, match='it is completed'): m.retry(b)
    with pytest.raises(JobNotFound): m.retry('nope')

def test_retry_failed_by_filter(m, clock):
    ids = [m.submit(t, boom, 1, x=x)[0] for t,x in (('a', 1), ('a', 2), ('b', 2))]
    m.run_due(); clock.tick(10)
    late,_ = m.submit('b', boom, 1, x=3); m.run_due()
    assert m.retry_failed(since=utc(clock.t-1))==1 and statuses(m, late)==['pending'] and m.run_due()==1
    assert m.retry_failed('a', error_contains='boom 2')==1 and statuses(m, *ids)==['failed', 'pending', 'failed']
    m.run_due(); assert m.retry_failed()==4
    with pytest.raises(ValueError, match='since'): m.retry_failed(since=datetime(2026,1,1))
    with pytest.raises(ValueError, match='since'): m.retry_failed(since='yesterday')
    assert m.retry_failed(since=m.get_job(late).created_at)==0
    with pytest.raises(TypeError, match='error_contains'): m.retry_failed(error_contains=5)
    with pytest.raises(TypeError, match='job_type'): m.retry_failed(5)

# --- unique

def test_unique_by_key_and_by_arguments(m):
    a,bg = m.options(unique='k').submit('a', note, x=1)
    b,again = m.options(unique='k').submit('a', note, x=2)
    c,_ = m.options(unique='k').submit('a', boom, x=2)           # another task's key is another key
    assert a==b!=c and (bg.created, again.created)==(True, False)
    asyncio.run(again()); again.func(*again.args, **again.kwargs)
    assert m.get_job(a).status=='pending' and ran==[]
    d,e,f = [m.options(unique=True).submit('a', note, x=x)[0] for x in (5, 5, 6)]
    assert d==e!=f and len(m.list_jobs())==4
    assert m.options(unique=True).submit_many('a', note, [dict(x=5), dict(x=7), dict(x=7)])==[d, (g := m.list_jobs(limit=1)[0].id), g]

def test_unique_scopes(m, clock):
    sub = lambda **kw: m.options(unique='k', **kw).submit('a', note)[0]
    pend = sub(unique_for='pending')
    assert sub(unique_for='pending')==pend
    m.run_due(); assert sub(unique_for='pending')!=pend
    m.run_due()
    hour = sub(unique_for=3600)
    m.run_due(); assert m.get_job(hour).status=='completed' and sub(unique_for=timedelta(hours=1))==hour
    clock.tick(3600); assert sub(unique_for=3600)!=hour

def test_unique_while_running(t):
    m = t.mgr()
    a,_ = m.options(unique='k').submit_many('a', waits, [{}]),None
    begun.wait(20)
    assert m.options(unique='k').submit('a', waits)[0]==a[0]
    p,_ = m.options(unique='k', unique_for='pending').submit('a', waits)      # a scope of its own
    assert p!=a[0]
    gate.set(); done(m, a[0])
    assert m.options(unique='k').submit('a', waits)[0]!=a[0]

def test_unique_in_a_transaction(m):
    a,_ = m.options(unique='k').submit('a', note)
    with m.transaction() as db:
        assert m.options(unique='k').submit('a', note)[0]==a
        b,bg = m.options(unique='z').submit('a', note)
        assert m.options(unique='z').submit('a', note)[0]==b
    with pytest.raises(KeyError):
        with m.transaction(): m.options(unique='gone').submit('a', note); raise KeyError
    assert m.options(unique='gone').submit('a', note)[1].created and len(m.list_jobs())==3

UNIQUE = '''
m = mgr(worker=False)
said = sys.stdin.readline()
out(json.dumps([m.options(unique=f'k{i}').submit('a', quick, folder=folder)[0] for i in range(50)]))'''
def test_unique_across_processes(t):
    "Four processes submit the same fifty keys at the same time: fifty jobs, and all were told the same ids"
    t.look()
    ps = [t_process(t) for _ in range(4)]
    for p in ps: p.stdin.write('go\n'); p.stdin.flush()
    got = [json.loads(p.communicate(timeout=60)[0]) for p in ps]
    assert all(o==got[0] for o in got) and len(t.look().list_jobs(limit=1000))==50
def t_process(t):
    from util import start_py
    return start_py(t, UNIQUE)

def test_retry_of_a_job_whose_key_is_taken(m):
    a,_ = m.options(unique='k').submit('a', boom, 1)
    m.run_due()
    b,_ = m.options(unique='k').submit('a', boom, 1)
    assert a!=b
    with pytest.raises(ValueError, match='unique key'): m.retry(a)
    assert m.retry_failed()==0 and statuses(m, a, b)==['failed', 'pending']

# --- limits

def at_once():
    "(a task, how many of it have run at once). The first waits for a second, which may begin beside it"
    now,most,two = [],[],threading.Event()
    def task(i):
        now.append(i); most.append(len(now))
        if len(now)>1: two.set()
        two.wait(20); time.sleep(.002); now.remove(i)
    return task,most

def test_limit_of_a_task(t):
    m = t.mgr(threads=8)
    few,most = at_once()
    m.task(few, name='few', limit=2)
    m.submit_many('a', few, [dict(i=i) for i in range(40)])
    all_done(m, 40)
    assert max(most)==2

def test_limit_per_key(t):
    m = t.mgr(threads=8)
    now,most,lock = {},{},threading.Lock()
    def few(account, i):
        with lock: now[account] = now.get(account, 0)+1; most[account] = max(most.get(account, 0), now[account])
        time.sleep(.002)
        with lock: now[account] -= 1
    m.task(few, name='few', limit=1, limit_key=lambda kw: kw['account'])
    m.submit_many('a', few, [dict(account='xyz'[i%3], i=i) for i in range(60)])
    all_done(m, 60)
    assert most==dict(x=1, y=1, z=1)

LIMITED = '''
@task(name='limited', limit=2)
def limited(i):
    with open(folder+'/ledger', 'a') as f: f.write('+\\n')
    time.sleep(.003)
    with open(folder+'/ledger', 'a') as f: f.write('-\\n')
m = mgr(threads=4); out('up'); m.run()'''
def test_limit_holds_over_processes_and_a_kill(t):
    "Two processes with four threads each, never more than two at once; one is killed in the middle, and its places come back"
    m = t.look()
    m.task(limited, name='limited', limit=2)
    with process(t, LIMITED) as p, process(t, LIMITED) as q:
        said(p, 'up'); said(q, 'up')
        m.submit_many('a', limited, [dict(i=i) for i in range(150)])
        until(lambda: len(m.list_jobs(status='completed', limit=200))>30)
        end(p)
        all_done(m, 150, 60)
    n = most = 0
    for o in (t.dir/'ledger').read_text().split(): n += 1 if o=='+' else -1; most = max(most, n)
    assert most<=2+2      # what the killed process had begun never wrote its end
def limited(i): "Runs in other processes only, under this name"

def test_limit_of_a_type_at_run_time(m, t):
    ids = m.submit_many('a', note, [dict(x=i) for i in range(5)])
    m.limit('a', 1)
    assert m.controls()['limits']=={'a':1}
    lane = m._lane
    one = lane.turn(5); assert len(one)==1 and lane.turn(5)==[]
    m.limit('a', 3); assert len(two := lane.turn(5))==2
    m.limit('a', None); assert len(lane.turn(5))==2
    for bad in (0, -1, '3', True):
        with pytest.raises((ValueError, TypeError), match='n must be'): m.limit('a', bad)
    lane.back.extend(list(a.claim for a in lane.hand.values())); lane.turn(0)

def test_rate(m, clock):
    f = lambda x: ran.append(x)
    f.__qualname__ = 'rated'
    m.task(f, name='rated', rate=(3, 60))
    m.submit_many('a', f, [dict(x=i) for i in range(8)])
    assert m.run_due()==3
    clock.tick(59); assert m.run_due()==0
    clock.tick(1); assert m.run_due()==3
    clock.tick(60); assert m.run_due()==2 and ran==list(range(8))

def test_rate_across_managers(t, clock):
    "Another process starts none beyond the rate either: the starts are in the file"
    a,b = t.mgr(worker=False, clock=clock),None
    a.task(note, name='rated', rate=(2, 60))
    a.submit_many('a', note, [dict(x=i) for i in range(5)])
    assert a.run_due()==2
    a._lane.close()
    assert a.run_due()==0
    clock.tick(60); assert a._lane.limits.reconsider()==2 and a.run_due()==2

def rated(m, n, period=60): m.task(note, name='rated', rate=(n, period)); return m.submit_many('a', note, [dict(x=i) for i in range(5)])

def test_rate_counts_what_begins(m):
    "A claim that goes back without having begun has started nothing; one that began has, even if it was interrupted"
    rated(m, 2)
    lane = m._lane
    a,b = lane.turn(2)
    assert lane.turn(2)==[]
    lane.back.append(a.claim); lane.turn(0)
    c, = lane.turn(2)
    lane.start(c); lane.end(c, INTERRUPTED, 0.); lane.turn(0)
    assert lane.turn(2)==[]
    assert m.cancel(b.claim.id) is False
    lane.back.append(b.claim)
    assert len(lane.turn(2))==1 and m.get_job(b.claim.id).status=='cancelled', 'its place is free at once'

def test_rate_after_a_crash(t):
    "Killed with one job begun and one claimed: one start counts"
    code = "m = mgr(worker=False); m.task(quick, name='rated', rate=(2, 3600)); a,b = m._lane.turn(2); m._lane.start(a); out('up'); time.sleep(60)"
    m = t.look()
    m.task(work.quick, name='rated', rate=(2, 3600))
    m.submit_many('a', work.quick, [dict(folder=str(t.dir), name=i) for i in range(5)])
    with process(t, code) as p: said(p, 'up'); end(p)
    assert m.run_due()==1

def test_rate_counts_a_job_run_by_hand(m, clock):
    m.task(note, name='rated', rate=(1, 60))
    _,bg = m.submit('a', note, x='hand'); m.submit('a', note, x='due')
    bg.func(*bg.args, **bg.kwargs)
    assert m.run_due()==0 and ran==['hand']
    clock.tick(60); assert m.run_due()==1

# --- queues and pauses

def test_pause_and_resume_a_type(m):
    m.pause(job_type='a')
    a,b = m.submit('a', note, x='a')[0],m.submit('b', note, x='b')[0]
    assert m.run_due()==1 and ran==['b'] and m.get_job(a).held=='t:a' and list(m.controls()['paused_types'])==['a']
    m.resume(job_type='a')
    assert m.run_due()==1 and statuses(m, a, b)==['completed']*2 and m.get_job(a).held is None

def test_pause_and_resume_a_queue(m):
    for q in ('mail', 'default', 'report'): m.options(queue=q).submit('a', note, x=q)
    m.pause(queue='mail'); m.pause(queue='default')
    assert m.run_due()==1 and ran==['report']
    m.resume(queue='default'); assert m.run_due()==1
    m.resume(queue='mail'); assert m.run_due()==1 and ran==['report', 'default', 'mail']
    for bad in (dict(), dict(queue='a', job_type='b')):
        with pytest.raises(TypeError, match='queue= or job_type='): m.pause(**bad)

def test_pause_reaches_other_processes(t):
    "Paused here, and the worker of another process begins no more; resumed here, and it goes on at once"
    m = t.look()
    with process(t, "m = mgr(tasks=[quick]); out('up'); m.run()") as p:
        said(p, 'up')
        m.pause(job_type='a')
        ids = m.submit_many('a', work.quick, [dict(folder=str(t.dir), name=i) for i in range(300)])
        other,_ = m.submit('b', work.quick, folder=str(t.dir), name='b')
        done(m, other)
        assert m.list_jobs('a', 'completed')==[]
        m.resume(job_type='a')
        all_done(m, 301)

def holds(x=None):
    ran.append(x)
    if x=='block': begun.set(); gate.wait(20)
async def aholds(x=None):
    ran.append(x)
    if x=='block':
        begun.set()
        while not gate.is_set(): await asyncio.sleep(.005)

@pytest.mark.parametrize('what', [dict(job_type='a'), dict(queue='mail')], ids=str)
@pytest.mark.parametrize('f', [holds, aholds])
def test_pause_holds_for_what_was_claimed(t, monkeypatch, what, f):
    "Claimed in one batch with a job that runs when the pause comes: the others do not begin, and run when it is over"
    monkeypatch.setattr(_w, 'STALE_S', 1e9)             # or they would go back after a moment for another reason
    m = t.mgr(threads=1, async_jobs=1, handoff=0)
    lane,name = m._lane,m.task(f) and m._lane.known.of(f, '')[0].name
    lane.means[name],lane.kinds[name] = (.00001 if f is aholds else .004),f is aholds      # so that several are claimed at once
    ids = m.options(queue='mail').submit_many('a', f, [dict(x=x) for x in ('block',1,2)])
    assert begun.wait(20)
    until(lambda: len(m.list_jobs('a', 'running'))==3)
    m.pause(**what)
    gate.set()
    until(lambda: not m.list_jobs('a', 'running'))
    assert ran==['block'] and statuses(m, *ids)==['completed','pending','pending'] and 'is paused' in m.explain(ids[1])
    m.resume(**what)
    all_done(m, 3)
    assert sorted(ran, key=str)==[1,2,'block']

def test_pause_holds_for_what_another_process_has_claimed(t):
    m = t.look()
    with process(t, """m = mgr(tasks=[agated], async_jobs=1)
lane = m._lane; name = lane.known.of(agated, '')[0].name; lane.means[name],lane.kinds[name] = .00001,True
out('up'); m.run()""") as p:
        said(p, 'up')
        m.submit_many('a', work.agated, [dict(folder=str(t.dir), name=i) for i in range(5)])
        until(lambda: t.log('start') and len(m.list_jobs('a', 'running'))==5)
        m.pause(job_type='a')
        until(lambda: len(m.list_jobs('a', 'pending'))==4)
        t.go('go')
        until(lambda: m.list_jobs('a', 'completed'))
        assert len(t.log('start'))==1
        m.resume(job_type='a')
        all_done(m, 5)

def test_paused_jobs_are_not_lost(t):
    "The process dies while jobs are held: they are still held, and run when the pause is over"
    m = t.look()
    m.pause(job_type='a')
    with process(t, "m = mgr(tasks=[quick]); out('up'); m.run()") as p:
        said(p, 'up')
        m.submit_many('a', work.quick, [dict(folder=str(t.dir), name=i) for i in range(50)])
        until(lambda: all(o.held=='t:a' for o in m.list_jobs('a')))
        end(p)
    m.resume(job_type='a')
    with process(t, "m = mgr(tasks=[quick]); out('up'); m.run()"): all_done(m, 50)

def test_width_of_a_queue(t):
    m = t.mgr(threads=8, queues={'slow':2})
    slow,most = at_once()
    m.task(slow, name='slow', queue='slow')
    m.submit_many('a', slow, [dict(i=i) for i in range(30)])
    all_done(m, 30)
    assert max(most)==2
    for bad in ({'slow':0}, {'slow':'2'}, ['slow'], {'':1}):
        with pytest.raises((TypeError, ValueError), match='queues'): t.mgr(queues=bad)

# --- the end

def test_cancel_what_waits(m, clock):
    a,b = m.submit('a', note)[0],m.options(delay=60).submit('a', note)[0]
    assert m.cancel(a) and m.cancel(b, 'no longer wanted')
    assert statuses(m, a, b)==['cancelled']*2 and m.get_job(b).error_log=='no longer wanted' and m.run_due()==0
    with pytest.raises(ValueError, match='is cancelled'): m.cancel(a)
    with pytest.raises(JobNotFound): m.cancel('nope')
    assert m.retry(a).cancel_at is None and m.run_due()==1 and statuses(m, a)==['completed']

def test_cancel_async(t):
    m = t.mgr()
    id, = m.submit_many('a', awaits, [{}])
    begun.wait(20)
    assert m.cancel(id) is False
    j = done(m, id, status='cancelled')
    assert ran==['cancelled'] and j.retry_count==0 and 'Cancelled' in j.error_log

def test_cancel_tells_the_truth(t):
    "Who finished in spite of it has completed"
    m = t.mgr()
    a, = m.submit_many('a', astubborn, [{}])
    begun.wait(20); m.cancel(a)
    assert done(m, a).result=='"finished all the same"'
    begun.clear()
    b, = m.submit_many('a', waits, [dict(x=1)])
    begun.wait(20); m.cancel(b)
    assert m.get_job(b).cancel_at and m.get_job(b).status=='running'
    gate.set(); done(m, b)

def test_cancel_from_another_process(t):
    m = t.mgr()
    id, = m.submit_many('a', awaits, [{}])
    begun.wait(20)
    run_py(t, "assert mgr(worker=False).cancel(sys.argv[3]) is False", id)
    done(m, id, status='cancelled', s=5)

def test_cancelled_while_its_process_dies(t):
    "Asked to end, then killed: the rescue does not run it again"
    m = t.look()
    with process(t, "m = mgr(tasks=[gated]); out('up'); m.run()") as p:
        said(p, 'up')
        id, = m.submit_many('a', work.gated, [dict(folder=str(t.dir), name='x')])
        until(lambda: t.log('start'))
        m.cancel(id)
        end(p)
    with process(t, "m = mgr(tasks=[gated]); out('up'); m.run()"): done(m, id, status='cancelled')
    assert len(t.log('start'))==1

def test_reason_of_a_cancelled_job_that_ran(t):
    "Whoever asked a running job to end has said why, and the job keeps it"
    m = t.mgr()
    id, = m.submit_many('a', awaits, [{}])
    begun.wait(20)
    run_py(t, "assert mgr(worker=False).cancel(sys.argv[3], 'the user \\ud800 left') is False", id)
    j = done(m, id, status='cancelled', s=5)
    assert j.error_log.startswith('Asked to end: the user \\ud800 left\nCancelled while it ran\n') and 'CancelledError' in j.error_log
    assert m.explain(id)==f'it is over: cancelled at {j.completed_at}, the user \\ud800 left'

def test_reason_stays_whatever_becomes_of_the_job(m, clock):
    lane = m._lane
    ids = [m.submit('a', f, **kw)[0] for f,kw in ((boom, {}), (snooze, dict(s=5)), (note, dict(x=1)), (note, dict(x=2)), (note, dict(x=3)))]
    got = lane.turn(9)
    for i in ids: m.cancel(i, f'why {i}'); m.cancel(i, 'once more')
    for a in got[:3]: a.stop = None; lane.start(a); lane.end(a, call(a.task, a.claim, a), 0.)     # they end before they hear of it
    lane.back.append(got[3].claim)
    lane.turn(0)
    with lane.store.writing(): lane.store.rescue(lane.owner, None, {(ids[4].encode()[:40], 1)}, lane.now(), 'Crashed')
    js = [m.get_job(i) for i in ids]
    assert [o.status for o in js]==['cancelled', 'cancelled', 'completed', 'cancelled', 'cancelled']
    assert [o.error_log.splitlines()[0] for o in js]==[f'Asked to end: why {i}' for i in ids]
    assert 'boom' in js[0].error_log and js[1].error_log.count('\n')==0 and js[4].error_log.endswith('Crashed')

def test_reason_follows_the_error_of_an_earlier_attempt(m, clock):
    id,_ = m.submit('a', boom)
    m.run_due(); clock.tick(2)
    a, = m._lane.turn(1)
    m.cancel(id, 'enough'); m._lane.back.append(a.claim); m._lane.turn(0)
    assert m.get_job(id).error_log.splitlines()[-2:]==['OSError: boom None', 'Asked to end: enough']

def test_cancel_frees_children(m):
    a,_ = m.options(delay=60).submit('a', note)
    b,_ = m.options(after=a).submit('a', note)
    c,_ = m.options(after=[a], on_failed='run').submit('a', note, x='c')
    m.cancel(a)
    assert statuses(m, b, c)==['failed', 'pending'] and m.run_due()==1 and ran==['c']

def test_timeout_sync(t):
    "The attempt has failed at its time, the slot is given to others, the thread is reported until it ends, and its result is dropped"
    m = t.mgr(threads=1)
    id, = m.options(timeout=.05, max_retries=1).submit_many('a', waits, [dict(x=1)])
    j = done(m, id, status='failed')
    assert j.error_log=='Timed out after 0.05 s' and json.loads(j.attempts)[0]['outcome']=='timeout'
    assert m.health()['stuck']==1
    done(m, m.submit_many('a', note, [dict(x=2)])[0])
    gate.set()
    until(lambda: m.health()['stuck']==0)
    assert (m.get_job(id).status, m.get_job(id).result)==('failed', None)

def test_timeout_async_and_retry(t):
    m = t.mgr()
    id, = m.options(timeout=.05, max_retries=2, backoff=.01).submit_many('a', awaits, [{}])
    j = done(m, id, status='failed')
    assert j.retry_count==2 and ran==['cancelled']*2 and [o['outcome'] for o in json.loads(j.attempts)]==['timeout']*2

def by_hand(bg): bg.func(*bg.args, **bg.kwargs)
@pytest.mark.parametrize('how', ['func', 'run_due'])
def test_timeout_by_hand(m, how):
    "As in a worker: the attempt has failed at its time, whatever the task does afterwards"
    id,bg = m.options(timeout=.05, max_retries=1).submit('a', waits, x=1)
    th = threading.Thread(target=by_hand, args=(bg,)) if how=='func' else threading.Thread(target=m.run_due)
    th.start()
    j = done(m, id, status='failed')
    assert th.is_alive() and j.error_log=='Timed out after 0.05 s' and json.loads(j.attempts)[0]['outcome']=='timeout'
    gate.set(); th.join(20)
    assert (m.get_job(id).status, m.get_job(id).result)==('failed', None) and not m._lane.byhand

def test_timeout_by_hand_is_retried(m, clock):
    "Its next attempt does not wait for the thread that is stuck in the one before"
    id,bg = m.options(timeout=.05, max_retries=2).submit('a', waits, x=1)
    th = threading.Thread(target=by_hand, args=(bg,)); th.start()
    until(lambda: m.get_job(id).retry_count==1)
    assert m.get_job(id).status=='pending' and ran==[1]
    gate.set(); th.join(20)
    clock.tick(2); m.run_due()
    assert (m.get_job(id).status, m.get_job(id).retry_count, ran)==('completed', 1, [1, 1])

def test_timeout_by_hand_async(m):
    id,bg = m.options(timeout=.05, max_retries=1).submit('a', awaits)
    by_hand(bg)
    assert m.get_job(id).status=='failed' and ran==['cancelled']

def test_deadlines_of_what_has_ended_are_forgotten(t):
    "An hour's timeout does not keep an hour's jobs in memory"
    m = t.mgr()
    m.options(timeout=3600).submit_many('a', note, [dict(x=i) for i in range(4000)])
    all_done(m, 4000)
    assert len(_w._worker.deadlines)<2100 and not any(o[2] for o in _w._worker.deadlines)

def test_in_time(t):
    m = t.mgr()
    ids = m.options(timeout=30).submit_many('a', note, [dict(x=i) for i in range(200)])
    all_done(m, 200)
    assert sorted(ran)==list(range(200)) and not _w._worker.stuck

def test_unique_inside_steps_and_job_transactions(m):
    from fh_saas.running.context import current_job
    ids = []
    def kids(): ids.append([m.options(unique='k').submit('kid', note)[0] for _ in range(2)])
    def parent():
        job = current_job()
        job.step('kids', kids)
        with job.transaction(): ids.append([m.options(unique=k).submit('kid', note)[0] for k in ('k', 'z', 'z')])
    m.submit('a', parent); m.run_due()
    (a,b),(c,d,e) = ids
    assert a==b==c!=d==e and len(m.list_jobs('kid'))==2

# --- queues of a worker

SERVE = "import sys; from fh_saas.cli import main; sys.argv[1:] = ['worker', 'many_queues:manager', *sys.argv[3:]]; main()"
def test_worker_that_serves_some_queues(t):
    "`fh_saas worker --queues`: the others stay for somebody else"
    (t.dir/'many_queues.py').write_text('from util import opened\nfrom fh_saas.utils_bgtsk import *\nfrom work import *\n'
        f'manager = BackgroundTaskManager(opened({str(t.path)!r}), tasks=[quick])\n')
    m = t.look()
    ids = {q:m.options(queue=q).submit('a', work.quick, folder=str(t.dir), name=q)[0] for q in ('mail', 'default', 'report')}
    with process(t, SERVE, '--queues', 'mail, default', pre='') as p:
        done(m, ids['mail']); done(m, ids['default'])
        assert m.get_job(ids['report']).status=='pending'
        end(p, 15)
    with process(t, SERVE, '--queues', 'report', pre=''): done(m, ids['report'])
    p = run_py(t, SERVE, '--queues', 'a,,b', pre='', rc=2)

def test_width_of_a_queue_over_tenants(tmp_path):
    from fh_saas.tenants import Tenants
    slow,most = at_once()
    ts = Tenants(tmp_path/'data', threads=8, queues={'slow':2}, tasks={'slow':slow})
    try:
        for k in 'abc': ts.create(k).jobs.options(queue='slow').submit_many('s', slow, [dict(i=i) for i in range(20)])
        for k in 'abc': all_done(ts[k].jobs, 20)
    finally: stop_worker(); ts.close()
    assert max(most)==2

# --- why it does not run

@pytest.mark.on_sqlite('workers of other machines are not known')
def test_explain(t, m, clock):
    at = to_iso(clock.t+60)
    assert m.explain(m.options(delay=60).submit('a', note)[0])==f'it is due at {at}'
    a,_ = m.submit('a', boom); b,_ = m.options(after=a).submit('a', note)
    assert m.explain(b)==f'it waits for job {a} (pending)' and m.explain(a).startswith('no worker runs')
    m.run_due()
    assert m.explain(a)==f'it is backing off until {to_iso(clock.t+2)}, after attempt 1 of 3 failed: OSError: boom None'
    q,_ = m.options(queue='mail').submit('a', note); m.pause(queue='mail')
    assert m.explain(q).startswith("queue 'mail' is paused since")
    p,_ = m.submit('p', note); m.pause(job_type='p'); m.run_due()
    assert m.explain(p).startswith("job type 'p' is paused since")
    m.cancel(p); assert m.explain(p)==f'it is over: cancelled at {to_iso(clock.t)}, Cancelled'
    with pytest.raises(JobNotFound): m.explain('nope')

def test_explain_a_snooze(m, clock):
    "A job that put itself off is not backing off, whatever went wrong before"
    def moody():
        ran.append(1)
        if len(ran)==2: raise OSError('boom')
        raise Snooze(100)
    m.task(moody, name='moody')
    id,_ = m.submit('a', moody)
    m.run_due(); assert m.explain(id)==f'it has put itself off until {to_iso(clock.t+100)}'
    clock.tick(100); m.run_due(); assert m.explain(id)==f'it is backing off until {to_iso(clock.t+2)}, after attempt 1 of 3 failed: OSError: boom'
    clock.tick(2); m.run_due(); assert m.explain(id)==f'it has put itself off until {to_iso(clock.t+100)}, after attempt 1 of 3 had failed: OSError: boom'

@pytest.mark.parametrize('key,shown', [(7, '7'), ('acme', "'acme'"), (('acme', 7), "('acme', 7)"), ('x'*300, "a long text or tuple")], ids=str)
def test_explain_shows_keys_as_they_were_given(m, key, shown):
    m.task(note, name='few', limit=1, rate=(1, 60))
    a,b = [m.options(limit_key=key).submit('a', note)[0] for _ in 'ab']
    m._lane.turn(2)
    assert m.explain(b)==f'limit 1 of 1 under the key {shown} is used by {a}'

def test_explain_where_a_worker_runs(t):
    m = t.mgr(threads=2)
    m.task(waits, name='waits', limit=1)
    a,b = m.submit_many('a', waits, [{}, {}])
    until(lambda: m.get_job(b).held)
    assert m.explain(b)==f'limit 1 of 1 is used by {a}' and m.explain(a).startswith('it is running since')
    gate.set(); done(m, a); done(m, b)

def test_explain_what_this_process_is_busy_with(t):
    m = t.mgr(threads=1, queues={'slow':1})
    a,b = m.options(queue='slow').submit_many('s', waits, [{}, {}])
    until(lambda: m.get_job(a).started_at)
    assert m.explain(b)==f"queue 'slow' runs 1 of 1 in this process: {a}"
    ids = m.submit_many('a', waits, [{}]*4)
    until(lambda: m.explain(ids[-1])=='the one thread of this process is busy')
    gate.set(); all_done(m, 6)

def test_explain_the_grace(t):
    m = t.mgr(handoff=3600)
    id,_ = m.submit('a', note)
    assert m.explain(id)==f'it is due when its BackgroundTask is called, or at {m.get_job(id).run_at}'

@pytest.mark.on_sqlite('workers of other machines are not known')
def test_explain_a_limited_type(m):
    m.limit('a', 1)
    a,b = m.submit_many('a', note, [{}, {}])
    m._lane.turn(2)
    assert m.explain(b)==f"limit 1 of 1 for job type 'a' is used by {a}"
    m.cancel(a); m._lane.back.append(m._lane.hand[a].claim); m._lane.turn(0)
    assert m.explain(b).startswith('no worker runs'), 'nothing holds it any more, and nobody is there to run it'

def test_explain_limits_that_nobody_here_knows(t, m):
    m.task(note, name='few', limit=1)
    _,b = m.submit_many('a', note, [{}, {}])
    m._lane.turn(2)
    assert run_py(t, "out(mgr(worker=False, tasks=[]).explain(sys.argv[3]))", b).strip()=="it was held back by a limit of its task 'few', which nobody here knows"

def test_explain_a_database_that_cannot_be_written(m, monkeypatch):
    id,_ = m.submit('a', note)
    monkeypatch.setattr(m._lane, 'server', _w.Worker())          # one that was not started
    assert m.explain(id).startswith('it is due since ')
    m._lane._sick(StoreBusy('t.db stayed locked'))
    m._lane.pause_until += 60                                    # the first pause is one of 20 ms, shorter than a busy machine needs to answer
    assert m.explain(id)=='the database cannot be written at the moment: t.db stayed locked'

@pytest.mark.on_sqlite('workers of other machines are not known')
def test_explain_what_the_older_package_left(m):
    m.db.conn.execute("insert into tenant_jobs(id,job_type,status,payload,max_retries,retry_count) values('old','a','pending','{}',3,0)")
    assert m.explain('old')=='it was left by the older package and names no task; see adopt()'

@pytest.mark.on_sqlite('workers of other machines are not known')
def test_explain_what_nobody_knows(t):
    run_py(t, "m = mgr(worker=False); m.submit('z', lambda: 0)")
    m = t.mgr(worker=False)
    m.run_due(); m.run_due()
    z = m.list_jobs('z')[0].id
    assert m.get_job(z).ready==2 and m.explain(z).startswith('no worker runs')
    w = t.mgr()
    w.submit_many('a', note, [{}])
    until(lambda: 'knows its task' in m.explain(z))

def test_explain_for_a_tenant_that_is_frozen(tmp_path):
    from fh_saas.tenants import Tenants
    ts = Tenants(tmp_path/'data')
    try:
        acme = ts.create('acme')
        id,_ = acme.jobs.submit('a', note)
        acme.freeze('unpaid')
        assert acme.jobs.explain(id)=='the tenant is frozen: unpaid' or 'besides, the tenant is frozen: unpaid' in acme.jobs.explain(id)
    finally: ts.close()

def test_pause_of_a_queue_holds_for_parked_jobs(t):
    "Put aside because nobody knew their task, then known again while their queue is paused"
    run_py(t, "def odd(): ...\nm = mgr(worker=False); m.options(queue='mail').submit('z', odd)")
    m = t.mgr(worker=False, tasks=[])
    m.run_due(); m.run_due()
    z, = m.list_jobs('z')
    assert z.ready==2
    m.pause(queue='mail')
    m.task(note, name=z.task); m._lane.parked = [z.task]
    m.run_due()
    assert (m.get_job(z.id).status, m.get_job(z.id).ready)==('pending', 1)
    m.resume(queue='mail')
    assert m.run_due()==1 and statuses(m, z.id)==['completed']
