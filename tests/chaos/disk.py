"""P1, P3, P4, P5, P8: the disk fails. A VFS makes each call in turn fail, once or from then on, in everything that writes: the error is a `StoreError` that names
the file, what had been reported is there, nothing is done by half, and when the disk works again the same process goes on. Then each page of a tenant's file is
spoiled, and other things are put in its place, while a worker serves it beside another tenant. Run it in a process that has opened nothing: it forks"""
import hashlib, os, re, resource, shutil, subprocess, tempfile, time
from collections import Counter
from pathlib import Path

import apsw
from fh_saas.store.base import StoreError
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager
from . import points as p
from .points import forked, mgr, names, rows, said
from util import until

# --- calls that fail

class Fault:
    "Counts the calls of this process to the disk, and has one of them fail, or all from that one on"
    n,at,ever,on = 0,None,False,False
    @classmethod
    def point(cls, code):
        if not cls.on: return
        cls.n += 1
        if cls.n==cls.at or cls.ever and cls.at and cls.n>cls.at: raise apsw.exception_for(code)

class File(apsw.VFSFile):
    def __init__(self, name, flags): super().__init__('unix', name, flags)
    def xRead(self, n, at): Fault.point(apsw.SQLITE_IOERR_READ); return super().xRead(n, at)
    def xWrite(self, data, at): Fault.point(Fault.full); return super().xWrite(data, at)
    def xTruncate(self, n): Fault.point(apsw.SQLITE_IOERR_TRUNCATE); return super().xTruncate(n)
    def xSync(self, flags): Fault.point(apsw.SQLITE_IOERR_FSYNC); return super().xSync(flags)
    def xFileSize(self): Fault.point(apsw.SQLITE_IOERR_FSTAT); return super().xFileSize()

class Vfs(apsw.VFS):
    def __init__(self): super().__init__('faults', 'unix', makedefault=True)
    def excepthook(self, *a): pass
    def xOpen(self, name, flags): Fault.point(apsw.SQLITE_CANTOPEN); return File(name, flags)
    def xDelete(self, name, sync): Fault.point(apsw.SQLITE_IOERR_DELETE); return super().xDelete(name, sync)
    def xAccess(self, name, flags): Fault.point(apsw.SQLITE_IOERR_ACCESS); return super().xAccess(name, flags)

class Open(p.Case):
    "a file that is there already, by a manager"
    def open(self): return mgr()
    def before(self, m): m.submit('a', p.works, x=1)
    def act(self, m):
        lane = m._lane
        m.close(); lane.close()
        BackgroundTaskManager(m.db, tasks=[p.works], worker=False, clock=p.clock).list_jobs()
    def ended(self, m): assert names(m, status='completed')==['a']

CALLS = ('submit','submit_many','unique','run','retry','rescue','schedule','transaction','job_transaction','step','cancel','limit','controls','children','retry_by_hand','prune')
CASES = dict(open=Open(), **{k:p.CASES[k] for k in CALLS})
KINDS = dict(once=(False, apsw.SQLITE_IOERR_WRITE), on=(True, apsw.SQLITE_IOERR_WRITE), full=(True, apsw.SQLITE_FULL))

def fails_well(f, own_sql):
    "Call it: whether it raised what it may raise; SQL of the app's own gets the driver's error"
    try: f()
    except StoreError as e: assert 't.db' in str(e), f'the error does not name the file: {e}'; return True
    except apsw.Error:
        if own_sql: return True
        raise
    return False

def one(case, at, kind, where, template):
    "One call that fails: how many there are if it was not reached, else None. Raises `AssertionError`"
    p.folder = str(where)
    shutil.copytree(template, where, ignore=shutil.ignore_patterns('bells'))
    def act():
        Vfs.keep = Vfs()
        Fault.at,(Fault.ever,Fault.full) = at,KINDS[kind]
        m = case.open()
        Fault.on = True
        failed = fails_well(lambda: case.act(m), isinstance(case, p.Transaction))
        n,Fault.on = Fault.n,False
        (where/'points').write_text(f'{n} {failed:d}')
        if n<at: os._exit(0)
        if m.closed: m = case.open()
        case.after(m)                          # in the same process, as soon as the disk works again
        p.drain(m)
        case.ended(m)
        os._exit(0)
    def check():
        m = case.open()
        assert m._lane.store.read('pragma integrity_check')==[('ok',)]
        p.drain(m)
        case.ended(m)
        os._exit(0)
    if forked(act): raise AssertionError(f'call {at}, {kind}: does not hold when the disk works again')
    if forked(check): raise AssertionError(f'call {at}, {kind}: does not hold after a restart')
    n,failed = map(int, (where/'points').read_text().split())
    return (n if n<at else None),failed

