"What is heard of jobs: events of each transition, subscribers that are slow or broken"
import os, sys, threading, time
from contextlib import closing

import pytest, work
from fh_saas.retry import Discard, Snooze
from fh_saas.running.executor import Outcome
from fh_saas.running.lane import Attempt
from fh_saas.telemetry import subscribe, unsubscribe
from fh_saas.tenants import Tenants
from util import all_done, done, end, process, run_py, said, until

gate,begun = threading.Event(),threading.Event()
def note(x=None): return x
def boom(x=None): raise OSError(f'boom {x}')
def waits(x=None): begun.set(); gate.wait(20)
def snooze(): raise Snooze(60)
def discard(): raise Discard('no use')

@pytest.fixture
def clock(job_clock): return job_clock
@pytest.fixture
def m(t, clock): return t.mgr(worker=False, clock=clock)

class Heard(list):
    def __call__(self, event, **f): self.append((event, f))
    def names(self, id=None): return [e for e,f in self if id is None or f.get('job_id')==id]
    def of(self, event): return [f for e,f in self if e==event]

@pytest.fixture
def heard():
    gate.clear(); begun.clear()
    stop = subscribe(h := Heard(), queue=None)
    yield h
    gate.set(); stop()

# --- each transition

def test_ends_of_attempts(m, clock, heard):
    a,_ = m.submit('ok', note, x=1)
    b,_ = m.submit('bad', boom, 2)
    c,_ = m.submit('no', discard)
    d,_ = m.submit('later', snooze)
    m.run_due(); clock.t += 10; m.run_due(); clock.t += 60; m.run_due()
    assert heard.names(a)==['job.submitted', 'job.started', 'job.completed']
    assert heard.names(b)==['job.submitted', 'job.started', 'job.retry', 'job.started', 'job.failed']
    assert heard.names(c)==['job.submitted', 'job.started', 'job.failed']
    assert heard.names(d)==['job.submitted', 'job.started', 'job.snoozed', 'job.started', 'job.snoozed']
    f = heard.of('job.retry')[0]
    assert (f['attempt'],f['how'],f['job_type'],f['tenant'],f['store'])==(1, 'failed', 'bad', None, str(m._lane.name)) and 'boom None' in f['error'] and f['run_at']>f['ended']
    assert [o['attempt'] for o in heard.of('job.started') if o['job_id']==b]==[1, 2]
    f = heard.of('job.completed')[0]
    assert f['took_s']>=0 and f['began'] and f['how']=='returned' and f['error'] is None and heard.of('job.submitted')[0]['task'].endswith(':note')

def test_cancel(m, t, heard):
    a,_ = m.submit('a', note)
    m.cancel(a)
    assert heard.names(a)==['job.submitted', 'job.cancelled'] and heard.of('job.cancelled')[0]['job_type']=='a'
    w = t.mgr(t.db(), handoff=0)
    b,_ = w.submit('b', waits)
    begun.wait(10); assert not w.cancel(b); gate.set()
    done(w, b, status='completed')                  # it did not look, and returned
    until(lambda: 'job.completed' in heard.names(b))
    assert heard.names(b)==['job.submitted', 'job.started', 'job.cancel_asked', 'job.completed']

def test_cancelled_while_it_failed(m, heard):
    "The row is cancelled in place of a retry, and the event says so"
    lane = m._lane
    id,_ = m.submit('a', boom)
    with lane.store.writing(): c = lane.store.claim_one(lane.owner, lane.now(), id, lane.lease())
    with lane.store.writing() as conn: conn.execute('update tenant_jobs set cancel_at=? where id=?', (lane.now(), id))
    lane.hand[id] = a = Attempt(c, lane.known.resolve(c.task, id), lane, 0.)
    m._attempt(lane, a)
    assert m.get_job(id).status=='cancelled' and heard.names(id)[-1]=='job.cancelled'

def test_timeout(t, heard):
    m = t.mgr(handoff=0)
    id,_ = m.options(timeout=.05, max_retries=1).submit('a', waits)
    done(m, id, status='failed')
    until(lambda: 'job.failed' in heard.names(id))
    assert heard.of('job.failed')[0]['how']=='timeout' and 'Timed out' in heard.of('job.failed')[0]['error']

def test_held_parked_released(m, t, clock, heard):
    m.pause(job_type='mail')
    id,_ = m.submit('mail', note)
    m.run_due()
    assert heard.names(id)==['job.submitted', 'job.held'] and heard.of('job.held')[0]['line']=='t:mail'
    m.resume(job_type='mail'); m.run_due()
    assert heard.names(id)[-2:]==['job.started', 'job.completed']
    run_py(t, "mgr(worker=False).submit('x', lambda: 1)")
    clock.t = time.time()+1
    m.run_due()
    assert len(heard.of('job.parked'))==1
    lane = m._lane
    m.submit('y', note)
    a, = lane.turn(1); lane.back.append(a.claim); lane.turn(0)
    assert heard.names(a.claim.id)[-1]=='job.released'

