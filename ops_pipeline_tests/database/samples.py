"""A table with a column of each kind, and how tests of types and expressions write to it and ask it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from sqlalchemy import BigInteger, Column, Date, Double, Engine, Integer, MetaData, Table, delete, insert, select

from ops_pipeline.database.engine import reading, writing
from ops_pipeline.database.types import ExactDecimal, UtcDateTime

samples = Table(
    "samples",
    MetaData(),
    Column("number", Integer, primary_key=True),
    Column("instant", UtcDateTime),
    Column("day", Date),
    Column("amount", ExactDecimal(10)),
    Column("seconds", Double),
    Column("tokens", BigInteger),
)

# Each example empties the table itself; what an example takes depends on the machine's other load.
on_one_database = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def create_samples(engine: Engine) -> None:
    """Make the table, empty."""
    with writing(engine) as connection:
        samples.create(connection)


def fill(engine: Engine, column: str, values: Sequence[Any]) -> None:
    """Replace all rows by one row per value of one column."""
    with writing(engine) as connection:
        connection.execute(delete(samples))
        if values:
            connection.execute(insert(samples), [{"number": n, column: value} for n, value in enumerate(values)])


def spell(engine: Engine, column: str, *literals: str) -> None:
    """Replace all rows, as a program without this library does: each value is a piece of SQL."""
    with writing(engine) as connection:
        connection.execute(delete(samples))
        for number, literal in enumerate(literals):
            connection.exec_driver_sql(f"INSERT INTO samples (number, {column}) VALUES ({number}, {literal})")


def ask(engine: Engine, expression: Any) -> Any:
    """The value of an expression over all rows."""
    with reading(engine) as connection:
        return connection.execute(select(expression).select_from(samples)).scalar_one()


def ask_each(engine: Engine, *expressions: Any) -> list[Any]:
    """The values of expressions for each row in order; a tuple per row when there are several."""
    with reading(engine) as connection:
        found = connection.execute(select(*expressions).select_from(samples).order_by(samples.c.number)).all()
    return [row[0] if len(expressions) == 1 else tuple(row) for row in found]


def as_read(engine: Engine, expression: str) -> list[Any]:
    """What a reader gets who sends SQL without this library's types."""
    with reading(engine) as connection:
        return list(connection.exec_driver_sql(f"SELECT {expression} FROM samples ORDER BY number").scalars())
