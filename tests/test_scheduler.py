"Slots become jobs: once each, in the right zone, after crashes, with several processes, for many tenants"
import json
import pytest
from fh_saas.cron import spread as offset_of
from fh_saas.ids import from_iso, to_iso
from fh_saas.scheduler import Schedule
from fh_saas.tenants import Tenants
from util import both, change, end, home, process, run_py, said, stop_worker, until

stores = both

DAY = 86400.
seen = []
def nightly(slot): seen.append(slot)
def plain(n=1): return n

class Clock:
    def __init__(self, s): self.t = from_iso(s)
    def __call__(self): return self.t
    def at(self, s): self.t = from_iso(s)

@pytest.fixture
def clock(): seen.clear(); return Clock('2026-03-01T12:00:00Z')

@pytest.fixture
def m(t, clock): return t.mgr(worker=False, clock=clock)

def slots(m): return sorted(json.loads(j.payload)['slot'][:16] for j in m.list_jobs(limit=1000))

# --- one database

def test_one_job_for_a_slot(m, clock):
    m.cron('0 9 * * *', tz='Europe/Paris', name='n')(nightly)
    m.run_due(); assert slots(m)==[]
    clock.at('2026-03-02T07:59:59Z'); m.run_due(); assert slots(m)==[]
    clock.at('2026-03-02T08:00:00Z'); m.run_due(); m.run_due()
    assert slots(m)==['2026-03-02T08:00'] and [o[:16] for o in seen]==slots(m)

@pytest.mark.parametrize('policy,want', [('skip', []), ('once', ['2026-03-04T09:00']), ('all', [f'2026-03-0{d}T09:00' for d in (2, 3, 4)])])
def test_catch_up(m, clock, policy, want):
    m.cron('0 9 * * *', nightly, name='n', catch_up=policy)
    clock.at('2026-03-04T12:00:00Z'); m.run_due()
    assert slots(m)==want
    clock.at('2026-03-05T09:01:00Z'); m.run_due()
    assert slots(m)==want+['2026-03-05T09:00'], 'one that is a minute late counts as on time'

def test_summer_time_counts_each_slot_once(m, clock):
    m.cron('30 2 * * *', nightly, tz='Europe/Berlin', name='n', catch_up='all')
    for s in ('2026-03-29T00:59:00Z', '2026-03-29T01:00:00Z', '2026-03-29T01:30:00Z', '2026-03-30T00:30:00Z'): clock.at(s); m.run_due()
    assert slots(m)[-3:]==['2026-03-28T01:30', '2026-03-29T01:00', '2026-03-30T00:30']
    clock.at('2026-10-25T00:00:00Z'); m.run_due(); n = len(slots(m))
    for s in ('2026-10-25T00:30:00Z', '2026-10-25T01:30:00Z', '2026-10-25T02:00:00Z'): clock.at(s); m.run_due()
    assert len(slots(m))==n+1, 'half past two comes twice and runs once'

def test_clock_that_jumps_back_repeats_nothing(m, clock):
    m.cron('0 * * * *', nightly, name='n')
    clock.at('2026-03-01T13:00:00Z'); m.run_due()
    for s in ('2026-03-01T12:30:00Z', '2026-03-01T13:00:00Z', '2026-02-20T12:00:00Z', '2026-03-01T13:00:30Z'): clock.at(s); m.run_due()
    assert slots(m).count('2026-03-01T13:00')==1

def test_clock_that_was_far_ahead_stops_nothing(m, clock):
    m.cron('0 * * * *', nightly, name='n')
    clock.at('2031-01-01T00:00:00Z'); m.run_due()
    clock.at('2026-03-01T14:10:00Z'); m.run_due()
    clock.at('2026-03-01T15:00:00Z'); m.run_due()
    assert '2026-03-01T15:00' in slots(m)

def test_pause_is_not_made_up(m, clock):
    m.cron('0 9 * * *', nightly, name='n', catch_up='all')
    assert m.schedule('n').pause().state=='paused'
    clock.at('2026-03-03T12:00:00Z'); m.run_due(); assert slots(m)==[]
    assert m.schedule('n').resume().state=='active'
    m.run_due(); assert slots(m)==[]
    clock.at('2026-03-04T09:00:00Z'); m.run_due(); assert slots(m)==['2026-03-04T09:00']

