"Celery on Redis"
import os, sys
from bench.peers import OnRedis
from bench.task import noop

class Peer(OnRedis):
    name,about,needs = 'Celery','Redis appendfsync everysec, 2 processes × 4 threads; results kept for an hour, acknowledged after the run','celery'
    nworkers,pace = 2,.15
    def open(self):
        import redis
        self.redis,self.sent = redis.Redis.from_url(self.url),[]
    def submit(self, i): self.sent.append(task.delay({'i':i}))
    def argv(self):
        return [sys.executable, '-m', 'celery', '-A', 'bench.peers.celery', 'worker', '-n', f'{os.urandom(4).hex()}@%h', '-P', 'threads', '-c', '4',
            '-l', 'ERROR', '--without-gossip', '--without-mingle']
    def busy(self): return self.redis.exists('celery', 'unacked')>0       # Celery counts no messages: these are its queue and what was taken but not acknowledged
    def check(self, n):
        for i in range(0, n, max(1, n//50)): assert self.sent[i].result=={'ok':i}
    def close(self): self.redis.close(); app.close()

if not Peer().missing():
    from celery import Celery
    app = Celery('bench', broker=Peer().url, backend=Peer().url)
    app.conf.update(task_acks_late=True, worker_prefetch_multiplier=64, result_expires=3600, broker_connection_retry_on_startup=True)
    task = app.task(name='noop')(noop)
