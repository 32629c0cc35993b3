"What the tests of the engine share: waiting for things, other processes, servers"
import inspect, os, re, signal, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path

import apsw
from fastlite import database
from fh_saas import worker as _w
from fh_saas.utils_bgtsk import BackgroundTaskManager

root = Path(__file__).resolve().parent.parent
apps = root/'tests/apps'

def until(f, s=20., every=.005):
    "Wait until `f()` is true, and return what it gave; fails after `s` seconds"
    end = time.monotonic()+s
    while not (v := f()):
        if time.monotonic()>end: raise AssertionError(f'not within {s} s: {inspect.getsource(f).strip()}')
        time.sleep(every)
    return v

def done(m, id, s=20., status='completed'):
    "The job once it has that status"
    until(lambda: m.get_job(id).status==status, s)
    return m.get_job(id)

def all_done(m, n, s=30., status='completed'): until(lambda: len(m.list_jobs(status=status, limit=10**6))==n, s, .02)

class Tenant:
    "A folder with a database, and the managers made on it"
    def __init__(self, folder, name='t.db'):
        self.dir,self.path,self.dbs,self.managers = Path(folder),Path(folder)/name,[],[]
        self.dir.mkdir(exist_ok=True, parents=True)
    def db(self):
        self.dbs.append(db := opened(self.path))
        return db
    def mgr(self, db=None, **kw):
        self.managers.append(m := BackgroundTaskManager(db or (self.dbs or [self.db()])[0], **kw))
        return m
    def look(self, **kw):
        "A manager that runs nothing"
        return self.mgr(worker=False, **kw)
    def log(self, word=None):
        "What the tasks said, as lists of words, the first one being the time"
        f = self.dir/'log'
        rows = [o.split() for o in f.read_text().splitlines()] if f.exists() else []
        return [o for o in rows if word is None or o[1]==word]
    def go(self, name='go'): (self.dir/name).touch()
    def close(self):
        for o in self.managers: o.close()
        for o in self.dbs: o.conn.close()

def stop_worker(s=2.):
    "End this process's worker, so that tests do not meet"
    if _w._worker: _w._worker.stop(s)

def opened(path, s=10.):
    "fastlite's `database`, whose PRAGMA optimize may meet a lock"
    end = time.monotonic()+s
    while True:
        try: return database(str(path))
        except apsw.BusyError:
            if time.monotonic()>end: raise
            time.sleep(.005)

PRE = '''
import apsw, asyncio, json, os, signal, sys, threading, time
from fastlite import database
from util import opened
from fh_saas.utils_bgtsk import *
from work import *
path,folder = sys.argv[1:3]
db = opened(path)
def mgr(**kw): return BackgroundTaskManager(db, **kw)
def out(*a): print(*a, flush=True)
'''

def env(**kw): return {**os.environ, 'PYTHONPATH':os.pathsep.join([str(apps), str(root/'tests'), str(root), os.environ.get('PYTHONPATH','')]), **kw}

def start_py(t, code, *args, pre=PRE, **kw):
    "A python that runs `code` on a tenant, with its output as text"
    return subprocess.Popen([sys.executable, '-c', pre+code, str(t.path), str(t.dir), *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            stdin=subprocess.PIPE, text=True, cwd=t.dir, env=env(**kw))

def run_py(t, code, *args, s=40, rc=0, **kw):
    "Run it to its end; what it printed"
    p = start_py(t, code, *args, **kw)
    try: o,e = p.communicate(timeout=s)
    except subprocess.TimeoutExpired: p.kill(); o,e = p.communicate(); raise AssertionError(f'did not end in {s} s\n{o}{e}')
    assert rc is None or p.returncode==rc, f'exit code {p.returncode}\n{o}{e}'
    return o

def said(p, word, s=20.):
    "Read the process's output up to the line `word`"
    for line in p.stdout:
        if line.strip()==word: return
    raise AssertionError(f'{p.args[2][-400:]} ended ({p.wait(5)}): {p.stderr.read()}')

def end(p, sig=signal.SIGKILL, s=10.):
    "Stop a process that a test started"
    if p.poll() is None: p.send_signal(sig)
    try: p.communicate(timeout=s)
    except subprocess.TimeoutExpired: p.kill(); p.communicate(); raise AssertionError(f'{sig!r} did not end it in {s} s')
    return p.returncode

@contextmanager
def process(t, code, *args, **kw):
    p = start_py(t, code, *args, **kw)
    try: yield p
    finally:
        if p.poll() is None: p.kill()
        p.communicate()

class Server:
    "uvicorn in a process of its own, on a free port"
    def __init__(self, t, app='web:app', args=None, **kw):
        import httpx                        # here, since most processes that the tests start have no use for it
        self.t,self.out = t,t.dir/f'server{len(list(t.dir.glob("server*")))}.txt'
        cmd = args or ['-m', 'uvicorn', app, '--port', '0', '--no-access-log']
        self.p = subprocess.Popen([sys.executable, *cmd], stdout=open(self.out, 'w'), stderr=subprocess.STDOUT, cwd=t.dir,
                                  env=env(FH_DB=str(t.path), FH_DIR=str(t.dir), **kw))
        port = until(self._port, 30)
        self.c = httpx.Client(base_url=f'http://127.0.0.1:{port}', timeout=10)
        self.port = int(port)
    def _port(self):
        m = re.search(r'running on http://127.0.0.1:(\d+)', self.text())
        if not m and self.p.poll() is not None: raise AssertionError('the server ended: '+self.text())
        return m and m[1]
    def text(self): return self.out.read_text()
    def get(self, url, **kw): return self.c.get(url, **kw)
    def job(self, url): return self.get(url).headers['x-job']
    def signal(self, sig): self.p.send_signal(sig)
    def wait(self, s=15.): return self.p.wait(s)
    def kill(self): self.signal(signal.SIGKILL); self.wait(); self.c.close()
    def __enter__(self): return self
    def __exit__(self, *a):
        self.c.close()
        if self.p.poll() is None: self.p.kill(); self.p.wait()
