"Many tenants, several processes: created, served, killed, frozen, restored, moved and deleted while jobs run"
import os, re, shutil, signal, subprocess, sys, threading, time
from collections import Counter
from contextlib import contextmanager

import apsw, pytest, work
from fastlite import database
from fh_saas import rollout
from fh_saas.running.moving import TenantBusy
from fh_saas.rollout import Rollout
from fh_saas.store.base import StoreError
from fh_saas.store.sqlite import SqliteStore
from fh_saas.tenants import Tenants
from util import Server, Tenant, end, env, process, run_py, said, start_py, stop_worker, until

TASKS = [work.quick, work.aquick, work.gated, work.nap, work.paced, work.fails]
PRE = '''
import asyncio, os, signal, sys, threading, time
from fh_saas.store.base import StoreError
from fh_saas.tenants import Tenants
from work import *
path,folder = sys.argv[1:3]
def tenants(**kw): return Tenants(path, **(dict(tasks=[quick,aquick,gated,nap,paced,fails], handoff=0)|kw))
def out(*a): print(*a, flush=True)
'''
RUN = "ts = tenants(%s); out('up'); ts.run()"

class House(Tenant):
    "A folder with `Tenants` in it, and a log of what their tasks did"
    def __init__(self, folder): super().__init__(folder, 'data'); self.opened = []
    def ts(self, **kw):
        "`Tenants` that run nothing here, unless told to"
        self.opened.append(o := Tenants(self.path, **(dict(worker=False, tasks=TASKS)|kw)))
        return o
    def many(self, n, jobs=0, task=work.quick, **kw):
        "So many tenants with so many jobs each"
        ts = self.ts()
        for i in range(n): self.fill(ts.create(f't{i:03}'), jobs, task, **kw)
        return ts
    def fill(self, t, n, task=work.quick, **kw):
        return t.jobs.submit_many('j', task, [dict(folder=str(self.dir), name=f'{t.id}-{i}', **kw) for i in range(n)]) if n else []
    def names(self, word='ran'): return [o[2] for o in self.log(word)]
    def close(self):
        for o in self.opened: o.close()
        super().close()

@pytest.fixture
def h(tmp_path):
    h = House(tmp_path)
    yield h
    stop_worker()
    h.close()

def jobs(ts): return [j for t in ts.values() for j in t.jobs.list_jobs(limit=10**5)]
def settled(ts): return not [1 for t in ts.values() for s in ('pending', 'running') if t.jobs.list_jobs(status=s, limit=1)]
def worker(h, opts='', **kw): return up(process(h, RUN%opts, pre=PRE, **kw))

@contextmanager
def up(ctx):
    with ctx as p: said(p, 'up'); yield p

