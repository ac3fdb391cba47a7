"""Filters as libvirt has them: what a look at one host finds, and what changes them there.

What belongs here: calls to libvirt over a connection that somebody else opened, and plain data out of them. They
are made in a process that is killed when the host hangs, so that each changes one filter wholly.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import libvirt

from ops_pipeline.hypervisor.filters.facts import (
    DONE,
    FAILED,
    SKIPPED,
    FilterLook,
    Guest,
    LiveFilter,
    Order,
    Step,
    interfaces_of,
    uses,
)

NOT_SUPPORTED = frozenset({libvirt.VIR_ERR_NO_SUPPORT})
READERS = 4
"""Filters read at a time; a daemon works on five requests of one client at most."""
GONE = frozenset({libvirt.VIR_ERR_NO_NWFILTER, libvirt.VIR_ERR_NO_NWFILTER_BINDING, libvirt.VIR_ERR_NO_DOMAIN})


def look_at_filters(connection: Any, _argument: object = None) -> FilterLook:
    """Read every filter, binding and domain of a host."""
    try:
        found = connection.listAllNWFilters()
    except libvirt.libvirtError as error:
        if error.get_error_code() in NOT_SUPPORTED:
            return FilterLook(supported=False, pretends=connection.getType() == "TEST")
        raise
    guests, unread = _guests(connection)
    return FilterLook(filters=_filters(found), guests=guests, bindings=_bindings(connection), unread=unread)


def _filters(found: Sequence[Any]) -> dict[str, LiveFilter]:
    """Read filters, some at a time: while one is on its way back, the daemon writes the next."""
    texts: dict[int, str | None] = {}
    failures: list[Exception] = []

    def read(numbers: Iterable[int]) -> None:
        try:
            for number in numbers:
                texts[number] = _unless_gone(found[number].XMLDesc)
        except Exception as error:  # noqa: BLE001 - raised by the thread that waits
            failures.append(error)

    readers = [threading.Thread(target=read, args=(range(at, len(found), READERS),)) for at in range(READERS)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    if failures:
        raise failures[0]
    live = [(one, texts[number]) for number, one in enumerate(found)]
    return {one.name(): LiveFilter(one.name(), one.UUIDString(), xml) for one, xml in live if xml is not None}


def _unless_gone(read: Any, *arguments: Any) -> Any:
    """What a call returns; None when somebody removed the object since it was listed."""
    try:
        return read(*arguments)
    except libvirt.libvirtError as error:
        if error.get_error_code() in GONE:
            return None
        raise


def _bindings(connection: Any) -> dict[str, str]:
    try:
        found = connection.listAllNWFilterBindings()
    except libvirt.libvirtError as error:
        if error.get_error_code() in NOT_SUPPORTED:
            return {}
        raise
    return {one.portDev(): one.filterName() for one in found}


def _guests(connection: Any) -> tuple[tuple[Guest, ...], tuple[str, ...]]:
    guests: list[Guest] = []
    unread: list[str] = []
    for domain in connection.listAllDomains():
        try:
            guest = _unless_gone(_guest, domain)
        except libvirt.libvirtError as error:
            unread.append(f"{domain.name()} ({error})")
        else:
            guests += [guest] if guest is not None else []
    return tuple(guests), tuple(unread)


def _guest(domain: Any) -> Guest:
    running = bool(domain.isActive())
    interfaces = interfaces_of(domain.XMLDesc(0))
    planned = interfaces
    if running and domain.isPersistent():
        planned = interfaces_of(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    return Guest(domain.name(), domain.UUIDString(), running, interfaces, planned)


def define_filters(connection: Any, orders: Sequence[Order]) -> Iterator[Step]:
    """Define filters, one after the other; whatever fails leaves the filter as it was, and the others are done.

    A definition under the same name and UUID replaces the rules of running machines in one step: libvirt loads the new
    ones and goes back to the old ones if that fails. Nothing is ever undefined for it.
    """
    done: set[str] = set()
    for order in orders:
        try:
            step = _define(connection, order, done)
        except libvirt.libvirtError as error:
            step = _failed(connection, order.name, error)
        if step.what == DONE:
            done.add(order.name)
        yield step


def _define(connection: Any, order: Order, done: Container[str]) -> Step:
    missing = [name for name in order.includes if name not in done and _current(connection, name) is None]
    if missing:
        return Step(order.name, FAILED, f"it includes {missing[0]}, which is not there")
    if (_current(connection, order.name) or "") != order.planned_from:
        return Step(order.name, SKIPPED, "somebody changed it since it was looked at; the next run looks again")
    connection.nwfilterDefineXML(order.xml)
    return Step(order.name, DONE)


def _current(connection: Any, name: str) -> str | None:
    try:
        return connection.nwfilterLookupByName(name).XMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() in GONE:
            return None
        raise


def _failed(connection: Any, name: str, error: libvirt.libvirtError) -> Step:
    """The step that failed; when the daemon is gone, so are all the others, which is told once for the host."""
    if not connection.isAlive():
        raise error
    return Step(name, FAILED, str(error))


def remove_filters(connection: Any, uuids: Mapping[str, str]) -> Iterator[Step]:
    """Undefine filters by name, in order, unless something has come to use one or it has become another one.

    libvirt itself refuses only what a running domain uses: what a domain that is off uses, and what another filter
    includes, is looked up right before.
    """
    look = look_at_filters(connection)
    for name, uuid in uuids.items():
        try:
            step = _remove(connection, name, uuid, look)
        except libvirt.libvirtError as error:
            step = _failed(connection, name, error)
        if step.what == DONE:
            look = replace(look, filters={other: one for other, one in look.filters.items() if other != name})
        yield step


def _remove(connection: Any, name: str, uuid: str, look: FilterLook) -> Step:
    live, used = look.filters.get(name), uses(look).get(name)
    if live is None or live.uuid != uuid:
        return Step(name, SKIPPED, "it is gone, or another one has its name")
    if look.unread or used:
        return Step(name, SKIPPED, used or f"{look.unread[0]} could not be read")
    connection.nwfilterLookupByUUIDString(uuid).undefine()
    return Step(name, DONE)
