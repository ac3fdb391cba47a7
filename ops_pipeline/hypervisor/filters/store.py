"""Network filters in the database.

What belongs here: every statement over the tables of filters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, ColumnElement, Connection, Engine, Text, cast, delete, literal, select

from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.replace import upsert
from ops_pipeline.database.types import Rows
from ops_pipeline.hypervisor.filters.carried import Link
from ops_pipeline.hypervisor.filters.desired import Desired, desired_of
from ops_pipeline.hypervisor.filters.orphans import orphan_key
from ops_pipeline.hypervisor.filters.rules import FIELDS
from ops_pipeline.hypervisor.hosts import LOCAL
from ops_pipeline.hypervisor.tables import (
    machines,
    network_filter_departments,
    network_filter_machines,
    network_filter_orphans,
    network_filter_references,
    network_filter_rules,
    network_filters,
)


@dataclass(frozen=True)
class Wanted:
    """What the database says at one moment.

    Attributes:
        now: the database's clock.
        desired: the filters.
        links: which machines should carry which of them.
        orphans: since when each orphan is known, by host and `orphan_key`, with the reason why it is still there.
    """

    now: datetime
    desired: Desired
    links: tuple[Link, ...] = ()
    orphans: Mapping[str, Mapping[str, tuple[datetime, str]]] = field(default_factory=dict)

    def first_seen(self, host_id: str) -> dict[str, datetime]:
        """Since when the orphans of a host are known."""
        return {key: since for key, (since, _) in self.orphans.get(host_id, {}).items()}


def read_wanted(engine: Engine, prefix: str) -> Wanted:
    """Read everything from one snapshot; `prefix` is what the names of filters begin with that may be touched."""
    with reading(engine) as connection:
        rows = (
            _rows(connection, _FILTERS),
            connection.execute(_RULES).tuples().all(),
            _rows(connection, _REFERENCES),
        )
        names = {row["id"]: row["internal_name"] for row in rows[0]}
        orphans: dict[str, dict[str, tuple[datetime, str]]] = defaultdict(dict)
        for row in connection.execute(select(network_filter_orphans)).mappings():
            key = orphan_key(row["internal_name"], row["uuid"])
            orphans[row["host_id"]][key] = row["first_seen_at"], row["reason"]
        links = _links(connection, names)
        now = database_now(connection)
    return Wanted(now, desired_of(*rows, prefix), links, orphans)


def _as_text(column: Column[Any]) -> ColumnElement[Any]:
    """JSON as its text: what is no JSON is refused where it stands, and what is known need not be parsed again."""
    return cast(column, Text).label(column.name) if isinstance(column.type, JSON) else column


_RULES = select(
    network_filter_rules.c.id,
    network_filter_rules.c.filter_id,
    *(_as_text(network_filter_rules.c[name]) for name in FIELDS),
)


_FILTERS = select(*(network_filters.c[name] for name in ("id", "name", "internal_name", "uuid", "chain", "priority")))
_REFERENCES = select(*map(_as_text, network_filter_references.c))


def _rows(connection: Connection, query: Rows) -> list[dict[str, Any]]:
    result = connection.execute(query)
    names = tuple(result.keys())
    return [dict(zip(names, row, strict=True)) for row in result.all()]


def read_names(engine: Engine) -> set[str]:
    """The names that the database has right now: none of them is an orphan any more."""
    with reading(engine) as connection:
        return set(connection.execute(select(network_filters.c.internal_name)).scalars())


def _links(connection: Connection, names: Mapping[str, str]) -> tuple[Link, ...]:
    own = select(
        machines, network_filter_machines.c.filter_id, network_filter_machines.c.mac, literal(False).label("department")
    ).join(network_filter_machines, network_filter_machines.c.machine_id == machines.c.id)
    of_departments = (
        select(machines, network_filter_departments.c.filter_id, literal("").label("mac"), literal(True))
        .join(network_filter_departments, network_filter_departments.c.department_id == machines.c.department_id)
        .where(machines.c.department_id != "")
    )
    # Not one UNION: SQLite would give the literals no type.
    rows: list[Any] = [*connection.execute(own).all(), *connection.execute(of_departments).all()]
    return tuple(
        Link(
            host_id=row.host_id or LOCAL,
            machine=f"{row.name} ({row.internal_name})" if row.name else row.internal_name,
            domain=row.internal_name,
            uuid=row.uuid,
            filter=names.get(row.filter_id, ""),
            mac=row.mac.lower(),
            department=bool(row[-1]),
        )
        for row in rows
    )


def remember_orphans(engine: Engine, host_id: str, orphans: Mapping[str, str], kept: Mapping[str, str]) -> None:
    """Write which orphans a host has, since when, and why each is kept; those that are none any more are forgotten.

    Args:
        engine: the operations database.
        host_id: of the host, which has been looked at.
        orphans: UUIDs by name.
        kept: reasons by name.
    """
    mine = network_filter_orphans.c.host_id == host_id
    with writing(engine) as connection:
        now = database_now(connection)
        known = {
            row["internal_name"]: row
            for row in connection.execute(select(network_filter_orphans).where(mine)).mappings()
        }
        gone = sorted(known.keys() - orphans.keys())
        if gone:
            connection.execute(
                delete(network_filter_orphans).where(mine, network_filter_orphans.c.internal_name.in_(gone))
            )
        since = {name: row["first_seen_at"] for name, row in known.items() if row["uuid"] == orphans.get(name)}
        rows = [
            {
                "host_id": host_id,
                "internal_name": name,
                "uuid": uuid,
                "first_seen_at": since.get(name, now),
                "reason": kept.get(name, ""),
            }
            for name, uuid in sorted(orphans.items())
        ]
        upsert(connection, network_filter_orphans, [row for row in rows if row != known.get(row["internal_name"])])
