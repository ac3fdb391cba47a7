"""What the plan of GPUs is made from and what it says: facts of a host, rows of the database, changes, conflicts.

What belongs here: dataclasses. The rules are in `inventory` and `comparing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ops_pipeline.hypervisor.graphics.devices import Mdev, PciDevice
from ops_pipeline.hypervisor.graphics.hostdevs import Domain
from ops_pipeline.hypervisor.graphics.units import Gpu

AVAILABLE, ASSIGNED, MISSING, UNUSABLE = "available", "assigned", "missing", "unusable"


@dataclass(frozen=True)
class HostGraphics:
    """What a look at one host found.

    Attributes:
        gpus: by address.
        devices: every PCI device of the host.
        mdevs: its mediated devices.
        domains: every domain that could be read, with what it uses.
        unreadable_devices: names of node devices that were skipped, and why.
        unreadable_domains: names of domains whose XML could not be read, and why: what they use is not known.
        problems: what could not be told besides, in words.
    """

    gpus: tuple[Gpu, ...]
    devices: tuple[PciDevice, ...] = ()
    mdevs: tuple[Mdev, ...] = ()
    domains: tuple[Domain, ...] = ()
    unreadable_devices: tuple[tuple[str, str], ...] = ()
    unreadable_domains: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """A row of `gpus`.

    Attributes:
        gpu: as it was described last.
        state: `available`, `assigned`, `missing` or `unusable`.
        reason: why, or who has it.
        missing_scans: good scans that did not find it; they stop counting when they are enough.
        counted_at: when the last of them was counted.
    """

    gpu: Gpu
    state: str
    reason: str = ""
    missing_scans: int = 0
    counted_at: datetime | None = None


@dataclass(frozen=True)
class Assignment:
    """A row of `gpu_assignments`: the platform gave a machine a GPU, or one mediated device of it.

    Attributes:
        address: as the row has it, in whatever spelling.
        machine_id: whose it is.
        mdev_uuid: empty for the whole GPU.
        missing_scans: good scans that found neither the GPU nor the machine active.
        counted_at: when the last of them was counted.
    """

    address: str
    machine_id: str
    mdev_uuid: str = ""
    missing_scans: int = 0
    counted_at: datetime | None = None


@dataclass(frozen=True)
class Machine:
    """A row of `machines`, and the domain that a look found for it on the host looked at.

    Attributes:
        id: its id.
        host_id: where the platform has it.
        name: of its domain.
        status: the platform's word.
        domain: None when the host has none for it.
        certain: whether it can be told which domain it is; a machine of which that cannot be told might run.
    """

    id: str
    host_id: str
    name: str
    status: str
    domain: Domain | None = None
    certain: bool = True


@dataclass(frozen=True)
class GraphicsPolicy:
    """The bounds of the plan.

    Attributes:
        missing_scans: after so many good scans without a GPU what hangs on it goes.
        missing_gap: two scans count only when they are so far apart.
        allow_boot_vga: whether the GPU of the host's console may be handed out.
        resting: statuses of machines that certainly run nothing.
        forming: statuses in which a machine's domain may not be there yet, or no longer be as it was.
    """

    missing_scans: int = 3
    missing_gap: timedelta = timedelta(hours=1)
    allow_boot_vga: bool = False
    resting: frozenset[str] = frozenset()
    forming: frozenset[str] = frozenset()


@dataclass(frozen=True)
class HostRecords:
    """What the database has about a host.

    Attributes:
        host_id: which.
        known: its GPUs, by address.
        assignments: of its GPUs.
        machines: by id: those of the host, and those of the assignments wherever they are.
        owners: the machine of each domain that the platform knows, by the domain's UUID.
    """

    host_id: str
    known: Mapping[str, Known] = field(default_factory=dict)
    assignments: tuple[Assignment, ...] = ()
    machines: Mapping[str, Machine] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)

    def machine_of(self, domain: Domain) -> Machine | None:
        """The machine that a domain is; None when the platform does not know it."""
        return self.machines.get(self.owners.get(domain.uuid, ""))


@dataclass(frozen=True)
class GpuChange:
    """A row of `gpus` that is to become another one; `before` None for a new one, `after` None for one that goes."""

    address: str
    action: str
    before: Known | None
    after: Known | None
    reason: str


@dataclass(frozen=True)
class AssignmentChange:
    """A row of `gpu_assignments` that is to become another one; `after` None for one that is cleared.

    `status` is the machine's under which this was planned; None when there is no such machine.
    """

    action: str
    before: Assignment
    after: Assignment | None
    reason: str
    status: str | None


@dataclass(frozen=True)
class Conflict:
    """Two truths about a GPU that nobody but a person can settle."""

    host_id: str
    address: str
    text: str


@dataclass(frozen=True)
class HostPlan:
    """What follows from one look at one host.

    Attributes:
        host_id: which.
        scanned: GPUs found, and known ones that were not.
        changes: of the inventory.
        assignments: changes of assignments.
        assigned: how many assignments the host has: the population of the limit.
        conflicts: to be reported.
        notes: what is odd and left alone, in words.
        refused: why the look counts as failed, in words; nothing is changed then.
    """

    host_id: str
    scanned: int = 0
    changes: tuple[GpuChange, ...] = ()
    assignments: tuple[AssignmentChange, ...] = ()
    assigned: int = 0
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()
    refused: str = ""
