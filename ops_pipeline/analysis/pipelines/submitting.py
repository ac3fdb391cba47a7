"""Jobs become tasks, each under a run key of its own: pipeline, step, job and attempt.

What belongs here: what the task of a job is told, and its rows. A job of several services is a parent with a child for
each of them.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from ops_pipeline.analysis.pipelines.applications import set_generation
from ops_pipeline.analysis.pipelines.definition import Step
from ops_pipeline.analysis.pipelines.rules import Submit
from ops_pipeline.analysis.pipelines.store import Job, set_jobs, waiting_jobs
from ops_pipeline.analysis.tables import RUNNING, UNIFIED, analysis_tasks
from ops_pipeline.database.expressions import is_any_of
from ops_pipeline.database.replace import insert_missing


def submit_jobs(connection: Connection, pipeline_id: str, step: Step, action: Submit, now: datetime) -> int:
    """Submit the first waiting jobs of a step, in the order of their index; how many there were."""
    jobs = waiting_jobs(connection, pipeline_id, action.position, action.jobs)
    keys = {run_key(pipeline_id, action.position, job): job for job in jobs}
    common: dict[str, Any] = {
        "pipeline_id": pipeline_id,
        "step": action.position,
        "priority": step.priority,
        "created_at": now,
        "updated_at": now,
    }
    rows = [common | row for key, job in keys.items() for row in task_rows(key, step, job)]
    insert_missing(connection, analysis_tasks, rows)
    # Where a task of this key was there already, it is the one.
    tasks = analysis_tasks.c
    found = connection.execute(select(tasks.run_key, tasks.id).where(is_any_of(tasks.run_key, sorted(keys))))
    ids = {row.run_key: row.id for row in found}
    submitted = [{"index": job.index, "status": RUNNING, "task_id": ids[key]} for key, job in keys.items()]
    set_jobs(connection, pipeline_id, action.position, submitted)
    if step.models:
        set_generation(connection, [job.target for job in jobs], RUNNING, now)
    return len(submitted)


def run_key(pipeline_id: str, position: int, job: Job) -> str:
    """What tells the task of a job from every other, the earlier attempts of the same job included."""
    return f"{pipeline_id}/{position}/{job.index}/{job.attempt}"


def task_rows(key: str, step: Step, job: Job) -> list[dict[str, Any]]:
    """What the rows of a job's task have of their own: one for a single service, else a parent and its children."""

    def row(service: str, own_key: str, parent_id: str | None = None) -> dict[str, Any]:
        return {
            "id": task_id(own_key),
            "run_key": own_key,
            "parent_id": parent_id,
            "service": service,
            "target": job.target,
            "job_index": job.index,
            "options": options_of(step, job, service),
        }

    if len(step.services) == 1:
        return [row(step.services[0], key)]
    parent = row(UNIFIED, key)
    return [parent, *(row(service, f"{key}/{service}", parent["id"]) for service in step.services)]


def task_id(key: str) -> str:
    """The id of the task of a run key: always the same one."""
    return f"task_{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def options_of(step: Step, job: Job, service: str) -> dict[str, Any]:
    """What the task of a job is told, for one of its services."""
    options: dict[str, Any] = dict(step.options)
    if service in step.tools:
        options["tools"] = list(step.tools[service])
    if job.template:
        options["template_slug"] = job.template
    return options
