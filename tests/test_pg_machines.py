"""Workers on several machines: processes with a folder each, so that they know of each other by their leases alone. Processes are killed
and stopped, and the server is restarted"""
import signal, time
from concurrent.futures import ThreadPoolExecutor

import psutil, psycopg, pytest, work
from fh_saas.ids import from_iso
from pg import Server, on_server as t # noqa: F401, `t` is the fixture of all tests here but one
from util import PgTenant, done, end, process, run_py, said, stop_worker, until

# The lease first: where work lies, a manager's worker claims before the next line of the program is reached
WORK = """import fh_saas.store.pg_file as _f; _f.PgFile.lease_s = float(sys.argv[3])
m = mgr(tasks=[gated, quick], threads=2); m._serve(); out('up'); time.sleep(600)"""

def machine(t, name, lease=15., code=WORK):
    "A worker on a machine of its own"
    (t.dir/name).mkdir(exist_ok=True)
    return process(t, code, lease, FH_SAAS_RUN_DIR=str(t.dir/name))

def is_killed(t, lease):
    "A job whose machine is gone runs elsewhere once the lease is over, within a second"
    m = t.look()
    id,_ = m.submit('g', work.gated, folder=str(t.dir), name='x')
    with machine(t, 'a', lease) as a, machine(t, 'b', lease) as b:
        said(a, 'up'); said(b, 'up')
        until(lambda: t.log('start'))
        first = t.log('start')[0]
        left = [from_iso(o)-time.time() for _,o in m._lane.store.owners()]
        assert left and max(left)<=lease, f'claims were made with another lease than {lease:g} s: {left}'
        end(a if int(first[3])==a.pid else b)
        began = time.monotonic()
        until(lambda: len(t.log('start'))==2, lease+10)
        took = time.monotonic()-began
        t.go()
        job = done(m, id)
    print(f'{took:.1f} s')
    assert took<lease+1 and (job.retry_count,job.fence)==(1,2) and 'its lease ran out' in job.error_log

def is_busy(t):
    "A job that takes three times the lease stays where it is: the lease is renewed"
    m = t.look()
    id,_ = m.submit('g', work.gated, folder=str(t.dir), name='x')
    with machine(t, 'a', 7.) as a, machine(t, 'b', 7.) as b:
        said(a, 'up'); said(b, 'up')
        until(lambda: t.log('start'))
        began = time.monotonic()
        until(lambda: time.monotonic()>began+16, 20)
        t.go()
        assert done(m, id).fence==1 and len(t.log('start'))==1

@pytest.mark.alone
def test_killed_on_another_machine(t): is_killed(t, 2.)

@pytest.mark.alone
def test_the_usual_lease_and_a_busy_machine(t, pg_server, tmp_path):
    "Both wait a quarter of a minute, so they do it side by side, on a database each"
    with pg_server.fresh() as url, ThreadPoolExecutor(1) as pool:
        t2 = PgTenant(tmp_path/'two', url)
        try:
            busy = pool.submit(is_busy, t2)
            is_killed(t, 15.)
            busy.result()
        finally: t2.close()

def test_a_machine_that_stood_still(t, caplog):
    "What a worker says about a job that was taken from it meanwhile is refused, and it says so"
    m = t.look()
    id,_ = m.submit('g', work.gated, folder=str(t.dir), name='x')
    with machine(t, 'a', 2.) as a:
        said(a, 'up')
        until(lambda: t.log('start'))
        a.send_signal(signal.SIGSTOP)
        with machine(t, 'b', 2.) as b:
            said(b, 'up')
            until(lambda: len(t.log('start'))==2, 20)
            a.send_signal(signal.SIGCONT)
            t.go()
            job = done(m, id)
            until(lambda: len(t.log('end'))==2)
            time.sleep(.5)
            assert m.get_job(id)==job and job.fence==2
        a.send_signal(signal.SIGTERM)
        assert 'came too late and was refused' in a.communicate(timeout=20)[1]

BLIND = "import fh_saas.running.worker as _w; _w.SWEEP_S = 3600.\n"+WORK

