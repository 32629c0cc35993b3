"""Workers on several machines with PostgreSQL between them, while workers are killed, one is cut off from the network, and the server is
restarted: every job ends once, and its effect in the tenant's database is there once. A machine is a network namespace where those are
allowed (cut: the link goes down), else a process with a runtime folder of its own (cut: it is frozen).
python -m tests.chaos.machines [--jobs 50000] [--tenants 200] [--engine postgres|procrastinate]"""
import argparse, os, random, shutil, signal, subprocess, sys, tempfile, threading, time
from contextlib import suppress
from pathlib import Path

root = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(root), str(root/'tests'), str(root/'tests/apps')]
import psycopg
import pg, work_pg as work
from fh_saas.store.base import StoreError
from fh_saas.tenants import Tenants
from util import env, until

WORKER = '''
import logging, os, signal, sys, threading, time
logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
import work_pg as work
from fh_saas.tenants import Tenants
ts = Tenants(sys.argv[1], engine=sys.argv[2], tasks=[work.effect], handoff=0, threads=4)
print(ts._here.owner, flush=True)
ts.run()
'''

def ip(*a): subprocess.run(['ip', *a], check=True, capture_output=True)

def namespaces():
    "Whether network namespaces can be made here"
    try: ip('netns', 'add', 'fhtry'); ip('netns', 'del', 'fhtry'); return True
    except (OSError, subprocess.CalledProcessError): return False

class Machine:
    "A worker and the network between it and the server"
    def __init__(self, i, folder, server, db, engine, nets):
        self.i,self.dir,self.engine,self.ns,self.p,self.owner = i,folder/f'm{i}',engine,f'fh{os.getpid()}_{i}' if nets else None,None,None
        self.dir.mkdir()
        self.url,self.link = server.to(db),f'fh{os.getpid()%10000}h{i}'
        if not nets: return
        ip('netns', 'add', self.ns)
        ip('link', 'add', self.link, 'type', 'veth', 'peer', 'name', 'w', 'netns', self.ns)
        ip('addr', 'add', f'10.77.{i}.1/30', 'dev', self.link); ip('link', 'set', self.link, 'up')
        for a in (('addr', 'add', f'10.77.{i}.2/30', 'dev', 'w'), ('link', 'set', 'w', 'up'), ('link', 'set', 'lo', 'up')): ip('-n', self.ns, *a)
        self.url = self.url.replace('@127.0.0.1', f'@10.77.{i}.1')
    def start(self):
        cmd = [sys.executable, '-c', WORKER, self.url, self.engine]
        self.err = open(self.dir/'err.txt', 'a')
        self.p = subprocess.Popen((['ip', 'netns', 'exec', self.ns] if self.ns else [])+cmd, stdout=subprocess.PIPE, stderr=self.err, text=True, env=env(FH_SAAS_RUN_DIR=str(self.dir)))
        self.owner = self.p.stdout.readline().strip()
        assert self.owner, f'machine {self.i} did not start: '+self.log()[-2000:]
    def kill(self): self.p.kill(); self.p.wait()
    def cut(self): ip('link', 'set', self.link, 'down') if self.ns else self.p.send_signal(signal.SIGSTOP)
    def mend(self): ip('link', 'set', self.link, 'up') if self.ns else self.p.send_signal(signal.SIGCONT)
    def log(self): return (self.dir/'err.txt').read_text() if self.p else ''
    def remove(self):
        if self.p: self.p.kill(); self.p.wait(); self.err.close()
        if self.ns:
            for a in (('link', 'del', self.link), ('netns', 'del', self.ns)):
                with suppress(subprocess.CalledProcessError): ip(*a)

