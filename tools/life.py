"The states of a job and the ways between them, as the page on the life of a job draws them and tests/test_life.py finds them in a database"
from collections import Counter
from html import escape

# place: (x, y, what it means); the columns `status` and `ready` name it
PLACES = {
    'pending later':   (0, 0, 'its time has not come'),
    'pending handed':  (0, 1, 'its response is not sent'),
    'pending waits':   (0, 2, 'for its parents'),
    'pending held':    (0, 3, 'by a pause or limit'),
    'pending parked':  (0, 4, 'nobody knows its task'),
    'pending due':     (1, 2, 'anybody may claim it'),
    'running':         (2, 2, 'one worker has it'),
    'completed':       (3, 1, 'its task returned'),
    'failed':          (3, 2, 'no attempts left'),
    'cancelled':       (3, 3, 'somebody said so')}
READY = {1:'due', 0:'later', -1:'handed', 2:'parked', 3:'held', 4:'waits', None:'none'}

def place(status, ready): return f'pending {READY[ready]}' if status=='pending' else status

WAYS = [   # from, to, why; None is where a job comes from
    (None, 'pending due', 'submitted'),
    (None, 'pending handed', 'submitted in a route'),
    (None, 'pending later', 'submitted with a delay or a time'),
    (None, 'pending waits', 'submitted with parents'),
    ('pending later', 'pending due', 'its time has come, or retry'),
    ('pending handed', 'pending due', 'the response is sent, or five seconds have passed'),
    ('pending waits', 'pending due', 'the last of its parents has ended'),
    ('pending waits', 'pending later', 'the last of its parents has ended, and its time has not come'),
    ('pending waits', 'failed', 'a parent failed'),
    ('pending waits', 'cancelled', 'cancel, or a parent failed and it says cancel'),
    ('pending held', 'pending due', 'a place is free, or the pause is over'),
    ('pending parked', 'running', 'a worker knows its task'),
    ('pending due', 'running', 'claimed'),
    ('running', 'completed', 'the task returned'),
    ('running', 'pending later', 'failed with attempts left, or snoozed'),
    ('running', 'failed', 'failed for the last time, or discarded'),
    ('running', 'cancelled', 'it was asked to end, and did'),
    ('running', 'pending due', 'given back by a shutdown, or rescued after a crash'),
    ('running', 'pending held', 'a limit or a pause was found full at the claim'),
    ('running', 'pending parked', 'nobody here knows its task'),
    ('pending due', 'pending waits', 'retry, while its parents are not over'),
    ('pending later', 'running', 'called by hand'),
    ('pending handed', 'running', 'called by hand'),
    ('pending held', 'running', 'called by hand'),
    ('pending due', 'cancelled', 'cancel'),
    ('pending later', 'cancelled', 'cancel'),
    ('pending handed', 'cancelled', 'cancel'),
    ('pending held', 'cancelled', 'cancel'),
    ('pending parked', 'cancelled', 'cancel'),
    ('failed', 'pending due', 'retry'),
    ('cancelled', 'pending due', 'retry')]

TRIGGERS = '''create table life(was text, was_ready int, is_ text, is_ready int);
create trigger life_new after insert on tenant_jobs begin insert into life values(null, null, new.status, new.ready); end;
create trigger life_change after update on tenant_jobs when old.status<>new.status or old.ready is not new.ready begin
    insert into life values(old.status, old.ready, new.status, new.ready); end;'''

def seen(conn):
    "The ways that jobs of this database have gone since `TRIGGERS` were made, and how often each"
    return Counter((was and place(was, wr), place(s, r)) for was,wr,s,r in conn.execute('select * from life'))
