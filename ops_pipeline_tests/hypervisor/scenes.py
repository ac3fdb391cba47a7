"""Machines in the database, and fleets to look at, for the tests of virtualisation.

What belongs here: writing and reading rows, files of the test driver, a pass. What does not: judging.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, select

from ops_pipeline.database.engine import reading, writing
from ops_pipeline.hypervisor.hosts import Host
from ops_pipeline.hypervisor.machines.plans import Limits, Observed, StatusPlan
from ops_pipeline.hypervisor.machines.sync import Applied, Scene, apply, look, plan
from ops_pipeline.hypervisor.tables import hypervisor_hosts, machines
from ops_pipeline_tests.hypervisor.libvirt_servers import TestDomain, test_node_xml


def add_machines(engine: Engine, *rows: dict[str, Any]) -> None:
    """Write machines; without a name of its own, a machine's domain is called as its id."""
    with writing(engine) as connection:
        for row in rows:
            connection.execute(insert(machines).values({"internal_name": row["id"], **row}))


def add_host(engine: Engine, name: str, uri: str, **more: Any) -> None:
    """Write a host."""
    with writing(engine) as connection:
        connection.execute(insert(hypervisor_hosts).values(id=name, libvirt_uri=uri, **more))


def rows_of(engine: Engine, table: Any = machines) -> dict[str, dict[str, Any]]:
    """All rows by id."""
    with reading(engine) as connection:
        return {row["id"]: dict(row) for row in connection.execute(select(table)).mappings()}


def statuses(engine: Engine) -> dict[str, str]:
    """The status of each machine."""
    return {name: row["status"] for name, row in rows_of(engine).items()}


def fleet(path: Path, domains: Sequence[TestDomain]) -> str:
    """Write a fleet of the test driver; returns its URI."""
    path.write_text(test_node_xml(domains))
    return f"test://{path}"


def scene(engine: Engine, uri: str, limits: Limits | None = None, deadline: float = 20) -> Scene:
    """A pass over a database and the host `local`."""
    return Scene(engine, uri, deadline, limits or Limits())


def planned(where: Scene) -> tuple[Observed, StatusPlan]:
    """Look and plan."""
    seen = look(where)
    return seen, plan(where, seen, lambda _seconds: None)


def passed(where: Scene) -> tuple[StatusPlan, Applied]:
    """A whole pass."""
    seen, made = planned(where)
    return made, apply(where, seen, made)


def kinds(made: StatusPlan) -> list[tuple[str, str]]:
    """The findings: kind and object."""
    return sorted((finding.kind, finding.key) for finding in made.findings)


HOST = Host("local", "test:///default")
