"""P1-P4, P6: processes are killed at random under mixed load; then a ledger on the disk is compared with the table. Nothing that was submitted is lost,
all of it was done at least once, what a transaction wrote is there exactly once, and no limit was ever exceeded.
Run it in a process that has opened nothing: workers are forked from it, so that they live long enough to do something"""
import json, logging, os, random, shutil, signal, subprocess, sys, tempfile, time, traceback
from collections import Counter
from itertools import pairwise
from pathlib import Path

from . import load
from fh_saas.ids import from_iso
from fh_saas.utils_bgtsk import BackgroundTaskManager
from util import opened

TASKS = [load.quick, load.slow, load.aslow, load.writes, load.steps, load.fails]
LIMIT = 2

def mgr(folder, **kw):
    m = BackgroundTaskManager(opened(folder/'t.db'), tasks=TASKS, handoff=0, **kw)
    m.task(load.limited, limit=LIMIT); m.task(load.cpu, process=True)
    return m

def fork(f, *args):
    sys.stdout.flush()
    if pid := os.fork(): return pid
    try: f(*args)
    except BaseException: traceback.print_exc(); sys.stderr.flush(); os._exit(1)
    os._exit(0)

class Nursery:
    "A process with another package of fh_saas that forks workers when told to"
    def __init__(self, folder, path):
        self.p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', f'from {__package__} import soak; soak.nursery({str(folder)!r})'], cwd=folder,
            env={**os.environ, 'PYTHONPATH':path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.file = self.p.stdout.readline().strip()       # of its package
    def fork(self): self.p.stdin.write('\n'); self.p.stdin.flush(); return int(self.p.stdout.readline())
    def close(self): self.p.communicate()

def nursery(folder):
    import fh_saas
    logging.disable(logging.WARNING)
    print(fh_saas.__file__, flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)          # so that nobody has to wait for them
    def f(): signal.signal(signal.SIGCHLD, signal.SIG_DFL); os.close(0); work(Path(folder))
    for _ in sys.stdin: print(fork(f), flush=True)

def reap(pid):
    "Wait for its end, and give its exit code; None for one that is not our own child"
    try: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError: pass
    end = time.time()+30
    while time.time()<end:
        try: os.kill(pid, 0); time.sleep(.002)
        except ProcessLookupError: return
    raise AssertionError(f'{pid} goes on')

def work(folder): mgr(folder, worker=False, threads=4).run()     # so that a worker that is seen to run is in `run`

KINDS = 'quick slow aslow limited writes steps fails many family transaction unique'.split()

def submit(folder, seed, until, kinds=None):
    "Submits as long as there is not too much to do, of some kinds or of all; each id is in a file on the disk as soon as `submit` has returned"
    m,r = mgr(folder, worker=False),random.Random(seed)
    fd = os.open(folder/'submitted', os.O_WRONLY|os.O_APPEND|os.O_CREAT, 0o644)
    def told(kind, *ids): os.write(fd, ''.join(f'{kind} {o}\n' for o in ids).encode()); os.fsync(fd)
    opt = lambda **kw: m.options(backoff=.2, max_retries=1000, **kw)
    while time.time()<until:
        if m._lane.store.running_now()+len(m._lane.store.select(None, 'pending', 400))>=400: time.sleep(.05); continue
        n,kind = r.randrange(1000),r.choice(kinds or KINDS+['cpu']*(r.random()<.3))
        f = getattr(load, kind, None)
        if kind=='many': told(kind, *opt().submit_many(kind, load.quick, [dict(n=i) for i in range(20)]))
        elif kind=='family':
            p,_ = opt().submit(kind, load.slow, n=n)
            told(kind, p, *[opt(after=[p]).submit(kind, load.quick, n=i)[0] for i in range(3)])
        elif kind=='transaction':
            with m.transaction() as db:
                ids = [opt().submit(kind, load.quick, n=i)[0] for i in range(2)]
                db.q('insert into notes values(?),(?) returning 1', ids)
            told(kind, *ids)
        elif kind=='unique': told(kind, opt(unique=f'k{n%3}').submit(kind, load.slow, n=n)[0])
        else: told(kind, opt().submit(kind, f, n=n)[0])
        time.sleep(.004)

def probe(folder):
    "Does nothing but ask the disk, as the ledger does: if it is late, the machine is, and not the package. What was late goes into a file"
    fd = os.open(folder/'probe', os.O_WRONLY|os.O_CREAT)
    while True:
        t = time.time()
        os.pwrite(fd, b'x', 0); os.fsync(fd); time.sleep(.05)
        if time.time()-t>.5: _late(folder, 'disk', t)

def _late(folder, what, t):
    with open(folder/'late', 'a') as f: f.write(f'{what} {t:.3f} {time.time()-t:.2f}\n')

def watch(folder):
    "Looks again and again whether more run under a limit than may"
    m,most = mgr(folder, worker=False),0
    while True:
        n = m._lane.store.read("select count(*) from tenant_jobs where status='running' and limit_key is not null and job_type='limited'")[0][0]
        if n>most: most = n; (folder/'most').write_text(str(most))
        time.sleep(.005)

def run(seconds=30., workers=3, seed=None, disk=None, older=None, kinds=None, every=(.05, .5)):
    "Returns what was seen; only some kinds of jobs if they are named, with a kill each so many seconds, at random between two; every other worker is of the package at `older(folder)`, a `PYTHONPATH`. Raises `AssertionError`"
    seed = random.randrange(2**32) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix='soak', dir=disk))
    os.environ['CHAOS_FOLDER'] = str(folder)
    def make():
        m = mgr(folder, worker=False)
        m.db.q('create table effects(job)'); m.db.q('create table notes(job)')
    old = None
    try:
        os.waitpid(fork(make), 0)
        if older:
            (folder/'pkg').mkdir()
            old = Nursery(folder, older(folder/'pkg'))
            assert old.file.startswith(str(folder)), old.file
        def hatch(i): return old.fork() if old and i%2 else fork(work, folder)
        kills = _storm(folder, seconds, workers, random.Random(seed), hatch, kinds, every)
        _calm(folder, workers, hatch)
        rc = os.waitstatus_to_exitcode(os.waitpid(fork(_check, folder, kills, seed), 0)[1])
        assert rc==0, f'the soak with seed {seed} does not hold, see above; its files are in {folder}'
        return (folder/'report').read_text()
    finally:
        if old: old.close()
        if (folder/'report').exists(): shutil.rmtree(folder, ignore_errors=True)

