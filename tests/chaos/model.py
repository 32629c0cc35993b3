"What the rows of a database should say: the rules of DESIGN section 3 and 4 in plain Python, without SQL and without time"
from collections import Counter
from dataclasses import dataclass, field

count = Counter()      # what has happened, over all runs: a proof that never meets a case proves nothing about it
FINAL = 'completed', 'failed', 'cancelled'

@dataclass
class Job:
    "One job as it should be"
    id: str
    task: str
    job_type: str
    tries: int                      # attempts in all
    queue: str = None
    priority: int = 0
    limit_key: str = None
    key: str = None                 # unique key with its scope before it
    until: str = None               # until when a `t:` key is taken
    parents: list = ()
    on_failed: str = None
    status: str = 'pending'
    failures: int = 0               # since it was submitted or retried by hand
    fence: int = 0
    owner: str = None
    result: str = None
    asked: bool = False             # somebody asked it to end while it ran
    waits: set = field(default_factory=set)     # parents that are not over
    steps: dict = field(default_factory=dict)
    effects: int = 0                # rows that its transactions wrote
    def __hash__(self): return hash(self.id)
    @property
    def over(self): return self.status in FINAL

class Model:
    "All jobs of a database"
    def __init__(self): self.jobs,self.attempts,self.paused,self.limits,self.shut = {},0,set(),{},False
    def running(self, **kw): return [j for j in self.jobs.values() if j.status=='running' and all(getattr(j, k)==v for k,v in kw.items())]

    # --- coming

    def holder(self, key, but=None):
        "The job that holds a unique key"
        def holds(j): return j.status=='pending' or key>='t' or j.status=='running' and key>='r'
        return next((j for j in self.jobs.values() if key and j.key==key and j is not but and holds(j)), None)

    def submit(self, jobs, now):
        "The jobs that exist afterwards: these, or those that hold their keys"
        for k in {j.key for j in jobs if j.key and j.key[0]=='t'}:
            for o in self.jobs.values():
                if o.key==k and o.until<=now: o.key = None
        got = [self._put(j) for j in jobs]
        self._see_parents([j for j,o in zip(jobs, got) if j is o])
        return got

    def _put(self, job):
        if h := self.holder(job.key): count[f'key taken, {job.key[0]}'] += 1; return h
        assert job.id not in self.jobs, f'{job} was not made, and nothing holds its key'
        self.jobs[job.id] = job
        job.waits = set(job.parents)
        return job

    def _see_parents(self, jobs):
        "Jobs that have just been made to wait meet parents that are over"
        for j in jobs:
            for p in list(j.waits):
                if self.jobs[p].over: self._parent_over(j, self.jobs[p])

    def _parent_over(self, j, p):
        if j.over or p.id not in j.waits: return
        count[f'parent over: {p.status}, {j.on_failed}'] += 1
        if p.status!='completed' and j.on_failed!='run': self.end(j, 'cancelled' if j.on_failed=='cancel' else 'failed')
        else: j.waits.discard(p.id)

    # --- running and ending

    def claim(self, j, owner, fence):
        assert j.status=='pending' and not j.waits, f'claimed although {j}'
        assert fence>j.fence, f'attempt {fence} is not a new one: {j}'
        j.status,j.owner,j.fence = 'running',owner,fence
        count['claimed'] += 1

    def holds(self, c):
        "Whether a claim still holds"
        j = self.jobs.get(c.id)
        return j is not None and j.status=='running' and j.fence==c.fence

    def end(self, j, status, result=None):
        assert not j.over, f'a final state is overwritten: {j}'
        j.status,j.owner,j.waits,j.result = status,None,set(),result
        count[f'ended {status}'] += 1
        for o in list(self.jobs.values()):
            if j.id in o.waits: self._parent_over(o, j)

    def back(self, j):
        "Pending again, or cancelled if somebody has asked for that"
        self._share_key(j)
        if j.asked: self.end(j, 'cancelled'); count['cancelled on its way back'] += 1
        else: j.status,j.owner = 'pending',None

    def _share_key(self, j):
        "A `p:` key that another pending job has taken meanwhile is that one's"
        if j.key and j.key<'r' and self.holder(j.key, j): j.key = None; count['key given up'] += 1

    def ack(self, j, status, failures, result=None):
        j.failures = failures
        assert failures<=j.tries, f'more attempts than allowed: {j}'
        if status=='pending': count['retried later' if failures else 'snoozed'] += 1; return self.back(j)
        if status!='completed': self._share_key(j)
        self.end(j, status, result)

    def crash(self, j):
        "An attempt whose process died"
        count['crash charged'] += 1
        self.ack(j, 'failed' if j.failures+1>=j.tries else 'pending', j.failures+1)

    # --- by hand

    def cancel(self, j):
        if j.status=='pending': self.end(j, 'cancelled'); j.asked = True
        else: j.asked = True

    def stuck(self, j):
        "Whether it would only fail again with a parent"
        return j.on_failed!='run' and any(p in self.jobs and self.jobs[p].status in ('failed', 'cancelled') for p in j.parents)

    def retry(self, jobs):
        "Jobs that are over, again as if new. Those whose key is taken stay as they are"
        again = []
        for j in jobs:
            if self.holder(j.key, j): count['retry: key taken'] += 1; continue
            count[f'retry of {j.status}'] += 1
            j.status,j.failures,j.asked = 'pending',0,False
            again.append(j)
        for j in again: j.waits = {p for p in j.parents if p in self.jobs and self.jobs[p].status!='completed'}
        self._see_parents(again)
        return again
