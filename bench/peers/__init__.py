"One file for each peer: its app, which its worker imports, and `Peer`, which says how to measure it"
import asyncio, os
from importlib import import_module
from urllib.parse import urlsplit
from bench.systems import System

class Served(System):
    "A peer that needs a server"
    also,loop = (),None                     # what else must be installed; the one event loop of an async client
    def missing(self):
        if why := super().missing(): return why
        for o in self.also:
            try: import_module(o)           # there but not usable, as psycopg is without libpq, counts too
            except ImportError as e: return f'{o}: {e}'
    @property
    def url(self): return os.environ[self.server]
    def wait(self, o):
        self.loop = self.loop or asyncio.new_event_loop()
        return self.loop.run_until_complete(o)

class OnRedis(Served):
    "Its Redis database, the one that the URL names, is emptied before each measure"
    server,also = 'BENCH_REDIS',('redis',)
    def reset(self):
        import redis
        with redis.Redis.from_url(self.url) as r: r.flushdb()

class OnPostgres(Served):
    "It has a database of its own on that server, dropped and made anew before each measure"
    server,also = 'BENCH_PG',('psycopg',)
    @property
    def db(self): return f'bench_{self.name.lower()}'
    @property
    def url(self): return urlsplit(super().url)._replace(path='/'+self.db).geturl()
    def sql(self, *qs, url=None):
        import psycopg
        with psycopg.connect(url or self.url, autocommit=True) as c:
            for q in qs: r = c.execute(q)
            return r.fetchone() if r.description else None
    def reset(self): self.sql(f'drop database if exists {self.db} with (force)', f'create database {self.db}', url=super().url)
    def size(self): return self.sql('select pg_database_size(current_database())')[0]
