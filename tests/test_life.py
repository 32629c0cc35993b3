"The picture of a job's life shows every way that rows go, and no other"
import signal, sys
from pathlib import Path

import pytest, work
from fh_saas.retry import Snooze
from util import end, process, run_py, stop_worker, until

sys.path.append(str(Path(__file__).resolve().parent.parent/'tools'))
import life

def fine(): return 1
def boom(): raise OSError('boom')
def snooze(): raise Snooze(5)

@pytest.fixture
def watched(t, job_clock):
    "A tenant whose file notes each way that a row goes"
    m = t.look(clock=job_clock)
    m.db.conn.execute(life.TRIGGERS)
    return m

def ends(m, clock):
    "Retries, times, and the hand of an operator"
    m.task(fine); m.task(boom); m.task(snooze)
    id = lambda f, **o: m.options(**o).submit('x', f)[0]
    id(fine); id(boom, max_retries=1); id(boom); id(snooze)
    m.cancel(id(fine)); later = id(fine, delay=5); m.cancel(id(fine, delay=5)); m.retry(id(fine, delay=99))
    m.submit('x', fine)[1].func(later)
    m.run_due(); clock.tick(60); m.run_due()
    for s in 'failed','cancelled': m.retry(m.list_jobs(status=s)[0].id)
    m.run_due()

def lines(m, clock):
    "Pauses, limits, and jobs that wait for others"
    m.task(fine, name='rated', rate=(1, 60))
    id = lambda f, **o: m.options(**o).submit('y', f)[0]
    m.pause(job_type='y'); held = [id(fine) for i in range(3)]; m.run_due(); m.cancel(held[0]); m.submit('x', fine)[1].func(held[1]); m.resume(job_type='y'); m.run_due()
    bad = m.options(max_retries=1).submit('z', boom)[0]
    kids = [id(fine, after=[bad], **o) for o in (dict(), dict(on_failed='cancel'), dict(on_failed='run'), dict(on_failed='run', delay=9), dict())]
    m.cancel(kids[4]); m.run_due(); clock.tick(9); m.run_due()
    m.retry(bad); m.retry(kids[0]); m.run_due()

def strange(m, t):
    "Tasks that nobody here knows"
    ids = run_py(t, "m = mgr(tasks={'new': quick}, worker=False)\nfor i in range(4): out(m.submit('n', quick, folder=folder)[0])").split()
    m.run_due(); m.cancel(ids[0])
    m.task(work.quick, name='new'); m.run_due()

def workers(t):
    "A route's grace, a cancel, a shutdown and two crashes"
    run_py(t, """
m = mgr(tasks=[agated, quick], handoff=3600)
hand = [m.submit('g', quick, folder=folder)[0] for i in range(3)]
m.cancel(hand[0]); m.wait(hand[1]); m.submit('g', quick, folder=folder)[1].func(hand[2])
a,b = [m.options(max_retries=1).submit('g', agated, folder=folder, name=i)[0] for i in range(2)]
m._before_wait(a); m._before_wait(b)
while len(m.list_jobs(status='running'))<2: time.sleep(.005)
m.cancel(a); m.wait(a); m.drain_s = 0; m.close()""")
    t.go()
    id,_ = t.look().submit('b', work.bomb, max_retries=3, folder=str(t.dir))
    for i in range(2): run_py(t, "m = mgr(tasks=[bomb,agated]); m.run()", rc=-9)
    with process(t, 'm = mgr(tasks=[bomb,agated]); m.run()') as p:
        until(lambda: t.look().get_job(id).retry_count==2)
        end(p, signal.SIGTERM)

def test_every_way(t, watched, job_clock):
    "What is drawn is what rows do, seen by triggers in the database"
    m = watched
    ends(m, job_clock); lines(m, job_clock); strange(m, t)
    m.close(); stop_worker(); workers(t)
    got,drawn = set(life.seen(t.dbs[0].conn)),{(a,b) for a,b,_ in life.WAYS}
    assert not got-drawn, f'not drawn: {got-drawn}'
    assert not drawn-got, f'drawn, and never seen: {drawn-got}'

def test_places():
    assert {o for a,b,_ in life.WAYS for o in (a,b) if o}==set(life.PLACES) and len({o[:2] for o in life.WAYS})==len(life.WAYS)

def test_a_program_that_ends_gives_back_what_runs(t):
    "It drains at its exit, where some Pythons (3.12.1) start no thread any more: what runs too long goes back and has used no attempt, and nothing is printed"
    with process(t, "m = mgr(tasks=[gated], handoff=0, drain_s=.05); m.submit('g', gated, folder=folder, name='x')\nwhile not os.path.exists(folder+'/log'): time.sleep(.005)") as p:
        o,e = p.communicate(timeout=60)
    j, = t.look().list_jobs()
    assert (p.returncode,o,j.status,j.retry_count)==(0,'','pending',0) and 'Traceback' not in e, e
