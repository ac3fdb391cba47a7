"""What is wrong in Dagster is told through real channels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from dagster import AssetCheckEvaluation, AssetCheckSeverity, AssetKey, DagsterInstance
from sqlalchemy import Engine, text

from ops_pipeline.cli import main
from ops_pipeline.database.engine import writing
from ops_pipeline.defs.alerts import failed_checks
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.operations.alerts.receivers import Webhook, webhook

JOB = "cleanup_stale_model_calls"


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as one:
        yield one


@pytest.fixture
def here(sqlite_engine: Engine, hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    monkeypatch.setenv("ALERT_WEBHOOK_URL", hook.url)
    monkeypatch.setenv("ALERT_UI_URL", "http://127.0.0.1:3000/")
    with DagsterInstance.local_temp() as instance:
        yield deployment(sqlite_engine, instance)


def sense(here: Deployment) -> str:
    reason = here.sense("alerts_sensor").skip_reason
    assert reason is not None
    return str(reason.skip_message)


def test_a_failed_job_is_told_once_with_a_link_to_its_run(here: Deployment, hook: Webhook) -> None:
    with writing(here.engine) as connection:
        connection.execute(text("ALTER TABLE model_calls RENAME TO gone"))
    result = here.run_job(JOB)
    assert sense(here) == "1 thing is wrong: 1 new, 0 told again, 0 over; 1 message sent."
    assert sense(here) == "1 thing is wrong: 0 new, 0 told again, 0 over; 0 messages sent."
    (message,) = hook.received
    assert message["key"] == f"job:{JOB}"
    assert message["url"] == f"http://127.0.0.1:3000/runs/{result.run_id}"


def test_how_often_a_job_failed_is_counted_beyond_its_threshold(here: Deployment, hook: Webhook) -> None:
    """No more runs are read than it takes to see that all is well."""
    assert here.run_job(JOB).success
    with writing(here.engine) as connection:
        connection.execute(text("ALTER TABLE model_calls RENAME TO gone"))
    for _ in range(3):
        here.run_job(JOB)
    sense(here)
    assert hook.received[0]["text"].startswith("Its last 3 runs failed, the latest at ")


def test_a_failed_check_is_told_until_it_passes(here: Deployment, hook: Webhook) -> None:
    def evaluate(*, passed: bool) -> None:
        here.instance.report_runless_asset_event(
            AssetCheckEvaluation(
                check_name="services_are_well",
                passed=passed,
                metadata={},
                asset_key=AssetKey("host_services"),
                severity=AssetCheckSeverity.ERROR,
                description="redis is down.",
            )
        )

    repository = here.definitions.get_repository_def()
    evaluate(passed=False)
    sense(here)
    assert [one["text"] for one in hook.received] == ["redis is down."]
    evaluate(passed=True)
    assert failed_checks(here.instance, repository) == []


def test_without_a_channel_the_sensor_says_so_and_alerts_are_kept(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DagsterInstance.local_temp() as instance:
        assert "No channel is configured" in sense(deployment(sqlite_engine, instance))


def test_the_command_tests_every_channel(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = CliRunner().invoke(main, ["alerts", "test"])
    assert nothing.exit_code == 1 and "No channel is configured" in nothing.output
    monkeypatch.setenv("ALERT_WEBHOOK_URL", hook.url)
    good = CliRunner().invoke(main, ["alerts", "test"])
    assert good.exit_code == 0, good.output
    assert hook.received[0]["event"] == "test"
    hook.status = 500
    bad = CliRunner().invoke(main, ["alerts", "test"])
    assert bad.exit_code == 1 and "500" in bad.output and "s3cr3t" not in bad.output


def test_check_reads_the_file_of_channels_as_the_deployment_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said ok of a file with which nothing started."""
    file = tmp_path / "alerts.yaml"
    monkeypatch.setenv("ALERTS_FILE", str(file))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    file.write_text("channels:\n  - {name: night, kind: webhook, url_env: NIGHT_HOOK}\n")
    refused = CliRunner().invoke(main, ["check", "--brief"])
    wanted = "channels.0.kind: webhook needs `url_env`, a variable that is set"
    assert f"FAILED ALERTS_FILE: {file}:2: {wanted}" in refused.output
    monkeypatch.setenv("NIGHT_HOOK", "https://chat.example/hook")
    assert f"ok     ALERTS_FILE: {file}: 1 channels in all, and 0 routes" in CliRunner().invoke(main, ["check"]).output


def test_the_command_lists_what_is_wrong(here: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", here.engine.url.render_as_string(hide_password=False))
    assert CliRunner().invoke(main, ["alerts", "list"]).exit_code == 0
    with writing(here.engine) as connection:
        connection.execute(text("ALTER TABLE model_calls RENAME TO gone"))
    here.run_job(JOB)
    sense(here)
    listed = CliRunner().invoke(main, ["alerts", "list"])
    assert listed.exit_code == 1 and f"job:{JOB}" in listed.output
