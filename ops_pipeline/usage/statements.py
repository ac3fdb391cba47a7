"""The queries that turn raw calls into roll-up rows, written once for both databases.

What belongs here: SELECTs over `model_calls` and over the roll-ups. What does not: transactions (`aggregate`,
`rollups`) and questions of readers (`reading`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Double,
    SmallInteger,
    Table,
    and_,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    union_all,
)

from ops_pipeline.database.expressions import hour_key, hour_start, latest, version_number, within_hours
from ops_pipeline.database.sums import exact_sum, exact_sum_of_floats, integer_sum
from ops_pipeline.database.types import Rows
from ops_pipeline.settings import CALL_TYPES
from ops_pipeline.usage.histogram import GAMMA, LARGEST_MS, SMALLEST_MS
from ops_pipeline.usage.hours import Window
from ops_pipeline.usage.tables import (
    CALL_STATUSES,
    COUNT_COLUMNS,
    CREDIT_DIGITS,
    DIMENSIONS,
    MILLISECONDS_DIGITS,
    SECONDS_DIGITS,
    TOKEN_COLUMNS,
    hourly_model_usage,
    model_calls,
)

USABLE_LIMIT = 1e9
"""A duration in seconds or milliseconds beyond this, infinite or NaN, is counted as an anomaly and not summed."""
LONG_SECONDS = 86_400
ANOMALIES = ("unknown_status", "unknown_type", "negative_value", "longer_than_a_day", "unusable_duration")

_calls = model_calls.c
_EMPTY = literal_column("''")
_NO_ID = literal_column("'null'")


def _dimension(name: str) -> ColumnElement[str]:
    """A dimension with every spelling of "none" as the empty string; JavaScript clients write the text 'null'."""
    column = _calls[name]
    return func.coalesce(func.nullif(column, _NO_ID) if name in {"user_id", "app_id"} else column, _EMPTY)


def _usable(column: Column[Any]) -> ColumnElement[bool]:
    # NaN is greater than every number on PostgreSQL, so it fails the upper bound.
    return and_(column >= -USABLE_LIMIT, column <= USABLE_LIMIT)


def _timed(column: Column[Any]) -> ColumnElement[Any]:
    """A timing of a successful call, else NULL: rejected and timed-out calls would drown the latency."""
    return case((and_(_calls.status == "success", _usable(column)), column))


def hourly_rows(window: Window) -> Rows:
    """The rows of `hourly_model_usage` for a window, from the raw calls."""
    keys = [_dimension(name) for name in DIMENSIONS]
    duration, ttfb = _timed(_calls.duration_seconds), _timed(_calls.ttfb_ms)
    return (
        select(
            hour_start(_calls.called_at).label("hour"),
            *(key.label(name) for key, name in zip(keys, DIMENSIONS, strict=True)),
            func.count().label("calls"),
            *(
                func.count().filter(_calls.status == status).label(name)
                for status, name in (
                    ("success", "succeeded"),
                    ("failed", "failed"),
                    ("processing", "processing"),
                )
            ),
            *(integer_sum(_calls[name]).label(name) for name in COUNT_COLUMNS),
            exact_sum_of_floats(case((_usable(_calls.media_seconds), _calls.media_seconds)), SECONDS_DIGITS).label(
                "media_seconds"
            ),
            exact_sum(_calls.credits, CREDIT_DIGITS).label("credits"),
            exact_sum_of_floats(duration, SECONDS_DIGITS).label("duration_seconds_sum"),
            func.count(duration).label("duration_count"),
            exact_sum_of_floats(ttfb, MILLISECONDS_DIGITS).label("ttfb_ms_sum"),
            func.count(ttfb).label("ttfb_count"),
            latest(_calls.called_at).label("last_called_at"),
        )
        .where(within_hours(_calls.called_at, window.start, window.end))
        .group_by(hour_key(_calls.called_at), *keys)
    )


def latency_rows(window: Window) -> Rows:
    """The rows of `hourly_model_latency` for a window: successful calls by bucket."""
    both = union_all(
        _buckets(window, "duration", _calls.duration_seconds, unit_ms=1000.0),
        _buckets(window, "ttfb", _calls.ttfb_ms, unit_ms=1.0),
    ).subquery("buckets")
    return select(*both.c)


def _buckets(window: Window, metric: str, timing: Column[Any], *, unit_ms: float) -> Rows:
    smallest, largest = literal_column(repr(SMALLEST_MS)), literal_column(repr(LARGEST_MS))
    # Compared in its own unit: PostgreSQL refuses to turn 1e306 s into milliseconds.
    milliseconds = timing * literal_column(repr(unit_ms), Double)
    lowest, highest = (literal_column(repr(bound / unit_ms)) for bound in (SMALLEST_MS, LARGEST_MS))
    clamped = case((timing < lowest, smallest), (timing < highest, milliseconds), else_=largest)
    scale = literal_column(repr(math.log(GAMMA)), Double)
    bucket = cast(func.ceil(func.ln(cast(clamped, Double)) / scale), SmallInteger)
    keys = [_dimension(name) for name in ("provider", "model", "type")]
    return (
        select(
            hour_start(_calls.called_at).label("hour"),
            *(key.label(name) for key, name in zip(keys, ("provider", "model", "type"), strict=True)),
            literal_column(f"'{metric}'").label("metric"),
            bucket.label("bucket"),
            func.count().label("calls"),
        )
        .where(
            within_hours(_calls.called_at, window.start, window.end),
            _calls.status == "success",
            timing.is_not(None),
        )
        .group_by(hour_key(_calls.called_at), *keys, bucket)
    )


def source_facts(window: Window) -> Rows:
    """One row per hour that has calls: what the roll-up must add up to, its version and its anomalies.

    Grouped by nothing but the hour, so that it checks the roll-up's own grouping. `source_version` is a sum over
    the calls' `updated_at`: it changes when any call of the hour is inserted, rewritten or deleted.
    """
    return (
        select(
            hour_start(_calls.called_at).label("hour"),
            func.count().label("calls"),
            func.count().filter(_calls.status == "processing").label("processing"),
            func.sum(version_number(_calls.updated_at)).label("source_version"),
            *(integer_sum(_calls[name]).label(name) for name in TOKEN_COLUMNS),
            exact_sum(_calls.credits, CREDIT_DIGITS).label("credits"),
            *(func.count().filter(condition).label(name) for name, condition in _anomalies().items()),
        )
        .where(within_hours(_calls.called_at, window.start, window.end))
        .group_by(hour_key(_calls.called_at))
    )


def _anomalies() -> dict[str, ColumnElement[bool]]:
    amounts = [_calls[name] for name in (*COUNT_COLUMNS, "media_seconds", "duration_seconds", "ttfb_ms", "credits")]
    timings = (_calls.duration_seconds, _calls.ttfb_ms, _calls.media_seconds)
    zero = literal_column("0")
    conditions = (
        or_(_calls.status.is_(None), _calls.status.not_in(_literals(CALL_STATUSES))),
        or_(_calls.type.is_(None), _calls.type.not_in(_literals(CALL_TYPES))),
        # Adding zero makes SQLite compare decimal text as a number.
        or_(*(amount + zero < zero for amount in amounts)),
        and_(_calls.duration_seconds > LONG_SECONDS, _usable(_calls.duration_seconds)),
        or_(*(~_usable(timing) for timing in timings)),
    )
    return dict(zip(ANOMALIES, conditions, strict=True))


def _literals(values: Sequence[str]) -> list[ColumnElement[str]]:
    return [literal_column(f"'{value}'") for value in values]


def rolled_up(window: Window) -> Rows:
    """Sums of the roll-up per hour, provider and model: for the check against `source_facts`, and for people."""
    usage = hourly_model_usage.c
    return (
        select(
            usage.hour,
            usage.provider,
            usage.model,
            *(integer_sum(usage[name]).label(name) for name in ("calls", "failed", *TOKEN_COLUMNS)),
            exact_sum(usage.credits, CREDIT_DIGITS).label("credits"),
            func.count().label("rows"),
        )
        .where(hourly_model_usage.c.hour >= window.start, hourly_model_usage.c.hour < window.end)
        .group_by(usage.hour, usage.provider, usage.model)
    )


def calls_per_hour(window: Window) -> Rows:
    """The number of calls in the roll-up of each hour that has rows there."""
    usage = hourly_model_usage.c
    return (
        select(usage.hour, integer_sum(usage.calls).label("calls"))
        .where(usage.hour >= window.start, usage.hour < window.end)
        .group_by(usage.hour)
    )


def users_per_hour(window: Window) -> Rows:
    """The number of distinct users of each hour."""
    usage = hourly_model_usage.c
    return (
        select(usage.hour, func.count(usage.user_id.distinct()).label("users"))
        .where(usage.hour >= window.start, usage.hour < window.end)
        .group_by(usage.hour)
    )


def hours_within(table: Table, start: datetime, end: datetime) -> ColumnElement[bool]:
    """The condition on a table's `hour` column: start <= hour < end."""
    return and_(table.c.hour >= start, table.c.hour < end)
