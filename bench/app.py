"What `fh_saas worker bench.app:manager` serves: a plain module, as an app would have"
from fastlite import database
from fh_saas.utils_bgtsk import BackgroundTaskManager
from bench.task import anoop, home, noop

manager = BackgroundTaskManager(database(home/'fh_saas.db'), tasks=[noop, anoop], worker=False)
