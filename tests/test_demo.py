"`fh_saas demo` as its user meets it: a real server, real requests, kill -9"
import json, os, re, signal, sqlite3, subprocess, sys, time
from html import unescape
from pathlib import Path

import httpx, pytest
from fh_saas.demo import COLUMNS, SAMPLE

fh_saas = [sys.executable, '-c', 'import sys; sys.argv[0] = "fh_saas"; from fh_saas.cli import main; main()']
ROWS,BAD = 4000,[117, 640, 1203, 1777, 2500, 3141, 3999]   # what the sample has, and the lines that are malformed

def until(f, s=60, what='it'):
    "What `f` returns once that is true; fails after `s` seconds"
    left,last = s,time.monotonic()
    while not (v := f()):
        assert left>0, f'{what} did not happen within {s} s'
        time.sleep(.02)
        last,left = (now := time.monotonic()),left-min(now-last, .5)     # of a time in which the machine stood still, little counts
    return v

class Server:
    "`fh_saas demo` in a process of its own"
    def __init__(self, data, *args, browser=False, env=None):
        self.data,self.log = Path(data),Path(data).parent/f'{Path(data).name}.log'
        self.p = subprocess.Popen([*fh_saas, 'demo', '--port', '0', '--data', str(data), *([] if browser else ['--no-browser']), *args],
            stdout=subprocess.PIPE, stderr=self.log.open('ab'), text=True, cwd=self.data.parent, env={**os.environ, **(env or {})})
        self.said = [self.p.stdout.readline() for _ in range(3)]
        assert self.p.poll() is None and self.said[0], self.log.read_text()
        self.url = re.search(r'http://\S+', self.said[0])[0]
        self.web = httpx.Client(base_url=self.url, timeout=10)

    def kill(self): self.p.kill(); self.p.wait(); self.web.close()
    def stop(self, sig=signal.SIGTERM):
        "Seconds it took to end"
        t = time.monotonic()
        self.p.send_signal(sig)
        self.p.wait(20)
        self.web.close()
        return time.monotonic()-t

    def page(self, tenant='acme'):
        r = self.web.get(f'/t/{tenant}')
        assert r.status_code==200
        return r.text
    def progress(self, tenant='acme'): return [int(o) for o in re.findall(r'aria-valuenow="(\d+)"', self.page(tenant))] or [0]      # none while it is not known
    def upload(self, body, name='customers.csv', tenant='acme', **kw): return self.web.post(f'/t/{tenant}/import', files=dict(file=(name, body, 'text/csv')), **kw)
    def done(self, tenant='acme'):
        "Whether there are jobs, all of them over"
        jobs = self.rows('select status from tenant_jobs', tenant)
        return jobs and all(o['status'] in ('completed','failed') for o in jobs)
    def rows(self, sql, tenant='acme'):
        c = sqlite3.connect(f'file:{self.data/tenant}.db?mode=ro', uri=True, timeout=10)
        c.row_factory = sqlite3.Row
        try: return [dict(o) for o in c.execute(sql)]
        finally: c.close()

@pytest.fixture
def start(tmp_path):
    "Starts servers on one folder, and ends what is left of them"
    ss = []
    def _start(*args, **kw):
        ss.append(Server(tmp_path/'data', *args, **kw))
        return ss[-1]
    yield _start
    for s in ss:
        if s.p.poll() is None: s.kill()

@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    "A server whose imports do not rest"
    s = Server(tmp_path_factory.mktemp('demo')/'data', '--pause', '0')
    yield s
    s.stop()

def complete(s, tenant='acme'):
    "Every row of the sample is there, once"
    n, = s.rows('select count(*) as n, count(distinct line) as lines, count(distinct email) as emails, min(line) as a, max(line) as z from customers', tenant)
    assert n==dict(n=ROWS-len(BAD), lines=ROWS-len(BAD), emails=ROWS-len(BAD), a=2, z=ROWS+1)
    assert [o['line'] for o in s.rows('select line from bad_rows order by line', tenant)]==BAD
    assert s.rows('select total,done from imports', tenant)==[dict(total=ROWS, done=ROWS)]
    assert not s.rows('select * from waiting', tenant)

