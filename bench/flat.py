"Does it stay as fast beside a million finished, a million future and a hundred thousand parked jobs?"
import statistics as st, time
import apsw
from fh_saas.store.sqlite_file import SqliteFile
from bench import measures
from bench.systems import FhSaas, unlink
from bench.task import home

ROWS = dict(finished=1_000_000, future=1_000_000, parked=100_000)
_fill = """with recursive g(i) as (select 0 union all select i+1 from g where i<?1-1)
insert into tenant_jobs(id,job_type,status,payload,result,created_at,started_at,completed_at,task,run_at,ready,fence)
select printf('%08x-0000-7000-8000-%012x', i, abs(random())%281474976710656), 'old'||(i%20), ?2, '{{"arg":{{"i":1}}}}', ?3,
       '2026-01-01T00:00:00.000000Z', ?4, ?4, {task}, ?5, ?6, ?7 from g"""
_values = dict(finished=("'bench.task:noop'", 'completed', '{"ok":1}', '2026-01-01T00:00:01.000000Z', None, None, 1),
    future=("'bench.task:noop'", 'pending', None, None, '2999-01-01T00:00:00.000000Z', 0, 0),
    parked=("'gone:task'||(i%5)", 'pending', None, None, '2026-01-01T00:00:00.000000Z', 2, 1))

class Filled(FhSaas):
    "fh_saas on a file that already holds rows of one kind, or of all"
    def __init__(self, kinds): self.kinds,self.name = kinds,'+'.join(kinds) or 'empty'
    def reset(self):
        master = home/f'filled-{self.name}.db'
        if not master.exists(): self._make(master)
        unlink(self.path)
        with apsw.Connection(str(master)) as a, apsw.Connection(str(self.path)) as b:
            with b.backup('main', a, 'main') as copy: copy.step()
        a.close(); b.close()
    def _make(self, path):
        SqliteFile(str(path)).close()
        c = apsw.Connection(str(path))
        for i,k in enumerate(self.kinds):
            task,*rest = _values[k]
            sql = _fill.format(task=task).replace("'%08x-0000", f"'{i}%07x-0000")
            c.execute('begin immediate'); c.execute(sql, (ROWS[k], *rest)); c.execute('commit')
        c.execute('pragma wal_checkpoint(truncate)').fetchall(); c.close()
    def busy(self):
        return self.m.get_job(self.ids[-1]).status!='completed' or any(o.status!='completed' for o in self.m.list_jobs('noop', limit=1000))

def lists(s):
    "Slowest `list_jobs` by any filter, in ms"
    s.reset(); s.open()
    s.submit_many(200)
    out = []
    for job_type in (None, 'noop', 'old3', 'nope'):
        for status in (None, 'pending', 'running', 'completed', 'failed'):
            ts = []
            for _ in range(5): t = time.perf_counter(); s.m.list_jobs(job_type, status); ts.append(time.perf_counter()-t)
            out.append(st.median(ts)*1e3)
    s.close()
    return dict(list_jobs=max(out))

def compare(kinds, rounds=3, n=20000):
    "Ratio of each figure to the same on an empty file; 1 is as fast, more is slower. Medians of the ratios of paired rounds"
    a,b,out = Filled([]),Filled(kinds),{}
    for _ in range(rounds):
        for f in (measures.submit, lambda s: measures.drain(s, n), measures.latency):
            x,y = f(a),f(b)
            for k in ('submit_p50', 'drain', 'start_p50'):
                if k in x: out.setdefault(k, []).append(x[k]/y[k] if k=='drain' else y[k]/x[k])
    return {k:st.median(v) for k,v in out.items()} | lists(b)
