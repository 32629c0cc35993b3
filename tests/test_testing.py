"The helpers with which users test their own jobs, and the pytest plugin"
import asyncio, json, logging, threading
from datetime import datetime, timedelta, timezone
from contextlib import closing

import pytest, work
from fh_saas import testing
from fh_saas.running.context import JobContext
from fh_saas.ids import from_iso, to_iso
from fh_saas.retry import RetryPolicy
from fh_saas.telemetry import listening, subscribe
from fh_saas.tenants import Tenants
from fh_saas.testing import Clock, Crashed, FailedJobs, JobTester, crash, crashing, lose_claim, stop_worker
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from util import done, opened, until

pytest_plugins = 'pytester'
ran = []

@pytest.fixture(autouse=True)
def fresh(): ran.clear()

def note(x=None, y=None): ran.append(x); return x
async def anote(x=None): ran.append(x); return x
def boom(x=None): ran.append(x); raise OSError(f'boom {x}')

# --- clock

def test_clock():
    c = Clock(datetime(2026, 3, 1, tzinfo=timezone.utc))
    assert c.tick(timedelta(days=1))==c()==from_iso('2026-03-02T00:00:00Z') and c.tick(-86400)==from_iso('2026-03-01') and Clock(5)()==5
    with pytest.raises(ValueError, match='at'): Clock(datetime(2026, 1, 1))

# --- draining

def test_nothing_runs_but_by_drain(job_tester):
    id,bg = job_tester.submit('a', note, x=1)
    asyncio.run(bg())
    assert not ran and job_tester.drain()==1 and ran==[1] and job_tester.get_job(id).completed_at==to_iso(job_tester.clock())

def test_ahead(job_tester):
    "Each at its time, in the order of time, and the clock ends where it was told to"
    t0 = job_tester.clock()
    job_tester.task(boom, name='boom', backoff=RetryPolicy(base=10))
    b,_ = job_tester.options(delay=15).submit('b', note, x='later')
    a,_ = job_tester.submit('a', boom, x='boom')
    job_tester.cron('@hourly', note, name='hourly', x='hour')
    assert job_tester.drain(ahead=3600)==5 and ran==['boom', 'boom', 'later', 'boom', 'hour'] and job_tester.clock()==t0+3600
    assert [from_iso(job_tester.get_job(o).completed_at)-t0 for o in (a, b)]==[110, 15] and job_tester.drain(ahead=1800)==0

def test_rate(job_tester):
    job_tester.task(note, name='note', rate=(1, 60))
    for i in range(3): job_tester.submit('a', note, x=i)
    assert (job_tester.drain(), job_tester.drain(ahead=59), job_tester.drain(ahead=1), job_tester.drain(ahead=600))==(1, 0, 1, 1)

def test_takes_over_a_running_manager_and_gives_it_back(t):
    m = t.mgr(handoff=0)
    done(m, m.submit('a', note, x=0)[0])
    clock = m.clock
    with JobTester(m) as jobs:
        id,_ = m.submit('a', note, x=1)
        later,_ = m.options(delay=3600).submit('a', note, x=2)
        assert m.get_job(id).status=='pending' and [o.id for o in jobs.jobs()]==[id, later]
        assert (jobs.drain(), jobs.drain(ahead=3600), ran)==(1, 1, [0, 1, 2])
    assert m.clock is clock and m.worker
    done(m, m.submit('a', note, x=3)[0])

def test_what_was_not_drained_runs_once_the_manager_is_given_back(t):
    "And not with the next submit, in another test"
    m = t.mgr(handoff=0)
    with JobTester(m) as jobs:
        id,_ = m.submit('a', note, x=1)
        parent,_ = m.submit('a', note, x=2)
        kid,_ = m.options(after=[parent]).submit('a', note, x=3)
        assert not ran
    for o in id,parent,kid: done(m, o)
    assert sorted(ran)==[1, 2, 3]

def test_assert_drained(t):
    "Says which jobs are due and have not run, in a manager and in tenants; what is for later is none"
    with JobTester() as jobs:
        jobs.assert_drained()
        jobs.options(delay=60).submit('later', note, x=0)
        jobs.assert_drained()
        jobs.submit('a', note, x=1); jobs.submit('b', boom, 2)
        with pytest.raises(AssertionError, match=r"2 jobs submitted here were not run, see drain\(\):\n  a\(x=1\) pending\n  b\(\) pending"): jobs.assert_drained()
        jobs.drain(); jobs.assert_drained()                   # the other attempt is for later
        jobs.clock.tick(2)
        with pytest.raises(AssertionError, match='b\\(\\) pending'): jobs.assert_drained()
        jobs.drain(ahead=60); jobs.assert_drained()
    with closing(Tenants(t.dir/'ts', worker=False)) as ts, JobTester(ts) as jobs:
        ts.create('acme').jobs.submit('sync', note, x=1)
        with pytest.raises(AssertionError, match=r"\[acme\] sync\(x=1\) pending"): jobs.assert_drained()

