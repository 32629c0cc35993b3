"Tasks for child processes"
import asyncio, ctypes, os, re, signal, subprocess, sys, time
from fh_saas.running.context import JobContext, current_job
from fh_saas.running.lane import Lane
from fh_saas.retry import Discard, RetryIn, Snooze
from fh_saas.utils_bgtsk import BackgroundTaskManager, task
from util import opened
from work import is_open, say

@task(process=True)
def add(a, b): return a+b

@task(process=True)
def me(): return os.getpid()

@task(process=True)
def fault(kind):
    "Ends its process in one way or another"
    if kind=='segv': ctypes.string_at(0)
    if kind=='exit': os._exit(3)
    if kind=='kill': os.kill(os.getpid(), signal.SIGKILL)
    if kind=='abort': os.abort()
    if kind=='raise': raise KeyError('no such thing')
    if kind=='sysexit': sys.exit('enough')

@task(process=True)
def crashes(folder, times, name='-'):
    "Crashes so many times, then works"
    say(folder, 'start', name, os.getpid())
    if sum(o.split()[1:3]==['start', str(name)] for o in open(f'{folder}/log'))<=times: ctypes.string_at(0)
    return name

@task(process=True)
def gate(folder, name='-', s=30):
    "Holds until the gate opens; says so if it is ended before"
    try:
        say(folder, 'start', name, os.getpid())
        end = time.monotonic()+s
        while not is_open(folder, 'go') and time.monotonic()<end: time.sleep(.005)
    except BaseException as e:
        say(folder, 'broken', name, type(e).__name__)
        raise
    say(folder, 'end', name, os.getpid())
    return name

@task(process=True)
async def agate(folder, name='-'):
    try:
        say(folder, 'start', name, os.getpid())
        while not is_open(folder, 'go'): await asyncio.sleep(.005)
    except BaseException as e: say(folder, 'broken', name, type(e).__name__); raise
    return name

@task(process=True)
def greedy(folder, name='-'):
    "Keeps the interpreter for itself, deep in C code, and has started another program"
    p = subprocess.Popen(['sleep', '300'])
    say(folder, 'start', name, os.getpid(), p.pid)
    if not is_open(folder, 'go'): re.match('(a+)+$', 'a'*60+'b')
    p.kill(); p.wait()

@task(process=True)
def forks(folder):
    "Leaves a copy of its process behind, then crashes"
    if not (pid := os.fork()): time.sleep(60); os._exit(0)
    say(folder, 'forked', pid)
    os._exit(4)

@task(process=True)
def prints(text):
    print(text)
    print('{"end":', file=sys.stderr)
    os.write(1, b'raw\n')
    return text

@task(process=True, max_jobs=2)
def twice(): return os.getpid()

kept = []
@task(process=True, max_rss=200*2**20)
def hoard(mb):
    kept.append(bytearray(os.urandom(1)*(mb*2**20)))
    return os.getpid()

@task(process=True)
def big(text): return text[::-1]

@task(process=True)
def unfit(): return object()

@task(process=True)
def fds():
    "What this process has open"
    return [os.readlink(f'/proc/self/fd/{o}') for o in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{o}')]

@task(process=True)
def has(name): return hasattr(sys.modules[__name__], name)

@task(process=True, no_retry_on=KeyError)
def says(what):
    raise dict(snooze=Snooze(30), discard=Discard('useless'), later=RetryIn(7), key=KeyError('k'), value=ValueError('v'))[what]

@task(process=True)
def resumes(folder, job:JobContext, fault=None):
    "Goes on where the attempt before left off"
    got = [job.attempt, job.tenant, job.cursor, job.step('first', made, folder)]
    for i in range(100): job.progress(i, 100)
    job.log('so far')
    job.cursor = got[0]*10
    if job.attempt==1:
        if fault=='raise': raise ValueError('once more')
        job.step('second', made, folder)        # keeps what was said before
        ctypes.string_at(0)
    return got

def made(folder): say(folder, 'made'); return 'it'

@task(process=True)
def submits(folder, path):
    m = BackgroundTaskManager(opened(path))
    return [m.worker, m.submit('cpu', gate, folder=folder, name='child')[0]]

@task(process=True)
def stuck_in_step(folder, name, job:JobContext): return job.step('hold', gate, folder)

@task(process=True)
def tells(job:JobContext): return [job.tenant, current_job().id]

@task(process=True)
def books(folder, job:JobContext, then='return', fail=False, path=None):
    "Completes the job together with a row"
    m = BackgroundTaskManager(opened(path or f'{folder}/t.db'))
    with job.transaction() as db:
        db.q(f'insert into bookings(n) values({job.attempt})')
        if fail: raise ValueError('not booked')
        m.submit('cpu', gate, folder=folder, name='child')
        job.finish('booked')
    say(folder, 'booked')
    if then=='crash': ctypes.string_at(0)
    if then=='hold': gate(folder)

@task(process=True, max_retries=1)
def shut(what):
    "Does its work, and leaves something behind that cannot be used any more"
    if what=='stdout': sys.stdout.close()
    else: Lane.close_idle = lambda self: 1/0; current_job().log('done')
    return what
