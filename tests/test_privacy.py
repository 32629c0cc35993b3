"Privacy: nothing of a job's data in the files, keys that rotate, a wrong key that loses nothing, errors without secrets, and requests to forget"
import os, time
from pathlib import Path

import pytest
from fastlite import database
from util import PgTenant, both, ddl, done, end, home, on_server, process, run_py, said, until

pytest.importorskip('cryptography', reason='comes with the extra `crypto`')
from fh_saas.web.board import Board
from fh_saas.running.executor import call
from fh_saas.keys import Keys, new_key
from fh_saas.redact import Redactor
from fh_saas.store.overview import JobFilter, page
from fh_saas.store.sealed import WrongKey
from fh_saas.telemetry import subscribe
from fh_saas.tenants import Tenants
from fh_saas.testing import Clock
from fh_saas.utils_bgtsk import BackgroundTaskManager, Discard, current_job
import private

stores = both
KEY = new_key()
MAIL = 'anna@example.com'

def in_files(t, word=MAIL):
    "Files of a tenant's folder that hold the word, and those of its tables and indexes on a server"
    return [p.name for p in Path(t.dir).rglob('*') if p.is_file() and word.encode() in p.read_bytes()]+(in_tables(t.path, word) if on_server(t) else [])

def in_tables(url, word):
    import psycopg
    with psycopg.connect(url, autocommit=True) as c:
        c.execute('checkpoint')
        return [o for o, in c.execute("select relname from pg_class where oid>=16384 and relkind in ('r','i','t') and position(%s::bytea in pg_read_binary_file(pg_relation_filepath(oid)))>0", (word.encode(),)).fetchall()]

# --- sealing

@pytest.mark.parametrize('task', [private.greet, private.refuse, private.notes, private.far], ids=lambda o:o.__name__)
def test_no_word_of_it_in_any_file(t, task):
    "Arguments, results, errors, logs, progress, cursor and steps, of tasks in threads and in processes of their own; and all of it is read as ever"
    m = t.mgr(keys=[KEY])
    j = m.wait(m.submit('t', task, 1, mail=MAIL)[0], 60)
    m.options(delay=3600).submit('t', task, mail=MAIL)
    assert not in_files(t), 'while it is open'
    assert MAIL in j.payload and (MAIL in (j.error_log if task is private.refuse else j.result))
    if task in (private.notes, private.far):
        assert all(MAIL in o for o in (j.log, j.progress, j.cursor)) and f'step {MAIL}' in j.result
    m.close()
    assert not in_files(t) and (got := in_files(t, 'sealed:')) and all(o=='t.db' or o.startswith('tenant_') for o in got)

def test_a_retry_goes_on_from_what_was_sealed(t):
    "Steps, cursor and log of the first attempt are there in the second"
    c = Clock()
    m = t.mgr(keys=[KEY], worker=False, clock=c)
    id,_ = m.submit('t', private.notes, mail=MAIL, fail=True)
    m.run_due(); c.tick(5); m.run_due()
    j = m.get_job(id)
    assert j.status=='completed' and j.log.count('writing to')==2 and MAIL in j.attempts and 'half way' in j.error_log
    assert not in_files(t)

def test_why_a_job_was_cancelled_is_sealed(t):
    "Of one that waits and of one that runs, which says more at its end"
    m = t.mgr(keys=[KEY], worker=False)
    ids = [m.submit('t', private.refuse, mail=MAIL)[0] for _ in 'ab']
    a, = m._lane.turn(1)
    for o in ids: m.cancel(o, f'{MAIL} asked for it')
    a.stop = None; m._lane.start(a); m._lane.end(a, call(a.task, a.claim, a), .1); m._lane.turn(0)
    assert not in_files(t)
    run,wait = [m.get_job(o) for o in ids]
    assert (run.status, wait.status, wait.error_log)==('cancelled', 'cancelled', f'{MAIL} asked for it')
    assert run.error_log.startswith(f'Asked to end: {MAIL} asked for it\nTraceback') and m.explain(run.id).endswith(f'{MAIL} asked for it')

def test_kill_9_with_keys(t):
    "P1, P2: a sealed job whose process dies runs again"
    with process(t, f"m = mgr(keys=['{KEY}'], tasks=[gated]); m.submit('t', gated, folder=folder, name='{MAIL}'); out('up'); time.sleep(60)") as p:
        said(p, 'up'); until(lambda: t.log("start")); end(p)
    t.go()
    assert not [o for o in in_files(t) if o!='log']
    m = t.mgr(keys=[KEY], tasks=[__import__('work').gated])
    until(lambda: m.list_jobs(status='completed'))
    assert m.list_jobs()[0].retry_count==1

