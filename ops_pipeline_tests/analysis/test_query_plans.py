"""What the queue reads of a table that is nearly all history: no claim grows slower with every task that ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, select

from ops_pipeline.analysis.leases import heartbeat
from ops_pipeline.analysis.maintenance.task_store import read_unknown
from ops_pipeline.analysis.measures import measure_analysis
from ops_pipeline.analysis.recovery.due import count_due
from ops_pipeline.analysis.states import succeeded
from ops_pipeline.analysis.tables import analysis_tasks
from ops_pipeline.analysis.worker.wanted import look
from ops_pipeline.database.engine import connect, database_now, reading, writing
from ops_pipeline.database.expressions import is_any_of
from ops_pipeline.database.migrate import migrate
from ops_pipeline_tests.analysis.queueing import NOON, POLICY, end, take
from ops_pipeline_tests.servers import PostgresServer

pytestmark = pytest.mark.xdist_group("a history of tasks")

UNFINISHED = [f"analysis_tasks_{name}" for name in ("claim", "running", "transient", "created", "unknown")]
OLD = """
    INSERT INTO analysis_tasks (id, service, target, status, error_class, attempt, created_at, completed_at)
    SELECT 'old-' || n, 'static', 'acme/app1',
           CASE WHEN n / 50 * 50 = n THEN 'failed' ELSE 'completed' END,
           CASE WHEN n / 50 * 50 = n THEN 'permanent' ELSE '' END,
           1, '2026-03-01 00:00:00+00:00', '2026-03-01 00:01:00+00:00'
"""
NUMBERS = {
    "postgresql": (OLD + " FROM generate_series(1, 100000) AS n").replace("'2026", "timestamptz '2026"),
    "sqlite": f"WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 100000) {OLD} FROM s",
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def history(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> Iterator[Engine]:
    """A hundred thousand tasks that have ended, and two hundred that wait."""
    on_file = f"sqlite:///{tmp_path_factory.mktemp('history') / 'operations.db'}"
    engine = connect(on_file if request.param == "sqlite" else postgres_server.new_database())
    migrate(engine)
    with writing(engine) as connection:
        connection.exec_driver_sql(NUMBERS[engine.dialect.name])
        rows = [{"id": f"new-{n}", "service": "static", "target": "acme/app1", "created_at": NOON} for n in range(200)]
        connection.execute(insert(analysis_tasks), rows)
        connection.exec_driver_sql("ANALYZE")
    yield engine
    engine.dispose()


def plans_of(engine: Engine, work: Callable[[], object]) -> dict[str, str]:
    """The plans of the statements on `analysis_tasks` that are sent meanwhile."""
    statements: dict[str, Any] = {}

    def remember(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "analysis_tasks" in statement:
            statements[statement] = parameters

    event.listen(engine, "before_cursor_execute", remember)
    work()
    event.remove(engine, "before_cursor_execute", remember)
    explain = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with reading(engine) as connection:
        return {
            statement: "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {statement}", values))
            for statement, values in statements.items()
        }


def assert_history_is_left_alone(plans: dict[str, str]) -> None:
    assert plans
    for statement, plan in plans.items():
        assert not _reads_everything(plan), (statement, plan)


def _reads_everything(plan: str) -> bool:
    """A sequential scan, or one of a whole index, unless that holds only what is unfinished."""
    lines = [*plan.splitlines(), ""]
    for line, following in pairwise(lines):
        whole = "using analysis_tasks_pkey" in line and "Index Cond" not in following
        scan = line.startswith(("SCAN analysis_tasks", "SCAN child")) and not any(name in line for name in UNFINISHED)
        if whole or scan or "Seq Scan on analysis_tasks" in line:
            return True
    return False


@pytest.mark.parametrize("policy", [POLICY, replace(POLICY, per_service=50, per_target=50)], ids=["free", "limited"])
def test_a_claim_goes_through_the_partial_index_of_what_waits(history: Engine, policy: Any) -> None:
    claimed: list[Any] = []
    plans = plans_of(history, lambda: claimed.extend(take(history, "worker", 20, now=NOON, policy=policy)))
    assert len(claimed) == 20
    assert_history_is_left_alone(plans)
    (picked,) = (plan for statement, plan in plans.items() if "UPDATE analysis_tasks" in statement)
    assert "analysis_tasks_claim" in picked
    assert_history_is_left_alone(plans_of(history, lambda: end(history, *map(succeeded, claimed), owner="worker")))


def test_heartbeats_looks_for_work_and_recovery_leave_history_alone(history: Engine) -> None:
    def heartbeats_and_looks() -> None:
        with writing(history) as connection:
            heartbeat(connection, "worker", POLICY, database_now(connection))
        with reading(history) as connection:
            assert look(connection, POLICY, 100, NOON).claimable["static"] > 90
        assert sum(count_due(history, POLICY).values()) == 0

    assert_history_is_left_alone(plans_of(history, heartbeats_and_looks))


def test_monitoring_and_the_look_for_unknown_statuses_leave_history_alone(history: Engine) -> None:
    def looks() -> None:
        with reading(history) as connection:
            measure_analysis(connection, NOON)
            assert read_unknown(connection, 100) == []

    assert_history_is_left_alone(plans_of(history, looks))


def test_many_texts_are_looked_up_one_by_one(history: Engine) -> None:
    """Maintenance read the whole table for each page of 16,000 tasks: the planner had counted them."""
    names = [f"old-{number}" for number in range(1, 100_000, 6)]

    def look_up() -> None:
        with reading(history) as connection:
            found = connection.execute(select(analysis_tasks).where(is_any_of(analysis_tasks.c.id, names))).all()
            assert len(found) == len(names)

    assert_history_is_left_alone(plans_of(history, look_up))
