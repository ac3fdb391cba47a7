"""SQL expressions whose text differs between PostgreSQL and SQLite, written once per meaning.

What belongs here: constructs with a compilation per dialect. What does not: whole statements, which the
domains write with SQLAlchemy Core on top of these.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Date, and_, bindparam, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from ops_pipeline.database.types import ExactDecimal, UtcDateTime, require_aware

HOUR_SECONDS = 3600
SQLITE_HOUR_KEY = (
    "(CAST(strftime('%s', CASE WHEN length({0}) > 23 THEN substr({0}, 1, 19) || ltrim(substr({0}, 20), '.0123456789')"
    " ELSE {0} END) AS INTEGER) / 3600)"
)
"""Hours since 1970 of an ISO 8601 text in any of its spellings; `model_calls` is indexed by this expression.
A fraction longer than milliseconds is cut off, since SQLite would round it up into the next hour."""


class _Expression(FunctionElement[Any]):
    """An expression over its clauses, compiled per dialect by the functions below."""

    # Each class says so again: SQLAlchemy caches compiled statements only of classes that declare it themselves.
    inherit_cache = True


class HourStart(_Expression):
    """The start of the UTC hour in which an instant lies."""

    name = "hour_start"
    inherit_cache = True
    type = UtcDateTime()


class HourKey(_Expression):
    """What to group by for `HourStart`: the hour itself, or its number where text would be slow to group."""

    name = "hour_key"
    inherit_cache = True


class IndexedHour(_Expression):
    """An instant in the form that its index has; to be compared with hours only."""

    name = "indexed_hour"
    inherit_cache = True


class UtcDay(_Expression):
    """The UTC calendar day of an instant."""

    name = "utc_day"
    inherit_cache = True
    type = Date()


class MonthStart(_Expression):
    """The first day of the month of a date."""

    name = "month_start"
    inherit_cache = True
    type = Date()


class VersionNumber(_Expression):
    """An integer that grows with an instant: microseconds on PostgreSQL, milliseconds on SQLite."""

    name = "version_number"
    inherit_cache = True
    type = BigInteger()


class Latest(_Expression):
    """The latest of a column of instants, whatever the spelling of each."""

    name = "latest"
    inherit_cache = True
    type = UtcDateTime()


class EarliestHour(_Expression):
    """The hour of the earliest instant of a column, through its index."""

    name = "earliest_hour"
    inherit_cache = True
    type = UtcDateTime()


class IntegerSum(_Expression):
    """The sum of an integer column."""

    name = "integer_sum"
    inherit_cache = True
    type = BigInteger()


class ExactSum(_Expression):
    """The exact sum of a decimal column."""

    name = "exact_sum"
    inherit_cache = True


class ExactSumOfFloats(_Expression):
    """The exact sum of a float column, each value first rounded to the scale."""

    name = "exact_sum_of_floats"
    inherit_cache = True


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


def _bound(value: datetime) -> ColumnElement[Any]:
    require_aware(value)
    if value.astimezone(UTC).timestamp() % HOUR_SECONDS:
        raise ValueError(f"{value.isoformat()} does not lie on a UTC hour")
    return bindparam(None, value, UtcDateTime(), unique=True)


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


def exact_sum(column: ColumnElement[Any], scale: int) -> ColumnElement[Any]:
    """The exact sum of a column of `ExactDecimal(scale)`; zero for no rows.

    SQLite adds integers in units of 10^-scale and stops with "integer overflow" beyond 2^63 of them.
    """
    expression = ExactSum(column, literal(scale, literal_execute=True))
    expression.type = ExactDecimal(scale)
    return expression


def exact_sum_of_floats(column: ColumnElement[Any], scale: int) -> ColumnElement[Any]:
    """The exact sum of a float column after rounding each value to `scale` digits: order does not matter.

    The values must be finite and below 10^9, which the caller sees to.
    """
    expression = ExactSumOfFloats(column, literal(scale, literal_execute=True))
    expression.type = ExactDecimal(scale)
    return expression


def integer_sum(column: ColumnElement[Any]) -> ColumnElement[int]:
    """The sum of an integer column as 64-bit integer; zero for no rows; overflow is an error, never wrong."""
    return IntegerSum(column)


def _parts(element: _Expression, compiler: SQLCompiler, **kw: Any) -> list[str]:
    return [compiler.process(clause, **kw) for clause in element.clauses]


def _scale(element: _Expression) -> int:
    return element.type.scale  # ty: ignore[unresolved-attribute]


@compiles(HourStart, "postgresql")
@compiles(HourKey, "postgresql")
def _(element: HourStart, compiler: SQLCompiler, **kw: Any) -> str:
    # date_bin is integer arithmetic; date_trunc with a zone is about four times slower.
    return f"date_bin('1 hour', {_parts(element, compiler, **kw)[0]}, TIMESTAMPTZ '2000-01-01 00:00:00+00')"


@compiles(HourKey, "sqlite")
@compiles(IndexedHour, "sqlite")
def _(element: HourKey, compiler: SQLCompiler, **kw: Any) -> str:
    return SQLITE_HOUR_KEY.format(*_parts(element, compiler, **kw))


@compiles(HourStart, "sqlite")
def _(element: HourStart, compiler: SQLCompiler, **kw: Any) -> str:
    key = SQLITE_HOUR_KEY.format(*_parts(element, compiler, **kw))
    return f"strftime('%Y-%m-%d %H:00:00', {key} * 3600, 'unixepoch')"


@compiles(IndexedHour, "postgresql")
def _(element: IndexedHour, compiler: SQLCompiler, **kw: Any) -> str:
    return _parts(element, compiler, **kw)[0]


@compiles(UtcDay, "postgresql")
def _(element: UtcDay, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({_parts(element, compiler, **kw)[0]} AT TIME ZONE 'UTC' AS DATE)"


@compiles(UtcDay, "sqlite")
def _(element: UtcDay, compiler: SQLCompiler, **kw: Any) -> str:
    return f"date({_parts(element, compiler, **kw)[0]})"


@compiles(MonthStart, "postgresql")
def _(element: MonthStart, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(date_trunc('month', CAST({_parts(element, compiler, **kw)[0]} AS TIMESTAMP)) AS DATE)"


@compiles(MonthStart, "sqlite")
def _(element: MonthStart, compiler: SQLCompiler, **kw: Any) -> str:
    return f"date({_parts(element, compiler, **kw)[0]}, 'start of month')"


@compiles(VersionNumber, "postgresql")
def _(element: VersionNumber, compiler: SQLCompiler, **kw: Any) -> str:
    # date_part gives a float8, exact for microseconds of this century; extract() gives a numeric, ten times slower.
    return f"CAST(date_part('epoch', {_parts(element, compiler, **kw)[0]}) * 1000000 AS BIGINT)"


@compiles(VersionNumber, "sqlite")
def _(element: VersionNumber, compiler: SQLCompiler, **kw: Any) -> str:
    # Counted from 2025-01-01 (Julian day 2460676.5), so that 50 million calls an hour still sum below 2^63.
    return f"CAST(ROUND((julianday({_parts(element, compiler, **kw)[0]}) - 2460676.5) * 86400000.0) AS INTEGER)"


@compiles(Latest, "postgresql")
def _(element: Latest, compiler: SQLCompiler, **kw: Any) -> str:
    return f"MAX({_parts(element, compiler, **kw)[0]})"


@compiles(Latest, "sqlite")
def _(element: Latest, compiler: SQLCompiler, **kw: Any) -> str:
    return f"MAX(strftime('%Y-%m-%d %H:%M:%f', {_parts(element, compiler, **kw)[0]}))"


@compiles(EarliestHour, "postgresql")
def _(element: EarliestHour, compiler: SQLCompiler, **kw: Any) -> str:
    return f"date_bin('1 hour', MIN({_parts(element, compiler, **kw)[0]}), TIMESTAMPTZ '2000-01-01 00:00:00+00')"


@compiles(EarliestHour, "sqlite")
def _(element: EarliestHour, compiler: SQLCompiler, **kw: Any) -> str:
    key = SQLITE_HOUR_KEY.format(*_parts(element, compiler, **kw))
    return f"strftime('%Y-%m-%d %H:00:00', MIN({key}) * 3600, 'unixepoch')"


@compiles(IntegerSum, "postgresql")
def _(element: IntegerSum, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(COALESCE(SUM({_parts(element, compiler, **kw)[0]}), 0) AS BIGINT)"


@compiles(IntegerSum, "sqlite")
def _(element: IntegerSum, compiler: SQLCompiler, **kw: Any) -> str:
    # An integer literal beyond 64 bits was stored as a float, which CAST would cut to the largest integer.
    total = f"COALESCE(SUM({_parts(element, compiler, **kw)[0]}), 0)"
    wrong = f"typeof({total}) = 'real' AND abs({total}) >= 9.2e18"
    return f"CASE WHEN {wrong} THEN {_SQLITE_OVERFLOW} ELSE CAST({total} AS BIGINT) END"


@compiles(ExactSum, "postgresql")
def _(element: ExactSum, compiler: SQLCompiler, **kw: Any) -> str:
    return f"COALESCE(SUM({_parts(element, compiler, **kw)[0]}), 0)"


@compiles(ExactSum, "sqlite")
def _(element: ExactSum, compiler: SQLCompiler, **kw: Any) -> str:
    scale = _scale(element)
    return _sqlite_decimal(f"SUM({_sqlite_units(_parts(element, compiler, **kw)[0], scale)})", scale)


@compiles(ExactSumOfFloats, "postgresql")
def _(element: ExactSumOfFloats, compiler: SQLCompiler, **kw: Any) -> str:
    scale = _scale(element)
    value = _parts(element, compiler, **kw)[0]
    total = f"COALESCE(SUM(CAST(ROUND({value} * 1e{scale}) AS BIGINT)), 0)"
    return f"CAST({total} * 1e-{scale} AS NUMERIC(30, {scale}))"


@compiles(ExactSumOfFloats, "sqlite")
def _(element: ExactSumOfFloats, compiler: SQLCompiler, **kw: Any) -> str:
    scale = _scale(element)
    value = _parts(element, compiler, **kw)[0]
    return _sqlite_decimal(f"SUM(CAST(ROUND({value} * 1e{scale}) AS INTEGER))", scale)


_SQLITE_OVERFLOW = "abs(-9223372036854775807 - 1)"
"""Raises "integer overflow": the least integer has no absolute value."""


def _sqlite_units(text: str, scale: int) -> str:
    """Decimal text as an integer number of 10^-scale.

    Below 100,000 a float holds ten decimals to within a quarter unit, so that rounding is exact; above, the
    digits themselves are read. What does not fit 64 bits is an error rather than a float in silence.
    """
    digits = f"substr(substr({text}, instr({text} || '.', '.') + 1) || '{'0' * scale}', 1, {scale})"
    limit = (2**63 - 1) // 10**scale
    return (
        f"CASE WHEN {text} + 0 BETWEEN -100000 AND 100000 THEN CAST(ROUND({text} * 1e{scale}) AS INTEGER)"
        f" WHEN {text} IS NULL THEN 0"
        f" WHEN instr(lower({text}), 'e') > 0 OR abs({text}) >= {limit} THEN {_SQLITE_OVERFLOW}"
        f" ELSE CAST({text} AS INTEGER) * {10**scale}"
        f" + CASE WHEN {text} LIKE '-%' THEN -1 ELSE 1 END * CAST({digits} AS INTEGER) END"
    )


def _sqlite_decimal(units: str, scale: int) -> str:
    """An integer number of 10^-scale as plain decimal text with `scale` digits after the point."""
    one = 10**scale
    total = f"COALESCE({units}, 0)"
    return (
        f"(CASE WHEN {total} < 0 THEN '-' ELSE '' END"
        f" || printf('%d.%0{scale}d', abs({total} / {one}), abs({total} % {one})))"
    )
