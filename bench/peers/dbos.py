"DBOS on PostgreSQL"
import sys, threading
from bench.peers import OnPostgres
from bench.task import noop

class Peer(OnPostgres):
    name,about,needs,pace = 'DBOS','PostgreSQL synchronous_commit=on, 1 process, up to 300 workflows at once, polls every 10 ms; workflows and results kept','dbos',.1
    def reset(self):
        from dbos import run_dbos_database_migrations
        super().reset(); run_dbos_database_migrations(self.url)
    def open(self):
        from dbos import DBOSClient
        self.client,self.sent = DBOSClient(system_database_url=self.url),[]
        self.client.register_queue('noops', worker_concurrency=300, polling_interval_sec=.01)
    def submit(self, i): self.sent.append(self.client.enqueue(dict(queue_name='noops', workflow_name='noop'), {'i':i}))
    def argv(self): return [sys.executable, '-m', 'bench.peers.dbos']
    def busy(self): return bool(self.client.list_queued_workflows(status=['ENQUEUED','PENDING'], limit=1, load_input=False, load_output=False))
    def check(self, n):
        for i in range(0, n, max(1, n//50)): assert self.sent[i].get_result()=={'ok':i}
    def close(self): self.client.destroy()

if __name__=='__main__':
    from dbos import DBOS
    DBOS(config=dict(name='bench', system_database_url=Peer().url, console_log_level='ERROR'))
    DBOS.workflow(name='noop')(noop)
    DBOS.launch()
    threading.Event().wait()
