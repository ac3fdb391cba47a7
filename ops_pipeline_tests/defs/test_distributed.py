"""Runs on Celery workers: the launcher, the app, and the files that an operator installs."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance, DagsterInvalidConfigError, DagsterRunStatus, job, op
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.launcher import WorkerStatus
from dagster._core.scheduler.instigation import TickStatus

from ops_pipeline.defs.distributed import launcher as module
from ops_pipeline.defs.distributed.app import app
from ops_pipeline.defs.distributed.launcher import MISSES, WatchedCeleryRunLauncher
from ops_pipeline_tests.checkpoints.redis_servers import RedisServer, redis_server
from ops_pipeline_tests.integration.processes import BIN, PROJECT, environment

DEPLOY = PROJECT / "deploy"
GONE = {"pid": 1, "hostname": "worker-1@gone"}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def launcher(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> WatchedCeleryRunLauncher:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    return WatchedCeleryRunLauncher(default_queue="dagster", broker=redis.url())


@job
def nothing() -> None:
    @op
    def rest() -> None:
        pass

    rest()


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as made:
        yield made


def run_in(instance: DagsterInstance, status: DagsterRunStatus = DagsterRunStatus.STARTED) -> Any:
    return instance.create_run_for_job(nothing, run_id=str(uuid.uuid4()), status=status)


def looks(launcher: WatchedCeleryRunLauncher, run: Any, count: int) -> list[WorkerStatus]:
    return [launcher.check_run_worker_health(run).status for _ in range(count)]


def test_a_run_whose_worker_answers_no_more_is_found_dead_at_the_third_look(
    launcher: WatchedCeleryRunLauncher, instance: DagsterInstance
) -> None:
    """Celery's own state says STARTED for ever after the worker was killed."""
    run = run_in(instance)
    launcher.celery.backend.store_result(run.run_id, GONE, "STARTED")
    alive = [WorkerStatus.RUNNING] * (MISSES - 1)
    assert looks(launcher, run, MISSES) == [*alive, WorkerStatus.FAILED]
    assert "STARTED on worker-1@gone" in (launcher.get_run_worker_debug_info(run) or "")


def test_a_run_that_ends_between_two_looks_is_not_taken_for_dead(
    launcher: WatchedCeleryRunLauncher, instance: DagsterInstance
) -> None:
    run = run_in(instance)
    launcher.celery.backend.store_result(run.run_id, GONE, "STARTED")
    looks(launcher, run, MISSES - 1)
    launcher.celery.backend.store_result(run.run_id, 0, "SUCCESS")
    assert looks(launcher, run, 1) == [WorkerStatus.SUCCESS]


def test_a_broker_that_forgot_everything_does_not_kill_a_run_at_once(
    launcher: WatchedCeleryRunLauncher, instance: DagsterInstance
) -> None:
    """Redis without persistence forgets at a restart which worker has what."""
    assert looks(launcher, run_in(instance), 1) == [WorkerStatus.RUNNING]


def test_a_run_whose_process_alone_was_killed_is_found_dead_at_once(
    launcher: WatchedCeleryRunLauncher, instance: DagsterInstance
) -> None:
    run = run_in(instance)
    launcher.celery.backend.store_result(run.run_id, RuntimeError("signal 9"), "FAILURE")
    assert looks(launcher, run, 1) == [WorkerStatus.FAILED]


def test_a_run_that_is_over_is_not_terminated_again(
    launcher: WatchedCeleryRunLauncher, instance: DagsterInstance
) -> None:
    launcher.register_instance(instance)
    assert not launcher.terminate(run_in(instance, DagsterRunStatus.SUCCESS).run_id)
    assert not launcher.terminate(str(uuid.uuid4()))


def test_sender_and_workers_agree_on_their_settings(launcher: WatchedCeleryRunLauncher) -> None:
    for name in ("worker_prefetch_multiplier", "task_acks_late", "task_default_queue"):
        assert launcher.celery.conf[name] == app.conf[name], name
    assert "execute_job" in app.tasks


