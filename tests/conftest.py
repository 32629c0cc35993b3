"A tenant for each test, and no worker left after it; tests run side by side, save those that measure"
import contextlib, os, signal, sys
from pathlib import Path
import pytest

os.environ.pop('PYTHONDONTWRITEBYTECODE', None)   # hundreds of processes are started below, and each would compile the package anew
sys.path.insert(0, str(Path(__file__).parent/'apps'))   # their tasks are importable here by the name they have there
from util import PgTenant, SqlTenant, Tenant, stop_worker
from turn import turn
from pg import bouncer, pg, pg_private, pg_server # noqa: F401, the fixtures of tests on PostgreSQL

def pytest_addoption(pluginmanager): pluginmanager.import_plugin('stuck')

def pytest_configure(config):
    config.addinivalue_line('markers', 'alone: measures, or needs the machine for itself: no other test of this machine runs meanwhile')
    config.addinivalue_line('markers', 'on_sqlite(why): only on SQLite')

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(): return int(os.environ.get('PYTEST_XDIST_AUTO_NUM_WORKERS') or 4)     # more than there are cores, since tests wait a lot

def pytest_itemcollected(item):
    "The processes that run tests must collect the same; an address is another one in each"
    assert ' at 0x' not in item.nodeid, f'{item.nodeid}: give it an id without an address'

def alone(item): return item is not None and item.get_closest_marker('alone') is not None

def pytest_collection_modifyitems(items):
    "Those that want the machine for themselves come first: among others, each would wait until the long one next door has ended"
    items.sort(key=lambda o: not alone(o))

_turn = None     # kept from one test that is alone to the next

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    global _turn
    if not _turn: _turn = contextlib.ExitStack(); _turn.enter_context(turn(alone(item)))
    try: return (yield)
    finally:
        if not (alone(item) and alone(nextitem)): _turn.close(); _turn = None

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    "What was logged or printed goes to another process, and half a surrogate pair could not"
    rep = yield
    rep.sections = [(k, v.encode(errors='backslashreplace').decode()) for k,v in rep.sections]
    return rep

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

@pytest.fixture
def t(request, tmp_path, monkeypatch):
    if (kind := getattr(request, 'param', 'sqlite'))!='postgres': t = (SqlTenant if kind=='fastsql' else Tenant)(tmp_path)
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
