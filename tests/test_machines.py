"The short form of tests/chaos/machines.py"
import pytest
import pg as _pg

pytest.importorskip('psycopg')

@pytest.mark.parametrize('engine', ['postgres', 'procrastinate'])
def test_every_job_ends_once(engine):
    "A worker is killed and the server restarted under two machines; each job ends once, and so does its effect"
    if engine=='procrastinate': pytest.importorskip('procrastinate')
    _pg.needed()
    from chaos import machines
    out = machines.run(tenants=6, jobs=180, machines=2, engine=engine, kills=1, restarts=1, cut_s=0, wait_s=90.)
    assert out['jobs']==180 and not out['internal errors']
