"""The job, schedule and check of the clean-up of checkpoints, run through Dagster against a real Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from dagster import DagsterInstance, DagsterRunStatus, ExecuteInProcessResult, RunRequest, SkipReason
from dagster._core.test_utils import create_run_for_test
from dagster._serdes import serialize_value
from sqlalchemy import Engine

from ops_pipeline.checkpoints.checks import check_checkpoints
from ops_pipeline.checkpoints.lock import LOCK
from ops_pipeline.cli import main
from ops_pipeline.defs.checkpoints import JOB, NO_REDIS, STORE
from ops_pipeline.defs.runs import JOB_TAG
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline.settings import load_settings
from ops_pipeline_tests.checkpoints.redis_servers import (
    DAY,
    RedisServer,
    keys_of,
    load_saver,
    put_plain,
    put_recipe,
    put_saver,
    redis_server,
    snapshot,
)
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.servers import free_port
from ops_pipeline_tests.usage.calls import rows

OP = "sweep_checkpoints"
SCHEDULE = f"{JOB}_schedule"
PASSWORD = "s3cr@t:/%41?#"


@pytest.fixture(scope="module")
def redis_for_all() -> Iterator[RedisServer]:
    """A Redis with a password."""
    with redis_server("--requirepass", PASSWORD) as server:
        yield server


@pytest.fixture
def server(redis_for_all: RedisServer) -> RedisServer:
    """The same, empty."""
    redis_for_all.client(password=PASSWORD).flushall()
    return redis_for_all


@pytest.fixture
def client(server: RedisServer) -> redis.Redis:
    """A client of database 2, where Nautobot's assistants keep their checkpoints."""
    return server.client(2, password=PASSWORD)


@pytest.fixture
def home(sqlite_engine: Engine, instance: DagsterInstance, server: RedisServer) -> Deployment:
    """A deployment with the four variables of Nautobot."""
    return deployment(
        sqlite_engine,
        instance,
        nautobot_redis_host="127.0.0.1",
        nautobot_redis_port=server.port,
        nautobot_redis_password=PASSWORD,
        # What tests write has just been touched.
        checkpoint_in_use_minutes=0,
    )


def ago(days: float) -> float:
    return time.time() - days * DAY


def run(home: Deployment, **config: Any) -> ExecuteInProcessResult:
    return home.run_job(JOB, **({OP: config} if config else {}))


def failure(result: ExecuteInProcessResult) -> tuple[str, dict[str, Any]]:
    """Why a run failed, and the metadata of the failure."""
    assert not result.success
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    data = event.step_failure_data
    metadata = data.user_failure_data.metadata if data.user_failure_data else {}
    return str(data.error), {name: value.value for name, value in metadata.items()}


def materialized(result: ExecuteInProcessResult) -> dict[str, Any]:
    """The metadata of the run's only materialization."""
    (event,) = result.get_asset_materialization_events()
    assert event.asset_key is not None and event.asset_key.path == [STORE]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def shown(result: ExecuteInProcessResult) -> dict[str, Any]:
    """The metadata of the op's output."""
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def test_a_run_deletes_idle_threads_and_tells_the_documented_result(
    engine: Engine, instance: DagsterInstance, server: RedisServer, client: redis.Redis
) -> None:
    home = deployment(
        engine, instance, checkpoint_redis_url=server.url(2, password=PASSWORD), checkpoint_in_use_minutes=0
    )
    for number in range(3):
        put_saver(client, f"idle-{number}", ago(40))
    live = put_saver(client, "live", ago(4))
    client.set("celery", "1")
    result = run(home)
    assert result.success
    assert keys_of(client, "idle") == [] and load_saver(client, "live") == live
    metadata = materialized(result)
    documented = {
        "success": True,
        "processed_count": 21,
        "deleted_count": 15,
        "retention_days": 30,
        "error": "None.",
    }
    assert {name: metadata[name] for name in documented} == documented
    assert metadata["removed"].endswith("| whole | 3 |")
    assert metadata["kept"].endswith("| live | 1 |")
    numbers = ("processed_count", "deleted_count", "threads", "threads_removed", "matched_keys", "foreign_keys")
    assert [metadata[name] for name in numbers] == [21, 15, 4, 3, 20, 1]
    assert metadata["used_bytes_before"] > 0 and metadata["resident_bytes_after"] > 0
    assert metadata["warnings"] == "None."
    assert metadata["changes"].count("| delete: 5 keys | newest 40 days old |") == 3
    assert metadata["largest_threads"].startswith("| thread | keys |")
    assert metadata["threads_by_age"].startswith("![Threads by age](data:image/png;base64,iVBOR")
    assert shown(result)["deleted_count"] == 15
    (outcome,) = rows(engine, job_outcomes)
    assert (outcome["job"], outcome["run_id"], outcome["status"]) == (JOB, result.run_id, "success")
    assert [outcome[name] for name in ("scanned", "changed", "skipped", "failed")] == [4, 3, 0, 0]
    assert outcome["details"]["reasons"] == {"whole": 3, "kept: live": 1}
    assert outcome["details"]["deleted_count"] == 15
    again = materialized(run(home))
    assert (again["deleted_count"], again["threads"], again["changes"]) == (0, 1, "Nothing to do.")


