"""Make README.md and the documentation site from nbdev's own processed notebooks, without Quarto.

    python tools/docs.py readme [--check]      write README.md from nbs/index.ipynb, or say whether it is in step
    python tools/docs.py build [--out _site]   build the site; fails on a broken link, anchor or sidebar"""
import argparse, os, re, shutil, subprocess, sys, yaml
from html import escape
from html.parser import HTMLParser
from os.path import normpath, relpath
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from execnb.nbio import read_nb
from fastcore.parallel import parallel
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup, _nbpath2html as html_path, nbglob
from nbdev.processors import FilterDefaults
from nbdev.serve_drv import main as proc_nb

cfg = get_config(path=Path(__file__).resolve().parent.parent)
sys.path.append(str(cfg.config_path/'tests'))     # what hidden cells import; nbdev runs the cells of imports

# --- a processed notebook as Markdown

def fence(s, lang=''):
    ticks = '`'*max([3] + [len(o)+1 for o in re.findall('`{3,}', s)])
    return f'{ticks}{lang}\n{s.rstrip()}\n{ticks}'

def text(s): return re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', ''.join(s))

def out_md(o, asis=False):
    "One saved output as Markdown, its richest form"
    if o.output_type=='stream': return text(o.text) if asis else fence(text(o.text), 'text')
    if o.output_type=='error': return fence(text('\n'.join(o.traceback)), 'text')
    data = o.data
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    for k in ('text/html', 'image/svg+xml'):
        if k in data: return f'<div>\n{"".join(data[k]).strip()}\n</div>'
    for k in ('image/png', 'image/jpeg'):
        if k in data: return f'<img alt="" src="data:{k};base64,{"".join("".join(data[k]).split())}">'
    return fence(text(data['text/plain']), 'text') if 'text/plain' in data else ''

def cell_md(c):
    "A processed cell as Markdown, by the Quarto options that nbdev leaves in it"
    if c.cell_type!='code': return '' if c.cell_type=='raw' and c.source.startswith('---') else c.source
    head,src = re.match(r'((?:#\|.*\n?)*)(.*)', c.source.lstrip('\n'), re.S).groups()
    opts,src = dict(re.findall(r'^#\| *([\w-]+): *(.*?) *$', head, re.M)), src.strip('\n')
    if opts.get('include')=='false': return ''
    parts = [fence(src, c.metadata.get('language', 'python'))] if src and opts.get('echo')!='false' else []
    if opts.get('output')!='false':
        parts += [out_md(o, opts.get('output')=='asis') for o in c.get('outputs', [])]
    return '\n\n'.join(o for o in parts if o.strip())

def page_md(path):
    "Title and Markdown text of the processed notebook at `path`"
    cells = read_nb(path).cells
    fm = yaml.safe_load(cells[0].source.strip().strip('-')) if cells and cells[0].cell_type=='raw' else {}
    title = fm.get('title', path.stem)
    head = [f'# {title}'] + ([f'> {fm["description"]}'] if 'description' in fm else [])
    return title, '\n\n'.join(head + [s.strip('\n') for s in map(cell_md, cells) if s.strip()]) + '\n'

def processed(nbs, dest):
    "Run nbdev's processors over notebooks `nbs`, each in a process of its own; their results are below `dest`"
    if 'fh_saas' not in NbdevLookup().entries: sys.exit("fh_saas is not installed here: pip install -e '.[dev]'")
    jobs = [(cfg.nbs_path/nb, Path(dest)/nb, FilterDefaults) for nb in nbs]
    for _,d,_ in jobs: d.parent.mkdir(parents=True, exist_ok=True)
    parallel(proc_nb, jobs, n_workers=min(len(jobs), os.cpu_count() or 1), method='spawn')
    return {nb:page_md(d) for nb,(_,d,_) in zip(nbs, jobs)}

def readme(check=False):
    "Write README.md, or with `check` exit with 1 if it is not in step"
    with TemporaryDirectory() as tmp: _,md = processed([cfg.readme_nb], tmp)[cfg.readme_nb]
    md = md.replace('](images/', f']({cfg.nbs_path.name}/images/')     # README.md lies one folder up
    f = cfg.config_path/'README.md'
    if not check: f.write_text(md, encoding='utf-8')
    elif not f.exists() or f.read_text(encoding='utf-8')!=md: sys.exit(f'README.md is not in step with {cfg.readme_nb}: python tools/docs.py readme')

