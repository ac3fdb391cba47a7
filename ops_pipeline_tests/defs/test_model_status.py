"""The job, schedule, sensor and check of model status, run through Dagster against a real HTTP server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetKey,
    AssetObservation,
    DagsterInstance,
    DagsterRunStatus,
    ExecuteInProcessResult,
    RunRequest,
    SkipReason,
)
from dagster._core.test_utils import create_run_for_test
from dagster._serdes import serialize_value
from sqlalchemy import Engine

from ops_pipeline.cli import main
from ops_pipeline.definitions import build_defs
from ops_pipeline.defs.runs import JOB_TAG
from ops_pipeline.defs.usage.model_status import CHECK, JOB, NO_FILE, STATUSES
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline.settings import SettingsError
from ops_pipeline.usage.tables import model_probe_results, model_statuses
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.usage.calls import call, execute, rows, write
from ops_pipeline_tests.usage.probes.provider import Provider, error, provider, well

SCHEDULE = f"{JOB}_schedule"
SENSOR = "failing_models_sensor"
KEY = "sk-test-5e2f0b7c91d84a36"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider that is well as long as nothing else is said; its key stands in the environment."""
    monkeypatch.setenv("PROBE_KEY", KEY)
    with provider() as running:
        yield running


def probes_file(folder: Path, server: Provider, *names: str, **limits: Any) -> Path:
    """A file of models of one provider, verified once without waiting."""
    common = {
        "provider": "openai",
        "base_url": server.url(),
        "api_key_env": "PROBE_KEY",
        "timeout_seconds": 5,
        "verify": 1,
        "verify_after_seconds": 0,
    }
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump({"models": [common | {"model": name} for name in names]} | limits))
    return path


@pytest.fixture
def home(engine: Engine, instance: DagsterInstance, tmp_path: Path, server: Provider) -> Deployment:
    """A deployment that probes two models."""
    return deployment(engine, instance, model_probes_file=probes_file(tmp_path, server, "chat", "large"))


@pytest.fixture
def small(sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path, server: Provider) -> Deployment:
    """The same on SQLite only, for what has nothing to do with the database."""
    return deployment(sqlite_engine, instance, model_probes_file=probes_file(tmp_path, server, "chat", "large"))


def tick(home: Deployment) -> list[RunRequest] | SkipReason:
    return home.tick(SCHEDULE, datetime.now(UTC))


def skipped(requests: list[RunRequest] | SkipReason) -> str:
    assert isinstance(requests, SkipReason), requests
    return requests.skip_message or ""


def sensed(home: Deployment) -> list[RunRequest] | str:
    """What the sensor asks for, or why it asks for nothing."""
    found = home.sense(SENSOR)
    return list(found.run_requests or []) or (found.skip_reason.skip_message or "" if found.skip_reason else "")


def observations(result: ExecuteInProcessResult) -> list[AssetObservation]:
    return [
        event.asset_observation_data.asset_observation
        for event in result.all_events
        if event.event_type_value == "ASSET_OBSERVATION"
    ]


def evaluation(result: ExecuteInProcessResult) -> AssetCheckEvaluation:
    """The only check evaluation of the run."""
    (found,) = result.get_asset_check_evaluations()
    assert (found.asset_key, found.check_name) == (AssetKey(STATUSES), CHECK)
    return found


def table_of(result: ExecuteInProcessResult) -> list[dict[str, str]]:
    """The rows of the table of models in the run's materialization, by column."""
    (event,) = result.get_asset_materialization_events()
    lines = str(event.materialization.metadata["models"].value).splitlines()
    header, _, *found = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(header, cells, strict=True)) for cells in found]


def failure(result: ExecuteInProcessResult) -> str:
    assert not result.success
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return str(event.step_failure_data.error)


def states(engine: Engine) -> dict[str, str]:
    return {row["model"]: row["state"] for row in rows(engine, model_statuses)}


# The job


