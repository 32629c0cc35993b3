"manager.wait and manager.await_job: the end of a job, here or in another process, in time, cheaply"
import asyncio, threading, time
from concurrent.futures import ThreadPoolExecutor

import pytest, work
from fastlite import database
from fh_saas import utils_bgtsk
from fh_saas.running import waiting
from fh_saas.store.base import StoreError
from fh_saas.store.sqlite import SqliteStore
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager, JobNotFound
from util import three as stores
from util import process, run_py, said, stop_worker, until

def add(a, b=1): return a+b
async def aadd(a, b=1): return a+b
def no(): raise ValueError('no')

def nobody_waits(m): return not waiting.waits.by and not m._lane.watched

# --- the end

def test_wait_ends_the_grace(t):
    "Whoever waits does not return the BackgroundTask: the job starts at once, not after `handoff`"
    m = t.mgr(handoff=3600)
    for f in add, aadd:
        j = m.wait(m.submit('a', f, a=1)[0], 30)
        assert (j.status,j.result)==('completed','2')
    assert m.wait(j.id, 0).result=='2', 'one that is over needs no time'
    assert nobody_waits(m)

def test_wait_of_another_manager_ends_the_grace(t):
    "One that runs nothing itself, in a process that runs a worker for the file"
    m,look = t.mgr(handoff=3600),t.look()
    assert look.wait(m.submit('a', add, a=1)[0], 30).result=='2'
    async def f(): return await look.await_job(m.submit('a', add, a=2)[0], 30)
    assert asyncio.run(f()).result=='3'

def test_failed_and_cancelled_are_ends(t):
    m = t.mgr()
    j = m.wait(m.submit('a', no, max_retries=1)[0], 30)
    assert j.status=='failed' and 'ValueError: no' in j.error_log
    look = t.look()
    id,_ = look.submit('a', work.gated, folder=str(t.dir))
    with ThreadPoolExecutor(1) as ex:
        end = ex.submit(look.wait, id, 30)
        until(lambda: waiting.waits.by)
        look._lane.store.discard([id], look._lane.now(), 'not wanted')
        assert end.result(30).status=='cancelled'

def test_a_failed_attempt_is_not_the_end(t):
    ahead = [0]
    m = t.mgr(clock=lambda: time.time()+ahead[0])
    id,_ = m.submit('a', work.fails, folder=str(t.dir), name='x')
    with ThreadPoolExecutor(1) as ex:
        end = ex.submit(m.wait, id, 30)
        until(lambda: m.get_job(id).retry_count==1)
        assert not end.done()
        ahead[0] = 3600
        assert end.result(30).result=='2'

def test_told_at_once(t, monkeypatch):
    "An end in this process is told; nothing waits for the next look"
    monkeypatch.setattr(waiting, 'LOOK_S', 3600)
    monkeypatch.setattr(waiting, 'MOST_S', 3600)
    monkeypatch.setattr(utils_bgtsk, 'waits', waits := waiting.Waits())
    m = t.mgr()
    for i in range(50): assert m.wait(m.submit('a', add, a=i)[0], 30).result==str(i+1)
    assert not waits.by

def test_several_wait_for_one(t):
    m,m2 = t.mgr(),t.look()
    id,_ = m.submit('g', work.gated, folder=str(t.dir))
    with ThreadPoolExecutor(6) as ex:
        ends = [ex.submit(o.wait, id, 30) for o in (m, m2)*3]
        until(lambda: sum(len(w.fs) for o in list(waiting.waits.by.values()) for w in list(o.values()))==6)
        t.go()
        assert {o.result(30).status for o in ends}=={'completed'}
    assert nobody_waits(m)

def test_memory():
    db = database(':memory:')
    m = BackgroundTaskManager(db)
    try:
        ids = m.submit_many('a', add, [dict(a=i) for i in range(200)])
        assert [m.wait(o, 30).result for o in ids]==[str(i+1) for i in range(200)]
        async def all(): return await asyncio.gather(*(m.await_job(o, 30) for o in m.submit_many('a', aadd, [dict(a=i) for i in range(200)])))
        assert len(asyncio.run(all()))==200
    finally: m.close(); stop_worker()

def test_wait_in_a_script(t):
    "A script's jobs begin once it has had time to define its tasks, or as soon as it waits for one; what it defines after that is found"
    run_py(t, "def late(): out('late')\nmgr(worker=False).submit('l', late)")
    assert run_py(t, """
from fh_saas import tasks
tasks._first['__main__'] = time.monotonic()+3600       # it would take an hour
def add(a): return a+1
m = mgr()
out(m.wait(m.submit('a', add, a=1)[0], 20).result)
id,bg = m.submit('a', add, a=2)
asyncio.run(bg()); out(m.get_job(id).result)
def late(): out('late')
out(m.wait(m.list_jobs('l')[0].id, 20).status)""").split()==['2', '3', 'late', 'completed']

