"The store on both databases: the contract, and what many writers can do to it"
import itertools, threading

import psycopg, pytest
from fh_saas.store import bulk, controls, flow, overview, retention, load
from fh_saas.store.base import Ack, LATER, StoreBusy, StoreError, _T, _ack, _claim, _done, _ids, checks, new_job
from fh_saas.store.notes import SqliteStore
from fh_saas.store.std_sqlite import StdStore
from pg import on_server as t # noqa: F401, a fixture
from util import until

n = itertools.count()

@pytest.fixture(params=['sqlite', 'fastsql', 'postgres'])
def make(request, tmp_path):
    "Makes stores of one empty database, each with connections of its own"
    made = []
    if request.param=='sqlite': new = lambda **kw: SqliteStore(str(tmp_path/'t.db'), **kw)
    elif request.param=='fastsql': new = lambda **kw: StdStore(str(tmp_path/'t.db'), **kw)
    else:
        from fh_saas.store.postgres import PgStore
        url = request.getfixturevalue('pg')
        new = lambda **kw: PgStore(url, **kw)
    def make(**kw): made.append(s := new(**kw)); return s
    yield make
    for o in made: o.close()

@pytest.fixture
def s(make): return make()

@pytest.mark.parametrize('check', checks, ids=lambda f:f.__name__)
def test_contract(s, check): check(s)

# --- many writers

def test_no_job_is_claimed_twice(make):
    stores = [make() for _ in range(4)]
    stores[0].insert([new_job(f'{i:04}') for i in range(1000)])
    got,errors = [],[]
    def run(s, who):
        try:
            while True:
                with s.turning(20.) as c: claims = s.claim(who, _T(50), 7, _T(59))
                if not claims: return
                got.extend(o.id for o in claims)
        except Exception as e: errors.append(e)
    ts = [threading.Thread(target=run, args=(s, f'w{i}')) for i,s in enumerate(stores)]
    for o in ts: o.start()
    for o in ts: o.join()
    assert not errors and sorted(got)==[f'{i:04}' for i in range(1000)]

def test_the_last_parent_frees_the_child_whoever_ends_last(make):
    a,b = make(),make()
    for i in range(10):
        ps = [f'p{i}-{k}' for k in range(2)]
        a.insert([new_job(p) for p in ps])
        a.insert([new_job(f'c{i}', parents=f'["{ps[0]}","{ps[1]}"]', on_failed='fail')])
        claims = _claim(a)
        assert _ids(claims)==ps
        gate,errors = threading.Barrier(2),[]
        def end(s, c):
            gate.wait()
            try:
                with s.turning(20.): s.complete([('1', _T(50), _T(51), *c[:3])])
            except Exception as e: errors.append(e)
        ts = [threading.Thread(target=end, args=o) for o in zip((a, b), claims)]
        for o in ts: o.start()
        for o in ts: o.join()
        assert not errors and a.get(f'c{i}')['ready']==1
        _ack(a, _done(_claim(a)[0]))

# --- flows, notes, controls, retention: each statement once

def test_flow(s):
    s.insert([new_job('p'), new_job('q')])
    s.insert([new_job('c', parents='["p","q"]', on_failed='fail'), new_job('d', parents='["c"]', on_failed='cancel')])
    assert s.get('c')['ready']==4
    with pytest.raises(ValueError, match='nope'): s.insert([new_job('x', parents='["nope"]', on_failed='fail')])
    p,q = _claim(s)
    _ack(s, _done(p), Ack(q, 'failed', error='boom', retry_count=3, ended_at=_T(30)))
    c,d = s.get('c'),s.get('d')
    assert (c['status'],d['status'])==('failed','cancelled') and 'parent q failed' in c['error_log'] and 'parent c failed' in d['error_log']
    assert [o.fallen for o in s.freed]==[[('c','t','failed'),('d','t','cancelled')]] or {o[0] for o in s.freed[0].fallen}=={'c','d'}
    assert [o['id'] for o in s.children('p')]==['c'] and [o['id'] for o in s.parents('c')]==['p','q']
    assert s.retry(_T(40), 'c')=='parent' and s.retry(_T(40), 'nope')=='missing'
    assert s.retry_failed(_T(40))==2 and s.get('c')['ready']==4 and s.get('q')['ready']==1
    assert _ids(_claim(s))==['q'] and s.mend()==0