# The moment in which what a worker held is taken back, to the millisecond: to ask for it would take seconds while all processors are busy, and make them busier
GONE = """create table public.gone(owner text, tenant text, jobs int, lease timestamptz, at timestamptz);
create function public.gone() returns trigger language plpgsql as $$ declare n int; begin
    execute format('select count(*) from %I.tenant_jobs where status=''running'' and owner=$1', tg_table_schema) into n using old.id;
    if n>0 then insert into public.gone values(old.id, tg_table_schema, n, old.lease_until::timestamptz, clock_timestamp()); end if;
    return null; end $$"""

class Run:
    def __init__(self, tenants, jobs, machines, engine, seed):
        self.dir,self.rng,self.engine = Path(tempfile.mkdtemp(prefix='fh_saas_machines_')),random.Random(seed),engine
        nets = namespaces()
        self.server = pg.Server(allow=['10.77.0.0/16'], listen_addresses='*', max_connections=300, **({} if nets else {}))
        self.db,self.out,self.events,self.gone = self.server.create(),dict(machines=machines, apart='by network namespaces' if nets else 'by processes'),[],[]
        self.ts = Tenants(self.server.to(self.db), worker=False, handoff=0, engine=engine, tasks=[work.effect], busy_s=60.)
        self.names,self.jobs = [f't{i}' for i in range(tenants)],jobs
        self.ms = [Machine(i, self.dir, self.server, self.db, engine, nets) for i in range(machines)]
    def note(self, *a): self.events.append((round(time.monotonic()-self.t0, 1), *a)); print(*self.events[-1], flush=True)
    def make(self):
        t = time.monotonic()
        for o in self.names: self.ts.create(o)
        with self.server.connect(self.db) as c:
            c.execute(GONE)
            for o in self.names:
                c.execute(f'create table "t_{o}".effects(job text)')
                c.execute(f'create trigger gone after delete on "t_{o}".tenant_workers for each row execute function public.gone()')
        self.out['tenants made, per s'] = round(len(self.names)/(time.monotonic()-t))
    def opened(self, o):
        "A tenant's manager. A submit waits for a server that is away, opening a database does not: then nothing was submitted, and it is tried again"
        for _ in range(300):
            with suppress(StoreError): self.ts[o].jobs.list_jobs(limit=1); return self.ts[o].jobs
            self.note('tenant not opened, tried again', o)
            time.sleep(.2)
        raise StoreError(f'{o} could not be opened for a minute')
    def submit(self, waves=5, pause_s=3.):
        "The jobs of all tenants, in waves"
        per = self.jobs//len(self.names)//waves
        for w in range(waves):
            for o in self.names: self.opened(o).submit_many('effect', work.effect, [{}]*per, max_retries=20)
            self.note('submitted', (w+1)*per*len(self.names))
            time.sleep(pause_s)
        self.jobs = per*waves*len(self.names)
    def ask(self, each):
        "The sum of a number over all tenants"
        with self.server.connect(self.db) as c:
            return c.execute('select sum(n)::bigint from ('+' union all '.join(each.replace('@', f'"t_{o}".') for o in self.names)+') q(n)').fetchone()[0]
    def left(self): return self.ask("select count(*) from @tenant_jobs where status in ('pending','running')")
    def held(self, owner):
        "The tenants in which a worker holds jobs"
        with self.server.connect(self.db) as c:
            return [o for o, in c.execute(' union all '.join(f"""(select '{o}' where exists (select 1 from "t_{o}".tenant_jobs where status='running' and owner=%(owner)s))""" for o in self.names), dict(owner=owner))]
    def lost(self, what, m): self.gone.append([what, m.owner, time.time(), float('inf')])
    def kill(self):
        m = self.rng.choice(self.ms[1:])
        self.lost(f'kill {m.i}', m)
        m.kill(); self.note('killed', m.i)
        time.sleep(1); m.start()                           # the others have it alone for a while
    def cut(self, s):
        m,end = self.ms[0],time.monotonic()+s
        self.lost(f'cut {m.i}', m)
        m.cut(); self.note('cut off', m.i)
        had = self.held(m.owner) if m.ns else []
        time.sleep(max(0., end-time.monotonic()))          # the server's clock says when a lease is over, and nobody can put that forward
        with self.server.connect(self.db) as c:
            left = [o for o in had if c.execute(f"select 1 from \"t_{o}\".tenant_jobs where status='running' and owner=%s limit 1", (m.owner,)).fetchone()]
        self.gone[-1][3] = time.time()          # from here on it is one like the others
        m.mend(); self.note('joined again', m.i)
        assert not left, f'what the machine had in hand was not taken back while it was cut off: {left}'
    def recovered(self):
        "How long until nothing was in the hands of a worker that was gone: (what, jobs, seconds since then, seconds since the lease ran out)"
        with self.server.connect(self.db) as c:
            for what,owner,t,end in self.gone:
                n,s,late = c.execute('select coalesce(sum(jobs),0)::int,extract(epoch from max(at))::float8-%s,extract(epoch from max(at-lease))::float8 from gone where owner=%s and extract(epoch from at)<%s', (t, owner, end)).fetchone()
                yield (what, n, *(o if o is None else round(o, 1) for o in (s, late)))
    def restart(self, mode): self.server.restart(mode); self.note('server restarted', mode)
    def verify(self, s):
        try: until(lambda: not self.left(), s, .2)
        except AssertionError: raise AssertionError(f'{self.left()} jobs are not over; {self.dir}') from None
        self.note('all over')
        ask = lambda w: self.ask(f'select {w}')
        assert ask("count(*) from @tenant_jobs where status='completed'")==self.jobs
        assert ask('count(*) from @effects')==ask('count(distinct job) from @effects')==self.jobs
        assert ask('count(*) from @effects e where not exists (select 1 from @tenant_jobs j where j.id=e.job)')==0
    def close(self):
        for m in self.ms: m.remove()
        self.ts.close(); self.server.close()
        shutil.rmtree(self.dir, ignore_errors=True)

