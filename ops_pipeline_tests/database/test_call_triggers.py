"""What the database itself does for writers of `model_calls`: defaults, and `updated_at` on its own clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError

from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.usage.tables import COUNT_COLUMNS, model_calls

OLD = "2020-01-01 00:00:00"
TOLERANCE = timedelta(seconds=3)
"""SQLite leaves an `updated_at` of the last two seconds as it is."""


def run(engine: Engine, *statements: str) -> None:
    """Send SQL as another program does."""
    with writing(engine) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def call(engine: Engine, call_id: str = "a") -> Any:
    with reading(engine) as connection:
        return connection.execute(select(model_calls).where(model_calls.c.id == call_id)).one()


def assert_touched(engine: Engine, call_id: str = "a") -> None:
    with reading(engine) as connection:
        now = database_now(connection)
    assert now - TOLERANCE < call(engine, call_id).updated_at <= now


def insert_sql(call_id: str = "a", **columns: str) -> str:
    values = {"id": f"'{call_id}'", "model": "'gpt'", "called_at": "'2026-03-10T12:30:00+02:00'"} | columns
    return f"INSERT INTO model_calls ({', '.join(values)}) VALUES ({', '.join(values.values())})"


def age(engine: Engine, call_id: str = "a") -> None:
    """Make a call look long unchanged, past the triggers."""
    statement = f"UPDATE model_calls SET updated_at = '{OLD}' WHERE id = '{call_id}'"
    if engine.dialect.name == "postgresql":
        run(
            engine,
            "ALTER TABLE model_calls DISABLE TRIGGER USER",
            statement,
            "ALTER TABLE model_calls ENABLE TRIGGER USER",
        )
    else:
        with reading(engine) as connection:
            triggers = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            kept = connection.exec_driver_sql(triggers).all()
        run(engine, *(f"DROP TRIGGER {name}" for name, _ in kept), statement, *(sql for _, sql in kept))
    assert call(engine, call_id).updated_at == datetime(2020, 1, 1, tzinfo=UTC)


def test_a_writer_needs_to_set_only_id_model_and_called_at(engine: Engine) -> None:
    run(engine, insert_sql())
    found = call(engine)
    assert found.called_at == datetime(2026, 3, 10, 10, 30, tzinfo=UTC)
    assert (found.user_id, found.app_id, found.provider, found.credential_id) == ("", "", "", "")
    assert (found.type, found.status) == ("chatCompletion", "processing")
    assert [getattr(found, name) for name in COUNT_COLUMNS] == [0] * len(COUNT_COLUMNS)
    assert found.credits == Decimal(0)
    assert found.media_seconds == 0
    assert (found.duration_seconds, found.ttfb_ms) == (None, None)
    assert (found.error_reason, found.request_id, found.trace_id) == (None, None, None)
    assert_touched(engine)
    assert abs(found.created_at - found.updated_at) < TOLERANCE


@pytest.mark.parametrize("missing", ["id", "model", "called_at"])
def test_what_a_call_cannot_do_without_is_asked_for(engine: Engine, missing: str) -> None:
    with pytest.raises(IntegrityError, match=missing):
        run(engine, insert_sql(**{missing: "NULL"}))


@pytest.mark.parametrize(
    "given",
    [
        f"'{OLD}'",
        "'2999-12-31 23:59:59'",
        "'2020-01-01T00:00:00Z'",
        "'2999-12-31T23:59:59.999+02:00'",
        "CURRENT_TIMESTAMP",
    ],
)
def test_an_inserted_call_is_changed_now_whatever_its_writer_says(engine: Engine, given: str) -> None:
    """An import carried the times of its source: no look for late calls ever found its rows."""
    run(engine, insert_sql(updated_at=given, created_at=f"'{OLD}'"))
    assert_touched(engine)
    assert call(engine).created_at == datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "change",
    [
        "status = 'success'",
        "status = status",
        "called_at = '2025-01-01 00:00:00'",
        f"status = 'success', updated_at = '{OLD}'",
        "updated_at = updated_at",
        "updated_at = '2999-12-31 23:59:59'",
        "updated_at = '2999-12-31T23:59:59Z'",
    ],
)
def test_an_updated_call_is_changed_now_whether_or_not_its_writer_says_so(engine: Engine, change: str) -> None:
    """Most programs' UPDATEs do not mention the column."""
    run(engine, insert_sql())
    age(engine)
    run(engine, f"UPDATE model_calls SET {change} WHERE id = 'a'")
    assert_touched(engine)


def test_an_upsert_is_a_change_too(engine: Engine) -> None:
    run(engine, insert_sql())
    age(engine)
    run(engine, f"{insert_sql()} ON CONFLICT (id) DO UPDATE SET status = 'failed'")
    assert call(engine).status == "failed"
    assert_touched(engine)


def test_a_replacement_is_a_change_too(sqlite_engine: Engine) -> None:
    run(sqlite_engine, insert_sql())
    age(sqlite_engine)
    run(sqlite_engine, insert_sql(updated_at=f"'{OLD}'").replace("INSERT", "INSERT OR REPLACE"))
    assert_touched(sqlite_engine)


def test_only_the_changed_rows_are_touched(engine: Engine) -> None:
    run(engine, *(insert_sql(name) for name in "abc"))
    for name in "abc":
        age(engine, name)
    run(engine, "UPDATE model_calls SET status = 'success' WHERE id IN ('a', 'c')")
    assert_touched(engine, "a")
    assert_touched(engine, "c")
    assert call(engine, "b").updated_at == datetime(2020, 1, 1, tzinfo=UTC)


def test_each_change_within_one_second_is_later_than_the_one_before(engine: Engine) -> None:
    """A cursor that has seen the first change must find the second."""
    run(engine, insert_sql())
    seen = []
    for tokens in range(3):
        time.sleep(0.01)
        run(engine, f"UPDATE model_calls SET input_tokens = {tokens}")
        seen.append(call(engine).updated_at)
    assert seen[0] < seen[1] < seen[2]
