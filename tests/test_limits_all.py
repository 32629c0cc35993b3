"A limit over all tenants of a host: several processes, thousands of jobs, kill -9, closed lanes, forks"
import os, signal, time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest, work
from fh_saas.running import presence as _p
from fh_saas.running import slots as _slots
from fh_saas.running.slots import slots
from fh_saas.tenants import Tenants
from test_tenants import PRE, House, settled
from util import all_done, done, end, process, run_py, said, start_py, stop_worker, until

TASKS = '''
def count(folder, *words):
    with open(folder+'/ledger', 'a') as f: f.write(' '.join(map(str, words))+'\\n')      # one write, at the end of the file
@task(name='few', limit_all=N)
def few(folder, name='', s=.002): count(folder, '+', os.getpid(), name); time.sleep(s); count(folder, '-', os.getpid(), name)
@task(name='keyed', limit_all=N, limit_key=lambda kw: kw['account'])
def keyed(folder, account, name='', s=.002): count(folder, '+', os.getpid(), account, name); time.sleep(s); count(folder, '-', os.getpid(), account, name)
@task(name='holds', limit_all=N)
def holds(folder, name='', gate='go'):
    count(folder, '+', os.getpid(), name)
    gated(folder, name, gate)
    count(folder, '-', os.getpid(), name)
'''
PRE = PRE.replace('from work import *', 'from work import *\nfrom fh_saas.tasks import task\nfrom util import opened\nfrom fh_saas.utils_bgtsk import *')+TASKS
ns = {}
def tasks(n): exec('import os, time\nfrom work import *\nfrom fh_saas.tasks import task\n'+TASKS.replace('N', str(n)), ns); return ns
def pre(n): return PRE.replace('N)', f'{n})').replace('N,', f'{n},')
RUN = "ts = tenants(%s); out('up'); ts.run()"
MANAGER = "m = BackgroundTaskManager(opened(path), %s); out('up'); m.run()"

class Host(House):
    "Many tenants, and a ledger of what runs"
    def put(self, t, n, task='few', **kw):
        return t.jobs.submit_many('j', ns[task], [dict(folder=str(self.dir), name=f'{t.id}-{i}', **kw) for i in range(n)])
    def lines(self): return [o.split() for o in (self.dir/'ledger').read_text().splitlines()] if (self.dir/'ledger').exists() else []
    def most(self, of=lambda o: True):
        "Most at the same time, of lines for which `of` is true; jobs of killed processes end with them"
        now = most = 0
        for o in self.lines():
            if of(o): now += 1 if o[0]=='+' else -1; most = max(most, now)
        return most
    def ended(self): return [o[-1] for o in self.lines() if o[0]=='-']
    def begun(self): return [o[-1] for o in self.lines() if o[0]=='+']

@pytest.fixture
def h(tmp_path):
    tasks(3)
    h = Host(tmp_path)
    yield h
    stop_worker()
    h.close()
    for o in ('few', 'keyed', 'holds'): from_shared(o)

def from_shared(name):
    from fh_saas.tasks import shared
    if t := shared._named.pop(name, None): shared._of.pop(t.func, None)

@contextmanager
def serving(h, n, opts='', run=RUN):
    with process(h, run%opts, pre=pre(n)) as p: said(p, 'up'); yield p

def held(t): return [o for o in t.jobs.list_jobs(limit=10**5) if o.held]

# --- never more than that

def test_two_processes_200_tenants(h):
    "200 tenants with three jobs each, few places for open files: three run at the same time, everything runs once"
    ts = h.many(200)
    for t in ts.values(): h.put(t, 3)
    with serving(h, 3, 'most_open=16'), serving(h, 3, 'threads=8'):
        until(lambda: len(h.ended())>=600, 90, .05)
        until(lambda: settled(ts), 20, .2)
    assert len(h.ended())==len(set(h.ended()))==600 and h.most()==3
    assert len({o[1] for o in h.lines()})==2, 'both processes took part'