def calls(only=None, kinds=tuple(KINDS)):
    "All calls of all cases; by case (calls, times that the caller was told)"
    base,counts = Path(tempfile.mkdtemp(prefix='disk', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)),{}
    try:
        for name,case in CASES.items():
            if only and name not in only: continue
            p.folder = str(base/name); os.mkdir(p.folder)
            assert forked(lambda: case.before(case.open()))==0, f'{name}: could not be prepared'
            n = told = 0
            for kind in kinds:
                for at in range(1, 10**6):
                    where = base/f'{name}-{kind}-{at}'
                    try: end,failed = one(case, at, kind, where, base/name)
                    except AssertionError as e: raise AssertionError(f'{name}, {e}; replay: python -m tests.chaos --only disk --case {name}') from e
                    shutil.rmtree(where)
                    if end is not None: break
                    n += 1; told += failed
            counts[name] = n,told
    finally: shutil.rmtree(base, ignore_errors=True)
    return counts

# --- a disk with no room

def small_disk(where, kib):
    "A file system of its own, which goes with this process; False where that may not be made"
    import ctypes
    if not hasattr(os, 'geteuid') or os.geteuid() or ctypes.CDLL(None).unshare(0x20000): return False
    run = lambda *a: subprocess.run(a, capture_output=True).returncode==0
    return run('mount', '--make-rprivate', '/') and run('mount', '-t', 'tmpfs', '-o', f'size={kib}k', 'none', str(where))

def fill(where, pages):
    "Leave room for so many pages"
    with open(f'{where}/filler', 'wb', buffering=0) as f:
        try:
            while True: f.write(bytes(4096))
        except OSError: pass
        f.truncate(max(0, f.tell()-4096*pages))

def full_one(case, pages, where, template):
    where.mkdir()
    p.folder = str(where)
    def act():
        if not small_disk(where, 1024):      # a bound for each file will do
            bound = lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            no_room,room = lambda: bound(max(o.stat().st_size for o in where.glob('t.db*'))+2048*pages),lambda: bound(resource.RLIM_INFINITY)
        else: no_room,room = lambda: fill(where, pages),lambda: os.unlink(where/'filler')
        shutil.copytree(template, where, ignore=shutil.ignore_patterns('bells'), dirs_exist_ok=True)
        m = case.open()
        m._lane.store.read('select 1 from tenant_jobs')
        said_before = p.say
        heard = []
        p.say = lambda *a: heard.append(a)         # what is said goes to no full disk
        no_room()
        failed = fails_well(lambda: case.act(m), isinstance(case, p.Transaction))
        room()
        p.say = said_before
        for o in heard: p.say(*o)
        case.after(m); p.drain(m); case.ended(m)
        assert m._lane.store.read('pragma integrity_check')==[('ok',)]
        os._exit(10+failed)
    rc = forked(act)
    if rc not in (10, 11): raise AssertionError(f'room for {pages} pages: does not hold')
    return rc==11

def full(only=None):
    "As many pages are free as an operation needs, and all fewer; by case (disks, times that the caller was told)"
    base,counts = Path(tempfile.mkdtemp(prefix='full', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)),{}
    try:
        for name in ('submit','submit_many','run','retry','transaction','job_transaction','step','cancel','children'):
            if only and name not in only: continue
            p.folder = str(base/name); os.mkdir(p.folder)
            assert forked(lambda: CASES[name].before(CASES[name].open()))==0, f'{name}: could not be prepared'
            n = told = 0
            while n<100:
                try: failed = full_one(CASES[name], n, base/f'{name}-{n}', base/name)
                except AssertionError as e: raise AssertionError(f'{name}, {e}') from e
                n += 1; told += failed
                if n>told+3: break           # four that had enough
            counts[name] = n,told
    finally: shutil.rmtree(base, ignore_errors=True)
    return counts

# --- spoilt files, beside a good one

def house(**kw): return Tenants(p.folder, tasks=[p.works], handoff=0, **kw)

def prepare():
    ts = house(worker=False)
    a,b = (ts.create(o).jobs for o in 'ab')
    for m in (a, b): m.submit_many('j', p.works, [dict(x=f'{m.id}{i}') for i in range(30)])
    ts.close()
    shutil.copy(f'{p.folder}/a.db', f'{p.folder}/older')
    ts = house(worker=False)
    ts['a'].jobs.run_due()
    ts['a'].jobs.submit_many('k', p.works, [dict(x=f'a{i}') for i in range(30, 60)])
    ts.close()