# --- no end

@pytest.mark.parametrize('bad,e', [(-1,ValueError), (float('nan'),ValueError), ('5',TypeError), (True,TypeError), ([],TypeError)])
def test_bad_timeout(t, bad, e):
    m = t.look()
    id,_ = m.submit('a', add, a=1)
    with pytest.raises(e, match='timeout'): m.wait(id, bad)
    with pytest.raises(e, match='timeout'): asyncio.run(m.await_job(id, bad))

@pytest.mark.parametrize('bad', ['nope', '', None, 5, '\ud800', "x' or 1=1 --"])
def test_unknown_job(t, bad):
    m = t.look()
    with pytest.raises(JobNotFound): m.wait(bad, 5)
    with pytest.raises(JobNotFound): asyncio.run(m.await_job(bad))

@pytest.mark.on_sqlite('workers of other machines are not known')
def test_timeout_names_job_and_state(t):
    m = t.look()
    id,_ = m.submit('mail', add, a=1)
    for s in 0, .02:
        with pytest.raises(TimeoutError, match=f'{id} .mail. is still pending after {s} s: no worker runs'): m.wait(id, s)
        with pytest.raises(TimeoutError, match='pending'): asyncio.run(m.await_job(id, s))
    assert nobody_waits(m) and m.get_job(id).status=='pending'

def test_sync_wait_on_a_loop(t):
    m = t.look()
    id,_ = m.submit('a', add, a=1)
    async def f(): m.wait(id, 5)
    with pytest.raises(RuntimeError, match='await_job'): asyncio.run(f())

@pytest.mark.on_sqlite('writes SQL of its own')
def test_gone_while_waited_for(t):
    m = t.look()
    id,_ = m.submit('a', add, a=1)
    with ThreadPoolExecutor(1) as ex:
        end = ex.submit(m.wait, id, 30)
        until(lambda: waiting.waits.by)
        m.db.q('delete from tenant_jobs')
        with pytest.raises(JobNotFound, match=id): end.result(30)

def test_closed_while_waiting(t):
    m = t.look()
    id,_ = m.submit('a', add, a=1)
    with ThreadPoolExecutor(1) as ex:
        end = ex.submit(m.wait, id, 30)
        until(lambda: waiting.waits.by)
        m.close()
        with pytest.raises(RuntimeError, match='closed'): end.result(30)

@pytest.mark.on_sqlite('files')
def test_deleted_file(t, monkeypatch):
    "The waiter learns of it after a while, and so does nobody else"
    monkeypatch.setattr(waiting, 'TRUST_S', .05)
    m = t.look()
    id,_ = m.submit('a', add, a=1)
    with ThreadPoolExecutor(1) as ex:
        end = ex.submit(m.wait, id, 30)
        until(lambda: waiting.waits.by)
        for o in ('', '-wal', '-shm'): (t.dir/f't.db{o}').unlink(missing_ok=True)
        with pytest.raises(StoreError, match='deleted'): end.result(30)

def test_cancelling_the_wait_leaves_the_job(t):
    m = t.mgr()
    id,_ = m.submit('g', work.gated, folder=str(t.dir))
    async def f():
        w = asyncio.ensure_future(m.await_job(id))
        await asyncio.to_thread(until, lambda: waiting.waits.by)
        w.cancel()
        with pytest.raises(asyncio.CancelledError): await w
        assert not waiting.waits.by
        t.go()
        return await m.await_job(id, 30)
    assert asyncio.run(f()).status=='completed'

# --- many

def test_a_thousand_on_one_loop(t):
    m = t.mgr()
    async def all():
        ids = await asyncio.to_thread(m.submit_many, 'a', aadd, [dict(a=i) for i in range(1000)])
        before = threading.active_count()
        jobs = await asyncio.gather(*(m.await_job(o, 60) for o in ids))
        return jobs,threading.active_count()-before
    jobs,more = asyncio.run(all())
    assert [o.result for o in jobs]==[str(i+1) for i in range(1000)] and more<40
    assert nobody_waits(m)

