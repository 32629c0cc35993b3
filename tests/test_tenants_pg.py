"Tenants on a PostgreSQL server: what holds for files holds there, and a worker anywhere is woken"
import os, signal, subprocess, sys, threading, time

import psycopg, pytest
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import StoreError
import work_pg as work
from util import env, stop_worker, until

@pytest.fixture
def layout(): return 'schema'

both = pytest.mark.parametrize('layout', ['schema', 'database'])

@pytest.fixture
def make(pg, layout):
    made = []
    def make(**kw): made.append(ts := Tenants(pg, **dict(dict(layout=layout, handoff=0, tasks=[work.add, work.fail, work.slow, work.put]), **kw))); return ts
    yield make
    stop_worker()
    for o in made: o.close()
    with psycopg.connect(pg, autocommit=True) as c:
        for o, in c.execute("select datname from pg_database where datname like 't\\_%'").fetchall(): c.execute(f'drop database "{o}" with (force)')

def done(t, id, status='completed', s=20): until(lambda: t.jobs.get_job(id).status==status, s); return t.jobs.get_job(id)

@both
def test_a_job_of_each_of_two_tenants(make):
    ts = make()
    a,b = ts.create('acme', timezone='Europe/Berlin'),ts.create('Globex-2.eu')
    i,_ = a.jobs.submit('sum', work.add, a=1, b=2)
    j,_ = b.jobs.submit('sum', work.add, a=3, b=4)
    assert done(a, i).result=='3' and done(b, j).result=='7'
    assert [o.id for o in a.jobs.list_jobs()]==[i] and [o.id for o in b.jobs.list_jobs()]==[j]
    assert list(ts)==['Globex-2.eu', 'acme'] and len(ts)==2 and 'acme' in ts
    assert {o['tenant']:o['attempts'] for o in ts.usage()}=={'acme':1, 'Globex-2.eu':1}
    assert ts.health()['ok'] and not ts.health()['tenants'] and ts.behind()==[]

def test_another_process_sees_it_and_takes_over(make, pg):
    ts = make(worker=False)
    t = ts.create('acme')
    i,_ = t.jobs.submit('sum', work.add, a=1, b=2)
    assert t.jobs.get_job(i).status=='pending'
    make()
    assert done(t, i).result=='3'

@both
def test_one_server_under_two_addresses(make, pg, layout):
    ts = make(worker=False)
    i,_ = ts.create('acme').jobs.submit('sum', work.add, a=1, b=2)
    other = Tenants(pg.replace('127.0.0.1', 'localhost'), layout=layout, handoff=0, tasks=[work.add])
    try: assert done(other['acme'], i).result=='3' and other['acme'].status=='active'
    finally: stop_worker(); other.close()

@both
def test_freeze_thaw_rename_delete(make, pg, layout):
    ts = make()
    t = ts.create('acme')
    t.freeze('unpaid')
    i,_ = t.jobs.submit('sum', work.add, a=1, b=2)
    j,_ = ts.create('globex').jobs.submit('sum', work.add, a=1, b=2)
    done(ts['globex'], j)
    assert t.jobs.get_job(i).status=='pending' and t.status=='frozen'
    t.thaw()
    done(t, i)
    u = t.rename('umbrella')
    assert u.jobs.get_job(i).status=='completed' and 'acme' not in ts
    place = u.path
    u.delete('umbrella')
    assert list(ts)==['globex']
    q = "select count(*) from pg_namespace where nspname=%s" if layout=='schema' else "select count(*) from pg_database where datname=%s"
    with psycopg.connect(pg) as c: assert c.execute(q, (place.split('=')[-1].split('/')[-1],)).fetchone()[0]==0
    v = ts.create('umbrella')
    assert v.jobs.list_jobs()==[]

def test_refused(make):
    ts = make(worker=False)
    ts.create('acme')
    with pytest.raises(ValueError, match='exists'): ts.create('ACME')
    with pytest.raises(ValueError, match='path is for tenants in files'): ts.create('x', path='/tmp/x.db')
    with pytest.raises(ValueError, match='move is for tenants in files'): ts['acme'].move('/tmp')
    with pytest.raises(KeyError): ts['nobody']
    with pytest.raises(ValueError, match='plan'): ts.create('y', plan='gold')

