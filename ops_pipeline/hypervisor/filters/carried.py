"""Whether machines carry the filters that they should: in their XML, and bound to their tap devices.

What belongs here: comparing what the platform linked with what a look found; pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ops_pipeline.hypervisor.filters.facts import FilterLook, Guest, Interface

CARRIERS = frozenset({"bridge", "ethernet", "network"})
"""The kinds of interfaces on which libvirt applies filters."""


@dataclass(frozen=True)
class Link:
    """A machine that should carry a filter.

    Attributes:
        host_id: of the host that it belongs to.
        machine: what an operator calls it.
        domain: its name in libvirt.
        uuid: in libvirt; empty where the platform does not know it.
        filter: the filter's name in libvirt; empty when the database has no such filter.
        mac: of the one interface that is meant; empty for all.
        department: whether it is the machine's only through its department.
    """

    host_id: str
    machine: str
    domain: str
    uuid: str
    filter: str
    mac: str = ""
    department: bool = False


def uncarried(look: FilterLook, links: Iterable[Link]) -> dict[str, str]:
    """What is wrong with the filters of the machines of one host, in words, by machine."""
    if not look.supported:
        # Nothing can be looked at there; that is not to say that all is well.
        return {} if look.pretends else {link.machine: _nowhere(link) for link in links}
    by_name = {guest.name: guest for guest in look.guests}
    by_uuid = {guest.uuid: guest for guest in look.guests}
    grouped: dict[str, list[Link]] = defaultdict(list)
    for link in links:
        grouped[link.machine].append(link)
    found: dict[str, str] = {}
    for machine, theirs in sorted(grouped.items()):
        own = [link for link in theirs if not link.department] or theirs
        guest = by_uuid.get(own[0].uuid.lower()) or by_name.get(own[0].domain)
        if guest is not None:
            problems = _problems(guest, own, look.bindings)
            if problems:
                found[machine] = "; ".join(problems)
    return found


def _nowhere(link: Link) -> str:
    name = link.filter or "a filter that the database does not have"
    return f"it should carry {name}, but libvirt's driver of its host knows no network filters"


def _problems(guest: Guest, links: Sequence[Link], bindings: Mapping[str, str]) -> list[str]:
    lost = [link for link in links if not link.filter]
    if lost:
        return ["it should carry a filter that the database does not have"]
    found = [
        f"it has no interface {link.mac}"
        for link in links
        if link.mac and all(link.mac.lower() != one.mac for one in (*guest.interfaces, *guest.planned))
    ]
    for interface in guest.interfaces:
        wanted = _wanted(interface, links)
        found += _wrong(interface, wanted, bindings if guest.running else None)
    later = {one.mac: one for one in guest.planned}
    for interface in guest.interfaces:
        planned, wanted = later.get(interface.mac, interface), _wanted(interface, links)
        if len(wanted) == 1 and planned.filter not in wanted and interface.filter in wanted:
            found.append(f"{interface.mac} will carry {planned.filter or 'no filter'} after its next start")
    return found


def _wanted(interface: Interface, links: Sequence[Link]) -> set[str]:
    """The filters that an interface should carry: its own ones, else those of all interfaces."""
    exact = {link.filter for link in links if link.mac.lower() == interface.mac}
    return exact or {link.filter for link in links if not link.mac}


def _wrong(interface: Interface, wanted: set[str], bindings: Mapping[str, str] | None) -> list[str]:
    if not wanted:
        return []
    if len(wanted) > 1:
        return [f"{interface.mac} should carry {' and '.join(sorted(wanted))}, but libvirt takes one filter only"]
    (name,) = wanted
    if interface.kind not in CARRIERS:
        return [f"{interface.mac} should carry {name}, but libvirt applies none to interfaces of type {interface.kind}"]
    if interface.filter != name:
        return [f"{interface.mac} carries {interface.filter or 'no filter'} instead of {name}"]
    if bindings is not None and bindings.get(interface.device) != name:
        bound = bindings.get(interface.device)
        return [f"{interface.mac} names {name}, but {bound or 'no filter'} is bound to {interface.device}"]
    return []
