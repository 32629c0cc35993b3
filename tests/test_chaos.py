"The short form of tests/chaos, and what it has found"
import subprocess, sys
import work
from chaos import machine
from util import root

def test_any_order_of_events():
    "P1-P5: see chaos/machine.py; the long form is `python -m tests.chaos --minutes 30`"
    machine.run(40, 60)

def test_killed_at_every_statement():
    "P1-P5: see chaos/points.py; in a process of its own, as it forks. The long form has all operations"
    p = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'tests.chaos', '--only', 'points', '--case', 'submit,submit_many,unique,run,rescue,transaction,job_transaction,cancel,retry_by_hand,prune'],
                       cwd=root, capture_output=True, text=True, timeout=110)
    assert p.returncode==0, p.stdout+p.stderr

# --- found by the state machine

def test_same_key_twice_below_a_parent_that_has_failed(t):
    "Both are told the id of the first, which ended with its parent before the second one came"
    m = t.look()
    p,_ = m.submit('a', work.quick, folder='')
    m.cancel(p)
    ids = m.options(unique='u', after=[p]).submit_many('a', work.quick, [dict(folder='')]*3)
    assert len(set(ids))==1 and m.get_job(ids[0]).status=='failed'

def test_retry_of_a_cancelled_child_waits_again(t):
    "Its parent still runs, and the link to it is still there"
    m = t.look()
    p,_ = m.submit('a', work.quick, folder=str(t.dir))
    c,_ = m.options(after=[p]).submit('a', work.quick, folder=str(t.dir))
    m.cancel(c)
    m.retry(c)
    assert m.get_job(c).ready==4
    assert m.run_due()==2 and m.get_job(c).status=='completed'
