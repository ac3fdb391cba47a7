"""SQL expressions whose text differs between PostgreSQL and SQLite, written once per meaning.

What belongs here: constructs with a compilation per dialect. What does not: sums (`sums`), and whole statements,
which the domains write with SQLAlchemy Core on top of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Date, and_, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from ops_pipeline.database.types import TextList, UtcDateTime, require_aware

HOUR_SECONDS = 3600
SQLITE_HOUR_KEY = (
    "(CAST(strftime('%s', CASE WHEN length({0}) > 23 THEN substr({0}, 1, 19) || ltrim(substr({0}, 20), '.0123456789')"
    " ELSE {0} END) AS INTEGER) / 3600)"
)
"""Hours since 1970 of an ISO 8601 text in any of its spellings; `model_calls` is indexed by this expression.
A fraction longer than milliseconds is cut off, since SQLite would round it up into the next hour."""


SQLITE_MILLISECONDS = "CAST(ROUND((julianday({0}) - 2440587.5) * 86400000.0) AS INTEGER)"
"""Milliseconds since 1970 of an ISO 8601 text; processing calls are indexed by this expression."""


class Expression(FunctionElement[Any]):
    """An expression over its clauses, compiled per dialect by the functions below."""

    # Each class says so again: SQLAlchemy caches compiled statements only of classes that declare it themselves.
    inherit_cache = True


class HourStart(Expression):
    """The start of the UTC hour in which an instant lies."""

    name = "hour_start"
    inherit_cache = True
    type = UtcDateTime()


class HourKey(Expression):
    """What to group by for `HourStart`: the hour itself, or its number where text would be slow to group."""

    name = "hour_key"
    inherit_cache = True


class IndexedHour(Expression):
    """An instant in the form that its index has; to be compared with hours only."""

    name = "indexed_hour"
    inherit_cache = True


class InstantOrder(Expression):
    """An instant in a form that compares as time does, whatever its spelling."""

    name = "instant_order"
    inherit_cache = True


class ReadableInstant(Expression):
    """An instant in a spelling that Python reads."""

    name = "readable_instant"
    inherit_cache = True
    type = UtcDateTime()


class AnyOf(Expression):
    """Whether a column is one of a list of texts that is sent as one value."""

    name = "any_of"
    inherit_cache = True


class UtcDay(Expression):
    """The UTC calendar day of an instant."""

    name = "utc_day"
    inherit_cache = True
    type = Date()


class MonthStart(Expression):
    """The first day of the month of a date."""

    name = "month_start"
    inherit_cache = True
    type = Date()


class VersionNumber(Expression):
    """An integer that grows with an instant: microseconds on PostgreSQL, milliseconds on SQLite."""

    name = "version_number"
    inherit_cache = True
    type = BigInteger()


class Latest(Expression):
    """The latest of a column of instants, whatever the spelling of each."""

    name = "latest"
    inherit_cache = True
    type = UtcDateTime()


class EarliestHour(Expression):
    """The hour of the earliest instant of a column, through its index."""

    name = "earliest_hour"
    inherit_cache = True
    type = UtcDateTime()


def hour_start(instant: ColumnElement[Any]) -> ColumnElement[datetime]:
    """The UTC hour of `instant`, to be selected beside `group_by(hour_key(instant))`."""
    return HourStart(instant)


def hour_key(instant: ColumnElement[Any]) -> ColumnElement[Any]:
    """The grouping key that stands for `hour_start(instant)`."""
    return HourKey(instant)


def within_hours(instant: ColumnElement[Any], start: datetime, end: datetime) -> ColumnElement[bool]:
    """True for whole hours: start <= `instant` < end; both bounds lie on the hour.

    Raises:
        ValueError: a bound is naive or not on the hour.
    """
    # Not one construct of Boolean type: SQLAlchemy writes "= 1" behind that, and SQLite then scans every call.
    first, last = (IndexedHour(_bound(value)) for value in (start, end))
    return and_(IndexedHour(instant) >= first, IndexedHour(instant) < last)


def from_hour(instant: ColumnElement[Any], start: datetime) -> ColumnElement[bool]:
    """True from a whole hour on: start <= `instant`; served by the index as `within_hours` is.

    Raises:
        ValueError: the bound is naive or not on the hour.
    """
    return IndexedHour(instant) >= IndexedHour(_bound(start))


def unreadable(instant: ColumnElement[Any]) -> ColumnElement[bool]:
    """True where SQLite holds a text that is no time; PostgreSQL takes none."""
    return IndexedHour(instant).is_(None)


def _bound(value: datetime) -> ColumnElement[Any]:
    require_aware(value)
    if value.astimezone(UTC).timestamp() % HOUR_SECONDS:
        raise ValueError(f"{value.isoformat()} does not lie on a UTC hour")
    return bindparam(None, value, UtcDateTime(), unique=True)


def instant_order(instant: ColumnElement[Any] | datetime) -> ColumnElement[Any]:
    """What to compare and sort instants by: exact on PostgreSQL, to the millisecond on SQLite.

    Raises:
        ValueError: a naive datetime.
    """
    if isinstance(instant, datetime):
        return InstantOrder(bindparam(None, require_aware(instant), UtcDateTime(), unique=True))
    return InstantOrder(instant)


def readable_instant(instant: ColumnElement[Any]) -> ColumnElement[datetime]:
    """`instant`, where its order was found to lie within the years that Python knows."""
    return ReadableInstant(instant)


def is_any_of(column: ColumnElement[Any], texts: Sequence[str]) -> ColumnElement[bool]:
    """True where `column` is one of many texts: thousands of them as one parameter, looked up through the index."""
    return AnyOf(column, bindparam(None, list(texts), TextList(), unique=True))


def utc_day(instant: ColumnElement[Any]) -> ColumnElement[date]:
    """The UTC calendar day of `instant`."""
    return UtcDay(instant)


def month_start(day: ColumnElement[Any]) -> ColumnElement[date]:
    """The first day of the month of `day`."""
    return MonthStart(day)


def version_number(instant: ColumnElement[Any]) -> ColumnElement[int]:
    """An integer that grows with `instant`; sums of it tell whether any row of a group was rewritten."""
    return VersionNumber(instant)


def latest(instant: ColumnElement[Any]) -> ColumnElement[datetime]:
    """The greatest of the instants of a group."""
    return Latest(instant)


def earliest_hour(instant: ColumnElement[Any]) -> ColumnElement[datetime]:
    """The UTC hour of the earliest readable instant; NULL when there is none."""
    return EarliestHour(instant)


def parts(element: Expression, compiler: SQLCompiler, **kw: Any) -> list[str]:
    """The SQL of what an expression stands over."""
    return [compiler.process(clause, **kw) for clause in element.clauses]


@compiles(HourStart, "postgresql")
@compiles(HourKey, "postgresql")
def _(element: HourStart, compiler: SQLCompiler, **kw: Any) -> str:
    # date_bin is integer arithmetic; date_trunc with a zone is about four times slower.
    return f"date_bin('1 hour', {parts(element, compiler, **kw)[0]}, TIMESTAMPTZ '2000-01-01 00:00:00+00')"


@compiles(HourKey, "sqlite")
@compiles(IndexedHour, "sqlite")
def _(element: HourKey, compiler: SQLCompiler, **kw: Any) -> str:
    return SQLITE_HOUR_KEY.format(*parts(element, compiler, **kw))


@compiles(HourStart, "sqlite")
def _(element: HourStart, compiler: SQLCompiler, **kw: Any) -> str:
    key = SQLITE_HOUR_KEY.format(*parts(element, compiler, **kw))
    return f"strftime('%Y-%m-%d %H:00:00', {key} * 3600, 'unixepoch')"


@compiles(IndexedHour, "postgresql")
def _(element: IndexedHour, compiler: SQLCompiler, **kw: Any) -> str:
    return parts(element, compiler, **kw)[0]


@compiles(InstantOrder, "postgresql")
@compiles(ReadableInstant, "postgresql")
def _(element: Expression, compiler: SQLCompiler, **kw: Any) -> str:
    return parts(element, compiler, **kw)[0]


@compiles(InstantOrder, "sqlite")
def _(element: InstantOrder, compiler: SQLCompiler, **kw: Any) -> str:
    return SQLITE_MILLISECONDS.format(*parts(element, compiler, **kw))


@compiles(ReadableInstant, "sqlite")
def _(element: ReadableInstant, compiler: SQLCompiler, **kw: Any) -> str:
    # Through a number: SQLite repeats a 30th of February as it stands, and Python knows none.
    return f"strftime('%Y-%m-%d %H:%M:%f', julianday({parts(element, compiler, **kw)[0]}))"


@compiles(AnyOf, "postgresql")
def _(element: AnyOf, compiler: SQLCompiler, **kw: Any) -> str:
    # Behind a SELECT the planner does not see how many there are. Of a list it sees it reads a whole table of a million
    # rows for 16,000 of them, page after page.
    column, texts = parts(element, compiler, **kw)
    return f"{column} = ANY(CAST((SELECT {texts}) AS TEXT[]))"


@compiles(AnyOf, "sqlite")
def _(element: AnyOf, compiler: SQLCompiler, **kw: Any) -> str:
    column, texts = parts(element, compiler, **kw)
    return f"{column} IN (SELECT value FROM json_each({texts}))"  # noqa: S608 - made of a column and a parameter


@compiles(UtcDay, "postgresql")
def _(element: UtcDay, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({parts(element, compiler, **kw)[0]} AT TIME ZONE 'UTC' AS DATE)"


@compiles(UtcDay, "sqlite")
def _(element: UtcDay, compiler: SQLCompiler, **kw: Any) -> str:
    return f"date({parts(element, compiler, **kw)[0]})"


@compiles(MonthStart, "postgresql")
def _(element: MonthStart, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(date_trunc('month', CAST({parts(element, compiler, **kw)[0]} AS TIMESTAMP)) AS DATE)"


@compiles(MonthStart, "sqlite")
def _(element: MonthStart, compiler: SQLCompiler, **kw: Any) -> str:
    return f"date({parts(element, compiler, **kw)[0]}, 'start of month')"


@compiles(VersionNumber, "postgresql")
def _(element: VersionNumber, compiler: SQLCompiler, **kw: Any) -> str:
    # date_part gives a float8, exact for microseconds of this century; extract() gives a numeric, ten times slower.
    return f"CAST(date_part('epoch', {parts(element, compiler, **kw)[0]}) * 1000000 AS BIGINT)"


@compiles(VersionNumber, "sqlite")
def _(element: VersionNumber, compiler: SQLCompiler, **kw: Any) -> str:
    # Counted from 2025-01-01 (Julian day 2460676.5), so that 50 million calls an hour still sum below 2^63.
    return f"CAST(ROUND((julianday({parts(element, compiler, **kw)[0]}) - 2460676.5) * 86400000.0) AS INTEGER)"


@compiles(Latest, "postgresql")
def _(element: Latest, compiler: SQLCompiler, **kw: Any) -> str:
    return f"MAX({parts(element, compiler, **kw)[0]})"


@compiles(Latest, "sqlite")
def _(element: Latest, compiler: SQLCompiler, **kw: Any) -> str:
    return f"MAX(strftime('%Y-%m-%d %H:%M:%f', {parts(element, compiler, **kw)[0]}))"


@compiles(EarliestHour, "postgresql")
def _(element: EarliestHour, compiler: SQLCompiler, **kw: Any) -> str:
    return f"date_bin('1 hour', MIN({parts(element, compiler, **kw)[0]}), TIMESTAMPTZ '2000-01-01 00:00:00+00')"


@compiles(EarliestHour, "sqlite")
def _(element: EarliestHour, compiler: SQLCompiler, **kw: Any) -> str:
    key = SQLITE_HOUR_KEY.format(*parts(element, compiler, **kw))
    return f"strftime('%Y-%m-%d %H:00:00', MIN({key}) * 3600, 'unixepoch')"
