"""What the package does on systems that lack file locks, Unix sockets, fork or /proc: the features are taken away in processes of
their own. It shows that the other ways are taken and hold; it is no proof that SQLite does there what it does here"""
import pytest
from util import end, process, run_py, said, until

PRE = '''
import sys
import without
without.{}()
import apsw, asyncio, json, os, signal, threading, time
from fastlite import database as opened
from fh_saas.utils_bgtsk import *
from elsewhere import *
path,folder = sys.argv[1:3]
db = opened(path)
def mgr(**kw): return BackgroundTaskManager(db, **kw)
def out(*a): print(*a, flush=True)
'''
WINDOWS,MACOS = PRE.format('windows'),PRE.format('macos')
both = pytest.mark.parametrize('pre', [WINDOWS, MACOS], ids=['windows', 'macos'])

LIFE = '''
m = mgr()
def add(a, b): return a+b
async def slow(a): await asyncio.sleep(.01); return a
def bad(): raise ValueError('no')
ids = [m.submit('t', add, a=i, b=1)[0] for i in range(20)]+[m.submit('t', slow, a=1)[0]]
m.submit_many('t', add, [dict(a=i, b=1) for i in range(200)])
b,_ = m.submit('t', bad, max_retries=1)
assert [m.wait(i, 30).result for i in ids]==[str(i+1) for i in range(20)]+['1']
assert m.wait(b, 30).status=='failed'
with m.transaction() as db2: m.submit('t', add, a=5, b=5)
w = m.options(unique='k').submit('t', add, a=1, b=1)[0]
m.wait(w, 30)
m.close()
print(sorted(os.listdir(folder+'/.fh_saas')))
'''

@both
def test_jobs_run_and_nothing_is_left(t, pre):
    "Sync and async tasks, many at once, a failure and a transaction; at the end the folder is as tidy as on Linux"
    left = run_py(t, LIFE, pre=pre)
    assert '.run' not in left and '.dbs' not in left

@both
def test_another_process_finds_the_work(t, pre):
    "Without a doorbell a worker looks once a second"
    with process(t, "m = mgr(tasks=[ok]); m.submit('t', ok); out('up'); time.sleep(60)", pre=pre) as p:
        said(p, 'up')
        m = t.look(tasks=[])
        until(lambda: m.list_jobs(status='completed'), 20)
        run_py(t, "m = mgr(worker=False); print(m.submit('t', ok)[0])", pre=pre)
        until(lambda: len(m.list_jobs(status='completed'))==2, 20)

def test_a_crash_is_noticed_when_the_lease_ends(t):
    "P2 without file locks: nobody is robbed while its lease holds, and nothing is lost once it has ended"
    with process(t, "m = mgr(tasks={'hang':hang}); m._lane.lease_s = 1.5; m.submit('t', hang); time.sleep(60)", pre=WINDOWS) as p:
        said(p, 'runs')
        end(p)
    with process(t, "m = mgr(tasks={'hang':back}); time.sleep(60)", pre=WINDOWS):
        m = t.look(tasks=[])
        until(lambda: m.list_jobs(status='completed'), 30)
        job, = m.list_jobs()
        assert (job.result, job.retry_count)==('"ran again"', 1)

def test_a_long_folder_name_without_proc(t, tenants):
    "A Unix socket's name has a bound; where /proc cannot shorten it, the doorbell is left out"
    far = tenants('x'*120)
    run_py(far, "m = mgr(); assert m._lane.here._sock is None; assert m.wait(m.submit('t', ok)[0], 30).status=='completed'", pre=MACOS)

def test_a_process_of_its_own_says_what_it_needs(t):
    "process=True is refused where there is no fork and no signal"
    code = '''
from fh_saas.running import children
import types
children.os = types.SimpleNamespace(**{**vars(os), 'name':'nt'})
m = mgr()
m.task(ok, process=True)
j = m.wait(m.submit('t', ok, max_retries=1)[0], 30)
assert j.status=='failed' and 'process=True needs a Unix system' in j.error_log, j'''
    run_py(t, code, pre=WINDOWS)

def test_tenants(t):
    "Many databases: made, worked, moved and deleted"
    code = '''
from fh_saas.tenants import Tenants
ts = Tenants(folder+'/all', tasks=[ok])
for i in range(5): ts.create(f't{i}')
ids = {i:ts[f't{i}'].jobs.submit('t', ok)[0] for i in range(5)}
for i,j in ids.items(): assert ts[f't{i}'].jobs.wait(j, 30).status=='completed'
ts['t1'].move(folder+'/all/other/t1.db')
assert ts['t1'].jobs.wait(ts['t1'].jobs.submit('t', ok)[0], 30).status=='completed'
ts['t2'].delete('t2')
assert sorted(ts)==['t0','t1','t3','t4'], sorted(ts)
ts.close()'''
    run_py(t, code, pre=WINDOWS)
