"Package metadata, all of it read from settings.ini"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

def reqs(k): return cfg.get(f'{k}requirements', '').split()

py = cfg['min_python']
setup(
    name=cfg['lib_name'].replace('_', '-'), version=cfg['version'], description=cfg['description'],
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], url=cfg['git_url'], keywords=cfg['keywords'].split(),
    project_urls={'Documentation': cfg['doc_host']+cfg['doc_baseurl'], 'Source': cfg['git_url']},
    license='Apache-2.0', license_files=['LICENSE'],
    classifiers=['Development Status :: 3 - Alpha', f'Intended Audience :: {cfg["audience"]}', 'Framework :: Jupyter',
        'Programming Language :: Python :: 3', f'Natural Language :: {cfg["language"]}'],
    packages=find_packages(include=[cfg['lib_name'], cfg['lib_name']+'.*']), include_package_data=True, zip_safe=False,
    python_requires=f'>={py}', install_requires=reqs(''),
    extras_require=dict(test=reqs('test_')+reqs('postgres_')+reqs('procrastinate_'), dev=reqs('test_')+reqs('postgres_')+reqs('procrastinate_')+reqs('dev_')+reqs('prometheus_')+reqs('otel_')+['opentelemetry-sdk>=1.25'], docs=reqs('dev_')+reqs('docs_'),
        postgres=reqs('postgres_'), procrastinate=reqs('postgres_')+reqs('procrastinate_'), prometheus=reqs('prometheus_'), otel=reqs('otel_')),
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{cfg["lib_name"]}={cfg["lib_path"]}._modidx:d'],
        'pytest11': ['fh_saas.pytest_plugin=fh_saas.pytest_plugin']})
