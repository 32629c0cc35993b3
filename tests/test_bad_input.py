"Bad input of every kind: a clear error and nothing stored; and a database that is locked, read-only, full, damaged or gone"
import asyncio, gc, json, os, sqlite3, subprocess, sys, threading, time
from enum import Enum
from pathlib import Path

import apsw, psutil, pytest, work
from fastlite import Database
from fh_saas.tasks import shared
from fh_saas.utils_bgtsk import BackgroundTaskManager, JobNotFound, StoreBusy, StoreError, task
from util import Pulse, PRE, done, env, process, run_py, said, until

def add(a, b=1): return a+b
def nokw(): return 1
def posonly(a, /): return a
@pytest.fixture
def m(t): return t.look()

def refused(m, exc, match, f):
    "The call raises, says why, and stores nothing"
    with pytest.raises(exc, match=f'(?s){match}'): f()
    assert m.list_jobs()==[]

# --- arguments of submit

@pytest.mark.parametrize('jt,exc', [('', ValueError), ('  ', ValueError), ('\n\t', ValueError), (None, TypeError), (3, TypeError), (b'sync', TypeError),
                                    (['a'], TypeError), ('\ud800', ValueError)])
def test_job_type(m, jt, exc):
    "An empty or non-text job_type"
    refused(m, exc, 'job_type', lambda: m.submit(jt, add, a=1))
    refused(m, exc, 'job_type', lambda: m.submit_many(jt, add, [dict(a=1)]))
    refused(m, exc, 'job_type', lambda: asyncio.run(m.asubmit(jt, add, a=1)))

def test_job_type_of_a_text_class(m):
    "A member of an enum of texts is the text, when it is stored and when it is asked for"
    class Kind(str, Enum): sync = 'sync'
    id,_ = m.submit(Kind.sync, add, a=1)
    assert m.get_job(id).job_type=='sync' and [o.id for o in m.list_jobs(Kind.sync)]==[o.id for o in m.list_jobs('sync')]==[id]

@pytest.mark.parametrize('f', [None, 3, 'add', b'x', add(1), {}, object()])
def test_not_callable(m, f): "A task that cannot be called"; refused(m, TypeError, 'callable', lambda: m.submit('a', f, a=1))

@pytest.mark.parametrize('n,exc', [(0, ValueError), (-1, ValueError), (1.0, TypeError), ('3', TypeError), (None, TypeError), (True, TypeError), (False, TypeError), ([], TypeError), (2**70, Exception)])
def test_max_retries(m, n, exc):
    "max_retries is an int of at least 1"
    refused(m, exc, '' if n==2**70 else 'max_retries', lambda: m.submit('a', add, n, a=1))
    if n not in (None, 2**70):         # as a task's option, None is: not given
        with pytest.raises(exc, match='max_retries'): m.task(name='x', max_retries=n)(add)

@pytest.mark.parametrize('f,kw,why', [(add, {}, "'a'"), (add, dict(a=1, c=2), "'c'"), (nokw, dict(a=1), "'a'"), (posonly, dict(a=1), "'a'"), (posonly, {}, 'position')])
def test_arguments_that_do_not_fit(m, f, kw, why): "What the function cannot be called with is said at submit"; refused(m, TypeError, why, lambda: m.submit('a', f, **kw))

def test_reserved_argument(m):
    "The three reserved names cannot be task arguments: Python says so"
    with pytest.raises(TypeError): m.submit('a', add, 3, **dict(job_type='b', a=1))
    assert m.list_jobs()==[]

def cyclic():
    a = []; a.append(a)
    return a

def deep(n=100_000):
    a = []
    for _ in range(n): a = [a]
    return a

@pytest.mark.parametrize('v', [cyclic(), deep(), {'k':cyclic()}, object(), lambda: 1, threading.Lock(), (o for o in ()), {1}, b'x', 1j, float('nan'), [float('inf')], {'a':{1:2}}, '\ud800', {'\udfff':1}, ...],
                         ids=lambda v: type(v).__name__)
def test_unserialisable(m, v): "A kwarg that JSON cannot carry is named"; refused(m, TypeError, "'a'", lambda: m.submit('a', add, a=v))

def test_payload_limit(t, m):
    "1 MiB of payload by default, settable; the error says how much it was"
    refused(m, ValueError, r'1,048,577.*limit of 1,048,576', lambda: m.submit('a', add, a='x'*(2**20-7)))
    m.submit('a', add, a='x'*(2**20-8))
    small = t.look(payload_limit=100)
    with pytest.raises(ValueError, match='limit of 100'): small.submit('a', add, a='x'*100)
    with pytest.raises(ValueError, match='limit'): small.submit('a', add, a='é'*48)       # bytes count, not characters
    with pytest.raises(ValueError, match='limit'): asyncio.run(small.asubmit('a', add, a='x'*100))
    t.look(payload_limit=2**22).submit('a', add, a='x'*2**21)
    assert len(m.list_jobs())==2

