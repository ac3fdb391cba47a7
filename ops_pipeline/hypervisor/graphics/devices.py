"""What libvirt tells about PCI and mediated devices: its XML of node devices, read into plain facts.

What belongs here: reading one device's XML. What does not: which devices are GPUs and how they belong together
(`units`), and asking libvirt (`look`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# libvirt wrote the text itself, without a document type, and expat refuses entities that grow.
from xml.etree.ElementTree import Element, ParseError, fromstring

from ops_pipeline.hypervisor.graphics.addresses import canonical, from_node_name, from_parts

VGA, THREE_D, DISPLAY = 0x0300, 0x0302, 0x0380
GPU_CLASSES = frozenset({VGA, THREE_D, DISPLAY})
BRIDGES = 0x06


class DeviceUnreadable(ValueError):
    """The XML of one device cannot be read; only that device is skipped."""


@dataclass(frozen=True)
class MdevType:
    """A kind of mediated device that a GPU can be divided into; `available` more of them can be made."""

    id: str
    name: str
    available: int


@dataclass(frozen=True)
class PciDevice:
    """One PCI function as libvirt tells it.

    Attributes:
        address: canonical.
        pci_class: six hexadecimal digits, for example `030200`.
        vendor_id: four hexadecimal digits, for example `10de`.
        vendor: its name; empty when the PCI database does not know it.
        model_id: four hexadecimal digits.
        model: its name.
        driver: the host's driver that holds it, for example `vfio-pci`; empty for none.
        iommu_group: None without an IOMMU.
        group_members: the addresses of all devices of that group, this one included.
        numa_node: None when the host does not say.
        serial: from the device's vital product data; empty when it has none.
        physical_function: the address of the device whose virtual function this is; empty for others.
        virtual_functions: the addresses of its virtual functions.
        mdev_types: what it can be divided into.
    """

    address: str
    pci_class: str
    vendor_id: str = ""
    vendor: str = ""
    model_id: str = ""
    model: str = ""
    driver: str = ""
    iommu_group: int | None = None
    group_members: tuple[str, ...] = ()
    numa_node: int | None = None
    serial: str = ""
    physical_function: str = ""
    virtual_functions: tuple[str, ...] = ()
    mdev_types: tuple[MdevType, ...] = ()

    @property
    def is_gpu(self) -> bool:
        """VGA, 3D and display controllers; the sound of a graphics card is none."""
        return int(self.pci_class[:4], 16) in GPU_CLASSES

    @property
    def is_bridge(self) -> bool:
        """Bridges may stay with the host when their IOMMU group is handed out."""
        return int(self.pci_class[:2], 16) == BRIDGES


@dataclass(frozen=True)
class Mdev:
    """A mediated device: a part of a GPU that a machine can be given, as `type`."""

    uuid: str
    parent: str
    type: str


def read_pci_device(xml: str) -> PciDevice:
    """Read the XML of a PCI node device.

    Raises:
        DeviceUnreadable: it is no XML, or lacks its address or class.
    """
    root = _parsed(xml)
    pci = root.find("./capability[@type='pci']")
    if pci is None:
        raise DeviceUnreadable("it has no capability 'pci'")
    try:
        address = from_parts(*(_number(pci.findtext(part)) for part in ("domain", "bus", "slot", "function")))
        pci_class = f"{_number(pci.findtext('class')):06x}"
        group = pci.find("iommuGroup")
        return PciDevice(
            address=address,
            pci_class=pci_class,
            vendor_id=_id_of(pci, "vendor"),
            vendor=_text(pci, "vendor"),
            model_id=_id_of(pci, "product"),
            model=_text(pci, "product"),
            driver=_text(root, "driver/name"),
            iommu_group=None if group is None else _number(group.get("number")),
            group_members=() if group is None else tuple(sorted(_addresses(group))),
            numa_node=_numa(pci),
            serial=_text(pci, "./capability[@type='vpd']/fields/serial_number"),
            physical_function=next(_addresses(pci.find("./capability[@type='phys_function']")), ""),
            virtual_functions=tuple(sorted(_addresses(pci.find("./capability[@type='virt_functions']")))),
            mdev_types=tuple(_mdev_types(pci)),
        )
    except ValueError as error:
        raise DeviceUnreadable(str(error)) from error


def read_mdev(xml: str) -> Mdev:
    """Read the XML of a mediated device.

    Raises:
        DeviceUnreadable: it is no XML, or does not tell its UUID or what it is a part of.
    """
    root = _parsed(xml)
    uuid = _text(root, "./capability[@type='mdev']/uuid").lower()
    kind = root.find("./capability[@type='mdev']/type")
    # Newer libvirt tells the parent's address, older only the name of its node device.
    told = _text(root, "./capability[@type='mdev']/parent_addr")
    try:
        parent = canonical(told) if told else from_node_name(_text(root, "parent"))
    except ValueError as error:
        raise DeviceUnreadable(str(error)) from error
    if not uuid or parent is None:
        raise DeviceUnreadable("it does not tell its UUID and the PCI device that it is a part of")
    return Mdev(uuid, parent, "" if kind is None else kind.get("id", ""))


def pci_number(text: str | None) -> int:
    """A number as libvirt writes it: decimal, or hexadecimal behind `0x`.

    Raises:
        ValueError: it is none.
    """
    if text is None:
        raise ValueError("a number is missing in its address or class")
    text = text.strip().lower()
    return int(text, 16) if text.startswith("0x") else int(text, 10)


_number = pci_number


def _parsed(xml: str) -> Element:
    try:
        return fromstring(xml)  # noqa: S314 - see the import
    except ParseError as error:
        raise DeviceUnreadable(f"its XML cannot be read: {error}") from error


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _id_of(pci: Element, tag: str) -> str:
    element = pci.find(tag)
    told = None if element is None else element.get("id")
    return f"{_number(told):04x}" if told else ""


def _addresses(element: Element | None) -> Iterator[str]:
    for one in element.findall("address") if element is not None else ():
        yield from_parts(*(_number(one.get(part)) for part in ("domain", "bus", "slot", "function")))


def _numa(pci: Element) -> int | None:
    element = pci.find("numa")
    node = -1 if element is None else _number(element.get("node"))
    return node if node >= 0 else None


def _mdev_types(pci: Element) -> Iterator[MdevType]:
    for one in pci.findall("./capability[@type='mdev_types']/type"):
        yield MdevType(one.get("id", ""), _text(one, "name"), _number(_text(one, "availableInstances") or "0"))
