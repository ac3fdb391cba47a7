"""One look at a host: its PCI devices, and what each domain uses.

Runs in the process of a host (`looking.ask_hosts`), where a call that hangs is ended at the deadline: libvirt, NVML
and sysfs alike. Enriched by sysfs and NVML only where libvirt is this machine's own.

What belongs here: calls of libvirt. What does not: reading what they return (`devices`, `hostdevs`), and SQLAlchemy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ops_pipeline.hypervisor.graphics.devices import DeviceUnreadable, Mdev, PciDevice, read_mdev, read_pci_device
from ops_pipeline.hypervisor.graphics.facts import HostGraphics
from ops_pipeline.hypervisor.graphics.hostdevs import Domain, DomainUnreadable, uses_of
from ops_pipeline.hypervisor.graphics.nvml import NvmlReport, load_nvml, read_nvml
from ops_pipeline.hypervisor.graphics.sysfs import SYSFS, read_sysfs
from ops_pipeline.hypervisor.graphics.units import gpus_of

LOOK = "ops_pipeline.hypervisor.graphics.look:look_at_graphics"
BROKEN = frozenset({5, 38, 39, 68})
"""Errors of the connection, not of one object: what was not read by then was not looked at."""
VANISHED = 42
ONLY_PRETENDS = frozenset({"test"})
"""Drivers whose devices are made up, even when they run on this machine."""

Read = TypeVar("Read")


def look_at_graphics(connection: Any, _argument: object = None) -> HostGraphics:
    """Look at the host of a connection.

    Raises:
        libvirt.libvirtError: the host could not be looked at.
    """
    if not is_this_machine(connection.getURI()):
        return observe(connection, None, None)
    return observe(connection, SYSFS, load_nvml())


def is_this_machine(uri: str) -> bool:
    """Whether a libvirt is that of the machine that asks: no host in its URI, and a driver of real devices."""
    parts = urlsplit(uri)
    return not parts.hostname and parts.scheme.partition("+")[0] not in ONLY_PRETENDS


def observe(connection: Any, sysfs: Path | None, nvml: Any | None) -> HostGraphics:
    """Read devices and domains.

    Args:
        connection: of libvirt.
        sysfs: where the sysfs of the same machine is; None for another machine.
        nvml: the module pynvml if the same machine has it.

    Raises:
        libvirt.libvirtError: the host could not be looked at.
    """
    libvirt = importlib.import_module("libvirt")
    devices: list[PciDevice] = []
    mdevs: list[Mdev] = []
    unreadable: list[tuple[str, str]] = []
    for device in connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV):
        _collect(libvirt, device, read_pci_device, devices, unreadable)
    for device in _mdevs(libvirt, connection):
        _collect(libvirt, device, read_mdev, mdevs, unreadable)
    told = NvmlReport() if nvml is None else read_nvml(nvml)
    kernel = {one.address: read_sysfs(one.address, sysfs) for one in devices if one.is_gpu} if sysfs else {}
    domains, unread = _domains(libvirt, connection)
    return HostGraphics(
        gpus=gpus_of(devices, mdevs, {a: one for a, one in kernel.items() if one is not None}, told.devices),
        devices=tuple(sorted(devices, key=lambda one: one.address)),
        mdevs=tuple(sorted(mdevs, key=lambda one: one.uuid)),
        domains=tuple(domains),
        unreadable_devices=tuple(unreadable),
        unreadable_domains=tuple(unread),
        problems=told.problems,
    )


def _mdevs(libvirt: Any, connection: Any) -> Any:
    """Mediated devices; also those that are only defined, since machines that are off have them in their XML."""
    kind = libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV
    both = libvirt.VIR_CONNECT_LIST_NODE_DEVICES_ACTIVE | libvirt.VIR_CONNECT_LIST_NODE_DEVICES_INACTIVE
    try:
        return connection.listAllDevices(kind | both)
    except libvirt.libvirtError as error:
        if error.get_error_code() in BROKEN:
            raise
        # Daemons before 7.3 know of no defined ones.
        return connection.listAllDevices(kind)


def _collect(
    libvirt: Any, device: Any, read: Callable[[str], Read], found: list[Read], unreadable: list[tuple[str, str]]
) -> None:
    """Read one device; one that cannot be read is skipped, with its name."""
    name = device.name()
    try:
        found.append(read(device.XMLDesc(0)))
    except DeviceUnreadable as error:
        unreadable.append((name, str(error)))
    except libvirt.libvirtError as error:
        if error.get_error_code() in BROKEN:
            raise
        unreadable.append((name, str(error)))


def _domains(libvirt: Any, connection: Any) -> tuple[list[Domain], list[tuple[str, str]]]:
    domains, unread = [], []
    for domain in connection.listAllDomains(0):
        name = domain.name()
        try:
            domains.append(_domain(libvirt, domain, name))
        except DomainUnreadable as error:
            unread.append((name, str(error)))
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            if code in BROKEN:
                raise
            if code != VANISHED:
                unread.append((name, str(error)))
    return sorted(domains, key=lambda one: one.uuid), unread


def _domain(libvirt: Any, domain: Any, name: str) -> Domain:
    active = bool(domain.isActive())
    running = domain.XMLDesc(0) if active else None
    defined = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if domain.isPersistent() else None
    return Domain(domain.UUIDString(), name, active, uses_of(running, defined))