def test_submit_many_is_all_or_none(m):
    "One unfit dict among many stores none of them, and is named by its place"
    for bad,why in ((dict(a=object()),"'a'"), (dict(z=1),"'z'"), (3,'dict'), (None,'dict')):
        refused(m, TypeError, rf'\[2\].*{why}', lambda: m.submit_many('a', add, [dict(a=1), dict(a=2), bad, dict(a=4)]))
    assert m.submit_many('a', add, [])==[]
    for bad in (3, None, add): refused(m, TypeError, 'kwargs_list must be a list', lambda: m.submit_many('a', add, bad))

def test_one_name_for_two_functions(t):
    "A name registered for two functions: the error says which two; the first one stays"
    m = t.look(tasks={'job':add})
    with pytest.raises(ValueError, match=r"(?s)'job'.*test_bad_input\.add.*test_bad_input\.nokw"): m.task(name='job')(nokw)
    with pytest.raises(ValueError, match="'job'"): t.look(tasks={'job':nokw})
    m.task(name='job')(add)
    id,bg = m.submit('a', add, a=1); bg.func(*bg.args)
    assert (m.get_job(id).task,m.get_job(id).result)==('job','2')
    with pytest.raises(ValueError, match='name'): t.look(tasks=[lambda: 1])
    for bad in ([3], ['add'], {'x':None}):
        with pytest.raises(TypeError, match='callable'): t.look(tasks=bad)
    with pytest.raises(TypeError, match="'retries'"): m.task(name='y', retries=3)(nokw)
    assert len(m.list_jobs())==1

def other(): return 'other'
def test_one_name_in_both_registries(t, monkeypatch):
    "The registry that managers share and a manager's own: no function runs in another's place"
    m = t.look()
    for o in ('_named','_of'): monkeypatch.setattr(shared, o, {})
    task(name='shared name')(nokw)
    with pytest.raises(ValueError, match=r"(?s)'shared name'.*nokw.*other"): m.task(name='shared name')(other)
    m.task(name='own name')(other)
    task(name='own name')(nokw)                # no manager's registry is looked at here; submit tells
    m.task(name='test_bad_input:third')(add)
    for f in (nokw, third): refused(m, ValueError, r"(own name'|third').*needs another name", lambda: m.submit('a', f))
    id,bg = m.submit('a', other); bg.func(*bg.args)
    assert m.get_job(id).result=='"other"'
def third(): return 'third'

def test_defined_anew_without_the_decorator(t):
    "The newest definition of a registered function wins"
    m,ns = t.look(),dict(__name__='test_bad_input')
    for v in (1,2):
        exec(f'def anew(): return {v}', ns)
        globals()['anew'] = ns['anew']
        if v==1: m.task(max_retries=7)(ns['anew'])
        id,bg = m.submit('a', ns['anew']); bg.func(*bg.args)
        assert (m.get_job(id).result,m.get_job(id).max_retries)==(str(v),7)

def test_two_nameless_functions_of_one_name(t):
    "Lambdas and closures of the same qualified name are not mixed up"
    m = t.mgr(handoff=0)
    def make(n): return lambda: n
    ids = {m.submit('l', make(n))[0]:n for n in range(30)}
    for id,n in ids.items(): assert done(m, id).result==str(n)

@pytest.mark.parametrize('db', [None, 't.db', 3, sqlite3])
def test_not_a_database(db):
    "A manager on something else says what it takes"
    with pytest.raises(TypeError, match='Database'): BackgroundTaskManager(db)

@pytest.mark.parametrize('kw', [dict(threads=0), dict(threads=-1), dict(threads='4'), dict(async_jobs=0), dict(handoff=-1), dict(handoff='5'), dict(wait_s=-1), dict(busy_s=-1), dict(payload_limit=0),
                                dict(clock=3), dict(treads=4)], ids=str)
def test_options_of_the_manager(t, kw):
    "An option that makes no sense is refused where it is given, not found out later"
    with pytest.raises((TypeError, ValueError), match=list(kw)[0]): t.mgr(**kw)

def test_one_clock_for_a_file(t):
    "A second manager of an open file goes by its clock; another clock is refused, not ignored"
    m = t.look(clock=(noon := lambda: 1_800_000_000.))
    look = t.look()
    assert (look.clock, t.look(clock=noon).clock)==(noon, noon) and look.get_job(look.submit('a', add, a=1)[0]).created_at.startswith('2027-01-15T08:00:00')
    with pytest.raises(ValueError, match='clock'): BackgroundTaskManager(m.db, clock=lambda: 0.)


# --- reading

@pytest.mark.parametrize('id', ['', 'nope', None, 3, b'x', "' or 1=1 --", '\ud800', 'x'*10**6])
def test_unknown_id(m, id):
    "get_job names the id it does not know"
    m.submit('a', add, a=1)
    with pytest.raises(KeyError) as e: m.get_job(id)
    assert isinstance(e.value, JobNotFound) and (len(str(id))>99 or repr(id) in str(e.value))