def _storm(folder, seconds, workers, r, hatch, kinds, every):
    "Kill at random, and have one in six stand still for 50 to 500 ms instead; the kills as (time, pid)"
    end,kills = time.time()+seconds,[]
    ws,sub,eye,disk = [hatch(i) for i in range(workers)],fork(submit, folder, r.random(), end, kinds),fork(watch, folder),fork(probe, folder)
    while time.time()<end:
        time.sleep(r.uniform(*every))
        i = r.randrange(workers+1) if r.random()<.5 else r.randrange(workers)
        pid = ws[i] if i<workers else sub
        if r.random()<1/6:
            os.kill(pid, signal.SIGSTOP); time.sleep(r.uniform(.05, .5)); os.kill(pid, signal.SIGCONT)
            continue
        os.kill(pid, signal.SIGKILL); kills.append((t := time.time(), pid)); reap(pid)
        if time.time()>t+.5: _late(folder, 'death', t)
        if i<workers: ws[i] = hatch(i)
        else: sub = fork(submit, folder, r.random(), end, kinds)
    for o in (sub, eye, disk, *ws): os.kill(o, signal.SIGKILL); kills.append((time.time(), o)); reap(o)
    return kills

def _calm(folder, workers, hatch, s=90.):
    "Let all that is left be done, and end the workers, once they run, as a deploy does"
    ws = [hatch(i) for i in range(workers)]
    done = fork(_until_done, folder, workers, s)
    rc = os.waitstatus_to_exitcode(os.waitpid(done, 0)[1])
    for o in ws: os.kill(o, signal.SIGTERM)
    ends = [reap(o) for o in ws]
    assert rc==0, f'{s:g} s were not enough, see above; the files are in {folder}'
    assert not any(ends), f'the workers ended with {ends}; the files are in {folder}'

def _until_done(folder, workers, s):
    m,end = mgr(folder, worker=False),time.time()+s
    left = lambda: (workers-len(m._lane.here.workers()), m._lane.store.running_now(), len(m._lane.store.select(None, 'pending', 10**4)))
    while any(o := left()):
        if time.time()>end: print(f'soak: {o[0]} workers are not up, {o[1]} jobs run, {o[2]} wait', file=sys.stderr); os._exit(1)
        time.sleep(.1)

def percentiles(xs): xs = sorted(xs); return 'none' if not xs else '  '.join(f'p{p} {xs[min(len(xs)-1, int(len(xs)*p/100))]*1000:.0f}' for p in (50, 90, 99, 100))+f' ms of {len(xs)}'

