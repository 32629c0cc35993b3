"Jobs that wait for jobs: order, failure, kill -9 in the middle, several processes"
import asyncio, json, time
from concurrent.futures import ThreadPoolExecutor

import pytest, work
from fh_saas.running.context import JobContext
from fh_saas.flow import call, chain, children, graph, group, parents
from fh_saas.store.base import WAITS
from util import both as stores
from util import ddl, done, process, run_py, said, until

seen = []
def note(x=None): seen.append(x); return x
async def anote(x=None): seen.append(x); return x
def boom(): raise ValueError('boom')
def nap(s): time.sleep(s)

@pytest.fixture(autouse=True)
def nothing_seen(): seen.clear()

@pytest.fixture
def m(t): return t.mgr(worker=False)

def job(m, f, *after, on_failed='fail', tries=1, **kw):
    "A row that waits for others"
    j = m._new_job(getattr(f, '__name__', 'x'), f, tries, kw, now=True)
    if after: j.parents,j.on_failed = json.dumps(after),on_failed
    return j
def put(m, f, *after, **kw): m._save([j := job(m, f, *after, **kw)]); return j.id
def fates(m, *ids): return [m.get_job(o).status for o in ids]
def links(m): return m.db.q('select count(*) n from tenant_job_parents')[0]['n']

# --- the store, the turn, the worker

def test_each_after_its_parents(m):
    a = put(m, note, x='a')
    b,c = put(m, note, a, x='b'),put(m, note, a, x='c')
    d = put(m, note, b, c, x='d')
    assert m.get_job(d).ready==WAITS and m.run_due()==4
    assert (seen[0],set(seen[1:3]),seen[3])==('a',{'b','c'},'d') and links(m)==0

@pytest.mark.parametrize('f', [note, anote])
def test_worker_goes_down_a_chain_at_once(t, f):
    "No sweep, no clock: each end frees the next in its own turn"
    m = t.mgr()
    last = put(m, f, x=0)
    began = time.monotonic()
    for i in range(1, 60): last = put(m, f, last, x=i)
    done(m, last)
    assert seen==list(range(60)) and time.monotonic()-began<10

@pytest.mark.alone
def test_by_hand_frees_and_others_hear(t):
    "A process that runs no worker ends the parent; another one's worker takes the child at once"
    with process(t, "m = mgr(tasks=[quick]); out('up'); m.run()") as p:
        said(p, 'up')
        m = t.mgr(worker=False)
        took = []
        for i in range(5):
            a = m._new_job('a', note, 1, {}, now=True)
            a.ready,a.run_at = 0,'2999-01-01T00:00:00.000000Z'       # nobody's but ours
            m._save([a])
            b = put(m, work.quick, a.id, folder=str(t.dir), name=i)
            began = time.monotonic()
            m._execute_with_retry(a.id)
            done(m, b)
            took.append(time.monotonic()-began)
    assert min(took)<.4, took       # the sweep alone would take half a second

def test_waiting_child_is_not_run_by_hand(t):
    m = t.mgr(worker=False)
    b = put(m, note, put(m, note, x='a'), x='b')
    m._execute_with_retry(b)
    assert seen==[] and m.get_job(b).ready==WAITS

@pytest.mark.parametrize('policy,want', [('fail','failed'), ('cancel','cancelled'), ('run','completed')])
def test_failed_parent(m, policy, want):
    a = put(m, boom)
    b = put(m, note, a, on_failed=policy, x='b')
    c = put(m, note, b, x='c')
    m.run_due()
    assert fates(m, a, b, c)==['failed', want, 'completed' if policy=='run' else 'failed'] and links(m)==0
    j = m.get_job(b)
    assert j.completed_at and (j.error_log is None if policy=='run' else a in j.error_log and 'failed' in j.error_log)
    late = put(m, note, a, on_failed=policy, x='late')        # the parent is over already
    m.run_due()
    assert fates(m, late)==[want]

