"""Whether the machine stood still: a virtual one is stopped by its host now and then, for up to a minute. A watcher in a process of its own, which
does nothing else, notes when it was not woken; no test can be the cause of that"""
import subprocess, sys, tempfile, time

STILL_S = 2.    # a machine that is merely busy wakes a process that slept in a fraction of that
WATCH = f'''
import select, sys, time
t = time.monotonic()
while not select.select([0], [], [], .1)[0]:
    last,t = t,time.monotonic()
    if t-last>{STILL_S}: print(last, t, flush=True)'''

class Watch:
    "Starts the watcher, which ends with this process"
    def __init__(self):
        self.out = tempfile.TemporaryFile('w+')
        self.p = subprocess.Popen([sys.executable, '-I', '-S', '-c', WATCH], stdin=subprocess.PIPE, stdout=self.out)
    def stood(self, since):
        "For how many seconds it stood still, since that time of the monotonic clock"
        time.sleep(.3)      # it is woken too
        self.out.seek(0)
        return sum(b-max(a, since) for a,b in (map(float, o.split()) for o in self.out) if b>since)
    def close(self): self.p.stdin.close(); self.p.wait(); self.out.close()