def test_plans_and_shares(make):
    now,most,two = [],[],threading.Event()
    def held(i):
        now.append(i); most.append(len(now))
        if len(now)>1: two.set()
        if not i: two.wait(.3)             # a second has time to begin beside it, if it may
        now.remove(i)
    ts = make(tasks={'held':held})
    ts.plan('pro', weight=3, max_running=1)
    t = ts.create('acme', plan='pro')
    t.set(max_running=2); t.set(max_running=None)
    for i in range(6): t.jobs.submit('held', held, i=i)
    until(lambda: len(t.jobs.list_jobs(status='completed'))==6)
    assert most==[1]*6

@both
def test_a_broken_tenant_costs_itself_alone(make, pg, layout):
    ts = make()
    a,b = ts.create('acme'),ts.create('globex')
    done(a, a.jobs.submit('sum', work.add, a=1, b=2)[0])
    db = pg if layout=='schema' else pg.rsplit('/', 1)[0]+'/t_acme'
    with psycopg.connect(db, autocommit=True) as c: c.execute(f'drop table {"t_acme." if layout=="schema" else ""}tenant_jobs')
    with pytest.raises(StoreError): a.jobs.submit('sum', work.add, a=1, b=2)
    assert done(b, b.jobs.submit('sum', work.add, a=1, b=2)[0]).result=='3'
    until(lambda: 'acme' in ts.health()['tenants'], 30)

@both
def test_effects_in_the_tenants_database_once(make, pg):
    ts = make()
    t = ts.create('acme')
    t.db.q('create table notes(id int)'); t.db.conn.commit()
    i,_ = t.jobs.submit('put', work.put, n=7)
    done(t, i)
    assert t.db.q('select id from notes')==[{'id':7}]
    with t.jobs.transaction() as db:
        db.q('insert into notes values(8)')
    with pytest.raises(ZeroDivisionError), t.jobs.transaction() as db: db.q('insert into notes values(9)'); 1/0
    assert [o['id'] for o in t.db.q('select id from notes order by id')]==[7, 8]
    t.db.t.notes.insert(id=9)
    assert [o['id'] for o in t.db.t.notes()]==[7, 8, 9] and 'notes' not in ts.create('globex').db.t

def test_retry_cron_rollout(make):
    ts = make()
    for o in ('a1', 'a2', 'a3'): ts.create(o)
    r = ts.submit_all('sum', work.add, dict(a=1, b=2), canaries=1)
    until(lambda: r.progress()['completed']==3, 30)
    i,_ = ts['a1'].jobs.submit('fail', work.fail, max_retries=1)
    done(ts['a1'], i, 'failed')
    assert ts.retry_failed()=={'a1':1}
    ts.cron('0 0 1 1 *', work.add, name='yearly', a=1, b=2)
    assert [s.name for s in ts.schedules()]==['yearly']
    ts.keep(completed=7)
    assert len(ts.keeps())==1

WORKER = '''
import sys, time
from fh_saas.tenants import Tenants
from fh_saas.engines.engine import engine
import work_pg as work
ts = Tenants(sys.argv[1], layout=sys.argv[2], engine=sys.argv[3], tasks=[work.add, work.slow, work.fail, work.put], handoff=0, threads=2)
print('ready', flush=True)
time.sleep(600)
'''

@pytest.mark.parametrize('layout,kind', [('schema', 'postgres'), ('database', 'procrastinate')])
def test_a_worker_on_another_machine_is_woken_and_its_death_survived(pg, layout, kind, make, tmp_path):
    if kind=='procrastinate': pytest.importorskip('procrastinate')
    ts = make(worker=False, engine=kind)
    t = ts.create('acme')
    ps = []
    def start(n):                                         # another folder for its presence: another machine
        p = subprocess.Popen([sys.executable, '-c', WORKER, pg, layout, kind], stdout=subprocess.PIPE, text=True, env=env(FH_SAAS_RUN_DIR=str(tmp_path/f'm{n}')))
        ps.append(p)
        assert p.stdout.readline()=='ready\n'
        return p
    try:
        a = start(1)
        i,_ = t.jobs.submit('sum', work.add, a=1, b=2)
        done(t, i)
        until(lambda: t.jobs._lane.store.running_now()==0)
        time0 = time.monotonic()
        i,_ = t.jobs.submit('sum', work.add, a=1, b=2)      # idle: only the ring can wake it so soon
        done(t, i)
        assert time.monotonic()-time0<5
        j,_ = t.jobs.submit('slow', work.slow, s=600., max_retries=2)
        done(t, j, 'running')
        b = start(2)
        a.kill(); a.wait()
        t1 = time.monotonic()
        until(lambda: t.jobs.get_job(j).retry_count==1, 40)
        print(f'{kind} {layout}: rescued after {time.monotonic()-t1:.1f} s')
    finally:
        for p in ps: p.kill(); p.wait()

