"Take from this process what other systems do not have. To be called before fh_saas is imported"
import builtins, functools, os, select, signal, socket, sys

def _open_here(path):
    "Whether this process has the file open"
    path = os.path.realpath(path)
    for fd in os.listdir('/proc/self/fd'):
        try: at = os.readlink(f'/proc/self/fd/{fd}')
        except OSError: continue
        if at==path: return True
    return False

def _strict(f):
    "A function that moves or removes files as Windows has it: not those that are open"
    @functools.wraps(f)
    def strict(*paths, **kw):
        if open_ := [o for o in paths if os.path.isfile(o) and _open_here(o)]: raise PermissionError(13, 'it is open', str(open_[0]))
        return f(*paths, **kw)
    return strict

def windows():
    "No file locks, no Unix sockets, no fork, no signals beyond the common ones; files that are open stay where they are"
    import asyncio, multiprocessing, subprocess, tempfile          # these look once, when they are imported
    assert 'fh_saas' not in sys.modules
    for o in 'fcntl', 'resource', 'pwd', 'grp', 'termios': sys.modules[o] = None
    socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)
    del socket.AF_UNIX, select.poll
    for o in 'register_at_fork', 'fork', 'pwrite', 'pread', 'fchmod', 'O_CLOEXEC', 'killpg', 'setsid', 'getpgrp': delattr(os, o)
    for o in 'SIGKILL', 'SIGHUP', 'SIGUSR1', 'SIGALRM', 'pthread_kill', 'pthread_sigmask': delattr(signal, o)
    for o in 'rename', 'replace', 'unlink', 'remove': setattr(os, o, _strict(getattr(os, o)))

def macos():
    "No /proc, no signal on a pipe's end, no marks on sockets"
    import fcntl
    for o in 'F_SETSIG', 'F_GETSIG', 'F_NOTIFY': delattr(fcntl, o)
    isdir,real = os.path.isdir,open
    def hidden(p): return isinstance(p, (str, os.PathLike)) and str(p).startswith('/proc')
    os.path.isdir = lambda p: not hidden(p) and isdir(p)
    def fake(p, *a, **kw):
        if hidden(p): raise FileNotFoundError(2, 'no such file', str(p))
        return real(p, *a, **kw)
    builtins.open = fake
