"The examples do what their first lines say"
import configparser, os, re, shlex, shutil, signal, socket, subprocess, sys
from contextlib import contextmanager
from pathlib import Path

import httpx, pytest
from util import env, root, until

examples = root/'examples'

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def get(url):
    try: return httpx.get(url).text
    except httpx.TransportError: return ''

def readable(html):
    "On a phone and read aloud: it has the width of the screen, names its language, and each field says what it is for"
    fields,labels = re.findall('<input', html),re.findall(r'<label>[^<]+<input', html)
    return 'width=device-width' in html and re.search('<html[^>]* lang="en"', html) and len(fields)==len(labels)

def test_app(tmp_path):
    "P1: a report that was asked for before `kill -9` is there after a restart; the other tenant has none"
    port = free_port()
    url = f'http://127.0.0.1:{port}'
    start = lambda: subprocess.Popen([sys.executable, str(root/'examples'/'app.py'), str(port)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    p = start()
    try:
        until(lambda: 'Make a report' in get(f'{url}/acme'), 20)
        assert httpx.post(f'{url}/acme/reports').status_code==303
        until(lambda: ' running ' in get(f'{url}/acme'), 10)
        p.send_signal(signal.SIGKILL); p.wait()
        p = start()
        until(lambda: 'report for acme' in get(f'{url}/acme'), 20)
        assert len(re.findall('<li>', get(f'{url}/acme')))==1 and '<li>' not in get(f'{url}/globex')
        assert not re.findall(r'src="|rel="stylesheet"', get(f'{url}/acme'))        # nothing is loaded from anywhere
        assert readable(get(f'{url}/acme'))
    finally: p.terminate(); p.wait()

@contextmanager
def started(cwd, *cmd, **kw):
    "A program of an example; stopped at the end as systemd and Docker stop it"
    p = subprocess.Popen([sys.executable, *cmd], cwd=cwd, env=env(**kw), stdout=subprocess.DEVNULL, stderr=open(Path(cwd)/f'err{len(os.listdir(cwd))}', 'w'))
    try: yield p
    finally:
        if p.poll() is None: p.terminate()
        try: p.wait(30)
        except subprocess.TimeoutExpired: p.kill(); p.wait()

def test_saas(tmp_path):
    "A customer signs up, sees the progress of a job, and its invoices are sent once though the server is killed on the way; others see nothing of it"
    port = free_port()
    url,cmd = f'http://127.0.0.1:{port}',(str(examples/'saas.py'), str(port))
    with started(tmp_path, *cmd) as p:
        until(lambda: 'Sign up' in get(url), 40)
        assert readable(get(url))
        with httpx.Client(base_url=url, follow_redirects=True) as c:
            assert 'Send invoices' in c.post('/signup', data=dict(id='acme', plan='pro')).text
            assert 'the first a letter or digit' in c.post('/signup', data=dict(id='../x')).text
            page = c.post('/invoices', data=dict(month='May', seconds=2)).text
            assert readable(page) and readable(c.get('/').text) and '>Back<' in page
            job = re.search('Job ([0-9a-f-]{36})', page)[1]
            until(lambda: re.search('invoice [1-9]', c.get(f'/_jobs/{job}/progress').text), 20)
            assert httpx.get(f'{url}/_jobs/{job}/progress').status_code==404, 'somebody who is not signed in'
            assert 'acme' in c.get('/admin/', headers={'host':f'127.0.0.1:{port}'}).text
        p.kill(); p.wait()
    with started(tmp_path, *cmd), httpx.Client(base_url=url, follow_redirects=True) as c:
        until(lambda: get(url), 40)
        c.post('/signup', data=dict(id='acme'))
        until(lambda: 'May: 10 sent' in c.get('/').text, 30)
        assert c.get('/').text.count('May: 10 sent')==1

# --- several machines

@pytest.mark.timeout(240)
def test_three_workers_on_postgres(tmp_path, pg):
    "The commands of the compose file: three workers share the work of two tenants; one is killed at it and every report is written once"
    yaml = pytest.importorskip('yaml', reason='the docs tools bring it')
    c = yaml.safe_load((examples/'postgres/compose.yaml').read_text())['services']
    assert c['worker']['deploy']['replicas']==3 and c['web']['environment']['FH_SAAS_WORKER']=='0' and c['web']['environment']['DATABASE_URL']==c['worker']['environment']['DATABASE_URL']
    shutil.copy(examples/'postgres'/'app.py', tmp_path)
    web,work,port = c['web']['command'][1:],c['worker']['command'][1:],free_port()
    web[web.index('--port')+1] = str(port)
    url = f'http://127.0.0.1:{port}'
    show = lambda id: httpx.get(f'{url}/{id}').json()
    def worker(n):                                      # a folder of its own for its presence: another machine
        return started(tmp_path, '-c', 'from fh_saas.cli import main; main()', *work, DATABASE_URL=pg, FH_SAAS_RUN_DIR=str(tmp_path/f'machine{n}'))
    with started(tmp_path, '-m', 'uvicorn', *web, DATABASE_URL=pg, FH_SAAS_WORKER='0', FH_SAAS_RUN_DIR=str(tmp_path/'web')):
        until(lambda: '"ok":true' in get(f'{url}/health'), 60)
        assert httpx.post(f'{url}/nobody/reports', data=dict(n=1)).status_code==404
        post = lambda id, **kw: httpx.post(f'{url}/{id}/reports', data=kw)
        assert len(post('acme', n=2).json()['jobs'])==2 and show('acme')['pending']==2
        with worker(1) as one, worker(2), worker(3):
            until(lambda: show('acme')['completed']==2, 60)
            first,wrote = 2,{}
            while len(wrote)<3 and first<1000:                          # until all three are up and take part
                post('acme', n=40, first=first); post('globex', n=20, first=first)
                first += 40
                until(lambda: sum(show('acme')['reports'].values())==first, 60, .05)
                wrote = show('acme')['reports']|show('globex')['reports']
            assert len(wrote)==3, wrote
            post('globex', n=6, first=5000, seconds=2)
            until(lambda: show('globex')['running']>=6, 20, .02)        # two threads each
            one.kill(); one.wait()
            until(lambda: sum(show('globex')['reports'].values())==(first-2)//40*20+6, 60, .1)
            until(lambda: not show('globex')['running'], 20, .1)
            assert (show('globex')['failed'], show('globex')['pending'])==(0, 0)
    assert not [l for f in tmp_path.glob('err*') for l in f.read_text().splitlines() if 'Traceback' in l]

# --- a worker of its own

def exec_of(unit):
    "Arguments of a unit's program, and its environment"
    ini = configparser.ConfigParser(strict=True, interpolation=None); ini.optionxform = str
    ini.read(examples/'worker'/unit)
    s = ini['Service']
    return shlex.split(s['ExecStart'])[1:], dict(o.split('=', 1) for o in shlex.split(s['Environment'])), s

def test_worker_by_its_units(tmp_path):
    "The commands of the units, as they stand there: the web server runs no jobs, a worker does, and if it dies another goes on"
    web,web_env,_ = exec_of('myapp-web.service')
    work,work_env,unit = exec_of('myapp-worker.service')
    assert web_env['APP_DATA']==work_env['APP_DATA'] and web_env['FH_SAAS_WORKER']=='0'
    assert int(unit['TimeoutStopSec'])>float(re.search(r'drain_s=(\d+)', (examples/'worker/app.py').read_text())[1])
    shutil.copy(examples/'worker'/'app.py', tmp_path)
    port,kw = free_port(),dict(APP_DATA='data')
    url = f'http://127.0.0.1:{port}'
    jobs = lambda id: httpx.get(f'{url}/{id}').json()
    web[web.index('--port')+1] = str(port)
    worker = ('-c', 'from fh_saas.cli import main; main()', *work)
    with started(tmp_path, '-m', 'uvicorn', *web, **kw, FH_SAAS_WORKER='0'):
        until(lambda: '"ok":true' in get(f'{url}/health'), 60)
        assert httpx.post(f'{url}/nobody/primes', data=dict(n=10)).status_code==404
        assert httpx.post(f'{url}/acme/primes', data=dict(n=100)).status_code==202
        assert [o['status'] for o in jobs('acme')]==['pending']
        with started(tmp_path, *worker, **kw) as one:
            until(lambda: jobs('acme')[0]['status']=='completed', 40)
            assert f'"by":{one.pid}' in jobs('acme')[0]['result'] and '"primes":25' in jobs('acme')[0]['result']
            httpx.post(f'{url}/globex/primes', data=dict(n=200_000))
            until(lambda: jobs('globex')[0]['status']=='running', 20)
            with started(tmp_path, *worker, **kw) as two:
                one.kill(); one.wait()
                until(lambda: jobs('globex')[0]['failed']==1 and jobs('globex')[0]['status']=='running', 40)
                httpx.post(f'{url}/acme/primes', data=dict(n=50))
                until(lambda: jobs('acme')[0]['status']=='completed', 40)
                assert f'"by":{two.pid}' in jobs('acme')[0]['result']
                two.kill()

def test_units_and_compose_files():
    "What the tools of the machine say to them, where there are such"
    yaml = pytest.importorskip('yaml', reason='the docs tools bring it')
    c = yaml.safe_load((examples/'worker/compose.yaml').read_text())['services']
    assert c['worker']['command']==['fh_saas', *exec_of('myapp-worker.service')[0]] and set(c)=={'web', 'worker'}
    assert c['web']['volumes']==c['worker']['volumes']==['data:/data'] and c['web']['environment']=={'FH_SAAS_WORKER':'0'}
    assert all(isinstance(o['command'], list) for o in c.values())
    if shutil.which('docker') and not subprocess.run(['docker', 'compose', 'version'], capture_output=True).returncode:
        for o in 'worker', 'postgres':
            r = subprocess.run(['docker', 'compose', '-f', str(examples/o/'compose.yaml'), 'config', '-q'], capture_output=True, text=True)
            assert r.returncode==0, r.stderr
    if shutil.which('systemd-analyze'):
        for o in 'myapp-web.service', 'myapp-worker.service':
            r = subprocess.run(['systemd-analyze', 'verify', str(examples/'worker'/o)], capture_output=True, text=True)
            assert not [l for l in r.stderr.splitlines() if o in l and 'not executable' not in l and 'No such file' not in l], r.stderr