@contextmanager
def cli(h, *args):
    "`fh_saas worker many:tenants`"
    code = 'import sys; sys.argv[0] = "fh_saas"; from fh_saas.cli import main; main()'
    p = subprocess.Popen([sys.executable, '-c', code, 'worker', 'many:tenants', *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         cwd=h.dir, env=env(FH_DIR=str(h.dir)))
    try:
        assert 'serving' in (s := p.stdout.readline()), s+p.stdout.read()
        yield p
    finally:
        if p.poll() is None: p.kill()
        p.communicate()

# --- found at run time, each job once

def test_new_tenant_is_served_by_a_running_worker(h):
    "A tenant that another process creates is served without a restart"
    h.many(1)
    with cli(h) as p:
        run_py(h, "t = tenants(worker=False).create('late'); out(t.jobs.submit('j', quick, folder=folder, name='first')[0])", pre=PRE)
        until(lambda: h.names()==['first'], 5)
        assert end(p, signal.SIGTERM)==0
    assert [j.status for j in jobs(h.ts())]==['completed']

def test_two_workers_over_many_tenants(h):
    "Two processes over the same tenants, 150 or `FH_SAAS_TEST_TENANTS`: each of four jobs in each runs exactly once, and both take part"
    n = int(os.environ.get('FH_SAAS_TEST_TENANTS', 150))
    ts = h.many(n)
    with worker(h), worker(h):                # both are up before there is anything to do
        for t in ts.values(): h.fill(t, 3); h.fill(t, 1, work.nap, s=.001)
        until(lambda: len(h.log('ran'))>=3*n and len(h.log('end'))>=n, n/5)
        until(lambda: settled(ts), every=.2)
    names = h.names()
    assert len(names)==len(set(names))==3*n and len(h.log('start'))==n
    assert len({o[3] for o in h.log('ran')})==2
    assert Counter((j.status,j.retry_count) for j in jobs(ts))=={('completed',0):4*n}

def test_a_killed_workers_jobs_go_on_elsewhere(h):
    "kill -9 among many tenants and few open lanes: what executed runs again within seconds and is charged, what was merely claimed is not"
    ts = h.many(40, 2, work.gated)
    with worker(h, 'most_open=8') as a:
        until(lambda: len(h.log('start'))==5)
        begun = set(h.names('start'))
        with worker(h, 'most_open=8, threads=8'):
            end(a); killed = time.time()
            h.go()
            until(lambda: len(h.log('end'))==80, every=.05)
            until(lambda: settled(ts), every=.1)
    js = jobs(ts)
    assert max(float(o[0]) for o in h.log('start') if o[2] in begun)-killed<5
    assert len(js)==80 and {j.status for j in js}=={'completed'}
    assert {j.result.strip('"') for j in js if j.retry_count}==begun
    assert {(j.retry_count, '"crashed"' in (j.attempts or '')) for j in js}=={(0,False), (1,True)}
    assert {k for k,n in Counter(h.names('start')).items() if n>1}==begun

# --- bounded

def nfds(): return len(os.listdir('/proc/self/fd'))

@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='counts descriptors in /proc')
def test_open_databases_are_bounded(h):
    "A hundred tenants, eight places: never more lanes open, descriptors flat, and handles that were kept go on working"
    h.many(100)
    h.opened.pop().close()
    ts,most,over = h.ts(worker=True, most_open=8, handoff=0),[0,0],threading.Event()
    db,m = ts['t000'].db,ts['t000'].jobs
    db.q('create table mine(x int)'); db.q('insert into mine values(1)')
    def sample():
        while not over.wait(.001): most[0] = max(most[0], len(ts._pool.open)); most[1] = max(most[1], nfds())
    began = nfds()
    th = threading.Thread(target=sample, daemon=True); th.start()
    run_py(h, "ts = tenants(worker=False)\nfor t in ts.values(): t.jobs.submit_many('j', quick, [dict(folder=folder, name=f'{t.id}-{i}') for i in range(3)])", pre=PRE)
    until(lambda: len(h.log('ran'))==300)
    over.set(); th.join()
    assert most[0]<=8 and most[1]<began+8*5+10, most
    until(lambda: settled(ts), every=.1)
    for t in ts.values(): assert t.db.q('select count(*) n from tenant_jobs')==[dict(n=3)]
    assert db.__dict__['_conn'] is None and 't000' not in ts._pool.open, 'both were closed'
    assert len([o for o in ts._dbs.values() if o.__dict__['_conn']])<=8 and nfds()<began+8*10
    db.q('insert into mine values(2)')
    id,_ = m.submit('j', work.quick, folder=str(h.dir), name='kept')
    until(lambda: m.get_job(id).status=='completed')
    assert db.q('select x from mine')==[dict(x=1),dict(x=2)] and h.names().count('kept')==1

# --- a sick tenant

def test_sick_tenants_cost_nobody_else(h):
    "A corrupt, a missing and a locked file among thirty: all others complete, health says which and why, and each recovers"
    ts = h.many(30, 4)
    corrupt,missing,locked = (ts[o].path for o in ('t003','t004','t005'))
    ts.close()
    good = {o:open(o, 'rb').read() for o in (corrupt, missing)}
    with open(corrupt, 'wb') as f: f.write(os.urandom(4096))
    os.unlink(missing)
    c = apsw.Connection(locked)
    c.execute('begin exclusive')
    ts = h.ts(worker=True, handoff=0, busy_s=.5)
    until(lambda: len(h.log('ran'))==27*4, 10)
    bad = until(lambda: len(b := ts.health()['tenants'])==3 and b, 15, .1)
    assert set(bad)=={'t003','t004','t005'} and all(o['since'] for o in bad.values())
    assert re.search('not a SQLite database|damaged', bad['t003']['why']) and 'missing' in bad['t004']['why'] and 'locked' in bad['t005']['why'], bad
    assert ts.health()['ok'] and len(h.log('ran'))==27*4
    c.execute('rollback'); c.close()
    for o,b in good.items():
        with open(o, 'wb') as f: f.write(b)
    until(lambda: len(h.log('ran'))==30*4, 15)
    until(lambda: not ts.health()['tenants'], 5, .1)
    assert len(set(h.names()))==120

# --- frozen

