"""The inventory of GPUs: from what is known and what was found to the rows of `gpus`. Pure.

What belongs here: states of GPUs, what vanished, what is held until it is released, and the plan of a host as a whole.
What does not: rules about assignments (`comparing`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from ops_pipeline.hypervisor.graphics.addresses import from_node_name
from ops_pipeline.hypervisor.graphics.comparing import Scene, called, conflicts_of, place_of, plan_assignments
from ops_pipeline.hypervisor.graphics.facts import (
    ASSIGNED,
    AVAILABLE,
    MISSING,
    UNUSABLE,
    Assignment,
    Conflict,
    GpuChange,
    GraphicsPolicy,
    HostGraphics,
    HostPlan,
    HostRecords,
    Known,
)
from ops_pipeline.hypervisor.graphics.hostdevs import PCI, Domain
from ops_pipeline.hypervisor.graphics.units import VF, Gpu, is_other_card, kept_facts, obstacle
from ops_pipeline.hypervisor.graphics.uses import CHILD, PARENT, holders_of

ADD, UPDATE, REMOVE = "add", "update", "remove"
_HELD = (
    *("pci_class", "vendor", "model", "memory_bytes", "memory_source", "iommu_group", "iommu_members"),
    *("functions", "numa_node", "parent_address", "boot_vga"),
)
"""What stays as it is while a GPU is assigned: whoever got it was promised that."""


def plan_host(
    records: HostRecords, found: HostGraphics, policy: GraphicsPolicy, now: datetime, *, accept_loss: bool = False
) -> HostPlan:
    """What follows from a look at one host.

    Args:
        records: what the database has about it.
        found: what the look found.
        policy: the bounds.
        now: the database's time.
        accept_loss: an operator says that it is right that no known GPU is there any more.
    """
    scene = _scene(records, found, policy, now)
    present = {address for address, known in records.known.items() if known.state != MISSING}
    if present and not accept_loss and present.isdisjoint({*scene.seen, *scene.moved}):
        return HostPlan(records.host_id, scanned=len(scene.seen), refused=_refusal(scene, present))
    changes, left = plan_assignments(scene)
    conflicts, notes = conflicts_of(scene, left), _notes(found)
    rows: list[GpuChange] = []
    given = {place_of(assignment) for assignment in left}
    for address in sorted({*records.known, *scene.seen}):
        known, seen = records.known.get(address), scene.seen.get(address)
        if seen is None and known is not None:
            row = _missing(scene, known, taken=address in given)
        elif seen is not None:
            row, told, note = _present(scene, known, seen, left)
            conflicts, notes = conflicts + told, notes + note
        else:
            row = None
        rows += [row] if row is not None else []
    return HostPlan(
        host_id=records.host_id,
        scanned=len({*records.known, *scene.seen}),
        changes=tuple(rows),
        assignments=tuple(changes),
        assigned=len(records.assignments),
        conflicts=tuple(conflicts),
        notes=tuple(notes),
    )


def _scene(records: HostRecords, found: HostGraphics, policy: GraphicsPolicy, now: datetime) -> Scene:
    seen = {gpu.address: gpu for gpu in found.gpus}
    strangers = [domain for domain in found.domains if records.machine_of(domain) is None]
    return Scene(
        records=records,
        found=found,
        policy=policy,
        now=now,
        holders=holders_of(found.gpus, found.domains, {mdev.uuid: mdev.parent for mdev in found.mdevs}),
        moved=moves(records.known, seen),
        unsure=frozenset(from_node_name(name) for name, _ in found.unreadable_devices if name.startswith("pci")),
        seen=seen,
        listed=frozenset({*seen, *(device.address for device in found.devices)}),
        named=_named(found.domains),
        strangers=frozenset(word for domain in strangers for word in (domain.uuid, domain.name)),
    )


def _named(domains: Sequence[Domain]) -> dict[str, list[Domain]]:
    found: dict[str, list[Domain]] = defaultdict(list)
    for domain in domains:
        for use in domain.uses:
            if use.kind == PCI:
                found[use.target].append(domain)
    return dict(found)


def _refusal(scene: Scene, lost: Collection[str]) -> str:
    others = f"{len(scene.seen)} others are" if scene.seen else "no other is"
    return (
        f"none of the {len(lost)} known GPUs was found, and {others} there ({', '.join(sorted(lost)[:5])}): the look is"
        " taken for a failed one, and nothing was changed. If they were really taken out, launch again with the host in"
        " accept_loss of the run config."
    )


def _notes(found: HostGraphics) -> list[str]:
    notes = [f"{name} was skipped: {why}" for name, why in found.unreadable_devices]
    notes += [f"what {name} uses is not known: {why}" for name, why in found.unreadable_domains]
    return [*notes, *found.problems]


def moves(known: Mapping[str, Known], seen: Mapping[str, Gpu]) -> dict[str, str]:
    """Where known GPUs are that are no longer at their address: by UUID, or by a serial number that is theirs alone.

    Addresses change when cards are plugged in or firmware is updated. Boards with several GPUs have one serial.
    """
    there = {address: _with_known(known.get(address), gpu) for address, gpu in seen.items()}
    before = Counter(identity for one in known.values() for identity in one.gpu.identities)
    after = Counter(identity for gpu in there.values() for identity in gpu.identities)
    places = {identity: address for address, gpu in there.items() for identity in gpu.identities}
    found: dict[str, str] = {}
    for address, one in known.items():
        if address in seen and not is_other_card(one.gpu, seen[address]):
            continue
        # Sorted, UUIDs come last and have the last word.
        for identity in sorted(one.gpu.identities):
            place = places.get(identity, address)
            # Once it was told as moved, both rows have its serial.
            own = identity[1] == "uuid" or before[identity] == 1 or one.reason == _now_at(place)
            if place != address and after[identity] == 1 and own:
                found[address] = place
    return found


def _now_at(address: str) -> str:
    return f"now at {address}"


def _with_known(known: Known | None, seen: Gpu) -> Gpu:
    return seen if known is None or is_other_card(known.gpu, seen) else kept_facts(known.gpu, seen)


def _missing(scene: Scene, known: Known, *, taken: bool) -> GpuChange | None:
    """A known GPU that was not found: missing at first, and forgotten when nobody counts on it for long enough."""
    address = known.gpu.address
    if {address, None} & scene.unsure:
        return None
    free = not taken and address not in scene.named and not scene.found.unreadable_domains
    moved = scene.moved.get(address)
    reason = _now_at(moved) if moved else "not found on the host"
    if free and moved:
        return GpuChange(address, REMOVE, known, None, reason)
    scans, enough = known.missing_scans, scene.policy.missing_scans
    if scans < enough and scene.is_due(known.counted_at):
        scans += 1
    if free and scans >= enough and known.state == MISSING and scene.is_due(known.counted_at):
        return GpuChange(address, REMOVE, known, None, f"not found in {enough} good scans, and nobody has it")
    if (known.state, known.reason, known.missing_scans) == (MISSING, reason, scans):
        return None
    after = replace(known, state=MISSING, reason=reason, missing_scans=scans, counted_at=scene.now)
    return GpuChange(address, MISSING, known, after, reason)


def _present(
    scene: Scene, known: Known | None, seen: Gpu, assignments: Sequence[Assignment]
) -> tuple[GpuChange | None, list[Conflict], list[str]]:
    """A GPU that was found: its row, a conflict when another card stands where an assigned one stood, and notes."""
    address = seen.address
    state, reason = state_of(scene, seen, assignments, known)
    if known is None:
        return GpuChange(address, ADD, None, Known(seen, state, reason), f"found: {state}"), [], []
    held = state == ASSIGNED and known.state in {ASSIGNED, MISSING}
    if is_other_card(known.gpu, seen):
        if held:
            where = scene.moved.get(address)
            words = f"another card stands there ({seen.model or seen.model_id}) than the one that was given away"
            text = f"{words}, which is now at {where}" if where else words
            return None, [scene.conflict(address, text)], []
        gpu, why = seen, f"another card: {seen.model or seen.model_id}"
    else:
        gpu, why = kept_facts(known.gpu, seen), ""
    notes: list[str] = []
    if held:
        gpu, notes = _hold(known.gpu, gpu)
    after = Known(gpu, state, reason)
    if (known.gpu, known.state, known.reason, known.missing_scans) == (gpu, state, reason, 0):
        return None, [], notes
    action = UPDATE if known.state == state else state
    return GpuChange(address, action, known, after, why or _why(known, after)), [], notes


def _hold(known: Gpu, seen: Gpu) -> tuple[Gpu, list[str]]:
    """Keep what was promised while a GPU is assigned; facts that were not known before may be added."""
    kept = {
        name: getattr(known, name)
        for name in _HELD
        if getattr(known, name) not in {None, "", ()} and getattr(known, name) != getattr(seen, name)
    }
    notes = [f"{known.address}: {name} was {value} and is {getattr(seen, name)}" for name, value in kept.items()]
    return replace(seen, **kept), [f"{note}; kept until it is released" for note in notes]


def _why(before: Known, after: Known) -> str:
    if before.state != after.state:
        return after.reason or f"no longer {before.state}"
    if before.gpu == after.gpu:
        return after.reason or "its reason changed"
    names = [name for name in Gpu.__annotations__ if getattr(before.gpu, name) != getattr(after.gpu, name)]
    return f"changed: {', '.join(names)}"


def state_of(scene: Scene, gpu: Gpu, assignments: Sequence[Assignment], known: Known | None = None) -> tuple[str, str]:
    """The state of a GPU that was found, and why: who has it, or what is in the way.

    Args:
        scene: its host.
        gpu: the GPU.
        assignments: of the host, as they are after the plan.
        known: its row, which holds where a domain could not be read.
    """
    holders = scene.held_by(gpu.address)
    names = {one.domain.name for one in holders if one.direct}
    names |= {called(scene, one) for one in assignments if gpu.address in _places(scene, one)}
    if names:
        return ASSIGNED, f"of {', '.join(sorted(names))}"
    if holders:
        one = min(holders, key=lambda holder: (holder.how, holder.use.target, holder.domain.name))
        ways = {CHILD: "its virtual function", PARENT: "the GPU whose virtual function it is,"}
        what = ways.get(one.how, f"what belongs to its unit (IOMMU group {gpu.iommu_group}),")
        return UNUSABLE, f"{one.domain.name} has {what} {one.use.target}"
    why = _given_in_part(scene, gpu, assignments) or _obstacle(scene, gpu)
    if why:
        return UNUSABLE, why
    if scene.found.unreadable_domains and (known is None or known.state != AVAILABLE):
        # Whoever could not be read may have it.
        if known is not None and known.state in {ASSIGNED, UNUSABLE}:
            return known.state, known.reason
        return UNUSABLE, f"what {scene.found.unreadable_domains[0][0]} uses could not be read"
    return AVAILABLE, ""


def _given_in_part(scene: Scene, gpu: Gpu, assignments: Sequence[Assignment]) -> str:
    """That the platform gave something of a GPU's unit away, though no domain has it yet; empty when it did not."""
    unit = {gpu.parent_address, *gpu.iommu_members, *gpu.functions, *(one.id for one in gpu.children if one.kind == VF)}
    given = sorted((place_of(one), called(scene, one)) for one in assignments if place_of(one) in unit - {""})
    return f"{given[0][1]} was given {given[0][0]}, which belongs to its unit" if given else ""


def _obstacle(scene: Scene, gpu: Gpu) -> str:
    devices = {device.address: device for device in scene.found.devices}
    return obstacle(gpu, devices, allow_boot_vga=scene.policy.allow_boot_vga)


def _places(scene: Scene, assignment: Assignment) -> set[str]:
    """Where the GPU of an assignment is: one that was given away and moved is still somebody's."""
    address = place_of(assignment)
    known = scene.records.known.get(address)
    if address in scene.moved and (address not in scene.seen or (known and known.state in {ASSIGNED, MISSING})):
        return {address, scene.moved[address]}
    return {address}
