"Options that meet: what works alone must work together"
import asyncio, json, threading, time

import cpu, pytest, work
from fh_saas.flow import call, chain
from fh_saas.ids import from_iso, to_iso
from fh_saas.utils_bgtsk import BackgroundTaskManager, JobContext
from util import all_done, done, end, process, run_py, said, stop_worker, until

ran,begun = [],threading.Event()
def note(x=None): ran.append(x); return x
def boom(x=None): raise OSError(f'boom {x}')

@pytest.fixture(autouse=True)
def fresh(): ran.clear()

@pytest.fixture
def clock(job_clock): return job_clock
@pytest.fixture
def m(t, clock): return t.mgr(worker=False, clock=clock)      # nothing runs but by run_due(), and time stands still

def statuses(m, *ids): return [m.get_job(o).status for o in ids]

# --- rates, and who wakes up for them

def test_a_rate_is_looked_at_when_it_lets_go(m, clock):
    m.task(note, name='rated', rate=(1, 60))
    m.submit_many('a', note, [dict(x=i) for i in range(3)])
    lane = m._lane
    assert len(lane.turn(5))==1
    assert lane.due_at==clock.t+60

def test_a_closed_tenant_is_opened_when_a_rate_lets_go(tmp_path, clock):
    from fh_saas.tenants import Tenants
    ts = Tenants(tmp_path/'data', clock=clock)
    ts.task(note, name='rated', rate=(1, 60))
    try:
        jobs = ts.create('acme').jobs
        jobs.submit_many('a', note, [dict(x=i) for i in range(2)])
        until(lambda: ran==[0] and any(o.held for o in jobs.list_jobs()))
        e = ts._pool.entries['acme']
        until(lambda: e.lane is None or ts._pool._shut(e))
        assert e.due_at==clock.t+60
        clock.tick(61)
        until(lambda: ran==[0, 1])
    finally: stop_worker(); ts.close()

def test_a_rate_whose_clock_was_put_back(m, clock):
    "An hour back: what started in the future does not hold anybody up for an hour"
    m.task(note, name='rated', rate=(2, 60))
    m.submit_many('a', note, [dict(x=i) for i in range(6)])
    assert m.run_due()==2
    clock.tick(-3600)
    assert m.run_due()==2 and m.run_due()==0
    j, = m.list_jobs(status='pending', limit=1)
    assert m.explain(j.id).endswith(f'the next may at {to_iso(clock.t+60)}')
    clock.tick(60); assert m.run_due()==2

# --- run_due in a process of its own, as from the system's cron

PARTS = '''
@task(name='rated', rate=(2, 60))
def rated(x): return x
@task(name='limited', limit=1)
def limited(x): return x
class Clock:
    t = float(sys.argv[3])
    def __call__(self): return self.t
m = mgr(worker=False, clock=Clock())
'''
def test_run_due_lets_go_what_a_rate_held_elsewhere(t):
    run_py(t, PARTS+"m.submit_many('a', rated, [dict(x=i) for i in range(5)]); assert m.run_due()==2", 1_800_000_000)
    run_py(t, PARTS+"assert m.run_due()==0", 1_800_000_059)
    run_py(t, PARTS+"assert m.run_due()==2", 1_800_000_061)

def test_run_due_takes_back_what_the_dead_left(t):
    "Killed while one of three has the only place: the next process runs all three"
    code = "m.submit_many('a', limited, [dict(x=i) for i in range(3)]); a, = m._lane.turn(3); m._lane.start(a); os.kill(os.getpid(), 9)"
    run_py(t, PARTS+code, 1_800_000_000, rc=-9)
    m = t.look()
    assert m.explain(m.list_jobs(status='running')[0].id).startswith('its process died, and no worker runs')
    run_py(t, PARTS+"assert m.run_due()==3", 1_800_000_001)
    assert len(m.list_jobs(status='completed'))==3

def test_run_due_runs_what_others_parked(t):
    known = "\n@task(name='later')\ndef later(): return 1\n"
    run_py(t, PARTS+known+"m.submit_many('a', later, [{}])", 1_800_000_000)
    run_py(t, PARTS+"assert m.run_due()==0 and m.list_jobs()[0].ready==2", 1_800_000_000)
    run_py(t, PARTS+known+"assert m.run_due()==1", 1_800_000_000)

# --- by hand

def test_a_held_job_run_by_hand_is_held_no_more(m):
    m.pause(job_type='a')
    id,bg = m.submit('a', note, x=1)
    assert m.run_due()==0 and m.get_job(id).held=='t:a'
    bg.func(*bg.args, **bg.kwargs)
    assert (m.get_job(id).status, m.get_job(id).held, ran)==('completed', None, [1])

async def asleep(): await asyncio.sleep(20)
def looks(job:JobContext):
    while True: begun.set(); job.check(); time.sleep(.002)

@pytest.mark.parametrize('how', ['run_due', 'by hand'])
@pytest.mark.parametrize('what', ['timeout', 'cancel'])
@pytest.mark.parametrize('f', [asleep, looks, cpu.gate], ids=lambda f: f.__name__)
def test_ends_without_a_worker(t, f, what, how):
    "A timeout and a cancel reach what runs in the caller's thread: an async task, one that looks, a child process"
    m,began = t.look(),time.monotonic()
    id,bg = m.options(**dict(timeout=.1, max_retries=1) if what=='timeout' else {}).submit('a', f, **dict(folder=str(t.dir)) if f is cpu.gate else {})
    if what=='cancel':
        def cancel(): until(lambda: m.get_job(id).started_at); m.cancel(id)
        threading.Thread(target=cancel, daemon=True).start()
    m.run_due() if how=='run_due' else bg.func(*bg.args, **bg.kwargs)
    j = m.get_job(id)
    assert j.status==('failed' if what=='timeout' else 'cancelled') and ('Timed out after 0.1 s' if what=='timeout' else 'Cancelled while it ran') in j.error_log
    assert time.monotonic()-began<15

