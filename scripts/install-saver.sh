#!/usr/bin/env bash
# LangGraph with its saver for Redis, whose threads the tests of the clean-up write, sweep and load: in .venv-saver, apart
# from .venv. Nothing is resolved: saver-requirements.txt pins all that it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
pins=scripts/saver-requirements.txt
# A copy of the pins marks a complete installation of exactly these.
cmp --silent "$pins" .venv-saver/.installed && exit 0
echo "Installing LangGraph's saver into .venv-saver" >&2
rm -rf .venv-saver
.venv/bin/python -m venv --without-pip .venv-saver
.venv/bin/python -m pip --python .venv-saver install --quiet --disable-pip-version-check --no-deps --requirement "$pins"
cp "$pins" .venv-saver/.installed
