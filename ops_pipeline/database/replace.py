"""Replacing the rows of a period by those of a query, writing only what differs.

What belongs here: the one mechanism by which every roll-up table is rewritten. What does not: which rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Table,
    and_,
    delete,
    exists,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite

from ops_pipeline.database.types import Rows

LOOPED_OVER = 10_000
"""Up to so many rows are staged without statistics."""


@dataclass(frozen=True)
class Replaced:
    """How many rows a replacement wrote (new or different) and deleted (vanished)."""

    written: int = 0
    deleted: int = 0

    def __add__(self, other: Replaced) -> Replaced:
        """Add the counts."""
        return Replaced(self.written + other.written, self.deleted + other.deleted)

    @property
    def anything(self) -> bool:
        """True when the table differs from before."""
        return bool(self.written or self.deleted)


def insert_rows(connection: Connection, target: Table, rows: Rows) -> Replaced:
    """Insert the rows of a query into a period known to be empty: one statement, nothing compared."""
    names = [column.name for column in rows.selected_columns]
    return Replaced(written=_rowcount(connection, insert(target).from_select(names, rows)))


def replace_rows(connection: Connection, target: Table, rows: Rows, period: ColumnElement[bool]) -> Replaced:
    """Make the rows of `target` within `period` equal to those of a query, key by key.

    The query is staged in a temporary table; rows that are there unchanged are not touched. Measured on 720
    unchanged hours (1.33 million rows): 3.1 s and 4 MB of WAL, against 8.3 s and 986 MB for delete and insert.

    Args:
        connection: a transaction of `engine.rewriting`.
        target: the table; all its columns are compared, none of them nullable.
        rows: a query that yields a column of the same name for each column of `target`.
        period: the condition on `target` that bounds what may be deleted.
    """
    stage = _staged(connection, target, rows)
    keys = [column.name for column in target.primary_key]
    values = [column.name for column in target.columns if column.name not in keys]
    same_key = and_(*(target.c[name] == stage.c[name] for name in keys))
    same_row = and_(same_key, *(target.c[name] == stage.c[name] for name in values))

    vanished = delete(target).where(period, ~exists(select(stage.c[keys[0]]).where(same_key)))
    deleted = _rowcount(connection, vanished)
    different = select(*stage.c).where(~exists(select(target.c[keys[0]]).where(period, same_row)))
    written = _rowcount(connection, _upsert(connection, target, different, keys, values))
    connection.execute(text(f"DROP TABLE {stage.name}"))
    return Replaced(written=written, deleted=deleted)


def upsert(
    connection: Connection, target: Table, rows: Sequence[Mapping[str, Any]], added: Collection[str] = ()
) -> None:
    """Insert rows, each replacing the one that has its key; columns `added` are added to what it has."""
    if not rows:
        return
    keys = [column.name for column in target.primary_key]
    statement = _dialect(connection).insert(target)
    replaced = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    replaced |= {name: target.c[name] + statement.excluded[name] for name in added}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=replaced), list(rows))


def insert_missing(connection: Connection, target: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert those rows whose keys are not there; the others stay as they are."""
    if rows:
        connection.execute(_dialect(connection).insert(target).on_conflict_do_nothing(), list(rows))


def _dialect(connection: Connection) -> Any:
    return postgresql if connection.dialect.name == "postgresql" else sqlite


def _staged(connection: Connection, target: Table, rows: Rows) -> Table:
    """Create a temporary table of the target's shape and fill it from the query."""
    stage = Table(
        f"staged_{target.name}",
        MetaData(),
        *(Column(column.name, column.type) for column in target.columns),
        prefixes=["TEMPORARY"],
    )
    connection.execute(text(f"DROP TABLE IF EXISTS {stage.name}"))
    stage.create(connection, checkfirst=False)
    staged = insert_rows(connection, stage, rows).written
    if connection.dialect.name == "postgresql":
        # Without statistics the planner takes the stage for 1,000 rows and loops over the target's index. For as few
        # rows as an hour has that is no worse, and the statistics would take a sixth of its time.
        if staged > LOOPED_OVER:
            connection.execute(text(f"ANALYZE {stage.name}"))
    else:
        key = ", ".join(column.name for column in target.primary_key)
        connection.execute(text(f"CREATE UNIQUE INDEX temp.{stage.name}_key ON {stage.name} ({key})"))
    return stage


def _rowcount(connection: Connection, statement: Any) -> int:
    # SQLAlchemy forgets the count of an INSERT unless asked to keep it.
    return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount


def _upsert(connection: Connection, target: Table, rows: Rows, keys: list[str], values: list[str]) -> Any:
    names = [column.name for column in rows.selected_columns]
    # SQLite reads ON CONFLICT after a SELECT as a join clause unless that SELECT has a WHERE: this one has.
    statement = _dialect(connection).insert(target).from_select(names, rows)
    return statement.on_conflict_do_update(
        index_elements=keys, set_={name: statement.excluded[name] for name in values}
    )
