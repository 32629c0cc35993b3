"`fh_saas`, and above all `fh_saas worker`: a process of its own that runs an app's jobs"
import os, signal, subprocess, sys, time
from pathlib import Path

import pytest
from fh_saas import __version__

fh_saas = [sys.executable, '-c', 'import sys; sys.argv[0] = "fh_saas"; from fh_saas.cli import main; main()']
def run(*args, **kw): return subprocess.run([*fh_saas, *args], capture_output=True, text=True, timeout=30, **kw)

def until(f, s=20, what='it'):
    end = time.monotonic()+s
    while not (v := f()):
        assert time.monotonic()<end, f'{what} did not happen within {s} s'
        time.sleep(.02)
    return v

APP = '''
import os, time
from pathlib import Path
from fastlite import database
from fh_saas.utils_bgtsk import BackgroundTaskManager
here = Path(__file__).parent
manager = BackgroundTaskManager(database(here/'a.db'))
other = BackgroundTaskManager(database(here/'b.db'))
both = dict(a=manager, b=other)
def note(s):
    with (here/'log').open('a') as f: f.write(f'{s} {os.getpid()}\\n')
def hello(name): note(name)
def slow(i, s):
    note(f'begin {i}'); time.sleep(s); note(f'end {i}')
def parent(): manager.submit('child', hello, name='child')
async def ahello(name): note(name)
'''

class App:
    "An app in a folder, and workers for it"
    def __init__(self, dir):
        self.dir,self.ps = dir,[]
        (dir/'app.py').write_text(APP)

    def submit(self, code):
        "Submit jobs from a process that runs none"
        r = subprocess.run([sys.executable, '-c', f'from app import *; {code}'], cwd=self.dir, env={**os.environ, 'FH_SAAS_WORKER':'0'}, capture_output=True, text=True, timeout=30)
        assert r.returncode==0, r.stderr
        return r.stdout.strip()

    def worker(self, *args, env=None):
        p = subprocess.Popen([*fh_saas, 'worker', *args], cwd=self.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        self.ps.append(p)
        assert 'serving' in (s := p.stdout.readline()), s+p.stderr.read()
        return p

    def log(self): return (self.dir/'log').read_text().splitlines() if (self.dir/'log').exists() else []
    def said(self): return [o.rsplit(' ', 1)[0] for o in self.log()]
    def statuses(self, m='manager'): return self.submit(f'print(*[o.status for o in {m}.list_jobs()])').split()

@pytest.fixture
def app(tmp_path):
    a = App(tmp_path)
    yield a
    for p in a.ps:
        if p.poll() is None: p.kill()
        p.communicate()

def end(p, sig=signal.SIGTERM, s=20):
    p.send_signal(sig)
    out,err = p.communicate(timeout=s)
    assert 'Traceback' not in err, err
    return p.returncode

def test_version_and_help():
    assert run('--version').stdout==f'fh_saas, version {__version__}\n'
    r = run('--help')
    assert r.returncode==0 and 'demo' in r.stdout and 'worker' in r.stdout
    for c,opts in dict(demo='--port --data --no-browser --pause', worker='MODULE:NAME --threads --async-jobs').items():
        for o in opts.split(): assert o in run(c, '--help').stdout, o
    r = run('wroker')
    assert r.returncode==2 and 'worker' in r.stderr

def test_shell_completion():
    r = run(env={**os.environ, '_FH_SAAS_COMPLETE':'bash_complete', 'COMP_WORDS':'fh_saas wo', 'COMP_CWORD':'1'})
    assert 'worker' in r.stdout

def test_the_engine_stays_light():
    "Neither the command line nor the demo comes with the manager"
    code = "import sys, fh_saas.utils_bgtsk; print(*sorted({'click','uvicorn','fasthtml','fh_saas.cli','fh_saas.demo'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip()==''

@pytest.mark.parametrize('path,why', [('app', 'MODULE:NAME'), (':manager', 'MODULE:NAME'), ('app:', 'MODULE:NAME'), ('app.py:manager', 'is a file'), ('./app:manager', 'is a file'),
    ('nothing:manager', "no module 'nothing'"), ('app.sub:manager', "no module 'app.sub'"), ('app:nothing', "app has no 'nothing'"), ('app:hello', 'is a function'), ('app:manager.nothing', "no 'manager.nothing'"),
    ('..app:manager', ''), ('broken:manager', 'ZeroDivisionError: division by zero ('), ('needy:manager', "needs the module 'no_such_thing'"), ('syntax:manager', 'SyntaxError')])
def test_wrong_path(app, path, why):
    (app.dir/'broken.py').write_text('\n1/0')
    (app.dir/'needy.py').write_text('import no_such_thing')
    (app.dir/'syntax.py').write_text('def')
    r = run('worker', path, cwd=app.dir)
    assert r.returncode==2 and r.stderr.startswith('Error: ') and len(r.stderr.splitlines())==1, r.stderr
    assert why in r.stderr

def test_wrong_options(app):
    assert run('worker', 'app:manager', '--threads', '0', cwd=app.dir).returncode==2
    assert run('worker', 'app:manager', '--threads', 'x', cwd=app.dir).returncode==2
    assert run('worker').returncode==2

def test_unusable_database(app):
    (app.dir/'a.db').write_bytes(b'no database at all'*100)
    r = run('worker', 'app:manager', cwd=app.dir)
    assert r.returncode==2 and 'Traceback' not in r.stderr, r.stderr
    assert 'NotADBError' in (last := r.stderr.splitlines()[-1]) and 'app.py, line 7' in last     # an app's own error, with its place

@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT])
def test_runs_jobs_of_another_process(app, sig):
    "Those that wait already, those submitted meanwhile, sync and async; `FH_SAAS_WORKER=0` is for others"
    app.submit("manager.submit('t', hello, name='early')")
    p = app.worker('app:manager', env={'FH_SAAS_WORKER':'0'})
    until(lambda: app.said()==['early'])
    app.submit("manager.submit('t', hello, name='late'); manager.submit('t', ahello, name='async')")
    until(lambda: sorted(app.said())==['async', 'early', 'late'])
    assert {o.rsplit(' ', 1)[1] for o in app.log()}=={str(p.pid)}
    until(lambda: app.statuses()==['completed']*3)
    assert end(p, sig)==0