def test_a_form_that_is_sent_twice(start):
    "Without a script: a second press of the same form imports nothing; the form of the page that comes then is another one"
    s = start('--pause', '0')
    n = lambda: (s.rows('select count(*) as n from imports', 'globex'),s.rows("select count(*) as n from tenant_jobs where job_type='call partner'", 'globex'))
    def key(path): return re.search(rf'action="/t/globex/{path}".*?name="form_key" value="([^"]+)"', s.page('globex'), re.S)[1]
    (a,),(b,) = n()
    for path in 'sample','import','call':
        was = key(path)
        for k in was,was,key(path):
            files = dict(file=('c.csv', b'\n'.join(SAMPLE.read_bytes().splitlines()[:3]), 'text/csv')) if path=='import' else {}
            r = s.web.post(f'/t/globex/{path}', data=dict(form_key=k), files=files)
            assert (r.status_code,r.headers['location'])==(303,'/t/globex')
    assert n()==([dict(n=a['n']+4)],[dict(n=b['n']+2)])

def test_upload_progress_rows(start):
    s = start()
    assert str(s.data) in s.said[1], 'the folder is named on the terminal'
    r = s.upload(SAMPLE.read_bytes())
    assert (r.status_code, r.headers['location'])==(303, '/t/acme')
    seen,t = [],time.monotonic()
    while not seen or seen[-1]<100:
        assert time.monotonic()<t+40
        seen += s.progress()
        time.sleep(.1)
    assert seen==sorted(seen) and len(set(seen))>5, f'progress did not move: {seen}'
    assert time.monotonic()-t>2, 'too quick to be seen'
    until(s.done)
    complete(s)
    html = unescape(s.page())
    for part in ('4,000 of 4,000 rows', '7 malformed rows', 'line 117</strong>: 3 fields instead of 6', 'line 3141</strong>: a quote is opened and not closed',
                 "email 'jun.ito at example.com' is not an address", 'imported 3,993, malformed 7', '1 of 10'): assert part in html, part
    assert not s.rows('select * from customers', 'globex') and 'None yet' in s.page('globex')

def test_kill_and_restart(start):
    "kill -9 in the middle, twice; the third server finishes, with no row twice and none missing"
    s = start()
    s.web.post('/t/acme/sample')
    for at in (15, 50):
        until(lambda: at<=s.progress()[0]<100, what=f'{at} %')
        s.kill()
        done = s.rows('select done from imports')[0]['done']
        assert 0<done<ROWS, 'killed in the middle'
        assert s.rows('select count(*) as n from customers')[0]['n'] + s.rows('select count(*) as n from bad_rows')[0]['n'] == done
        s = start()
    until(s.done)
    complete(s)
    assert s.rows('select status,retry_count from tenant_jobs')==[dict(status='completed', retry_count=2)], 'a crash counts as an attempt'
    assert '3 of 10' in s.page()

@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT])
def test_stop_and_restart(start, sig):
    "An import is put back when the server is told to stop, and that is no failed attempt"
    s = start('--pause', '0.4')
    s.web.post('/t/globex/sample')
    until(lambda: s.progress('globex')[0]>2)
    assert s.stop(sig)<8
    assert 'Traceback' not in s.log.read_text()
    assert s.rows('select status from tenant_jobs', 'globex')==[dict(status='pending')]
    s = start('--pause', '0')
    until(lambda: s.done('globex'))
    complete(s, 'globex')
    assert s.rows('select retry_count from tenant_jobs', 'globex')==[dict(retry_count=0)]

def test_idle_stop(start):
    "With nothing to do, an open page does not hold it up"
    s = start()
    s.page()
    assert s.stop()<3

