"""Write a stub (.pyi) for each module of the package, for type checkers: they do not see methods that `@patch` adds to a class.

    python tools/stubs.py OUT      writes OUT/fh_saas/**/*.pyi; setup.py does that when it builds a wheel"""
import ast, builtins, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
NAME = 'fh_saas'
HEAD = """from typing import Any, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager"""
KNOWN = {'Any', 'Callable', 'AbstractAsyncContextManager', 'AbstractContextManager', 'self', 'cls'}

def modules(lib):
    "Modules by name, with their syntax trees"
    for p in sorted(lib.rglob('*.py')):
        if p.name!='_modidx.py' and p.name!='_showdoc.py': yield '.'.join((NAME, *p.relative_to(lib).with_suffix('').parts)).removesuffix('.__init__'),p,ast.parse(p.read_text(encoding='utf-8'))

def patched(f):
    "(the class that a function is patched into, as it is written, and how); None if it is a plain function"
    for d in f.decorator_list:
        call = d if isinstance(d, ast.Call) else None
        nm = getattr(call.func if call else d, 'id', None)
        if nm=='patch':
            kw = {k.arg for k in call.keywords} if call else set()
            ann = f.args.args[0].annotation if f.args.args else None
            return (ast.unparse(ann), 'property' if 'as_prop' in kw else 'classmethod' if 'cls_method' in kw else 'method') if ann is not None else None
        if nm=='patch_to': return ast.unparse(call.args[0]),'method'
    return None

def home(name, module, trees):
    "The module that defines what is called `name` in `module`"
    for n in trees[module][1].body:
        if isinstance(n, ast.ClassDef) and n.name==name: return module
        if isinstance(n, ast.ImportFrom):
            for a in n.names:
                if (a.asname or a.name)==name and (src := full(n, module, trees)) in trees: return home(a.name, src, trees)
    return None

def full(n, module, trees):
    "The absolute name of the module that an import names"
    if not n.level: return n.module
    base = module.split('.') if trees[module][0].name=='__init__.py' else module.split('.')[:-1]
    base = base[:len(base)-n.level+1]
    return '.'.join([*base, *([n.module] if n.module else [])])

# --- annotations

def says_none(p):
    "Whether the docment of a parameter speaks of None"
    return 'None' in p.source[p.lineno-1].partition('#')[2]

def optional(ann, default, none=False):
    "An annotation that also takes the default None, or a None that the docment speaks of, and is loose where the source is"
    if ann is None: return 'Any'
    if isinstance(ann, ast.Constant) and isinstance(ann.value, str): ann = ast.parse(ann.value, mode='eval').body
    s = ast.unparse(ann)
    s = {'callable':'Callable[..., Any]', 'Callable':'Callable[..., Any]', 'float':'float', 'list':'list[Any]', 'dict':'dict[str, Any]', 'tuple':'tuple[Any, ...]'}.get(s, s)
    return f'{s} | None' if (none or isinstance(default, ast.Constant) and default.value is None) and 'None' not in s and s!='Any' else s

def args_of(f, skip_ann=True):
    "A parameter list with `...` for the defaults"
    a,out = f.args,[]
    plain = [*a.posonlyargs, *a.args]
    defaults = [None]*(len(plain)-len(a.defaults))+list(a.defaults)
    for i,(p,d) in enumerate(zip(plain, defaults)):
        if i==0 and skip_ann and p.arg in ('self', 'cls'): out.append(p.arg)
        else: out.append(one(p, d))
        if a.posonlyargs and i==len(a.posonlyargs)-1: out.append('/')
    if a.vararg: out.append(f'*{a.vararg.arg}: {optional(a.vararg.annotation, None)}')
    elif a.kwonlyargs: out.append('*')
    out += [one(p, d) for p,d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: out.append(f'**{a.kwarg.arg}: Any')
    return ', '.join(out)

def one(p, d): return f'{p.arg}: {optional(p.annotation, d, says_none(p))}'+('' if d is None else ' = ...')

def returns(f):
    if f.name in ('__init__', '__exit__', '__aexit__', '__setattr__', '__delattr__') and f.returns is None: return 'None'
    return 'Any' if f.returns is None else optional(f.returns, None)

def managers(f): return any('contextmanager' in ast.unparse(d) for d in f.decorator_list)

def func(f, indent='', how='method'):
    "A function's stub"
    pre = 'async def' if isinstance(f, ast.AsyncFunctionDef) else 'def'
    ret,lines = returns(f),[]
    if managers(f): pre,ret = 'def',f'{"AbstractAsyncContextManager" if isinstance(f, ast.AsyncFunctionDef) else "AbstractContextManager"}[{ret}]'
    if how=='property': lines.append('@property')
    lines += [f'@{k}' for d in f.decorator_list if (k := ast.unparse(d)) in ('staticmethod', 'classmethod', 'property') or k.endswith('.setter')]
    return '\n'.join(indent+l for l in [*lines, f'{pre} {f.name}({args_of(f)}) -> {ret}: ...'])

# --- modules

def klass(c, more):
    "A class's stub with what is patched into it"
    bases = [ast.unparse(b) for b in c.bases]+[f'{k.arg}={ast.unparse(k.value)}' for k in c.keywords]
    deco = [ast.unparse(d) for d in c.decorator_list]
    data = any(d.startswith('dataclass') for d in deco) or 'NamedTuple' in bases
    out,seen = [f'@{d}' for d in deco]+[f'class {c.name}({", ".join(bases)}):'],set()
    for n in c.body:
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if private(n.name): continue
            out.append(func(n, '    ')); seen.add(n.name)
            if n.name=='__init__' and not data: out += fields(n, '  # type: ignore' if bases else '')
        elif isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name):
            out.append(f'    {n.target.id}: {optional(n.annotation, n.value)}'+(' = ...' if n.value is not None else ''))
        elif isinstance(n, ast.Assign): out += [f'    {t.id}: Any{note}' for a in n.targets for t in (a.elts if isinstance(a, ast.Tuple) else [a]) if isinstance(t, ast.Name) and not t.id.startswith('_') for note in ['  # type: ignore' if bases else '']]
    out += [func(f, '    ', how) for f,how in {f.name:(f, how) for f,how in more if f.name not in seen and not private(f.name)}.values()]
    if not data and '__getattr__' not in seen and 'GetAttr' in bases: out.append('    def __getattr__(self, name: str) -> Any: ...')
    return '\n'.join(out if len(out)>1+len(deco) else [*out, '    ...'])

