"What is measured: a system says how to empty its store, submit, start workers and tell that all is done"
import importlib.util, os, sys, time
from bench.task import anoop, home, noop

class System:
    "One job system with its best durable settings"
    name = about = needs = '?'
    nworkers,pace = 1,1.                    # worker processes; share of the usual number of jobs, for slow systems
    def missing(self):
        "Why it cannot be measured here, or None"
        return None if importlib.util.find_spec(self.needs) else f'{self.needs} is not installed'
    def reset(self): "Empty the store"
    def open(self): "A client in this process"
    def submit(self, i, task=noop): raise NotImplementedError
    def submit_many(self, n, task=noop):
        for i in range(n): self.submit(i, task)
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
    def submit(self, i, task=noop): self.ids.append(self.m.submit('noop', task, arg={'i':i})[0])
    def submit_many(self, n, task=noop): self.ids += self.m.submit_many('noop', task, [{'arg':{'i':i}} for i in range(n)])
    def argv(self): return [sys.executable, '-m', 'fh_saas.cli', 'worker', 'bench.app:manager']
    def busy(self): return bool(self.m.list_jobs(status='pending', limit=1) or self.m.list_jobs(status='running', limit=1))
    def check(self, n):
        for i in range(0, n, max(1, n//200)):
            job = self.m.get_job(self.ids[i])
            assert (job.status, job.result)==('completed', '{"ok":%d}'%i), job
    def size(self):
        self.m.db.conn.execute('pragma wal_checkpoint(truncate)').fetchall()
        return os.path.getsize(self.path)
    def close(self): self.m.close(); self.m.db.conn.close()

class Huey(System):
    name,about,needs = 'Huey','SQLite WAL synchronous=FULL; results kept, history not','huey'
    path = home/'huey.db'
    def reset(self): unlink(self.path)
    def open(self):
        from bench import huey_app
        self.t,self.h = huey_app.noop,huey_app.huey
    def submit(self, i, task=noop): self.t({'i':i})
    def argv(self): return [sys.executable, '-m', 'huey.bin.huey_consumer', 'bench.huey_app.huey', '-w', '1', '-k', 'thread', '-d', '.01', '-m', '.1', '-q']
    def busy(self): return bool(self.h.pending_count()) or self.h.result_count()<self.n
    def size(self): return os.path.getsize(self.path)
    n = 0
