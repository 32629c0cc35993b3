"""Whose turn it is on this machine: a test that measures has it for itself, all others share it. `python tests/turn.py COMMAND...` runs a
command as one of those that share"""
import contextlib, fcntl, os, subprocess, sys, tempfile
from pathlib import Path

@contextlib.contextmanager
def turn(alone):
    "Hold the machine, alone or together with other processes. Who comes takes a place at the door first, so that a steady stream of tests cannot keep out the one that wants to be alone"
    with open(Path(tempfile.gettempdir())/f'fh_saas-tests-{os.getuid()}.lock', 'a+') as f:
        fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)
        fcntl.lockf(f, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, 1, 1)
        fcntl.lockf(f, fcntl.LOCK_UN, 1, 0)
        yield

if __name__=='__main__':
    with turn(False): sys.exit(subprocess.call(sys.argv[1:]))