def test_a_run_shows_flips_the_table_of_models_and_whether_all_answer(home: Deployment, server: Provider) -> None:
    server.on("large", error(500, "out | of memory"))
    result = home.run_job(JOB)
    assert result.success
    assert states(home.engine) == {"chat": "available", "large": "unavailable"}

    seen = {one.metadata["model"].value: one for one in observations(result)}
    assert set(seen) == {"chat", "large"}
    large = seen["large"]
    assert large.asset_key == AssetKey(STATUSES)
    assert large.description == (
        "openai/large went from not_tested to unavailable (Model Unavailable: some_error: out | of memory)."
    )
    shown = {name: value.value for name, value in large.metadata.items()}
    assert shown.pop("run") == result.run_id
    assert shown == {
        "provider": "openai",
        "model": "large",
        "type": "chatCompletion",
        "before": "not_tested",
        "after": "unavailable",
        "error_code": "Model Unavailable",
        "error_message": "some_error: out | of memory",
    }
    assert seen["chat"].description == "openai/chat went from not_tested to available."

    found = evaluation(result)
    assert not found.passed
    assert found.description == "1 model is unavailable: openai/large (Model Unavailable)."
    assert {name: value.value for name, value in found.metadata.items()} == {"down": 1, "flips": 2}

    (event,) = result.get_asset_materialization_events()
    numbers = {name: value.value for name, value in event.materialization.metadata.items() if name != "models"}
    assert numbers == {
        "models_available": 1,
        "models_limited": 0,
        "models_unavailable": 1,
        "models_not_tested": 0,
        "probes": 3,
    }
    down, up = table_of(result)
    assert [down[name] for name in ("model", "type", "state")] == ["openai/large", "chatCompletion", "unavailable"]
    assert [up[name] for name in ("model", "type", "state")] == ["openai/chat", "chatCompletion", "available"]
    assert down["last error"] == "Model Unavailable: some_error: out \\| of memory"
    assert (up["last error"], down["p50 ms"]) == ("", "")
    assert up["p50 ms"] == up["p95 ms"] != ""

    (outcome,) = rows(home.engine, job_outcomes)
    assert (outcome["job"], outcome["run_id"], outcome["status"]) == (JOB, result.run_id, "success")
    assert [outcome[name] for name in ("scanned", "changed", "skipped", "failed")] == [2, 2, 0, 0]
    assert sorted(outcome["details"]["flips"]) == [
        "openai/chat: not_tested -> available",
        "openai/large: not_tested -> unavailable",
    ]
    assert outcome["details"]["reasons"]["probes sent"] == 3
    assert {row["run_id"] for row in rows(home.engine, model_probe_results)} == {result.run_id}


def test_the_check_passes_again_after_the_model_recovers(home: Deployment, server: Provider) -> None:
    server.on("large", error(500, "out of memory"))
    assert not evaluation(home.run_job(JOB)).passed
    still = home.run_job(JOB)
    assert (observations(still), evaluation(still).passed) == ([], False)
    server.on("large", well())
    result = home.run_job(JOB)
    found = evaluation(result)
    assert (found.passed, found.description) == (True, "No model is unavailable.")
    (seen,) = observations(result)
    assert seen.description == "openai/large went from unavailable to available."
    assert [row["changed"] for row in rows(home.engine, job_outcomes)] == [2, 0, 1]
    assert [row["last error"] for row in table_of(result)] == ["", ""]


def test_the_check_can_be_run_by_itself(home: Deployment, server: Provider) -> None:
    server.on("large", error(500, "out of memory"))
    home.run_job(JOB)
    asked = len(server.requests)
    result = (
        home.definitions.resolve_implicit_global_asset_job_def()
        .get_subset(asset_selection=set(), asset_check_selection={AssetCheckKey(AssetKey(STATUSES), CHECK)})
        .execute_in_process(instance=home.instance, raise_on_error=False)
    )
    assert result.success
    assert not evaluation(result).passed
    assert len(server.requests) == asked


