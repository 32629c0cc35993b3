"What another process may do between two steps of this one: the step in between is done where the first has just ended"
import apsw, os, threading, time
from contextlib import suppress

import pytest, work
from fastlite import database
from fh_saas import tenants as tn
from fh_saas.rollout import Rollout
from fh_saas.running import moving as mv, presence as presence_of
from fh_saas.running.check_in import check_in
from fh_saas.running.moving import TenantBusy, give_back, take
from fh_saas.running.presence import Presence
from fh_saas.running.slots import Slots
from fh_saas.store.base import StoreError
from fh_saas.store.passport import passport
from fh_saas.store.registry import Registry
from fh_saas.store.sqlite import SqliteStore
from fh_saas.tenants import Tenant, Tenants
from test_tenants import TASKS, House, h

def between(monkeypatch, home, name, do, after=False):
    "Have `do` done once, before `home.name` is called for the first time from now on, or after it"
    old,todo = getattr(home, name),[do]
    def f(*a, **kw):
        if after: got = old(*a, **kw)
        if todo: todo.pop()()
        return got if after else old(*a, **kw)
    monkeypatch.setattr(home, name, f)
    return todo

def gate(t):
    s = SqliteStore(t.path)
    try: return passport(s).gate
    finally: s.close()

# --- the same name, another tenant

def test_another_process_deletes_and_makes_anew(h):
    "Whoever had the old one open writes to the new one, not to a file that is gone"
    a,b = h.ts(),h.ts()
    a.create('acme')
    kept = b['acme']
    kept.db.execute('create table note(x)'); kept.jobs.submit('j', work.quick, folder=str(h.dir))
    a['acme'].delete('acme')
    a.create('acme').db.execute('create table note(x)')
    assert b['acme'].jobs.list_jobs()==[] and list(kept.db.execute('select * from note'))==[]
    b['acme'].db.execute('insert into note values(1)'); kept.db.execute('insert into note values(2)')
    b['acme'].jobs.submit('j', work.quick, folder=str(h.dir))
    assert list(a['acme'].db.execute('select x from note'))==[(1,),(2,)] and len(a['acme'].jobs.list_jobs())==1

@pytest.mark.parametrize('touched', [False, True])
def test_another_process_renames_and_makes_anew(h, touched):
    "Neither rows nor jobs of the new tenant go to the old one, whichever of the two was changed last"
    a,b = h.ts(),h.ts()
    a.create('acme')
    kept = b['acme']
    kept.db.execute('create table note(x)'); m = kept.jobs; m.submit('j', work.quick, folder=str(h.dir))
    a['acme'].rename('old')
    a.create('acme')
    if touched: a['old'].set(weight=2.)
    assert b['acme'].jobs.list_jobs()==[] and b['acme'].db.conn.filename==a['acme'].path==kept.db.conn.filename
    assert len(m.list_jobs())==1 and m.id=='old', 'a manager that was kept stays its tenant\'s'
    assert len(b['old'].jobs.list_jobs())==1 and b['old'].db.conn.filename==a['old'].path

def test_another_process_moves(h):
    "The app's database is the one in the new place, also where no worker runs that would hear of it"
    a,b = h.ts(),h.ts()
    a.create('acme')
    kept = b['acme']
    kept.db.execute('create table note(x)')
    a['acme'].move(h.dir/'far')
    kept.db.execute('insert into note values(1)')
    assert list(a['acme'].db.execute('select x from note'))==[(1,)]

# --- the gate

def test_thawed_while_it_is_being_frozen(h, monkeypatch):
    "The registry has the last word about the gate"
    a,b = h.ts(),h.ts()
    t = a.create('acme')
    between(monkeypatch, Tenant, '_file', b['acme'].thaw)
    t.freeze('unpaid')
    assert (t.status,gate(t))==('active',None)

def test_frozen_while_it_is_being_thawed(h, monkeypatch):
    a,b = h.ts(),h.ts()
    t = a.create('acme')
    t.freeze()
    between(monkeypatch, Tenant, '_file', lambda: b['acme'].freeze('unpaid'))
    t.thaw()
    assert (t.status,gate(t))==('frozen','frozen: unpaid')

@pytest.mark.parametrize('status', ['moving', 'deleting'])
@pytest.mark.parametrize('how', ['freeze', 'thaw'])
def test_taken_while_it_is_being_thawed(h, monkeypatch, how, status):
    "Nothing begins in a tenant that another process is about to move or delete"
    a,b = h.ts(),h.ts()
    t = a.create('acme')
    def other():
        take(b.registry, 'acme', status, b._here.owner)
        with b['acme']._file() as f: f.shut(f'{status}: ')
    between(monkeypatch, Tenant, '_file', other)
    getattr(t, how)()
    assert gate(t).startswith(status)

