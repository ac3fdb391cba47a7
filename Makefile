# Everything stands on .venv; each target may be repeated.

PYTHON ?= python3
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup run run-distributed test lint bench clean lock

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml scripts/setup.sh
	PYTHON=$(PYTHON) scripts/setup.sh

run: setup
	scripts/run.sh

run-distributed: setup
	scripts/apt-install.sh postgresql redis-server
	scripts/run-distributed.sh

test: setup
	scripts/install-servers.sh
	scripts/install-provider.sh
	scripts/install-saver.sh
	$(BIN)/python -m pytest -n 3 --dist loadgroup

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check ops_pipeline benchmarks

bench: setup
	scripts/install-servers.sh
	$(BIN)/python -m benchmarks.usage
	$(BIN)/python -m benchmarks.stale
	$(BIN)/python -m benchmarks.probes
	$(BIN)/python -m benchmarks.hypervisor
	$(BIN)/python -m benchmarks.scrape
	$(BIN)/python -m benchmarks.analysis
	$(BIN)/python -m benchmarks.graphics
	$(BIN)/python -m benchmarks.services
	$(BIN)/python -m benchmarks.checkpoints
	$(BIN)/python -m benchmarks.filters
	$(BIN)/python -m benchmarks.analysis_worker
	$(BIN)/python -m benchmarks.maintenance
	$(BIN)/python -m benchmarks.leader
	$(BIN)/python -m benchmarks.idling
	$(BIN)/python -m benchmarks.month
	$(BIN)/python -m benchmarks.distributed

clean:
	rm -rf $(VENV) .venv-provider .venv-saver build *.egg-info

# Needs uv (pip install uv).
lock:
	uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url \
		--all-extras --upgrade pyproject.toml --output-file requirements.txt
	sed -i '1i # Pinned by `make lock` from pyproject.toml; no hashes or addresses, so that any mirror serves.' requirements.txt
	@grep -q '^setuptools==' requirements.txt || \
		echo "setuptools==$$(uv pip compile --quiet --no-header --no-annotate - <<< setuptools | sed 's/.*==//')" >> requirements.txt
