"A tenant for each test, and no worker left after it"
import contextlib, signal, sys
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parent/'apps'))   # their tasks are importable here by the name they have there
from util import PgTenant, Tenant, stop_worker
from pg import pg, pg_private, pg_server # noqa: F401, the fixtures of tests on PostgreSQL

@pytest.fixture(autouse=True)
def ctrl_c():
    "Ctrl-C is left as it was, so that one test cannot spoil `asyncio.run` for the next"
    yield
    with contextlib.suppress(Exception): signal.signal(signal.SIGINT, signal.default_int_handler)

def pytest_generate_tests(metafunc):
    "A module that says `stores = both` runs the tests of its tenant on both databases, save those marked `on_sqlite` with a reason"
    if 't' not in metafunc.fixturenames: return
    one = next((o.args[0] for o in metafunc.definition.iter_markers('on_sqlite')), None)
    stores = ['sqlite'] if one else getattr(metafunc.module, 'stores', ['sqlite'])
    if len(stores)>1: metafunc.parametrize('t', stores, indirect=True)

def pytest_configure(config): config.addinivalue_line('markers', 'on_sqlite(why): only on SQLite')

@pytest.fixture
def t(request, tmp_path, monkeypatch):
    if getattr(request, 'param', 'sqlite')=='sqlite': t = Tenant(tmp_path)
    else:
        monkeypatch.setenv('FH_SAAS_RUN_DIR', str(tmp_path))
        t = PgTenant(tmp_path, request.getfixturevalue('pg'))
    yield t
    stop_worker()
    t.close()

@pytest.fixture
def tenants(tmp_path):
    "Makes tenants, each in a folder of its own"
    ts = []
    def make(name): ts.append(o := Tenant(tmp_path/name)); return o
    yield make
    stop_worker()
    for o in ts: o.close()
