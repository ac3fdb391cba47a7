"""The job, schedule and check of host services, run through Dagster against a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    AssetKey,
    DagsterInstance,
    DagsterRunStatus,
    ExecuteInProcessResult,
    RunRequest,
    SkipReason,
)
from dagster._core.test_utils import create_run_for_test
from dagster._serdes import serialize_value
from sqlalchemy import Engine

from ops_pipeline.definitions import build_defs
from ops_pipeline.defs.services import CHECK, JOB, NO_FILE, SERVICES
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline.services.tables import service_events, service_states
from ops_pipeline.settings import SettingsError
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.services.processes import PASSWORD, Daemon, redis_daemon
from ops_pipeline_tests.usage.calls import execute, rows

SCHEDULE = f"{JOB}_schedule"
OP = "check_services_of_hosts"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A Redis that its script restarts; its URL stands in the environment."""
    with redis_daemon("--requirepass", PASSWORD) as daemon:
        monkeypatch.setenv("CACHE_URL", f"redis://:{PASSWORD}@127.0.0.1:{daemon.port}/0")
        yield daemon


def services_file(folder: Path, cache: Daemon, **fields: Any) -> Path:
    """A file of one service, found down at once."""
    one: dict[str, Any] = {
        "name": "cache",
        "description": "Redis",
        "recovery": "auto",
        "check": {"kind": "redis", "url_env": "CACHE_URL"},
        "action": {"kind": "command", "command": [str(cache.restart_script)]},
        "timeout_seconds": 1,
        "down_after": 1,
        "up_after": 1,
        "start_grace_seconds": 0.4,
    }
    path = folder / "services.yaml"
    merged = {name: value for name, value in (one | fields).items() if value is not None}
    path.write_text(yaml.safe_dump({"services": [merged], "alert": "anna"}))
    return path


def home_of(engine: Engine, instance: DagsterInstance, path: Path) -> Deployment:
    return deployment(engine, instance, services_file=path)


@pytest.fixture
def home(engine: Engine, instance: DagsterInstance, tmp_path: Path, cache: Daemon) -> Deployment:
    """A deployment with one service."""
    return home_of(engine, instance, services_file(tmp_path, cache))


@pytest.fixture
def small(sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path, cache: Daemon) -> Deployment:
    """The same on SQLite only, for what has nothing to do with the database."""
    return home_of(sqlite_engine, instance, services_file(tmp_path, cache))


def tick(home: Deployment) -> list[RunRequest] | SkipReason:
    return home.tick(SCHEDULE, datetime.now(UTC))


def skipped(requests: list[RunRequest] | SkipReason) -> str:
    assert isinstance(requests, SkipReason), requests
    return requests.skip_message or ""


