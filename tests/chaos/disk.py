"""P1, P3, P4, P5, P8: the disk fails. A VFS makes each call in turn fail, once or from then on, in everything that writes, and so does each statement: the error is
a `StoreError` that names the file, what had been reported is there, nothing is done by half, and when the disk works again the same process goes on. Then each page of a tenant's file is
spoiled, and other things are put in its place, while a worker serves it beside another tenant. Run it in a process that has opened nothing: it forks"""
import hashlib, os, re, resource, shutil, subprocess, tempfile, time
from collections import Counter
from pathlib import Path

import apsw
from fh_saas.store import sqlite_file
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

class Statements(apsw.Connection):
    "Has a statement fail instead of the disk: SQLite leaves a transaction open then, with what it has done so far. Those that undo, and the one that only sets a number, cannot fail"
    def __init__(self, *args):
        super().__init__(*args)
        self.exec_trace = self._before
    def _before(self, cur, sql, args):
        if not sql.startswith(('rollback', 'release', 'pragma synchronous')): Fault.point(apsw.SQLITE_CONSTRAINT)
        return True

class _Apsw:
    Connection = Statements
    def __getattr__(self, k): return getattr(apsw, k)

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
KINDS = dict(once=(False, apsw.SQLITE_IOERR_WRITE), on=(True, apsw.SQLITE_IOERR_WRITE), full=(True, apsw.SQLITE_FULL), statement=(False, None))

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
        if kind=='statement': sqlite_file.apsw = _Apsw()
        else: Vfs.keep = Vfs()
        Fault.at,(Fault.ever,Fault.full) = at,KINDS[kind]
        m = case.open()
        Fault.on = True
        failed = fails_well(lambda: case.act(m), isinstance(case, p.Transaction))
        n,Fault.on = Fault.n,False
        (where/'points').write_text(f'{n} {failed:d}')
        if n<at: os._exit(0)
        if m.closed: m = case.open()
        with m._lane.store.writing(): pass     # nothing was left open
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
    "All calls, and all statements, of all cases; by case (how many, times that the caller was told)"
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
        try: js = ts['a'].jobs.list_jobs(limit=1000)
        except StoreError: js = []
        ran = {o for o, in said('ran')}         # read after the rows: a job that ran between the two would look as if it never had
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

# --- a disk that becomes read-only under a running worker, and writable again

def mount(*a): return subprocess.run(['mount', *map(str, a)], capture_output=True).returncode==0

def holds(x):
    "Begins, and ends when it may"
    p.say('ran', x)
    until((Path(p.folder)/'go').exists, 60)
    p.say('held', x)
    return x

def statuses(t, job_type): return [o.status for o in t.jobs.list_jobs(job_type, limit=1000)]
def told(f):
    "The error that says why a tenant cannot be used; None if it can"
    try: f()
    except StoreError as e: assert 'a.db' in str(e), f'the error does not name the file: {e}'; return str(e)

def two(disk, **kw):
    "Two tenants, the first on a disk of its own"
    ts = Tenants(p.folder, tasks=[p.works, holds], handoff=0, threads=2, **kw)
    if 'a' not in ts: ts.create('a').move(disk); ts.create('b')
    ts['a'].jobs.submit_many('j', p.works, [dict(x=f'a{i}') for i in range(5)])
    until(lambda: statuses(ts['a'], 'j').count('completed')==5)
    return ts

def shut_out(ts, n):
    "Nothing can be written: the caller is told so, and the other tenant is served"
    why = told(lambda: ts['a'].jobs.submit('late', p.works, x='late'))
    assert why, 'submit said yes on a disk that takes nothing'
    ts['b'].jobs.submit_many('j', p.works, [dict(x=f'b{n}-{i}') for i in range(5)])
    until(lambda: statuses(ts['b'], 'j').count('completed')==5*n, 20)
    return why

def goes_on(ts):
    "It can be written again: all jobs end, each of which had ended only once"
    until(lambda: told(lambda: ts['a'].jobs.submit('after', p.works, x='after')) is None, 20, .05)
    until(lambda: not [o for o in ts['a'].jobs.list_jobs(limit=1000) if o.status!='completed'], 30, .05)
    until(lambda: not ts.health()['tenants'], 20, .05)
    ran = Counter(o for o, in said('ran'))
    assert ran['after']==1 and not ran['late'] and all(ran[f'a{i}']==1 for i in range(5)), ran

def remounted(disk):
    "The system refuses it while the worker has a tenant there open, and does it once the worker has closed it. A job becomes due meanwhile"
    if not small_disk(disk, 2048): return 'not tried: this process may not mount anything'
    late,go = [0.],Path(p.folder)/'go'
    ts = two(disk, idle_s=.2, clock=lambda: time.time()+late[0])
    a = ts['a'].jobs
    a.submit('held', holds, x='h')
    until(lambda: ['h'] in said('ran'))
    assert not mount('-o', 'remount,ro', disk), 'remounted although the file is open'
    go.touch()
    until(lambda: statuses(ts['a'], 'held')==['completed'])
    until(lambda: told(lambda: a.options(delay=3600).submit('due', p.works, x='due')) is None)
    until(lambda: mount('-o', 'remount,ro', disk), 20, .05)
    why = shut_out(ts, 1)
    assert 'read-only' in why, why
    late[0] = 3601.                                 # it becomes due
    shut_out(ts, 2)
    assert ['due'] not in said('ran')
    assert mount('-o', 'remount,rw', disk)
    goes_on(ts)
    assert Counter(o for o, in said('ran'))['due']==1
    ts.close()
    return why

