"Proof: the package is broken in every way that could be thought of, and compared with what it promises. `python -m tests.chaos --minutes 30`"
import sys
from pathlib import Path

_tests = Path(__file__).resolve().parent.parent
for o in (str(_tests), str(_tests/'apps'), str(_tests.parent)):
    if o not in sys.path: sys.path.insert(0, o)