def test_transactions(t):
    "P4, P5 with keys: a job's rows and its sealed result commit together, and so do jobs of a transaction"
    m = t.mgr(keys=[KEY], worker=False)
    for o in 'sent','people': ddl(m.db, f'create table {o}(n)')
    def own(mail):
        with current_job().transaction() as db:
            db.q('insert into sent values(1)')
            current_job().finish(f'sent to {mail}')
    with m.transaction() as db:
        db.q('insert into people values(1)'); m.submit('t', own, mail=MAIL)
    m.run_due()
    job, = m.list_jobs()
    assert (job.status, job.result)==('completed', f'"sent to {MAIL}"') and not in_files(t)

def test_unique_keys_say_nothing_and_hold(t):
    "Jobs are found by their key, which the file does not tell"
    m = t.mgr(keys=[KEY], worker=False)
    o = m.options(unique=MAIL)
    a,b = o.submit('t', private.greet, mail=MAIL)[0],o.submit('t', private.greet, mail='other')[0]
    assert a==b and len(m.list_jobs())==1 and not in_files(t)
    m.run_due()
    assert o.submit('t', private.greet, mail=MAIL)[0]!=a

@pytest.mark.on_sqlite('a server cannot open what is sealed, so it does not search there, see the next')
def test_errors_are_found_by_their_text(t):
    "retry_failed and the dashboard's search look into sealed errors"
    m = t.mgr(keys=[KEY], worker=False)
    for o in MAIL,'bob@example.com': m.submit('t', private.refuse, 1, mail=o)
    m.run_due()
    with Board(m).reading("-") as f: assert len(page(f, JobFilter(text=MAIL)).rows)==1 and MAIL in page(f, JobFilter(text=MAIL)).rows[0]['error']
    assert (m.retry_failed(error_contains='nobody'), m.retry_failed(error_contains=MAIL))==(0, 1)

def test_sealed_errors_are_not_searched_on_a_server(pg, tmp_path):
    "A text finds none of them, and so retries none"
    t = PgTenant(tmp_path, pg)
    m = t.mgr(keys=[KEY], worker=False)
    m.submit('t', private.refuse, 1, mail=MAIL); m.run_due()
    assert m.retry_failed(error_contains=MAIL)==0 and m.retry_failed()==1
    t.close()

def test_without_keys_nothing_is_other_than_it_was(t):
    "What is not asked for costs nothing: the store and the lane are the plain ones"
    lane = t.look()._lane
    assert type(lane.store).__name__==('PgStore' if on_server(t) else 'SqliteStore') and lane.hide is None and 'seal' not in dict(lane.store.read('select key,value from tenant_meta'))

# --- keys

def test_a_process_without_the_key_puts_the_job_off(t):
    "No attempt is used, nothing is lost, and it is said what is missing; whoever has the key runs it"
    c = Clock()
    m = t.mgr(keys=[KEY], worker=False, clock=c)
    id,_ = m.options(max_retries=1).submit('t', private.greet, mail=MAIL)
    m.close()
    m = t.mgr(worker=False, clock=c)
    m.run_due()
    j = m.get_job(id)
    assert (j.status, j.retry_count)==('pending', 0) and 'sealed with a key that this process lacks' in j.error_log and j.payload.startswith('"sealed:')
    assert 'sealed with a key' in m.explain(id) and j.run_at in m.explain(id)
    assert m.run_due()==0, 'it is not tried over and over'
    m.close(); c.tick(61)
    m = t.mgr(keys=[KEY], worker=False, clock=c)
    assert m.run_due()==1 and m.get_job(id).result==f'"hello {MAIL}"'

def test_other_keys_are_refused_before_anything_is_stored(t):
    "A manager with the wrong keys is not made, and the file is as it was"
    m = t.mgr(keys=[KEY], worker=False)
    id,_ = m.submit('t', private.greet, mail=MAIL)
    m.close()
    with pytest.raises(WrongKey, match='none of the 1 keys opens'): t.mgr(keys=[new_key()], worker=False)
    m = t.mgr(keys=[new_key(), KEY], worker=False)
    assert m.run_due()==1 and m.get_job(id).status=='completed'

