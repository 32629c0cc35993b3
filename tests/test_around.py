"What goes around attempts: order, errors, sync and async, child processes; and whose a log line is"
import asyncio, json, logging, threading, time
from contextlib import asynccontextmanager, closing, contextmanager
from contextvars import ContextVar

import pytest, work
from fh_saas.running.around import around, in_use, remove_around
from fh_saas.running.context import current_job
from fh_saas.running.logs import JsonLines, JobFilter, label_logs, log_events, unlabel_logs
from fh_saas.retry import Discard, Snooze
from fh_saas.tasks import shared
from fh_saas.telemetry import subscribe
from fh_saas.tenants import Tenants
from util import done, run_py, until

said,role = [],ContextVar('role', default=None)
def task(x=None): said.append(('task', role.get(), x)); return x
async def atask(x=None): await asyncio.sleep(0); said.append(('task', role.get(), x)); return x
def boom(): raise OSError('boom')
def snooze(): raise Snooze(60)

@pytest.fixture(autouse=True)
def fresh():
    said.clear(); yield
    shared.arounds = (); in_use.clear()

def gen(name):
    def f(job):
        said.append(f'{name} begins')
        token = role.set(f'{name}:{job.job_type}')
        try: yield
        except BaseException as e: said.append(f'{name} saw {type(e).__name__}'); raise
        finally: role.reset(token)
        said.append(f'{name} ends')
    return f

def agen(name):
    async def f(job):
        await asyncio.sleep(0); said.append(f'{name} begins')
        try: yield
        except BaseException as e: said.append(f'{name} saw {type(e).__name__}'); raise
        await asyncio.sleep(0); said.append(f'{name} ends')
    return f

@pytest.mark.parametrize('f', [task, atask])
@pytest.mark.parametrize('how', ['worker', 'run_due', 'in a loop'])
def test_order(t, f, how):
    "Of all jobs before one database's, and in the order of registration; sync and async mixed"
    m = t.mgr(worker=how=='worker', handoff=0)
    m.around(gen('c')); m.around(agen('d')); around(gen('a')); around(agen('b'))
    id,_ = m.submit('mail', f, x=1)
    if how=='run_due': m.run_due()
    if how=='in a loop':
        async def main(): m.run_due()
        asyncio.run(main())
    assert done(m, id).result=='1'
    assert said==['a begins', 'b begins', 'c begins', 'd begins', ('task', 'c:mail', 1), 'd ends', 'c ends', 'b ends', 'a ends'], said

@pytest.mark.parametrize('f', [boom, snooze])
def test_sees_what_the_task_raises(t, f):
    m = t.mgr(worker=False)
    m.around(gen('a'))
    id,_ = m.submit('x', f)
    m.run_due()
    assert said==['a begins', f'a saw {dict(boom="OSError", snooze="Snooze")[f.__name__]}'] and m.get_job(id).status=='pending'

def test_may_swallow_replace_or_refuse(t):
    m = t.mgr(worker=False)
    def swallow(job):
        try: yield
        except OSError: pass
    m.around(swallow)
    a,_ = m.submit('x', boom); m.run_due()
    assert m.get_job(a).status=='completed'
    def replace(job):
        try: yield
        except OSError as e: raise Discard('not again') from e
    m.around(replace)
    b,_ = m.submit('x', boom); m.run_due()
    assert m.get_job(b).status=='failed' and 'not again' in m.get_job(b).error_log
    def refuse(job): raise RuntimeError('no role'); yield
    m.around(refuse)
    c,_ = m.submit('x', task); m.run_due()
    assert m.get_job(c).status=='pending' and 'no role' in m.get_job(c).error_log and not said

@pytest.mark.parametrize('bad,why', [(lambda job: 5, 'not a context manager'), (lambda: (yield), 'positional argument'), (lambda job: (yield from ()), "didn't yield")])
def test_unfit(t, bad, why):
    m = t.mgr(worker=False)
    m.around(bad)
    id,_ = m.submit('x', task); m.run_due()
    assert why in m.get_job(id).error_log and not said
    with pytest.raises(TypeError, match='around takes'): m.around('x')

def test_context_managers(t):
    m = t.mgr(worker=False)
    @m.around
    def lock(job): return threading.Lock()
    @m.around
    @contextmanager
    def cm(job): said.append('cm'); yield
    @around
    @asynccontextmanager
    async def acm(job): said.append('acm'); yield
    id,_ = m.submit('x', task, x=1); m.run_due()
    assert said==['acm', 'cm', ('task', None, 1)] and m.get_job(id).result=='1'

def test_a_function_that_gives_a_coroutine(t):
    m = t.mgr(worker=False)
    m.around(gen('a'))
    id,_ = m.submit('x', lambda x: atask(x), x=1); m.run_due()
    assert said==['a begins', ('task', 'a:x', 1), 'a ends']