@pytest.mark.parametrize('task,kw', [(work.quick, {}), (work.nap, dict(s=.01)), (work.aquick, {})])
def test_freeze_stops_another_process(h, task, kw):
    "Once freeze has returned no job begins, in whatever process; all are kept, and thaw lets them run"
    ts,began,n0 = h.many(1),*(('start',2000) if kw else ('ran',20000))
    a, = ts.values()
    h.fill(a, n0, task, **kw)
    with worker(h):
        until(lambda: len(h.log(began))>200)
        a.freeze('unpaid')
        frozen = time.time()
        h.fill(ts.create('t001'), 5)
        until(lambda: len([o for o in h.names() if o.startswith('t001')])==5)
        time.sleep(.3)                # a claim made before the freeze would begin within STALE_S, 50 ms: nothing to wait for but that it does not
        late = [o for o in h.log(began) if o[2].startswith('t000') and float(o[0])>frozen+.005]
        n = len(h.log(began))-5*(began=='ran')
        assert not late and n<n0 and a.status=='frozen' and a.row.reason=='unpaid', (len(late), n)
        a.thaw()
        until(lambda: len(h.log(began))>n+500)
    names = [o for o in h.names(began)]
    assert len(names)==len(set(names))

@pytest.mark.alone
def test_submit_to_a_frozen_tenant(h):
    "A frozen tenant's submit is accepted and kept, and its BackgroundTask returns at once"
    a,_ = h.many(2).values()
    a.freeze()
    o = run_py(h, '''
ts = tenants(worker=True, handoff=1)
id,bg = ts['t000'].jobs.submit('j', quick, folder=folder, name='kept')
t = time.monotonic(); asyncio.run(bg()); out(time.monotonic()-t)
_,bg = ts['t001'].jobs.submit('j', quick, folder=folder, name='other'); asyncio.run(bg())     # the worker has come round
out(ts['t000'].jobs.get_job(id).status)
ts.close()''', pre=PRE).split()
    assert float(o[0])<.5 and o[1]=='pending' and h.names()==['other']
    with worker(h):
        a.thaw()
        until(lambda: h.names()==['other','kept'])

# --- restored from a backup

def back_up(src, dest):
    c,d = apsw.Connection(src),apsw.Connection(dest)
    with d.backup('main', c, 'main') as b: b.step()
    c.close(); d.close()

def put_back(bak, path):
    for o in '-wal', '-shm':
        if os.path.exists(path+o): os.unlink(path+o)
    os.replace(bak, path)

def test_a_restored_file_runs_nothing_by_itself(h):
    "A backup put back under a running worker: in quarantine, readable, nothing runs twice until somebody decides"
    ts = h.many(2)
    a,b = ts.values()
    ids = h.fill(a, 50)
    back_up(a.path, bak := str(h.dir/'bak.db'))
    with worker(h, 'idle_s=1'):
        until(lambda: len(h.log('ran'))==50)
        until(lambda: a.row.mark==50, 15, .1)
        put_back(bak, a.path)
        until(lambda: a.status=='quarantined', 15, .1)
        h.fill(b, 3)
        until(lambda: len(h.log('ran'))==53)
        assert 'older than its registry' in a.row.reason and 't000' in ts.health()['tenants']
        assert {j.id for j in a.unfinished()}==set(ids) and {j.status for j in a.jobs.list_jobs()}=={'pending'}
        a.jobs.submit('j', work.quick, folder=str(h.dir), name='new')
        assert a.discard_jobs(ids)==50
        time.sleep(.6)                # longer than SWEEP_S: a sweep that found something to run would leave its trace, one that finds nothing leaves none to wait for
        assert len(h.log('ran'))==53
        a.resume()
        until(lambda: 'new' in h.names())
        assert a.status=='active' and len(h.names())==len(set(h.names()))==54
        with pytest.raises(TenantBusy): a.resume()
        with pytest.raises(TenantBusy): a.discard_jobs()

def test_resume_runs_what_is_unfinished(h):
    "resume without discarding is a decision too: the jobs of the backup run again"
    ts = h.many(1)
    a, = ts.values()
    h.fill(a, 5)
    back_up(a.path, bak := str(h.dir/'bak.db'))
    with worker(h) as p: until(lambda: len(h.log('ran'))==5); assert end(p, signal.SIGTERM)==0
    assert a.row.mark==5, 'copied at close'
    path = a.path
    ts.close()
    put_back(bak, path)
    a = h.ts()['t000']
    with worker(h):
        until(lambda: a.status=='quarantined', 5)
        a.resume()
        until(lambda: len(h.log('ran'))==10)

# --- moved and deleted

