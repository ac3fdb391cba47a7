"""Which jobs of a step can run when it begins.

What belongs here: a pure decision for each job, and the facts that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from ops_pipeline.analysis.pipelines.applications import Application, read_applications
from ops_pipeline.analysis.pipelines.definition import Definition, Step, source_of
from ops_pipeline.analysis.pipelines.rules import SKIPPED, SUCCEEDED, WAITING
from ops_pipeline.analysis.pipelines.store import Job, waiting_jobs
from ops_pipeline.analysis.pipelines.tables import pipeline_jobs
from ops_pipeline.analysis.tables import analyzer_services
from ops_pipeline.database.expressions import is_any_of


@dataclass(frozen=True)
class Facts:
    """What the jobs of a step depend on.

    Attributes:
        applications: what is known of each, by what tasks call it.
        sources: the status of the job that makes the application of each job, by index; None when it exists already.
        tools: the tools that each service said it has; services that never said are left out.
    """

    applications: Mapping[str, Application] = field(default_factory=dict)
    sources: Mapping[int, str] | None = None
    tools: Mapping[str, Sequence[str]] = field(default_factory=dict)


def observe(connection: Connection, pipeline_id: str, definition: Definition, position: int, jobs: list[Job]) -> Facts:
    """Look at what the jobs of a step depend on."""
    step, source = definition.steps[position], source_of(definition, position)
    sources = None
    if source is not None:
        table = pipeline_jobs.c
        made = select(table.job_index, table.status).where(table.pipeline_id == pipeline_id, table.step == source)
        sources = {row.job_index: row.status for row in connection.execute(made)}
    known = analyzer_services.c
    services = connection.execute(
        select(known.service, known.tools).where(is_any_of(known.service, list(step.services)))
    )
    return Facts(
        applications=read_applications(connection, {job.target for job in jobs}),
        sources=sources,
        tools={row.service: row.tools for row in services if isinstance(row.tools, list) and row.tools},
    )


def objection(step: Step, job: Job, facts: Facts) -> str:
    """Why a job cannot run, in words; empty when it can."""
    if step.models:
        return no_valid_tools(step, facts)
    if facts.sources is not None and facts.sources.get(job.index) not in SUCCEEDED:
        told = "was skipped" if facts.sources.get(job.index) == SKIPPED else facts.sources.get(job.index, "is gone")
        return f"no application: job {job.index} of {step.applications_of} {told}"
    found = facts.applications.get(job.target)
    if found is None and facts.sources is None:
        return f"app missing: {job.target} does not stand in generated_applications"
    if found is not None and found.missing_since is not None:
        return f"app missing: {job.target} is gone since {found.missing_since:%Y-%m-%d %H:%M} UTC"
    if found is not None and found.not_made and facts.sources is None:
        return f"no application: the generation of {job.target} was {found.not_made}"
    return no_valid_tools(step, facts)


def no_valid_tools(step: Step, facts: Facts) -> str:
    """Why none of the step's services has any of the tools that it names; empty when one has, or needs none."""
    missing = []
    for service in step.services:
        wanted, known = step.tools.get(service), facts.tools.get(service)
        if wanted is None or known is None or set(wanted) & set(known):
            return ""
        missing.append(f"{service} has none of {', '.join(wanted)}")
    return f"no valid tools: {'; '.join(missing)}"


def decide(step: Step, jobs: Sequence[Job], facts: Facts) -> list[dict[str, Any]]:
    """The columns of each job when its step begins: it waits to be submitted, or is skipped with its reason."""
    decided: list[dict[str, Any]] = []
    for job in jobs:
        told, known = objection(step, job, facts), facts.applications.get(job.target)
        decided.append(
            {
                "index": job.index,
                "status": SKIPPED if told else WAITING,
                "reason": told,
                "template": job.template or (known.template if known else ""),
            }
        )
    return decided


def prepare(connection: Connection, pipeline_id: str, definition: Definition, position: int) -> list[dict[str, Any]]:
    """Look, and decide for every waiting job of a step."""
    jobs = waiting_jobs(connection, pipeline_id, position)
    return decide(definition.steps[position], jobs, observe(connection, pipeline_id, definition, position, jobs))
