"""Days and months: sums of hours and of days, remade whenever what they were summed from has changed.

`usage_hours.revision` grows with every change of an hour. A day remembers the sum of its hours' revisions, a month
that of its days: where a sum differs from the remembered one, the roll-up is out of date. No clock is involved.

What belongs here: which days and months are due, and their transactions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Engine, Table, and_, func, select, update

from ops_pipeline.database.engine import database_now, reading, rewriting, writing
from ops_pipeline.database.expressions import latest, month_start, utc_day
from ops_pipeline.database.replace import Replaced, replace_rows, upsert
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.database.sums import exact_sum, integer_sum
from ops_pipeline.database.types import ExactDecimal, Rows
from ops_pipeline.usage.aggregate import RollUpMismatch
from ops_pipeline.usage.hours import DAY, day_start, next_month
from ops_pipeline.usage.tables import (
    DIMENSIONS,
    TOKEN_COLUMNS,
    daily_model_usage,
    hourly_model_usage,
    monthly_model_usage,
    usage_days,
    usage_hours,
    usage_months,
)

TOTALS = ("calls", *TOKEN_COLUMNS, "credits")


@dataclass(frozen=True)
class PeriodResult:
    """One day or month as rolled up.

    Attributes:
        first: the day, or the first day of the month.
        state: `complete`; `provisional` while calls are processing; `partial` while a part of the period lacks.
        parts: how many hours (of a day) or days (of a month) were summed.
        expected: how many there will be.
        written: rows that were new or changed; deleted: rows that vanished.
    """

    first: date
    state: str
    parts: int
    expected: int
    calls: int
    processing: int
    tokens: Mapping[str, int]
    credits: Decimal
    rows: int
    written: int
    deleted: int


def state_of(parts: int, expected: int, processing: int) -> str:
    """`partial`, `provisional` or `complete`, in this order of precedence."""
    if parts < expected:
        return "partial"
    return "provisional" if processing else "complete"


def hours_of_day(day: date, origin: datetime) -> int:
    """How many hours of a UTC day lie at or after the first hour that is metered."""
    return max(0, min(24, int((day_start(day + DAY) - origin) / timedelta(hours=1))))


def days_of_month(month: date, origin: datetime) -> int:
    """How many days of a month lie at or after the day of the first metered hour."""
    first = max(month, origin.date())
    return max(0, (next_month(month) - first).days)


def roll_up_day(engine: Engine, day: date, origin: datetime, *, dry_run: bool = False) -> PeriodResult:
    """Sum the hours of a UTC day into `daily_model_usage`, in one transaction.

    Args:
        engine: the operations database.
        day: the day.
        origin: the first metered hour, before which no hour is expected.
        dry_run: do everything and roll back.

    Raises:
        RollUpMismatch: the day does not add up to its hours; nothing of it was kept.
    """
    within = and_(hourly_model_usage.c.hour >= day_start(day), hourly_model_usage.c.hour < day_start(day + DAY))
    hours = and_(usage_hours.c.hour >= day_start(day), usage_hours.c.hour < day_start(day + DAY))
    step = _Step(
        source=hourly_model_usage,
        within=within,
        target=daily_model_usage,
        period=utc_day(hourly_model_usage.c.hour).label("day"),
        progress=usage_days,
        part_name="hours",
        parts_of=usage_hours,
        parts_within=hours,
    )
    return _roll_up(engine, step, day, hours_of_day(day, origin), dry_run=dry_run)


def roll_up_month(engine: Engine, month: date, origin: datetime, *, dry_run: bool = False) -> PeriodResult:
    """Sum the days of a month into `monthly_model_usage`, in one transaction; arguments as for `roll_up_day`.

    Days that are `partial` count as lacking, so that the month is not shown as complete.

    Raises:
        RollUpMismatch: the month does not add up to its days; nothing of it was kept.
    """
    end = next_month(month)
    step = _Step(
        source=daily_model_usage,
        within=and_(daily_model_usage.c.day >= month, daily_model_usage.c.day < end),
        target=monthly_model_usage,
        period=month_start(daily_model_usage.c.day).label("month"),
        progress=usage_months,
        part_name="days",
        parts_of=usage_days,
        parts_within=and_(usage_days.c.day >= month, usage_days.c.day < end),
    )
    return _roll_up(engine, step, month, days_of_month(month, origin), dry_run=dry_run)


@dataclass(frozen=True)
class _Step:
    """Which table is summed into which, and where progress is kept."""

    source: Table
    within: ColumnElement[bool]
    target: Table
    period: ColumnElement[Any]
    progress: Table
    part_name: str
    parts_of: Table
    parts_within: ColumnElement[bool]


def _roll_up(engine: Engine, step: _Step, first: date, expected: int, *, dry_run: bool) -> PeriodResult:
    return despite_conflicts(_rewrite, engine, step, first, expected, dry_run=dry_run)


def _rewrite(engine: Engine, step: _Step, first: date, expected: int, *, dry_run: bool) -> PeriodResult:
    with rewriting(engine, step.progress) as connection:
        parts = connection.execute(_parts(step)).one()
        key = step.target.primary_key.columns[0]
        replaced = replace_rows(connection, step.target, _summed_rows(step), key == first)
        totals = _checked(connection, step, first)
        result = _result(first, expected, parts, totals, replaced)
        progress = {
            key.name: first,
            "state": result.state,
            step.part_name: result.parts,
            "calls": result.calls,
            "processing": result.processing,
            "revision": parts.revision,
            "aggregated_at": database_now(connection),
        }
        upsert(connection, step.progress, [progress])
        if dry_run:
            connection.rollback()
    return result


def _parts(step: _Step) -> Rows:
    """How many whole parts there are, and the revision that the sum of them all stands for."""
    parts = step.parts_of.c
    return select(
        func.count().filter(parts.state != "partial").label("parts"),
        integer_sum(parts.revision).label("revision"),
    ).where(step.parts_within)


def _summed_rows(step: _Step) -> Rows:
    keys = [step.source.c[name] for name in DIMENSIONS]
    measures = [column for column in step.target.columns if not column.primary_key]
    sums = [_sum(step.source.c[column.name]).label(column.name) for column in measures]
    return select(step.period, *keys, *sums).where(step.within).group_by(step.period.element, *keys)


def _sum(column: Column[Any]) -> ColumnElement[Any]:
    if column.name == "last_called_at":
        return latest(column)
    return exact_sum(column, column.type.scale) if isinstance(column.type, ExactDecimal) else integer_sum(column)


def _totals(connection: Connection, table: Table, within: ColumnElement[bool]) -> Mapping[str, Any]:
    names = (*TOTALS, "processing")
    sums = [_sum(table.c[name]).label(name) for name in names]
    return connection.execute(select(*sums, func.count().label("rows")).where(within)).mappings().one()


def _checked(connection: Connection, step: _Step, first: date) -> Mapping[str, Any]:
    """The totals of the written period, equal to those of what it was summed from."""
    found = _totals(connection, step.target, step.target.primary_key.columns[0] == first)
    expected = _totals(connection, step.source, step.within)
    for name in TOTALS:
        if found[name] != expected[name]:
            raise RollUpMismatch(
                f"{step.target.name} of {first} has {name} {found[name]}, but {step.source.name} {expected[name]}"
            )
    return found


def _result(first: date, expected: int, parts: Any, totals: Mapping[str, Any], replaced: Replaced) -> PeriodResult:
    return PeriodResult(
        first=first,
        state=state_of(parts.parts, expected, totals["processing"]),
        parts=parts.parts,
        expected=expected,
        calls=totals["calls"],
        processing=totals["processing"],
        tokens={name: totals[name] for name in TOKEN_COLUMNS},
        credits=totals["credits"],
        rows=totals["rows"],
        written=replaced.written,
        deleted=replaced.deleted,
    )


@dataclass(frozen=True)
class Due:
    """The periods to roll up now, oldest first."""

    days: tuple[date, ...]
    months: tuple[date, ...]
    reports: tuple[date, ...]


def read_due(
    connection: Connection,
    *,
    today: date,
    waiting: Collection[datetime],
    report_days: int,
    start: date = date.min,
    days_rest: bool = False,
) -> Due:
    """Which closed days, which months and which reports are out of date.

    Args:
        connection: a snapshot.
        today: the current UTC day, which is not rolled up.
        waiting: hours that are still to be aggregated; a day waits for its own.
        report_days: for how many days back reports are made without being asked for.
        start: the day of the first partition; older ones are left as they are.
        days_rest: days are left alone for now because they failed; their months do not wait for them then.
    """
    day = utc_day(usage_hours.c.hour)
    by_hours = select(day.label("first"), integer_sum(usage_hours.c.revision).label("revision")).group_by(day)
    month = month_start(usage_days.c.day)
    by_days = select(month.label("first"), integer_sum(usage_days.c.revision).label("revision")).group_by(month)
    days = _changed(connection, by_hours, usage_days)
    not_yet = {hour.date() for hour in waiting} | {today}
    due_days = tuple(one for one in days if one not in not_yet and start <= one < today)
    busy = set() if days_rest else {one.replace(day=1) for one in due_days}
    months = _changed(connection, by_days, usage_months)
    due_months = tuple(one for one in months if one not in busy and next_month(one) > start)
    oldest = max(today - report_days * DAY, start)
    stale = usage_days.c.reported_revision.is_distinct_from(usage_days.c.revision)
    reports = select(usage_days.c.day).where(usage_days.c.day >= oldest, usage_days.c.state != "partial", stale)
    due_reports = tuple(one for one in connection.scalars(reports.order_by(usage_days.c.day)) if one not in due_days)
    return Due(due_days, due_months, due_reports)


def _changed(connection: Connection, sums: Rows, progress: Table) -> list[date]:
    """The periods whose parts' revisions do not sum to what the period remembers."""
    key = progress.primary_key.columns[0]
    known = {row[0]: row[1] for row in connection.execute(select(key, progress.c.revision))}
    return sorted(row.first for row in connection.execute(sums) if known.get(row.first) != row.revision)


def day_revision(engine: Engine, day: date) -> int | None:
    """The revision of a day's roll-up; None when the day was never rolled up."""
    with reading(engine) as connection:
        return connection.execute(select(usage_days.c.revision).where(usage_days.c.day == day)).scalar()


def mark_reported(engine: Engine, day: date, revision: int) -> None:
    """Remember which revision of a day its report shows; a change made since then leaves the report due."""
    with writing(engine) as connection:
        connection.execute(update(usage_days).where(usage_days.c.day == day).values(reported_revision=revision))
