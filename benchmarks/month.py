"""A simulated month of Dagster's storage: `python -m benchmarks.month`; results are in RESULTS.md.

What a deployment writes in a day that has nothing but its hourly work to do is written 30 times, each day at its own
date: copies of real runs with all of their events and files, ticks that skipped, and words of sensors. After each day
the housekeeping of that night is done, by the functions of `prune_dagster_storage` and Dagster's own purge of ticks.
Printed is the size after each night, which must not grow any more once the first runs have reached their retention.

What belongs here: writing a day, and the clock of the nights.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from dagster import AssetKey, AssetObservation, DagsterInstance
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster._core.storage.schedules.schema import JobTickTable
from dagster._serdes import serialize_value
from sqlalchemy import insert, select

from benchmarks.databases import DATABASES, database
from benchmarks.report import machine
from ops_pipeline.database.engine import connect, sqlite_url
from ops_pipeline.database.migrate import migrate
from ops_pipeline.defs.housekeeping import finished_runs
from ops_pipeline.defs.pruning import delete_runs, storage_bytes
from ops_pipeline.defs.runless import delete_old_words
from ops_pipeline.operations.retention import Retention, plan_pruning
from ops_pipeline_tests.defs.deployment import Deployment, deployment

FIRST = datetime(2026, 3, 1, tzinfo=UTC)
RUNS_A_DAY = {
    "hourly_model_usage_job": 24,
    "daily_model_usage_job": 24,
    "monthly_model_usage_job": 24,
    "usage_report_job": 24,
    "cleanup_stale_model_calls": 10,
}
"""Each hour makes its day, its month and its report stale; the last stands for all that runs only for work."""
TICKS_A_DAY = 34 * 1440
WORDS_A_DAY = 50
BATCH = 25
GROWTH = 1.1
"""How much larger the last night may be than the first after the retention: reports and partitions are kept."""


@dataclass(frozen=True)
class Template:
    """A run that took place, as rows."""

    run_id: str
    partition: str
    run: dict[str, Any]
    tags: list[dict[str, Any]]
    events: list[dict[str, Any]]
    index: list[dict[str, Any]]


def template(home: Deployment, job: str, partition: str) -> Template:
    """Run a job once, and read what it left."""
    result = home.run(job, partition) if job.endswith("_job") else home.run_job(job)
    if not result.success:
        raise RuntimeError(f"{job} failed")
    storage: Any = home.instance.event_log_storage
    event = SqlEventLogStorageTable
    wanted = select(event).where(event.c.run_id == result.run_id).order_by(event.c.id)
    with storage.run_connection(result.run_id) as connection:
        events = _without_id(connection.execute(wanted).mappings())
    index: list[dict[str, Any]] = []
    if isinstance(storage, SqliteEventLogStorage):
        with storage.index_connection() as connection:
            index = _without_id(connection.execute(wanted).mappings())
    runs: Any = home.instance.run_storage
    with runs.connect() as connection:
        rows = connection.execute(select(RunsTable).where(RunsTable.c.run_id == result.run_id)).mappings()
        tags = connection.execute(select(RunTagsTable).where(RunTagsTable.c.run_id == result.run_id)).mappings()
        return Template(result.run_id, partition, _without_id(rows)[0], _without_id(tags), events, index)


def _without_id(rows: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "id"} for row in rows]


def copy_run(instance: DagsterInstance, one: Template, ended: datetime, partition: str) -> None:
    """Write a run as if it had ended then, about another partition."""
    run_id, naive = str(uuid.uuid4()), ended.replace(tzinfo=None)

    def changed(row: dict[str, Any], **values: Any) -> dict[str, Any]:
        texts = {name: _renamed(text, one, run_id, partition) for name, text in row.items() if isinstance(text, str)}
        return {**row, **texts, **values}

    storage: Any = instance.event_log_storage
    runs: Any = instance.run_storage
    times = {"create_timestamp": naive, "update_timestamp": naive}
    seconds = {"start_time": ended.timestamp() - 2, "end_time": ended.timestamp()}
    with runs.connect() as connection:
        connection.execute(insert(RunsTable), [changed(one.run, **times, **seconds)])
        if one.tags:
            connection.execute(insert(RunTagsTable), [changed(tag) for tag in one.tags])
    if isinstance(storage, SqliteEventLogStorage):
        # A file for each run there, whose tables take some time to make.
        _copy_file(storage.path_for_shard(one.run_id), storage.path_for_shard(run_id), one, run_id, partition)
        with storage.index_connection() as connection:
            connection.execute(
                insert(SqlEventLogStorageTable), [changed(event, timestamp=naive) for event in one.index]
            )
    else:
        with storage.index_connection() as connection:
            connection.execute(
                insert(SqlEventLogStorageTable), [changed(event, timestamp=naive) for event in one.events]
            )
    logs = Path(instance.storage_directory()) / run_id / "compute_logs"
    logs.mkdir(parents=True)
    (logs / "step.out").write_text("")
    (logs / "step.err").write_text("A line of the log of a run, as long as most of them are.\n" * 40)


def _copy_file(source: str, target: str, one: Template, run_id: str, partition: str) -> None:
    """Copy the file of a run's events, and let it tell of another run and partition."""
    with closing(sqlite3.connect(source)) as original:
        # What is in its log only would not be copied.
        original.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(source, target)
    told = "event = replace(replace(event, :old, :new), :was, :is)"
    about = "partition = iif(partition IS NULL, NULL, :partition)"
    with closing(sqlite3.connect(target)) as copied:
        copied.execute(
            f"UPDATE event_logs SET run_id = :new, {told}, {about}",
            {
                "old": one.run_id,
                "new": run_id,
                "was": f'"{one.partition}"',
                "is": f'"{partition}"',
                "partition": partition,
            },
        )
        copied.commit()
        copied.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _renamed(words: str, one: Template, run_id: str, partition: str) -> str:
    words = words.replace(one.run_id, run_id)
    return words.replace(f'"{one.partition}"', f'"{partition}"') if words != one.partition else partition


