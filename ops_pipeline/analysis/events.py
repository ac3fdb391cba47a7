"""What happened to tasks, as rows.

What belongs here: writing and reading `task_events`. What does not: what leads to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Executable, Insert, Text, bindparam, func, insert, select

from ops_pipeline.analysis.tables import analysis_tasks, task_events
from ops_pipeline.database.expressions import AnyOf
from ops_pipeline.database.types import TextList, UtcDateTime

CLAIMED, ENDED, POSTPONED = "claimed", "ended", "postponed"
LOST, RETURNED, CANCEL, RETRY, PROGRESS = "lease lost", "returned", "cancel asked for", "retry", "progress"
_NAMES = ["task_id", "at", "kind", "attempt", "owner", "before", "after", "reason"]
RELEASED, AGGREGATED, SUBMITTED = "released", "aggregated", "submitted"


def tell_tasks(
    connection: Connection, kind: str, ids: Sequence[str], now: datetime, *, before: str, owner: str = ""
) -> None:
    """Write an event for each of some tasks, from what their rows say now: attempt, status and message.

    Args:
        connection: the transaction that changed the tasks.
        kind: what happened.
        ids: of the tasks.
        now: the database's clock.
        before: the status that they had.
        owner: the worker that had them.
    """
    if ids:
        values = {"kind": kind, "ids": list(ids), "now": now, "before": before, "owner": owner}
        connection.execute(_TELL, values)


def _tell() -> Insert:
    tasks = analysis_tasks.c
    given = {name: bindparam(name, type_=Text()) for name in ("kind", "before", "owner")}
    told = {
        "task_id": tasks.id,
        "at": bindparam("now", type_=UtcDateTime()),
        "kind": given["kind"],
        "attempt": tasks.attempt,
        "owner": given["owner"],
        "before": given["before"],
        "after": tasks.status,
        "reason": func.coalesce(tasks.error_message, ""),
    }
    rows = select(*told.values()).where(AnyOf(tasks.id, bindparam("ids", type_=TextList())))
    return insert(task_events).from_select(list(told), rows)


# Made once: putting a statement together takes longer than running it.
_TELL = _tell()


def telling(dialect: str, change: Any) -> Executable:
    """A change of tasks that writes their events with it: on PostgreSQL one statement, half the work of two.

    Args:
        dialect: `postgresql` or `sqlite`.
        change: an UPDATE of `analysis_tasks` that returns `kind`, `id`, `attempt`, `status` and `error_message`.
    """
    if dialect != "postgresql":
        return change
    changed = change.cte("changed")
    row = changed.c
    given = [bindparam(name, type_=Text()) for name in ("worker", "before")]
    told = select(
        row.id,
        bindparam("now", type_=UtcDateTime()),
        row.kind,
        row.attempt,
        *given,
        row.status,
        func.coalesce(row.error_message, ""),
    )
    return select(changed).add_cte(insert(task_events).from_select(_NAMES, told).cte("told"))


def run_telling(connection: Connection, statement: Executable, values: Mapping[str, Any]) -> list[Any]:
    """Run what `telling` made; among the values are `now`, `worker` and the status `before`.

    Returns:
        What the change returned.
    """
    rows = list(connection.execute(statement, values).all())
    if connection.dialect.name != "postgresql":
        told = {"now": values["now"], "before": values["before"], "owner": values["worker"]}
        # Within the database: sent row by row, the events took a quarter of the time of a claim.
        for kind in sorted({row.kind for row in rows}):
            tell_tasks(connection, kind, [row.id for row in rows if row.kind == kind], **told)
    return rows


def tell_progress(connection: Connection, owner: str, frames: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Write progress frames of a worker's tasks.

    Args:
        connection: a transaction of `engine.writing`.
        owner: the worker.
        frames: each with `task_id`, `attempt`, `reason` (what to tell) and `data`.
        now: the database's clock.
    """
    rows = [{"at": now, "kind": PROGRESS, "owner": owner, **frame} for frame in frames]
    if rows:
        connection.execute(insert(task_events), rows)


def read_events(connection: Connection, task_id: str) -> list[Mapping[str, Any]]:
    """Everything that happened to a task, oldest first."""
    query = select(task_events).where(task_events.c.task_id == task_id).order_by(task_events.c.id)
    return [dict(row) for row in connection.execute(query).mappings()]
