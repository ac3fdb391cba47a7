"""The job `recover_analysis_tasks` and its schedule, through Dagster itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from dagster import DagsterInstance, ExecuteInProcessResult, RunRequest, SkipReason
from sqlalchemy import Engine, select

import ops_pipeline.defs.analysis.recovery as recovery_defs
from ops_pipeline.analysis.breakers import Health
from ops_pipeline.analysis.states import TRANSIENT, failed
from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline_tests.analysis.queueing import NOON, add, add_row, end, row_of, take
from ops_pipeline_tests.defs.deployment import Deployment, deployment

JOB = "recover_analysis_tasks"
OPS = ("recover_expired_leases", "recover_transient_failures", "recover_parents", "recover_created_tasks")


def ago(engine: Engine, seconds: float) -> datetime:
    with reading(engine) as connection:
        return database_now(connection) - timedelta(seconds=seconds)


def metadata_of(result: ExecuteInProcessResult, op: str) -> dict[str, Any]:
    (event,) = [one for one in result.get_step_success_events() if one.step_key == op]
    outputs = [one for one in result.all_events if one.is_successful_output and one.step_key == event.step_key]
    return {name: value.value for name, value in outputs[0].step_output_data.metadata.items()}


def in_need(engine: Engine) -> dict[str, str]:
    """A task for each pass, by the op that finds it."""
    moment = ago(engine, 400)
    lost = add(engine, now=moment, services=["leased"])
    take(engine, now=moment)
    gone = add(engine, now=moment)
    end(engine, *(failed(task, "refused", TRANSIENT) for task in take(engine, now=moment)), now=moment)
    add_row(engine, id="parent", service="unified", status="running")
    add_row(engine, id="child", parent_id="parent", status="completed", completed_at=NOON)
    add_row(engine, id="half", status="created", created_at=ago(engine, 1000))
    return dict(zip(OPS, (lost, gone, "parent", "half"), strict=True))


def all_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe_services(*_: object) -> Any:
        return lambda services: {name: Health(healthy=True) for name in services}

    monkeypatch.setattr(recovery_defs, "probe_services", probe_services)


@pytest.fixture
def lab(engine: Engine, instance: DagsterInstance) -> Deployment:
    return deployment(engine, instance)


def test_each_pass_recovers_its_own_and_tells_its_own_counts(lab: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    all_well(monkeypatch)
    tasks = in_need(lab.engine)
    result = lab.run_job(JOB)
    assert result.success
    assert {op: metadata_of(result, op)["changed"] for op in OPS} == dict.fromkeys(OPS, 1)
    statuses = {op: row_of(lab.engine, task)["status"] for op, task in tasks.items()}
    assert list(statuses.values()) == ["pending", "pending", "completed", "pending"]
    with reading(lab.engine) as connection:
        rows = connection.execute(select(job_outcomes.c.details, job_outcomes.c.changed)).all()
    assert {row.details["pass"]: row.changed for row in rows} == dict.fromkeys(OPS, 1)
    again = lab.run_job(JOB)
    assert {metadata_of(again, op)["changed"] for op in OPS} == {0}


def test_a_pass_that_fails_makes_the_run_red_and_stops_no_other(
    lab: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One early return, and failed tasks were never looked at."""

    def probe_services(*_: object) -> Any:
        raise RuntimeError("no way to ask")

    monkeypatch.setattr(recovery_defs, "probe_services", probe_services)
    tasks = in_need(lab.engine)
    result = lab.run_job(JOB)
    assert not result.success
    assert [event.step_key for event in result.get_step_failure_events()] == ["recover_transient_failures"]
    statuses = {op: row_of(lab.engine, task)["status"] for op, task in tasks.items()}
    assert list(statuses.values()) == ["pending", "failed", "completed", "pending"]


def test_a_dry_run_shows_the_plans_and_changes_nothing(lab: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    all_well(monkeypatch)
    tasks = in_need(lab.engine)
    before = {task: row_of(lab.engine, task) for task in tasks.values()}
    result = lab.run_job(JOB, **{op: {"dry_run": True} for op in OPS})
    assert result.success
    for op, task in tasks.items():
        assert task in metadata_of(result, op)["plan"]
    assert {task: row_of(lab.engine, task) for task in tasks.values()} == before
    with reading(lab.engine) as connection:
        assert connection.execute(select(job_outcomes)).all() == []


def test_the_schedule_launches_a_run_when_something_is_due_and_else_none(lab: Deployment) -> None:
    skipped = lab.tick(f"{JOB}_schedule", NOON)
    assert isinstance(skipped, SkipReason)
    assert skipped.skip_message is not None
    assert skipped.skip_message.startswith("No lease has run out")
    add_row(lab.engine, id="half", status="created", created_at=ago(lab.engine, 1000))
    (request,) = lab.tick(f"{JOB}_schedule", NOON)
    assert isinstance(request, RunRequest)
    assert lab.run_requests([request], JOB) == [True]
    assert isinstance(lab.tick(f"{JOB}_schedule", NOON), SkipReason)
