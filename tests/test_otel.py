"Traces that go on from the request through the job, in whichever process it runs"
import asyncio, json, threading
from contextlib import closing

import apsw, pytest, work
pytest.importorskip('opentelemetry.sdk')
from fh_saas.running.around import in_use
from fh_saas.running.context import JobContext
from fh_saas.flow import call, chain
from fh_saas.otel import MOST_CHARS, instrument
from fh_saas.retry import Snooze
from fh_saas.telemetry import listening, submitting
from fh_saas.tenants import Tenants
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind
from util import all_done, done, process, run_py, said

def note(x=None): return x
async def anote(x=None): await asyncio.sleep(0); return format(trace.get_current_span().get_span_context().span_id, '016x')
def boom(): raise OSError('boom')
def snooze(): raise Snooze(60)
def parent(job:JobContext): job.submit('child', note)

class Spans:
    def __init__(self, **kw):
        self.out,self.reader = InMemorySpanExporter(),InMemoryMetricReader()
        self.provider = TracerProvider(**kw); self.provider.add_span_processor(SimpleSpanProcessor(self.out))
        self.meters,self.app = MeterProvider([self.reader]),self.provider.get_tracer('app')
    def __call__(self, name=None): return [o for o in sorted(self.out.get_finished_spans(), key=lambda o: o.start_time) if name in (None, o.name)]
    def use(self, **kw): return instrument(self.provider, self.meters, **kw)

@pytest.fixture
def spans():
    undo = (s := Spans()).use()
    yield s
    undo(); assert not (in_use or submitting or listening())

@pytest.mark.parametrize('f', [note, anote])
def test_one_trace(t, spans, f):
    m = t.mgr(handoff=0)
    with spans.app.start_as_current_span('GET /') as root: id,_ = m.submit('sync', f)
    o = done(m, id)
    s,p = spans('send sync')[0],spans('process sync')[0]
    assert s.parent.span_id==root.get_span_context().span_id and p.parent.span_id==s.context.span_id and p.parent.is_remote
    assert (s.kind,p.kind)==(SpanKind.PRODUCER, SpanKind.CONSUMER) and json.loads(o.trace)['traceparent'].split('-')[2]==format(s.context.span_id, '016x')
    assert p.attributes['messaging.message.id']==s.attributes['messaging.message.id']==id and p.attributes['fh_saas.attempt']==1 and p.attributes['fh_saas.outcome']=='returned'
    if f is anote: assert json.loads(o.result)==format(p.context.span_id, '016x')

def test_across_processes(t, spans):
    m = t.mgr(worker=False)
    code = '''
from opentelemetry.sdk.trace import TracerProvider
from fh_saas.otel import instrument
instrument(TracerProvider())
id,_ = mgr(worker=False).submit('sync', quick, folder=folder)
out(id)'''
    id = run_py(t, code).split()[0]
    m.task(work.quick); m.run_due()
    assert json.loads(m.get_job(id).trace)['traceparent'].split('-')[1]==format(spans('process sync')[0].context.trace_id, '032x')

def test_errors_and_snooze(job_tester, spans):
    job_tester.submit('a', boom, 1); job_tester.submit('b', snooze); job_tester.drain()
    a,b = spans('process a')[0],spans('process b')[0]
    assert (a.status.status_code.name,a.attributes['error.type'],a.events[0].name)==('ERROR', 'OSError', 'exception') and 'boom' in a.status.description
    assert (b.status.status_code.name,b.attributes['fh_saas.outcome'])==('UNSET', 'snoozed')
    with pytest.raises(TypeError): job_tester.submit('c', note, y=1)
    assert not spans('send c')

