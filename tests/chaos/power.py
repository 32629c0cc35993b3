"""P1, P4, P5: the power fails. A VFS keeps a log of everything that is written, cut, flushed, named and removed; then, for each flush, the disk is built
as it may look if the power fails just before it: what was flushed is there, and of all that was not, any part may be missing or torn. A plain process opens
it: the file is whole, what had been reported is there, nothing is there by half, and every job ends. Run it in a process that has opened nothing: it forks"""
import hashlib, os, pickle, shutil, tempfile, threading
from pathlib import Path

import apsw
from fastlite import database
from fh_saas.running import check_in, moving
from fh_saas.store import sqlite_file
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager
from util import until
from . import points as p
from .points import Case, forked, mgr, names, rows, said, works, writes

SECTOR = 512

# --- the log

class Log:
    "What this process did to the disk, and what it said, in order"
    def __init__(self, folder): self.folder,self.ops,self.nodes,self.lock,self.n = str(folder),[],{},threading.RLock(),0
    def add(self, *op):
        with self.lock: self.ops.append(op)
    def node(self, path):
        "The number of the file that has this name now; a new one if it has none"
        with self.lock:
            if path not in self.nodes: self.n += 1; self.nodes[path] = self.n; self.add('name', path, self.n)
            return self.nodes[path]
    def unname(self, path):
        if self.nodes.pop(path, None): self.add('unname', path)
    def mine(self, path): return path.startswith(self.folder) and not path.endswith('-shm') and '.fh_saas' not in path

def _name(n): return n.filename() if hasattr(n, 'filename') else n

class File(apsw.VFSFile):
    def __init__(self, log, name, flags):
        super().__init__('unix', name, flags)
        path,self.log = _name(name),log
        self.node = log.node(path) if path and log.mine(path) else None
        self.dir = os.path.dirname(path) if flags[0]&(apsw.SQLITE_OPEN_MAIN_JOURNAL|apsw.SQLITE_OPEN_WAL|apsw.SQLITE_OPEN_SUPER_JOURNAL) else None
    def xWrite(self, data, at):
        super().xWrite(data, at)
        if self.node: self.log.add('write', self.node, at, bytes(data))
    def xTruncate(self, n):
        super().xTruncate(n)
        if self.node: self.log.add('cut', self.node, n)
    def xSync(self, flags):
        super().xSync(flags)
        if not self.node: return
        self.log.add('flush', self.node)
        if self.dir: self.log.add('flush_folder', self.dir); self.dir = None       # SQLite flushes the folder with the first flush of a log

class Vfs(apsw.VFS):
    def __init__(self, log): self.log = log; super().__init__('power', 'unix', makedefault=True)
    def xOpen(self, name, flags): return File(self.log, name, flags)
    def xDelete(self, name, sync):
        super().xDelete(name, sync)
        if self.log.mine(name): self.log.unname(name)
        if sync: self.log.add('flush_folder', os.path.dirname(name))

def watch_os(log):
    "The same for what the package itself does to files"
    link,unlink,rename,fsync,mkdir = os.link,os.unlink,os.rename,os.fsync,os.mkdir
    def a_link(a, b):
        link(a, b)
        with log.lock: n = log.node(str(a)); log.nodes[str(b)] = n; log.add('name', str(b), n)
    def an_unlink(o, **kw): unlink(o, **kw); log.unname(str(o))
    def a_rename(a, b):
        rename(a, b)
        if not log.mine(str(a)): return
        with log.lock: n = log.nodes.pop(str(a)); log.nodes[str(b)] = n; log.add('rename', str(a), str(b), n)
    def an_fsync(fd):
        fsync(fd)
        path = os.readlink(f'/proc/self/fd/{fd}')
        if os.path.isdir(path): log.add('flush_folder', path)
        elif log.mine(path): log.add('flush', log.node(path))
    def a_folder(o, *a, **kw): mkdir(o, *a, **kw); log.add('folder', str(o))
    os.link,os.unlink,os.rename,os.fsync,os.mkdir = a_link,an_unlink,a_rename,an_fsync,a_folder
    def opened(path, mode='r', *a, **kw):       # of what is written with `open`: all at once, when it is flushed
        f = open(path, mode, *a, **kw)
        if 'w' in mode and log.mine(str(path)):
            n,write = log.node(str(path)),f.write
            class W:
                def __enter__(self): return self
                def __exit__(self, *e): f.close()
                def __getattr__(self, k): return getattr(f, k)
                def write(self, b): log.add('write', n, f.tell(), bytes(b)); return write(b)
            return W()
        return f
    check_in.open = moving.open = opened