class Mute(apsw.VFS):
    "The disk of tenant a takes no more writes while `on`, as an open file of a read-only file system takes none"
    on = False
    def __init__(self): super().__init__('mute', 'unix', makedefault=True)
    def excepthook(self, *a): pass
    def xOpen(self, name, flags): return MuteFile(name, flags)
    def xDelete(self, name, sync): refuse(name, apsw.SQLITE_IOERR_DELETE); return super().xDelete(name, sync)

def refuse(name, code):
    if Mute.on and 'a.db' in str(name): raise apsw.exception_for(code)

class MuteFile(apsw.VFSFile):
    def __init__(self, name, flags): self.path = name.filename() if hasattr(name, 'filename') else name; super().__init__('unix', name, flags)
    def xWrite(self, data, at): refuse(self.path, apsw.SQLITE_IOERR_WRITE); return super().xWrite(data, at)
    def xTruncate(self, n): refuse(self.path, apsw.SQLITE_IOERR_TRUNCATE); return super().xTruncate(n)
    def xSync(self, flags): refuse(self.path, apsw.SQLITE_IOERR_FSYNC); return super().xSync(flags)

def muted(disk):
    "Writes to the open file are refused while a job of the tenant executes, and for a while after its end"
    Vfs.keep = Mute()
    ts = two(disk)
    ts['a'].jobs.submit('held', holds, x='h')
    until(lambda: ['h'] in said('ran'))
    Mute.on = True
    (Path(p.folder)/'go').touch()
    until(lambda: ['h'] in said('held'))
    why = shut_out(ts, 1)
    until(lambda: 'a' in ts.health()['tenants'], 20, .05)
    shut_out(ts, 2)
    assert statuses(ts['a'], 'held')==['running'], 'completed, and that is not on the disk'
    Mute.on = False
    goes_on(ts)
    assert Counter(o for o, in said('ran'))['h']==1, 'the worker knew that it had ended'
    ts.close()
    return why

def aborted(disk):
    "ext4 makes itself read-only, as it does after an error, while a job of the tenant executes; the process is killed, and the disk mounted anew"
    img = f'{p.folder}/img'
    first = not os.path.exists(img)
    if first:
        with open(img, 'wb') as f: f.truncate(16<<20)
        if subprocess.run(['mkfs.ext4', '-q', img], capture_output=True).returncode: return 'not tried: there is no ext4'
    if not small_disk(disk, 64) or not until(lambda: mount('-o', 'loop', img, disk) or first and 'no', 20, .1) is True: return 'not tried: no file can be mounted as a disk'
    ts = two(disk) if first else Tenants(p.folder, tasks=[p.works, holds], handoff=0, threads=2)
    if first:
        ts['a'].jobs.submit('held', holds, x='h')
        until(lambda: ['h'] in said('ran'))
        assert mount('-o', 'remount,abort', disk)
        (Path(p.folder)/'go').touch()
        until(lambda: ['h'] in said('held'))
        why = shut_out(ts, 1)
        assert 'disk' in why, why                 # newer systems do not say of such a disk that it is read-only
        until(lambda: 'a' in ts.health()['tenants'], 20, .05)
        return why
    goes_on(ts)
    assert Counter(o for o, in said('ran'))['h']==2, 'its end was not on the disk: it runs again'
    ts.close()

def readonly():
    "Each way; what the caller was told"
    base,out = Path(tempfile.mkdtemp(prefix='readonly')),{}
    try:
        for f in remounted, muted, aborted:
            p.folder,disk = str(base/f.__name__),base/f'{f.__name__}-disk'
            os.mkdir(p.folder); os.mkdir(disk)
            def act(): Path(f'{base}/why').write_text(f(disk) or ''); os._exit(0)
            if forked(act): raise AssertionError(f'read-only, {f.__name__}: does not hold')
            out[f.__name__] = (base/'why').read_text()
            if f is aborted and 'not tried' not in out['aborted'] and forked(act): raise AssertionError('read-only, aborted: does not go on when it is mounted anew')
    finally: shutil.rmtree(base, ignore_errors=True)
    return out

def run(only=None, kinds=tuple(KINDS), which=('pages', 'whole', 'open'), step=1, room=None, tell=print):
    "All of it, or the `only` operations whose calls fail. Raises `AssertionError` saying what does not hold"
    for what,ks in dict(calls=[o for o in kinds if o!='statement'], statements=[o for o in kinds if o=='statement']).items():
        got = calls(only, ks)
        tell('{}: {:,} failed in {} operations; the caller was told {:,} times'.format(what, sum(o[0] for o in got.values()), len(got), sum(o[1] for o in got.values())))
    if only: return
    got = full(room)
    tell('full disks: {:,} in {} operations; the caller was told {:,} times'.format(sum(o[0] for o in got.values()), len(got), sum(o[1] for o in got.values())))
    for k,why in readonly().items(): tell(f'read-only, {k}: '+re.sub(r'/\S*/', '', why))
    got = files(which, step)
    tell(f'spoilt files: {len(got):,}')
    for k,n in Counter((k, o.replace('active: ', '').split('/')[0]+re.sub(r'.*?a\.db(-wal)? ', '', o)[:60] if 'a.db' in o else o.split(':')[0]) for (k,_),o in got.items()).most_common(): tell(f'    {k[0]:6} {k[1]:75} {n:>5,}')
