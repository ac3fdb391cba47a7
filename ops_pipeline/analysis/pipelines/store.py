"""Pipelines in the database: reading their rows, and writing what the rules decide.

What belongs here: every statement over `pipelines`, `pipeline_steps` and `pipeline_jobs`. What does not: decisions,
which are in `rules`, and what jobs run on, which is in `targets`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    Connection,
    Integer,
    Text,
    UpdateBase,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    update,
)

from ops_pipeline.analysis.pipelines.applications import NOT_MADE, reserve, set_generation
from ops_pipeline.analysis.pipelines.definition import Definition, jobs_of
from ops_pipeline.analysis.pipelines.rules import SKIPPED, SUCCEEDED, WAITING, Pipeline, Step
from ops_pipeline.analysis.pipelines.tables import pipeline_events, pipeline_jobs, pipeline_steps, pipelines
from ops_pipeline.analysis.tables import (
    CANCELLED,
    COMPLETED,
    FAILED,
    PARTIAL_SUCCESS,
    PENDING,
    RUNNING,
    TERMINAL,
    UNFINISHED,
    UNIFIED,
    analysis_tasks,
)
from ops_pipeline.database.expressions import is_any_of
from ops_pipeline.database.replace import insert_missing
from ops_pipeline.database.sent import json_text, sent_rows
from ops_pipeline.database.types import UtcDateTime

LONGEST_TEXT = 4_000
GONE = "its task is gone"
MAY_COME_BACK = (FAILED, PARTIAL_SUCCESS, CANCELLED)


@dataclass(frozen=True)
class Job:
    """A row of `pipeline_jobs`."""

    index: int
    target: str
    template: str
    attempt: int
    status: str = WAITING
    task_id: str | None = None


def lock(connection: Connection, pipeline_id: str) -> bool:
    """Hold a pipeline until the transaction ends; whether there is one.

    Whoever holds tasks already may wait here; whoever holds a pipeline never waits for tasks. So nobody waits in a
    circle.
    """
    mine = select(pipelines.c.id).where(pipelines.c.id == pipeline_id)
    return connection.execute(mine.with_for_update(key_share=True)).first() is not None


def read_pipeline(connection: Connection, pipeline_id: str) -> Pipeline | None:
    """One pipeline with its steps; None when there is no such row."""
    return next(iter(read_pipelines(connection, [pipeline_id])), None)


def read_pipelines(connection: Connection, ids: Collection[str]) -> list[Pipeline]:
    """Pipelines with their steps, the oldest first."""
    steps = _steps(connection, ids)
    table = pipelines.c
    rows = select(table.id, table.status, table.paused_at, table.stop_as, table.deadline_at)
    ordered = rows.where(is_any_of(table.id, list(ids))).order_by(table.created_at, table.id)
    return [
        Pipeline(
            id=row.id,
            status=row.status,
            paused=row.paused_at is not None,
            stop_as=row.stop_as,
            deadline_at=row.deadline_at,
            steps=tuple(steps.get(row.id, ())),
        )
        for row in connection.execute(ordered)
    ]


def _steps(connection: Connection, ids: Collection[str]) -> dict[str, list[Step]]:
    jobs, steps = pipeline_jobs.c, pipeline_steps.c
    kinds = select(jobs.pipeline_id, jobs.step, jobs.status, func.count().label("jobs"))
    counted = kinds.where(is_any_of(jobs.pipeline_id, list(ids))).group_by(jobs.pipeline_id, jobs.step, jobs.status)
    counts: dict[tuple[str, int], dict[str, int]] = {}
    for row in connection.execute(counted):
        counts.setdefault((row.pipeline_id, row.step), {})[row.status] = row.jobs
    found: dict[str, list[Step]] = {}
    mine = select(pipeline_steps).where(is_any_of(steps.pipeline_id, list(ids))).order_by(steps.position)
    for row in connection.execute(mine):
        jobs_of_step = counts.get((row.pipeline_id, row.position), {})
        step = Step(row.position, row.name, row.status, row.critical, row.concurrency, jobs_of_step)
        found.setdefault(row.pipeline_id, []).append(step)
    return found


def read_definition_of(connection: Connection, pipeline_id: str) -> Any:
    """The definition of a pipeline, as it stands in its row."""
    return connection.scalar(select(pipelines.c.definition).where(pipelines.c.id == pipeline_id))


def unfinished_ids(connection: Connection) -> list[str]:
    """The pipelines that have not ended, the oldest first."""
    table = pipelines.c
    # Written out, not sent: a partial index serves only a condition that is known when the statement is planned.
    unfinished = table.status.in_([literal_column(f"'{status}'") for status in (PENDING, RUNNING)])
    return list(connection.scalars(select(table.id).where(unfinished).order_by(table.created_at)))


def insert_pipeline(connection: Connection, row: dict[str, Any]) -> None:
    """Write a pipeline, unless there is one of its id."""
    insert_missing(connection, pipelines, [row])


def begin_again(connection: Connection, pipeline_id: str, now: datetime, deadline_at: datetime | None) -> None:
    """Let a pipeline that has ended begin another attempt."""
    begun = select(pipeline_steps.c.position).where(pipeline_steps.c.pipeline_id == pipeline_id).exists()
    values = {
        "status": case((begun, RUNNING), else_=PENDING),
        "attempt": pipelines.c.attempt + 1,
        "stop_as": "",
        "paused_at": None,
        "completed_at": None,
        "deadline_at": deadline_at,
        "updated_at": now,
    }
    mine = update(pipelines).where(pipelines.c.id == pipeline_id)
    connection.execute(mine.values(error_message="", **values))


def lay(connection: Connection, pipeline_id: str, definition: Definition, now: datetime) -> None:
    """Write the steps of a pipeline and all of their jobs, and a number for each application that it makes."""
    steps = [
        {
            "pipeline_id": pipeline_id,
            "position": position,
            "name": step.name,
            "critical": step.critical,
            "concurrency": step.concurrency,
            "makes_applications": bool(step.models),
        }
        for position, step in enumerate(definition.steps)
    ]
    laid = jobs_of(definition, lambda pairs: reserve(connection, pairs, now))
    jobs = [
        {"pipeline_id": pipeline_id, "step": position, "job_index": index, "target": target, "template": template}
        for position, plans in enumerate(laid)
        for index, (target, template) in enumerate(plans)
    ]
    connection.execute(insert(pipeline_steps), steps)
    connection.execute(insert(pipeline_jobs), jobs)


def set_pipeline(connection: Connection, pipeline_id: str, now: datetime, **values: Any) -> None:
    """Write columns of a pipeline."""
    if "error_message" in values:
        values["error_message"] = values["error_message"][:LONGEST_TEXT]
    connection.execute(update(pipelines).where(pipelines.c.id == pipeline_id).values(updated_at=now, **values))


def set_step(connection: Connection, pipeline_id: str, position: int, **values: Any) -> None:
    """Write columns of a step."""
    table = pipeline_steps.c
    mine = and_(table.pipeline_id == pipeline_id, table.position == position)
    connection.execute(update(pipeline_steps).where(mine).values(**values))


def withdraw(connection: Connection, pipeline_id: str, reason: str, now: datetime) -> None:
    """End every waiting job as cancelled."""
    table = pipeline_jobs.c
    waiting = and_(table.pipeline_id == pipeline_id, table.status == WAITING)
    making = select(table.target).where(waiting, table.step.in_(_steps_that_make(pipeline_id)))
    set_generation(connection, connection.scalars(making).all(), CANCELLED, now)
    connection.execute(update(pipeline_jobs).where(waiting).values(status=CANCELLED, reason=reason))


def _steps_that_make(pipeline_id: str) -> Any:
    steps = pipeline_steps.c
    return select(steps.position).where(steps.pipeline_id == pipeline_id, steps.makes_applications)


def waiting_jobs(connection: Connection, pipeline_id: str, position: int, most: int | None = None) -> list[Job]:
    """The first waiting jobs of a step, in the order of their index."""
    table = pipeline_jobs.c
    mine = and_(table.pipeline_id == pipeline_id, table.step == position, table.status == WAITING)
    columns = (table.job_index, table.target, table.template, table.attempt, table.status, table.task_id)
    rows = connection.execute(select(*columns).where(mine).order_by(table.job_index).limit(most))
    return [Job(*row) for row in rows]


def set_jobs(connection: Connection, pipeline_id: str, position: int, values: Sequence[dict[str, Any]]) -> None:
    """Write columns of jobs, all of them texts; each mapping has their `index` and the same other columns."""
    if values:
        change = _set_jobs(connection.dialect.name, tuple(sorted(set(values[0]) - {"index"})))
        of = {"of_pipeline": pipeline_id, "of_step": position}
        connection.execute(change, {**of, "jobs": json_text(list(values))})


# One statement for all of them, and not one for each job.
@cache
def _set_jobs(dialect: str, columns: Sequence[str]) -> UpdateBase:
    jobs, sent = pipeline_jobs.c, sent_rows(dialect, "jobs", {"index": Integer(), **dict.fromkeys(columns, Text())})
    mine = and_(jobs.pipeline_id == bindparam("of_pipeline"), jobs.step == bindparam("of_step"))
    changed = update(pipeline_jobs).where(mine, jobs.job_index == sent.c.index)
    return changed.values({name: sent.c[name] for name in columns})


def take_in(connection: Connection, pipeline_id: str, now: datetime) -> int:
    """Bring running jobs of a pipeline to what became of their tasks; how many ended.

    Only jobs that are running are looked at, so that each end counts once, however often it is told.
    """
    jobs, tasks, steps = pipeline_jobs.c, analysis_tasks.c, pipeline_steps.c
    joined = pipeline_jobs.join(
        pipeline_steps, and_(steps.pipeline_id == jobs.pipeline_id, steps.position == jobs.step)
    ).outerjoin(analysis_tasks, tasks.id == jobs.task_id)
    columns = (jobs.step, jobs.job_index, jobs.target, steps.makes_applications, tasks.status, tasks.error_message)
    ended = or_(tasks.id.is_(None), tasks.status.in_(TERMINAL))
    mine = and_(jobs.pipeline_id == pipeline_id, steps.status == RUNNING, jobs.status == RUNNING, ended)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    made: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(select(*columns).select_from(joined).where(mine).order_by(jobs.job_index)):
        status, told = row.status or FAILED, row.error_message if row.status else GONE
        found[row.step].append({"index": row.job_index, "status": status, "reason": (told or "")[:LONGEST_TEXT]})
        if row.makes_applications:
            made[COMPLETED if status in SUCCEEDED else status].append(row.target)
    for position, values in found.items():
        set_jobs(connection, pipeline_id, position, values)
    for status, targets in made.items():
        set_generation(connection, targets, status, now)
    return sum(len(values) for values in found.values())


def take_back(connection: Connection, pipeline_id: str, now: datetime) -> int:
    """Let jobs run again whose tasks came back after they had failed, while their step runs; how many there were."""
    jobs, tasks, steps = pipeline_jobs.c, analysis_tasks.c, pipeline_steps.c
    at_work = select(steps.position).where(steps.pipeline_id == pipeline_id, steps.status == RUNNING)
    back = select(tasks.id).where(tasks.pipeline_id == pipeline_id, tasks.status.in_(UNFINISHED))
    over = jobs.status.in_(MAY_COME_BACK)
    mine = and_(jobs.pipeline_id == pipeline_id, jobs.step.in_(at_work), over, jobs.task_id.in_(back))
    making = select(jobs.target).where(mine, jobs.step.in_(_steps_that_make(pipeline_id)))
    set_generation(connection, connection.scalars(making).all(), RUNNING, now, before=NOT_MADE)
    return connection.execute(update(pipeline_jobs).where(mine).values(status=RUNNING, reason="")).rowcount


def wait_again(connection: Connection, pipeline_id: str, now: datetime) -> int:
    """Let every job that did not succeed wait for another attempt, under a run key of its own; how many there are."""
    table, steps = pipeline_jobs.c, pipeline_steps.c
    again = and_(table.pipeline_id == pipeline_id, table.status.in_((FAILED, CANCELLED, SKIPPED)))
    making = select(table.target).where(again, table.step.in_(_steps_that_make(pipeline_id)))
    set_generation(connection, connection.scalars(making).all(), PENDING, now, before=NOT_MADE)
    values = {"status": WAITING, "attempt": table.attempt + 1, "task_id": None, "reason": ""}
    count = connection.execute(update(pipeline_jobs).where(again).values(values)).rowcount
    waiting = select(table.step).where(table.pipeline_id == pipeline_id, table.status == WAITING)
    mine = and_(steps.pipeline_id == pipeline_id, steps.position.in_(waiting))
    connection.execute(update(pipeline_steps).where(mine).values(status=PENDING, started_at=None, completed_at=None))
    return count


def hold(connection: Connection, pipeline_id: str, now: datetime) -> int:
    """Hold the tasks of a paused pipeline, and let go of those of one that is not; how many there were.

    The pipeline must not be locked by this transaction: it waits for tasks.
    """
    tasks = analysis_tasks.c
    paused = select(pipelines.c.id).where(pipelines.c.id == pipeline_id, pipelines.c.paused_at.is_not(None)).exists()
    differs = or_(and_(paused, tasks.held_since.is_(None)), and_(~paused, tasks.held_since.is_not(None)))
    mine = select(tasks.id).where(tasks.pipeline_id == pipeline_id, tasks.status.in_(UNFINISHED), differs)
    since = case((paused, literal(now, UtcDateTime())), else_=null())
    count = 0
    # Children before parents, and in order, as everybody locks tasks: two transactions never wait for each other.
    for kind in (tasks.service != UNIFIED, tasks.service == UNIFIED):
        ordered = mine.where(kind).order_by(tasks.id).with_for_update()
        locked = ordered.cte("mine").prefix_with("MATERIALIZED", dialect="postgresql")
        held = update(analysis_tasks).where(tasks.id.in_(select(locked.c.id))).values(held_since=since)
        # Of an UPDATE behind WITH, SQLite's driver tells no number.
        count += len(connection.execute(held.returning(tasks.id)).all())
    return count


def tell(connection: Connection, pipeline_id: str, now: datetime, kind: str, **values: Any) -> None:
    """Write an event of a pipeline."""
    if "reason" in values:
        values["reason"] = values["reason"][:LONGEST_TEXT]
    connection.execute(insert(pipeline_events), [{"pipeline_id": pipeline_id, "at": now, "kind": kind} | values])
