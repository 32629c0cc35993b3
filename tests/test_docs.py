"The site as tools/docs.py builds it: every page, heading and anchor that is promised, links that work, nothing loaded from elsewhere"
import json, re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

pytest.importorskip('nbdev', reason='nbdev 2 is only in the pinned environment (fastcore 1), which runs these tests')
pytest.importorskip('zensical', reason="the site's generator comes with the extra `dev`")
import yaml

root = Path(__file__).resolve().parent.parent

# What SPEC.md's page shows, in its order: level and text of each heading, emoji aside, and its anchor
headings = [(2, 'Overview', 'overview'), (2, 'Architecture', 'architecture'), (2, 'Quick Reference', 'quick-reference'),
    (3, 'Job Status Flow', 'job-status-flow'), (3, 'Usage Pattern', 'usage-pattern'), (2, 'TenantJob Model', 'tenantjob-model'),
    (3, 'TenantJob', 'tenantjob'), (2, 'BackgroundTaskManager', 'backgroundtaskmanager'), (3, 'BackgroundTaskManager', 'backgroundtaskmanager-1'),
    (3, 'BackgroundTaskManager.list_jobs', 'backgroundtaskmanager.list_jobs'),
    (3, 'BackgroundTaskManager.get_job', 'backgroundtaskmanager.get_job'), (3, 'BackgroundTaskManager.submit', 'backgroundtaskmanager.submit')]

class Page(HTMLParser):
    "Identifiers, links, loaded files and headings of a page"
    def __init__(self, path):
        super().__init__()
        self.ids,self.links,self.loads,self.heads,self.head = set(),[],[],[],None
        self.html = path.read_text(encoding='utf-8')
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        if tag in ('script', 'img', 'iframe', 'source', 'embed') and a.get('src'): self.loads.append(a['src'])
        if tag=='link' and a.get('rel') not in ('canonical', 'next', 'prev'): self.loads.append(a['href'])
        if re.fullmatch('h[1-6]', tag): self.head = [int(tag[1]), '', a.get('id')]

    def handle_data(self, data):
        if self.head: self.head[1] += data

    def handle_endtag(self, tag):
        if self.head and re.fullmatch('h[1-6]', tag):
            lvl,text,id = self.head
            self.heads.append((lvl, re.sub(r'^\W+|[\W¶]+$', '', text), id))
            self.head = None

def html_name(nb): return re.sub(r'(^|/)\d+[a-zA-Z0-9]*_([^/]*)$', r'\1\2', nb.removesuffix('.ipynb'))+'.html'

def notebooks(contents):
    for o in contents: yield from notebooks(o['contents']) if isinstance(o, dict) and 'contents' in o else [o['href'] if isinstance(o, dict) else o]

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('docs')/'site'
    r = subprocess.run([sys.executable, 'tools/docs.py', 'build', '--out', str(out)], cwd=root, capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr
    return out

@pytest.fixture(scope='module')
def pages(site): return {str(p.relative_to(site)):Page(p) for p in site.rglob('*.html') if p.name!='404.html'}

def test_every_page_of_the_sidebar(pages):
    side = yaml.safe_load((root/'nbs/sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    want = {html_name(nb) for nb in notebooks(side)}
    assert {'index.html', 'utils_bgtsk.html'} <= want == set(pages)
    for nm,p in pages.items():
        linked = {urlsplit(urljoin('/'+nm, l)).path.lstrip('/') for l in p.links if not urlsplit(l).scheme}
        assert want-{nm} <= linked, f'navigation of {nm}'

def test_headings_and_anchors_of_the_spec(pages):
    got = pages['utils_bgtsk.html'].heads
    assert 'Background Tasks' in [t for l,t,_ in got if l==1]
    missing = [h for h in headings if h not in got]
    assert not missing, f'missing {missing} of {got}'
    assert [h for h in got if h in headings[:7]]==headings[:7], 'the order of the sections'

def test_what_the_sections_show(pages):
    html = pages['utils_bgtsk.html'].html
    for col in 'id job_type status payload result error_log retry_count max_retries'.split(): assert f'<code>{col}</code>' in html
    for nm,arg in [('list_jobs', 'limit'), ('get_job', 'job_id'), ('submit', 'max_retries')]:
        sec = html[html.index(f'id="backgroundtaskmanager.{nm}"'):]
        sec = sec[:sec.find('<h3', 9)]
        assert re.search(rf'>{nm}</span>', sec), f'signature of {nm}'
        assert '<p><em>' in sec, f'docstring of {nm}'
        assert re.search(rf'<td><code>{arg}</code></td>\s*<td>.*?</td>\s*<td>.*?</td>\s*<td>\S.*?</td>', sec), f'parameter table of {nm}'
    assert len(re.findall(r'/blob/main/fh_saas/utils_bgtsk\.py#L\d+', html))>=5
    assert '#LNone' not in html

def test_links_resolve(site, pages):
    wrong = []
    for nm,p in pages.items():
        for ref in p.links+p.loads:
            u = urlsplit(ref)
            if u.scheme or u.netloc: continue
            dest = urlsplit(urljoin('/'+nm, u.path)).path.lstrip('/') if u.path else nm
            if not (site/unquote(dest)).exists(): wrong.append((nm, ref))
            elif u.fragment and dest in pages and unquote(u.fragment) not in pages[dest].ids: wrong.append((nm, ref))
    assert not wrong

def test_nothing_from_elsewhere(site, pages):
    for nm,p in pages.items(): assert not [o for o in p.loads if re.match(r'(https?:)?//', o)], nm
    for f in site.rglob('*.css'): assert not re.findall(r'(?:url\(|@import )["\']?(?:https?:)?//[^)"\']*', f.read_text(encoding='utf-8')), f
    base = 'https://abhisheksreesaila.github.io/fh-saas'
    assert not [l for p in pages.values() for l in p.links if l.startswith(base+'/') and l.endswith('.html')], 'links leave the site'

def test_search(site):
    items = json.loads((site/'search.json').read_text(encoding='utf-8'))['items']
    found = [o['location'] for o in items if 'submit' in (o['title']+o['text']).lower()]
    assert 'utils_bgtsk.html#backgroundtaskmanager.submit' in found

def test_llms(site, pages):
    "llms.txt lists every page with what it is about and where it is as Markdown; llms-ctx.txt holds what a user reads"
    s,ctx = [(site/o).read_text(encoding='utf-8') for o in ('llms.txt', 'llms-ctx.txt')]
    got = re.findall(r'(?m)^- \[.+\]\(https://abhisheksreesaila.github.io/fh-saas/(.+)\.md\): \S', s)
    assert {o+'.html' for o in got}==set(pages) and s.startswith('# fh_saas\n\n> ')
    assert all((site/f'{o}.md').read_text(encoding='utf-8').startswith('# ') for o in got)
    assert ctx.count('<doc ')==ctx.count('</doc>')>=15 and 'Ten minutes to a durable job' in ctx and len(ctx)<400_000
