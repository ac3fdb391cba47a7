"""What operators and other parts of the lab do to tasks: cancel and retry.

What belongs here: the decision who may be cancelled or retried, and the guarded writing of it.

    with writing(engine) as connection:
        told = cancel(connection, [task_id], "cancelled by ann: not needed", database_now(connection))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, or_, select, update

from ops_pipeline.analysis.events import CANCEL, ENDED, RETRY, tell_tasks
from ops_pipeline.analysis.following import Ended, follow
from ops_pipeline.analysis.returning import bring_back
from ops_pipeline.analysis.states import LONGEST_TEXT
from ops_pipeline.analysis.tables import (
    CANCELLED,
    CREATED,
    FAILED,
    PARTIAL_SUCCESS,
    PENDING,
    RUNNING,
    UNFINISHED,
    UNIFIED,
    analysis_tasks,
)
from ops_pipeline.analysis.waking import CANCEL as CANCEL_SIGNAL
from ops_pipeline.analysis.waking import wake
from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.database.expressions import is_any_of
from ops_pipeline.database.retry import despite_conflicts

WAITING = (CREATED, PENDING)
tasks = analysis_tasks.c


@dataclass(frozen=True)
class Told:
    """What became of a command to tasks.

    Attributes:
        done: tasks that were changed at once, children of those named among them.
        asked: running tasks whose workers end them with their next heartbeat.
        refused: named tasks that were left alone, each with the reason.
    """

    done: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def cancel(connection: Connection, ids: Sequence[str], reason: str, now: datetime) -> Told:
    """Cancel tasks with their children: waiting ones at once, running ones as soon as their workers hear of it.

    Tasks that have ended stay as they are.

    Args:
        connection: a transaction of `engine.writing`.
        ids: of tasks, parents among them.
        reason: who and why, for `error_message`.
        now: the database's clock.
    """
    leaves, parents = _tree(connection, ids)
    waiting = [row for row in leaves if row.status in WAITING]
    running = [row.id for row in leaves if row.status == RUNNING]
    open_parents = [row.id for row in parents if row.status in UNFINISHED]
    told = {"error_message": reason[:LONGEST_TEXT], "cancel_requested_at": now, "updated_at": now}
    ended = _end_waiting(connection, [row.id for row in waiting], told, now)
    asked = update(analysis_tasks).where(is_any_of(tasks.id, [*running, *open_parents]), tasks.status.in_(UNFINISHED))
    connection.execute(asked.values(**told))
    tell_tasks(connection, CANCEL, running, now, before=RUNNING)
    if running:
        wake(connection, CANCEL_SIGNAL)
    _end_childless(connection, open_parents, now)
    ended_parents = follow(connection, ended, now, parents=open_parents)
    done = [task.id for task in (*ended, *ended_parents)]
    found = {row.id: row.status for row in (*leaves, *parents)}
    return Told(tuple(sorted(done)), tuple(sorted(running)), _refusals(ids, found, UNFINISHED))


def retry(connection: Connection, ids: Sequence[str], now: datetime) -> Told:
    """Let tasks that failed or were cancelled begin anew; of a parent those children that did.

    Args:
        connection: a transaction of `engine.writing`.
        ids: of tasks, parents among them.
        now: the database's clock.
    """
    leaves, parents = _tree(connection, ids)
    named = set(ids)
    again = {FAILED, CANCELLED}
    wanted = [row.id for row in leaves if row.status in again or (row.id in named and row.status == PARTIAL_SUCCESS)]
    back = bring_back(connection, wanted, now, kind=RETRY, condition=tasks.status.in_((*again, PARTIAL_SUCCESS)))
    found = {row.id: row.status for row in leaves}
    has_back = {row.parent_id for row in leaves if row.id in back}
    # A parent is told by its children: one that has none to do again is refused with its own status.
    found |= {row.id: FAILED if row.id in has_back else row.status for row in parents if row.id in has_back}
    found |= {row.id: f"{row.status}, with no child to do again" for row in parents if row.id not in has_back}
    return Told(tuple(back), (), _refusals(ids, found, (*again, PARTIAL_SUCCESS)))


def _refusals(ids: Sequence[str], found: Mapping[str, str], taken: Sequence[str]) -> dict[str, str]:
    refused = {one: found.get(one) for one in ids if found.get(one) not in taken}
    return {one: f"is {status}" if status else "is no task" for one, status in refused.items()}


def _tree(connection: Connection, ids: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """Lock some tasks and their children: those that are claimed, then the parents."""
    wanted = list(ids)
    query = select(tasks.id, tasks.parent_id, tasks.status, tasks.pipeline_id).order_by(tasks.id).with_for_update()
    of_tree = or_(is_any_of(tasks.id, wanted), is_any_of(tasks.parent_id, wanted))
    leaves = connection.execute(query.where(of_tree, tasks.service != UNIFIED)).all()
    parents = connection.execute(query.where(is_any_of(tasks.id, wanted), tasks.service == UNIFIED)).all()
    return list(leaves), list(parents)


def _end_waiting(connection: Connection, ids: Sequence[str], told: Mapping[str, Any], now: datetime) -> list[Ended]:
    ended = update(analysis_tasks).where(is_any_of(tasks.id, list(ids)), tasks.status.in_(WAITING))
    values = {"status": CANCELLED, "error_class": CANCELLED, "completed_at": now, "next_attempt_at": None, **told}
    rows = connection.execute(ended.values(**values).returning(tasks.id, tasks.parent_id, tasks.pipeline_id))
    done = [Ended(*row) for row in rows]
    tell_tasks(connection, ENDED, [task.id for task in done], now, before=PENDING)
    return done


def _end_childless(connection: Connection, parents: Sequence[str], now: datetime) -> None:
    """Parents that have no children yet have nobody to wait for; another program was still writing them."""
    children = analysis_tasks.alias("children")
    has_child = select(children.c.id).where(children.c.parent_id == tasks.id).exists()
    ended = update(analysis_tasks).where(is_any_of(tasks.id, list(parents)), tasks.status.in_(WAITING), ~has_child)
    connection.execute(ended.values(status=CANCELLED, error_class=CANCELLED, completed_at=now))


def cancel_tasks(engine: Engine, ids: Sequence[str], reason: str) -> Told:
    """`cancel`, in a transaction of its own."""

    def transaction() -> Told:
        with writing(engine) as connection:
            return cancel(connection, ids, reason, database_now(connection))

    return despite_conflicts(transaction)


def retry_tasks(engine: Engine, ids: Sequence[str]) -> Told:
    """`retry`, in a transaction of its own."""

    def transaction() -> Told:
        with writing(engine) as connection:
            return retry(connection, ids, database_now(connection))

    return despite_conflicts(transaction)
