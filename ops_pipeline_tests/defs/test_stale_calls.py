"""The job, schedule and check of the stale-call clean-up, run through Dagster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    AssetObservation,
    DagsterInstance,
    DagsterRunStatus,
    ExecuteInProcessResult,
    RunRequest,
    SkipReason,
)
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from sqlalchemy import Engine

from ops_pipeline.definitions import build_defs
from ops_pipeline.defs.runs import JOB_TAG
from ops_pipeline.defs.usage.stale import JOB, stale_policy
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline.settings import SettingsError, load_settings
from ops_pipeline.usage.stale import StalePolicy
from ops_pipeline.usage.tables import model_calls
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.usage.calls import call, execute, rows, write

SCHEDULE = f"{JOB}_schedule"
CALLS = AssetKey("model_calls")
MINUTE = timedelta(minutes=1)
TIMED_OUT = "Timeout: Processing exceeded 30 minutes"
TARGET = LoadableTargetOrigin(module_name="ops_pipeline.definitions")
LOCATION = ManagedGrpcPythonEnvCodeLocationOrigin(TARGET, location_name="ops_pipeline")
ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(LOCATION, "__repository__"), JOB)
"""Where a queued run's job is found."""


def processing(minutes: float, **fields: Any) -> dict[str, Any]:
    """A call that began so many minutes ago and has not ended."""
    return call(datetime.now(UTC) - minutes * MINUTE, **({"status": "processing", "duration_seconds": None} | fields))


def tick(home: Deployment) -> list[RunRequest] | SkipReason:
    return home.tick(SCHEDULE, datetime.now(UTC))


def skipped(requests: list[RunRequest] | SkipReason) -> str:
    assert isinstance(requests, SkipReason), requests
    return requests.skip_message or ""


def statuses(engine: Engine) -> list[str]:
    return [row["status"] for row in rows(engine, model_calls)]


def outputs(result: ExecuteInProcessResult) -> dict[str | None, dict[str, Any]]:
    """The metadata of each step's output."""
    return {
        event.step_key: {name: value.value for name, value in event.step_output_data.metadata.items()}
        for event in result.all_events
        if event.event_type_value == "STEP_OUTPUT"
    }


