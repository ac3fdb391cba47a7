#!/usr/bin/env bash
# Web server and daemon of a prepared DAGSTER_HOME; ends both when one of them ends or on Ctrl-C.
set -euo pipefail
port=${PORT:-3000}
bin=$PWD/.venv/bin

"$bin/python" -m ops_pipeline.defs.interrupted
format=colored
[ "${LOG_FORMAT:-text}" != json ] || format=json
echo "Starting http://127.0.0.1:$port (Ctrl-C stops it)"
"$bin/ops-pipeline" daemon --workspace workspace.yaml --log-level warning &
daemon=$!
"$bin/dagster-webserver" --workspace workspace.yaml --host 127.0.0.1 --port "$port" --log-level warning \
    --dagster-log-level warning --log-format "$format" &
web=$!

# Background processes of a script ignore Ctrl-C: each is told to end, and what they started ends with them.
stop() {
    trap '' INT TERM
    kill -TERM "$daemon" "$web" 2>/dev/null || true
    wait
    exit "$1"
}
trap 'stop 0' INT TERM
# When one of the two dies by itself, the other alone would look alive and do half of the work.
wait -n || true
echo "One of web server and daemon ended: stopping." >&2
stop 1
