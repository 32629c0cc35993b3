#!/bin/bash
# The servers that the peers need, private to the benchmark: PostgreSQL 15 on 127.0.0.1:55432, Redis on 127.0.0.1:56379.
#   eval "$(bench/servers.sh start)"     starts what is installed here and exports BENCH_PG and BENCH_REDIS
#   bench/servers.sh stop                stops these two, by their pid files
# Only the export lines go to stdout. Data stays in ${BENCH_DIR:-/tmp/fh_saas_bench}/srv; the user postgres must be able to enter that folder.
set -eu
exec 3>&1 1>&2
bin=/usr/lib/postgresql/15/bin
mkdir -p "${BENCH_DIR:-/tmp/fh_saas_bench}/srv"
cd "${BENCH_DIR:-/tmp/fh_saas_bench}/srv"
srv=$(pwd -P) data=$srv/pg/data rpid=$srv/redis/pid

as_pg() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }      # PostgreSQL refuses to run as root
pg_up() { [ -d "$data" ] && as_pg $bin/pg_ctl -D "$data" status >/dev/null; }
redis_up() { [ -s "$rpid" ] && [ "$(cat /proc/"$(cat "$rpid")"/comm 2>/dev/null)" = redis-server ]; }

start_pg() {
  if [ ! -d "$data" ]; then
    mkdir -p pg; chmod 755 . pg
    if [ "$(id -u)" = 0 ]; then chown postgres pg; fi
    as_pg $bin/initdb -D "$data" -U postgres -A trust -E UTF8 --no-locale >/dev/null
    printf '%s\n' "listen_addresses = '127.0.0.1'" 'port = 55432' "unix_socket_directories = ''" 'max_connections = 200' \
      'shared_buffers = 1GB' 'max_wal_size = 4GB' | as_pg tee -a "$data/postgresql.conf" >/dev/null      # fsync and synchronous_commit stay on
  fi
  pg_up || as_pg $bin/pg_ctl -D "$data" -l "$srv/pg/log" -w start >/dev/null || { echo "PostgreSQL did not start: see $srv/pg/log"; exit 1; }
}

start_redis() {
  redis_up && return
  mkdir -p redis; rm -f "$rpid"
  redis-server --port 56379 --bind 127.0.0.1 --dir "$srv/redis" --save '' --appendonly yes --appendfsync everysec \
    --daemonize yes --pidfile "$rpid" --logfile "$srv/redis/log" >/dev/null
  for _ in $(seq 100); do
    if redis_up && [ "$(redis-cli -p 56379 ping 2>/dev/null)" = PONG ]; then return; fi
    sleep .1
  done
  echo "Redis did not start: see $srv/redis/log"; exit 1
}

case ${1:-} in
start)
  if [ -x $bin/postgres ]; then start_pg 3>&-; echo 'export BENCH_PG=postgresql://postgres@127.0.0.1:55432' >&3; else echo "no PostgreSQL in $bin"; fi
  if command -v redis-server >/dev/null; then start_redis 3>&-; echo 'export BENCH_REDIS=redis://127.0.0.1:56379/0' >&3; else echo 'no redis-server'; fi;;
stop)
  if pg_up; then as_pg $bin/pg_ctl -D "$data" -m fast -w stop >/dev/null; fi
  if redis_up; then
    p=$(cat "$rpid"); kill "$p"
    while [ -e "/proc/$p" ]; do sleep .1; done
  fi;;
*) echo 'usage: servers.sh start|stop'; exit 2;;
esac
