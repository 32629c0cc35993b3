"What `fh_saas worker bench.tenants_app:tenants` serves"
import os, time
from fh_saas.tenants import Tenants
from bench.task import home, noop

tenants = Tenants(os.environ.get('BENCH_TENANTS') or home/'tenants', tasks=[noop])

@tenants.task(name='pause')
def pause(arg, s=.001):
    "A task that takes a millisecond"
    r = noop(arg); time.sleep(s)
    return r
