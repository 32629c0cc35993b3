"Slots against a clock that is read minute by minute, in all zones; laws that hold for any expression; any text as an expression"
import calendar, random
from datetime import datetime, timedelta, timezone
from functools import cache, lru_cache
from zoneinfo import ZoneInfo, available_timezones

import pytest
from cronsim import CronSim
from fh_saas.cron import Cron, spread
from fh_saas.ids import to_iso
from hypothesis import assume, example, given, settings, strategies as st

start,end = (int(datetime(y, 1, 1, tzinfo=timezone.utc).timestamp()) for y in (2026, 2031))
zones = sorted(available_timezones())
hour,day = 3600,86400

def off(z, t): return int(ZoneInfo(z).utcoffset(datetime.fromtimestamp(t, ZoneInfo(z))).total_seconds())

@cache
def changes():
    "Every change of offset in every zone from 2026 to 2030: (zone, instant, offset before, offset after)"
    res = []
    for z in zones:
        was = off(z, start)
        for a in range(start, end, day):
            if (now := off(z, a+day))==was: continue
            t = next(t for h in range(a, a+day, hour) if off(z, h+hour)!=was for t in range(h+60, h+hour+1, 60) if off(z, t)!=was)
            res.append((z, t, was, now))
            was = now
    return res

def distinct(): return list({o[1:]:o for o in changes()}.values())

# --- a clock that is read minute by minute

@cache
def shown(wall):
    "What a clock shows: minute, hour, day, month, day of the week"
    w = datetime(1970, 1, 1)+timedelta(seconds=wall)
    return w.minute,w.hour,w.day,w.month,w.isoweekday()%7

def fits(fields, wall):
    "Whether the wall time, in seconds, is one that the fields name"
    minutes,hours,days,months,dows,both = fields
    minute,hour,day,month,weekday = shown(wall)
    if minute not in minutes or hour not in hours or month not in months: return False
    dom,dow = day in days,weekday in dows
    return dom and dow if both else dom or dow

@lru_cache(400)
def walls(z, a, b):
    "(time, what the zone's clocks show) for each minute"
    return [(t, t+off(z, t)) for t in range(a, b, 60)]

