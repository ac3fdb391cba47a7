"""Questions of the readers of the numbers: what was used in a period, by what, and how fast the models answered.

What belongs here: SELECTs over the roll-up tables. Readers never write, and never touch `model_calls`: every
answer is a sum of committed roll-up rows, and says what it still lacks. What does not: how a period is read
(`period`), and how answers are shown (`formats`, `report`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Engine, func, select

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.database.sums import exact_sum, integer_sum
from ops_pipeline.database.types import Rows
from ops_pipeline.usage.histogram import quantiles
from ops_pipeline.usage.hours import HOUR
from ops_pipeline.usage.period import Period, UsageQuestionError, parse_period, parse_zone
from ops_pipeline.usage.statements import hours_within
from ops_pipeline.usage.tables import (
    COUNT_COLUMNS,
    CREDIT_DIGITS,
    SECONDS_DIGITS,
    hourly_model_latency,
    hourly_model_usage,
    usage_hours,
)

__all__ = [
    "QUANTILE_SQL",
    "LatencyRow",
    "Period",
    "Quantiles",
    "UsageQuestionError",
    "UsageRow",
    "UsageTable",
    "latency",
    "latency_within",
    "parse_period",
    "parse_zone",
    "usage",
    "usage_within",
]

Grouping = Literal["model", "user", "app", "provider", "type", "hour", "day"]
LatencyKey = Literal["provider", "model", "type"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
LATENCY_KEYS: tuple[LatencyKey, ...] = get_args(LatencyKey)

_COUNTS = ("calls", "succeeded", "failed", "processing", *COUNT_COLUMNS, "duration_count")
_DECIMALS = {"media_seconds": SECONDS_DIGITS, "credits": CREDIT_DIGITS, "duration_seconds_sum": SECONDS_DIGITS}
_MEASURES = (*_COUNTS, *_DECIMALS)
_COLUMN_OF = {"user": "user_id", "app": "app_id", "day": "hour"}
_OVER_TIME = ("hour", "day")
_ENOUGH_DIGITS = 80
"""Of a sum of decimals: more than numeric(30, 10) can reach, so that Python's additions never round."""

QUANTILE_SQL = """
WITH buckets AS (
    SELECT provider, model, bucket, SUM(calls) AS calls
    FROM hourly_model_latency
    WHERE metric = :metric AND hour >= :start AND hour < :end
    GROUP BY provider, model, bucket
), ranked AS (
    SELECT provider, model, bucket,
           SUM(calls) OVER (PARTITION BY provider, model ORDER BY bucket) AS seen,
           SUM(calls) OVER (PARTITION BY provider, model) AS total
    FROM buckets
), found AS (
    SELECT provider, model, MAX(total) AS calls,
           MIN(CASE WHEN seen * 100 >= total * 50 THEN bucket END) AS b50,
           MIN(CASE WHEN seen * 100 >= total * 90 THEN bucket END) AS b90,
           MIN(CASE WHEN seen * 100 >= total * 95 THEN bucket END) AS b95,
           MIN(CASE WHEN seen * 100 >= total * 99 THEN bucket END) AS b99
    FROM ranked
    GROUP BY provider, model
)
SELECT provider, model, calls,
       POWER(CAST(1.04 AS DOUBLE PRECISION), b50) * 2 / 2.04 AS p50,
       POWER(CAST(1.04 AS DOUBLE PRECISION), b90) * 2 / 2.04 AS p90,
       POWER(CAST(1.04 AS DOUBLE PRECISION), b95) * 2 / 2.04 AS p95,
       POWER(CAST(1.04 AS DOUBLE PRECISION), b99) * 2 / 2.04 AS p99
FROM found
ORDER BY provider, model
"""
"""Nearest-rank quantiles in milliseconds per provider and model, for readers who have only SQL: PostgreSQL, and
SQLite 3.35 or newer.

Parameters: `:metric` is `duration` or `ttfb`; `:start` and `:end` are whole UTC hours, the second exclusive (on
SQLite as text like `2026-11-21 10:00:00`). A model appears when it has a value. Any other grouping is made by
naming other columns in place of `provider, model`: buckets add up. 1.04 is `histogram.GAMMA`, 2.04 is 1 + GAMMA."""


