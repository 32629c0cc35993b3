"What a type checker says of programs that use the package: right ones pass, the examples among them, wrong ones do not"
import re, subprocess, sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if not find_spec('mypy'): pytest.skip('mypy comes with the extra `test`', allow_module_level=True)     # its compiled modules have no business in this process
root = Path(__file__).resolve().parent.parent

RIGHT = '''
from datetime import datetime, timedelta, timezone
from fastlite import database
from starlette.background import BackgroundTask
from fh_saas.flow import Flow
from fh_saas.keys import Keys, new_key
from fh_saas.redact import Redactor
from fh_saas.retry import RetryIn, RetryPolicy
from fh_saas.telemetry import subscribe
from fh_saas.tenants import Tenant, Tenants
from fh_saas.testing import Clock, JobTester
from fh_saas.utils_bgtsk import BackgroundTaskManager, Discard, JobContext, Snooze, TenantJob, current_job, task

def add(a: int, b: int = 0) -> int: return a+b

@task(name='mail', max_retries=5)
async def mail(to: str, job: JobContext) -> str:
    job.progress(1, 2, f'to {to}')
    n = await job.astep('one', add, 1)
    if job.cancelled: raise Snooze(5)
    with job.transaction() as db: db.execute('select 1')
    return f'{job.id} {job.attempt} {job.tenant} {n}'

m = BackgroundTaskManager(database('t.db'), tasks=[add], threads=2, wait_s=None, keys=Keys(new_key()), redact=Redactor('iban'))
job_id, bg = m.submit('sum', add, a=1, b=2)
ids: list[str] = m.submit_many('sum', add, [dict(a=1)])
m.options(delay=timedelta(minutes=1), unique=True, backoff=RetryPolicy(cap=60), run_at=None, tags=['x']).submit('sum', add, 3, a=1)
job: TenantJob = m.get_job(job_id)
text: str = job.id + (job.result or '') + m.explain(job_id)
for o in m.list_jobs('sum', status='failed', limit=5): print(o.id)
with m.transaction() as db: m.submit('sum', add, a=1)
done: TenantJob = m.wait(job_id, timeout=1.5)
m.keep(completed=7); m.pause(queue='mail'); m.limit('sum', 3); m.retry_failed(since=datetime.now(timezone.utc)); m.cancel(job_id)
m.cron('@daily', add, tz='Europe/Berlin', a=1)
gone: int = m.forget(payload=dict(a=1)).removed
m.close()

ts = Tenants('data', keys=lambda id: None, tasks={'add':add})
t: Tenant = ts.create('acme', plan='pro', weight=2.)
t.freeze('unpaid'); t.thaw(); t.jobs.submit('sum', add, a=1)
print(ts['acme'].usage(), ts.health()['ok'], 'acme' in ts, len(list(ts)))
stop = subscribe(print)
stop()
with JobTester(clock=Clock()) as jobs:
    jobs.submit('sum', add, a=1)
    jobs.drain(ahead=60.)
    jobs.assert_submitted('sum', a=1)
'''
WRONG = dict(
    verb=("m.get_jobs('x')", 'has no attribute "get_jobs"'), job_type=("m.submit(5, add)", 'Argument 1 to "submit"'), missing=("m.submit('x')", 'Missing positional argument "task_func"'),
    limit=("m.list_jobs(limit='5')", 'Argument "limit" to "list_jobs"'), field=("m.get_job('x').statis", 'has no attribute "statis"'),
    made=("BackgroundTaskManager()", 'Missing positional argument "db"'), tenant=("Tenants('data').create()", 'Missing positional argument "id"'))
HEAD = '''from fastlite import database
from fh_saas.tenants import Tenants
from fh_saas.utils_bgtsk import BackgroundTaskManager
def add(a: int) -> int: return a
m = BackgroundTaskManager(database('t.db'))
'''

def test_programs(tmp_path):
    """The checker sees the stubs and not the source, as in the environment of a user: it finds no fault with them, with a right program and with the
    examples, and each line of a wrong program is said to be so. All in one run, which takes a while"""
    site,work = tmp_path/'site',tmp_path/'work'
    work.mkdir()
    r = subprocess.run([sys.executable, str(root/'tools/stubs.py'), str(site)], capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    (site/'fh_saas/py.typed').touch()
    (work/'right.py').write_text(RIGHT)
    (work/'wrong.py').write_text(HEAD+'\n'.join(o for o,_ in WRONG.values())+'\n')
    for p in (root/'examples').rglob('*.py'): (work/('example_'+'_'.join(p.relative_to(root/'examples').parts))).write_text(p.read_text(encoding='utf-8'), encoding='utf-8')
    stubs = [p for p in site.rglob('*.pyi') if p.name not in ('otel.pyi', 'prometheus.pyi')]          # their libraries may not be there
    assert not [p for p in stubs if 'mypy:' in p.read_text(encoding='utf-8')]         # no module asks the checker to look away
    r = subprocess.run([sys.executable, '-m', 'mypy', '--ignore-missing-imports', '--check-untyped-defs', '--cache-dir', str(tmp_path/'cache'), *map(str, sorted(work.glob('*.py'))), *map(str, stubs)],
                       cwd=work, env={'MYPYPATH':str(site), 'PATH':''}, capture_output=True, text=True)
    out = r.stdout+r.stderr
    assert len(list(work.glob('example_*.py')))>=3 and 'checked' in out, out
    wrong = [l for l in out.splitlines() if 'wrong.py:' in l]
    assert not [l for l in out.splitlines()[:-1] if l not in wrong], out
    first = len(HEAD.splitlines())+1
    for i,(o,why) in enumerate(WRONG.values()): assert re.search(rf'wrong.py:{first+i}: error: .*{re.escape(why)}', out), (o, out)