def watched(fields, z, a, b):
    "Slots in (a, b] by looking at the clock each minute; no change may lie in the six hours before `a`"
    res,high,interval = [],None,set(fields[1])>=set(range(24))
    for t,wall in walls(z, a//60*60-6*hour, int(b)+1):
        skipped = [] if high is None or interval else range(high+60, wall, 60)
        again = high is not None and wall<=high and not interval
        if (fits(fields, wall) and not again or any(fits(fields, o) for o in skipped)) and a<t: res.append(t)
        high = wall if high is None else max(high, wall)
    return res

def plain(minutes, hours): return minutes,hours,range(1, 32),range(1, 13),range(7),True

sparse = {'30 2 * * *':plain([30], [2]), '0 0 * * *':plain([0], [0]), '0,15,45 0-3 * * *':plain([0,15,45], range(4)), '59 23 * * *':plain([59], [23]),
          '0 */2 * * *':plain([0], range(0, 24, 2)), '20 * * * *':plain([20], range(24)), '0 0-23 * * *':plain([0], range(24))}
dense = {'* * * * *':plain(range(60), range(24)), '*/5 1-23 * * *':plain(range(0, 60, 5), range(1, 24)), '*/15 2 * * *':plain(range(0, 60, 15), [2]),
         '* 0,1,23 * * *':plain(range(60), [0,1,23])}

@cache
def expected(expr, t, was, now, z): return watched((sparse|dense)[expr], z, t-4*hour, t+4*hour)

@pytest.mark.parametrize('expr', sparse)
def test_all_zones(expr):
    "Around each change of each zone"
    first = {o[1:]:o[0] for o in distinct()}
    for z,*o in changes():
        assert Cron(expr, z).slots(o[0]-4*hour, o[0]+4*hour)==expected(expr, *o, first[tuple(o)]), (z, to_iso(o[0]))

@pytest.mark.parametrize('expr', dense)
def test_dense(expr):
    "Schedules with many slots, around each change once, whichever zones share it"
    for z,*o in distinct(): assert Cron(expr, z).slots(o[0]-4*hour, o[0]+4*hour)==expected(expr, *o, z), (z, to_iso(o[0]))

def test_enough_changes():
    "The zone data has what these tests are about"
    by = {now-was for _,_,was,now in changes()}
    assert len(changes())>1000 and {hour, -hour, hour//2, -hour//2, 2*hour, -2*hour} <= by

# --- expressions made at random, with the sets they name

def field(lo, hi):
    "Text of one field, and the numbers it names"
    n = st.integers(lo, hi)
    pair = st.tuples(n, n).map(sorted)
    step = st.integers(1, hi)
    one = st.one_of(n.map(lambda a: (str(a), {a})), pair.map(lambda p: (f'{p[0]}-{p[1]}', set(range(p[0], p[1]+1)))),
                    st.tuples(pair, step).map(lambda o: (f'{o[0][0]}-{o[0][1]+1}/{o[1]}' if o[0][1]<hi else f'{o[0][0]}-{hi}/{o[1]}',
                                                         set(range(o[0][0], min(o[0][1]+1, hi)+1, o[1])))))
    star = st.one_of(st.just(('*', set(range(lo, hi+1)))), step.map(lambda s: (f'*/{s}', set(range(lo, hi+1, s)))))
    return st.one_of(star, one, st.lists(one, min_size=1, max_size=3).map(lambda os: (','.join(o[0] for o in os), set().union(*(o[1] for o in os)))))

@st.composite
def crons(draw, zones=zones):
    "(Cron, fields)"
    (mi,mis),(h,hs),(d,ds),(mo,mos),(w,ws) = [draw(field(*o)) for o in ((0,59), (0,23), (1,31), (1,12), (0,6))]
    both = d[0]=='*' or w[0]=='*'
    assume(not both or any(x<=29 for x in ds) or any(x<=calendar.monthrange(2028, m)[1] for x in ds for m in mos))
    try: c = Cron(f'{mi} {h} {d} {mo} {w}', draw(st.sampled_from(zones)))
    except ValueError as e:
        assert 'never fires' in str(e)
        assume(False)
    return c,(mis,hs,ds,mos,ws,both)

instants = st.floats(start, end-day)

@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_expression_as_watched(data):
    "A random expression over the day around a random change"
    z,t,was,now = data.draw(st.sampled_from(distinct()))
    c,fields = data.draw(crons([z]))
    a = t-data.draw(st.integers(1, 18))*hour
    assert c.slots(a, a+day, None)==watched(fields, z, a, a+day)

@settings(max_examples=120, deadline=None)
@given(crons(), instants)
def test_slots_rise_and_fit(cf, a):
    "Slots rise strictly, and show a named time unless they stand right after a gap"
    (c,fields),ts = cf,cf[0].slots(a, end, 50)
    assert all(x<y for x,y in zip([a,*ts], ts)) and all(t==int(t) for t in ts)
    for t in map(int, ts):
        was,now = off(c.tz, t-1),off(c.tz, t)
        assert fits(fields, t+now) or was<now and any(fits(fields, o) for o in range(t+was, t+now, 60))

@settings(max_examples=120, deadline=None)
@given(crons(), instants, st.lists(st.floats(0, 400*day), min_size=2, max_size=2).map(sorted))
def test_slots_join(cf, a, ds):
    "The slots of two spans that meet are those of the whole, and a limit only cuts the end"
    c,(b,z) = cf[0],(min(a+d, end) for d in ds)
    z = min(z, a+3*day) if len(c._sim.minutes)>5 else z
    b = min(b, z)
    whole = c.slots(a, z, None)
    assert whole==c.slots(a, b, None)+c.slots(b, z, None)
    assert c.slots(a, z, 3)==whole[:3]

@settings(max_examples=120, deadline=None)
@given(crons(), instants, st.floats(0, 1))
def test_next_is_the_nearest(cf, a, part):
    "`next` depends on its argument alone, rises with it, and skips no slot"
    c,t = cf[0],cf[0].next(a)
    b = a+(t-a)*part
    assert t>a and c.next(a)==t==Cron(c.expr, c.tz).next(a)
    assert c.next(b)==t if b<t else c.next(b)>t

# --- catching up

@settings(max_examples=120, deadline=None)
@given(crons(), instants, st.floats(-day, 20*day), st.integers(1, 40), st.floats(0, day))
def test_missed(cf, last, d, limit, late):
    "Each policy gives the part of the slots that it names"
    c,now = cf[0],last+d
    every = c.slots(last, now, None) if d>0 else []
    assert c.missed(last, now)==every[-1:]
    assert c.missed(last, now, 'all', limit=limit)==every[-limit:]
    assert c.missed(last, now, 'all', limit=None)==every
    assert c.missed(last, now, 'skip', late_s=late)==[t for t in every[-1:] if now-t<=late]

@settings(max_examples=100, deadline=None)
@given(crons(), instants, st.lists(st.floats(-2*hour, 3*hour), max_size=30))
@example((Cron('0 0 * * *'), None), start, [-60., 60.])
def test_clock_that_jumps(cf, now, steps):
    "A clock that goes back and forth submits each slot once, because its text is unique"
    c,first,last,table = cf[0],now,now,{}
    top = now
    for d in steps:
        now += d
        for t in c.missed(last, now, 'all', limit=None): table.setdefault(to_iso(t), t)
        last,top = now,max(top, now)
    assert sorted(t for t in table.values() if t>first)==c.slots(first, top, None)   # it may have gone back behind the first
    assert sorted(table)==[k for k,_ in sorted(table.items(), key=lambda o: o[1])]

# --- any text

crontab = st.text(st.sampled_from('0123456789*/,-#LW MONJAFEBSUTHRIDC@'), max_size=40)
near = st.lists(st.text(st.sampled_from('0123456789*/,-#LW'), min_size=1, max_size=6), min_size=5, max_size=5).map(' '.join)

@settings(max_examples=1500, deadline=None)
@given(st.one_of(st.text(max_size=60), crontab, near))
@example('0 0 30 2 *')
@example('* * */20 * 1L')
@example('0 0 */31 * 1#5')
@example('9'*999+' * * * *')
@example('1/1/1 * * * *')
@example('* * L/2 * L')
@example('* * LW * 5L/2')
@example('* * * * 1#1/2')
@example('٣ * * * *')
def test_any_text(s):
    "Any text is a schedule or a ValueError that names the option"
    try: c = Cron(s)
    except ValueError as e: assert str(e).startswith('expr ')
    else: assert c.next(start)>start and Cron(c.expr)==c and eval(repr(c))==c

@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=40), st.sampled_from(zones).flatmap(lambda z: st.sampled_from([z, z+'/', z.lower(), '../'+z, z[:-1], z+'\0']))))
def test_any_zone(s):
    "Any text is a zone or a ValueError that names the option"
    try: Cron('* * * * *', s).next(start)
    except ValueError as e: assert str(e).startswith('tz: ')

