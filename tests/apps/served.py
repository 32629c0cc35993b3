"An app as FastHTML starts it: `serve()`, whose first process only watches the files and starts the one that serves; or uvicorn that starts several"
import os, uvicorn
from fasthtml.common import P, fast_app, serve
from fastlite import database
from fh_saas.utils_bgtsk import BackgroundTaskManager
from work import say

app,rt = fast_app(default_hdrs=False, secret_key='test')
manager = BackgroundTaskManager(database(os.environ['FH_DB']), handoff=0)

@rt
def index(): return P('hello')

def where(): say(os.environ['FH_DIR'], 'ran', os.getpid(), os.getppid())

at = dict(host='127.0.0.1', port=int(os.environ.get('FH_PORT', 0)))
if not (n := os.environ.get('FH_WORKERS')): serve(**at)
elif __name__=='__main__': uvicorn.run('served:app', workers=int(n), **at)
