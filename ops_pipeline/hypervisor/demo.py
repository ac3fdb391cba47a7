"""A believable fleet on libvirt's own test driver, so that `make run` shows virtualisation without a hypervisor.

The driver reads a fleet from one file for each connection: what stands in the file is what the hosts show. `live`
rewrites the files, as people and guests change the states of real machines.

What belongs here: the demo's hosts, machines and GPUs (its filters are in `filters.demo`). What does not: anything that
real data passes through.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from xml.sax.saxutils import escape

from sqlalchemy import Connection, Engine, exists, insert, select, update

from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.hypervisor.filters.demo import write_demo_filters
from ops_pipeline.hypervisor.graphics.demo import demo_gpus
from ops_pipeline.hypervisor.tables import gpu_assignments, hypervisor_hosts, machines

NAMES = ("web", "api", "db", "cache", "ci", "mail", "lab", "desk", "train", "render")
RUNNING, PAUSED, SHUTOFF, CRASHED = 1, 3, 5, 6
STRANGER = "somebodys-test-rig"
WITH_GPUS = ("desk-107", "train-108", "train-118", "render-109", STRANGER)
NAMESPACE = uuid.UUID("6c9c2b5e-6f0e-4c7a-9d8e-0a4b7f0c2d11")


@dataclass(frozen=True)
class DemoDomain:
    """A domain of the demo: its name, libvirt's number of its state, and its devices of the host, in XML."""

    name: str
    state: int
    devices: tuple[str, ...] = ()

    @property
    def uuid(self) -> str:
        """Its UUID, always the same for the same name."""
        return str(uuid.uuid5(NAMESPACE, self.name))


@dataclass(frozen=True)
class DemoHost:
    """A host of the demo, and its node devices, in XML."""

    name: str
    domains: tuple[DemoDomain, ...]
    devices: tuple[str, ...] = ()


def demo_hosts(seed: int) -> list[DemoHost]:
    """The hosts; the same seed gives the same."""
    chance = random.Random(seed)  # noqa: S311 - a demo, not a secret
    hosts = []
    for number, count in ((1, 24), (2, 16)):
        domains = [
            DemoDomain(f"{NAMES[place % len(NAMES)]}-{number}{place:02}", chance.choices((1, 5, 3), (70, 25, 5))[0])
            for place in range(count)
        ]
        domains[3] = replace(domains[3], state=CRASHED)
        hosts.append(DemoHost(f"demo-host-{number}", tuple(domains)))
    gpus = demo_gpus(WITH_GPUS)
    with_gpus = tuple(
        replace(one, state=RUNNING, devices=gpus.hostdevs[one.name]) if one.name in gpus.hostdevs else one
        for one in (*hosts[0].domains, DemoDomain(STRANGER, RUNNING))
    )
    return [replace(hosts[0], domains=with_gpus, devices=gpus.devices), hosts[1]]


def write_demo(engine: Engine, folder: Path, seed: int) -> str:
    """Write the files of the hosts, and the rows of hosts and machines, unless there are such rows already.

    Returns what was done, in words.
    """
    hosts = demo_hosts(seed)
    with writing(engine) as connection:
        if connection.execute(select(exists(select(machines.c.id)) | exists(select(hypervisor_hosts.c.id)))).scalar():
            return "There are machines or hosts already: no demo fleet written."
        for host in hosts:
            path = write_host(folder, host)
            connection.execute(insert(hypervisor_hosts).values(id=host.name, libvirt_uri=f"test://{path}"))
            _write_machines(connection, host)
        _make_odd(connection, hosts[0])
        _write_assignments(connection, hosts[0])
        write_demo_filters(connection, NAMES)
    count = sum(len(host.domains) for host in hosts)
    return f"A demo fleet of {count} domains on {len(hosts)} hosts of libvirt's test driver written to {folder}."


def write_host(folder: Path, host: DemoHost) -> Path:
    """Write the file of a host, at once: a look never finds half of it."""
    path = folder.absolute() / f"{host.name}.xml"
    draft = path.with_suffix(".new")
    draft.write_text(host_xml(host))
    draft.replace(path)
    return path


def host_xml(host: DemoHost) -> str:
    """The fleet as the test driver reads it."""
    return f"<node>{''.join(map(_domain, host.domains))}{''.join(host.devices)}</node>"


def _domain(domain: DemoDomain) -> str:
    return (
        "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>"
        f"<name>{escape(domain.name)}</name><uuid>{domain.uuid}</uuid>"
        f"<test:runstate>{domain.state}</test:runstate><memory>4194304</memory><vcpu>4</vcpu>"
        f"<os><type>hvm</type></os><devices>{''.join(domain.devices)}</devices></domain>"
    )


def _write_machines(connection: Connection, host: DemoHost) -> None:
    words = {RUNNING: "running", PAUSED: "suspended", SHUTOFF: "off", CRASHED: "running"}
    rows = [
        {
            "id": f"demo-{domain.name}",
            "host_id": host.name,
            "internal_name": domain.name,
            "uuid": domain.uuid,
            "name": domain.name,
            "department_id": domain.name.partition("-")[0],
            "status": words[domain.state],
        }
        for domain in host.domains
        if domain.name != STRANGER
    ]
    connection.execute(insert(machines), rows)


def _make_odd(connection: Connection, host: DemoHost) -> None:
    """What an operator is there for: a machine that hangs in a transition, and an error whose domain runs."""
    stuck, broken = host.domains[5].name, next(one.name for one in host.domains if one.state == RUNNING)
    for name, status in ((stuck, "updating_hardware"), (broken, "error")):
        connection.execute(update(machines).where(machines.c.internal_name == name).values(status=status))
    since = database_now(connection) - timedelta(hours=7)
    connection.execute(update(machines).where(machines.c.internal_name == stuck).values(status_changed_at=since))


def _write_assignments(connection: Connection, host: DemoHost) -> None:
    keys = {"host_id": host.name}
    rows = [
        keys | {"pci_address": address, "mdev_uuid": part, "machine_id": f"demo-{name}"}
        for address, part, name in demo_gpus(WITH_GPUS).assignments
    ]
    connection.execute(insert(gpu_assignments), rows)


def live(engine: Engine, folder: Path, seed: int, sleep: Callable[[float], None], stop: Callable[[], bool]) -> None:
    """Go on changing the states of the demo's domains, one every half minute or so, until stopped."""
    with reading(engine) as connection:
        written = set(connection.execute(select(hypervisor_hosts.c.id)).scalars())
    hosts = [host for host in demo_hosts(seed) if host.name in written]
    chance = random.Random()  # noqa: S311 - as above
    while hosts and not stop():
        sleep(chance.uniform(10, 50))
        place = chance.randrange(len(hosts))
        hosts[place] = changed(hosts[place], chance)
        write_host(folder, hosts[place])


def changed(host: DemoHost, chance: random.Random) -> DemoHost:
    """The host with one domain in another state; those with GPUs go on running."""
    place = chance.choice([number for number, domain in enumerate(host.domains) if not domain.devices])
    domain = replace(host.domains[place], state=chance.choices((RUNNING, SHUTOFF, PAUSED), (60, 30, 10))[0])
    return replace(host, domains=(*host.domains[:place], domain, *host.domains[place + 1 :]))
