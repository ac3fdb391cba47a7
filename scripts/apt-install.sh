#!/usr/bin/env bash
# Installs Debian packages that are missing, as root or with passwordless sudo; fails if it may not.
set -euo pipefail
missing=()
for package in "$@"; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
command -v apt-get >/dev/null || { echo "No apt-get here; needed: ${missing[*]}" >&2; exit 1; }
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || { echo "Neither root nor sudo: install ${missing[*]} yourself." >&2; exit 1; }
    as_root=(sudo -n)
fi
echo "Installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get -qq update >&2
"${as_root[@]}" apt-get -qq install --no-install-recommends --yes "${missing[@]}" >&2