# --- the site

DUNDER,NAME,BARE = re.compile(r'(?<=\.)__(\w+)__'),r'\1',r'\_\_\1\_\_'     # `Tenants.__len__`, whose underscores would be bold print

def anchors(md):
    "Give each heading below the title, code aside, the identifier that Quarto gives it"
    title,*lines = md.splitlines()
    seen,fenced,res = {},'',[title]
    for l in lines:
        f = re.match(r' {0,3}(`{3,}|~{3,})', l)
        if f and not fenced: fenced = f[1]
        elif f and l.strip().startswith(fenced) and not l.strip().strip(fenced[0]): fenced = ''
        h = None if fenced else re.match(r'#{1,6} +(.*?)[ #]*$', l)
        if h and not re.search(r'\{.*#.*\}$', l):
            plain = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', h[1])
            nm = re.sub(r'^[^a-z]+', '', re.sub(r'\s', '-', re.sub(r'[^\w\s.-]', '', plain).strip().lower())) or 'section'
            n = seen[nm] = seen.get(nm, -1)+1
            l = f'{DUNDER.sub(BARE, l)} {{#{DUNDER.sub(NAME, nm)}{f"-{n}" if n else ""}}}'
        res.append(l)
    return '\n'.join(res)+'\n'

def local_links(md, page):
    "Turn links to the published site, and to notebooks, into links between the pages built here"
    base = re.escape(f'{cfg.doc_host}{cfg.doc_baseurl}')
    md = re.sub(rf'{base}/?([\w./-]*\.html)?(?=[)"#>\s])', lambda m: relpath(m[1] or 'index.html', page.parent), md)
    md = re.sub(r'\]\([^)\s]*#[^)\s]*\)', lambda m: DUNDER.sub(NAME, m[0]), md)
    return re.sub(r'(?<=\]\()([^):\s]+\.ipynb)', lambda m: str(html_path(Path(m[1]))), md)

def nav(contents, pages):
    "The generator's navigation from the sidebar's `contents`"
    for o in contents:
        if isinstance(o, dict) and 'section' in o: yield {o['section']: list(nav(o['contents'], pages))}
        else:
            nb,title = (o['href'],o.get('text')) if isinstance(o, dict) else (o,None)
            yield {title or pages[nb][0]: str(html_path(Path(nb)).with_suffix('.md'))}

def listed(contents):
    "The notebooks that the sidebar's `contents` name"
    for o in contents:
        if isinstance(o, dict) and 'section' in o: yield from listed(o['contents'])
        else: yield o['href'] if isinstance(o, dict) else o

class Links(HTMLParser):
    "Identifiers, links and loaded files of a page"
    def __init__(self, s): super().__init__(); self.ids,self.refs = set(),[]; self.feed(s)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a.get('id'), a.get('name')}
        self.refs += [(tag, a[k]) for k in ('href', 'src') if a.get(k)]

def broken(site):
    "What is wrong with the links of the pages in folder `site`"
    pages = {str(f.relative_to(site)):Links(f.read_text(encoding='utf-8')) for f in site.rglob('*.html') if f.name!='404.html'}
    for p,links in pages.items():
        for tag,ref in links.refs:
            u = urlsplit(ref)
            if u.scheme=='data' or (tag=='a' and (u.scheme or u.netloc)): continue
            dest = normpath(Path(p).parent/unquote(u.path)) if u.path else p
            if u.scheme or u.netloc: yield f'{p}: loads {ref}'
            elif dest!='.' and not (site/dest).exists(): yield f'{p}: no such page: {ref}'
            elif u.fragment and dest in pages and unquote(u.fragment) not in pages[dest].ids|{'__skip', 'top'}: yield f'{p}: no such anchor: {ref}'

def sections(contents):
    "(name, notebooks) for each section of the sidebar's `contents`"
    for o in contents: yield o['section'], list(listed(o['contents']))

