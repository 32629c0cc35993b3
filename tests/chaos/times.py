"""P2, P3, P6: the wall clock is stepped, and processes stand still. On one machine nobody is robbed however long that takes; across machines, where only
the lease counts, another takes over, and what comes late from the first is refused"""
import json, os, random, signal, tempfile, time
from collections import Counter
from itertools import product
from pathlib import Path

import psutil
from fh_saas.cron import Cron
from fh_saas.ids import from_iso, to_iso
from util import Tenant, end, process, stop_worker, until
from . import load

WORK = '''
from chaos import load
m = mgr(tasks=load.named(), worker=False, handoff=0, clock=load.offset(folder), threads=8)
m.task(load.gprocess, name='gprocess', process=True)
m.cron('*/10 * * * *', load.slotted, tz='UTC', name='every', catch_up='all')
threading.Thread(target=lambda: (time.sleep(.05), out('up', m._lane.owner))).start()
m.run()'''
GATED = 'gated agated gprocess gwrites gsteps'.split()

class Place:
    "A tenant with a clock of its own, and its ledger"
    def __init__(self, folder):
        self.t = Tenant(folder)
        os.environ['CHAOS_FOLDER'] = str(folder)
        self.clock = load.offset(folder)
        self.m = self.t.look(clock=self.clock, tasks=load.named())
        self.m.task(load.gprocess, name='gprocess', process=True)
        self.t.dbs[0].q('create table if not exists effects(job)')
    def lines(self, word, id=None, n=None):
        f = self.t.dir/'ledger'
        rows = [o.split() for o in f.read_text().splitlines()] if f.exists() else []
        return [o for o in rows if o[2]==word and id in (None, o[3]) and n in (None, o[-1])]
    def worker(self): return process(self.t, WORK, CHAOS_FOLDER=str(self.t.dir))
    def up(self, p):
        "Its owner id"
        for line in p.stdout:
            if line.startswith('up '): return line.split()[1]
        raise AssertionError(p.stderr.read())
    def swept(self, n=3):
        "A worker has looked for dead owners so often"
        for _ in range(n):
            self.t.dbs[0].q("insert into tenant_workers values('dead','2000-01-01T00:00:00.000000Z')")
            until(lambda: not self.t.dbs[0].q("select * from tenant_workers where id='dead'"), 30)
    def effects(self): return sorted(o['job'] for o in self.t.dbs[0].q('select job from effects'))

def frozen(folder, other=False, first_ends_last=True):
    """A process stands still with a job of each kind while the clock goes on by an hour, and another process looks on: on the same machine, or
    as if on another one. Raises `AssertionError`"""
    p = Place(folder)
    with p.worker() as a:
        me = p.up(a)
        ids = {k:p.m.submit(k, getattr(load, k))[0] for k in GATED}
        until(lambda: len(p.lines('start'))==len(ids), 30)
        stood = {a.pid, *(int(o[1]) for o in p.lines('start'))}
        for o in stood: os.kill(o, signal.SIGSTOP)
        if other: os.unlink(Path(folder)/f'.fh_saas/{me}.run')      # nothing tells whether it lives
        p.clock.put(3600)
        with p.worker() as b:
            p.up(b)
            p.swept()
            if other: _taken_over(p, ids, stood, first_ends_last)
            else:
                assert len(p.lines('start'))==len(ids), 'a process was robbed that stood still'
                for o in stood: os.kill(o, signal.SIGCONT)
                p.t.go('go1')
            until(lambda: all(p.m.get_job(o).status=='completed' for o in ids.values()), 30)
            if not other: until(lambda: len(p.lines('end'))==len(ids))
            for o in a,b: assert end(o, signal.SIGTERM, 30)==0
    rows = {k:p.m.get_job(o) for k,o in ids.items()}
    assert {k:(j.result, j.retry_count) for k,j in rows.items()}=={k:('2' if other else '1', int(other)) for k in ids}, rows
    assert p.effects()==[ids['gwrites']], 'a transaction took effect other than once'
    p.t.close()
    return len(ids)

def _taken_over(p, ids, stood, first_ends_last):
    until(lambda: len(p.lines('start'))==2*len(ids), 30)
    steps = [lambda: p.t.go('go2'), lambda: until(lambda: all(p.m.get_job(o).status=='completed' for o in ids.values()), 30)]
    late = [lambda: [os.kill(o, signal.SIGCONT) for o in stood], lambda: p.t.go('go1'), lambda: until(lambda: _heard(p, ids), 30)]
    for f in (steps+late if first_ends_last else late+steps): f()
    for k in 'gwrites','gsteps': assert not p.lines('end', ids[k], '1'), f'{k}: what came late was taken'

def _heard(p, ids):
    "Whether each of the late attempts has ended, or its process was ended"
    return all(p.lines('end', o, '1') or p.lines('refused', o, '1') or k=='gprocess' and not runs(int(p.lines('start', o)[0][1])) for k,o in ids.items())