def test_options_are_for_a_manager_that_is_made_here(t):
    with pytest.raises(TypeError, match='threads'): JobTester(t.mgr(worker=False), threads=2)
    t.dbs.append(other := opened(t.dir/'other.db'))
    with JobTester(other, payload_limit=10) as jobs:
        with pytest.raises(ValueError): jobs.submit('a', note, x='long enough')

def test_inline(t):
    m = t.mgr()
    with JobTester(m, inline=True):
        a,_ = m.submit('a', note, x=1)
        with m.transaction() as db:
            b,_ = m.submit('a', note, x=2)
            assert ran==[1]
        assert ran==[1, 2] and [m.get_job(o).status for o in (a, b)]==['completed']*2
        m.submit_many('a', note, [dict(x=3), dict(x=4)])
        c,_ = m.submit('a', boom)
        assert ran[2:]==[3, 4, None] and m.get_job(c).status=='pending'
        async def main(): await m.asubmit('a', anote, x=5); m.submit('a', anote, x=6)
        asyncio.run(main())
        assert ran[5:]==[5, 6]

def test_inline_where_another_thread_commits(t, monkeypatch):
    "Of threads that share a commit each has its own job run"
    m = t.mgr()
    store = m._lane.store
    insert = store.insert_made
    monkeypatch.setattr(store, 'insert_made', lambda *a: insert(*a) and False)
    with JobTester(m, inline=True): m.submit('a', note, x=1); assert ran==[1]

def parent(job:JobContext):
    for i in range(3): job.submit('child', note, x=i)
    ran.append('parent')

def test_inline_children_come_after_their_parent(job_clock):
    with JobTester(inline=True, clock=job_clock) as jobs:
        jobs.submit('p', parent)
        assert ran==['parent', 0, 1, 2]

def test_from_a_route(t):
    m = t.mgr()
    async def go(request): id,bg = m.submit('sync', anote, x=request.query_params['x']); return PlainTextResponse(id, background=bg)
    client = TestClient(Starlette(routes=[Route('/go', go)]))
    with JobTester(m) as jobs:
        id = client.get('/go?x=9').text
        assert jobs.assert_submitted('sync', x='9')[0].id==id and not ran and jobs.drain()==1 and ran==['9']
    with JobTester(m, inline=True): client.get('/go?x=10'); assert ran==['9', '10']

def test_tenants(tmp_path):
    with closing(Tenants(tmp_path, worker=False)) as ts, JobTester(ts) as jobs:
        ts.create('acme'); ts.create('bob')
        ts['acme'].jobs.submit('sync', note, x=1)
        ts['bob'].jobs.options(delay=60).submit('sync', note, x=2)
        with pytest.raises(AssertionError, match=r"\[acme\] sync\(x=1\) pending"): jobs.assert_submitted('sync', x=3)
        assert (jobs.drain(), jobs.drain(ahead=60), ran)==(1, 1, [1, 2]) and len(jobs.jobs(status='completed'))==2
        with JobTester(ts['bob'].jobs, clock=jobs.clock) as bob: assert bob.jobs()==[]
    with closing(Tenants(tmp_path, worker=False)) as ts, JobTester(ts, inline=True) as jobs: ts['acme'].jobs.submit('sync', note, x=4); assert ran[2:]==[4]
    with closing(Tenants(tmp_path)) as ts, pytest.raises(ValueError, match='worker=False'): JobTester(ts)
    stop_worker()

# --- what was submitted

def day(on:datetime, n:int=0): pass

def test_arguments_arrive_as_they_were_given(job_tester):
    on = datetime(2026, 5, 1, tzinfo=timezone.utc)
    job_tester.submit('a', day, on=on, n=3)
    assert job_tester.assert_submitted('a', on=on)[0].job_type=='a'
    with pytest.raises(AssertionError, match=r"differs: n=3, not '3' \(int, not str\)"): job_tester.assert_submitted('a', n='3')

def test_unknown_and_rolled_back(job_tester):
    with pytest.raises(ZeroDivisionError):
        with job_tester.transaction(): job_tester.submit('a', note, x=1); 1/0
    job_tester.assert_not_submitted()
    job_tester.submit('sync', note, x=1)
    with pytest.raises(AssertionError, match=r"is 'sync' meant\?"): job_tester.assert_submitted('snyc')
    with pytest.raises(AssertionError, match=r"1 job 'sync' with x=1 was submitted"): job_tester.assert_not_submitted('sync', x=1)

# --- crashes

def swallows():
    "Goes on as if nothing had happened"
    try: ran.append('effect'); crash()
    except BaseException: ran.append('swallowed')
    return 'said'