# --- the disk

class Disk:
    "Files as they are after a power cut: `names` and `data` are safe, `late` is not"
    def __init__(self, folder):
        self.names,self.data,self.late = {},{},[]
        for i,o in enumerate(sorted(Path(folder).rglob('*'))):
            if o.is_file() and not o.name.endswith('-shm') and '.fh_saas' not in o.parts: self.names[str(o)] = -i-1; self.data[-i-1] = o.read_bytes()

    def flush(self, node=None, folder=None):
        keep = []
        for op in self.late:
            if node is not None and op[0] in ('write', 'cut') and op[1]==node or folder and op[0] not in ('write', 'cut') and os.path.dirname(op[1])==folder: self._do(self.names, self.data, op)
            else: keep.append(op)
        self.late = keep

    @staticmethod
    def _do(names, data, op):
        k = op[0]
        if k=='write':
            b = data.get(op[1], b'')
            if len(b)<op[2]: b += bytes(op[2]-len(b))
            data[op[1]] = b[:op[2]]+op[3]+b[op[2]+len(op[3]):]
        elif k=='cut': data[op[1]] = data.get(op[1], b'')[:op[2]].ljust(op[2], b'\0')
        elif k=='name': names[op[1]] = op[2]
        elif k=='rename': names.pop(op[1], None); names[op[2]] = op[3]
        elif k=='unname': names.pop(op[1], None)

    def after(self, ops):
        "Files by name if of what was late just these reached the disk"
        names,data = dict(self.names),dict(self.data)
        for op in ops: self._do(names, data, op)
        return {k:data.get(n, b'') for k,n in names.items()}

