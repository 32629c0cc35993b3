"A tenant moves from a file to a server: everything it had is there, nothing runs twice, and a move that was cut short can be ended or begun again"
import json, os, subprocess, sys

import apsw, psycopg, pytest, work
from fh_saas.running.moving import TenantBusy
from fh_saas.store.base import StoreError
from fh_saas.store.pg_tables import OWN
from fh_saas.store.notes import SqliteStore
from fh_saas.store.passport import sealed
from fh_saas.tenants import Tenant, Tenants
from fh_saas.utils_bgtsk import Discard, current_job, task
from test_tenants import PRE, SUBMITS, TASKS, House, h, settled, up, worker
from test_tenants_faults import each_step, nothing_lost, two_run_ten_wait
from util import env, process, stop_worker, until

both = pytest.mark.parametrize('layout', ['schema', 'database'])

@pytest.fixture
def layout(): return 'schema'

@pytest.fixture
def far(pg, layout, monkeypatch, tmp_path):
    "Makes `Tenants` on the server"
    monkeypatch.setenv('FH_SAAS_RUN_DIR', str(tmp_path))
    made = []
    def make(url=pg, **kw): made.append(ts := Tenants(url, **(dict(layout=layout, worker=False, tasks=TASKS+[full, boom, drop])|kw))); return ts
    yield make
    stop_worker()
    for o in made: o.close()
    with psycopg.connect(pg, autocommit=True) as c:
        for o, in c.execute("select datname from pg_database where datname like 't\\_%'").fetchall(): c.execute(f'drop database "{o}" with (force)')

def full(a:dict):
    j = current_job()
    j.log('line one'); j.log('ünd zwei\0')
    j.progress(1, 2, 'half')
    return dict(step=j.step('first', lambda: 41)+1, a=a)
@task(name='counted-up', limit=2)
def counted(): pass
def boom():
    current_job().step('one', lambda: [1, 'ü'])
    raise ValueError('no\0 luck')
def drop(): raise Discard('not wanted')

def everything(h, ts):
    "A tenant with jobs of each kind, and tables of the app"
    a = ts.create('acme', timezone='Europe/Berlin', weight=2.)
    m,f = a.jobs,str(h.dir)
    m.submit('f', full, a={'ü':[1, None]}); m.submit('b', boom, max_retries=1); m.submit('d', drop); m.submit('b', boom, max_retries=5)
    m.cancel(m.submit('q', work.quick, folder=f, name='gone')[0])
    m.run_due()
    m.options(priority=5, tags=['x', 'y'], queue='mail', unique='k1', timeout=9, backoff=3).submit('q', work.quick, folder=f, name='now')
    later,_ = m.options(delay=7200).submit('q', work.quick, folder=f, name='later')
    m.options(after=[later], on_failed='run').submit('q', work.quick, folder=f, name='child')
    m.options(limit_key='c7').submit('c', counted)
    m.pause(job_type='slow'); m.limit('q', 3); m.keep(completed=7)
    m.cron('0 4 * * *', work.quick, name='nightly', folder=f)
    m.schedule('nightly', expr='0 5 * * *')
    a.db.q('create table plans(name text primary key, price real)')
    a.db.q('create table customers(id integer primary key, name text not null, plan text references plans(name), raw blob)')
    a.db.q("insert into plans values('pro', 9.5)")
    for i in range(3): a.db.q('insert into customers(name, plan, raw) values(?,?,?)', [f'Zoë {i}\t\\n"', 'pro', bytes(range(256))])
    return a

def rows_of(path, url, schema):
    "All that is in the package's tables, in the file and on the server"
    c,out = apsw.Connection(path),[]
    with psycopg.connect(url) as p:
        for t in OWN:
            cols = ','.join(o[1] for o in c.execute(f'pragma table_info({t})'))
            where = "where key not in ('schema','identity','epoch','place','gate')" if t=='tenant_meta' else ''
            one = lambda rows: sorted([tuple(v.replace('\0', '\\0') if isinstance(v, str) else v for v in o) for o in rows], key=repr)
            out.append((t, one(c.execute(f'select {cols} from {t} {where}').fetchall()), one(p.execute(f'select {cols} from {schema}.{t} {where}').fetchall())))
    c.close()
    return out

