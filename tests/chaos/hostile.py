"""P8, P9: whatever is given as a payload, a type, an id, an option, a cron expression, a filter or an argument on the command line: it is taken, or refused with
an error that is meant for it. No other row changes, no table changes, what was taken comes back as it was, and nothing of it stands in a log"""
import io, logging, os, shutil, tempfile
from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timezone
from decimal import Decimal

import hypothesis
from click.testing import CliRunner
from fastlite import database
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from fh_saas.cli import main
from fh_saas.cron import Cron
from fh_saas.ids import to_iso
from fh_saas.store.overview import JobFilter, page
from fh_saas.utils_bgtsk import BackgroundTaskManager, JobNotFound

SECRET = 'c4nary-5ecret'      # in every text that is stored: it must stand in no log
EVIL = ["'; drop table tenant_jobs;--", '" or 1=1 --', "a'b\"c`d", 'tenant_jobs', '%', '_', '\0', 'a\0b', '\ud800', '\u202e', 'é'*200, '../../etc/passwd', '<script>alert(1)</script>', '{{7*7}}', '%s%n{0}', '\r\nX: y',
    'sealed:', '[]', '{}', 'null', 'NaN', '-1', '1e999', '٣', '0x10', ' ', '', '\N{PILE OF POO}'*50, 'a'*70000, 'q:default', 't:a', 'r:x\x1fu', '$id', ':id', '?1', '@v']
texts = st.one_of(st.sampled_from(EVIL), st.text(max_size=30), st.text(alphabet=st.characters(exclude_categories=()), max_size=8), st.sampled_from(EVIL).map(lambda s: s+SECRET))
numbers = st.one_of(st.integers(-3, 20), st.sampled_from([2**31, 2**53+1, 2**63-1, 2**63, -2**63-1, 2**70, 10**400]), st.floats())
jsons = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-2**63, 2**63-1), st.floats(allow_nan=False, allow_infinity=False), texts),
    lambda kids: st.lists(kids, max_size=4)|st.dictionaries(texts, kids, max_size=4), max_leaves=12)
anything = st.one_of(st.none(), st.booleans(), numbers, texts, jsons, st.binary(max_size=8), st.datetimes(), st.datetimes(timezones=st.just(timezone.utc)), st.dates(), st.timedeltas(), st.decimals(), st.uuids(),
    st.complex_numbers(), st.frozensets(st.integers(), max_size=3), st.tuples(st.integers(), texts), st.just(object()), st.just(...), st.just(lambda: 1), st.just(int), st.lists(texts, max_size=3), st.dictionaries(st.integers(), st.none(), max_size=2))
some = lambda good: st.sampled_from([good]*7+[anything]).flatmap(lambda o: o)     # mostly of the right kind

seen,count = [],Counter()
def takes(a): seen.append(a); return a
def typed(a: int|str|list[datetime]|Decimal): seen.append(a)
def fails(a): raise ValueError('boom')
TASKS = [takes, typed, fails]

class Place:
    "A database with some rows that nothing may touch"
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix='hostile', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)
        self.path = f'{self.dir}/t.db'
        self.db = database(self.path)
        self.m = BackgroundTaskManager(self.db, worker=False, tasks=TASKS)
        self.kept = [self.m.submit('kept', takes, a=1)[0], self.m.submit('kept', fails, 1, a=1)[0]]
        self.m.run_due()
        self.kept.append(self.m.options(delay=1e9).submit('kept', takes, a=1)[0])
        self.tables,self.rows = self._tables(),self._rows()
    def _read(self, sql, *args): return self.m._lane.store.read(sql, args)
    def _tables(self): return self._read('select type,name,tbl_name,sql from sqlite_schema order by name')
    def _rows(self): return self._read(f'select * from tenant_jobs where id in ({",".join("?"*3)}) order by id', *self.kept)
    def intact(self):
        assert self._tables()==self.tables, 'a table has changed'
        assert self._rows()==self.rows, 'a row has changed that nobody named'
    def n(self): return self._read('select count(*) from tenant_jobs')[0][0]
    def empty(self):
        "Jobs that have come are taken away, so that there are never many"
        with self.m._lane.store.writing() as c: c.execute(f'delete from tenant_jobs where id not in ({",".join("?"*3)})', self.kept)
    def close(self):
        self.m.close(); self.db.conn.close()
        shutil.rmtree(self.dir, ignore_errors=True)

place = None

@contextmanager
def refused(*more):
    "Only errors that say what is wrong with what was given"
    try: yield; count['taken'] += 1
    except (TypeError, ValueError, JobNotFound, *more) as e: assert str(e), repr(e); count['refused'] += 1

def same(a, b):
    "Equal, and of the same types all the way down"
    if type(a) is not type(b): return False
    if isinstance(a, dict): return list(a)==list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a)==len(b) and all(map(same, a, b))
    return a==b

# --- what is tried

def with_(**strategies):
    def _deco(f): f.given = strategies; return f
    return _deco