def test_a_call_by_hand_returns_once_its_end_is_written(t, monkeypatch):
    "By the timer's thread, where the time was up: here that takes its time"
    m,write = t.look(),BackgroundTaskManager._write_end
    monkeypatch.setattr(BackgroundTaskManager, '_write_end', lambda self, lane: (time.sleep(.2), write(self, lane)))
    id,bg = m.options(timeout=.1, max_retries=1).submit('a', looks)
    bg.func(*bg.args, **bg.kwargs)
    assert m.get_job(id).status=='failed'

def test_a_job_that_waits_for_its_parents_or_a_pause_says_so_to_who_waits(m):
    p,_ = m.options(delay=99).submit('a', note)
    m.pause(job_type='h'); h,_ = m.submit('h', note); m.run_due()
    for id,why in ((p, 'it is due at'), (m.options(after=p).submit('a', note)[0], f'it waits for job {p}'), (h, "job type 'h' is paused")):
        with pytest.raises(TimeoutError, match=f'is still pending after 0.01 s: {why}'): m.wait(id, .01)
        with pytest.raises(TimeoutError, match=f'is still pending after 0.01 s: {why}'): asyncio.run(m.await_job(id, .01))

def test_unique_for_without_unique(m):
    with pytest.raises(ValueError, match='unique_for needs unique'): m.options(unique_for=60).submit('a', note)
    m.task(note, name='once', unique=True, unique_for='pending')
    assert m.options(unique_for=60).submit('a', note)[1].created and m.options(unique=False).submit('a', note)[1].created
    assert len(m.list_jobs())==2

def test_explain_names_all_that_holds(m, clock):
    "A job that is not due yet would not run then either; one whose parents an older version ended is about to be let go"
    m.pause(queue='q'); m.pause(job_type='h')
    assert m.explain(m.options(queue='q', delay=9).submit('a', note)[0])==f"it is due at {to_iso(clock.t+9)}; besides, queue 'q' is paused since {to_iso(clock.t)}"
    assert m.explain(m.options(delay=9).submit('h', note)[0]).endswith(f"besides, job type 'h' is paused since {to_iso(clock.t)}")
    h,_ = m.submit('h', note); assert m.explain(h).startswith("job type 'h' is paused"); m.run_due()
    m._lane.store.shut('frozen: unpaid')
    assert m.explain(h)==f"job type 'h' is paused since {to_iso(clock.t)}; besides, the tenant is frozen: unpaid"
    m._lane.store.unshut()
    p,_ = m.options(delay=99).submit('a', note); c,_ = m.options(after=p).submit('a', note, x='kid')
    with m._lane.store.writing() as conn: conn.execute("update tenant_jobs set status='completed', ready=null where id=?", (p,)).fetchall()     # as older versions do
    assert m.explain(c).startswith('the jobs it waited for are over, and no worker runs')
    m.run_due()
    assert ran==['kid']

def test_explain_beside_processes_that_run_nothing(t):
    "A web process with worker=False lives: still no worker. One runs, and stops: there was one"
    m = t.look()
    with process(t, "m = mgr(worker=False); out('up'); sys.stdin.readline()") as p:
        said(p, 'up')
        id,_ = m.submit('a', note)
        assert m.explain(id).startswith('no worker runs')
        with process(t, "m = mgr(tasks=[]); out('up'); m.run()") as q:
            said(q, 'up')
            until(lambda: 'knows its task' in m.explain(id))
            end(q, 15)
        assert m.explain(id).startswith('no worker runs')

def test_a_background_task_does_not_wait_for_what_is_paused(t):
    m = t.mgr(wait_s=None)
    m.pause(job_type='a'); m.pause(queue='q')
    asyncio.run(m.submit('b', note, x='b')[1]())
    assert ran==['b']
    for id,bg in (m.submit('a', note), m.options(queue='q').submit('b', note)):
        asyncio.run(asyncio.wait_for(bg(), 15))
        assert m.get_job(id).status=='pending'

# --- flows and retries

def test_retry_of_a_child_whose_parent_failed(m):
    "It would fail again at once: say so, and change nothing"
    f = chain(m, call('a', boom, 1), call('b', note))
    m.run_due()
    was = m.get_job(f.last)
    assert was.status=='failed'
    with pytest.raises(ValueError, match=f'parent {f.ids[0]} failed'): m.retry(f.last)
    assert m.get_job(f.last)==was
    m.retry(f.ids[0]); assert m.retry(f.last).status=='pending' and f.counts()=={'pending':2}

def test_retry_of_a_flow_that_was_cancelled(m):
    f = chain(m, call('a', note, x=1), call('b', note, x=2), call('c', note, x=3))
    m.cancel(f.ids[0])
    assert statuses(m, *f.ids)==['cancelled', 'failed', 'failed']
    for o in f.ids: m.retry(o)
    assert m.run_due()==3 and ran==[1, 2, 3] and f.counts()=={'completed':3}

def test_retry_failed_counts_what_is_pending(m):
    "A child whose parent is not among those tried again fails once more, and is not counted"
    f = chain(m, call('a', boom, 1), call('b', note))
    m.run_due()
    assert m.retry_failed('b')==0 and m.get_job(f.last).status=='failed'
    assert m.retry_failed()==2 and f.counts()=={'pending':2}