@both
def test_all_of_it(h, far, pg, layout):
    "Pending, future, retried, failed, cancelled and finished jobs with logs, steps, results, parents; controls, schedules, rules, usage; tables of the app"
    ts = h.ts(tasks=TASKS+[full, boom, drop])
    a = everything(h, ts)
    path,jobs,was = a.path,{j.id:j for j in a.jobs.list_jobs()},(a.jobs.controls(), a.jobs.keeps(), a.usage(), a.jobs.schedules())
    there = far()
    b = a.move(there, tables=['customers', 'plans'])
    url,schema = (pg, 't_acme') if layout=='schema' else (pg.rsplit('/', 1)[0]+'/t_acme', 'public')
    for t,old,new in rows_of(path, url, schema): assert old==new and (old or t=='tenant_starts'), t
    assert {j.id:j for j in b.jobs.list_jobs()}.keys()==jobs.keys() and 'acme' not in ts and list(there)==['acme']
    assert (b.row.timezone, b.row.weight, b.status)==('Europe/Berlin', 2., 'active')
    assert (b.jobs.controls(), b.jobs.keeps(), b.usage())==was[:3] and {s.name:s.expr for s in b.jobs.schedules()}=={s.name:s.expr for s in was[3]}
    b.jobs.run_due()
    assert h.names()==['now']
    j = next(j for j in b.jobs.list_jobs() if j.job_type=='f')
    assert json.loads(j.result)=={'step':42, 'a':{'ü':[1, None]}} and 'ünd zwei' in j.log
    assert [o['name'] for o in b.db.q('select name from customers order by id')]==[f'Zoë {i}\t\\n"' for i in range(3)]
    assert bytes(b.db.q('select raw from customers')[0]['raw'])==bytes(range(256))
    b.db.t.customers.insert(name='new', plan='pro')
    assert b.db.q('select max(id) n from customers')[0]['n']==4
    with pytest.raises(Exception, match='foreign key'): b.db.q("insert into customers(name, plan) values('x', 'none')")

def test_refused(h, far, pg, tmp_path):
    "What is wrong is said, and the tenant goes on where it is"
    ts = h.ts(tasks=TASKS+[full, boom, drop])
    a = everything(h, ts)
    def says(match, err=ValueError, to=None, **kw):
        with pytest.raises(err, match=match): a.move(to or far(), **kw)
        assert a.status=='active' and a.row.moving_to is None and a.jobs._lane.store.gate() is None
    says("there is no table 'invoices'; there are: customers, plans", tables=['customers', 'invoices'])
    says('tenant_jobs moves anyway', tables=['tenant_jobs'])
    says('list of names', TypeError, tables='customers')
    says('a server is given as Tenants', to=pg)
    with pytest.raises(ValueError, match='a file moves whole'): a.move(tmp_path/'x', tables=['plans'])
    a.db.q('create table odd(x integer)'); a.db.q("insert into odd values(1),('one')")
    says('odd.x holds values of several kinds', tables=['odd', 'plans'])
    a.db.q('create table dangling(x text references plans(name))'); a.db.q('pragma foreign_keys=0'); a.db.q("insert into dangling values('none')")
    says('dangling cannot be copied: .*foreign key', tables=['plans', 'dangling'])
    a.db.q('create table nul(x text)'); a.db.q("insert into nul values('a'||char(0))")
    says('nul cannot be copied: .*NUL', tables=['nul'])
    with psycopg.connect(pg, autocommit=True) as c:
        assert not c.execute("select 1 from pg_namespace where nspname like 't\\_%'").fetchall()
        c.execute('create schema t_acme create table plans(name text)')
    says("schema t_acme of .* has a table 'plans' already", tables=['plans'])
    says('is there already, with plans')
    with psycopg.connect(pg, autocommit=True) as c: c.execute('drop schema t_acme cascade')
    from fh_saas.store.postgres import PgStore
    from fh_saas.store.base import new_job
    s = PgStore(pg, schema='t_acme'); s.insert([new_job('x')]); s.close()
    says('schema t_acme of .* holds jobs already')
    far().create('acme')
    says("tenant 'acme' exists in postgresql://")
    assert a.jobs.run_due()>=1

