"A tenant for each test, and no worker left after it; tests run side by side, save those that measure"
import contextlib, fcntl, os, signal, sys, tempfile
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parent/'apps'))   # their tasks are importable here by the name they have there
from util import Tenant, stop_worker
from pg import pg, pg_private, pg_server # noqa: F401, the fixtures of tests on PostgreSQL

def pytest_configure(config): config.addinivalue_line('markers', 'alone: measures, or needs the machine for itself: no other test of this machine runs meanwhile')

@contextlib.contextmanager
def turn(alone):
    "Hold the machine, for this test alone or together with other processes' tests. Who comes takes a place at the door first, so that a steady stream of tests cannot keep out the one that wants to be alone"
    with open(Path(tempfile.gettempdir())/f'fh_saas-tests-{os.getuid()}.lock', 'a+') as f:
        fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)
        fcntl.lockf(f, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, 1, 1)
        fcntl.lockf(f, fcntl.LOCK_UN, 1, 0)
        yield

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    with turn(item.get_closest_marker('alone') is not None): return (yield)

@pytest.fixture(autouse=True)
def ctrl_c():
    "Ctrl-C is left as it was, so that one test cannot spoil `asyncio.run` for the next"
    yield
    with contextlib.suppress(Exception): signal.signal(signal.SIGINT, signal.default_int_handler)

@pytest.fixture
def t(tmp_path):
    t = Tenant(tmp_path)
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
