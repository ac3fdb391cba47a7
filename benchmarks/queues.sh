#!/usr/bin/env bash
# Makes .venv-queues, where the queues live that benchmarks/analysis.py compares with; may be repeated.
set -euo pipefail
cd "$(dirname "$0")/.."
made=.venv-queues/.installed
if [ ! -e "$made" ] || [ benchmarks/queue-requirements.txt -nt "$made" ]; then
    "${PYTHON:-python3}" -m venv --clear .venv-queues
    .venv-queues/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/queue-requirements.txt
    touch "$made"
fi