def test_server_is_away(h, pg_private, tmp_path, monkeypatch):
    "Nobody listens, or the server goes away in the middle: the file goes on; later the same call does it"
    monkeypatch.setenv('FH_SAAS_RUN_DIR', str(tmp_path))
    a, = h.many(1, 3).values()
    there = Tenants(url := pg_private.to(pg_private.create()), worker=False, tasks=TASKS, busy_s=.5)
    try:
        import fh_saas.running.moving_up as mu
        real = mu._receive
        def stops(*args): pg_private.stop(); return real(*args)
        monkeypatch.setattr(mu, '_receive', stops)
        with pytest.raises(StoreError): a.move(there)
        assert a.status=='active'
        with pytest.raises(StoreError, match='refused|connection'): a.move(there)
        with pytest.raises(StoreError, match='refused|connection'): Tenants(url, worker=False, busy_s=.5)
        h.fill(a, 2); a.jobs.run_due()
        monkeypatch.setattr(mu, '_receive', real)
        pg_private.start()
        b = a.move(there)
        assert len(b.jobs.list_jobs())==5 and len(h.names())==5 and b.status=='active' and b.row.path=='t_t000'
    finally: there.close()

# --- in use

def test_under_load(h, far, pg):
    "One worker serves both while a process submits: every job runs once, wherever"
    ts = h.many(1)
    a, = ts.values()
    with worker(h), up(process(h, SUBMITS.replace("['t000'].jobs,0", "['t000'].jobs,0\nn = 0").replace('except StoreError as e:', 'except (StoreError, KeyError) as e:').replace("say(folder, 'refused'", "out(i) or sys.exit() if isinstance(e, KeyError) else say(folder, 'refused'"), pre=PRE)) as s:
        until(lambda: len(h.log('ran'))>100)
        b = a.move(there := far())
        n = int(s.communicate(timeout=20)[0])             # its tenant is gone
        more = far(worker=True, handoff=0)
        until(lambda: len(set(h.names()))>=n, 30)
        until(lambda: settled(there), every=.05)
    assert sorted(map(int, h.names()))==list(range(n)) and n>100
    assert {(j.status,j.retry_count) for j in b.jobs.list_jobs(limit=10**6)}=={('completed',0)} and len(b.jobs.list_jobs(limit=10**6))==n

def test_a_worker_on_the_server_takes_it_up(h, far, pg):
    "A process that serves the server is told, and begins at once; what was frozen stays so"
    ts = h.many(2)
    a,b = ts.values()
    b.freeze('unpaid')
    with process(h, f"ts = Tenants({pg!r}, tasks=[quick], handoff=0); out('up'); ts.run()", pre=PRE) as p:
        assert p.stdout.readline()=='up\n'
        for t in (a, b): h.fill(t, 1)
        for t in (a, b): t.move(far())
        until(lambda: h.names()==['t000-0'], 5)
    c = far()['t001']
    assert (c.status, c.row.reason)==('frozen', 'unpaid')
    assert c.jobs._lane.store.gate()=='frozen: unpaid' and not h.log('t001-0')

def test_sealed_columns_stay_sealed(h, far):
    from fh_saas.keys import new_key
    key = new_key()
    a = h.ts(keys=[key]).create('acme')
    i,_ = a.jobs.submit('q', work.quick, folder=str(h.dir), name='secret')
    b = a.move(far(keys=[key]))
    assert 'secret' not in b.jobs._lane.store.read('select payload from tenant_jobs')[0][0]
    b.jobs.run_due()
    assert h.names()==['secret'] and b.jobs.get_job(i).status=='completed'

# --- cut short

GO = """
import fh_saas.running.moving_up as mu
def go(dir, n):
    a = data(dir)['t000']; both_run(dir)
    there = Tenants(URL, worker=False, layout=LAYOUT, tasks=[])
    cut(n, FUNCS)
    a.move(there, drain_s=0, tables=['customers'])"""

