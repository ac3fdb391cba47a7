"""Which domain is which machine's: by UUID, or by name where a machine has none.

What belongs here: a pure function. What does not: what follows from a state (`rules`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from ops_pipeline.hypervisor.hosts import LOCAL
from ops_pipeline.hypervisor.machines.domains import Domain

ACTIVE_STATES = {1, 2, 3, 4, 7}
"""libvirt's numbers of states in which a domain's process lives."""

IN_MIGRATION = {(3, 2), (3, 11), (3, 12)}
"""States with reasons of a domain's half that does not run while it is migrated: its target is starting at first."""


class MachineRow(NamedTuple):
    """What this job reads of a machine."""

    id: str
    host_id: str | None
    internal_name: str
    uuid: str
    name: str
    status: str
    status_changed_at: datetime
    observed_state: str
    observed_reason: str
    observed_at: datetime | None
    missing_looks: int

    @property
    def host(self) -> str:
        """The host that it belongs to."""
        return self.host_id or LOCAL

    @property
    def label(self) -> str:
        """What an operator calls it."""
        name = self.name or self.internal_name
        return self.id if name in {"", self.id} else f"{name} ({self.id})"


class Finding(NamedTuple):
    """Something that is reported and never touched.

    Attributes:
        kind: `conflict`, `stuck`, `missing`, `alert`, `strange`, `duplicate`, `unnamed`, `renamed`,
            `unknown_domain`, `no_host`.
        host: its host.
        key: the machine or domain, as an operator would name it.
        words: what is the matter.
    """

    kind: str
    host: str
    key: str
    words: str


@dataclass
class Matches:
    """The machines of hosts that answered.

    Attributes:
        found: machine and its domain, for those that have exactly one.
        missing: machines whose host answered and has no such domain.
        elsewhere: machines whose domain another host has; nothing follows from that but a report.
        findings: what cannot be told apart, and domains that are nobody's.
        unasked: machines of hosts that did not answer.
    """

    found: list[tuple[MachineRow, Domain]] = field(default_factory=list)
    missing: list[MachineRow] = field(default_factory=list)
    elsewhere: list[tuple[MachineRow, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unasked: int = 0


def match(machines: Sequence[MachineRow], domains: Mapping[str, Sequence[Domain]], hosts: Sequence[str]) -> Matches:
    """Match the machines with the domains of their own hosts.

    Args:
        machines: all of them.
        domains: by host id, of the hosts that answered.
        hosts: the ids of all hosts.
    """
    result = Matches()
    uuids = Counter(row.uuid.lower() for row in machines if row.uuid)
    claimed: dict[str, set[str]] = {host: set() for host in domains}
    by_uuid = {host: {one.uuid.lower(): one for one in found} for host, found in domains.items()}
    by_name = {host: {one.name: one for one in found} for host, found in domains.items()}
    nameless: list[MachineRow] = []
    known = set(hosts)
    for row in machines:
        host = row.host
        if host not in by_uuid:
            if host in known:
                result.unasked += 1
            else:
                result.findings.append(Finding("no_host", host, row.label, f"there is no host {host!r}"))
        elif not row.uuid:
            nameless.append(row)
        elif uuids[row.uuid.lower()] > 1:
            claimed[host].add(row.uuid.lower())
            result.findings.append(Finding("duplicate", host, row.label, f"several machines have the UUID {row.uuid}"))
        else:
            domain = by_uuid[host].get(row.uuid.lower())
            if domain is not None:
                claimed[host].add(domain.uuid.lower())
                result.found.append((row, domain))
            else:
                _absent(row, by_name[host], claimed, by_uuid, result)
    _by_name(nameless, machines, by_name, claimed, result)
    _two_hosts(by_uuid, result)
    _unknown(domains, claimed, by_uuid, uuids, result)
    return result


def _absent(
    row: MachineRow,
    namesakes: Mapping[str, Domain],
    claimed: Mapping[str, set[str]],
    by_uuid: Mapping[str, Mapping[str, Domain]],
    result: Matches,
) -> None:
    """A machine whose UUID its host does not have."""
    others = [host for host, found in by_uuid.items() if row.uuid.lower() in found]
    namesake = namesakes.get(row.internal_name) if row.internal_name else None
    if others:
        for host in others:
            claimed[host].add(row.uuid.lower())
        result.elsewhere.append((row, others[0]))
    elif namesake is not None:
        claimed[row.host].add(namesake.uuid.lower())
        words = f"the domain {row.internal_name!r} has the UUID {namesake.uuid}, the machine has {row.uuid}"
        result.findings.append(Finding("conflict", row.host, row.label, words))
    else:
        result.missing.append(row)


def _by_name(
    nameless: Sequence[MachineRow],
    machines: Sequence[MachineRow],
    by_name: Mapping[str, Mapping[str, Domain]],
    claimed: Mapping[str, set[str]],
    result: Matches,
) -> None:
    """Machines without a UUID."""
    if not nameless:
        return
    names = Counter((row.host, row.internal_name) for row in machines)
    for row in nameless:
        domain = by_name[row.host].get(row.internal_name)
        if not row.internal_name:
            words = "it has neither a UUID nor an internal name"
            result.findings.append(Finding("unnamed", row.host, row.label, words))
        elif names[row.host, row.internal_name] > 1:
            if domain is not None:
                claimed[row.host].add(domain.uuid.lower())
            words = f"several machines have the internal name {row.internal_name!r}"
            result.findings.append(Finding("duplicate", row.host, row.label, words))
        elif domain is None:
            result.missing.append(row)
        elif domain.uuid.lower() in claimed[row.host]:
            words = f"the domain {domain.name!r} belongs to another machine, by its UUID"
            result.findings.append(Finding("duplicate", row.host, row.label, words))
        else:
            claimed[row.host].add(domain.uuid.lower())
            result.found.append((row, domain))


def _two_hosts(by_uuid: Mapping[str, Mapping[str, Domain]], result: Matches) -> None:
    """Machines that run on their host and on another one; while one is moved that is as it should be."""
    if len(by_uuid) < 2:
        return
    for row, domain in result.found:
        if row.status == "moving" or domain.state not in ACTIVE_STATES:
            continue
        for host, found in by_uuid.items():
            other = found.get(domain.uuid.lower()) if host != row.host else None
            if other is None or any((one.state, one.reason) in IN_MIGRATION for one in (domain, other)):
                continue
            if other.state in ACTIVE_STATES:
                words = f"it runs on {row.host} and on {host} at once"
                result.findings.append(Finding("conflict", row.host, row.label, words))


def _unknown(
    domains: Mapping[str, Sequence[Domain]],
    claimed: Mapping[str, set[str]],
    by_uuid: Mapping[str, Mapping[str, Domain]],
    uuids: Mapping[str, int],
    result: Matches,
) -> None:
    """Domains that no machine of their host is."""
    for host, found in domains.items():
        if len(claimed[host]) == len(by_uuid[host]):
            continue
        for domain in found:
            uuid = domain.uuid.lower()
            # The machine of another host, which is told about there.
            if uuid in claimed[host] or uuids.get(uuid):
                continue
            words = "the platform has no machine for this domain"
            result.findings.append(Finding("unknown_domain", host, domain.name, words))
