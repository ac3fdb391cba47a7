#!/usr/bin/env bash
# As run.sh, on the parts of several machines: PostgreSQL for all storage, Redis as broker, two Celery workers that
# execute the runs, the web server on http://127.0.0.1:3000 and the fenced daemon. PostgreSQL and Redis are private ones
# in DAGSTER_HOME unless DATABASE_URL and CELERY_BROKER_URL name others. Ctrl-C stops all; a second start goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
export DAGSTER_HOME=${DAGSTER_HOME:-$PWD/.dagster_home_distributed}
export CELERY_WORKERS=${CELERY_WORKERS:-2}
bin=$PWD/.venv/bin

umask 077
mkdir -p "$DAGSTER_HOME"
DAGSTER_HOME=$(cd "$DAGSTER_HOME" && pwd)
exec 9>"$DAGSTER_HOME/lock"
if ! flock --nonblock 9; then
    echo "Another start still runs on $DAGSTER_HOME: end it first, or set another DAGSTER_HOME." >&2
    exit 1
fi

# Sockets in a folder that nobody else can enter need no password, and no port that may be taken.
servers=$DAGSTER_HOME/servers
# The servers do not hold the lock: one that a killed start left behind is used again.
as_owner() { "${owner[@]}" "$@" 9>&-; }
owner=()

start_postgres() {
    local binaries data=$servers/data
    binaries=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
    [ -n "$binaries" ] || { echo "PostgreSQL is not installed: make run-distributed does that, or name one in DATABASE_URL." >&2; exit 1; }
    mkdir -p "$servers"
    if [ "$(id -u)" = 0 ]; then
        # PostgreSQL refuses to run as root.
        owner=(setpriv --reuid=postgres --regid=postgres --clear-groups)
        chown postgres: "$servers"
        chmod o+x "$DAGSTER_HOME"
        if ! "${owner[@]}" test -w "$servers"; then
            echo "PostgreSQL does not run as root, and its user cannot enter $DAGSTER_HOME: set DAGSTER_HOME to a" \
                "folder that it can enter, such as /var/lib/ops_pipeline, or name a server in DATABASE_URL." >&2
            exit 1
        fi
    fi
    if [ ! -s "$data/PG_VERSION" ]; then
        (cd / && as_owner "$binaries/initdb" -D "$data" -U postgres -A trust >"$DAGSTER_HOME/initdb.log")
    fi
    pg_ctl=("$binaries/pg_ctl" -D "$data" -s -w)
    (cd / && as_owner "${pg_ctl[@]}" status >/dev/null 2>&1) ||
        (cd / && as_owner "${pg_ctl[@]}" -l "$servers/postgres.log" \
            -o "-k '$servers' -c listen_addresses='' -c max_connections=200" start)
    export DATABASE_URL="postgresql+psycopg://postgres@/postgres?host=$servers"
}

start_redis() {
    local socket=$DAGSTER_HOME/redis.sock
    redis=(redis-cli -s "$socket")
    if [ "$("${redis[@]}" ping 2>/dev/null)" != PONG ]; then
        # On disk at once: what was sent to the workers outlives a restart.
        redis-server --port 0 --unixsocket "$socket" --unixsocketperm 700 --dir "$DAGSTER_HOME" --appendonly yes \
            --daemonize yes --logfile "$DAGSTER_HOME/redis.log" --pidfile "$DAGSTER_HOME/redis.pid" >/dev/null 9>&-
        for _ in $(seq 100); do
            [ "$("${redis[@]}" ping 2>/dev/null)" != PONG ] || break
            sleep 0.1
        done
    fi
    export CELERY_BROKER_URL="redis+socket://$socket"
}

pg_ctl=() redis=() deployment=
stop_all() {
    trap '' INT TERM
    [ -z "$deployment" ] || { kill -TERM "$deployment" 2>/dev/null || true; wait "$deployment" || true; }
    [ ${#redis[@]} -eq 0 ] || "${redis[@]}" shutdown 2>/dev/null || true
    [ ${#pg_ctl[@]} -eq 0 ] || (cd / && as_owner "${pg_ctl[@]}" -m fast stop) || true
}
trap stop_all EXIT
trap 'exit 0' INT TERM

[ -n "${DATABASE_URL:-}" ] || start_postgres
[ -n "${CELERY_BROKER_URL:-}" ] || start_redis
# Checked here, since with an embedded database DAGSTER_HOME is prepared for one machine.
if [[ $DATABASE_URL != postgresql* ]]; then
    echo "DATABASE_URL names no PostgreSQL: an embedded database is for one machine. Unset it, or name a server." >&2
    exit 1
fi
"$bin/ops-pipeline" migrate
"$bin/ops-pipeline" demo --days 7 --if-empty
"$bin/ops-pipeline" demo-machines
# shellcheck disable=SC2016
"$bin/ops-pipeline" with-demo-redis "$bin/ops-pipeline" with-demo-analyzer \
    bash -euo pipefail -c '"$1" with-home "$1" check --brief || echo "Starting all the same: the jobs that need what failed will say so." >&2
        exec "$1" with-home scripts/serve.sh' run.sh "$bin/ops-pipeline" &
deployment=$!
wait "$deployment"
