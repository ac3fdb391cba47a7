"""Workers and their leases, on the database's clock.

What belongs here: the worker's sign of life, and what it learns from it. What becomes of a task whose worker gave none
is in `recovery`.

A worker that has not beaten for half its lease must not claim: it asks `may_claim` before. At its end it says `stop`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection, Text, or_, select, type_coerce, update

from ops_pipeline.analysis.limits import IS_RUNNING
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.tables import analysis_tasks, analysis_workers
from ops_pipeline.database.expressions import instant_order
from ops_pipeline.database.replace import upsert

OVERDUE_GRACE = timedelta(seconds=30)
"""For so long after a task's deadline its worker may still be ending it; then its lease is no longer renewed."""

tasks, workers = analysis_tasks.c, analysis_workers.c


@dataclass(frozen=True)
class Beat:
    """What a worker learns from its heartbeat.

    Attributes:
        held: the attempt of each task that is still its own; whatever it runs besides is another's, and to be dropped.
        cancelled: those of them whose cancellation is asked for.
    """

    held: Mapping[str, int] = field(default_factory=dict)
    cancelled: frozenset[str] = frozenset()


def heartbeat(connection: Connection, owner: str, policy: Policy, now: datetime) -> Beat:
    """Prolong the leases of all tasks of a worker, in one statement.

    Leases that have run out are prolonged too, as long as nobody has taken the task away; those of tasks that are
    long past their deadline are not. A claim may have been committed without an answer, when the connection broke: what
    is held and the worker never heard of, it must give back, or go on under another name.

    Args:
        connection: a transaction of `engine.writing`.
        owner: the worker.
        policy: how long a lease is.
        now: the database's clock.
    """
    mine = select(tasks.id).where(IS_RUNNING, tasks.lease_owner == owner)
    if connection.dialect.name == "postgresql":
        # In order, as everybody locks tasks: two transactions then never wait for each other. SQLite has one writer,
        # and would read every task that ever was in this order instead of those that run.
        mine = mine.order_by(tasks.id).with_for_update()
    mine = mine.cte("mine").prefix_with("MATERIALIZED", dialect="postgresql")
    deadline = instant_order(tasks.deadline_at)
    prolonged = (
        update(analysis_tasks)
        .where(
            tasks.id.in_(select(mine.c.id)),
            IS_RUNNING,
            tasks.lease_owner == owner,
            or_(deadline.is_(None), deadline > instant_order(now - OVERDUE_GRACE)),
        )
        .values(lease_expires_at=now + policy.lease)
        # The value itself, as text: SQLite 3.40 answers a wrong IS NOT NULL in RETURNING.
        .returning(tasks.id, tasks.attempt, type_coerce(tasks.cancel_requested_at, Text).label("cancelled"))
    )
    rows = connection.execute(prolonged).all()
    beaten = update(analysis_workers).where(workers.owner == owner)
    connection.execute(beaten.values(heartbeat_at=now, lease_expires_at=now + policy.lease))
    return Beat({row.id: row.attempt for row in rows}, frozenset(row.id for row in rows if row.cancelled is not None))


def start(
    connection: Connection, owner: str, policy: Policy, now: datetime, *, run_id: str = "", host: str = "", pid: int = 0
) -> None:
    """Write down a worker that begins."""
    row = {"owner": owner, "run_id": run_id, "host": host, "pid": pid, "started_at": now, "heartbeat_at": now}
    upsert(connection, analysis_workers, [{**row, "lease_expires_at": now + policy.lease, "stopped_at": None}])


def stop(connection: Connection, owner: str, now: datetime) -> None:
    """Write down that a worker ended; its tasks have ended or were handed back."""
    connection.execute(update(analysis_workers).where(workers.owner == owner).values(stopped_at=now))


def alive(connection: Connection, now: datetime) -> Sequence[str]:
    """The workers that gave a sign of life within their lease and have not stopped."""
    living = instant_order(workers.lease_expires_at) > instant_order(now)
    return connection.scalars(select(workers.owner).where(workers.stopped_at.is_(None), living)).all()


def may_claim(since_last_beat: timedelta, policy: Policy) -> bool:
    """Whether a worker may take more tasks, by its own monotonic clock: not when its last heartbeats failed."""
    return since_last_beat < policy.lease / 2