SUBMITS = '''
m,i = tenants(worker=False)['t000'].jobs,0
out('up')
while not is_open(folder, 'stop'):
    try: m.submit('j', (quick,aquick)[i%2], folder=folder, name=i)
    except StoreError as e: say(folder, 'refused', i, type(e).__name__); continue
    i += 1
out(i)'''

def test_move_under_load(h):
    "Two moves while others submit and work: every job runs once, nobody sees an error that does not pass, the old file is gone"
    ts = h.many(1)
    a, = ts.values()
    places = [a.path]
    with worker(h), worker(h), up(process(h, SUBMITS, pre=PRE)) as s:
        for i in range(2):
            n = len(h.log('ran'))
            until(lambda: len(h.log('ran'))>n+100)
            a.move(h.dir/f'place{i}')
            places.append(a.path)
        n = len(h.log('ran'))
        until(lambda: len(h.log('ran'))>n+100)
        h.go('stop')
        n = int(s.communicate(timeout=20)[0])
        until(lambda: len(h.log('ran'))>=n)
        until(lambda: settled(ts), every=.05)
    assert sorted(map(int, h.names()))==list(range(n))
    assert len(set(places))==3 and not [o for o in places[:2] for e in ('', '-wal', '-shm') if os.path.exists(o+e)] and os.path.exists(places[2])
    assert {(j.status,j.retry_count) for j in a.jobs.list_jobs(limit=10**6)}=={('completed',0)} and a.status=='active'
    assert {o[3] for o in h.log('refused')}<={'StoreBusy','StoreError','StoreMoved'}

def test_move_while_another_process_looks_away(h):
    "A process that runs no worker and was idle during a move finds the tenant in its new place"
    a, = h.many(1).values()
    with up(process(h, """
ts = tenants(worker=False)
m = ts['t000'].jobs; m.submit('j', quick, folder=folder, name='before'); db = ts['t000'].db
out('up'); sys.stdin.readline()
m.submit('j', quick, folder=folder, name='after'); out(len(m.list_jobs()), db.q('select count(*) n from tenant_jobs')[0]['n'])""", pre=PRE)) as p:
        old = a.path
        a.move(h.dir/'there')
        o,e = p.communicate('go\n', timeout=20)
    assert o.split()==['2','2'], e
    assert not os.path.exists(old)

def test_move_cuts_off_what_runs_too_long(h):
    "A job that outlasts the drain starts again in the new place; the end of the old attempt is refused"
    a, = h.many(1).values()
    id, = h.fill(a, 1, work.gated)
    with worker(h):
        until(lambda: h.log('start'))
        a.move(h.dir/'there', drain_s=.1)
        until(lambda: len(h.log('start'))==2, 5)
        assert a.jobs.get_job(id).status=='running'
        h.go()
        until(lambda: a.jobs.get_job(id).status=='completed')
        until(lambda: len(h.log('end'))==2)              # the old attempt may end after the new one
        assert a.jobs.get_job(id).retry_count==0

def test_delete(h):
    "delete refuses while a job runs and leaves all as it was; later the files go, and other processes notice quietly"
    ts = h.many(2)
    a,b = ts.values()
    ids = h.fill(a, 1, work.gated)
    with worker(h) as p:
        until(lambda: h.log('start'))
        with pytest.raises(ValueError, match='confirm'): a.delete('t001')
        with pytest.raises(TenantBusy, match='1 jobs'): a.delete('t000', drain_s=.1)
        assert a.status=='active' and a.jobs.get_job(ids[0]).status=='running'
        h.go()
        until(lambda: a.jobs.get_job(ids[0]).status=='completed')
        h.fill(a, 1); until(lambda: h.names()==['t000-0'])
        path = a.path
        a.delete('t000')
        assert not [o for o in ('', '-wal', '-shm') if os.path.exists(path+o)]
        with pytest.raises(KeyError, match='t000'): ts['t000']
        with pytest.raises(KeyError, match='t000'): a.jobs
        h.fill(b, 1); until(lambda: len(h.log('ran'))==2)
        time.sleep(1.2)                                                # longer than two SWEEP_S of the other process, in which it would log an error; that it logs none cannot be waited for
        assert list(ts)==['t001'] and not os.path.exists(path)
        p.send_signal(signal.SIGTERM)
        assert 'Traceback' not in (e := p.communicate(timeout=10)[1]) and 'ERROR' not in e, e
    c = ts.create('t000')
    with worker(h): h.fill(c, 1); until(lambda: len(h.log('ran'))==3)

# --- shares

