"""Pipelines through Dagster: the job, the sensor, and what the asset shows, with the real queue."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dagster import (
    AssetKey,
    AssetRecordsFilter,
    DagsterInstance,
    DagsterRunStatus,
    ExecuteInProcessResult,
    SensorResult,
)
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import Connection, Engine

from ops_pipeline.analysis.claiming import claim
from ops_pipeline.analysis.ending import finish
from ops_pipeline.analysis.operating import cancel_tasks
from ops_pipeline.analysis.pipelines.control import cancel, pause, submit_pipeline
from ops_pipeline.analysis.pipelines.definition import read_definition
from ops_pipeline.analysis.pipelines.tables import pipeline_events, pipelines
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.states import Result, Task, failed, succeeded
from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.defs.analysis import pipelines as defs
from ops_pipeline.defs.analysis.pipelines import JOB, PIPELINES
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline_tests.analysis.pipelines.lab import (
    application,
    definition,
    events_of,
    job_statuses,
    row_of,
    status,
    step_over,
    submitted,
    tasks_of,
    unfinished,
)
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.usage.calls import execute, rows

SENSOR = "pipelines_sensor"
EXAMPLE = Path(__file__).parents[3] / "docs" / "pipelines.example.yaml"


@pytest.fixture
def home(engine: Engine, instance: DagsterInstance) -> Deployment:
    """A deployment."""
    return deployment(engine, instance)


@pytest.fixture
def small(sqlite_engine: Engine, instance: DagsterInstance) -> Deployment:
    """The same on SQLite only, for what has nothing to do with the database."""
    return deployment(sqlite_engine, instance)


def well(task: Task) -> Result:
    """A service that does everything."""
    return succeeded(task, {"summary": {"total_findings": 0}})


def end_in(connection: Connection, results: list[Result]) -> None:
    finish(connection, "worker", results, policy=Policy(), now=database_now(connection), jitter=random.random)


def work(engine: Engine, service: Callable[[Task], Result] = well, batch: int = 2) -> int:
    """What a worker does, once: claim, do, end. How many tasks there were."""
    with writing(engine) as connection:
        tasks = claim(connection, "worker", batch, policy=Policy(), now=database_now(connection))
    results = [service(task) for task in tasks]
    with writing(engine) as connection:
        end_in(connection, results)
    return len(tasks)


def skipped(result: SensorResult) -> str:
    assert not result.run_requests
    assert result.skip_reason is not None
    return result.skip_reason.skip_message or ""


def told(instance: DagsterInstance) -> list[str]:
    """Every observation of the asset, oldest first."""
    records = instance.fetch_observations(AssetRecordsFilter(AssetKey(PIPELINES)), limit=1000, ascending=True).records
    return [record.asset_observation.description or "" for record in records if record.asset_observation]


def shown(instance: DagsterInstance) -> str:
    """The table that the asset shows."""
    event = instance.get_latest_materialization_event(AssetKey(PIPELINES))
    assert event is not None and event.asset_materialization is not None
    return str(event.asset_materialization.metadata["pipelines"].value)


def failure(result: ExecuteInProcessResult) -> str:
    assert not result.success
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return str(event.step_failure_data.error)


def test_a_pipeline_runs_from_end_to_end_and_what_workers_did_is_told_without_any_run(home: Deployment) -> None:
    """Applications are made, those that were are analysed by two services, and older ones too."""
    for target in ("openai_gpt-4o:1", "anthropic_claude-sonnet:0"):
        application(home.engine, target)
    pipeline = submit_pipeline(home.engine, read_definition(EXAMPLE))

    def moody(task: Task) -> Result:
        broken = task.service == "generation" and task.options["template_slug"] == "chat_room"
        return failed(task, "no such model") if broken and "gpt" in task.target else well(task)

    while unfinished(home.engine, pipeline):
        assert work(home.engine, moody), "every unfinished task can be claimed"
    assert status(home.engine, pipeline) == "partial_success"
    assert [job_statuses(home.engine, pipeline, step) for step in range(3)] == [
        ["completed", "failed", "completed", "completed"],
        ["completed", "skipped", "completed", "completed"],
        ["completed", "completed"],
    ]
    assert {task["service"] for task in tasks_of(home.engine, pipeline, step=1)} == {"unified"}
    assert skipped(home.sense(SENSOR)).startswith(
        "Nothing is due for 0 unfinished pipelines; advances and transitions told: 9"
    )
    words = [line.partition(": ")[2] for line in told(home.instance)]
    assert words[0] == "pending -> running"
    assert words[-1] == "running -> partial_success"
    assert "analysis: pending -> running (1 of 4 jobs skipped: no application: job 1 of generation failed)" in words
    assert sum("advanced" in line for line in words) == 1, "advances between two looks are told together"
    assert "two models compared" in shown(home.instance) and "100%" in shown(home.instance)
    assert home.instance.get_runs() == []
    assert skipped(home.sense(SENSOR)) == "Nothing is due for 0 unfinished pipelines; advances and transitions told: 0."


def test_what_no_worker_did_is_done_by_a_run_that_shows_it(home: Deployment) -> None:
    application(home.engine, "gpt:1")
    with writing(home.engine) as connection:
        connection.execute(pipelines.insert(), [{"id": "mine", "definition": definition(step_over("gpt:1"))}])
    (request,) = home.sense(SENSOR).run_requests or []
    # A key is launched once only.
    assert request.run_key is None
    assert home.run_requests([request], JOB) == [True]
    assert status(home.engine, "mine") == "running"
    (outcome,) = rows(home.engine, job_outcomes)
    assert (outcome["job"], outcome["scanned"], outcome["changed"]) == (JOB, 1, 1)
    assert told(home.instance)[0] == "nightly: pending -> running"
    assert "running" in shown(home.instance)
    assert skipped(home.sense(SENSOR)).startswith(
        "Nothing is due for 1 unfinished pipeline; advances and transitions told: 0"
    )


def test_a_dry_run_shows_what_is_due_and_changes_nothing(home: Deployment) -> None:
    pipeline = submitted(home.engine)
    execute(home.engine, "UPDATE analysis_tasks SET status = 'completed'")
    before = rows(home.engine, pipeline_events)
    result = home.run_job(JOB, apply_pipelines={"dry_run": True})
    assert result.success
    (plan,) = [
        event.step_output_data.metadata
        for event in result.all_events
        if event.event_type_value == "STEP_OUTPUT" and event.step_key == "plan_pipelines"
    ]
    assert plan["due"].value == 1
    assert f"| {pipeline} | advance | running | tasks ended unseen |" in str(plan["changes"].value)
    assert (rows(home.engine, pipeline_events), rows(home.engine, job_outcomes)) == (before, [])
    assert job_statuses(home.engine, pipeline)[:2] == ["running", "running"]


def test_the_second_run_finds_nothing(home: Deployment) -> None:
    pipeline = submitted(home.engine)
    execute(home.engine, "UPDATE analysis_tasks SET status = 'completed'")
    assert home.run_job(JOB).success
    before = rows(home.engine, pipelines), events_of(home.engine, pipeline)
    assert home.run_job(JOB).success
    assert (rows(home.engine, pipelines), events_of(home.engine, pipeline)) == before
    assert [row["changed"] for row in rows(home.engine, job_outcomes)] == [1, 0]


def test_a_deadline_cancels_the_running_tasks_and_fails_the_pipeline(home: Deployment) -> None:
    application(home.engine, "gpt:1")
    pipeline = submitted(home.engine, step_over("gpt:1"), deadline_minutes=30)
    execute(home.engine, "UPDATE pipelines SET deadline_at = created_at")
    assert home.run_requests(home.sense(SENSOR).run_requests or [], JOB) == [True]
    assert status(home.engine, pipeline) == "failed"
    (task,) = tasks_of(home.engine, pipeline)
    assert task["status"] == "cancelled"
    assert task["error_message"].startswith("its pipeline is stopped: its deadline passed at 20")


def test_tasks_of_a_paused_pipeline_are_not_claimed(home: Deployment) -> None:
    pipeline = submitted(home.engine)
    pause(home.engine, pipeline)
    assert work(home.engine) == 0
    assert skipped(home.sense(SENSOR)).startswith("Nothing is due for 1 unfinished pipeline")
    assert "paused" in shown(home.instance)


def test_cancelling_reaches_children_and_ends_with_the_running_ones(home: Deployment) -> None:
    application(home.engine, "gpt:1")
    pipeline = submitted(home.engine, step_over("gpt:1", services=["static-analyzer", "ai-analyzer"]))
    with writing(home.engine) as connection:
        (task,) = claim(connection, "worker", 1, policy=Policy(), now=database_now(connection))
    assert cancel(home.engine, pipeline, cancel_tasks) == 1
    assert status(home.engine, pipeline) == "running"
    with writing(home.engine) as connection:
        end_in(connection, [well(task)])
    assert status(home.engine, pipeline) == "cancelled"
    assert {row["status"] for row in tasks_of(home.engine, pipeline)} == {"cancelled"}


def test_a_run_with_a_pipeline_that_cannot_be_advanced_does_the_others_and_fails(home: Deployment) -> None:
    broken, sound = submitted(home.engine), submitted(home.engine)
    execute(home.engine, "UPDATE analysis_tasks SET status = 'completed'")
    execute(home.engine, "DELETE FROM pipeline_steps WHERE pipeline_id = :id", id=broken)
    result = home.run_job(JOB)
    assert f"1 pipeline could not be advanced. {broken}: " in failure(result)
    assert job_statuses(home.engine, sound)[:2] == ["completed", "completed"]
    (outcome,) = rows(home.engine, job_outcomes)
    assert (outcome["status"], outcome["failed"], outcome["changed"]) == ("failed", 1, 1)
    assert any("generation" in line for line in told(home.instance))


def test_a_job_that_keeps_failing_rests_and_what_workers_did_is_told_all_the_same(small: Deployment) -> None:
    broken = submitted(small.engine)
    execute(small.engine, "DELETE FROM pipeline_steps WHERE pipeline_id = :id", id=broken)
    for _ in range(2):
        assert home_run_fails(small)
    submitted(small.engine)
    assert skipped(small.sense(SENSOR)).startswith("1 pipeline is due, but the last runs failed: tried again at ")
    assert any("generation" in line for line in told(small.instance))


def home_run_fails(home: Deployment) -> bool:
    return not home.run_job(JOB).success


@pytest.mark.parametrize("at_work", [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED])
def test_while_a_run_is_on_its_way_nothing_is_looked_at(small: Deployment, at_work: DagsterRunStatus) -> None:
    run = create_run_for_test(small.instance, JOB, status=at_work)
    assert skipped(small.sense(SENSOR)) == f"{JOB} is {at_work.value.lower()} (run {run.run_id[:8]})."


def test_when_the_database_fails_a_run_is_launched_so_that_it_is_seen(small: Deployment) -> None:
    execute(small.engine, "ALTER TABLE pipelines RENAME TO gone")
    assert small.run_requests(small.sense(SENSOR).run_requests or [], JOB) == [False]


def test_advances_alone_are_told_once_a_minute(small: Deployment) -> None:
    """Under load, what was told at every look filled Dagster's storage, from which it is never deleted."""
    submitted(small.engine)
    small.sense(SENSOR)
    before = told(small.instance)
    work(small.engine)
    assert skipped(small.sense(SENSOR)).endswith("; advances and transitions told: 0.")
    assert told(small.instance) == before
    execute(small.engine, "UPDATE pipeline_events SET at = datetime(at, '-1 minute') WHERE NOT told")
    assert skipped(small.sense(SENSOR)).endswith("; advances and transitions told: 1.")
    assert told(small.instance)[len(before) :] == ["nightly: advanced (2 jobs ended, 2 submitted; 25% done)"]


def test_what_dies_between_telling_and_marking_tells_again(home: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marked first, a transition that Dagster never heard of would be lost."""
    pipeline = submitted(home.engine)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(defs, "mark_told", die)
        with pytest.raises(KeyboardInterrupt):
            home.sense(SENSOR)
    first = told(home.instance)
    assert first[0] == "nightly: pending -> running"
    home.sense(SENSOR)
    assert told(home.instance) == first * 2
    assert row_of(home.engine, pipeline)["status"] == "running"


def test_the_table_tells_how_far_each_pipeline_is(home: Deployment) -> None:
    pipeline = submitted(home.engine)
    work(home.engine)
    home.sense(SENSOR)
    (line,) = [line for line in shown(home.instance).splitlines() if pipeline in line]
    started = f"{datetime.now(UTC):%d %b}"
    assert [cell.strip() for cell in line.split("|")][1:7] == [
        pipeline,
        "nightly",
        "running",
        "25%, 2 of 8 jobs",
        "",
        "generation",
    ]
    assert started in line or f"{datetime.now(UTC) - timedelta(days=1):%d %b}" in line