def test_key_is_shared_by_tenants(h):
    "An account of a service that several tenants use"
    ts = h.many(6)
    for t in ts.values():
        for a in 'xyz': h.put(t, 8, 'keyed', account=a)
    with serving(h, 2, 'threads=8'), serving(h, 2, 'threads=8'):
        until(lambda: len(h.ended())>=6*3*8, 60, .02)
    for a in 'xyz': assert h.most(lambda o: o[2]==a)<=2
    assert h.most()>2

@pytest.mark.alone
def test_kill_in_the_middle(h):
    "The places of a killed process come back within a second, and what it ran runs again"
    ts = h.many(4)
    for t in ts.values(): h.put(t, 2, 'holds')
    with serving(h, 3, 'threads=8') as a:
        until(lambda: len(h.begun())==3)
        with serving(h, 3, 'threads=8') as b:
            until(lambda: all(held(t) for t in ts.values() if len(t.jobs.list_jobs(status='pending'))==2), 10)
            assert len(h.begun())==3
            end(a); killed = time.monotonic()
            until(lambda: len(h.begun())==6, 10, .002)
            assert time.monotonic()-killed<1.5          # a second, and what a busy machine adds
            assert all(o[1]!=str(a.pid) for o in h.lines()[3:])
            h.go()
            until(lambda: settled(ts), 30, .05)
    assert Counter(j.status for t in ts.values() for j in t.jobs.list_jobs())=={'completed':8}
    lines = h.lines()[3:]
    now = most = 0
    for o in lines: now += 1 if o[0]=='+' else -1; most = max(most, now)
    assert most==3

def test_many_kills(h):
    "Workers are killed again and again among sixty tenants: nothing leaks, and never are more than two at it in the processes that live"
    ts = h.many(60)
    for t in ts.values(): h.put(t, 3, s=.005)
    dead = set()
    with serving(h, 2) as keeps:
        for i in range(4):
            with serving(h, 2, 'threads=8') as p:
                n = len(h.ended())
                until(lambda: len([o for o in h.lines() if o[1]==str(p.pid)])>8 or len(h.ended())>=180, 30)
                end(p); dead.add(str(p.pid))
        until(lambda: settled(ts), 60, .1)
    assert {j.status for t in ts.values() for j in t.jobs.list_jobs()}=={'completed'}
    open_ = {}
    for o in h.lines():
        if o[0]=='-': open_.pop((o[1],o[2]), None); continue
        open_[o[1],o[2]] = 1
        assert len([1 for pid,_ in open_ if pid not in dead])<=2
    assert len(set(h.ended()))==180

# --- fair

def test_a_flood_starves_nobody(h):
    "One tenant has two thousand jobs that wait, others come with one: theirs begin before more than a few of the flood's"
    ts = h.many(5)
    first,*others = ts.values()
    h.put(first, 2000, s=.001)
    with serving(h, 1):
        until(lambda: len(h.ended())>20)
        for t in others: h.put(t, 1)
        n = len(h.ended())
        until(lambda: len([o for o in h.ended() if o[:4]!=first.id])==4, 20)
        names = h.ended()[n:]
        assert max(i for i,o in enumerate(names) if o[:4]!=first.id)<400, names[:50]

def test_a_flood_in_another_process_starves_nobody(h):
    "Each process serves a folder's database of its own: they take turns"
    a,b = Host(h.dir),Host(h.dir)
    a.path,b.path = h.dir/'a.db',h.dir/'b.db'
    for o,n in ((a, 3000), (b, 20)): o.look().submit_many('j', ns['few'], [dict(folder=str(h.dir), name=f'{o.path.stem}-{i}', s=.001) for i in range(n)])
    try:
        with serving(a, 1, run=MANAGER):
            until(lambda: len(h.ended())>50)
            n = len(h.ended())
            with serving(b, 1, run=MANAGER):
                until(lambda: len([o for o in h.ended() if o[0]=='b'])==20, 30)
                assert len(h.ended())-n<2800
    finally: a.close(); b.close()
    assert h.most()==1

# --- plain managers

