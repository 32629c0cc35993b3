"Procrastinate on PostgreSQL"
import sys
from bench.peers import OnPostgres
from bench.task import noop

class Peer(OnPostgres):
    name,about,needs = 'Procrastinate','PostgreSQL synchronous_commit=on, 2 processes × 10 coroutines; finished rows and events kept, no results','procrastinate'
    also,nworkers,pace = ('psycopg','psycopg_pool'),2,.05
    def open(self):
        self.app = App(connector=SyncPsycopgConnector(conninfo=self.url)); self.app.open()
        self.app.schema_manager.apply_schema()
        self.task = self.app.configure_task('noop')
    def submit(self, i): self.task.defer(arg={'i':i})
    def submit_many(self, n): self.task.batch_defer(*({'arg':{'i':i}} for i in range(n)))
    def argv(self): return [sys.executable, '-m', 'procrastinate', '--log-level', 'error', '--app', 'bench.peers.procrastinate.app', 'worker', '-c', '10']
    def busy(self): return sum(o['succeeded'] for o in self.app.job_manager.list_queues())<self.n
    def close(self): self.app.close()

if not Peer().missing():
    from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
    app = App(connector=PsycopgConnector(conninfo=Peer().url))
    @app.task(name='noop')
    async def task(arg): return noop(arg)
