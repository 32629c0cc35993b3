"""`python -m bench pg`: fh_saas and its peers on one PostgreSQL server, in interleaved rounds: drain, latency, and the rate with one to four worker
processes. The server is the one that BENCH_PG names: `eval "$(bench/servers.sh start)"`"""
import argparse, json, os, statistics as st, subprocess, sys
from importlib import import_module
from bench.report import machine, show

PEERS = 'fh_saas_pg','pgqueuer','oban','procrastinate','dbos'
COLS = dict(drain='drain, jobs/s', start_p50='submit → start p50, ms', start_p99='p99, ms', wake_p50='return of submit → start p50, ms', rss='idle worker, MiB', bytes='bytes a job')

def peer(name): return import_module(f'bench.peers.{name}').Peer()

def one(name, what, workers=None):
    "One measure of one system, in a process of its own"
    code = f'import json; from bench import measures, pg; s = pg.peer({name!r}); print(json.dumps(measures.{what}(s{f", workers={workers}" if workers else ""})))'
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    if p.returncode: raise RuntimeError((p.stderr.strip().splitlines() or ['no word'])[-1])
    return json.loads(p.stdout.splitlines()[-1])

def table(figs, there):
    "Markdown, fastest first"
    rows = sorted(figs['one'], key=lambda o: -st.median(figs['one'][o].get('drain', [0])))
    out = [f'Medians of {max(len(v) for o in figs["one"].values() for v in o.values())} rounds (min–max); {machine()}', '',
           '| '+' | '.join(['system', *COLS.values()])+' |', '|'+'---|'*(len(COLS)+1)]
    out += ['| '+' | '.join([there[o].name, *(show(figs['one'][o].get(k)) for k in COLS)])+' |' for o in rows]
    if any(figs['many'].values()):
        out += ['', '| jobs/s with so many worker processes | 1 | 2 | 3 | 4 |', '|---|---|---|---|---|']
        out += ['| '+' | '.join([there[o].name, *(show(figs['many'].get(o, {}).get(str(n))) for n in range(1, 5))])+' |' for o in rows]
    return '\n'.join([*out, '', *(f'- {there[o].name}: {there[o].about}' for o in rows)])

def picture(figs, there, path, where):
    "A line for each system, on a logarithmic scale"
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig,ax = plt.subplots(figsize=(7, 3.6))
    for name,o in figs['many'].items():
        xs = sorted(o, key=int); ys = [st.median(o[x]) for x in xs]
        ours = name=='fh_saas_pg'
        ax.plot([int(x) for x in xs], ys, marker='o', color='#1b7f5c' if ours else '#9aa5b1', lw=2 if ours else 1.2)
        ax.annotate(f'{there[name].name} {ys[-1]:,.0f}', (int(xs[-1]), ys[-1]), xytext=(8, 0), textcoords='offset points', va='center', fontsize=9)
    ax.set_yscale('log'); ax.set_xticks([1,2,3,4]); ax.set_xlim(.8, 5.4); ax.spines[['top','right']].set_visible(False)
    ax.set_xlabel('worker processes'); ax.set_ylabel('no-op jobs each second')
    ax.set_title(where, fontsize=8, loc='left', color='#555')
    fig.tight_layout(); fig.savefig(path)

def main(argv):
    p = argparse.ArgumentParser(prog='python -m bench pg', description=__doc__)
    p.add_argument('--rounds', type=int, default=3, help='interleaved rounds of drain and latency; 0 for none')
    p.add_argument('--many', type=int, default=1, help='rounds with one to four worker processes; 0 for none')
    p.add_argument('--only', nargs='*', metavar='SYSTEM', default=PEERS)
    p.add_argument('--json', metavar='FILE', help='add the figures to those of the file')
    p.add_argument('--picture', metavar='FILE', help='draw the rate against the number of worker processes (needs matplotlib)')
    a = p.parse_args(argv)
    there = {o:peer(o) for o in a.only}
    for o,s in list(there.items()):
        if why := s.missing(): print(f'{o} is not measured: {why}'); del there[o]
    figs = json.load(open(a.json)) if a.json and os.path.exists(a.json) else dict(one={}, many={})
    def note(kind, name, got):
        for k,v in got.items(): figs[kind].setdefault(name, {}).setdefault(k, []).append(v)
    def run(kind, name, what, n=None):
        try: got = one(name, what, n)
        except Exception as e: return print(f'failed: {name} {what} {n or ""}: {e}', flush=True)
        note(kind, name, {str(n):got['drain']} if n else got)
        if a.json: json.dump(figs, open(a.json, 'w'), indent=1)
    for _ in range(a.rounds):
        for o in there: run('one', o, 'drain'); run('one', o, 'latency')
    for _ in range(a.many):
        for n in range(1, 5):
            for o in there: run('many', o, 'drain', n)
    if figs['one']: print(table(figs, there))
    if a.picture and figs['many']: picture(figs, there, a.picture, machine())
