"The short forms of tests/chaos/power.py and tests/chaos/disk.py, and what they have found"
import os, subprocess, sys, threading
import apsw, pytest, work
from fh_saas.store.base import StoreError
from test_chaos import long_form
from test_tenants import back_up, h, settled, worker
from util import PRE, process, root, run_py, said, until

def test_power_lost_before_every_flush():
    "P1, P4, P5: see chaos/power.py; any part of what was not flushed is missing or torn"
    long_form('power', '--case', 'new_file,close,submit,transaction,job_transaction')

def disk(code):
    "In a process of its own, as it forks"
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', 'import logging; logging.disable(50)\nfrom tests.chaos import disk\n'+code], cwd=root, capture_output=True, text=True, timeout=280)
    assert p.returncode==0, p.stdout+p.stderr

def test_each_call_to_the_disk_fails():
    "P1, P3, P8: see chaos/disk.py; an error that names the file, nothing by half, and it goes on when the disk works again"
    disk("disk.calls(['submit', 'run'], ('once', 'full'))")

def test_each_statement_fails():
    "P1, P3, P8: see chaos/disk.py; nothing is left by half, nor any lock, in the process that goes on"
    disk("disk.calls(['submit_many', 'run', 'job_transaction'], ('statement',))")

def test_a_disk_that_becomes_read_only():
    "P1, P8: see chaos/disk.py; remounted under a running worker, an open file that takes no more writes, ext4 after an error; then all goes on"
    disk("print(disk.readonly())")

def test_a_disk_with_room_for_so_many_pages():
    "P1, P8: see chaos/disk.py; from none to as many as it needs"
    disk("disk.full(['submit', 'run'])")

def test_spoilt_files_beside_a_good_one():
    "P8: see chaos/disk.py; pages of zeros and junk, other files in its place, its log removed, while another tenant is served; no job is completed that did not run"
    disk("disk.files(('open',)); disk.files(('pages',), 13)")

# --- the log removed, or the file replaced, while it is open

OPEN = '''
m = BackgroundTaskManager(database(path), worker=False, tasks=[quick])
for i in range(5): m.submit('a', quick, folder=folder, name=i)
'''

def test_log_removed_under_a_manager(t):
    "P1, P8: submit says so and names the log; all that had been reported is in the file, for other processes and after kill -9; a moment later it goes on"
    o = run_py(t, OPEN+'''
os.unlink(path+'-wal')
try: m.submit('b', quick, folder=folder); raise SystemExit('submit said yes')
except StoreError as e: assert 't.db-wal was removed' in str(e), e
look = "import apsw,sys; c = apsw.Connection(sys.argv[1]); print(c.execute('pragma integrity_check').fetchall(), c.execute('select count(*) from tenant_jobs').fetchall())"
import subprocess
assert subprocess.check_output([sys.executable, '-c', look, path], text=True).strip()=="[('ok',)] [(5,)]"
import fh_saas.store.sqlite_file as f
f.PARTED_S = 0
m.submit('b', quick, folder=folder)
out(m.run_due())
os.kill(os.getpid(), 9)''', rc=-9)
    assert o=='6\n' and len(t.look().list_jobs(status='completed'))==6

def test_log_removed_while_another_has_the_file_open(t):
    "P1: nobody opens it anew, and so spoils it, before the other has closed it"
    with process(t, OPEN+"out('up'); sys.stdin.readline(); m._lane.close(); m.db.conn.close(); out('closed'); sys.stdin.readline()") as p:
        said(p, 'up')
        m = t.look(tasks=[work.quick])
        t.path.with_name('t.db-wal').unlink()
        for _ in range(3):
            with pytest.raises(StoreError, match='t.db-wal was removed'): m.submit('b', work.quick, folder=str(t.dir))
        for o in t.dbs: o.conn.close()
        t.dbs.clear()
        m._open.close()
        print(file=p.stdin, flush=True); said(p, 'closed')
        m = until(lambda: try_(lambda: t.look(tasks=[work.quick])))
        assert len(m.list_jobs())==5 and m.run_due()==5
        assert m._lane.store.read('pragma integrity_check')==[('ok',)]

