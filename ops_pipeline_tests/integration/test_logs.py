"""Lines of runs in processes of their own, as an operator sees them: on the terminal once, and in the run's events."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from dagster import DagsterInstance, Failure
from dagster._utils.error import serializable_error_info_from_exc_info
from sqlalchemy import Engine

from ops_pipeline.database.engine import connect, sqlite_url
from ops_pipeline.defs.logs import of_run
from ops_pipeline_tests.integration.processes import BIN, command
from ops_pipeline_tests.usage.calls import call, write

PASSWORD = "a-planted-password"


@contextmanager
def operations(home: Path) -> Iterator[Engine]:
    engine = connect(sqlite_url(home))
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A deployment with one stale call."""
    home = tmp_path / "home"
    assert command("ops-pipeline", "migrate", home=home).returncode == 0
    with operations(home) as engine:
        begun = datetime.now(UTC) - timedelta(hours=2)
        write(engine, call(begun, id="old", status="processing", duration_seconds=None))
    return home


def execute(home: Path, job: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a job in a process of its own, as the page about the controls tells."""
    return command(
        "ops-pipeline", "with-home", "dagster", "job", "execute", "-m", "ops_pipeline.definitions", "-j", job,
        home=home, PATH=f"{BIN}:/usr/bin:/bin", **variables,
    )  # fmt: skip


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of the log; Dagster warns of the command itself before."""
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "SupersessionWarning" not in line and "callback(" not in line]


def test_a_run_tells_machines_what_it_did_and_the_ui_the_same(home: Path) -> None:
    """Lines of our modules were on the terminal only, and whoever looked at the failed run in the UI found none."""
    asked = {"LOG_FORMAT": "json", "DEBUG_CATEGORIES": "usage", "ALERT_WEBHOOK_URL": f"https://h/{PASSWORD}"}
    lines = [json.loads(line) for line in lines_of(execute(home, "cleanup_stale_model_calls", **asked))]
    (outcome,) = [line for line in lines if line.get("event") == "outcome"]
    assert outcome["job"] == "cleanup_stale_model_calls"
    assert (outcome["status"], outcome["scanned"], outcome["changed"], outcome["failed"]) == ("success", 1, 1, 0)
    (detail,) = [line for line in lines if line["level"] == "debug"]
    assert detail["message"].startswith("1 stale calls failed in ")
    assert (detail["logger"], detail["object"]) == ("ops_pipeline.usage.stale", "model_calls")
    assert detail["run"] == outcome["run"]
    with DagsterInstance.from_config(str(home)) as instance:
        told = [entry.user_message for entry in instance.all_logs(outcome["run"]) if not entry.is_dagster_event]
    assert [told.count(line["message"]) for line in (outcome, detail)] == [1, 1]
    assert PASSWORD not in json.dumps([lines, told])


def test_a_run_tells_people_without_details_of_other_domains(home: Path) -> None:
    lines = lines_of(execute(home, "cleanup_stale_model_calls", DEBUG_CATEGORIES="services,analysis"))
    (line,) = [line for line in lines if "Outcome" in line]
    assert " INFO    cleanup_stale_model_calls " in line
    assert " Outcome: success, 1 scanned, 1 changed, 0 skipped, 0 failed in " in line
    assert not [line for line in lines if "stale calls failed" in line]


def test_a_failed_run_tells_why_as_one_object(home: Path) -> None:
    """The reason of a failure is in Dagster's own event, whose text has many lines."""
    elsewhere = {"DATABASE_URL": f"sqlite:///{home}/empty.db", "MODEL_CALL_STATS_START": "2026-02-01T00:00Z"}
    done = execute(home, "cleanup_stale_model_calls", LOG_FORMAT="json", **elsewhere)
    assert done.returncode == 1
    text = [line for line in done.stderr.splitlines() if line.startswith("{")]
    failures = [line for line in map(json.loads, text) if line.get("event") == "step_failure"]
    assert failures
    assert failures[0]["level"] == "error"
    assert "ops-pipeline migrate" in failures[0]["error"]


@pytest.mark.parametrize(
    ("raised", "told"),
    [(Failure("SERVICES_FILE names no file: see the page."), True), (KeyError("nobody foresaw this"), False)],
    ids=["in words", "unforeseen"],
)
def test_only_what_nobody_foresaw_is_told_with_its_trace(raised: Exception, *, told: bool) -> None:
    """A refusal was one line of advice above thirty of Dagster's own files."""
    try:
        raise raised
    except type(raised):
        error = serializable_error_info_from_exc_info(sys.exc_info())
    event = SimpleNamespace(event_specific_data=SimpleNamespace(error=error), event_type_value="STEP_FAILURE")
    record = logging.makeLogRecord(
        {"dagster_meta": {"dagster_event": event, "orig_message": "", "job_name": "", "run_id": "", "step_key": ""}}
    )
    words = of_run(record)["error"]
    assert (words == str(raised), "Stack Trace" in words) == (told, not told)


def test_maintenance_keeps_the_prefix_of_its_lines(home: Path) -> None:
    lines = lines_of(execute(home, "run_maintenance", MAINTENANCE_AUTO_START="true"))
    started = [line for line in lines if "Starting maintenance run" in line]
    assert len(started) == 1
    assert " [MaintenanceService] Starting maintenance run " in started[0]


def test_a_command_refuses_an_unknown_category_with_the_list(tmp_path: Path) -> None:
    done = command("ops-pipeline", "check", home=tmp_path, DEBUG_CATEGORIES="everything")
    assert done.returncode == 1
    assert "DEBUG_CATEGORIES: 'everything' is no category; there are usage, vm-status, graphics" in done.stderr