EVEN = '''
from fh_saas.running import shares
from fh_saas.running.lane import Lane
from fh_saas.running.lane_pool import LanePool
ended,put = Lane.end,LanePool.put
def end(self, a, out, took_s, keep=False): return ended(self, a, out, .001, keep)      # what it naps, however long a busy machine made it wait
def puts(self, id, path, weight=1., max_running=None):
    e = put(self, id, path, weight, max_running)
    say(folder, 'weight', id, weight)
    return e
Lane.end,LanePool.put,shares.LONG_S = end,puts,60.     # on a busy machine every lane waits so long that it may use the runner for newcomers, whatever its weight
'''

@pytest.mark.alone
@pytest.mark.parametrize('threads', [1, 2])
def test_weights_split_the_throughput(h, threads):
    "Weights 1:3, both with a backlog: jobs split 1:3, and a change at run time holds from then on"
    ts = h.ts()
    a,b = ts.create('a'),ts.create('b', weight=3)
    for o in a, b: h.fill(o, 6000, work.nap, s=.001)
    with up(process(h, EVEN+RUN%f'threads={threads}', pre=PRE)):
        until(lambda: len(h.log('end'))>=900, every=.05)
        first = Counter(o[0] for o in h.names('end')[200:900])
        a.set(weight=9)
        def after():
            rows = [o[2] for o in h.log() if o[1]=='end' or o[1:]==['weight', 'a', '9.0']]
            return rows[rows.index('a')+301:][:700] if 'a' in rows else []
        until(lambda: len(after())==700, 40, .05)
        then = Counter(o[0] for o in after())
    assert .68<first['b']/700<.82 and .68<then['a']/700<.82, (first, then)

def test_max_running_holds_across_processes(h):
    "max_running=1: never two of the tenant's jobs at once, in whatever process; others are not held up"
    ts = h.ts()
    a,b = ts.create('a', max_running=1),ts.create('b')
    for o in a, b: h.fill(o, 40, work.nap, s=.01)
    with worker(h), worker(h): until(lambda: len(h.log('end'))==80)
    def most(id):
        n,top = 0,0
        for o in h.log():
            if o[2][0]==id: n += 1 if o[1]=='start' else -1; top = max(top, n)
        return top
    assert most('a')==1 and most('b')>1
    last = {id:max(float(o[0]) for o in h.log('end') if o[2][0]==id) for id in 'ab'}
    assert last['b']<last['a']

# --- the fleet

def broken(folder, every):
    "Fails each time that `every` divides the number of starts"
    work.say(folder, 'start', 'x', os.getpid())
    if not sum(' start ' in o for o in open(f'{folder}/log'))%every: raise ValueError('StripeTimeout')

@pytest.mark.parametrize('where', ['_decided', '_look'])
def test_two_take_a_step_of_a_rollout_at_once(h, monkeypatch, where):
    "Another process steps just before this one decides, or before it submits: no more than `batch` are under way, each has one job, and none counts as failed"
    ts = h.many(8)
    r = ts.submit_all('quick', work.quick, dict(folder=str(h.dir), name='x'), canaries=0, batch=3)
    for o in ts.values(): o.jobs.run_due()
    home,name = (rollout,where) if where=='_decided' else (SqliteStore,'get')
    old,other = getattr(home, name),[1]
    def meanwhile(*a):
        got = old(*a)
        if other and (where=='_decided' or got is None): other.pop(); Rollout(h.ts(), r.id).advance()
        return got
    monkeypatch.setattr(home, name, meanwhile)
    assert r.advance() and not other
    assert [r.progress()[k] for k in ('completed', 'running', 'waiting', 'failed')]==[3, 3, 2, 0]
    assert sum(len(o.jobs.list_jobs()) for o in ts.values())==6

def test_submit_all_stops_and_resumes(h):
    "Canaries first; too many failures stop it before anybody else gets the job; resumed, it gives each tenant one job"
    for i in range(24): h.ts().create(f't{i:03}')
    h.opened[-1].close()
    ts = h.ts(worker=True, threads=1, tasks=TASKS+[broken])
    r = ts.submit_all('backfill', broken, dict(folder=str(h.dir), every=2), max_retries=1, canaries=4, batch=3)
    p = r.wait(20)
    assert (p['state'],p['total'])==('stopped',24) and 1<=p['failed'] and p['completed']+p['failed']<=4 and 'failed' in p['why'], p
    assert set(r.failures())<={f't{i:03}' for i in range(4)} and all('StripeTimeout' in o for o in r.failures().values())
    n = len(jobs(ts))
    assert n<=4 and len(h.log('start'))==n
    r.resume(stop_at_failures=1)
    seen = []
    p = r.wait(20, seen.append)
    assert (p['state'],p['waiting'],p['running'])==('completed',0,0) and max(o['running'] for o in seen)<=3, p
    assert p['failed']==len(r.failures())==sum(j.status=='failed' for j in jobs(ts)) and p['failed']+p['completed']==24, p
    assert {len(t.jobs.list_jobs()) for t in ts.values()}=={1} and len(h.log('start'))==24
    assert [o.id for o in ts.rollouts()]==[r.id]