def test_a_worker_without_a_broker_says_which_variable_is_missing(tmp_path: Path) -> None:
    """Celery would wait for a RabbitMQ on this machine instead."""
    done = subprocess.run(
        [str(BIN / "celery"), "--quiet", "--app", "ops_pipeline.defs.distributed.app", "worker"],
        env=environment(tmp_path),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "CELERY_BROKER_URL is not set" in done.stderr


def read(path: str) -> dict[str, Any]:
    return yaml.safe_load((PROJECT / path).read_text())


def test_instances_for_one_machine_and_for_many_differ_in_where_runs_go_and_how_many() -> None:
    one, many = read("deploy/postgres/dagster.yaml"), read("deploy/distributed/dagster.yaml")
    assert many.pop("run_launcher")["class"] == WatchedCeleryRunLauncher.__name__
    many["run_queue"]["max_concurrent_runs"] = one["run_queue"]["max_concurrent_runs"]
    many["run_monitoring"]["poll_interval_seconds"] = one["run_monitoring"]["poll_interval_seconds"]
    assert many == one


def test_one_worker_has_a_place_for_every_run_that_the_queue_lets_out() -> None:
    """When the others die, a run that waits for a place longer than start_timeout_seconds would be given up."""
    limit = read("deploy/distributed/dagster.yaml")["run_queue"]["max_concurrent_runs"]
    assert f"--concurrency {limit} " in (PROJECT / "scripts" / "serve.sh").read_text()


def test_the_chart_limits_runs_and_watches_them_as_one_machine_does() -> None:
    values, one = read("deploy/kubernetes/values.yaml"), read("deploy/postgres/dagster.yaml")
    daemon = values["dagsterDaemon"]
    queue = daemon["runCoordinator"]["config"]["queuedRunCoordinator"]
    assert queue["tagConcurrencyLimits"] == one["run_queue"]["tag_concurrency_limits"]
    assert daemon["runMonitoring"]["maxRuntimeSeconds"] == one["run_monitoring"]["max_runtime_seconds"]
    for name in ("schedule", "sensor"):
        assert values["retention"][name]["purgeAfterDays"] == one["retention"][name]["purge_after_days"]
    assert values["postgresql"]["postgresqlScheme"] == "postgresql+psycopg2"
    assert values["dagsterWebserver"]["enableReadOnly"] is True


def test_dagster_takes_what_the_chart_makes_of_the_values(tmp_path: Path) -> None:
    """Helm is not here; a name that the chart hands on and Dagster does not know would end every pod at its start."""
    values = read("deploy/kubernetes/values.yaml")
    daemon = values["dagsterDaemon"]
    coordinator = daemon["runCoordinator"]
    queue = dict(coordinator["config"]["queuedRunCoordinator"])
    limits = {"tag_concurrency_limits": queue.pop("tagConcurrencyLimits")}
    rendered = {
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": coordinator["type"],
            "config": in_snake_case(queue) | limits,
        },
        "run_monitoring": in_snake_case(daemon["runMonitoring"]),
        "python_logs": in_snake_case(values["pythonLogs"]),
        "retention": in_snake_case({name: values["retention"][name] for name in ("schedule", "sensor")}),
        "sensors": in_snake_case(daemon["sensors"]),
        "schedules": in_snake_case(daemon["schedules"]),
        "telemetry": values["telemetry"],
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(rendered))
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_monitoring_enabled and instance.run_monitoring_max_resume_run_attempts == 0
        assert instance.run_monitoring_max_runtime_seconds == 3600
        assert instance.get_tick_retention_settings(InstigatorType.SENSOR)[TickStatus.SKIPPED] == 1
        assert instance.get_concurrency_config().run_queue_config is not None
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(rendered | {"run_monitoring": {"max_runtime": 1}}))
    with pytest.raises(DagsterInvalidConfigError), DagsterInstance.from_config(str(tmp_path)):
        pass


def in_snake_case(value: Any) -> Any:
    """The names of the chart as those of dagster.yaml, as its templates write them."""
    if not isinstance(value, dict):
        return value
    return {re.sub(r"([A-Z])", r"_\1", key).lower(): in_snake_case(one) for key, one in value.items()}


def test_what_the_chart_starts_as_daemon_is_the_fenced_one(tmp_path: Path) -> None:
    told = tmp_path / "ops-pipeline"
    told.write_text('#!/bin/sh\necho "$@"\n')
    told.chmod(0o755)
    done = subprocess.run(
        [str(DEPLOY / "kubernetes" / "dagster-daemon"), "run", "-w", "/dagster-workspace/workspace.yaml"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "daemon -w /dagster-workspace/workspace.yaml"


def test_an_embedded_database_is_refused_for_several_machines(tmp_path: Path) -> None:
    variables = {"DATABASE_URL": f"sqlite:///{tmp_path}/one.db", "CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        [str(PROJECT / "scripts" / "run-distributed.sh")],
        env=environment(tmp_path / "home", **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "an embedded database is for one machine" in done.stderr
