"""Machines in the database: read in one SELECT, written in bulk and under guard.

What belongs here: SQL. What does not: any rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Integer, cast, or_, select, update

from ops_pipeline.database.engine import writing
from ops_pipeline.database.expressions import instant_order
from ops_pipeline.database.values import text_rows
from ops_pipeline.hypervisor.machines.matching import MachineRow
from ops_pipeline.hypervisor.tables import machines

BATCH = 1_000
"""Rows in one statement and one transaction: they are locked until it commits, a tenth of a second."""


class Observation(NamedTuple):
    """What was seen of a machine."""

    id: str
    state: str
    reason: str
    missing_looks: int


class StatusChange(NamedTuple):
    """A change of a machine's status, with the status under which it was planned and what was seen."""

    observation: Observation
    before: str
    after: str


def read_machines(connection: Connection) -> list[MachineRow]:
    """All machines, in one statement."""
    rows = connection.execute(select(*(machines.c[name] for name in MachineRow._fields)))
    return list(map(MachineRow._make, rows.all()))


def write_changes(engine: Engine, changes: Sequence[StatusChange], looked_at: datetime) -> set[str]:
    """Change statuses that are still as they were, and are no newer than the look; write what was seen with them.

    Returns the ids of the machines that were changed; someone else changed the others meanwhile.
    """
    done: set[str] = set()
    for start in range(0, len(changes), BATCH):
        with writing(engine) as connection:
            done |= _write_changes(connection, changes[start : start + BATCH], looked_at)
    return done


def _write_changes(connection: Connection, changes: Sequence[StatusChange], looked_at: datetime) -> set[str]:
    rows = [(*_texts(change.observation), change.before, change.after) for change in changes]
    given = text_rows(connection, (*_OBSERVED, "before", "after"), rows)
    statement = (
        update(machines)
        .where(machines.c.id == given.c.id, machines.c.status == given.c.before)
        # A status that was set, changed and set again meanwhile reads the same, but is newer than the look.
        .where(instant_order(machines.c.status_changed_at) <= instant_order(looked_at))
        .values(status=given.c.after, **_seen(given, looked_at))
        .returning(machines.c.id)
    )
    return set(connection.execute(statement).scalars())


def write_observations(engine: Engine, seen: Sequence[Observation], looked_at: datetime) -> int:
    """Write what was seen, unless a later look was written already; returns how many rows were written."""
    written = 0
    for start in range(0, len(seen), BATCH):
        with writing(engine) as connection:
            written += _write_observations(connection, seen[start : start + BATCH], looked_at)
    return written


def _write_observations(connection: Connection, seen: Sequence[Observation], looked_at: datetime) -> int:
    given = text_rows(connection, _OBSERVED, [_texts(one) for one in seen])
    newer = instant_order(machines.c.observed_at) < instant_order(looked_at)
    statement = (
        update(machines)
        .where(machines.c.id == given.c.id, or_(machines.c.observed_at.is_(None), newer))
        .values(**_seen(given, looked_at))
    )
    return connection.execute(statement).rowcount


_OBSERVED = ("id", "state", "reason", "looks")


def _texts(seen: Observation) -> tuple[str, ...]:
    return (seen.id, seen.state, seen.reason, str(seen.missing_looks))


def _seen(given: Any, looked_at: datetime) -> dict[str, Any]:
    return {
        "observed_state": given.c.state,
        "observed_reason": given.c.reason,
        "missing_looks": cast(given.c.looks, Integer),
        "observed_at": looked_at,
    }