def test_a_retry_is_not_an_end(t):
    now = [1_800_000_000.]
    m = t.mgr(worker=False, clock=lambda: now[0])
    fails = iter([True, False])
    def flaky():
        if next(fails): raise ValueError
    b = put(m, note, put(m, flaky, tries=2), x='b')
    m.run_due()
    assert m.get_job(b).ready==WAITS
    now[0] += 5
    m.run_due()
    assert seen==['b']

def test_delayed_child_waits_for_its_time_too(t):
    now = [1_800_000_000.]
    m = t.mgr(worker=False, clock=lambda: now[0])
    a = put(m, note, x='a')
    j = job(m, note, a, x='b')
    j.run_at = m._new_job('x', note, 1, {}).run_at.replace('2027', '2028')
    m._save([j])
    m.run_due()
    assert seen==['a'] and m.get_job(j.id).ready==0
    now[0] += 400*86400
    m.run_due()
    assert seen==['a','b']

def test_unknown_parent_stores_nothing(m):
    a = job(m, note)
    with pytest.raises(ValueError, match="'nope'"): m._save([a, job(m, note, a.id, 'nope')])
    assert m.list_jobs()==[] and links(m)==0

def test_lambda_that_falls_is_forgotten(t):
    "A function kept for a job's sake goes when the job ends with its parent"
    m = t.mgr()
    b = put(m, lambda: None, put(m, boom))
    done(m, b, status='failed')
    until(lambda: not m._lane.known.held)

@pytest.mark.alone
def test_background_task_of_a_waiting_child(t):
    "Awaited by Starlette, it waits for the child's end, which comes with its parent's"
    from fh_saas.job_task import JobTask
    m = t.mgr(wait_s=10)
    b = put(m, note, put(m, nap, s=.2), x='b')
    asyncio.run(JobTask(m, b)())
    assert m.get_job(b).status=='completed'
    a = m._new_job('a', boom, 1, {}, now=True)
    a.ready,a.run_at = 0,'2999-01-01T00:00:00.000000Z'
    m._save([a])
    b = put(m, note, a.id)
    async def both():
        w = asyncio.ensure_future(JobTask(m, b)())
        await asyncio.sleep(.05)
        await asyncio.to_thread(m._execute_with_retry, a.id)
        began = time.monotonic()
        await w
        return time.monotonic()-began
    assert asyncio.run(both())<.4 and m.get_job(b).status=='failed'

def test_transaction_with_parents(m):
    "Rows and the whole flow commit together, or vanish together"
    ddl(m.db, 'create table note(x)')
    with pytest.raises(KeyError):
        with m.transaction() as tx:
            tx.q("insert into note values('a')")
            put(m, note, put(m, note))
            raise KeyError
    assert (m.list_jobs(),links(m),m.db.q('select * from note'))==([], 0, [])
    with m.transaction() as tx:
        tx.q("insert into note values('a')")
        a = put(m, note, x='a')
        b = put(m, note, a, x='b')
    m.run_due()
    assert seen==['a','b']
    with m.transaction() as tx:
        c = put(m, note, a, x='c')       # over already
        with pytest.raises(ValueError): put(m, note, 'nope')
    m.run_due()
    assert seen==['a','b','c']

def test_cancelled_parent(m):
    a = put(m, note)
    b,c = put(m, note, a),put(m, note, a, on_failed='run', x='c')
    m._lane.store.discard([a], m._lane.now(), 'not wanted')
    m.run_due()
    assert fates(m, a, b, c)==['cancelled','failed','completed'] and 'cancelled' in m.get_job(b).error_log

def test_retry_of_parent_and_child(t, m):
    b = put(m, note, put(m, work.fails, folder=str(t.dir), name='p'), x='b')
    m.run_due()
    assert fates(m, b)==['failed'] and m._lane.store.retry_failed(m._lane.now())==2
    m.run_due()
    assert fates(m, b)==['completed']