def test_keys_rotate(t):
    "New key before the old, reseal, then the new key alone; while a job runs"
    new = new_key()
    m = t.mgr(keys=[KEY])
    ids = [m.submit('t', private.greet, mail=MAIL)[0] for _ in range(120)]
    for o in ids: m.wait(o, 60)
    m.close()
    m = t.mgr(keys=[new, KEY])
    run,_ = m.submit('t', private.hold, mail=MAIL, folder=str(t.dir))
    until((t.dir/'runs').exists)
    assert m.reseal()>=120 and m.reseal()==0
    t.go(); done(m, run)
    m.close()
    m = t.mgr(keys=[new], worker=False)
    assert {o.result for o in m.list_jobs(limit=1000)}=={f'"hello {MAIL}"', f'"{MAIL}"'} and not in_files(t)
    m.close()
    with pytest.raises(WrongKey): t.mgr(keys=[KEY], worker=False)

def test_keys_come_to_a_file_that_had_none(t):
    "What was stored before is read, and sealed by reseal; unique keys go on to hold"
    m = t.mgr(worker=False)
    m.options(unique=MAIL).submit('t', private.greet, mail=MAIL)
    m.close()
    m = t.mgr(keys=[KEY], worker=False)
    assert m.reseal()==1
    m.options(unique=MAIL).submit('t', private.greet, mail=MAIL)
    assert len(m.list_jobs())==1 and m.run_due()==1

def test_bad_keys(t):
    "Errors name the option, and do not tell the key"
    for bad,e in (['short'], ValueError), ([], ValueError), (5, TypeError), ([5], TypeError):
        with pytest.raises(e, match='key') as got: t.mgr(keys=bad)
        assert 'short' not in str(got.value)
    with pytest.raises(TypeError, match='redact must be'): t.mgr(redact='iban')
    with pytest.raises(ValueError, match='keys='): t.look().reseal()

# --- tenants

def test_a_key_for_each_tenant(t):
    "P8: a tenant whose key cannot be had costs itself alone; without its key, its data are lost for good"
    keys = {o:new_key() for o in ('acme', 'globex')}
    def key_of(id):
        if id=='broken': raise OSError('the vault is closed')
        return keys.get(id)
    ts = Tenants(home(t), worker=False, tasks=[private.greet], keys=key_of)
    try:
        for o in (*keys, 'plain', 'broken'): ts.create(o)
        ids = {o:ts[o].jobs.submit('t', private.greet, mail=f'{o}@example.com')[0] for o in (*keys, 'plain')}
        with pytest.raises(Exception, match="no keys for tenant 'broken': OSError: the vault is closed"): ts['broken'].jobs.submit('t', private.greet, mail='x')
        for o in ids: assert ts[o].jobs.run_due()==1 and f'{o}@' in ts[o].jobs.get_job(ids[o]).result
        assert in_files(t, 'plain@') and not in_files(t, 'acme@') and not in_files(t, 'globex@')
        assert set(ts.reseal())=={'broken'}
        got = ts.forget(containing='@example.com')
        assert 'vault' in got.pop('broken') and {k:v[:2] for k,v in got.items()}==dict.fromkeys(ids, (1, [])) and (on_server(t) or all(o.clean for o in got.values()))
        def again(): return [o for k,o in ts.forget(containing='@example.com').items() if k!='broken']
        assert until(lambda: all(o[:2]==(0, []) and o.clean for o in again()))     # a server may have been at a table by itself
        assert not in_files(t, 'plain@')
        with pytest.raises(KeyError): ts.forget(containing='@example.com', tenant='nobody')
    finally: ts.close()

# --- redaction

def test_secrets_in_errors_are_not_stored(t):
    "Errors, attempts, logs, messages and events; the rules are those of the dashboard"
    def login(password, iban):
        job = current_job()
        job.log(f'trying password={password}'); job.progress(1, 2, f'iban: {iban}')
        if job.attempt==2: raise Discard(f'token={password}')
        raise ValueError(f'password={password}, iban={iban}')
    rules,heard,c = Redactor('iban'),[],Clock()
    m = t.mgr(worker=False, redact=rules, clock=c)
    stop = subscribe(lambda e, **kw: heard.append(kw), queue=None)
    id,_ = m.submit('t', login, password='hunter2', iban='DE02')
    m.run_due(); c.tick(5); m.run_due()
    stop()
    j = m.get_job(id)
    for o in j.error_log,j.log,j.progress,j.attempts: assert '[redacted]' in o and 'hunter2' not in o and 'DE02' not in o
    assert len(heard)>3 and 'hunter2' not in repr(heard) and j.status=='failed' and 'hunter2' in j.payload

