"""The rules that really stand in the kernel for a guest's tap device, and a watcher that samples them.

What belongs here: reading ebtables, iptables and ip6tables where a private libvirtd lives. What does not: libvirt.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer
from ops_pipeline_tests.servers import wait_until

PACKETS = {"ipv4": "iptables-save", "ipv6": "ip6tables-save"}
_SAMPLER = """
while [ ! -e "$1/stop" ]; do
  echo "=== ipv4"; iptables-save -t filter; echo "=== ipv6"; ip6tables-save -t filter
  echo "=== frames"; ebtables-save
done > "$1/samples"
"""


def rules_towards(server: LibvirtServer, device: str, family: str = "ipv4") -> list[str]:
    """What is done with packets on their way into a guest, in order, without the chain's name."""
    return _reached(server.run(PACKETS[family]), "libvirt-out", device)


def frames_towards(server: LibvirtServer, device: str) -> list[str]:
    """What is done with Ethernet frames on their way into a guest."""
    return _reached(server.run("ebtables-save"), "POSTROUTING", device)


def _reached(saved: str, chain: str, device: str) -> list[str]:
    """The rules of the chains that a chain leads a device's packets to."""
    rules = [line.split(maxsplit=2)[1:] for line in saved.splitlines() if line.startswith("-A ")]
    pattern = re.compile(rf"(?:--physdev-out|-o) {device} .*-[jg] (\S+)")
    targets = [found[1] for name, text in rules if name == chain and (found := pattern.search(text))]
    return [text for target in targets for name, text in rules if name == target]


@dataclass
class Samples:
    """What a watcher saw: for each sample the rules towards the device, by kind (ipv4, ipv6, frames)."""

    device: str
    seen: list[tuple[str, list[str]]] = field(default_factory=list)

    def without(self, kind: str, rule: str) -> list[list[str]]:
        """The samples in which a rule was missing."""
        return [rules for found, rules in self.seen if found == kind and rule not in rules]

    def distinct(self, kind: str) -> set[tuple[str, ...]]:
        """The different states that were seen."""
        return {tuple(rules) for found, rules in self.seen if found == kind}


@contextmanager
def watched(server: LibvirtServer, device: str, folder: Path) -> Iterator[Samples]:
    """Sample the rules towards a device as tightly as the tools allow; what was seen is there at the end."""
    samples, written = Samples(device), folder / "samples"
    command = ["nsenter", "--target", str(server.first_process), "--net", "bash", "-c", _SAMPLER, "bash", str(folder)]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: written.exists() and written.stat().st_size > 0, 20, "a sample")
            yield samples
        finally:
            (folder / "stop").touch()
            process.wait(20)
    for part in written.read_text().split("=== ")[1:]:
        kind, _, saved = part.partition("\n")
        chain = "POSTROUTING" if kind == "frames" else "libvirt-out"
        samples.seen.append((kind, _reached(saved, chain, device)))