def test_plain_managers(h):
    "Two databases of one folder, each served by two processes"
    a,b = Host(h.dir),Host(h.dir)
    a.path,b.path = h.dir/'a.db',h.dir/'b.db'
    try:
        ms = [o.look() for o in (a, b)]
        for m,k in zip(ms, 'ab'): m.submit_many('j', ns['few'], [dict(folder=str(h.dir), name=f'{k}{i}') for i in range(60)])
        with serving(a, 2, run=MANAGER), serving(b, 2, run=MANAGER), serving(b, 2, run=MANAGER):
            for m in ms: all_done(m, 60, 60)
    finally: a.close(); b.close()
    assert h.most()==2 and len(set(h.ended()))==120

def test_run_due(h):
    "In the caller's thread; what another process has is left alone"
    t = Host(h.dir); t.path = h.dir/'a.db'
    m = t.look()
    tasks(1)
    m.submit_many('j', ns['few'], [dict(folder=str(h.dir), name=f'{i}') for i in range(5)])
    here = m._lane.here
    theirs = slots(here).take('few', 1)
    assert m.run_due()==0 and m.run_due()==0 and len(held_of(m))==5
    slots(here).give(theirs)
    assert m.run_due()==5 and slots(here).used('few', 1)==0
    t.close()
def held_of(m): return [o for o in m.list_jobs() if o.held]

def test_by_hand(h):
    "A BackgroundTask that is called by hand runs all the same, and counts if there is room"
    t = Host(h.dir); t.path = h.dir/'a.db'
    m,seen = t.look(),[]
    s = slots(m._lane.here)
    def few(): seen.append(s.used('hand', 1))
    m.task(few, name='hand', limit_all=1)
    for i in range(2):
        _,bg = m.submit('j', few)
        bg.func(*bg.args, **bg.kwargs)
    theirs = s.take('hand', 1)
    _,bg = m.submit('j', few); bg.func(*bg.args, **bg.kwargs)
    assert seen==[1, 1, 1] and s.used('hand', 1)==1 and m._lane.limits.got=={}
    t.close()

def test_in_memory(h):
    from fastlite import database
    from fh_saas.utils_bgtsk import BackgroundTaskManager
    m,now,most = BackgroundTaskManager(database(':memory:'), threads=8),[],[]
    def few(i): now.append(i); most.append(len(now)); time.sleep(.002); now.remove(i)
    m.task(few, name='mem', limit_all=2)
    m.submit_many('j', few, [dict(i=i) for i in range(30)])
    all_done(m, 30)
    assert max(most)==2
    m.close()

def test_async_and_failing_tasks_give_back(h):
    "However an attempt ends: failed, snoozed, discarded, cancelled, timed out"
    import asyncio
    from fh_saas.retry import Discard, Snooze
    t = Host(h.dir); t.path = h.dir/'a.db'
    m = t.mgr()
    async def bad(how):
        if how=='fail': raise OSError('no')
        if how=='discard': raise Discard('no')
        if how=='snooze': raise Snooze(3600)
        await asyncio.sleep(0 if how=='ok' else 30)
    m.task(bad, name='bad', limit_all=1, backoff=3600)
    hows = dict(fail='pending', discard='failed', snooze='pending', slow='failed', ok='completed')
    ids = {k:m.options(timeout=.05, max_retries=1 if k=='slow' else 2).submit_many('j', bad, [dict(how=k)])[0] for k in hows}
    until(lambda: all(m.get_job(i).status==hows[k] and not m.get_job(i).held and m.get_job(i).ready!=1 for k,i in ids.items()))
    until(lambda: slots(m._lane.here).used('bad', 1)==0 and not m._lane.limits.got)
    t.close()

# --- a fork

FORK = '''
ts = tenants()
t = ts.create('a')
t.jobs.submit_many('j', holds, [dict(folder=folder, name='x')])
while not os.path.exists(folder+'/log'): time.sleep(.005)
pid = os.fork()
if not pid: time.sleep(30); os._exit(0)
out('up'); out(pid); time.sleep(30)
'''
def test_a_forked_child_keeps_no_slot(h):
    "The child of a fork lives on when its parent is killed: the slot is free all the same, and not before"
    with start_py(h, FORK, pre=pre(1)) as p:
        try:
            said(p, 'up')
            child,s = int(p.stdout.readline()),slots(_p.presence(h.path))
            assert s.used('holds', 1)==1
            p.send_signal(signal.SIGKILL)
            until(lambda: s.used('holds', 1)==0, 5)
            os.kill(child, signal.SIGKILL)
        finally: p.kill()