@pytest.mark.parametrize('kw,exc,why', [(dict(status='done'), ValueError, 'pending.*running.*completed.*failed'), (dict(status=''), ValueError, 'pending'), (dict(status=3), ValueError, 'pending'), (dict(limit=0), ValueError, 'limit'),
    (dict(limit=-1), ValueError, 'limit'), (dict(limit=1.5), ValueError, 'limit'), (dict(limit='5'), ValueError, 'limit'), (dict(limit=None), ValueError, 'limit'), (dict(limit=True), ValueError, 'limit'), (dict(job_type=3), TypeError, 'job_type')], ids=str)
def test_bad_filters(m, kw, exc, why):
    "An unknown status or a limit below 1"
    with pytest.raises(exc, match=f'(?s){why}'): m.list_jobs(**kw)

@pytest.mark.parametrize('jt', ["a' or '1'='1", 'a"; drop table tenant_jobs; --', 'a%', '*', '\0', '🚀', '\ud800', 'x'*10**6])
def test_filters_are_bound(m, jt):
    "A filter is a value, whatever it looks like"
    m.submit('a', add, a=1)
    assert m.list_jobs(jt)==[] and len(m.list_jobs())==1
    if jt!='\ud800':
        id,_ = m.submit(jt, add, a=1)
        assert [o.id for o in m.list_jobs(jt)]==[id] and m.get_job(id).job_type==jt

@pytest.mark.parametrize('limit', [2**31, 2**63-1, 2**70])
def test_huge_limit(m, limit): "No limit is too high"; m.submit('a', add, a=1); assert len(m.list_jobs(limit=limit))==1

# --- what tasks may do

class Mute(Exception):
    def __str__(self): raise RuntimeError('no')
    __repr__ = __str__
class Base(BaseException): pass
class Evil(BaseException):
    def __str__(self): raise SystemExit
    __repr__ = __str__
class Odd(Exception):
    def __str__(self): return 3
class Falsy(Exception):
    def __bool__(self): return False
class NoName(type):
    @property
    def __name__(self): raise RuntimeError('no name')
class Nameless(Exception, metaclass=NoName): pass

def chain():
    a,b = ValueError('first'),KeyError('second')
    a.__cause__,b.__cause__ = b,a
    a.__context__ = b
    raise a

def recurse(n=0): return recurse(n+1)
def big(): raise ValueError('<'+'x'*2**20+'>')
def surrogate(): raise ValueError('bad \ud800 text \0 with NUL')
def exits(): sys.exit(3)
def interrupted(): raise KeyboardInterrupt
def mute(): raise Mute
def base(): raise Base('base')
def evil(): raise Evil
def odd(): raise Odd
def nameless(): raise Nameless
def stops(): raise StopIteration(3)
def gen_exit(): raise GeneratorExit
def cancelled(): raise asyncio.CancelledError
def group(): raise ExceptionGroup('many', [ValueError(str(i)) for i in range(100)])
def notes():
    e = ValueError('noted'); e.add_note('\ud800'); e.__notes__.append(3)
    raise e
def syntax(): compile('a b', 'x', 'exec')
def memory(): raise MemoryError
def decode(): b'\xff'.decode()
def os_error(): open('/nope/\udcff')
def thread_exit(): import _thread; _thread.exit()
async def a_exits(): sys.exit(3)
async def a_interrupted(): raise KeyboardInterrupt
async def a_mute(): raise Mute
async def a_base(): raise Base('base')
async def a_stops(): raise StopIteration(3)
async def a_recurse(): return recurse()
async def a_evil(): raise Evil
async def a_nameless(): raise Nameless
async def a_falsy(): raise Falsy
bad_tasks = dict(chain='first', recurse='RecursionError', big='ValueError: <xxx', surrogate=r'bad \\ud800 text', exits='SystemExit', interrupted='KeyboardInterrupt', mute='Mute', base='Base: base', evil='Evil', odd='Odd',
    stops='StopIteration', gen_exit='GeneratorExit', cancelled='CancelledError', group='ExceptionGroup', notes='noted', syntax='SyntaxError', memory='MemoryError', decode='UnicodeDecodeError', os_error='No such file',
    thread_exit='SystemExit', a_exits='SystemExit', a_interrupted='KeyboardInterrupt', a_mute='Mute', a_base='Base: base', a_stops='StopIteration', a_recurse='RecursionError',
    nameless='Nameless', a_evil='Evil', a_nameless='Nameless', a_falsy='Falsy')

@pytest.mark.parametrize('name', list(bad_tasks))
def test_bad_tasks(t, name):
    "Whatever a task raises is a failed attempt with its reason; threads, loop and process go on"
    f,why = globals()[name],bad_tasks[name].replace('\\\\','\\')
    m = t.look()
    id,bg = m.submit('bad', f, max_retries=1)
    bg.func(*bg.args, **bg.kwargs)                 # by hand
    m = t.mgr(handoff=0)
    id2,_ = m.submit('bad', f, max_retries=1)      # in the worker
    for j in (m.get_job(id), done(m, id2, 5, 'failed')):
        assert why in j.error_log and (j.status,j.retry_count,j.result)==('failed',1,None), j.error_log
        assert len(j.error_log)<50_000 and len(j.attempts)<2000 and json.loads(j.attempts)[0]['outcome']=='failed'
    asyncio.run(asyncio.sleep(0))                  # this thread is as it was
    for g in (add, aadd): assert done(m, m.submit('good', g, a=1)[0]).result=='2'