@pytest.mark.parametrize('s', ['0 0 30 2 *', '0 0 31 2,4,6,9,11 *', '* * */20 * 1L', '0 0 */31 * 1#5', '* * */31 2 7L', '0,'*400+'0 0 */31 * 1#5', '*,'*400+' * * * *',
                               '0'*10**7, '0,'*10**6, ' '*10**7, '* '*10**6, '1-'*10**6, '0/'*499+'1 * * * *'], ids=lambda s: s[:20])
def test_bounded_work(s, monkeypatch):
    "Expressions that never fire and huge ones end after a bounded number of steps"
    n,match = [0],CronSim.match_day
    def counted(self, d):
        n[0] += 1
        return match(self, d)
    monkeypatch.setattr(CronSim, 'match_day', counted)
    with pytest.raises(ValueError, match='expr'): Cron(s)
    assert n[0]<20_000

# --- spread

@given(st.text(), st.floats(0, 10**6, allow_subnormal=False), st.text())
def test_spread_bounds(tenant, minutes, schedule):
    "Within the window, and the same each time"
    assert spread(tenant, minutes, schedule)==spread(tenant, minutes, schedule)
    assert 0<=spread(tenant, minutes, schedule)<minutes*60 or minutes==0==spread(tenant, minutes, schedule)

def test_spread_for_ever():
    "The offsets of tenants that already run must not move with a new version"
    assert [round(spread(*o), 3) for o in (('acme', 60), ('acme', 60, 'report'), ('Łódź', 10), ('', 1))]==[1759.753, 2564.778, 531.202, 35.147]

def test_spread_even():
    "Over any number of tenants the tenths of the window get their share"
    rng = random.Random(1)
    for n in (200, 2000, 20_000):
        tenths = [0]*10
        for _ in range(n): tenths[int(spread(f'{rng.getrandbits(64):x}', 10)/60)] += 1
        assert all(abs(o-n/10)<5*(n/10)**.5 for o in tenths)