@dataclass(frozen=True)
class UsageRow:
    """The sums of one key; credits, media seconds and durations are exact.

    `duration_seconds_sum` covers the `duration_count` successful calls whose duration is known.
    """

    key: str
    calls: int
    succeeded: int
    failed: int
    processing: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    images: int
    media_seconds: Decimal
    credits: Decimal
    duration_seconds_sum: Decimal
    duration_count: int

    @property
    def mean_duration_seconds(self) -> Decimal | None:
        """The mean duration of successful calls in seconds, to the microsecond; None when none is known."""
        if not self.duration_count:
            return None
        with localcontext() as context:
            context.prec = _ENOUGH_DIGITS
            return round(self.duration_seconds_sum / self.duration_count, SECONDS_DIGITS)

    @property
    def success_rate(self) -> float | None:
        """The share of calls that succeeded among those that ended, 0 to 1; None when none ended."""
        ended = self.succeeded + self.failed
        return self.succeeded / ended if ended else None

    @property
    def tokens(self) -> int:
        """Input and output tokens; cache and reasoning tokens are parts of these at most providers."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class UsageTable:
    """The answer of `usage`.

    `hours_missing` counts the hours of the period that have begun and are not rolled up: their calls are not in
    the numbers. `hours_provisional` counts those rolled up while calls were still running.
    """

    by: Grouping
    period: Period
    rows: tuple[UsageRow, ...]
    total: UsageRow
    hours_missing: int
    hours_provisional: int

    @property
    def final(self) -> bool:
        """True when no hour that has begun is missing or provisional."""
        return not self.hours_missing and not self.hours_provisional


@dataclass(frozen=True)
class Quantiles:
    """How many values there are, and their quantiles in milliseconds, within 2 %; None without values."""

    calls: int
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class LatencyRow:
    """The latency of successful calls by one key: its values are in the order of the question's `by`."""

    key: tuple[str, ...]
    duration: Quantiles
    ttfb: Quantiles


def usage(engine: Engine, period: Period, by: Grouping, *, now: datetime | None = None) -> UsageTable:
    """Sum the hourly roll-up over a period.

    Rows by `hour` and `day` come in order of time, one for each in the period whether or not there were calls:
    days are labelled `2026-11-21`, hours `2026-11-21 10:00+01:00` in the period's zone. Other rows come by
    credits, the greatest first, then by key; the key '' holds the calls that name none.

    Args:
        engine: of the operations database.
        period: what to sum.
        by: what a row stands for.
        now: aware; hours begun before it are expected. None for the database's clock.

    Raises:
        UsageQuestionError: `by` is none of `GROUPINGS`.
        DatabaseProblem: the database cannot be reached, or a sum exceeds it.
    """
    with reading(engine) as connection:
        return usage_within(connection, period, by, now=now or database_now(connection))


def usage_within(connection: Connection, period: Period, by: Grouping, *, now: datetime) -> UsageTable:
    """Answer `usage` within a transaction, so that several answers agree with each other."""
    if by not in GROUPINGS:
        raise UsageQuestionError(f"Usage is not kept by {by!r}. Choose one of {', '.join(GROUPINGS)}.")
    found = connection.execute(_sums(period, by)).mappings()
    if by in _OVER_TIME:
        rows = _over_time(period, by, {row["key"]: _row("", row) for row in found})
    else:
        rows = sorted((_row(row["key"], row) for row in found), key=lambda row: (-row.credits, row.key))
    missing, provisional = _unfinished(connection, period, now)
    return UsageTable(by, period, tuple(rows), _sum("total", rows), missing, provisional)