def test_frozen_while_a_move_is_undone(h):
    "What was undone by somebody else already is not undone twice"
    a = h.ts()
    t = a.create('acme')
    row = take(a.registry, 'acme', 'moving', 'me')
    a.registry.swap('acme', 'moving', status='active')
    t.freeze('unpaid')
    s = SqliteStore(t.path)
    give_back(a.registry, row, s)
    s.close()
    assert (t.status,gate(t))==('frozen','frozen: unpaid')

def test_deleted_while_it_is_resumed(h, monkeypatch):
    "Who resumes does not take a tenant away from who deletes it"
    a,b = h.ts(),h.ts()
    t = a.create('acme')
    a.registry.set('acme', status='quarantined')
    between(monkeypatch, tn, 'passport', lambda: take(b.registry, 'acme', 'deleting', b._here.owner, ('quarantined',)), after=True)
    with pytest.raises(TenantBusy): t.resume()
    assert t.status=='deleting'

# --- taking a tenant

def test_moved_while_a_rename_begins(h, monkeypatch):
    "A tenant that moves keeps its name: the one who moves it goes by that"
    a,b = h.ts(),h.ts()
    t = a.create('acme')
    between(monkeypatch, Registry, 'rename', lambda: take(b.registry, 'acme', 'moving', b._here.owner, moving_to='\nx'))
    with pytest.raises(TenantBusy): t.rename('new')
    assert 'new' not in a and t.status=='moving'

def test_moved_away_while_another_begins(h, monkeypatch):
    "What is taken is the tenant as it is then, not as it was a moment before"
    a,b = h.ts(),h.ts()
    a.create('acme')
    between(monkeypatch, Registry, 'get', lambda: b['acme'].move(h.dir/'far'), after=True)
    row = take(a.registry, 'acme', 'deleting', a._here.owner)
    assert (row.path,row.epoch)==((now := a.registry.get('acme')).path,now.epoch)

def test_undone_while_it_is_being_deleted(h, monkeypatch):
    "A tenant that was given back meanwhile, and whose jobs may run, is not deleted"
    a,b = h.ts(),h.ts()
    t = a.create('acme')
    between(monkeypatch, tn, 'drain', lambda: mv._recover(b.registry, b.registry.get('acme')), after=True)
    with pytest.raises(TenantBusy): t.delete('acme')
    assert t.status=='active' and gate(t) is None

# --- creating

def test_two_take_the_same_file_over(h, monkeypatch):
    "A file is one tenant's"
    a,b = h.ts(),h.ts(busy_s=.1)
    path = h.dir/'there.db'
    SqliteStore(str(path)).close()
    def other():
        with suppress(StoreError): b.create('beta', path=path)
    between(monkeypatch, tn, 'passport', other, after=True)
    with suppress(ValueError, StoreError): a.create('alpha', path=path)
    assert len([r for r in a.registry.rows() if a.registry.full(r.path)==str(path)])==1

def test_looked_into_while_it_is_taken_over(h, monkeypatch):
    "A worker that sees the new row at once does not find a file without identity"
    a,path = h.ts(),h.dir/'there.db'
    SqliteStore(str(path)).close()
    def look():
        s = SqliteStore(str(path), wait_s=.05)
        try: check_in(Registry(a.registry.path), 'acme', s)
        except StoreError: pass                    # it waits for the lock, longer than this test
        finally: s.close()
    between(monkeypatch, Registry, 'add', look, after=True)
    t = a.create('acme', path=path)
    assert (t.status,gate(t))==('active',None)

def test_made_while_another_clears_up_after_itself(h, monkeypatch):
    "A file that could not be registered is removed, unless it is another tenant's by now"
    a,b = h.ts(),h.ts(busy_s=.1)
    old,todo = Registry.keep,[lambda: 1/0]
    monkeypatch.setattr(Registry, 'keep', lambda *o: todo.pop()() if todo else old(*o))
    def other():
        with suppress(StoreError): b.create('acme')
    between(monkeypatch, Registry, 'by_path', other, after=True)
    with pytest.raises(ZeroDivisionError): a.create('acme')
    assert all(a.registry.full(r.path) and (h.dir/'data'/r.path).exists() for r in a.registry.rows())
    assert 'acme' in b or not (h.dir/'data'/'acme.db').exists()

