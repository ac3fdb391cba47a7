"""The platform's assignments of GPUs against what the hypervisor knows: what is cleared, and what contradicts. Pure.

An assignment goes when its machine is gone, or when its GPU has been gone for enough good scans while the machine is
off. Everything else that does not fit together is a conflict: reported, and left to a person.

What belongs here: rules about assignments. What does not: states of GPUs (`inventory`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from ops_pipeline.hypervisor.graphics.addresses import canonical
from ops_pipeline.hypervisor.graphics.facts import (
    Assignment,
    AssignmentChange,
    Conflict,
    GraphicsPolicy,
    HostGraphics,
    HostRecords,
    Machine,
)
from ops_pipeline.hypervisor.graphics.hostdevs import PCI, Domain
from ops_pipeline.hypervisor.graphics.units import Gpu
from ops_pipeline.hypervisor.graphics.uses import DEVICE, GROUP, PART, Holder, Holders, rivals

CLEAR, COUNT, RESET, READDRESS = "clear", "count", "reset", "readdress"


@dataclass(frozen=True)
class Scene:
    """Everything that is known about the GPUs of one host at one moment.

    Attributes:
        records: what the database has.
        found: what the look found.
        policy: the bounds.
        now: when.
        holders: who uses which GPU, by the domains' own XML.
        moved: where a known GPU that is no longer at its address is now.
        unsure: addresses that could not be read this time; None stands for any address.
        seen: the GPUs found, by address.
        listed: every PCI address found.
        named: the domains whose XML names a PCI address, by that address.
        strangers: UUIDs and names of domains that the platform does not know.
    """

    records: HostRecords
    found: HostGraphics
    policy: GraphicsPolicy
    now: datetime
    holders: Holders
    moved: Mapping[str, str]
    unsure: frozenset[str | None] = frozenset()
    seen: Mapping[str, Gpu] = field(default_factory=dict)
    listed: frozenset[str] = frozenset()
    named: Mapping[str, Sequence[Domain]] = field(default_factory=dict)
    strangers: frozenset[str] = frozenset()

    def held_by(self, address: str) -> Sequence[Holder]:
        """Everybody who uses a GPU or something of its unit."""
        return self.holders.get(address, ())

    def is_gone(self, address: str) -> bool:
        """Whether nothing stands at an address, and that is certain."""
        return address not in self.listed and address not in self.moved and not {address, None} & self.unsure

    def is_due(self, counted_at: datetime | None) -> bool:
        """Whether this scan counts: two that follow at once are one."""
        return counted_at is None or self.now - counted_at >= self.policy.missing_gap

    def is_active(self, machine: Machine) -> bool:
        """Whether a machine runs, or might: the hypervisor and the platform must both say that it does not."""
        running = machine.domain is not None and machine.domain.active
        return running or not machine.certain or machine.status not in self.policy.resting

    def conflict(self, address: str, text: str) -> Conflict:
        """A conflict on this host."""
        return Conflict(self.records.host_id, address, text)


def place_of(assignment: Assignment) -> str:
    """The canonical address of an assignment; empty when what it has is no address."""
    try:
        return canonical(assignment.address)
    except ValueError:
        return ""


def plan_assignments(scene: Scene) -> tuple[list[AssignmentChange], list[Assignment]]:
    """The changes to assignments, and the assignments as they are after them."""
    changes, left = [], []
    for assignment in scene.records.assignments:
        change = _change(scene, assignment)
        if change is not None:
            changes.append(change)
        after = assignment if change is None else change.after
        if after is not None:
            left.append(after)
    return changes, left


def _change(scene: Scene, assignment: Assignment) -> AssignmentChange | None:
    machine, address = scene.records.machines.get(assignment.machine_id), place_of(assignment)
    if not address:
        return None
    if machine is None:
        # A platform that has GPUs given away and not one machine is one whose rows are being restored.
        gone = bool(scene.records.machines) and not _may_still_run(scene, assignment, address)
        return AssignmentChange(CLEAR, assignment, None, "its machine is gone", None) if gone else None
    if machine.host_id != scene.records.host_id:
        # What runs on another host is that host's to judge.
        return None
    return _follow(scene, assignment, machine, address) or _counted(scene, assignment, machine, address)


def _may_still_run(scene: Scene, assignment: Assignment, address: str) -> bool:
    """Whether a machine whose row is gone may live on: QEMU outlives rows of databases."""
    if scene.found.unreadable_domains:
        return True
    users = [*(holder.domain for holder in scene.held_by(address)), *scene.named.get(address, ())]
    return assignment.machine_id in scene.strangers or any(scene.records.machine_of(one) is None for one in users)


def _names(domain: Domain, address: str) -> bool:
    return any(use.kind == PCI and use.target == address for use in domain.uses)


def _follow(scene: Scene, assignment: Assignment, machine: Machine, address: str) -> AssignmentChange | None:
    """An assignment follows its GPU to another address once the machine's own XML has it there and nowhere else."""
    moved = scene.moved.get(address)
    domain = machine.domain
    if moved is None or domain is None or _names(domain, address) or not _names(domain, moved):
        return None
    taken = {place_of(other) for other in scene.records.assignments if other.machine_id == machine.id}
    if moved in taken:
        return None
    reason = f"its GPU moved to {moved}, and the machine's own XML has it there"
    after = replace(assignment, address=moved, missing_scans=0, counted_at=None)
    return AssignmentChange(READDRESS, assignment, after, reason, machine.status)