def test_submit_all_goes_on_after_a_kill(h):
    "kill -9 of the worker in mid-rollout: the next one goes on with it, every tenant gets exactly one job"
    ts = h.many(40)
    with worker(h, 'threads=8') as a:
        r = ts.submit_all('backfill', work.paced, dict(folder=str(h.dir), free=6, name='x'), canaries=2, batch=5)
        until(lambda: len(h.log('held'))==5)
        until(lambda: sum(j.status=='completed' for j in jobs(ts))==len(h.log('end')))
        end(a)
    n = len(h.log('start'))
    assert r.progress()['state']=='running' and 7<=n<=11
    h.go()
    with worker(h), worker(h): until(lambda: r.progress()['state']=='completed', 20, .05)
    assert r.progress()['completed']==40
    assert {tuple(j.status for j in t.jobs.list_jobs()) for t in ts.values()}=={('completed',)}
    assert len([j for j in jobs(ts) if j.retry_count])==5 and len(h.log('start'))==45 and len(h.log('end'))==40

def test_submit_all_where(h):
    "where as a dict of columns, or a function of a row; frozen tenants are left out"
    ts = h.ts()
    ts.plan('pro', weight=2)
    for i in range(6): ts.create(f't{i}', plan='pro' if i%2 else 'standard')
    ts['t1'].freeze()
    def got(where):
        r = ts.submit_all('w', work.quick, dict(folder=str(h.dir)), where=where, canaries=0, batch=10)
        return sorted(o for o, in ts.registry.read('select tenant from tenant_rollout_jobs where rollout=?', (r.id,)))
    assert got(dict(plan='pro'))==['t3','t5'] and got(dict(plan='pro', timezone='Europe/Oslo'))==[]
    assert got(lambda r: r.id>'t3')==['t4','t5'] and got(None)==['t0','t2','t3','t4','t5']

BAD = [(dict(job_type=''), ValueError, 'job_type'), (dict(task_func=3), TypeError, 'task_func'), (dict(kwargs=[1]), TypeError, 'kwargs'),
       (dict(kwargs=dict(nope=1)), TypeError, 'nope'), (dict(kwargs=dict(folder=object())), TypeError, 'folder'), (dict(max_retries=0), ValueError, 'max_retries'),
       (dict(canaries=-1), ValueError, 'canaries'), (dict(canaries=1.5), TypeError, 'canaries'), (dict(batch=0), ValueError, 'batch'), (dict(batch='3'), TypeError, 'batch'),
       (dict(stop_at_failures=2), ValueError, 'stop_at_failures'), (dict(stop_at_failures=float('nan')), ValueError, 'stop_at_failures'),
       (dict(where='pro'), TypeError, 'where'), (dict(where=dict(colour='red')), ValueError, 'colour'), (dict(task_func=lambda folder: 1), ValueError, 'name')]

@pytest.mark.parametrize('kw,err,word', BAD, ids=lambda o: str(o).partition(' at 0x')[0][:40] if isinstance(o, dict) else '')
def test_submit_all_bad_input(h, kw, err, word):
    "An argument that makes no sense is named, and nothing is stored"
    ts = h.many(2)
    kw = dict(job_type='j', task_func=work.quick, kwargs=dict(folder=str(h.dir)))|kw
    with pytest.raises(err, match=word): ts.submit_all(**kw)
    assert ts.registry.read('select count(*) from tenant_rollouts union all select count(*) from tenant_rollout_jobs')==[(0,),(0,)] and not jobs(ts)

def test_submit_all_where_that_raises(h):
    "A filter's own error comes through, and nothing is stored"
    ts = h.many(1)
    with pytest.raises(ZeroDivisionError): ts.submit_all('j', work.quick, dict(folder=''), where=lambda r: 1/0)
    assert not ts.rollouts()

def timeout(): raise ValueError('StripeTimeout')
def denied(): raise PermissionError('card denied')

