"""What follows when tasks end: their parents end with the last of their children, and pipelines go on.

What belongs here: `follow`, which whoever ends tasks calls in the same transaction. What does not: ending them.

Locks are taken children first, then parents, then pipelines, each in the order of their ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Connection, Text, cast, select, update

from ops_pipeline.analysis.events import AGGREGATED, tell_tasks
from ops_pipeline.analysis.pipelines.advance import advance_all
from ops_pipeline.analysis.states import CHILDREN, LONGEST_TEXT, aggregate
from ops_pipeline.analysis.tables import CANCELLED, FAILED, RUNNING, UNFINISHED, UNIFIED, analysis_tasks
from ops_pipeline.database.expressions import is_any_of
from ops_pipeline.database.sent import json_text, sent_rows

tasks = analysis_tasks.c


@dataclass(frozen=True)
class Ended:
    """A task that has just ended."""

    id: str
    parent_id: str | None = None
    pipeline_id: str | None = None


def follow(
    connection: Connection, ended: Sequence[Ended], now: datetime, *, parents: Sequence[str] = ()
) -> list[Ended]:
    """Do what follows from the end of tasks, in the transaction that ended them.

    Args:
        connection: that transaction.
        ended: the tasks.
        now: the database's clock.
        parents: further parents that may end now, without any of these tasks.

    Returns:
        The parents that ended.
    """
    awaiting = sorted({task.parent_id for task in ended if task.parent_id} | set(parents))
    ended_parents = aggregate_parents(connection, awaiting, now)
    whole = [task for task in (*ended, *ended_parents) if task.parent_id is None]
    advance_all(connection, {task.pipeline_id for task in whole}, now)
    return ended_parents


def aggregate_parents(connection: Connection, parents: Sequence[str], now: datetime) -> list[Ended]:
    """End those of some parents whose children have all ended; each is ended once, whoever comes first.

    A sibling that ends at the same time waits here for the lock of the parent, and looks at the children only then.
    """
    unfinished = tasks.status.in_(UNFINISHED), tasks.service == UNIFIED
    wanted = select(tasks.id, tasks.cancel_requested_at, tasks.error_message).where(
        is_any_of(tasks.id, list(parents)), *unfinished
    )
    locked = connection.execute(wanted.order_by(tasks.id).with_for_update()).all() if parents else []
    if not locked:
        return []
    children = _children(connection, [row.id for row in locked])
    rows = [_ending(row, children.get(row.id, [])) for row in locked]
    return end_parents(connection, [row for row in rows if row is not None], now)


def end_parents(connection: Connection, rows: Sequence[Mapping[str, Any]], now: datetime) -> list[Ended]:
    """Write the end of parents: `id`, `status`, `error_class`, `error_message` and `result_summary` of each."""
    if not rows:
        return []
    columns = dict.fromkeys(("id", "status", "error_class", "error_message"), Text()) | {"result_summary": JSON()}
    sent = sent_rows(connection.dialect.name, "sent", columns)
    ended = (
        update(analysis_tasks)
        .where(tasks.id == sent.c.id, tasks.status.in_(UNFINISHED))
        .values(
            **{name: sent.c[name] for name in columns if name != "id"},
            completed_at=now,
            updated_at=now,
        )
        .returning(tasks.id, tasks.parent_id, tasks.pipeline_id)
    )
    done = [Ended(*row) for row in connection.execute(ended, {"sent": json_text(list(rows))})]
    tell_tasks(connection, AGGREGATED, [task.id for task in done], now, before=RUNNING)
    return done


def _children(connection: Connection, parents: Sequence[str]) -> dict[str, list[Any]]:
    columns = (tasks.parent_id, tasks.id, tasks.service, tasks.status, tasks.error_message)
    summary = cast(tasks.result_summary, Text).label("summary")
    query = select(*columns, summary).where(is_any_of(tasks.parent_id, parents)).order_by(tasks.service, tasks.id)
    found: dict[str, list[Any]] = {}
    for row in connection.execute(query):
        found.setdefault(row.parent_id, []).append(row)
    return found


def _ending(parent: Any, children: Sequence[Any]) -> dict[str, Any] | None:
    status = aggregate([child.status for child in children])
    if status is None:
        return None
    troubles = "; ".join(f"{child.service}: {child.error_message}" for child in children if child.error_message)
    if parent.cancel_requested_at is not None and any(child.status == CANCELLED for child in children):
        status, troubles = CANCELLED, parent.error_message or troubles
    return {
        "id": parent.id,
        "status": status,
        "error_class": {CANCELLED: CANCELLED, FAILED: CHILDREN}.get(status, ""),
        "error_message": troubles[:LONGEST_TEXT] or None,
        "result_summary": summary_of(status, children),
    }


def summary_of(status: str, children: Sequence[Any]) -> dict[str, Any]:
    """The result of a parent: what each service said, and the sum of their findings."""
    services: dict[str, Any] = {}
    for child in children:
        own = _summary(child.summary)
        brief = {"status": child.status, "task_id": child.id, "error": child.error_message}
        services[child.service if child.service not in services else child.id] = brief | {"summary": own}
    findings = (service["summary"].get("total_findings") for service in services.values())
    total = sum(count for count in findings if isinstance(count, int))
    executed = [name for name, service in services.items() if service["status"] not in {CANCELLED}]
    return {
        "summary": {"status": status, "total_findings": total, "services_executed": executed},
        "services": services,
    }


def _summary(text: str | None) -> dict[str, Any]:
    """The `summary` of a child's result; nothing where that cannot be read."""
    try:
        found = json.loads(text or "null")
    except (ValueError, RecursionError):
        return {}
    summary = found.get("summary") if isinstance(found, dict) else None
    return summary if isinstance(summary, dict) else {}