@pytest.mark.on_sqlite('writes SQL of its own')
def test_older_package_ends_the_parent(t):
    "It writes the end and knows of no children: the sweep frees them"
    m = t.mgr(worker=False)
    a = put(m, note)
    b = put(m, work.quick, a, folder=str(t.dir))
    m.db.q("update tenant_jobs set status='completed', ready=null where id=?", (a,))
    with process(t, "m = mgr(tasks=[quick]); out('up'); m.run()") as p: done(m, b, 40)

# --- several processes, kill -9

WORK = "m = mgr(tasks=[quick,gated,bomb]); out('up'); m.run()"

DIES = '''
from fh_saas.store import sqlite
was = sqlite.free_children
def dies(conn, ids, now=None):
    if not is_open(folder, 'log'): return was(conn, ids, now)        # a claim that went back before it began
    if is_open(folder, 'safe'): return was(conn, ids, now)
    if sys.argv[3]=='after': was(conn, ids, now)
    os.kill(os.getpid(), 9)
sqlite.free_children = dies
m = mgr(tasks=[quick]); m.run()'''

@pytest.mark.parametrize('when', ['before', 'after'])
def test_killed_between_end_and_release(t, when):
    "The end and the release are one commit: after a kill between them there is neither"
    m = t.look()
    a = put(m, work.quick, tries=3, folder=str(t.dir), name='a')
    b = put(m, work.quick, a, folder=str(t.dir), name='b')
    run_py(t, DIES, when, rc=-9)
    assert (m.get_job(a).status,m.get_job(b).ready,links(m))==('running', WAITS, 1)
    with process(t, WORK): done(m, b, 40)
    assert [o[2] for o in t.log('ran')]==['a','a','b'] and links(m)==0

def test_parent_that_kills_its_process(t):
    "The rescue that ends it as failed ends its children in the same commit"
    m = t.look()
    a = put(m, work.bomb, folder=str(t.dir))
    b,c = put(m, work.quick, a, folder=str(t.dir)),put(m, work.quick, a, on_failed='run', folder=str(t.dir), name='c')
    run_py(t, WORK, rc=-9)
    with process(t, WORK): done(m, c, 40)
    assert fates(m, a, b)==['failed','failed'] and [o[2] for o in t.log('ran')]==['c']

def test_killed_all_the_time(t):
    "Processes that are killed again and again lose no child and run none before its parents"
    m = t.look()
    layers = [[]]
    with m.transaction():
        for i in range(12): layers.append([put(m, work.quick, *layers[-1], tries=100, folder=str(t.dir), name=f'{i}') for _ in range(8)])
    ids = [o for l in layers for o in l]
    def left(): return len(m.list_jobs(status='completed', limit=1000))<len(ids)
    while left():
        n = len(t.log('ran'))
        with process(t, WORK) as p, process(t, WORK):
            until(lambda: len(t.log('ran'))>=n+20 or not left(), 30, .02)
            p.kill()
    first,last = {},{}
    for o in t.log('ran'): first.setdefault(int(o[2]), float(o[0])); last[int(o[2])] = float(o[0])
    ends = {i:max(m.get_job(o).completed_at for o in l) for i,l in enumerate(layers[1:])}
    starts = {i:min(m.get_job(o).started_at for o in l) for i,l in enumerate(layers[1:])}
    assert all(starts[i+1]>=ends[i] for i in range(11)) and links(m)==0

def test_several_processes_share_a_flow(t):
    "Parents end in one process, children run in any; each once"
    m = t.look()
    with process(t, WORK) as a, process(t, WORK) as b, process(t, WORK) as c:
        for o in (a, b, c): said(o, 'up')
        with m.transaction():
            one = put(m, work.quick, folder=str(t.dir), name='one')
            many = [put(m, work.quick, one, folder=str(t.dir), name=f'm{i}') for i in range(300)]
            last = put(m, work.quick, *many, folder=str(t.dir), name='last')
        done(m, last)
    ran = [o[2] for o in t.log('ran')]
    assert (ran[0],ran[-1],len(ran),len(set(ran)))==('one', 'last', 302, 302)

# --- chain, group, graph

