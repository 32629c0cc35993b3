"What Prometheus is shown: counts, gauges, few labels; a database that cannot be read costs itself alone"
import re
from contextlib import closing

import pytest
pytest.importorskip('prometheus_client')
from fasthtml.common import FastHTML
from fh_saas.prometheus import Metrics
from fh_saas.store.base import StoreError
from fh_saas.telemetry import listening
from fh_saas.tenants import Tenants
from fh_saas.testing import Clock, JobTester
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from util import all_done, run_py

def note(x=None): return x
def boom(): raise OSError('boom')

def shown(m): return {k:float(v) for k,v in re.findall(r'^fh_saas_(\S+(?:\{.*\})?) (\S+)$', generate_latest(m.registry).decode(), re.M)}

def test_counts_of_a_worker(t):
    m = t.mgr(handoff=0)
    with closing(Metrics(m)) as x:
        m.submit_many('sync', note, [dict(x=i) for i in range(500)])
        all_done(m, 500)
        o = shown(x)
        assert o['submitted_total{job_type="sync"}']==o['attempts_total{job_type="sync",outcome="completed"}']==o['wait_seconds_count{job_type="sync"}']==o['run_seconds_count{job_type="sync"}']==500
        assert o['jobs{state="running"}']==o['jobs{state="due"}']==o['oldest_due_seconds']==0
    assert not listening()

def test_gauges(job_tester):
    with closing(Metrics(job_tester.target)) as x:
        job_tester.submit('sync', note)
        job_tester.submit('bad', boom, 1)
        job_tester.options(delay=30).submit('sync', note)
        job_tester.pause(job_type='mail'); job_tester.submit('mail', note)
        job_tester.clock.tick(45)
        o = shown(x)
        assert (o['jobs{state="due"}'],o['jobs{state="later"}'],o['oldest_due_seconds'])==(4, 0, 45), 'what nobody has promoted is due all the same'
        job_tester.drain()
        o = shown(x)
        assert (o['jobs{state="due"}'],o['jobs{state="held"}'],o['jobs{state="failed"}'],o['oldest_due_seconds'])==(0, 1, 1, 0)
        assert o['attempts_total{job_type="bad",outcome="failed"}']==1

def test_tenants(tmp_path):
    clock = Clock()
    with closing(Tenants(tmp_path, worker=False, clock=clock)) as ts:
        for o in 'abc': ts.create(o); ts[o].jobs.submit('sync', note)
        with closing(Metrics(ts)) as x, closing(Metrics(ts, tenants=['a', 'gone'])) as y:
            for o in 'abc': ts[o].jobs.submit('sync', note)
            clock.tick(5)
            assert shown(x)['jobs{state="due"}']==6 and shown(x)['submitted_total{job_type="sync"}']==3
            o = shown(y)
            assert (o['jobs{state="due",tenant="a"}'],o['jobs{state="due",tenant="other"}'],o['oldest_due_seconds{tenant="a"}'])==(2, 4, 5)
            assert (o['submitted_total{job_type="sync",tenant="a"}'],o['submitted_total{job_type="sync",tenant="other"}'])==(1, 2) and '"b"' not in str(o)
            lane = ts['b'].jobs._lane
            def damaged(*a): raise StoreError('damaged')
            lane.store.read = damaged
            assert shown(x)['unreadable']==1 and shown(x)['jobs{state="due"}']==4

def test_few_labels(job_tester):
    with closing(Metrics(job_tester.target, job_types=3)) as x:
        for i in range(10): job_tester.submit(f'type{i}', note)
        o = {k:v for k,v in shown(x).items() if k.startswith('submitted_total')}
        assert len(o)==4 and o['submitted_total{job_type="other"}']==7

def test_page(job_tester):
    x = Metrics(job_tester.target)
    app = FastHTML(default_hdrs=False)
    app.routes.append(x.route())
    for c in TestClient(app), TestClient(Starlette(routes=[x.route('/metrics')])):
        r = c.get('/metrics')
        assert r.status_code==200 and 'fh_saas_jobs{state="due"} 0.0' in r.text and r.headers['content-type'].startswith('text/plain')
        assert c.get('/metrics', headers={'accept':'application/openmetrics-text'}).text.endswith('# EOF\n')
        assert c.head('/metrics').text=='' and c.post('/metrics').status_code==405
    x.close()

def test_unfit(job_tester):
    with pytest.raises(TypeError, match='manager or Tenants'): Metrics('x')
    with pytest.raises(TypeError, match='tenants'): Metrics(job_tester.target, tenants='acme')
    assert not listening()

def test_says_which_extra_is_missing(t):
    out = run_py(t, "import sys; sys.modules['prometheus_client'] = None\ntry: import fh_saas.prometheus\nexcept ImportError as e: out(e)")
    assert "pip install 'fh-saas[prometheus]'" in out