# --- moving

def test_looked_into_while_it_arrives(h, monkeypatch):
    "A worker of the other Tenants that sees it arrive leaves no gate shut"
    a = h.ts()
    other = Tenants(h.dir/'other', worker=False, tasks=TASKS); h.opened.append(other)
    t = a.create('acme')
    t.jobs.submit('j', work.quick, folder=str(h.dir), name='x')
    def look():
        s = SqliteStore(other.registry.full(other.registry.get('acme').path))
        try: check_in(other.registry, 'acme', s); assert passport(s).gate.startswith('moving')
        finally: s.close()
    between(monkeypatch, mv, '_receive', look, after=True)
    t = t.move(other)
    assert (t.status,gate(t))==('active',None)
    t.jobs.run_due()
    assert h.names()==['x']

def test_the_disk_is_away_when_a_move_is_seen_to(h):
    "A move that was cut short before anything was copied has not ended because its file cannot be seen"
    a = h.ts()
    other = Tenants(h.dir/'other', worker=False, tasks=TASKS); h.opened.append(other)
    t = a.create('acme')
    path = t.path
    a._pool.close()
    take(a.registry, 'acme', 'moving', None, moving_to=f'{other.registry.path}\n{h.dir}/other/acme.db')
    (h.dir/'data').joinpath('acme.db').rename(h.dir/'away.db')
    mv.recover(a.registry, lambda o: False, a._here.owner)
    assert a.registry.get('acme').status=='moving'
    (h.dir/'away.db').rename(path)
    mv.recover(a.registry, lambda o: False, a._here.owner)
    assert (t.status,t.path)==('active',path)

# --- rollouts

def test_a_rollout_waits_for_a_move(h):
    "A tenant that moves has not failed: it gets its job once it has arrived"
    ts = h.many(2)
    r = ts.submit_all('u', work.quick, dict(folder=str(h.dir)), canaries=0)
    row = take(ts.registry, 't000', 'moving', ts._here.owner, moving_to='\nx')
    r.advance()
    assert r.progress()['running']==2 and not r.failures()
    give_back(ts.registry, row)
    for t in ts.values(): t.jobs.run_due()
    assert r.wait(5)['completed']==2

def test_renamed_while_a_rollout_looks(h, monkeypatch):
    "What is found out about a tenant under its old name is not put down under the new one"
    ts = h.many(1)
    r = ts.submit_all('w', work.quick, dict(folder=str(h.dir)), canaries=0)
    between(monkeypatch, Rollout, '_look', lambda: h.ts()['t000'].rename('new'))
    r.advance()
    assert not r.failures()
    ts['new'].jobs.run_due()
    assert r.wait(5)['completed']==1 and len(h.log('ran'))==1

# --- looking after tenants

def test_who_died_while_the_registry_was_away(h, monkeypatch):
    "Is remembered until the tenants that it had open were looked into"
    ts = h.ts()
    ts._source = s = tn._Source(ts)
    seen,todo = [],[0]
    def changed(self):
        if todo: todo.pop(); raise StoreError('away')
        return False
    monkeypatch.setattr(Registry, 'changed', changed)
    monkeypatch.setattr(ts._pool, 'sweep', lambda dead: seen.append(set(dead)), raising=False)
    s.sweep(['x']); s.sweep([]); s.sweep([])
    assert seen==[{'x'}, set()]

def test_a_job_that_is_gone_is_not_given_twice(h):
    "A rule removed it before the rollout looked: nobody knows how it ended, and the tenant does not get it again"
    ts = h.many(1)
    r = ts.submit_all('w', work.quick, dict(folder=str(h.dir)), canaries=0)
    m = ts['t000'].jobs
    m.run_due(); m.keep(completed=0); m.prune()
    assert not m.list_jobs()
    r.advance(); m.run_due()
    assert len(h.log('ran'))==1 and 'removed' in r.failures()['t000'] and r.wait(5)['state']=='stopped'

def test_killed_before_it_has_noted_that_a_job_was_given(h, monkeypatch):
    "The job is there, so it is not given again, and from then on that is known"
    ts = h.many(1)
    monkeypatch.setattr(Rollout, '_note', lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): ts.submit_all('w', work.quick, dict(folder=str(h.dir)), canaries=0)
    monkeypatch.undo()
    r, = ts.rollouts()
    r.advance()
    assert ts.registry.read('select state,error from tenant_rollout_jobs')==[('running', '')] and len(ts['t000'].jobs.list_jobs())==1
    ts['t000'].jobs.run_due()
    assert r.wait(5)['completed']==1 and len(h.log('ran'))==1