def test_chain(m):
    f = chain(m, call('a', note, x=1), [call('b', note, x=2), call('b', anote, x=3)], call('c', note, x=4))
    assert (len(f.ids),f.counts(),repr(f))==(4, {'pending':4}, f'Flow(4 jobs, last {f.last!r})')
    m.run_due()
    assert (seen[0],set(seen[1:3]),seen[3])==(1,{2,3},4) and [j.job_type for j in f.jobs()]==['a','b','b','c']
    assert [j.result for j in parents(m, f.last)]==['2','3'] and [j.id for j in children(m, f.ids[0])]==f.ids[1:3]
    assert parents(m, f.ids[0])==[] and children(m, f.last)==[] and children(m, f.ids[0], 1)[0].id==f.ids[1]

def test_chain_after_jobs_that_exist(m):
    a = m.submit('a', note, x='a')[0]
    f = chain(m, call('b', note, x='b'), call('c', note, x='c'), after=a)
    group(m, [call('d', note, x='d'), call('d', note, x='d')], after=[f.last, a])
    m._execute_with_retry(a)
    m.run_due()
    assert seen==['a','b','c','d','d']

@pytest.mark.parametrize('policy,want', [(None,'failed'), ('fail','failed'), ('cancel','cancelled'), ('run','completed')])
def test_group_and_its_callback(m, policy, want):
    then = call('z', note, x='z')
    f = group(m, [call('a', note, x=1), call('a', boom, 1), call('a', note, x=2)], then=then.options(on_failed=policy) if policy else then)
    m.run_due()
    assert [j.status for j in f.jobs()]==['completed','failed','completed',want] and seen==[1,2]+['z']*(policy=='run')

def test_callback_comes_after_the_retries(t):
    "on_failed='run' waits for the end of a job, not of an attempt"
    now = [1_800_000_000.]
    m = t.mgr(worker=False, clock=lambda: now[0])
    f = group(m, [call('a', boom, 2)], then=call('z', note).options(on_failed='run'))
    m.run_due()
    assert f.counts()=={'pending':2}
    now[0] += 10
    m.run_due()
    assert f.counts()=={'failed':1, 'completed':1}

def test_failure_runs_down_a_long_chain(m):
    f = chain(m, call('a', boom, 1), *[call('n', note) for _ in range(3000)])
    m.run_due()
    assert f.counts()=={'failed':3001} and seen==[] and links(m)==0
    assert f.ids[-2] in m.get_job(f.last).error_log

@pytest.mark.parametrize('worker,n', [(True,10_000), (False,500)])
def test_ten_thousand(t, worker, n):
    "Fan-out, fan-in, and out again: one commit to submit, one to free ten thousand"
    m = t.mgr(worker=worker)
    many = [call('n', note)]*n
    f = chain(m, call('a', note, x='a'), many, call('b', note, x='b'), many, call('c', note, x='c'))
    if not worker: m.run_due()
    done(m, f.last, 60)
    assert f.counts()=={'completed':2*n+3} and links(m)==0
    assert (seen[0],seen[n+1],seen[-1])==('a','b','c') and seen.count(None)==2*n

def test_too_many_links(m):
    with pytest.raises(ValueError, match='put a call between'): chain(m, [call('n', note)]*1000, [call('n', note)]*1000)
    assert m.list_jobs()==[]

def test_graph(m):
    f = graph(m, dict(end=call('t', note, x='end').options(after=['l','r']), l=call('t', note, x='l').options(after='start'),
                      r=call('t', note, x='r').options(after=['start'], on_failed='run'), start=call('t', note, x='start')))
    assert m.get_job(f['r']).on_failed=='run' and f.ids[0]==f['start'] and f.ids[-1]==f['end']
    m.run_due()
    assert seen[0]=='start' and seen[3]=='end'

@pytest.mark.parametrize('waits,circle', [(dict(a='b', b='a'), 'a -> b -> a'), (dict(a='a'), 'a -> a'), (dict(a='b', b='c', c='b'), '(b -> c -> b|c -> b -> c)')])
def test_circles(m, waits, circle):
    with pytest.raises(ValueError, match=circle): graph(m, {k:call('t', note).options(after=v) for k,v in waits.items()})
    assert m.list_jobs()==[]

