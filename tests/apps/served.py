"An app as FastHTML starts it: `serve()`, whose first process only watches the files and starts the one that serves"
import os
from fasthtml.common import P, fast_app, serve
from fastlite import database
from fh_saas.utils_bgtsk import BackgroundTaskManager
from work import say

app,rt = fast_app(default_hdrs=False, secret_key='test')
manager = BackgroundTaskManager(database(os.environ['FH_DB']), handoff=0)

@rt
def index(): return P('hello')

def where(): say(os.environ['FH_DIR'], 'ran', os.getpid(), os.getppid())

serve(host='127.0.0.1', port=int(os.environ.get('FH_PORT', 0)))
