"""Parents that nobody ended, and tasks that their writer left half made.

What belongs here: finding both, and bringing them to what they should be. Tasks are made in one transaction, and their
parents ended in that of their last child; other programs may do neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, exists, literal_column, or_, select, update

from ops_pipeline.analysis.events import RELEASED, tell_tasks
from ops_pipeline.analysis.following import end_parents, follow
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.recovery.passes import MOST, Recovered, applied
from ops_pipeline.analysis.states import PERMANENT
from ops_pipeline.analysis.tables import CREATED, FAILED, PENDING, RUNNING, TERMINAL, UNIFIED, analysis_tasks
from ops_pipeline.analysis.waking import WORK, wake
from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.database.expressions import instant_order, is_any_of
from ops_pipeline.reconcile import Change, Plan

tasks = analysis_tasks.c
child = analysis_tasks.alias("child")
HAS_CHILD = exists(select(child.c.id).where(child.c.parent_id == tasks.id))
HAS_OPEN_CHILD = exists(select(child.c.id).where(child.c.parent_id == tasks.id, child.c.status.not_in(TERMINAL)))
NO_CHILD = "a parent without children: its writer never made them"
RELEASE, FAIL, END = "release", "fail", "end"


@dataclass(frozen=True)
class Half:
    """A parent or a task that is not as it should be, and what to do about it: `release`, `fail` or `end`."""

    id: str
    action: str
    was: str


def recover_parents(engine: Engine, policy: Policy, *, dry_run: bool = False) -> Recovered:
    """End the parents whose children have all ended, and those that never got any."""
    with reading(engine) as connection:
        found = find_parents(connection, policy, database_now(connection))
    reasons = {END: "all its children have ended", FAIL: NO_CHILD}
    changes = tuple(Change(one.id, one.action, reasons[one.action], one.was) for one in found)
    return applied(engine, Plan(changes, len(found)), found, _end, dry_run=dry_run)


def find_parents(connection: Connection, policy: Policy, now: datetime) -> list[Half]:
    """The unfinished parents that wait for nobody."""
    # One SELECT for each status, written out: each is served by its own partial index.
    running, pending = (
        select(tasks.id, tasks.status, HAS_CHILD.label("has_child")).where(
            tasks.service == UNIFIED,
            tasks.status == literal_column(f"'{status}'"),
            *([tasks.held_since.is_(None)] if status == PENDING else []),
            or_(and_(HAS_CHILD, ~HAS_OPEN_CHILD), and_(~HAS_CHILD, _is_old(tasks.updated_at, policy, now))),
        )
        for status in (RUNNING, PENDING)
    )
    rows = [*connection.execute(running.limit(MOST)), *connection.execute(pending.limit(MOST))]
    return sorted((Half(row.id, END if row.has_child else FAIL, row.status) for row in rows), key=lambda one: one.id)


def _end(connection: Connection, batch: Sequence[Half], now: datetime) -> int:
    ended = follow(connection, [], now, parents=[one.id for one in batch if one.action == END])
    childless = [one.id for one in batch if one.action == FAIL]
    return len(ended) + _fail_childless(connection, childless, now)


def _fail_childless(connection: Connection, ids: Sequence[str], now: datetime) -> int:
    locked = select(tasks.id).where(is_any_of(tasks.id, list(ids)), tasks.status.not_in(TERMINAL), ~HAS_CHILD)
    rows = [
        {"id": one, "status": FAILED, "error_class": PERMANENT, "error_message": NO_CHILD, "result_summary": None}
        for one in connection.scalars(locked.order_by(tasks.id).with_for_update())
    ]
    failed = end_parents(connection, rows, now)
    follow(connection, failed, now)
    return len(failed)


def recover_created(engine: Engine, policy: Policy, *, dry_run: bool = False) -> Recovered:
    """Release the tasks that their writer left in `created`, and fail the parents that never got children."""
    with reading(engine) as connection:
        found = find_created(connection, policy, database_now(connection))
    minutes = policy.created_grace.total_seconds() / 60
    reasons = {RELEASE: f"its writer left it in created for {minutes:g} minutes", FAIL: NO_CHILD}
    changes = tuple(Change(one.id, one.action, reasons[one.action], one.was) for one in found)
    return applied(engine, Plan(changes, len(found)), found, _release, dry_run=dry_run)


def find_created(connection: Connection, policy: Policy, now: datetime) -> list[Half]:
    """The tasks that have been in `created` for longer than any writer takes."""
    query = select(tasks.id, tasks.service, HAS_CHILD.label("has_child"))
    old = tasks.status == literal_column("'created'"), _is_old(tasks.created_at, policy, now)
    # Put in order here: for its ORDER BY id SQLite would read every task that ever was.
    rows = sorted(connection.execute(query.where(*old).limit(MOST)), key=lambda row: row.id)
    return [Half(row.id, FAIL if row.service == UNIFIED and not row.has_child else RELEASE, CREATED) for row in rows]


def _release(connection: Connection, batch: Sequence[Half], now: datetime) -> int:
    ready = [one.id for one in batch if one.action == RELEASE]
    released = update(analysis_tasks).where(is_any_of(tasks.id, ready), tasks.status == CREATED)
    back = list(connection.scalars(released.values(status=PENDING, updated_at=now).returning(tasks.id)))
    tell_tasks(connection, RELEASED, back, now, before=CREATED)
    if back:
        wake(connection, WORK)
    return len(back) + _fail_childless(connection, [one.id for one in batch if one.action == FAIL], now)


def _is_old(instant: ColumnElement[Any], policy: Policy, now: datetime) -> ColumnElement[bool]:
    moment = instant_order(instant)
    return or_(moment.is_(None), moment <= instant_order(now - policy.created_grace))
