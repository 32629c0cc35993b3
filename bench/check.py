"The budgets, each with the figure of this run"
import json, statistics as st, subprocess, sys
from bench import flat
from bench.report import ratio

HEAVY = ('fasthtml', 'uvicorn', 'sqlalchemy', 'IPython', 'nbdev')

def imported():
    "(seconds that importing the manager takes, heavy packages that it pulls in)"
    code = f"import time; t=time.perf_counter(); import fh_saas.utils_bgtsk, sys, json; print(json.dumps([time.perf_counter()-t, [o for o in {HEAVY} if o in sys.modules]]))"
    runs = [json.loads(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    return st.median(t for t,_ in runs),runs[0][1]

def budgets(figs):
    "(what, figure or None where it was not measured, bound, whether the figure may not be below or not above it)"
    own = lambda k: st.median(v) if (v := figs.get('fh_saas', {}).get(k)) else None
    r = lambda k, base='raw': ratio(figs, 'fh_saas', k, base)
    two = own('drain_two') and own('drain_two')/own('drain')
    there = lambda v: f' (the raw driver here: {v:.3g})' if v else ''          # where the bound is no share of it: what the machine gives at most
    lim = lambda k: there(st.median(figs['raw'][k]) if figs.get('raw', {}).get(k) else None)
    of = lambda name: there(ratio(figs, 'raw', 'drain', name))
    yield from [('drain, sync, of raw apsw in threads', r('drain'), .7, 'min'), ('drain, async, of the same', _async(figs), .5, 'min'),
        (f'drain, of Huey{of("Huey")}', r('drain', 'Huey'), 15, 'min'), (f'drain, of PgQueuer{of("PgQueuer")}', r('drain', 'PgQueuer'), 3, 'min'),
        ('drain by two processes, of one', two, 1, 'min'),
        ('submit p50, of a raw insert', r('submit_p50'), 1.4, 'max'), ('submit p50, of Huey', r('submit_p50', 'Huey'), 1, 'max'),
        ('submit from 16 threads, of raw group commit', r('submit16'), .7, 'min'),
        ('submit → start p50, of the raw chain', r('start_p50'), 1.5, 'max'), (f'return → start p50, ms{lim("wake_p50")}', own('wake_p50'), .7, 'max'),
        (f'return → start p99, ms{lim("wake_p99")}', own('wake_p99'), 1.5, 'max'), ('idle worker, % of a core', own('idle'), 1, 'max'),
        ('idle worker, MiB', own('rss'), 45, 'max'), ('bytes of file a finished job', own('bytes'), 330, 'max')]
    took,heavy = imported()
    yield from [('import of the manager, s', took, .25, 'max'), (f'heavy packages imported {heavy}', len(heavy), 0, 'max')]
    for kinds in (['finished'], ['future'], ['parked'], ['finished','future','parked']):
        for k,v in flat.compare(kinds).items():
            yield f'{k} beside {", ".join(f"{flat.ROWS[o]:,} {o}" for o in kinds)}',v,5 if k=='list_jobs' else 1.2,'max'

def _async(figs):
    a,b = figs.get('fh_saas', {}).get('drain_async'),figs.get('raw', {}).get('drain')
    return st.median(x/y for x,y in zip(a, b)) if a and b else None

def check(figs):
    "Print every budget; 1 if any is short, 0 otherwise"
    short = 0
    for what,v,bound,way in budgets(figs):
        ok = v is not None and (v>=bound if way=='min' else v<=bound)
        short += v is not None and not ok
        word = 'not measured' if v is None else 'ok' if ok else 'SHORT'
        print(f'{word:<13} {"" if v is None else f"{v:.3g}":>8}  {"≥" if way=="min" else "≤"} {bound:<5}  {what}', flush=True)
    print(f'{short} short')
    return int(short>0)