def test_waiting_is_cheap(t, monkeypatch):
    "A thousand who wait for what does not end: a few queries, whoever many they are"
    looks = []
    was = SqliteStore.statuses
    monkeypatch.setattr(SqliteStore, 'statuses', lambda self, ids: looks.append(len(ids)) or was(self, ids))
    m = t.look()
    ids = m.submit_many('a', add, [dict(a=i) for i in range(1000)])
    async def all():
        ws = [asyncio.ensure_future(m.await_job(o, 60)) for o in ids]
        await asyncio.to_thread(until, lambda: looks.count(1000)>=3)
        began,n = time.monotonic(),len(looks)
        await asyncio.to_thread(until, lambda: len(looks)>=n+4)
        took = time.monotonic()-began
        for o in ws: o.cancel()
        return took
    took = asyncio.run(all())
    assert took>=3*waiting.LOOK_S*.9, took

def test_waits_do_not_take_the_places_of_tenants(tmp_path):
    "Jobs for later in more tenants than may be open: others run all the same, and so do these when they are due"
    ahead = [0]
    ts = Tenants(tmp_path, tasks=[add], most_open=2, idle_s=.2, handoff=0, clock=lambda: time.time()+ahead[0])
    try:
        ids = {}
        for i in range(6):
            m = ts.create(f't{i}').jobs
            j = m._new_job('a', add, 3, dict(a=i), now=True)
            j.ready,j.run_at = 0,'2999-01-01T00:00:00.000000Z'
            m._save([j]); ids[f't{i}'] = j.id
        with ThreadPoolExecutor(6) as ex:
            ends = [ex.submit(ts[k].jobs.wait, o, 60) for k,o in ids.items()]
            until(lambda: len(waiting.waits.by)==6)
            for i in range(6): assert ts[f't{i}'].jobs.wait(ts[f't{i}'].jobs.submit('a', add, a=i)[0], 30).result==str(i+1)
            assert not any(o.done() for o in ends)
            ahead[0] = 1000*366*86400
            assert {o.result(60).status for o in ends}=={'completed'}
    finally: stop_worker(); ts.close()

# --- other processes

def test_end_in_another_process(t):
    m = t.look()
    with process(t, "m = mgr(tasks=[quick,gated,agated,fails,bomb,nap]); out('up'); m.run()") as p:
        said(p, 'up')
        ids = [m.submit('g', work.gated, folder=str(t.dir))[0], m.submit('g', work.agated, folder=str(t.dir))[0]]
        async def both(): return await asyncio.gather(*(m.await_job(o, 60) for o in ids))
        with ThreadPoolExecutor(2) as ex:
            ends = [ex.submit(m.wait, ids[0], 60), ex.submit(asyncio.run, both())]
            until(lambda: len(t.log('start'))==2)
            assert not any(o.done() for o in ends)
            t.go()
            assert ends[0].result(60).status=='completed' and len(ends[1].result(60))==2
        assert m.list_jobs(status='running')==[]

def test_kill_what_runs_the_job(t):
    "The process that runs it is killed; another takes it over, and the wait goes on to its end"
    m = t.look()
    RUN = "m = mgr(tasks=[gated]); out('up'); m.run()"
    id,_ = m.submit('g', work.gated, folder=str(t.dir), name='x')
    with ThreadPoolExecutor(1) as ex, process(t, RUN) as a:
        end = ex.submit(m.wait, id, 60)
        until(lambda: t.log('start'))
        with process(t, RUN) as b:
            said(b, 'up')
            a.kill()
            until(lambda: len(t.log('start'))==2)
            assert not end.done()
            t.go()
            assert end.result(60).retry_count==1

def test_after_a_fork(t):
    "A child has no thread of the parent's; it waits with its own"
    assert 'child 2' in run_py(t, '''
def add(a, b=1): return a+b
m = mgr()
print(m.wait(m.submit('a', add, a=1)[0], 30).result, flush=True)
if pid := os.fork(): os._exit(os.waitpid(pid, 0)[1])
print('child', m.wait(m.submit('a', add, a=1)[0], 30).result, flush=True)
os._exit(0)''')

def test_many_processes_wait(t):
    "Several processes submit, and wait for jobs that whichever of them runs"
    code = '''
m = mgr(tasks=[quick])
ids = m.submit_many('q', quick, [dict(folder=folder, name=f'{os.getpid()}-{i}') for i in range(40)])
async def all(): return await asyncio.gather(*(m.await_job(o, 60) for o in ids))
out('ended', sum(o.status=='completed' for o in asyncio.run(all())))'''
    with process(t, code) as a, process(t, code) as b, process(t, code) as c:
        for p in a,b,c: said(p, 'ended 40', 60)
    names = [o[2] for o in t.log('ran')]
    assert len(names)==120==len(set(names))
