#!/usr/bin/env bash
# Web server and daemon of a prepared DAGSTER_HOME, and CELERY_WORKERS workers (none unless it is set) where runs go to
# such; ends all when web server or daemon ends, or on Ctrl-C. A worker that dies is not missed: another one goes on.
set -euo pipefail
port=${PORT:-3000}
bin=$PWD/.venv/bin

if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "Port $port of 127.0.0.1 is taken: end what listens there, or set another one, such as PORT=3010." >&2
    exit 1
fi
"$bin/python" -m ops_pipeline.defs.interrupted
format=colored
[ "${LOG_FORMAT:-text}" != json ] || format=json
echo "Starting http://127.0.0.1:$port (Ctrl-C stops it)"
# Each in a session of its own: Ctrl-C would end their code servers before them, and ticks under way would fail.
setsid "$bin/ops-pipeline" daemon --workspace workspace.yaml --log-level warning &
daemon=$!
setsid "$bin/dagster-webserver" --workspace workspace.yaml --host 127.0.0.1 --port "$port" --log-level warning \
    --dagster-log-level warning --log-format "$format" &
web=$!
workers=()
for number in $(seq "${CELERY_WORKERS:-0}"); do
    "$bin/celery" --quiet --app ops_pipeline.defs.distributed.app worker --hostname "worker-$number@%h" --queues dagster \
        --concurrency 8 --without-gossip --without-mingle --loglevel warning &
    workers+=($!)
done

# Each is told to end, and what they started ends with them.
stop() {
    trap '' INT TERM HUP
    kill -TERM "$daemon" "$web" 2>/dev/null || true
    # SIGTERM would let them wait for the end of their runs, which may be an hour.
    [ ${#workers[@]} -eq 0 ] || kill -QUIT "${workers[@]}" 2>/dev/null || true
    wait
    exit "$1"
}
trap 'stop 0' INT TERM HUP
# When one of the two dies by itself, the other alone would look alive and do half of the work.
wait -n "$daemon" "$web" || true
echo "One of web server and daemon ended: stopping." >&2
stop 1
