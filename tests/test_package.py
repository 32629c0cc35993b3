"What travels: the files of wheel and sdist, what the metadata say, what importing needs, and what a missing extra answers"
import importlib.metadata, io, re, subprocess, sys, tarfile, tomllib, zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
PACKAGE = re.compile(r'fh_saas/(?!.*__pycache__).*\.(?:py|csv|css|js|svg)|fh_saas/py\.typed')

def tracked(*paths):
    r = subprocess.run(['git', 'ls-files', '-z', *paths], cwd=root, capture_output=True, text=True)
    if r.returncode: pytest.skip('not a checkout of the repository')
    return {o for o in r.stdout.split('\0') if o and (root/o).exists()}

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Wheel and sdist, made from a copy of what git tracks; the wheel from the sdist, as installers do it"
    pytest.importorskip('build', reason='comes with the extra `test`')
    src,out = tmp_path_factory.mktemp('src'),tmp_path_factory.mktemp('dist')
    for o in tracked():
        (src/o).parent.mkdir(parents=True, exist_ok=True)
        (src/o).write_bytes((root/o).read_bytes())
    r = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(out), str(src)], capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr
    return next(out.glob('*.whl')),next(out.glob('*.tar.gz'))

def test_wheel(built):
    "The package with all that lies in it, its metadata, and nothing else"
    names = set(zipfile.ZipFile(built[0]).namelist())
    info = {o for o in names if '.dist-info/' in o}
    stubs = {o for o in names if o.endswith('.pyi')}
    assert {o[:-1] for o in stubs}=={o for o in names if o.endswith('.py')}-{'fh_saas/_modidx.py', 'fh_saas/_showdoc.py'}, 'tests/test_types.py tries them'
    assert names-info-stubs=={o for o in tracked('fh_saas') if PACKAGE.fullmatch(o)}=={o for o in tracked('fh_saas') if not o.endswith('.md')}
    assert {o.partition('/')[2] for o in info}=={'METADATA', 'RECORD', 'WHEEL', 'entry_points.txt', 'top_level.txt', 'licenses/LICENSE'}

def test_sdist(built):
    "What is needed to make the wheel, and no tests, notebooks or settings of machines"
    with tarfile.open(built[1]) as t: names = {o.name.partition('/')[2] for o in t if o.isfile()}
    names = {o for o in names if not o.startswith('fh_saas.egg-info/')}
    assert names=={o for o in tracked('fh_saas') if PACKAGE.fullmatch(o)}|{'LICENSE', 'README.md', 'CHANGELOG.md', 'MANIFEST.in', 'settings.ini', 'setup.py',
        'setup.cfg', 'pyproject.toml', 'PKG-INFO', *tracked('tools/stubs.py')}

@pytest.fixture(scope='module')
def meta(built): return Parser().parse(io.StringIO(zipfile.ZipFile(built[0]).read(next(o for o in zipfile.ZipFile(built[0]).namelist() if o.endswith('/METADATA'))).decode()))

def test_metadata(meta):
    "Name, versions of Python, licence, and the extras that the documentation names"
    assert (meta['Name'],meta['License-Expression'])==('fh-saas', 'Apache-2.0') and meta['Requires-Python']=='>=3.11'
    assert {'Typing :: Typed', *[f'Programming Language :: Python :: 3.{o}' for o in range(11, 15)]} <= set(meta.get_all('Classifier'))
    assert {'test', 'dev', 'docs', 'prometheus', 'otel', 'crypto', 'postgres', 'procrastinate'} <= set(meta.get_all('Provides-Extra'))
    assert meta['Description-Content-Type']=='text/markdown' and '# fh_saas' in meta.get_payload()

def test_little_is_required(meta):
    "What every user installs does not grow by accident"
    need = {re.match(r'[\w-]+', o)[0] for o in meta.get_all('Requires-Dist') if 'extra ==' not in o}
    assert need=={'fastcore', 'fastlite', 'apsw', 'starlette', 'python-fasthtml', 'msgspec', 'click', 'cronsim'}

def test_licence():
    "Apache 2.0, whole"
    s = (root/'LICENSE').read_text()
    assert s.lstrip().startswith('Apache License') and 'Version 2.0, January 2004' in s and '9. Accepting Warranty or Additional Liability' in s and 'END OF TERMS AND CONDITIONS' in s

def test_version_is_said_once():
    "settings.ini says it, the package and the newest part of the changelog repeat it"
    ini = ConfigParser(delimiters=['=']); ini.read(root/'settings.ini', encoding='utf-8')
    v = ini['DEFAULT']['version']
    assert f'__version__ = "{v}"' in (root/'fh_saas/__init__.py').read_text()
    assert re.search(r'(?m)^## (.+)$', (root/'CHANGELOG.md').read_text())[1].split()[0]==v

BLOCKED = '''
import importlib, pkgutil, sys
ban = set(sys.argv[1].split(','))
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ban: raise ModuleNotFoundError(f'No module named {name!r}', name=name.split('.')[0])
sys.meta_path.insert(0, Ban())
import fh_saas
for m in pkgutil.walk_packages(fh_saas.__path__, 'fh_saas.'):
    if m.name=='fh_saas._showdoc': continue          # nbdev's, for the documentation
    try: importlib.import_module(m.name)
    except ImportError as e: print(m.name, '|', e)
'''

def without(*names):
    "What the modules of the package say when they are imported where other packages are missing"
    r = subprocess.run([sys.executable, '-c', BLOCKED, ','.join(names)], capture_output=True, text=True, cwd=root)
    assert r.returncode==0, r.stderr
    return dict(o.split(' | ', 1) for o in r.stdout.splitlines())

def test_imports_without_what_only_developers_have():
    "Neither the tools of the notebooks, nor a server, nor another database's driver"
    said = without('nbdev', 'execnb', 'IPython', 'uvicorn', 'sqlalchemy', 'fastsql', 'psycopg', 'procrastinate', 'cryptography', 'opentelemetry', 'prometheus_client')
    assert all(re.search(r"pip install 'fh-saas\[\w+\]'", o) for o in said.values()), said
    assert not {'fh_saas.utils_bgtsk', 'fh_saas.tenants', 'fh_saas.dashboard', 'fh_saas.components', 'fh_saas.cli', 'fh_saas.testing'} & set(said)

def test_a_missing_extra_is_named():
    "Each module that needs more says what to install"
    for lib,extra,module in ('prometheus_client', 'prometheus', 'fh_saas.prometheus'), ('opentelemetry', 'otel', 'fh_saas.otel'):
        assert f"pip install 'fh-saas[{extra}]'" in without(lib)[module]

def test_what_ci_runs_once():
    "Files that .ci/run leaves out on the newest stack have nothing to do with the web, and of fastcore nothing but `patch` reaches them"
    names = re.search(r"^once='(.*)'$", (root/'.ci/run').read_text(), re.M)[1].split()
    files = [root/f'tests/test_{o}.py' for o in names]
    if 'chaos' in names: files += (root/'tests/chaos').glob('*.py')
    found = {(f.name, o) for f in files for o in re.findall(r'fasthtml|starlette|fastcore|fh_saas\.web|dashboard|TestClient|httpx|uvicorn', f.read_text(), re.I)}
    assert names==sorted(names) and found<={('machine.py', 'Starlette')}, found          # a word in a comment