def test_fork_of_a_busy_process(h):
    "A child that ends, or closes everything, takes no slot from its parent"
    t = Host(h.dir); t.path = h.dir/'a.db'
    m = t.look(); s = slots(m._lane.here)
    got = s.take('k', 2, most=2)
    pid = os.fork()
    if not pid:
        try:
            ok = not s.lines and slots(_p.presence(h.dir)).used('k', 2)==2
            s.give(got)
            os._exit(0 if ok else 1)
        finally: os._exit(1)              # an exception would go on in pytest, as a second process that runs the same tests
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==0 and slots(m._lane.here).used('k', 2)==2
    s.give(got); assert s.used('k', 2)==0
    t.close()

# --- closed lanes

def closed(ts): return not ts._pool.open

def test_held_jobs_of_closed_lanes(h):
    "The lane is closed as idle while its jobs wait for a slot: they run as soon as there is one"
    ts = h.many(5); ts.close()
    ts = h.ts(worker=True, idle_s=.05, handoff=0, tasks=[])
    here = ts._here
    theirs = slots(here).take('few', 3, most=3)
    for t in ts.values(): h.put(t, 2)
    until(lambda: all(len(held(t))==2 for t in ts.values()))
    until(lambda: closed(ts), 10)
    assert len(slots(here).lines['few'].names)==5 and h.begun()==[]
    slots(here).give(theirs[:1])
    until(lambda: settled(ts), 20, .05)
    assert len(set(h.ended()))==10 and h.most()==1

def test_held_jobs_of_closed_lanes_of_a_dead_process(h):
    "A process dies that has closed the lanes of tenants with jobs that wait: another one takes them up at once"
    ts = h.many(8)
    for t in ts.values(): h.put(t, 1)
    with serving(h, 1, 'worker=True') as b:          # it has seen all of them when nothing was held there
        tasks(1)
        until(lambda: settled(ts), 20, .05)
        s = slots(ts._here)
        theirs = s.take('few', 1)
        with serving(h, 1, 'idle_s=.05') as a:
            os.kill(b.pid, signal.SIGSTOP)
            for t in ts.values(): h.put(t, 1)
            until(lambda: all(len(held(t))==1 for t in ts.values()), 20)
            n = a.pid
            until(lambda: not any(o for o in os.listdir(f'/proc/{n}/fd') if '/t0' in os.readlink(f'/proc/{n}/fd/{o}')), 15, .05)
            end(a)
        os.kill(b.pid, signal.SIGCONT)
        s.give(theirs)
        until(lambda: settled(ts), 5, .05)
    assert len(h.ended())==16

def test_rates_of_closed_lanes(h):
    "The lane is closed while a rate holds jobs: it is opened when the next may start, also if somebody has looked in meanwhile"
    ts = h.many(2); ts.close()
    ran = []
    ts = h.ts(worker=True, idle_s=.05, handoff=0, tasks=[])
    def rated(i): ran.append(i)
    ts.task(rated, name='rated', rate=(1, 2))
    a,b = ts.values()
    a.jobs.submit_many('j', rated, [dict(i=i) for i in range(2)])
    until(lambda: ran==[0] and held(a))
    until(lambda: closed(ts), 10)
    assert held(a)                                  # looks in
    until(lambda: closed(ts), 10)
    until(lambda: len(ran)==2, 6)

