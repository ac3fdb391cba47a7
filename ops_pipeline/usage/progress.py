"""What is done and what is not: the hours that lack, and the failed attempts.

What belongs here: SELECTs over `usage_hours` and its companions for whoever plans work. What does not: decisions
(pure, in `hours`) and late data (`late`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, exists, func, literal, or_, select, union_all

from ops_pipeline.database.expressions import earliest_hour, from_hour, unreadable, within_hours
from ops_pipeline.usage.hours import HOUR, CatchUp, first_hour_to_do, floor_hour, missing_hours, plan_catch_up
from ops_pipeline.usage.tables import model_calls, usage_hour_attempts, usage_hours
from ops_pipeline.usage.watermarks import pruned_before

MENDED_AT_ONCE = 20
EARLIEST_HOUR = datetime(1970, 1, 1, tzinfo=UTC)
LAST_HOUR = datetime(9999, 12, 31, 23, tzinfo=UTC)


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
    """The hour of the first call from `start` on; None while there is none."""
    # PostgreSQL knows years, and infinities, that Python does not.
    called = model_calls.c.called_at
    return connection.execute(select(earliest_hour(called)).where(within_hours(called, start, LAST_HOUR))).scalar()


def failed_attempts(connection: Connection) -> dict[datetime, int]:
    """Attempts per hour that was begun and not finished."""
    attempts = usage_hour_attempts.c
    return {row.hour: row.attempts for row in connection.execute(select(attempts.hour, attempts.attempts))}


def hours_in_error(connection: Connection) -> set[datetime]:
    """Hours whose last attempt failed for a reason; of one whose process died, what was there before is whole."""
    attempts = usage_hour_attempts.c
    return set(connection.scalars(select(attempts.hour).where(attempts.error != "")))


def attempts_that_count(connection: Connection) -> dict[datetime, int]:
    """The failed attempts, without hours whose calls were written to since: these may be tried anew."""
    counts = failed_attempts(connection)
    mended = mended_hours(connection) if counts else set()
    return {hour: count for hour, count in counts.items() if hour not in mended}


def mended_hours(connection: Connection) -> set[datetime]:
    """Hours that failed more than once and of which a call was written since: whoever corrected it need not ask too.

    Of the newest `MENDED_AT_ONCE` only, since every call of theirs is looked at.
    """
    attempts = usage_hour_attempts.c
    failed = select(attempts.hour, attempts.attempted_at).where(attempts.attempts > 1)
    newest = connection.execute(failed.order_by(attempts.hour.desc()).limit(MENDED_AT_ONCE)).all()
    if not newest:
        return set()
    called, updated = model_calls.c.called_at, model_calls.c.updated_at
    looks = union_all(
        *(
            select(literal(index).label("index")).where(
                exists().where(within_hours(called, row.hour, row.hour + HOUR), updated > row.attempted_at)
            )
            for index, row in enumerate(newest)
        )
    )
    return {newest[index].hour for index in connection.scalars(looks)}


def read_missing(connection: Connection, policy: CatchUpPolicy, closed_until: datetime) -> list[datetime]:
    """The hours up to `closed_until` that should be in `usage_hours` and are not, oldest first."""
    first_call = first_wanted_hour(connection, policy.start)
    pruned = pruned_before(connection, policy.pruned_before)
    begin = first_hour_to_do(first_call, policy.start, pruned)
    if begin is None or closed_until <= begin:
        return []
    within = (usage_hours.c.hour >= begin) & (usage_hours.c.hour < closed_until)
    count = connection.execute(select(func.count()).select_from(usage_hours).where(within)).scalar_one()
    if count == (closed_until - begin) // HOUR:
        # The usual case: one count instead of ten years of hours read every few seconds.
        return []
    return missing_hours(
        first_call=first_call,
        start=policy.start,
        closed_until=closed_until,
        done=set(connection.scalars(select(usage_hours.c.hour).where(within))),
        pruned_before=pruned,
    )


def read_catch_up(
    connection: Connection, policy: CatchUpPolicy, closed_until: datetime, in_flight: Collection[datetime]
) -> CatchUp:
    """The runs to launch now so that every hour up to `closed_until` gets done."""
    return plan_catch_up(
        read_missing(connection, policy, closed_until),
        in_flight=in_flight,
        attempts=attempts_that_count(connection),
        max_attempts=policy.max_attempts,
        max_range_hours=policy.max_range_hours,
    )


def done_hours(connection: Connection) -> dict[datetime, str]:
    """The state of every hour that is done."""
    return {row.hour: row.state for row in connection.execute(select(usage_hours.c.hour, usage_hours.c.state))}


def recent_anomalies(connection: Connection, since: datetime) -> dict[datetime, dict[str, int]]:
    """The anomalies counted in hours from `since` on, by hour; hours without any are left out."""
    rows = connection.execute(select(usage_hours.c.hour, usage_hours.c.anomalies).where(usage_hours.c.hour >= since))
    return {row.hour: row.anomalies for row in rows if row.anomalies}


def future_calls(connection: Connection, now: datetime) -> int:
    """Calls that no hour holds so far: they claim to have begun after the present one, or at no readable time."""
    called = model_calls.c.called_at
    ahead = from_hour(called, floor_hour(now) + HOUR)
    return connection.execute(select(func.count()).where(or_(ahead, unreadable(called)))).scalar_one()
