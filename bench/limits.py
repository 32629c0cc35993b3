"The yardstick: what this machine can do at most with raw apsw on the project's own table, indexes and settings"
import os, queue, random, socket, subprocess, sys, threading, time
import apsw, msgspec
from fh_saas.ids import JobIds, to_iso
from fh_saas.store.sqlite_file import SqliteFile
from bench.systems import unlink
from bench.task import clear, home, noop, started

path = str(home/'raw.db')
cols = 'id,job_type,status,payload,max_retries,created_at,task,run_at,ready'
INSERT = f"insert into tenant_jobs({cols}) values(?,'noop','pending',?,3,?,'bench.task:noop',?,1)"
CLAIM = """update tenant_jobs set status='running',ready=null,fence=fence+1,owner='raw',started_at=? where rowid in
    (select rowid from tenant_jobs indexed by tj_due where ready=1 and queue is null order by priority,run_at limit ?) returning rowid,payload"""
DONE = """update tenant_jobs set status='completed',result=?,completed_at=?,run_at=null,owner=null where rowid=? and status='running'"""
enc,dec,ids = msgspec.json.encode,msgspec.json.decode,JobIds()

def connect():
    c = apsw.Connection(path)
    c.set_busy_timeout(30000)
    c.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)     # else `limit ?` is compiled anew at each call
    for o in ('journal_mode=wal', 'synchronous=full', 'temp_store=memory'): c.execute('pragma '+o).fetchall()
    return c

def fresh(n=0):
    unlink(path)
    SqliteFile(path).close()       # the project's own table
    c = connect()
    for i in range(0, n, 500):
        c.execute('begin immediate'); c.executemany(INSERT, [row(j) for j in range(i, i+500)]); c.execute('commit')
    return c

def row(i):
    t = time.time()
    return ids(t),enc({'arg':{'i':i}}).decode(),(s := to_iso(t)),s

def run(payload): return enc(noop(**dec(payload))).decode()

def claim(c, k):
    c.execute('begin immediate'); r = c.execute(CLAIM, (to_iso(time.time()), k)).fetchall(); c.execute('commit')
    return r

def finish(c, done):
    t = to_iso(time.time())
    c.execute('begin immediate'); c.executemany(DONE, [(res,t,i) for res,i in done]); c.execute('commit')

# --- one submit, and sixteen threads that share commits

def submit(n=3000):
    c,lat = fresh(),[]
    for i in range(n):
        t = time.perf_counter(); c.execute(INSERT, row(i)); lat.append(time.perf_counter()-t)
    return lat

def submit16(n=16000, threads=16):
    "Threads wait for their own row; one writer commits whatever has queued up. Rows each second"
    c,q = fresh(),queue.SimpleQueue()
    def writer():
        while True:
            got = [q.get()]
            while len(got)<500:
                try: got.append(q.get_nowait())
                except queue.Empty: break
            if None in got: return
            c.execute('begin immediate'); c.executemany(INSERT, [r for r,_ in got]); c.execute('commit')
            for _,lock in got: lock.release()
    def client():
        lock = threading.Lock(); lock.acquire()
        for i in range(n//threads): q.put((row(i), lock)); lock.acquire()
    w,ts = threading.Thread(target=writer),[threading.Thread(target=client) for _ in range(threads)]
    w.start(); t0 = time.perf_counter()
    for t in ts: t.start()
    for t in ts: t.join()
    took = time.perf_counter()-t0
    q.put(None); w.join()
    return n/took

# --- drain: claim 100, run, acknowledge up to 500 in a commit

def drain1(n):
    "One thread does all"
    c,done,t0 = fresh(n),[],time.perf_counter()
    while rows := claim(c, 100):
        done += [(run(p), i) for i,p in rows]
        if len(done)>=500: finish(c, done); done = []
    if done: finish(c, done)
    return n/(time.perf_counter()-t0)

def drain_pool(n, runners=2):
    "A thread that claims, some that run, one that commits, and queues between them"
    c,todo,done,lock,room,left = fresh(n),queue.SimpleQueue(),queue.SimpleQueue(),threading.Lock(),threading.Semaphore(10),[n]
    def runner():
        while rows := todo.get():
            done.put([(run(p), i) for i,p in rows])
    def committer():
        while left[0]:
            got,n0 = done.get(),1
            while len(got)<500:
                try: got = got+done.get(timeout=.002); n0 += 1
                except queue.Empty: break
            with lock: finish(c, got)
            left[0] -= len(got)
            for _ in range(n0): room.release()
    ts = [threading.Thread(target=runner) for _ in range(runners)]+[threading.Thread(target=committer)]
    t0 = time.perf_counter()
    for t in ts: t.start()
    while True:
        room.acquire()
        with lock: rows = claim(c, 100)
        if not rows: break
        todo.put(rows)
    for _ in range(runners): todo.put(None)
    for t in ts: t.join()
    return n/(time.perf_counter()-t0)

# --- the chain: insert, ring a datagram socket, the other process claims and starts

def chain_waiter():
    c,s = connect(),socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(str(home/'raw.sock')); print('ready', flush=True)
    while s.recv(16)!=b'end':
        for i,p in claim(c, 1): finish(c, [(run(p), i)])

def chain(n=200):
    "(from before the insert to the start, from the insert's return to the start), seconds for each of n jobs, 10 ms apart"
    c,sock = fresh(),home/'raw.sock'
    sock.unlink(missing_ok=True); clear()
    p = subprocess.Popen([sys.executable, '-c', 'from bench.limits import chain_waiter; chain_waiter()'], stdout=subprocess.PIPE)
    p.stdout.readline(); s,sent = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),[]
    for i in range(n):
        t = time.monotonic(); c.execute(INSERT, row(i)); t1 = time.monotonic(); s.sendto(b'x', str(sock)); sent.append((t,t1))
        time.sleep(.01)
    s.sendto(b'end', str(sock)); p.wait()
    return [(b-t, b-t1) for (t,t1),b in zip(sent, started(n))]