def test_a_submit_wakes_another_machine(t):
    "A plain manager's worker elsewhere looks once an hour, and yet runs at once what is submitted here, or at its time; after the connection was lost too"
    m = t.look()
    with machine(t, 'a', code=BLIND) as a:
        said(a, 'up')
        for i in range(5): done(m, m.submit('q', work.quick, folder=str(t.dir), name=f'a{i}')[0])
        for o in m.submit_many('q', work.quick, [dict(folder=str(t.dir), name=f'b{i}') for i in range(5)]): done(m, o)
        done(m, m.options(delay=1).submit('q', work.quick, folder=str(t.dir), name='later')[0])
        with psycopg.connect(t.path, autocommit=True) as c:
            c.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname=current_database() and pid<>pg_backend_pid()")
        done(m, m.submit('q', work.quick, folder=str(t.dir), name='after')[0])
    assert len(t.log('ran'))==12

def test_a_program_that_ends_rings_first(t):
    "A script submits and is gone; a worker elsewhere hears of it"
    m = t.look()
    with machine(t, 'a', code=BLIND) as a:
        said(a, 'up')
        (t.dir/'b').mkdir()
        for how in ('m.close()', 'pass'):
            id = run_py(t, f"m = mgr(worker=False); out(m.submit('q', quick, folder=folder, name='x')[0]); {how}", FH_SAAS_RUN_DIR=str(t.dir/'b')).strip()
            done(m, id)

def test_clocks_that_differ(t):
    "A machine whose clock is an hour ahead claims nothing too early and robs nobody"
    m = t.look()
    ahead = "import time as _t; _real = _t.time; _t.time = lambda: _real()+3600\n"+WORK
    later,_ = m.options(delay=600).submit('q', work.quick, folder=str(t.dir), name='later')
    id,_ = m.submit('g', work.gated, folder=str(t.dir), name='x')
    with machine(t, 'a', 15.) as a:
        said(a, 'up')
        until(lambda: t.log('start'))
        with machine(t, 'b', 15., ahead) as b:
            said(b, 'up')
            q,_ = m.submit('q', work.quick, folder=str(t.dir), name='now')
            done(m, q)
            time.sleep(1.5)
            assert m.get_job(id).fence==1 and m.get_job(later).status=='pending'
            t.go()
            assert abs(time.time()-from_iso(done(m, id).completed_at))<60

def test_server_restarts(tmp_path, monkeypatch, pg_private):
    "Jobs that run, end, are claimed and submitted while the server is away are neither lost nor run twice"
    monkeypatch.setenv('FH_SAAS_RUN_DIR', str(tmp_path))
    s = pg_private
    t = PgTenant(tmp_path, s.to(s.create()))
    try:
        m = t.mgr(threads=4, handoff=0)
        ids = m.submit_many('q', work.quick, [dict(folder=str(tmp_path), name=f'a{i}') for i in range(300)])
        until(lambda: len(t.log())>20)
        s.restart()
        ids += [m.submit('q', work.quick, folder=str(tmp_path), name=f'b{i}')[0] for i in range(50)]
        s.restart()
        until(lambda: all(o=='completed' for o in m._lane.store.statuses(ids).values()), 60)
        assert sorted(o[2] for o in t.log('ran'))==sorted([f'a{i}' for i in range(300)]+[f'b{i}' for i in range(50)])
        assert not any(m.get_job(i).retry_count for i in ids)
    finally: stop_worker(); t.close()

def test_ends_though_the_server_stands_still(tmp_path):
    "SIGTERM while PostgreSQL answers nothing, its connections being up: the drain goes on without it"
    s = Server()
    try:
        t = PgTenant(tmp_path, s.to(s.create()))
        with process(t, "m = mgr(tasks=[quick], worker=False, drain_s=2., handoff=0); m.submit('q', quick, folder=folder); m.run(); out('drained')", FH_SAAS_RUN_DIR=str(tmp_path)) as p:
            until(lambda: t.log('ran'))
            post = psutil.Process(int((s.data/'postmaster.pid').read_text().split()[0]))
            stood = [post, *post.children(recursive=True)]
            for o in stood: o.suspend()
            try:
                p.send_signal(signal.SIGTERM)
                assert 'drained' in p.communicate(timeout=60)[0] and p.returncode==0
            finally:
                for o in stood: o.resume()
    finally: s.close()
