"`python -m bench tenants`: many databases and one pool. Every ratio is taken against something measured in the same run"
import argparse, os, shutil, signal, statistics as st, subprocess, sys, threading, time
os.environ['FH_SAAS_WORKER'] = '0'                     # the workers are processes of their own
import apsw, psutil
from importlib import import_module
from bench import limits
from bench.measures import pct, until
from bench.task import clear, home, started
from fh_saas.ids import to_iso

def fresh(n, where=home/'tenants'):
    "`n` tenants in an empty folder"
    shutil.rmtree(where, ignore_errors=True)
    os.environ['BENCH_TENANTS'] = str(where)
    sys.modules.pop('bench.tenants_app', None)            # it opens them when it is imported
    app = import_module('bench.tenants_app')
    for i in range(n): app.tenants.create(f't{i}')
    return app.tenants,app

def paths(ts): return [ts.registry.full(r.path) for r in ts.registry.rows()]

def put_job(path, i):
    "One due job, written without waiting for the disk"
    c,t = apsw.Connection(path),time.time()
    c.execute('pragma synchronous=off')
    c.execute("insert into tenant_jobs(id,job_type,status,payload,max_retries,created_at,task,run_at,ready) values(?,'noop','pending',?,3,?,'bench.task:noop',?,1)",
              (limits.ids(t), '{"arg":{"i":%d}}'%i, to_iso(t), to_iso(t)))
    c.close()

def raw(ps):
    "One thread: open, claim, run, end, close. Tenants a second"
    t = time.perf_counter()
    for p in ps:
        c = apsw.Connection(p)
        for o in ('journal_mode=wal', 'synchronous=full', 'temp_store=memory'): c.execute('pragma '+o).fetchall()
        rows = limits.claim(c, 1)
        limits.finish(c, [(limits.run(pl), i) for i,pl in rows])
        c.close()
    return len(ps)/(time.perf_counter()-t)

class Worker:
    "`fh_saas worker` for the time of a block, and the most it used"
    def __init__(self, threads=4): self.threads = threads
    def __enter__(self):
        env = {k:v for k,v in os.environ.items() if k!='FH_SAAS_WORKER'} | dict(PYTHONPATH=os.getcwd(), BENCH_DIR=str(home))
        self.p = subprocess.Popen([sys.executable, '-c', 'from fh_saas.cli import main; main()', 'worker', 'bench.tenants_app:tenants', '--threads', str(self.threads)],
                                  env=env, stdout=open(home/'tenants.log', 'ab'), stderr=subprocess.STDOUT)
        self.ps,self.fds,self.rss = psutil.Process(self.p.pid),0,0
        return self
    def look(self): self.fds,self.rss = max(self.fds, self.ps.num_fds()),max(self.rss, self.ps.memory_info().rss/2**20)
    def cpu(self): return sum(self.ps.cpu_times()[:2])
    def __exit__(self, *_): self.p.send_signal(signal.SIGTERM); self.p.wait(30)

def all_closed(n, nraw=1000):
    "Every tenant has one job and none is open: rate, what it took, and the cost of being idle afterwards"
    ts,_ = fresh(n); ps = paths(ts); ts.close()
    out = {}
    rates = []
    for part in (0, 1):                                  # the raw driver before and after, on files of the same kind
        for i,p in enumerate(ps[:nraw]): put_job(p, i)
        if part==0: out['raw'] = raw(ps[:nraw]); [put_job(p, i) for i,p in enumerate(ps)]; out |= _drained(n)
        else: rates = [out['raw'], raw(ps[:nraw])]
    return out | dict(raw=st.mean(rates), ratio=out['tenants']/st.mean(rates))

def _drained(n):
    clear()
    with Worker() as w:
        until(lambda: w.look() or all(started(n)[n-1:]) and all(started(n)), 300, .05)
        s = [o for o in started(n)]
        time.sleep(30)                                    # lanes close after 10 s; each file is then asked once, and seen to lie in a folder that stays as it is
        c = w.cpu(); time.sleep(25); idle = (w.cpu()-c)*4         # the clock counts hundredths of a second
        return dict(tenants=n/(max(s)-min(s)), fds=w.fds, rss=w.rss, idle=idle, idle_fds=w.ps.num_fds())

def closed_latency(n=300, k=150):
    "From commit to start, where the tenant's database is open in no process"
    ts,app = fresh(n); clear()
    with Worker() as w:
        until(lambda: not time.sleep(2)); sent = []
        for i in range(k):
            ts[f't{i}'].jobs.submit('noop', app.noop, arg={'i':i}); sent.append(time.monotonic()); time.sleep(.03)
        until(lambda: all(started(k)), 20)
        lat = [(b-a)*1e3 for a,b in zip(sent, started(k))]
    ts.close()
    return dict(closed_p50=pct(lat, .5), closed_p95=pct(lat, .95))

def waits(ts, task, at, k=100):
    "How long tenant t1's jobs wait, one every 20 ms"
    sent = []
    for i in range(k): ts['t1'].jobs.submit('noop', task, arg={'i':at+i}); sent.append(time.monotonic()); time.sleep(.02)
    until(lambda: all(started(at+k)[at:]), 60)
    return pct([(b-a)*1e3 for a,b in zip(sent, started(at+k)[at:])], .95)