def _check(folder, kills, seed):
    m = mgr(folder, worker=False)
    jobs = {j.id:j for j in m.list_jobs(limit=10**7)}
    told = [o.split() for o in (folder/'submitted').read_text().splitlines()]
    lines = [o.split() for o in (folder/'ledger').read_text().splitlines()]
    started,ended,steps = (Counter(o[3] for o in lines if o[2]==w) for w in ('start', 'end', 'step'))
    bad = []
    def check(ok, *what):
        if not ok: bad.append(' '.join(map(str, what)))
    check(m._lane.store.read('pragma integrity_check')==[('ok',)], 'the file is damaged')
    for kind,id in told: check(id in jobs, 'lost:', kind, id)
    for id,j in jobs.items():
        check(j.status=='completed', 'not completed:', j.job_type, id, j.status, j.retry_count, j.ready, j.held, m.explain(id), (j.error_log or '')[-200:])
        check(ended[id] or j.job_type=='writes' and started[id], 'completed and never done:', j.job_type, id)
    effects = Counter(o['job'] for o in m.db.q('select job from effects'))
    of = lambda k: [j for j in jobs.values() if j.job_type==k]
    for j in of('writes'): check(effects[j.id]==1, 'effects of', j.id, effects[j.id])
    check(len(of('of_transaction'))==len(of('writes')), 'children of transactions:', len(of('of_transaction')), 'of', len(of('writes')))
    check(len(of('of_step'))==len(of('steps')), 'children of steps:', len(of('of_step')), 'of', len(of('steps')))
    notes = {o['job'] for o in m.db.q('select job from notes')}
    check(notes=={j.id for j in of('transaction')}, 'rows and jobs of transactions differ')
    most = int((folder/'most').read_text()) if (folder/'most').exists() else 0
    check(most<=LIMIT, 'more of a limit ran than may:', most)
    check(not m._lane.store.read('select * from tenant_job_steps') or True, '')
    for o in bad[:20]: print('soak:', o, file=sys.stderr)
    if len(bad)>20: print(f'soak: and {len(bad)-20} more', file=sys.stderr)
    if bad: os._exit(1)
    (folder/'report').write_text('\n'.join([f'{len(kills)} kills, {len(jobs):,} jobs, {len(told):,} of them reported as submitted; seed {seed}',
        '  '.join(f'{k} {n}' for k,n in sorted(Counter(j.job_type for j in jobs.values()).items())),
        f'attempts begun {sum(started.values()):,}, ended {sum(ended.values()):,}; begun more than once {sum(n>1 for n in started.values()):,}, most often {max(started.values())}',
        f'effects of transactions {sum(effects.values()):,}, each once; steps begun {sum(steps.values()):,}; crashes charged {sum((j.attempts or "").count("crashed") for j in jobs.values()):,}',
        f'most that ran under a limit of {LIMIT}: {most}',
        *_recovered(lines, kills, jobs, folder),
        f'longest time in which nothing was written to the ledger: {max((b-a for a,b in pairwise(sorted(float(o[0]) for o in lines))), default=0):.1f} s; the machine was late, in s: {_lates(folder)}']))

def _late_times(folder, what):
    return [(float(t), float(s)) for k,t,s in map(str.split, (folder/'late').read_text().splitlines()) if k==what] if (folder/'late').exists() else []

def _lates(folder): return '; '.join(f'{k} {len(v)} times, at most {max(s for _,s in v):.1f}' for k in ('disk', 'death') if (v := _late_times(folder, k))) or 'never'

def _recovery(lines, kills):
    "For each job that a kill cut short for the first time: (when it was killed, when it began again, its id). A start of a process task names the worker, whose death is its own"
    dead,open_,hit,out = dict((p, t) for t,p in kills),{},set(),[]
    for t,pid,word,id in ((float(o[0]), int(o[-1] if o[2]=='start' and len(o)>4 else o[1]), o[2], o[3]) for o in sorted(lines, key=lambda o: float(o[0]))):
        if word=='start':
            if (was := open_.get(id)) and was in dead and dead[was]<=t and id not in hit: hit.add(id); out.append((dead[was], t, id))
            open_[id] = pid
        elif word=='end': open_.pop(id, None)
    return out

def _recovered(lines, kills, jobs, folder):
    """How long that took, and which part of it until the death was noticed. Its row says when that was. A job that has crashed before is put off, and so is one
    that another kill met before it said that it began. Process tasks are apart: where no child is at hand, one has to start"""
    of = lambda process: [o for o in lines if o[3] in jobs and (jobs[o[3]].job_type=='cpu')==process]
    return [*_times('jobs that were executing', of(False), kills, jobs, folder), *_times('process tasks', of(True), kills, jobs, folder)]

def _times(what, lines, kills, jobs, folder):
    all_,seen,then,more,late,none,slow,stood = [],[],[],[],[],[],[],_late_times(folder, 'disk')
    for dead,again,id in _recovery(lines, kills):
        j,s = jobs[id],again-dead
        crashes = [from_iso(o['at']) for o in json.loads(j.attempts or '[]') if o['outcome']=='crashed']
        at = [x for x in crashes if dead<=x<=again]
        if not at: none.append(j.job_type); continue
        slow.append((s, f'{j.job_type} {id}: crashes noted after {", ".join(f"{o-dead:.2f}" for o in at)} s, began again after {s:.2f} s, claimed {j.fence} times, {sum(x<dead for x in crashes)} crashes before'))
        if any(x<dead for x in crashes) or len(at)>1: more.append(s)
        elif any(t<again and t+d>dead for t,d in stood): late.append(s)
        else: all_.append(s); seen.append(at[0]-dead); then.append(again-at[0])
    return [f'from kill to the next start of {what}, first crash: {percentiles(all_)}',
        f'    of which until it was noticed: {percentiles(seen)}; from then on: {percentiles(then)}',
        f'    while the disk was late: {percentiles(late)}; with a crash before, or another before it began: {percentiles(more)}',
        f'    had failed by themselves before the kill: {dict(Counter(none))}', *('    '+o for _,o in sorted(slow, reverse=True)[:5])]
