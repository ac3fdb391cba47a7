"""Workers over a database of a test: their plans, and tasks for them.

What belongs here: helpers of the tests of the worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, select, update

from ops_pipeline.analysis.client import Patience
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.tables import analysis_results, analysis_tasks
from ops_pipeline.analysis.worker import life
from ops_pipeline.analysis.worker.life import run_worker
from ops_pipeline.analysis.worker.plan import WorkerPlan
from ops_pipeline.analysis.worker.report import Report
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline_tests.analysis.analyzers import Analyzer
from ops_pipeline_tests.servers import wait_until

STATIC = "static-analyzer"
QUICK = Patience(opening=2, closing=0.3, health=0.5, connect_waits=())


def plan_for(folder: Path, service: Analyzer | str | None = None, **changes: Any) -> WorkerPlan:
    """A worker that ends as soon as there is nothing to do, with leases of five seconds."""
    url = service.url if isinstance(service, Analyzer) else service
    plan = WorkerPlan(
        results=folder / "results",
        policy=Policy(lease=timedelta(seconds=5)),
        urls={STATIC: url} if url else {},
        linger=0.0,
        poll=0.05,
        watch=0.1,
        patience=QUICK,
    )
    return replace(plan, **changes)


def add_task(engine: Engine, task_id: str = "task_1", **values: Any) -> str:
    """Insert a task as other programs do."""
    row = {"id": task_id, "service": STATIC, "target": "openai/gpt-4o/app0"} | values
    with writing(engine) as connection:
        connection.execute(insert(analysis_tasks), [row])
    return task_id


def row_of(engine: Engine, task_id: str = "task_1") -> Any:
    with reading(engine) as connection:
        return connection.execute(select(analysis_tasks).where(analysis_tasks.c.id == task_id)).one()


def status_of(engine: Engine, task_id: str = "task_1") -> str:
    return row_of(engine, task_id).status


def findings_in(engine: Engine, task_id: str = "task_1") -> list[Any]:
    query = select(analysis_results).where(analysis_results.c.task_id == task_id).order_by(analysis_results.c.id)
    with reading(engine) as connection:
        return list(connection.execute(query))


def change(engine: Engine, task_id: str = "task_1", **values: Any) -> None:
    with writing(engine) as connection:
        connection.execute(update(analysis_tasks).where(analysis_tasks.c.id == task_id).values(**values))


def ask_to_cancel(engine: Engine, task_id: str = "task_1") -> None:
    with writing(engine) as connection:
        asked = update(analysis_tasks).where(analysis_tasks.c.id == task_id)
        connection.execute(asked.values(cancel_requested_at=database_now(connection)))


def due_now(engine: Engine, task_id: str = "task_1") -> None:
    """End the wait of a task."""
    change(engine, task_id, next_attempt_at=None)


def lines_of(engine: Engine, plan: WorkerPlan) -> tuple[Report, list[str]]:
    """Be a worker until there is nothing to do."""
    lines: list[str] = []
    return run_worker(engine, plan, told=lines.append), lines


@dataclass
class Background:
    """A worker in a thread."""

    lines: list[str] = field(default_factory=list)
    report: Report | None = None
    failure: BaseException | None = None
    life: Any = None

    def stop(self) -> None:
        """Tell it to hand its tasks back, and wait for its end."""
        self.life.stop("told to stop")
        self.life.thread.join(30)
        assert not self.life.thread.is_alive()

    def until(self, text: str, seconds: float = 20) -> None:
        """Wait until it has said something."""
        wait_until(lambda: any(text in line for line in self.lines), seconds, f"{text!r} among {self.lines}")


@contextmanager
def working(engine: Engine, plan: WorkerPlan) -> Iterator[Background]:
    """A worker beside the test, which is stopped at the end."""
    background = Background()
    report = Report(background.lines.append)
    background.life = life._Life(life.Desk(engine, life.worker_name(), plan), report, "")
    background.report = report
    background.life.thread.start()
    assert background.life._begun.wait(10)
    try:
        yield background
    finally:
        background.stop()
        background.failure = background.life.failure
