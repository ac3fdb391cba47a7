"""The job `run_maintenance` through Dagster: passes that stop no other, what is shown, and its sensor."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus, DefaultSensorStatus, ExecuteInProcessResult
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import Engine, insert

from ops_pipeline.analysis.maintenance.tables import application_roots, maintenance_passes
from ops_pipeline.analysis.tables import analysis_tasks, generated_applications
from ops_pipeline.archives.tables import archives
from ops_pipeline.database.engine import writing
from ops_pipeline.defs.maintenance.build import JOB
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.usage.calls import execute, rows

OPS = ("clean_orphan_apps", "cancel_orphans", "end_stuck", "archive_old", "prune_calls")
NAMES = ("orphan_applications", "orphan_tasks", "stuck_tasks", "old_tasks", "old_model_calls")


def folders(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    (tmp_path / "apps" / "gpt" / "app1").mkdir(parents=True, exist_ok=True)
    places = {
        "generated_apps_dir": str(tmp_path / "apps"),
        "analysis_results_dir": tmp_path / "results",
        "maintenance_archive": str(tmp_path / "archive"),
    }
    return places | settings


@pytest.fixture
def home(engine: Engine, instance: DagsterInstance, tmp_path: Path) -> Deployment:
    """A deployment whose database holds something for each of the passes over the lab."""
    old = datetime.now(UTC) - timedelta(days=60)
    app = {"model_slug": "gpt", "version": 1}
    task = {"service": "s", "created_at": old, "updated_at": old}
    with writing(engine) as connection:
        for row in ({"id": "here", "app_number": 1}, {"id": "gone", "app_number": 2}):
            connection.execute(insert(generated_applications), [app | row])
        for row in (
            {"id": "orphan", "target": "gpt/app9", "status": "running"},
            {"id": "stuck", "target": "gpt/app1", "status": "pending"},
            {"id": "old", "target": "gpt/app1", "status": "completed", "completed_at": old},
        ):
            connection.execute(insert(analysis_tasks), [task | row])
    return deployment(engine, instance, **folders(tmp_path))


def metadata(result: ExecuteInProcessResult, op: str) -> dict[str, Any]:
    """What an op has shown, whether it failed or not."""
    for event in result.all_events:
        if event.step_key == op and event.event_type_value == "STEP_OUTPUT":
            return {name: value.value for name, value in event.step_output_data.metadata.items()}
        if event.step_key == op and event.event_type_value == "STEP_FAILURE":
            failure = event.step_failure_data.user_failure_data
            return {name: value.value for name, value in (failure.metadata if failure else {}).items()}
    raise AssertionError(op)


def failed(result: ExecuteInProcessResult) -> dict[str, str]:
    """The ops that failed, and what they said."""
    events = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return {str(event.step_key): str(event.step_failure_data.error) for event in events}


def lines(home: Deployment, result: ExecuteInProcessResult) -> list[str]:
    logs = home.instance.all_logs(result.run_id)
    return [log.user_message for log in logs if log.user_message.startswith("[MaintenanceService]")]


def tasks(home: Deployment) -> dict[str, str]:
    return {row["id"]: row["status"] for row in rows(home.engine, analysis_tasks)}


def test_a_run_does_every_pass_in_order_and_tells_what_it_did(home: Deployment) -> None:
    result = home.run_job(JOB)
    assert result.success
    assert tasks(home) == {"orphan": "cancelled", "stuck": "cancelled"}
    marked = {row["id"]: row["missing_since"] is not None for row in rows(home.engine, generated_applications)}
    assert marked == {"here": False, "gone": True}
    assert [line.partition("] ")[2] for line in lines(home, result)] == [
        f"Starting maintenance run {result.run_id}",
        "Marked 1 apps as missing (grace period: 7 days)",
        "Cleaned 0 orphan app records",
        "Cancelled 1 orphan tasks",
        "Marked 0 stuck tasks as FAILED, cancelled 1 that waited too long",
        "Cleaned 1 old tasks (> 30 days)",
        "prune_calls is off: MODEL_CALL_RETENTION_DAYS is not set: raw calls are kept.",
        "Maintenance run complete",
    ]
    passes = rows(home.engine, maintenance_passes)
    assert [(row["name"], row["status"], row["changed"]) for row in passes] == [
        ("orphan_applications", "success", 1),
        ("orphan_tasks", "success", 1),
        ("stuck_tasks", "success", 1),
        ("old_tasks", "success", 1),
        ("old_model_calls", "off", 0),
    ]
    (outcome,) = rows(home.engine, job_outcomes)
    assert (outcome["job"], outcome["status"], outcome["changed"], outcome["failed"]) == (JOB, "success", 4, 0)
    assert {name: one["backlog_seconds"] for name, one in outcome["details"]["passes"].items()} == dict.fromkeys(
        NAMES, 0
    )
    (archive,) = rows(home.engine, archives)
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata["folder"].value == f"analysis_tasks/{archive['id']}"
    shown = metadata(result, "archive_old")
    assert "| old (gpt/app1) | archive and delete | completed | ended 60 days ago |" in str(shown["plan"])
    assert "prune_calls" in str(metadata(result, "conclude_maintenance")["passes"])
    # A second run right after changes nothing.
    assert home.run_job(JOB).success
    assert rows(home.engine, job_outcomes)[-1]["changed"] == 0


def test_one_failing_pass_stops_no_other_and_the_run_is_red(home: Deployment, tmp_path: Path) -> None:
    (tmp_path / "apps").rename(tmp_path / "elsewhere")
    result = home.run_job(JOB)
    assert not result.success
    assert list(failed(result)) == ["clean_orphan_apps"]
    assert "could not be looked at" in failed(result)["clean_orphan_apps"]
    assert "could not be looked at" in str(metadata(result, "clean_orphan_apps")["plan"])
    assert tasks(home) == {"orphan": "cancelled", "stuck": "cancelled"}
    assert "Maintenance run complete" in lines(home, result)[-1]
    (outcome,) = rows(home.engine, job_outcomes)
    assert (outcome["status"], outcome["changed"], outcome["failed"]) == ("failed", 3, 1)
    assert "could not be looked at" in outcome["details"]["passes"]["orphan_applications"]["error"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_objects_that_cannot_be_done_are_named(home: Deployment, *, dry_run: bool) -> None:
    execute(home.engine, "UPDATE analysis_tasks SET status = 'Pending' WHERE id = 'stuck'")
    others = "nothing was written" if dry_run else "the others are done"
    said = failed(home.run_job(JOB, end_stuck={"dry_run": dry_run}))["end_stuck"]
    assert f"1 object failed, {others}. stuck: its status 'Pending' is none of created, pending" in said


@pytest.mark.parametrize("broken", range(5))
def test_each_pass_can_fail_alone(home: Deployment, broken: int) -> None:
    fields = ["retention", "grace", "running", "retention", "retention"]
    result = home.run_job(JOB, **{OPS[broken]: {fields[broken]: "0"}})
    assert list(failed(result)) == [OPS[broken]]
    assert "'0' does not lie above 0 and within 100 years" in failed(result)[OPS[broken]]
    status = {row["name"]: row["status"] for row in rows(home.engine, maintenance_passes)}
    assert status.pop(NAMES[broken]) == "failed"
    assert set(status.values()) <= {"success", "off"}


def test_a_dry_run_of_every_pass_writes_nothing(home: Deployment, tmp_path: Path) -> None:
    watched = (generated_applications, analysis_tasks, maintenance_passes, archives, application_roots, job_outcomes)
    before = [rows(home.engine, table) for table in watched]
    result = home.run_job(JOB, **{op: {"dry_run": True} for op in OPS})
    assert result.success
    assert [rows(home.engine, table) for table in watched] == before
    assert sorted(path.name for path in (tmp_path / "apps").iterdir()) == ["gpt"]
    assert not (tmp_path / "archive").exists()
    assert "mark missing" in str(metadata(result, "clean_orphan_apps")["plan"])
    assert metadata(result, "archive_old")["planned"] == 1
    assert metadata(result, "archive_old")["backlog_seconds"] == pytest.approx(30 * 86_400, abs=600)
    assert metadata(result, "archive_old")["status"] == "dry run: nothing was written"
    assert "[MaintenanceService] archive_old, dry run: 1 planned, 0 left alone; see its plan" in lines(home, result)
    assert "the plan of each op stands in its own output" in str(metadata(result, "conclude_maintenance")["passes"])


def test_each_pass_has_a_switch_in_the_environment_and_in_the_run_config(
    sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path
) -> None:
    switches = ("apps", "orphan_tasks", "stuck_tasks", "old_tasks")
    off = {f"cleanup_{name}".replace("_apps", "_orphan_apps"): False for name in switches}
    home = deployment(sqlite_engine, instance, **folders(tmp_path, **off))
    result = home.run_job(JOB)
    assert [row["status"] for row in rows(sqlite_engine, maintenance_passes)] == ["off"] * 5
    assert metadata(result, "end_stuck")["status"] == "CLEANUP_STUCK_TASKS is false."
    home.run_job(JOB, **{op: {"enabled": True} for op in OPS[:4]})
    assert [row["status"] for row in rows(sqlite_engine, maintenance_passes)][5:] == ["success"] * 4 + ["off"]
    home = deployment(sqlite_engine, instance, **folders(tmp_path))
    home.run_job(JOB, **{op: {"enabled": False} for op in OPS})
    assert [row["status"] for row in rows(sqlite_engine, maintenance_passes)][10:] == ["off"] * 5


def test_limits_and_retentions_of_a_run_win_over_the_variables(home: Deployment) -> None:
    result = home.run_job(
        JOB,
        cancel_orphans={"grace": "100d"},
        end_stuck={"max_count": 0},
        archive_old={"retention": "90"},
        prune_calls={"retention": "30d"},
    )
    assert list(failed(result)) == ["end_stuck"]
    assert "2 changes are more than the limit of 0" in failed(result)["end_stuck"]
    assert tasks(home) == {"orphan": "running", "stuck": "pending", "old": "completed"}
    assert [row["status"] for row in rows(home.engine, maintenance_passes)][-1] == "success"
    assert "archive_old" in failed(home.run_job(JOB, archive_old={"time_budget_seconds": 0}))
    assert "archive_old" in failed(home.run_job(JOB, archive_old={"max_share": 2.0}))
    assert "clean_orphan_apps" in failed(home.run_job(JOB, clean_orphan_apps={"max_newly_missing_share": 0.0}))


def test_maintenance_is_manual_until_it_is_switched_on(
    sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path
) -> None:
    home = deployment(sqlite_engine, instance, **folders(tmp_path))
    manual = home.definitions.resolve_sensor_def("maintenance_sensor")
    assert (manual.default_status, manual.minimum_interval_seconds) == (DefaultSensorStatus.STOPPED, 3600)
    settings = folders(tmp_path, maintenance_auto_start=True, maintenance_interval_seconds=120)
    home = deployment(sqlite_engine, instance, **settings)
    automatic = home.definitions.resolve_sensor_def("maintenance_sensor")
    assert (automatic.default_status, automatic.minimum_interval_seconds) == (DefaultSensorStatus.RUNNING, 120)
    requests = home.sense("maintenance_sensor").run_requests or []
    assert len(requests) == 1
    # A key would be launched once and never again.
    assert requests[0].run_key is None
    assert home.run_requests(requests, JOB) == [True]


@pytest.mark.parametrize("status", [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED])
def test_while_a_run_is_on_its_way_no_other_is_launched(
    sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path, status: DagsterRunStatus
) -> None:
    home = deployment(sqlite_engine, instance, **folders(tmp_path))
    run = create_run_for_test(instance, JOB, status=status)
    reason = home.sense("maintenance_sensor").skip_reason
    assert reason is not None
    assert reason.skip_message == f"{JOB} is {status.value.lower()} (run {run.run_id[:8]})."


def test_a_database_that_fails_makes_every_pass_red(home: Deployment) -> None:
    execute(home.engine, "DROP TABLE leases")
    result = home.run_job(JOB)
    assert set(failed(result)) == set(OPS[:4])
    assert all("ops-pipeline migrate" in reason for reason in failed(result).values())