def test_retry_failed(h):
    "Failed jobs of all tenants are pending again, by type, by error and by time; a second call finds nothing"
    at = [time.time()]
    ts = h.ts(tasks=[timeout, denied], clock=lambda: at[0])
    for i in range(3):
        t = ts.create(f't{i}')
        for f in timeout, denied:
            for typ in ['charge','mail'][:i+1]:
                _,bg = t.jobs.submit(typ, f, max_retries=1); bg.func(*bg.args)
        at[0] += 3600
    def failed(): return sum(j.status=='failed' for j in jobs(ts))
    assert failed()==10
    seen = []
    assert ts.retry_failed('mail', 'StripeTimeout', progress=lambda *a: seen.append(a))=={'t1':1,'t2':1} and failed()==8
    assert seen==[(1,3,'t0'),(2,3,'t1'),(3,3,'t2')] and ts.retry_failed('mail', 'StripeTimeout')=={}
    since = min(j.completed_at for j in ts['t2'].jobs.list_jobs(status='failed'))
    assert ts.retry_failed(since=since)=={'t2':3} and failed()==5
    assert ts.retry_failed()=={'t0':2,'t1':3} and failed()==0
    assert all((j.status,j.retry_count,j.completed_at)==('pending',0,None) for j in jobs(ts))

