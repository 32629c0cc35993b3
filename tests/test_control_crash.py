"Control over jobs among several processes, and when they are killed: what was said about a job holds for whoever runs it"
import json, signal, time

import work
from fh_saas.ids import from_iso
from fh_saas.running.worker import Worker
from util import done, end, process, said, until

def soon(s=3600): return lambda: time.time()+s     # the clock of a process that comes later
HOLD = "out('up'); time.sleep(60)"

# --- when

def test_later_jobs_of_a_dead_process(t):
    "Delayed, of two priorities and in a queue: they come when they are due, in their order, wherever that is"
    with process(t, '''
m = mgr(worker=False)
for p,d in (5, 60), (0, 60), (3, 10**6), (1, 0): m.options(priority=p, delay=d, queue='mail', tags=['x']).submit('a', quick, folder=folder, name=p)
'''+HOLD) as p: said(p, 'up'); end(p)
    m = t.look(clock=soon(), tasks=[work.quick])
    assert m.run_due()==3 and [o[2] for o in t.log('ran')]==['0', '1', '5']
    left, = m.list_jobs(status='pending')
    assert (left.queue, left.tags, left.priority)==('mail', '["x"]', 3) and m.explain(left.id)==f'it is due at {left.run_at}'

# --- retries

ENDS = '''
def ends(how):
    if how=='snooze': raise Snooze(600)
    if how=='retry in': raise RetryIn(700)
    if how=='discard': raise Discard('gone')
    raise OSError('boom')
m = mgr(worker=False); m.task(ends, name='ends', backoff=RetryPolicy(base=800, jitter=0))
for o in 'snooze', 'retry in', 'discard', 'boom', 'own': m.options(backoff=900 if o=='own' else None).submit(o, ends, how=o)
m.run_due()
'''
def test_what_a_task_said_outlives_its_process(t):
    "Snoozes, waits and ends are in the row: another process, which knows nothing of the policy, keeps to them"
    with process(t, ENDS+HOLD) as p: said(p, 'up'); end(p)
    m = t.look(clock=lambda: now[0])
    now,jobs = [time.time()],{o.job_type:o for o in m.list_jobs()}
    waits = lambda k: round(from_iso(jobs[k].run_at)-from_iso(jobs['discard'].completed_at), -2)
    assert {k:(o.status, o.retry_count) for k,o in jobs.items()}=={'snooze':('pending', 0), 'retry in':('pending', 1), 'discard':('failed', 1), 'boom':('pending', 1), 'own':('pending', 1)}
    assert [waits(k) for k in ('snooze', 'retry in', 'boom', 'own')]==[600, 700, 800, 900]
    m.task(lambda how: how, name='ends')
    for s,n in (590, 0), (650, 1), (750, 1), (850, 1), (950, 1):
        now[0] = from_iso(jobs['discard'].completed_at)+s
        assert m.run_due()==n
    assert m.get_job(jobs['snooze'].id).retry_count==0 and len(m.list_jobs(status='completed'))==4

def test_retry_by_hand_reaches_other_processes(t):
    "One that failed, many by filter, and one ahead of its time: the worker elsewhere begins at once"
    m = t.look()
    with process(t, "m = mgr(tasks=[fails,quick]); out('up'); m.run()") as p:
        said(p, 'up')
        ids = [m.submit('a', work.fails, 1, folder=str(t.dir), name=i)[0] for i in range(4)]
        for o in ids: done(m, o, status='failed')
        later,_ = m.options(delay=3600).submit('b', work.quick, folder=str(t.dir))
        m.retry(ids[0]); done(m, ids[0], 5)
        assert m.retry_failed('a', error_contains='attempt 1')==3
        for o in ids: done(m, o, 5)
        m.retry(later); done(m, later, 5)

# --- unique

RACE = '''
m = mgr(worker=False); out('up'); sys.stdin.readline()
for scope in ('pending', 'running', 600):
    one = [m.options(unique=f'k{i}', unique_for=scope).submit(str(scope), quick, folder=folder, name=i) for i in range(30)]
    many = m.options(unique=True, unique_for=scope).submit_many('many', quick, [dict(folder=folder, name=f'{scope} {i%20}') for i in range(40)])
    out(json.dumps([[o for o,_ in one], sum(b.created for _,b in one), many]))
'''
def test_unique_among_processes(t):
    "Three submit the same at the same moment: one row for each key, whose id all of them are told, and one of them is told that it made it"
    with process(t, RACE) as a, process(t, RACE) as b, process(t, RACE) as c:
        for p in a,b,c: said(p, 'up')
        for p in a,b,c: p.stdin.write('\n'); p.stdin.flush()
        got = [[json.loads(o) for o in p.communicate(timeout=60)[0].splitlines()] for p in (a,b,c)]
    m = t.look()
    for n,scope in enumerate(('pending', 'running', '600')):
        (x,i,xs),(y,j,ys),(z,k,zs) = [o[n] for o in got]
        assert x==y==z and len(set(x))==30==i+j+k and xs==ys==zs and len(set(xs))==20
        assert sorted(x)==sorted(o.id for o in m.list_jobs(scope, limit=100))

