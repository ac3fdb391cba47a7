"""Looking at tasks: lists, and one task with all that belongs to it.

What belongs here: queries for people. Times and JSON are read as text, so that a row with junk in it can be looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Connection, Text, cast, func, literal_column, select

from ops_pipeline.analysis.events import read_events
from ops_pipeline.analysis.tables import CREATED, PENDING, RUNNING, analysis_results, analysis_tasks
from ops_pipeline.database.types import UtcDateTime

tasks = analysis_tasks.c
_AS_READ = [
    cast(one, Text).label(one.name) if isinstance(one.type, (UtcDateTime, JSON)) else one
    for one in analysis_tasks.columns
]


@dataclass(frozen=True)
class Wanted:
    """Which tasks to list; None for any."""

    status: str | None = None
    service: str | None = None
    target: str | None = None
    pipeline_id: str | None = None


@dataclass(frozen=True)
class TaskView:
    """A task with its children, what happened to it, and how many findings there are."""

    task: Mapping[str, Any]
    children: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    findings: int


def list_tasks(connection: Connection, wanted: Wanted, limit: int) -> list[Mapping[str, Any]]:
    """Tasks without their children: those at work, those that wait in the order of their turn, then the last ended."""
    found: list[Mapping[str, Any]] = []
    # Written out one by one: each is served by its own index.
    at_work = [
        _rows(wanted).where(tasks.status == literal_column(f"'{status}'")).order_by(tasks.claim_order, tasks.id)
        for status in (RUNNING, PENDING, CREATED)
        if wanted.status in {None, status}
    ]
    others = _rows(wanted).where(tasks.status.not_in((RUNNING, PENDING, CREATED))).order_by(tasks.completed_at.desc())
    if wanted.status is not None:
        others = others.where(tasks.status == wanted.status)
    for query in (*at_work, others):
        if len(found) < limit:
            found += [dict(row) for row in connection.execute(query.limit(limit - len(found))).mappings()]
    return found


def view_task(connection: Connection, task_id: str) -> TaskView | None:
    """One task; None when there is none of this id."""
    row = connection.execute(select(*_AS_READ).where(tasks.id == task_id)).mappings().one_or_none()
    if row is None:
        return None
    children = connection.execute(
        select(*_AS_READ).where(tasks.parent_id == task_id).order_by(tasks.service)
    ).mappings()
    kept = [dict(child) for child in children]
    of_tree = [task_id, *(child["id"] for child in kept)]
    count = select(func.count()).where(analysis_results.c.task_id.in_(of_tree))
    findings = connection.execute(count).scalar_one()
    return TaskView(dict(row), kept, read_events(connection, task_id), findings)


def _rows(wanted: Wanted) -> Any:
    query: Any = select(*_AS_READ).where(tasks.parent_id.is_(None))
    for name in ("service", "target", "pipeline_id"):
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(tasks[name] == value)
    return query
