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
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$@"; }

# Everything is pinned, so nothing is resolved; setuptools comes first because the project is built with it.
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
# libvirt-python has no wheels: it is compiled against libvirt's headers, on its own, so that all the rest works without.
grep -v '^libvirt-python==' requirements.txt >"$pins"
install --requirement "$pins"
if scripts/apt-install.sh libvirt-dev pkg-config gcc libc6-dev; then
    install --no-build-isolation "$(grep -o '^libvirt-python==[^ ]*' requirements.txt)"
else
    echo "Without libvirt-dev, pkg-config and gcc the jobs for hypervisors cannot run; everything else can." >&2
fi
install --no-build-isolation --editable .
touch .venv/.installed
