"""P1-P5: the process is killed before and after each SQL statement of everything that writes, and all that had been reported is there after a
restart, nothing is there by half, and every job ends. All points are tried, none is left to chance. Run it in a process that has opened nothing: it forks"""
import os, shutil, sys, tempfile, time, traceback
from pathlib import Path

import apsw
from fastlite import database
from fh_saas.running.context import JobContext
from fh_saas.running.maintenance import look_in
from fh_saas.store import sqlite_file
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager
from .machine import START

KILLED = 77
now = [START]
def clock(): return now[0]

# --- the knife

class Cut:
    "Counts the points of this process, and ends it at one of them"
    n,at,on = 0,None,False
    @classmethod
    def point(cls):
        if not cls.on: return
        cls.n += 1
        if cls.n==cls.at: os._exit(KILLED)

class Connection(apsw.Connection):
    def __init__(self, *args):
        super().__init__(*args)
        self.exec_trace = self._before
    def _before(self, cur, sql, args): Cut.point(); return True
    def execute(self, *args, **kw):
        c = super().execute(*args, **kw)
        Cut.point()
        return c
    def executemany(self, *args, **kw):
        c = super().executemany(*args, **kw)
        Cut.point()
        return c

def _cut_os(name):
    f = getattr(os, name)
    def cut(*args, **kw):
        Cut.point(); v = f(*args, **kw); Cut.point()
        return v
    setattr(os, name, cut)

class _Apsw:
    Connection = Connection
    def __getattr__(self, k): return getattr(apsw, k)

# --- what is done

folder = None
def say(*words):
    "What had been reported, or done, when the process was killed"
    fd = os.open(f'{folder}/said', os.O_WRONLY|os.O_APPEND|os.O_CREAT, 0o644)
    os.write(fd, (' '.join(map(str, words))+'\n').encode()); os.close(fd)
def said(word):
    p = Path(folder)/'said'
    return [o.split()[1:] for o in p.read_text().splitlines() if o.split()[0]==word] if p.exists() else []

def works(x): say('ran', x); return x
def fails(x): say('ran', x); raise ValueError('boom')
def one(x): say('ran', x)
def slot_job(slot): say('ran', slot)
def writes(x, job:JobContext):
    say('ran', x)
    with job.transaction() as db:
        db.q('insert into effects values(?) returning 1', (x,))
        job.submit('child', works, x=f'{x}-child')
        job.finish(x)
def steps(x, job:JobContext):
    def first(): say('step', x); job.submit('child', works, x=f'{x}-child'); return 5
    assert job.step('first', first)==5
    assert job.step('second', lambda: 6)==6
    return x

def mgr(**kw):
    m = BackgroundTaskManager(database(f'{folder}/t.db'), tasks=[works, fails, slot_job, writes, steps], worker=False, clock=clock, **kw)
    m.task(one, limit=1)
    m.db.q('create table if not exists effects(x)')
    return m
def rows(m): return m.list_jobs(limit=10**6)
def names(m, **kw): return sorted(o.job_type for o in m.list_jobs(limit=10**6, **kw))
def drain(m, n=40):
    for _ in range(n):
        if not [o for o in rows(m) if o.status in ('pending', 'running')]: return
        now[0] += 4000
        m.run_due()
    assert False, f'never ended: {[(o.job_type, o.status, o.ready, o.held) for o in rows(m) if o.status in ("pending", "running")]}'

class Case:
    "What is there before, what is killed, what must hold after a restart and when all has run"
    fresh = False        # whether the files cannot be copied, and so are made anew for each point
    def open(self): return mgr()
    def before(self, m): pass
    def act(self, m): pass
    def after(self, m): pass
    def ended(self, m): pass

class Submit(Case):
    def act(self, m): say('id', m.submit('a', works, x=1)[0])
    def after(self, m): assert len(rows(m))<=1 and [o for o, in said('id')]==[o.id for o in rows(m)][:len(said('id'))]
    def ended(self, m): assert len(said('ran'))==len(rows(m))

