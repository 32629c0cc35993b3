"Huey on SQLite"
import os, sys
from bench.systems import System, unlink
from bench.task import home, noop
try: from huey import SqliteHuey
except ImportError: SqliteHuey = None

path = home/'huey.db'
if SqliteHuey:
    app = SqliteHuey('bench', filename=str(path))
    task = app.task()(noop)

class Peer(System):
    name,about,needs,pace = 'Huey','SQLite WAL synchronous=FULL, one thread; results kept, history not','huey',.25
    def reset(self):
        app.storage.close(); unlink(path); app.storage.initialize_schema()
    def submit(self, i): task({'i':i})
    def argv(self): return [sys.executable, '-m', 'huey.bin.huey_consumer', 'bench.peers.huey.app', '-w', '1', '-k', 'thread', '-d', '.01', '-m', '.1', '-q']
    def busy(self): return app.result_count()<self.n
    def size(self): return os.path.getsize(path)
