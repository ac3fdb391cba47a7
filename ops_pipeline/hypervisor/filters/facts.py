"""What a look at the filters of one host finds, and what can be asked to be changed there.

What belongs here: plain data that goes from one process to another, and what follows from it. Calls to
libvirt are in `live`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree


@dataclass(frozen=True)
class LiveFilter:
    """A filter as libvirt dumps it."""

    name: str
    uuid: str
    xml: str


@dataclass(frozen=True)
class Interface:
    """A network interface of a domain.

    Attributes:
        mac: lower case.
        kind: its type in libvirt, for example `bridge`.
        device: the tap device; empty while the domain is off.
        filter: the filter that the domain's XML names; empty for none.
    """

    mac: str
    kind: str
    device: str
    filter: str


@dataclass(frozen=True)
class Guest:
    """A domain: what it has now, and what it will have at its next start."""

    name: str
    uuid: str
    running: bool
    interfaces: tuple[Interface, ...]
    planned: tuple[Interface, ...] = ()


@dataclass(frozen=True)
class FilterLook:
    """What one host has.

    Attributes:
        supported: False when its driver knows no filters, as LXC's, or QEMU's without its part for filters installed.
        pretends: whether it is libvirt's test driver, on which no machine runs that could be open.
        filters: by name, those of others too.
        guests: every domain, running or not.
        bindings: the filter that is really bound, by tap device.
        unread: domains that could not be read; what they use is not known.
    """

    supported: bool = True
    pretends: bool = False
    filters: Mapping[str, LiveFilter] = field(default_factory=dict)
    guests: tuple[Guest, ...] = ()
    bindings: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """One filter to define.

    Attributes:
        name: of the filter.
        xml: to be defined.
        planned_from: what stood there when it was planned; empty for nothing.
        includes: the filters that it includes.
    """

    name: str
    xml: str
    planned_from: str
    includes: tuple[str, ...] = ()


DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class Step:
    """What came of one filter that was to be defined or removed: done, or why it was left as it is, or failed."""

    name: str
    what: str
    reason: str = ""


def interfaces_of(xml: str) -> tuple[Interface, ...]:
    """The network interfaces in a domain's XML."""
    if "<interface" not in xml:
        return ()
    found = []
    for element in ElementTree.fromstring(xml).iterfind("devices/interface"):  # noqa: S314 - written by libvirt
        mac, target, filterref = (element.find(tag) for tag in ("mac", "target", "filterref"))
        found.append(
            Interface(
                mac=(mac.get("address", "") if mac is not None else "").lower(),
                kind=element.get("type", ""),
                device=target.get("dev", "") if target is not None else "",
                filter=filterref.get("filter", "") if filterref is not None else "",
            )
        )
    return tuple(found)


def uses(look: FilterLook) -> dict[str, str]:
    """Who uses a filter, by its name: one user of each, in words."""
    # By name: libvirt lists in any order, and of several users the same one is told at each look.
    found: dict[str, str] = {}
    for device, name in sorted(look.bindings.items()):
        found.setdefault(name, f"it is bound to {device}")
    for guest in sorted(look.guests, key=lambda one: one.name):
        for interface in (*guest.interfaces, *guest.planned):
            if interface.filter:
                state = "" if guest.running else ", which is off,"
                found.setdefault(interface.filter, f"an interface of {guest.name}{state} names it")
    for _, one in sorted(look.filters.items()):
        for name in included(one.xml):
            found.setdefault(name, f"{one.name} includes it")
    return found


def included(xml: str) -> list[str]:
    """The filters that one includes."""
    if "<filterref" not in xml:
        return []
    return [one.get("filter", "") for one in ElementTree.fromstring(xml).iterfind("filterref")]  # noqa: S314