def test_a_short_pause_costs_no_run_that_is_still_to_come(m, clock):
    "With a spread, the slot lies before the pause and the run behind it"
    n = next(o for o in map(str, range(99)) if offset_of(m._timetable().seed, 600., o)>120)      # where it comes is a matter of the database's name, too
    m.cron('0 9 * * *', nightly, name=n, spread=600)
    run_at = m.schedule(n).next[0].timestamp()
    assert from_iso('2026-03-02T09:02:00Z')<run_at
    clock.at('2026-03-02T09:00:00Z'); m.run_due()
    m.schedule(n).pause(); clock.t += 60; m.run_due()
    assert m.schedule(n).resume().next[0].timestamp()==run_at
    clock.t = run_at+1; m.run_due(); assert slots(m)==['2026-03-02T09:00']
    m.schedule(n).pause(); clock.t = run_at+DAY+1; m.run_due(); m.schedule(n).resume(); m.run_due(); assert len(slots(m))==1, 'that run fell into the pause'

def test_change_at_run_time_wins_over_the_code_until_reset(t, m, clock):
    m.cron('0 9 * * *', nightly, name='n')
    s = m.schedule('n', expr='0 3 * * *')
    assert (s.expr, s.changed)==('0 3 * * *', {'expr':'0 3 * * *'})
    m.close()
    m = t.mgr(t.db(), worker=False, clock=clock)                 # a deploy, with another time in the code
    m.cron('0 10 * * *', nightly, name='n')
    assert m.schedule('n').expr=='0 3 * * *'
    clock.at('2026-03-02T03:00:00Z'); m.run_due(); assert slots(m)==['2026-03-02T03:00']
    assert m.schedule('n').reset().expr=='0 10 * * *'
    clock.at('2026-03-02T10:00:00Z'); m.run_due(); assert slots(m)==['2026-03-02T03:00', '2026-03-02T10:00']

def test_new_time_counts_from_the_change(m, clock):
    m.cron('0 13 * * *', nightly, name='n')
    m.schedule('n', expr='0 11 * * *'); m.run_due()
    assert slots(m)==[]

def test_orphan_stands_still_and_can_be_removed(t, m, clock):
    m.cron('0 9 * * *', nightly, name='n')
    with pytest.raises(ValueError, match='declared'): m.schedule('n').remove()
    m.close()
    m = t.mgr(t.db(), worker=False, clock=clock)
    assert m.schedule('n').state=='orphaned'
    clock.at('2026-03-05T09:00:00Z'); m.run_due(); assert m.list_jobs()==[]
    m.schedule('n').remove()
    assert m.schedules()==[]

def test_run_now_and_next_runs(m, clock):
    m.cron('0 9 * * *', plain, tz='Asia/Tokyo', name='n', n=7)
    id = m.schedule('n').run(); m.run_due()
    assert m.get_job(id).result=='7'
    assert [o.isoformat() for o in m.schedules(n=2)[0].next]==['2026-03-02T09:00:00+09:00', '2026-03-03T09:00:00+09:00']

@pytest.mark.on_sqlite('refused before a store is asked')
@pytest.mark.parametrize('err,word,args,kw', [
    (ValueError, 'expr', ('nonsense',), {}), (ValueError, 'minute', ('61 * * * *',), {}), (TypeError, 'expr', (5,), {}),
    (ValueError, 'tz', ('0 9 * * *',), dict(tz='Mars/Base')), (TypeError, 'tz', ('0 9 * * *',), dict(tz=3)),
    (ValueError, 'catch_up', ('0 9 * * *',), dict(catch_up='never')), (TypeError, 'catch_up', ('0 9 * * *',), dict(catch_up=None)),
    (ValueError, 'spread', ('0 9 * * *',), dict(spread=-1)), (ValueError, 'spread', ('0 9 * * *',), dict(spread=float('nan'))), (TypeError, 'spread', ('0 9 * * *',), dict(spread='5')),
    (ValueError, 'name', ('0 9 * * *',), dict(name=' ')), (TypeError, 'job_type', ('0 9 * * *',), dict(job_type=5)),
    (ValueError, 'max_retries', ('0 9 * * *',), dict(max_retries=0)), (TypeError, 'other', ('0 9 * * *',), dict(other=1))])