def test_retries_can_be_watched(quick):
    quick.web.post('/t/globex/call')
    html = until(lambda: (h := quick.page('globex')) and re.search(r'again in \d s', h) and h, what='a failed attempt')
    assert '1 of 4' in html and 'ConnectionError: the partner does not answer (call 1)' in html and 'data-next="300"' in html
    until(lambda: quick.done('globex'))
    job, = quick.rows("select * from tenant_jobs where job_type='call partner'", 'globex')
    assert (job['status'], job['retry_count'], job['result'])==('completed', 2, '"the partner answered call 3"')
    at = [time.mktime(time.strptime(o['at'][:19], '%Y-%m-%dT%H:%M:%S'))+float(f'0{o["at"][19:26]}') for o in json.loads(job['attempts'])]
    assert 1.9<at[1]-at[0]<4, 'about 2 s between the first attempts'
    assert '3 of 4' in quick.page('globex')

def test_tenants_stay_apart(quick):
    one = ','.join(COLUMNS)+'\n%s,x@example.com,Oslo,free,1,2024-01-01\n'
    quick.upload(one % 'Only Acme')
    quick.upload(one % 'Only Globex', tenant='globex')
    until(lambda: 'Only Acme' in quick.page()); until(lambda: 'Only Globex' in quick.page('globex'))
    assert 'Only Globex' not in quick.page() and 'Only Acme' not in quick.page('globex')
    for t,n in (('acme', 'Only Acme'), ('globex', 'Only Globex')): assert [o['name'] for o in quick.rows("select name from customers where name like 'Only%'", t)]==[n]

@pytest.mark.parametrize('path', ['/t/nobody', '/t/acme.db', '/t/..%2facme', '/t/%2e%2e/acme', '/t/Acme', '/t/', '/assets/../demo.py', '/assets/%2e%2e/demo.py', '/favicon.ico'])
def test_no_other_paths(quick, path):
    r = quick.web.get(path)
    assert r.status_code==404 and 'Traceback' not in r.text
    assert sorted(o.name for o in quick.data.glob('*.db'))==['acme.db', 'globex.db']

head = ','.join(COLUMNS)
@pytest.mark.parametrize('body,why', [(b'', 'it is empty'), (b'\n \n', 'it is empty'), (head.encode(), 'no rows'), (b'name\xff\xfe', 'not UTF-8'),
    (head.encode('utf-16'), 'not UTF-8'), (b'PK\x03\x04\0\0', 'not text'), (b'Ada,ada@example.com,Oslo,free,1,2024-01-01\n', 'no header'),
    (b'name;email;city;plan;spend;joined\n', 'no header'), (b'name,mail,city,plan,spend,joined\n', "the column 'email' is missing"),
    (f'{head},age\n'.encode(), '7 columns'), (b'"name,email', 'a quote is opened and not closed')])
def test_files_that_are_refused(quick, body, why):
    n = quick.rows('select count(*) as n from imports'),len(quick.rows('select id from tenant_jobs'))
    r = quick.upload(body, '<b>x</b>.csv')
    html = unescape(r.text)
    assert r.status_code==422 and '<b>x</b>.csv was not imported: ' in html and why in html and '<b>x' not in r.text
    assert n==(quick.rows('select count(*) as n from imports'),len(quick.rows('select id from tenant_jobs')))

def test_other_line_ends_and_column_order(quick):
    quick.upload('\ufeffEMAIL, name,joined,spend,plan,city\r\nmac@example.com,"Mac, the\tKnife",2024-01-01,1,free,Zürich\r\n\r\nbad\r\n'.encode(), 'dos.csv')
    until(lambda: 'mac@example.com' in quick.page())
    row, = quick.rows("select name,city,line from customers where email='mac@example.com'")
    assert row==dict(name='Mac, the\tKnife', city='Zürich', line=2)
    until(lambda: 'line 4</strong>: 1 fields instead of 6' in quick.page())

def test_nothing_is_markup(quick):
    quick.upload(f'{head}\n<script>alert(1)</script>,x@y.zz,<i>,free,1,2024-01-01\n<u>,<s>,x,free,1,2024-01-01\n'.encode(), '<img src=x>.csv')
    html = until(lambda: (h := quick.page()) and 'alert(1)' in h and '&lt;s&gt;' in h and h)
    assert not re.findall(r'<script>alert|<i>|<u>|<s>|<img', html)

