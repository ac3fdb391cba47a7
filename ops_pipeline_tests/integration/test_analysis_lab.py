"""The analysis lab as `make run` shows it: demo, real daemon, workers that are terminated in the UI or killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select

from ops_pipeline.analysis.pipelines.tables import pipelines
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.recovery.leases import recover_leases
from ops_pipeline.analysis.tables import analysis_tasks, analysis_workers, analyzer_services, task_events
from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline_tests.analysis.analyzers import analyzer, answers, is_silent
from ops_pipeline_tests.analysis.working import add_task, row_of, status_of
from ops_pipeline_tests.integration.processes import command, running, wait_for

TERMINATE = """
mutation terminate($run: String!) { terminateRun(runId: $run) { __typename ... on PythonError { message } } }
"""
RUN = "query run($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"

DEMO = {"completed": 21 + 12, "failed": 2, "pending": 2}
"""What the analyzer does, and what is left for maintenance: four old trees, and two that nobody takes."""


def counts_of(engine: Engine) -> dict[str, int]:
    query = select(analysis_tasks.c.status, func.count()).group_by(analysis_tasks.c.status)
    with reading(engine) as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def pipeline_status(engine: Engine) -> str | None:
    with reading(engine) as connection:
        return connection.execute(select(pipelines.c.status)).scalar()


def worker_of(engine: Engine, task_id: str) -> Any:
    owner = row_of(engine, task_id).lease_owner
    with reading(engine) as connection:
        return connection.execute(select(analysis_workers).where(analysis_workers.c.owner == owner)).one_or_none()


def was_interrupted(engine: Engine, task_id: str) -> bool:
    """Whether a worker that was interrupted gave the task back."""
    told = select(task_events.c.reason).where(task_events.c.task_id == task_id, task_events.c.after == "pending")
    with reading(engine) as connection:
        return any(reason.startswith("interrupted") for reason in connection.scalars(told))


def test_the_demo_is_done_and_tasks_of_workers_that_end_are_taken_up_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    variables = {"TASK_POLL_INTERVAL": "2", "TASK_LEASE_SECONDS": "10"}
    with analyzer(is_silent) as service, running(home, **variables) as deployment:
        engine = connect(f"sqlite:///{home / 'ops_pipeline.db'}")
        wait_for(deployment, lambda: pipeline_status(engine) == "completed", 120, "the demo's pipeline")
        wait_for(deployment, lambda: counts_of(engine) == DEMO, 60, "the demo's tasks")
        assert len(list((home / "results").rglob("manifest.json"))) == 21

        with writing(engine) as connection:
            connection.execute(analyzer_services.insert().values(service="slow-analyzer", url=service.url))
        add_task(engine, "task_slow", service="slow-analyzer")
        wait_for(deployment, lambda: len(service.requests) == 1, 60, "a worker to begin")
        run = worker_of(engine, "task_slow").run_id
        answer = deployment.graphql(TERMINATE, {"run": run})
        assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess"
        wait_for(deployment, lambda: was_interrupted(engine, "task_slow"), 60, "the task to be handed back")
        status = lambda: deployment.graphql(RUN, {"run": run})["runOrError"]["status"]  # noqa: E731
        wait_for(deployment, lambda: status() == "CANCELED", 60, "the run to be canceled")

        wait_for(deployment, lambda: len(service.requests) == 2, 60, "another worker to take it up")
        os.kill(worker_of(engine, "task_slow").pid, signal.SIGKILL)
        service.behaviour = answers
        policy = Policy()
        wait_for(
            deployment,
            lambda: recover_leases(engine, policy).outcome.changed == 1 or row_of(engine, "task_slow").lost_leases == 1,
            60,
            "the lease to run out",
        )
        wait_for(deployment, lambda: status_of(engine, "task_slow") == "completed", 60, "a third worker to do it")
        row = row_of(engine, "task_slow")
        assert (row.attempt, row.lost_leases) == (2, 1)
        engine.dispose()
        deployment.stop()
    shown = command("ops-pipeline", "with-demo-analyzer", "true", home=home)
    assert "no demo of the analysis lab" in shown.stdout