def test_bad_values(t, m, err, word, args, kw):
    ts = Tenants(home(t), worker=False)
    try:
        for o in (m, ts):
            with pytest.raises(err, match=word): o.cron(*args, **kw)(plain)
            with pytest.raises(ValueError, match='func'): o.cron('0 9 * * *', lambda: 1)
            assert o.schedules()==[]
    finally: ts.close()

def test_bad_change_changes_nothing(m):
    m.cron('0 9 * * *', plain, name='n')
    for kw in (dict(expr='x'), dict(tz='Mars/Base'), dict(spread=-1), dict(catch_up='x')):
        with pytest.raises(ValueError): m.schedule('n', **kw)
    with pytest.raises(TypeError, match='colour'): m.schedule('n', colour=1)
    with pytest.raises(KeyError): m.schedule('other')
    with pytest.raises(ValueError, match='name='): m.cron('0 10 * * *', plain, name='n')
    assert m.schedule('n').changed=={} and m.schedule('n').expr=='0 9 * * *'

def test_a_broken_row_holds_up_nobody(m, clock):
    m.cron('0 9 * * *', nightly, name='n'); m.cron('0 9 * * *', plain, name='bad')
    change(m, "update tenant_schedules set changed='{\"expr\":\"x\"}' where name='bad'")
    clock.at('2026-03-02T09:00:00Z'); m.run_due()
    assert seen and m.schedule('bad').state=='broken'

GOOD = dict(expr='0 9 * * *', tz=None, catch_up='once', spread=0., job_type='bad', task='m:f', payload='{}', typed=None, max_retries=3, slot=False)
SPOILED = [('payload', None), ('task', None), ('job_type', None), ('max_retries', None), ('tz', None), ('payload', '[1]'), ('payload', 'no JSON'), ('payload', dict(n=1)), ('payload', 7), ('task', ['a']),
    ('job_type', 5), ('job_type', 'a\0b'), ('max_retries', 'three'), ('max_retries', 2**40), ('typed', ['n']), ('priority', 'first'), ('priority', None), ('priority', 2**40), ('timeout_s', 'x'), ('queue', 5),
    ('tags', ['a']), ('limit_key', {}), ('spread', 'x'), ('catch_up', []), ('expr', 5), ('tz', 'Nowhere')]

@pytest.mark.parametrize('k,v', SPOILED, ids=[f'{k}={str(v)[:9]!r}' for k,v in SPOILED])
def test_a_spoiled_row_costs_itself_alone(m, clock, k, v, caplog):
    "Something is missing or makes no sense in a row that another has written: that schedule stands still and says so; the others and all jobs go on"
    m.cron('0 9 * * *', plain, name='bad'); m.cron('0 9 * * *', nightly, name='n')
    row = {a:b for a,b in GOOD.items() if a!=k} if v is None and k!='priority' else GOOD|{k:v}
    change(m, "update tenant_schedules set code=? where name='bad'", json.dumps(row))
    id,_ = m.submit('p', plain, n=2)
    clock.at('2026-03-02T09:00:00Z'); m.run_due()
    assert len(seen)==1 and m.get_job(id).status=='completed' and not m.list_jobs('bad')
    assert m.schedule('bad').state=='broken' and m.schedule('n').state=='active'
    assert "'bad' stands still" in caplog.text and k in caplog.text and caplog.text.count('stands still')==1
    with pytest.raises(KeyError, match='could be run'): m.schedule('bad').run()
    m.cron('0 9 * * *', plain, name='bad')                        # the app starts again
    clock.at('2026-03-03T09:00:00Z'); m.run_due()
    assert len(seen)==2 and [j.status for j in m.list_jobs('bad')]==['completed']

