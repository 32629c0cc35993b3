"Tasks for tenants on a server"
import time
from fh_saas.utils_bgtsk import current_job

def add(a, b): return a+b
def fail(): raise ValueError('no')
def slow(s): time.sleep(s)
def put(n):
    with current_job().transaction() as db: db.q(f'insert into notes values({int(n)})')
def effect():
    with current_job().transaction() as db: db.q('insert into effects values(:id)', id=current_job().id)
