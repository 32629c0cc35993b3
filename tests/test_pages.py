"The pages that are not modules show what their code gives today: tutorials, how-tos, how it works"
import re, subprocess, sys
from pathlib import Path

import pytest

pytest.importorskip('nbdev', reason='nbdev 2 is only in the pinned environment (fastcore 1), which runs these tests')
root = Path(__file__).resolve().parent.parent
pages = [p for f in ('tutorials', 'howto', 'works') for p in sorted((root/'nbs'/f).glob('*.ipynb'))]

fresh = [p for p in pages if p.stem!='02_promises']      # that one shows the tests of the day: `python tools/pages.py promises` brings it up to date

@pytest.mark.parametrize('page', fresh, ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_shows_what_its_code_gives(page):
    r = subprocess.run([sys.executable, 'tools/pages.py', '--one', '--check', str(page)], cwd=root, capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr
