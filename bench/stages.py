"Where the microseconds of a job go: `python -m bench.stages`"
import time
from bench.systems import FhSaas
from bench.task import noop
from fh_saas.running.executor import call
from fh_saas.store.sqlite_file import SqliteFile

def timed(n=40000, batch=800):
    "µs a job spent in each stage, one thread, in batches as the worker makes them"
    s,took,now = FhSaas(),{},time.perf_counter
    s.reset(); s.open(); s.submit_many(n)
    lane = s.m._lane
    def add(k, t): took[k] = took.get(k, 0)+(now()-t)*1e6/n
    def around(obj, name, key):
        f = getattr(obj, name)
        def g(*a, **kw):
            t = now()
            try: return f(*a, **kw)
            finally: add(key, t)
        setattr(obj, name, g)
    around(lane.store, 'complete', 'ack: SQL that ends a job')
    around(lane.store, 'claim', 'claim: SQL that takes a job')
    around(lane, '_begin', 'claim: its task and its attempt'); around(lane, '_ended', 'ack: tell who waits')
    t0 = t = now(); got = lane.turn(batch); add('turn', t)
    while got:
        t = now(); [lane.start(a) for a in got]; add('mark that it runs', t)
        t = now(); outs = [call(a.task, a.claim) for a in got]; add('call: arguments, task, result', t)
        t = now(); [lane.end(a, o, 0.) for a,o in zip(got, outs)]; add('what becomes of it', t)
        t = now(); got = lane.turn(batch); add('turn', t)
    took['commit, promotion, looking ahead'] = took.pop('turn')-sum(v for k,v in took.items() if k.split(':')[0] in ('ack','claim'))
    s.close()
    return took

if __name__=='__main__':
    runs = [timed() for _ in range(5)]
    med = {k:sorted(r[k] for r in runs)[2] for k in runs[0]}
    print('| stage | µs a job |\n|---|---|')
    for k,v in sorted(med.items(), key=lambda o: -o[1]): print(f'| {k} | {v:.2f} |')
    print(f'| all | {sum(med.values()):.2f} |')
