"`fh_saas`, and above all `fh_saas worker`: a process of its own that runs an app's jobs"
import json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import apsw, httpx, pytest
from click.testing import CliRunner
from fh_saas import __version__, cli_frame
from fh_saas.cli import main
from fh_saas.tenants import Tenants

fh_saas = [sys.executable, '-c', 'import sys; sys.argv[0] = "fh_saas"; from fh_saas.cli import main; main()']
def run(*args, **kw): return subprocess.run([*fh_saas, *args], capture_output=True, text=True, timeout=90, **kw)

def until(f, s=60, what='it'):
    left,last = s,time.monotonic()
    while not (v := f()):
        assert left>0, f'{what} did not happen within {s} s'
        time.sleep(.02)
        last,left = (now := time.monotonic()),left-min(now-last, .5)     # of a time in which the machine stood still, little counts
    return v

APP = '''
import os, time
from pathlib import Path
from fastlite import database
from fh_saas.utils_bgtsk import BackgroundTaskManager, current_job
here = Path(__file__).parent
manager = BackgroundTaskManager(database(here/'a.db'))
other = BackgroundTaskManager(database(here/'b.db'))
both = dict(a=manager, b=other)
def note(s):
    with (here/'log').open('a') as f: f.write(f'{s} {os.getpid()}\\n')
def hello(name): note(name)
def slow(i, s):
    note(f'begin {i}'); time.sleep(s); note(f'end {i}')
def talk():
    job = current_job()
    job.log('one'); job.log('two')
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

# --- looking and acting, without running

def ok(r):
    assert r.returncode==0, r.stderr
    return r.stdout
def js(r): return json.loads(ok(r))
def refused(r, why, code=1):
    "One clear line, nothing on standard output"
    assert r.returncode==code and r.stderr.startswith('Error: ') and len(r.stderr.splitlines())==1 and why in r.stderr, (r.returncode, r.stdout, r.stderr)

@pytest.fixture
def sent(app):
    "An app with a job that failed and one that waits; nothing runs them by itself"
    app.submit("manager.submit('import', slow, 1, i=0, s='long'); manager.run_due(); manager.submit('greet', hello, name='Ann')")
    app.ids = {o['job_type']:o['id'] for o in js(run('jobs', 'list', 'app:manager', '--json', cwd=app.dir))}
    return app

@pytest.mark.parametrize('where', ['app:manager', 'a.db', 'app:both'])
def test_jobs(sent, where):
    "Listed, shown, explained, cancelled and retried, by the app or by the file; and none of it runs a job"
    def jobs(*args): return run('jobs', args[0], where, *args[1:], cwd=sent.dir)
    bad,wait = sent.ids['import'],sent.ids['greet']
    head,*lines = ok(jobs('list')).splitlines()
    assert head.split()==['tenant']*(where=='app:both')+['id','type','status','tries','created','started','ended','note']
    assert wait in lines[0] and bad in lines[1] and 'TypeError' in lines[1]
    d, = js(jobs('list', '--status', 'failed', '--json'))
    assert (d['id'], d['payload'], d['attempts'][0]['outcome'])==(bad, dict(i=0, s='long'), 'failed')
    assert js(jobs('show', bad, '--json'))['why'].startswith('it is over: failed')
    assert 'TypeError' in ok(jobs('show', bad)) and 'no worker runs' in ok(jobs('explain', wait))
    assert ok(jobs('cancel', wait, '--reason', 'not now'))==f'{wait}: cancelled\n'
    assert ok(jobs('retry', wait, bad))==f'{wait}: pending\n{bad}: pending\n'
    r = jobs('cancel', 'nope', bad)
    assert r.returncode==1 and r.stdout==f'{bad}: cancelled\n' and r.stderr==f"nope: no job 'nope' in {where}\n"
    assert '0 jobs' in ok(jobs('retry', '--failed', '--error', 'x')), 'none is failed any more'
    assert sent.said()==['begin 0'], 'nothing ran but the job of the fixture'

def test_what_is_retried_is_run_by_a_worker(sent):
    p = sent.worker('app:manager')
    until(lambda: sent.said()==['begin 0', 'Ann'])
    ok(run('jobs', 'retry', 'a.db', '--failed', '--type', 'import', cwd=sent.dir))
    until(lambda: sent.said()==['begin 0', 'Ann', 'begin 0'])
    assert end(p)==0

@pytest.mark.parametrize('args,why,code', [
    (['jobs', 'list', 'nothing:manager'], "no module 'nothing'", 2), (['jobs', 'list', 'app'], 'neither MODULE:NAME', 2), (['jobs', 'list', 'none.db'], 'nor a .db file', 2),
    (['jobs', 'list', 'app:hello'], 'is a function', 2), (['jobs', 'list', '.'], 'no host.db', 2), (['jobs', 'list', 'app.py'], 'not a SQLite database', 2),
    (['jobs', 'list', 'other.db'], 'holds no jobs', 2), (['jobs', 'list'], "Missing argument 'WHERE'; see fh_saas jobs list --help", 2),
    (['jobs', 'list', 'app:manager', '--limit', 'x'], "'x' is not a valid integer", 2), (['jobs', 'list', 'app:manager', '--limit', '-1'], 'x>=1', 2),
    (['jobs', 'list', 'app:manager', '--since', '2026-13-01'], "'2026-13-01' is not a date", 2), (['jobs', 'list', 'app:manager', '--status', 'x'], "'pending', 'running'", 2),
    (['jobs', 'list', 'app:manager', '--tenant', 'a'], 'is one database, not tenants', 2), (['jobs', 'list', 'app:both', '--tenant', 'x'], "no tenant 'x'", 1),
    (['jobs', 'show', 'app:manager', 'x'], "no job 'x'", 1), (['jobs', 'explain', 'app:both', '\udcff'], 'no job', 1), (['jobs', 'tail', 'app:manager', 'x'], "no job 'x'", 1),
    (['jobs', 'tail', 'app:manager', '--every', 'inf'], "'inf' is not a number of seconds", 2), (['jobs', 'tail', 'app:manager', '--every', 'nan'], 'number of seconds', 2), (['tenants', 'move', 'app:manager', 'x', '--to', ''], 'say where to', 2),
    (['jobs', 'retry', 'app:manager'], 'give ids of jobs, or --failed', 2), (['jobs', 'nothing'], "No such command 'nothing'", 2), (['jobs', 'list', 'app:manager', '--x'], 'No such option', 2),
    (['tenants', 'list', 'app:manager'], 'is one database, not Tenants', 2), (['tenants', 'freeze', 'app:manager'], 'give ids of tenants', 2),
    (['schedules', 'next', 'app:manager', 'x'], "no schedule 'x'", 1), (['schedules', 'list', 'app:both'], '--tenant', 2), (['prune', 'app:manager', '--tenant', 'x'], 'is one database', 2)])
def test_a_mistake_is_one_line(app, args, why, code):
    (app.dir/'other.db').touch()
    r = run(*args, cwd=app.dir)
    refused(r, why, code)
    assert not r.stdout and (app.dir/'other.db').stat().st_size==0

def test_a_database_that_cannot_be_used(app):
    "It is named, the others are shown, and the exit code tells"
    ts = Tenants(app.dir/'data', tasks=[], worker=False)
    for o in 'acme','globex': ts.create(o)
    id,_ = ts['acme'].jobs.submit('t', greet, name='x')
    ts.close()
    (app.dir/'data'/'globex.db').write_bytes(b'x'*5000)
    r = run('jobs', 'list', 'data', '--json', cwd=app.dir)
    assert r.returncode==1 and [o['id'] for o in json.loads(r.stdout)]==[id] and 'globex: ' in r.stderr and 'Traceback' not in r.stderr
    ok(run('jobs', 'list', 'data', '--tenant', 'acme', cwd=app.dir))

def test_a_row_that_somebody_else_wrote(sent):
    "It is shown as it stands, and hides no other"
    c = apsw.Connection(str(sent.dir/'a.db')); c.set_busy_timeout(5000)
    c.execute("update tenant_jobs set progress='soon', payload='{', tags='x' where job_type='greet'"); c.close()
    assert all(o in ok(run('jobs', 'list', 'a.db', cwd=sent.dir)) for o in sent.ids.values())
    d = {o['id']:o for o in js(run('jobs', 'list', 'a.db', '--json', cwd=sent.dir))}
    assert d.keys()==set(sent.ids.values()) and d[sent.ids['greet']]['payload']=='{'
    assert 'soon' in ok(run('jobs', 'show', 'a.db', sent.ids['greet'], cwd=sent.dir))

def test_tail(sent):
    "A line for each change; the log of one job, and its end as the exit code"
    p = subprocess.Popen([*fh_saas, 'jobs', 'tail', 'app:manager', '--every', '.02', '--json'], cwd=sent.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = [json.loads(p.stdout.readline()) for _ in range(2)]
    assert {o['status'] for o in seen}=={'failed', 'pending'}
    w = sent.worker('app:manager')
    while (o := json.loads(p.stdout.readline()))['status']!='completed': assert o['id']==sent.ids['greet']
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=20)
    assert (p.returncode, err)==(0, '')
    sent.submit("manager.submit('t', talk)")
    id = js(run('jobs', 'list', 'app:manager', '--type', 't', '--json', cwd=sent.dir))[0]['id']
    r = run('jobs', 'tail', 'app:manager', id, '--every', '.02', cwd=sent.dir)
    assert [o.split(' ', 1)[1] for o in ok(r).splitlines() if o[:2]=='20']==['one', 'two'] and r.stdout.splitlines()[-1].endswith('completed  1/3')
    assert run('jobs', 'tail', 'app:manager', sent.ids['import'], cwd=sent.dir).returncode==3
    assert end(w)==0

def test_why_tail_ended(sent):
    "That the job failed, that it cannot be seen any more, and that nobody waited for it: each has an exit code"
    def tail():
        p = subprocess.Popen([*fh_saas, 'jobs', 'tail', 'a.db', sent.ids['greet'], '--every', '.02'], cwd=sent.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONUNBUFFERED':'1'})
        assert 'pending' in p.stdout.readline()
        return p
    p = tail()
    p.send_signal(signal.SIGINT)
    assert (p.communicate(timeout=20)[1], p.returncode)==('', 130)
    p = tail()
    ok(run('jobs', 'cancel', 'a.db', sent.ids['greet'], cwd=sent.dir))
    assert (p.communicate(timeout=20)[1], p.returncode)==('', 3)
    sent.submit("manager.submit('gone', hello, name='x')")
    sent.ids['greet'] = js(run('jobs', 'list', 'a.db', '--type', 'gone', '--json', cwd=sent.dir))[0]['id']
    p = tail()
    c = apsw.Connection(str(sent.dir/'a.db')); c.set_busy_timeout(5000); c.execute('delete from tenant_jobs'); c.close()
    err = p.communicate(timeout=20)[1]
    assert p.returncode==1 and err.startswith('Error: ') and len(err.splitlines())==1, err

def test_a_pipe_that_closes(sent):
    "`| head` is no reason for a stack trace"
    p = subprocess.Popen([*fh_saas, 'jobs', 'tail', 'a.db', '--every', '.01'], cwd=sent.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.readline(); p.stdout.close()
    sent.submit("manager.run_due(); manager.submit('t', hello, name='x')")
    p.wait(20)
    with p.stderr: err = p.stderr.read()
    assert not err, err

def greet(name): pass

def commands(c, path=()):
    for k,v in c.commands.items():
        if hasattr(v, 'commands'): yield from commands(v, (*path, k))
        else: yield (*path, k),v

def test_help_in_one_style():
    "Each command says in a sentence what it does, and what each argument and option means"
    from click.testing import CliRunner
    for path,c in commands(main):
        r = CliRunner().invoke(main, [*path, '--help'])
        assert r.exit_code==0 and c.help.endswith('.') and c.help[0].isupper() and '\n' not in c.help, path
        for p in c.params:
            doc = getattr(p, 'doc', None) or p.help
            assert doc and doc.split()[0] in ' '.join(r.output.split()), (path, p.name)
            if hasattr(p, 'doc'): assert p.metavar in r.output

def test_every_command_that_shows_has_json():
    for path,c in commands(main):
        names = {p.name for p in c.params}
        if path[0] in ('jobs', 'tenants') or path[-1] in ('list', 'next', 'prune', 'doctor'): assert 'json' in names, path

@pytest.mark.parametrize('words,want', [('fh_saas jo', 'jobs'), ('fh_saas jobs re', 'retry'), ('fh_saas jobs list --st', '--status'), ('fh_saas jobs list app:m --status f', 'failed')])
def test_completion_knows_groups_and_values(words, want):
    r = run(env={**os.environ, '_FH_SAAS_COMPLETE':'bash_complete', 'COMP_WORDS':words, 'COMP_CWORD':str(len(words.split())-1)})
    assert f'plain,{want}' in r.stdout.split()

def test_bench_where_there_is_none(tmp_path):
    "The package alone has no bench"
    shutil.copytree(Path(cli_frame.__file__).parent, tmp_path/'fh_saas', ignore=shutil.ignore_patterns('__pycache__'))
    refused(run('bench', cwd=tmp_path, env={**os.environ, 'PYTHONPATH':str(tmp_path)}), 'checkout')

def test_doctor(sent):
    "It names what is wrong and what to change, and changes nothing"
    def doctor(): return run('doctor', 'app:manager', '--json', cwd=sent.dir)
    def find(r): return {o['check']:o for o in json.loads(r.stdout)['findings']}
    r = doctor()
    assert r.returncode==3 and find(r)['workers']['state']=='problem' and 'fh_saas worker' in find(r)['workers']['change'], r.stderr
    w = sent.worker('app:manager')
    until(lambda: 'Ann' in sent.said())
    fs = find(r := doctor())
    bad = {k for k,o in fs.items() if o['state']=='problem'}
    assert (r.returncode, json.loads(r.stdout)['ok'])==(3*bool(bad), not bad) and not bad & {'workers', 'databases', 'permissions', 'wal mode', 'clock', 'python', 'sqlite'}
    assert fs['retention']['state']=='advice' and end(w)==0
    os.chmod(sent.dir/'a.db', 0o666)
    assert 'by everybody' in find(doctor())['permissions']['found']
    refused(run('doctor', 'nothing.db', cwd=sent.dir), 'neither', 2)

def test_dashboard(app):
    "To this machine it opens, to others only with the token in the link that is printed; and it runs no jobs"
    app.submit("manager.submit('t', hello, name='x')")
    for host,token in ('127.0.0.1', False), ('0.0.0.0', True):
        p = subprocess.Popen([*fh_saas, 'dashboard', 'app:manager', '--port', '0', '--host', host], cwd=app.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONUNBUFFERED':'1'})
        app.ps.append(p)
        url = until(p.stdout.readline).split()[-1]
        assert ('?token=' in url)==token
        if not token: assert httpx.get(url, follow_redirects=True).status_code==200
        assert end(p)<=0 and not app.said()

# --- all commands

def every(group=None, path=()):
    "(words, command) of each command there is"
    for k,c in (group or main).commands.items():
        if hasattr(c, 'commands'): yield from every(c, (*path, k))
        else: yield (*path, k),c

NAMES = {' '.join(p) for p,_ in every()}

def test_all_commands_are_there():
    want = {'demo', 'worker', 'dashboard', 'prune', 'bench', 'doctor', *(f'jobs {o}' for o in 'list show retry cancel explain tail'.split()), *(f'tenants {o}' for o in 'list health freeze thaw usage move migrate'.split())}
    assert want<=NAMES and [o for o in NAMES if o.startswith('schedules')], want-NAMES

@pytest.mark.parametrize('path', sorted(NAMES))
def test_help_of_each_command(path):
    "A sentence about the command, and one about each argument and option; both ways to ask; the exit code 0"
    c = dict((' '.join(p), c) for p,c in every())[path]
    assert re.fullmatch(r'[A-Z].*\.', c.help, re.S) and '`' not in c.help.split('\n')[0]
    for o in c.params: assert re.match(r"[A-Z]", getattr(o, 'doc', None) or o.help or '') and not (getattr(o, 'doc', None) or o.help).endswith('.'), o
    for h in '-h','--help':
        r = CliRunner().invoke(main, [*path.split(), h], prog_name='fh_saas')
        assert r.exit_code==0 and r.output.startswith(f'Usage: fh_saas {path} ')

@pytest.mark.parametrize('path', sorted(NAMES-{'demo', 'worker', 'bench'}))
@pytest.mark.parametrize('wrong', ['where', 'app', 'tenant', 'option'])
def test_a_mistake_with_any_command_is_one_line(path, wrong, tmp_path, monkeypatch):
    "A path that leads nowhere, a module that is none, a tenant or id that is not there, an option that is none"
    ts = Tenants(tmp_path/'data', worker=False)
    ts.create('acme')
    ts.close()
    monkeypatch.chdir(tmp_path)
    c = dict((' '.join(p), c) for p,c in every())[path]
    if wrong=='tenant' and path in ('dashboard', 'tenants list', 'tenants health', 'tenants migrate'): pytest.skip('it takes no tenant')
    where = dict(where='nowhere', app='nothing:tenants', option='data', tenant='data')[wrong]
    args = [where if o.name.startswith('where') else 'nobody' for o in c.params if o.param_type_name=='argument' and (o.required or o.name=='where' or wrong=='tenant')]
    if wrong=='option': args += ['--nonsense']
    elif wrong=='tenant' and any(o.name=='tenant' and o.param_type_name=='option' for o in c.params): args += ['--tenant', 'nobody']
    r = CliRunner().invoke(main, [*path.split(), *args], prog_name='fh_saas')
    lines = r.stderr.strip().splitlines()
    assert r.exit_code in (1, 2) and len(lines)==1 and lines[0].startswith(('Error: ', 'nobody: ')) and (r.exception is None or isinstance(r.exception, SystemExit)), (args, r.output, r.exception)
    if wrong=='tenant': assert 'nobody' in lines[0], lines
