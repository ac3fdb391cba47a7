"""What is done and what is not: the hours that lack, and the failed attempts.

What belongs here: SELECTs over `usage_hours` and its companions for whoever plans work. What does not: decisions
(pure, in `hours`) and late data (`late`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from ops_pipeline.database.expressions import earliest_hour
from ops_pipeline.usage.hours import CatchUp, missing_hours, plan_catch_up
from ops_pipeline.usage.tables import model_calls, usage_hour_attempts, usage_hours


@dataclass(frozen=True)
class CatchUpPolicy:
    """How catch-up behaves.

    Attributes:
        start: the first partition.
        pruned_before: raw calls older than this are gone; None when none were pruned.
        max_range_hours: the longest range of one run.
        max_attempts: how often an hour may fail before it waits for a person.
    """

    start: datetime
    pruned_before: datetime | None
    max_range_hours: int
    max_attempts: int


def first_wanted_hour(connection: Connection, start: datetime) -> datetime | None:
    """The hour of the first call, not before `start`; None while there are no calls."""
    first = connection.execute(select(earliest_hour(model_calls.c.called_at))).scalar()
    return max(first, start) if first else None


def failed_attempts(connection: Connection) -> dict[datetime, int]:
    """Attempts per hour that was begun and not finished."""
    attempts = usage_hour_attempts.c
    return {row.hour: row.attempts for row in connection.execute(select(attempts.hour, attempts.attempts))}


def read_missing(connection: Connection, policy: CatchUpPolicy, closed_until: datetime) -> list[datetime]:
    """The hours up to `closed_until` that should be in `usage_hours` and are not, oldest first."""
    return missing_hours(
        first_call=first_wanted_hour(connection, policy.start),
        start=policy.start,
        closed_until=closed_until,
        done=set(connection.scalars(select(usage_hours.c.hour))),
        pruned_before=policy.pruned_before,
    )


def read_catch_up(
    connection: Connection, policy: CatchUpPolicy, closed_until: datetime, in_flight: Collection[datetime]
) -> CatchUp:
    """The runs to launch now so that every hour up to `closed_until` gets done."""
    return plan_catch_up(
        read_missing(connection, policy, closed_until),
        in_flight=in_flight,
        attempts=failed_attempts(connection),
        max_attempts=policy.max_attempts,
        max_range_hours=policy.max_range_hours,
    )


def done_hours(connection: Connection) -> dict[datetime, str]:
    """The state of every hour that is done."""
    return {row.hour: row.state for row in connection.execute(select(usage_hours.c.hour, usage_hours.c.state))}


def future_calls(connection: Connection, now: datetime) -> int:
    """Calls that claim to have started after `now`."""
    return connection.execute(select(func.count()).where(model_calls.c.called_at > now)).scalar_one()