def test_unique_key_of_a_killed_process(t):
    "Its job runs when the process is killed: the key is taken until another process has ended the job, and not for ever"
    m = t.look()
    submit = lambda: m.options(unique='k').submit('a', work.gated, folder=str(t.dir), name='x')
    with process(t, "m = mgr(tasks=[gated]); out('up'); m.run()") as p:
        said(p, 'up')
        a,_ = submit()
        until(lambda: t.log('start'))
        end(p)
    assert submit()[0]==a and not submit()[1].created
    t.go()
    assert m.run_due()==1 and m.get_job(a).status=='completed'
    assert submit()[1].created

# --- limits

RATED = "m = mgr(threads=4, tasks=[]); m.task(quick, name='rated', rate=(7, 3600)); out('up'); m.run()"
def test_rate_among_processes(t):
    "Two workers with four threads each, and one of them is killed: as many starts as the rate allows, no more"
    m = t.look(clock=lambda: time.time()+ahead[0])
    ahead = [0]
    m.task(work.quick, name='rated', rate=(7, 3600))
    with process(t, RATED) as p, process(t, RATED) as q:
        said(p, 'up'); said(q, 'up')
        ids = m.submit_many('a', work.quick, [dict(folder=str(t.dir), name=i) for i in range(40)])
        held = lambda: [o for o in m.list_jobs(limit=100) if o.held]
        until(lambda: len(held())==33 and len(m.list_jobs(status='completed'))==7)
        end(p)
        assert len(t.log('ran'))==7 and m.explain(held()[0].id).startswith('its task may start 7 in 3600 s; the next may at ')
    ahead[0] = 3700
    assert m.run_due()==7 and len(held())==26

def test_explain_among_processes(t, monkeypatch):
    "Who has the places, who runs a job, and that its process died, seen from a process that runs nothing"
    m = t.look()
    m.task(work.gated, name='few', limit=1)
    with process(t, "m = mgr(tasks=[]); m.task(gated, name='few', limit=1); out('up'); m.run()") as p:
        said(p, 'up')
        a,b = m.submit_many('a', work.gated, [dict(folder=str(t.dir), name=i) for i in 'ab'])
        until(lambda: m.get_job(b).held and t.log('start'))
        assert m.explain(b)==f'limit 1 of 1 is used by {a}'
        assert m.explain(a)==f'it is running since {m.get_job(a).started_at}, attempt 1 of 3, in worker {m.get_job(a).owner}'
        end(p)
    assert m.explain(a).startswith('its process died, and no worker runs')
    monkeypatch.setattr(m._lane, 'server', Worker())            # one that was not started
    assert m.explain(a)=='its process died, and a worker is about to take it back'
    monkeypatch.undo()
    t.go()
    assert m.run_due()==2 and [m.get_job(o).retry_count for o in (a, b)]==[1, 0]

# --- the end

def test_killed_with_a_task_that_is_stuck(t):
    "The attempt had failed at its time: the death of its process, with the thread still in the task, charges nothing more"
    m = t.look(clock=soon())
    with process(t, "m = mgr(tasks=[gated]); out('up'); m.run()") as p:
        said(p, 'up')
        a, = m.options(timeout=.1, max_retries=1).submit_many('a', work.gated, [dict(folder=str(t.dir), name='a')])
        b, = m.options(timeout=.1, backoff=600).submit_many('a', work.gated, [dict(folder=str(t.dir), name='b')])
        done(m, a, status='failed'); until(lambda: m.get_job(b).retry_count==1)
        end(p)
    t.go()
    assert m.run_due()==1
    assert [(o.status, o.retry_count, [n['outcome'] for n in json.loads(o.attempts)]) for o in map(m.get_job, (a, b))]==[('failed', 1, ['timeout']), ('completed', 1, ['timeout'])]

def test_cancelled_before_its_process_knew(t):
    "Asked to end while its process stands still, which is then killed: cancelled with the reason, not tried again"
    m = t.look()
    with process(t, "m = mgr(tasks=[agated]); out('up'); m.run()") as p:
        said(p, 'up')
        id, = m.submit_many('a', work.agated, [dict(folder=str(t.dir), name='x')])
        until(lambda: t.log('start'))
        p.send_signal(signal.SIGSTOP)
        assert m.cancel(id, 'too late') is False
        end(p)
    assert m.run_due()==0
    j = m.get_job(id)
    assert j.status=='cancelled' and j.error_log.startswith('Asked to end: too late\nCrashed: ') and len(t.log('start'))==1
