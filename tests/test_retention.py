"Keep rules and pruning: nothing without a rule, what the rule says with one, in small commits, whatever happens meanwhile"
import math, time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import apsw, psycopg, pytest, work
from fastlite import database
from fh_saas.running import retention, worker as _w
from fh_saas.ids import to_iso
from fh_saas.running.retention import PAGE, Pruner, Sweep
from fh_saas.store.base import StoreBusy
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager
from util import all_done, both, change, home, on_server, opened, process, run_py, said, stop_worker, until

stores = both
DAY = 86400
NOW = 1.8e9       # the time in these tests
def at(days_ago): return to_iso(NOW-days_ago*DAY)

def add(m, n, days=10., status='completed', job_type='a', made=None, first=0, payload='{}'):
    "So many jobs that ended so many days ago, submitted then or when `made` says"
    with m._lane.store.writing() as c:
        if m._lane.store.remote:
            return c.own("""insert into tenant_jobs(id,job_type,status,payload,created_at,completed_at,task) select %s||'-'||lpad(i::text,7,'0'), %s, %s, %s, %s, %s, 'm:f' from generate_series(%s::int,%s::int) i""",
                (status, job_type, status, payload, at(days if made is None else made), at(days), first, first+n-1))
        c.execute('''with recursive n(i) as (select ?1 union all select i+1 from n where i<?1+?2-1) insert into tenant_jobs(id,job_type,status,payload,created_at,completed_at,task)
            select ?3||printf('-%07d',i), ?4, ?3, ?7, ?5, ?6, 'm:f' from n''', (first, n, status, job_type, at(days if made is None else made), at(days), payload))

def count(m, **kw): return len(m.list_jobs(limit=10**6, **kw))
def prune(m, **kw): return m.prune(now=NOW, **kw)
def q(m, sql, *args): return m._lane.store.read(sql, args)

def some(t, n): return n//5 if on_server(t) else n       # where filling the table takes longest

def many(m, sql, rows):
    "A change for each row"
    with m._lane.store.writing() as c:
        if m._lane.store.remote: c.raw.cursor().executemany(sql.replace('?', '%s'), list(rows))
        else: c.executemany(sql, rows)

def changes(m, monkeypatch):
    "Gives how many rows were changed so far"
    if not m._lane.store.remote: return m._lane.store._c.total_changes
    from fh_saas.store.pg_file import PgConn
    n,was = [0],PgConn._ran
    def ran(self, *a): got = was(self, *a); n[0] += self._last; return got
    monkeypatch.setattr(PgConn, '_ran', ran)
    return lambda: n[0]

def whole(m):
    "Nothing of jobs that are gone is left, and the file is sound"
    assert not q(m, 'select job from tenant_job_steps where job not in (select id from tenant_jobs)')
    assert not q(m, 'select child from tenant_job_parents where child not in (select id from tenant_jobs)')
    assert not q(m, "select key from tenant_meta where key>='left:' and key<'left;'")
    assert m._lane.store.remote or q(m, 'pragma integrity_check')==[('ok',)]

# --- rules

def test_nothing_without_a_rule(t):
    m = t.look()
    for s in 'completed','failed','cancelled': add(m, 5, 5000, s)
    assert prune(m)==0 and count(m)==15 and m.keeps()==[]

def test_rules_by_status_and_type(t):
    m = t.look()
    for s in 'completed','failed','cancelled':
        for typ in 'a','b': add(m, 2, 10, s, typ, first=0 if typ=='a' else 10)
    m.keep(failed=11); assert prune(m)==0
    m.keep(failed=9, job_type='b'); assert prune(m)==2 and count(m, status='failed', job_type='a')==2
    m.keep(completed=timedelta(days=9.5)); m.keep(completed=math.inf, job_type='a'); assert prune(m)==2
    assert count(m, status='completed', job_type='a')==2==count(m, status='cancelled', job_type='b')
    m.keep(cancelled=0); assert prune(m)==4
    assert {(o.status, o.job_type):o.days for o in m.keeps()}=={('completed',None):9.5, ('completed','a'):math.inf, ('failed',None):11, ('failed','b'):9, ('cancelled',None):0}
    m.keep(completed=None, job_type='a'); assert prune(m)==2
    for o in None,'b': m.keep(completed=None, failed=None, cancelled=None, job_type=o)
    assert m.keeps()==[]

