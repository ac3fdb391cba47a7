"""A worker that does nothing, in a process of its own: `python -m ops_pipeline_tests.analysis.noop_worker URL NAME`.

It claims, waits a little, and ends, with a finding for each task in the transaction that ends it; a database that is
away it asks again. What belongs here: no more than the protocol of claims, heartbeats and ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Engine, insert
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.analysis.claiming import claim
from ops_pipeline.analysis.ending import finish
from ops_pipeline.analysis.leases import heartbeat
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.states import Task, succeeded
from ops_pipeline.analysis.tables import analysis_results
from ops_pipeline.database.engine import connect, database_now, writing
from ops_pipeline.database.errors import DatabaseProblem

POLICY = Policy(lease=timedelta(seconds=2), lost_leases=1000, per_service=60)
WORK_SECONDS = 0.25
BATCH = 25
Result = TypeVar("Result")


def main(url: str, name: str) -> None:
    """Work until killed."""
    engine, names = connect(url), [f"{name}-{os.getpid()}-0"]
    threading.Thread(target=beat, args=(connect(url), names), daemon=True).start()
    while True:
        try:
            tasks = take(engine, names[-1])
        except (DatabaseProblem, SQLAlchemyError):
            # It may have been committed without an answer: the old name's tasks are left to their lease.
            names.append(f"{name}-{os.getpid()}-{len(names)}")
            continue
        time.sleep(WORK_SECONDS)
        until_there(lambda tasks=tasks: end(engine, names[-1], tasks))


def take(engine: Engine, owner: str) -> list[Task]:
    with writing(engine) as connection:
        return claim(connection, owner, BATCH, policy=POLICY, now=database_now(connection))


def end(engine: Engine, owner: str, tasks: list[Task]) -> None:
    with writing(engine) as connection:
        results, now = [succeeded(task, {"by": owner}) for task in tasks], database_now(connection)
        statuses = finish(connection, owner, results, policy=POLICY, now=now, jitter=lambda: 0.0)
        rows = [
            {"id": f"{task.id}/{task.attempt}/{owner}", "task_id": task.id, "attempt": task.attempt}
            for task in tasks
            if task.id in statuses
        ]
        if rows:
            connection.execute(insert(analysis_results), rows)


def beat(engine: Engine, names: list[str]) -> None:
    def once() -> None:
        with writing(engine) as connection:
            heartbeat(connection, names[-1], POLICY, database_now(connection))

    while True:
        until_there(once)
        time.sleep(POLICY.lease.total_seconds() / 4)


def until_there(work: Callable[[], Result]) -> Result:
    """Do something as soon as the database lets it."""
    while True:
        try:
            return work()
        except (DatabaseProblem, SQLAlchemyError):
            time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