def test_children_schedules_flows_batches_transactions(job_tester, spans):
    job_tester.submit('p', parent)
    job_tester.cron('@hourly', note, name='cron')
    chain(job_tester.target, call('one', note), call('two', note))
    with job_tester.transaction(): job_tester.submit('tx', note)
    ids = job_tester.submit_many('many', note, [dict(x=i) for i in range(3)])
    job_tester.drain(ahead=3600)
    p,c = spans('process p')[0],spans('send child')[0]
    assert c.parent.span_id==p.context.span_id and spans('process child')[0].parent.span_id==c.context.span_id
    assert spans('process cron')[0].parent is None
    assert spans('process two')[0].parent.span_id==spans('send one')[0].context.span_id==spans('process one')[0].parent.span_id
    assert spans('process tx')[0].parent.span_id==spans('send tx')[0].context.span_id
    assert len(spans('process many'))==3 and spans('send many')[0].attributes['messaging.batch.message_count']==3

def test_link(job_tester):
    s = Spans()
    undo = s.use(link=True)
    try:
        job_tester.submit('a', note); job_tester.drain()
        a,b = s()
        assert b.parent is None and b.links[0].context.span_id==a.context.span_id and b.context.trace_id!=a.context.trace_id
        assert s.use() is undo
    finally: undo()

def test_baggage_and_length(job_tester, spans):
    got = []
    def reads(): got.append(baggage.get_baggage('user'))
    for v in 'ann', 'x'*MOST_CHARS:
        token = context.attach(baggage.set_baggage('user', v))
        try: job_tester.submit('a', reads)
        finally: context.detach(token)
    job_tester.drain()
    assert got==['ann', None] and [list(json.loads(o.trace)) for o in job_tester.jobs()]==[['traceparent', 'baggage'], ['traceparent']]

def test_not_sampled_and_damaged(job_tester):
    s = Spans(sampler=ALWAYS_OFF)
    undo = s.use()
    try:
        job_tester.submit('a', note); job_tester.submit('a', note); job_tester.drain()
        job_tester.submit('a', note)
        with job_tester._lane.store.writing() as c: c.execute("update tenant_jobs set trace='{no json'")
        job_tester.drain()
        assert not s() and {o.status for o in job_tester.jobs()}=={'completed'}
    finally: undo()

def test_tenant(tmp_path, spans):
    with closing(Tenants(tmp_path, worker=False)) as ts:
        ts.create('acme'); ts['acme'].jobs.submit('a', note); ts['acme'].jobs.run_due()
        assert [o.attributes['fh_saas.tenant'] for o in spans()]==['acme']*2

def test_metrics(job_tester):
    s = Spans()
    undo = s.use()
    job_tester.submit('a', note); job_tester.submit('a', boom, 1); job_tester.clock.tick(3); job_tester.drain()
    undo()
    got = {m.name:m.data.data_points for r in s.reader.get_metrics_data().resource_metrics for o in r.scope_metrics for m in o.metrics}
    assert sum(o.value for o in got['messaging.client.sent.messages'])==sum(o.value for o in got['messaging.client.consumed.messages'])==2
    assert {o.attributes.get('error.type') for o in got['messaging.process.duration']}=={None, 'failed'} and got['fh_saas.job.wait'][0].sum==6

def test_many_threads(t, spans):
    "Submits that share a commit keep their own traces"
    m = t.mgr(worker=False)
    def go(i):
        for k in range(20): m.submit('a', note, x=i) if k%3 else chain(m, call('a', note, x=i), call('a', note, x=i))
    ts = [threading.Thread(target=go, args=(i,)) for i in range(8)]
    for o in ts: o.start()
    for o in ts: o.join()
    rows = m.list_jobs(limit=1000)
    assert len(rows)==8*(13+14) and len({o.trace for o in rows})==8*20 and all(o.trace for o in rows)

def test_version_3_file(t):
    "A file without the column is upgraded in place and its jobs run"
    m = t.mgr(worker=False); id,_ = m.submit('a', note); m.close()
    c = apsw.Connection(str(t.path))
    c.execute("alter table tenant_jobs drop column trace; update tenant_meta set value='3' where key='schema'"); c.close()
    m = t.mgr(t.db(), worker=False)
    assert m.get_job(id).trace is None and m.run_due()==1 and m.get_job(id).status=='completed'

def test_says_which_extra_is_missing(t):
    out = run_py(t, "import sys; sys.modules['opentelemetry'] = None\ntry: import fh_saas.otel\nexcept ImportError as e: out(e)")
    assert "pip install 'fh-saas[otel]'" in out