async def aadd(a): return a+1

def test_truncated_with_a_note(t):
    "A 1 MiB message is cut, and says so; both ends stay"
    m = t.look()
    id,bg = m.submit('big', big, max_retries=1); bg.func(*bg.args)
    log = m.get_job(id).error_log
    assert 'Traceback' in log and 'left out' in log and log.rstrip().endswith('xxx>') and len(log)<2**16

def test_all_threads_survive(t):
    "More killers than threads: SystemExit and worse, in every runner thread, leave them all running"
    m = t.mgr(handoff=0, threads=2)
    for i in range(10): m.submit('bad', (exits,thread_exit,interrupted,evil,a_exits)[i%5], max_retries=1)
    until(lambda: len(m.list_jobs('bad','failed'))==10)
    bar = threading.Barrier(2)
    def both(): bar.wait(5); return 1
    ids = [m.submit('both', both)[0] for _ in range(2)]
    for o in ids: assert done(m, o).result=='1'

# --- results

class Slots: __slots__ = ()
class Trap:
    def __getattribute__(self, k): raise Mute
class TrapDict(dict):
    def items(self): raise Evil
    def __iter__(self): raise Evil
    def __len__(self): raise Evil

@pytest.mark.parametrize('v,j', [(None,None), (0,'0'), (False,'false'), ([], '[]'), ({}, '{}'), ('', '""'), (0.0,'0.0'), ((), '[]')], ids=repr)
def test_falsy_results(t, v, j):
    "Falsy results are JSON, and only None is NULL"
    m = t.look()
    id,bg = m.submit('r', lambda: v); bg.func(*bg.args)
    assert (m.get_job(id).status,m.get_job(id).result,m.get_job(id).error_log)==('completed',j,None)

class Muted(int):
    def __getattribute__(self, k): raise Evil
    __repr__ = __str__ = __hash__ = __index__ = __int__ = lambda self: self.nope

results = dict(object=object, slots=Slots, lock=threading.Lock, generator=lambda: (o for o in ()), nan=lambda: float('nan'), nested_nan=lambda: {'a':[float('inf')]}, surrogate=lambda: '\ud800', cyclic=cyclic, deep=deep,
    function=lambda: add, complex=lambda: 1j, exception=lambda: ValueError('x'), trap=Trap, trapdict=lambda: TrapDict(a=1), cls=lambda: int, module=lambda: os, nameless=Nameless, muted=lambda: Muted(1))

@pytest.mark.parametrize('name', list(results))
def test_results_without_json(t, name):
    "A result that is not JSON completes the job with a note: the work is done and is not repeated"
    m,n = t.mgr(handoff=0),[0]
    def task(): n[0] += 1; return results[name]()
    id,_ = m.submit('r', task)
    j = done(m, id, 4)
    fits = name=='trapdict' or name=='deep' and sys.version_info>=(3,14)         # whose limit is the stack itself: that list is JSON there
    assert n==[1] and j.retry_count==0 and (fits or j.result is None and 'result' in j.error_log)
    if fits and name=='deep': assert (j.result, j.error_log)==('['*100_001+']'*100_001, None)

def test_async_results_are_not_shown(t):
    "An async task by hand whose result must not be printed completes; the main thread can run loops after it"
    m = t.look()
    async def task(): return Evil()
    id,bg = m.submit('r', task)
    bg.func(*bg.args)
    assert m.get_job(id).status=='completed' and 'Evil' in m.get_job(id).error_log
    asyncio.run(asyncio.sleep(0))

def gen(): yield 1
async def agen(): yield 1
@pytest.mark.parametrize('f', [gen, agen])
def test_generator_functions_do_not_pass_silently(t, f):
    "Calling a generator function runs nothing of it: that is refused at submit or noted on the job"
    m = t.look()
    try: id,bg = m.submit('g', f)
    except TypeError as e: assert 'generator' in str(e); return
    bg.func(*bg.args)
    assert 'generator' in (m.get_job(id).error_log or '')

def test_payload_that_no_longer_fits(t):
    "A row whose payload is no JSON object, or fits the function no more, is a failed attempt that says so"
    m,ids = t.look(),[]
    for p in ('not json', '[1]', '3', '{"zzz":1}', '{}', None, '\x00', '{"a":'+'['*5000+']'*5000+'}'):
        id,bg = m.submit('p', add, 1, a=1)
        t.dbs[0].q('update tenant_jobs set payload=? where id=?', (p, id))
        bg.func(*bg.args, **bg.kwargs)
        j = m.get_job(id)
        assert j.status=='failed' and j.error_log, p

