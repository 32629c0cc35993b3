"""P1-P5, P9: whatever users, workers, crashes and clocks do, in whatever order, the rows are what a model in memory says.
Several processes (`Owner`) are played by one, on one database, with an injected clock and attempts that are begun and ended by hand"""
import os, shutil, sys, tempfile
from copy import copy
from dataclasses import replace
from types import SimpleNamespace

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from fh_saas.running.context import Cancelled, LostClaim, context_of, current, current_job
from fh_saas.running.executor import INTERRUPTED, Outcome
from fh_saas.ids import from_iso, to_iso
from fh_saas.running.lane import Lane
from fh_saas.running.maintenance import heartbeat, look_in, mend, release_lost
from fh_saas.running.presence import Presence
from fh_saas.retry import Discard, RetryIn, Snooze
from fh_saas.scheduler import Timetable
from fh_saas.store.base import STATUSES
from fh_saas.store.sqlite import SqliteStore
from fh_saas.tasks import Known, Tasks
from fh_saas.utils_bgtsk import JobNotFound, _Submitter
from .model import Job, Model, count

# A store joins the proof by one line: what opens it on a folder, once for each process
stores = dict(
    sqlite=lambda folder: SqliteStore(f'{folder}/t.db'),
)

START = 1.8e9
ran = []       # what tasks did: pairs (job id, how)

def act(how):
    ran.append((current_job().id, how))
    match how:
        case 'fail': raise ValueError('boom')
        case 'snooze': raise Snooze(30)
        case 'discard': raise Discard('no')
        case 'again': raise RetryIn(5)
    return 1

def plain(how='ok', key=''): return act(how)
def keyed(how='ok', key=''): return act(how)
def rated(how='ok', key=''): return act(how)
def rare(how='ok', key=''): return act(how)

LIMIT,RATE = 2,(2, 60.)
SLOT = dict(often=600, seldom=6*3600)       # schedules, by the seconds between their slots
SCHEDULES = {k:(dict(expr=e, tz='UTC', catch_up=c, spread=0., job_type='a', task='plain', payload='{}', typed=None, max_retries=2, slot=False), None)
    for k,e,c in [('often', '*/10 * * * *', 'once'), ('seldom', '0 */6 * * *', 'all')]}
TASKS = dict(plain=plain, keyed=keyed, rated=rated, rare=rare)

def known(rare_too):
    k = Known(Tasks())
    k.tasks.add(plain, 'plain'); k.tasks.add(keyed, 'keyed', limit=LIMIT, limit_key=lambda kw: kw['key']); k.tasks.add(rated, 'rated', rate=RATE, limit=LIMIT)
    if rare_too: k.tasks.add(rare, 'rare')
    return k

class WatchedLane(Lane):
    "A lane that tells the machine what it does"
    few = True      # whether it claims as where few are due, or as where many are
    def turn(self, limit, only=None, wait_s=5.):
        self.store._few = self.few
        return self.machine.turned(self, limit, lambda: super(WatchedLane, self).turn(limit, only, wait_s))
    def _slots(self): self.driven = True; return super()._slots()
    def start(self, a, at=None, slot=None): self.machine.started(self, a); return super().start(a, at, slot)
    def end(self, a, out, took_s, keep=False): self.machine.ended(self, a, out); return super().end(a, out, took_s, keep)

class Manager(_Submitter):
    "A manager whose worker is the machine"
    def __init__(self, lane, handoff): super().__init__(lane); self.worker,self.handoff = True,handoff
    def _serve(self, lane=None): return SimpleNamespace(kick=lambda lane: None)

class Owner:
    "A process"
    def __init__(self, machine, knows, handoff, most):
        self.here = Presence(machine.folder)
        self.here.uses = 1
        self.lane = WatchedLane(machine.open(machine.folder), self.here, known(knows), machine.clock)
        self.lane.machine,self.lane.key,self.lane.max_running,self.lane.few = machine,self.here.owner,most,len(machine.owners)%2==0
        self.id,self.knows,self.m = self.here.owner,knows,Manager(self.lane, handoff)
        self.lane.users.add(self.m)
        self.lane.timetable = Timetable(SCHEDULES, 'seed')
        self.hands,self.hidden,self.alive,self.seen = [],False,True,set()     # attempts in hand; whether others can see that it lives
    def __repr__(self): return self.id

    def marks(self):
        "Attempts that would count if it died now"
        return {(a.claim.id, a.claim.fence) for a in self.hands if a.began and not a.ended}

    def hide(self): self.hidden = True; os.unlink(self.here.path)

    def die(self):
        "As by kill -9: nothing is written, its lock is gone, its file stays"
        self.alive,self.lane.closed = False,True
        self.here._drop()
        self.lane.store.close()

