"""Whole rows: a number that changes with any of their columns, and the text that JSON columns hold.

What belongs here: expressions over all columns of a row, for archives. What does not: comparing rows.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, ColumnElement, Table, Text, cast, type_coerce
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from ops_pipeline.database.expressions import Expression, parts
from ops_pipeline.database.types import StoredInstant, UtcDateTime

SQLITE_ROW_HASH = "ops_pipeline_row_hash"
"""The name of the function that every connection to SQLite has."""


class RowHash(Expression):
    """64 bits that are other ones as soon as any of the columns is another one."""

    name = "row_hash"
    inherit_cache = True
    type = BigInteger()


class JsonFromText(Expression):
    """The value of a JSON column from the text that it held, unchanged to the last blank."""

    name = "json_from_text"
    inherit_cache = True


def stored_columns(table: Table) -> list[Column[Any]]:
    """The columns of a table that a writer sets; those that the database computes are left out."""
    return [column for column in table.columns if column.computed is None]


def row_hash(table: Table) -> ColumnElement[int]:
    """The hash of a row of `table`; the same row has the same one in each transaction of the same database."""
    return RowHash(*stored_columns(table))


def stored_text(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column as it is read for an archive: JSON as the text that stands there, all else as itself."""
    if isinstance(column.type, JSON):
        return cast(column, Text)
    return type_coerce(column, StoredInstant()) if isinstance(column.type, UtcDateTime) else column


def json_from_text(text: ColumnElement[Any]) -> ColumnElement[Any]:
    """The value for a JSON column from a parameter of text."""
    return JsonFromText(text)


def hash_on_sqlite(*values: Any) -> int:
    """The hash of a row, as SQLite's connections compute it."""
    digest = hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@compiles(RowHash, "postgresql")
def _(element: RowHash, compiler: SQLCompiler, **kw: Any) -> str:
    return f"hashtextextended(CAST(ROW({', '.join(parts(element, compiler, **kw))}) AS TEXT), 0)"


@compiles(RowHash, "sqlite")
def _(element: RowHash, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{SQLITE_ROW_HASH}({', '.join(parts(element, compiler, **kw))})"


@compiles(JsonFromText, "postgresql")
def _(element: JsonFromText, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({parts(element, compiler, **kw)[0]} AS JSON)"


@compiles(JsonFromText, "sqlite")
def _(element: JsonFromText, compiler: SQLCompiler, **kw: Any) -> str:
    # A cast to JSON would be one to a number there.
    return parts(element, compiler, **kw)[0]