def test_only_what_is_over(t):
    m = t.look()
    id,_ = m.submit('a', work.quick, folder=str(t.dir))
    id2,_ = m.submit('a', work.quick, folder=str(t.dir))
    q2 = "update tenant_jobs set created_at=?, completed_at=?, status=case id when ? then 'running' else status end"
    with m._lane.store.writing() as c: c.execute(q2, (at(99), at(99), id2))
    m.keep(completed=0, failed=0, cancelled=0)
    assert prune(m)==0 and {o.id for o in m.list_jobs()}=={id,id2}

@pytest.mark.on_sqlite('refused before a store is asked')
@pytest.mark.parametrize('kw,e,what', [(dict(completed=-1),ValueError,'completed'), (dict(failed='7'),TypeError,'failed'), (dict(cancelled=True),TypeError,'cancelled'),
    (dict(completed=math.nan),ValueError,'completed'), (dict(completed=timedelta(-1)),ValueError,'completed'), (dict(completed=1, job_type=''),ValueError,'job_type'),
    (dict(completed=1, job_type=5),TypeError,'job_type'), (dict(completed=1, job_type='\ud800'),ValueError,'job_type'), (dict(completed=1, failed=[]),TypeError,'failed')])
def test_bad_rules(t, kw, e, what):
    m = t.look()
    m.keep(completed=3)
    with pytest.raises(e, match=what): m.keep(**kw)
    assert [(o.status,o.days) for o in m.keeps()]==[('completed',3)]

@pytest.mark.on_sqlite('refused before a store is asked')
@pytest.mark.parametrize('kw,e', [(dict(batch=0),ValueError), (dict(batch=1.5),TypeError), (dict(batch=True),TypeError), (dict(now='x'),TypeError), (dict(now=-1),ValueError),
    (dict(now=math.nan),ValueError)])
def test_bad_prune(t, kw, e):
    with pytest.raises(e, match=next(iter(kw))): t.look().prune(**kw)

def test_rules_that_make_no_sense_remove_nothing(t):
    m = t.look()
    add(m, 3)
    change(m, '''insert into tenant_meta values('keep:completed:','"x"'), ('keep:completed:a','-5'), ('keep:pending:','0'), ('keep:failed:',null), ('keep:failed:a','{'),
        ('keep:cancelled','1'), ('keep:completed:b','true')''')
    assert prune(m)==0 and m.keeps()==[]

def test_forever_long(t):
    m = t.look()
    add(m, 3)
    m.keep(completed=1e9); assert prune(m)==0
    m.keep(completed=timedelta.max); assert prune(m)==0

def test_another_process_sees_the_rule(t):
    m = t.look()
    add(m, 3)
    m.keep(completed=5)
    assert f'pruned 3' in run_py(t, f"out('pruned', mgr(worker=False).prune(now={NOW}))")
    run_py(t, "mgr(worker=False).keep(failed=1, job_type='it''s: a')".replace("''", "\\'"))
    assert ('failed',"it's: a",1.) in [(o.status, o.job_type, o.days) for o in m.keeps()]

def test_a_tenants_rule_wins(t):
    ts = Tenants(home(t), worker=False)
    try:
        a,b = (ts.create(o).jobs for o in 'ab')
        for m in a,b: add(m, 2, 10, job_type='mail'); add(m, 2, 10, job_type='x', first=10)
        ts.keep(completed=5, job_type='mail')
        a.keep(completed=20)
        assert (prune(a), prune(b))==(0, 2)
        a.keep(completed=None)
        assert (prune(a), prune(b))==(2, 0)
        ts.keep(completed=1); assert (prune(a), prune(b))==(2, 2)
        assert [o.of for o in b.keeps()]==['all tenants']*2 and [(o.job_type,o.days) for o in ts.keeps()]==[(None,1),('mail',5)]
        with pytest.raises(ValueError, match='failed'): ts.keep(failed=-1)
    finally: ts.close()

# --- small commits