def test_ids_that_look_like_formulas_do_not_break_the_picture(home: Deployment, client: redis.Redis) -> None:
    """The threads were deleted, then the run failed at drawing "$user__1$", and nothing was recorded."""
    for thread in ("user__1", "\\frac{", "a^b^c", "é中\n", "%s{}"):
        put_recipe(client, thread, ago(40))
        put_saver(client, f"${thread}$", ago(4))
    assert materialized(run(home))["threads_removed"] == 5


# Warnings


def test_a_wrong_database_is_told_with_its_number_and_the_patterns(home: Deployment, server: RedisServer) -> None:
    """The original scanned database 2 for years while the checkpoints lay in database 0, and reported success."""
    assert "Database 2 of redis://***@127.0.0.1" in materialized(run(home))["warnings"]
    server.client(2, password=PASSWORD).set("celery", "1")
    result = run(home)
    assert result.success
    told = materialized(result)["warnings"]
    assert "None of 1 keys in database 2 of redis://***@127.0.0.1" in told
    assert "(checkpoint:*, checkpoint_write:*): is it the right database (the number in CHECKPOINT" in told
    logs = [record.user_message for record in home.instance.all_logs(result.run_id) if record.level >= 30]
    assert any("in database 2" in line for line in logs)


def test_keys_of_no_known_layout_are_told_with_examples(home: Deployment, client: redis.Redis) -> None:
    client.set("checkpoint_write:what", "1")
    put_saver(client, "live", ago(4))
    assert "left alone: checkpoint_write:what" in materialized(run(home))["warnings"]


def test_short_memory_shortens_the_retention_and_says_so(
    sqlite_engine: Engine, instance: DagsterInstance, server: RedisServer, client: redis.Redis
) -> None:
    home = deployment(
        sqlite_engine,
        instance,
        checkpoint_redis_url=server.url(2, password=PASSWORD),
        checkpoint_memory_limit_mb=1,
        checkpoint_short_retention_days=2,
        checkpoint_in_use_minutes=0,
        checkpoint_retention_floor_days=10,
    )
    client.set("ballast", "x" * 2_000_000)
    put_saver(client, "idle", ago(11))
    put_saver(client, "live", ago(9))
    metadata = materialized(run(home))
    assert (metadata["retention_days"], metadata["threads_removed"]) == (10, 1)
    assert "threads are kept 10 days instead of 30 by this run" in metadata["warnings"]


# What a run may be asked for


def test_a_dry_run_shows_and_records_nothing(home: Deployment, client: redis.Redis) -> None:
    put_saver(client, "idle", ago(40))
    before = snapshot(client)
    result = run(home, dry_run=True)
    assert result.success
    assert snapshot(client) == before
    assert rows(home.engine, job_outcomes) == []
    assert result.get_asset_materialization_events() == []
    metadata = shown(result)
    assert (metadata["deleted_count"], metadata["threads"]) == (0, 1)
    assert (metadata["threads_planned"], metadata["keys_planned"]) == (1, 5)
    assert metadata["changes"].startswith("1 thread with 5 keys:")
    assert "| idle | delete: 5 keys | newest 40 days old |" in metadata["changes"].replace(":__empty__", "")


def test_a_plan_that_takes_too_much_is_refused_until_the_limit_is_raised(home: Deployment, client: redis.Redis) -> None:
    """Somebody restored a backup of last year."""
    for number in range(30):
        put_saver(client, f"idle-{number}", ago(40))
    before = snapshot(client)
    told, metadata = failure(run(home))
    assert "30 of 30 objects are more than the limit of 80%" in told
    assert "Nothing was changed." in told and "deleted" not in told.partition("Stack Trace")[0]
    assert (metadata["success"], metadata["deleted_count"]) == (False, 0)
    assert "| delete: 5 keys |" in metadata["changes"]
    assert snapshot(client) == before
    (outcome,) = rows(home.engine, job_outcomes)
    assert (outcome["status"], outcome["changed"]) == ("failed", 0)
    assert run(home, max_share=1.0).success
    assert client.dbsize() == 0


