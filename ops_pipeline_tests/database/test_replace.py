"""A period's rows become those of a query, and what is right already is not written again."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Column, Engine, MetaData, Select, Table, Text, and_, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.database.engine import reading, rewriting, writing
from ops_pipeline.database.replace import Replaced, insert_rows, replace_rows, upsert
from ops_pipeline.database.types import ExactDecimal, UtcDateTime
from ops_pipeline_tests.database.samples import on_one_database

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def _table(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("hour", UtcDateTime, primary_key=True),
        Column("user_id", Text, primary_key=True),
        Column("calls", BigInteger, nullable=False),
        Column("credits", ExactDecimal(10), nullable=False),
        sqlite_with_rowid=False,
    )


metadata = MetaData()
roll_up, source = _table("roll_up"), _table("source")

Key = tuple[int, str]
Values = tuple[int, Decimal]
keys = st.tuples(st.integers(0, 5), st.sampled_from(["", "anna", "bob", "'; DROP TABLE roll_up"]))
values = st.tuples(st.integers(0, 3), st.decimals(0, 2, places=10))


@pytest.fixture
def tables(engine: Engine) -> Engine:
    with writing(engine) as connection:
        metadata.create_all(connection)
    return engine


def as_rows(content: dict[Key, Values]) -> list[dict[str, Any]]:
    return [
        {"hour": NOON + hour * HOUR, "user_id": user, "calls": calls, "credits": credits}
        for (hour, user), (calls, credits) in content.items()
    ]


def put(engine: Engine, table: Table, content: dict[Key, Values]) -> None:
    with writing(engine) as connection:
        connection.execute(delete(table))
        if content:
            connection.execute(insert(table), as_rows(content))


def content_of(engine: Engine, table: Table = roll_up) -> dict[Key, Values]:
    with reading(engine) as connection:
        return {
            (int((row.hour - NOON) / HOUR), row.user_id): (row.calls, row.credits)
            for row in connection.execute(select(table))
        }


def rows_within(table: Table, first: int, last: int) -> Any:
    return and_(table.c.hour >= NOON + first * HOUR, table.c.hour < NOON + last * HOUR)


def replace(engine: Engine, first: int = 0, last: int = 6, query: Select[Any] | None = None) -> Replaced:
    """Replace the hours from `first` up to `last` by what `source` has in them."""
    rows = select(*source.c).where(rows_within(source, first, last)) if query is None else query
    with rewriting(engine, roll_up) as connection:
        return replace_rows(connection, roll_up, rows, rows_within(roll_up, first, last))


def row_versions(engine: Engine) -> dict[Key, str]:
    """PostgreSQL's own mark of the transaction that wrote each row last."""
    with reading(engine) as connection:
        found = connection.exec_driver_sql("SELECT hour, user_id, xmin::text FROM roll_up").all()
    return {(int((hour - NOON) / HOUR), user): xmin for hour, user, xmin in found}


def content(*rows: tuple[int, str, int, str]) -> dict[Key, Values]:
    return {(hour, user): (calls, Decimal(credits)) for hour, user, calls, credits in rows}


def test_new_different_and_vanished_rows_are_written_and_counted(tables: Engine) -> None:
    put(tables, roll_up, content((0, "anna", 1, "0.1"), (0, "bob", 2, "0.2"), (1, "anna", 3, "0.3")))
    put(tables, source, content((0, "anna", 1, "0.1"), (0, "bob", 5, "0.2"), (2, "carl", 1, "0.0000000001")))
    assert replace(tables) == Replaced(written=2, deleted=1)
    assert content_of(tables) == content_of(tables, source)


def test_a_second_time_writes_nothing(tables: Engine) -> None:
    put(tables, source, content((0, "anna", 1, "0.1"), (1, "bob", 2, "12345678.0123456789")))
    assert replace(tables) == Replaced(written=2)
    again = replace(tables)
    assert again == Replaced()
    assert not again.anything


@pytest.mark.parametrize("changed", [(0, "anna", 2, "0.1"), (0, "anna", 1, "0.1000000001")])
def test_a_difference_in_any_one_column_is_written(tables: Engine, changed: tuple[int, str, int, str]) -> None:
    put(tables, roll_up, content((0, "anna", 1, "0.1"), (0, "bob", 1, "0.1")))
    put(tables, source, content(changed, (0, "bob", 1, "0.1")))
    assert replace(tables) == Replaced(written=1)
    assert content_of(tables) == content_of(tables, source)


def test_other_periods_are_not_touched(tables: Engine) -> None:
    """A replacement of one day deleted the roll-up of every other."""
    before = content((0, "anna", 1, "0.1"), (1, "anna", 2, "0.2"), (2, "anna", 3, "0.3"))
    put(tables, roll_up, before)
    put(tables, source, content((0, "anna", 9, "9"), (2, "anna", 9, "9")))
    assert replace(tables, 1, 2) == Replaced(deleted=1)
    assert content_of(tables) == {key: value for key, value in before.items() if key[0] != 1}


