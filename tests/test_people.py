"Many people at their browsers: what they cost, what they leave behind, and what strangers learn. The long forms are `python -m bench.people`"

import pytest
from bench import people
from fasthtml.common import FastHTML
from fh_saas.components import PREFIX, jobs_routes
from fh_saas.store.bulk import delete_many
from fh_saas.store.sqlite_file import SqliteFile
from fh_saas.tenants import Tenants
from starlette.testclient import TestClient

def work(**kw): return kw

def test_viewers_leave_nothing_behind():
    "Jobs are drained beside 120 who listen or ask, all of whom are told; then no stream, descriptor or thread is left, and no memory grows"
    o = people.viewers(120, 1000, ms=6., rounds=1, say=lambda s: None)
    assert all(v>0 for v in o['saw'].values()), o
    b,a = o['before'],o['after']
    assert a['open']==0 and a['fds']<=b['fds']+5 and a['threads']<=b['threads']+5 and a['rss']-b['rss']<8*2**20, o

@pytest.fixture
def ts(tmp_path):
    ts = Tenants(tmp_path/'ts', tasks=[work], worker=False)
    for o in ('acme', 'globex'): ts.create(o)
    yield ts
    ts.close()

class Spied:
    "Counts what is asked of databases: file, statement, and how many values"
    def __init__(self, monkeypatch):
        self.seen = []
        read = SqliteFile.read
        def spy(f, sql, args=()):
            self.seen.append((f.path.rsplit('/', 1)[-1], sql, len(args)))
            return read(f, sql, args)
        monkeypatch.setattr(SqliteFile, 'read', spy)
    def of(self, f):
        self.seen.clear()
        r = f()
        return r,list(self.seen)

KINDS = 'progress','status','events','nonsense'

def test_a_stranger_learns_nothing(ts, monkeypatch):
    "By any route, with ids that are foreign, foreign and running, gone, never were or are no ids: one answer, after the same work"
    acme,globex = ts['acme'].jobs,ts['globex'].jobs
    foreign,_ = globex.options(delay=99).submit('secret', work, x=1)
    over,t = globex.submit('secret', work, x=1); t.func(*t.args)
    dead,t = acme.submit('mine', work, x=1); t.func(*t.args)
    with acme._using() as lane: delete_many(lane.store, [dead], lane.now())
    mine,_ = acme.options(delay=99).submit('mine', work, x=1)
    app = FastHTML(default_hdrs=False, sess_cls=None, secret_key='x')
    jobs_routes(app, ts, tenant_of=lambda req: req.headers.get('x-tenant'))
    c,spy = TestClient(app),Spied(monkeypatch)
    def ask(path): return spy.of(lambda: c.get(PREFIX+path, headers={'x-tenant':'acme'}))
    ask(f'/{mine}/progress')                                              # what is opened once is open
    for kind in KINDS:
        r,did = ask(f'/01935f3e-7a1b-7000-8000-00000000dead/{kind}')
        want = r.status_code,r.content,sorted(r.headers.items())
        assert want[:2]==(404, b'Not found') and (did or kind=='nonsense')
        assert not [o for o in did if o[0].startswith('globex')], 'the other file is not even looked at'
        for id in (foreign, over, dead, 'x', '0'*36, 'ü'):
            r,d = ask(f'/{id}/{kind}')
            assert (r.status_code, r.content, sorted(r.headers.items()))==want and d==did, (id, kind, d, did)
    r,did = ask('/list?type=secret')
    other,d = ask('/list?type=never')
    assert d==did and r.text.replace('secret', 'never')==other.text and foreign not in r.text
    r,did = ask(f'/{mine}/progress')
    assert r.status_code==200 and did, 'the spy sees what is asked'

def test_answers_to_strangers_take_the_same_time():
    "Asked in turn over HTTP: the medians are as near to each other as those of two unknown ids, with a wide margin"
    o = people.strangers(300, say=lambda s: None)
    assert max(o.values())<1.5*min(o.values()), o

def test_lists_are_quick_at_any_size():
    "The short form of the figure: by every filter, on any page. That cost does not grow is tested by counting instructions in test_dashboard"
    o = people.lists(20_000, say=lambda s: None)
    assert len(o)==18 and '/jobs?status=failed&before=10000' in o
