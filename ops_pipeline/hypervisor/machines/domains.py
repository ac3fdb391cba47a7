"""What a host knows of its domains, asked in the host's own process.

What belongs here: calls of libvirt. What does not: heavy imports, and any judgement.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

LOOK = f"{__name__}:domain_states"
DRIVERS_WITH_UPTIME = {"QEMU", "LXC"}
"""They read /proc/stat; the test driver tells a constant."""


class Domain(NamedTuple):
    """A domain as libvirt reports it; a state or reason of -1 was not told."""

    name: str
    uuid: str
    state: int
    reason: int


class Domains(list[Domain]):
    """Domains that are sent from process to process as plain tuples, in a fifth of the time."""

    def __init__(self, domains: Iterable[tuple[str, str, int, int]]) -> None:
        super().__init__(map(Domain._make, domains))

    def __reduce__(self) -> tuple[Any, ...]:
        return Domains, (list(map(tuple, self)),)


class HostFacts(NamedTuple):
    """All domains of a host, running and defined, and the host's uptime where its driver tells it."""

    domains: list[Domain]
    uptime_seconds: int | None


def domain_states(connection: Any, _argument: object = None) -> HostFacts:
    """The states of all domains, in one call: two lists, of the active and the others, lose who changes in between."""
    import libvirt  # noqa: PLC0415 - the program runs without it, as long as there is no host to ask

    found = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
    domains = [
        (domain.name(), domain.UUIDString(), stats.get("state.state", -1), stats.get("state.reason", -1))
        for domain, stats in found
    ]
    return HostFacts(Domains(domains), _uptime(connection, libvirt))


def _uptime(connection: Any, libvirt: Any) -> int | None:
    """Seconds since the host was started: all that its first processor did, idling included.

    One processor, since others come and go; libvirt has no call for the uptime itself.
    """
    try:
        if connection.getType() not in DRIVERS_WITH_UPTIME:
            return None
        times = connection.getCPUStats(0, 0)
    except libvirt.libvirtError:
        return None
    return sum(times.get(name, 0) for name in ("user", "kernel", "idle", "iowait")) // 10**9
