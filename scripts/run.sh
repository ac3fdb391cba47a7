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
# A process group of their own, so that one signal ends web server, daemon and all that they started.
exec "$bin/dagster" dev --workspace workspace.yaml --host 127.0.0.1 --port "$port"
