"The short form of tests/chaos, and what it has found"
import subprocess, sys
import pytest, work
from chaos import flood, hostile, licences, machine, soak, times, versions
from fh_saas.store.overview import JobFilter, page
from fh_saas.tenants import Tenants
from util import root

def long_form(*args):
    p = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'tests.chaos', '--only', *args], cwd=root, capture_output=True, text=True, timeout=280)
    assert p.returncode==0, p.stdout+p.stderr

def test_any_order_of_events():
    "P1-P5: see chaos/machine.py; the long form is `python -m tests.chaos --minutes 30`"
    machine.run(40, 60)

def test_killed_at_every_statement():
    "P1-P5: see chaos/points.py; in a process of its own, as it forks. The long form has all operations"
    long_form('points', '--case', 'submit,submit_many,unique,run,rescue,transaction,job_transaction,cancel,retry_by_hand,prune')

def test_killed_at_random():
    "P1-P4, P6: see chaos/soak.py"
    long_form('soak', '--minutes', '.6')

def test_recovery_of_a_process_task():
    "The soak's figures: the death of a worker cuts short what its child runs, whose starts name the worker; other jobs go by the pid of the line"
    lines = [o.split() for o in ('1 50 start a 7', '1.1 7 start b', '2 51 start a 8', '2.5 8 start b', '3 51 end a', '4 8 end b', '5 52 start c 9', '6 52 end c')]
    assert sorted(soak._recovery(lines, [(1.5, 7), (7., 9)]))==[(1.5, 2., 'a'), (1.5, 2.5, 'b')]

def test_stands_still(tmp_path):
    "P6: five kinds of jobs of a process that stands still for an hour of the clock: on the same machine they stay its own"
    times.frozen(tmp_path)

@pytest.mark.parametrize('last', [True, False])
def test_stands_still_on_another_machine(tmp_path, last):
    "P3, P4: another process has taken over; what comes late, before or after its end, is refused, and a transaction took effect once"
    times.frozen(tmp_path, True, last)

def test_clock_is_stepped(tmp_path):
    "P2, P6: by hours, forward and back, under two workers; each job runs once, each slot of a schedule comes once"
    times.jumps(tmp_path, 2.)

def test_clock_over_summer_time(tmp_path):
    "P2: schedules in seven zones, with a clock that goes to and fro over the change: each slot once"
    times.dst(tmp_path, steps=25)

@pytest.mark.parametrize('first', [versions.OLD, versions.VERSION])
def test_package_of_the_schema_before_beside_this_one(tmp_path, first):
    "P1, P3, P4: four processes of two versions on one file, made by either: jobs of every kind are done once each"
    versions.together(tmp_path, 4, first)

@pytest.mark.parametrize('dies', [versions.OLD, versions.VERSION])
@pytest.mark.parametrize('kill', [True, False])
def test_other_version_takes_over(tmp_path, dies, kill):
    "P1, P6: what a process of one version leaves, killed or told to end, the other version ends; forward and back"
    versions.takes_over(tmp_path, dies, kill)

@pytest.mark.parametrize('f', hostile.TRIED, ids=lambda f: f.__name__)
def test_hostile_input(f):
    "P8, P9: taken, or refused with an error that is meant for it; no other row and no table changes, and no log says it"
    hostile.attack(f, 40, 0)

def test_locked_for_seconds_under_64_threads(tmp_path):
    "P1: each submit that returned is there, each that raised is not"
    flood.writers(tmp_path, 1)

def test_one_step_is_no_growth():
    "What was added once counts for nothing, what is added by each job counts as it did, be it in two lumps"
    from statistics import linear_regression
    def slope(ys): return linear_regression(range(len(ys)), ys).slope
    up = [1000+250*k for k in range(8)]
    assert slope(flood.unstepped([7]*4+[1000]*4))==0==slope(flood.unstepped([7]*7+[1000])) and abs(slope(flood.unstepped(up))-250)<1e-9
    assert abs(slope(flood.unstepped([y+5000*(k>3) for k,y in enumerate(up)]))-250)<1e-9
    assert slope(flood.unstepped([0]*2+[1000]*3+[2000]*3))>100 and slope(flood.unstepped([9,5,9,5,9,5,9,5]))<1

@pytest.mark.parametrize('kind,n', [('none', 24_000), ('alone', 3_000), ('step', 3_000)])
def test_nothing_grows_with_the_jobs(tmp_path, kind, n):
    "P10: neither objects nor threads nor descriptors; the long form looks at the process's memory too"
    o = flood.grown(tmp_path, n, kind=kind)
    assert o['threads']<=0 and o['fds']<=0 and o['objects']*n/1e5<1500, o

def test_licences():
    "All that is installed with the package is free to be used by anybody's product"
    got = licences.licences()
    assert len(got)>10 and not [k for k,v in got.items() if not licences.PERMISSIVE.search(v or '')], got

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

# --- found by thinking of the points of a move

def cut_off(t, **opts):
    "A tenant of which one job runs, in a process that will not end it in time"
    ts = Tenants(t.dir, worker=False, tasks=[work.quick])
    m = ts.create('a').jobs
    id,_ = m.options(**opts).submit('a', work.quick, folder=str(t.dir))
    m._lane.start(m._lane.turn(1)[0])
    return ts,m,id

def test_move_with_a_key_that_has_been_taken_again(t):
    "The one that runs and the one that waits under its key both arrive; the key is the second one's"
    ts,m,id = cut_off(t, unique='u', unique_for='pending')
    new,_ = m.options(unique='u', unique_for='pending').submit('a', work.quick, folder=str(t.dir))
    ts['a'].move(t.dir/'there', drain_s=.01)
    m = ts['a'].jobs
    assert [(m.get_job(o).status, bool(m.get_job(o).unique_key)) for o in (id, new)]==[('pending', False), ('pending', True)]
    assert m.run_due()==2
    ts.close()

def test_move_of_a_job_that_was_asked_to_end(t):
    "It does not begin again in the new place, and who waits for it hears of it"
    ts,m,id = cut_off(t)
    kid,_ = m.options(after=[id]).submit('b', work.quick, folder=str(t.dir))
    m.cancel(id)
    ts['a'].move(t.dir/'there', drain_s=.01)
    m = ts['a'].jobs
    assert (m.get_job(id).status, m.get_job(kid).status)==('cancelled', 'failed') and m.run_due()==0
    ts.close()

# --- found by hostile input

def test_rule_with_a_number_beyond_all_days(t):
    "A clear error, not that of a float"
    m = t.look()
    for bad in (10**400, -10**400):
        with pytest.raises(ValueError, match='completed must be at'): m.keep(completed=bad)
    assert m.keeps()==[]

@pytest.mark.parametrize('k', ['job_type', 'text', 'since', 'until'])
def test_filter_that_is_no_text(t, k):
    "A clear error, not that of the driver for a number beyond 64 bits"
    with pytest.raises(TypeError, match=f'{k} must be text'): page(t.look()._lane.store, JobFilter(**{k:2**63}))
