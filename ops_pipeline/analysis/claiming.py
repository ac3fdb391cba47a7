"""Claiming tasks: which ones a worker gets, and the one statement that makes them its own.

What belongs here: the claim. What does not: what becomes of a task afterwards (`ending`), leases (`leases`).

    with writing(engine) as connection:
        tasks = claim(connection, owner, 100, policy=policy, now=database_now(connection))

Tasks go by priority and age: `claim_order` is the time of submission, moved ahead by an hour for each rank, so that a
task of a lower rank goes first once it has waited so much longer. Two workers never get the same task: on PostgreSQL
rows that another claim has locked are skipped, on SQLite one transaction writes at a time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    Connection,
    Double,
    Executable,
    FromClause,
    Integer,
    Select,
    Text,
    UpdateBase,
    bindparam,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    type_coerce,
    union_all,
    update,
)

from ops_pipeline.analysis.events import CLAIMED, run_telling, telling
from ops_pipeline.analysis.limits import IS_PENDING, IS_RUNNING, are_limited, open_slots, read_openings
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.states import LONGEST_TASK, Task, timeout_of
from ops_pipeline.analysis.tables import PENDING, RUNNING, analysis_tasks
from ops_pipeline.database.clock import seconds_after
from ops_pipeline.database.expressions import AnyOf, instant_order
from ops_pipeline.database.turn import take_turn
from ops_pipeline.database.types import TextList, UtcDateTime
from ops_pipeline.log_fields import fields

log = logging.getLogger(__name__)
CLAIMS = "analysis claims"
NOW, PER_TARGET = bindparam("now", type_=UtcDateTime()), bindparam("per_target", type_=Integer())
tasks = analysis_tasks.c


def claim(
    connection: Connection,
    owner: str,
    batch: int,
    *,
    policy: Policy,
    now: datetime,
    services: Collection[str] | None = None,
) -> list[Task]:
    """Make due tasks the owner's, each with an attempt more and a lease; the first to do comes first.

    Args:
        connection: a transaction of `engine.writing`; the tasks are the owner's when it commits.
        owner: the worker's name, unique among all that ever were.
        batch: at most so many.
        policy: limits, lease and time-out.
        now: the database's clock.
        services: only tasks of these; None for all.
    """
    openings = read_openings(connection, policy, services)
    if are_limited(openings, policy):
        take_turn(connection, CLAIMS)
        # Whoever had the turn before has committed: only now do the counts hold.
        openings = read_openings(connection, policy, services)
    slots = sorted(open_slots(openings, batch, policy, now).items())
    if not slots:
        return []
    values: dict[str, Any] = {f"service_{number}": service for number, (service, _) in enumerate(slots)}
    values |= {f"places_{number}": places for number, (_, places) in enumerate(slots)}
    times = {"now": now, "lease_end": now + policy.lease, "time_out": policy.task_timeout.total_seconds()}
    limits = {"batch": batch, "per_target": policy.per_target} if policy.per_target else {"batch": batch}
    statement = _take(connection.dialect.name, len(slots), per_target=policy.per_target is not None)
    told = {"worker": owner, "before": PENDING}
    taken = run_telling(connection, statement, {**values, **times, **limits, **told})
    rows = sorted(taken, key=lambda row: (row.claim_order or 0, row.id))
    _start_parents(connection, sorted({row.parent_id for row in rows if row.parent_id}), now)
    # Asked before: the fields of thousands of lines that nobody keeps take a tenth of a claim.
    for row in rows if log.isEnabledFor(logging.DEBUG) else ():
        log.debug("Task %s is taken by %s.", row.id, owner, extra=fields(object=row.id, worker=owner))
    return [_task(row, policy) for row in rows]


# Statements are made once for each number of services: putting one together takes longer than running it.
@cache
def _take(dialect: str, services: int, *, per_target: bool) -> Executable:
    # Materialized: as a part of a join, rows could be locked more than once, and more of them than are claimed.
    picked = _due(services, per_target=per_target).cte("picked").prefix_with("MATERIALIZED", dialect="postgresql")
    taken = (
        update(analysis_tasks)
        .where(tasks.id.in_(select(picked.c.id)), tasks.status == PENDING)
        .values(
            status=RUNNING,
            attempt=tasks.attempt + 1,
            lease_owner=bindparam("worker"),
            lease_expires_at=bindparam("lease_end"),
            deadline_at=seconds_after(NOW, _seconds()),
            next_attempt_at=None,
            started_at=NOW,
            progress=None,
            current_step="",
            updated_at=NOW,
        )
        .returning(*_COLUMNS)
    )
    return telling(dialect, taken)


def _due(services: int, *, per_target: bool) -> Select[Any]:
    """The tasks to claim: of each service as many as it has places for, and of these the first."""
    firsts = [select(_first_of(number, per_target=per_target)) for number in range(services)]
    due: FromClause = union_all(*firsts).subquery("due")
    if per_target:
        due = _within_targets(due)
    return select(due.c.id).order_by(due.c.claim_order, due.c.id).limit(bindparam("batch"))


def _first_of(number: int, *, per_target: bool) -> FromClause:
    due = instant_order(tasks.next_attempt_at)
    # Whatever is no time is due: a row that nobody can read must not wait for ever.
    query = select(tasks.id, tasks.target, tasks.claim_order).where(
        IS_PENDING,
        tasks.service == bindparam(f"service_{number}"),
        or_(due.is_(None), due <= instant_order(NOW)),
    )
    if per_target:
        full = select(tasks.target).where(IS_RUNNING).group_by(tasks.target)
        query = query.where(tasks.target.not_in(full.having(func.count() >= PER_TARGET)))
    ordered = query.order_by(tasks.claim_order, tasks.id).limit(bindparam(f"places_{number}"))
    return ordered.with_for_update(skip_locked=True).subquery()


def _within_targets(due: FromClause) -> FromClause:
    """Of each target only as many as there are places beside its running tasks."""
    running = select(tasks.target, func.count().label("running")).where(IS_RUNNING).group_by(tasks.target).subquery()
    place = func.row_number().over(partition_by=due.c.target, order_by=(due.c.claim_order, due.c.id))
    placed = (
        select(due.c.id, due.c.claim_order, (place + func.coalesce(running.c.running, 0)).label("place"))
        .select_from(due.outerjoin(running, running.c.target == due.c.target))
        .subquery("placed")
    )
    return select(placed.c.id, placed.c.claim_order).where(placed.c.place <= PER_TARGET).subquery("within")


# As text, so that junk in one row does not stop the claim of the others.
_COLUMNS = (
    tasks.id,
    tasks.attempt,
    tasks.service,
    tasks.target,
    cast(tasks.options, Text).label("options"),
    type_coerce(tasks.timeout_seconds, Text).label("timeout_seconds"),
    tasks.preflight_retries,
    tasks.parent_id,
    tasks.pipeline_id,
    tasks.claim_order,
    tasks.status,
    tasks.error_message,
    literal(CLAIMED, Text()).label("kind"),
)


def _seconds() -> Any:
    """How long an attempt may take, as `states.timeout_of` says it."""
    asked, longest = cast(tasks.timeout_seconds, Double), literal(LONGEST_TASK.total_seconds(), Double())
    return case((asked > longest, longest), (asked > 0, asked), else_=bindparam("time_out", type_=Double()))


def _start_parents(connection: Connection, parents: Sequence[str], now: datetime) -> None:
    """The first child that starts starts its parent; in order, so that two claims never wait for each other."""
    if parents:
        connection.execute(_START, {"parents": parents, "now": now})


def _start() -> UpdateBase:
    waiting = select(tasks.id).where(AnyOf(tasks.id, bindparam("parents", type_=TextList())), tasks.status == PENDING)
    locked = waiting.order_by(tasks.id).with_for_update().cte("waiting")
    locked = locked.prefix_with("MATERIALIZED", dialect="postgresql")
    started = update(analysis_tasks).where(tasks.id.in_(select(locked.c.id)), tasks.status == PENDING)
    return started.values(status=RUNNING, started_at=NOW, updated_at=NOW)


_START = _start()


def _task(row: Any, policy: Policy) -> Task:
    options, unreadable = _options(row.options)
    return Task(
        id=row.id,
        attempt=row.attempt,
        service=row.service,
        target=row.target,
        options=options,
        unreadable=unreadable,
        timeout=timeout_of(row.timeout_seconds, policy),
        preflight_retries=row.preflight_retries,
        parent_id=row.parent_id,
        pipeline_id=row.pipeline_id,
    )


def _options(text: str | None) -> tuple[dict[str, Any], str]:
    """What the submitter said, and why it cannot be read."""
    if text is None:
        return {}, ""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        return {}, f"options are no JSON: {text[:200]!r}"
    if options is None:
        return {}, ""
    return (options, "") if isinstance(options, dict) else ({}, f"options are no JSON object: {text[:200]!r}")
