"""GPUs and what belongs to them: the unit that is handed out as a whole.

A unit is a GPU with the other functions of its card (sound, USB), everything in its IOMMU group, and its parts:
virtual functions, mediated devices, MIG instances, vGPUs. Pure: facts in, GPUs out.

What belongs here: putting facts of libvirt, sysfs and NVML together. What does not: who uses a GPU (`uses`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ops_pipeline.hypervisor.graphics.addresses import slot_of
from ops_pipeline.hypervisor.graphics.devices import Mdev, MdevType, PciDevice
from ops_pipeline.hypervisor.graphics.nvml import MIG, Child, NvmlDevice
from ops_pipeline.hypervisor.graphics.sysfs import SysfsDevice

VF, MDEV = "vf", "mdev"
FROM_DRIVER, FROM_BAR = "driver", "bar"


@dataclass(frozen=True)
class Gpu:
    """One GPU of a host, as the table `gpus` describes it.

    Attributes:
        address: canonical.
        pci_class: six hexadecimal digits.
        vendor_id: four hexadecimal digits.
        vendor: its name.
        model_id: four hexadecimal digits.
        model: its name.
        memory_bytes: None where nobody tells it.
        memory_source: `driver` for its memory, `bar` for the largest range on the bus, which may be a window only.
        driver: the host's driver that holds it.
        iommu_group: None without an IOMMU.
        iommu_members: addresses of the group's other devices, bridges left out.
        functions: addresses of the other functions of the same card.
        numa_node: None when the host does not say.
        serial: of the board; several GPUs of one board may share it.
        uuid: as NVIDIA's driver tells it.
        parent_address: of the GPU whose virtual function this is.
        children: its parts.
        profiles: the kinds of mediated devices that it can be divided into, and how many more of each.
        boot_vga: whether the host's console uses it; None where that is not known, as of other machines.
    """

    address: str
    pci_class: str = ""
    vendor_id: str = ""
    vendor: str = ""
    model_id: str = ""
    model: str = ""
    memory_bytes: int | None = None
    memory_source: str = ""
    driver: str = ""
    iommu_group: int | None = None
    iommu_members: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    numa_node: int | None = None
    serial: str = ""
    uuid: str = ""
    parent_address: str = ""
    children: tuple[Child, ...] = ()
    profiles: tuple[MdevType, ...] = ()
    boot_vga: bool | None = None

    @property
    def identities(self) -> frozenset[tuple[str, str, str]]:
        """What tells this GPU from others wherever it is plugged in; empty for parts, which have their parent's."""
        if self.parent_address:
            return frozenset()
        told = (("uuid", self.uuid), ("serial", self.serial))
        return frozenset((self.vendor_id, kind, value) for kind, value in told if value)

    @property
    def mig_instances(self) -> int:
        """Into how many instances the host has divided it for itself."""
        return sum(child.kind == MIG for child in self.children)


def gpus_of(
    devices: Iterable[PciDevice],
    mdevs: Iterable[Mdev] = (),
    sysfs: Mapping[str, SysfsDevice] | None = None,
    nvml: Iterable[NvmlDevice] = (),
) -> tuple[Gpu, ...]:
    """The GPUs among a host's PCI devices, by address.

    Args:
        devices: all PCI devices of the host: what shares a group or a card with a GPU counts, too.
        mdevs: its mediated devices.
        sysfs: what the kernel of this machine tells, by address; empty for other hosts.
        nvml: what NVIDIA's driver of this machine tells.
    """
    by_address = {device.address: device for device in devices}
    drivers = {device.address: device for device in nvml}
    parts: dict[str, list[Child]] = {}
    for mdev in sorted(mdevs, key=lambda one: one.uuid):
        parts.setdefault(mdev.parent, []).append(Child(MDEV, mdev.uuid, mdev.type))
    found = []
    for address, device in sorted(by_address.items()):
        if device.is_gpu:
            gpu = _gpu(device, by_address, parts.get(address, ()))
            gpu = _with_sysfs(gpu, (sysfs or {}).get(address))
            found.append(_with_nvml(gpu, drivers.get(address)))
    return tuple(found)


