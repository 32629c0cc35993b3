"Tasks that leave traces, for processes that are watched from outside"
import asyncio, os, time
from pathlib import Path

def say(folder, *words):
    "One line in the folder's log, whole however many processes write"
    fd = os.open(Path(folder)/'log', os.O_WRONLY|os.O_APPEND|os.O_CREAT, 0o666)
    os.write(fd, (' '.join(map(str, (time.time(), *words)))+'\n').encode())
    os.close(fd)

def is_open(folder, gate): return (Path(folder)/gate).exists()

def quick(folder, name=''): say(folder, 'ran', name, os.getpid())
async def aquick(folder, name=''): say(folder, 'ran', name, os.getpid())

def _until_open(folder, gate, s):
    end = time.monotonic()+s
    while not is_open(folder, gate) and time.monotonic()<end: time.sleep(.005)

def gated(folder, name='', gate='go', s=120):
    "Holds until the gate opens"
    say(folder, 'start', name, os.getpid())
    _until_open(folder, gate, s)
    say(folder, 'end', name, os.getpid())
    return name

async def agated(folder, name='', gate='go', s=120):
    say(folder, 'start', name, os.getpid())
    end = time.monotonic()+s
    while not is_open(folder, gate) and time.monotonic()<end: await asyncio.sleep(.005)
    say(folder, 'end', name, os.getpid())
    return name

def paced(folder, free, name=''):
    "The first `free` starts end at once, later ones hold until the gate opens"
    say(folder, 'start', name, os.getpid())
    if sum(' start ' in o for o in (Path(folder)/'log').read_text().splitlines())>free: say(folder, 'held', name); _until_open(folder, 'go', 120)
    say(folder, 'end', name, os.getpid())

def fails(folder, times=1, name=''):
    "Fails so many times, then works"
    say(folder, 'start', name, os.getpid())
    n = sum(o.split()[1:3]==['start', str(name)] for o in (Path(folder)/'log').read_text().splitlines())
    if n<=times: raise ValueError(f'attempt {n}')
    return n

def bomb(folder, name='', boom=True):
    "Takes its process with it"
    say(folder, 'start', name, os.getpid())
    if boom and not is_open(folder, 'safe'): os.kill(os.getpid(), 9)
    return name

def nap(folder, s, name=''):
    say(folder, 'start', name)
    time.sleep(s)
    say(folder, 'end', name)
