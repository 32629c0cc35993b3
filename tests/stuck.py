"""What neither ends nor lets itself be interrupted is ended here: all stacks are printed, and the process that ran the test is gone, which
fails that test alone. `timeout` comes first, interrupts the test and says so; but it does so once, and not what clears up after the test,
nor the end of the process, nor a thread that holds the interpreter. A thread of C counts here, which none of that keeps from coming"""
import faulthandler, os
import pytest

def pytest_addoption(parser):
    parser.addini('stuck_s', 'seconds after which a test, what clears up after it, or the end of the process is ended together with the process')

_stderr = None

def pytest_configure(config):
    global _stderr
    _stderr = os.dup(2)      # now: while a test runs, 2 is a file that is lost with the process

def arm(config):
    if s := float(config.getini('stuck_s') or 0): faulthandler.dump_traceback_later(s, exit=True, file=_stderr)

@pytest.hookimpl(wrapper=True, trylast=True)     # inside the turn, for which a test may wait long
def pytest_runtest_protocol(item, nextitem):
    arm(item.config)
    try: return (yield)
    finally: faulthandler.cancel_dump_traceback_later()

@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node):
    "pytest has put the clock off when a test failed; what clears up is still to come"
    arm(node.config)

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    "Threads that do not end, and what runs at exit; with other processes that run the tests, this one waits for all of them before"
    arm(session.config)
