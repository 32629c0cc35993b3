"What somebody else does between two lines of ours: the other's deed is done there, in the same thread, so that each test ends one way"
import threading, time
from types import SimpleNamespace

import pytest
from fh_saas.store.base import StoreBusy, _T
from fh_saas.running import waiting
from fh_saas.running import worker as _w
from fh_saas.running.lane import Lane
from fh_saas.utils_bgtsk import Discard
from util import both, done, on_server, until

stores = both

def once(monkeypatch, owner, name, before=None, after=None):
    "Have something done before or after the next call of a method, once"
    was = getattr(owner, name)
    def f(*a, **kw):
        monkeypatch.setattr(owner, name, was)
        if before: before()
        got = was(*a, **kw)
        if after: after()
        return got
    monkeypatch.setattr(owner, name, f)

def add(a, b=1): return a+b
def rated(): return 1
def no(): raise Discard('no')

# --- by hand

def test_by_hand_while_the_start_cannot_be_counted(t, monkeypatch):
    "A job was claimed by hand, and then the database was locked: it goes back, and does not run for ever"
    m = t.look(tasks=[rated])
    m.task(rated, name='rated', rate=(5, 60))
    id,bg = m.submit('x', rated)
    def locked(*a): raise StoreBusy('locked')
    monkeypatch.setattr(m._lane.limits, '_started', locked)
    with pytest.raises(StoreBusy): bg.func(*bg.args)
    monkeypatch.undo()
    assert m.run_due()==1 and m.get_job(id).status=='completed'

# --- this package itself fails

def brief(i): return i
def longer(i): time.sleep(.001); return i
async def awaited(i): return i

@pytest.mark.parametrize('fails', ['start', 'end', 'end twice'])
@pytest.mark.parametrize('task', [brief, longer, awaited], ids=lambda f: f.__name__)
def test_an_error_of_our_own_is_a_failed_attempt(t, monkeypatch, caplog, task, fails):
    "P2: an attempt that this package itself cannot begin, or whose end it cannot hand over, has failed: neither that job nor a neighbour is held for ever"
    monkeypatch.setattr(_w, 'BEAT_S', .1)          # what nobody holds is looked for so often
    m = t.mgr(tasks=[task], handoff=0)
    for _ in range(3): done(m, m.submit('x', task, i=0)[0])         # by now it is known to be short or not
    name,left = fails.split()[0],[2 if 'twice' in fails else 1]
    was = getattr(Lane, name)
    def odd(self, a, *args, **kw):
        if '-1' in a.claim.payload and left[0]: left[0] -= 1; raise OSError('odd')
        return was(self, a, *args, **kw)
    monkeypatch.setattr(Lane, name, odd)
    ids = m.submit_many('x', task, [dict(i=i) for i in (1, -1, 2)])
    for o in (ids[0], ids[2]): done(m, o)
    j = until(lambda: (j := m.get_job(ids[1])).status=='pending' and j, 30)
    m.retry(ids[1]); done(m, ids[1])
    assert not left[0] and 'an error of fh_saas itself' in caplog.text
    if fails!='end twice': assert 'fh_saas itself failed at it' in j.error_log and 'OSError: odd' in j.error_log and j.retry_count==1
    until(lambda: not m._lane.hand and not _w._worker.spells and not _w._worker.running)

@pytest.mark.parametrize('name', ['start', 'end'])
def test_an_error_of_our_own_by_hand(t, monkeypatch, caplog, name):
    m = t.look(tasks=[brief])
    id,bg = m.submit('x', brief, i=0)
    def odd(*a, **kw): monkeypatch.undo(); raise OSError('odd')
    monkeypatch.setattr(Lane, name, odd)
    bg.func(*bg.args)
    j = m.get_job(id)
    assert (j.status,j.retry_count)==('pending',1) and 'OSError: odd' in j.error_log and 'an error of fh_saas itself' in caplog.text
    bg.func(*bg.args)
    assert m.get_job(id).status=='completed' and not m._lane.byhand

gate = threading.Event()
def held(i): gate.wait(30)

def fails_once(monkeypatch):
    "The end of an attempt cannot be handed over, at the first try; at the second the gate opens"
    was,n = Lane.end,[0]
    def odd(*a, **kw):
        n[0] += 1
        if n[0]==1: raise OSError('odd')
        try: return was(*a, **kw)
        finally: gate.set()
    gate.clear()
    monkeypatch.setattr(Lane, 'end', odd)

