"""Dagster's own history is bounded, and nothing is forgotten with it that still counts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    DagsterInstance,
    job,
    op,
)
from dagster._core.storage.event_log import SqliteEventLogStorage
from sqlalchemy import Engine, select

from ops_pipeline.database.engine import reading
from ops_pipeline.defs import housekeeping
from ops_pipeline.defs.pruning import delete_runs, storage_bytes
from ops_pipeline.defs.runless import count_old_words, delete_old_words
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.servers import PostgresServer
from ops_pipeline_tests.usage.calls import at, call, write

HOURLY = "hourly_model_usage"
JOB = f"{HOURLY}_job"
NOW = 1e-9
"""A retention in days that everything is beyond."""


@pytest.fixture(params=["sqlite", "postgresql"])
def instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DagsterInstance]:
    """A Dagster instance with its storage in files, or in PostgreSQL."""
    config = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.new_database().replace("+psycopg:", "+psycopg2:")
        config = f"storage:\n  postgres:\n    postgres_url: {url}\n"
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text(config + "telemetry:\n  enabled: false\n")
    with DagsterInstance.from_config(str(tmp_path / "dagster")) as made:
        yield made


@pytest.fixture
def used(sqlite_engine: Engine, instance: DagsterInstance) -> Deployment:
    """Five hours of calls, aggregated by two runs."""
    write(sqlite_engine, *[call(at(f"2026-03-01 0{hour}:30")) for hour in range(5)])
    used = deployment(sqlite_engine, instance)
    assert used.run(JOB, "2026-03-01-00:00", "2026-03-01-02:00").success
    assert used.run(JOB, "2026-03-01-03:00", "2026-03-01-04:00").success
    return used


def prune(used: Deployment, **config: object):  # type: ignore[no-untyped-def]
    result = used.run_job(housekeeping.JOB, plan_pruning_of_runs=config)
    assert result.success
    with reading(used.engine) as connection:
        return connection.execute(select(job_outcomes).order_by(job_outcomes.c.id.desc())).first()


def jobs_of(instance: DagsterInstance) -> list[str]:
    return sorted(run.job_name for run in instance.get_runs())


def test_hours_made_by_runs_that_are_deleted_stay_green(used: Deployment) -> None:
    """Deleting a run deletes its materializations: five good hours looked missing, and would have been done again."""
    before = used.materialized(HOURLY)
    assert len(before) == 5
    outcome = prune(used, days=NOW)
    assert outcome.changed == 1
    assert used.materialized(HOURLY) == before
    assert jobs_of(used.instance) == [JOB, housekeeping.JOB]


def test_what_is_said_again_says_the_same(used: Deployment) -> None:
    def said() -> dict[str, object]:
        records = used.instance.fetch_materializations(AssetKey(HOURLY), limit=100).records
        latest = {}
        for record in reversed(records):
            assert record.asset_materialization
            latest[record.asset_materialization.partition] = record.asset_materialization.metadata
        return latest

    before = said()
    prune(used, days=NOW)
    assert said() == before


def test_a_second_pass_right_after_deletes_nothing_but_the_first_ones_own_run(used: Deployment) -> None:
    prune(used, days=NOW)
    outcome = prune(used, days=NOW)
    assert outcome.changed == 0


def test_a_dry_run_shows_the_plan_and_deletes_nothing(used: Deployment) -> None:
    assert prune(used, days=NOW, dry_run=True).job == HOURLY
    assert jobs_of(used.instance).count(JOB) == 2


def test_old_words_of_no_run_go_and_the_newest_about_each_partition_and_asset_stays(instance: DagsterInstance) -> None:
    """Sensors speak without a run, and nothing ever deleted that: a small deployment grew for ever."""
    for _ in range(3):
        for partition in ("a", "b", None):
            instance.report_runless_asset_event(AssetMaterialization("spoken", partition=partition, tags={"k": "v"}))
        instance.report_runless_asset_event(AssetObservation("spoken"))
        instance.report_runless_asset_event(check_passed("spoken"))
    future = datetime.now(UTC) + timedelta(days=1)
    newest = instance.get_latest_materialization_event(AssetKey("spoken"))
    assert count_old_words(instance, datetime.now(UTC) - timedelta(days=1)) == 0
    # Two of three words about each, all events of the check, and two of its three rows.
    assert count_old_words(instance, future) == 2 * 4 + 3 + 2
    assert delete_old_words(instance, future, lambda: True) == 0
    assert delete_old_words(instance, future, lambda: False) == 13
    assert count_old_words(instance, future) == 0
    assert instance.get_materialized_partitions(AssetKey("spoken")) == {"a", "b"}
    assert instance.get_latest_materialization_event(AssetKey("spoken")) == newest
    assert len(instance.fetch_observations(AssetKey("spoken"), limit=10).records) == 1
    key = AssetCheckKey(AssetKey("spoken"), "good")
    assert len(instance.event_log_storage.get_asset_check_execution_history(key, limit=10)) == 1


def check_passed(asset: str) -> AssetCheckEvaluation:
    return AssetCheckEvaluation(asset_key=AssetKey(asset), check_name="good", passed=True, metadata={})


def test_the_word_of_a_run_outlives_older_ones_of_no_run(used: Deployment) -> None:
    used.instance.report_runless_asset_event(AssetMaterialization(HOURLY, partition="2026-03-01-00:00"))
    before = used.materialized(HOURLY)
    prune(used, days=NOW)
    prune(used, days=NOW)
    assert used.materialized(HOURLY) == before


def test_young_runs_stay(used: Deployment) -> None:
    assert prune(used).changed == 0


def test_a_run_that_holds_the_latest_word_about_an_asset_without_partitions_stays(instance: DagsterInstance) -> None:
    @op
    def say(context) -> None:  # type: ignore[no-untyped-def]
        context.log_event(AssetMaterialization("host_services"))

    @job
    def saying() -> None:
        say()

    runs = [saying.execute_in_process(instance=instance).run_id for _ in range(2)]
    pruned = delete_runs(instance, runs)
    assert pruned.deleted == (runs[0],)
    assert pruned.kept == (runs[1],)
    assert instance.get_latest_materialization_event(AssetKey("host_services")) is not None


def test_files_and_logs_of_a_deleted_run_are_gone(used: Deployment) -> None:
    """Dagster empties a run's file on SQLite and leaves 120 kB behind, for ever."""
    (run_id, *_) = [run.run_id for run in used.instance.get_runs() if run.job_name == JOB][-1:]
    size = storage_bytes(used.instance)
    delete_runs(used.instance, [run_id])
    assert used.instance.get_run_by_id(run_id) is None
    root = Path(used.instance.root_directory)
    assert [file for file in root.rglob("*") if run_id in file.name] == []
    if isinstance(used.instance.event_log_storage, SqliteEventLogStorage):
        assert storage_bytes(used.instance) < size


def test_a_batch_that_fails_leaves_the_others_done_and_the_run_red(
    used: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One broken file of a run ended the clean-up of all others, every night."""
    real, first = housekeeping.delete_runs, []

    def delete(instance: DagsterInstance, ids: list[str]):  # type: ignore[no-untyped-def]
        first.append(ids)
        if len(first) == 1:
            raise OSError("read-only file system")
        return real(instance, ids)

    assert used.run(JOB, "2026-03-01-04:00").success
    monkeypatch.setattr(housekeeping, "delete_runs", delete)
    monkeypatch.setattr(housekeeping, "BATCH", 1)
    result = used.run_job(housekeeping.JOB, plan_pruning_of_runs={"days": NOW})
    assert not result.success
    with reading(used.engine) as connection:
        outcome = connection.execute(select(job_outcomes).order_by(job_outcomes.c.id.desc())).first()
    assert outcome and (outcome.changed, outcome.failed, outcome.status) == (1, 1, "failed")


def test_the_schedule_skips_when_nothing_is_beyond_its_retention(used: Deployment) -> None:
    skipped = used.tick(f"{housekeeping.JOB}_schedule", at("2026-03-02 04:30"))
    assert "None of 2 runs" in str(getattr(skipped, "skip_message", skipped))