def _gpu(device: PciDevice, devices: Mapping[str, PciDevice], parts: Iterable[Child]) -> Gpu:
    virtual = [Child(VF, address) for address in device.virtual_functions]
    related = {device.address, device.physical_function, *device.virtual_functions}
    functions = [
        address
        for address, other in devices.items()
        if slot_of(address) == slot_of(device.address) and address not in related and not other.physical_function
    ]
    return Gpu(
        address=device.address,
        pci_class=device.pci_class,
        vendor_id=device.vendor_id,
        vendor=device.vendor,
        model_id=device.model_id,
        model=device.model,
        driver=device.driver,
        iommu_group=device.iommu_group,
        iommu_members=tuple(
            address
            for address in sorted(device.group_members)
            if address != device.address and not _is_bridge(devices.get(address))
        ),
        # A virtual function stands alone on its card: its neighbours are other machines' virtual functions.
        functions=() if device.physical_function else tuple(sorted(functions)),
        numa_node=device.numa_node,
        serial=device.serial,
        parent_address=device.physical_function,
        children=(*virtual, *parts),
        profiles=device.mdev_types,
    )


def _is_bridge(device: PciDevice | None) -> bool:
    return device is not None and device.is_bridge


def _with_sysfs(gpu: Gpu, told: SysfsDevice | None) -> Gpu:
    """Add what the kernel tells, if it is about the same device: a test driver and a remote host have their own."""
    if told is None or (told.vendor_id, told.model_id) != (gpu.vendor_id, gpu.model_id):
        return gpu
    # amdgpu counts its memory. Without a driver that does, the largest range is what there is to see.
    source = FROM_DRIVER if told.vram_bytes else FROM_BAR if told.bar_bytes else ""
    return replace(
        gpu,
        driver=gpu.driver or told.driver,
        iommu_group=told.iommu_group if gpu.iommu_group is None else gpu.iommu_group,
        numa_node=told.numa_node if gpu.numa_node is None else gpu.numa_node,
        boot_vga=told.boot_vga,
        memory_bytes=told.vram_bytes or told.bar_bytes,
        memory_source=source,
    )


def _with_nvml(gpu: Gpu, told: NvmlDevice | None) -> Gpu:
    if told is None:
        return gpu
    return replace(
        gpu,
        uuid=told.uuid,
        serial=told.serial or gpu.serial,
        model=told.name or gpu.model,
        memory_bytes=told.memory_bytes or gpu.memory_bytes,
        memory_source=FROM_DRIVER if told.memory_bytes else gpu.memory_source,
        children=(*gpu.children, *told.children),
    )


def kept_facts(known: Gpu, seen: Gpu) -> Gpu:
    """What was seen, with facts kept that only a driver tells: bound to vfio-pci, a GPU tells neither UUID nor memory.

    Args:
        known: of the last look.
        seen: the same card.
    """
    better = known.memory_source == FROM_DRIVER and seen.memory_source != FROM_DRIVER
    return replace(
        seen,
        uuid=seen.uuid or known.uuid,
        serial=seen.serial or known.serial,
        model=known.model if known.uuid and not seen.uuid else seen.model,
        memory_bytes=known.memory_bytes if better or seen.memory_bytes is None else seen.memory_bytes,
        memory_source=known.memory_source if better or seen.memory_bytes is None else seen.memory_source,
        boot_vga=known.boot_vga if seen.boot_vga is None else seen.boot_vga,
    )


def is_other_card(known: Gpu, seen: Gpu) -> bool:
    """Whether another card stands at an address than before: another model, or another identity of the same kind."""
    if (known.vendor_id, known.model_id) != (seen.vendor_id, seen.model_id):
        return True
    return any(one and other and one != other for one, other in ((known.uuid, seen.uuid), (known.serial, seen.serial)))


def obstacle(gpu: Gpu, devices: Mapping[str, PciDevice], *, allow_boot_vga: bool) -> str:
    """Why a GPU that nobody uses cannot be handed out, in words; empty when it can.

    Args:
        gpu: the GPU.
        devices: all PCI devices of its host, by address.
        allow_boot_vga: whether the host's own console may be handed out.
    """
    if gpu.boot_vga and not allow_boot_vga:
        return "the host's console uses it (boot VGA)"
    if gpu.mig_instances:
        return f"the host has divided it into {gpu.mig_instances} MIG instances"
    if gpu.iommu_group is None:
        return "it is in no IOMMU group: the host's IOMMU is off"
    for address in gpu.iommu_members:
        other = devices.get(address)
        if other is not None and _keeps_group(other, gpu):
            driver = f"driver {other.driver}"
            return f"its IOMMU group {gpu.iommu_group} holds {address} (class {other.pci_class}, {driver}), too"
    return ""


def _keeps_group(other: PciDevice, gpu: Gpu) -> bool:
    """Whether the host uses a device of the group that is no part of the unit."""
    own = slot_of(other.address) == slot_of(gpu.address) or other.is_gpu or other.physical_function == gpu.address
    return not own and bool(other.driver) and "vfio" not in other.driver and other.driver != "pci-stub"
