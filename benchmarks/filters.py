"""The benchmark of network filters: `python -m benchmarks.filters`; results are in RESULTS.md.

A thousand filters in sync on a real libvirtd: no filter is defined, and a look at everything (bindings and domains
too), the database and the plan take at most 1.5 times what reading the filters' XML alone takes, one after the other
over one connection, in a process with a deadline as any look is made in. What that process costs is told apart: the
same reading is measured in this one, too. The first look of a process makes every filter of its rows, later ones only
those that changed; both are measured. A missed target is printed, and is no failure. Needs root, as libvirtd does.

What belongs here: the filters, and the measurement.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import libvirt
from sqlalchemy import Engine, insert

from benchmarks.filters_floor import filter_xml
from benchmarks.report import Measure, machine, table
from ops_pipeline.database.engine import connect, writing
from ops_pipeline.database.migrate import migrate
from ops_pipeline.hypervisor.filters import desired, rules, sync
from ops_pipeline.hypervisor.filters.sync import Firewall, Planned
from ops_pipeline.hypervisor.filters.values import canonical
from ops_pipeline.hypervisor.hosts import Host
from ops_pipeline.hypervisor.looking import ask_hosts
from ops_pipeline.hypervisor.tables import network_filter_references, network_filter_rules, network_filters
from ops_pipeline_tests.hypervisor.filters.samples import filter_row, reference_row, rule_row
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer, libvirt_server

ALLOWED_RATIO = 1.5
RULES = 4


@click.command(context_settings={"show_default": True})
@click.option("--filters", "number", default=1000, help="How many filters there are.")
@click.option("--rounds", default=9, type=click.IntRange(1), help="How often the measurement is repeated.")
def main(*, number: int, rounds: int) -> None:
    """Measure a look at filters that are in sync."""
    where = machine()
    with libvirt_server() as server, tempfile.TemporaryDirectory() as folder:
        engine = connect(f"sqlite:///{Path(folder) / 'operations.db'}")
        migrate(engine)
        fill(engine, number)
        firewall = Firewall(engine, server.uri)
        first, applied = timed(lambda: sync.apply(firewall, looked_and_planned(firewall)))
        if applied.failures():
            raise RuntimeError(applied.failures()[0])
        within, floors, firsts, looks, plans = [], [], [], [], []
        for _ in range(rounds):
            within.append(timed(lambda: read_xml_here(server))[0])
            floors.append(timed(lambda: read_xml_of(server))[0])
            forget()
            firsts.append(timed(lambda: looked_and_planned(firewall))[0])
            seconds, planned = timed(lambda: looked_and_planned(firewall))
            looks.append(seconds)
            plans.append(planned)
        engine.dispose()
    floor, of_first, seconds = median(floors), median(firsts), median(looks)
    defined = sum(len(one.changes) for one in plans)
    ratio = seconds / floor
    measures = [
        Measure(f"{number} filters defined, and looked at again", first, number),
        Measure("their XML is read without a process of its own", median(within), number),
        Measure("floor: their XML is read", floor, number),
        Measure(
            "first look of a process, in sync",
            of_first,
            number,
            f"{of_first / floor:.2f} times the floor, median of {rounds}",
        ),
        Measure(
            "look, read the database and plan, in sync",
            seconds,
            number,
            f"{ratio:.2f} times the floor, median of {rounds}",
            f"<= {ALLOWED_RATIO:g} times",
            ratio <= ALLOWED_RATIO,
        ),
        Measure("filters that would be defined", result=str(defined), target="0", ok=defined == 0),
    ]
    print(f"{where['cores']} cores of {where['cpu']}, {where['date']}; load average {where['load_average'][0]}\n")
    print(table(measures), flush=True)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def looked_and_planned(firewall: Firewall) -> Planned:
    """What a tick of the schedule does."""
    return sync.plan(firewall, sync.look(firewall))


def read_xml_here(server: LibvirtServer) -> int:
    """The same in this process."""
    connection = libvirt.openReadOnly(server.uri)
    try:
        return len(filter_xml(connection, None))
    finally:
        connection.close()


def forget() -> None:
    """Forget the filters that were made before, as a process that starts knows none."""
    for remembered in (desired._made, rules._loads, canonical):
        remembered.cache_clear()


def read_xml_of(server: LibvirtServer) -> int:
    """Read every filter's XML as any look does, and nothing else."""
    (answer,) = ask_hosts(
        [Host("local", server.uri)], "benchmarks.filters_floor:filter_xml", deadline_seconds=60
    ).values()
    return len(answer.sure())


def fill(engine: Engine, number: int) -> None:
    """Filters of four rules each; all but the first hundred include another one."""
    names = [f"f{at:05}" for at in range(number)]
    rows = [
        rule_row(
            name,
            f"{name}-{rule}",
            action="accept",
            protocol="tcp",
            priority=rule * 10,
            dst_port_start=1000 + at % 500 + rule,
            src_ip=f"10.{at % 250}.{rule}.0",
            src_ip_mask="24",
            state=["NEW"],
            comment=f"rule {rule}",
        )
        for at, name in enumerate(names)
        for rule in range(RULES)
    ]
    references = [reference_row(name, names[at // 10]) for at, name in enumerate(names) if at >= 100]
    with writing(engine) as connection:
        connection.execute(insert(network_filters), [filter_row(name) for name in names])
        connection.execute(insert(network_filter_rules), rows)
        if references:
            connection.execute(insert(network_filter_references), references)


if __name__ == "__main__":
    sys.exit(main())
