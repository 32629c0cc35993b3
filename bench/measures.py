"The measures: each runs one system once and returns figures by name"
import os, statistics as st, subprocess, threading, time
from bench import limits
from bench.task import anoop, began, clear, home, started

def pct(xs, q): xs = sorted(xs); return xs[min(len(xs)-1, int(len(xs)*q))]

class Workers:
    "Worker processes for the time of a block"
    def __init__(self, s, n=None): self.s,self.n,self.ps = s,n or s.nworkers,[]
    def __enter__(self):
        log = open(home/f'{self.s.name}.log', 'ab')
        env = {**os.environ, 'PYTHONPATH':os.getcwd(), 'BENCH_DIR':str(home)}
        self.ps = [subprocess.Popen(self.s.argv(), stdout=log, stderr=log, env=env, start_new_session=True) for _ in range(self.n)]
        self.end = subprocess.Popen(['sh', '-c', END, 'end', *(str(p.pid) for p in self.ps)], stdin=subprocess.PIPE, start_new_session=True)
        return self
    def __exit__(self, *_):
        self.end.communicate()
        for p in self.ps: p.wait()

END = 'cat >/dev/null; for p; do kill -9 "-$p"; done 2>/dev/null'      # also when this process is killed: workers that were left would work for the next measure

def until(f, limit_s=150, every_s=.005, ps=()):
    end = time.monotonic()+limit_s
    while not f():
        if any(p.poll() is not None for p in ps): raise RuntimeError('a worker ended; see its log')
        if time.monotonic()>end: raise TimeoutError(f'not done within {limit_s} s')
        time.sleep(every_s)

def submit(s, n=3000):
    s.reset(); s.open(); lat = []
    for i in range(int(n*s.pace)):
        t = time.perf_counter(); s.submit(i); lat.append(time.perf_counter()-t)
    s.close()
    return dict(submit_p50=pct(lat, .5)*1e6, submit_p99=pct(lat, .99)*1e6)

def submit16(s, n=16000):
    s.reset(); s.open(); n = int(n*s.pace)
    ts = [threading.Thread(target=lambda: [s.submit(i) for i in range(n//16)]) for _ in range(16)]
    t = time.perf_counter()
    for o in ts: o.start()
    for o in ts: o.join()
    took = time.perf_counter()-t
    s.close()
    return dict(submit16=n/took)

def drain(s, n=40000, workers=None, key='drain'):
    "Jobs each second from the first start until all are finished in the store"
    s.reset(); s.open(); clear(); n = int(n*s.pace); s.n = n
    size = s.size()
    s.submit_many(n)
    with Workers(s, workers) as w:
        until(lambda: began(n-1) and not s.busy(), ps=w.ps)
        end = time.monotonic()
    s.check(n)
    out = {key:n/(end-min(started(n)))}
    if size is not None and key=='drain': out['bytes'] = (s.size()-size)/n
    s.close()
    return out

def drain_async(s):
    s.task = anoop
    return drain(s, key='drain_async')
def drain_two(s): return drain(s, workers=2, key='drain_two')

def latency(s, n=200):
    "From before the call of submit, and from its return, to the start in another process; 10 ms apart; and the idle worker's cost"
    import psutil
    s.reset(); s.open(); clear()
    with Workers(s) as w:
        s.submit(n); until(lambda: began(n), ps=w.ps)
        time.sleep(2)                                   # all workers have started, and what they started has ended
        ps = [psutil.Process(p.pid) for p in w.ps]; ps += [c for p in ps for c in p.children(recursive=True)]
        cpu = lambda: sum(sum(p.cpu_times()[:2]) for p in ps)
        c0 = cpu(); time.sleep(3); idle = (cpu()-c0)/3*100
        rss = sum(p.memory_info().rss for p in ps)/2**20
        sent = []
        for i in range(n):
            t = time.monotonic(); s.submit(i); sent.append((t, time.monotonic())); time.sleep(.01)
        until(lambda: all(started(n)), 30, ps=w.ps)
        lat = [(b-t, b-t1) for (t,t1),b in zip(sent, started(n))]
    s.close()
    return dict(start_p50=pct([a for a,_ in lat], .5)*1e3, start_p99=pct([a for a,_ in lat], .99)*1e3,
                wake_p50=pct([b for _,b in lat], .5)*1e3, wake_p99=pct([b for _,b in lat], .99)*1e3, rss=rss, idle=idle)

def raw(n=40000):
    "All limits of the machine"
    lat,ch = limits.submit(),limits.chain()
    return dict(submit_p50=pct(lat, .5)*1e6, submit_p99=pct(lat, .99)*1e6, submit16=limits.submit16(), drain1=limits.drain1(n), drain=limits.drain_pool(n),
                start_p50=pct([a for a,_ in ch], .5)*1e3, start_p99=pct([a for a,_ in ch], .99)*1e3,
                wake_p50=pct([b for _,b in ch], .5)*1e3, wake_p99=pct([b for _,b in ch], .99)*1e3)