def test_a_dry_run_sends_nothing_and_records_nothing(home: Deployment, server: Provider) -> None:
    result = home.run_job(JOB, apply_model_status={"dry_run": True})
    assert result.success
    assert server.requests == []
    for table in (model_statuses, model_probe_results, job_outcomes):
        assert rows(home.engine, table) == []
    assert result.get_asset_materialization_events() == []
    (plan,) = [
        event.step_output_data.metadata
        for event in result.all_events
        if event.event_type_value == "STEP_OUTPUT" and event.step_key == "plan_model_status"
    ]
    assert plan["probes"].value == 2
    assert "| openai/large (chatCompletion) | probe |" in str(plan["plan"].value)


def test_models_asked_for_by_name_are_probed_whatever_their_traffic(home: Deployment, server: Provider) -> None:
    now = datetime.now(UTC)
    write(home.engine, call(now, model="chat"), call(now, model="large"))
    assert home.run_job(JOB).success
    assert server.requests == []
    assert home.run_job(JOB, observe_model_status={"only": ["openai/large"]}).success
    assert server.models_asked() == ["large"]


def test_a_name_that_is_not_in_the_file_fails_the_run_and_sends_nothing(small: Deployment, server: Provider) -> None:
    """A typing error in the launchpad would have been "0 models, success"."""
    text = failure(small.run_job(JOB, observe_model_status={"only": ["openai/larg", "openai/chat"]}))
    assert "Not in MODEL_PROBES_FILE: openai/larg." in text
    assert server.requests == []