# --- a locked database

LOCK = '''
db.conn.execute('begin immediate'); out('locked'); sys.stdin.readline(); db.conn.execute('commit'); out('free'); sys.stdin.readline()'''
def free(p): p.stdin.write('\n'); p.stdin.flush(); said(p, 'free')

@pytest.mark.alone
def test_submit_waits_then_says_which_file_and_how_long(t):
    "submit waits for a locked file up to busy_s, then names it; and goes on as soon as the lock is gone"
    m = t.look(busy_s=.6)
    with process(t, LOCK) as p:
        said(p, 'locked')
        began = time.monotonic()
        with pytest.raises(StoreBusy, match=r't\.db.*0\.6 s'): m.submit('a', add, a=1)
        assert .5<time.monotonic()-began<1.5
        with pytest.raises(StoreBusy, match=r't\.db'): m.submit_many('a', add, [dict(a=1)]*3)
        with pytest.raises(StoreBusy, match=r't\.db'):
            with m.transaction(): pass
        assert m.list_jobs()==[], 'reading goes on'
        patient = t.look(busy_s=10)
        th = threading.Thread(target=lambda: patient.submit('a', add, a=2)); th.start()
        free(p)
        th.join(2); assert not th.is_alive()
    assert len(m.list_jobs())==1

@pytest.mark.alone
def test_sixteen_threads_and_a_lock(t):
    "Many threads that wait for one lock all give up in time, not one after the other"
    m,took = t.look(busy_s=.5),[]
    def sub():
        began = time.monotonic()
        try: m.submit('a', add, a=1); took.append(99)
        except StoreBusy: took.append(time.monotonic()-began)
    with process(t, LOCK) as p:
        said(p, 'locked')
        ts = [threading.Thread(target=sub) for _ in range(16)]
        for o in ts: o.start()
        for o in ts: o.join()
    assert len(took)==16 and max(took)<1.5, took

@pytest.mark.parametrize('task', [work.gated, work.agated])
def test_acks_outlive_a_lock(t, task):
    "P1, P3: jobs that end while the file is locked for long are written once it is free; each ran once"
    m = t.mgr(handoff=0, busy_s=.3)
    ids = [m.submit('g', task, folder=str(t.dir), name=i)[0] for i in range(3)]
    until(lambda: len(t.log('start'))==3)
    with process(t, LOCK) as p:
        said(p, 'locked')
        t.go()
        until(lambda: len(t.log('end'))==3)
        until(lambda: m._lane.pauses>1, 10)          # the worker has tried in vain
        assert {m.get_job(o).status for o in ids}=={'running'}
        free(p)
        for o in ids: assert done(m, o).retry_count==0
    assert len(t.log('start'))==3

def test_by_hand_under_a_lock_starts_no_worker(t):
    "Section 5: where the user wants no worker, a by-hand attempt that ends under a lock is still written, and no other job runs here"
    m = t.look(busy_s=.3)
    other = m.submit('q', work.quick, folder=str(t.dir))[0]
    id,bg = m.submit('g', work.gated, folder=str(t.dir))
    def by_hand():
        try: bg.func(*bg.args, **bg.kwargs)
        except StoreError: pass
    th = threading.Thread(target=by_hand); th.start()
    until(lambda: t.log('start'))
    with process(t, LOCK) as p:
        said(p, 'locked')
        t.go()
        th.join(10)
        free(p)
        assert done(m, id, 8).retry_count==0
    m.db.q("insert into tenant_workers values('dead','2000-01-01T00:00:00.000000Z')")     # a sweep, if there is any, removes it
    try: until(lambda: not m.db.q("select * from tenant_workers where id='dead'"), 1.2)
    except AssertionError: pass
    assert not t.log('ran') and m.get_job(other).status=='pending'
    assert m.run_due()==1 and len(t.log('ran'))==1, 'until it is asked for'

@pytest.mark.alone
@pytest.mark.parametrize('n', [1, 6])
def test_locked_tenants_do_not_hold_up_others(tenants, n):
    "P8: tenants whose files are locked while jobs of theirs end: another tenant's jobs, retries included, run as ever"
    bad = [tenants(f'bad{i}') for i in range(n)]
    good = tenants('good')
    ms = [o.mgr(handoff=0) for o in bad]
    g = good.mgr(handoff=0)
    lock = "dbs = [opened(o) for o in sys.argv[3:]]\nfor o in dbs: o.conn.execute('begin immediate')\nout('locked'); sys.stdin.readline()"
    for o,m in zip(bad, ms): m.submit('g', work.agated, folder=str(o.dir))
    until(lambda: all(o.log('start') for o in bad))
    with process(good, lock, *(o.path for o in bad)) as p:
        said(p, 'locked')
        for o in bad: o.go()
        until(lambda: all(o.log('end') for o in bad))
        id,took = g.submit('f', work.fails, folder=str(good.dir), name='f')[0],[]       # its retry comes 2 s later
        with Pulse(good.dir) as pulse:
            while g.get_job(id).status!='completed':
                began = time.monotonic()
                done(g, g.submit('q', work.quick, folder=str(good.dir))[0], 60)
                took.append(time.monotonic()-began)
        a,b = [float(o[0]) for o in good.log('start')]
        more = 10*pulse.late
        assert max(took)<.5+more and b-a<2.6+more, f'jobs took up to {max(took):.1f} s, the retry came after {b-a:.1f} s, the machine was {pulse.late:.2f} s late'
    for m in ms: until(lambda: m.list_jobs(status='completed'))

