"Files of the older package: eleven columns, made through fastlite or fastsql; opened, upgraded in place, nothing lost"
import json

import apsw, pytest, work
from util import done, opened, process, run_py, said, start_py, until

cols = 'id job_type status payload result error_log retry_count max_retries created_at started_at completed_at'.split()
made_by = dict(
    fastsql='CREATE TABLE tenant_jobs (\n\tid VARCHAR, \n\tjob_type VARCHAR, \n\tstatus VARCHAR, \n\tpayload VARCHAR, \n\tresult VARCHAR, \n\terror_log VARCHAR, \n\tretry_count INTEGER, \n\tmax_retries INTEGER, \n\t'
            'created_at VARCHAR, \n\tstarted_at VARCHAR, \n\tcompleted_at VARCHAR, \n\tPRIMARY KEY (id)\n)',
    fastlite='CREATE TABLE [tenant_jobs] (\n   [id] TEXT PRIMARY KEY,\n   [job_type] TEXT,\n   [status] TEXT,\n   [payload] TEXT,\n   [result] TEXT,\n   [error_log] TEXT,\n   [retry_count] INTEGER,\n   [max_retries] INTEGER,\n   '
             '[created_at] TEXT,\n   [started_at] TEXT,\n   [completed_at] TEXT\n)')

def row(i, folder):
    st = ('completed','failed','completed','pending','running')[i%5]
    return (f'{i:032x}', ('sync','email')[i%2], st, json.dumps(dict(folder=str(folder), name=f'old{i}')), '"r"' if st=='completed' else None, 'Traceback…' if st=='failed' else None,
            {'failed':3}.get(st, 0), 3, f'2025-01-01T00:{i//60%60:02d}:{i%60:02d}.{i:06d}', None if st=='pending' else '2025-01-02T00:00:00', None if st in ('pending','running') else '2025-01-02T00:00:01')

INSERT = f'insert into tenant_jobs({",".join(cols)}) values({",".join("?"*11)})'

def old_file(t, how='fastsql', n=5000, wal=False):
    c = apsw.Connection(str(t.path))
    if wal: c.execute('pragma journal_mode=wal').fetchall()
    c.execute(made_by[how])
    with c: c.executemany(INSERT, [row(i, t.dir) for i in range(n)])
    c.close()

def rows(t): return t.dbs[0].conn.execute(f'select {",".join(cols)} from tenant_jobs order by id').fetchall()

@pytest.mark.parametrize('how', made_by)
def test_opens_and_loses_nothing(t, how):
    "Section 3: every value of 5,000 old rows is as it was; nothing of them runs by itself; new jobs work beside them"
    old_file(t, how)
    m = t.mgr(tasks=[work.quick], handoff=0)
    assert rows(t)==[row(i, t.dir) for i in range(5000)]
    id,_ = m.submit('sync', work.quick, folder=str(t.dir), name='new')
    done(m, id)
    assert [o[2] for o in t.log('ran')]==['new'], 'only the new one ran'
    assert m.list_jobs(limit=1)[0].id==id and len(m.list_jobs('sync', 'completed', 10**4))==1001
    assert m.get_job(f'{3:032x}').status=='pending' and m.get_job(f'{1:032x}').error_log=='Traceback…'
    assert [o for o in rows(t) if o[0]!=id]==[row(i, t.dir) for i in range(5000)]

def test_extra_columns_and_nulls(t):
    "A table to which its owner added columns, with rows full of NULL, opens too, and keeps them"
    old_file(t, n=10)
    db = t.db()
    db.q('alter table tenant_jobs add column mine text default "x"')
    db.q("insert into tenant_jobs(id) values('bare')")
    m = t.mgr(handoff=0)
    assert m.get_job('bare').status is None or m.get_job('bare')
    assert len(m.list_jobs())==11 and {o['mine'] for o in db.q('select mine from tenant_jobs')}=={'x'}
    done(m, m.submit('a', work.quick, folder=str(t.dir))[0])

