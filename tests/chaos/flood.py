"""P1, P8, P10: much at once. Many threads of several processes write while somebody holds the lock for seconds; many big jobs; and so many jobs that what
grows with each would be seen: memory, threads, descriptors"""
import json, tempfile, time
from pathlib import Path
from statistics import linear_regression

from util import Tenant, said, start_py
from . import load

MiB = 2**20

# --- a lock that is held for seconds

WRITERS = '''
from collections import Counter
from fh_saas.utils_bgtsk import StoreBusy
def big(n, x): pass
m,kinds = mgr(tasks=dict(big=big), worker=False),Counter()
def go(k):
    n = 0
    while not (n and os.path.exists(folder+'/over')):
        n += 1
        try: id,_ = m.submit('w', big, n=n, x=k)
        except StoreBusy: kinds['busy'] += 1; continue
        os.write(fd, f'{id}\\n'.encode())
fd = os.open(folder+'/told', os.O_WRONLY|os.O_APPEND|os.O_CREAT)
out('up')
ts = [threading.Thread(target=go, args=(k,)) for k in range(16)]
for o in ts: o.start()
for o in ts: o.join()
out(json.dumps(kinds))'''
HOLDER = '''
c = opened(path, 60.).conn; c.set_busy_timeout(60000)         # fastlite's hook meets locks, and one that ended of that held up all others
for _ in range(int(sys.argv[3])):
    c.execute('begin immediate'); time.sleep(float(sys.argv[4])); c.execute('rollback')
    time.sleep(.3)
open(folder+'/over', 'w')'''

def writers(folder, locks=1, hold=5., processes=4):
    """16 threads in each of some processes submit while another process holds the write lock for some seconds, again and again: each submit that
    returned is there, each that raised is not, and all others come through. What was seen"""
    t = Tenant(folder)
    m = t.look(tasks=dict(big=load.nothing))
    ps = [start_py(t, WRITERS, pre=PRE) for _ in range(processes)]
    for o in ps: said(o, 'up', 60)
    ps.append(start_py(t, HOLDER, locks, hold, pre=PRE))
    try: outs = [o.communicate(timeout=locks*hold+90) for o in ps]
    finally:
        for o in ps: o.kill()
    assert not any(o.returncode for o in ps), outs
    kinds = [json.loads(o) for o,_ in outs[:-1]]
    told,there = Path(t.dir/'told').read_text().split(),{j.id for j in m.list_jobs(limit=10**7)}
    assert len(told)==len(set(told)) and set(told)==there, f'{len(set(told)-there)} of {len(told)} are lost, {len(there-set(told))} are there of which it was not said'
    t.close()
    return dict(threads=16*processes, locks=locks, held_s=hold, submitted=len(told), busy=sum(o.get('busy', 0) for o in kinds))

PRE = '''
import apsw, json, os, sys, threading, time
from util import opened
from fh_saas.utils_bgtsk import BackgroundTaskManager
path,folder = sys.argv[1:3]
def mgr(**kw): return BackgroundTaskManager(opened(path), **kw)
def out(*a): print(*a, flush=True)
'''

# --- big jobs, and very many

MANY = '''
import apsw, gc, logging, psutil
from fh_saas.running import worker as _w
logging.disable(logging.CRITICAL)
from chaos import load
n,size,step,kind = int(sys.argv[3]),int(sys.argv[4]),int(sys.argv[5]),sys.argv[6]
me = psutil.Process()
m = mgr(tasks=load.light, handoff=0)
m.task(load.step, name='step')
def look(): time.sleep(.01); gc.collect(); return sys.getallocatedblocks()
def see():
    "The rows have ended a moment before the worker lets go of them; what grows stays however often one looks"
    while m._lane.hand: time.sleep(.002)
    if done==step: _w._worker._sweep(True)         # what the clock brings for the first time comes now, not among the later looks of a busy machine
    out(json.dumps(dict(rss=me.memory_info().rss, blocks=min(look() for _ in range(5)), threads=me.num_threads(), fds=me.num_fds(), at=time.monotonic())))
def left(): return m._lane.store.read("select count(*) from tenant_jobs where status in ('pending','running')")[0][0]
def wait(k):
    while left()>k: time.sleep(.002)
x,done = 'x'*size,0
begin = time.monotonic()
while done<n:
    if kind=='alone':
        for i in range(step): m.submit('n', load.none, i=i, x=x)
    else:
        for a in range(0, step, 1000):
            m.options(max_retries=1).submit_many(kind, load.light[kind], [dict(i=i, x=x) for i in range(a, min(step, a+1000))]); wait(3000)
    wait(0)
    done += step
    see()
'''

