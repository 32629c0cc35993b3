"A machine that stood still is noticed, and only then is a test that failed run again"
import os, re, signal, subprocess, sys, time

from still import STILL_S, Watch
from util import root, until

def test_noticed():
    w = Watch()
    try:
        began = time.monotonic()
        assert not w.stood(began)
        w.p.send_signal(signal.SIGSTOP)      # as the host does to the whole machine
        time.sleep(STILL_S+.2)
        w.p.send_signal(signal.SIGCONT)
        until(lambda: w.stood(began)>STILL_S)
        assert not w.stood(time.monotonic())
    finally: w.close()
    assert w.p.returncode==0

FAILS = '''
import pytest
ran,stood = [],[0., 9., 9.]
@pytest.fixture(autouse=True, scope='session')
def machine(request): next(o for o in request.config.pluginmanager.get_plugins() if type(o).__name__=='Again').watch.stood = lambda began: stood.pop(0)
@pytest.mark.parametrize('n', [2, 2, 3], ids=['one', 'two', 'three'])
def test_it(request, n):
    ran.append(request.node.name)
    assert ran.count(ran[-1])==n
def test_stood(): assert not stood
'''

def test_run_again(tmp_path):
    "Only if it did, and once: a test that fails then too has failed"
    (tmp_path/'test_it.py').write_text(FAILS)
    for f in (root/'tests').glob('*.py'):
        if not f.name.startswith('test_'): (tmp_path/f.name).symlink_to(f)
    r = subprocess.run([sys.executable, '-m', 'pytest', '-v', '-p', 'no:cacheprovider', '-p', 'no:xdist', str(tmp_path)], capture_output=True, text=True, cwd=tmp_path,
                       env={**os.environ, 'PYTHONPATH':str(root), 'TMPDIR':str(tmp_path)})     # its own turn: this test has one already
    got = dict(re.findall(r'::(\S+) (PASSED|FAILED|ERROR)', r.stdout))
    assert got=={'test_it[one]':'FAILED', 'test_it[two]':'PASSED', 'test_it[three]':'FAILED', 'test_stood':'PASSED'}, r.stdout+r.stderr
