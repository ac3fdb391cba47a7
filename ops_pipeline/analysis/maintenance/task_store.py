"""Tasks that have not ended, in the database: the look, and ending them under the conditions of the plan.

Each look goes through a partial index of the queue: what has ended is not read.

What belongs here: SQL. Decisions are in `tasks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Text,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)

from ops_pipeline.analysis.events import tell_tasks
from ops_pipeline.analysis.following import Ended, follow
from ops_pipeline.analysis.maintenance.tasks import Ending, Task, Version
from ops_pipeline.analysis.pipelines.tables import pipeline_steps, pipelines
from ops_pipeline.analysis.tables import (
    CREATED,
    FAILED,
    HAS_UNKNOWN_STATUS,
    PENDING,
    RUNNING,
    TERMINAL,
    UNFINISHED,
    UNIFIED,
    analysis_tasks,
    generated_applications,
)
from ops_pipeline.database.expressions import instant_order, is_any_of
from ops_pipeline.database.instants import known_instant
from ops_pipeline.database.sent import json_text, sent_rows

MAINTAINED = "maintained"
"""The kind of the events that maintenance writes."""
OWNER = "maintenance"
_task = analysis_tasks.c
_PARTS = ("created_at", "started_at", "updated_at", "next_attempt_at", "lease_expires_at")


def _is(status: str) -> ColumnElement[bool]:
    # Written out: only then does a partial index serve.
    return _task.status == literal(status, literal_execute=True)


_PAUSED = select(pipelines.c.id).where(pipelines.c.paused_at.is_not(None))
LOOKS = (
    _is(CREATED),
    and_(_is(PENDING), _task.held_since.is_(None)),
    # Tasks that are held belong to paused pipelines, through which there is an index.
    and_(_is(PENDING), _task.held_since.is_not(None), _task.pipeline_id.in_(_PAUSED)),
    _is(RUNNING),
)
"""Conditions that together hold for every task that has not ended, and whose status is known."""


def count_unfinished(connection: Connection) -> int:
    """How many tasks have not ended."""
    return sum(
        connection.execute(select(func.count()).select_from(analysis_tasks).where(look)).scalar_one() for look in LOOKS
    )


def read_unknown(connection: Connection, limit: int) -> list[tuple[str, str]]:
    """Id and status of tasks whose status nobody knows."""
    query = select(_task.id, _task.status).where(HAS_UNKNOWN_STATUS).order_by(_task.service, _task.id).limit(limit)
    return [(row.id, row.status) for row in connection.execute(query)]


def read_orphans(connection: Connection) -> tuple[list[Task], dict[str, list[Version]]]:
    """Tasks that have not ended and have no application that is well; and what there is of these applications."""
    names_one = _task.target.like("%/app%")
    tasks = _read(connection, and_(names_one, ~_healthy()))
    app = generated_applications.c
    found: dict[str, list[Version]] = {}
    targets = sorted({task.target for task in tasks})
    columns = app.target, app.version, app.generation_status, app.failure_stage, app.error_message
    query = select(*columns, known_instant(app.updated_at)).where(is_any_of(app.target, targets))
    for target, number, status, stage, error, updated in connection.execute(query):
        found.setdefault(target, []).append(Version(number, status, stage, error or "", updated))
    return tasks, found


def _healthy() -> ColumnElement[bool]:
    app = generated_applications.c
    return exists().where(app.target == _task.target, app.generation_status != FAILED)


def read_waiting(connection: Connection, before: datetime) -> list[Task]:
    """Tasks that have not ended and were written before `before`; those with a live lease are left out."""
    old = or_(instant_order(_task.created_at) < instant_order(before), known_instant(_task.created_at).is_(None))
    alive = and_(_is(RUNNING), _task.lease_expires_at.is_not(None))
    # A worker renews its leases all the time: thousands of them are of no interest here.
    alive = and_(alive, instant_order(_task.lease_expires_at) > instant_order(before))
    return _with_children(connection, _read(connection, and_(old, ~func.coalesce(alive, False))))


def _read(connection: Connection, condition: ColumnElement[bool]) -> list[Task]:
    step = pipeline_steps.c
    generates = exists().where(
        step.pipeline_id == _task.pipeline_id, step.position == _task.step, step.makes_applications.is_(True)
    )
    paused = exists().where(pipelines.c.id == _task.pipeline_id, pipelines.c.paused_at.is_not(None))
    plain = (_task.id, _task.service, _task.target, _task.status, _task.attempt, _task.parent_id)
    held = or_(_task.held_since.is_not(None), paused)
    times = [known_instant(_task[name]) for name in _PARTS]
    found: list[Task] = []
    for look in LOOKS:
        query = select(*plain, *times, held, generates).where(look, condition)
        found += (Task(*row[:-2], held=bool(row[-2]), generation=bool(row[-1])) for row in connection.execute(query))
    return found


def _with_children(connection: Connection, tasks: Sequence[Task]) -> list[Task]:
    """The same tasks, parents among them with what is known of their children."""
    unfinished = func.sum(case((_task.status.in_(UNFINISHED), 1), else_=0))
    ids = [task.id for task in tasks]
    last = known_instant(func.max(_task.completed_at)).label("last")
    query = select(_task.parent_id, unfinished.label("unfinished"), last).where(is_any_of(_task.parent_id, ids))
    children = {row.parent_id: row for row in connection.execute(query.group_by(_task.parent_id))}
    return [
        replace(task, children=int(children[task.id].unfinished), last_child=children[task.id].last)
        if task.id in children
        else task
        for task in tasks
    ]


SENT = {
    "id": Text(),
    "planned": Text(),
    "attempt": Integer(),
    "status": Text(),
    "error_class": Text(),
    "message": Text(),
}


def end_orphans(endings: Sequence[Ending], connection: Connection, now: datetime) -> int:
    """Cancel tasks that still have no application that is well; returns how many ended, parents included."""
    return _end(connection, endings, now, ~_healthy())


def end_stuck(endings: Sequence[Ending], connection: Connection, now: datetime) -> int:
    """End tasks that still have neither a live lease nor something to wait for; returns how many ended."""
    lease, due = _task.lease_expires_at, _task.next_attempt_at
    unleased = and_(_task.status == RUNNING, or_(lease.is_(None), instant_order(lease) <= instant_order(now)))
    waits = or_(due.is_(None), instant_order(due) <= instant_order(now))
    unheld = and_(_task.status.in_((CREATED, PENDING)), _task.held_since.is_(None), waits)
    return _end(connection, endings, now, or_(unleased, unheld))


def _end(connection: Connection, endings: Sequence[Ending], now: datetime, condition: ColumnElement[bool]) -> int:
    leaves = [one for one in endings if one.task.service != UNIFIED]
    parents = [one for one in endings if one.task.service == UNIFIED]
    ended: set[str] = set()
    # Children first: with the last of them their parent ends, from what they came to.
    for some in (leaves, parents):
        done = _update(connection, some, now, condition)
        for status in {one.task.status for one in some}:
            ids = [one.task.id for one in some if one.task.status == status and one.task.id in {d.id for d in done}]
            tell_tasks(connection, MAINTAINED, ids, now, before=status, owner=OWNER)
        ended |= {one.id for one in done} | {one.id for one in follow(connection, done, now)}
    return len(ended)


def _update(
    connection: Connection, endings: Sequence[Ending], now: datetime, condition: ColumnElement[bool]
) -> list[Ended]:
    # What somebody holds is being ended or claimed right now.
    wanted = select(_task.id).where(is_any_of(_task.id, [one.task.id for one in endings])).order_by(_task.id)
    free = set(connection.scalars(wanted.with_for_update(skip_locked=True))) if endings else set()
    if not free:
        return []
    sent = sent_rows(connection.dialect.name, "sent", SENT)
    rows = [
        {
            "id": one.task.id,
            "planned": one.task.status,
            "attempt": one.task.attempt,
            "status": one.status,
            "error_class": one.error_class,
            "message": one.change.reason,
        }
        for one in sorted(endings, key=lambda one: one.task.id)
        if one.task.id in free
    ]
    statement = (
        update(analysis_tasks)
        .where(
            _task.id == sent.c.id,
            # Whoever ended or claimed it meanwhile was faster.
            _task.status == sent.c.planned,
            _task.attempt == sent.c.attempt,
            condition,
        )
        .values(
            status=sent.c.status,
            error_class=sent.c.error_class,
            error_message=sent.c.message,
            completed_at=now,
            next_attempt_at=None,
            lease_owner=None,
            lease_expires_at=None,
            updated_at=now,
        )
        .returning(_task.id, _task.parent_id, _task.pipeline_id)
    )
    return [Ended(*row) for row in connection.execute(statement, {"sent": json_text(rows)})]


def read_unstamped(connection: Connection, limit: int) -> list[tuple[str, str, str]]:
    """Id, target and status of tasks that ended at no known time."""
    ended = _task.status.in_([literal(status, literal_execute=True) for status in TERMINAL])
    query = select(_task.id, _task.target, _task.status).where(ended, _task.completed_at.is_(None))
    return [(row.id, row.target, row.status) for row in connection.execute(query.order_by(_task.id).limit(limit))]


def stamp(ids: Sequence[str], connection: Connection, now: datetime) -> int:
    """Let tasks that ended at no known time have ended now, so that their retention begins."""
    ended = _task.status.in_(TERMINAL), _task.completed_at.is_(None)
    stamping = update(analysis_tasks).where(is_any_of(_task.id, list(ids)), *ended)
    return connection.execute(stamping.values(completed_at=now)).rowcount
