"""Whether the machine stood still: a virtual one is stopped by its host now and then, for up to a minute. A watcher in a process of its own, which
does nothing else, notes when it was not woken; no test can be the cause of that"""
import os, subprocess, sys, tempfile, time

STILL_S = 2.    # a machine that is merely busy wakes a process that slept in a fraction of that
WATCH = f'''
import os, select, sys, time
if os.fork(): os._exit(0)      # nobody's child, since tests count theirs
print(os.getpid(), flush=True)
t = time.monotonic()
while not select.select([0], [], [], .1)[0]:
    last,t = t,time.monotonic()
    if t-last>{STILL_S}: print(last, t, flush=True)'''

class Watch:
    "Starts the watcher, which ends with this process"
    def __init__(self):
        self.out,(end,self.life) = tempfile.TemporaryFile('w+'),os.pipe()
        subprocess.run([sys.executable, '-I', '-S', '-c', WATCH], stdin=end, stdout=self.out, check=True)
        os.close(end)
    def lines(self):
        self.out.seek(0)
        return self.out.read().splitlines()
    def stood(self, since):
        "For how many seconds it stood still, since that time of the monotonic clock"
        time.sleep(.3)      # it is woken too
        return sum(b-max(a, since) for a,b in (map(float, o.split()) for o in self.lines()[1:]) if b>since)
    def close(self): os.close(self.life); self.out.close()
