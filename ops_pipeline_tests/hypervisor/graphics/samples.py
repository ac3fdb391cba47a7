"""Hosts with GPUs for tests: node devices and domains as libvirt writes them, and facts of which plans are made."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Table, insert

from ops_pipeline.database.engine import writing
from ops_pipeline.hypervisor.graphics.devices import PciDevice
from ops_pipeline.hypervisor.graphics.facts import (
    AVAILABLE,
    MISSING,
    Assignment,
    GraphicsPolicy,
    HostGraphics,
    HostPlan,
    HostRecords,
    Known,
    Machine,
)
from ops_pipeline.hypervisor.graphics.hostdevs import MDEV, PCI, Domain, Use
from ops_pipeline.hypervisor.graphics.inventory import plan_host
from ops_pipeline.hypervisor.graphics.units import Gpu
from ops_pipeline.hypervisor.tables import gpu_assignments, gpus, hypervisor_hosts, machines
from ops_pipeline_tests.hypervisor.libvirt_servers import TestDomain, test_node_xml
from ops_pipeline_tests.usage.calls import NOON, rows

A, B, C, D = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:04:00.0"
GAP = timedelta(hours=1)
POLICY = GraphicsPolicy(
    missing_scans=3, missing_gap=GAP, resting=frozenset({"off", "failed"}), forming=frozenset({"building"})
)
HOST = "kvm1"


def parts(address: str) -> tuple[int, int, int, int]:
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    return int(domain, 16), int(bus, 16), int(slot, 16), int(function, 16)


def address_xml(address: str) -> str:
    domain, bus, slot, function = parts(address)
    return f"<address domain='0x{domain:04x}' bus='0x{bus:02x}' slot='0x{slot:02x}' function='0x{function}'/>"


def pci_xml(
    address: str,
    pci_class: str = "030000",
    *,
    vendor: tuple[str, str] = ("10de", "NVIDIA Corporation"),
    product: tuple[str, str] = ("20b5", "GA100 [A100 PCIe 80GB]"),
    driver: str = "",
    group: int | None = 1,
    members: Sequence[str] = (),
    numa: int | None = None,
    serial: str = "",
    parent: str = "",
    virtual: Sequence[str] = (),
    extra: str = "",
) -> str:
    """A PCI node device in libvirt's own words."""
    domain, bus, slot, function = parts(address)
    name = "pci_" + address.replace(":", "_").replace(".", "_")
    capabilities = extra
    if parent:
        capabilities += f"<capability type='phys_function'>{address_xml(parent)}</capability>"
    if virtual:
        inside = "".join(map(address_xml, virtual))
        capabilities += f"<capability type='virt_functions' maxCount='16'>{inside}</capability>"
    if serial:
        fields = f"<fields access='readonly'><serial_number>{serial}</serial_number></fields>"
        capabilities += f"<capability type='vpd'><name>A card</name>{fields}</capability>"
    if group is not None:
        inside = "".join(map(address_xml, sorted({address, *members})))
        capabilities += f"<iommuGroup number='{group}'>{inside}</iommuGroup>"
    capabilities += f"<numa node='{numa}'/>" if numa is not None else ""
    bound = f"<driver><name>{driver}</name></driver>" if driver else ""
    return (
        f"<device><name>{name}</name><path>/sys/devices/pci0000:00/{address}</path><parent>computer</parent>{bound}"
        f"<capability type='pci'><class>0x{pci_class}</class><domain>{domain}</domain><bus>{bus}</bus>"
        f"<slot>{slot}</slot><function>{function}</function><product id='0x{product[0]}'>{product[1]}</product>"
        f"<vendor id='0x{vendor[0]}'>{vendor[1]}</vendor>{capabilities}</capability></device>"
    )


def mdev_xml(uuid: str, parent: str, kind: str = "nvidia-468") -> str:
    """A mediated device in libvirt's own words."""
    name = "pci_" + parent.replace(":", "_").replace(".", "_")
    capability = f"<capability type='mdev'><type id='{kind}'/><uuid>{uuid}</uuid><iommuGroup number='90'/></capability>"
    return f"<device><name>mdev_{uuid.replace('-', '_')}</name><parent>{name}</parent>{capability}</device>"


COMPUTER = (
    "<device><name>computer</name><capability type='system'><hardware><vendor>maker</vendor>"
    "<uuid>4c4c4544-0050-3610-8034-b2c04f4d4e31</uuid></hardware><firmware/></capability></device>"
)
"""What the node devices of a test host hang on."""


def hostdev_xml(address: str, *, managed: bool = True) -> str:
    yes = "yes" if managed else "no"
    source = f"<source>{address_xml(address)}</source>"
    return f"<hostdev mode='subsystem' type='pci' managed='{yes}'>{source}</hostdev>"


def hostdev_mdev_xml(uuid: str) -> str:
    source = f"<source><address uuid='{uuid}'/></source>"
    return f"<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>{source}</hostdev>"


def gpu(address: str = A, **fields: Any) -> Gpu:
    """A GPU that may be handed out, alone in its group."""
    number = parts(address)[1]
    usual: dict[str, Any] = {"pci_class": "030200", "vendor_id": "10de", "model_id": "20b5", "model": "A100"}
    return Gpu(address, **usual | {"driver": "vfio-pci", "iommu_group": number} | fields)