def sectors(op):
    "A write as writes of the sectors that it touches"
    _,node,at,b = op
    cuts = [at, *range((at//SECTOR+1)*SECTOR, at+len(b), SECTOR), at+len(b)]
    return [('write', node, i, b[i-at:j-at]) for i,j in zip(cuts, cuts[1:])]

def choices(late):
    "What may have reached the disk of all that was not flushed: lists of operations"
    n = len(late)
    yield []
    yield late
    for i,o in enumerate(late):
        before,after = late[:i],late[i+1:]
        if i: yield before                                  # in order, up to here
        yield [*before, *after]                             # this one did not
        if n>2: yield [o]                                   # this one alone
        if o[0]!='write': continue
        junk = ('write', o[1], o[2], hashlib.shake_128(b'junk').digest(len(o[3])))
        yield [*before, junk]; yield [*before, junk, *after]
        ss = sectors(o)
        if len(ss)<2: continue
        for part in (ss[:1], ss[1:], ss[:-1], ss[-1:], ss[:len(ss)//2], ss[len(ss)//2:], ss[::2], ss[1::2]):
            yield [*before, *part]; yield [*before, *part, *after]
    yield [('write', o[1], o[2], bytes(len(o[3]))) if o[0]=='write' else o for o in late]      # the files have grown, and nothing is in them

# --- what is done

def say(*words): log.add('say', *map(str, words)); _say(*words)
log,_say = None,p.say

def small_logs():
    "Logs are copied into their files after a few pages already"
    sqlite_file.CHECKPOINT,sqlite_file.CHECKPOINT_MUST = 4,9

def still(m):
    "What had been seen as completed is so still"
    done = {o for o, in said('done')}
    assert done<={o.id for o in m.list_jobs(status='completed', limit=10**6)}, 'seen as completed, and is not any more'
def see(m): [p.say('done', o.id) for o in m.list_jobs(status='completed', limit=10**6)]

class NewFile(Case):
    "from the first byte of the file on"
    fresh = True
    opens = True
    def act(self, m):
        m = mgr()
        for i in range(3): p.say('id', m.submit('a', works, x=i)[0])
    def after(self, m): assert [o for o, in said('id')]==[o.id for o in reversed(rows(m))][:len(said('id'))] and len(rows(m))<=3

class Logs(Case):
    "submits and ends, while the log is copied into the file and begun anew again and again"
    def act(self, m):
        small_logs()
        for i in range(12):
            p.say('id', m.submit('a', works, x=i)[0])
            if i%3==2: m.run_due(); see(m)
            if i%4==3: m._lane.store.checkpoint()
    def after(self, m): assert {o for o, in said('id')}<={o.id for o in rows(m)}; still(m)
    def ended(self, m): assert names(m, status='completed')==['a']*len(rows(m))

class Together(Case):
    "threads whose rows share commits"
    def act(self, m):
        small_logs()
        def submit(k): [p.say('id', m.submit('a', works, x=f'{k}-{i}')[0]) for i in range(4)]
        ts = [threading.Thread(target=submit, args=(k,)) for k in range(4)]
        for o in ts: o.start()
        for o in ts: o.join()
    def after(self, m): assert {o for o, in said('id')}<={o.id for o in rows(m)} and len(rows(m))<=16

class Close(Case):
    "closing, which copies the log and removes it, and opening again"
    opens = True
    def act(self, m):
        for i in range(3):
            m = mgr()
            p.say('id', m.submit('a', works, x=i)[0]); m.run_due(); see(m)
            lane = m._lane; m.close(); m.db.conn.close(); lane.close()
    def after(self, m): assert {o for o, in said('id')}<={o.id for o in rows(m)}; still(m)

class End(Case):
    "claims that are not flushed, ends that are"
    def before(self, m):
        for i in range(4): m.submit('a', works, x=i)
        m.submit('b', p.fails, 1, x='f')
    def act(self, m): m.run_due(); see(m); [p.say('failed', o.id) for o in m.list_jobs(status='failed')]
    def after(self, m): still(m); assert {o for o, in said('failed')}<={o.id for o in m.list_jobs(status='failed')}
    def ended(self, m): assert names(m, status='completed')==['a']*4 and {o for o, in said('ran')}=={*'0123', 'f'}

class TwoTransactions(Case):
    "P4, P5: what a transaction wrote and the end of its job are there together, from the moment on at which it returned"
    def before(self, m):
        for i in range(2): m.submit('a', writes, x=i)
    def act(self, m):
        small_logs()
        m.run_due(); see(m)
        with m.transaction() as db:
            db.q("insert into effects values('t') returning 1")
            m.submit('t', works, x='t')
        p.say('ok')
    def after(self, m):
        still(m)
        effects = [str(o['x']) for o in m.db.q('select x from effects')]
        assert sorted(effects)==sorted([o.payload[5:-1] for o in m.list_jobs('a', 'completed')]+['t']*len(m.list_jobs('t'))), 'rows and ends are one commit'
        assert len(m.list_jobs('t'))>=len(said('ok'))
    def ended(self, m): assert sorted(str(o['x']) for o in m.db.q("select x from effects where x<>'t'"))==['0', '1']

class Begun(Case):
    "while one of two claimed jobs executes; and the list of what executes may be gone, empty or nonsense after the cut"
    def before(self, m): [m.submit('a', works, x=i) for i in range(2)]
    def act(self, m):
        lane = m._lane
        a,b = lane.turn(2)
        lane.start(a)
        m.submit('b', works, x='b'); p.say('b')             # takes the claims to the disk with it
    def after(self, m): assert len(m.list_jobs('b'))>=len(said('b'))
    def ended(self, m): assert {o.status for o in rows(m)}=={'completed'} and max(o.retry_count for o in rows(m))<=1

class Made(Case):
    "a tenant is made, has a job, and its number of ends reaches the registry"
    fresh = True
    opens = True
    def open(self):
        self.ts = ts = Tenants(p.folder, worker=False, tasks=[works], clock=p.clock)
        try: return (ts['a'] if 'a' in ts else ts.create('a')).jobs
        except ValueError as e: assert 'exists; to take it over' in str(e); return ts.create('a', path=Path(p.folder)/'a.db').jobs
    def act(self, m):
        ts = Tenants(p.folder, worker=False, tasks=[works], clock=p.clock)
        m = ts.create('a').jobs; p.say('made')
        for i in range(2): p.say('id', m.submit('a', works, x=i)[0]); m.run_due(); see(m); ts._flush()
        ts.close()
    def after(self, m):
        t = self.ts['a']
        if t.status=='quarantined' and not said('made'): t.resume()        # its file was made and the registry did not know of it yet
        assert {o for o, in said('id')}<={o.id for o in rows(m)} and t.status=='active'; still(m)

class Gone(Case):
    "a tenant is deleted, and its name given to another"
    fresh = True
    def open(self):
        self.ts = ts = Tenants(p.folder, worker=False, tasks=[works], clock=p.clock)
        return ts['a'].jobs if 'a' in ts else None if said('going') else ts.create('a').jobs
    def before(self, m): m.submit('a', works, x=1)
    def act(self, m):
        p.say('going'); self.ts['a'].delete('a'); p.say('gone')
        p.say('id', self.ts.create('a').jobs.submit('b', works, x=2)[0])
    def after(self, m):
        if said('id'): assert names(m)==['b']
        elif m: assert names(m) in (['a'], ['b'], []) and (not said('gone') or names(m)!=['a'])
        else: assert 'a' not in self.ts
    def ended(self, m): pass

class Worked(Case):
    "with the worker's own threads"
    opens = True
    def open(self, **kw): return BackgroundTaskManager(database(f'{p.folder}/t.db'), tasks=[works], clock=p.clock, **dict(dict(worker=False)|kw))
    def act(self, m):
        small_logs()
        m = self.open(worker=True, handoff=0)
        for i in range(8): p.say('id', m.submit('a', works, x=i)[0])
        until(lambda: len(m.list_jobs(status='completed'))==8); see(m)
    def after(self, m): assert {o for o, in said('id')}<={o.id for o in rows(m)}; still(m)
    def ended(self, m): assert names(m, status='completed')==['a']*len(rows(m))

# What executed is not known after a power cut: the file that says it is flushed by nobody. And what was pruned may be there again

class Rescue(type(p.CASES['rescue'])):
    def ended(self, m): super().ended(m) if traces=='kept' else None
class Children(type(p.CASES['children'])):
    def ended(self, m): super().ended(m) if traces!='gone' else None
class Prune(type(p.CASES['prune'])):
    def after(self, m):
        assert names(m, job_type='b')==['b'] and names(m, job_type='a') in ([], ['a']*5)
        assert not m._lane.store.read('select job from tenant_job_steps where job not in (select id from tenant_jobs)'), 'steps of jobs that are gone'

traces = 'kept'
CASES = dict(new_file=NewFile(), logs=Logs(), together=Together(), close=Close(), end=End(), transactions=TwoTransactions(), begun=Begun(), tenant=Made(), tenant_deleted=Gone(),
    worked=Worked(), **p.CASES|dict(rescue=Rescue(), children=Children(True), children_failed=Children(False), prune=Prune()))

# --- trying them

TRACES = 'kept','gone','empty','zeros','junk'    # of what processes leave in .fh_saas, which nobody flushes

def spoil(folder, how):
    for o in Path(folder).rglob('.fh_saas'):
        if how=='gone': shutil.rmtree(o)
        for f in o.rglob('*'):
            if not f.is_file() or how in ('kept', 'gone'): continue
            n = f.stat().st_size
            f.write_bytes(b'' if how=='empty' else bytes(n) if how=='zeros' else hashlib.shake_128(f.name.encode()).digest(n))

def build(files, where, base, left, how='kept'):
    "Put a disk under `where`; names in it are those under `base`"
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    if left.exists(): shutil.copytree(left, where, dirs_exist_ok=True, ignore=lambda d,ns: [o for o in ns if not ((Path(d)/o).is_dir() or '.fh_saas' in d) or o=='bells'])
    spoil(where, how)
    for k,b in files.items():
        f = Path(where+k[len(base):]); f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(b)

def look(where):
    "What a plain connection finds: a digest of all rows, and whether anything runs. Raises `AssertionError` or `apsw.Error` for a damaged file"
    h,runs = hashlib.sha256(),False
    for f in sorted(Path(where).rglob('*.db')):
        c = apsw.Connection(str(f), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            assert c.execute('pragma integrity_check').fetchall()==[('ok',)], f'{f.name} is damaged'
            for t, in c.execute("select name from sqlite_schema where type='table' order by 1").fetchall():
                got = c.execute(f'select * from "{t}"').fetchall()
                h.update(repr((f.name, t, got)).encode())
                runs = runs or t=='tenant_jobs' and any('running' in o for o in got)
        finally: c.close()
    h.update(repr(sorted(str(o)[len(where):] for o in Path(where).rglob('*') if o.suffix in ('.moving', '.new'))).encode())
    return h.hexdigest(),runs

def record(case, where, template):
    "Do it once, under the eyes of the VFS; the log"
    p.folder = str(where)
    if case.fresh: os.mkdir(where); assert forked(lambda: case.before(case.open()))==0 if not getattr(case, 'opens', False) else True
    else: shutil.copytree(template, where, ignore=shutil.ignore_patterns('bells'))
    disk = Disk(where)
    before = (where/'said').read_text().splitlines() if (where/'said').exists() else []
    def act():
        global log
        log = Log(where)
        for path,n in disk.names.items(): log.nodes[path] = n
        vfs = Vfs(log); watch_os(log)
        p.say = say
        m = None if getattr(case, 'opens', False) else case.open()
        case.act(m)
        with open(f'{where}.log', 'wb') as f: pickle.dump(log.ops, f)
        os._exit(0)
    assert forked(act)==0, 'could not be done'
    with open(f'{where}.log', 'rb') as f: return disk,pickle.load(f),before

def boundaries(disk, ops):
    "(number of words said, what was said, disk) just before each flush that has something to flush, and at the end"
    words = []
    def waits(k, v): return any(k=='flush' and o[0] in ('write', 'cut') and o[1]==v or k!='flush' and o[0] not in ('write', 'cut', 'folder') and os.path.dirname(o[1])==v for o in disk.late)
    for op in ops:
        if op[0]=='say': words.append(op[1:])
        elif op[0] in ('flush', 'flush_folder'):
            if waits(*op[:2]): yield list(words),disk
            disk.flush(**{'node' if op[0]=='flush' else 'folder':op[1]})
        elif op[0]!='folder': disk.late.append(op)
    yield list(words),disk

def try_case(name, case, base, template):
    "(flushes, disks built, disks run to the end)"
    where,left = base/f'{name}-x',base/f'{name}-left'
    disk,ops,before = record(case, where, template)
    shutil.copytree(where, left, ignore=shutil.ignore_patterns('bells'))
    nb,ns,seen = 0,0,{}
    for words,disk in boundaries(disk, ops):
        nb += 1
        def scan():
            got,n,known = {},0,set()
            for i,ops in enumerate(choices(disk.late)):
                files = disk.after(ops)
                k = hashlib.sha256(repr(sorted((a, hashlib.sha256(b).digest()) for a,b in files.items())).encode()).digest()
                if k in known: continue
                known.add(k); n += 1
                build(files, str(where), str(where), left)
                try: got.setdefault(look(str(where)), i)
                except (AssertionError, apsw.Error) as e: raise AssertionError(f'flush {nb}, choice {i}: {e!r}') from e
            (base/'scan').write_bytes(pickle.dumps((got, n)))
        if forked(scan): raise AssertionError(f'{name}: flush {nb}: a damaged file, see above')
        got,n = pickle.loads((base/'scan').read_bytes())
        ns += n
        said_now = '\n'.join([*before, *map(' '.join, words)])
        for (digest,runs),i in got.items():
            for how in TRACES if runs else TRACES[:1]:
                if (digest, said_now, how) in seen: continue
                seen[digest, said_now, how] = nb
                build(disk.after(next(o for j,o in enumerate(choices(disk.late)) if j==i)), str(where), str(where), left, how)
                if said_now: (where/'said').write_text(said_now+'\n')
                def check():
                    global traces
                    traces = how
                    m = case.open()
                    case.after(m)
                    if m: p.drain(m)
                    case.ended(m)
                    os._exit(0)
                if forked(check): raise AssertionError(f'{name}: power lost before flush {nb}, choice {i}, traces {how}: does not hold, see above')
    return nb,ns,len(seen)

def run(only=None):
    "All cases; by case (flushes, disks built, disks run to the end). Raises `AssertionError` naming the case and the flush"
    base,counts = Path(tempfile.mkdtemp(prefix='power', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)),{}
    try:
        for name,case in CASES.items():
            if only and name not in only: continue
            p.folder = str(base/name)
            if not case.fresh:
                os.mkdir(p.folder)
                assert forked(lambda: case.before(case.open()))==0, f'{name}: could not be prepared'
            try: counts[name] = try_case(name, case, base, base/name)
            except AssertionError as e: raise AssertionError(f'{e}; replay: python -m tests.chaos --only power --case {name}') from e
    finally: shutil.rmtree(base, ignore_errors=True)
    return counts
