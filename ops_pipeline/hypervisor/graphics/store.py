"""GPUs and their assignments in the database: read, and written only where the rows are still as they were.

What belongs here: SQL, and the form of rows. What does not: any rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, Table, and_, bindparam, delete, select, update

from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.database.replace import upsert
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.hypervisor.graphics.devices import MdevType
from ops_pipeline.hypervisor.graphics.facts import Assignment, AssignmentChange, GpuChange, HostPlan, Known
from ops_pipeline.hypervisor.graphics.nvml import Child
from ops_pipeline.hypervisor.graphics.units import Gpu
from ops_pipeline.hypervisor.tables import gpu_assignments, gpus, machines

_LISTS = ("iommu_members", "functions")


@dataclass(frozen=True)
class Written:
    """How many rows were changed, and how many were left because someone else had changed them meanwhile."""

    changed: int = 0
    skipped: int = 0

    def __add__(self, other: Written) -> Written:
        """Add the counts."""
        return Written(self.changed + other.changed, self.skipped + other.skipped)


def read_gpus(connection: Connection) -> dict[str, dict[str, Known]]:
    """All GPUs, by host and address."""
    found: dict[str, dict[str, Known]] = defaultdict(dict)
    for row in connection.execute(select(gpus).order_by(gpus.c.host_id, gpus.c.pci_address)):
        found[row.host_id][row.pci_address] = _known(row)
    return dict(found)


def read_assignments(connection: Connection) -> dict[str, list[Assignment]]:
    """All assignments, by host."""
    table = gpu_assignments
    order = (table.c.host_id, table.c.pci_address, table.c.machine_id, table.c.mdev_uuid)
    found: dict[str, list[Assignment]] = defaultdict(list)
    for row in connection.execute(select(table).order_by(*order)):
        found[row.host_id].append(_assignment(row))
    return dict(found)


def _assignment(row: Row[Any]) -> Assignment:
    return Assignment(row.pci_address, row.machine_id, row.mdev_uuid, row.missing_scans, row.counted_at)


def _known(row: Row[Any]) -> Known:
    told: Mapping[str, Any] = row._mapping
    facts = {one.name: told[one.name] for one in fields(Gpu) if one.name in told}
    facts |= {name: tuple(facts[name]) for name in _LISTS}
    facts["children"] = tuple(Child(**child) for child in facts["children"])
    facts["profiles"] = tuple(MdevType(**profile) for profile in facts["profiles"])
    return Known(Gpu(row.pci_address, **facts), row.state, row.reason, row.missing_scans, row.counted_at)


def _values(known: Known) -> dict[str, Any]:
    described = asdict(known.gpu)
    described["pci_address"] = described.pop("address")
    described |= {name: list(described[name]) for name in (*_LISTS, "children", "profiles")}
    return described | {
        "state": known.state,
        "reason": known.reason,
        "missing_scans": known.missing_scans,
        "counted_at": known.counted_at,
    }


def write_plan(engine: Engine, plan: HostPlan) -> Written:
    """Write the plan of one host in one transaction.

    Every row is locked and compared with what the plan was made from, the machine's status of an assignment included.
    """
    if not plan.changes and not plan.assignments:
        return Written()

    def transaction() -> Written:
        with writing(engine) as connection:
            now = database_now(connection)
            # Assignments first: a GPU becomes available only after its assignment is gone.
            done = _write_assignments(connection, plan.host_id, plan.assignments)
            return done + _write_gpus(connection, plan.host_id, plan.changes, now)

    return despite_conflicts(transaction)


def _write_gpus(connection: Connection, host_id: str, changes: Sequence[GpuChange], now: datetime) -> Written:
    table = gpus
    query = select(table).where(table.c.host_id == host_id, table.c.pci_address.in_([one.address for one in changes]))
    rows = {row.pci_address: row for row in connection.execute(query.with_for_update())}
    still = [one for one in changes if one.before == (_known(rows[one.address]) if one.address in rows else None)]
    written, removed = [], []
    for one in still:
        if one.after is None:
            removed.append({"host": host_id, "address": one.address})
            continue
        row = rows.get(one.address)
        same = row is not None and row.state == one.after.state
        written.append(
            {
                "host_id": host_id,
                **_values(one.after),
                "state_since": row.state_since if row is not None and same else now,
                "first_seen_at": row.first_seen_at if row is not None else now,
                "updated_at": now,
            }
        )
    upsert(connection, table, written)
    _each(connection, delete(table).where(_at(table)), removed)
    return Written(len(still), len(changes) - len(still))


def _write_assignments(connection: Connection, host_id: str, changes: Sequence[AssignmentChange]) -> Written:
    if not changes:
        return Written()
    table = gpu_assignments
    concerned = {one.before.machine_id for one in changes}
    query = select(table).where(table.c.host_id == host_id, table.c.machine_id.in_(concerned)).with_for_update()
    rows = {_assignment(row) for row in connection.execute(query)}
    statuses = _statuses(connection, concerned)
    still = [one for one in changes if one.before in rows and statuses.get(one.before.machine_id) == one.status]
    cleared = [_key(host_id, one.before) for one in still if one.after is None]
    changed = [
        _key(host_id, one.before)
        | {"to_address": one.after.address, "scans": one.after.missing_scans, "counted": one.after.counted_at}
        for one in still
        if one.after is not None
    ]
    row = and_(_at(table), table.c.machine_id == bindparam("machine"), table.c.mdev_uuid == bindparam("mdev"))
    _each(connection, delete(table).where(row), cleared)
    values = {
        "pci_address": bindparam("to_address"),
        "missing_scans": bindparam("scans"),
        "counted_at": bindparam("counted"),
    }
    _each(connection, update(table).where(row).values(values), changed)
    return Written(len(still), len(changes) - len(still))


def _statuses(connection: Connection, ids: Iterable[str]) -> dict[str, str]:
    """The statuses of machines, which stay so until the end of the transaction."""
    query = select(machines.c.id, machines.c.status).where(machines.c.id.in_(ids)).with_for_update(read=True)
    return {row.id: row.status for row in connection.execute(query)}


def _at(table: Table) -> Any:
    return and_(table.c.host_id == bindparam("host"), table.c.pci_address == bindparam("address"))


def _key(host_id: str, assignment: Assignment) -> dict[str, Any]:
    return {
        "host": host_id,
        "address": assignment.address,
        "machine": assignment.machine_id,
        "mdev": assignment.mdev_uuid,
    }


def _each(connection: Connection, statement: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(statement, list(rows))