def test_an_error_of_our_own_when_time_is_up(t, monkeypatch):
    "P2: an attempt whose time is up and whose end cannot be handed over has failed all the same"
    m = t.mgr(tasks=[held, brief], handoff=0)
    fails_once(monkeypatch)
    id,_ = m.options(timeout=.02).submit('x', held, 1, i=0)
    done(m, id, status='failed')
    assert 'OSError: odd' in m.get_job(id).error_log
    done(m, m.submit('x', brief, i=0)[0])

def test_an_error_of_our_own_when_time_is_up_by_hand(t, monkeypatch):
    m = t.look(tasks=[held])
    fails_once(monkeypatch)
    id,bg = m.options(timeout=.02).submit('x', held, 1, i=0)
    bg.func(*bg.args)
    until(lambda: m.get_job(id).status=='failed')
    assert 'OSError: odd' in m.get_job(id).error_log

def test_no_thread_in_place_of_a_stuck_one(t, monkeypatch):
    "P2: the system gives no more threads: the job has timed out all the same, and the thread goes on with others when its task returns"
    class Thread(threading.Thread):
        def start(self):
            if self.name.endswith('-more'): refused.append(self.name); raise RuntimeError("can't start new thread")
            super().start()
    refused = []
    m = t.mgr(tasks=[held, brief], handoff=0, threads=1)
    monkeypatch.setattr(_w, 'threading', SimpleNamespace(**{**vars(threading), 'Thread':Thread}))
    gate.clear()
    done(m, m.submit('x', brief, i=0)[0])
    n = _w._worker.nthreads
    id,_ = m.options(timeout=.02).submit('x', held, 1, i=0)
    done(m, id, status='failed')
    other,_ = m.submit('x', brief, i=0)
    until(lambda: refused)
    gate.set()
    done(m, other)
    until(lambda: not _w._worker.running)
    assert not _w._worker.stuck and _w._worker.nthreads==n

# --- wait

def test_retried_while_somebody_looks(t, monkeypatch):
    "A failed job that is retried just then has not ended for those who wait: not even with an odd error"
    m = t.look(tasks=[no])
    id,_ = m.submit('x', no)
    m.run_due()
    got,store = [],m._lane.store
    once(monkeypatch, store, 'get', before=lambda: m.retry(id))
    w = waiting.Waits()
    w.by = {m._using:{id:waiting._Wait()}}
    w.by[m._using][id].fs.append(got.append)
    w._look(m._using, [id])
    assert not got and m.get_job(id).status=='pending'
    m.run_due()
    w._look(m._using, [id])
    assert [o['status'] for o in got]==['failed']

# --- one transaction, and others beside it

def keys():
    pytest.importorskip('cryptography', reason='comes with the extra `crypto`')
    from fh_saas.keys import new_key
    return [new_key(), new_key()]

def claims(store, who='w'):
    "What a worker elsewhere claims at this moment; None where it waits for a lock"
    try:
        with store.turning(.2): return [o.id for o in store.claim(who, store.now(), 10, _T(59))]
    except StoreBusy: return None

def test_who_holds_a_key_waits_for_the_rows(t):
    "The job that stands for one submitted in a transaction begins only once its rows are there; else nobody would see to them"
    m = t.look()
    a,_ = m.options(unique='k').submit('x', add, a=1)
    with m.transaction():
        b,bg = m.options(unique='k').submit('x', add, a=1)
        assert (b,bg.created)==(a,False) and not claims(m._lane.store)
    assert claims(m._lane.store)==[a]

def test_who_held_a_key_begins_just_then(t, monkeypatch):
    "Where that job begins before its key is seen, under a key for what is pending, the new one is a job of its own, and not none"
    from fh_saas.store import controls
    m = t.look()
    a,_ = m.options(unique='k', unique_for='pending').submit('x', add, a=1)
    with m.transaction():
        once(monkeypatch, controls, 'holders', before=lambda: claims(m._lane.store))
        b,bg = m.options(unique='k', unique_for='pending').submit('x', add, a=1)
    assert b and (bg.created, m.get_job(a).status)==((True, 'running') if b!=a else (False, 'pending')) and m.get_job(b).status=='pending'

