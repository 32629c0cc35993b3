"""What people at their browsers cost, and what they learn.

    python -m bench.people viewers [--viewers 1000] [--jobs 10000] [--ms 2] [--rounds 3]    the drain beside viewers, and what is left of them
    python -m bench.people strangers [--asks 2000]                                          the time of answers to foreign and unknown ids
    python -m bench.people lists [--rows 1000000]                                           the dashboard's list by every filter"""
import argparse, asyncio, re, statistics, sys, tempfile, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tests'))

# --- viewers: half of them listen, half of them ask

async def _get(port, path, reader=None, writer=None):
    if writer is None: reader,writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(f'GET {path} HTTP/1.1\r\nHost: x\r\n\r\n'.encode())
    return reader,writer

async def _listen(port, id, seen):
    r,w = await _get(port, f'/_jobs/{id}/events')
    try:
        async for line in r: seen['events'] += line.startswith(b'event: job')
    finally: w.close()

async def _ask(port, id, seen):
    r,w = await _get(port, f'/_jobs/{id}/progress')
    try:
        while True:
            head = await r.readuntil(b'\r\n\r\n')
            body = await r.readexactly(int(re.search(rb'content-length: (\d+)', head)[1]))
            seen['answers'] += 1
            if not head.startswith(b'HTTP/1.1 200'): return
            await asyncio.sleep(int(re.search(rb'every (\d+)ms', body)[1])/1000)
            await _get(port, f'/_jobs/{id}/progress', r, w)
    finally: w.close()

async def _watched(port, ids, viewers, work):
    "What `work()` gave, done while so many look on; what they saw each second"
    seen = dict(events=0, answers=0)
    tasks = [asyncio.create_task((_listen, _ask)[i%2](port, ids[i%len(ids)], seen)) for i in range(viewers)]
    while seen['events']+seen['answers']<viewers and not any(t.done() for t in tasks): await asyncio.sleep(.05)
    if bad := [t for t in tasks if t.done()]: raise RuntimeError(f'{len(bad)} viewers were sent away: {bad[0].exception()!r}')
    at,was = time.perf_counter(),dict(seen)
    out = await asyncio.to_thread(work)
    s = time.perf_counter()-at
    for t in tasks: t.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return out,{k:(v-was[k])/s for k,v in seen.items()}

def viewers(
    viewers=1000, # People who watch
    jobs=10_000, # Jobs that run meanwhile
    ms=2., # Milliseconds that each sleeps
    rounds=3, # Of a drain alone and one that is watched
    say=print, # Told what was measured
)->dict: # Jobs a second alone and watched, their ratio, what viewers got each second, growth of memory, descriptors and threads
    "Drain jobs alone and beside viewers, in turn"
    from util import Server, Tenant, until
    t = Tenant(tempfile.mkdtemp())
    with Server(t, 'watched:app') as s:
        s.c.timeout = 600
        get = lambda path: s.get(path).json()
        ids = get('/begin?n=10')['ids']
        drain = lambda: jobs/get(f'/drain?n={jobs}&ms={ms}')['s']
        def gone(): return until(lambda: (o := get('/state'))['open']==0 and o, 60)
        watch = lambda: asyncio.run(_watched(s.port, ids, viewers, drain))
        drain(); watch()                        # the first time fills pools, caches and the allocator
        before,alone,watched,saw = gone(),[],[],[]
        for i in range(rounds):
            alone.append(drain())
            r,o = watch()
            watched.append(r); saw.append(o)
            gone()
            say(f'round {i+1}: {alone[-1]:,.0f} jobs/s alone, {r:,.0f} with {viewers:,} viewers, who got {o["events"]:,.0f} events and {o["answers"]:,.0f} answers a second')
        after = gone()
        (t.dir/'over').touch()
    med = statistics.median
    return dict(alone=med(alone), watched=med(watched), ratio=med(watched)/med(alone), saw=saw[-1], before=before, after=after)

# --- strangers

def strangers(
    asks=2000, # Of each kind
    say=print, # Told what was measured
)->dict: # Median seconds by kind
    "How long an answer takes to: an unknown id, a second unknown one, another tenant's id, one that is no id; asked in turn"
    from util import Server, Tenant
    t = Tenant(tempfile.mkdtemp())
    with Server(t, 'watched:app') as s:
        other = s.get('/other').json()['id']
        kinds = {'unknown':'01935f3e-7a1b-7000-8000-00000000dead', 'unknown too':'01935f3e-7a1b-7000-8000-00000000beef', 'foreign':other}
        took,bodies = {k:[] for k in kinds},set()
        for i in range(asks):
            for k in list(kinds)[i%3:]+list(kinds)[:i%3]:
                at = time.perf_counter()
                r = s.get(f'/_jobs/{kinds[k]}/progress')
                took[k].append(time.perf_counter()-at)
                bodies.add((r.status_code, r.text))
    assert bodies=={(404, 'Not found')}, bodies
    out = {k:statistics.median(v) for k,v in took.items()}
    q = {k:statistics.quantiles(v, n=20) for k,v in took.items()}
    for k,v in out.items(): say(f'{k:12} p50 {1e6*v:,.0f} µs, p5 {1e6*q[k][0]:,.0f}, p95 {1e6*q[k][18]:,.0f}')
    return out

# --- lists

def lists(
    rows=1_000_000, # In the table
    say=print, # Told what was measured
)->dict: # Seconds of the processor by address
    "Server time of the dashboard's pages over so many jobs: the slowest of five, the first aside"
    from fastlite import database
    from fh_saas.dashboard import dashboard
    from fh_saas.utils_bgtsk import BackgroundTaskManager
    from test_dashboard import client, grow
    m = BackgroundTaskManager(database(Path(tempfile.mkdtemp())/'t.db'), worker=False)
    grow(m, rows)
    c,out = client(dashboard(m)),{}
    half = rows//2
    for q in ('/jobs', f'/jobs?before={half}', '/jobs?type=type3', '/jobs?status=failed', f'/jobs?status=failed&before={half}', '/jobs?type=type3&status=failed', '/jobs?status=pending', '/jobs?text=zzz', '/jobs?status=failed&text=ValueError',
              '/jobs?type=type3&text=zzz', '/jobs?since=2026-01-05&until=2026-01-06', '/jobs?since=2026-01-05&until=2026-01-06&type=type3&status=failed', '/', '/failures', '/queues', '/schedules', '/actions', f'/job?id={half:08}'):
        took = []
        for _ in range(5):
            at,cpu = time.perf_counter(),time.process_time()
            r = c.get(q)
            took.append((time.process_time()-cpu, time.perf_counter()-at))
            assert r.status_code==200, (q, r.text)
        out[q],wall = max(took[1:])[0],statistics.median([o for _,o in took])
        say(f'{q:70} {1e3*out[q]:6.1f} ms of the processor, {1e3*wall:6.1f} ms in all (median)')
    m.close()
    return out

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['viewers', 'strangers', 'lists'])
    for k,typ in dict(viewers=int, jobs=int, ms=float, rounds=int, asks=int, rows=int).items(): p.add_argument(f'--{k}', type=typ)
    a = {k:v for k,v in vars(p.parse_args()).items() if v is not None}
    print(globals()[a.pop('what')](**a))

if __name__=='__main__': main()
