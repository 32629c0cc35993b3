"Behind PgBouncer in transaction mode: each transaction may meet another connection of the server's"
import subprocess, sys, threading, time
from contextlib import ExitStack

import psycopg, pytest, work_pg as work
from fastsql import database
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager
from test_tenants_pg import WORKER, done
from util import all_done, env, stop_worker, until

TASKS = [work.add, work.fail, work.slow, work.put, work.effect]

@pytest.fixture
def url(pg, bouncer, monkeypatch, tmp_path):
    monkeypatch.setenv('FH_SAAS_RUN_DIR', str(tmp_path))
    yield bouncer.of(pg)
    stop_worker()

def test_it_is_one(url):
    "Two transactions of a client meet different connections, so what follows would show"
    with psycopg.connect(url, autocommit=True) as a, psycopg.connect(url, autocommit=True) as b:
        pid = lambda c: c.execute('select pg_backend_pid()').fetchone()[0]
        first = pid(a)
        with b.transaction():
            assert pid(b)==first
            assert pid(a)!=first

def rows(db, sql):
    "An open transaction would keep one of PgBouncer's few connections"
    out = db.q(sql)
    db.conn.commit()
    return out

@pytest.mark.parametrize('layout', ['schema', 'database'])
def test_tenants(url, pg, layout):
    "Tenants with jobs and rows of their own, from many threads at once: nobody writes into a neighbour's tables, every effect is there once"
    ts = Tenants(url, layout=layout, handoff=0, tasks=TASKS, threads=3)
    try:
        tens = [ts.create(f'a{i}') for i in range(4)]
        for t in tens:
            t.db.q('create table effects(id text primary key)'); t.db.conn.commit()
            t.db.q('create table notes(id int)'); t.db.conn.commit()
        def fill(t):
            for _ in range(25): t.jobs.submit('e', work.effect)
            t.jobs.submit_many('s', work.add, [dict(a=1, b=2)]*25)
            with t.jobs.transaction() as db:
                db.q('insert into notes values(1)')
                t.jobs.submit('e', work.effect)
            for i in range(8): t.db.t.notes.insert(id=i)
        ths = [threading.Thread(target=fill, args=(t,)) for t in tens]
        for o in ths: o.start()
        for o in ths: o.join()
        for t in tens:
            until(lambda: len(t.jobs.list_jobs(status='completed', limit=100))==51, 60, .05)
            ids = {j.id for j in t.jobs.list_jobs(job_type='e', limit=100)}
            assert {o['id'] for o in rows(t.db, 'select id from effects')}==ids and len(ids)==26
            assert rows(t.db, 'select count(*) n from notes')[0]['n']==9
        t = tens[0]
        t.freeze('x'); t.thaw(); t = t.rename('b0')
        assert len(t.jobs.list_jobs(limit=100))==51
        i,_ = t.jobs.submit('f', work.fail, max_retries=1)
        done(t, i, 'failed')
        for t in ts.values(): t.delete(t.id)
        assert not len(ts) and ts.health()['ok']
    finally: ts.close()
    with ExitStack() as st:                                     # nothing of a tenant's is left on a connection that others will have
        cs = [st.enter_context(psycopg.connect(url)) for _ in range(8)]
        assert {c.execute('show search_path').fetchone()[0] for c in cs}=={'"$user", public'}

def test_one_database(url):
    "A plain manager on the app's own engine, prepared statements included"
    m = BackgroundTaskManager(db := database(url), threads=4, tasks=TASKS)
    try:
        db.q('create table effects(id text primary key)'); db.conn.commit()
        ids = [m.submit('e', work.effect)[0] for _ in range(60)]+m.submit_many('s', work.add, [dict(a=1, b=2)]*200)
        all_done(m, 260)
        assert {o['id'] for o in rows(db, 'select id from effects')}==set(ids[:60])
        with pytest.raises(ZeroDivisionError), m.transaction() as tx: tx.q("insert into effects values('x')"); m.submit('s', work.add, a=1, b=2); 1/0
        assert len(m.list_jobs(limit=1000))==260
    finally: m.close(); db.conn.close(); db.engine.dispose()

@pytest.mark.parametrize('kind', ['postgres', 'procrastinate'])
def test_a_worker_behind_it_looks_by_itself(url, pg, tmp_path, kind):
    "LISTEN does not work there, so it is not tried; rings lie in a table, and workers look each second. A worker with a straight line to the server is told at once"
    if kind=='procrastinate': pytest.importorskip('procrastinate')
    ts = Tenants(url, worker=False, tasks=TASKS, engine=kind)
    t = ts.create('acme')
    def start(u):
        p = subprocess.Popen([sys.executable, '-c', WORKER, u, 'schema', kind], stdout=subprocess.PIPE, text=True, env=env(FH_SAAS_RUN_DIR=str(tmp_path/'other')))
        assert p.stdout.readline()=='ready\n'
        return p
    try:
        for u,most in ((url, 10.), (pg, 5.)):
            p = start(u)
            try:
                done(t, t.jobs.submit('sum', work.add, a=1, b=2)[0], s=20)
                t0 = time.monotonic()
                for _ in range(3): done(t, t.jobs.submit('sum', work.add, a=1, b=2)[0], s=20)
                assert time.monotonic()-t0<most
            finally: p.kill(); p.wait()
    finally: ts.close()

def test_a_tenant_moves_there(url, tmp_path):
    "From a file to a server behind it"
    files,ts = Tenants(tmp_path/'files', worker=False, tasks=TASKS),Tenants(url, worker=False, tasks=TASKS)
    try:
        a = files.create('acme')
        a.db.q('create table notes(id integer primary key)')
        i,_ = a.jobs.submit('put', work.put, n=7)
        b = a.move(ts, tables=['notes'])
        b.jobs.run_due()
        assert b.jobs.get_job(i).status=='completed' and rows(b.db, 'select id from notes')==[{'id':7}]
    finally: files.close(); ts.close()