def _counted(scene: Scene, assignment: Assignment, machine: Machine, address: str) -> AssignmentChange | None:
    """Count a scan without the GPU while the machine is off; being active or the GPU's return begins anew."""
    active, there = scene.is_active(machine), address in scene.listed
    if assignment.missing_scans and (active or there):
        after = replace(assignment, missing_scans=0, counted_at=None)
        reason = "its GPU is back" if there else f"{machine.name} is active"
        return AssignmentChange(RESET, assignment, after, reason, machine.status)
    if active or not scene.is_gone(address) or not scene.is_due(assignment.counted_at):
        return None
    scans, enough = assignment.missing_scans + 1, scene.policy.missing_scans
    if scans >= enough:
        reason = f"its GPU was not there in {enough} good scans, and {machine.name} is off"
        return AssignmentChange(CLEAR, assignment, None, reason, machine.status)
    after = replace(assignment, missing_scans=scans, counted_at=scene.now)
    reason = f"scan {scans} of {enough} without its GPU while {machine.name} is off"
    return AssignmentChange(COUNT, assignment, after, reason, machine.status)


def conflicts_of(scene: Scene, assignments: Sequence[Assignment]) -> list[Conflict]:
    """Everything that contradicts, each once, by address.

    Args:
        scene: the host.
        assignments: as they are after the plan.
    """
    by_address: dict[str, list[Assignment]] = {}
    found = [scene.conflict(one.address, _no_address(scene, one)) for one in assignments if not place_of(one)]
    for assignment in assignments:
        if place_of(assignment):
            by_address.setdefault(place_of(assignment), []).append(assignment)
    for address in sorted({*by_address, *scene.seen, *scene.records.known}):
        given = by_address.get(address, [])
        texts = [*_between_domains(scene, address), *_between_assignments(scene, address, given)]
        texts += _unknown_to_the_hypervisor(scene, address, given)
        texts += _unknown_to_the_platform(scene, address, given)
        texts += _names_of_the_missing(scene, address, given)
        found += [scene.conflict(address, text) for text in texts]
    return found


def _no_address(scene: Scene, assignment: Assignment) -> str:
    return f"the assignment to {called(scene, assignment)} has {assignment.address!r}, which is no PCI address"


def called(scene: Scene, assignment: Assignment) -> str:
    """The machine of an assignment, as an operator would name it."""
    machine = scene.records.machines.get(assignment.machine_id)
    return machine.name if machine is not None and machine.name else assignment.machine_id


def _between_domains(scene: Scene, address: str) -> Iterator[str]:
    domains = rivals(scene.held_by(address))
    if domains:
        running = sum(domain.active for domain in domains)
        names = _listed(domain.name for domain in domains)
        yield f"{names} have it, or something of its unit, in their XML; {running} of them run"