def device_of(one: Gpu) -> PciDevice:
    """The PCI device that a GPU is."""
    return PciDevice(one.address, one.pci_class, driver=one.driver, iommu_group=one.iommu_group)


def domain(name: str, *targets: str, active: bool = True, mdevs: Sequence[str] = ()) -> Domain:
    """A domain that has devices by address, and mediated ones by UUID."""
    uses = [Use(PCI, one, managed=True, running=active, defined=True) for one in targets]
    uses += [Use(MDEV, one, running=active, defined=True) for one in mdevs]
    return Domain(f"uuid-of-{name}", name, active, tuple(uses))


def machine(name: str, status: str = "running", host_id: str = HOST) -> Machine:
    return Machine(f"id-of-{name}", host_id, name, status)


def found(gpus: Sequence[Gpu], *domains: Domain, others: Sequence[PciDevice] = (), **fields: Any) -> HostGraphics:
    """What a look found; `others` are devices that are no GPUs."""
    devices = (*map(device_of, gpus), *others)
    return HostGraphics(gpus=tuple(gpus), devices=devices, domains=domains, **fields)


def known(one: Gpu, state: str = AVAILABLE, reason: str = "", **fields: Any) -> Known:
    return Known(one, state, reason, **fields)


def gone(one: Gpu, scans: int = 1, **fields: Any) -> Known:
    """A GPU that was missed before."""
    return Known(one, MISSING, "not found on the host", scans, **{"counted_at": NOON - GAP} | fields)


def given(name: str, address: str = A, **fields: Any) -> Assignment:
    """An assignment to the machine of a name."""
    return Assignment(address, f"id-of-{name}", **fields)


def records(
    known_gpus: Sequence[Known] = (),
    assignments: Sequence[Assignment] = (),
    platform: Sequence[Machine] = (),
    look: HostGraphics | None = None,
) -> HostRecords:
    """What the database has; machines find their domains by name."""
    domains = {one.name: one for one in look.domains} if look else {}
    matched = [replace(one, domain=domains.get(one.name) if one.host_id == HOST else None) for one in platform]
    return HostRecords(
        host_id=HOST,
        known={row.gpu.address: row for row in known_gpus},
        assignments=tuple(assignments),
        machines={one.id: one for one in matched},
        owners={one.domain.uuid: one.id for one in matched if one.domain is not None},
    )


def plan(
    look: HostGraphics,
    known_gpus: Sequence[Known] = (),
    assignments: Sequence[Assignment] = (),
    platform: Sequence[Machine] = (),
    policy: GraphicsPolicy = POLICY,
    **options: Any,
) -> HostPlan:
    """The plan at noon."""
    return plan_host(records(known_gpus, assignments, platform, look), look, policy, NOON, **options)


def states(made: HostPlan) -> dict[str, str]:
    """The states that a plan writes, by address; `-` for rows that go."""
    return {change.address: change.after.state if change.after else "-" for change in made.changes}


def texts(made: HostPlan) -> list[str]:
    """The conflicts of a plan, each behind its address."""
    return [f"{one.address} {one.text}" for one in made.conflicts]


def node(*domains: TestDomain, devices: Sequence[str] = ()) -> str:
    """The file of a host of libvirt's test driver, with node devices."""
    return test_node_xml(domains, [COMPUTER, *devices])


def guest(name: str, *devices: str, state: int = 1) -> TestDomain:
    """A domain of such a host; its UUID is `uuid_of(name)`."""
    return TestDomain(name, state=state, uuid=uuid_of(name), devices="".join(devices))


def uuid_of(name: str) -> str:
    return str(uuids.uuid5(uuids.NAMESPACE_DNS, name))


def gpu_xml(address: str, **fields: Any) -> str:
    """A GPU alone in a group of its own."""
    return pci_xml(address, "030200", **{"group": parts(address)[1]} | fields)


def add_host(engine: Engine, host: str, file: Path) -> None:
    insert_row(engine, hypervisor_hosts, id=host, libvirt_uri=f"test://{file}")


def add_machine(engine: Engine, name: str, status: str = "running", host_id: str | None = HOST) -> None:
    """A machine whose domain has its name and UUID."""
    fields = {"host_id": host_id, "internal_name": name, "uuid": uuid_of(name), "status": status}
    insert_row(engine, machines, id=f"id-of-{name}", **fields)


def give(engine: Engine, name: str, address: str = A, host_id: str = HOST, **fields: Any) -> None:
    """Give a machine a GPU, as the platform does."""
    insert_row(engine, gpu_assignments, host_id=host_id, pci_address=address, machine_id=f"id-of-{name}", **fields)


def insert_row(engine: Engine, table: Table, **values: Any) -> None:
    with writing(engine) as connection:
        connection.execute(insert(table).values(**values))


def gpu_states(engine: Engine) -> dict[str, str]:
    """The state of every GPU, by host and address."""
    return {f"{row['host_id']} {row['pci_address']}": row["state"] for row in rows(engine, gpus)}


def assigned(engine: Engine) -> set[tuple[str, str]]:
    """The address and machine of every assignment."""
    return {(row["pci_address"], row["machine_id"].removeprefix("id-of-")) for row in rows(engine, gpu_assignments)}
