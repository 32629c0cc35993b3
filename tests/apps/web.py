"A FastHTML app with a route for each way to return a task; environment variables say how it is put together"
import asyncio, json, os
from contextlib import asynccontextmanager
from fasthtml.common import HttpHeader, JSONResponse, P, RedirectResponse, fast_app
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from util import opened as database
from fh_saas.utils_bgtsk import BackgroundTaskManager
import work
from work import say

folder = os.environ['FH_DIR']
db = database(os.environ['FH_DB'])
opts = json.loads(os.environ.get('FH_OPTS', '{}'))
mode = os.environ.get('FH_MODE', '').split()

class Sent:
    "Says when the last byte of a response has been handed to the server"
    def __init__(self, app): self.app = app
    async def __call__(self, scope, receive, send):
        async def tell(msg):
            await send(msg)
            if msg['type']=='http.response.body' and not msg.get('more_body'): say(folder, 'sent', scope['path'])
        await self.app(scope, receive, tell if scope['type']=='http' else send)

class Base(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next): return await call_next(request)

@asynccontextmanager
async def own(app):
    say(folder, 'own-up')
    yield
    say(folder, 'own-down')

def mgr(**kw): return BackgroundTaskManager(db, tasks=tasks, **(opts|kw))
tasks = [work.quick, work.gated, work.agated, work.fails, work.bomb, work.nap, work.aquick]
manager = mgr()
lifespan = manager.lifespan(own) if 'composed' in mode else manager.lifespan if 'lifespan' in mode else None
app,rt = fast_app(default_hdrs=False, secret_key='test', lifespan=lifespan,
                  middleware=[Middleware(Sent), *([Middleware(Base)] if 'base' in mode else [])])

def head(job_id): return HttpHeader('x-job', job_id)

def sub(task='gated', name='', **kw): return mgr().submit('web', getattr(work, task), folder=folder, name=name, **kw)

@rt
def ft(task:str='gated'): id,bg = sub(task, 'ft'); return P('hello'), head(id), bg
@rt
def string(task:str='gated'): id,bg = sub(task, 'string'); return 'hello', head(id), bg
@rt
def dct(task:str='gated'): id,bg = sub(task, 'dct'); return dict(hello=1), head(id), bg
@rt
def tup(task:str='gated'): id,bg = sub(task, 'tup'); return P('hello'), P('again'), head(id), bg
@rt
def redirect(task:str='gated'): id,bg = sub(task, 'redirect'); return RedirectResponse('/ok', background=bg, headers={'x-job':id})
@rt
async def asy(task:str='agated'):
    id,bg = await mgr().asubmit('web', getattr(work, task), folder=folder, name='asy')
    return P('hello'), head(id), bg
@rt
def dropped(task:str='quick'):
    id,bg = mgr().submit('web', getattr(work, task), folder=folder, name='dropped')
    return JSONResponse(dict(id=id), headers={'x-job':id}), bg
@rt
def fail(): id,bg = mgr().submit('web', work.fails, max_retries=1, folder=folder, times=9, name='fail'); return P('hello'), head(id), bg
@rt
def plain(task:str, name:str, s:float=0.):
    kw = dict(s=s) if task=='nap' else {}
    id,bg = sub(task, name, **kw)
    return P('hello'), head(id), bg
@rt
async def slow(name:str):
    "Submits, then takes its time over the response"
    id,bg = await mgr().asubmit('web', work.gated, folder=folder, name=name)
    say(folder, 'submitted', id)
    await asyncio.sleep(2)
    return P('hello'), head(id), bg
@rt
async def ok(): return P('ok')
@rt
def okay(): return P('okay')

if __name__=='__main__':
    import uvicorn
    uvicorn.run('web:app' if 'import' in mode else app, host='127.0.0.1', port=0)