def test_retry_failed_with_keys(s):
    "Two failed jobs of one key, and one whose key is taken: one of them comes back"
    for i in 'ab':
        s.insert([new_job(i, unique_key='r:k')])
        o, = _claim(s)
        _ack(s, Ack(o, 'failed', error=f'boom {i}', retry_count=3, ended_at=_T(30)))
    assert s.retry_failed(_T(40), error_contains='boom')==1
    assert sorted(o['status'] for o in s.select())==['failed','pending']
    assert s.retry_failed(_T(40), 't', None, _T(0))==0
    other, = [o['id'] for o in s.select(None, 'failed')]
    assert s.retry(_T(41), other)=='unique'

def test_unique_and_pending_again(s):
    "Two running jobs of one `p:` key that come back at once: one lets go of the key"
    s.insert([new_job('a', unique_key='p:k')]); a, = _claim(s)
    s.insert([new_job('b', unique_key='p:k')]); b, = _claim(s)
    s.insert([new_job('c', unique_key='p:other')])
    assert controls.holder(s, 'p:k') is None and controls.holder(s, 'p:other')=='c'
    with s.writing(): assert s.release([a, b])==[]
    assert sorted(s.get(i)['unique_key'] or '' for i in 'ab')==['','p:k']
    ring,ids = controls.insert_unique(s, [new_job('x', unique_key='p:k'), new_job('y')], _T(1))
    assert ids[1]=='y' and ids[0] in 'ab'
    assert controls.insert_unique(s, [new_job('z', unique_key='t:k', unique_until=_T(10))], _T(1))[1]==['z']
    assert controls.insert_unique(s, [new_job('z2', unique_key='t:k', unique_until=_T(50))], _T(5))[1]==['z']
    assert controls.insert_unique(s, [new_job('z3', unique_key='t:k', unique_until=_T(50))], _T(11))[1]==['z3']

def test_notes_and_steps(s):
    s.insert([new_job('a'), new_job('b')])
    a,b = _claim(s)
    with s.writing():
        assert s.note([('{"n":1}', 'said', None, *a[:3]), ('x', None, None, b.row, b.id, 99)])==[1]
        assert s.holds(a) and not s.holds(b._replace(fence=7))
        s.keep_step('a', 'one', '1', _T(1)); s.keep_step('a', 'two', None, _T(2))
    assert s.notes('a')==('{"n":1}','said',None) and s.notes('nope')==(None,None,None) and s.steps('a')=={'one':'1', 'two':None}
    with s.writing(): s.drop_steps(['a'])
    assert s.steps('a')=={}

def test_controls(s):
    with s.writing() as c:
        controls.set_control(c, 'pause:q:x', 'now'); controls.set_control(c, 'limit:t:t', '1'); controls.set_control(c, 'pause:q:x')
        assert controls.gate_and_controls(c)==(False, '3', False, False)
    assert controls.read_controls(s)=={'limit:t:t':'1'}
    s.insert([new_job(i, queue='q' if i=='c' else None, limit_key='k') for i in 'abc'])
    with s.writing() as c:
        assert controls.gate_and_controls(c)==(False, '3', True, True) and s.due_queues()==[None, 'q']
        got = s.claim('a', _T(50), 10, _T(59), queues=((None, 5), ('q', 5)))
        assert _ids(got)==['a','b','c'] and controls.counts(c, ['k','no'])=={'k':3} and controls.count_type(c, 't')==3 and s.count_running()==3
        controls.hold(c, got[1:], 'l:k')
        assert controls.any_held(c) and controls.any_held(c, 'l:k') and not controls.any_held(c, 'l:j') and controls.held_for(c)==[('l:k', 'm:f')]
        controls.note_starts(c, 'k', ['a'], 10., 1000.)
        assert controls.room_of_rate(c, 'k', 2, 10., 1001.)==1 and controls.next_start(c, 'k', 1, 10., 1001.)==1010.
        assert controls.let_go(c, [('l:k', 1), ('l:j', 5)])==1
    s.shut('frozen: test')
    assert s.gate()=='frozen: test'
    with s.writing() as c: assert s.is_shut() and controls.gate_and_controls(c)[0]
    s.unshut()
    with s.writing() as c:
        assert controls.cancel(c, ['a','b','nope'], _T(30), 'why')==(['b'],['a'])
    assert controls.asked(s, 'a')==([('a', 1)], 3)
    assert s.discard(['c'], _T(31), 'gone')==1 and s.get('c')['error_log']=='gone' and s.discard(None, _T(31), 'all')==1

