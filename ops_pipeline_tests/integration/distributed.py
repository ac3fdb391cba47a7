"""A deployment on two Celery workers, a backfill and a queue of tasks on it, and the death of one worker.

What belongs here: the scene that a test and a benchmark play, and what must be true at its end.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from celery import Celery
from dagster import AssetKey, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.execution.backfill import PartitionBackfill
from dagster._core.storage.tags import BACKFILL_ID_TAG
from dagster._core.utils import make_new_backfill_id
from sqlalchemy import Engine, Table, func, insert, select
from websockets.asyncio.server import ServerConnection

from ops_pipeline.analysis.tables import TERMINAL, analysis_results, analysis_tasks, task_events
from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.database.migrate import migrate
from ops_pipeline.definitions import build_defs
from ops_pipeline.defs.usage.partitions import hour_key
from ops_pipeline.operations.home import prepare_home
from ops_pipeline.settings import load_settings
from ops_pipeline.usage.demo import DemoPlan, write_history
from ops_pipeline.usage.hours import floor_hour
from ops_pipeline.usage.tables import COUNT_COLUMNS, hourly_model_usage, model_calls, usage_hours
from ops_pipeline_tests.analysis.analyzers import Analyzer, analyzer, answers
from ops_pipeline_tests.integration.processes import PROJECT, Running, running, wait_for

DAYS = 30
HOURS = DAYS * 24
ASSET = "hourly_model_usage"


@dataclass(frozen=True)
class Load:
    """How much there is to do.

    Attributes:
        calls: raw calls in 30 days.
        tasks: analysis tasks.
        at_once: tasks that their service takes at a time.
        seconds: how long each takes.
        patience_seconds: how long anything may take on a busy machine.
    """

    calls: int
    tasks: int
    at_once: int
    seconds: float = 1.0
    patience_seconds: float = 300


@dataclass
class Service:
    """The tasks' analyzer service: it answers half of them, and holds the others until it is let go on.

    So tasks are in the middle whenever the backfill is, which Dagster begins when it likes.
    """

    server: Analyzer
    go_on: threading.Event

    @property
    def asked(self) -> int:
        """How many requests came, those of workers that died included."""
        return len(self.server.requests)


@contextmanager
def half_of_them(load: Load) -> Iterator[Service]:
    """Run the service."""
    go_on = threading.Event()

    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        late = len(server.requests) > load.tasks // 2
        await asyncio.sleep(load.seconds)
        while late and not go_on.is_set():
            await asyncio.sleep(0.1)
        await answers(connection, request)

    with analyzer(behave) as server:
        yield Service(server, go_on)


@dataclass
class Scene:
    """A deployment on several workers that runs, and everything that it keeps."""

    load: Load
    service: Service
    deployment: Running
    engine: Engine
    instance: DagsterInstance
    broker: str
    backfill: str

    def run_of_backfill(self) -> DagsterRun | None:
        """The run of the backfill, once it is launched."""
        runs = self.instance.get_runs(RunsFilter(tags={BACKFILL_ID_TAG: self.backfill}))
        return runs[0] if runs else None

    def hours(self) -> int:
        """How many hours are done."""
        with reading(self.engine) as connection:
            return connection.execute(select(func.count()).select_from(usage_hours)).scalar_one()

    def tasks(self) -> int:
        """How many tasks have ended."""
        ended = select(func.count()).where(analysis_tasks.c.status.in_(TERMINAL))
        with reading(self.engine) as connection:
            return connection.execute(ended).scalar_one()

    def in_the_middle(self) -> bool:
        """True once part of the backfill and part of the tasks is done."""
        return self.hours() >= 24 and self.tasks() >= self.load.tasks // 4

    def all_done(self) -> bool:
        """True once nothing is left."""
        return self.hours() >= HOURS and self.tasks() == self.load.tasks

    def kill_worker_of_backfill(self) -> str:
        """Kill -9 the Celery worker that has the backfill's run, with all its processes, as a lost machine."""
        run = self.run_of_backfill()
        assert run is not None
        name = Celery(broker=self.broker, backend=self.broker).AsyncResult(run.run_id).info["hostname"]
        family = psutil.Process(self.deployment.process.pid).children(recursive=True)
        workers = [one for one in family if any(word.startswith(name.partition("@")[0] + "@") for word in _words(one))]
        assert workers, f"no process of {name}"
        for one in workers:
            one.kill()
        return name

    def a_run_at_work(self) -> str:
        """The id of a run that waits for more tasks."""
        at_work = RunsFilter(job_name="execute_analysis_tasks", statuses=[DagsterRunStatus.STARTED])
        return self.instance.get_runs(at_work)[0].run_id

    def has_become(self, run_id: str, status: DagsterRunStatus) -> bool:
        """Whether a run has come to a status."""
        run = self.instance.get_run_by_id(run_id)
        return run is not None and run.status == status

    def reasons_of_failed_runs(self) -> list[str]:
        """Why runs were reported as failed."""
        runs = self.instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.FAILURE]))
        failed = DagsterEventType.RUN_FAILURE
        return [log.message for run in runs for log in self.instance.all_logs(run.run_id, of_type=failed)]

    def losses(self) -> dict[str, Any]:
        """What was lost or done twice; empty when everything is as if nothing had happened."""
        found: dict[str, Any] = {}
        with reading(self.engine) as connection:
            raw = connection.execute(select(func.count(), *_sums(model_calls))).one()
            metered = connection.execute(select(func.sum(hourly_model_usage.c.calls), *_sums(hourly_model_usage))).one()
            if tuple(raw) != tuple(metered):
                found["usage"] = {"raw": tuple(raw), "metered": tuple(metered)}
            statuses = select(analysis_tasks.c.status, func.count()).group_by(analysis_tasks.c.status)
            counts = {row[0]: row[1] for row in connection.execute(statuses)}
            if counts != {"completed": self.load.tasks}:
                found["tasks"] = counts
            ends = (
                select(task_events.c.task_id, func.count())
                .where(task_events.c.after.in_(TERMINAL))
                .group_by(task_events.c.task_id)
                .having(func.count() != 1)
            )
            attempts = (
                select(analysis_results.c.task_id)
                .group_by(analysis_results.c.task_id)
                .having(func.count(analysis_results.c.attempt.distinct()) != 1)
            )
            more_ends, more_results = list(connection.execute(ends)), list(connection.scalars(attempts))
        if more_ends:
            found["ended more than once"] = [tuple(row) for row in more_ends]
        if more_results:
            found["results of more than one attempt"] = more_results
        return found


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _sums(table: Table) -> list[Any]:
    return [func.sum(table.c[name]) for name in (*COUNT_COLUMNS, "credits")]