def sweep(m, **kw):
    s = Sweep(m._lane, {('completed',''):5*DAY}, {}, NOW, **kw)
    return s,[o for o in s.steps() if o]

def test_a_hundred_thousand_in_small_commits(t, monkeypatch):
    "By a clock that counts 10 µs a row, no commit holds the lock for 20 ms, and few are much smaller than they need be"
    m = t.look()
    many = some(t, 100_000)
    add(m, many); add(m, 50, 1, first=200_000)
    n = changes(m, monkeypatch)
    s,held = sweep(m, timer=lambda: n()*10e-6)
    assert s.n==many and count(m)==50
    assert max(held)<.02 and abs(sum(held)-many*10e-6)<1e-6 and len(held)<300

@pytest.mark.parametrize('row_s', [.0005, .001, .02])
def test_slow_disk(t, row_s, monkeypatch):
    "Where a row costs a millisecond, a commit has a few"
    m = t.look()
    add(m, 300)
    n = changes(m, monkeypatch)
    s,held = sweep(m, timer=lambda: n()*row_s)
    assert s.n==300 and max(held[1:])<=max(.0081, row_s+1e-6), held

def test_a_disk_that_becomes_slow(t, monkeypatch):
    m = t.look()
    add(m, 6000)
    total = changes(m, monkeypatch)
    def timer():
        n = total()-start
        return n*1e-5 if n<2000 else .02+(n-2000)*2e-4
    start = total()
    s,held = sweep(m, timer=timer)
    slow = [o for o in held if o>.0081]
    assert s.n==6000 and len(slow)<=1, held

def test_large_rows_weigh_more(t, monkeypatch):
    m = t.look()
    add(m, 60, payload='"'+'x'*500_000+'"')
    ns,n = [],changes(m, monkeypatch)
    timer = lambda: n()*10e-6
    s = Sweep(m._lane, {('completed',''):5*DAY}, {}, NOW, timer=timer)
    for _ in s.steps(): ns.append(s.n)
    assert s.n==60 and max(b-a for a,b in zip(ns, ns[1:]))<=30

def test_batch_by_hand(t, monkeypatch):
    m = t.look()
    add(m, 35)
    m.keep(completed=1)
    commits = []
    if on_server(t):
        was = m._lane.store.alone
        monkeypatch.setattr(m._lane.store, 'alone', lambda *a: commits.append(1) or was(*a))
        assert prune(m, batch=3)==35
    else:
        m._lane.store._writer.conn.set_commit_hook(lambda: bool(commits.append(1)))
        try: assert prune(m, batch=3)==35
        finally: m._lane.store._writer.conn.set_commit_hook(None)
    assert len(commits)>=12

def test_a_large_job_goes_in_pieces(t, monkeypatch):
    m = t.look()
    add(m, 3)
    many(m, "insert into tenant_job_steps values(?,?,'1','')", [('completed-0000001',f's{i}') for i in range(20_000)])
    many(m, 'insert into tenant_job_parents values(?,?)', [(f'p{i}','completed-0000001') for i in range(20_000)]+[('p','completed-0000000')])
    n = changes(m, monkeypatch)
    s,held = sweep(m, timer=lambda: n()*2e-6)
    assert s.n==3 and max(held)<.02 and len(held)>8
    whole(m)
    assert not q(m, 'select * from tenant_job_parents')

# --- cheap

def pages(monkeypatch):
    "Counts pages of candidates"
    seen,was = [],retention.page
    monkeypatch.setattr(retention, 'page', lambda *a: seen.append(1) or was(*a))
    return seen

def test_young_history_is_not_read(t, monkeypatch):
    m = t.look()
    add(m, 10); add(m, 100_000, 1, first=1000)
    seen = pages(monkeypatch)
    s,_ = sweep(m)
    assert s.n==10 and len(seen)<=3