def _between_assignments(scene: Scene, address: str, given: Sequence[Assignment]) -> Iterator[str]:
    """Two machines were given the same, as far as their domains do not show that each has a part of its own."""
    direct = [one for one in scene.held_by(address) if one.direct]
    parted = {_id_of(scene, one.domain) for one in direct if one.how == PART}
    parted -= {_id_of(scene, one.domain) for one in direct if one.how == DEVICE}
    whole = {one.machine_id for one in given if not one.mdev_uuid and one.machine_id not in parted}
    if whole and len({one.machine_id for one in given}) > 1:
        yield f"it was given to {_listed(sorted({called(scene, one) for one in given}))}"
    owners: dict[str, set[str]] = {}
    for one in given:
        if one.mdev_uuid:
            owners.setdefault(one.mdev_uuid, set()).add(called(scene, one))
    for uuid, names in sorted(owners.items()):
        if len(names) > 1:
            yield f"its mediated device {uuid} was given to {_listed(sorted(names))}"


def _unknown_to_the_hypervisor(scene: Scene, address: str, given: Sequence[Assignment]) -> Iterator[str]:
    for one in given:
        machine, name = scene.records.machines.get(one.machine_id), called(scene, one)
        if machine is None:
            yield f"it was given to {name}, whose row is gone, but which may still run"
        elif machine.host_id != scene.records.host_id:
            yield f"it was given to {name}, which is on the host {machine.host_id}"
        elif address in scene.listed and address not in scene.seen:
            yield f"it was given to {name}, but what stands there is no GPU"
        elif address in scene.seen and not _has(scene, one, machine, address):
            known = "whose domain does not have it" if machine.domain else "of which the hypervisor has no domain"
            yield f"it was given to {name}, {known}"


def _has(scene: Scene, assignment: Assignment, machine: Machine, address: str) -> bool:
    """Whether a machine's domain has what the machine was given, or that cannot be told now."""
    domain = machine.domain
    if domain is None:
        # Its XML could not be read, or it is just being made, or nobody can tell which domain it is.
        unread = {name for name, _ in scene.found.unreadable_domains}
        return machine.name in unread or machine.status in scene.policy.forming or not machine.certain
    uses = [one.use for one in scene.held_by(address) if one.direct and one.domain.uuid == domain.uuid]
    return any(assignment.mdev_uuid in {"", use.target} for use in uses)


def _unknown_to_the_platform(scene: Scene, address: str, given: Sequence[Assignment]) -> Iterator[str]:
    told: set[str] = set()
    for one in scene.held_by(address):
        machine = scene.records.machine_of(one.domain)
        if one.domain.uuid in told or one.how not in {DEVICE, PART, GROUP}:
            continue
        if machine is None:
            told.add(one.domain.uuid)
            through = f" through {one.use.target}" if one.how != DEVICE else ""
            state = "running" if one.domain.active else "defined"
            yield f"{one.domain.name} ({state}) uses it{through}, a machine that the platform does not know"
        elif one.direct and machine.id not in {assignment.machine_id for assignment in given}:
            told.add(one.domain.uuid)
            yield f"{machine.name} has it on the hypervisor, but was never given it"


def _names_of_the_missing(scene: Scene, address: str, given: Sequence[Assignment]) -> Iterator[str]:
    """Machines that count on a GPU which is not there, or is somewhere else."""
    if address in scene.seen or not (address in scene.moved or scene.is_gone(address)):
        return
    where = f"moved to {scene.moved[address]}" if address in scene.moved else "is missing"
    # Whose machine is gone or on another host was told already.
    owners = (scene.records.machines.get(one.machine_id) for one in given)
    names = {owner.name or owner.id for owner in owners if owner and owner.host_id == scene.records.host_id}
    names |= {domain.name for domain in scene.named.get(address, ())}
    if names:
        yield f"it {where}, but {_listed(sorted(names))} counts on it"


def _id_of(scene: Scene, domain: Domain) -> str:
    return scene.records.owners.get(domain.uuid, "")


def _listed(names: Collection[str] | Iterator[str]) -> str:
    *others, last = list(names)
    return f"{', '.join(others)} and {last}" if others else last
