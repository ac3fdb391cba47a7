"""Pipelines for tests: definitions, tasks that end, and what the rows say.

What belongs here: what several test modules of pipelines need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, select, update

from ops_pipeline.analysis.pipelines.advance import advance_all
from ops_pipeline.analysis.pipelines.control import submit_pipeline
from ops_pipeline.analysis.pipelines.rules import status_of
from ops_pipeline.analysis.pipelines.store import read_pipeline
from ops_pipeline.analysis.pipelines.tables import pipeline_events, pipeline_jobs, pipeline_steps, pipelines
from ops_pipeline.analysis.tables import TERMINAL, analysis_tasks, generated_applications
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline_tests.usage.calls import execute, rows

GENERATION = {
    "name": "generation",
    "services": "generation",
    "models": ["gpt", "claude"],
    "templates": ["chat", "todo"],
    "critical": True,
    "concurrency": 2,
}
ANALYSIS = {"name": "analysis", "services": "static-analyzer", "applications_of": "generation", "concurrency": 3}


def definition(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "nightly", "steps": list(steps or (GENERATION, ANALYSIS))} | fields


def step_over(*applications: str, **fields: Any) -> dict[str, Any]:
    """A step over existing applications."""
    return {"name": "check", "services": "static-analyzer", "applications": list(applications)} | fields


def submitted(engine: Engine, *steps: dict[str, Any], **fields: Any) -> str:
    return submit_pipeline(engine, definition(*steps, **fields))


def application(engine: Engine, target: str, **fields: Any) -> None:
    """An application as the platform writes it, `model:number`."""
    model, _, number = target.rpartition(":")
    version = fields.get("version", 1)
    values = {"id": f"{target}-{version}", "model_slug": model, "app_number": int(number)} | fields
    with writing(engine) as connection:
        connection.execute(generated_applications.insert(), [values])


def end_in(connection: Connection, ids: Sequence[str], status: str = "completed", **values: Any) -> None:
    """End tasks in a transaction as whoever ends them does: rows first, then their pipelines."""
    now = database_now(connection)
    tasks = analysis_tasks.c
    mine = update(analysis_tasks).where(tasks.id.in_(ids), tasks.status.not_in(TERMINAL))
    ended = mine.values(status=status, completed_at=now, **values).returning(tasks.pipeline_id)
    advance_all(connection, connection.scalars(ended).all(), now)


def end(engine: Engine, ids: Sequence[str], status: str = "completed", **values: Any) -> None:
    with writing(engine) as connection:
        end_in(connection, ids, status, **values)


def tasks_of(engine: Engine, pipeline_id: str, *, step: int | None = None) -> list[dict[str, Any]]:
    """The tasks of a pipeline without their children, in the order of step, job and attempt."""
    table = analysis_tasks.c
    mine = select(analysis_tasks).where(table.pipeline_id == pipeline_id, table.parent_id.is_(None))
    with reading(engine) as connection:
        found = [dict(row) for row in connection.execute(mine).mappings()]
    wanted = [task for task in found if step is None or task["step"] == step]
    return sorted(wanted, key=lambda task: (task["step"], task["job_index"], task["run_key"]))


def unfinished(engine: Engine, pipeline_id: str) -> list[str]:
    return [task["id"] for task in tasks_of(engine, pipeline_id) if task["status"] not in TERMINAL]


def run_all(engine: Engine, pipeline_id: str, status: str = "completed") -> None:
    """End tasks one by one until there is none left."""
    while ids := unfinished(engine, pipeline_id):
        end(engine, ids[:1], status)


def status(engine: Engine, pipeline_id: str) -> str:
    """The status of a pipeline, which its other rows must say too."""
    with reading(engine) as connection:
        pipeline = read_pipeline(connection, pipeline_id)
    assert pipeline is not None
    assert pipeline.status == status_of(pipeline)
    return pipeline.status


def row_of(engine: Engine, pipeline_id: str) -> dict[str, Any]:
    (row,) = [row for row in rows(engine, pipelines) if row["id"] == pipeline_id]
    return row


def steps_of(engine: Engine, pipeline_id: str) -> list[str]:
    return [row["status"] for row in rows(engine, pipeline_steps) if row["pipeline_id"] == pipeline_id]


def jobs_of_step(engine: Engine, pipeline_id: str, step: int = 0) -> list[dict[str, Any]]:
    found = rows(engine, pipeline_jobs)
    return [row for row in found if (row["pipeline_id"], row["step"]) == (pipeline_id, step)]


def job_statuses(engine: Engine, pipeline_id: str, step: int = 0) -> list[str]:
    return [job["status"] for job in jobs_of_step(engine, pipeline_id, step)]


def events_of(engine: Engine, pipeline_id: str) -> list[dict[str, Any]]:
    return [row for row in rows(engine, pipeline_events) if row["pipeline_id"] == pipeline_id]


def erase(engine: Engine) -> None:
    """Forget every pipeline and task."""
    for table in (pipelines, pipeline_steps, pipeline_jobs, pipeline_events, analysis_tasks, generated_applications):
        execute(engine, f"DELETE FROM {table.name}")
