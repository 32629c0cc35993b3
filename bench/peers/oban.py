"Oban for Python on PostgreSQL; its package needs Python 3.12"
import asyncio, sys
from bench.peers import OnPostgres
from bench.task import noop

try: from oban import Oban, worker
except ImportError: pass                # `missing` says so
else:
    @worker(queue='default')
    class Noop:
        async def process(self, job): return noop(job.args)

class Peer(OnPostgres):
    name,about,needs = 'Oban','PostgreSQL synchronous_commit=on, 2 processes, 50 jobs at a time each; rows of finished jobs kept, no results','oban'
    nworkers,pace = 2,.3
    def open(self): self.wait(self._open())
    async def _open(self):
        from oban.schema import install
        self.pool = await Oban.create_pool(self.url, min_size=1, max_size=2)
        await install(self.pool)
        self.oban = Oban(pool=self.pool)
        await self.oban.__aenter__()
    def submit(self, i): self.wait(Noop.enqueue({'i':i}))
    def submit_many(self, n):
        for i in range(0, n, 1000): self.wait(self.oban.enqueue_many([Noop.new({'i':j}) for j in range(i, min(n, i+1000))]))
    def argv(self): return [sys.executable, '-m', 'bench.peers.oban']
    def busy(self): return bool(self.sql("select 1 from oban_jobs where state in ('available','executing','scheduled','retryable') limit 1"))
    def close(self): self.wait(self._close())
    async def _close(self):
        await self.oban.__aexit__(None, None, None)
        await self.pool.close()

async def work():
    import bench.peers.oban             # as jobs name it; this file runs as `__main__`
    async with Oban(pool=await Oban.create_pool(Peer().url, min_size=2, max_size=8), queues={'default':50}): await asyncio.Event().wait()

if __name__=='__main__': asyncio.run(work())
