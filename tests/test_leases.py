"A lease of another machine that has run out is noticed within a second, whatever the machine that is to notice it has just been through"
import time

import psycopg, pytest
from fh_saas.ids import to_iso
from fh_saas.running.lane import open_lane
from fh_saas.running.lane_pool import LanePool
from fh_saas.running.worker import Worker
from fh_saas.store.base import StoreBusy, StoreError
from fh_saas.tenants import Tenants
import work_pg as work

@pytest.fixture(params=['schema', 'database'])
def ts(pg, request):
    "Tenants whose worker is ours to call: no thread of it runs"
    ts = Tenants(pg, layout=request.param, worker=False, handoff=0, tasks=[work.add])
    yield ts
    ts.close()
    with psycopg.connect(pg, autocommit=True) as c:
        for o, in c.execute("select datname from pg_database where datname like 't\\_%'").fetchall(): c.execute(f'drop database "{o}" with (force)')

def gone(lane, s):
    "A machine claims a job, and its lease ends in so many seconds"
    with lane.store.turning(): assert len(lane.store.claim('gone', lane.now(), 1, to_iso(lane.clock()+s)))==1

def served(ts, n):
    "Lanes of `n` tenants, with a job each, and a worker that does nothing by itself"
    w = Worker()
    for i in range(n):
        jobs = ts.create(f't{i}').jobs
        jobs.submit('a', work.add, a=1, b=2)
        w.lanes.append(lane := jobs._lane)
        lane.seen,lane.server = set(),w
    return w,list(w.lanes)

def test_it_does_not_wait_for_a_pause(ts):
    "A lane that met a failure, as all do while the server is away, pauses; what another machine left there does not wait for that, and nor does the lane after it"
    w,lanes = served(ts, 10)
    lane = lanes[3]
    gone(lane, -1.)
    for i in range(9): lane._sick(StoreError('the server is away'))
    assert lane.pause_until-time.monotonic()<=1.           # it was five seconds
    lane.lapse_at,lane.pause_until = 0.,float('inf')       # the look before left word of when the lease ends
    w.leases.look()
    assert not lane.store.owners() and lane.store.due() and lane.pause_until<=time.monotonic() and lane in w.todo

def test_it_is_asked_for_when_it_ends(ts):
    "A look into the tenant leaves word of when that is"
    w,lanes = served(ts, 3)
    gone(lanes[1], 4.)
    w._sweep(False, {})
    left = lanes[1].lapse_at-lanes[1].clock()
    assert 3.<left<=4. and lanes[0].lapse_at==float('inf')
    w.leases.look()
    assert lanes[1].store.owners()
    ahead = lanes[1].clock
    lanes[1].clock = lambda: ahead()+left+.01
    assert .02<=w.leases.look()<=.5 and not lanes[1].store.owners()

@pytest.mark.parametrize('what', ['locked', 'gone'])
def test_a_tenant_that_cannot_be_read_hides_no_other(ts, what, pg):
    "Its tables are locked by somebody, or are gone"
    w,lanes = served(ts, 10)
    bad,lane = lanes[2],lanes[7]
    gone(lane, -1.)
    with psycopg.connect(pg if ts._layout=='schema' else f'{pg[:pg.rfind("/")]}/t_t2') as c:
        s = '"t_t2".' if ts._layout=='schema' else ''
        c.execute(f'lock table {s}tenant_workers' if what=='locked' else f'drop table {s}tenant_workers')
        if what=='gone': c.commit()
        for o in bad,lane: o.lapse_at = 0.
        w.leases.look()
        c.rollback()
    assert not lane.store.owners()
    if what=='locked': assert bad.again_at>time.monotonic()

def test_two_machines_that_take_back_at_once(ts):
    "The one that comes too late leaves the lane as it is: it was no failure of the database"
    w,(lane,) = served(ts, 1)
    gone(lane, -1.)
    lane.lapse_at = 0.
    with lane.store._pool.use(5.) as raw:
        c = lane.store._conn(raw)
        c.begin(5., alone=True)
        w.leases.look()
        assert not lane.pauses and lane.store.owners()
        soon = lane.again_at-time.monotonic()
        c.own('rollback')
    assert soon<=.1
    lane.again_at = 0.
    w.leases.look()
    assert not lane.store.owners()

@pytest.mark.parametrize('what', ['busy', 'lease'])
def test_a_ring_that_could_not_be_followed_comes_again_soon(ts, monkeypatch, what):
    "Somebody held the lock for a moment; that was five seconds. And the ring for a job that runs comes when the lease ends"
    w,(lane,) = served(ts, 1)
    ts._pool.worker = w
    gone(lane, 3. if what=='lease' else -1.)
    monkeypatch.setattr(Tenants, '_claims', lambda *a: False)
    if what=='lease': assert 2.<ts._drain('t0')-ts._engine.clock()<=3.1
    else:
        def busy(*a): raise StoreBusy('somebody has the lock')
        monkeypatch.setattr('fh_saas.tenants.rescue', busy)
        waits = [round(ts._drain('t0')-ts._engine.clock(), 1) for i in range(8)]
        assert waits[0]<=.3 and sorted(waits)==waits and 4<waits[-1]<=5., waits
        monkeypatch.undo()
        monkeypatch.setattr(Tenants, '_claims', lambda *a: False)
        assert ts._drain('t0') is True and not ts._undrained
    ts._pool.worker = None

