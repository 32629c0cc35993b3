"Many tenants, several processes: created, served, killed, frozen, restored, moved and deleted while jobs run"
import os, re, shutil, signal, subprocess, sys, threading, time
from collections import Counter
from contextlib import contextmanager

import apsw, pytest, work
from fastlite import database
from fh_saas.moving import TenantBusy
from fh_saas.store.base import StoreError
from fh_saas.tenants import Tenants
from util import Server, Tenant, end, env, process, run_py, said, start_py, stop_worker, until

TASKS = [work.quick, work.aquick, work.gated, work.nap, work.fails]
PRE = '''
import asyncio, os, signal, sys, threading, time
from fh_saas.store.base import StoreError
from fh_saas.tenants import Tenants
from work import *
path,folder = sys.argv[1:3]
def tenants(**kw): return Tenants(path, **(dict(tasks=[quick,aquick,gated,nap,fails], handoff=0)|kw))
def out(*a): print(*a, flush=True)
'''
RUN = "ts = tenants(%s); out('up'); ts.run()"

class House(Tenant):
    "A folder with `Tenants` in it, and a log of what their tasks did"
    def __init__(self, folder): super().__init__(folder, 'data'); self.opened = []
    def ts(self, **kw):
        "`Tenants` that run nothing here, unless told to"
        self.opened.append(o := Tenants(self.path, **(dict(worker=False, tasks=TASKS)|kw)))
        return o
    def many(self, n, jobs=0, task=work.quick, **kw):
        "So many tenants with so many jobs each"
        ts = self.ts()
        for i in range(n): self.fill(ts.create(f't{i:03}'), jobs, task, **kw)
        return ts
    def fill(self, t, n, task=work.quick, **kw):
        return t.jobs.submit_many('j', task, [dict(folder=str(self.dir), name=f'{t.id}-{i}', **kw) for i in range(n)]) if n else []
    def names(self, word='ran'): return [o[2] for o in self.log(word)]
    def close(self):
        for o in self.opened: o.close()
        super().close()

@pytest.fixture
def h(tmp_path):
    h = House(tmp_path)
    yield h
    stop_worker()
    h.close()

def jobs(ts): return [j for t in ts.values() for j in t.jobs.list_jobs(limit=10**5)]
def settled(ts): return not [1 for t in ts.values() for s in ('pending', 'running') if t.jobs.list_jobs(status=s, limit=1)]
def worker(h, opts='', **kw): return up(process(h, RUN%opts, pre=PRE, **kw))

@contextmanager
def up(ctx):
    with ctx as p: said(p, 'up'); yield p

