"""Parts of table definitions whose text differs between PostgreSQL and SQLite.

What belongs here: constructs for DDL. What does not: expressions of queries (`expressions`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler


class PerDialect(ColumnElement[Any]):
    """SQL text of an expression over the columns of the same table, one text for each kind of database."""

    inherit_cache = False

    def __init__(self, *, postgresql: str, sqlite: str) -> None:
        """Keep both texts."""
        self.texts = {"postgresql": postgresql, "sqlite": sqlite}


@compiles(PerDialect)
def _(element: PerDialect, compiler: SQLCompiler, **_: Any) -> str:
    return element.texts[compiler.dialect.name]
