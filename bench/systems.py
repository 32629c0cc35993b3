"What is measured: a system says how to empty its store, submit, start workers and tell that all is done"
import importlib.util, os, sys
from bench.task import home, noop

class System:
    "One job system with its best durable settings"
    name = about = needs = '?'
    nworkers,pace,n = 1,1.,0                # worker processes; share of the usual number of jobs, for slow systems; jobs in this drain
    server = None                           # environment variable with the URL of the server that it needs; None for none
    def missing(self):
        "Why it cannot be measured here, or None"
        if not importlib.util.find_spec(self.needs): return f'{self.needs} is not installed'
        if self.server and not os.environ.get(self.server): return f'no server: set {self.server}'
    def reset(self): "Empty the store"
    def open(self): "A client in this process"
    def submit(self, i): "One job with the argument {'i':i}, durable on return"
    def submit_many(self, n):
        for i in range(n): self.submit(i)
    def argv(self): "The command of a worker process"
    def busy(self): "Whether any job is not finished in the store"
    def check(self, n): "Raise if a result is not there"
    def size(self): return None             # bytes on disk
    def close(self): pass

def unlink(path):
    for s in ('','-wal','-shm'):
        if os.path.exists(f'{path}{s}'): os.unlink(f'{path}{s}')

class FhSaas(System):
    name,about,needs = 'fh_saas','SQLite WAL synchronous=FULL; results, history and attempts kept','fh_saas'
    path = home/'fh_saas.db'
    def reset(self): unlink(self.path)
    def open(self):
        from fastlite import database
        from fh_saas.utils_bgtsk import BackgroundTaskManager
        self.m,self.ids = BackgroundTaskManager(database(self.path), worker=False),[]
    task = staticmethod(noop)
    def submit(self, i): self.ids.append(self.m.submit('noop', self.task, arg={'i':i})[0])
    def submit_many(self, n): self.ids += self.m.submit_many('noop', self.task, [{'arg':{'i':i}} for i in range(n)])
    def argv(self): return [sys.executable, '-c', 'from fh_saas.cli import main; main()', 'worker', 'bench.app:manager']   # the command `fh_saas`
    def busy(self): return bool(self.m.list_jobs(status='pending', limit=1) or self.m.list_jobs(status='running', limit=1))
    def check(self, n):
        for i in range(0, n, max(1, n//200)):
            job = self.m.get_job(self.ids[i])
            assert (job.status, job.result)==('completed', '{"ok":%d}'%i), job
    def size(self):
        self.m.db.conn.execute('pragma wal_checkpoint(truncate)').fetchall()
        return os.path.getsize(self.path)
    def close(self): self.m.close(); self.m.db.conn.close()