def observation(result: ExecuteInProcessResult) -> AssetObservation:
    """The only observation of the run."""
    (event,) = [event for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    return event.asset_observation_data.asset_observation


def evaluation(result: ExecuteInProcessResult) -> AssetCheckEvaluation:
    """The only check evaluation of the run."""
    (found,) = result.get_asset_check_evaluations()
    assert (found.asset_key, found.check_name) == (CALLS, "calls_come_to_an_end")
    assert found.severity == AssetCheckSeverity.WARN
    return found


def numbers(shown: AssetObservation | AssetCheckEvaluation) -> dict[str, Any]:
    """Metadata as plain values."""
    return {name: value.value for name, value in shown.metadata.items()}


# The job


def test_a_run_cleans_up_and_says_what_it_did(engine: Engine, instance: DagsterInstance) -> None:
    """The original logged "cleaned up stale records", without saying how many or which."""
    stale = [processing(45, id="old-1"), processing(44, id="old-2", provider="mistral", model="large|x")]
    stale += [processing(130, id="old-3", provider="mistral", model="large|x"), processing(200, type="video")]
    write(engine, *stale, processing(5), processing(60, type="video"), *(call(one["called_at"]) for one in stale))
    home = deployment(engine, instance)
    before = datetime.now(UTC)
    result = home.run_job(JOB)
    assert result.success
    assert statuses(engine).count("failed") == 4
    assert statuses(engine).count("processing") == 2

    (outcome,) = rows(engine, job_outcomes)
    assert (outcome["job"], outcome["run_id"], outcome["status"]) == (JOB, result.run_id, "success")
    assert [outcome[name] for name in ("scanned", "changed", "skipped", "failed")] == [6, 4, 0, 0]
    assert before - MINUTE < outcome["started_at"] <= outcome["finished_at"] + timedelta(seconds=1)
    assert outcome["details"]["reasons"] == {TIMED_OUT: 3, "Timeout: Processing exceeded 120 minutes": 1}
    assert outcome["details"]["batches"] == 1
    assert 0 < outcome["details"]["longest_transaction_seconds"] < 30

    seen = observation(result)
    assert seen.asset_key == CALLS
    shown = numbers(seen)
    assert [shown[name] for name in ("scanned", "changed", "unchanged", "skipped", "failed")] == [6, 4, 2, 0, 0]
    assert shown["oldest_call"] == f"{stale[3]['called_at']:%Y-%m-%d %H:%M:%S} UTC"
    by_model = shown["by_model"].splitlines()
    assert by_model[2:] == [
        "| mistral | large\\|x | chatCompletion | 2 |",
        "| openai | gpt | chatCompletion | 1 |",
        "| openai | gpt | video | 1 |",
    ]
    examples = shown["examples"].splitlines()[2:]
    assert [line.split(" | ")[0] for line in examples] == [f"| {stale[index]['id']}" for index in (3, 2, 0, 1)]
    assert f"| {TIMED_OUT} | 3 |" in shown["reasons"]


def test_the_plan_can_be_read_in_the_run(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    write(sqlite_engine, processing(45), processing(44), processing(5))
    result = deployment(sqlite_engine, instance).run_job(JOB)
    shown = outputs(result)
    assert shown["observe_stale_model_calls"] == {"processing": 3, "stale": 2}
    plan = shown["plan_stale_model_calls"]
    assert plan["stale"] == 2
    assert "| 2 calls of openai gpt chatCompletion | fail |" in plan["changes"]
    assert TIMED_OUT in plan["changes"]
    assert shown["apply_stale_model_calls"]["changed"] == 2


def test_a_run_with_nothing_to_do_says_so(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    write(sqlite_engine, processing(5), call())
    result = deployment(sqlite_engine, instance).run_job(JOB)
    assert result.success
    shown = numbers(observation(result))
    assert (shown["scanned"], shown["changed"], shown["oldest_call"], shown["examples"]) == (1, 0, "None.", "None.")
    (outcome,) = rows(sqlite_engine, job_outcomes)
    assert [outcome[name] for name in ("scanned", "changed", "skipped", "failed")] == [1, 0, 0, 0]
    assert evaluation(result).passed


def test_a_dry_run_changes_nothing_and_counts_as_no_clean_up(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    write(sqlite_engine, processing(45), processing(5))
    before = rows(sqlite_engine, model_calls)
    home = deployment(sqlite_engine, instance)
    result = home.run_job(JOB, apply_stale_model_calls={"dry_run": True})
    assert result.success
    assert rows(sqlite_engine, model_calls) == before
    assert rows(sqlite_engine, job_outcomes) == []
    assert not [event for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    assert result.get_asset_check_evaluations() == []
    assert outputs(result)["plan_stale_model_calls"]["stale"] == 1
    assert home.run_job(JOB).success
    assert statuses(sqlite_engine) == ["failed", "processing"]


def test_a_run_that_cannot_look_fails_and_records_nothing(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    """The original returned "0 cleaned" on any error."""
    execute(sqlite_engine, "DROP TABLE model_calls")
    assert not deployment(sqlite_engine, instance).run_job(JOB).success
    assert rows(sqlite_engine, job_outcomes) == []


def test_a_run_that_fails_in_the_middle_is_red_and_tells_how_far_it_came(
    sqlite_engine: Engine, instance: DagsterInstance
) -> None:
    write(sqlite_engine, processing(45))
    execute(
        sqlite_engine,
        "CREATE TRIGGER fill_disk BEFORE UPDATE ON model_calls BEGIN SELECT RAISE(ABORT, 'disk is full'); END",
    )
    result = deployment(sqlite_engine, instance).run_job(JOB)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    assert "0 stale calls were failed before." in str(failure.step_failure_data.error)
    assert rows(sqlite_engine, job_outcomes) == []
    assert statuses(sqlite_engine) == ["processing"]


# The alarm


def test_few_time_outs_among_many_calls_are_no_alarm(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    moment = datetime.now(UTC) - 60 * MINUTE
    write(sqlite_engine, *(call(moment) for _ in range(40)), *(processing(60) for _ in range(5)))
    result = deployment(sqlite_engine, instance).run_job(JOB)
    found = evaluation(result)
    assert found.passed
    assert numbers(found) == {"timed_out": 5, "calls": 45, "share": 0.1111}
    assert found.description == "5 of 45 recent calls timed out (11%), looking at 1 h before the limit."


@pytest.mark.parametrize("age", [60, 60 * 24 * 30])
def test_a_mass_of_stale_calls_is_an_alarm_and_cleaned_up_all_the_same(
    engine: Engine, instance: DagsterInstance, age: int
) -> None:
    """A guard that refused so many changes would have left them processing for ever."""
    write(engine, *(processing(age) for _ in range(30)), call(datetime.now(UTC) - 60 * MINUTE))
    result = deployment(engine, instance).run_job(JOB)
    assert result.success
    assert statuses(engine).count("failed") == 30
    found = evaluation(result)
    assert not found.passed
    assert numbers(found) == {"timed_out": 30, "calls": 31, "share": 0.9677}
    assert "the gateway is probably down" in (found.description or "")
    assert rows(engine, job_outcomes)[0]["changed"] == 30


def test_the_share_of_an_alarm_can_be_set(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    moment = datetime.now(UTC) - 60 * MINUTE
    write(sqlite_engine, *(call(moment) for _ in range(40)), *(processing(60) for _ in range(5)))
    home = deployment(sqlite_engine, instance, stale_model_calls_alarm_share=0.1)
    assert not evaluation(home.run_job(JOB)).passed


def test_the_alarm_ends_when_calls_end_again(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    stale = [processing(60) for _ in range(30)]
    write(sqlite_engine, *stale)
    home = deployment(sqlite_engine, instance)
    assert not evaluation(home.run_job(JOB)).passed
    execute(sqlite_engine, "UPDATE model_calls SET status = 'success'")
    found = evaluation(home.run_job(JOB))
    assert found.passed
    assert numbers(found) == {"timed_out": 0, "calls": 30, "share": 0.0}


@pytest.mark.parametrize(("timed_out", "passed"), [(7, True), (8, False)])
def test_the_check_can_be_run_by_itself(
    engine: Engine, instance: DagsterInstance, timed_out: int, passed: bool
) -> None:
    moment = datetime.now(UTC) - 60 * MINUTE
    write(engine, *(call(moment, status="failed", error_reason=TIMED_OUT) for _ in range(timed_out)))
    write(engine, *(call(moment) for _ in range(40 - timed_out)), processing(60 * 24))
    home = deployment(engine, instance)
    check = AssetCheckKey(CALLS, "calls_come_to_an_end")
    result = (
        home.definitions.resolve_implicit_global_asset_job_def()
        .get_subset(asset_selection=set(), asset_check_selection={check})
        .execute_in_process(instance=instance, raise_on_error=False)
    )
    assert result.success
    found = evaluation(result)
    assert found.passed is passed
    assert numbers(found) == {"timed_out": timed_out, "calls": 40, "share": timed_out / 40}
    assert statuses(engine).count("processing") == 1


# The schedule


def test_nothing_stale_is_told_with_the_number_of_calls_looked_at(engine: Engine, instance: DagsterInstance) -> None:
    home = deployment(engine, instance)
    assert skipped(tick(home)) == "No stale calls: none is processing."
    write(engine, processing(5), processing(12), processing(60, type="video"), call())
    assert skipped(tick(home)) == "No stale calls: 0 of 3 processing, the oldest for 60 minutes."


def test_times_that_nobody_can_read_do_not_stop_the_schedule(
    postgres_engine: Engine, instance: DagsterInstance
) -> None:
    execute(
        postgres_engine,
        "INSERT INTO model_calls (id, model, called_at) VALUES ('far', 'gpt', '58158-01-01 00:00:00+00')",
    )
    home = deployment(postgres_engine, instance)
    assert skipped(tick(home)) == "No stale calls: 0 of 1 processing, none of them since a readable time."
    write(postgres_engine, processing(45))
    requests = tick(home)
    assert isinstance(requests, list)
    assert home.run_requests(requests, JOB) == [True]


def test_a_stale_call_launches_one_run_that_cleans_it_up(engine: Engine, instance: DagsterInstance) -> None:
    write(engine, processing(31), processing(29))
    home = deployment(engine, instance)
    requests = tick(home)
    assert isinstance(requests, list)
    assert home.run_requests(requests, JOB) == [True]
    assert sorted(statuses(engine)) == ["failed", "processing"]
    assert "No stale calls: 0 of 1 processing" in skipped(tick(home))
    # A key is launched once only: the next stale call would wait for ever.
    assert requests[0].run_key is None


@pytest.mark.parametrize("status", [DagsterRunStatus.QUEUED, DagsterRunStatus.STARTED])
def test_while_a_run_is_on_its_way_no_other_is_launched(
    sqlite_engine: Engine, instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    """A run that took longer than five minutes was overtaken by the next one."""
    write(sqlite_engine, processing(45))
    home = deployment(sqlite_engine, instance)
    run = create_run_for_test(instance, JOB, status=status, remote_job_origin=ORIGIN)
    assert skipped(tick(home)) == f"{JOB} is {status.value.lower()} (run {run.run_id[:8]})."
    instance.report_run_canceled(run)
    assert isinstance(tick(home), list)


def test_runs_of_other_jobs_hold_up_nothing(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    write(sqlite_engine, processing(45))
    create_run_for_test(instance, "hourly_model_usage_job", status=DagsterRunStatus.STARTED)
    assert isinstance(tick(deployment(sqlite_engine, instance)), list)


def test_when_the_look_fails_a_run_is_launched_so_that_the_failure_is_seen(
    engine: Engine, instance: DagsterInstance
) -> None:
    """Nobody watches the ticks of a schedule: an alert follows a run that fails."""
    execute(engine, "DROP TABLE model_calls")
    home = deployment(engine, instance)
    requests = tick(home)
    assert isinstance(requests, list)
    assert home.run_requests(requests, JOB) == [False]


def test_the_schedule_and_the_job_are_set_up_for_a_deployment(instance: DagsterInstance, sqlite_engine: Engine) -> None:
    home = deployment(sqlite_engine, instance, cleanup_stale_model_calls_cron_time="*/7 * * * *")
    schedule = home.definitions.resolve_schedule_def(SCHEDULE)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("*/7 * * * *", "UTC")
    assert schedule.default_status.value == "RUNNING"
    tags = home.definitions.resolve_job_def(JOB).tags
    assert (tags[JOB_TAG], tags["dagster/max_runtime"]) == (JOB, "900")


# Settings


def test_limits_of_types_reach_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stale_policy(load_settings()) == StalePolicy(30 * MINUTE, {"video": 120 * MINUTE}, 0.2)
    monkeypatch.setenv("STALE_MODEL_CALL_MINUTES", "20")
    monkeypatch.setenv("STALE_MODEL_CALL_MINUTES_BY_TYPE", " video = 90, imageGeneration=45 ,")
    monkeypatch.setenv("STALE_MODEL_CALLS_ALARM_SHARE", "0.5")
    by_type = {"video": 90 * MINUTE, "imageGeneration": 45 * MINUTE}
    assert stale_policy(load_settings()) == StalePolicy(20 * MINUTE, by_type, 0.5)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("vidoe=90", "The types are chatCompletion, "),
        ("video", "write for example video=120,imageGeneration=45"),
        ("video=", "write for example"),
        ("video=long", "write for example"),
        ("video=1.5", "write for example"),
        ("video=-5", "write for example"),
        ("video=0", "greater than or equal to 1"),
        ("video=10081", "less than or equal to 10080"),
        ("video=90;embedding=5", "write for example"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, value: str, told: str
) -> None:
    """A typing error made videos fail after half an hour."""
    monkeypatch.setenv("STALE_MODEL_CALL_MINUTES_BY_TYPE", value)
    for load in (load_settings, build_defs):
        with pytest.raises(SettingsError, match=r"^STALE_MODEL_CALL_MINUTES_BY_TYPE") as caught:
            load()
        assert told in str(caught.value)


def test_limits_of_types_reach_schedule_and_run(
    sqlite_engine: Engine, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(sqlite_engine, processing(10, type="embedding"), processing(3, type="embedding"), processing(10))
    assert isinstance(tick(deployment(sqlite_engine, instance)), SkipReason)
    monkeypatch.setenv("STALE_MODEL_CALL_MINUTES_BY_TYPE", "embedding=5")
    home = deployment(sqlite_engine, instance)
    requests = tick(home)
    assert isinstance(requests, list)
    assert home.run_requests(requests, JOB) == [True]
    (failed,) = [row for row in rows(sqlite_engine, model_calls) if row["status"] == "failed"]
    assert (failed["type"], failed["error_reason"]) == ("embedding", "Timeout: Processing exceeded 5 minutes")
    assert failed["duration_seconds"] == 300.0
