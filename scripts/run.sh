#!/usr/bin/env bash
# Starts web UI and daemon on http://127.0.0.1:3000 over the embedded database, or over DATABASE_URL; a private Redis
# with demo checkpoints, when none is named; and the static analyzer with applications and tasks, when there are none.
# Ctrl-C stops all; a second start goes on where this one was.
set -euo pipefail
cd "$(dirname "$0")/.."
export DAGSTER_HOME=${DAGSTER_HOME:-$PWD/.dagster_home}
bin=$PWD/.venv/bin

mkdir -p "$DAGSTER_HOME"
# Web server and daemon hold this lock as long as they live: two daemons would fire every schedule twice.
exec 9>"$DAGSTER_HOME/lock"
if ! flock --nonblock 9; then
    echo "Another start still runs on $DAGSTER_HOME: end it first, or set another DAGSTER_HOME." >&2
    exit 1
fi
"$bin/ops-pipeline" migrate
"$bin/ops-pipeline" demo --days 7 --if-empty
"$bin/ops-pipeline" demo-machines
# One process from here on, which becomes each command in turn: the demo's servers end with it, however it ends.
# shellcheck disable=SC2016
exec "$bin/ops-pipeline" with-demo-redis "$bin/ops-pipeline" with-demo-analyzer \
    bash -euo pipefail -c '"$1" with-home "$1" check --brief || echo "Starting all the same: the jobs that need what failed will say so." >&2
        exec "$1" with-home scripts/serve.sh' run.sh "$bin/ops-pipeline"