@pytest.mark.parametrize('kind', ['postgres', 'procrastinate'])
def test_job_and_ring_commit_together(pg, make, kind, monkeypatch):
    if kind=='procrastinate': pytest.importorskip('procrastinate')
    ts = make(worker=False, engine=kind)
    t = ts.create('acme')
    monkeypatch.setattr(ts._engine, 'ring', lambda *a: None)       # the process dies between the commit and the ring
    rings = lambda: psycopg.connect(pg).execute('select count(*) from '+('tenant_rings' if kind=='postgres' else 'procrastinate_jobs')).fetchone()[0]
    with pytest.raises(ZeroDivisionError), t.jobs.transaction() as db: t.jobs.submit('sum', work.add, a=1, b=2); 1/0
    assert rings()==0
    for _ in range(3): t.jobs.submit('sum', work.add, a=1, b=2)
    t.jobs.submit_many('sum', work.add, [dict(a=1, b=2)]*3)
    assert rings()==1 and len(t.jobs.list_jobs())==6
    make(engine=kind)
    until(lambda: len(t.jobs.list_jobs(status='completed'))==6)

@pytest.mark.parametrize('kind', ['postgres', 'procrastinate'])
def test_a_job_for_later_is_rung_for_at_its_time(pg, make, kind):
    if kind=='procrastinate': pytest.importorskip('procrastinate')
    ts = make(worker=False, engine=kind)
    ts.create('acme').jobs.options(delay=3600).submit('sum', work.add, a=1, b=2)
    assert ts._engine.flush()
    with psycopg.connect(pg) as c: wait = c.execute('select extract(epoch from min(at)-now()) from tenant_rings' if kind=='postgres' else 'select extract(epoch from min(scheduled_at)-now()) from procrastinate_jobs').fetchone()[0]
    assert 3500<wait<=3600

APP = '''
import os
from fh_saas.tenants import Tenants
import work_pg as work
tenants = Tenants(os.environ['PG'], engine=os.environ.get('ENGINE'), worker=False, tasks=[work.add])
'''

def cli(tmp_path, pg, *args, **kw):
    (tmp_path/'pgapp.py').write_text(APP)
    return subprocess.Popen([sys.executable, '-c', 'from fh_saas.cli import main; main()', 'worker', 'pgapp:tenants', *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
                            env=env(PG=pg, **kw))

def test_worker_by_command(pg, tmp_path):
    ts = Tenants(pg, engine='procrastinate', worker=False, handoff=0, tasks=[work.add])
    t = ts.create('acme')
    p = cli(tmp_path, pg, '--engine', 'procrastinate', ENGINE='procrastinate')
    try:
        assert 'serving Tenants' in p.stdout.readline()
        i,_ = t.jobs.submit('sum', work.add, a=1, b=2)
        assert done(t, i).result=='3'
        i,_ = t.jobs.options(delay=1).submit('sum', work.add, a=1, b=2)      # its time is known to the engine, whoever has the tenant open
        assert done(t, i, s=8).result=='3'
        p.send_signal(signal.SIGTERM)
        assert p.wait(20)==0
    finally: p.kill(); p.wait(); ts.close()

def test_worker_on_another_engine_than_the_app(pg, tmp_path):
    p = cli(tmp_path, pg, '--engine', 'procrastinate')
    out = p.communicate(timeout=60)[0]
    assert p.returncode and "rings through postgres; where it is made say engine='procrastinate'" in out
    p = cli(tmp_path, str(tmp_path/'files'), '--engine', 'postgres')
    assert 'needs tenants on a server' in p.communicate(timeout=60)[0] and p.returncode

def test_who_is_rung_takes_back_what_a_lease_has_left(pg):
    "A drain finds that another's lease has run out: the job is free at once, not when the sweeper comes round"
    ts = Tenants(pg, worker=False, handoff=0, tasks=[work.add])
    try:
        jobs = ts.create('acme').jobs
        id,_ = jobs.submit('a', work.add, a=1, b=2)
        lane = jobs._lane
        with lane.store.turning(): assert len(lane.store.claim('gone', lane.now(), 1, '2020-01-01T00:00:00.000000Z'))==1
        assert ts._left(lane, False) is True
        assert jobs.get_job(id).status=='pending' and not lane.store.owners()
    finally: ts.close()
