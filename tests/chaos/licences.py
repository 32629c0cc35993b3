"The licences of what is installed with the package, as what is installed here says of itself"
import configparser, re
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from util import root

PERMISSIVE = re.compile(r'\b(MIT|BSD|Apache|PSF|Python Software Foundation|ISC|MPL|Mozilla|any-OSI|Unlicense)', re.I)

def asked(extra=None):
    "What settings.ini asks for; what it asks for in an extra"
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini')
    return re.sub(r'\s+(?=[A-Za-z])', '\n', cfg['DEFAULT'][f'{extra}_requirements' if extra else 'requirements']).splitlines()

def licence(d):
    m = d.metadata
    of = [o.split(' :: ')[-1] for o in m.get_all('Classifier', []) if o.startswith('License ::') and not o.endswith('OSI Approved')]
    return m.get('License-Expression') or (of or (m.get('License') or 'unknown').splitlines())[0]

def licences(extra=None):
    "Licences by package, of all that comes with it; None for one that is not installed here"
    todo,got = [Requirement(o) for o in asked(extra)],{}
    while todo:
        r = todo.pop()
        n = r.name.lower().replace('_', '-')
        if n in got: continue
        try: d = distribution(n)
        except PackageNotFoundError: got[n] = None; continue
        got[n] = licence(d)
        todo += [q for q in map(Requirement, d.requires or []) if not q.marker or any(q.marker.evaluate(dict(extra=e)) for e in ('', *r.extras))]
    return dict(sorted(got.items()))