def test_requests_that_are_refused(quick):
    r = quick.upload(b'x'*(11*2**20))
    assert r.status_code==413 and 'longer than 10 MiB' in r.text
    assert quick.web.post('/t/acme/import', data=dict(a='1')).status_code==422
    assert quick.web.post('/t/acme/import', data=dict(file='1')).status_code==422
    assert quick.web.post('/t/acme/call', headers=dict(origin='http://evil.example')).status_code==403
    assert quick.web.post('/t/acme/call', headers=dict(origin='null')).status_code==403
    assert quick.web.get('/', headers=dict(host='evil.example')).status_code==400
    assert quick.web.post('/t/acme/import', json=dict(a=1)).status_code==415
    assert quick.web.post('/t/acme/import', content=iter([b'x'])).status_code==411
    assert quick.web.get('/t/acme/call').status_code==405
    assert quick.web.post('/t/nobody/sample').status_code==404

def test_no_other_host(quick):
    "No page names another host, and the browser is told to load nothing from elsewhere"
    paths,seen = ['/', '/t/acme', '/nowhere'],set()
    while paths:
        if (p := paths.pop()) in seen: continue
        seen.add(p)
        r = quick.web.get(p)
        if p=='/customers.csv' or '/dashboard/' in p or '/jobs/' in p: continue        # these have tests of their own
        text = r.text.replace('xmlns="http://www.w3.org/2000/svg"', '')
        assert not re.findall(r'''(?:https?:)?//[\w-]+\.[\w.-]+|url\(|@import''', text), p
        if 'html' in r.headers['content-type']:
            assert "default-src 'self'" in text
            paths += re.findall(r'(?:href|src)="(/[^"]*)"', text)
    assert {'/', '/t/acme', '/t/globex', '/customers.csv', '/assets/demo.js', '/assets/demo.css', '/assets/demo.svg'} <= seen
    assert quick.web.get('/customers.csv').content==SAMPLE.read_bytes()

def test_without_script(start):
    "While a job is under way the page renews itself where scripts do not run"
    s,fresh = start(),'<noscript><meta http-equiv="refresh"'
    assert fresh not in s.page()
    s.web.post('/t/acme/sample')
    assert fresh in s.page()

def run(*args, **kw): return subprocess.run([*fh_saas, 'demo', '--no-browser', *map(str, args)], capture_output=True, text=True, timeout=30, **kw)

def test_taken_port(quick, tmp_path):
    port = quick.url.split(':')[-1]
    r = run('--port', port, '--data', tmp_path/'d')
    assert r.returncode==1 and len(r.stderr.splitlines())==1, r.stderr
    assert re.match(rf'Error: port {port} on 127.0.0.1 .*in use.*--port', r.stderr)
    assert not (tmp_path/'d').exists(), 'nothing else was touched'
    assert 'port 99999' in run('--port', 99999).stderr

def test_unusable_data(tmp_path):
    (tmp_path/'file').touch()
    for p in (tmp_path/'file', tmp_path/'file'/'d', *(['/proc/d'] if Path('/proc').exists() else [])):
        r = run('--port', 0, '--data', p)
        assert r.returncode==1 and len(r.stderr.splitlines())==1 and str(p) in r.stderr and '--data' in r.stderr, r.stderr
    (tmp_path/'d').mkdir()
    (tmp_path/'d'/'acme.db').write_bytes(b'no database at all'*100)
    r = run('--port', 0, '--data', tmp_path/'d')
    assert r.returncode==1 and 'acme.db' in r.stderr and 'Traceback' not in r.stderr, r.stderr

def test_opens_a_browser(start, tmp_path):
    (tmp_path/'browser').write_text(f'#!{sys.executable}\nimport sys, urllib.request\nopen({str(tmp_path/"opened")!r}, "w").write(sys.argv[1]+" "+str(urllib.request.urlopen(sys.argv[1]).status))\n')
    (tmp_path/'browser').chmod(0o755)
    s = start(browser=True, env=dict(BROWSER=str(tmp_path/'browser')))
    got = until(lambda: (p := tmp_path/'opened').exists() and p.read_text())
    assert got==f'{s.url} 200'