# --- rows that others wrote

@pytest.mark.parametrize('worker', [True, False])
@pytest.mark.parametrize('col,val,ready', [('run_at','odd',0), ('run_at',b'\xff',0), ('task',b'\xff\0',1), ('task',b'\xff\0',2), ('held','',3), ('held',b'\xff',3)], ids=repr)
def test_a_row_that_makes_no_sense_costs_itself_alone(t, col, val, ready, worker):
    "P8: what nobody can read in one row keeps no other job of the tenant from running"
    m = t.mgr(worker=False, tasks=[work.quick])
    bad,_ = m.submit('a', work.quick, folder=str(t.dir), name='bad')
    with m._lane.store.writing() as c: c.execute(f'update tenant_jobs set ready=?, {col}=? where id=?', (ready, val, bad))
    if worker: m.close(); m = t.mgr(handoff=0, tasks=[work.quick])
    else: m._lane.due_by()
    id,_ = m.submit('a', work.quick, folder=str(t.dir), name='good')
    if not worker: m.run_due()
    done(m, id)
    m.pause(job_type='other'); m.resume(job_type='other')
    if col=='held' and worker: done(m, bad)        # what is held by nothing is let go
    assert m.get_job(bad).status in ('pending', *['completed']*(col=='held')) and m.explain(bad)

@pytest.mark.parametrize('worker', [True, False])
@pytest.mark.parametrize('col,val', [('fence',None), ('retry_count',None), ('retry_count','x'), ('max_retries',None), ('max_retries','x'), ('priority',None), ('priority','high'),
                                     ('priority',b'\xff'), ('timeout_s','soon'), ('run_at',b'\xff'),
                                     ('attempts','{'), ('attempts','5'), ('attempts',b'\xff'), ('retry_count',2**63-1), ('retry_count',-2**63), ('fence',1.5), ('fence',-5), ('fence',2**32), ('fence',2**63-1), ('fence','x')], ids=repr)
def test_a_value_that_is_none(t, col, val, worker):
    "P2, P8: a job whose row another program filled with values that make no sense comes to an end, and keeps no other job from running"
    m = t.mgr(worker=False, tasks=[work.quick, work.fails])
    ids = [m.submit('a', work.quick, folder=str(t.dir), name=o)[0] for o in 'abc']
    bad,_ = m.submit('a', work.fails, folder=str(t.dir), name='bad')
    with m._lane.store.writing() as c: c.execute(f'update tenant_jobs set {col}=? where id in (?,?)', (val, bad, ids[1]))
    if worker: m.close(); m = t.mgr(handoff=0, tasks=[work.quick, work.fails])
    else: m.run_due()
    for o in ids: done(m, o)
    until(lambda: m.get_job(bad).error_log)
    assert m.get_job(bad).status==('failed' if (col,val) in [('max_retries','x'), ('retry_count',2**63-1)] else 'pending') and m.explain(bad)

@pytest.mark.parametrize('col,val', [('attempts','{'), ('attempts',b'\xff'), ('backoff','{'), ('backoff',b'\xff'), ('retry_count','x'), ('retry_count',-2**63), ('max_retries',None), ('fence',1.5), ('fence',-5), ('fence',2**63-1), ('run_at',b'\xff'), ('run_at',5)], ids=repr)
def test_a_value_that_is_none_in_a_crash(t, col, val):
    "P2, P8: a process died with such a row, twice: what else it had in hand is taken back all the same"
    m = t.look(tasks=[work.quick])
    ids = [m.submit('a', work.quick, folder=str(t.dir), name=o)[0] for o in 'ab']
    for _ in range(2):
        store = m._lane.store
        with store.writing() as c: c.execute(f'update tenant_jobs set {col}=? where id=?', (val, ids[0]))
        with store.writing(): assert len(store.claim('dead', m._lane.now(), 9, m._lane.lease()))==2
        with store.writing(): assert store.rescue('dead', None, None, m._lane.now(), 'Crashed')==2
        with store.writing() as c: c.execute('update tenant_jobs set ready=1 where ready=0')
    a,b = map(m.get_job, ids)
    assert (b.status,b.retry_count)==('pending',2) and a.status=='pending' and 'Crashed' in a.error_log

# --- read-only, full, damaged, gone

AS_USER = '''
if os.getuid()==0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
'''

