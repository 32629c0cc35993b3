"Package metadata, all of it read from settings.ini"
import sys
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

class BuildPy(build_py):
    "Adds the stubs that type checkers need to a wheel"
    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False): return
        sys.path.insert(0, str(root/'tools'))
        import stubs
        stubs.write(self.build_lib)

def reqs(k): return cfg.get(f'{k}requirements', '').split()

py,extras = cfg['min_python'],('postgres', 'procrastinate', 'prometheus', 'otel', 'crypto')
setup(
    name=cfg['lib_name'].replace('_', '-'), version=cfg['version'], description=cfg['description'],
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], url=cfg['git_url'], keywords=cfg['keywords'].split(),
    project_urls={'Documentation': cfg['doc_host']+cfg['doc_baseurl'], 'Source': cfg['git_url']},
    license_expression='Apache-2.0', license_files=['LICENSE'],
    classifiers=['Development Status :: 3 - Alpha', f'Intended Audience :: {cfg["audience"]}', 'Framework :: Jupyter',
        *[f'Programming Language :: Python :: 3{o}' for o in ('', '.11', '.12', '.13', '.14')], 'Operating System :: OS Independent', 'Typing :: Typed', f'Natural Language :: {cfg["language"]}'],
    packages=find_packages(include=[cfg['lib_name'], cfg['lib_name']+'.*']), include_package_data=True, zip_safe=False,
    cmdclass={'build_py':BuildPy}, python_requires=f'>={py}', install_requires=reqs(''),
    extras_require=dict({o:reqs(f'{o}_') for o in extras}, test=reqs('test_')+reqs('postgres_')+reqs('procrastinate_'), docs=reqs('dev_')+reqs('docs_'),
        dev=sum([reqs(f'{o}_') for o in ('test', 'dev', *extras)], ['opentelemetry-sdk>=1.25'])),
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{cfg["lib_name"]}={cfg["lib_path"]}._modidx:d'],
        'pytest11': ['fh_saas.pytest_plugin=fh_saas.pytest_plugin']})