@pytest.mark.parametrize('done_to', ['2026-03-01 12:00', '2026-03-01T13:00:00+01:00', 'soon', None, '', '20260301T120000Z', '1970-01-02 00:00'])
def test_a_time_that_others_wrote(m, clock, done_to):
    "Of another form, it is a time; where it is none, slots count from now"
    m.cron('0 9 * * *', nightly, name='n')
    change(m, 'update tenant_schedules set done_to=?', done_to)
    m.run_due(); early = len(seen)
    assert early==(done_to=='1970-01-02 00:00')
    clock.at('2026-03-02T09:00:00Z'); m.run_due(); m.run_due()
    assert len(seen)==early+1 and m.schedule('n').state=='active'
    change(m, 'update tenant_schedules set done_to=?', done_to)
    m.schedule('n').pause(); m.schedule('n').resume(); m.schedule('n', expr='0 10 * * *')
    clock.at('2026-03-03T10:00:00Z'); m.run_due()
    assert len(seen)==early+2

@pytest.mark.parametrize('what', ["code='{'", "code='[]'", "changed='{'", "changed='7'", "changed=''", "paused=''", "created_at=null"])
def test_what_is_no_json_says_nothing(m, clock, what):
    m.cron('0 9 * * *', nightly, name='n')
    change(m, f'update tenant_schedules set {what}')
    clock.at('2026-03-02T09:00:00Z'); m.run_due()
    assert len(seen)==1 and m.schedule('n').state in ('active','orphaned')

@pytest.mark.on_sqlite('a column of text takes no bytes there')
def test_bytes_in_a_row(m, clock):
    m.cron('0 9 * * *', nightly, name='n')
    change(m, "insert into tenant_schedules values(x'00ff',x'00ff',x'00ff',x'00ff',x'00ff',x'00ff')")
    change(m, "update tenant_schedules set code=x'00ff', changed=x'00ff', done_to=x'00ff'")
    change(m, "insert or replace into tenant_meta values('thawed_at','some day'),('zone_since',x'00')")
    m.run_due(); clock.at('2026-03-02T09:00:00Z'); m.run_due()
    assert len(seen)==1 and [o.name for o in m.schedules()]==['n']

@pytest.mark.on_sqlite('it looks into files')
def test_the_doctor_sees_a_schedule_that_stands_still(m, t, clock):
    from fh_saas.cli_doctor import files, probe
    m.cron('0 9 * * *', plain, name='bad'); m.cron('0 9 * * *', nightly, name='n')
    look = lambda: next(o for o in files([probe(str(t.path))]) if o.check=='schedules')
    assert look().state=='ok'
    change(m, "update tenant_schedules set code='{}' where name='bad'")
    assert look().state=='ok', 'nothing said there: the code counts'
    change(m, "update tenant_schedules set code=? where name='bad'", json.dumps({a:b for a,b in GOOD.items() if a!='task'}))
    assert (look().state,look().found)==('problem',f"{t.path}: 'bad': task is missing")

def test_a_pruned_job_does_not_come_back(m, clock):
    "`done_to` alone keeps a slot from running again when its job's row is gone"
    m.cron('0 9 * * *', nightly, name='n')
    clock.at('2026-03-02T09:00:00Z'); m.run_due()
    assert m.schedule('n').last_at[:16]=='2026-03-02T09:00'
    change(m, 'delete from tenant_jobs')
    clock.at('2026-03-02T09:01:00Z'); m.run_due()
    assert m.list_jobs()==[] and len(seen)==1

# --- processes

TICK = '''
from fh_saas.ids import from_iso
now = [from_iso('2026-03-01T12:00:00Z')]
def clock(): return now[0] if not os.path.exists(folder+'/later') else from_iso('2026-03-01T13:00:00Z')
m = mgr(clock=clock, handoff=0)
m.cron('0 * * * *', quick, name='n', folder=folder)
out('up')
'''

def test_several_processes_one_job(t):
    with process(t, TICK+'time.sleep(60)') as a, process(t, TICK+'time.sleep(60)') as b, process(t, TICK+'time.sleep(60)', FH_SAAS_WORKER='0') as c:
        for p in (a, b, c): said(p, 'up')
        t.go('later')
        until(lambda: t.log('ran'))
        m = t.look()
        until(lambda: [j.status for j in m.list_jobs()]==['completed'])
    assert len(t.log('ran'))==1 and len(m.list_jobs())==1

def test_no_worker_no_jobs(t):
    t.go('later')
    run_py(t, TICK, FH_SAAS_WORKER='0')
    assert t.look().list_jobs()==[]

