"""Which devices of the host a domain uses, by its own XML: `<hostdev>`, and network interfaces that are such.

What belongs here: reading the XML of domains. What does not: what the devices are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

# libvirt wrote the text itself, without a document type, and expat refuses entities that grow.
from xml.etree.ElementTree import Element, ParseError, fromstring

from ops_pipeline.hypervisor.graphics.addresses import from_parts
from ops_pipeline.hypervisor.graphics.devices import pci_number

PCI, MDEV = "pci", "mdev"


class DomainUnreadable(ValueError):
    """The XML of one domain cannot be read: what it uses is not known."""


@dataclass(frozen=True)
class Use:
    """A device of the host in the hands of a domain.

    Attributes:
        kind: `pci` or `mdev`.
        target: the canonical address of a PCI device, the UUID of a mediated one.
        managed: libvirt takes the device from the host's driver and gives it back.
        running: the running domain has it.
        defined: the domain is going to have it at its next start.
    """

    kind: str
    target: str
    managed: bool = False
    running: bool = False
    defined: bool = False


@dataclass(frozen=True)
class Domain:
    """A domain of a hypervisor and what it uses."""

    uuid: str
    name: str
    active: bool
    uses: tuple[Use, ...] = ()


def uses_of(running_xml: str | None, defined_xml: str | None) -> tuple[Use, ...]:
    """What a domain uses, sorted by target.

    Args:
        running_xml: of a domain that runs; None for one that does not.
        defined_xml: what it starts from the next time; None for one that vanishes when it stops.

    Raises:
        DomainUnreadable: a text is no XML, or a device in it has no readable address.
    """
    found: dict[tuple[str, str], Use] = {}
    for xml, running in ((running_xml, True), (defined_xml, False)):
        for use in _uses(xml) if xml is not None else ():
            known = found.get((use.kind, use.target), use)
            changed = replace(known, running=True) if running else replace(known, defined=True)
            found[use.kind, use.target] = changed
    return tuple(found[key] for key in sorted(found))


def _uses(xml: str) -> Iterator[Use]:
    if "hostdev" not in xml:
        # Most domains use none, and 10,000 documents take seconds to read.
        return
    try:
        root = fromstring(xml)  # noqa: S314 - see the import
    except ParseError as error:
        raise DomainUnreadable(f"its XML cannot be read: {error}") from error
    devices = root.find("devices")
    for device in devices if devices is not None else ():
        if device.tag == "hostdev" or (device.tag == "interface" and device.get("type") == "hostdev"):
            use = _use(device)
            if use is not None:
                yield use


def _use(device: Element) -> Use | None:
    """The use of one element; None for USB, SCSI and other devices that have no PCI address."""
    address = device.find("./source/address")
    if address is None:
        return None
    managed = device.get("managed") == "yes"
    if device.get("type") == MDEV:
        return Use(MDEV, address.get("uuid", "").lower(), managed)
    if device.get("type") not in {PCI, "hostdev"} or address.get("type", PCI) != PCI:
        return None
    try:
        # libvirt lets domain and function be left out where they are 0.
        parts = (pci_number(address.get(part, "0")) for part in ("domain", "bus", "slot", "function"))
        return Use(PCI, from_parts(*parts), managed)
    except ValueError as error:
        raise DomainUnreadable(f"a host device of it: {error}") from error
