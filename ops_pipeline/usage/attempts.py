"""Attempts at hours: counted before they are made, so that even a killed process leaves a trace.

What belongs here: the bookkeeping in `usage_hour_attempts`. What follows from it is decided in `hours`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from sqlalchemy import Engine, delete, select, update

from ops_pipeline.database.engine import database_now, reading, rewriting, writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.replace import upsert
from ops_pipeline.usage.hours import Window
from ops_pipeline.usage.statements import hours_within
from ops_pipeline.usage.tables import usage_hour_attempts, usage_hours

LONGEST_ERROR = 1000


def attempted(engine: Engine, hours: Sequence[datetime]) -> set[datetime]:
    """Hours of which an earlier attempt failed or was killed: each gets a transaction of its own."""
    if not hours:
        return set()
    with reading(engine) as connection:
        return set(connection.scalars(select(usage_hour_attempts.c.hour)))


def begin_attempt(engine: Engine, window: Window) -> None:
    """Count an attempt at each hour, in a transaction of its own."""
    # In turn with those who aggregate: they take attempts back, and met each other here five times in a row.
    with rewriting(engine, usage_hours) as connection:
        now = database_now(connection)
        rows = [{"hour": hour, "attempts": 1, "attempted_at": now} for hour in window]
        upsert(connection, usage_hour_attempts, rows, added=("attempts",))


def forgive_attempt(engine: Engine, window: Window) -> None:
    """Take back an attempt that the environment failed, not the hours: a missing table, a full disk, a restart."""
    attempts = usage_hour_attempts
    within = hours_within(attempts, window.start, window.end)
    with suppress(DatabaseProblem), writing(engine) as connection:
        connection.execute(update(attempts).where(within).values(attempts=attempts.c.attempts - 1))
        connection.execute(delete(attempts).where(within, attempts.c.attempts <= 0))


def record_failures(engine: Engine, errors: Mapping[datetime, str]) -> None:
    """Keep the reason of each failed hour for whoever looks at the ones that were given up."""
    if not errors:
        return
    attempts = usage_hour_attempts
    with rewriting(engine, usage_hours) as connection:
        for hour, error in errors.items():
            reason = update(attempts).where(attempts.c.hour == hour).values(error=error[:LONGEST_ERROR])
            connection.execute(reason)
