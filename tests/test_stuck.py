"A test that hangs for good fails alone, and its stacks are printed: it keeps up neither the others nor whoever waits for the suite"
import os, re, subprocess, sys
from pathlib import Path
import pytest

def suite(tmp_path, code, *args):
    "Run tests in a pytest of their own, which ends what is stuck after ten seconds, and loads no more than it needs, since loading takes time too"
    (tmp_path/'test_it.py').write_text('import ctypes, pytest, threading\nfor_good = threading.Event().wait\n'+code)
    return subprocess.run([sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '-c', os.devnull, '--rootdir', tmp_path, '-p', 'xdist', '-p', 'pytest_timeout', '-p', 'stuck', '-o', 'stuck_s=10', '-o', 'timeout=1', *args, 'test_it.py'],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, 'PYTHONPATH':str(Path(__file__).parent), 'PYTEST_DISABLE_PLUGIN_AUTOLOAD':'1'})

hangs = dict(
    after_a_failure="@pytest.fixture\ndef o(): yield; for_good()\ndef test_hangs(o): for_good()\n",      # interrupted after one second, and hangs again as it clears up
    without_the_interpreter="def test_hangs():\n lock,o = ctypes.PyDLL(None).pthread_mutex_lock,ctypes.create_string_buffer(64)\n lock(o); lock(o)\n")

@pytest.mark.parametrize('how', hangs)
def test_what_hangs_for_good_fails_alone(tmp_path, how):
    r = suite(tmp_path, 'def test_before(): pass\n'+hangs[how]+'def test_after(): pass\n', '-n', '1')
    assert r.returncode==1 and "crashed while running 'test_it.py::test_hangs'" in r.stdout and '2 passed' in r.stdout, r.stdout+r.stderr
    assert re.search(r'test_it.py", line \d+ in (o|test_hangs)', r.stderr), r.stderr

def test_a_process_whose_threads_do_not_end(tmp_path):
    r = suite(tmp_path, 'def test_leaves(): threading.Thread(target=for_good).start()\n', '-n', '0')
    assert r.returncode==1 and '1 passed' in r.stdout and 'in _shutdown' in r.stderr, r.stdout+r.stderr