def test_a_query_without_rows_empties_the_period(tables: Engine) -> None:
    put(tables, roll_up, content((0, "anna", 1, "0.1"), (7, "anna", 1, "0.1")))
    put(tables, source, {})
    assert replace(tables) == Replaced(deleted=1)
    assert content_of(tables) == content((7, "anna", 1, "0.1"))


def test_two_replacements_in_one_transaction_do_not_see_each_others_stage(tables: Engine) -> None:
    put(tables, source, content((0, "anna", 1, "0.1"), (1, "anna", 2, "0.2")))
    total = Replaced()
    with rewriting(tables, roll_up) as connection:
        for hour in (0, 1):
            rows = select(*source.c).where(rows_within(source, hour, hour + 1))
            total += replace_rows(connection, roll_up, rows, rows_within(roll_up, hour, hour + 1))
    assert total == Replaced(written=2)
    assert content_of(tables) == content_of(tables, source)


def test_a_replacement_leaves_no_temporary_table_behind_and_a_failed_one_can_be_repeated(tables: Engine) -> None:
    """The connection goes back to the pool: whatever it keeps, the next transaction meets."""
    put(tables, source, content((0, "anna", 1, "0.1")))
    twice = select(*source.c).union_all(select(*source.c)).subquery()
    for _ in range(2):
        with pytest.raises(SQLAlchemyError, match=r"(?i)unique|cannot affect row a second time"):
            replace(tables, query=select(*twice.c))
    assert replace(tables) == Replaced(written=1)
    with reading(tables) as connection:
        catalogue = "sqlite_temp_master WHERE type = 'table'"
        if tables.dialect.name == "postgresql":
            catalogue = "pg_class WHERE relname = 'staged_roll_up'"
        assert connection.exec_driver_sql(f"SELECT COUNT(*) FROM {catalogue}").scalar_one() == 0


def test_an_aborted_replacement_changes_nothing(tables: Engine) -> None:
    before = content((0, "anna", 1, "0.1"))
    put(tables, roll_up, before)
    put(tables, source, content((0, "bob", 1, "0.1")))
    with pytest.raises(KeyboardInterrupt), rewriting(tables, roll_up) as connection:
        replace_rows(connection, roll_up, select(*source.c), rows_within(roll_up, 0, 6))
        raise KeyboardInterrupt
    assert content_of(tables) == before


def test_postgresql_does_not_rewrite_rows_that_are_there_unchanged(postgres_engine: Engine) -> None:
    """Deleting and inserting 720 unchanged hours wrote 986 MB of log and doubled the table."""
    with writing(postgres_engine) as connection:
        metadata.create_all(connection)
    put(postgres_engine, source, content(*((hour, "anna", hour, "0.1") for hour in range(6))))
    replace(postgres_engine)
    before = row_versions(postgres_engine)
    assert replace(postgres_engine) == Replaced()
    assert row_versions(postgres_engine) == before

    put(postgres_engine, source, content(*((hour, "anna", 9 if hour == 3 else hour, "0.1") for hour in range(6))))
    assert replace(postgres_engine) == Replaced(written=1)
    after = row_versions(postgres_engine)
    assert {key for key in before if before[key] != after[key]} == {(3, "anna")}


@given(before=st.dictionaries(keys, values, max_size=12), wanted=st.dictionaries(keys, values, max_size=12))
@on_one_database
def test_whatever_was_there_the_period_becomes_what_is_wanted(
    tables: Engine, before: dict[Key, Values], wanted: dict[Key, Values]
) -> None:
    put(tables, roll_up, before)
    put(tables, source, wanted)
    replaced = replace(tables, 1, 4)

    def inside(rows: Iterable[Key]) -> set[Key]:
        return {key for key in rows if 1 <= key[0] < 4}

    kept = {key: value for key, value in before.items() if key not in inside(before)}
    assert content_of(tables) == kept | {key: wanted[key] for key in inside(wanted)}
    assert replaced.written == sum(before.get(key) != wanted[key] for key in inside(wanted))
    assert replaced.deleted == len(inside(before) - inside(wanted))
    assert replace(tables, 1, 4) == Replaced()


def test_inserting_into_an_empty_period_counts_its_rows(tables: Engine) -> None:
    put(tables, source, content((0, "anna", 1, "0.1"), (1, "anna", 2, "0.2")))
    with rewriting(tables, roll_up) as connection:
        assert insert_rows(connection, roll_up, select(*source.c)) == Replaced(written=2)
    assert content_of(tables) == content_of(tables, source)


def test_an_upsert_replaces_by_key_and_an_empty_one_does_nothing(tables: Engine) -> None:
    put(tables, roll_up, content((0, "anna", 1, "0.1"), (0, "bob", 1, "0.1")))
    with writing(tables) as connection:
        upsert(connection, roll_up, as_rows(content((0, "anna", 2, "0.2"), (1, "anna", 3, "0.3"))))
        upsert(connection, roll_up, [])
    assert content_of(tables) == content((0, "anna", 2, "0.2"), (0, "bob", 1, "0.1"), (1, "anna", 3, "0.3"))
