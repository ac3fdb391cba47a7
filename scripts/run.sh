#!/usr/bin/env bash
# Starts web UI and daemon on http://127.0.0.1:3000 over the embedded database, or over DATABASE_URL.
# Ctrl-C stops both; a second start goes on where this one was.
set -euo pipefail
cd "$(dirname "$0")/.."
export DAGSTER_HOME=${DAGSTER_HOME:-$PWD/.dagster_home}
port=${PORT:-3000}
bin=$PWD/.venv/bin

"$bin/ops-pipeline" migrate
"$bin/ops-pipeline" demo --days 7 --if-empty
# Prints what `dagster` needs to know besides: the first metered hour, and where Dagster keeps its own tables.
eval "$("$bin/ops-pipeline" home)"
"$bin/ops-pipeline" check

echo "Starting http://127.0.0.1:$port (Ctrl-C stops it)"
"$bin/dagster-daemon" run --workspace workspace.yaml --log-level warning &
daemon=$!
"$bin/dagster-webserver" --workspace workspace.yaml --host 127.0.0.1 --port "$port" --log-level warning \
    --dagster-log-level warning &
web=$!

# Background processes of a script ignore Ctrl-C: each is told to end, and what they started ends with them.
stop() {
    trap '' INT TERM
    kill -TERM "$daemon" "$web" 2>/dev/null || true
    wait
    exit 0
}
trap stop INT TERM
# When one of the two dies by itself, the other alone would look alive and do half of the work.
wait -n || true
echo "One of web server and daemon ended: stopping." >&2
trap '' INT TERM
kill -TERM "$daemon" "$web" 2>/dev/null || true
wait
exit 1