class SubmitMany(Case):
    def act(self, m): say('ok', m.submit_many('a', works, [dict(x=i) for i in range(20)]))
    def after(self, m): assert len(rows(m)) in ((20,) if said('ok') else (0, 20))

class Unique(Case):
    def act(self, m):
        for _ in range(2): say('id', m.options(unique='u').submit('a', works, x=1)[0])
        say('id', m.options(unique='u').submit_many('a', works, [dict(x=1)]*2)[0])
    def after(self, m): assert len(rows(m))<=1 and len({tuple(o) for o in said('id')})<=1

class Run(Case):
    "claim, run, ack"
    def before(self, m): m.submit_many('a', works, [dict(x=i) for i in range(3)])
    def act(self, m): m.run_due()
    def ended(self, m):
        assert names(m, status='completed')==['a']*3
        assert {o for o, in said('ran')}==set('012') and len(said('ran'))<=4

class Retry(Case):
    def before(self, m): m.submit('a', fails, 2, x=1)
    def act(self, m): m.run_due(); now[0] += 100; m.run_due()
    def ended(self, m):
        o, = rows(m)
        assert (o.status, o.retry_count)==('failed', 2) and 2<=len(said('ran'))<=3

class Rescue(Case):
    "of jobs that a killed process had claimed, one of them begun"
    def before(self, m):
        m.submit_many('a', works, [dict(x=i) for i in range(3)]); m.submit('last', works, 1, x='last')
        got = m._lane.turn(9)
        for a in got:
            if a.claim.payload in ('{"x":0}', '{"x":"last"}'): m._lane.start(a)
        os._exit(0)
    def act(self, m): look_in(m._lane)
    def ended(self, m):
        assert names(m, status='failed')==['last'] and names(m, status='completed')==['a']*3
        assert sorted(o.retry_count for o in rows(m))==[0, 0, 1, 1]

class Slots(Case):
    def cron(self, m): m.cron('*/10 * * * *', slot_job, name='s', catch_up='all')
    def before(self, m): self.cron(m); m.run_due()
    def act(self, m): self.cron(m); now[0] += 1800; m.run_due()
    def after(self, m): self.cron(m); now[0] = START+1800; m.run_due()
    def ended(self, m):
        slots = [o.payload for o in rows(m) if o.created_at]
        assert len(set(slots))==len(slots)>=3 and names(m, status='completed')==['s']*len(slots), slots

class Transaction(Case):
    def act(self, m):
        with m.transaction() as db:
            db.q('insert into effects values(1) returning 1')
            for i in range(2): m.submit('a', works, x=i)
        say('ok')
    def after(self, m):
        n = len(m.db.q('select * from effects'))
        assert len(rows(m))==2*n and n>=len(said('ok'))

class JobTransaction(Case):
    "P4: effects exactly once"
    def before(self, m): m.submit('a', writes, x='w')
    def act(self, m): m.run_due()
    def after(self, m):
        done = bool(m.list_jobs('a', 'completed'))
        assert len(m.db.q('select * from effects'))==done==len(m.list_jobs('child')), 'the effect, the child and the completion are one commit'
    def ended(self, m): assert len(m.db.q('select * from effects'))==1 and names(m, status='completed')==['a', 'child']

class Steps(Case):
    def before(self, m): m.submit('a', steps, x='s')
    def act(self, m): m.run_due()
    def ended(self, m):
        assert names(m, status='completed')==['a', 'child'] and 1<=len(said('step'))<=2
        assert not m._lane.store.read('select * from tenant_job_steps')

class Cancel(Case):
    def before(self, m):
        id,_ = m.submit('a', works, x=1)
        m.options(after=[id]).submit('b', works, x=2); m.options(after=[id], on_failed='run').submit('c', works, x=3)
    def act(self, m): m.cancel(m.list_jobs('a')[0].id); say('ok')
    def after(self, m):
        got = [m.list_jobs(o)[0].status for o in 'ab']
        assert got in (['cancelled', 'failed'],) or got==['pending', 'pending'] and not said('ok')
    def ended(self, m): assert m.list_jobs('c')[0].status=='completed'

