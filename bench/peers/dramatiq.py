"Dramatiq on Redis"
import sys
from bench.peers import OnRedis
from bench.task import noop

class Peer(OnRedis):
    name,about,needs,pace = 'Dramatiq','Redis appendfsync everysec, 2 processes × 8 threads; results kept for an hour, acknowledged after the run','dramatiq',.25
    def open(self): self.sent = []
    def submit(self, i): self.sent.append(task.send({'i':i}))
    def argv(self): return [sys.executable, '-m', 'dramatiq', 'bench.peers.dramatiq:broker', '-p', '2', '-t', '8', '--skip-logging']
    def busy(self): broker.join('default', interval=5, timeout=100_000)       # returns when every message is acknowledged, raises if that takes too long
    def check(self, n):
        for i in range(0, n, max(1, n//50)): assert self.sent[i].get_result(backend=results)=={'ok':i}
    def close(self): broker.close()

if not Peer().missing():
    from dramatiq import actor, set_broker
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.results import Results
    from dramatiq.results.backends.redis import RedisBackend
    broker,results = RedisBroker(url=Peer().url),RedisBackend(url=Peer().url)
    broker.add_middleware(Results(backend=results))
    set_broker(broker)
    task = actor(noop, store_results=True, result_ttl=3600_000)