good = call('t', note)
@pytest.mark.parametrize('err,word,f', [
    (ValueError, "'nope'", lambda m: chain(m, good, good, after=['nope'])),
    (ValueError, "'nope'", lambda m: graph(m, dict(a=good, b=good.options(after=['a','nope'])))),
    (ValueError, 'step 1: on_failed', lambda m: chain(m, good, good.options(on_failed='ignore'))),
    (ValueError, 'step 0: after', lambda m: chain(m, good.options(after=['x']))),
    (TypeError, r'step 1\[1\]: .*call', lambda m: chain(m, good, [good, note])),
    (TypeError, 'nosuch', lambda m: chain(m, good, good.options(nosuch=1))),
    (TypeError, 'after', lambda m: chain(m, good, after=[7])),
    (TypeError, 'step 0', lambda m: chain(m, call('t', note, nosuch=1), good)),
    (ValueError, 'job_type', lambda m: chain(m, good, call('', note))),
    (ValueError, 'max_retries', lambda m: chain(m, good, call('t', note, 0))),
    (ValueError, 'at least one', lambda m: chain(m)),
    (ValueError, 'at least one', lambda m: group(m, [])),
    (ValueError, 'at least one', lambda m: graph(m, {})),
    (ValueError, 'empty list', lambda m: chain(m, good, [])),
    (TypeError, "'a'", lambda m: graph(m, dict(a=note))),
])
def test_bad_values_store_nothing(m, err, word, f):
    held = call('t', lambda: None)
    with pytest.raises(err, match=word): f(m)
    with pytest.raises(ValueError): chain(m, held, good, after=['nope'])
    assert m.list_jobs()==[] and links(m)==0 and not m._lane.known.held

def test_unknown_job(m):
    for f in (parents, children):
        with pytest.raises(KeyError, match='nope'): f(m, 'nope')

def test_flow_in_a_transaction(m):
    with pytest.raises(KeyError):
        with m.transaction(): chain(m, good, good); raise KeyError
    assert m.list_jobs()==[] and links(m)==0
    with m.transaction():
        a = m.submit('a', note, x='a')[0]
        f = chain(m, call('b', note, x='b'), call('c', note, x='c'), after=a)
    m._execute_with_retry(a)
    m.run_due()
    assert seen==['a','b','c'] and f.counts()=={'completed':2}

def test_several_threads_submit_flows(t):
    "Flows are stored beside single jobs, each whole"
    m = t.mgr()
    with ThreadPoolExecutor(8) as ex:
        fs = list(ex.map(lambda i: chain(m, call('a', note, x=i), call('b', note, x=i), call('c', note, x=i)) if i%2 else m.submit('s', note), range(60)))
    for f in fs[1::2]: done(m, f.last)
    for f in fs[1::2]: assert [j.status for j in f.jobs()]==['completed']*3

def test_killed_in_the_middle_of_a_group(t):
    "Of 200 jobs some are done, some run, some wait when the process is killed; the callback runs once, after all"
    m = t.look()
    f = group(m, [call('n', work.nap, 50, folder=str(t.dir), s=.002, name=i) for i in range(200)], then=call('z', work.quick, folder=str(t.dir), name='z'))
    code = "m = mgr(tasks=[quick,nap]); out('up'); m.run()"
    for n in (20, 60, 120):
        with process(t, code) as p:
            until(lambda: len(t.log('end'))>=n)
            p.kill()
    with process(t, code): done(m, f.last)
    assert len(t.log('ran'))==1 and {o[2] for o in t.log('end')}=={str(i) for i in range(200)} and links(m)==0
    assert float(t.log('ran')[0][0])>=max(float(o[0]) for o in t.log('end'))

# --- with other options

