"""Running tasks whose worker gave no sign of life within its lease.

What belongs here: finding them, and giving them back or ending them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Engine,
    Integer,
    Text,
    UpdateBase,
    and_,
    bindparam,
    case,
    func,
    literal,
    null,
    or_,
    select,
    type_coerce,
    update,
)

from ops_pipeline.analysis.events import ENDED, LOST, tell_tasks
from ops_pipeline.analysis.following import Ended, follow
from ops_pipeline.analysis.limits import IS_RUNNING
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.recovery.passes import MOST, Recovered, applied
from ops_pipeline.analysis.states import Ending, lost
from ops_pipeline.analysis.tables import CANCELLED, PENDING, RUNNING, TERMINAL, UNIFIED, analysis_tasks
from ops_pipeline.analysis.waking import WORK, wake
from ops_pipeline.database.clock import seconds_after
from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.database.expressions import instant_order
from ops_pipeline.database.sent import json_text, sent_rows
from ops_pipeline.database.types import UtcDateTime
from ops_pipeline.reconcile import Change, Plan

tasks = analysis_tasks.c
SENT = {"id": Text(), "attempt": Integer(), "status": Text(), "error_class": Text(), "message": Text()}


@dataclass(frozen=True)
class Lost:
    """A running task whose lease has run out, and what becomes of it."""

    id: str
    attempt: int
    owner: str
    ending: Ending


def is_expired(policy: Policy, now: datetime) -> ColumnElement[bool]:
    """Whether a running task has no live lease; one that another program set to running never had any."""
    end, written = instant_order(tasks.lease_expires_at), instant_order(tasks.updated_at)
    never = and_(end.is_(None), or_(written.is_(None), written <= instant_order(now - policy.lease)))
    return and_(IS_RUNNING, tasks.service != UNIFIED, or_(end <= instant_order(now), never))


def recover_leases(engine: Engine, policy: Policy, *, dry_run: bool = False) -> Recovered:
    """Give back or end every running task without a live lease."""
    with reading(engine) as connection:
        found, running = find_lost(connection, policy, database_now(connection))
    changes = tuple(
        Change(one.id, one.ending.status, one.ending.message, f"running, attempt {one.attempt} of {one.owner}")
        for one in found
    )

    def write(connection: Connection, batch: Sequence[Lost], now: datetime) -> int:
        return give_up(connection, batch, policy, now)

    return applied(engine, Plan(changes, running), found, write, dry_run=dry_run)


def find_lost(connection: Connection, policy: Policy, now: datetime) -> tuple[list[Lost], int]:
    """The tasks without a live lease, and how many tasks run."""
    # Its worker was still alive after the deadline; one that died before may have been quick.
    lease = literal(policy.lease.total_seconds(), Double())
    overdue = instant_order(tasks.lease_expires_at) >= instant_order(seconds_after(tasks.deadline_at, lease))
    query = select(
        tasks.id,
        tasks.attempt,
        func.coalesce(tasks.lease_owner, "nobody").label("owner"),
        tasks.lost_leases,
        case((overdue, 1), else_=0).label("overdue"),
        type_coerce(tasks.cancel_requested_at, Text).label("cancelled"),
    )
    # Put in order here: for its ORDER BY id SQLite would read every task that ever was.
    rows = sorted(connection.execute(query.where(is_expired(policy, now)).limit(MOST)), key=lambda row: row.id)
    found = [Lost(row.id, row.attempt, row.owner, _ending(row, policy)) for row in rows]
    running = connection.execute(select(func.count()).where(IS_RUNNING, tasks.service != UNIFIED)).scalar_one()
    return found, running


def _ending(row: Any, policy: Policy) -> Ending:
    return lost(row.lost_leases, policy, overdue=bool(row.overdue), cancelled=row.cancelled is not None)


def give_up(connection: Connection, found: Sequence[Lost], policy: Policy, now: datetime) -> int:
    """Write what becomes of lost tasks, where their lease has still run out; how many that were."""
    rows = [
        {
            "id": one.id,
            "attempt": one.attempt,
            "status": one.ending.status,
            "error_class": one.ending.error_class,
            "message": one.ending.message,
        }
        for one in found
    ]
    values = {"sent": json_text(rows), "now": now}
    written = connection.execute(_give_up(connection.dialect.name, policy, now), values).all()
    ended = [row for row in written if row.status in TERMINAL]
    back = [row.id for row in written if row.status == PENDING]
    tell_tasks(connection, LOST, back, now, before=RUNNING)
    tell_tasks(connection, ENDED, [row.id for row in ended], now, before=RUNNING)
    follow(connection, [Ended(row.id, row.parent_id, row.pipeline_id) for row in ended], now)
    if back:
        wake(connection, WORK)
    return len(written)


def _give_up(dialect: str, policy: Policy, now: datetime) -> UpdateBase:
    sent, moment = sent_rows(dialect, "sent", SENT), bindparam("now", type_=UtcDateTime())
    # Also when it was asked for after the look: back in the queue, another worker would begin it.
    cancelled = tasks.cancel_requested_at.is_not(None)
    status = case((cancelled, literal(CANCELLED)), else_=sent.c.status)
    return (
        update(analysis_tasks)
        .where(tasks.id == sent.c.id, tasks.attempt == sent.c.attempt, is_expired(policy, now))
        .values(
            status=status,
            error_class=case((cancelled, literal(CANCELLED)), else_=sent.c.error_class),
            error_message=case((cancelled, tasks.error_message), else_=sent.c.message),
            lost_leases=tasks.lost_leases + 1,
            completed_at=case((status == PENDING, null()), else_=moment),
            lease_owner=None,
            lease_expires_at=None,
            deadline_at=None,
            updated_at=moment,
        )
        .returning(tasks.id, tasks.status, tasks.parent_id, tasks.pipeline_id)
    )
