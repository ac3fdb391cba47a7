#!/usr/bin/env bash
# Makes .venv with the pinned dependencies and the project itself.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed, $("$python" --version) was found: set PYTHON=/path/to/python3.11" >&2
    exit 1
}
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    # Debian keeps it in a package of its own.
    version=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
    scripts/apt-install.sh "python$version-venv" || {
        echo "Install the Debian package python$version-venv, then run make again." >&2
        exit 1
    }
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
# Everything is pinned, so nothing is resolved; setuptools comes first because the project is built with it.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
touch .venv/.installed