def test_renamed_while_it_is_opened(h, monkeypatch):
    "Its place among those that are open is given back when it is closed"
    ts = h.many(1)
    pool,old = ts._pool,ts._pool.opener
    def opener(e):
        lane = old(e)
        ts['t000'].rename('new')
        return lane
    monkeypatch.setattr(pool, 'opener', opener)
    lane = pool.lane('t000')
    assert lane.tenant=='new' and list(pool.open)==['new']
    assert pool._shut(pool.entries['new']) and not pool.open

def test_marks_outlive_a_registry_that_was_away(h, monkeypatch):
    "How many attempts have ended is said once the registry is there again: or a backup from before them would be taken for the tenant's file"
    ts = h.many(1, jobs=2)
    ts['t000'].jobs.run_due()
    old,todo = Registry.copy_marks,[0]
    def away(*a):
        if todo: todo.pop(); raise StoreError('away')
        return old(*a)
    monkeypatch.setattr(Registry, 'copy_marks', away)
    lane = ts._lane('t000')
    ts._pool._shut(ts._pool.entries['t000'])
    with pytest.raises(StoreError): ts._flush()
    ts._flush()
    assert ts['t000'].row.mark==2

def test_a_process_of_another_machine_is_given_time(h, monkeypatch):
    "On a server nothing is known here of who deletes a tenant there: that is not undone under his hands at once"
    ts = h.many(1)
    now = [0.]
    monkeypatch.setattr(ts.registry, 'remote', True, raising=False)
    monkeypatch.setattr(ts.registry, 'open', lambda p: SqliteStore(p, create=False), raising=False)
    def look(alive=None): return mv.recover(ts.registry, lambda o: alive, ts._here.owner, lambda: now[0])
    def begin(): return take(ts.registry, 't000', 'deleting', 'elsewhere')
    row = begin()
    assert look()==[]
    now[0] = 100.; assert look()==[]
    give_back(ts.registry, row); assert look()==[]
    begin(); now[0] = 200.; assert look()==[], 'it counts anew'
    now[0] = 321.; assert look()==['t000'] and ts['t000'].status=='active'
    begin(); assert look(False)==['t000'], 'one that has died here is not waited for'

# --- presence and slots

def test_a_database_that_could_not_be_noted(tmp_path, monkeypatch):
    "A full disk keeps nobody from his database, and once there is room it is noted"
    p,old = Presence(tmp_path),os.write
    def full(*a): raise OSError(28, 'No space left on device')
    try:
        p.note('a')
        monkeypatch.setattr(os, 'write', full)
        p.note('b')
        monkeypatch.setattr(os, 'write', old)
        p.note('b')
        assert p.noted(p.owner)==['a', 'b']
    finally: p.close()

def test_who_asks_for_a_slot_after_the_clock_was_put_back(tmp_path, monkeypatch):
    "Is heard as well"
    here = [Presence(tmp_path) for _ in range(2)]
    a,b = map(Slots, here)
    for o,s in zip(here, (a,b)): o.slots = s
    now = [10**18]
    monkeypatch.setattr(time, 'time_ns', lambda: now[0])
    try:
        got = a.take('k', 1, 'x')
        b.take('k', 1, 'y')
        now[0] += 10**9
        assert a._asker(a.lines['k'])==here[1].owner
        now[0] -= 3600*10**9
        b._ask(b.lines['k'])
        now[0] += 10**9
        assert a._asker(a.lines['k'])==here[1].owner and got
    finally:
        for o in here: o.close()

def test_without_file_locks_a_living_process_is_not_taken_for_dead(h, monkeypatch):
    "Where it cannot be known who lives, what somebody has begun a moment ago is left to him"
    monkeypatch.setattr(presence_of, 'fcntl', None)
    other = Presence(h.dir/'data')
    ts = h.many(1)
    try:
        assert ts._here.alive(other.owner) is None
        take(ts.registry, 't000', 'deleting', other.owner)
        ts._clear_up()
        assert ts['t000'].status=='deleting'
    finally: other.close()

# --- leftovers of the first review

