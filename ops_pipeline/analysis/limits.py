"""How many tasks of each service may be claimed: limits and circuit breakers.

What belongs here: what is read for a claim, and the pure rules of limits and breakers. What does not: the claim.

A breaker is closed while `open_until` is NULL. After `breaker_failures` failures in a row it opens; when its rest is
over it is half open: one task tries the service, and closes or reopens it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, ScalarSelect, and_, case, func, literal_column, or_, select

from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.tables import UNIFIED, analysis_tasks, analyzer_services
from ops_pipeline.database.types import Rows

tasks = analysis_tasks.c
# Written out, not sent: a partial index serves only a condition that is known when the statement is planned.
IS_PENDING = and_(tasks.status == literal_column("'pending'"), tasks.held_since.is_(None))
IS_RUNNING = tasks.status == literal_column("'running'")


@dataclass(frozen=True)
class Opening:
    """A service with waiting tasks.

    Attributes:
        service: its name.
        max_concurrent: its own limit; None for the default.
        open_until: of its breaker; None while it is closed.
        running: how many of its tasks run, where that matters.
    """

    service: str
    max_concurrent: int | None = None
    open_until: datetime | None = None
    running: int = 0


@dataclass(frozen=True)
class Breaker:
    """The circuit breaker of a service: failures in a row, how often it opened, and until when it is open."""

    failures: int = 0
    opened: int = 0
    open_until: datetime | None = None


def read_openings(connection: Connection, policy: Policy, services: Collection[str] | None = None) -> list[Opening]:
    """The services that have waiting tasks, due or not, through one probe of the index for each.

    Args:
        connection: sees the services.
        policy: whether a limit applies to all.
        services: only these; None for all.
    """
    # Counting looks at every running task, so it is left out where nothing depends on it.
    rows = connection.execute(_openings(counted=policy.per_service is not None))
    return [Opening(*row) for row in rows if services is None or row.service in services]


@cache
def _openings(*, counted: bool) -> Rows:
    first = select(_first_service(None).label("service")).cte("waiting", recursive=True)
    before = first.alias("before")
    after = select(_first_service(before.c.service)).select_from(before).where(before.c.service.is_not(None))
    waiting = first.union_all(after)
    known = analyzer_services.c
    count = select(func.count()).where(IS_RUNNING, tasks.service == waiting.c.service).scalar_subquery()
    limited = or_(known.max_concurrent.is_not(None), known.open_until.is_not(None))
    running = count if counted else case((limited, count), else_=0)
    return (
        select(waiting.c.service, known.max_concurrent, known.open_until, running.label("running"))
        .select_from(waiting.outerjoin(analyzer_services, known.service == waiting.c.service))
        .where(waiting.c.service != UNIFIED)
    )


def _first_service(after: ColumnElement[str] | None) -> ScalarSelect[Any]:
    first = select(func.min(tasks.service)).where(IS_PENDING)
    return (first if after is None else first.where(tasks.service > after)).scalar_subquery()


def are_limited(openings: Sequence[Opening], policy: Policy) -> bool:
    """Whether claims must take turns, so that two of them do not fill the same place."""
    limits = policy.per_service is not None or policy.per_target is not None
    return limits or any(one.max_concurrent is not None or one.open_until is not None for one in openings)


def open_slots(openings: Sequence[Opening], batch: int, policy: Policy, now: datetime) -> dict[str, int]:
    """How many tasks of each service a claim of at most `batch` may take; services without a place are left out."""
    slots = {one.service: min(batch, _places(one, batch, policy, now)) for one in openings}
    return {service: count for service, count in slots.items() if count > 0}


def _places(opening: Opening, batch: int, policy: Policy, now: datetime) -> int:
    if opening.open_until is not None:
        return 0 if opening.open_until > now else 1 - opening.running
    own = opening.max_concurrent
    limit = own if isinstance(own, int) else policy.per_service
    return batch if limit is None else limit - opening.running


def after_failures(breaker: Breaker, failures: int, policy: Policy, now: datetime) -> Breaker:
    """The breaker after failures of its service in a row; a half open one opens again at the first."""
    counted = breaker.failures + failures
    half_open = breaker.open_until is not None and breaker.open_until <= now
    if breaker.open_until is not None and not half_open:
        # Tasks that were under way when it opened: they tell nothing new.
        return replace(breaker, failures=counted)
    if half_open or counted >= policy.breaker_failures:
        return Breaker(counted, breaker.opened + 1, now + policy.breaker_rest)
    return replace(breaker, failures=counted)