def test_reasons_and_starts_given_back(s):
    s.insert([new_job('a', limit_key='k')])
    a, = _claim(s)
    with s.writing() as c:
        controls.note_starts(c, 'k', ['b'], 10., 999.); controls.note_starts(c, 'k', ['a'], 10., 999.); controls.note_starts(c, 'k', ['a'], 10., 1000.)
        controls.drop_starts(c, [a])
        assert [controls.room_of_rate(c, 'k', 3, 10., o) for o in (1000., 1009.5)]==[1, 3]
        assert controls.cancel(c, ['a'], _T(30), 'why')==controls.cancel(c, ['a'], _T(31), 'again')==([], ['a'])
    assert s.get('a')['error_log']=='Asked to end: why'
    _ack(s, Ack(a, 'pending', error='boom\n', retry_count=1, run_at=_T(50), ready=LATER, ended_at=_T(33)))
    assert (s.get('a')['status'], s.get('a')['error_log'])==('cancelled', 'Asked to end: why\nboom\n')

def test_claim_by_name_and_queue(s):
    s.insert([new_job(f'{t}{i}', i, task=f'm:{t}', queue=q) for i in range(3) for t,q in (('f',None),('g',None),('h','x'))])
    assert _ids(_claim(s, only='["m:g"]', limit=2))==['g0','g1']
    assert _ids(_claim(s, only='["m:g","m:h"]', queues=((None, 10), ('x', 10)), limit=2))==['h0','h1']
    assert _ids(_claim(s, queues=((None, 2), ('x', 1))))==['f0','f1','h2'] and _claim(s, queues=())==[]

def test_equals_go_first_come_first_served(s):
    "Also those that were held in between, whose rows have been written anew"
    s.insert([new_job(i, task='m:f') for i in 'cadbe'])
    with s.writing() as c:
        got = s.claim('a', _T(50), 3, _T(59))
        controls.hold(c, [got[1], got[2], got[0]], 'l:k')
        assert controls.let_go(c, [('l:k', 1)])==1
    assert _ids(_claim(s, limit=2))==['c','b']
    with s.writing() as c: controls.let_go(c, [('l:k', 5)])
    assert _ids(_claim(s, limit=1))==['a'] and _ids(_claim(s, only='["m:f"]'))==['d','e']

@pytest.mark.parametrize('at_once', [True, False])
def test_numbers_that_others_left_out(s, at_once):
    "A row that another program wrote: what it says nothing of is as usual, and its end is found again"
    s.insert([new_job('a'), new_job('b')])
    with s.writing() as c: c.execute("update tenant_jobs set fence=null, retry_count=null, max_retries=null, priority=null where id='a'")
    claims = s.claim_at_once('w', _T(50), 9, _T(59)) if at_once and hasattr(s, 'claim_at_once') else _claim(s)
    a,b = sorted(claims, key=lambda o: o.id)
    assert (a.fence, a.retry_count, a.max_retries)==(b.fence, b.retry_count, b.max_retries)==(1, 0, 3)
    _ack(s, _done(a), _done(b))
    assert s.get('a')['status']==s.get('b')['status']=='completed'

def test_overview(s):
    s.insert([new_job(f'{i}', job_type='ab'[i%2], created_at=_T(i)) for i in range(6)])
    s.insert([new_job('k', parents='["5"]', on_failed='run')])
    a,b = _claim(s, limit=2)
    _ack(s, _done(a), Ack(b, 'failed', error='first\nboom', retry_count=3, ended_at=_T(30)))
    ids = lambda *a, **kw: [o['id'] for o in overview.page(s, overview.JobFilter(*a), **kw).rows]
    assert ids()==['k',*'543210'] and ids('a')==['4','2','0'] and ids(None, ('failed',))==['1'] and ids(None, overview.STATUSES, 'boom')==['1']
    p = overview.page(s, limit=2)
    assert [o['id'] for o in p.rows]==['k','5'] and [o['id'] for o in overview.page(s, before=p.next, limit=2).rows]==['4','3']
    assert ids(limit=3, up=True)==['0','1','2'] and ids(None, overview.STATUSES, None, _T(2), _T(4))==['3','2']
    assert overview.tally(s)[('a','completed')]==1 and overview.line(s)[:5]==(4,0,0,0,1) and overview.line(s).oldest==_T(0)
    assert [o[:2] for o in overview.queues(s)]==[(None, 4)] and [o[0] for o in overview.ended(s).rows]==['b','a']
    assert overview.kin(s, 'k')[0]==[('5','b','pending')] and overview.kin(s, '5')[1]==[('k','t','pending')]
    l = load.read_load(s, 1767225650.)
    assert (l.due,l.failed,l.running)==(4,1,0)
    assert s.glance().due is not False and s.unfinished() and [o['id'] for o in s.get_all(['3','nope','1'])]==['3','1']