def test_an_end_while_all_is_sealed_anew(t, monkeypatch):
    "What a job returned in its own transaction just when its row was sealed anew is not lost"
    from fh_saas.store import sealed
    ks = keys()
    m = t.look(keys=ks[1:])
    id,_ = m.submit('x', add, a=1)
    m.close()
    m = t.look(keys=ks)
    store,ends = m._lane.store,[]
    with store.writing(): c = store.claim_one('w', store.now(), id, _T(59))
    def end():
        "Write the end on a connection of its own, as `job.transaction()` does"
        try: conn = store.private(.2)
        except StoreBusy: return
        try:
            ends.append(not store.on(conn).complete([('"kept"', _T(1), _T(2), *c[:3])]))
            store.commit(conn)
        except StoreBusy: ends.pop()
        except Exception as e: assert on_server(t) and 'timeout' in str(e)
        finally: conn.close()
    once(monkeypatch, sealed, '_anew', before=end)
    assert m.reseal()==1
    if not ends: end()
    assert ends==[True] and (m.get_job(id).status,m.get_job(id).result)==('completed','"kept"')

def test_keys_of_before_and_after_sealing(t):
    "A job under a plain key and one under the same key sealed wait both: to seal the first is no error, and it lets go of its key"
    m = t.look()
    a,_ = m.options(unique='k').submit('x', add, a=1)
    m.close()
    m = t.look(keys=keys())
    b,_ = m.options(unique='k').submit('x', add, a=1)
    assert m.reseal()>=1 and m.get_job(a).unique_key is None
    assert m.options(unique='k').submit('x', add, a=1)[0]==b and m.run_due()==2

# --- leases and ends

def test_a_long_job_by_hand_keeps_its_lease(t):
    "A script without a worker holds its job for as long as it takes, and no other machine takes it"
    m = t.look()
    store,lane = m._lane.store,m._lane
    lane.lease_s = 9.
    def by_hand():
        (_,lease), = store.owners()
        if on_server(t): until(lambda: store.owners()[0][1]>lease, 20)
    m.task(by_hand, name='by_hand')
    id,bg = m.submit('x', by_hand)
    bg.func(*bg.args)
    assert m.get_job(id).status=='completed'
    assert not [o for o in threading.enumerate() if o.name=='fh_saas-lease']

def test_closed_while_the_database_is_locked(t, monkeypatch):
    "The end of a job that cannot be written as its manager is closed is written later, and not left to run for ever under a process that lives"
    m = t.mgr()
    store,lane = m._lane.store,m._lane
    go = threading.Event()
    def waits(): return go.wait(30)
    m.task(waits, name='waits')
    id,_ = m.options(delay=0).submit('x', waits)
    until(lambda: m.get_job(id).status=='running')
    def locked(*a, **kw): raise StoreBusy('locked')
    monkeypatch.setattr(store, 'turning', locked)
    go.set()
    until(lambda: lane.acks)
    m.close()
    monkeypatch.undo()
    assert done(t.look(), id, 20).result=='true'

def test_closed_while_a_job_runs_by_hand(t):
    "A job that the app runs by hand, and that goes on when its manager is closed, goes back: it is not left running under a process that lives"
    keep = t.look()
    m = t.look(drain_s=.05)
    began,go = threading.Event(),threading.Event()
    def waits(): began.set(); return go.wait(30)
    for o in (keep, m): o.task(waits, name='waits')
    id,bg = m.submit('x', waits)
    th = threading.Thread(target=bg.func, args=bg.args)
    th.start()
    assert began.wait(30)
    keep.close(); m.close()
    late = t.look()
    assert late.get_job(id).status=='pending'
    go.set(); th.join(30)
    late.task(waits, name='waits')
    assert late.run_due()==1 and (late.get_job(id).status,late.get_job(id).retry_count)==('completed',0)

# --- flows

def test_a_key_is_taken_while_a_flow_is_stored(t, monkeypatch):
    "What waits for a job of a flow waits for the one that took its unique key at that moment, and not for a job that there is not"
    from contextvars import Context
    from fh_saas.flow import call, chain
    if not on_server(t): return                # nobody else writes meanwhile
    from fh_saas.store import postgres
    m,other = t.look(),[]
    def submit(): other.append(Context().run(lambda: m.options(unique='k').submit('x', add, a=1)[0]))
    once(monkeypatch, postgres, '_put_rows', before=submit)
    with m.transaction(): f = chain(m, call('x', add, a=1).options(unique='k'), call('y', add, a=2))
    child = m.get_job(f.last)
    assert f.ids[0]==other[0] and (child.parents, child.ready)==(f'["{other[0]}"]', 4)
    assert m.run_due()==2 and m.get_job(f.last).status=='completed'
