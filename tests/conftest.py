"A tenant for each test, and no worker left after it"
import contextlib, signal, sys
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parent/'apps'))   # their tasks are importable here by the name they have there
from util import Tenant, stop_worker
from pg import pg, pg_private, pg_server # noqa: F401, the fixtures of tests on PostgreSQL

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
