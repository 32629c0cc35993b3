"What a task can ask and tell about its job: JobContext and current_job()"
from __future__ import annotations
import asyncio, json, threading
from typing import Optional, TYPE_CHECKING

import pytest
from fh_saas.context import JobContext, current_job
from fh_saas.tenants import Tenants
from util import done, until
if TYPE_CHECKING: from fh_saas.context import JobContext as OnlyForTypes

# --- who am I

def facts(j): return [j.id, j.job_type, j.tenant, j.attempt, j.max_retries]
def by_class(x, job:JobContext): return facts(job)
def optional(x, *, ctx:Optional[JobContext]=None): return facts(ctx)
def in_text(x, me:"JobContext | None"): return facts(me)
def by_hand(x): return facts(current_job())
def in_kw(job:JobContext, **kw): return facts(job)
async def aclass(x, job:JobContext): return facts(job)
async def ahand(x):
    async def sub(): return facts(current_job())
    a,b = await asyncio.gather(sub(), asyncio.to_thread(lambda: facts(current_job())))
    assert a==b==facts(current_job())
    return a

@pytest.mark.parametrize('f', [by_class, optional, in_text, by_hand, in_kw, aclass, ahand])
@pytest.mark.parametrize('worker', [True, False])
def test_who(t, f, worker):
    "By annotation under any name, or by current_job(); run by the worker and called by hand"
    m = t.mgr(worker=worker, handoff=0)
    id,bg = m.submit('w', f, x=1)
    if not worker: bg.func(*bg.args, **bg.kwargs)
    assert json.loads(done(m, id).result)==[id, 'w', None, 1, 3]

def flaky(job:JobContext):
    if job.attempt<3: raise ValueError(job.attempt)
    return job.attempt

def test_attempt(t):
    "Attempts are counted from 1"
    now = [1e9]
    m = t.mgr(worker=False, clock=lambda: now[0])
    id,_ = m.submit('f', flaky)
    for i in range(3): now[0] += 100; m.run_due()
    assert m.get_job(id).result=='3'

def test_outside(t):
    "Outside a job: an error that says so, or the default; a job that ended leaves nothing behind in the thread"
    with pytest.raises(RuntimeError, match='no job runs here'): current_job()
    m = t.mgr(worker=False)
    _,bg = m.submit('w', by_hand, x=1)
    bg.func(*bg.args)
    assert current_job(None) is None

def test_not_an_argument(t):
    "The parameter is not the submitter's to give, and the others are still checked"
    m = t.mgr(worker=False)
    with pytest.raises(TypeError, match="'job' is the JobContext"): m.submit('w', by_class, x=1, job=None)
    with pytest.raises(TypeError, match="needs 'x'"): m.submit('w', by_class)
    assert not m.list_jobs()

def test_many_at_once(t):
    "Each of many jobs at once, sync and async, sees its own"
    def look(x): return current_job().id
    async def alook(x):
        a = current_job().id
        await asyncio.sleep(0)
        return [a, current_job().id]
    m = t.mgr()
    ids,aids = m.submit_many('s', look, [dict(x=i) for i in range(300)]),m.submit_many('a', alook, [dict(x=i) for i in range(300)])
    until(lambda: len(m.list_jobs(status='completed', limit=1000))==600)
    for i in ids: assert json.loads(m.get_job(i).result)==i
    for i in aids: assert json.loads(m.get_job(i).result)==[i,i]

def test_tenant(tmp_path):
    "Under Tenants the job knows whose it is, also after a rename"
    ts = Tenants(tmp_path, tasks=[by_class], handoff=0)
    try:
        a = ts.create('acme')
        id,_ = a.jobs.submit('w', by_class, x=1)
        assert json.loads(done(a.jobs, id).result)[2]=='acme'
    finally: ts.close()

def test_other_threads(t):
    "A thread that was started without the context sees no job"
    got = []
    def f():
        th = threading.Thread(target=lambda: got.append(current_job(None))); th.start(); th.join()
    m = t.mgr(worker=False)
    _,bg = m.submit('w', f)
    bg.func(*bg.args)
    assert got==[None]
