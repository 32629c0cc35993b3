"The benchmark itself: what it must not leave behind"
import os, subprocess, sys
from pathlib import Path

import psutil, pytest
from util import until

START = '''
import sys
from bench.measures import Workers
class Two:
    name,nworkers = 'two',2
    def argv(self): return ['sh', '-c', 'sleep 600 & sleep 600']
with Workers(Two()) as w: print(*(p.pid for p in w.ps), flush=True); sys.stdin.readline()'''

@pytest.mark.parametrize('killed', [False, True])
def test_workers_end_with_the_measure(tmp_path, killed):
    "Or they would work for the next one"
    p = subprocess.Popen([sys.executable, '-c', START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent, env=dict(os.environ, BENCH_DIR=str(tmp_path)))
    ws = [psutil.Process(int(o)) for o in p.stdout.readline().split()]
    until(lambda: all(len(w.children())==2 for w in ws))
    ws += [c for w in ws for c in w.children()]
    assert len(ws)==6
    p.kill() if killed else print(file=p.stdin, flush=True)
    assert (p.wait(60)!=0)==killed
    until(lambda: not any(w.is_running() and w.status()!='zombie' for w in ws))