def fair(flood=100_000):
    "Tenant t1's p95 wait beside a tenant with 100,000 due jobs, of its wait alone"
    out = {}
    for name in ('noop', 'pause'):
        ts,app = fresh(2); clear(); task = getattr(app, name)
        with Worker() as w:
            waits(ts, task, 130_000, 20)
            alone = waits(ts, task, 130_100)
            for i in range(0, flood, 10_000): ts['t0'].jobs.submit_many('noop', task, [{'arg':{'i':129_999}}]*10_000)
            time.sleep(.1)
            beside = waits(ts, task, 130_300, 50 if name=='noop' else 100)
            left = bool(ts['t0'].jobs.list_jobs(status='pending', limit=1))
        out |= {f'alone_{name}':alone, f'beside_{name}':beside, f'fair_{name}':beside/alone, f'backlog_left_{name}':left}
        ts.close()
    return out

def weights(n=24000):
    "Two tenants with a backlog of 1 ms tasks and weights 1 and 3: starts of the second for each of the first, from 10 % to 50 % of all"
    ts,app = fresh(2); clear()
    ts['t0'].set(weight=1); ts['t1'].set(weight=3)
    for k in (0, 1): ts[f't{k}'].jobs.submit_many('pause', app.pause, [{'arg':{'i':k*n+i}} for i in range(n)])
    with Worker() as w:
        until(lambda: sum(map(bool, started(2*n)))>.6*2*n, 60, .02)
        s = started(2*n)
    order = sorted((at, i//n) for i,at in enumerate(s) if at)[2*n//10:2*n//2]
    ts.close()
    return dict(weights=sum(k for _,k in order)/sum(1-k for _,k in order))

def breaker(n=100, k=60):
    "100 tenants with 60 jobs of 1 ms each: rate of the healthy with a corrupt and a locked file among them, of the rate without"
    rates = []
    for sick in (False, True, False, True):
        ts,app = fresh(n); clear()
        for t in range(n): ts[f't{t}'].jobs.submit_many('pause', app.pause, [{'arg':{'i':t*k+i}} for i in range(k)])
        ps = paths(ts); where = [ts[f't{t}'].path for t in (n-2, n-1)]; ts.close(); lock = None
        if sick:
            with open(where[0], 'r+b') as f: f.write(b'this is not a database, whatever it was before'*9)
            lock = apsw.Connection(where[1]); lock.execute('pragma locking_mode=exclusive').fetchall(); lock.execute('begin exclusive')
        with Worker() as w:
            m = (n-2)*k
            until(lambda: all(started(m)), 120, .01)
            s = started(m)
        rates.append(m/(max(s)-min(s)))
        if lock: lock.execute('rollback'); lock.close()
    return dict(breaker=(rates[1]+rates[3])/(rates[0]+rates[2]))

def main(argv):
    p = argparse.ArgumentParser(prog='python -m bench tenants', description=__doc__)
    p.add_argument('--tenants', type=int, default=10_000)
    p.add_argument('--only', nargs='*', metavar='MEASURE')
    p.add_argument('--check', action='store_true', help='exit status 1 if a budget is short')
    a = p.parse_args(argv)
    fs = dict(all_closed=lambda: all_closed(a.tenants), closed_latency=closed_latency, fair=fair, weights=weights, breaker=breaker)
    figs = {}
    for k,f in fs.items():
        if a.only is None or k in a.only: figs |= f(); print(k, {k:round(v, 3) if isinstance(v, float) else v for k,v in figs.items()}, file=sys.stderr, flush=True)
    short = 0
    for k,bound,way,what in (('ratio', 1, 'min', f'{a.tenants:,} closed tenants with a job each, tenants/s of raw open, claim, end, close'),
            ('idle', a.tenants/5000, 'max', f'{a.tenants:,} idle tenants, % of a core: 1 % for each 5,000'), ('fds', 256*6+50, 'max', 'descriptors while that ran'),
            ('closed_p95', 8, 'max', 'first job of a closed tenant, commit → start p95, ms'),
            ('fair_noop', 2, 'max', 'p95 wait beside 100,000 no-op jobs of another tenant, of the wait alone'),
            ('fair_pause', 2, 'max', 'the same beside jobs of 1 ms'), ('weights', 2.7, 'min', 'weights 1:3, second of first'),
            ('weights', 3.3, 'max', 'weights 1:3, second of first'), ('breaker', .9, 'min', 'rate beside a corrupt and a locked file, of the rate without')):
        v = figs.get(k)
        ok = v is not None and (v>=bound if way=='min' else v<=bound)
        short += v is not None and not ok
        print(f'{"not measured" if v is None else "ok" if ok else "SHORT":<13} {"" if v is None else f"{v:.3g}":>8}  {"≥" if way=="min" else "≤"} {bound:<6g}  {what}')
    for k in ('tenants', 'raw', 'rss', 'closed_p50', 'alone_noop', 'beside_noop', 'alone_pause', 'beside_pause', 'backlog_left_noop', 'backlog_left_pause'):
        if k in figs: print(f'{k}: {figs[k]:,.3g}')
    if a.check: sys.exit(int(short>0))