def test_redacted_in_a_process_of_its_own(t):
    m = t.mgr(redact=['anna@example.com'], tasks=[private.far])
    j = m.wait(m.submit('t', private.far, mail='anna@example.com = x')[0], 60)
    assert j.status=='completed' and '[redacted]' in j.log and '[redacted]' in j.progress

# --- forgetting

def test_a_running_job_is_asked_to_end_and_named(t):
    "Ask again when it has ended"
    m = t.mgr()
    id,_ = m.submit('t', private.stays, mail=MAIL, folder=str(t.dir))
    until((t.dir/'runs').exists)
    got = m.forget(containing=MAIL)
    assert (got.removed, got.running, got.clean)==(0, [id], False)
    t.go()
    done(m, id, status='cancelled')
    assert m.forget(containing=MAIL)==(1, [], True) and not in_files(t)

def test_forgetting_in_a_sealed_file(t):
    "What is looked for is what the keys show"
    m = t.mgr(keys=[KEY], worker=False)
    for o in MAIL,'bob@example.com': m.submit('t', private.greet, mail=o)
    m.run_due()
    assert m.forget(containing=f'hello {MAIL}')==(1, [], True)
    assert [o.result for o in m.list_jobs()]==['"hello bob@example.com"']

def test_children_of_what_is_forgotten(t):
    "They end as those of a cancelled parent do, and nothing waits for ever"
    m = t.mgr(worker=False)
    a,_ = m.options(delay=60).submit('t', private.greet, mail=MAIL)
    kid,_ = m.options(after=[a]).submit('t', private.greet, mail='bob')
    run,_ = m.options(after=[a], on_failed='run').submit('t', private.greet, mail='carl')
    assert m.forget(payload=dict(mail=MAIL)).removed==1
    assert m.get_job(kid).status=='failed' and m.run_due()==1 and m.get_job(run).status=='completed'

def test_claims_hold_while_the_file_is_rewritten(t):
    "VACUUM moves no job that runs: its end is written"
    m = t.mgr()
    for i in range(50): m.submit('t', private.greet, mail=MAIL if i%2 else 'bob')
    id,_ = m.submit('t', private.hold, mail='carl', folder=str(t.dir))
    until((t.dir/'runs').exists)
    until(lambda: len(m.list_jobs(status='completed'))==50)
    assert m.forget(containing=MAIL)==(25, [], True)
    t.go()
    assert done(m, id).result=='"carl"' and m.get_job(id).fence==1

# --- PostgreSQL

from fh_saas.store.base import _T, _claim, _done, checks, new_job
from fh_saas.store.forget import erase, holding, says
from fh_saas.store.sealed import protect, reseal

@pytest.fixture
def pg_store(pg):
    from fh_saas.store.postgres import PgStore
    s = PgStore(pg)
    protect(s, Keys(KEY))
    yield s
    s.close()

@pytest.mark.parametrize('check', checks, ids=lambda f:f.__name__)
def test_contract_on_a_server(pg_store, check): check(pg_store)

def test_sealed_on_a_server(pg_store):
    "The same store sealed: what lies there, what is read, new keys, and forgetting"
    s = pg_store
    s.insert([new_job('a', payload=f'{{"mail":"{MAIL}"}}'), new_job('b')])
    a,b = _claim(s)
    with s.writing(): s.complete([('"x"', _T(1), _T(2), *b[:3])]); s.ack([_done(a, result=f'"{MAIL}"')])
    assert s.get('a')['result']==f'"{MAIL}"' and MAIL not in str(s.read('select * from tenant_jobs'))
    protect(s, Keys(new := new_key(), KEY))
    at,n = 0,0
    while at is not None: k,at = reseal(s, at); n += k
    assert n==2
    protect(s, Keys(new))
    assert s.get('a')['payload']==f'{{"mail":"{MAIL}"}}'
    got = [i for ids in holding(s, says(MAIL)) for i in ids]
    assert (got, erase(s, got), s.get('a'))==(['a'], ['a'], None)
    with pytest.raises(WrongKey): protect(s, Keys(KEY))
