"Tasks for tests in which the system lacks something"
import time

def ok(): return 'ok'
def hang(): print('runs', flush=True); time.sleep(60)
def back(): return 'ran again'
