#!/usr/bin/env bash
# The servers that the tests start privately, from Debian packages.
set -euo pipefail
exec "$(dirname "$0")/apt-install.sh" postgresql redis-server \
    libvirt-daemon-system libvirt-clients qemu-system-x86 ebtables iptables prometheus \
    nginx-light openssl systemd chromium fonts-dejavu-core fonts-liberation
