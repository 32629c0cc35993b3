"The page's usage pattern in an app's module, word for word; nothing is registered"
import os
from fasthtml.common import HttpHeader, P, fast_app
from fastlite import database
from fh_saas.utils_bgtsk import BackgroundTaskManager
from work import say

tenant_db = database(os.environ['FH_DB'])
app,rt = fast_app(default_hdrs=False, secret_key='test')
manager = BackgroundTaskManager(tenant_db)

@rt
def sync():
    job_id, bg_task = manager.submit("sync_data", my_sync_func, user_id="123")
    return P('Accepted'), HttpHeader('x-job', job_id), bg_task

@rt
def nameless():
    job_id, bg_task = manager.submit("sync_data", lambda user_id: user_id, user_id="123")
    return P('Accepted'), HttpHeader('x-job', job_id)

def my_sync_func(user_id):      # below the manager and the routes, as people write it
    say(os.environ['FH_DIR'], 'sync', user_id, __name__)
    return user_id

if __name__=='__main__':
    import uvicorn
    uvicorn.run(app, host='127.0.0.1', port=0)
