"The rules of the style that are enforced: docs on all that is exported, layers that import downward, no raw code cells"
import ast, importlib, inspect, json, re, sys, warnings
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from fastcore.docments import docments

root = Path(__file__).resolve().parent.parent
lib = root/'fh_saas'
layers = [                            # a folder counts as one
    ('pure', 'retry cron payload telemetry ids options tasks redact'),
    ('storage', 'keys store'),
    ('running', 'running engines'),
    ('API', 'job_task utils_bgtsk flow scheduler rollout tenants'),
    ('edges', 'web components dashboard cli_frame cli_jobs cli_tenants cli_doctor cli demo testing pytest_plugin prometheus otel')]
rank = {m:i for i,(_,ms) in enumerate(layers) for m in ms.split()}

sources = {'.'.join(p.relative_to(lib).with_suffix('').parts):p for p in sorted(lib.rglob('*.py')) if not p.name.startswith('_')}
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(root/'nbs').parts))

# --- documentation

def module(nm):
    "Module `nm`, or skip where an optional dependency is missing"
    try: return importlib.import_module(f'fh_saas.{nm}')
    except ModuleNotFoundError as e:
        if (e.name or '').split('.')[0] in ('fh_saas', ''): raise
        pytest.skip(f'{e.name} is not installed')
    except ImportError as e:
        if 'fh-saas[' not in str(e): raise
        pytest.skip(str(e))              # the module itself says which extra it needs

def verbs(cls):
    "The public functions of a class, patched ones included, with their names"
    for k,v in vars(cls).items():
        if isinstance(v, property): v = v.fget
        f = inspect.unwrap(getattr(v, '__func__', v)) if callable(v) or hasattr(v, '__func__') else None
        if inspect.isfunction(f) and not k.startswith('_') and f.__module__.startswith('fh_saas'): yield f'{cls.__name__}.{k}', f

def positional_only(f):
    "Parameters before `/`, whose docments fastcore does not read"
    return {p.name for p in inspect.signature(f).parameters.values() if p.kind==p.POSITIONAL_ONLY}

def undocumented(nm, o):
    "What is missing for the function or class `o`"
    if not (inspect.getdoc(o) if not is_dataclass(o) else vars(o).get('__doc__', '').split(f'{o.__name__}(')[0].strip()): yield f'{nm}: no docstring'
    f = o.__init__ if inspect.isclass(o) and not is_dataclass(o) else o
    if not (inspect.isfunction(f) or is_dataclass(o)) or not f.__module__.startswith('fh_saas'): return # inherited from elsewhere
    skip = {'self', 'cls', 'return'} | {p.name for p in inspect.signature(f).parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    for k,v in docments(o).items():
        if k not in skip and not k.startswith('_') and not v:
            yield f'{nm}: no docment on {k}' + (' (fastcore reads none before `/`)' if not is_dataclass(o) and k in positional_only(f) else '')

@pytest.mark.parametrize('nm', sources)
def test_exports_are_documented(nm):
    m,missing = module(nm),[]
    for k in getattr(m, '__all__', []):
        o = getattr(m, k)
        if not (inspect.isfunction(o) or inspect.isclass(o)) or not getattr(o, '__module__', '').startswith('fh_saas'): continue
        missing += undocumented(k, o)
        if inspect.isclass(o): missing += [e for n,f in verbs(o) for e in undocumented(n, f)]
    assert not missing, '\n'.join(missing)

# --- layers

def imports(nm, path):
    "Full names of the modules that module `nm` imports, wherever in its code"
    pkg = ['fh_saas', *nm.split('.')][:-1]
    for o in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(o, ast.Import): yield from (a.name for a in o.names)
        if isinstance(o, ast.ImportFrom):
            base = '.'.join((pkg[:len(pkg)-o.level+1] if o.level else []) + ([o.module] if o.module else []))
            yield from (f'{base}.{a.name}' if f'{base}.{a.name}'.removeprefix('fh_saas.') in sources else base for a in o.names)

deps = {nm:sorted(set(imports(nm, p))) for nm,p in sources.items()}
inner = {nm:[d.removeprefix('fh_saas.') for d in ds if d.startswith('fh_saas.')] for nm,ds in deps.items()}
def top(nm): return nm.split('.')[0]

def test_every_module_has_a_layer():
    assert not [nm for nm in sources if top(nm) not in rank], 'name its layer in tests/test_style.py and DESIGN section 6'

@pytest.mark.parametrize('nm', sources)
def test_imports_point_down(nm):
    up = [d for d in inner[nm] if top(d) in rank and rank[top(d)]>rank.get(top(nm), 99)]
    assert not up, f'{nm} ({layers[rank[top(nm)]][0]}) imports from above: {up}'

@pytest.mark.parametrize('nm', sources)
def test_imports_are_relative(nm):
    "Those inside functions stay absolute: a notebook, which is no package, runs them too"
    full = [ast.unparse(o) for o in ast.parse(sources[nm].read_text(encoding='utf-8')).body if isinstance(o, ast.ImportFrom) and not o.level and top(o.module)=='fh_saas']
    assert not full, f'nbdev makes an import relative where it stands on one line: write two instead of one over two lines: {full}'

@pytest.mark.parametrize('nm', sources)
def test_no_verb_is_defined_twice(nm):
    "The later of two would silently take the place of the first"
    defs = [(*map(ast.unparse, o.decorator_list), ast.unparse(o.args.args[0].annotation), o.name) for o in ast.parse(sources[nm].read_text(encoding='utf-8')).body
            if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef)) and any(ast.unparse(d).startswith('patch') for d in o.decorator_list)
            and o.args.args and o.args.args[0].annotation]
    assert len(defs)==len(set(defs)), sorted(o for o in set(defs) if defs.count(o)>1)