def over(path, at, b):
    with open(path, 'r+b') as f: f.seek(at); f.write(b)
def junk(n, seed): return hashlib.shake_128(str(seed).encode()).digest(n)
def put(path, b): Path(f'{path}.new').write_bytes(b); os.replace(f'{path}.new', path)

def pages(path):
    "Ways to spoil each page"
    n = os.stat(path).st_size//4096
    old = Path(path).with_name('older').read_bytes()
    for i in range(n):
        yield f'page {i+1} of zeros',lambda f, i=i: over(f, 4096*i, bytes(4096))
        yield f'page {i+1} of junk',lambda f, i=i: over(f, 4096*i, junk(4096, i))
        yield f'half of page {i+1} of zeros',lambda f, i=i: over(f, 4096*i+2048, bytes(2048))
        if len(old)>4096*i: yield f'page {i+1} as it was before',lambda f, i=i: over(f, 4096*i, old[4096*i:4096*i+4096])

def _dir(f): os.unlink(f); os.mkdir(f)
def _link(f): os.unlink(f); os.symlink('/nowhere/x', f)
WHOLE = {                                       # ways to spoil a file
    'empty': lambda f: os.truncate(f, 0), 'text': lambda f: put(f, b'hello '*5000), 'another magic': lambda f: over(f, 0, b'SQLite format 4\0'), 'a page size that cannot be': lambda f: over(f, 16, b'\0\7'),
    'a version to come': lambda f: over(f, 18, b'\7\7'), 'half of it': lambda f: os.truncate(f, os.stat(f).st_size//8192*4096), 'cut within a page': lambda f: os.truncate(f, os.stat(f).st_size-2500),
    'its first page alone': lambda f: os.truncate(f, 4096), 'junk behind it': lambda f: over(f, os.stat(f).st_size, junk(5000, 'tail')), 'the file of another tenant': lambda f: put(f, Path(f).with_name('b.db').read_bytes()),
    'an older file': lambda f: put(f, Path(f).with_name('older').read_bytes()), 'a folder': _dir, 'a link to nowhere': _link, 'missing': os.unlink}
OPEN = {**{k:WHOLE[k] for k in ('text', 'the file of another tenant', 'an older file', 'a folder', 'missing')},       # and while a worker has it open
    'overwritten': lambda f: over(f, 0, junk(os.stat(f).st_size, 'all')), 'emptied': lambda f: os.truncate(f, 0),
    'its log missing': lambda f: os.unlink(f+'-wal'), 'its log and the index missing': lambda f: (os.unlink(f+'-wal'), os.unlink(f+'-shm')), 'its log emptied': lambda f: os.truncate(f+'-wal', 0),
    'its log overwritten': lambda f: over(f+'-wal', 0, junk(os.stat(f+'-wal').st_size, 'log')), 'an older file, and its log left': lambda f: put(f, Path(f).with_name('older').read_bytes())}

KILLED = 'the file of another tenant','an older file','an older file, and its log left','its log missing','its log and the index missing'    # here the process is killed afterwards

def asks(t, name):
    "What people ask a tenant: each is answered, or raises an error that names the file"
    bad,got = 0,None
    for f in (lambda m: m.list_jobs(limit=1000), lambda m: m.list_jobs(status='pending'), lambda m: m.list_jobs('j', limit=3), lambda m: m.submit('l', p.works, x='late')):
        try: got = f(t.jobs)
        except StoreError as e: assert f'{name}.db' in str(e) or os.path.realpath(f'{p.folder}/{name}.db') in str(e), e; bad += 1; got = None
    return bad,got and got[0]

def done(ts, id, n):
    try: js = ts[id].jobs.list_jobs(limit=1000)
    except StoreError: return False
    return len([o for o in js if o.status=='completed'])>=n

def spoilt(how, spoil, where, template, running):
    "One way: what became of it. Raises `AssertionError`"
    p.folder,killed = str(where),running and how.split(': ')[1] in KILLED
    shutil.rmtree(where, ignore_errors=True)
    shutil.copytree(template, where)
    f = str(where/'a.db')
    def act():
        if not running: spoil(f)
        ts = house(threads=2)
        if running:
            until(lambda: done(ts, 'a', 60))
            ts['a'].jobs.submit('l', p.works, x='last'); until(lambda: done(ts, 'a', 61))
            spoil(f)
        until(lambda: done(ts, 'b', 30), 30)
        end = time.monotonic()+4.                # SQLite has no checksums: it may find nothing wrong, and less than there was
        while not (seen := 'a' in ts.health()['tenants'] or done(ts, 'a', 60)) and time.monotonic()<end: time.sleep(.02)
        bad,id = asks(ts['a'], 'a')
        ts['b'].jobs.submit('j', p.works, x='b30'); until(lambda: done(ts, 'b', 31))
        ran = {o for o, in said('ran')}
        try: js = ts['a'].jobs.list_jobs(limit=1000)
        except StoreError: js = []
        for o in js:
            if o.status=='completed': assert o.payload and any(f'"{x}"' in o.payload for x in ran), f'completed and never run: {o}'
        why = ts.health()['tenants'].get('a')
        if not killed: ts.close()
        Path(where/'id').write_text(id or '')
        Path(where/'became').write_text(f'{why["status"]}: {why["why"]}' if why else f'served, with {bad} errors when asked' if bad and seen else 'served' if seen else f'not noticed by the worker; {bad} errors when asked')
        os._exit(0)
    if forked(act): raise AssertionError(f'{how}: does not hold')
    if Counter(o for o, in said('ran') if o[0]=='b').most_common(1)[0][1]>1: raise AssertionError(f'{how}: a job of the other tenant ran twice')
    def left():
        c,id = apsw.Connection(f),(where/'id').read_text()
        assert c.execute('pragma integrity_check').fetchall()==[('ok',)]
        assert not id or c.execute('select 1 from tenant_jobs where id=?', (id,)).fetchall(), 'submit had said yes, and the job is not there'
        was = c.execute("select count(*) from tenant_jobs where payload like '%last%'").fetchall()[0][0]
        assert was==('missing' in how), 'something of the old file has got into the new one'
        os._exit(0)
    if killed and forked(left): raise AssertionError(f'{how}: does not hold after kill -9')
    def mended():
        for o in 'a.db', 'a.db-wal', 'a.db-shm':
            if os.path.isdir(where/o): os.rmdir(where/o)
            elif os.path.lexists(where/o): os.unlink(where/o)
        shutil.copy(template/'a.db', f)
        ts = house(worker=False)
        ts['a'].jobs.list_jobs()                # looks whether it is older than the registry knows
        if ts['a'].status=='quarantined': ts['a'].resume()
        ts['a'].jobs.run_due()
        assert done(ts, 'a', 60) and {o for o, in said('ran')}>={f'a{i}' for i in range(60)}
        os._exit(0)
    if forked(mended): raise AssertionError(f'{how}: does not go on with a good file in its place')
    return (where/'became').read_text()

def files(which=('pages', 'whole', 'open'), step=1):
    "All ways; {(which, way): what became of it}"
    base,out = Path(tempfile.mkdtemp(prefix='files', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)),{}
    try:
        p.folder = str(base/'x'); os.mkdir(p.folder)                # a file knows its path: they are all tried where they were made
        assert forked(prepare)==0, 'could not be prepared'
        shutil.copytree(base/'x', base/'good', ignore=shutil.ignore_patterns('.fh_saas'))
        ways = [(k, how, f) for k in which for how,f in (list(pages(p.folder+'/a.db')) if k=='pages' else dict(whole=WHOLE, open=OPEN)[k].items())]
        for i,(k,how,f) in enumerate(ways):
            if k=='pages' and i%step: continue
            out[k, how] = spoilt(f'{k}: {how}', f, base/'x', base/'good', k=='open')
    finally: shutil.rmtree(base, ignore_errors=True)
    return out

def run(only=None, kinds=tuple(KINDS), which=('pages', 'whole', 'open'), step=1, room=None, tell=print):
    "All of it, or the `only` operations whose calls fail. Raises `AssertionError` saying what does not hold"
    got = calls(only, kinds)
    tell('calls: {:,} failed in {} operations; the caller was told {:,} times'.format(sum(o[0] for o in got.values()), len(got), sum(o[1] for o in got.values())))
    if only: return
    got = full(room)
    tell('full disks: {:,} in {} operations; the caller was told {:,} times'.format(sum(o[0] for o in got.values()), len(got), sum(o[1] for o in got.values())))
    got = files(which, step)
    tell(f'spoilt files: {len(got):,}')
    for k,n in Counter((k, o.replace('active: ', '').split('/')[0]+re.sub(r'.*?a\.db(-wal)? ', '', o)[:60] if 'a.db' in o else o.split(':')[0]) for (k,_),o in got.items()).most_common(): tell(f'    {k[0]:6} {k[1]:75} {n:>5,}')