def run(tenants=200, jobs=50_000, machines=3, engine='postgres', kills=4, cut_s=20., restarts=2, seed=None, wait_s=900.):
    "All of it; figures by name"
    r = Run(tenants, jobs, machines, engine, seed)
    try:
        r.t0 = time.monotonic()
        r.make()
        for m in r.ms: m.start()
        t = threading.Thread(target=r.submit, daemon=True)
        t.start()
        until(lambda: r.ask('select count(*) from @effects'), 60, .1)
        for i in range(max(kills, restarts)):                     # what is between is part of the load: jobs run undisturbed for a while
            if i<kills: r.kill()
            if i==1 and cut_s: r.cut(cut_s)
            if i<restarts: time.sleep(2); r.restart(('immediate', 'fast')[i%2])
            time.sleep(2)
        t.join(); r.verify(wait_s)
        s = time.monotonic()-r.t0
        logs = ''.join(m.log() for m in r.ms)
        if 'an error of fh_saas itself' in logs: print(logs[-6000:])
        return r.out | {'taken back (jobs, s after, s after the lease)':list(r.recovered()), 'tenants':tenants, 'jobs':r.jobs, 'engine':engine, 'kills':kills, 'restarts':restarts, 'cut for s':cut_s, 'seconds':round(s, 1), 'jobs a second, all in':round(r.jobs/s),
                        'ends that came too late and were refused':logs.count('came too late and was refused'), 'internal errors':logs.count('an error of fh_saas itself')}
    except BaseException:
        for m in r.ms: print(f'--- machine {m.i}', m.log()[-3000:], sep='\n')
        raise
    finally: r.close()

if __name__=='__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    p = argparse.ArgumentParser()
    for k,v in dict(tenants=200, jobs=50_000, machines=3, kills=4, restarts=2).items(): p.add_argument(f'--{k}', type=int, default=v)
    p.add_argument('--engine', default='postgres'); p.add_argument('--cut_s', type=float, default=20.); p.add_argument('--seed', type=int, default=None)
    for k,v in run(**vars(p.parse_args())).items(): print(f'{k:45} {v}')