@contextmanager
def cli(h, *args):
    "`fh_saas worker many:tenants`"
    code = 'import sys; sys.argv[0] = "fh_saas"; from fh_saas.cli import main; main()'
    p = subprocess.Popen([sys.executable, '-c', code, 'worker', 'many:tenants', *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         cwd=h.dir, env=env(FH_DIR=str(h.dir)))
    try:
        assert 'serving' in (s := p.stdout.readline()), s+p.stdout.read()
        yield p
    finally:
        if p.poll() is None: p.kill()
        p.communicate()

# --- found at run time, each job once

def test_new_tenant_is_served_by_a_running_worker(h):
    "A tenant that another process creates is served without a restart"
    h.many(1)
    with cli(h) as p:
        run_py(h, "t = tenants(worker=False).create('late'); out(t.jobs.submit('j', quick, folder=folder, name='first')[0])", pre=PRE)
        until(lambda: h.names()==['first'], 5)
        assert end(p, signal.SIGTERM)==0
    assert [j.status for j in jobs(h.ts())]==['completed']

def test_two_workers_over_150_tenants(h):
    "Two processes over the same tenants: each of 600 jobs runs exactly once, and both take part"
    ts = h.many(150, 3)
    with worker(h), worker(h):
        for t in ts.values(): h.fill(t, 1, work.nap, s=.001)
        until(lambda: len(h.log('ran'))>=450 and len(h.log('end'))>=150, 30)
        until(lambda: settled(ts), every=.2)
    names = h.names()
    assert len(names)==len(set(names))==450 and len(h.log('start'))==150
    assert len({o[3] for o in h.log('ran')})==2
    assert Counter((j.status,j.retry_count) for j in jobs(ts))=={('completed',0):600}

def test_a_killed_workers_jobs_go_on_elsewhere(h):
    "kill -9 among many tenants and few open lanes: what executed runs again within seconds and is charged, what was merely claimed is not"
    ts = h.many(40, 2, work.gated)
    with worker(h, 'most_open=8') as a:
        until(lambda: len(h.log('start'))==5)
        begun = set(h.names('start'))
        with worker(h, 'most_open=8, threads=8'):
            end(a); killed = time.time()
            h.go()
            until(lambda: len(h.log('end'))==80, every=.05)
            until(lambda: settled(ts), every=.1)
    js = jobs(ts)
    assert max(float(o[0]) for o in h.log('start') if o[2] in begun)-killed<5
    assert len(js)==80 and {j.status for j in js}=={'completed'}
    assert {j.result.strip('"') for j in js if j.retry_count}==begun
    assert {(j.retry_count, '"crashed"' in (j.attempts or '')) for j in js}=={(0,False), (1,True)}
    assert {k for k,n in Counter(h.names('start')).items() if n>1}==begun

# --- bounded

def nfds(): return len(os.listdir('/proc/self/fd'))

@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='counts descriptors in /proc')
def test_open_databases_are_bounded(h):
    "A hundred tenants, eight places: never more lanes open, descriptors flat, and handles that were kept go on working"
    h.many(100)
    h.opened.pop().close()
    ts,most,over = h.ts(worker=True, most_open=8, handoff=0),[0,0],threading.Event()
    db,m = ts['t000'].db,ts['t000'].jobs
    db.q('create table mine(x int)'); db.q('insert into mine values(1)')
    def sample():
        while not over.wait(.001): most[0] = max(most[0], len(ts._pool.open)); most[1] = max(most[1], nfds())
    began = nfds()
    th = threading.Thread(target=sample, daemon=True); th.start()
    run_py(h, "ts = tenants(worker=False)\nfor t in ts.values(): t.jobs.submit_many('j', quick, [dict(folder=folder, name=f'{t.id}-{i}') for i in range(3)])", pre=PRE)
    until(lambda: len(h.log('ran'))==300)
    over.set(); th.join()
    assert most[0]<=8 and most[1]<began+8*5+10, most
    until(lambda: settled(ts), every=.1)
    for t in ts.values(): assert t.db.q('select count(*) n from tenant_jobs')==[dict(n=3)]
    assert db.__dict__['_conn'] is None and 't000' not in ts._pool.open, 'both were closed'
    assert len([o for o in ts._dbs.values() if o.__dict__['_conn']])<=8 and nfds()<began+8*10
    db.q('insert into mine values(2)')
    id,_ = m.submit('j', work.quick, folder=str(h.dir), name='kept')
    until(lambda: m.get_job(id).status=='completed')
    assert db.q('select x from mine')==[dict(x=1),dict(x=2)] and h.names().count('kept')==1

# --- a sick tenant

def test_sick_tenants_cost_nobody_else(h):
    "A corrupt, a missing and a locked file among thirty: all others complete, health says which and why, and each recovers"
    ts = h.many(30, 4)
    corrupt,missing,locked = (ts[o].path for o in ('t003','t004','t005'))
    ts.close()
    good = {o:open(o, 'rb').read() for o in (corrupt, missing)}
    with open(corrupt, 'wb') as f: f.write(os.urandom(4096))
    os.unlink(missing)
    c = apsw.Connection(locked)
    c.execute('begin exclusive')
    ts = h.ts(worker=True, handoff=0, busy_s=.5)
    until(lambda: len(h.log('ran'))==27*4, 10)
    bad = until(lambda: len(b := ts.health()['tenants'])==3 and b, 15, .1)
    assert set(bad)=={'t003','t004','t005'} and all(o['since'] for o in bad.values())
    assert re.search('not a SQLite database|damaged', bad['t003']['why']) and 'missing' in bad['t004']['why'] and 'locked' in bad['t005']['why'], bad
    assert ts.health()['ok'] and len(h.log('ran'))==27*4
    c.execute('rollback'); c.close()
    for o,b in good.items():
        with open(o, 'wb') as f: f.write(b)
    until(lambda: len(h.log('ran'))==30*4, 15)
    until(lambda: not ts.health()['tenants'], 5, .1)
    assert len(set(h.names()))==120
