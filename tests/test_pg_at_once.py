"Claims by one message on a server: what may stand in their way, many at a time, and servers and connections that go away in between"
import itertools, threading

import psycopg, pytest
from fh_saas.store.base import DUE, HANDED, StoreBusy, StoreError, _T, new_job
from fh_saas.store.controls import set_control
from pg import Server, needed, on_server as t # noqa: F401, a fixture

@pytest.fixture
def make(pg):
    "Stores of one empty database, each with connections of its own"
    from fh_saas.store.postgres import PgStore
    made = []
    def make(url=pg, **kw): made.append(s := PgStore(url, **kw)); return s
    yield make
    for o in made: o.close()

def now_of(s, who='w', n=7, **kw): return s.claim_at_once(who, _T(50), n, _T(59), **kw)
def ids(claims): return [o.id for o in claims]

def test_one_answer_and_in_order(make, monkeypatch):
    from fh_saas.store import pg_file
    s,sent = make(schema='one'),[]
    s.insert([new_job('c', 3), new_job('a', 1), new_job('z', 0, priority=5), new_job('b', 2), new_job('h', 0, ready=HANDED)])
    old = pg_file._together
    monkeypatch.setattr(pg_file, '_together', lambda raw: sent.append(1) or old(raw))
    assert ids(now_of(s, n=3, hand=['h'], who='me'))==['a','b','c'] and len(sent)==1      # what was handed over comes at the end: it is due now
    assert s.get('a')['owner']=='me' and s.get('a')['fence']==1 and s.get('a')['started_at']==_T(50) and s.get('h')['ready']==DUE
    assert s.read('select id,lease_until from tenant_workers')==[('me', _T(59))]
    assert (ids(now_of(s)), now_of(s)) == (['h','z'], [])

@pytest.mark.parametrize('pipes', [True, False])
def test_all_or_nothing(make, monkeypatch, pipes):
    "What fails last, in the commit, undoes the rest and is raised; a driver without a pipeline does the same"
    from contextlib import nullcontext
    from fh_saas.store import pg_file
    if not pipes:
        monkeypatch.setattr(pg_file, '_pipes', False); monkeypatch.setattr(pg_file, '_together', lambda raw: nullcontext())
    s = make()
    s.insert([new_job('a'), new_job('h', ready=HANDED)])
    with s._short() as c:
        c.raw.execute("""create function no() returns trigger language plpgsql as 'begin raise exception ''no''; end'""")
        c.raw.execute("create constraint trigger no after update on tenant_jobs deferrable initially deferred for each row execute function no()")
    for _ in range(8):                                  # as often as it takes to have it prepared
        with pytest.raises(StoreError, match='no|refused'): now_of(s, hand=['h'])
    assert s.read("select status,ready from tenant_jobs order by id")==[('pending', DUE), ('pending', HANDED)] and s.read('select id from tenant_workers')==[]
    with s._short() as c: c.raw.execute('drop trigger no on tenant_jobs')
    assert ids(now_of(s, hand=['h']))==['a','h']

def test_a_refusal_that_the_driver_cannot_tell(make, monkeypatch):
    "psycopg counts one answer too few where the commit itself is refused and all answers come at once"
    s = make()
    s.insert([new_job('a')])
    with monkeypatch.context() as m:
        m.setattr('fh_saas.store.pg_file.PgConn.own_all', lambda self, *qs: [].pop())
        with pytest.raises(StoreError, match='refused the commit'): now_of(s)
    assert ids(now_of(s))==['a']

def test_nobody_goes_on_record_for_nothing(make):
    s = make()
    assert now_of(s)==[] and s.read('select id from tenant_workers')==[]

@pytest.mark.parametrize('what', ['gate', 'control', 'queue', 'key'])
def test_a_turn_decides(make, what):
    "Whatever bounds claims keeps it from claiming anything, and it says so"
    s,other = make(),make()
    s.insert([new_job('a')])
    if what=='gate':
        with other.writing() as c: c.execute("insert into tenant_meta values('gate','1')")
    elif what=='control':
        with other.writing() as c: set_control(c, 'pause:t:t', '1')
    else: other.insert([new_job('b', **(dict(queue='mail') if what=='queue' else dict(limit_key='k')))])
    assert now_of(s) is None and s.statuses(['a'])=={'a':'pending'} and s.read('select id from tenant_workers')==[]
    if what=='control': assert ids(now_of(s, seen='1'))==['a'], 'the caller knows of that change'

