"""Jobs become tasks, each under a run key of its own: pipeline, step, job and attempt.

What belongs here: what the task of a job is told. What does not: its rows, which the queue writes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from ops_pipeline.analysis.pipelines.applications import set_generation
from ops_pipeline.analysis.pipelines.definition import Step
from ops_pipeline.analysis.pipelines.rules import Submit
from ops_pipeline.analysis.pipelines.store import Job, set_jobs, waiting_jobs
from ops_pipeline.analysis.submitting import Submission, submit
from ops_pipeline.analysis.tables import RUNNING


def submit_jobs(connection: Connection, pipeline_id: str, step: Step, action: Submit, now: datetime) -> int:
    """Submit the first waiting jobs of a step, in the order of their index; how many there were."""
    jobs = waiting_jobs(connection, pipeline_id, action.position, action.jobs)
    # Where a task of such a key was there already, it is the one.
    ids = submit(connection, [submission_of(pipeline_id, step, action.position, job) for job in jobs], now)
    submitted = [{"index": job.index, "status": RUNNING, "task_id": id_} for job, id_ in zip(jobs, ids, strict=True)]
    set_jobs(connection, pipeline_id, action.position, submitted)
    if step.models:
        set_generation(connection, [job.target for job in jobs], RUNNING, now)
    return len(submitted)


def submission_of(pipeline_id: str, step: Step, position: int, job: Job) -> Submission:
    """The task of a job."""
    return Submission(
        services=step.services,
        target=job.target,
        options=options_of(step, job),
        priority=step.priority,
        run_key=run_key(pipeline_id, position, job),
        pipeline_id=pipeline_id,
        step=position,
        job_index=job.index,
    )


def run_key(pipeline_id: str, position: int, job: Job) -> str:
    """What tells the task of a job from every other, the earlier attempts of the same job included."""
    return f"{pipeline_id}/{position}/{job.index}/{job.attempt}"


def options_of(step: Step, job: Job) -> dict[str, Any]:
    """What the task of a job is told."""
    options: dict[str, Any] = dict(step.options)
    if step.tools:
        options["tools_by_service"] = {service: list(tools) for service, tools in step.tools.items()}
    if job.template:
        options["template_slug"] = job.template
    return options