def test_killed_and_started_again(t):
    with process(t, TICK+'time.sleep(60)') as a:
        said(a, 'up'); end(a)                     # SIGKILL
    t.go('later')                                 # the slot passes while nobody runs
    for _ in range(2):
        with process(t, TICK+'time.sleep(60)') as a: until(lambda: t.log('ran')); end(a)
    assert len(t.log('ran'))==1

# --- tenants

@pytest.fixture
def many(t, clock):
    made = []
    def make(**kw):
        made.append(ts := Tenants(home(t), clock=clock, **(dict(worker=False, handoff=0)|kw)))
        return ts
    yield make
    for o in made: o.close()
    stop_worker()

def due(ts): [o.jobs.run_due() for o in ts.values()]
def at(ts, id): return slots(ts[id].jobs)

def test_each_tenant_in_its_own_zone(many, clock):
    ts = many()
    for id,tz in (('tokyo', 'Asia/Tokyo'), ('paris', 'Europe/Paris'), ('utc', 'UTC')): ts.create(id, timezone=tz)
    ts.cron('0 9 * * *', nightly, name='own'); ts.cron('0 20 * * *', plain, name='fixed', tz='America/New_York')
    for s in ('2026-03-02T00:00:00Z', '2026-03-02T08:00:00Z', '2026-03-02T09:00:00Z'): clock.at(s); due(ts)
    own = lambda id: sorted(json.loads(j.payload)['slot'][:16] for j in ts[id].jobs.list_jobs('own'))
    assert [own(o) for o in ('tokyo', 'paris', 'utc')]==[['2026-03-02T00:00'], ['2026-03-02T08:00'], ['2026-03-02T09:00']]
    clock.at('2026-03-03T01:00:00Z'); due(ts)
    assert [len(o.jobs.list_jobs('fixed')) for o in ts.values()]==[2, 2, 2]
    assert [str(s.next[0].tzinfo) for s in ts['tokyo'].jobs.schedules()]==['America/New_York', 'Asia/Tokyo']

def test_frozen_slots_are_made_up_by_all_only(many, clock):
    ts = many()
    ts.create('a')
    ts.cron('0 9 * * *', nightly, name='once'); ts.cron('0 9 * * *', nightly, name='all', catch_up='all')
    ts['a'].freeze('bill')
    clock.at('2026-03-03T12:00:00Z'); due(ts); assert ts['a'].jobs.list_jobs()==[]
    ts['a'].thaw(); due(ts)
    assert [len(ts['a'].jobs.list_jobs(o)) for o in ('once', 'all')]==[0, 2]
    clock.at('2026-03-04T09:00:00Z'); due(ts)
    assert [len(ts['a'].jobs.list_jobs(o)) for o in ('once', 'all')]==[1, 3]

def test_spread_is_even_and_stays(many, clock):
    ts = many()
    for i in range(12): ts.create(f't{i}')
    ts.cron('0 9 * * *', nightly, name='n', spread=30)
    clock.at('2026-03-02T09:00:00Z'); due(ts); early = sum(len(at(ts, o)) for o in ts)
    clock.at('2026-03-02T09:30:00Z'); due(ts)
    assert early<12 and all(at(ts, o)==['2026-03-02T09:00'] for o in ts)
    assert len({j.created_at for j in ts['t0'].jobs.list_jobs()})==1

@pytest.mark.parametrize('what', ['pause', 'freeze'])
def test_nor_for_any_of_many_tenants(many, clock, what):
    ts = many()
    for i in range(6): ts.create(f't{i}')
    ts.cron('0 9 * * *', nightly, name='n', spread=600)
    clock.at('2026-03-02T09:00:00Z'); due(ts)
    clock.at('2026-03-02T14:00:00Z'); due(ts); early = {o for o in ts if at(ts, o)}
    assert 0<len(early)<6
    if what=='pause': ts.schedule('n').pause(); clock.t += 60; ts.schedule('n').resume()
    else:
        for o in list(ts): ts[o].freeze('bill')
        clock.t += 60
        for o in list(ts): ts[o].thaw()
    due(ts); assert {o for o in ts if at(ts, o)}==early
    clock.at('2026-03-02T19:00:00Z'); due(ts); assert all(at(ts, o)==['2026-03-02T09:00'] for o in ts)