def write_day(instance: DagsterInstance, templates: dict[str, Template], day: datetime) -> None:
    """All that a day leaves."""
    for job, count in RUNS_A_DAY.items():
        for number in range(count):
            ended = day + timedelta(hours=24 * (number + 1) / count)
            hour = day + timedelta(hours=number)
            names = {"hourly": f"{hour:%Y-%m-%d-%H:00}", "monthly": f"{day:%Y-%m}-01"}
            copy_run(instance, templates[job], ended, names.get(job.partition("_")[0], f"{day:%Y-%m-%d}"))
    tick = TickData(
        "origin", "sensor", InstigatorType.SENSOR, TickStatus.SKIPPED, day.timestamp(), skip_reason="Nothing to do."
    )
    row = {
        "job_origin_id": "origin",
        "selector_id": "selector",
        "status": TickStatus.SKIPPED.value,
        "type": InstigatorType.SENSOR.value,
        "timestamp": day.replace(tzinfo=None),
        "tick_body": serialize_value(tick),
    }
    schedules: Any = instance.schedule_storage
    with schedules.connect() as connection:
        for _ in range(TICKS_A_DAY // 1000):
            connection.execute(insert(JobTickTable), [row] * 1000)
    for number in range(WORDS_A_DAY):
        instance.report_runless_asset_event(AssetObservation("machines", metadata={"number": number}))
    event = SqlEventLogStorageTable
    storage: Any = instance.event_log_storage
    spoken = event.update().where(
        event.c.run_id == "", event.c.timestamp > datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)
    )
    for connecting in (storage.index_connection, lambda: storage.run_connection("")):
        with connecting() as connection:
            connection.execute(spoken.values(timestamp=day.replace(tzinfo=None)))


def night(instance: DagsterInstance, retention: Retention, now: datetime) -> int:
    """The housekeeping of one night; the runs that went."""
    plan = plan_pruning(finished_runs(instance), retention, now)
    ids = [change.key for change in plan.changes]
    for first in range(0, len(ids), BATCH):
        delete_runs(instance, ids[first : first + BATCH])
    delete_old_words(instance, now - timedelta(days=retention.days), lambda: False)
    instance.purge_ticks("origin", "selector", (now - timedelta(days=1)).timestamp(), [TickStatus.SKIPPED])
    return len(ids)


@contextmanager
def dagster(which: str, folder: Path) -> Generator[DagsterInstance]:
    """An instance with its storage in files or in PostgreSQL."""
    home = folder / "dagster"
    home.mkdir()
    settings = "telemetry:\n  enabled: false\n"
    if which == "sqlite":
        (home / "dagster.yaml").write_text(settings)
        with DagsterInstance.from_config(str(home)) as instance:
            yield instance
        return
    with database(which, folder) as one:
        # In a schema of its own: the tables of the operations database do not count.
        one.execute("CREATE SCHEMA dagster")
        url = f"{one.url.replace('+psycopg:', '+psycopg2:')}?options=-csearch_path%3Ddagster"
        (home / "dagster.yaml").write_text(f"{settings}storage:\n  postgres:\n    postgres_url: {url}\n")
        with DagsterInstance.from_config(str(home)) as instance:
            yield instance


@click.command(context_settings={"show_default": True})
@click.option("--days", default=30, type=click.IntRange(3), help="How many days to simulate.")
@click.option("--keep-days", default=7, type=click.IntRange(1), help="The retention of all runs, in days.")
@click.option("--database", "which", default="sqlite", type=click.Choice(DATABASES), help="Where.")
def main(*, days: int, keep_days: int, which: str) -> None:
    """Simulate days and nights, and print the size after each."""
    where, began = machine(), time.monotonic()
    retention = Retention(keep_days, {})
    with tempfile.TemporaryDirectory(prefix="ops_pipeline_benchmark_") as name:
        folder = Path(name)
        folder.chmod(0o755)
        operations = connect(sqlite_url(folder))
        migrate(operations)
        with dagster(which, folder) as instance:
            home = deployment(operations, instance, reports_dir=folder / "reports")
            keys = {"hourly_model_usage_job": "2026-03-01-00:00"}
            templates = {job: template(home, job, keys.get(job, "2026-03-01")) for job in RUNS_A_DAY}
            sizes = [storage_bytes(instance)]
            for number in range(days):
                day = FIRST + timedelta(days=number)
                write_day(instance, templates, day)
                written = storage_bytes(instance)
                gone = night(instance, retention, day + timedelta(days=1, hours=4.5))
                sizes.append(storage_bytes(instance))
                print(
                    f"{day:%m-%d}: {written / 1e6:7.1f} MB, {gone:3} runs went, {sizes[-1] / 1e6:7.1f} MB", flush=True
                )
            green = instance.get_materialized_partitions(AssetKey("hourly_model_usage"))
        operations.dispose()
    full, last = sizes[keep_days + 2] / 1e6, sizes[-1] / 1e6
    print(f"\n{which}, {where['date']}, {where['cores']} cores, load {where['load_average'][0]}")
    print(f"{days} days, runs kept for {keep_days}: {full:.1f} MB once the first ones went, {last:.1f} MB at last")
    print(f"hours that are green: {len(green)} of {24 * days}; {time.monotonic() - began:.0f} s")
    bounded = last <= full * GROWTH and len(green) == 24 * days
    print("ok" if bounded else "missed", flush=True)
    sys.exit(0 if bounded else 1)


if __name__ == "__main__":
    main()