def test_a_user_is_erased_by_name(home: Deployment, client: redis.Redis) -> None:
    put_saver(client, "user-1-a", ago(0.01))
    put_plain(client, "user-1-b", ago(3))
    other = put_saver(client, "user-12-a", ago(3))
    metadata = materialized(run(home, threads=["user-1-*"], delete_all=True))
    assert (metadata["threads_removed"], metadata["deleted_count"]) == (2, 6)
    assert keys_of(client, "user-1-") == [] and load_saver(client, "user-12-a") == other


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"delete_all": True}, "name the threads"),
        ({"threads": ["*"], "delete_all": True}, "names no thread, or every one"),
        ({"threads": [""], "delete_all": True}, "names no thread, or every one"),
        ({"retention_days": 0}, "a retention must be longer than nothing"),
        ({"retention_days": -1}, "a retention must be longer than nothing"),
        ({"max_share": 2.0}, "a share lies between 0 and 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    home: Deployment, client: redis.Redis, config: dict[str, Any], told: str
) -> None:
    put_saver(client, "idle", ago(400))
    before = snapshot(client)
    assert told in failure(run(home, **config))[0]
    assert snapshot(client) == before


def test_another_retention_and_expiry_for_one_run(home: Deployment, client: redis.Redis) -> None:
    put_saver(client, "idle", ago(5))
    metadata = materialized(run(home, retention_days=4.5, expire_hours=2.0, purge_memory=True))
    assert (metadata["retention_days"], metadata["deleted_count"]) == (4.5, 5)
    assert all(7190 < client.ttl(key) <= 10_800 for key in keys_of(client, "idle"))


# Failures


def test_a_redis_that_dies_midway_fails_the_run_with_what_was_done(
    sqlite_engine: Engine, instance: DagsterInstance
) -> None:
    with redis_server() as private:
        client = private.client()
        with client.pipeline(transaction=False) as pipeline:
            for number in range(400):
                put_saver(pipeline, f"idle-{number}", ago(40))
                put_plain(pipeline, f"idle-plain-{number}", ago(40))
            pipeline.execute()
        # A user who may run the script for threads with pointers, and not the command for those without.
        script = ["+@all", "-unlink", "+eval", "+evalsha"]
        client.acl_setuser("sweeper", enabled=True, passwords=["+secret"], keys=["*"], commands=script)
        url = private.url(user="sweeper", password="secret")
        home = deployment(sqlite_engine, instance, checkpoint_redis_url=url, checkpoint_max_share=1)
        told, metadata = failure(run(home))
        assert "Check the rights of this user in the Redis URL." in told
        assert (metadata["success"], metadata["error"] in told) == (False, True)
        private.kill()
        told, metadata = failure(run(home))
        assert "Connection refused" in told and "Check that the server runs" in told
        assert metadata["processed_count"] == 0
    assert [row["status"] for row in rows(sqlite_engine, job_outcomes)] == ["failed", "failed"]
    assert [row["details"]["success"] for row in rows(sqlite_engine, job_outcomes)] == [False, False]


def test_a_user_without_the_right_to_info_fails_the_run_in_words(
    sqlite_engine: Engine, instance: DagsterInstance
) -> None:
    """Memory was looked at before errors were put into words: a traceback, and no record of the run."""
    with redis_server() as private:
        private.client().acl_setuser(
            "sweeper", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-info"]
        )
        url = private.url(user="sweeper", password="secret")
        told, _ = failure(run(deployment(sqlite_engine, instance, checkpoint_redis_url=url)))
    assert "Check the rights of this user" in told
    assert len(rows(sqlite_engine, job_outcomes)) == 1


def test_another_sweep_at_work_fails_the_run_and_is_left_alone(home: Deployment, client: redis.Redis) -> None:
    put_saver(client, "idle", ago(40))
    client.set(LOCK, "somebody", px=50_000)
    told, _ = failure(run(home))
    assert "Another sweep of redis://***@127.0.0.1" in told
    assert client.get(LOCK) == b"somebody" and load_saver(client, "idle") is not None


