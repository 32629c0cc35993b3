"python -m tests.chaos --minutes 30 [--only state,points,power,disk,soak,…]: the long form. Ends with 1 if anything did not hold, and says how to replay it"
import argparse, logging, random, sys, time, traceback

def state(s, a):
    "State machine against the model, a seed at a time"
    from . import machine
    end,n = time.monotonic()+s,0
    while time.monotonic()<end:
        seed = a.seed if a.seed is not None else random.randrange(2**32)
        try: machine.run(50, a.steps, seed=seed)
        except BaseException: print(f'state: replay with --only state --seed {seed} --steps {a.steps}', flush=True); raise
        n += 50
        if a.seed is not None: break
    print(f'state: {n} runs of up to {a.steps} steps held')
    for k,v in sorted(machine.count.items()): print(f'    {k:40} {v:>9,}')

def points(s, a):
    "Killed at every statement"
    from . import points
    got = points.run(a.case and a.case.split(','))
    for k,v in got.items(): print(f'    {k:20} {v:>6,}')
    print(f'points: killed at {sum(got.values()):,} points of {len(got)} operations, all held')

def soak(s, a):
    "kill -9 at random"
    from . import soak
    print('    '+soak.run(max(5., s-30), seed=a.seed, kinds=a.case and a.case.split(','), every=[float(o) for o in a.every.split(',')]).replace('\n', '\n    '))

def times(s, a):
    "Clocks that are stepped, processes that stand still"
    from . import times
    for k,v in times.run(s, a.seed).items(): print(f'    {k:40} {v:>9,}')

def power(s, a):
    "The power fails before every flush"
    from . import power
    got = power.run(a.case and a.case.split(','))
    for k,v in got.items(): print('    {:20} {:>6,} flushes {:>8,} disks {:>6,} run to the end'.format(k, *v))
    print('power: failed before {:,} flushes of {} operations; {:,} disks were opened, {:,} of them different and run to the end, all held'.format(*(sum(o[i] for o in got.values()) if i>=0 else len(got) for i in (0, -1, 1, 2))))

def disk(s, a):
    "The disk fails"
    from . import disk
    logging.disable(logging.CRITICAL)            # SQLite's own words about it
    disk.run(a.case and a.case.split(','), tell=lambda o: print('    '+o, flush=True))

def versions(s, a):
    "The package of the schema before beside this one, at first in peace, then killed at random"
    from . import soak, versions
    for k,v in versions.run(s/3).items(): print(f'    {k:40} {v:>9,}')
    print('    '+soak.run(max(5., s*2/3-30), seed=a.seed, workers=4, older=versions.older).replace('\n', '\n    '))

def flood(s, a):
    "Much at once: locks, big jobs, very many jobs"
    from . import flood
    for o in flood.run(s): print('    '+o, flush=True)

def hostile(s, a):
    "Whatever is given"
    from . import hostile
    for k,v in hostile.run(s, a.seed).items(): print(f'    {k:20} {v["taken"]:>7,} taken {v["refused"]:>7,} refused')

PARTS = dict(
    state=state,
    points=points,
    power=power,
    disk=disk,
    soak=soak,
    times=times,
    versions=versions,
    flood=flood,
    hostile=hostile,
)

p = argparse.ArgumentParser(prog='python -m tests.chaos')
p.add_argument('--minutes', type=float, default=30, help='for all parts together')
p.add_argument('--only', default=','.join(PARTS), help='parts, with commas between')
p.add_argument('--seed', type=int, default=None, help='replay one seed')
p.add_argument('--case', default=None, help='of points, power or disk, or kinds of jobs of the soak, with commas between')
p.add_argument('--every', default='.05,.5', help='of the soak: seconds between two kills, from,to; children of process tasks need longer to start')
p.add_argument('--steps', type=int, default=100, help='of one run of the state machine')
if __name__=='__main__':
    a = p.parse_args()
    logging.disable(logging.WARNING)
    parts,bad = a.only.split(','),[]
    for o in parts:
        t = time.monotonic()
        try: PARTS[o](a.minutes*60/len(parts), a)
        except BaseException as e:
            traceback.print_exc()
            bad.append(o)
            if isinstance(e, KeyboardInterrupt): break
        print(f'{o}: {"FAILED" if o in bad else "held"} after {time.monotonic()-t:.0f} s', flush=True)
    sys.exit(bool(bad))
