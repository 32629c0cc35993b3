"The figures as a table and as a picture"
import os, platform, statistics as st, time

COLS = dict(drain='drain, jobs/s', submit_p50='submit p50, µs', start_p50='submit → start p50, ms', start_p99='p99, ms', rss='idle worker, MiB', bytes='bytes a job')

def machine(): return f'{time.strftime("%Y-%m-%d")}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}'

def show(vs):
    "Median (min–max) with as many digits as mean something"
    if not vs: return '–'
    d = 0 if st.median(vs)>=20 else 2
    f = lambda v: f'{v:,.{d}f}'
    return f(st.median(vs)) + (f' ({f(min(vs))}–{f(max(vs))})' if len(vs)>1 else '')

def ratio(figs, name, key, base='raw'):
    "Median of each round's own ratio to `base`; None where either is missing"
    a,b = (figs.get(o, {}).get(key) for o in (name, base))
    return st.median(x/y for x,y in zip(a, b)) if a and b else None

def table(figs, there, absent, errors):
    "Markdown, fastest first; systems that could not be measured are named"
    rows = sorted(figs, key=lambda o: -st.median(figs[o].get('drain', [0])))
    head = ['system', *COLS.values(), 'drain, share of the limit']
    out = [f'Medians of {max(len(v) for o in figs.values() for v in o.values())} rounds (min–max); {machine()}', '',
           '| '+' | '.join(head)+' |', '|'+'---|'*len(head)]
    for o in rows:
        r = ratio(figs, o, 'drain')
        nm = 'limit: raw apsw' if o=='raw' else o
        out.append('| '+' | '.join([nm, *(show(figs[o].get(k)) for k in COLS), f'{r:.3g}' if r else '–'])+' |')
    out += [f'| {o} | not measured: {why} |'+' |'*(len(head)-2) for o,why in absent.items()]
    out += ['', *(f'- {o}: {there[o].about}' for o in rows if o in there)]
    return '\n'.join(out+[f'- failed: {k}: {v}' for k,v in errors.items()])

def picture(figs, path, where):
    "A bar for each system, on a logarithmic scale"
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    rates = sorted((st.median(v['drain']),'limit: raw apsw' if k=='raw' else k) for k,v in figs.items() if 'drain' in v)
    fig,ax = plt.subplots(figsize=(7, .45*len(rates)+1))
    bars = ax.barh([k for _,k in rates], [v for v,_ in rates], color=['#1b7f5c' if k=='fh_saas' else '#9aa5b1' for _,k in rates])
    ax.bar_label(bars, [f'{v:,.0f}' for v,_ in rates], padding=4, fontsize=9)
    ax.set_xscale('log'); ax.set_xlabel('no-op jobs each second, durable, results kept'); ax.spines[['top','right']].set_visible(False)
    ax.set_title(where, fontsize=8, loc='left', color='#555'); ax.margins(x=.18)
    fig.tight_layout(); fig.savefig(path)
