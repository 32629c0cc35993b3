"Tenants and an app over them, for uvicorn and `fh_saas worker`"
import os
from fasthtml.common import HttpHeader, P, fast_app
from fh_saas.tenants import Tenants
import work

folder = os.environ['FH_DIR']
tenants = Tenants(folder+'/data', tasks=[work.quick, work.aquick, work.gated, work.nap, work.fails])
app,rt = fast_app(default_hdrs=False, secret_key='test', lifespan=tenants.lifespan)

@rt
def sub(tenant:str, name:str):
    id,bg = tenants[tenant].jobs.submit('web', work.quick, folder=folder, name=name)
    return P('hello'), HttpHeader('x-job', id), HttpHeader('x-pid', str(os.getpid())), bg
@rt
def ok(): return P('ok')