def test_read_only_file(t):
    "A file that may only be read: the error names it; the process lives"
    t.look().submit('a', work.quick, folder='x'); t.close(); t.managers.clear(); t.dbs.clear()
    for f in Path('/').joinpath(*t.dir.parts[1:2]), *t.dir.parents: 
        if os.getuid()==0 and f.is_relative_to('/tmp') and f!=Path('/tmp') and f.exists(): f.chmod(f.stat().st_mode|0o755)
    t.path.chmod(0o444); t.dir.chmod(0o555)
    try: assert 'ok' in run_py(t, '''
from fastlite import Database
try:
    db = Database(apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY))
    m = mgr(worker=False)
    m.submit('a', quick, folder=folder)
except StoreError as e: assert 't.db' in str(e), e; out('ok', e)
''', pre=PRE.replace('db = opened(path)\n','')+AS_USER)
    finally: t.dir.chmod(0o755); t.path.chmod(0o644)

def plain_conn(path):
    "A connection without fastlite's opening pragmas, which read the file"
    hooks,apsw.connection_hooks[:] = apsw.connection_hooks[:],[]
    try: return apsw.Connection(str(path))
    finally: apsw.connection_hooks[:] = hooks

@pytest.mark.parametrize('what', [b'this is not a database at all '*200, b'SQLite format 3\0'+b'\xff'*8000], ids=['no database','bad header'])
def test_not_a_database_file(tenants, what):
    "A file of something else: an error that names it; the other tenants go on"
    bad,good = tenants('bad'),tenants('good')
    bad.path.write_bytes(what)
    db = Database(plain_conn(bad.path))
    with pytest.raises(StoreError, match=r'bad/t\.db'): BackgroundTaskManager(db, handoff=0)
    n = psutil.Process().num_fds()
    gc.disable()
    try:
        for _ in range(20):                       # a manager for each request, as people make them
            with pytest.raises(StoreError): BackgroundTaskManager(db, handoff=0)
        assert psutil.Process().num_fds()==n, 'nothing of the failure stays open'
    finally: gc.enable()
    db.conn.close()
    g = good.mgr(handoff=0)
    done(g, g.submit('q', work.quick, folder=str(good.dir))[0])

def test_damaged_while_open(tenants):
    "A file whose pages are overwritten while it is open: errors name it, the process and the other tenants go on"
    bad,good = tenants('bad'),tenants('good')
    code = '''
good,gdir = sys.argv[3:]
m,g = mgr(handoff=0),BackgroundTaskManager(database(good), handoff=0)
def wait(m, id):
    end = time.monotonic()+10
    while m.get_job(id).status!='completed': assert time.monotonic()<end; time.sleep(.005)
for i in range(300): id,_ = m.submit('q', quick, folder=folder, name='x'*200)
wait(m, id)
db.conn.pragma('wal_checkpoint', 'truncate') if 0 else db.q('pragma wal_checkpoint(truncate)')
out('ready'); sys.stdin.readline()
errors = []
for f in (lambda: m.list_jobs(limit=1000), lambda: m.submit('q', quick, folder=folder), lambda: m.get_job(id), lambda: mgr()):
    try: f()
    except StoreError as e: errors.append(str(e))
out(errors)
assert errors and all('bad/t.db' in o for o in errors)
wait(g, g.submit('q', quick, folder=gdir)[0])
out('ok')
os._exit(0)'''
    with process(bad, code, good.path, good.dir) as p:
        said(p, 'ready')
        with open(bad.path, 'r+b') as f:
            f.seek(4096); f.write(os.urandom(os.path.getsize(bad.path)-4096))
        p.stdin.write('\n'); p.stdin.flush()
        o,e = p.communicate(timeout=30)
        assert p.returncode==0 and 'ok' in o, o+e

def test_full_disk(tenants):
    "No room: the error names the file, nothing is stored, reading and other tenants go on; with room again everything does"
    bad,good = tenants('bad'),tenants('good')
    o = run_py(bad, '''
import resource
good,gdir = sys.argv[3:]
m,g = mgr(handoff=0),BackgroundTaskManager(database(good), handoff=0)
def wait(m, id):
    end = time.monotonic()+15
    while m.get_job(id).status!='completed': assert time.monotonic()<end, m.get_job(id); time.sleep(.005)
for o,d in ((m,folder),(g,gdir)): wait(o, o.submit('q', quick, folder=d)[0])
id,_ = m.submit('g', gated, folder=folder)
while m.get_job(id).status!='running': time.sleep(.005)
for i in range(200): g.submit('q', quick, folder=gdir)
while g.list_jobs(status='pending', limit=1) or g.list_jobs(status='running', limit=1): time.sleep(.005)
g.db.q('pragma wal_checkpoint(truncate)')
soft,hard = resource.getrlimit(resource.RLIMIT_FSIZE)
size = os.path.getsize(path+'-wal')
resource.setrlimit(resource.RLIMIT_FSIZE, (size+5000, hard))
n,err = 0,None
while n<200 and not err:
    try: m.submit('q', quick, folder=folder, name='x'*3000); n += 1
    except StoreError as e: err = str(e)
assert err and 'bad/t.db' in err, err
stored = len(m.list_jobs(limit=1000))
open(folder+'/go', 'w')
for i in range(3):
    try: m.submit('q', quick, folder=folder, name='x'*9000); out('went through')
    except StoreError as e: assert 'bad/t.db' in str(e)
assert len(m.list_jobs(limit=1000))==stored==n+2
wait(g, g.submit('q', quick, folder=gdir)[0])
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
wait(m, m.submit('q', quick, folder=folder)[0])
wait(m, id)
assert not [j for j in m.list_jobs(limit=1000) if j.retry_count]
out('ok', err)''', good.path, good.dir)
    assert 'ok' in o and len(bad.log('start'))==1