async def aswallows():
    try: ran.append('effect'); crash()
    except BaseException: ran.append('swallowed')

@pytest.mark.parametrize('f', [swallows, aswallows])
def test_what_a_dead_attempt_says_does_not_count(job_tester, f):
    id,_ = job_tester.submit('a', f)
    assert job_tester.drain()==2
    o = job_tester.get_job(id)
    assert (o.status,o.retry_count,ran)==('completed', 1, ['effect', 'swallowed', 'effect']) and [a['outcome'] for a in json.loads(o.attempts)]==['crashed']

def writes(job:JobContext):
    job.step('a', note, x='a')
    with job.transaction() as db:
        db.q('create table if not exists t(x)'); db.q('insert into t values(1)')
        job.submit('child', note, x='child')
        try: crash()
        except Crashed: ran.append('went on')

def test_crash_inside_a_transaction(job_tester):
    "It is rolled back, even where the task swallows the end of its process"
    id,_ = job_tester.submit('a', writes)
    assert job_tester.drain()==3
    assert job_tester.get_job(id).retry_count==1 and job_tester.db.q('select count(*) n from t')[0]['n']==1 and ran==['a', 'went on', 'child']

async def awrites(job:JobContext):
    await job.astep('a', anote, x='a')
    async with job.transaction() as db: db.q('create table if not exists t(x)'); db.q('insert into t values(1)'); crash()

def test_crash_inside_an_async_transaction(job_tester):
    id,_ = job_tester.submit('a', awrites)
    assert job_tester.drain()==2 and job_tester.get_job(id).status=='completed'
    assert job_tester.db.q('select count(*) n from t')[0]['n']==1 and ran==['a']

def always(): ran.append(1); crash(None)

def test_crash_in_each_attempt_ends_failed(job_tester, no_failed_jobs):
    no_failed_jobs.expect('a')
    id,_ = job_tester.submit('a', always)
    assert job_tester.drain(ahead=600)==3 and job_tester.get_job(id).status=='failed' and no_failed_jobs.seen[0]['how']=='crashed'

def test_crash_under_a_worker(t):
    m = t.mgr(handoff=0)
    id,_ = m.submit('a', swallows)
    assert done(m, id).retry_count==1 and ran==['effect', 'swallowed', 'effect']

def test_crash_outside_a_job():
    for f in crash, lose_claim:
        with pytest.raises(RuntimeError, match='no job runs here'): f()

def test_crashing(job_tester, monkeypatch, t):
    monkeypatch.setattr(work, 'say', crashing(work.say))
    job_tester.submit('a', work.quick, folder=str(t.dir))
    assert job_tester.drain()==2 and len(t.log('ran'))==2

def loses(job:JobContext):
    lose_claim()
    ran.append(job.attempt)
    job.step('after', note, x='step')

def test_lost_claim(job_tester):
    id,_ = job_tester.submit('a', loses)
    assert job_tester.drain()==2 and ran==[1, 'step', 2, 'step'], 'the effect of the first was not kept, so the second made it again'
    def in_tx(job:JobContext):
        with job.transaction(): lose_claim()
    b,_ = job_tester.submit('b', in_tx, 1)
    job_tester.drain()
    assert 'write lock' in job_tester.get_job(b).error_log

# --- everywhere

async def aorder(job:JobContext):
    await job.astep('a', anote, x='a')
    job.cursor = 5
    await job.asubmit('child', note, x='child')
    return 'done'

def test_crash_everywhere(job_tester):
    places = []
    for p in job_tester.crash_everywhere():
        ran.clear()
        id,_ = job_tester.submit('a', aorder)
        job_tester.drain(ahead=60)
        assert job_tester.get_job(id).result=='"done"', p
        places.append(p)
    assert places[0]=='no crash' and "in step 'a', before its result is kept" in places and places[-1].endswith('note has returned')
    assert {"before submit of 'child'", "after submit of 'child'"}<=set(places)

def test_crash_everywhere_finds_the_double_charge(job_tester):
    def order(): ran.append('charge')
    with pytest.raises(AssertionError, match='has returned'):
        for p in job_tester.crash_everywhere():
            ran.clear()
            job_tester.submit('a', order)
            job_tester.drain()
            assert ran==['charge'], p

def test_crash_everywhere_leaves_nothing_behind():
    was = JobContext._keep, JobContext._say
    with JobTester() as jobs:
        for p in jobs.crash_everywhere(): break
        with pytest.raises(RuntimeError, match='was not come by'):
            it = jobs.crash_everywhere(); next(it); jobs.submit('a', note); jobs.drain(); next(it); next(it)
    assert was==(JobContext._keep, JobContext._say)

# --- a helper must not say that all is well when it is not

