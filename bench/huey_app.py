"Huey on SQLite, for its consumer"
from huey import SqliteHuey
from bench import task
huey = SqliteHuey('bench', filename=str(task.home/'huey.db'))
noop = huey.task()(task.noop)
