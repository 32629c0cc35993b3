"The task that every system runs: it stamps its start into a memory-mapped file, by one clock for all processes"
import mmap, os, struct, time
from pathlib import Path

home = Path(os.environ.get('BENCH_DIR') or '/tmp/fh_saas_bench')
home.mkdir(parents=True, exist_ok=True)
_size,_map = 8*2**17,None

def stamps():
    "The mapped file: one float64 for each job, seconds of CLOCK_MONOTONIC, 0 where it has not started"
    global _map
    if _map is None:
        fd = os.open(home/'stamps', os.O_RDWR|os.O_CREAT)
        os.ftruncate(fd, _size)
        _map = mmap.mmap(fd, _size)
        os.close(fd)
    return _map

def clear(): stamps()[:] = bytes(_size)
def started(n): return struct.unpack_from(f'{n}d', stamps(), 0)
def began(i): return struct.unpack_from('d', stamps(), 8*i)[0]     # cheap: whoever waits asks again and again, on the workers' processor

def noop(arg):
    "One small argument in, one small value out"
    i = arg['i']
    struct.pack_into('d', stamps(), 8*i, time.monotonic())
    return {'ok':i}

async def anoop(arg): return noop(arg)