outcomes = dict(ok=Outcome('returned', '2'), snooze=Outcome('snoozed', wait_s=30.), discard=Outcome('failed', error='no', final=True),
    again=Outcome('failed', error='e', wait_s=5.))
index = st.integers(0, 30)
hows = st.sampled_from(['ok', 'ok', 'fail', 'fail', 'snooze', 'discard', 'again'])
some_options = st.fixed_dictionaries({}, optional=dict(
    delay=st.sampled_from([1., 30., 3600.]), priority=st.integers(0, 2), queue=st.sampled_from(['default', 'q']),
    unique=st.sampled_from(['u', 'v']), unique_for=st.sampled_from(['pending', 'running', 20.]),
    parents=st.lists(index, min_size=1, max_size=3), on_failed=st.sampled_from(['fail', 'cancel', 'run'])))
types = st.sampled_from(['a', 'b'])

in_hand,at_work = (precondition(lambda self, b=b: self.hands(b)) for b in (False, True))     # an attempt that has not, or has, begun
somebody,something = precondition(lambda self: self.owners),precondition(lambda self: self.owners and self.model.jobs)

class Machine(RuleBasedStateMachine):
    store = 'sqlite'

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix='chaos', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)
        self.now,self.model,self.owners,self.dead,self.stale,self.preds,self.starts,self.slots = START,Model(),[],[],[],{},{},{k:[] for k in SLOT}
        self.open,self.n = stores[self.store],0
        self.look = self.open(self.folder)
        with self.look.writing() as c: c.execute('create table effects(job text)')
        ran.clear()

    def clock(self): return self.now
    def rows(self): return {o['id']:o for o in self.look.select(None, None, 10**6)}
    def owner(self, i): return self.owners[i%len(self.owners)]
    def job(self, i): return list(self.model.jobs.values())[i%len(self.model.jobs)]
    def hands(self, begun): return [(o, a) for o in self.owners for a in o.hands if not a.ended and bool(a.began)==begun]
    def hand(self, i, begun=True):
        "An owner and one of its attempts"
        got = self.hands(begun)
        return got[i%len(got)]

    # --- what lanes do

    def turned(self, lane, limit, turn):
        m,before = self.model,self.rows()
        acks,back,aside = list(lane.acks),list(lane.back),list(lane.aside)
        idle = [c for c in back if not any(a.claim is c and a.began for a in lane.hand.values())]
        got = turn()
        assert lane.failure is None, lane.failure
        if not (lane.acks or lane.back):
            for a in [a for a in acks if a.ack is None]+[a for a in acks if a.ack is not None and a.over is None]:
                if not m.holds(a.claim): count['end refused'] += 1
                else: m.ack(m.jobs[a.claim.id], *self.pred(a)); m.attempts += 1
            for c in (*back, *aside):
                if m.holds(c): m.back(m.jobs[c.id]); count['given back or parked'] += 1
                if c in idle: self.not_begun(c.id)
        self.claimed(lane, limit, before, got, [c for c in lane.aside if c not in aside])
        return got

    def pred(self, a): return self.preds[a.claim.id, a.claim.fence, lane_of(a)]

    def claimed(self, lane, limit, before, got, unknown):
        m,after = self.model,self.rows()
        self.come(before, after)
        claims = [a.claim for a in got]+unknown
        for c in claims: m.claim(m.jobs[c.id], lane.owner, c.fence)
        owner = next((o for o in self.owners if o.lane is lane), None)
        if owner: owner.hands += got
        assert len(claims)<=limit and not (claims and (m.shut or lane.closing))
        for c in claims:
            j = m.jobs[c.id]
            assert f'q:{j.queue or "default"}' not in m.paused, 'claimed from a paused queue'
            if before[c.id]['ready'] in (0, -1): assert before[c.id]['run_at']<=lane.now() or before[c.id]['ready']==-1, 'claimed before its time'
        for a in got:
            j,c = m.jobs[a.claim.id],a.claim
            assert f't:{j.job_type}' not in m.paused, 'claimed though its type is paused'
            if n := m.limits.get(j.job_type): assert len(m.running(job_type=j.job_type))<=n, 'more of a type than may run'
            if j.task in ('keyed', 'rated'): assert len(m.running(limit_key=j.limit_key))<=LIMIT, 'more of a key than may run'
            if j.task=='rated': self.note_start(c.id)
        if any(m.jobs[a.claim.id].task=='rated' for a in got):
            assert len(self.starts)<=RATE[0], 'more starts than the rate allows'
        if lane.max_running and claims: assert len(m.running())<=lane.max_running, 'more than the tenant may run'
        line = [(c.priority, c.run_at or '') for c in claims if before[c.id]['ready']!=2]
        assert line==sorted(line) or unknown, f'claimed out of order: {line}'
        left = [o for o in after.values() if o['ready']==1 and f'q:{o["queue"] or "default"}' not in m.paused]
        held = [o for o in after.values() if o['ready']==3 and o['fence']>before[o['id']]['fence']]
        for o in held: count[f'held by {o["held"][0]}'] += 1
        if limit and left and not (m.shut or lane.closing or lane.max_running):
            assert len(claims)+len(held)>=limit, f'{len(left)} jobs are due, {len(claims)} of {limit} were claimed'
            if line: assert max(line)<=min((o['priority'], o['run_at'] or '') for o in left), 'a job was passed over'

    def note_start(self, id):
        self.starts = {k:t for k,t in self.starts.items() if self.now-RATE[1]<t<=self.now+RATE[1]}|{(id, self.now):self.now}

    def not_begun(self, id):
        "A claim that went back has started nothing"
        if mine := [t for (i,t) in self.starts if i==id]: del self.starts[id, max(mine)]; count['start given back'] += 1

    def come(self, before, after):
        "Jobs of slots: each slot once, none before its time"
        for id in sorted(set(after)-set(self.model.jobs), key=lambda o: after[o]['unique_key'] or ''):
            key = after[id]['unique_key'] or ''
            assert key.startswith('t:cron '), f'made from nothing: {after[id]}'
            _,name,at = key.split(' ')
            at,had = from_iso(at),self.slots[name]
            assert at<=self.now and at%SLOT[name]==0 and (not had or at>had[-1]), f'{key} comes at {to_iso(self.now)} after {had[-1:]}'
            if name=='seldom' and had: assert at==had[-1]+SLOT[name], 'a slot was left out'
            had.append(at)
            count[f'slot of a schedule, {name}'] += 1
            self.model.submit([Job(id, 'plain', 'a', 2, key=key)], to_iso(self.now))
            before[id] = after[id]|dict(ready=1, fence=0)        # it may have been claimed, and held, in the same turn

    def started(self, lane, a):
        if any(a is x for o in self.owners for x in o.hands): return
        if a.task.rate: self.note_start(a.claim.id)
        self.model.claim(self.model.jobs[a.claim.id], lane.owner, a.claim.fence)     # called by hand

    def ended(self, lane, a, out):
        j,c = self.model.jobs.get(a.claim.id),a.claim
        n = c.retry_count+1
        if out.how=='returned': p = 'completed',c.retry_count,out.result
        elif out.how=='snoozed': p = 'pending',c.retry_count
        elif out.how!='failed': return
        elif a.stop=='cancelled': p = 'cancelled',c.retry_count
        else: p = 'failed' if n>=c.max_retries or out.final and a.stop!='timeout' else 'pending',n
        self.preds[c.id, c.fence, lane.owner] = p

    # --- processes

    @initialize(n=st.integers(1, 3), jobs=st.lists(st.tuples(st.sampled_from(['plain', 'keyed', 'rated']), some_options, hows), max_size=6))
    def begin(self, n, jobs):
        for k in range(n): self.owners.append(Owner(self, k!=1, 5. if k else 0., None))
        for k,(task,opts,how) in enumerate(jobs): self.submit(k, task, 'ab'[k%2], 2, opts, how, 'x')

    @precondition(lambda self: len(self.owners)<3)
    @rule(knows=st.booleans(), handoff=st.sampled_from([0., 5.]), most=st.sampled_from([None, None, 2]))
    def start_process(self, knows, handoff, most): self.owners.append(Owner(self, knows, handoff, most))

    @somebody
    @rule(i=index, hide=st.booleans())
    def kill(self, i, hide):
        "kill -9; where `hide`, of a process on another machine"
        o = self.owner(i)
        if hide and not o.hidden: o.hide()
        o.die(); self.owners.remove(o); self.dead.append(o)
        self.stale += [(o, a) for a in o.hands]

    @somebody
    @rule(i=index)
    def hide(self, i):
        "The process is not seen any more by others, as if it were on another machine; it goes on"
        if not (o := self.owner(i)).hidden: o.hide()

    @precondition(lambda self: len(self.owners)>1)
    @rule(i=index, dies=st.booleans(), s=st.sampled_from([0., 100.]))
    def take_over(self, i, dies, s):
        "A process dies, or stands still beyond its lease on another machine, and another takes its jobs"
        o = self.owner(i)
        if not any(r['ready']==1 for r in self.rows().values()): self.submit_many(i, 'plain', 'a', 3, {}, 'ok')
        for a in o.lane.turn(3)[:2]: o.lane.start(a)
        if dies: self.kill(i, s>0)
        else: self.hide(i)
        self.now += s
        self.sweep(self.owners.index(next(x for x in self.owners if x is not o)), False)
        if dies: return
        other = next(x for x in self.owners if x is not o)
        for a in other.lane.turn(3): other.lane.start(a)
        for n,a in enumerate([a for a in o.hands if a.began and not a.ended]):      # it wakes, and goes on
            if n%3==1: self.do_step(o, a, 't')
            elif n%3==2: self.do_transaction(o, a)
            o.lane.end(a, outcomes['ok'] if n%2 else Outcome('failed', error='boom', summary='boom'), 1.)
        o.lane.turn(0)

    @somebody
    @rule(i=index)
    def leave(self, i):
        "A shutdown: what runs is interrupted, what was claimed goes back"
        o = self.owner(i)
        o.lane.closing = True
        for a in o.hands:
            if a.began and not a.ended: o.lane.end(a, INTERRUPTED, 0.)
            elif not a.began: o.lane.back.append(a.claim)
        o.lane.turn(0)
        o.lane.turn(0)
        o.lane.close()
        o.alive = False
        self.owners.remove(o); self.dead.append(o)
        o.hidden = True                            # its file is gone
        o.hands = []

    # --- submitting

    def spec(self, o, task, kind, tries, opts, how, key):
        "What to say to a manager, and the job that should come of it"
        opts = dict(opts)
        if 'unique' not in opts: opts.pop('unique_for', None)
        ps = [self.job(i).id for i in opts.pop('parents', ())] if self.model.jobs else opts.pop('parents', ()) and ()
        if ps: opts['after'] = ps = list(dict.fromkeys(ps))
        else: opts.pop('on_failed', None)
        scope = opts.get('unique_for', 'running')
        u = opts.get('unique')
        job = Job(None, task, kind, tries, None if opts.get('queue')=='default' else opts.get('queue'), opts.get('priority', 0),
            f'keyed\x1f{key}' if task=='keyed' else 'rated' if task=='rated' else None,
            f'{scope[0] if isinstance(scope, str) else "t"}:{task}\x1f{u}' if u else None, to_iso(self.now+scope) if u and not isinstance(scope, str) else None,
            ps or (), opts.get('on_failed', 'fail') if ps else None)
        return dict(opts, timeout=60),dict(how=how, key=key),job

    def expect(self, jobs, ids):
        "Tell the model what was submitted in one go, and compare"
        for job,id in zip(jobs, ids): job.id = id
        got = [o.id for o in self.model.submit(jobs, to_iso(self.now))]
        assert got==ids, f'expected {got}, got {ids}'

    @somebody
    @rule(i=index, task=st.sampled_from(list(TASKS)), kind=types, tries=st.integers(1, 3), opts=some_options, how=hows, key=st.sampled_from(['x', 'y']))
    def submit(self, i, task, kind, tries, opts, how, key):
        o = self.owner(i)
        opts,kw,job = self.spec(o, task, kind, tries, opts, how, key)
        f = TASKS[task]
        id,_ = o.m.options(**opts).submit(kind, f, tries, **kw) if task!='rare' or o.knows else (None, None)
        if id: self.expect([job], [id])

    @somebody
    @rule(i=index, task=st.sampled_from(['plain', 'keyed', 'rated']), kind=types, n=st.integers(1, 4), opts=some_options, how=hows)
    def submit_many(self, i, task, kind, n, opts, how):
        o = self.owner(i)
        opts,kw,job = self.spec(o, task, kind, 2, opts, how, 'x')
        self.expect([replace(job, steps={}, waits=set()) for _ in range(n)], o.m.options(**opts).submit_many(kind, TASKS[task], [kw]*n, 2))

    @somebody
    @rule(i=index, kind=types, opts=st.lists(some_options, min_size=1, max_size=3), commit=st.booleans())
    def transaction(self, i, kind, opts, commit):
        o,got = self.owner(i),[]
        try:
            with o.m.transaction() as db:
                for n,op in enumerate(opts):
                    op,kw,job = self.spec(o, 'plain', kind, 1, op, 'ok', '')
                    got.append((job, o.m.options(**op).submit(kind, plain, 1, **kw)[0]))
                if not commit: raise KeyError('rolled back')
        except KeyError: return
        for job,id in got: self.expect([job], [id])

    @somebody
    @rule(i=index)
    def unfit(self, i):
        "What cannot be stored leaves nothing"
        o = self.owner(i)
        try: o.m.options(after=['nobody']).submit('a', plain)
        except ValueError: return
        assert False, 'it waits for a job that does not exist'

    # --- running

    @somebody
    @rule(i=index, limit=st.integers(0, 4))
    def turn(self, i, limit): self.owner(i).lane.turn(limit)

    @somebody
    @rule(i=index, limit=st.integers(1, 4), hows=st.lists(st.sampled_from([None, 'begin', 'transaction', 'ok', 'fail', 'fail', 'discard', 'snooze']), max_size=4))
    def work(self, i, limit, hows):
        "The ordinary course: claim, begin some, end some"
        o = self.owner(i)
        if not any(r['ready']==1 for r in self.rows().values()): self.submit_many(i, 'plain', 'a', 3, {}, 'ok')
        for a,how in zip(o.lane.turn(limit), hows):
            if how is None: continue
            o.lane.start(a)
            if how=='begin': continue
            if list(self.model.jobs).index(a.claim.id)%2: self.do_step(o, a, 's')
            if how=='transaction': self.do_transaction(o, a)
            o.lane.end(a, outcomes.get(how) or Outcome('failed', error='boom', summary='boom'), 1.)
            self.stale.append((o, a))

    @in_hand
    @rule(i=index)
    def start(self, i):
        o,a = self.hand(i, False)
        o.lane.start(a)

    @at_work
    @rule(i=index, how=hows, stop=st.sampled_from([None]*5+['timeout']))
    def finish(self, i, how, stop):
        o,a = self.hand(i)
        if stop: a.stop = a.stop or stop
        o.lane.end(a, outcomes.get(how) or Outcome('failed', error='boom', summary='boom'), 1.)
        self.stale.append((o, a))

    @at_work
    @rule(i=index)
    def interrupt(self, i):
        o,a = self.hand(i)
        o.lane.end(a, INTERRUPTED, 0.); self.drop(o, a)

    @in_hand
    @rule(i=index)
    def give_back(self, i):
        o,a = self.hand(i, False)
        o.lane.back.append(a.claim); self.drop(o, a)

    def drop(self, o, a): o.hands.remove(a); self.stale.append((o, a))

    @in_hand
    @rule(i=index)
    def lose(self, i):
        "A thread that dies with a claim"
        o,a = self.hand(i, False)
        o.lane.hand.pop(a.claim.id, None); self.drop(o, a)

    @precondition(lambda self: self.stale and self.owners)
    @rule(i=index, k=index, twice=st.booleans())
    def end_late(self, i, k, twice):
        "An attempt ends that has ended already, or whose place was taken: through its lane, or straight at the store"
        o,a = self.stale[k%len(self.stale)]
        if a.ack is None and a.ended is None or not a.ended: return
        if o.alive and twice:
            o.lane.acks.append(b := copy(a))
            b.ack = copy(a.ack)
        elif not self.model.holds(a.claim):
            count['late end, at the store'] += 1
            s = self.owner(i).lane.store
            with s.writing():
                if a.ack: assert s.ack([a.ack])==[a.ack], 'a late end was taken'
                assert s.complete([('9', a.began, a.ended, *a.claim[:3])])==[0], 'a late completion was taken'
                assert s.release([a.claim])==[a.claim] and s.park([a.claim])==[a.claim], 'a late return was taken'

    @somebody
    @rule(i=index)
    def run_due(self, i):
        o = self.owner(i)
        before = len(ran)
        self.expect_rescue(o)
        n = o.m.run_due()
        assert n==len(ran)-before
        self.forget_run(o)
        if not (self.model.shut or o.lane.max_running):
            assert not [r for r in self.rows().values() if r['ready']==1 and f'q:{r["queue"] or "default"}' not in self.model.paused], 'run_due left due jobs'

    def forget_run(self, o): o.hands = [a for a in o.hands if not a.ended or a in o.lane.acks]

    @something
    @rule(i=index, j=index)
    def call(self, i, j):
        "The BackgroundTask's function, called by hand"
        o,j,before = self.owner(i),self.job(j),len(ran)
        may = j.status=='pending' and not j.waits and not self.model.shut and (j.task!='rare' or o.knows)
        o.m._execute_with_retry(j.id)
        assert len(ran)-before==may
        self.forget_run(o)

    @something
    @rule(i=index, j=index)
    def returned(self, i, j):
        "The BackgroundTask awaited by Starlette"
        self.owner(i).lane.handed.append(self.job(j).id)

    # --- inside a task

    @at_work
    @rule(i=index, name=st.sampled_from(['s', 't']), works=st.booleans())
    def step(self, i, name, works): self.do_step(*self.hand(i), name, works)

    def do_step(self, o, a, name, works=True):
        if a.over or a.job and name in a.job._named: return
        j,job,calls = self.model.jobs.get(a.claim.id),context_of(a),[]
        def fn():
            calls.append(1)
            if not works: raise KeyError('it fails')
            self.n += 1
            return self.n
        kept = j.steps.get(name) if j else None
        try: v = job.step(name, fn)
        except Cancelled: assert a.stop and not calls
        except LostClaim: assert not self.model.holds(a.claim); count['step refused'] += 1
        except KeyError: assert not works
        else:
            if calls: assert self.model.holds(a.claim); j.steps[name] = v; count['step kept'] += 1
            if kept: assert v==kept and not calls, 'a step ran twice'; count['step found'] += 1

    @at_work
    @rule(i=index, commit=st.booleans(), child=st.booleans())
    def complete_in_transaction(self, i, commit, child): self.do_transaction(*self.hand(i), commit, child)

    def do_transaction(self, o, a, commit=True, child=False):
        if a.over: return
        job,kid,held = context_of(a),None,self.model.holds(a.claim)
        tok = current.set(a)
        try:
            with job.transaction() as db:
                db.q('insert into effects values(?) returning 1', (a.claim.id,))
                if child: kid = job.submit('b', plain, 1)
                if not commit: raise KeyError('rolled back')
                job.finish(7)
                if held: self.on_commit(o, a, job, kid); held = 'done'
        except (Cancelled, LostClaim): assert held!='done' and (a.stop or not self.model.holds(a.claim)); count['transaction refused'] += 1
        except KeyError: assert not commit
        else: assert held=='done', 'a transaction of a lost claim was committed'
        finally: current.reset(tok)

    def on_commit(self, o, a, job, kid):
        "The commit comes next, and with it maybe a turn"
        j,m = self.model.jobs[a.claim.id],self.model
        if kid: m.submit([Job(kid, 'plain', 'b', 1)], to_iso(self.now))
        j.effects += 1
        count['transaction committed'] += 1
        m.attempts += 1
        m.ack(j, 'completed', a.claim.retry_count, '7')
        if job.stepped: j.steps = {}

    # --- by hand

    @something
    @rule(i=index, j=index)
    def cancel(self, i, j):
        o,j = self.owner(i),self.job(j)
        over,running = j.over,j.status=='running'
        try: gone = o.m.cancel(j.id)
        except ValueError: assert over
        else: assert not over and gone==(not running); self.model.cancel(j)

    @something
    @rule(i=index, j=index)
    def retry(self, i, j):
        o,j = self.owner(i),self.job(j)
        ready,status = self.rows()[j.id]['ready'],j.status
        may = status in ('failed', 'cancelled') and not self.model.holder(j.key, j) and not self.model.stuck(j) or status=='pending' and ready in (0, -1, 1)
        try: o.m.retry(j.id)
        except ValueError: assert not may
        else:
            assert may
            if status!='pending': self.model.retry([j])

    @somebody
    @rule(i=index, kind=st.sampled_from([None, 'a', 'b']))
    def retry_failed(self, i, kind):
        n = self.owner(i).m.retry_failed(kind)
        again = self.model.retry([j for j in self.model.jobs.values() if j.status=='failed' and kind in (None, j.job_type)])
        assert n==len([j for j in again if not j.over])

    @somebody
    @rule(i=index, what=st.sampled_from(['q:default', 'q:q', 't:a', 't:b']))
    def pause_or_resume(self, i, what):
        m,k = self.owner(i).m,dict(queue=what[2:]) if what[0]=='q' else dict(job_type=what[2:])
        if what in self.model.paused: m.resume(**k); self.model.paused.remove(what)
        else: m.pause(**k); self.model.paused.add(what)

    @somebody
    @rule(i=index, kind=types, n=st.sampled_from([None, 1, 2]))
    def limit(self, i, kind, n):
        self.owner(i).m.limit(kind, n)
        self.model.limits.pop(kind, None)
        if n: self.model.limits[kind] = n

    @somebody
    @rule(i=index)
    def freeze_or_thaw(self, i):
        s = self.owner(i).lane.store
        if self.model.shut: s.unshut()
        else: s.shut('frozen')
        self.model.shut = not self.model.shut

    @something
    @rule(i=index, j=index)
    def explain(self, i, j): assert isinstance(self.owner(i).m.explain(self.job(j).id), str)

    @somebody
    @rule(i=index, keep_s=st.sampled_from([0., 10., 3600.]), status=st.sampled_from(['completed', 'failed', 'cancelled']))
    def prune(self, i, keep_s, status):
        m,now = self.owner(i).m,to_iso(self.now)
        gone = [o['id'] for o in self.rows().values() if o['status']==status and o['completed_at']<to_iso(self.now-keep_s)
            and (o['unique_key'] is None or o['unique_until'] is None or o['unique_until']<=now)] if not self.model.shut else []
        m.keep(**{status:keep_s/86400})
        n = m.prune()
        m.keep(**{status:None})
        count['pruned'] += n
        assert n==len(gone), f'{n} were pruned, not {len(gone)}'
        for i in gone: del self.model.jobs[i]

    # --- time and maintenance

    @rule(s=st.sampled_from([.1, 1., 3., 10., 61., 700., 86400., -1., -61., -3600.]))
    def clock_jumps(self, s): self.now += s

    @somebody
    @rule(i=index, beat=st.booleans())
    def sweep(self, i, beat):
        "What a worker does each second, and what it does at each beat"
        o = self.owner(i)
        self.expect_rescue(o)
        look_in(o.lane)
        self.check_held(o)
        if beat:
            heartbeat(o.lane)
            o.seen = release_lost(o.lane, o.seen)
            self.expect_lost(o)
            assert mend(o.lane)==0, 'children had been forgotten'
        o.lane._look_ahead()
        self.check_awake(o)

    def expect_rescue(self, me):
        m,leases = self.model,dict(self.look.owners())
        for o in self.owners+self.dead:
            if o is me or o.id not in leases or o.alive and not o.hidden or o.hidden and from_iso(leases[o.id])>self.now: continue
            held = sorted(m.running(owner=o.id), key=lambda j: (j.job_type, list(m.jobs).index(j.id)))
            begun = [j for j in held if o.hidden or (j.id, j.fence) in o.marks()]
            for j in begun: m.crash(j); m.attempts += 1
            for j in held:
                if j not in begun: m.back(j); self.not_begun(j.id); count['crash not charged'] += 1

    def expect_lost(self, o):
        "What was given back because no thread held it, in the order of the rows"
        for id,r in sorted(self.rows().items(), key=lambda o: (o[1]['job_type'], list(self.model.jobs).index(o[0]))):
            j = self.model.jobs[id]
            if r['status']!='running' and j.status=='running' and j.owner==o.id:
                assert id not in o.lane.hand, 'a claim was given back that a thread held'
                self.model.back(j)
                count['lost claim given back'] += 1

    def check_held(self, o):
        "Nothing is held back when nothing holds it"
        rows = self.rows().values()
        for line in {r['held'] for r in rows if r['ready']==3}:
            kind,k = line[0],line[2:]
            of = lambda r: r['job_type']==k if kind=='t' else r['limit_key']==k
            n = (0 if line in self.model.paused else self.model.limits.get(k, 10**6)) if kind=='t' else LIMIT
            if kind=='r': continue      # a matter of time
            room = n-len([r for r in rows if r['status']=='running' and of(r)])
            free = len([r for r in rows if r['ready']==1 and of(r)])
            assert room<=0 or free>=min(room, 1), f'{line} holds jobs though there is room for {room}'

    def check_awake(self, o):
        "The next time at which something is due is known"
        at = min([from_iso(r['run_at']) for r in self.rows().values() if r['ready'] in (0, -1)], default=None)
        if at is not None: assert o.lane.due_at<=at+1e-6, 'a job would be slept over'

    # --- what always holds

    @invariant()
    def rows_are_as_the_model_says(self):
        m,rows = self.model,self.rows()
        assert set(rows)==set(m.jobs), f'lost: {set(m.jobs)-set(rows)}, made from nothing: {set(rows)-set(m.jobs)}'
        for id,j in m.jobs.items():
            r = rows[id]
            got = r['status'],r['retry_count'],r['owner'],r['result'],r['max_retries']
            assert got==(j.status, j.failures, j.owner, j.result, j.tries), f'{got} is not {j}'
            assert r['fence']>=j.fence and (j.status!='running' or r['fence']==j.fence)
            j.fence = r['fence']        # one that was held back has been claimed for a moment
            if j.status!='completed': assert r['unique_key']==j.key or (j.key or '').startswith('t'), f'{r["unique_key"]} is not {j}'
            assert (r['completed_at'] is not None)==j.over and (r['run_at'] is None)==j.over, r
            assert (r['ready'] is not None)==(j.status=='pending') and (r['ready']==4)==bool(j.waits), f'{r["ready"]}: {j}'
            if r['ready']==3: assert r['held']
        self.counts_agree(rows)

    def counts_agree(self, rows):
        m,s = self.model,self.look
        assert s.running_now()==len(m.running()) and s.mark()==m.attempts, f'{s.mark()} attempts, not {m.attempts}'
        for o in STATUSES: assert len(s.select(None, o, 10**6))==len([j for j in m.jobs.values() if j.status==o])
        for t in 'a','b': assert len(s.select(t, None, 10**6))==len([j for j in m.jobs.values() if j.job_type==t])
        links = set(s.read('select parent,child from tenant_job_parents'))
        want = {(p, j.id) for j in m.jobs.values() for p in j.waits}
        assert want=={(p, c) for p,c in links if rows.get(c, {}).get('ready')==4}, f'{links} are not {want}'
        assert all(p in rows and rows[p]['status'] in ('pending', 'running') for p,_ in want)
        assert sorted(o for o, in s.read('select job from effects'))==sorted(j.id for j in m.jobs.values() for _ in range(j.effects)) or self.pruned_effects(rows)
        steps = {}
        for job,name,v in s.read('select job,name,result from tenant_job_steps'): steps.setdefault(job, {})[name] = int(v)
        assert set(steps)<=set(rows), 'steps of jobs that are gone'
        for id,j in m.jobs.items():
            if j.status!='completed': assert steps.get(id, {})==j.steps, f'{steps.get(id)} is not {j.steps}'

    def pruned_effects(self, rows):
        got = [o for o, in self.look.read('select job from effects') if o in rows]
        return sorted(got)==sorted(j.id for j in self.model.jobs.values() for _ in range(j.effects))

    # --- and in the end

    def teardown(self):
        try:
            if sys.exc_info()[0] is None: self.finish_all()
        finally:
            for o in self.owners: o.die()
            self.look.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def finish_all(self):
        "P1, P2: once nothing stands in the way, every job ends"
        for o in list(self.owners): o.die(); self.owners.remove(o); self.dead.append(o)
        me = Owner(self, True, 0., None)
        me.lane.timetable = None
        self.owners.append(me)
        for what in list(self.model.paused): self.pause_or_resume(0, what)
        for t in list(self.model.limits): self.limit(0, t, None)
        if self.model.shut: self.freeze_or_thaw(0)
        for _ in range(100+len(self.model.jobs)):
            if not [j for j in self.model.jobs.values() if not j.over]: break
            self.now += 4000.
            self.sweep(0, True)
            for a in me.lane.turn(100):
                me.lane.start(a)
                me.lane.end(a, Outcome('returned', '2'), 1.)
            me.lane.turn(0)
            self.rows_are_as_the_model_says()
        left = [j for j in self.model.jobs.values() if not j.over]
        assert not left, f'never ended: {left}'
        assert self.look.read('pragma integrity_check')==[('ok',)] if self.store=='sqlite' else True

def lane_of(a): return a.lane.owner

def run(examples, steps=50, store='sqlite', seed=None, blob=None, verbose=False, shrink=True):
    "So many runs of the machine; `seed` or `blob` replay one. Raises what failed"
    import hypothesis
    from hypothesis.stateful import run_state_machine_as_test
    cls = type('Machine', (Machine,), dict(store=store))
    if seed is not None: cls = hypothesis.seed(seed)(cls)
    if blob: cls = hypothesis.reproduce_failure(hypothesis.__version__, blob)(cls)
    run_state_machine_as_test(cls, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None, print_blob=True, database=None, report_multiple_bugs=False, phases=[Phase.generate]+[Phase.shrink]*shrink,
        suppress_health_check=list(HealthCheck), verbosity=Verbosity.verbose if verbose else Verbosity.normal))