def test_timeout_and_cancel_reach_it(t):
    m = t.mgr(handoff=0)
    m.around(agen('a'))
    async def long(): await asyncio.sleep(30)
    id,_ = m.options(timeout=.05, max_retries=1).submit('x', long)
    done(m, id, status='failed')
    assert said==['a begins', 'a saw CancelledError']

def test_tenants(tmp_path):
    with closing(Tenants(tmp_path, worker=False)) as ts:
        ts.create('acme'); ts.create('bob')
        @ts.around
        def role_of(job): said.append(job.tenant); yield
        for o in ts: ts[o].jobs.submit('x', task); ts[o].jobs.run_due()
        assert said==['acme', ('task', None, None), 'bob', ('task', None, None)]
        with pytest.raises(TypeError, match='tenants.around'): ts['acme'].jobs.around(role_of)

APP = '''
import os, sys
from fastlite import database
from fh_saas.utils_bgtsk import *
from fh_saas.running.around import around
from work import say
folder = os.environ['FH_DIR']
manager = BackgroundTaskManager(database(os.environ['FH_DB']), worker=False)
@around
def outer(job): say(folder, 'outer', os.getpid()); yield
@manager.around
def inner(job): say(folder, 'inner', os.getpid()); yield
@manager.task(process=True)
def heavy(): say(folder, 'heavy', os.getpid())
'''
def test_in_a_child_process(t):
    "It goes around the task where that runs"
    (t.dir/'chapp.py').write_text(APP)
    run_py(t, "import os\nsys.path.insert(0, folder); os.environ.update(FH_DIR=folder, FH_DB=path)\nimport chapp\nid,_ = chapp.manager.submit('x', chapp.heavy); chapp.manager.run_due(); assert chapp.manager.get_job(id).status=='completed', chapp.manager.get_job(id).error_log")
    words = [o[1:] for o in t.log()]
    assert [o[0] for o in words]==['outer', 'inner', 'heavy'] and len({o[1] for o in words})==1

def test_remove(t):
    m = t.mgr(worker=False)
    f = around(gen('a'))
    assert remove_around(f) and not remove_around(f) and not in_use
    m.submit('x', task); m.run_due()
    assert said==[('task', None, None)]

# --- logs

class Keep(logging.Handler):
    def __init__(self): super().__init__(); self.lines = []; self.setFormatter(JsonLines())
    def emit(self, r): self.lines.append(json.loads(self.format(r)))

@pytest.fixture
def kept():
    h,lib = Keep(),logging.getLogger('lib')
    for o in lib, logging.getLogger('fh_saas'): o.addHandler(h); o.setLevel(logging.INFO)
    label_logs(); label_logs()
    yield h.lines
    unlabel_logs(); assert not h.filters
    for o in lib, logging.getLogger('fh_saas'): o.removeHandler(h); o.setLevel(0)

def logs(n): logging.getLogger('lib').info('line %d', n, extra=dict(url='u', tenant='mine'))
async def alogs(n): await asyncio.sleep(0); logging.getLogger('lib').info('line %d', n); await asyncio.to_thread(logging.getLogger('lib').info, 'aside')

@pytest.mark.parametrize('f,n', [(logs, 1), (alogs, 2)])
def test_lines_of_a_task(t, kept, f, n):
    m = t.mgr(handoff=0)
    id,_ = m.submit('x', f, n=5)
    done(m, id)
    logging.getLogger('lib').info('outside')
    assert [(o['job_id'],o['job_type'],o['attempt']) for o in kept[:n]]==[(id, 'x', 1)]*n and kept[0]['message']=='line 5' and 'job_id' not in kept[-1]
    if f is logs: assert (kept[0]['url'],kept[0]['tenant'])==('u', 'mine')

def test_tenant_of_a_line(tmp_path, kept):
    with closing(Tenants(tmp_path, worker=False)) as ts:
        ts.create('acme')
        ts['acme'].jobs.submit('x', alogs, n=1); ts['acme'].jobs.run_due()
        assert {o.get('tenant') for o in kept}=={'acme'}

def test_events_as_lines(t, kept):
    m = t.mgr(worker=False)
    stop = subscribe(log_events, queue=None)
    try: id,_ = m.submit('x', boom, 1); m.run_due()
    finally: stop()
    assert [(o['message'],o['level']) for o in kept]==[('job.submitted', 'INFO'), ('job.started', 'INFO'), ('job.failed', 'ERROR')]
    assert kept[-1]['job_id']==id and 'boom' in kept[-1]['error']

def test_anything_can_be_logged(kept):
    class Odd:
        def __repr__(self): raise OSError
    logging.getLogger('lib').info('x', extra=dict(a=object(), b={1, 2}, c=float('nan')))
    logging.getLogger('lib').info('\ud800')
    assert len(kept)==2