def test_retention(s):
    with s.writing() as c: retention.save_keeps(c, {('completed',''):5., ('failed','t'):float('inf'), ('cancelled',''):None})
    assert retention.read_keeps(s)=={('completed',''):5., ('failed','t'):float('inf')}
    s.insert([new_job(i) for i in 'abc'])
    claims = _claim(s)
    with s.writing(): s.keep_step('a', 'one', '1', _T(1))
    _ack(s, *[_done(o) for o in claims[:2]])
    assert retention.types(s)==['t']
    olds = retention.page(s, 't', 'completed', _T(40), 0)
    assert [(o.id,o.old,o.deps) for o in olds]==[('a',True,1),('b',True,0)]
    retention.prepare(s)
    assert retention.drop_jobs(s, olds, 't', 'completed', _T(40), _T(41))[0]==2
    assert s.steps('a')=={} and s.get('a') is None and s.get('c') and retention.left(s)==[]
    with s.writing() as c: controls.note_starts(c, 'k', ['a'], 10., 1000.)
    assert retention.next_key(s, '')=='k' and retention.old_starts(s, 'k', _T(1)) and retention.drop_starts(s, 'k', _T(1), 10)[0]==1
    assert retention.free_pages(s)==0 and retention.drop_left(s, 'a', 10)[0]==0

def test_bulk(s):
    s.insert([new_job(i, unique_key='t:k' if i=='b' else None, unique_until=_T(50) if i=='b' else None) for i in 'abcd'])
    claims = _claim(s)
    with s.writing(): s.keep_step('a', 'one', '1', _T(1))
    _ack(s, *[_done(o) for o in claims[:2]], Ack(claims[2], 'failed', error='boom', retry_count=3, ended_at=_T(30)))
    assert bulk.delete_many(s, ['a','b','d','nope'], _T(40))==['a'] and s.steps('a')=={} and s.get('b')
    assert bulk.retry_many(s, ['b','c','d'], _T(41))==['c']

def test_nul(s):
    "A character that a text of PostgreSQL's cannot hold costs nothing but itself"
    s.insert([new_job('a')])
    a, = _claim(s)
    assert _ack(s, Ack(a, 'failed', error='bo\0om', retry_count=3, ended_at=_T(30)))==[]
    assert s.get('a')['status']=='failed' and s.get('a')['error_log'].startswith('bo') and s.get('no\0') is None

def test_adopt(s):
    "Rows that the older package left"
    with s.writing() as c: c.executemany("insert into tenant_jobs(id,job_type,status,payload) values(?,'old',?,'{}')", [('a','pending'), ('b','running'), ('c','completed')])
    assert s.adopt('old', 'm:f', _T(1))==2 and s.adopt('old', 'm:f', _T(1))==0
    assert sorted(_ids(_claim(s)))==['a','b']

# --- the app's own connections

def test_a_lent_connection_comes_back(t):
    "Where its first statement fails, the app's pool has it back, and the next one works"
    s,engine = t.look()._lane.store,t.dbs[0].engine
    s.private(1.).close()
    had = engine.pool.checkedout()
    with psycopg.connect(t.path, autocommit=True) as c: c.execute('select pg_terminate_backend(pid) from pg_stat_activity where datname=current_database() and pid<>pg_backend_pid()')
    with pytest.raises(StoreError): s.private(1.)
    assert engine.pool.checkedout()==had
    c = s.private(1.)
    assert c.raw.execute('select 1').fetchone()==(1,)
    c.close()