@with_(jt=some(texts.filter(str.strip)), v=some(jsons), task=st.sampled_from([takes, takes, typed, fails]), tries=some(st.integers(1, 3)))
def submits(jt, v, task, tries):
    n = place.n()
    try:
        with refused():
            id,bg = place.m.submit(jt, task, tries, a=v)
            j = place.m.get_job(id)
            assert same(str(jt) if isinstance(jt, str) else jt, j.job_type) and j.max_retries==tries, j
            assert place.n()==n+1 and id in {o.id for o in place.m.list_jobs(jt)}
            seen.clear()
            bg.func(*bg.args, **bg.kwargs)
            if task is not fails: assert len(seen)==1 and (same(seen[0], v) or type(v) not in (int, str, list, dict, float, bool, type(None)) and seen[0]==v), (seen, v)
            place.m.explain(id)
            return
        assert place.n()==n, 'it was refused and stored'
    finally: place.empty()

@with_(kws=some(st.lists(st.one_of(st.fixed_dictionaries(dict(a=jsons)), anything), max_size=4)), jt=some(texts))
def submits_many(kws, jt):
    n = place.n()
    try:
        with refused():
            got = place.m.submit_many(jt, takes, kws)
            assert place.n()==n+len(got)==n+len(kws)
            return
        assert place.n()==n, 'some were stored'
    finally: place.empty()

@with_(opts=st.fixed_dictionaries({}, optional=dict(delay=some(st.floats(0, 1e6)), run_at=anything, priority=some(st.integers(0, 9)), queue=some(texts), unique=some(texts), unique_for=some(st.sampled_from(['pending', 'running'])),
    timeout=some(st.floats(.1, 1e6)), backoff=some(st.floats(0, 100)), tags=some(st.lists(texts, max_size=3)), after=some(st.lists(texts, max_size=2)), on_failed=some(st.sampled_from(['fail', 'cancel', 'run'])), limit_key=some(texts), max_retries=anything, other=anything)))
def options(opts):
    try:
        with refused():
            id,_ = place.m.options(**opts).submit('a', takes, a=1)
            place.m.get_job(id); place.m.explain(id); place.m.run_due()
    finally: place.empty()

@with_(id=some(texts), how=st.sampled_from(['get_job', 'cancel', 'retry', 'explain', 'wait']), reason=some(texts))
def ids(id, how, reason):
    with refused(): getattr(place.m, how)(id, **(dict(timeout=.001) if how=='wait' else dict(reason=reason) if how=='cancel' else {}))

@with_(jt=some(texts), status=some(st.sampled_from(['pending', 'completed', ''])), limit=some(st.integers(0, 9)))
def lists(jt, status, limit):
    with refused(): place.m.list_jobs(jt, status, limit)

times = st.one_of(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)).map(lambda d: d.isoformat()+'Z'), st.none(), texts)
@with_(jt=some(texts), text=some(texts), since=times, until=times, before=st.integers(-2**63, 2**63-1)|st.none())
def filters(jt, text, since, until, before):
    with refused(): page(place.m._lane.store, JobFilter(job_type=jt, text=text, since=since, until=until), before)

@with_(jt=texts, text=some(texts), since=some(st.none()|st.datetimes(timezones=st.just(timezone.utc))))
def retries(jt, text, since):
    with refused(): assert place.m.retry_failed('x'+jt, text, to_iso(since.timestamp()) if isinstance(since, datetime) and since.year>1970 else since)==0

@with_(how=st.sampled_from(['pause', 'resume']), queue=st.none()|some(texts), jt=st.none()|some(texts))
def pauses(how, queue, jt):
    with refused(): getattr(place.m, how)(queue, jt)

@with_(jt=some(texts), n=anything, days=anything)
def limits(jt, n, days):
    with refused(): place.m.limit(jt, n)
    with refused(): place.m.keep(completed=days, job_type='x'+jt if isinstance(jt, str) else jt)

def field(a, b, *words):
    n = st.integers(a, b)
    one = st.one_of(st.just('*'), n.map(str), st.tuples(n, n).map(lambda o: f'{min(o)}-{max(o)}'), n.map(lambda k: f'*/{max(k, 1)}'), *([st.sampled_from(words)] if words else []))
    return st.lists(one, min_size=1, max_size=3).map(','.join)
fields = st.text(alphabet='0123456789*/-,LW#?@ \tMONJANSUsun', max_size=6)
right = st.tuples(field(0, 59), field(0, 23), field(1, 31, 'L', '15'), field(1, 12, 'JAN', 'dec'), field(0, 7, 'MON', 'sun', 'FRI#2', '5L')).map(' '.join)
exprs = st.one_of(right, right, right, st.lists(fields, min_size=3, max_size=7).map(' '.join), texts, st.sampled_from(['@daily', '@reboot', '* * * * *', '0 0 30 2 *', '0 0 L * *', '*/99 * * * *', '0 0 29 2 1#5']))
@with_(e=some(exprs), tz=some(st.sampled_from(['UTC', 'Europe/Berlin', '../UTC', '/etc/localtime', 'Asia/Kolkata'])), at=st.floats(0, 4e9))
def crons(e, tz, at):
    with refused():
        c = Cron(e, tz)
        a = c.next(at)
        b = c.next(a)
        assert at<a<=b and (a<b or a==float('inf')), (e, a, b)