def test_schedule(m, clock, heard):
    m.cron('@hourly', note, name='every hour')
    m.run_due(); clock.t += 3600; assert m.run_due()==1
    f, = heard.of('schedule.fired')
    assert f['schedule']=='every hour' and heard.names(f['job_id'])==['schedule.fired', 'job.submitted', 'job.started', 'job.completed']

def test_retry_and_prune(m, clock, heard):
    id,_ = m.submit('a', boom, 1)
    m.run_due(); m.retry(id); assert heard.names(id)[-2:]==['job.failed', 'job.retried']
    m.run_due(); assert m.retry_failed()==1 and heard.of('jobs.retried')[0]['count']==1
    m.run_due(); m.keep(failed=1); clock.t += 2*86400
    assert m.prune()==1 and heard.of('jobs.pruned')[0]['count']==1

def test_children(m, heard):
    a,_ = m.submit('a', boom, 1)
    b,_ = m.options(after=[a]).submit('b', note)
    m.run_due()
    assert heard.names(b)==['job.submitted', 'job.failed'] and heard.of('job.failed')[1]['attempt']==0

def test_crash(t, heard):
    "A process is killed: what it ran is heard of in the one that took it back"
    with process(t, "m = mgr(tasks=[gated], handoff=0); id,_ = m.submit('a', gated, folder=folder, name='h'); out('up'); time.sleep(60)") as p:
        said(p, 'up'); until(lambda: t.log('start'))
        end(p)
    m = t.mgr(tasks=[work.gated])
    t.go()
    until(lambda: 'job.rescued' in heard.names())
    f, = heard.of('job.retry')
    assert f['how']=='crashed' and 'Crashed' in f['error'] and heard.of('job.rescued')[0]['count']==1

def test_refused(m, heard):
    id,_ = m.submit('a', note)
    lane = m._lane
    a, = lane.turn(1); lane.start(a)
    with lane.store.writing() as c: c.execute('update tenant_jobs set fence=fence+1')
    lane.end(a, Outcome('returned'), .1); lane.turn(0)
    assert heard.names(id)==['job.submitted', 'job.started', 'job.refused']

def test_tenant_is_named(tmp_path, heard):
    with closing(Tenants(tmp_path, worker=False)) as ts:
        ts.create('acme')
        m = ts['acme'].jobs
        m.submit('a', note); m.run_due()
        assert {f['tenant'] for e,f in heard if e.startswith('job.')}=={'acme'}

# --- subscribers

def test_raising_subscriber_hurts_nothing(t):
    subs = [subscribe(lambda event, **f: 1/0), subscribe(lambda event: None, queue=None), subscribe(lambda *a, **k: sys.exit())]
    try:
        m = t.mgr(handoff=0)
        ids = m.submit_many('a', note, [dict(x=i) for i in range(200)])
        all_done(m, 200)
        assert all(o.flush() for o in subs)
        assert [o.failed>=600 for o in subs]==[True]*3
    finally:
        for o in subs: o()

def test_slow_subscriber_hurts_nothing(t):
    "It is stuck at its first event: all jobs end meanwhile, and what its queue does not hold is counted"
    stuck = threading.Event()
    s = subscribe(lambda event, **f: stuck.wait(60), queue=50)
    try:
        m = t.mgr(handoff=0)
        m.submit_many('a', note, [dict(x=i) for i in range(300)])
        all_done(m, 300)
        assert not stuck.is_set()
        until(lambda: s.dropped>=900-51)
        assert not s.flush(.01)
    finally: stuck.set(); s()

def test_events_come_in_order(m):
    h = Heard()
    s = subscribe(h)
    ids = [m.submit('a', note)[0] for _ in range(50)]
    m.run_due()
    assert s.flush() and unsubscribe(h) and not unsubscribe(h)
    assert all(h.names(i)==['job.submitted', 'job.started', 'job.completed'] for i in ids)

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_after_fork(t):
    "A forked child hears its own events, in a thread of its own"
    out = run_py(t, '''
from fh_saas.telemetry import subscribe, emit
s = subscribe(lambda event, **f: out(os.getpid()==f['pid'], event))
emit('parent', pid=os.getpid()); s.flush()
if (pid := os.fork())==0: emit('child', pid=os.getpid()); s.flush(); os._exit(0)
os.waitpid(pid, 0)''')
    assert out.split('\n')[:2]==['True parent', 'True child']

def test_heard_until_the_process_ends(t):
    out = run_py(t, '''
from fh_saas.telemetry import subscribe
subscribe(lambda event, **f: (time.sleep(.01), out(event)))
m = mgr(worker=False); m.submit('a', quick, folder=folder, name='x'); m.run_due()''')
    assert out.split()==['job.submitted', 'job.started', 'job.completed']
