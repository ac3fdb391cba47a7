"""The worker as Dagster runs it: its job, its sensor and its check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetCheckKey, AssetKey, DagsterInstance, DagsterRunStatus
from sqlalchemy import Engine, select

from ops_pipeline.analysis.leases import start
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.database.engine import connect, database_now, reading, writing
from ops_pipeline.defs.analysis.worker import _few_lines
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline_tests.analysis.analyzers import Analyzer, analyzer
from ops_pipeline_tests.analysis.working import STATIC, add_task, row_of, status_of
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.servers import free_port

JOB, SENSOR, OP = "execute_analysis_tasks", "pending_analysis_tasks_sensor", "work_on_tasks"


@pytest.fixture
def service() -> Iterator[Analyzer]:
    with analyzer() as running:
        yield running


def deployed(engine: Engine, instance: DagsterInstance, folder: Path, url: str, **settings: Any) -> Deployment:
    values = {"analyzer_urls": {STATIC: url}, "analysis_results_dir": folder / "results", "task_lease_seconds": 5}
    return deployment(engine, instance, **values, **settings)


def test_a_run_does_what_there_is_and_shows_it(
    engine: Engine, instance: DagsterInstance, service: Analyzer, tmp_path: Path
) -> None:
    for number in range(3):
        add_task(engine, f"task_{number}")
    add_task(engine, "task_bad", target="nothing")
    result = deployed(engine, instance, tmp_path, service.url).run_job(JOB, **{OP: {"linger_seconds": 0}})
    assert result.success
    assert [status_of(engine, f"task_{number}") for number in range(3)] == ["completed"] * 3
    with reading(engine) as connection:
        outcome = connection.execute(select(job_outcomes)).one()
    assert (outcome.job, outcome.status, outcome.scanned, outcome.changed) == (JOB, "success", 4, 4)
    event = instance.get_latest_materialization_event(AssetKey("analysis_tasks"))
    assert event is not None
    metadata = event.asset_materialization.metadata
    shown = [metadata[name].value for name in ("tasks_completed", "tasks_failed", "findings", "failed")]
    assert shown == [3, 1, 3, 0]
    assert "| task_bad | static-analyzer | nothing | 1 | failed | 0 | its target cannot be used" in str(
        metadata["tasks"].value
    )
    logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert "task_0: pending -> running (static-analyzer, openai/gpt-4o/app0, attempt 1)" in logged
    assert "task_0: running -> completed (1 finding)" in logged


def test_the_maximum_runtime_follows_a_task_that_may_take_longer_than_others(
    engine: Engine, instance: DagsterInstance, service: Analyzer, tmp_path: Path
) -> None:
    """Dagster ended the run before the task, which was handed back at no attempt and begun anew, for ever."""
    here = deployed(engine, instance, tmp_path, service.url)
    add_task(engine, "task_usual", timeout_seconds=1800)
    first = here.run_job(JOB, **{OP: {"linger_seconds": 0}})
    add_task(engine, "task_long", timeout_seconds=7200)
    second = here.run_job(JOB, **{OP: {"linger_seconds": 0}})
    assert [_maximum_runtime(instance, run.run_id) for run in (first, second)] == [
        str(1800 + 1800 + 600),
        str(7200 + 7200 + 600),
    ]


def _maximum_runtime(instance: DagsterInstance, run_id: str) -> str:
    """As the monitor of runs reads it."""
    record = instance.get_run_record_by_id(run_id)
    assert record is not None
    return record.dagster_run.tags["dagster/max_runtime"]


def test_a_dry_run_claims_nothing(engine: Engine, instance: DagsterInstance, service: Analyzer, tmp_path: Path) -> None:
    add_task(engine)
    result = deployed(engine, instance, tmp_path, service.url).run_job(JOB, **{OP: {"dry_run": True}})
    assert result.success
    assert (status_of(engine), row_of(engine).attempt, service.requests) == ("pending", 0, [])
    (metadata,) = [event.step_output_data.metadata for event in result.all_events if event.is_successful_output]
    assert metadata["claimable"].value == 1


def test_a_worker_without_a_database_fails(instance: DagsterInstance, tmp_path: Path) -> None:
    empty = connect(f"sqlite:///{tmp_path / 'empty.db'}")
    assert not deployed(empty, instance, tmp_path, "ws://localhost:1").run_job(JOB).success


def test_the_sensor_starts_as_many_workers_as_there_is_work_for(
    engine: Engine, instance: DagsterInstance, service: Analyzer, tmp_path: Path
) -> None:
    here = deployed(
        engine,
        instance,
        tmp_path,
        service.url,
        analysis_workers=2,
        analysis_worker_concurrency=2,
        analysis_worker_linger_seconds=0,
        tasks_per_service=0,
    )
    assert here.sense(SENSOR).skip_reason.skip_message == "No task can be claimed: 0 run, 0 wait."
    for number in range(5):
        add_task(engine, f"task_{number}")
    requests = here.sense(SENSOR).run_requests
    assert [request.tags["ops_pipeline/job"] for request in requests] == [f"{JOB}/1", f"{JOB}/2"]
    assert {request.tags["dagster/max_runtime"] for request in requests} == {str(1800 + 1800 + 600)}
    assert here.run_requests(requests[:1], JOB) == [True]
    assert {status_of(engine, f"task_{number}") for number in range(5)} == {"completed"}


def test_the_sensor_counts_runs_that_have_not_begun_and_gives_each_its_place(
    engine: Engine, instance: DagsterInstance, service: Analyzer, tmp_path: Path
) -> None:
    here = deployed(
        engine, instance, tmp_path, service.url, analysis_workers=2, analysis_worker_concurrency=1, tasks_per_service=0
    )
    job = here.definitions.resolve_job_def(JOB)
    run = instance.create_run_for_job(job, tags={"ops_pipeline/job": f"{JOB}/1"})
    add_task(engine, "task_1")
    assert here.sense(SENSOR).skip_reason.skip_message == "1 task can be claimed; 1 worker is about to begin."
    with writing(engine) as connection:
        start(connection, "w", Policy(), database_now(connection), run_id=run.run_id)
    (request,) = here.sense(SENSOR).run_requests
    assert request.tags["ops_pipeline/job"] == f"{JOB}/2"


def test_a_run_whose_worker_was_killed_is_reported_as_failed_after_a_while(
    engine: Engine, instance: DagsterInstance, service: Analyzer, tmp_path: Path
) -> None:
    """It held a place in the queue until its maximum runtime was over. After an outage all look dead for a moment."""
    here = deployed(engine, instance, tmp_path, service.url)
    job = here.definitions.resolve_job_def(JOB)
    run = instance.create_run_for_job(job, tags={"ops_pipeline/job": f"{JOB}/1"}, status=DagsterRunStatus.STARTED)
    with writing(engine) as connection:
        start(connection, "w", Policy(), database_now(connection) - timedelta(hours=1), run_id=run.run_id)
    first = here.sense(SENSOR)
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.STARTED
    (since,) = json.loads(first.cursor).values()
    second = here.sense(SENSOR, json.dumps({run.run_id: since - 61}))
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.FAILURE
    assert json.loads(second.cursor) == {}


def test_the_sensor_launches_one_run_when_it_cannot_look(instance: DagsterInstance, tmp_path: Path) -> None:
    """A skipped tick is seen by nobody, a failed run is alerted."""
    empty = connect(f"sqlite:///{tmp_path / 'empty.db'}")
    here = deployed(empty, instance, tmp_path, f"ws://localhost:{free_port()}")
    assert len(here.sense(SENSOR).run_requests) == 1


def test_the_check_tells_of_results_that_are_not_whole(
    engine: Engine, instance: DagsterInstance, service: Analyzer, tmp_path: Path
) -> None:
    here = deployed(engine, instance, tmp_path, service.url)
    add_task(engine)
    here.run_job(JOB, **{OP: {"linger_seconds": 0}})
    assert _check(here).passed
    manifest = next((tmp_path / "results").rglob("manifest.json"))
    manifest.write_text(manifest.read_text()[:-20])
    assert not _check(here).passed
    manifest.parent.rename(tmp_path / "moved")
    assert _check(here).passed


def _check(here: Deployment) -> Any:
    job = here.definitions.resolve_implicit_global_asset_job_def()
    key = AssetCheckKey(AssetKey("analysis_tasks"), "results_are_whole")
    result = job.get_subset(asset_check_selection={key}, asset_selection=set()).execute_in_process(
        instance=here.instance, raise_on_error=False
    )
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_a_flood_of_lines_is_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("ops_pipeline.defs.analysis.worker.time.monotonic", lambda: now[0])
    written: list[str] = []
    told = _few_lines(written.append)
    for number in range(50):
        told(str(number))
    now[0] += 1
    told("next")
    assert written[:20] == [str(number) for number in range(20)]
    assert written[20:] == ["… and 30 more lines; `ops-pipeline tasks show` tells all of a task", "next"]