def test_a_ring_for_what_runs_here_comes_when_the_lease_ends(ts):
    "Not a whole lease later: should this machine die, its lease may have been renewed some seconds ago"
    w,(lane,) = served(ts, 1)
    assert len(lane.turn(1))==1
    with lane.store.turning() as c: c.execute('update tenant_workers set lease_until=?', (to_iso(lane.clock()+2.),))
    assert 1.<ts._left(lane, True)-ts._engine.clock()<=2.1

def test_a_closed_tenant(ts):
    "Nobody rings when a machine dies, and this one has closed the tenant: it is opened when the lease ends"
    w,(lane,) = served(ts, 1)
    pool,e = ts._pool,ts._pool.entries['t0']
    gone(lane, 4.)
    pool.worker = w
    lane.users.clear()
    ts._managers.clear()
    assert pool._shut(e) and e.lane is None and list(w.leases.closed)==[e.path]
    pool._todo.clear(); e.queued = False
    w.leases.look()
    assert not pool._todo
    o = w.leases.closed[e.path]
    o.clock = lambda: lane.store.clock()+4.1
    w.leases.look()
    assert [x[2] for x in pool._todo]==[e] and not w.leases.closed
    pool.worker = None

def test_a_closed_tenant_whose_jobs_are_over_is_not_opened(ts):
    "Who has done all work does not take its name off the list"
    w,(lane,) = served(ts, 1)
    pool,e = ts._pool,ts._pool.entries['t0']
    pool.worker = w
    with lane.store.turning(): lane.store.renew('idle', to_iso(lane.clock()+4.))
    lane.users.clear()
    ts._managers.clear()
    lane.due_at = float('inf')
    assert pool._shut(e)
    pool._todo.clear(); e.queued = False
    w.leases.closed[e.path].clock = lambda: lane.store.clock()+4.1
    w.leases.look()
    assert not pool._todo and not w.leases.closed
    pool.worker = None

def test_idle_tenants_cost_nothing(ts, monkeypatch):
    "Where nobody else has a lease, closed tenants are not asked for at all"
    w,(lane,) = served(ts, 1)
    pool,e = ts._pool,ts._pool.entries['t0']
    pool.worker = w
    lane.users.clear()
    ts._managers.clear()
    assert pool._shut(e) and not w.leases.closed
    pool.worker = None
    w.lanes.clear()
    assert w.leases.look()==.5

def test_on_files_the_dead_are_not_kept_waiting(tmp_path):
    "A process died that had locked a file: whoever waited for the lock looks at once, not when its pause of seconds is over, be the file open here or not"
    lane,w = open_lane(str(tmp_path/'a.db')),Worker()
    w.lanes,lane.server,lane.seen = [lane],w,set()
    try:
        with lane.store.writing(): lane.store.renew('gone', to_iso(time.time()+3600))
        (lane.here.dir/'gone.run').write_bytes(b'')             # nobody has it locked
        for i in range(12): lane._sick(StoreBusy('locked'))
        lane.pause_until = float('inf')
        w._sweep(False, w._deaths())
        assert not lane.store.owners()
        pool = LanePool(lambda e: lane, lane.here)
        e = pool.put('b', str(tmp_path/'b.db'))
        (lane.here.dir/'gone.dbs').write_bytes(e.path.encode()+b'\0')
        pool.worker = w
        for i in range(12): pool._failed(e, 'locked')
        pool.sweep(['gone'])
        assert e.queued and e.next_try<=pool.mono()
    finally: lane.server = None; w.lanes.clear(); lane.close()

def test_a_locked_tenant_does_not_keep_the_sweeper(ts, pg):
    "Somebody has locked a tenant's tables, as `forget` does while it writes them anew: the sweeper goes on, or no lease here would be renewed in time"
    w,lanes = served(ts, 3)
    with psycopg.connect(pg if ts._layout=='schema' else f'{pg[:pg.rfind("/")]}/t_t1') as c:
        c.execute('lock table '+('"t_t1".' if ts._layout=='schema' else '')+'tenant_jobs')
        c.execute("set idle_in_transaction_session_timeout='20s'")       # so that a sweeper that waits is seen, and does not wait for ever
        w._sweep(False, {})
        c.rollback()
    assert lanes[1].pauses and not (lanes[0].pauses or lanes[2].pauses) and lanes[2].cared