def test_drains(app):
    "What runs may finish; what has not begun goes back"
    app.submit("[manager.submit('t', slow, i=i, s=1) for i in range(4)]")
    p = app.worker('app:manager', '--threads', '2')
    until(lambda: len(app.log())>=2)
    assert end(p)==0
    begun = {o.split()[1] for o in app.said() if o.startswith('begin')}
    assert begun=={o.split()[1] for o in app.said() if o.startswith('end')} and 2<=len(begun)<=4
    assert sorted(app.statuses())==['completed']*len(begun)+['pending']*(4-len(begun))

def test_threads(app):
    app.submit("[manager.submit('t', slow, i=i, s=.3) for i in range(6)]")
    p = app.worker('app:manager', '--threads', '2')
    until(lambda: len(app.log())==12)
    n = most = 0
    for o in app.said(): n += 1 if o.startswith('begin') else -1; most = max(most, n)
    assert most==2
    assert end(p)==0

def test_a_task_that_submits(app):
    "A job submitted inside the worker does not wait for a web process"
    p = app.worker('app:manager')
    t = time.monotonic()
    app.submit("manager.submit('t', parent)")
    until(lambda: app.said()==['child'])
    assert time.monotonic()-t<4, 'the child waited for a handoff'
    assert end(p)==0

def test_several_managers(app):
    app.submit("manager.submit('t', hello, name='a'); other.submit('t', hello, name='b')")
    p = app.worker('app:both')
    until(lambda: sorted(app.said())==['a', 'b'])
    assert end(p)==0

def test_kill(app):
    "A killed worker's job is run by the next one"
    app.submit("manager.submit('t', slow, i=0, s=30)")
    p = app.worker('app:manager')
    until(lambda: len(app.log())==1)
    p.kill(); p.wait()
    p = app.worker('app:manager')
    until(lambda: len(app.log())==2)
    assert [o.rsplit(' ', 1)[1] for o in app.log()]==[str(o.pid) for o in app.ps]
