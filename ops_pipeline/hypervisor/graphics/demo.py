"""The GPUs of the demo's hypervisor: node devices and `<hostdev>` elements for a file of libvirt's test driver.

There is one of everything that an operator meets: GPUs that are free, one in use with its sound function, one that is
divided among two machines, two in one IOMMU group of which a machine has one, and one that nobody gave to whom has it.

What belongs here: that file's parts, and the assignments that go with them. What does not: the rest of the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import NAMESPACE_DNS, uuid5

from ops_pipeline.hypervisor.graphics.addresses import canonical
from ops_pipeline.hypervisor.graphics.devices import PciDevice

FEWEST_MACHINES = 5
_A100 = PciDevice("", "030200", "10de", "NVIDIA Corporation", "20b5", "GA100 [A100 PCIe 80GB]")
_RTX = PciDevice("", "030000", "10de", "NVIDIA Corporation", "2684", "AD102 [GeForce RTX 4090]")
_SOUND = PciDevice("", "040300", "10de", "NVIDIA Corporation", "22ba", "AD102 High Definition Audio Controller")
_MI210 = PciDevice("", "030200", "1002", "AMD", "740f", "Aldebaran/MI200 [Instinct MI210]")


@dataclass(frozen=True)
class DemoGpus:
    """Parts of the demo.

    Attributes:
        devices: `<device>` elements, to stand in `<node>` behind the domains.
        hostdevs: elements for `<devices>` of domains, by the domain's name.
        assignments: address, mediated device (empty for the whole) and domain's name of each assignment.
    """

    devices: tuple[str, ...]
    hostdevs: Mapping[str, tuple[str, ...]]
    assignments: tuple[tuple[str, str, str], ...]


def demo_gpus(names: Sequence[str]) -> DemoGpus:
    """The GPUs of a demo host, the first machines of which have some.

    Args:
        names: of the host's domains; the first four have what they were given, the fifth what it was not.

    Raises:
        ValueError: fewer than five.
    """
    if len(names) < FEWEST_MACHINES:
        raise ValueError(f"the demo's GPUs are for at least {FEWEST_MACHINES} machines")
    whole, first, second, grouped, stranger = names[:FEWEST_MACHINES]
    gpu, sound, shared, unasked = "0000:21:00.0", "0000:21:00.1", "0000:41:00.0", "0000:62:00.0"
    pair = ("0000:81:00.0", "0000:82:00.0")
    parts = [str(uuid5(NAMESPACE_DNS, f"demo-mdev-{number}")) for number in (1, 2)]
    devices = (
        _computer(),
        _pci(_placed(_RTX, gpu, gpu, sound)),
        _pci(_placed(_SOUND, sound, gpu, sound)),
        _pci(_placed(_A100, shared), _MDEV_TYPES),
        *(_mdev(part, shared) for part in parts),
        *(_pci(_placed(_A100, one)) for one in ("0000:61:00.0", unasked)),
        *(_pci(_placed(_MI210, one, *pair)) for one in pair),
        _pci(_placed(_MI210, "0000:a1:00.0")),
    )
    return DemoGpus(
        devices=devices,
        hostdevs={
            whole: (_hostdev(gpu), _hostdev(sound)),
            first: (_hostdev_mdev(parts[0]),),
            second: (_hostdev_mdev(parts[1]),),
            grouped: (_hostdev(pair[0]),),
            stranger: (_hostdev(unasked),),
        },
        assignments=((gpu, "", whole), (shared, parts[0], first), (shared, parts[1], second), (pair[0], "", grouped)),
    )


_MDEV_TYPES = (
    "<capability type='mdev_types'><type id='nvidia-468'><name>GRID A100-4C</name><deviceAPI>vfio-pci</deviceAPI>"
    "<availableInstances>8</availableInstances></type></capability>"
)


def _placed(device: PciDevice, address: str, *group: str) -> PciDevice:
    """A device at an address, in an IOMMU group with others or alone; the group has the number of its first bus."""
    members = group or (address,)
    return replace(device, address=address, iommu_group=_parts(members[0])[1], group_members=members)


def _computer() -> str:
    return (
        "<device><name>computer</name><capability type='system'><hardware><vendor>demo</vendor>"
        f"<uuid>{uuid5(NAMESPACE_DNS, 'demo-host')}</uuid></hardware><firmware/></capability></device>"
    )


def _parts(address: str) -> tuple[int, int, int, int]:
    domain, bus, rest = canonical(address).split(":")
    slot, function = rest.split(".")
    return int(domain, 16), int(bus, 16), int(slot, 16), int(function, 16)


def _address(address: str) -> str:
    domain, bus, slot, function = _parts(address)
    return f"<address domain='0x{domain:04x}' bus='0x{bus:02x}' slot='0x{slot:02x}' function='0x{function}'/>"


def _node_name(address: str) -> str:
    return "pci_" + address.replace(":", "_").replace(".", "_")


def _pci(device: PciDevice, extra: str = "") -> str:
    domain, bus, slot, function = _parts(device.address)
    group = "".join(map(_address, device.group_members))
    return (
        f"<device><name>{_node_name(device.address)}</name><parent>computer</parent>"
        f"<capability type='pci'><class>0x{device.pci_class}</class>"
        f"<domain>{domain}</domain><bus>{bus}</bus><slot>{slot}</slot><function>{function}</function>"
        f"<product id='0x{device.model_id}'>{device.model}</product>"
        f"<vendor id='0x{device.vendor_id}'>{device.vendor}</vendor>{extra}"
        f"<iommuGroup number='{device.iommu_group}'>{group}</iommuGroup><numa node='0'/></capability></device>"
    )


def _mdev(uuid: str, parent: str) -> str:
    return (
        f"<device><name>mdev_{uuid.replace('-', '_')}</name><parent>{_node_name(parent)}</parent>"
        f"<capability type='mdev'><type id='nvidia-468'/><uuid>{uuid}</uuid><iommuGroup number='120'/></capability>"
        "</device>"
    )


def _hostdev(address: str) -> str:
    source = f"<source>{_address(address)}</source>"
    return f"<hostdev mode='subsystem' type='pci' managed='yes'>{source}</hostdev>"


def _hostdev_mdev(uuid: str) -> str:
    source = f"<source><address uuid='{uuid}'/></source>"
    return f"<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>{source}</hostdev>"