def test_without_a_file_a_run_says_what_to_set(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    home = deployment(sqlite_engine, instance)
    assert NO_FILE in failure(home.run_job(JOB))
    assert rows(sqlite_engine, job_outcomes) == []
    assert skipped(tick(home)) == NO_FILE == sensed(home)


def test_when_no_host_can_be_reached_the_run_is_red_and_states_stay(
    small: Deployment, server: Provider, tmp_path: Path
) -> None:
    """A dead network cable turned every model red."""
    with provider("127.0.0.2") as other:
        path = probes_file(tmp_path, server, "chat", "large")
        content = yaml.safe_load(path.read_text())
        content["models"][1]["base_url"] = other.url()
        path.write_text(yaml.safe_dump(content))
        home = deployment(small.engine, small.instance, model_probes_file=path)
        assert home.run_job(JOB).success
    server.stop()
    assert "look at this machine's network" in " ".join(failure(home.run_job(JOB)).split())
    assert states(home.engine) == {"chat": "available", "large": "available"}
    assert len(rows(home.engine, job_outcomes)) == 1


def test_what_the_budget_does_not_reach_is_skipped_and_said(
    sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path, server: Provider
) -> None:
    path = probes_file(tmp_path, server, "chat", "large", probes_per_day=1)
    result = deployment(sqlite_engine, instance, model_probes_file=path).run_job(JOB)
    assert result.success
    (outcome,) = rows(sqlite_engine, job_outcomes)
    assert [outcome[name] for name in ("scanned", "changed", "skipped")] == [2, 1, 1]
    assert outcome["details"]["reasons"]["over the day's budget"] == 1
    assert len(server.requests) == 1


def test_no_event_of_a_run_holds_a_key(home: Deployment, server: Provider) -> None:
    """Everybody who may see runs reads the event log, and storage keeps it for months."""
    server.on("chat", error(401, f"Incorrect API key provided: {KEY}."))
    server.on("large", error(500, f"upstream got Authorization: Bearer {KEY}"))
    result = home.run_job(JOB)
    assert result.success
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    log = [serialize_value(record) for record in home.instance.all_logs(result.run_id)]
    assert len(log) > 10
    assert sum("Incorrect API key provided" in text for text in log) >= 2
    assert not [text for text in log if KEY in text or KEY[3:] in text]
    run = home.instance.get_run_by_id(result.run_id)
    assert run is not None and KEY not in serialize_value(run)
    assert KEY not in str([rows(home.engine, table) for table in (job_outcomes, model_statuses, model_probe_results)])


# The schedule


def test_the_schedule_and_the_sensor_are_off_until_somebody_switches_them_on(small: Deployment) -> None:
    schedule = small.definitions.resolve_schedule_def(SCHEDULE)
    assert (schedule.default_status.value, schedule.cron_schedule) == ("STOPPED", "0 */6 * * *")
    assert schedule.execution_timezone == "UTC"
    assert small.definitions.resolve_sensor_def(SENSOR).default_status.value == "STOPPED"
    tags = small.definitions.resolve_job_def(JOB).tags
    assert (tags[JOB_TAG], tags["dagster/max_runtime"]) == (JOB, "900")


def test_the_schedule_asks_for_a_run_when_a_model_is_to_be_probed(home: Deployment, server: Provider) -> None:
    requests = tick(home)
    assert isinstance(requests, list)
    assert home.run_requests(requests, JOB) == [True]
    assert sorted(server.models_asked()) == ["chat", "large"]
    # A key is launched once only.
    assert requests[0].run_key is None


def test_the_schedule_says_when_no_model_is_to_be_probed(
    sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path, server: Provider
) -> None:
    path = probes_file(tmp_path, server, "dall-e")
    path.write_text(path.read_text() + "  type: imageGeneration\n")
    home = deployment(sqlite_engine, instance, model_probes_file=path)
    assert skipped(tick(home)) == "None of 1 model is to be probed."


@pytest.mark.parametrize("status", [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED])
def test_while_a_run_is_on_its_way_no_other_is_launched(small: Deployment, status: DagsterRunStatus) -> None:
    run = create_run_for_test(small.instance, JOB, status=status)
    told = f"{JOB} is {status.value.lower()} (run {run.run_id[:8]})."
    assert skipped(tick(small)) == told == sensed(small)
    small.instance.report_run_canceled(run)
    assert isinstance(tick(small), list)


def test_when_the_look_fails_a_run_is_launched_so_that_the_failure_is_seen(home: Deployment) -> None:
    """Nobody watches the ticks of a schedule: an alert follows a run that fails."""
    execute(home.engine, "DROP TABLE model_statuses")
    requests = tick(home)
    assert isinstance(requests, list)
    assert home.run_requests(requests, JOB) == [False]


# The sensor


def failed_calls(engine: Engine, model: str, count: int = 6) -> None:
    write(engine, *(call(datetime.now(UTC), model=model, status="failed") for _ in range(count)))


def test_the_sensor_asks_for_exactly_the_models_whose_calls_fail_and_once(home: Deployment, server: Provider) -> None:
    """An outage between two checks, six hours apart, was found by the users."""
    assert "No model's real calls fail" in str(sensed(home))
    failed_calls(home.engine, "large")
    failed_calls(home.engine, "chat", 4)
    failed_calls(home.engine, "listed nowhere")
    server.on("large", error(500, "out of memory"))
    requests = sensed(home)
    assert isinstance(requests, list)
    (request,) = requests
    assert home.definitions.resolve_sensor_def(SENSOR).job_name == JOB
    assert request.run_config == {"ops": {"observe_model_status": {"config": {"only": ["openai/large"]}}}}
    assert home.run_requests(requests, JOB) == [True]
    assert server.models_asked() == ["large", "large"]
    assert states(home.engine) == {"large": "unavailable"}
    assert "No model's real calls fail" in str(sensed(home))
    failed_calls(home.engine, "chat", 1)
    (request,) = sensed(home)
    assert isinstance(request, RunRequest)
    assert request.run_config["ops"]["observe_model_status"]["config"] == {"only": ["openai/chat"]}


def test_the_sensor_does_not_ask_for_what_no_run_would_probe(
    sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path, server: Provider
) -> None:
    """A failing image model was asked for every minute, and every run left it alone."""
    path = probes_file(tmp_path, server, "dall-e")
    path.write_text(path.read_text() + "  type: imageGeneration\n")
    now = datetime.now(UTC)
    write(sqlite_engine, *(call(now, model="dall-e", type="imageGeneration", status="failed") for _ in range(6)))
    home = deployment(sqlite_engine, instance, model_probes_file=path)
    assert "No model's real calls fail" in str(sensed(home))
    path.write_text(path.read_text() + "image_probes: true\n")
    assert isinstance(sensed(deployment(sqlite_engine, instance, model_probes_file=path)), list)


@pytest.mark.parametrize("limits", [{"probes_per_day": 1}, {"credits_per_day": 0.5}])
def test_the_sensor_does_not_ask_for_probes_over_the_budget(
    engine: Engine, instance: DagsterInstance, tmp_path: Path, server: Provider, limits: dict[str, Any]
) -> None:
    """With the day's budget used up, a run a minute was launched that sent nothing."""
    path = probes_file(tmp_path, server, "chat", "large", **limits)
    path.write_text(path.read_text().replace("  model:", "  expected_credits: 0.4\n  model:"))
    home = deployment(engine, instance, model_probes_file=path)
    failed_calls(engine, "large")
    assert isinstance(sensed(home), list)
    assert home.run_job(JOB, observe_model_status={"only": ["openai/chat"]}).success
    assert "No model's real calls fail" in str(sensed(home))


def test_the_sensor_leaves_a_job_alone_whose_runs_fail(small: Deployment, server: Provider) -> None:
    """Each failing run spends money on probes whose answers it cannot keep."""
    failed_calls(small.engine, "large")
    execute(
        small.engine,
        "CREATE TRIGGER fill_disk BEFORE INSERT ON model_statuses BEGIN SELECT RAISE(ABORT, 'disk is full'); END",
    )
    for _ in range(2):
        requests = sensed(small)
        assert isinstance(requests, list)
        assert small.run_requests(requests, JOB) == [False]
    assert f"The last runs of {JOB} failed" in str(sensed(small))
    assert len(server.requests) == 2


# The file


def test_a_broken_file_is_refused_at_load_with_file_and_line(tmp_path: Path, server: Provider) -> None:
    path = probes_file(tmp_path, server, "chat")
    path.write_text(path.read_text().replace("timeout_seconds: 5", "timeout_seconds: soon"))
    line = path.read_text().splitlines().index("  timeout_seconds: soon") + 1
    with pytest.raises(SettingsError) as caught:
        build_defs(model_probes_file=path)
    assert str(caught.value).startswith(f"{path}:{line}: models.0.timeout_seconds: ")
    assert KEY not in str(caught.value)


def test_a_key_that_is_not_set_is_told_at_load_by_the_name_of_its_variable(
    tmp_path: Path, server: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = probes_file(tmp_path, server, "chat")
    monkeypatch.delenv("PROBE_KEY")
    with pytest.raises(SettingsError, match=r"models\.yaml:2: .*PROBE_KEY is not set"):
        build_defs(model_probes_file=path)


def test_the_command_check_tells_about_the_file_too(
    sqlite_engine: Engine, tmp_path: Path, server: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = probes_file(tmp_path, server, "chat", "large")
    monkeypatch.setenv("DATABASE_URL", sqlite_engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("MODEL_PROBES_FILE", str(path))
    well_said = CliRunner().invoke(main, ["check"])
    assert f"ok     MODEL_PROBES_FILE: {path} lists 2 models, and every key is set" in well_said.output
    path.write_text("models:\n- provider: openai\n  modle: gpt\n")
    broken = CliRunner().invoke(main, ["check"])
    assert broken.exit_code == 1
    assert f"FAILED MODEL_PROBES_FILE: {path}:3: models.0.modle: unknown field" in broken.output
    assert KEY not in well_said.output + broken.output
    assert server.requests == []
