"PgQueuer on PostgreSQL"
import asyncio, json, sys
from bench.peers import OnPostgres
from bench.task import noop

class Peer(OnPostgres):
    name,about,needs = 'PgQueuer','PostgreSQL synchronous_commit=on, 2 processes, batches of 100; a log of states kept, no results','pgqueuer'
    also,nworkers = ('psycopg','asyncpg'),2
    def open(self): self.wait(self._open())
    async def _open(self):
        import asyncpg
        from pgqueuer.queries import Queries
        self.db_conn = await asyncpg.connect(self.url)
        self.queue = Queries.from_asyncpg_connection(self.db_conn)
        await self.queue.install()
    def submit(self, i): self.wait(self.queue.enqueue('noop', json.dumps({'i':i}).encode()))
    def submit_many(self, n): self.wait(self.queue.enqueue(['noop']*n, [json.dumps({'i':i}).encode() for i in range(n)], [0]*n))
    def argv(self): return [sys.executable, '-m', 'bench.peers.pgqueuer']
    def busy(self): return bool(self.wait(self.queue.queue_size()))       # a finished job leaves the queue for the log
    def close(self): self.wait(self.db_conn.close())

async def work():
    import asyncpg
    from pgqueuer import PgQueuer
    q = PgQueuer.from_asyncpg_pool(await asyncpg.create_pool(Peer().url, min_size=2, max_size=4))
    @q.entrypoint('noop')
    async def task(job): json.dumps(noop(json.loads(job.payload)))
    await q.run(batch_size=100)

if __name__=='__main__': asyncio.run(work())
