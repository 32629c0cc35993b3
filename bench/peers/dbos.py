"DBOS on PostgreSQL"
import os, sys, threading
from bench.peers import OnPostgres
from bench.task import noop

class Peer(OnPostgres):
    name,about,needs = 'DBOS','PostgreSQL synchronous_commit=on, 2 processes, each polls every 10 ms for up to 300 workflows; these and results kept','dbos'
    nworkers,pace = 2,.15
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
        for i in range(0, n, max(1, n//50)): assert self.sent[i].get_status().output=={'ok':i}
    def close(self): self.client.destroy()

if __name__=='__main__':
    from dbos import DBOS
    DBOS(config=dict(name='bench', system_database_url=Peer().url, console_log_level='ERROR', executor_id=str(os.getpid())))
    DBOS.workflow(name='noop')(noop)
    DBOS.launch()
    threading.Event().wait()