def on_a_small_disk(t, code, size='9m'):
    "Run `code` with the tenant's folder on a file system of its own, which goes with the process; skips where that may not be made"
    unshare = ['unshare', '-m'] if os.getuid()==0 else ['unshare', '-rm']
    try: can = subprocess.run([*unshare, 'sh', '-c', f'mount -t tmpfs none {t.dir}'], capture_output=True).returncode==0
    except OSError: can = False
    if not can: pytest.skip('no right to mount a file system')
    sh = f'mount -t tmpfs -o size={size} none {t.dir} && exec {sys.executable} -c "$0" {t.path} {t.dir}'
    return subprocess.run([*unshare, 'sh', '-c', sh, PRE+code], capture_output=True, text=True, timeout=60, env=env())

def test_full_disk_under_what_executes(t):
    "A disk that fills up while jobs wait: the process lives, also where the log has room for claims but nothing else can grow"
    p = on_a_small_disk(t, '''
def noop(x): pass
m = mgr(worker=False)
for i in range(300): m.submit('n', noop, x='x'*500)
db.q('pragma wal_checkpoint(restart)')
try:
    with open(folder+'/fill', 'wb', buffering=0) as f:
        while True: f.write(b'x'*1024)
except OSError: pass
try: m.run_due(); sys.exit('run_due said nothing of the full disk')
except StoreError as e: assert 'full' in str(e), e
os.remove(folder+'/fill')
time.sleep(.1)
while m.list_jobs(status='pending', limit=1): m.run_due()
out(len(m.list_jobs(status='completed', limit=1000)))''')
    assert (p.returncode,p.stdout)==(0,'300\n'), (p.returncode, p.stdout, p.stderr)

GONE = '''
def wait(id):
    end = time.monotonic()+10
    while mgr().get_job(id).status!='completed': assert time.monotonic()<end; time.sleep(.005)
m = mgr(handoff=0)
wait(m.submit('q', quick, folder=folder, name='first')[0])
%s
got = err = None
try: got = m.submit('q', quick, folder=folder, name='second')[0]
except StoreError as e: err = str(e)
import subprocess
there = "import apsw,sys; print([o[0] for o in apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READONLY).execute('select id from tenant_jobs')])"
if got: assert got in subprocess.check_output([sys.executable, '-c', there, path], text=True), 'submit returned, and the job is nowhere'
else:
    assert 't.db' in err, err
    for f in (lambda: m.submit('q', quick, folder=folder), lambda: m.list_jobs(), lambda: m.transaction()):     # and stays with it
        try: f(); raise SystemExit('an empty file was made in its place')
        except StoreError as e: assert 'deleted' in str(e)
    assert not os.path.exists(path)
out('ok', err)
m2 = BackgroundTaskManager(database(path), handoff=0)
id,_ = m2.submit('q', quick, folder=folder, name='third'); wait(id)
out('ok', len(m2.list_jobs()))
'''

@pytest.mark.parametrize('how', ['deleted', 'replaced'])
def test_file_gone_under_a_manager(t, how):
    "P1: the file deleted or replaced while a manager has it: submit never says yes to a job that nobody will find; a new manager goes on"
    act = "for o in ('','-wal','-shm'): os.path.exists(path+o) and os.remove(path+o)"
    if how=='replaced': act = "db.q('pragma wal_checkpoint(truncate)')\nimport shutil; shutil.copy(path, path+'2')\n"+act+"\nos.rename(path+'2', path)"
    assert run_py(t, GONE % act).count('ok')==2

def test_folder_that_may_not_be_written(t):
    "A folder without write permission, where SQLite and the package need files beside: an error that names it"
    t.look().list_jobs(); t.close(); t.managers.clear(); t.dbs.clear()
    for f in t.dir.parents:
        if os.getuid()==0 and f.is_relative_to('/tmp') and f!=Path('/tmp'): f.chmod(f.stat().st_mode|0o755)
    t.path.chmod(0o666); t.dir.chmod(0o555)
    try: out = run_py(t, '''
try: db = database(path); m = mgr(); m.submit('a', quick, folder=folder)
except StoreError as e: assert folder in str(e); out('ok', e)
except Exception as e: out('fastlite itself', repr(e))''', pre=PRE.replace('db = opened(path)\n','')+AS_USER)
    finally: t.dir.chmod(0o755)
    assert 'ok' in out or 'fastlite itself' in out