def _sums(period: Period, by: Grouping) -> Rows:
    table = hourly_model_usage
    key = table.c[_COLUMN_OF.get(by, by)]
    return (
        select(
            key.label("key"),
            *(integer_sum(table.c[name]).label(name) for name in _COUNTS),
            *(exact_sum(table.c[name], digits).label(name) for name, digits in _DECIMALS.items()),
        )
        .where(hours_within(table, period.start, period.end))
        .group_by(key)
    )


def _row(key: str, sums: Any) -> UsageRow:
    return UsageRow(key=key, **{name: sums[name] for name in _MEASURES})


def _over_time(period: Period, by: Grouping, hours: dict[datetime, UsageRow]) -> list[UsageRow]:
    """One row per label, in order of time, zeros where an hour has no row."""
    labelled: dict[str, list[UsageRow]] = defaultdict(list)
    for hour in period.window:
        local = hour.astimezone(period.zone)
        label = local.date().isoformat() if by == "day" else local.isoformat(sep=" ", timespec="minutes")
        labelled[label] += [hours[hour]] if hour in hours else []
    return [_sum(label, rows) for label, rows in labelled.items()]


def _sum(key: str, rows: Iterable[UsageRow]) -> UsageRow:
    kept = list(rows)
    with localcontext() as context:
        context.prec = _ENOUGH_DIGITS
        counts: dict[str, Any] = {name: sum(getattr(row, name) for row in kept) for name in _COUNTS}
        for name, digits in _DECIMALS.items():
            counts[name] = sum((getattr(row, name) for row in kept), Decimal(0).scaleb(-digits))
    return UsageRow(key=key, **counts)


def _unfinished(connection: Connection, period: Period, now: datetime) -> tuple[int, int]:
    """How many begun hours of the period are missing, and how many are provisional."""
    hour = usage_hours.c.hour
    begun_until = min(period.end, now)
    question = select(
        func.count().filter(hour < begun_until).label("known"),
        func.count().filter(usage_hours.c.state == "provisional").label("provisional"),
    ).where(hours_within(usage_hours, period.start, period.end))
    known, provisional = connection.execute(question).one()
    begun = max(0, -((period.start - begun_until) // HOUR))
    return begun - known, provisional


def latency(
    engine: Engine, period: Period, by: Sequence[LatencyKey] = ("provider", "model", "type")
) -> tuple[LatencyRow, ...]:
    """Quantiles of the duration and the time to first byte of successful calls, from merged histograms.

    Args:
        engine: of the operations database.
        period: what to merge.
        by: some of provider, model and type; none at all gives one row over everything.

    Returns:
        One row per key that has values, those with the most calls first, then by key.

    Raises:
        UsageQuestionError: `by` names anything else.
        DatabaseProblem: the database cannot be reached.
    """
    with reading(engine) as connection:
        return latency_within(connection, period, by)


def latency_within(connection: Connection, period: Period, by: Sequence[LatencyKey]) -> tuple[LatencyRow, ...]:
    """Answer `latency` within a transaction, so that several answers agree with each other."""
    if unknown := [name for name in by if name not in LATENCY_KEYS]:
        raise UsageQuestionError(f"Latency is not kept by {unknown[0]!r}. Choose from {', '.join(LATENCY_KEYS)}.")
    table = hourly_model_latency
    keys = [table.c[name] for name in dict.fromkeys(by)]
    question = (
        select(*keys, table.c.metric, table.c.bucket, integer_sum(table.c.calls))
        .where(hours_within(table, period.start, period.end))
        .group_by(*keys, table.c.metric, table.c.bucket)
    )
    merged: dict[tuple[str, ...], dict[str, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
    for *key, metric, bucket, calls in connection.execute(question):
        merged[tuple(key)][metric][bucket] = calls
    rows = (
        LatencyRow(key, _quantiles(metrics["duration"]), _quantiles(metrics["ttfb"])) for key, metrics in merged.items()
    )
    return tuple(sorted(rows, key=lambda row: (-row.duration.calls, row.key)))


def _quantiles(counts: Counter[int]) -> Quantiles:
    return Quantiles(calls=counts.total(), **quantiles(counts))
