"""The benchmark of GPUs: `python -m benchmarks.graphics`; results are in RESULTS.md.

One host of libvirt's test driver with 10,000 domains, of which some have a GPU each, in sync: a pass may take twice
the floor, which is libvirt's own listing and XML of the same devices and domains. A missed target is printed, and is
no failure.

What belongs here: the host, and the measurement.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import libvirt
from sqlalchemy import Engine, insert

from benchmarks.report import Measure, machine, table
from ops_pipeline.database.engine import connect, writing
from ops_pipeline.database.migrate import migrate
from ops_pipeline.hypervisor.graphics.facts import GraphicsPolicy
from ops_pipeline.hypervisor.graphics.update import FORMING, RESTING, GraphicsSetup, apply, look, plan
from ops_pipeline.hypervisor.tables import gpu_assignments, hypervisor_hosts, machines
from ops_pipeline_tests.hypervisor.graphics.samples import gpu_xml, guest, hostdev_xml, node, uuid_of

ALLOWED = 2.0


@click.command(context_settings={"show_default": True})
@click.option("--domains", default=10_000, help="How many domains the host has.")
@click.option("--gpus", default=200, help="How many GPUs, each in a domain of its own.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="How often the measurement is repeated.")
def main(*, domains: int, gpus: int, rounds: int) -> None:
    """Measure a pass over one large host in sync."""
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        file, engine = Path(folder) / "host.xml", connect(f"sqlite:///{folder}/operations.db")
        migrate(engine)
        fill(engine, file, domains, gpus)
        policy = GraphicsPolicy(resting=RESTING, forming=FORMING)
        setup = GraphicsSetup(engine, local_uri="", deadline_seconds=120, policy=policy)
        apply(setup, plan(look(setup), policy))
        floors, passes = [], []
        for _ in range(rounds):
            floors.append(timed(lambda: floor(file)))
            passes.append(timed(lambda: in_sync(setup)))
        engine.dispose()
    ratio = min(passes) / min(floors)
    measures = [
        Measure("floor: libvirt lists and writes the same XML", min(floors), domains),
        Measure(
            f"a pass over {domains} domains and {gpus} GPUs in sync",
            min(passes),
            domains,
            f"{ratio:.2f} times the floor, nothing written",
            f"<= {ALLOWED:g} times",
            ratio <= ALLOWED,
        ),
    ]
    print(f"{where['cores']} cores of {where['cpu']}, {where['date']}; load average {where['load_average'][0]}\n")
    print(table(measures), flush=True)


def fill(engine: Engine, file: Path, domains: int, gpus: int) -> None:
    """The host's file, and the platform's rows."""
    names = [f"vm{number}" for number in range(domains)]
    addresses = [f"0000:{number // 31 + 1:02x}:{number % 31:02x}.0" for number in range(gpus)]
    given = dict(zip(names, addresses, strict=False))
    guests = [guest(name, hostdev_xml(given[name])) if name in given else guest(name) for name in names]
    file.write_text(node(*guests, devices=[gpu_xml(one, group=number) for number, one in enumerate(addresses)]))
    with writing(engine) as connection:
        connection.execute(insert(hypervisor_hosts).values(id="kvm1", libvirt_uri=f"test://{file}"))
        fields = {"host_id": "kvm1", "status": "running"}
        rows = [fields | {"id": name, "internal_name": name, "uuid": uuid_of(name)} for name in names]
        connection.execute(insert(machines), rows)
        pairs = [{"host_id": "kvm1", "pci_address": at, "machine_id": name} for name, at in given.items()]
        connection.execute(insert(gpu_assignments), pairs)


def floor(file: Path) -> None:
    """What libvirt itself takes, reading its file included."""
    connection = libvirt.openReadOnly(f"test://{file}")
    for device in connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV):
        device.XMLDesc(0)
    for domain in connection.listAllDomains(0):
        domain.XMLDesc(0)
        domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    connection.close()


def in_sync(setup: GraphicsSetup) -> None:
    """A whole pass.

    Raises:
        RuntimeError: it would write something, or failed.
    """
    planned = plan(look(setup), setup.policy)
    if planned.due:
        raise RuntimeError(f"{planned.problems} {planned.conflicts[:3]} {planned.as_plan().changes[:3]}")


def timed(work: Any) -> float:
    """The seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
