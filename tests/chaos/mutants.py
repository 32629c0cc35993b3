"""Whether the proof would notice: the package is spoiled in one place at a time, and the state machine or the points must fail.
Each runs in a process of its own: `python -m tests.chaos.mutants`"""
import re, subprocess, sys, time

# name: (what is run, what spoils it)
SPOIL = '''
import re, logging; logging.disable(50)
from tests.chaos import disk, machine, points, power
from fh_saas.store import sqlite as q, flow as f, controls as c, sqlite_file as sf
from fh_saas.store.sqlite import SqliteStore
from fh_saas.running import limits as l, lane as ln, context as cx, maintenance as mt
def sub(mod, name, old, new):
    s = getattr(mod, name); assert old in s, (name, s); setattr(mod, name, s.replace(old, new))
'''
STATE,POINTS,POWER = 'machine.run(600, 100, shrink=False)','points.run({!r})','power.run({!r})'
MUTANTS = {
    'an end does not ask for the fence': (STATE, "sub(q, '_ACK', 'and fence=?12', 'and ?12=?12')"),
    'a plain completion does not ask for the fence': (STATE, "sub(q, '_DONE', 'and fence=?', 'and 0<?')"),
    'a return does not ask for the fence': (STATE, "sub(q, '_BACK', 'and fence=?', 'and 0<?')"),
    'a claim does not count up the fence': (STATE, "[sub(q, o, 'fence=fence+1', 'fence=1') for o in ('_CLAIM','_CLAIM_FEW','_CLAIM_ONLY','_CLAIM_ONE','_CLAIM_PARKED')]; sub(q, '_HEAD', 'fence+1', '1')"),
    'a rescue charges all': (STATE, "r = SqliteStore.rescue; SqliteStore.rescue = lambda s,o,u,b,n,w: r(s,o,u,None,n,w)"),
    'a rescue charges nobody': (STATE, "r = SqliteStore.rescue; SqliteStore.rescue = lambda s,o,u,b,n,w: r(s,o,u,set(),n,w)"),
    'children are not freed': (STATE, "q.any_waits = lambda c: False"),
    'a fallen parent is as good as a completed one': (STATE, "sub(f, '_BELOW', \"<>'run'\", \"='no'\")"),
    'a cancelled job that fails waits for another attempt': (STATE, "sub(q, '_ACK', \"iif(?1='pending' and cancel_at is not null,'cancelled',?1)\", '?1')"),
    'a pause does not hold': (STATE, "sub_ = l._of_types; l._of_types = lambda self, c, claims: {}"),
    'limits of a key are not counted': (STATE, "l.counts = lambda c, keys: {}"),
    'nothing is let go': (STATE, "l.let_go = lambda c, frees: 0"),
    'a schedule forgets which slots have come': (STATE, "from fh_saas import scheduler as s; s.advance = lambda *a: True"),
    'claims come in any order': (STATE, "[sub(q, o, 'order by priority,run_at', 'order by run_at desc') for o in ('_CLAIM','_CLAIM_FEW','_HEAD')]"),
    'a completion in a transaction forgets the rows': (POINTS.format(['job_transaction']), "ln.Lane.finish = (lambda old: lambda self,a,r,conn: (conn.execute('rollback'), conn.execute('begin immediate'), old(self,a,r,conn))[2])(ln.Lane.finish)"),
    'a step is kept after its children': (POINTS.format(['step']), "k = SqliteStore.keep_step; SqliteStore.keep_step = lambda s,*a: (k(s,*a), s._c.execute('commit'), s._c.execute('begin immediate')) and None"),
    'an end and the release of children are two commits': (POINTS.format(['children']), "o = SqliteStore.over; SqliteStore.over = lambda s,*a,**k: ((s._c.execute('release held') if 0 else None), s._c.execute('commit'), s._c.execute('begin immediate'), o(s,*a,**k)) and None"),
    'many are inserted in two commits': (POINTS.format(['submit_many']), "i = sf._insert\ndef two(conn, sql, rows): i(conn, sql, rows[:10]); conn.execute('commit'); conn.execute('begin immediate'); i(conn, sql, rows[10:])\nsf._insert = two"),
    'a slot is noted before its job': (POINTS.format(['schedule']), "from fh_saas import scheduler as s; a = s.add_jobs\ndef late(conn, jobs): conn.execute('commit'); conn.execute('begin immediate'); return a(conn, jobs)\ns.add_jobs = late"),
    'nothing is flushed': (POWER.format(['submit']), "sf._settings = lambda c: c.execute('pragma journal_mode=wal; pragma synchronous=off').fetchall(); sf.SqliteFile._set_full = lambda s, full: None"),
    'nothing is flushed, with checkpoints': (POWER.format(['logs']), "sf._settings = lambda c: c.execute('pragma journal_mode=wal; pragma synchronous=off').fetchall(); sf.SqliteFile._set_full = lambda s, full: None"),
    'a submit is not flushed': (POWER.format(['submit']), "sf._settings = lambda c: c.execute('pragma journal_mode=wal; pragma synchronous=normal').fetchall(); sf.SqliteFile._set_full = lambda s, full: None"),
    'an end is not flushed': (POWER.format(['end']), "w = sf.SqliteFile.writing; sf.SqliteFile.turning = sf.SqliteFile.writing = lambda s, wait_s=None, durable=True: w(s, wait_s, False)"),
    'a transaction is not flushed': (POWER.format(['transaction']), '''
was,private = sf._settings,sf.SqliteFile.private
def weak(s, wait_s):
    sf._settings = lambda c: c.execute('pragma journal_mode=wal; pragma synchronous=normal').fetchall()
    try: return private(s, wait_s)
    finally: sf._settings = was
sf.SqliteFile.private = weak'''),
    'nothing is undone when a statement fails': ("disk.calls(['submit_many'], ('statement',))", "sf._rollback = lambda c: None"),
    'ends of a turn are undone by half when a statement fails': ("disk.calls(['run'], ('statement',))", "sf._rollback = lambda c: c.in_transaction and c.execute('commit')"),
    'ends are forgotten when their commit fails': ("disk.calls(['run'], ('once',))", "s = ln.Lane._sick; ln.Lane._sick = lambda self, e: (self.acks.clear(), s(self, e))[1]"),
    'the driver\'s errors come through': ("disk.calls(['cancel'], ('once',))", "sf._Use.__exit__ = lambda s, *a: s.o.lock.release()"),
    'a file that was replaced leaves its log': ("disk.files(('open',))", "sf.SqliteFile._part = lambda self: None"),
    'a log that was removed is not missed': ("disk.files(('open',))", '''
i = sf.SqliteFile.__init__
def init(self, *a, **kw): i(self, *a, **kw); self.log = None
sf.SqliteFile.__init__ = init'''),
    'the name of a new tenant is not flushed': (POWER.format(['tenant']), "from fh_saas.running import check_in as ci; ci.sync_folder = lambda f: None"),
    'the name of a moved tenant is not flushed': (POWER.format(['move']), "from fh_saas.running import moving as mv; mv.sync_folder = lambda f: None"),
    'a cancellation and the fall of children are two commits': (POINTS.format(['cancel']), "o = SqliteStore.over; SqliteStore.over = lambda s,*a,**k: (s._c.execute('commit'), s._c.execute('begin immediate'), o(s,*a,**k)) and None"),
}

def noticed(what, spoil, timeout=240):
    "Whether the proof fails, and its last line"
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', f'{SPOIL}\n{spoil}\n{what}'], capture_output=True, text=True, timeout=timeout)
    lines = [o for o in p.stderr.splitlines() if re.match(r'\w*(Error|Exception)\b', o)]
    return p.returncode!=0, lines[-1] if lines else p.stderr[-200:]

def main(only=None):
    missed = 0
    for k,(what,spoil) in MUTANTS.items():
        if only and only not in k: continue
        t = time.monotonic()
        ok,how = noticed(what, spoil)
        missed += not ok
        print(f'{"noticed" if ok else "MISSED "} {time.monotonic()-t:5.1f} s  {k}: {how[:110]}', flush=True)
    return missed

if __name__=='__main__': sys.exit(bool(main(*sys.argv[1:])))
