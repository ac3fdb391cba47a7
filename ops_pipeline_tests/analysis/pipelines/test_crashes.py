"""Processes that are killed while they end tasks: nothing of a pipeline is lost, and nothing is done twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import Engine

from ops_pipeline.analysis.operating import cancel_tasks
from ops_pipeline.analysis.pipelines.due import apply, observe, plan_of
from ops_pipeline.database.engine import database_now, reading
from ops_pipeline_tests.analysis.pipelines.lab import (
    ANALYSIS,
    GENERATION,
    end,
    job_statuses,
    run_all,
    status,
    steps_of,
    submitted,
    tasks_of,
    unfinished,
)

ROOT = Path(__file__).parents[3]
WORKER = """
import sys, time
from ops_pipeline.database.engine import connect, writing
from ops_pipeline_tests.analysis.pipelines.lab import end_in
with writing(connect(sys.argv[1])) as connection:
    end_in(connection, sys.argv[2:])
    print("written", flush=True)
    time.sleep(60)
"""
LAB = """
import sys
from ops_pipeline.database.engine import connect
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline_tests.analysis.pipelines.lab import end, unfinished
engine = connect(sys.argv[1])
print("started", flush=True)
while ids := unfinished(engine, sys.argv[2]):
    despite_conflicts(end, engine, ids[:1])
"""


def process(code: str, engine: Engine, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own on the same database, that has told that it is under way."""
    url = engine.url.render_as_string(hide_password=False)
    # In the project's folder: the tests themselves are not installed.
    command = [sys.executable, "-c", code, url, *arguments]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert started.stdout is not None
    assert started.stdout.readline()
    return started


def kill(started: subprocess.Popen[str]) -> None:
    started.kill()
    started.communicate(timeout=30)


def test_a_worker_that_is_killed_before_it_commits_has_ended_nothing_and_begun_nothing(engine: Engine) -> None:
    """The last task of a step was ended, and the process died before anybody began the next one."""
    pipeline = submitted(engine, GENERATION | {"models": ["gpt"]}, ANALYSIS)
    ids = unfinished(engine, pipeline)
    kill(process(WORKER, engine, *ids))
    assert job_statuses(engine, pipeline) == ["running", "running"]
    assert steps_of(engine, pipeline) == ["running", "pending"]
    assert unfinished(engine, pipeline) == ids
    end(engine, ids)
    assert steps_of(engine, pipeline) == ["completed", "running"]
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"


def test_workers_that_are_killed_at_any_moment_leave_a_pipeline_that_goes_on(engine: Engine) -> None:
    many = GENERATION | {"models": ["gpt"] * 5, "templates": ["chat"] * 4, "concurrency": 4}
    pipeline = submitted(engine, many, ANALYSIS)
    workers = [process(LAB, engine, pipeline) for _ in range(2)]
    time.sleep(random.uniform(0.05, 0.3))  # noqa: S311 - no secret
    for worker in workers:
        kill(worker)
    with reading(engine) as connection:
        plan = plan_of(observe(connection), database_now(connection))
    assert plan.changes == (), "whatever was committed is whole"
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"
    ran = Counter((task["step"], task["job_index"]) for task in tasks_of(engine, pipeline))
    assert ran == {(step, job): 1 for step in (0, 1) for job in range(20)}
    assert apply(engine, plan, cancel_tasks)[0].changed == 0