def test_the_app_opens_a_file_of_another_registry(h):
    "Its jobs are not trusted: where it was copied, they would run twice"
    ts = h.many(1, 1)
    ts._pool.close()
    b = Tenants(h.dir/'other', open=lambda t: database(str(h.dir/'data'/'t000.db')), worker=False, tasks=TASKS); h.opened.append(b)
    t = b.create('mine')
    t.jobs.run_due()
    assert (t.status,h.names())==('quarantined',[]) and gate(t).startswith('quarantined')
    t.resume(); t.jobs.run_due()
    assert (t.status,len(h.names()))==('active',1)

@pytest.mark.parametrize('home,name,after', [(Registry, 'by_path', True), (Tenants, '_stamped', False), (tn, 'stamp', False), (Tenants, '_stamped', True), (Tenants, '_settle_in', True)])
def test_the_app_opens_one_file_for_two(h, monkeypatch, home, name, after):
    "Of two who make a tenant of it at the same time, one does, and the other leaves the file alone"
    opens = lambda t: database(str(h.dir/'one.db'))
    a,b = h.ts(open=opens),h.ts(open=opens, busy_s=.1)
    def other():
        with suppress(ValueError, StoreError, apsw.Error): b.create('beta')
    between(monkeypatch, home, name, other, after)
    with suppress(ValueError, StoreError): a.create('alpha')
    t, = a.values()
    t.jobs.submit('j', work.quick, folder=str(h.dir), name='x'); t.jobs.run_due()
    assert (t.status,gate(t),h.names())==('active',None,['x'])

def test_resumed_while_its_jobs_are_discarded(h, monkeypatch):
    "What may run again is not cancelled"
    a,b = h.ts(),h.ts()
    t = a.create('acme')
    t.jobs.submit('j', work.quick, folder=str(h.dir))
    a.registry.set('acme', status='quarantined')
    t.jobs.list_jobs()
    between(monkeypatch, Tenant, '_file', b['acme'].resume)
    with pytest.raises(TenantBusy): t.discard_jobs()
    assert len(t.jobs.list_jobs(status='pending'))==1

def test_a_zone_that_its_file_does_not_hear_of(h, monkeypatch):
    "Is not changed: the file's schedules would make up slots of a zone in which the tenant was not"
    ts = h.ts()
    t = ts.create('acme')
    old,todo = tn.note,[0]
    def full(*a):
        if todo: todo.pop(); raise StoreError('the disk is full')
        return old(*a)
    monkeypatch.setattr(tn, 'note', full)
    with pytest.raises(StoreError): t.set(timezone='Europe/Berlin', weight=2.)
    assert (t.row.timezone,t.row.weight)==('UTC',None)
    t.set(timezone='Europe/Berlin')
    assert t.row.timezone=='Europe/Berlin'

def test_a_rollout_does_not_hold_up_the_sweep(h, monkeypatch):
    "A tenant that is slow to be looked at keeps nobody from the leases and from what the dead have left"
    ts = h.many(2)
    ts._source = s = tn._Source(ts)
    ts.submit_all('u', work.quick, dict(folder=str(h.dir)), canaries=0)
    go,at = threading.Event(),threading.Event()
    old = Rollout._look
    def slow(self, *a):
        at.set(); assert go.wait(60)
        return old(self, *a)
    monkeypatch.setattr(Rollout, '_look', slow)
    t = threading.Thread(target=lambda: [s.sweep([]) for _ in range(3)]); t.start()
    assert at.wait(60)
    try: t.join(10); assert not t.is_alive()
    finally: go.set(); t.join()
    for o in ts.values(): o.jobs.run_due()
    assert ts.rollouts()[0].wait(5)['completed']==2

def test_closed_while_a_rollout_looks(h, monkeypatch):
    "A tenant is not failed because this process closes"
    ts = h.many(1)
    r = ts.submit_all('u', work.quick, dict(folder=str(h.dir)), canaries=0)
    def close(): ts.closed = True; raise StoreError('t000.db is closed')
    between(monkeypatch, Tenant, '_file', close)
    r.advance()
    ts.closed = False
    assert not r.failures() and r.progress()['running']==1

def test_the_app_opens_a_file_that_it_had_begun_to_make(h, monkeypatch):
    "A crash before it was registered leaves nothing that could run twice: the next try gets it"
    opens = lambda t: database(str(h.dir/f'{t.id}.db'))
    a = h.ts(open=opens)
    monkeypatch.setattr(Tenants, '_settle_in', lambda *a, **kw: 1/0)
    with pytest.raises(ZeroDivisionError): a.create('acme')
    monkeypatch.undo()
    t = a.create('acme')
    assert (t.status,gate(t))==('active',None)
