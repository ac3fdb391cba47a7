"""One row per run: what the job looked at, changed and could not do, on the database's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import StatementError

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline.reconcile import Outcome

STARTED = datetime(2026, 3, 10, 12, 0, 0, 500_000, tzinfo=UTC)


def record(engine: Engine, outcome: Outcome | None = None, **values: Any) -> None:
    given = {"job": "cleanup_stale_model_calls", "run_id": "run-1", "started_at": STARTED, "details": {}} | values
    record_outcome(engine, outcome=outcome or Outcome(), **given)


def recorded(engine: Engine) -> list[Any]:
    with reading(engine) as connection:
        return list(connection.execute(select(job_outcomes).order_by(job_outcomes.c.id)))


def test_an_outcome_is_recorded_with_its_reasons_and_details(engine: Engine) -> None:
    outcome = Outcome(scanned=10, changed=4, unchanged=5, skipped=1, reasons={"processing for 31 minutes": 4})
    record(engine, outcome, details={"dry_run": False, "limit": "30 min - naïve"})
    (row,) = recorded(engine)
    assert (row.job, row.run_id, row.started_at) == ("cleanup_stale_model_calls", "run-1", STARTED)
    assert (row.status, row.scanned, row.changed, row.skipped, row.failed) == ("success", 10, 4, 1, 0)
    assert row.details == {
        "reasons": {"processing for 31 minutes": 4},
        "dry_run": False,
        "limit": "30 min - naïve",
    }


def test_an_outcome_with_failures_is_recorded_as_failed(engine: Engine) -> None:
    record(engine, Outcome(scanned=10, changed=9, failed=1))
    assert recorded(engine)[0].status == "failed"


def test_the_end_of_a_run_is_told_by_the_databases_clock(engine: Engine) -> None:
    with reading(engine) as connection:
        before = database_now(connection)
    record(engine)
    with reading(engine) as connection:
        after = database_now(connection)
    assert before <= recorded(engine)[0].finished_at <= after
    assert after - before < timedelta(seconds=30)


def test_each_run_has_a_row_of_its_own_in_the_order_of_their_ends(engine: Engine) -> None:
    for run in ("run-1", "run-2", "run-2"):
        record(engine, run_id=run)
    rows = recorded(engine)
    assert [row.run_id for row in rows] == ["run-1", "run-2", "run-2"]
    assert len({row.id for row in rows}) == 3


def test_counts_beyond_32_bits_are_kept(engine: Engine) -> None:
    record(engine, Outcome(scanned=2**40))
    assert recorded(engine)[0].scanned == 2**40


@pytest.mark.parametrize(
    "values", [{"details": {"when": STARTED}}, {"started_at": STARTED.replace(tzinfo=None)}], ids=["no JSON", "naive"]
)
def test_what_cannot_be_recorded_is_an_error_and_leaves_no_row(engine: Engine, values: dict[str, Any]) -> None:
    # PostgreSQL's driver writes JSON itself, and SQLAlchemy passes on what it raises.
    with pytest.raises((StatementError, TypeError)):
        record(engine, **values)
    assert recorded(engine) == []
