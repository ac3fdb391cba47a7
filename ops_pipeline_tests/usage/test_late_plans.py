"""The looks for late data stay cheap on tables of millions of calls: they go through the indexes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.database.migrate import migrate
from ops_pipeline.usage.hours import HOUR, Window
from ops_pipeline.usage.late import LateCursor, LatePolicy, compare, look_for_late_calls
from ops_pipeline.usage.progress import first_wanted_hour, future_calls
from ops_pipeline_tests.servers import PostgresServer
from ops_pipeline_tests.usage.calls import at, backdate, call, run, write

# One worker makes the month for all of them.
pytestmark = pytest.mark.xdist_group("a month of calls")

START = at("2026-03-01 00:00")
MONTH = Window(START, START + 720 * HOUR)
RECENT = LateCursor(looked_until=datetime.now(UTC) - timedelta(seconds=30), swept_at=datetime.now(UTC))
LOOK = LatePolicy(overlap=timedelta(minutes=5), sweep_every=timedelta(days=1), sweep_hours=168)
SWEEP = LatePolicy(overlap=timedelta(minutes=5), sweep_every=timedelta(0), sweep_hours=168)

POSTGRESQL_CALLS = """
    INSERT INTO model_calls (id, user_id, model, called_at, status, credits, request_id, updated_at)
    SELECT 'old-' || n, 'user-' || n % 97, 'gpt', timestamptz '2026-03-01 00:00+00' + n * interval '25.92 seconds',
           'success', 0.01, md5(n::text), timestamptz '2026-03-01 00:05+00' + n * interval '25.92 seconds'
    FROM generate_series(0, 99999) AS n
"""
SQLITE_CALLS = """
    WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 19999)
    INSERT INTO model_calls (id, user_id, model, called_at, status, credits)
    SELECT 'old-' || n, 'user-' || n % 97, 'gpt',
           strftime('%Y-%m-%d %H:%M:%S', '2026-03-01', '+' || (n * 129) || ' seconds'), 'success', '0.01'
    FROM numbers
"""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def month(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> Iterator[Engine]:
    """A month of calls that were written in that month, aggregated, and a few written just now."""
    on_file = f"sqlite:///{tmp_path_factory.mktemp('month') / 'operations.db'}"
    engine = connect(on_file if request.param == "sqlite" else postgres_server.new_database())
    migrate(engine)
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text(POSTGRESQL_CALLS))
        else:
            connection.execute(text(SQLITE_CALLS))
    backdate(engine)
    run(engine, *MONTH)
    write(engine, *(call(START + number * HOUR) for number in range(20)))
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    yield engine
    engine.dispose()


@contextmanager
def plans(engine: Engine) -> Iterator[list[str]]:
    """The plans of the statements that read `model_calls` meanwhile."""
    statements: list[tuple[str, Any]] = []

    def remember(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "model_calls" in statement:
            statements.append((statement, parameters))

    found: list[str] = []
    event.listen(engine, "before_cursor_execute", remember)
    yield found
    event.remove(engine, "before_cursor_execute", remember)
    explain = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with reading(engine) as connection:
        for statement, parameters in statements:
            # Of an INSERT, its query: the temporary table that it fills is gone.
            query = statement[statement.index("SELECT") :]
            rows = connection.exec_driver_sql(f"{explain} {query}", parameters)
            found.append("\n".join(str(row[-1]) for row in rows))


def test_the_look_goes_through_the_index_on_the_time_of_writing(month: Engine) -> None:
    with plans(month) as found, reading(month) as connection:
        assert len(look_for_late_calls(connection, RECENT, LOOK).stale) == 20
    touched, compared = found
    assert "model_calls_updated_at" in touched
    assert "model_calls_called" in compared
    for plan in found:
        assert "Seq Scan" not in plan
        assert "SCAN model_calls" not in plan


def test_the_sweep_counts_in_the_index_alone(month: Engine) -> None:
    with plans(month) as found, reading(month) as connection:
        late = look_for_late_calls(connection, RECENT, SWEEP)
    assert len(late.stale) == 20
    _, recent, older, _ = found
    assert late.cursor.sweep_next == MONTH.end - 336 * HOUR
    for plan in (recent, older):
        if month.dialect.name == "postgresql":
            assert "Index Only Scan using model_calls_called_at" in plan
        else:
            assert "SEARCH model_calls USING INDEX model_calls_called_hour" in plan


def test_the_comparison_of_scattered_hours_reads_those_hours(month: Engine) -> None:
    with plans(month) as found, reading(month) as connection:
        compare(connection, [START + number * HOUR for number in range(0, 100, 9)])
    (plan,) = found
    assert "model_calls_called" in plan
    assert "Seq Scan" not in plan
    assert "SCAN model_calls" not in plan


def test_the_first_hour_and_the_future_are_found_at_the_ends_of_the_index(month: Engine) -> None:
    with plans(month) as found, reading(month) as connection:
        assert first_wanted_hour(connection, START) == START
        assert future_calls(connection, MONTH.end) == 0
    for plan in found:
        assert "model_calls_called" in plan
        assert "Seq Scan" not in plan


def test_the_aggregation_of_an_hour_reads_that_hour(month: Engine) -> None:
    with plans(month) as found:
        run(month, MONTH.end - HOUR)
    assert len(found) == 3
    for plan in found:
        assert "model_calls_called" in plan
        assert "Seq Scan on model_calls" not in plan
        assert "SCAN model_calls" not in plan