def unstepped(ys):
    "The same numbers without what was added once: the largest of their steps is made as large as the others are on average, so that what grows all the time grows as before"
    steps = [b-a for a,b in zip(ys, ys[1:])]
    i = max(range(len(steps)), key=lambda k: steps[k])
    over = max(0, steps[i]-(sum(steps)-steps[i])/(len(steps)-1))
    return [y-over*(k>i) for k,y in enumerate(ys)]

def grown(folder, n, size=0, step=None, kind='none'):
    """So many jobs with a payload of so many bytes, all run in one process that is looked at again and again: how it was at the end, and what it has
    grown by after the first third, in MiB and in objects of Python for 100,000 jobs. SQLite fills its page caches in the first 200,000"""
    t = Tenant(folder)
    step = step or n//12
    p = start_py(t, MANY, n, size, step, kind, pre=PRE)
    o,e = p.communicate(timeout=3600)
    assert p.returncode==0, e[-2000:]
    seen = [json.loads(line) for line in o.splitlines()]
    m = t.look()
    assert m._lane.store.read("select count(*) from tenant_jobs where status in ('pending','running')")==[(0,)]
    late = [(k*step, s) for k,s in enumerate(seen, 1)][len(seen)//3:]
    slope = lambda f, g=list: linear_regression([k for k,_ in late], g([f(s) for _,s in late])).slope*1e5
    size = sum(o.stat().st_size for o in t.dir.glob('t.db*'))
    t.close()
    return dict(jobs=len(seen)*step, slope=round(slope(lambda s: s["rss"]/MiB), 2), objects=round(slope(lambda s: s["blocks"], unstepped)), rss=round(seen[-1]['rss']/MiB), threads=seen[-1]['threads']-seen[0]['threads'], fds=seen[-1]['fds']-seen[0]['fds'],
        file=round(size/MiB), rate=round((len(seen)-1)*step/(seen[-1]['at']-seen[0]['at'])))

def run(seconds):
    "Lines of what was seen. Raises `AssertionError`"
    with tempfile.TemporaryDirectory(prefix='flood', ignore_cleanup_errors=True) as d:
        o = writers(f'{d}/w', 8)
        yield '{threads} threads, {locks} locks of {held_s:g} s by another process: {submitted:,} submits returned and are there, {busy:,} raised StoreBusy and are not'.format(**o)
        for n,size,kind in [(100_000, 10_240, 'none'), (1_000_000 if seconds>=600 else 600_000, 0, 'none'), (300_000, 0, 'anone'), (60_000, 0, 'alone'), (100_000, 0, 'bad'), (100_000, 0, 'step')]:
            o = grown(f'{d}/{kind}{size}', n, size, kind=kind)
            yield ('{jobs:,} jobs ({0}, {1} B of payload): {rate:,}/s, {rss} MiB in the end, grows by {slope} MiB and {objects:,} objects with 100,000 jobs after the first third, '
                'threads {threads:+}, descriptors {fds:+}, file {file:,} MiB').format(kind, size, **o)
            assert o['threads']<=0 and o['fds']<=0, 'threads or descriptors grow'
            if o['jobs']>=600_000: assert o['slope']<1, 'memory grows'
