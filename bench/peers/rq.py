"RQ on Redis"
import sys
from bench.peers import OnRedis
from bench.task import noop

class Peer(OnRedis):
    name,about,needs = 'RQ','Redis appendfsync everysec, 2 SimpleWorkers (no fork for each job); results kept for 500 s, acknowledged after the run','rq'
    nworkers,pace = 2,.05
    def open(self):
        from redis import Redis
        from rq import Queue
        self.redis = Redis.from_url(self.url)
        self.queue,self.jobs = Queue(connection=self.redis),[]
    def submit(self, i): self.jobs.append(self.queue.enqueue(noop, {'i':i}))
    def submit_many(self, n): self.jobs += self.queue.enqueue_many([self.queue.prepare_data(noop, ({'i':i},)) for i in range(n)])
    def argv(self): return [sys.executable, '-m', 'rq.cli', 'worker', '-q', '-u', self.url, '-w', 'rq.worker.SimpleWorker']
    def busy(self): return self.queue.finished_job_registry.get_job_count(cleanup=False)<self.n
    def check(self, n):
        for i in range(0, n, max(1, n//50)): assert self.jobs[i].return_value(refresh=True)=={'ok':i}
    def close(self): self.redis.close()
