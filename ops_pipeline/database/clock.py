"""Arithmetic of instants within statements.

What belongs here: constructs with a compilation per dialect.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Double, cast
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from ops_pipeline.database.expressions import Expression, parts
from ops_pipeline.database.types import UtcDateTime


class SecondsAfter(Expression):
    """An instant some seconds after another."""

    name = "seconds_after"
    inherit_cache = True
    type = UtcDateTime()


def seconds_after(instant: ColumnElement[Any], seconds: ColumnElement[Any]) -> ColumnElement[datetime]:
    """`instant` and so many seconds more; to the millisecond on SQLite."""
    return SecondsAfter(instant, cast(seconds, Double))


@compiles(SecondsAfter, "postgresql")
def _(element: SecondsAfter, compiler: SQLCompiler, **kw: Any) -> str:
    instant, seconds = parts(element, compiler, **kw)
    return f"({instant} + make_interval(secs => {seconds}))"


@compiles(SecondsAfter, "sqlite")
def _(element: SecondsAfter, compiler: SQLCompiler, **kw: Any) -> str:
    instant, seconds = parts(element, compiler, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f', julianday({instant}) + {seconds} / 86400.0)"
