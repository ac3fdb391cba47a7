"""`make run-distributed` as an operator sees it: real PostgreSQL, Redis, Celery workers, daemon and web server."""

from __future__ import annotations

from pathlib import Path

from dagster import DagsterRunStatus

from ops_pipeline_tests.checkpoints.redis_servers import redis_server
from ops_pipeline_tests.integration.distributed import HOURS, Load, Scene, distributed, play
from ops_pipeline_tests.integration.processes import wait_for
from ops_pipeline_tests.servers import PostgresServer

TERMINATE = "mutation terminate($run: String!) { terminateRun(runId: $run) { __typename } }"


def test_a_worker_killed_in_the_middle_of_a_backfill_and_of_a_queue_loses_nothing_and_doubles_nothing(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    load = Load(calls=60_000, tasks=100, at_once=8, seconds=0.5)
    url = postgres_server.new_database()
    with redis_server() as redis, distributed(tmp_path, url, redis.url(), load) as scene:
        told = play(scene)
        assert told["hours_before"] < HOURS
        assert told["tasks_before"] < load.tasks
        assert scene.losses() == {}, told
        assert any("No worker has it" in reason for reason in scene.reasons_of_failed_runs())
        a_run_is_terminated_in_the_ui(scene)
        assert scene.deployment.stop() < 60


def a_run_is_terminated_in_the_ui(scene: Scene) -> None:
    run_id = scene.a_run_at_work()
    answer = scene.deployment.graphql(TERMINATE, {"run": run_id})
    assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess"
    canceled = DagsterRunStatus.CANCELED
    wait_for(scene.deployment, lambda: scene.has_become(run_id, canceled), 100, "the run to be canceled")