def fields(init, note):
    "What `__init__` sets on self"
    names = []
    for n in ast.walk(init):
        for t in (n.targets if isinstance(n, ast.Assign) else []):
            for x in (t.elts if isinstance(t, ast.Tuple) else [t]):
                if isinstance(x, ast.Attribute) and isinstance(x.value, ast.Name) and x.value.id=='self' and x.attr not in names and not private(x.attr): names.append(x.attr)
    return [f'    {o}: Any{note}' for o in names]

def private(name): return name.startswith('_') and not name.endswith('__')

def used(lines):
    "Names that the lines use"
    return {x.id for n in ast.walk(ast.parse('\n'.join(lines))) for x in ([n] if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) else ())}

def imports(module, trees, public, names):
    "Imports of the module that its stub needs, those that it passes on among them"
    for n in ast.walk(trees[module][1]):
        if isinstance(n, ast.ImportFrom):
            for a in n.names:
                nm = a.asname or a.name
                if nm not in names|public or nm in KNOWN: continue
                src = full(n, module, trees)
                if src in trees and home(a.name, src, trees) is None and a.name in brought(trees[src][1]): yield f'import {a.name}'; continue
                yield f'from {home(a.name, src, trees) or src if src in trees else src} import {a.name} as {nm}' if nm in public or a.asname else f'from {home(a.name, src, trees) or src if src in trees else src} import {a.name}'
        elif isinstance(n, ast.Import):
            if got := [ast.unparse(a) for a in n.names if (a.asname or a.name.split('.')[0]) in names]: yield f'import {", ".join(got)}'

def brought(tree):
    "Names of whole modules that a module imports, such as those of an extra, which only it need explain the want of"
    return {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}

def stub(module, trees, patches):
    "The stub of one module"
    path,tree = trees[module]
    public = set(next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0])=='__all__'), []))
    out,have = [],set()
    for n in tree.body:
        if isinstance(n, ast.ClassDef): out.append(klass(n, patches.get((module, n.name), []))); have.add(n.name)
    for n in tree.body:
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and not patched(n) and n.name not in have and not private(n.name): out.append(func(n)); have.add(n.name)
        elif isinstance(n, ast.Assign):
            for t in n.targets:
                for x in (t.elts if isinstance(t, ast.Tuple) else [t]):
                    if isinstance(x, ast.Name) and x.id not in have and not private(x.id) and x.id not in ('__all__', '_all_'): out.append(f'{x.id}: Any'); have.add(x.id)
    head = sorted(set(imports(module, trees, public, used(out))))
    had = {o.split()[-1] for o in head}|{a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    return [*head, *[o for o in out if o.removesuffix(': Any') not in had]]

def stubs(lib=root/NAME):
    "Text of each stub by its path below the package's folder"
    trees = {m:(p, t) for m,p,t in modules(lib)}
    for p,t in trees.values():
        src = p.read_text(encoding='utf-8').splitlines()
        for n in ast.walk(t): n.source = src
    patches,extra = {},{}
    for m,(p,t) in trees.items():
        for n in t.body:
            if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) or not (got := patched(n)): continue
            for cls in got[0].split(' | '):
                if (h := home(cls.strip(), m, trees)) is None: continue
                patches.setdefault((h, cls.strip()), []).append((n, got[1]))
                if h!=m and m not in extra.setdefault(h, []): extra[h].append(m)
    out = {}
    for m,(p,t) in trees.items():
        lines = stub(m, trees, patches)
        known = {a.asname or a.name for l in lines if l.startswith(('import ', 'from ')) for a in ast.parse(l).body[0].names}|{n.name for n in t.body if hasattr(n, 'name')}|KNOWN
        for x in sorted(used(lines)-known):
            src = next((h for f in [m, *extra.get(m, [])] if (h := home(x, f, trees))), None)
            lines.insert(0, f'from {src} import {x}' if src and src!=m else '' if src or x in dir(builtins) else f'{x} = Any')     # a name that checkers need not know
        out[p.relative_to(lib).with_suffix('.pyi')] = '\n'.join([HEAD, *[l for l in lines if l and not (l.endswith(': Any') and l.replace(': Any', ' = Any') in lines)]])+'\n'
    return out

def write(out, lib=root/NAME):
    "Write the stubs into the package's folder below `out`"
    for p,s in stubs(lib).items():
        dest = Path(out)/NAME/p
        dest.parent.mkdir(parents=True, exist_ok=True)
        dest.write_text(s, encoding='utf-8')

if __name__=='__main__': write(sys.argv[1])
