"The README is nbs/index.ipynb, and names exactly the two set-up commands"
import re, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
readme = (root/'README.md').read_text(encoding='utf-8')
commands = ['pip install -e . && fh_saas demo', "pip install -e '.[dev]' && nbdev_test && pytest"]

def test_in_step_with_the_notebook():
    pytest.importorskip('nbdev', reason='nbdev 2 is only in the pinned environment (fastcore 1), which runs this test')
    r = subprocess.run([sys.executable, 'tools/docs.py', 'readme', '--check'], cwd=root, capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr

def test_two_set_up_commands():
    blocks = re.findall(r'^```(?:sh|bash|shell|console)\n(.*?)^```', readme, re.M|re.S)
    assert [l for b in blocks for l in b.splitlines() if l.strip()] == commands
    assert len(re.findall('pip install', readme))==2

def test_usage_pattern():
    "The three lines that the project promises stand in the README as they are, the response aside"
    for line in ('manager = BackgroundTaskManager(tenant_db)', 'job_id, bg_task = manager.submit("sync_data", my_sync_func, user_id="123")'):
        assert line in readme
    assert re.search(r'^ +return .+, bg_task$', readme, re.M)

def test_plain():
    "Short, without emoji; what it is in three sentences"
    assert len(readme.splitlines())<100
    assert not re.findall('[\u2600-\u27bf\U0001f000-\U0001faff]', readme)
    intro = readme.split('-->', 1)[1].strip().split('\n\n')[0]
    assert len(re.findall(r'[.!?](?:\s|$)', intro))==3