class Limit(Case):
    "hold, let go"
    def before(self, m): m.submit_many('a', one, [dict(x=i) for i in range(4)])
    def act(self, m):
        lane = m._lane
        for _ in range(2):
            for a in lane.turn(4):
                lane.start(a)
                from fh_saas.running.executor import call
                lane.end(a, call(a.task, a.claim, a), .1)
            lane.turn(0)
    def after(self, m): assert len(m.list_jobs(status='running'))<=1
    def ended(self, m): assert names(m, status='completed')==['a']*4

class Controls(Case):
    def before(self, m): m.submit_many('a', works, [dict(x=i) for i in range(3)])
    def act(self, m): m.pause(job_type='a'); m.run_due(); m.limit('a', 1); m.resume(job_type='a'); m.run_due(); m.limit('a', None)
    def after(self, m): m.resume(job_type='a'); m.limit('a', None)
    def ended(self, m): assert names(m, status='completed')==['a']*3

class Children(Case):
    def __init__(self, ok): self.ok = ok
    def before(self, m):
        id,_ = m.submit('p', works if self.ok else fails, 1, x=1)
        for o in 'fail','cancel','run': m.options(after=[id], on_failed=o).submit(o, works, x=o)
    def act(self, m): m.run_due()
    def after(self, m):
        p = m.list_jobs('p')[0].status
        waits = [o.job_type for o in rows(m) if o.ready==4]
        assert (waits==[]) if p in ('completed', 'failed') else len(waits)==3, (p, waits)
    def ended(self, m):
        if self.ok: assert {o.status for o in rows(m)}=={'completed'}
        elif 'died' not in (m.list_jobs('p')[0].error_log or ''): assert {o.job_type:o.status for o in rows(m)}==dict(p='failed', fail='failed', cancel='cancelled', run='completed')

class RetryByHand(Case):
    def before(self, m):
        id,_ = m.submit('p', fails, 1, x=1)
        m.options(after=[id]).submit('k', works, x=2)
        m.run_due()
    def act(self, m): say('n', m.retry_failed())
    def after(self, m):
        got = {o.status for o in rows(m)}
        assert got==({'pending'} if said('n') else got) and len(got)==1, got

class Prune(Case):
    def before(self, m):
        m.submit_many('a', works, [dict(x=i) for i in range(5)]); m.submit('b', fails, 1, x=9)
        m.run_due()
        with m._lane.store.writing() as c: c.execute("insert into tenant_job_steps select id,'s','1','' from tenant_jobs")
        now[0] += 1e6
    def act(self, m): now[0] = START+1e6; m.keep(completed=1); say('n', m.prune())
    def after(self, m):
        assert names(m, job_type='b')==['b'] and (not said('n') or not m.list_jobs('a'))
        assert not m._lane.store.read('select job from tenant_job_steps where job not in (select id from tenant_jobs)'), 'steps of jobs that are gone'

class Move(Case):
    "of a tenant, with a job that does not end in time"
    fresh = True
    def open(self):
        self.ts = ts = Tenants(folder, worker=False, tasks=[works], clock=clock)
        return (ts['a'] if 'a' in ts else ts.create('a')).jobs
    def before(self, m):
        m.submit_many('a', works, [dict(x=i) for i in range(3)])
        m.options(unique='u', unique_for='pending').submit('u', works, x=7)
        for a in m._lane.turn(9): m._lane.start(a)
        m.options(unique='u', unique_for='pending').submit('u', works, x=8)
        os._exit(0)
    def act(self, m): self.ts['a'].move(f'{folder}/there', drain_s=0); say('ok')
    def after(self, m):
        assert names(m)==['a']*3+['u']*2 and self.ts['a'].status=='active'
        left = [o for o in Path(folder).rglob('*') if o.suffix in ('.db', '.moving') and o.name!='host.db']
        assert len(left)==1 and left[0]==Path(self.ts['a'].path), left
        if said('ok'): assert 'there' in self.ts['a'].path
    def ended(self, m): assert names(m, status='completed')==['a']*3+['u']*2

class Upgrade(Case):
    "of a file that the older package made"
    def before(self, m):
        for o in m.db.q("select name from sqlite_schema where name like 'tenant%' and type='table'"): m.db.q(f'drop table {o["name"]}')
        m.db.q("create table tenant_jobs(id text primary key, job_type text, status text, payload text, result text, error_log text, retry_count int, max_retries int, created_at text, started_at text, completed_at text)")
        m.db.q("insert into tenant_jobs values('old','a','completed','{}',null,null,0,3,'2026','2026','2026')")
    opens = True
    def act(self, m): say('id', mgr().submit('b', works, x=1)[0])
    def after(self, m): assert names(m, job_type='a')==['a'] and len(m.list_jobs('b'))>=len(said('id'))

CASES = dict(submit=Submit(), submit_many=SubmitMany(), unique=Unique(), run=Run(), retry=Retry(), rescue=Rescue(), schedule=Slots(), transaction=Transaction(),
    job_transaction=JobTransaction(), step=Steps(), cancel=Cancel(), limit=Limit(), controls=Controls(), children=Children(True), children_failed=Children(False),
    retry_by_hand=RetryByHand(), prune=Prune(), move=Move(), upgrade=Upgrade())

# --- trying them

def forked(f):
    "Call it in a child; its exit code"
    sys.stdout.flush(); sys.stderr.flush()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try: f()
    except BaseException: traceback.print_exc(); sys.stderr.flush(); os._exit(1)
    os._exit(0)

def kill_at(case, at, where, template):
    "One point: the number of points that there are if it was not reached, else None. Raises `AssertionError`"
    global folder
    folder = str(where)
    if case.fresh:
        os.mkdir(folder)
        assert forked(lambda: case.before(case.open()))==0
    else: shutil.copytree(template, where, ignore=shutil.ignore_patterns('bells'))
    def act():
        Cut.at = at
        m = None if getattr(case, 'opens', False) else case.open()
        for o in 'link', 'unlink', 'rename': _cut_os(o)
        Cut.on = True
        case.act(m)
        Cut.on = False
        Path(folder, 'points').write_text(str(Cut.n))
        os._exit(0)
    def check():
        m = case.open()
        assert m._lane.store.read('pragma integrity_check')==[('ok',)]
        case.after(m)
        drain(m)
        case.ended(m)
        os._exit(0)
    rc = forked(act)
    assert rc in (0, KILLED), f'point {at}: ended with {rc}'
    if forked(check): raise AssertionError(f'point {at}: does not hold after a restart; {sorted(map(str, said("id")))}')
    return int(Path(folder, 'points').read_text()) if rc==0 else None

def run(only=None, first=None):
    "All points of all cases; how many there were, by case. Raises `AssertionError` naming the case and the point"
    global folder
    sqlite_file.apsw = _Apsw()
    base,counts = Path(tempfile.mkdtemp(prefix='points', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)),{}
    try:
        for name,case in CASES.items():
            if only and name not in only: continue
            folder = str(base/name); os.mkdir(folder)
            rc = forked(lambda: case.before(case.open()))
            assert rc==0, f'{name}: could not be prepared'
            n = 0
            while True:
                at = n+1
                try: end = kill_at(case, at, base/f'{name}-{at}', base/name)
                except AssertionError as e: raise AssertionError(f'{name}, {e}; replay: python -m tests.chaos --only points --case {name}') from e
                shutil.rmtree(base/f'{name}-{at}')
                if end is not None: break
                n = at
            counts[name] = n
    finally: shutil.rmtree(base, ignore_errors=True)
    return counts