def test_without_a_redis_a_run_says_what_to_set(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    home = deployment(sqlite_engine, instance)
    assert NO_REDIS in failure(run(home))[0]
    assert rows(sqlite_engine, job_outcomes) == []


def test_no_event_of_a_run_holds_a_password(home: Deployment, server: RedisServer, client: redis.Redis) -> None:
    """Everybody who may see runs reads the event log, and storage keeps it for months."""
    put_saver(client, "idle", ago(40))
    other = deployment(home.engine, home.instance, checkpoint_redis_url=server.url(2, password=PASSWORD + "wrong"))
    results = [run(home), run(other)]
    assert [result.success for result in results] == [True, False]
    log = [serialize_value(record) for result in results for record in home.instance.all_logs(result.run_id)]
    assert len(log) > 20
    assert any("Check user and password" in text for text in log)
    found = "\n".join(log) + str(rows(home.engine, job_outcomes))
    for secret in (PASSWORD, PASSWORD[:5], "s3cr", "%2541"):
        assert secret not in found


# The schedule


def tick(home: Deployment) -> list[RunRequest] | SkipReason:
    return home.tick(SCHEDULE, datetime.now(UTC))


def test_the_schedule_runs_once_a_day_and_never_beside_a_run(home: Deployment) -> None:
    schedule = home.definitions.resolve_schedule_def(SCHEDULE)
    assert (schedule.default_status.value, schedule.cron_schedule) == ("RUNNING", "0 3 * * *")
    tags = home.definitions.resolve_job_def(JOB).tags
    assert (tags[JOB_TAG], tags["dagster/max_runtime"]) == (JOB, "900")
    for status in (DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED):
        busy = create_run_for_test(home.instance, JOB, status=status)
        skipped = tick(home)
        assert isinstance(skipped, SkipReason)
        assert skipped.skip_message == f"{JOB} is {status.value.lower()} (run {busy.run_id[:8]})."
        home.instance.report_run_canceled(busy)
    requests = tick(home)
    assert isinstance(requests, list) and home.run_requests(requests, JOB) == [True]


def test_the_schedule_skips_where_no_redis_is_named(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    skipped = tick(deployment(sqlite_engine, instance))
    assert isinstance(skipped, SkipReason) and skipped.skip_message == NO_REDIS


# The check


def checked(**settings: Any) -> tuple[bool, str]:
    (found,) = check_checkpoints(load_settings(**settings))
    assert found.name == "CHECKPOINT_REDIS_URL"
    return found.ok, found.detail


def test_the_check_connects_and_counts(server: RedisServer, client: redis.Redis) -> None:
    assert checked() == (True, "not set: checkpoints are not cleaned up")
    put_saver(client, "idle", ago(40))
    before = snapshot(client)
    place = f"redis://***@127.0.0.1:{server.port}"
    url = server.url(2, password=PASSWORD)
    assert checked(checkpoint_redis_url=url) == (True, f"{place}/2 answers, database 2 holds 5 keys")
    assert snapshot(client) == before
    ok, told = checked(checkpoint_redis_url=server.url(99, password=PASSWORD))
    assert not ok and "Check the number of the database" in told
    ok, told = checked(checkpoint_redis_url=server.url(2, password="s3crux"))
    assert not ok and "Check user and password" in told and "s3crux" not in told
    ok, told = checked(checkpoint_redis_url=f"redis://127.0.0.1:{free_port()}/0")
    assert not ok and "Check that the server runs" in told
    ok, told = checked(checkpoint_redis_url=url, checkpoint_pinned_threads="*")
    assert not ok and "names no thread, or every one" in told


def test_the_command_check_tells_about_the_redis_too(
    sqlite_engine: Engine, tmp_path: Path, server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", sqlite_engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("NAUTOBOT_REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("NAUTOBOT_REDIS_PORT", str(server.port))
    monkeypatch.setenv("NAUTOBOT_REDIS_PASSWORD", PASSWORD)
    put_saver(client, "idle", ago(40))
    well = CliRunner().invoke(main, ["check"])
    line = f"ok     CHECKPOINT_REDIS_URL: redis://***@127.0.0.1:{server.port}/2 answers, database 2 holds 5 keys"
    assert line in well.output
    monkeypatch.setenv("NAUTOBOT_REDIS_PASSWORD", "s3crux")
    broken = CliRunner().invoke(main, ["check"])
    assert broken.exit_code == 1
    assert "FAILED CHECKPOINT_REDIS_URL: redis://***@127.0.0.1" in broken.output
    assert "s3cr" not in well.output + broken.output
