"The tasks of the soak: each says in the ledger what it does, durably, before it does more"
import asyncio, os, time
from contextlib import contextmanager
from fh_saas.utils_bgtsk import JobContext, current_job

FOLDER = os.environ.get('CHAOS_FOLDER')

def say(*words):
    "One line in the ledger, on the disk when this returns"
    fd = os.open(f'{os.environ["CHAOS_FOLDER"]}/ledger', os.O_WRONLY|os.O_APPEND|os.O_CREAT, 0o644)
    try: os.write(fd, (' '.join(map(str, (f'{time.time():.6f}', os.getpid(), *words)))+'\n').encode()); os.fsync(fd)
    finally: os.close(fd)

def quick(n):
    id = current_job().id
    say('start', id); say('end', id)

def slow(n):
    id = current_job().id
    say('start', id); time.sleep(.02+n%7*.02); say('end', id)

async def aslow(n):
    id = current_job().id
    say('start', id); await asyncio.sleep(.02+n%7*.02); say('end', id)

def limited(n):
    id = current_job().id
    say('start', id); time.sleep(.02); say('end', id)

def cpu(n, job:JobContext):
    "Runs in a child process; it says of which worker, since it dies with it"
    say('start', job.id, os.getppid()); sum(range(100000)); time.sleep(.02+n%7*.02); say('end', job.id)

def writes(n, job:JobContext):
    say('start', job.id)
    time.sleep(.01)
    with job.transaction() as db:
        db.q('insert into effects values(?) returning 1', (job.id,))
        job.submit('of_transaction', quick, 1000, n=n)
        time.sleep(.005)
    say('end', job.id)

def steps(n, job:JobContext):
    say('start', job.id)
    def first(): say('step', job.id); job.submit('of_step', quick, 1000, n=n); return n
    assert job.step('first', first)==n
    time.sleep(.02)
    job.step('second', say, 'second', job.id)
    job.cursor = n
    say('end', job.id)

def fails(n):
    "Fails the first time"
    job = current_job()
    say('start', job.id)
    if job.attempt==1: raise ValueError('the first time')
    say('end', job.id)

# --- for times.py: each attempt waits for a gate of its own

def offset(folder):
    "A clock that all processes of a folder share, as far off as `put` says"
    import mmap, struct
    f = open(f'{folder}/offset', 'a+b')
    if not f.tell(): f.write(bytes(8)); f.flush()
    m = mmap.mmap(f.fileno(), 8)
    def clock(): return time.time()+struct.unpack('d', m[:8])[0]
    clock.put = lambda s: m.__setitem__(slice(0, 8), struct.pack('d', s))
    return clock

def turn(id):
    "Say that an attempt begins; which one of the job it is"
    say('start', id)
    with open(f'{os.environ["CHAOS_FOLDER"]}/ledger') as f: who = [o.split()[1] for o in f if o.split()[2:]==['start', id]]
    return who.index(str(os.getpid()))+1       # others may have begun it since

def is_open(n): return os.path.exists(f'{os.environ["CHAOS_FOLDER"]}/go{n}')

def wait(n, s=60):
    end = time.monotonic()+s
    while not is_open(n) and time.monotonic()<end: time.sleep(.005)

@contextmanager
def told(id, n):
    "Say how the attempt ends: refused, because its claim was lost meanwhile, or whoever has it now was told"
    try: yield
    except BaseException: say('refused', id, n); raise
    say('end', id, n)

def gated():
    id = current_job().id
    n = turn(id)
    with told(id, n): wait(n)
    return n

async def agated():
    id = current_job().id
    n = turn(id)
    with told(id, n):
        end = time.monotonic()+60
        while not is_open(n) and time.monotonic()<end: await asyncio.sleep(.005)
    return n

def gprocess(job:JobContext):
    n = turn(job.id)
    with told(job.id, n): wait(n)
    return n

def gwrites(job:JobContext):
    n = turn(job.id)
    with told(job.id, n):
        wait(n)
        with job.transaction() as db: db.q('insert into effects values(?) returning 1', (job.id,)); job.finish(n)

def gsteps(job:JobContext):
    n = turn(job.id)
    with told(job.id, n):
        wait(n)
        job.step('s', lambda: n)
    return n

def slotted(slot): pass

def named(): return {f.__name__:f for f in (quick, slow, aslow, writes, steps, fails, gated, agated, gwrites, gsteps, slotted)}

# --- for flood.py

def nothing(**kw): pass
def none(i, x): pass
async def anone(i, x): pass
def bad(i, x): raise ValueError('no')
def step(i, x):
    job = current_job()
    job.step('a', lambda: i); job.progress = 1
    if not i%10: job.submit('none', none, 1, i=1, x='')
def log(i, x): current_job().log('a line'); print(i, end='')
light = dict(none=none, anone=anone, bad=bad, step=step)