def test_a_job_in_the_place_of_one_that_was_deleted(t):
    "It was submitted, whatever became of those before it"
    m = t.look()
    m.submit_many('old', note, [dict(x=i) for i in range(3)])
    with JobTester(m) as jobs:
        m.db.q('delete from tenant_jobs')
        assert jobs.jobs()==[]
        m.submit('mail', note, x=1)
        jobs.assert_submitted('mail', x=1)
        with pytest.raises(AssertionError, match='1 job'): jobs.assert_not_submitted('mail')

class Poster:
    async def __call__(self, x): ran.append(x)

def test_crashing_dies_after_what_it_calls(job_tester):
    "Also where that gives something to await without being a coroutine function"
    f = crashing(Poster())
    async def post(): await f('posted')
    id,_ = job_tester.submit('a', post)
    assert job_tester.drain()==2 and ran==['posted']*2 and job_tester.get_job(id).status=='completed'

@pytest.mark.parametrize('event', ['job.failed', 'job.started', 'job.submitted'])
def test_inline_jobs_of_whoever_hears_of_jobs(event):
    "Are submitted in the middle of a turn, and run all the same"
    with JobTester(inline=True) as jobs:
        def hear(name, job_type, **_):
            if name==event and job_type=='a': jobs.submit('b', note, x=name)
        s = subscribe(lambda event, **f: hear(event, f.get('job_type')), queue=None)
        try:
            (th := threading.Thread(target=jobs.submit, args=('a', boom, 1), daemon=True)).start()
            th.join(20)
        finally: s()
        assert not th.is_alive() and not s.failed and sorted(ran, key=str)==sorted([None, event], key=str)

def in_tx(job:JobContext):
    with job.manager.transaction(): job.submit('child', note, x='child')

async def ain_tx(job:JobContext):
    async with job.manager.transaction(): await job.asubmit('child', note, x='child')

@pytest.mark.parametrize('f', [in_tx, ain_tx])
def test_crash_everywhere_comes_by_the_transactions_of_the_manager(job_tester, f):
    places,children = [],[]
    for p in job_tester.crash_everywhere():
        ran.clear()
        job_tester.submit('a', f); job_tester.drain(ahead=60)
        places.append(p); children.append(len(ran))
    i = places.index('before the commit of transaction()')
    assert places[i+1]=='after the commit of transaction()' and children[i:i+2]==[1, 2], 'what committed before the end comes twice, and no test had said so'

def test_one_inside_another_gives_back_what_it_found(t):
    m = t.look()
    with JobTester(m, inline=True):
        with JobTester(m): m.submit('a', note, x=1); assert not ran
        m.submit('a', note, x=2); assert ran==[1, 2]

# --- jobs that end failed

def test_failed_jobs_hears_of_a_worker(t):
    m = t.mgr(handoff=0)
    with pytest.raises(AssertionError, match=r'1 job ended failed that nobody expected:\nsync .*\(failed, attempt 1\)\n(.*\n)*OSError: boom 5'):
        with FailedJobs() as f:
            done(m, m.submit('sync', boom, 1, x=5)[0], status='failed')
            until(lambda: f.seen)
    with pytest.raises(ZeroDivisionError), FailedJobs(): 1/0
    assert not listening()

def test_plugin(pytester):
    pytester.makepyfile('''
        import pytest
        def bad(): raise ValueError('no such user')
        def fine(): pass
        def run(jobs, f): jobs.submit('sync', f, 1); assert jobs.drain()==1
        def test_fine(job_tester, no_failed_jobs): run(job_tester, fine)
        def test_bad(job_tester, no_failed_jobs): run(job_tester, bad)
        @pytest.mark.failed_jobs('sync')
        def test_marked(job_tester, no_failed_jobs): run(job_tester, bad)
        @pytest.mark.failed_jobs
        def test_any(job_tester, no_failed_jobs): run(job_tester, bad)
        @pytest.mark.failed_jobs('other')
        def test_other(job_tester): run(job_tester, bad)
        def test_clock(job_clock, job_tester): job_clock.tick(5); assert job_tester.clock is job_clock
        ''')
    r = pytester.runpytest('-p', 'fh_saas.pytest_plugin', '--strict-markers')
    r.assert_outcomes(passed=6, errors=1)
    r.stdout.fnmatch_lines(['*sync * (failed, attempt 1)*', '*ValueError: no such user*'])
    pytester.makeini('[pytest]\nfh_saas_no_failed_jobs = true')
    pytester.runpytest('-p', 'fh_saas.pytest_plugin').assert_outcomes(passed=6, errors=2)

def test_plugin_is_light(pytester):
    "A project that does not use it does not pay for it"
    pytester.makepyfile('import sys\ndef test_it(): assert not [o for o in sys.modules if o.startswith("fh_saas.") and o!="fh_saas.pytest_plugin" or o=="apsw"]')
    pytester.runpytest_subprocess('-p', 'fh_saas.pytest_plugin').assert_outcomes(passed=1)
