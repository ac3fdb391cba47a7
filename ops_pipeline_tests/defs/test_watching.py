"""Health of jobs as Dagster knows it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from dagster import DagsterInstance
from sqlalchemy import Engine, text

from ops_pipeline.cli import main
from ops_pipeline.database.engine import writing
from ops_pipeline.defs.watching import check_retention, health_page, look_at_jobs, measurers, readiness
from ops_pipeline.settings import load_settings
from ops_pipeline_tests.defs.deployment import deployment

JOB = "cleanup_stale_model_calls"


def test_a_failed_run_makes_its_job_unwell_until_one_succeeds(sqlite_engine: Engine) -> None:
    with DagsterInstance.local_temp() as instance:
        here = deployment(sqlite_engine, instance)
        repository = here.definitions.get_repository_def()

        def health() -> tuple[bool, int, float | None]:
            (one,) = [one for one in look_at_jobs(instance, repository, datetime.now(UTC)) if one.name == JOB]
            return one.well, one.errors, one.success_rate

        assert health() == (True, 0, None)
        with writing(sqlite_engine) as connection:
            connection.execute(text("ALTER TABLE model_calls RENAME TO gone"))
        assert not here.run_job(JOB).success
        assert health() == (False, 1, 0.0)
        assert not health_page(instance, repository)()[0]
        with writing(sqlite_engine) as connection:
            connection.execute(text("ALTER TABLE gone RENAME TO model_calls"))
        assert here.run_job(JOB).success
        assert health() == (True, 0, 0.5)


def test_a_deployment_without_a_daemon_is_not_ready(sqlite_engine: Engine) -> None:
    with DagsterInstance.local_temp() as instance:
        well, content = readiness(sqlite_engine, instance)()
    assert not well
    assert content["database"] == "answers"
    assert not any(content["daemons"].values())


def test_every_job_with_a_schedule_has_figures_and_a_next_run(sqlite_engine: Engine) -> None:
    with DagsterInstance.local_temp() as instance:
        repository = deployment(sqlite_engine, instance).definitions.get_repository_def()
        jobs = {one.name: one for one in look_at_jobs(instance, repository, datetime.now(UTC))}
    assert {one.job_name for one in repository.schedule_defs} <= set(jobs)
    due = jobs[JOB].next_run
    assert due and timedelta(0) < due - datetime.now(UTC) <= timedelta(minutes=5)
    assert {"jobs", "usage", "services"} <= set(measurers(load_settings(), repository))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def test_the_command_shows_every_job_and_ends_with_0_when_all_are_well(home: Path) -> None:
    result = CliRunner().invoke(main, ["health", "--json"])
    assert result.exit_code == 0, result.output
    jobs = {one["name"]: one for one in json.loads(result.output)["jobs"]}
    assert jobs[JOB]["problems"] == [] and jobs[JOB]["next_run"]
    shown = CliRunner().invoke(main, ["health"])
    assert shown.exit_code == 0 and JOB in shown.output


def test_check_tells_of_a_retention_for_a_job_that_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip kept the runs of each minute for a month."""
    assert check_retention(load_settings()) == [], "the default names jobs only"
    monkeypatch.setenv("RUN_RETENTION_DAYS_BY_JOB", "update_vm_states=3,run_maintenance=90")
    said = CliRunner().invoke(main, ["check", "--brief"]).output
    assert "FAILED RUN_RETENTION_DAYS_BY_JOB: no job is called update_vm_states; there are " in said
    assert "update_vm_status" in said and "run_maintenance," in said
    monkeypatch.setenv("RUN_RETENTION_DAYS_BY_JOB", "update_vm_status=3")
    assert "FAILED RUN_RETENTION_DAYS_BY_JOB" not in CliRunner().invoke(main, ["check"]).output


def test_the_command_says_where_it_looked_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "nowhere"))
    result = CliRunner().invoke(main, ["health"])
    assert result.exit_code == 1 and "holds no dagster.yaml: set DAGSTER_HOME" in result.output


def test_nobody_can_tell_is_another_exit_status_than_not_well(home: Path) -> None:
    """A monitor took a broken storage for a sick job."""
    (home / "dagster.yaml").write_text("storage: {nonsense: true}\n")
    result = CliRunner().invoke(main, ["health"])
    assert result.exit_code == 2
    assert "Nobody can tell" in result.output
