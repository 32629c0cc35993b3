"""fh_saas itself on PostgreSQL, through fastsql. `python -m bench.peers.fh_saas_pg` also measures a raw INSERT of psycopg's into the same table,
which a submit is to cost no more than 1.3 times of"""
import statistics as st, sys, time
from bench.peers import OnPostgres
from bench.task import anoop, noop

class Peer(OnPostgres):
    name,about,needs = 'fh_saas_pg','fh_saas on PostgreSQL synchronous_commit=on, 2 processes; results, history and attempts kept','fh_saas'
    also,nworkers = ('psycopg','fastsql'),2
    def open(self):
        from fastsql import database
        from fh_saas.utils_bgtsk import BackgroundTaskManager
        self.m,self.ids = BackgroundTaskManager(database(self.url), worker=False),[]
    def submit(self, i): self.ids.append(self.m.submit('noop', noop, arg={'i':i})[0])
    def submit_many(self, n): self.ids += self.m.submit_many('noop', noop, [{'arg':{'i':i}} for i in range(n)])
    def argv(self): return [sys.executable, '-c', 'from fh_saas.cli import main; main()', 'worker', 'bench.peers.fh_saas_pg:manager']
    def busy(self): return bool(self.m.list_jobs(status='pending', limit=1) or self.m.list_jobs(status='running', limit=1))
    def check(self, n):
        for i in range(0, n, max(1, n//200)):
            job = self.m.get_job(self.ids[i])
            assert (job.status, job.result)==('completed', '{"ok":%d}'%i), job
    def close(self): self.m.close(); self.m.db.conn.close(); self.m.db.engine.dispose()

def __getattr__(k):
    "What the worker serves, made when it asks"
    if k!='manager': raise AttributeError(k)
    from fastsql import database
    from fh_saas.utils_bgtsk import BackgroundTaskManager
    globals()['manager'] = m = BackgroundTaskManager(database(Peer().url), tasks=[noop, anoop], worker=False)
    return m

def raw_insert(n=2000):
    "Microseconds of a submit and of a raw INSERT, in turns, so that both meet the same machine"
    import psycopg
    s = Peer(); s.reset(); s.open()
    a,b = [],[]
    with psycopg.connect(s.url, autocommit=True) as c:
        for i in range(n):
            t = time.perf_counter(); s.submit(i); a.append(time.perf_counter()-t)
            t = time.perf_counter()
            c.execute("insert into tenant_jobs(status,id,job_type,payload,max_retries,created_at,task,run_at,ready) values('pending',%s,'noop',%s,3,%s,'m:noop',%s,1)",
                      (f'raw{i}', '{"arg":{"i":%d}}'%i, '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z'))
            b.append(time.perf_counter()-t)
    s.close()
    return st.median(a)*1e6,st.median(b)*1e6

if __name__=='__main__':
    from bench import measures
    a,b = raw_insert()
    print(f'submit p50 {a:.0f} µs, raw INSERT {b:.0f} µs: {a/b:.2f} x')
    s = Peer()
    print({k:round(v, 2) for f in (measures.drain, measures.latency) for k,v in f(s).items()})