def test_limits_and_pauses_of_closed_lanes(h):
    "Pause, limit, resume and retry work on tenants whose lanes are closed, from this process and from another"
    ts = h.many(3); ts.close()
    ran,fail = [],[True]
    ts = h.ts(worker=True, idle_s=.05, handoff=0, tasks=[])
    def job(i):
        if fail[0]: raise OSError('no')
        ran.append(i)
    ts.task(job, name='job', limit=1, max_retries=1)
    def fill(k, n=4): return [t.jobs.options(max_retries=1).submit_many(k, job, [dict(i=f'{k}{i}') for i in range(n)]) for t in ts.values()]
    fill('f')
    until(lambda: all(len(t.jobs.list_jobs('f', 'failed'))==4 for t in ts.values()))
    until(lambda: closed(ts), 10)
    fail[0] = False
    assert set(ts.retry_failed('f').values())=={4}
    until(lambda: all(len(t.jobs.list_jobs('f', 'completed'))==4 for t in ts.values()))
    until(lambda: closed(ts), 10)
    for t in ts.values(): t.jobs.pause(job_type='p')
    fill('p')
    until(lambda: all(len([o for o in held(t) if o.held=='t:p'])==4 for t in ts.values()))
    until(lambda: closed(ts), 10)
    ts['t000'].jobs.resume(job_type='p')
    run_py(h, "ts = tenants(worker=False)\nts['t001'].jobs.resume(job_type='p')\nts['t002'].jobs.limit('p', 1); ts['t002'].jobs.resume(job_type='p')", pre=pre(3))
    until(lambda: all(len(t.jobs.list_jobs('p', 'completed'))==4 for t in ts.values()), 20, .02)
    assert ts['t002'].jobs.controls()=={'paused_queues':{}, 'paused_types':{}, 'limits':{'p':1}}

def test_limits_of_a_dead_process_with_closed_lanes(h):
    "What a limit per tenant holds goes on when the process dies that ran the job in front of it"
    ts = h.many(3)
    one = TASKS.replace('limit_all=N', 'limit=1')
    with process(h, RUN%'', pre=PRE.replace(TASKS, one)) as a:
        said(a, 'up')
        exec('import os, time\nfrom work import *\nfrom fh_saas.tasks import task\n'+one, ns)
        for t in ts.values(): h.put(t, 3, 'holds')
        until(lambda: len(h.begun())==3 and all(len(held(t))==2 for t in ts.values()))
        with process(h, RUN%'idle_s=.05', pre=PRE.replace(TASKS, one)) as b:
            said(b, 'up')
            h.go(); end(a)
            until(lambda: settled(ts), 20, .05)
    assert {j.status for t in ts.values() for j in t.jobs.list_jobs()}=={'completed'}

def test_frozen_while_it_waits(h):
    "A frozen tenant takes no slot from others, and goes on when it is thawed"
    ts = h.many(2); ts.close()
    tasks(1)
    ts = h.ts(worker=True, idle_s=.05, handoff=0, tasks=[])
    theirs = slots(ts._here).take('few', 1)
    a,b = ts.values()
    h.put(a, 2); h.put(b, 2)
    until(lambda: len(held(a))==len(held(b))==2)
    a.freeze()
    slots(ts._here).give(theirs)
    until(lambda: len(h.ended())==2, 10)
    assert {o[:4] for o in h.ended()}=={b.id}
    until(lambda: closed(ts), 10)
    a.thaw()
    until(lambda: len(h.ended())==4, 5)

def test_deleted_while_it_waits(h):
    ts = h.many(2); ts.close()
    tasks(1)
    ts = h.ts(worker=True, handoff=0, tasks=[])
    theirs = slots(ts._here).take('few', 1)
    a,b = ts.values()
    h.put(a, 1); h.put(b, 1)
    until(lambda: held(a) and held(b))
    a.delete(a.id)
    slots(ts._here).give(theirs)
    until(lambda: len(h.ended())==1, 5)
    assert h.ended()==[f'{b.id}-0']

# --- said, and where it does not work