def summary(md): return (re.search(r'(?m)^> (.+)$', md) or [None, ''])[1]

def llms(side, pages, out):
    "Write llms.txt, a list of all pages for language models, llms-ctx.txt, which holds the text of tutorials, how-tos and essays, and each page as Markdown"
    head = f'# {cfg.title}\n\n> {cfg.description}\n'
    lines,docs = [head],[f'<project title="{cfg.title}" summary="{escape(cfg.description)}">']
    for name,nbs in sections(side):
        lines.append(f'## {name}\n\n'+'\n'.join(f'- [{pages[nb][0]}]({cfg.doc_host}{cfg.doc_baseurl}/{md_path(nb)}): {summary(pages[nb][1])}' for nb in nbs)+'\n')
        if name in CTX: docs += [f'<doc title="{escape(pages[nb][0])}">\n{pages[nb][1]}</doc>' for nb in nbs]
    (out/'llms.txt').write_text('\n'.join(lines), encoding='utf-8')
    (out/'llms-ctx.txt').write_text('\n'.join([*docs, '</project>\n']), encoding='utf-8')
    for nb,(_,md) in pages.items(): (out/md_path(nb)).write_text(md, encoding='utf-8')

CTX = 'Start','How to','How it works'
def md_path(nb): return html_path(Path(nb)).with_suffix('.md').as_posix()

def build(out):
    "Build the site into folder `out`"
    side = yaml.safe_load((cfg.nbs_path/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    nbs = sorted(str(Path(f).relative_to(cfg.nbs_path)) for f in nbglob(cfg.nbs_path))
    if lost := sorted(set(nbs)-set(listed(side))): sys.exit(f'in no section of sidebar.yml: {", ".join(lost)}')
    if gone := sorted(set(listed(side))-set(nbs)): sys.exit(f'in sidebar.yml, but not in {cfg.nbs_path.name}: {", ".join(gone)}')
    with TemporaryDirectory() as tmp:
        tmp,docs = Path(tmp), Path(tmp)/'docs'
        pages = processed(nbs, tmp/'nbs')
        shutil.copytree(cfg.nbs_path, docs, ignore=shutil.ignore_patterns('*.ipynb', '*.yml', '.*', '_*'))
        for nb,(_,md) in pages.items():
            page = html_path(Path(nb)).with_suffix('.md')
            (docs/page).write_text(anchors(local_links(md, page)), encoding='utf-8')
        conf = dict(site_name=cfg.title, site_description=cfg.description, use_directory_urls=False, nav=list(nav(side, pages)),
            theme=dict(font=False, features=['navigation.sections', 'navigation.footer', 'navigation.top', 'content.code.copy', 'search.highlight']),
            extra=dict(generator=False), extra_css=['styles.css'], markdown_extensions=['attr_list', 'def_list', 'footnotes', 'md_in_html',
                'tables', dict(toc=dict(permalink=True)), {'pymdownx.highlight': dict(pygments_lang_class=True)}, 'pymdownx.superfences'])
        (tmp/'mkdocs.yml').write_text(yaml.safe_dump(conf, sort_keys=False, allow_unicode=True), encoding='utf-8')
        r = subprocess.run([sys.executable, '-m', 'zensical', 'build', '-cs', '-f', str(tmp/'mkdocs.yml')], cwd=tmp, capture_output=True, text=True)
        if r.returncode: sys.exit(r.stdout+r.stderr)
        llms(side, pages, tmp/'site')
        if bad := list(broken(tmp/'site')): sys.exit('\n'.join(bad))
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp/'site', out)
    print(f'{len(nbs)} pages in {out}')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(required=True)
    o = sub.add_parser('readme', help=readme.__doc__); o.set_defaults(func=readme); o.add_argument('--check', action='store_true')
    o = sub.add_parser('build', help=build.__doc__); o.set_defaults(func=build); o.add_argument('--out', default='_site', type=Path)
    kw = vars(p.parse_args())
    if 'out' in kw: kw['out'] = kw['out'].resolve()
    os.chdir(cfg.config_path) # nbdev looks for settings.ini from here
    kw.pop('func')(**kw)

if __name__=='__main__': main()