def test_usage_is_what_ran(h):
    "Attempts and run seconds by day equal what ran, failed attempts included, over restarts"
    day = 86400
    off = [1_800_000_000//day*day+3600-time.time()]
    ts = h.ts(worker=True, handoff=0, tasks=TASKS+[timeout], clock=lambda: time.time()+off[0])
    a,b = ts.create('a'),ts.create('b')
    def go(t, n, f, **kw):
        for _ in range(n): t.jobs.submit('j', f, max_retries=1, **kw)
    nap = dict(folder=str(h.dir), s=.03)
    go(a, 5, work.nap, **nap); go(a, 2, timeout); go(b, 1, work.nap, **nap)
    until(lambda: settled(ts), every=.02)
    off[0] += day
    go(a, 3, work.nap, **nap)
    until(lambda: settled(ts), every=.02)
    u = {(o['tenant'],o['day'][-2:]):o for o in ts.usage()}
    d = [o['day'] for o in a.usage()]
    assert d==['2027-01-15','2027-01-16'] and len(u)==3
    assert {k:o['attempts'] for k,o in u.items()}=={('a','15'):7, ('b','15'):1, ('a','16'):3}
    for k,n in (('a','15'),5),(('b','15'),1),(('a','16'),3): assert .03*n<=u[k]['run_s']<.03*n*1.5+.05, u
    assert [o['day'] for o in ts.usage(since=d[1])]==[d[1]] and all(o['bytes']>0 for o in u.values())
    ts.close()
    assert {(o['tenant'],o['day'][-2:]):o for o in h.ts().usage()}==u

# --- the app's own way to open, forks, older files, servers

def test_open_of_ones_own(h):
    "open= puts each database into a folder of its own; the registry lies in the app's database and joins its tables"
    host = database(str(h.dir/'app.db'))
    host.q("create table customers(id text primary key, name text)")
    host.q("insert into customers values('acme','Acme Inc.'),('zeta','Zeta')")
    def opens(t):
        (h.dir/'homes'/t.id).mkdir(parents=True, exist_ok=True)
        return database(str(h.dir/'homes'/t.id/'main.db'))
    h.opened.append(ts := Tenants(host, open=opens, tasks=TASKS, handoff=0, most_open=4))
    for o in ('acme','zeta',*(f'x{i}' for i in range(8))): h.fill(ts.create(o), 2)
    until(lambda: len(h.log('ran'))==20)
    until(lambda: settled(ts), every=.05)
    assert sorted(o.parent.name for o in (h.dir/'homes').glob('*/main.db'))==sorted(ts)
    ts['zeta'].freeze('unpaid')
    rows = host.q("select c.name, r.status, r.reason from customers c join tenant_registry r using(id) order by 1")
    assert rows==[dict(name='Acme Inc.', status='active', reason=None), dict(name='Zeta', status='frozen', reason='unpaid')]
    with pytest.raises(KeyError, match='nobody'): ts['nobody']
    host.conn.close()

def test_fork_after_tenants(h):
    "A child forked after `Tenants` were made creates, submits and works on them; the parent goes on"
    run_py(h, '''
def wait(f):
    end = time.monotonic()+15
    while not f():
        if time.monotonic()>end: raise SystemExit('waited too long')
        time.sleep(.005)
ts = tenants()
a = ts.create('a'); a.db.q('create table x(n int)')
def go(t, name):
    id,_ = t.jobs.submit('j', quick, folder=folder, name=name)
    wait(lambda: t.jobs.get_job(id).status=='completed')
go(a, 'before')
if (pid := os.fork())==0:
    try:
        os.kill(os.getppid(), signal.SIGSTOP)
        go(a, 'child'); go(ts.create('b'), 'childs-own'); a.db.q('insert into x values(1)')
        os.kill(os.getppid(), signal.SIGCONT)
        ts.close(); os._exit(0)
    except BaseException as e: print(repr(e), file=sys.stderr, flush=True); os.kill(os.getppid(), signal.SIGCONT); os._exit(1)
assert os.waitpid(pid, 0)[1]==0
go(a, 'after'); go(ts['b'], 'childs-tenant')
assert a.db.q('select n from x')==[dict(n=1)]
ts.close()''', pre=PRE)
    pids = {o[2]:o[3] for o in h.log('ran')}
    assert len(h.log('ran'))==5 and pids['before']==pids['after']!=pids['child']==pids['childs-own']

OLDER = '''
c = apsw.Connection(sys.argv[3]); c.set_busy_timeout(5000)
print('up', flush=True)
i,cols = 0,'id,job_type,status,payload,retry_count,max_retries,created_at,task,run_at,ready,priority,fence'
while not os.path.exists(folder+'/stop'):
    c.execute(f"insert into tenant_jobs({cols}) values(?,'old','pending','{{}}',0,3,'2025-01-01','nobodys',?,2,0,0)", (f'w{i:05}','2025-01-01'))
    r = c.execute("update tenant_jobs set status='running', ready=null, fence=fence+1, owner='older' where id=? returning rowid,id,fence", (f'w{i:05}',)).fetchall()[0]
    c.execute("update tenant_jobs set status='completed', result='1', owner=null, completed_at='x' where rowid=? and id=? and status='running' and fence=?", r)
    assert c.changes()==1
    i += 1
print(i)'''

def test_upgrade_under_an_older_version(h):
    "A version-1 file is upgraded on first opening while the older version inserts and acknowledges; both lose nothing"
    ts = h.many(2)
    a,b = ts.values()
    path = a.path
    h.fill(a, 50)
    ts.close()
    c = apsw.Connection(path)
    c.execute("drop table tenant_usage; update tenant_meta set value=1 where key='schema'")
    c.close()
    with process(h, OLDER, path, pre='import apsw, os, sys\nfolder = sys.argv[2]\n') as p:
        said(p, 'up')
        ts = h.ts()
        assert ts.behind()==['t000']
        with worker(h):
            until(lambda: len(h.log('ran'))==50)
            h.fill(ts['t000'], 20)
            until(lambda: len(h.log('ran'))==70)
            until(lambda: len(ts['t000'].jobs.list_jobs('j', 'completed'))==70)
        n = len(ts['t000'].jobs.list_jobs('old', limit=10**6))
        until(lambda: len(ts['t000'].jobs.list_jobs('old', limit=10**6))>n)
        h.go('stop')
        o,e = p.communicate(timeout=10)
        assert p.returncode==0, e
    a = ts['t000']
    assert len(a.jobs.list_jobs('old', 'completed', 10**6))==int(o) and ts.behind()==[] and ts.migrate()=={}
    assert a.status=='active' and sum(o['attempts'] for o in a.usage())==70

def test_uvicorn_workers_and_a_separate_worker(h):
    "uvicorn --workers 2 and `fh_saas worker`: forty jobs of four tenants over HTTP, each once"
    ts = h.many(4)
    with cli(h), Server(h, args=['-m', 'uvicorn', 'many:app', '--port', '0', '--no-access-log', '--workers', '2']) as s:
        try:
            until(lambda: s.text().count('startup complete')==2)
            got = [s.c.get('/sub', params=dict(tenant=f't{i%4:03}', name=i), headers=dict(connection='close')) for i in range(40)]
            assert {o.status_code for o in got}=={200}
            until(lambda: len(h.log('ran'))>=40)
            until(lambda: settled(ts), every=.05)
        finally: s.signal(signal.SIGTERM); s.wait()
        assert 'Traceback' not in s.text(), s.text()
    assert sorted(map(int, h.names()))==list(range(40))
    assert {j.id for j in jobs(ts)}=={o.headers['x-job'] for o in got} and {(j.status,j.retry_count) for j in jobs(ts)}=={('completed',0)}
