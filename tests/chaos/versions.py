"""P1-P4, P6: the package of the schema before and this one work on the same file at the same time, as in a deploy, and in either order, as after one that
is taken back. The older one is kept in tests/fixtures: `git archive COMMIT fh_saas`, of which the modules that a manager imports"""
import os, signal, tempfile, time, zipfile
from collections import Counter
from pathlib import Path

from fh_saas.store.sqlite_file import VERSION
from util import Tenant, apps, end, process, root, until
from . import load

ARCHIVE = root/'tests/fixtures/fh_saas_schema3.zip'
OLD = 3                 # its schema

def older(folder):
    "The older package, unpacked there; what `PYTHONPATH` is to be"
    to = Path(folder)/'older'
    if not to.exists():
        with zipfile.ZipFile(ARCHIVE) as z: z.extractall(to)
    return path(to)

def path(*first): return os.pathsep.join(map(str, (*first, apps, root/'tests', root)))

PRE = '''
import os, sys, threading, time
from chaos import load
from fh_saas.store.sqlite_file import VERSION
from util import opened
from fh_saas.utils_bgtsk import *
folder,version = sys.argv[2:4]
assert VERSION==int(version), f'{VERSION}: {sys.modules["fh_saas"].__file__}'
def mgr(**kw):
    m = BackgroundTaskManager(opened(sys.argv[1]), tasks=load.named(), worker=False, handoff=0, threads=8, **kw)
    m.task(load.gprocess, name='gprocess', process=True); m.task(load.limited, name='limited', limit=2); m.task(load.cpu, name='cpu', process=True)
    return m
def out(*a): print(*a, flush=True)
class Told(threading.Event):
    "The older `run` waits for this without a limit, so a signal that reaches another thread first did not end it (b353622)"
    def wait(self, timeout=None):
        while not (is_set := super().wait(timeout or 1.)) and timeout is None: pass
        return is_set
m = mgr()
'''
RUN = "m.cron('0 0 1 1 *', load.slotted, tz='UTC', name='yearly'); threading.Thread(target=lambda: (time.sleep(.05), out('up', m._lane.owner))).start(); m.run(stop=Told())"
SUBMIT = '''
ids,opt = [],lambda **kw: m.options(backoff=.1, max_retries=1000, **kw)
for n in range(int(sys.argv[4])):
    for k in 'quick aslow limited writes steps fails cpu'.split(): ids.append(opt().submit(k, getattr(load, k), n=n)[0])
    ids += opt(queue='q', priority=1, tags=['a']).submit_many('many', load.quick, [dict(n=i) for i in range(5)])
    p,_ = opt().submit('parent', load.slow, n=n)
    ids += [p, opt(after=[p]).submit('child', load.quick, n=n)[0], opt(delay=.3).submit('later', load.quick, n=n)[0]]
    ids.append(opt(unique=f'k{n}').submit('unique', load.slow, n=n)[0])
    with m.transaction() as db: ids.append(opt().submit('tx', load.quick, n=n)[0]); db.q('insert into notes values(?) returning 1', (ids[-1],))
if len(sys.argv)>5: m.cancel(opt(delay=3600).submit('gone', load.quick, n=1)[0])
out('ids', *dict.fromkeys(ids))
'''

class Both:
    "A folder with a tenant, where either package can be started"
    def __init__(self, folder):
        self.t = Tenant(folder)
        self.env = {OLD:older(folder), VERSION:path()}
        os.environ['CHAOS_FOLDER'] = str(folder)
    def start(self, code, version, *args): return process(self.t, code, version, *args, pre=PRE, CHAOS_FOLDER=str(self.t.dir), PYTHONPATH=self.env[version])
    def lines(self, word):
        f = self.t.dir/'ledger'
        return [o.split() for o in f.read_text().splitlines() if o.split()[2]==word] if f.exists() else []

def up(p):
    for line in p.stdout:
        if line.startswith('up '): return line.split()[1]
    raise AssertionError(p.stderr.read())

def told(p):
    o,e = p.communicate(timeout=120)
    assert p.returncode==0, e
    return next(line for line in o.splitlines() if line.startswith('ids')).split()[1:]