@pytest.mark.parametrize('n', [2, 6])
def test_opened_by_several_processes_at_once(t, n):
    "Section 8: processes that open an old file at the same moment upgrade it once, and all of them work"
    old_file(t)
    code = "sys.stdin.readline(); m = mgr(tasks=[quick], handoff=0); out(m.submit('new', quick, folder=folder)[0])\nwhile m.list_jobs('new','pending') or m.list_jobs('new','running'): time.sleep(.01)"
    ps = [start_py(t, code) for _ in range(n)]
    try:
        for o in ps: o.stdin.write('go\n'); o.stdin.flush()
        for o in ps:
            out,err = o.communicate(timeout=30)
            assert o.returncode==0, err
    finally:
        for o in ps:
            if o.poll() is None: o.kill(); o.communicate()
    m = t.look()
    assert len(m.list_jobs('new', 'completed'))==n==len(t.log('ran'))
    assert [o for o in rows(t) if o[1]!='new']==[row(i, t.dir) for i in range(5000)]

WRITER = f'''
import apsw, json, sys, time
path = sys.argv[1]
c = apsw.Connection(path); c.set_busy_timeout(5000)
print('up', flush=True)
i = 0
while not __import__('os').path.exists(sys.argv[2]+'/stop'):
    c.execute("{INSERT}", (f'w{{i:05d}}', 'old', 'pending', '{{}}', None, None, 0, 3, '2025-01-01T00:00:00', None, None))
    c.execute("update tenant_jobs set status='running', started_at='x' where id=?", (f'w{{i:05d}}',))
    c.execute("update tenant_jobs set status='completed', result='1' where id=?", (f'w{{i:05d}}',))
    c.execute('select * from tenant_jobs order by created_at desc limit 10').fetchall()
    i += 1
print(i)
'''

@pytest.mark.parametrize('wal', [False, True])
def test_while_the_older_package_writes(t, wal):
    "Section 3: an upgrade under an older writer that goes on: neither fails, neither loses a row"
    old_file(t, wal=wal)
    with process(t, WRITER, pre='') as p:
        said(p, 'up')
        c = opened(t.path).conn
        def n(): return c.execute("select count(*) from tenant_jobs where job_type='old'").fetchall()[0][0]
        until(lambda: n()>5)
        m = t.mgr(tasks=[work.quick], handoff=0)
        ids = [m.submit('new', work.quick, folder=str(t.dir), name=i)[0] for i in range(100)]
        until(lambda: len(m.list_jobs('new', 'completed', 1000))==100)
        k = n(); until(lambda: n()>k+5)
        t.go('stop')
        o,e = p.communicate(timeout=10)
        assert p.returncode==0, e
    assert n()==int(o) and len(t.log('ran'))==100
    c.close()
    assert len(m.list_jobs('old', 'completed', 10**5))==int(o)

def test_adopt(t):
    "adopt gives old unfinished rows of one type their task: the pending run, what was left running counts as crashed, the rest is left alone"
    old_file(t, n=1000)
    m = t.mgr(tasks=[work.quick])
    assert m.adopt('sync', work.quick)==200 and m.adopt('sync', work.quick)==0
    until(lambda: len(t.log('ran'))>=200)
    olds = {i:m.get_job(f'{i:032x}') for i in range(1000)}
    until(lambda: len(m.list_jobs('sync', 'completed', 1000))==500-100)
    for i in range(1000):
        j,was = m.get_job(f'{i:032x}'),row(i, t.dir)
        mine = i%2==0 and was[2] in ('pending','running')
        assert (j.status,j.retry_count)==(('completed',int(was[2]=='running')) if mine else (was[2],was[6])), (i, j)
    assert sorted(int(o[2][3:]) for o in t.log('ran'))==[i for i in range(1000) if i%2==0 and i%5 in (3,4)]

def test_adopt_survives_a_restart(t):
    "Adopted rows are jobs like others for the next process"
    old_file(t, n=50)
    run_py(t, "assert mgr(worker=False).adopt('email', quick)==10")
    with process(t, "m = mgr(tasks=[quick]); m.run()"): until(lambda: len(t.log('ran'))==10)

def test_adopt_bad_input(t):
    "adopt refuses a task without a stable name, and knows types it has not seen"
    old_file(t, n=10)
    m = t.look()
    with pytest.raises(ValueError, match='name'): m.adopt('sync', lambda **k: 1)
    with pytest.raises((TypeError, ValueError)): m.adopt('sync', 3)
    assert m.adopt('nope', work.quick)==0
    assert rows(t)==[row(i, t.dir) for i in range(10)]