def test_calls_take_options(t):
    now = [1_800_000_000.]
    m = t.mgr(worker=False, clock=lambda: now[0])
    f = chain(m, call('a', note, x='a').options(priority=3, on_failed='cancel'), call('b', note, x='b').options(delay=60, tags=['late'], queue='slow'))
    a,b = f.jobs()
    assert (a.priority,a.on_failed,b.queue,b.tags,b.on_failed,b.ready)==(3, None, 'slow', '["late"]', 'fail', WAITS)
    m.run_due()
    assert seen==['a'] and m.get_job(f.last).ready==0
    now[0] += 60
    m.run_due()
    assert seen==['a','b']

def test_unique_parent_that_is_there(m):
    "The job that holds the key stands in for the parent"
    a,_ = m.options(unique='k').submit('a', note, x='first')
    f = chain(m, call('a', note, x='second').options(unique='k'), call('b', note, x='b'))
    assert f.ids[0]==a and len(m.list_jobs())==2 and [j.id for j in parents(m, f.last)]==[a]
    m._execute_with_retry(a)
    m.run_due()
    assert seen==['first','b']

def test_unique_child_that_is_there(m):
    "It goes on waiting for what it waited for"
    b,_ = m.options(unique='k', delay=10).submit('b', note, x='there')
    f = chain(m, call('a', note, x='a'), call('b', note, x='b').options(unique='k'), call('c', note, x='c'))
    assert f.ids[1]==b and m.get_job(b).parents is None
    m.run_due()
    assert seen==['a'] and m.get_job(f.last).ready==WAITS
    m._execute_with_retry(b)
    m.run_due()
    assert seen==['a','there','c']

def test_after_as_an_option_of_submit(m):
    a,_ = m.submit('a', note, x='a')
    b,_ = m.options(after=[a]).submit('b', note, x='b')
    many = m.options(after=b, on_failed='run').submit_many('c', note, [dict(x='c')]*3)
    with pytest.raises(ValueError, match="'nope'"): m.options(after=[a,'nope']).submit('d', note)
    m._execute_with_retry(a)
    m.run_due()
    assert seen==['a','b','c','c','c'] and [o.id for o in children(m, b)]==many

@pytest.mark.parametrize('who', ['parent', 'child'])
def test_cancel(m, who):
    a,b,c = chain(m, call('a', note, x='a'), call('b', note), call('c', note).options(on_failed='run')).ids
    m.cancel(a if who=='parent' else b)
    m.run_due()
    want = ['cancelled','failed','completed'] if who=='parent' else ['completed','cancelled','completed']
    assert fates(m, a, b, c)==want and links(m)==0

def test_freed_child_meets_a_pause(m):
    f = chain(m, call('a', note, x='a'), call('b', note, x='b'))
    m.pause(job_type='b')
    m.run_due()
    assert seen==['a'] and m.get_job(f.last).status=='pending'
    m.resume(job_type='b')
    m.run_due()
    assert seen==['a','b']

def test_retry_one_by_hand(t, m):
    f = chain(m, call('a', work.fails, 1, folder=str(t.dir), name='p'), call('b', note, x='b'))
    m.run_due()
    with pytest.raises(ValueError, match='retry that first'): m.retry(f.last)      # it would fall again
    m.run_due()
    assert f.counts()=={'failed':2}
    m.retry(f.ids[0]); m.retry(f.last)
    m.run_due()
    assert f.counts()=={'completed':2} and seen==['b']

def test_chain_from_a_step_and_from_a_job_s_transaction(t):
    "Children commit with the step, and with the completion: a job may wait for the one that submits it"
    m = t.mgr(worker=False)
    def parent(job:JobContext):
        job.step('one', lambda: chain(m, call('a', note, x='a'), call('b', note, x='b')).last)
        with job.transaction(): chain(m, call('c', note, x='c'), after=[job.id])
    m.submit('p', parent)
    m.run_due(); m._execute_with_retry(m.list_jobs('p')[0].id); m.run_due()
    assert sorted(seen)==['a','b','c'] and seen.index('a')<seen.index('b') and links(m)==0
    assert m.list_jobs('p')[0].status=='completed'
