"""Who uses which GPU: the domains' own XML, resolved to GPUs and their units. Pure.

What belongs here: holders of GPUs, and whether they contradict each other. What does not: the platform's assignments
(`comparing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ops_pipeline.hypervisor.graphics.hostdevs import MDEV, PCI, Domain, Use
from ops_pipeline.hypervisor.graphics.units import VF, Gpu

DEVICE, PART, CHILD, PARENT, GROUP = "device", "part", "child", "parent", "group"
"""How a use touches a GPU: itself, a mediated device of it, a virtual function of it, the device whose virtual
function it is, or another device of its card or IOMMU group."""


@dataclass(frozen=True)
class Holder:
    """A domain that uses a GPU, or something of its unit.

    Attributes:
        domain: who.
        how: `device`, `part`, `child`, `parent` or `group`.
        use: the device in the domain's XML.
    """

    domain: Domain
    how: str
    use: Use

    @property
    def direct(self) -> bool:
        """Whether it uses the GPU itself, whole or a mediated device of it."""
        return self.how in {DEVICE, PART}


Holders = Mapping[str, Sequence[Holder]]
"""Everybody who uses a GPU or something of its unit, by the GPU's address."""


def holders_of(gpus: Iterable[Gpu], domains: Iterable[Domain], mdev_parents: Mapping[str, str]) -> Holders:
    """Resolve every use of a host's domains to GPUs.

    Args:
        gpus: of the host.
        domains: of the same host, with what they use.
        mdev_parents: the address of the GPU of each mediated device, by UUID.
    """
    touched = _touched_by(gpus)
    found: dict[str, list[Holder]] = {}
    for domain in sorted(domains, key=lambda one: (one.name, one.uuid)):
        for use in domain.uses:
            if use.kind == PCI:
                relations = touched.get(use.target, {})
            else:
                relations = {mdev_parents[use.target]: PART} if use.target in mdev_parents else {}
            for address, how in relations.items():
                found.setdefault(address, []).append(Holder(domain, how, use))
    return found


def _touched_by(gpus: Iterable[Gpu]) -> dict[str, dict[str, str]]:
    """For each PCI address the GPUs that its use touches, and how."""
    touched: dict[str, dict[str, str]] = {}
    for gpu in gpus:
        relations = [(address, GROUP) for address in (*gpu.iommu_members, *gpu.functions)]
        relations += [(child.id, CHILD) for child in gpu.children if child.kind == VF]
        relations += [(gpu.parent_address, PARENT)] if gpu.parent_address else []
        # The last word counts: a virtual function in the same group is a child first.
        for address, how in [*relations, (gpu.address, DEVICE)]:
            touched.setdefault(address, {})[gpu.address] = how
    return touched


def rivals(holders: Sequence[Holder]) -> list[Domain]:
    """The domains that contradict each other over a GPU, by name; empty when they do not.

    Several domains may each have a part of their own. Everything else belongs to one domain only, also while the
    others are off: whichever starts second fails. Virtual functions and their parent contradict each other at the
    parent.
    """
    whole = _by_uuid(one for one in holders if one.how in {DEVICE, GROUP})
    involved = whole | _by_uuid(one for one in holders if one.how in {PART, CHILD}) if whole else {}
    if len(involved) < 2:
        involved = _of_one_part(holders)
    return sorted(involved.values(), key=lambda one: one.name)


def _by_uuid(holders: Iterable[Holder]) -> dict[str, Domain]:
    return {one.domain.uuid: one.domain for one in holders}


def _of_one_part(holders: Sequence[Holder]) -> dict[str, Domain]:
    """Domains that have the same mediated device."""
    owners: dict[str, dict[str, Domain]] = {}
    for one in holders:
        if one.use.kind == MDEV:
            owners.setdefault(one.use.target, {})[one.domain.uuid] = one.domain
    return {uuid: domain for domains in owners.values() if len(domains) > 1 for uuid, domain in domains.items()}