def runs(pid):
    try: return psutil.Process(pid).status()!=psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False

def jumps(folder, seconds=4., seed=0):
    "The clock of all processes is stepped by an hour, forward and back, while two work. Each job is run once; the number of steps and of jobs"
    p,r,n = Place(folder),random.Random(seed),0
    with p.worker() as a, p.worker() as b:
        p.up(a); p.up(b)
        stop,ids = time.monotonic()+seconds,[]
        while time.monotonic()<stop:
            p.clock.put(r.choice([-3600, 0, 3600, -7200, 7200])+r.random()); n += 1
            for k in range(4): ids.append(p.m.submit('slow', load.slow, n=r.randrange(7))[0])
            ids += p.m.submit_many('quick', load.quick, [dict(n=i) for i in range(5)])
            ids.append(p.m.options(delay=1800).submit('later', load.quick, n=1)[0])
            time.sleep(r.uniform(.02, .2))
        for s in 0,20000:
            p.clock.put(s)
            until(lambda: not p.m.list_jobs(status='running', limit=1) and not (s and p.m.list_jobs(status='pending', limit=1)), 60)
        _each_slot_once(p)
        jobs = p.m.list_jobs(limit=10**6)
        assert {(j.status, j.retry_count, j.attempts) for j in jobs}=={('completed', 0, None)}, [j for j in jobs if j.retry_count][:3]
        for w in 'start','end': assert sorted(o[3] for o in p.lines(w))==sorted(ids), f'{w}: not each job once'
        for o in a,b: assert end(o, signal.SIGTERM, 30)==0
    p.t.close()
    return n,len(ids)

def _each_slot_once(p):
    got = [from_iso(json.loads(j.payload)['slot']) for j in p.m.list_jobs('every', limit=10**6)]
    a,b = min(got),max(got)
    assert sorted(got)==[a, *straight(Cron('*/10 * * * *', 'UTC'), a, b)] and b-a>2*3600, f'{len(got)} slots from {to_iso(a)} to {to_iso(b)}'

ZONES = 'UTC Europe/Berlin America/New_York Australia/Lord_Howe Africa/Casablanca Pacific/Chatham Asia/Kolkata'.split()
RULES = '*/7 * * * *','30 2 * * *','0 * * * *','5 1-3 * * *'

def dst(folder, seed=0, steps=40):
    """Schedules over changes to and from summer time, in a process that is started anew now and then, with a clock that is stepped an hour to and fro.
    In the end each slot has made one job, as if the clock had gone straight. The number of slots"""
    r,total = random.Random(seed),0
    for k,day in enumerate(['2026-03-28T22:00:00Z', '2026-10-24T22:00:00Z', '2026-04-04T12:00:00Z', '2026-03-08T05:00:00Z']):
        t,now = Tenant(Path(folder)/f'{k}'),[from_iso(day)]
        some = r.sample([*product(ZONES, RULES)], 10)
        m = scheduled(t, now, some)
        begin = most = now[0]
        for _ in range(steps):
            now[0] += r.choice([60, 300, 300, 3600, 3600, -3600, -300])
            most = max(most, now[0])
            if r.random()<.2: m.close(); m = scheduled(t, now, some)
            m.run_due()
        now[0] = most
        m.run_due()
        jobs = m.list_jobs(limit=10**6)
        got = sorted((j.job_type, json.loads(j.payload)['slot']) for j in jobs)
        want = sorted((f'{z} {e}', to_iso(o)) for z,e in some for o in straight(Cron(e, z), begin, most))
        assert got==want, f'not each slot once: {sorted(set(got)^set(want))[:4]} {[o for o in got if got.count(o)>1][:4]}'
        assert {(j.status, j.retry_count) for j in jobs}=={('completed', 0)}
        total += len(jobs)
        t.close()
    return total

def scheduled(t, now, some):
    m = t.mgr(worker=False, clock=lambda: now[0])
    for z,e in some: m.cron(e, load.slotted, tz=z, name=f'{z} {e}', catch_up='all')
    m.run_due()
    return m

def straight(cron, a, b):
    while (a := cron.next(a))<=b: yield a

def run(seconds, seed=None):
    "All of it, again and again with other seeds; what was tried"
    seed,n = random.randrange(2**32) if seed is None else seed,Counter()
    end = time.monotonic()+seconds
    while not n or time.monotonic()<end:
        with tempfile.TemporaryDirectory(prefix='times') as d:
            try:
                n['slots over a change of summer time'] += dst(Path(d)/'dst', seed)
                k,jobs = jumps(Path(d)/'jumps', min(10., seconds/4), seed)
                n['steps of the clock'] += k; n['jobs under them'] += jobs
                n['jobs of a process that stood still'] += frozen(Path(d)/'same')
                for last in True,False: n['jobs of one that stood still elsewhere'] += frozen(Path(d)/f'other{last}', True, last)
            except BaseException: print(f'times: replay with --only times --seed {seed}'); raise
            finally: stop_worker()
        seed += 1
    return n