def try_(f):
    try: return f()
    except StoreError as e: print(e); return None

def test_log_removed_under_a_worker(h):
    "P1, P8: the worker says so, other tenants go on, and once the moment is over it runs the jobs"
    ts = h.many(2)
    a,b = ts.values()
    with worker(h):
        h.fill(a, 3)
        until(lambda: len(h.log('ran'))==3)
        os.unlink(a.path+'-wal')
        h.fill(b, 3)
        until(lambda: len(h.log('ran'))==6)
        until(lambda: try_(lambda: h.fill(a, 2)), 20, .05)
        until(lambda: len(h.log('ran'))==8)
        until(lambda: settled(ts), every=.05)
    assert [o.status for o in a.jobs.list_jobs()]==['completed']*5

def test_backup_put_in_place_and_the_log_left(h):
    "P1, P8: a backup is moved to where a file lies that is in use, and the log of that stays: nothing of it gets into the backup"
    ts = h.many(1, 3)
    a, = ts.values()
    back_up(a.path, bak := str(h.dir/'bak.db'))
    h.fill(a, 300)
    os.replace(bak, a.path)
    assert len(a.jobs.list_jobs(limit=1000))==3
    h.fill(a, 1)
    a.jobs.run_due()
    c = apsw.Connection(a.path)
    assert c.execute('pragma integrity_check').fetchall()==[('ok',)] and c.execute("select count(*) from tenant_jobs where status='completed'").fetchall()==[(4,)]
    c.close()

# --- a disk that stands still: what it was given it takes seconds later

STALL = '''
stall,stalled,go = (threading.Event() for _ in range(3))
class File(apsw.VFSFile):
    def __init__(self, name, flags): super().__init__('unix', name, flags)
    def xSync(self, flags):
        if stall.is_set(): stalled.set(); go.wait(30)
        return super().xSync(flags)
class Vfs(apsw.VFS):
    def __init__(self): super().__init__('stall', 'unix', makedefault=True)
    def xOpen(self, name, flags): return File(name, flags)
vfs = Vfs()
from util import done, until
m = mgr(tasks=[gated], handoff=0, busy_s=.3)
def submits():
    "What comes of one more submit"
    try: return m.submit('g', gated, folder=folder, name='more')[0]
    except StoreError as e: return e
'''

def test_submit_beside_a_worker_whose_commit_the_disk_holds_up(t):
    "P1: a submit waits as long as it may and says for what; rows can be read, the app's loop goes on; what raised is not there, and once the disk goes on all does"
    run_py(t, STALL+'''
id = submits()
until(lambda: m.get_job(id).status=='running')
stall.set()
open(folder+'/go', 'w').close()
assert stalled.wait(20), 'the end of the job is being written'
began = time.monotonic()
e = submits()
assert 'in use by another thread of this process for 0.3 s: it writes much, or the disk is slow' in str(e), e
assert time.monotonic()-began<5 and [o.id for o in m.list_jobs()]==[id]
async def served():
    turns,late = 0,asyncio.ensure_future(m.asubmit('g', gated, folder=folder, name='more'))
    while not late.done(): turns += 1; await asyncio.sleep(.01)
    assert isinstance(late.exception(), StoreError) and turns>5, (late, turns)
asyncio.run(served())
stall.clear(); go.set()
done(m, id)
new = submits()
done(m, new)
assert {o.id for o in m.list_jobs()}=={id, new}''', pre=PRE+'from fh_saas.store.base import StoreError\n')

def test_submit_behind_a_thread_that_waits_for_a_lock(t):
    "The error names what is waited for, not the thread that waits for it"
    m = t.look()
    other = t.db()
    other.conn.execute('begin immediate')
    store,waits = m._lane.store,threading.Thread(target=lambda: m._lane.store.shut('why'))
    store.wait_s = 2.
    waits.start()
    until(store.waiting)
    with pytest.raises(StoreError, match='t.db stayed locked by another connection for'): store.insert([], .05)
    with pytest.raises(StoreError, match=r't.db stayed locked by another connection for 0\.05 s'): 
        with store.writing(.05): pass
    other.conn.execute('rollback')
    waits.join()
