"The same for Starlette alone"
import os
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from fastlite import database
from fh_saas.utils_bgtsk import BackgroundTaskManager
from work import gated, say

folder = os.environ['FH_DIR']
manager = BackgroundTaskManager(database(os.environ['FH_DB']), tasks=[gated])

@asynccontextmanager
async def own(app):
    say(folder, 'own-up')
    yield dict(mine=7)
    say(folder, 'own-down')

async def job(request):
    id,bg = await manager.asubmit('star', gated, folder=folder, name='star')
    return JSONResponse(dict(mine=request.state.mine), background=bg, headers={'x-job':id})

app = Starlette(routes=[Route('/job', job)], lifespan=manager.lifespan(own))