def test_what_waited_long_is_found(t):
    "Jobs that ended long after they were submitted, before and behind those that are old"
    m = t.look()
    add(m, 3*PAGE, 2, made=60)                      # too young to go, though submitted early
    add(m, 10, 30, made=60, first=10_000)           # old, behind them
    add(m, 3*PAGE, 1, first=20_000)
    add(m, 10, 30, first=30_000)                    # old, behind what is young: a clock was wrong
    s,_ = sweep(m); assert s.n==10
    more = [sweep(m)[0].n for _ in range(5)]
    assert sum(more)==10 and count(m)==6*PAGE
    with m._lane.store.writing() as c: c.execute('update tenant_jobs set completed_at=? where rowid%100=0', (at(6),))
    assert sum(sweep(m)[0].n for _ in range(8))==6*PAGE//100

def test_long_sweeps_are_seldom(t):
    mono = [0.]
    m = t.look()
    add(m, 10)
    m.keep(completed=5)
    p = Pruner(lambda: mono[0], lambda s: None)
    s = Sweep(m._lane, {('completed',''):5*DAY}, {}, NOW)
    steps = iter([])
    p.lanes.add(m._lane); s.spent = 10.
    assert p._step(s, steps) is None and m._lane.prune_at==500 and not p.lanes

def test_a_sweep_that_was_cut_short_comes_again_soon(t):
    "However long it had been at it before the database was busy: it is not over"
    m = t.look()
    p = Pruner(lambda: 0., lambda s: None)
    s = Sweep(m._lane, {('completed',''):5*DAY}, {}, NOW)
    s.spent = 1000.
    def busy():
        yield 0.
        raise StoreBusy('busy')
    steps = busy()
    p.lanes.add(m._lane)
    assert p._step(s, steps)==0. and p.lanes and p._step(s, steps) is None and m._lane.prune_at==retention.EVERY_S and not p.lanes

# --- what stays

def test_parents_wait_for_their_children(t):
    m = t.look()
    add(m, 3)
    id,_ = m.submit('b', work.quick, folder=str(t.dir))
    with m._lane.store.writing() as c: c.execute("insert into tenant_job_parents values('completed-0000001',?)", (id,))
    m.keep(completed=5, job_type='a')
    assert prune(m)==2 and [o.id for o in m.list_jobs('a')]==['completed-0000001']
    m.run_due()
    assert prune(m)==1 and q(m, 'select count(*) from tenant_job_parents')==[(0,)]      # run_due() has seen that the parent is over
    m.keep(completed=5)
    assert m.prune(now=time.time()+10*DAY)==1
    whole(m)

def test_unique_periods_are_kept(t):
    m = t.look()
    add(m, 3)
    with m._lane.store.writing() as c:
        for id,until in ('completed-0000000', at(-1)),('completed-0000001', at(1)),('completed-0000002', None):
            c.execute('update tenant_jobs set unique_key=?, unique_until=? where id=?', ('t:'+id, until, id))
    m.keep(completed=5)
    assert prune(m)==2 and [o.id for o in m.list_jobs()]==['completed-0000000']
    assert m.prune(now=NOW+2*DAY)==1

def test_retried_between_look_and_lock(t):
    m = t.look()
    add(m, 20, status='failed')
    s = Sweep(m._lane, {('failed',''):5*DAY}, {}, NOW)
    steps = s.steps()
    while s.n==0: next(steps)                       # ten are gone, ten are known to be old
    with m._lane.store.writing() as c: c.execute("update tenant_jobs set status='pending', ready=1, run_at=created_at, completed_at=null where id='failed-0000015'")
    for _ in steps: pass
    assert s.n==19 and [o.status for o in m.list_jobs()]==['pending']

def test_frozen_tenants_keep_everything(t):
    ts = Tenants(home(t), worker=False)
    try:
        m = ts.create('a').jobs
        add(m, 30); ts.keep(completed=1)
        ts['a'].freeze('for the lawyers')
        assert prune(m)==0
        s = Sweep(m._lane, {('completed',''):1}, {}, NOW, batch=5)
        ts['a'].thaw()
        steps = s.steps()
        while not s.n: next(steps)
        ts['a'].freeze()                            # in the middle
        for _ in steps: pass
        assert s.n==5 and count(m)==25
        ts['a'].thaw(); assert prune(m)==25
    finally: ts.close()

def test_starts_that_count_no_longer(t):
    m = t.look()
    many(m, 'insert into tenant_starts values(?,?,?)', [(f'k{i%7}', at(d), f'{i}') for i,d in enumerate([40]*5000+[2]*100)])
    assert prune(m)==0 and q(m, 'select count(*) from tenant_starts')==[(100,)]

