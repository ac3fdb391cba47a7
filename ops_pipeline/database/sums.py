"""Sums that are exact on PostgreSQL and SQLite, and an error rather than wrong where they cannot be.

What belongs here: aggregates of decimals, floats and integers. What does not: expressions over instants
(`expressions`), and the conversion of single values (`types`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from ops_pipeline.database.expressions import Expression, parts
from ops_pipeline.database.types import ExactDecimal


class IntegerSum(Expression):
    """The sum of an integer column."""

    name = "integer_sum"
    inherit_cache = True
    type = BigInteger()


class ExactSum(Expression):
    """The exact sum of a decimal column."""

    name = "exact_sum"
    inherit_cache = True


class ExactSumOfFloats(Expression):
    """The exact sum of a float column, each value first rounded to the scale."""

    name = "exact_sum_of_floats"
    inherit_cache = True


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


def _scale(element: Expression) -> int:
    return element.type.scale  # ty: ignore[missing-attribute]


@compiles(IntegerSum, "postgresql")
def _(element: IntegerSum, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(COALESCE(SUM({parts(element, compiler, **kw)[0]}), 0) AS BIGINT)"


@compiles(IntegerSum, "sqlite")
def _(element: IntegerSum, compiler: SQLCompiler, **kw: Any) -> str:
    # An integer literal beyond 64 bits was stored as a float, which CAST would cut to the largest integer.
    total = f"COALESCE(SUM({parts(element, compiler, **kw)[0]}), 0)"
    wrong = f"typeof({total}) = 'real' AND abs({total}) >= 9.2e18"
    return f"CASE WHEN {wrong} THEN {_SQLITE_OVERFLOW} ELSE CAST({total} AS BIGINT) END"


@compiles(ExactSum, "postgresql")
def _(element: ExactSum, compiler: SQLCompiler, **kw: Any) -> str:
    return f"COALESCE(SUM({parts(element, compiler, **kw)[0]}), 0)"


@compiles(ExactSum, "sqlite")
def _(element: ExactSum, compiler: SQLCompiler, **kw: Any) -> str:
    scale = _scale(element)
    return _sqlite_decimal(f"SUM({_sqlite_units(parts(element, compiler, **kw)[0], scale)})", scale)


@compiles(ExactSumOfFloats, "postgresql")
def _(element: ExactSumOfFloats, compiler: SQLCompiler, **kw: Any) -> str:
    scale = _scale(element)
    value = parts(element, compiler, **kw)[0]
    total = f"COALESCE(SUM(CAST(ROUND({value} * 1e{scale}) AS BIGINT)), 0)"
    return f"CAST({total} * 1e-{scale} AS NUMERIC(30, {scale}))"


@compiles(ExactSumOfFloats, "sqlite")
def _(element: ExactSumOfFloats, compiler: SQLCompiler, **kw: Any) -> str:
    scale = _scale(element)
    value = parts(element, compiler, **kw)[0]
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
