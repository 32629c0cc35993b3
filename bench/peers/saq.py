"SAQ on Redis"
import sys
from bench.peers import OnRedis
from bench.task import noop

class Peer(OnRedis):
    name,about,needs = 'SAQ','Redis appendfsync everysec, 2 processes × 50 coroutines; results kept for ten minutes, acknowledged after the run','saq'
    nworkers,pace = 2,.25
    def open(self):
        self.jobs = []; self.wait(queue.connect())
        self.wait(queue.sweep(lock=240))        # the next is not due for so long: the one at a worker's start can abort jobs just taken by the other
    def submit(self, i): self.jobs.append(self.wait(queue.enqueue('task', arg={'i':i})))
    def argv(self): return [sys.executable, '-m', 'saq', 'bench.peers.saq.settings', '-q']
    def busy(self): return self.wait(queue.count('incomplete'))>0
    def check(self, n):
        for i in range(0, n, max(1, n//50)): assert self.wait(queue.job(self.jobs[i].key)).result=={'ok':i}
    def close(self): self.wait(queue.disconnect())

async def task(ctx, *, arg): return noop(arg)

if not Peer().missing():
    from saq import Queue
    queue = Queue.from_url(Peer().url, max_concurrent_ops=200)
    settings = dict(queue=queue, functions=[task], concurrency=50)