def observed(result: ExecuteInProcessResult) -> list[str]:
    events = [event for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    return [event.asset_observation_data.asset_observation.description or "" for event in events]


def evaluation(result: ExecuteInProcessResult) -> AssetCheckEvaluation:
    (found,) = result.get_asset_check_evaluations()
    assert (found.asset_key, found.check_name) == (AssetKey(SERVICES), CHECK)
    return found


def failure(result: ExecuteInProcessResult) -> str:
    assert not result.success
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return str(event.step_failure_data.error)


def manual(tmp_path: Path, cache: Daemon, **fields: Any) -> Path:
    return services_file(tmp_path, cache, recovery="manual", steps="Call Anna.", action=None, **fields)


def test_a_run_restarts_what_is_down_and_shows_it(home: Deployment, cache: Daemon) -> None:
    assert home.run_job(JOB).success
    cache.kill()
    result = home.run_job(JOB)
    assert result.success
    told = observed(result)
    assert [line.partition(" (")[0] for line in told] == [
        "cache: up -> down",
        "cache: down -> done",
        "cache: recovering -> up",
    ]
    found = evaluation(result)
    assert (found.passed, found.description) == (True, "No service is down.")
    (event,) = result.get_asset_materialization_events()
    shown = {name: value.value for name, value in event.materialization.metadata.items()}
    assert (shown["services_down"], shown["restarts"]) == (0, 1)
    assert "| cache |" in str(shown["services"]) and "restart by command" in str(shown["services"])
    assert str(shown["last_day"]).startswith("![The last 24 hours](data:image/png;base64,iVBORw0KGgo")
    outcome = next(row for row in rows(home.engine, job_outcomes) if row["run_id"] == result.run_id)
    assert (outcome["job"], outcome["status"], outcome["scanned"], outcome["changed"]) == (JOB, "success", 1, 1)
    assert outcome["details"]["reasons"] == {"up": 1, "restarts": 1}
    log = [serialize_value(record) for record in home.instance.all_logs(result.run_id)]
    assert len(log) > 5
    assert PASSWORD not in str(
        [log, *(rows(home.engine, one) for one in (service_events, service_states, job_outcomes))]
    )


@pytest.mark.parametrize("critical", [True, False])
def test_the_check_fails_the_harder_the_more_critical_a_service_is(
    engine: Engine, instance: DagsterInstance, tmp_path: Path, cache: Daemon, critical: bool
) -> None:
    home = home_of(engine, instance, manual(tmp_path, cache, critical=critical))
    cache.kill()
    result = home.run_job(JOB)
    found = evaluation(result)
    assert (found.passed, found.severity) == (False, AssetCheckSeverity["ERROR" if critical else "WARN"])
    assert (found.description or "").startswith("1 service is down: cache (")
    assert any("recovery is manual: Call Anna." in line for line in observed(result))


def test_a_restart_in_vain_fails_the_run_after_all_was_shown(small: Deployment, tmp_path: Path, cache: Daemon) -> None:
    path = services_file(
        tmp_path, cache, action={"kind": "command", "command": ["sh", "-c", "echo no; exit 1"]}, restarts=1
    )
    home = home_of(small.engine, small.instance, path)
    cache.kill()
    result = home.run_job(JOB)
    assert "1 restart failed. cache: exit status 1: no" in failure(result)
    (outcome,) = rows(home.engine, job_outcomes)
    assert outcome["failed"] == 1
    assert not evaluation(result).passed


def test_a_dry_run_shows_what_would_be_restarted_and_writes_nothing(home: Deployment, cache: Daemon) -> None:
    cache.kill()
    result = home.run_job(JOB, **{OP: {"dry_run": True}})
    assert result.success
    (plan,) = [
        event.step_output_data.metadata
        for event in result.all_events
        if event.event_type_value == "STEP_OUTPUT" and event.step_key == OP
    ]
    assert "cache" in str(plan["plan"].value) and "restart" in str(plan["plan"].value)
    assert (plan["services"].value, cache.restarts) == (1, 0)
    for one in (service_states, service_events, job_outcomes):
        assert rows(home.engine, one) == []
    assert result.get_asset_materialization_events() == []


def test_without_a_file_a_run_says_what_to_set(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    home = deployment(sqlite_engine, instance)
    assert NO_FILE in failure(home.run_job(JOB))
    assert (skipped(tick(home)), rows(sqlite_engine, job_outcomes)) == (NO_FILE, [])


def test_a_broken_file_is_refused_when_the_definitions_are_loaded(tmp_path: Path, cache: Daemon) -> None:
    path = services_file(tmp_path, cache)
    lines = path.read_text().replace("recovery: auto", "recovery: perhaps")
    path.write_text(lines)
    number = next(at for at, line in enumerate(lines.splitlines(), 1) if "perhaps" in line)
    with pytest.raises(SettingsError, match=rf"services\.yaml:{number}: services\.0\.recovery"):
        build_defs(services_file=path)


def test_the_schedule_skips_with_counts_and_records_the_look(home: Deployment) -> None:
    requests = tick(home)
    assert isinstance(requests, list)
    assert home.run_requests(requests, JOB) == [True]
    (before,) = rows(home.engine, service_states)
    assert skipped(tick(home)) == "No change among 1 service: 1 up."
    (after,) = rows(home.engine, service_states)
    assert (before["state"], after["state"], after["looks"]) == ("up", "up", before["looks"] + "U")
    assert after["checked_at"] > before["checked_at"]


def test_the_schedule_asks_for_a_run_when_a_restart_is_due(home: Deployment, cache: Daemon) -> None:
    assert home.run_job(JOB).success
    cache.kill()
    requests = tick(home)
    assert isinstance(requests, list)
    assert cache.restarts == 0
    assert home.run_requests(requests, JOB) == [True]
    assert cache.restarts == 1
    # A key is launched once only.
    assert requests[0].run_key is None


def test_a_manual_service_that_stays_down_asks_for_no_more_runs(
    sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path, cache: Daemon
) -> None:
    home = home_of(sqlite_engine, instance, manual(tmp_path, cache))
    cache.kill()
    assert home.run_job(JOB).success
    assert skipped(tick(home)) == "No change among 1 service: 1 down."


@pytest.mark.parametrize("status", [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED])
def test_while_a_run_is_on_its_way_nothing_is_looked_at(small: Deployment, status: DagsterRunStatus) -> None:
    run = create_run_for_test(small.instance, JOB, status=status)
    assert skipped(tick(small)) == f"{JOB} is {status.value.lower()} (run {run.run_id[:8]})."
    assert rows(small.engine, service_states) == []


def test_when_the_database_fails_a_run_is_launched_so_that_it_is_seen(home: Deployment) -> None:
    """Nobody watches the ticks of a schedule: an alert follows a run that fails."""
    execute(home.engine, "DROP TABLE service_states")
    requests = tick(home)
    assert isinstance(requests, list)
    assert home.run_requests(requests, JOB) == [False]
