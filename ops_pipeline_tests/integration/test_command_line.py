"""The hourly asset from Dagster's own command line, and runs killed in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import DagsterInstance
from sqlalchemy import Engine, func, select

from ops_pipeline.database.engine import reading
from ops_pipeline.defs.runs import UNFINISHED
from ops_pipeline.usage.demo import DemoPlan, write_history
from ops_pipeline.usage.tables import hourly_model_latency, hourly_model_usage, usage_hours
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.integration.processes import BIN, PROJECT, command, environment
from ops_pipeline_tests.servers import wait_until
from ops_pipeline_tests.usage.calls import at, rows

RANGE = "2026-09-01-00:00...2026-09-10-23:00"
MODULE = ("-m", "ops_pipeline.definitions")
MATERIALIZE = ("asset", "materialize", "--select", "hourly_model_usage", "--partition-range", RANGE, *MODULE)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A Dagster home as `make run` makes it."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(PROJECT / "dagster.yaml", folder)
    return folder


@pytest.fixture
def days(engine: Engine) -> Engine:
    """Ten days of 8,000 calls that nobody has aggregated."""
    write_history(engine, DemoPlan(10, 8_000, 3, at("2026-09-11 00:00")), lambda _: None)
    return engine


@pytest.fixture
def variables(engine: Engine) -> dict[str, str]:
    """What a shell must export for the commands."""
    url = engine.url.render_as_string(hide_password=False)
    return {"DATABASE_URL": url, "MODEL_CALL_STATS_START": "2026-09-01T00:00Z"}


@pytest.fixture
def here(engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """The same deployment, seen from the test's process."""
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with DagsterInstance.get() as instance:
        yield deployment(engine, instance, model_call_stats_start=at("2026-09-01 00:00"))


def last_commit(engine: Engine) -> datetime:
    with reading(engine) as connection:
        return connection.execute(select(func.max(usage_hours.c.aggregated_at))).scalar() or at("2000-01-01 00:00")


def test_a_job_backfill_from_the_command_line_is_accepted(home: Path) -> None:
    """Dagster makes one run per partition of it, whatever the backfill policy; the daemon runs them."""
    variables = {"MODEL_CALL_STATS_START": "2026-09-01T00:00Z"}
    span = ["--from", "2026-09-01-00:00", "--to", "2026-09-01-02:00", "--noprompt"]
    where = ["-m", "ops_pipeline.definitions"]
    result = command(
        "dagster", "job", "backfill", "-j", "hourly_model_usage_job", *where, *span, home=home, **variables
    )
    assert "Launched backfill job" in result.stdout + result.stderr, result.stderr


def test_a_range_run_killed_at_any_moment_then_caught_up_equals_a_clean_run(
    days: Engine, home: Path, variables: dict[str, str], here: Deployment
) -> None:
    """Kill -9 three times at different moments; what was finished is kept and not done again."""
    for moment in (0.0, 0.4, 1.0):
        before = last_commit(days)
        process = subprocess.Popen(
            [str(BIN / "dagster"), *MATERIALIZE],
            env=environment(home, **variables),
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(lambda was=before: last_commit(days) > was, 240, "the run to commit something")
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for run in here.instance.get_runs():
            if run.status in UNFINISHED:
                # What the daemon's run monitoring does a minute later.
                here.instance.report_run_failed(run)
    finished = {row["hour"]: row["aggregated_at"] for row in rows(days, usage_hours)}

    requests = here.tick("model_call_stats_schedule", at("2026-09-11 00:00"))
    if isinstance(requests, list):
        assert all(here.run_requests(requests))
    for _ in range(3):
        here.sense("usage_partition_status_sensor")
    killed = [rows(days, table) for table in (hourly_model_usage, hourly_model_latency)]
    after = {row["hour"]: row["aggregated_at"] for row in rows(days, usage_hours)}
    assert len(after) == 240 == len(here.materialized("hourly_model_usage"))
    assert {hour: after[hour] for hour in finished} == finished

    started = datetime.now(UTC)
    assert here.run("hourly_model_usage_job", *RANGE.split("...")).success
    assert [rows(days, table) for table in (hourly_model_usage, hourly_model_latency)] == killed
    assert all(row["aggregated_at"] > started.replace(microsecond=0) for row in rows(days, usage_hours))
