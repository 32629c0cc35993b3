"The PostgreSQL that tests run on: fresh databases, and nothing left behind"
import signal, subprocess, sys
from pathlib import Path

import psycopg, pytest
import pg as _pg
from util import env, until

def one(url, q, *a):
    with psycopg.connect(url) as c: return c.execute(q, a).fetchone()[0]

def test_each_test_has_an_empty_database(pg, pg_server):
    with psycopg.connect(pg) as c: c.execute('create table t(a int)')
    with pg_server.fresh() as other:
        assert other!=pg and one(other, "select count(*) from pg_tables where tablename='t'")==0
    with pytest.raises(psycopg.OperationalError): psycopg.connect(other)
    assert int(one(pg, 'show server_version_num'))>=140000

def test_template_is_filled_once(pg_server):
    calls = []
    def fill(url):
        calls.append(url)
        with psycopg.connect(url) as c: c.execute('create table t as select 1 a')
    for _ in range(2):
        with pg_server.fresh(pg_server.template('t', fill)) as url: assert one(url, 'select a from t')==1
    assert len(calls)==1

def test_a_killed_server_keeps_what_was_committed(pg_private):
    with pg_private.fresh() as url:
        with psycopg.connect(url) as c: c.execute('create table t as select 7 a')
        pg_private.restart()
        assert one(url, 'select a from t')==7
    folder = pg_private.dir
    pg_private.close()
    assert not folder.exists()
    with pytest.raises(psycopg.OperationalError): psycopg.connect(url)

def gone(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().split()[2]=='Z'
    except FileNotFoundError: return True

@pytest.mark.skipif(sys.platform!='linux', reason='reads /proc')
def test_stopped_when_its_process_is_killed(tmp_path):
    _pg.needed()
    p = subprocess.Popen([sys.executable, '-c', 'import pg, time; s = pg.Server(); print(s.data, flush=True); time.sleep(60)'], stdout=subprocess.PIPE, text=True, env=env())
    data = Path(p.stdout.readline().strip())
    pid = int((data/'postmaster.pid').read_text().split()[0])
    p.send_signal(signal.SIGKILL); p.communicate()
    until(lambda: gone(pid) and not data.parent.exists())

def test_never_silently_skipped_in_ci(monkeypatch):
    monkeypatch.setattr(_pg, 'binaries', lambda: None)
    monkeypatch.delenv('FH_SAAS_TEST_PG', raising=False)
    monkeypatch.setenv('CI', '1')
    with pytest.raises(pytest.fail.Exception, match='apt-get install'): _pg.needed()
    monkeypatch.delenv('CI')
    with pytest.raises(pytest.skip.Exception, match='FH_SAAS_TEST_PG'): _pg.needed()
