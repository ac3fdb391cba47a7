"""PCI addresses in one spelling: `dddd:bb:ss.f`, lower case.

nvidia-smi writes `00000000:B4:00.0`, lspci `b4:00.0`, sysfs `0000:b4:00.0`, libvirt decimal parts or the name
`pci_0000_b4_00_0`: one device. Domains may be longer than four digits (Intel VMD begins at 10000).

What belongs here: spelling. What does not: what stands at an address.
"""

from __future__ import annotations

import re

_TEXT = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])", re.IGNORECASE)
_NODE_NAME = re.compile(r"pci_([0-9a-f]{4,8})_([0-9a-f]{2})_([0-9a-f]{2})_([0-7])", re.IGNORECASE)
_LARGEST = (0xFFFFFFFF, 0xFF, 0x1F, 7)


def canonical(text: str) -> str:
    """The one spelling of an address.

    Raises:
        ValueError: the text is no PCI address.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no PCI address; write for example 0000:b4:00.0")
    return from_parts(*(int(part or "0", 16) for part in match.groups()))


def from_parts(domain: int, bus: int, slot: int, function: int) -> str:
    """The address of numbers.

    Raises:
        ValueError: a number lies beyond what PCI has.
    """
    parts = (domain, bus, slot, function)
    if any(not 0 <= part <= largest for part, largest in zip(parts, _LARGEST, strict=True)):
        raise ValueError(f"domain {domain}, bus {bus}, slot {slot}, function {function} are no PCI address")
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"


def from_node_name(name: str) -> str | None:
    """The address that libvirt's name of a node device tells, such as `pci_0000_b4_00_0`; None for other names."""
    match = _NODE_NAME.fullmatch(name.strip())
    return canonical("{}:{}:{}.{}".format(*match.groups())) if match else None


def slot_of(address: str) -> str:
    """A canonical address without its function: what the functions of one card have in common."""
    return address.rpartition(".")[0]
