"""Rows of a table as Arrow columns and back, exactly.

What belongs here: types and conversion. What does not: files (`store`) and SQL of any domain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import csv
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Date,
    Float,
    Integer,
    Table,
    Text,
    bindparam,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from ops_pipeline.database.copying import copied, copies
from ops_pipeline.database.expressions import AnyOf, is_any_of
from ops_pipeline.database.rows import json_from_text, row_hash, stored_columns, stored_text
from ops_pipeline.database.types import ExactDecimal, TextList, UtcDateTime, array_text

HASH = "_row_hash"
"""The column beside a table's own: what the row was when it was archived, see `database.rows`."""
MOST_DIGITS = 38
BLOCK_BYTES = 1_500_000


def archived_columns(table: Table) -> list[Any]:
    """What to select of a table, in the order of `schema_of`."""
    return [*(stored_text(column).label(column.name) for column in stored_columns(table)), row_hash(table).label(HASH)]


def schema_of(table: Table) -> pa.Schema:
    """The Arrow schema of a table's archived rows."""
    fields = [pa.field(column.name, _type_of(column)) for column in stored_columns(table)]
    return pa.schema([*fields, pa.field(HASH, pa.int64())])


def _type_of(column: Column[Any]) -> pa.DataType:  # noqa: PLR0911 - a table of types
    kind = column.type
    if isinstance(kind, UtcDateTime):
        return pa.timestamp("us", tz="UTC")
    if isinstance(kind, ExactDecimal):
        return pa.decimal128(min(kind.precision, MOST_DIGITS), kind.scale)
    if isinstance(kind, Boolean):
        return pa.bool_()
    if isinstance(kind, Integer):
        return pa.int64()
    if isinstance(kind, Float):
        return pa.float64()
    if isinstance(kind, Date):
        return pa.date32()
    return pa.string()


def batch_of(schema: pa.Schema, rows: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    """Rows as columns.

    Raises:
        ValueError: a value is none of its column's type, as SQLite may hold; the column is named.
    """
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [_array(field, values) for field, values in zip(schema, columns, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _array(field: pa.Field, values: Any) -> pa.Array:
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"column {field.name}: {str(error).partition(chr(10))[0]}") from error


def stored_batches(
    connection: Connection, table: Table, owner: Column[Any], texts: Sequence[str], at_once: int
) -> Iterator[pa.RecordBatch]:
    """The rows of a table whose column `owner` is one of many texts, with their hashes.

    Args:
        connection: the snapshot.
        table: of the rows.
        owner: one of its columns.
        texts: any number of them.
        at_once: how many rows are held at most, where the database gives them row by row.

    Raises:
        ValueError: a value is none of its column's type; the column is named.
    """
    if copies(connection):
        condition = AnyOf(owner, bindparam("texts", type_=TextList()))
        yield from batches_where(connection, table, condition, at_once, {"texts": array_text(texts)})
    else:
        yield from batches_where(connection, table, is_any_of(owner, texts), at_once)


def batches_where(
    connection: Connection,
    table: Table,
    condition: ColumnElement[bool],
    at_once: int,
    parameters: Mapping[str, Any] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a table under a condition, with their hashes.

    Args:
        connection: the snapshot.
        table: of the rows.
        condition: which rows.
        at_once: how many rows are held at most, where the database gives them row by row.
        parameters: for `copied`.

    Raises:
        ValueError: a value is none of its column's type; the column is named.
    """
    schema = schema_of(table)
    query = select(*archived_columns(table)).where(condition)
    if not copies(connection):
        for rows in connection.execute(query.execution_options(yield_per=at_once)).partitions():
            yield batch_of(schema, rows)
        return
    for block in copied(connection, query, BLOCK_BYTES, parameters):
        yield from _read_csv(schema, block)


def _read_csv(schema: pa.Schema, block: bytes) -> list[pa.RecordBatch]:
    try:
        read = csv.read_csv(
            pa.BufferReader(block),
            csv.ReadOptions(column_names=schema.names, block_size=len(block) + 1, use_threads=False),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(
                column_types=schema,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                true_values=["t"],
                false_values=["f"],
            ),
        )
    except pa.ArrowException as error:
        raise ValueError(_named(schema, str(error).partition("\n")[0])) from error
    return read.to_batches()


def _named(schema: pa.Schema, problem: str) -> str:
    """An error of the reader, which counts columns, with the name of the column."""
    found = re.search(r"column #(\d+): (.*)", problem)
    return f"column {schema.names[int(found[1])]}: {found[2]}" if found else problem


def insert_absent(connection: Connection, table: Table, batch: pa.RecordBatch) -> int:
    """Insert archived rows whose keys are not there; columns that the table no longer has are refused.

    Returns:
        How many rows were inserted.

    Raises:
        ValueError: the table has lost a column since.
    """
    names = [name for name in batch.schema.names if name != HASH]
    lost = [name for name in names if name not in table.c]
    if lost:
        raise ValueError(f"{table.name} has no columns {', '.join(lost)} any more: restore with the version of then")
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    # Parameters have names of their own: SQLAlchemy keeps the names of columns for itself.
    values = {name: _parameter(table.c[name]) for name in names}
    keys = [column.name for column in table.primary_key]
    statement = dialect.insert(table).values(values).on_conflict_do_nothing(index_elements=keys)
    inserted = 0
    for rows in _parameters(batch, names):
        result = connection.execute(statement, rows, execution_options={"preserve_rowcount": True})
        inserted += max(0, result.rowcount)
    return inserted


def _parameter(column: Column[Any]) -> Any:
    name = f"new_{column.name}"
    if isinstance(column.type, JSON):
        return json_from_text(bindparam(name, type_=Text))
    return bindparam(name, type_=column.type)


def _parameters(batch: pa.RecordBatch, names: Sequence[str], size: int = 1_000) -> Iterator[list[dict[str, Any]]]:
    for first in range(0, batch.num_rows, size):
        columns = [batch.column(name).slice(first, size).to_pylist() for name in names]
        labels = [f"new_{name}" for name in names]
        yield [dict(zip(labels, row, strict=True)) for row in zip(*columns, strict=True)]
