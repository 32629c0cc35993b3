"The tasks of the soak: each says in the ledger what it does, durably, before it does more"
import asyncio, os, time
from fh_saas.context import JobContext, current_job

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
    "Runs in a child process"
    say('start', job.id); sum(range(100000)); say('end', job.id)

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
