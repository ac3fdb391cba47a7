#!/usr/bin/env bash
# The OpenAI-compatible server that the integration tests start privately: LiteLLM's proxy in .venv-provider, apart from
# .venv. Nothing is resolved: provider-requirements.txt pins all that it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
pins=scripts/provider-requirements.txt
# A copy of the pins marks a complete installation of exactly these.
cmp --silent "$pins" .venv-provider/.installed && exit 0
echo "Installing LiteLLM's proxy into .venv-provider" >&2
rm -rf .venv-provider
.venv/bin/python -m venv --without-pip .venv-provider
.venv/bin/python -m pip --python .venv-provider install --quiet --disable-pip-version-check --no-deps --requirement "$pins"
cp "$pins" .venv-provider/.installed
