"`python -m bench`: fh_saas, the limits of this machine and every peer that is installed, all in one run"
import argparse, importlib, json, pkgutil, subprocess, sys
from bench import measures, peers, systems
from bench.check import check
from bench.report import machine, picture, table

def found():
    "Every system by name, fh_saas first"
    out = {'fh_saas':systems.FhSaas()}
    for m in pkgutil.iter_modules(peers.__path__):
        p = importlib.import_module(f'bench.peers.{m.name}').Peer()
        out[p.name] = p
    return out

OWN = ('submit', 'submit16', 'drain', 'drain_async', 'drain_two', 'latency')
PEER = ('submit', 'drain', 'latency')

def one(name, measure):
    "One measure of one system, in a process of its own"
    if name=='raw': return measures.raw()
    s = systems.FhSaas() if name=='fh_saas' else importlib.import_module(f'bench.peers.{name.lower()}').Peer()
    return getattr(measures, measure)(s)

def child(name, measure, limit_s=240):
    p = subprocess.run([sys.executable, '-m', 'bench', '--one', name, measure], capture_output=True, text=True, timeout=limit_s)
    if p.returncode: raise RuntimeError((p.stderr.strip().splitlines() or ['no word'])[-1])
    return json.loads(p.stdout.splitlines()[-1])

def rounds(n, names, say):
    "Figures by system and name: a list with one value for each round"
    figs,errors = {},{}
    for r in range(n):
        for name in names:
            for m in ('raw',) if name=='raw' else OWN if name=='fh_saas' else PEER:
                say(f'round {r+1} of {n}: {name} {m}')
                try: got = child(name, m)
                except Exception as e: errors[f'{name} {m}'] = str(e); continue
                for k,v in got.items(): figs.setdefault(name, {}).setdefault(k, []).append(v)
    return figs,errors

def main():
    if sys.argv[1:2]==['tenants']:
        from bench import tenants
        return tenants.main(sys.argv[2:])
    if sys.argv[1:2]==['control']:
        from bench import control
        return control.main(sys.argv[2:])
    if sys.argv[1:2]==['pg']:
        from bench import pg
        return pg.main(sys.argv[2:])
    p = argparse.ArgumentParser(prog='python -m bench', description=__doc__)
    p.add_argument('--rounds', type=int, default=5, help='interleaved rounds; medians are shown')
    p.add_argument('--only', nargs='*', metavar='SYSTEM', help='systems to measure beside the limits; all that are there if not given')
    p.add_argument('--json', metavar='FILE', help='write the figures of every round')
    p.add_argument('--check', action='store_true', help='print each budget with its figure; exit status 1 if one is short')
    p.add_argument('--picture', metavar='FILE', help='draw the drain rates (needs matplotlib)')
    p.add_argument('--read', metavar='FILE', help='measure nothing: take the figures that an earlier run wrote with --json')
    p.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one: return print(json.dumps(one(*a.one)))
    if a.read:
        with open(a.read) as f: d = json.load(f)
        print(d['table'])
        if a.picture: picture(d['figures'], a.picture, d['machine'])
        return
    there = found()
    absent = {k:why for k,o in there.items() if (why := o.missing())}
    names = ['raw', *(k for k in there if k not in absent and (a.only is None or k in a.only or k=='fh_saas'))]
    say = lambda s: print(f'\r{s:<70}', end='', file=sys.stderr, flush=True) if sys.stderr.isatty() else None
    figs,errors = rounds(a.rounds, names, say)
    say('')
    print(t := table(figs, there, {k:v for k,v in absent.items() if a.only is None or k in a.only}, errors), flush=True)
    if a.json:
        with open(a.json, 'w') as f: json.dump(dict(machine=machine(), table=t, figures=figs, absent=absent, errors=errors), f, indent=1)
    if a.picture: picture(figs, a.picture, machine())
    if a.check: sys.exit(check(figs))

if __name__=='__main__': main()
