"Tasks that see a person's data"
import os, time
from pathlib import Path
from fh_saas.utils_bgtsk import current_job, task

def greet(mail): return f'hello {mail}'
def refuse(mail): raise ValueError(f'no such address {mail}')
def notes(mail, fail=False):
    job = current_job()
    job.log(f'writing to {mail}'); job.progress(1, 2, f'at {mail}'); job.cursor = {'at':mail}
    got = job.step('one', lambda: f'step {mail}')
    if fail and job.attempt==1: raise ValueError(f'half way at {mail}')
    return [got, job.cursor]

@task(process=True)
def far(mail):
    got = notes(mail)
    return [*got, os.getpid()]

def stays(mail, folder):
    "Runs until the file `go` is there, and looks only then whether it is asked to end"
    Path(folder, 'runs').touch()
    while not Path(folder, 'go').exists(): time.sleep(.005)
    current_job().check()

def hold(mail, folder):
    "Runs until the file `go` is there, or it is asked to end"
    Path(folder, 'runs').touch()
    while not Path(folder, 'go').exists(): current_job().check(); time.sleep(.005)
    return mail
