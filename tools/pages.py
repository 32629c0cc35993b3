"""Run the pages that are not modules, in nbs/tutorials, nbs/howto and nbs/works, and what these pages need behind the scenes.

    python tools/pages.py [--check] [PAGE…]      run them and keep what they show, or say which show something else by now"""
import argparse, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
folders = 'tutorials','howto','works'

# --- for the pages' hidden cells

class Folder:
    "An empty folder to work in"
    def __init__(self):
        self.was,self.path,self.served = os.getcwd(),Path(tempfile.mkdtemp()).resolve(),[]
        os.chdir(self.path)
        sys.path.insert(0, str(self.path))
        os.environ['PYTHONPATH'] = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
    def serve(self, *args, **env):
        "Start `python ARGS`, in which PORT stands for a free port, and wait until it answers"
        self.served.append(o := Served(args, env))
        return o
    def close(self):
        for o in self.served: o.kill()
        os.chdir(self.was)
        sys.path.remove(str(self.path))
        shutil.rmtree(self.path, ignore_errors=True)

def free_port():
    with socket.create_server(('127.0.0.1', 0)) as s: return s.getsockname()[1]

class Served:
    "Another process, with the port at which it answers if it is a server"
    def __init__(self, args, env):
        self.port = free_port() if 'PORT' in args else None
        self.p = subprocess.Popen([sys.executable, *[str(self.port) if o=='PORT' else o for o in args]], env=os.environ|env, start_new_session=True,
                                  stdout=(out := open(f'out-{id(self)}', 'w+')), stderr=subprocess.STDOUT)
        self.out = out
        if self.port: until(lambda: self.p.poll() is not None or self._answers())
        if self.p.poll() is not None: raise RuntimeError(self.said())
    def _answers(self):
        try: socket.create_connection(('127.0.0.1', self.port), .2).close(); return True
        except OSError: return False
    def said(self): self.out.seek(0); return self.out.read()
    def get(self, path='/', **kw): return self._ask('get', path, **kw)
    def post(self, path='/', **kw): return self._ask('post', path, **kw)
    def _ask(self, verb, path, **kw):
        import httpx
        return getattr(httpx, verb)(f'http://127.0.0.1:{self.port}{path}', timeout=30, **kw)
    def kill(self):
        "`kill -9`, its children too"
        if self.p.poll() is None: os.killpg(self.p.pid, signal.SIGKILL)
        self.p.wait()
    def stop(self):
        "SIGTERM, and wait for the end; the exit status"
        if self.p.poll() is None: self.p.terminate()
        return self.p.wait(30)

def until(f, s=30.):
    "Wait until `f()` is true, and return what it gave"
    end = time.monotonic()+s
    while not (v := f()):
        if time.monotonic()>end: raise TimeoutError(f'not within {s} s')
        time.sleep(.01)
    return v

def words(html):
    "What a page of HTML says"
    return ' '.join(re.sub('<[^>]*>', ' ', re.sub(r'(?s)<(script|style|head).*?</\1>', ' ', html)).split())

# --- to run them

def page_paths(names=()):
    "Paths of the pages, all or those whose names hold one of `names`"
    return [p for f in folders for p in sorted((root/'nbs'/f).glob('*.ipynb')) if not names or any(n in str(p) for n in names)]

def run(path):
    "What the notebook shows when it is run: its JSON with new outputs. Raises what a cell raises"
    from nbdev.process import NBProcessor
    from execnb.shell import CaptureShell
    nb,old = NBProcessor(path, process=True).nb,json.loads(path.read_text(encoding='utf-8'))
    k = CaptureShell(path)
    os.chdir(path.parent)
    for cell,o in zip(nb.cells, old['cells'], strict=True):
        if cell.cell_type!='code': continue
        outs = [] if cell.directives_.get('eval:', [''])[0]=='false' else k.run(cell.source, stderr=False)
        if k.exc: print(f'{path}\n{cell.source}', file=sys.stderr); raise k.exc
        o['execution_count'] = None
        o['outputs'] = [] if o['source'] and o['source'][0].startswith('%%writefile') or 'hide' in cell.directives_ else [shown(x) for x in outs]
    return json.dumps(old, indent=1, ensure_ascii=False, sort_keys=False)+'\n'

def shown(o):
    "An output as nbdev_clean leaves it"
    if 'execution_count' in o: o['execution_count'] = None
    return json.loads(json.dumps(o))

def _one(path, check):
    new = run(path)
    if not check: path.write_text(new, encoding='utf-8')
    outs = lambda s: [[{k:v for k,v in x.items() if k in ('name', 'text', 'data')} for x in c.get('outputs', [])] for c in json.loads(s)['cells']]
    if check and outs(new)!=outs(path.read_text(encoding='utf-8')):
        for c,d in zip(json.loads(new)['cells'], outs(path.read_text(encoding='utf-8'))):
            if c.get('outputs', [])!=d: print(f'{path.relative_to(root)}: now shows {c["outputs"]} and not {d}')
        sys.stdout.flush(); os._exit(1)
    sys.stdout.flush(); os._exit(0)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('pages', nargs='*'); p.add_argument('--check', action='store_true'); p.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one: _one(Path(a.pages[0]), a.check)
    bad = [o for o in page_paths(a.pages) if subprocess.run([sys.executable, __file__, '--one', str(o), *['--check']*a.check]).returncode]
    if bad: sys.exit(f'{len(bad)} of the pages {"show something else" if a.check else "fail"}: {", ".join(o.stem for o in bad)}')

if __name__=='__main__': main()