def test_memory():
    m = BackgroundTaskManager(database(':memory:'), worker=False)
    add(m, 100); m.keep(completed=5)
    assert prune(m)==100 and count(m)==0
    m.close()

def test_locked(t):
    m = t.look(busy_s=.05)
    add(m, 5); m.keep(completed=5)
    if on_server(t): c = psycopg.connect(t.path); c.execute('select 1 from tenant_jobs for update')
    else: c = apsw.Connection(str(t.path)); c.execute('begin immediate')
    with pytest.raises(StoreBusy): prune(m)
    c.execute('rollback'); c.close()
    assert prune(m)==5

@pytest.mark.on_sqlite('files')
def test_the_file_shrinks_where_it_may(t):
    db = opened(t.path)
    for o in 'pragma auto_vacuum=incremental','vacuum': db.conn.execute(o).fetchall()
    m = t.mgr(db, worker=False)
    add(m, 300, payload='"'+'x'*100_000+'"')
    m._lane.store._writer.conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    was = t.path.stat().st_size
    m.keep(completed=5)
    assert prune(m)==300
    assert q(m, 'pragma freelist_count')[0][0]<=retention.SPARE
    m._lane.store._writer.conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    assert was>30_000_000 and t.path.stat().st_size<was/4
    whole(m); db.conn.close()

# --- in the background

def ahead(m, days=10): m._lane.clock = m.clock = lambda: time.time()+days*DAY

def test_the_worker_prunes(t):
    m = t.mgr()
    m.submit_many('q', work.quick, [dict(folder=str(t.dir))]*50)
    all_done(m, 50)
    w = _w._worker
    m._lane.prune_at = 0.; w._sweep(True)
    assert m._lane.prune_at>0 and w.pruner._thread is None, 'no rule, no thread'
    ahead(m)
    m.keep(completed=5)
    w._sweep(True); assert w.pruner._thread is None, 'not twice a minute'
    m._lane.prune_at = 0.; w._sweep(True)
    until(lambda: count(m)==0)
    until(lambda: w.pruner._thread is None and not w.pruner.lanes)
    assert m._lane.prune_at>time.monotonic()+30

def test_jobs_run_meanwhile(t):
    m = t.mgr()
    add(m, some(t, 10_000), 5000, 'failed')
    m.keep(failed=50)
    w = m._serve()
    m._lane.prune_at = 0.; w._sweep(True)
    for i in range(20): assert m.wait(m.submit('q', work.quick, folder=str(t.dir))[0], 30).status=='completed'
    m.submit_many('q', work.quick, [dict(folder=str(t.dir))]*500)
    all_done(m, 520, 60)
    until(lambda: w.pruner._thread is None)
    assert count(m)==520

def test_closed_in_the_middle(t):
    m = t.mgr()
    add(m, 20_000, 5000); m.keep(completed=5)
    w = m._serve()
    w.pruner.sleep = lambda s: time.sleep(.02)
    m._lane.prune_at = 0.; w._sweep(True)
    until(lambda: q(m, 'select count(*) from tenant_jobs')[0][0]<20_000)
    m.close()
    until(lambda: w.pruner._thread is None)
    m = t.look()
    assert 0<q(m, 'select count(*) from tenant_jobs')[0][0]
    whole(m)

def test_tenants_in_turn(t):
    "Pruning one that has much does not hold up the others"
    ts = Tenants(home(t), tasks=[work.quick])
    try:
        ms = [ts.create(o).jobs for o in 'abc']
        for m,n in zip(ms, (some(t, 20_000), 20, 20)): add(m, n, 5000)
        ts.keep(completed=30)
        p = Pruner(sleep=lambda s: time.sleep(.0005))
        for m in ms: m._lane.prune_at = 0.; p.offer(m._lane)
        until(lambda: not count(ms[1]) and not count(ms[2]))
        assert q(ms[0], 'select count(*) from tenant_jobs')[0][0]
        def over():
            "What was busy for a moment is left, and comes again after a while"
            left = q(ms[0], 'select count(*) from tenant_jobs')[0][0]       # and no list of them: what makes it keeps the interpreter from the pruner
            if left and p._thread is None: ms[0]._lane.prune_at = 0.; p.offer(ms[0]._lane)
            return not left
        until(over)
    finally: ts.close(); stop_worker()