def test_change_for_all_and_for_one(many, clock):
    ts = many()
    ts.create('a'); ts.create('b')
    ts.cron('0 9 * * *', nightly, name='n')
    ts.schedule('n', expr='0 3 * * *'); ts['b'].jobs.schedule('n', expr='0 5 * * *')
    clock.at('2026-03-02T04:00:00Z'); due(ts); assert (at(ts, 'a'), at(ts, 'b'))==(['2026-03-02T03:00'], [])
    clock.at('2026-03-02T06:00:00Z'); due(ts); assert at(ts, 'b')==['2026-03-02T05:00']
    ts['b'].jobs.schedule('n').reset()
    assert ts['b'].jobs.schedule('n').expr=='0 3 * * *'
    ts.schedule('n').pause(); clock.at('2026-03-03T12:00:00Z'); due(ts); assert len(at(ts, 'a'))==1

@pytest.mark.parametrize('sql', ["code='{\"expr\":\"0 9 * * *\",\"tz\":null,\"catch_up\":\"once\",\"spread\":0}'", "code='{'", "code=null", "done_to='soon'", "done_to=null"])
def test_a_spoiled_row_for_all_tenants(many, clock, sql):
    "It stands still, the others and all jobs go on, and `schedules()` shows it"
    ts = many()
    a = ts.create('a').jobs
    ts.cron('0 9 * * *', plain, name='bad'); ts.cron('0 9 * * *', nightly, name='n')
    with ts.registry.writing() as c: c.execute(f"update tenant_crons set {sql} where name='bad'")
    id,_ = a.submit('p', plain, n=2)
    clock.at('2026-03-02T09:00:00Z'); due(ts)
    assert len(seen)==1 and a.get_job(id).status=='completed' and not a.list_jobs('bad')
    assert [(o.name,o.state) for o in ts.schedules()]==[(o.name,o.state) for o in a.schedules()]==[('bad','broken'),('n','active')]
    ts.cron('0 9 * * *', plain, name='bad')
    clock.at('2026-03-03T09:00:00Z'); due(ts)
    assert len(seen)==2 and len(a.list_jobs('bad'))==1
    with ts.registry.writing() as c: c.execute("update tenant_registry set created_at='once upon a time'")
    clock.at('2026-03-04T09:00:00Z'); due(ts)
    assert len(seen)==3

def test_other_zone_makes_nothing_up(many, clock):
    ts = many()
    ts.create('a', timezone='Europe/Paris')
    ts.cron('0 13 * * *', nightly, name='n')
    clock.at('2026-03-02T12:00:00Z'); due(ts); clock.at('2026-03-02T14:30:00Z')
    ts['a'].set(timezone='Atlantic/Azores'); due(ts)              # there it was one o'clock half an hour ago
    assert at(ts, 'a')==['2026-03-02T12:00']
    clock.at('2026-03-03T14:00:00Z'); due(ts); assert len(at(ts, 'a'))==2

def test_worker_opens_closed_tenants_when_their_slot_comes(many, clock):
    ts = many(worker=True, idle_s=0., most_open=2)
    for i in range(6): ts.create(f't{i}')
    until(lambda: len(ts._pool.open)==0 and all(e.looked_at for e in ts._pool.entries.values()))
    ts.cron('0 13 * * *', nightly, name='n')
    assert not ts._pool.open, 'declaring a schedule opens nobody'
    clock.at('2026-03-01T13:00:00Z')
    until(lambda: len(seen)==6)
    assert len(ts._pool.open)<=3

def test_options_of_the_task_count_for_jobs_of_slots(t):
    "Queue, priority, timeout, tags and limit of @task; the delay and the unique key are the slot's own matter"
    m = t.mgr(worker=False, clock=lambda: 1_800_000_000.)
    f = lambda: None
    m.task(f, name='nightly', queue='slow', priority=4, timeout=60, tags=['n'], limit=1, delay=5, unique=True, max_retries=7)
    m.cron('@daily', f)
    j = m.get_job(m.schedule('nightly').run())
    assert (j.queue,j.priority,j.timeout_s,j.tags,j.limit_key,j.max_retries,j.unique_key)==('slow',4,60.,'["n"]','nightly',7,None)