def test_explain(h):
    ts = h.many(2); ts.close()
    tasks(2)
    ts = h.ts(worker=True, handoff=0, tasks=[])
    s = slots(ts._here)
    theirs = [*s.take('few', 2, most=2), *s.take('keyed\x1facme', 2, most=2)]
    a,b = ts.values()
    i,j = h.put(a, 1)[0],h.put(b, 1, 'keyed', account='acme')[0]
    until(lambda: held(a) and held(b))
    assert a.jobs.explain(i)=='limit 2 of 2 over all tenants is used'
    assert b.jobs.explain(j)=="limit 2 of 2 under the key 'acme' over all tenants is used"
    s.give(theirs)
    done(a.jobs, i); done(b.jobs, j)
    t = Host(h.dir); t.path = h.dir/'plain.db'
    m = t.look()
    i, = m.submit_many('j', ns['few'], [dict(folder=str(h.dir))])
    theirs = slots(m._lane.here).take('few', 2, most=2)
    m.run_due()
    assert m.explain(i)=='limit 2 of 2 over all databases of the folder is used'
    slots(m._lane.here).give(theirs[:1]); assert m.explain(i).startswith('no worker runs')
    t.close()

def test_without_locks(h, monkeypatch, caplog):
    "Each process counts for itself, and says so once"
    class No:
        LOCK_EX,LOCK_SH,LOCK_NB,LOCK_UN = 2,1,4,8
        def flock(*a): raise OSError(95, 'Operation not supported')
    monkeypatch.setattr(_p, 'fcntl', No)
    ts = h.many(4); ts.close()
    tasks(2)
    ts = h.ts(worker=True, threads=8, handoff=0, tasks=[])
    for t in ts.values(): h.put(t, 10)
    until(lambda: settled(ts), 30, .05)
    assert h.most()==2 and [o for o in caplog.messages if 'limit_all' in o]==[f'no file locks in {ts._here.dir}/slots: limit_all counts the jobs of each process by itself']

def test_slots_that_cannot_be_made(h, monkeypatch):
    "A folder that cannot be written for a while: jobs wait, others go on, and all run once it can"
    ts = h.many(1); ts.close()
    ts = h.ts(worker=True, handoff=0, tasks=[])
    bad = ts._here.dir/'slots'
    bad.write_text('a file')
    a, = ts.values()
    h.put(a, 2)
    until(lambda: len(held(a))==2)
    done(a.jobs, a.jobs.submit('q', work.quick, folder=str(h.dir), name='q')[0])
    assert h.begun()==[]
    bad.unlink()
    until(lambda: len(h.ended())==2, 10)

BAD = [(dict(limit_all=0), ValueError), (dict(limit_all=1.5), TypeError), (dict(limit_all=True), TypeError), (dict(limit_all='3'), TypeError), (dict(limit_all=1001), ValueError)]
@pytest.mark.parametrize('opts,exc', BAD, ids=str)
def test_bad_options(h, opts, exc):
    t = Host(h.dir); t.path = h.dir/'a.db'
    m = t.look()
    with pytest.raises(exc, match='limit_all'): m.task(work.quick, name='bad', **opts)
    with pytest.raises(TypeError, match='an option of tasks'): m.options(limit_all=3)
    assert 'bad' not in m._lane.known.tasks
    t.close()

def test_nothing_is_made_where_it_is_not_used(h):
    t = Host(h.dir); t.path = h.dir/'a.db'
    m = t.mgr()
    m.task(work.quick, name='plain', limit=2)
    m.submit_many('j', work.quick, [dict(folder=str(h.dir), name=i) for i in range(20)])
    all_done(m, 20)
    assert m._lane.here.slots is None and not (m._lane.here.dir/'slots').exists()
    t.close()

def test_the_folder_of_a_limit_is_not_read_for_each_job(h, monkeypatch):
    "It holds as many files as the limit says; who asks is known as long as it has not changed"
    t = Host(h.dir); t.path = h.dir/'a.db'
    s = slots(t.look()._lane.here)
    s.give(s.take('k', 300, 'A', most=300))
    line,read = s.lines['k'],[]
    os.utime(line.dir, (1, 1))                       # all that was long ago
    monkeypatch.setattr(_slots, '_names', lambda d: read.append(d) or os.listdir(d))
    for i in range(200): s.give(s.take('k', 300, 'A', most=5))
    assert len(read)==1
    asks = Path(line.dir)/'other.asks'; asks.touch(); os.utime(asks, (1, 1))
    mine, = s.take('k', 300, 'A')
    assert not s.is_alone(mine, 'A')
    s.give([mine]); t.close()