# --- crashes, several processes

STEPS = "insert into tenant_job_steps select tenant_jobs.id, 's'||n, '1', '' from tenant_jobs, (select 1 as n union all select 2 union all select 3) x"

def test_kill_in_the_middle(t):
    m = t.look()
    n = some(t, 20_000)
    add(m, n)
    change(m, STEPS)
    many(m, "insert into tenant_job_steps values('completed-0000700',?,'1','')", [(f't{i}',) for i in range(5000)])
    m.keep(completed=5)
    for _ in range(4):
        was = q(m, 'select count(*) from tenant_jobs')[0][0]
        with process(t, f"m = mgr(worker=False); out('up'); m.prune(batch={some(t, 100)}, now={NOW})") as p:
            said(p, 'up')
            until(lambda: q(m, 'select count(*) from tenant_jobs')[0][0]<was)
            p.kill()
        assert not q(m, "select job from tenant_job_steps where job not in (select id from tenant_jobs) and 'left:'||job not in (select key from tenant_meta)")
    left = count(m)
    assert 0<left<n and prune(m)==left
    whole(m)

def test_a_note_of_what_was_left_survives(t):
    "Killed after the large job went and before its steps did: the next sweep removes them"
    m = t.look()
    add(m, 1)
    many(m, "insert into tenant_job_steps values('completed-0000000',?,'1','')", [(f't{i}',) for i in range(3000)])
    s = Sweep(m._lane, {('completed',''):1}, {}, NOW)
    steps = s.steps()
    while not s.n: next(steps)
    steps.close()                                    # as a kill would
    assert count(m)==0 and q(m, 'select count(*) from tenant_job_steps')==[(3000,)]
    m._lane.store.shut('frozen: '); prune(m); m._lane.store.unshut()
    assert q(m, 'select count(*) from tenant_job_steps')==[(3000,)] and q(m, "select key from tenant_meta where key>='left:' and key<'left;'")
    prune(m)
    whole(m)

def test_a_note_of_a_job_that_was_retried(t):
    "Noted as large, and retried before it went: its steps stay; when it goes later, they go"
    m = t.look()
    add(m, 1, status='failed')
    many(m, "insert into tenant_job_steps values('failed-0000000',?,'1','')", [(f't{i}',) for i in range(3000)])
    with m._lane.store.writing() as c:
        c.execute("insert into tenant_meta values('left:failed-0000000','')")
        c.execute("update tenant_jobs set status='pending', ready=1, run_at=created_at, completed_at=null")
    m.keep(failed=1); prune(m)
    assert q(m, 'select count(*) from tenant_job_steps')==[(3000,)]
    with m._lane.store.writing() as c: c.execute("update tenant_jobs set status='failed', ready=null, completed_at=created_at")
    assert prune(m)==1
    whole(m)

def test_several_processes_at_once(t):
    m = t.look()
    n = some(t, 6000)
    add(m, n); add(m, 100, 1, first=50_000)
    with m._lane.store.writing() as c: c.execute(STEPS)
    m.keep(completed=5)
    code = f"""
m = mgr(worker=False); out('up'); sys.stdin.readline()
out('pruned', m.prune(batch=40, now={NOW}))"""
    with process(t, code) as a, process(t, code) as b, process(t, code) as c:
        for p in a,b,c: said(p, 'up')
        for p in a,b,c: p.stdin.write('\n'); p.stdin.flush()
        ns = [int(p.stdout.readline().split()[1]) for p in (a,b,c)]
    assert sum(ns)==n and sum(o>0 for o in ns)>1 and count(m)==100
    whole(m)

def test_several_threads_at_once(t):
    m = t.look()
    n = some(t, 3000)
    add(m, n); m.keep(completed=5)
    with ThreadPoolExecutor(4) as ex: ns = list(ex.map(lambda _: prune(m, batch=20), range(4)))
    assert sum(ns)==n