def prepare(b, version):
    with b.start("m.db.q('create table effects(job)'); m.db.q('create table notes(job)'); out('ids')", version) as p: told(p)

def together(folder, n=10, first=OLD):
    "Two processes of each work, one of each submits. Raises `AssertionError`; the number of jobs, by the version that ended them"
    b = Both(folder)
    prepare(b, first)
    ws = []
    try:
        for v in (first, OLD+VERSION-first)*2: ws.append((v, (c := b.start(RUN, v)), c.__enter__()))
        for *_,p in ws: up(p)
        with b.start(SUBMIT, OLD, n) as x, b.start(SUBMIT, VERSION, n, 'cancel') as y: ids = told(x)+told(y)
        m = b.t.look()
        until(lambda: not m.list_jobs(status='pending', limit=1) and not m.list_jobs(status='running', limit=1), 120, .05)
        for v,_,p in ws: assert end(p, signal.SIGTERM, 30)==0, f'a worker of version {v}'
    finally:
        for _,c,_ in ws: c.__exit__(None, None, None)
    jobs = {j.id:j for j in m.list_jobs(limit=10**6)}
    assert not set(ids)-set(jobs), 'lost'
    assert {j.status for j in jobs.values() if j.job_type!='gone'}=={'completed'}, [j for j in jobs.values() if j.status!='completed'][:2]
    fails = {j.id for j in jobs.values() if j.job_type=='fails'}
    assert all(j.retry_count==(i in fails) for i,j in jobs.items())
    starts,gone = Counter(o[3] for o in b.lines('start')),{i for i,j in jobs.items() if j.status=='cancelled'}
    assert starts==Counter({i:1+(i in fails) for i in jobs if i not in gone}), 'not each once'
    effects = Counter(o['job'] for o in m.db.q('select job from effects'))
    assert effects==Counter(j.id for j in jobs.values() if j.job_type=='writes')
    assert {o['job'] for o in m.db.q('select job from notes')}=={j.id for j in jobs.values() if j.job_type=='tx'}
    assert m._lane.store.read('pragma integrity_check')==[('ok',)]
    where = {p.pid:v for v,_,p in ws}
    b.t.close()
    return Counter(where.get(int(o[1]), 'child') for o in b.lines('end'))

GATED = 'gated agated gprocess gwrites gsteps'.split()

def takes_over(folder, dies, kill=True):
    "A process of one version is killed, or told to end, with a job of each kind; one of the other takes them over, and ends them"
    b,other = Both(folder),OLD+VERSION-dies
    prepare(b, dies)
    begin = f"ids = [m.submit(k, getattr(load, k))[0] for k in {GATED}]; out('ids', *ids)"
    with b.start(RUN, dies) as a:
        up(a)
        with b.start(begin, dies) as p: ids = told(p)
        until(lambda: len(b.lines('start'))==len(ids), 30)
        with b.start(RUN, other) as c:
            up(c)
            if kill: a.kill()
            else:
                a.send_signal(signal.SIGTERM)
                b.t.go('go1')          # the drain waits for what runs
            until(lambda: not kill or len(b.lines('start'))==2*len(ids), 30)
            b.t.go('go2')
            m = b.t.look()
            until(lambda: {m.get_job(i).status for i in ids}=={'completed'}, 30)
            assert end(c, signal.SIGTERM, 30)==0
            assert a.wait(30)==(-9 if kill else 0)
    assert [(j.retry_count, j.result) for j in map(m.get_job, ids)]==[(int(kill), '2' if kill else '1')]*len(ids)
    assert len(m.db.q('select job from effects'))==1
    b.t.close()

def run(seconds):
    n,end = Counter(),time.monotonic()+seconds
    while not n or time.monotonic()<end:
        with tempfile.TemporaryDirectory(prefix='versions') as d:
            for first in OLD,VERSION:
                for v,k in together(f'{d}/{first}', 30, first).items(): n[f'jobs ended by {"children" if v=="child" else f"schema {v}"}'] += k
                for kill in True,False: takes_over(f'{d}/{first}{kill}', first, kill); n['processes whose jobs the other version took over'] += 1
    return n