def test_no_job_twice(make):
    "Four machines, half of them in turns"
    stores = [make() for _ in range(4)]
    stores[0].insert([new_job(f'{i:04}') for i in range(1000)])
    got,errors = [],[]
    def run(s, i):
        try:
            while True:
                if i%2: claims = now_of(s, f'w{i}', wait_s=20.)
                else:
                    with s.turning(20.): claims = s.claim(f'w{i}', _T(50), 7, _T(59))
                if not claims: return
                got.extend((o.id, f'w{i}') for o in claims)
        except Exception as e: errors.append(e)
    ts = [threading.Thread(target=run, args=(s, i)) for i,s in enumerate(stores)]
    for o in ts: o.start()
    for o in ts: o.join()
    assert not errors and sorted(i for i,_ in got)==[f'{i:04}' for i in range(1000)]
    assert set(got)==set(stores[0].read("select id,owner from tenant_jobs where status='running'"))

def test_once_the_gate_is_shut_nothing_is_claimed(make):
    "Whoever has shut it, committed, can rely on that, though claims are under way all the time"
    s,other = make(),make()
    s.insert([new_job(f'{i:04}') for i in range(400)])
    stop,rounds,errors = threading.Event(),itertools.count(),[]
    def run():
        try:
            while not stop.is_set(): now_of(s, n=1, wait_s=20.); next(rounds)
        except Exception as e: errors.append(e)
    (t := threading.Thread(target=run)).start()
    running = lambda: other.read("select count(*) from tenant_jobs where status='running'")[0][0]
    for _ in range(20):
        with other.writing(20.) as c: c.execute("insert into tenant_meta values('gate','1')")
        n,at = running(),next(rounds)
        while next(rounds)<at+8 and not errors: threading.Event().wait(.002)
        assert running()==n
        with other.writing(20.) as c: c.execute("delete from tenant_meta where key='gate'")
    stop.set(); t.join()
    assert not errors

def test_a_lock_is_waited_for_and_then_given_up(make):
    s,other = make(),make()
    s.insert([new_job('a')])
    with other.writing():
        with pytest.raises(StoreBusy): now_of(s, wait_s=.05)
    assert ids(now_of(s))==['a']

def test_connections_that_are_cut(make, pg):
    "Each claim that was given is the only one of its job; what was committed without an answer is running, for its owner to give back"
    s,cutter = make(),psycopg.connect(pg, autocommit=True)
    got,failed,stop,n = [],[],threading.Event(),0
    def cut():
        while not stop.is_set(): cutter.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname=current_database() and pid<>pg_backend_pid()"); stop.wait(.02)
    (t := threading.Thread(target=cut)).start()
    while n<60 or len(failed)<3:
        try: s.insert([new_job(f'{n:04}')]); n += 1; got += ids(now_of(s, n=3))
        except StoreError as e: failed.append(e)
    stop.set(); t.join(); cutter.close()
    s.read('select 1')        # a read replaces the connection that was cut last
    while claims := s.claim_at_once('w', _T(50), 100, _T(59)): got += ids(claims)
    running = {i for i, in s.read("select id from tenant_jobs where status='running' and fence=1")}
    assert len(got)==len(set(got)) and set(got)<=running and len(running)>=n

def test_a_claim_outlives_the_server(make):
    "It is on disk before the job begins: another attempt never has the same fence, whatever the server was told of commits in general"
    needed()
    server = Server(synchronous_commit='off', wal_writer_delay='10s')
    try:
        s = make(url := server.to(server.create()))
        s.insert([new_job(f'{i}') for i in range(3)])
        for i in range(3):
            c, = now_of(s, n=1)
            server.restart('immediate')
            assert make(url).read('select status,fence,owner from tenant_jobs where id=?', (c.id,))==[('running', 1, 'w')]
    finally: server.close()

def double(n): return 2*n

def test_a_manager(t):
    "Plain jobs are claimed at once; a pause and a named queue hold all the same"
    from fh_saas.running.lane import Lane
    m = t.look()
    tried,old = [],Lane._at_once
    def at_once(self, *a): tried.append(got := old(self, *a)); return got
    Lane._at_once = at_once
    try:
        w = t.mgr(worker=False, tasks=[double])
        new = lambda **kw: m.options(**kw).submit('d', double, n=1)[0] if kw else m.submit('d', double, n=1)[0]
        new(); w.run_due()
        id = new(); tried.clear()
        assert w.run_due()==1 and w.get_job(id).result=='2' and [len(o) for o in tried if o]==[1]
        m.pause(job_type='d'); new()
        assert w.run_due()==0
        m.resume(job_type='d')
        assert w.run_due()==1
        m.pause(queue='mail'); new(queue='mail'); new()
        assert w.run_due()==1
    finally: Lane._at_once = old