def test_no_import_cycles():
    def walk(nm, seen):
        assert nm not in seen, 'a cycle of imports: ' + ' -> '.join([*seen, nm])
        for d in inner.get(nm, []): walk(d, [*seen, nm])
    for nm in sources: walk(nm, [])

@pytest.mark.parametrize('nm', [o for o in sources if rank.get(top(o))==0])
def test_pure_layer_needs_little(nm):
    other = {d.split('.')[0] for d in deps[nm]} - set(sys.stdlib_module_names) - {'fh_saas', 'fastcore', 'msgspec', 'cronsim'}
    assert not other, f'the pure layer imports fastcore, the standard library, cron and JSON only, not {other}'

# --- notebooks

def cells(p): return json.loads(p.read_text(encoding='utf-8'))['cells']

@pytest.mark.parametrize('nb', notebooks, ids=lambda p:p.name)
def test_no_raw_cells(nb):
    raw = [s for c in cells(nb) if c['cell_type']=='raw' and not (s := ''.join(c['source'])).startswith('---')]
    assert not raw, 'a raw cell is never run'

@pytest.mark.parametrize('nb', notebooks, ids=lambda p:p.name)
def test_title_has_a_cell_of_its_own(nb):
    "nbdev takes the title and the line under it out of the first cell of text, and drops what else is in it"
    first = next(''.join(c['source']) for c in cells(nb) if c['cell_type']=='markdown')
    lost = [l for l in first.splitlines() if l.strip() and not l.startswith('# ')]
    assert len(lost)<=1 and all(l.startswith('> ') for l in lost), f'put this into the next cell, or no page shows it: {lost[1:]}'

@pytest.mark.parametrize('nb', notebooks, ids=lambda p:p.name)
def test_links_name_pages(nb):
    "A page is called by its notebook without the number; a link to the notebook itself becomes one to its page"
    bad = [o for c in cells(nb) if c['cell_type']=='markdown' for o in re.findall(r'\]\(([\w./]*\b\d\d_\w+\.html)', ''.join(c['source']))]
    assert not bad, f'no such pages: {bad}; say .ipynb'

@pytest.mark.parametrize('nb', notebooks, ids=lambda p:p.name)
def test_size(nb):
    "Counted and shown, not enforced"
    cs = cells(nb)
    exported = [s for c in cs if c['cell_type']=='code' and (s := ''.join(c['source'])).lstrip().startswith(('#| export', '#|export'))]
    lines = [len([l for l in s.splitlines() if l.strip() and not l.startswith('#|')]) for s in exported]
    if len(cs)>60: warnings.warn(f'{nb.name}: {len(cs)} cells, more than 60')
    if sum(lines)>250 and not nb.name.endswith('utils_bgtsk.ipynb'): warnings.warn(f'{nb.name}: {sum(lines)} exported lines, more than 250')
    if long := [n for n in lines if n>30]: warnings.warn(f'{nb.name}: exported cells of {long} lines, more than 30')