@contextmanager
def distributed(folder: Path, url: str, broker: str, load: Load) -> Iterator[Scene]:
    """Start a deployment with two Celery workers over 30 days of calls to aggregate and a queue of tasks.

    Args:
        folder: for DAGSTER_HOME.
        url: of an empty PostgreSQL database.
        broker: of an empty Redis.
        load: how much there is to do.
    """
    home, end = folder / "home", floor_hour(datetime.now(UTC))
    start = end - timedelta(days=DAYS)
    engine = connect(url)
    migrate(engine)
    write_history(engine, DemoPlan(DAYS, load.calls, 3, end), lambda _: None)
    rows = [
        {"id": f"task_{number}", "service": "static-analyzer", "target": f"openai/gpt/app{number}"}
        for number in range(load.tasks)
    ]
    with writing(engine) as connection:
        connection.execute(insert(analysis_tasks), rows)
    settings = load_settings(
        dagster_home=home, database_url=url, celery_broker_url=broker, model_call_stats_start=start
    )
    variables = {
        **prepare_home(settings, PROJECT, lambda _: start),
        "CELERY_BROKER_URL": broker,
        "MODEL_CALL_STATS_START": start.isoformat(),
    }
    with (
        half_of_them(load) as service,
        patch.dict(os.environ, variables),
        DagsterInstance.from_config(str(home)) as instance,
    ):
        backfill = add_backfill(instance, [hour_key(start + timedelta(hours=hour)) for hour in range(HOURS)])
        more = {
            "DATABASE_URL": url,
            "ANALYZER_URLS": f"static-analyzer={service.server.url}",
            "ANALYSIS_WORKERS": "4",
            "ANALYSIS_WORKER_LINGER_SECONDS": "300",
            "ANALYSIS_WORKER_CONCURRENCY": str(max(1, load.at_once // 4)),
            "TASKS_PER_SERVICE": str(load.at_once),
            "TASK_POLL_INTERVAL": "2",
            "TASK_LEASE_SECONDS": "10",
        }
        names = {name: value for name, value in variables.items() if name != "DAGSTER_POSTGRES_URL"}
        with running(home, "run-distributed.sh", **names, **more) as deployment:
            yield Scene(load, service, deployment, engine, instance, broker, backfill)
    engine.dispose()


def add_backfill(instance: DagsterInstance, keys: list[str]) -> str:
    """Ask for a backfill of the hours, as the UI does."""
    backfill = PartitionBackfill.from_asset_partitions(
        backfill_id=make_new_backfill_id(),
        asset_graph=build_defs().resolve_asset_graph(),
        partition_names=keys,
        asset_selection=[AssetKey(ASSET)],
        backfill_timestamp=time.time(),
        tags={},
        dynamic_partitions_store=instance,
        all_partitions=False,
        title="30 days",
        description=None,
        run_config=None,
    )
    instance.add_backfill(backfill)
    return backfill.backfill_id


def play(scene: Scene) -> dict[str, Any]:
    """Kill one worker in the middle, wait until all is done, and tell how it went."""
    patience, deployment = scene.load.patience_seconds, scene.deployment
    wait_for(deployment, scene.in_the_middle, patience, "backfill and tasks to be in the middle")
    hours, tasks = scene.hours(), scene.tasks()
    worker, killed = scene.kill_worker_of_backfill(), time.monotonic()
    scene.service.go_on.set()
    run = scene.run_of_backfill()
    assert run is not None
    failed = DagsterRunStatus.FAILURE
    wait_for(deployment, lambda: scene.has_become(run.run_id, failed), patience, "the dead worker's run to be reported")
    noticed = time.monotonic() - killed
    wait_for(deployment, scene.all_done, patience, "the other worker to do the rest")
    return {
        "worker": worker,
        "hours_before": hours,
        "tasks_before": tasks,
        "requests": scene.service.asked,
        "noticed_seconds": noticed,
        "done_seconds": time.monotonic() - killed,
    }
