"How the documentation shows a symbol (`renderer` in settings.ini); needs nbdev, and nothing else here imports it"
import inspect, re
from dataclasses import is_dataclass
from importlib import import_module
from unittest.mock import patch

from fastcore.docments import docments
from nbdev.doclinks import NbdevLookup
from nbdev.showdoc import BasicMarkdownRenderer

def tick(s): return f'`{s}`' if s else ''

def is_record(sym): return isinstance(sym, type) and (is_dataclass(sym) or hasattr(sym, '__struct_fields__'))

def exported(sym):
    "The class of the package in place of the notebook's own, whose source (and so its docments) Python cannot find"
    found = NbdevLookup()[sym.__name__] if is_record(sym) else None
    if not isinstance(found, tuple): return sym
    return getattr(import_module(found[1].removesuffix('.py').replace('/', '.')), sym.__name__)

class Table(BasicMarkdownRenderer):
    "How `show_doc` shows a symbol: nbdev's way, with the docments in a table (settings.ini: `renderer`)"
    def __init__(self, sym, name=None, title_level=3):
        kw = dict(sym=exported(sym), name=name, title_level=title_level)
        try: super().__init__(**kw)
        except NameError: # an annotation such as 'Database', whose module is imported only when needed
            with patch('fastcore.docments.signature', side_effect=ValueError): super().__init__(**kw)
        self.fn = self.nm if self.sym is not sym and is_record(self.sym) else self.fn # for the source link
        self.notes = {k:v for k,v in docments(self.sym, args_kwargs=True).items() if v}
        for p in self.dm.dm.values(): p.docment = None # else the signature repeats them

    def _row(self, nm, p):
        stars = {inspect.Parameter.VAR_POSITIONAL:'*', inspect.Parameter.VAR_KEYWORD:'**'}.get(p.get('kind'), '')
        anno = '' if p.anno in (None, inspect._empty) else re.sub(r'[\w.]+\.(?=\w)', '', inspect.formatannotation(p.anno).strip("'"))
        default = '' if p.default is inspect._empty else getattr(p.default, '__name__', repr(p.default))
        note = '`'.join(s if i%2 else s.replace('|', r'\|') for i,s in enumerate(' '.join(self.notes.get(nm, '').split()).split('`')))
        return f'| {"**Returns**" if nm=="return" else tick(stars+nm)} | {tick(anno)} | {tick(default)} | {note} |'

    def _repr_markdown_(self):
        rows = [self._row(nm, p) for nm,p in self.dm.dm.items() if nm!='return' or nm in self.notes]
        tbl = ['| Parameter | Type | Default | Meaning |', '|---|---|---|---|', *rows]
        return super()._repr_markdown_() + ('\n\n' + '\n'.join(tbl) + '\n' if self.notes else '')