@with_(e=some(exprs), tz=some(st.sampled_from([None, 'UTC', 'Asia/Kolkata'])), name=texts, jt=some(texts), catch=some(st.sampled_from(['skip', 'once', 'all'])), spread=some(st.integers(0, 99)), tries=some(st.integers(1, 3)))
def schedules(e, tz, name, jt, catch, spread, tries):
    with refused():
        place.m.cron(e, takes, tz=tz, name=name, job_type=jt, catch_up=catch, spread=spread, max_retries=tries, a=1)
    with refused(KeyError): place.m.schedule(name, expr=e)
    place.m.run_due(); place.empty()

COMMANDS = [['jobs', o] for o in ('list', 'show', 'explain', 'retry', 'cancel')]+[['tenants', o] for o in ('list', 'health', 'usage', 'freeze', 'thaw')]+[['schedules', o] for o in ('list', 'next', 'pause', 'resume', 'run')]+[['prune'], ['doctor'], ['tenants'], ['nothing'], []]
PARAMS = {' '.join(c):[o for p in (main.commands[c[0]].commands[c[1]] if c[1:] else main.commands[c[0]] if c and c[0] in main.commands else main).params for o in p.opts if o[0]=='-'] for c in COMMANDS if c[:1]!=['nothing']}
FLAGS = '--type --status --limit --tenant --json --since --until --error --yes --all --days --n --help --version -h --dry-run --text --every'.split()
words = st.one_of(st.sampled_from(FLAGS), texts, st.sampled_from(FLAGS).flatmap(lambda f: texts.map(lambda s: f'{f}={s}')), st.integers().map(str))
values = st.one_of(texts, st.integers(0, 100).map(str), st.sampled_from(['pending', 'failed', '2026-01-01', 'kept']), st.just('one of them'))
def of(cmd): return st.tuples(st.sampled_from(PARAMS.get(' '.join(cmd)) or FLAGS), st.none()|values)
@with_(cmd=st.sampled_from(COMMANDS).flatmap(lambda c: st.tuples(st.just(c), st.lists(of(c), max_size=3))), where=some(st.just(None)), more=st.lists(words, max_size=1)|st.just([])|st.just([]), ids=st.lists(values, max_size=2))
def command_lines(cmd, where, more, ids):
    (cmd,opts),words = cmd,[]
    for k,v in opts: words += [k]+[v]*(v is not None)
    args = [*cmd, place.cli if where is None else str(where), *([place.kept[0] if o=='one of them' else o for o in ids]), *words, *more]
    cwd = os.getcwd()
    os.chdir(place.dir)
    try: r = CliRunner().invoke(main, args, input='n\n')
    finally: os.chdir(cwd)
    count['taken' if r.exit_code==0 else 'refused'] += 1
    assert r.exit_code in (0, 1, 2), (args, r.exit_code)
    assert r.exception is None or isinstance(r.exception, SystemExit), (args, repr(r.exception))

TRIED = [submits, submits_many, options, ids, lists, filters, retries, pauses, limits, crons, schedules, command_lines]

# --- trying it

@contextmanager
def listening():
    "All that is logged, by whomever, at whatever level"
    out = io.StringIO()
    h,root = logging.StreamHandler(out),logging.getLogger()
    off,level,root.manager.disable = root.manager.disable,root.level,0
    h.setFormatter(logging.Formatter('%(name)s %(levelname)s %(message)s %(args)s'))
    root.addHandler(h); root.setLevel(logging.DEBUG)
    try: yield out
    finally: root.removeHandler(h); root.setLevel(level); root.manager.disable = off

def attack(f, examples, seed=None):
    "So many examples of one; how many were taken and refused. Raises what failed"
    global place
    place = Place()
    count.clear()
    place.cli = f'{place.dir}/cli.db'
    place.db.q(f"vacuum into '{place.cli}'")
    try:
        @given(**f.given)
        def g(**kw): f(**kw)
        if seed is not None: g = hypothesis.seed(seed)(g)
        with listening() as log:
            settings(max_examples=examples, deadline=None, database=None, print_blob=True, phases=[Phase.explicit, Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))(g)()
        place.intact()
        assert SECRET not in log.getvalue(), f'{f.__name__}: a log says {next(o for o in log.getvalue().splitlines() if SECRET in o)[:300]}'
        return dict(count)
    finally: place.close()

def run(seconds, seed=None):
    import random, time
    seed,n,end = random.randrange(2**32) if seed is None else seed,{},time.monotonic()+seconds
    while not n or time.monotonic()<end:
        for f in TRIED:
            try: got = attack(f, 300, seed)
            except BaseException: print(f'hostile: replay {f.__name__} with --only hostile --seed {seed}'); raise
            n.setdefault(f.__name__, Counter()).update(got)
        seed += 1
    return n
