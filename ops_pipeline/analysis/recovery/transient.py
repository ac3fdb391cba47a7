"""Tasks that failed because their service was not available, once it is.

What belongs here: finding them, asking for the health of their services, and bringing them back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Engine, and_, exists, literal_column, or_, select

from ops_pipeline.analysis.breakers import Health, record_health
from ops_pipeline.analysis.events import RETURNED
from ops_pipeline.analysis.pipelines.tables import pipeline_steps, pipelines
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.recovery.passes import MOST, Recovered, applied
from ops_pipeline.analysis.returning import bring_back
from ops_pipeline.analysis.tables import PENDING, RUNNING, analysis_tasks, analyzer_services
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.expressions import instant_order
from ops_pipeline.reconcile import Change, Plan

Probe = Callable[[Sequence[str]], Mapping[str, Health]]
"""Asks services how they are, each with a time limit."""

tasks, services, parent = analysis_tasks.c, analyzer_services.c, analysis_tasks.alias("parent").c
NOBODY_ASKED = Health(healthy=False, message="nobody knows its address")
# Written out, not sent: a partial index serves only a condition that is known when the statement is planned.
HAS_FAILED_FOR_SERVICE = and_(
    tasks.status == literal_column("'failed'"), tasks.error_class == literal_column("'transient'")
)


@dataclass(frozen=True)
class Waiting:
    """A task that may come back when its service is well."""

    id: str
    service: str
    retries: int


def may_return(policy: Policy, now: datetime) -> ColumnElement[bool]:
    """Whether a task failed for its service, long enough ago and not too often, and is still wanted.

    What belongs to a parent that was cancelled, or to a pipeline that is to stop or has gone on, is not.
    """
    rested = instant_order(tasks.completed_at) <= instant_order(now - policy.transient_rest)
    known = exists(select(pipelines.c.id).where(pipelines.c.id == tasks.pipeline_id))
    running_step = exists(
        select(pipeline_steps.c.position).where(
            pipeline_steps.c.pipeline_id == tasks.pipeline_id,
            pipeline_steps.c.position == tasks.step,
            pipeline_steps.c.status.in_((PENDING, RUNNING)),
        )
    )
    stopping = exists(select(pipelines.c.id).where(pipelines.c.id == tasks.pipeline_id, pipelines.c.stop_as != ""))
    cancelled = exists(select(parent.id).where(parent.id == tasks.parent_id, parent.cancel_requested_at.is_not(None)))
    return and_(
        ~cancelled,
        ~stopping,
        HAS_FAILED_FOR_SERVICE,
        tasks.transient_retries < policy.transient_retries,
        or_(tasks.completed_at.is_(None), rested),
        or_(tasks.pipeline_id.is_(None), ~known, running_step),
    )


def find_waiting(connection: Connection, policy: Policy, now: datetime) -> list[Waiting]:
    """The tasks that may come back, of services that were not found ill within the last five minutes."""
    lately_ill = exists(
        select(services.service).where(
            services.service == tasks.service,
            services.healthy.is_(False),
            instant_order(services.checked_at) > instant_order(now - policy.transient_rest),
        )
    )
    query = select(tasks.id, tasks.service, tasks.transient_retries).where(may_return(policy, now), ~lately_ill)
    # Put in order here: for its ORDER BY id SQLite would read every task that ever was.
    return sorted((Waiting(*row) for row in connection.execute(query.limit(MOST))), key=lambda one: one.id)


def recover_transient(engine: Engine, policy: Policy, probe: Probe, *, dry_run: bool = False) -> Recovered:
    """Bring back the tasks that failed for services which are well now."""
    with reading(engine) as connection:
        waiting = find_waiting(connection, policy, database_now(connection))
    names = sorted({one.service for one in waiting})
    answers = probe(names) if names else {}
    health = {name: answers.get(name, NOBODY_ASKED) for name in names}
    if health and not dry_run:
        with writing(engine) as connection:
            record_health(connection, health, database_now(connection))
    back = [one for one in waiting if health[one.service].healthy]
    changes = tuple(
        Change(one.id, "return", f"{one.service} is well again", f"failed, returned {one.retries} times")
        for one in back
    )
    ill = Counter(f"{one.service}: {health[one.service].message}" for one in waiting if one not in set(back))

    def write(connection: Connection, batch: Sequence[Waiting], now: datetime) -> int:
        ids = [one.id for one in batch]
        condition = may_return(policy, now)
        return len(bring_back(connection, ids, now, kind=RETURNED, condition=condition, keep_count=True))

    return applied(engine, Plan(changes, len(waiting), dict(ill)), back, write, dry_run=dry_run)