@pytest.mark.parametrize('layout,funcs,least', [('schema', 'mu.move_up, mu._to_server, mu._discard, mu._fill, mu._receive, mu._arrive', 40), ('database', 'mu._to_server, mu._fill', 15)])
def test_kill_at_each_step(tmp_path, far, pg, layout, funcs, least):
    "kill -9 before each line of a move with jobs in flight: the file goes on or the same call ends the move; nothing is lost, nothing runs twice"
    seen = set()
    def prepare(h):
        two_run_ten_wait(h)
        db = apsw.Connection(str(h.dir/'data/t000.db')); db.execute("create table customers(name text); insert into customers values('Ann')"); db.close()
    there = far(tasks=TASKS)
    def places():
        q = 'select nspname n from pg_namespace' if layout=='schema' else 'select datname n from pg_database'
        with psycopg.connect(pg) as c: return c.execute(f"select n from ({q}) q where n like 't\\_%'").fetchall()
    def check(h, n):
        ts = h.ts()
        status = ts.registry.get('t000').status
        seen.add(status)
        if status=='active' and n%4==1:                                        # it goes on where it is
            assert ts['t000'].jobs._lane.store.gate() is None, n
            nothing_lost(h, ts['t000'], n)
        b = Tenant(ts, 't000').move(there, 0., ['customers'])
        assert (b.status, list(ts), b.row.operator, b.db.q('select name from customers'))==('active', [], None, [{'name':'Ann'}]), n
        assert places()==[('t_t000',)], n
        nothing_lost(h, b, n)
        assert sealed(s := SqliteStore(str(h.dir/'data/t000.db'))), n
        s.close()
        b.delete('t000')
    each_step(tmp_path, GO.replace('LAYOUT', repr(layout)).replace('URL', repr(pg)).replace('FUNCS', funcs), prepare, check, least)
    assert seen=={'active', 'moving', 'deleted'}

CLI = 'import sys; sys.argv[0] = "fh_saas"; from fh_saas.cli import main; main()'

def test_by_command(h, pg, tmp_path, far):
    "The command dies after the seal; the app says what to do, and the same command ends it"
    a, = h.many(1, 2).values()
    a.db.q('create table customers(name text)'); a.db.q('create table notes(t text)')
    path = a.path
    def run(pre='', *more, rc=0, to=pg):
        p = subprocess.run([sys.executable, '-c', pre+CLI, 'tenants', 'move', str(h.dir/'data'), 't000', '--to', to, '--tables', 'customers', *more], capture_output=True, text=True, env=env(), timeout=60)
        assert p.returncode==rc, (p.returncode, p.stdout, p.stderr)
        return p.stdout+p.stderr
    assert "there is no table 'gone'" in run('', '--tables', 'gone', rc=1)
    away = run('', rc=1, to='postgresql://127.0.0.1:1/x')
    assert 'Error: postgresql://127.0.0.1:1/x' in away and 'Traceback' not in away
    assert "layout must be 'schema' or 'database'" in run('', '--layout', 'x', rc=1)
    run('import os, fh_saas.running.moving_up as m\nm._arrive = lambda *a: os.kill(os.getpid(), 9)\n', rc=-9)
    ts = h.ts()
    assert ts.registry.get('t000').status=='moving'
    with pytest.raises(TenantBusy): ts['t000'].move(tmp_path/'other')
    with pytest.raises(TenantBusy, match='on its way to postgresql'): ts['t000'].move(far(pg.rsplit('/', 1)[0]+'/postgres'))
    out = run()
    assert out.splitlines()[0].startswith('t000: postgresql://') and out.splitlines()[0].endswith('schema=t_t000')
    assert f'{path} can be removed; it has tables that did not move: notes' in out
    assert run().splitlines()==out.splitlines()[:1]                        # once more changes nothing
    b = far()['t000']
    b.jobs.run_due()
    assert len(h.names())==2
    os.unlink(path)
    assert b.status=='active' and 't000' not in h.ts()
