"""What monitors ask: the health of jobs, and the figures of all domains, put together.

What belongs here: putting together, for `ops-pipeline health` and `ops-pipeline metrics`.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dagster import DagsterInstance, RepositoryDefinition
from sqlalchemy import Engine, select, text

from ops_pipeline.analysis.measures import measure_analysis
from ops_pipeline.checking import Check
from ops_pipeline.database.engine import reading
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.defs.health import HIDDEN, daemons, job_facts
from ops_pipeline.defs.usage.catch_up import catch_up_policy
from ops_pipeline.hypervisor.filters.measures import measure_filters
from ops_pipeline.hypervisor.measures import measure_hypervisors
from ops_pipeline.measuring import Measurer
from ops_pipeline.operations.exposition import Answer
from ops_pipeline.operations.health import JobHealth, as_json, judge
from ops_pipeline.operations.measures import JobMeasurer
from ops_pipeline.services.measures import measure_services
from ops_pipeline.settings import Settings, give_dagster_its_variables
from ops_pipeline.usage.measures import usage_measurer


def open_instance() -> DagsterInstance:
    """The Dagster instance of DAGSTER_HOME, to be used as a context manager."""
    give_dagster_its_variables()
    return DagsterInstance.get()


def look_at_jobs(instance: DagsterInstance, repository: RepositoryDefinition, now: datetime) -> list[JobHealth]:
    """The health of every job."""
    return [judge(facts, now) for facts in job_facts(instance, repository)]


def repository_of_deployment() -> RepositoryDefinition:
    """The definitions of this deployment."""
    from ops_pipeline.definitions import defs  # noqa: PLC0415 - it imports this layer

    return defs.get_repository_def()


def measurers(settings: Settings, repository: RepositoryDefinition) -> dict[str, Measurer]:
    """The measurers of every domain, by name."""
    jobs = [name for name in repository.job_names if not name.startswith("__")]
    return {
        "jobs": JobMeasurer(sorted(jobs)),
        "usage": usage_measurer(catch_up_policy(settings)),
        "services": measure_services,
        "analysis": measure_analysis,
        "network filters": measure_filters,
        "hypervisor": measure_hypervisors,
    }


def check_retention(settings: Settings) -> list[Check]:
    """Look whether RUN_RETENTION_DAYS_BY_JOB names jobs only; what it names wrongly is kept as long as all others."""
    repository = repository_of_deployment()
    jobs = sorted(name for name in repository.job_names if not name.startswith(HIDDEN))
    wrong = sorted(set(settings.run_retention_days_by_job) - set(jobs))
    if not wrong:
        return []
    detail = f"no job is called {', '.join(wrong)}; there are {', '.join(jobs)}"
    return [Check("RUN_RETENTION_DAYS_BY_JOB", ok=False, detail=detail)]


def readiness(engine: Engine, instance: DagsterInstance) -> Answer:
    """Whether the database answers and a daemon works."""

    def ready() -> tuple[bool, Mapping[str, Any]]:
        try:
            with reading(engine) as connection:
                connection.execute(select(text("1")))
        except DatabaseProblem as problem:
            return False, {"database": str(problem)}
        working = daemons(instance)
        return all(working.values()), {"database": "answers", "daemons": dict(working)}

    return ready


def health_page(instance: DagsterInstance, repository: RepositoryDefinition) -> Answer:
    """The health of every job, as JSON."""

    def health() -> tuple[bool, Mapping[str, Any]]:
        jobs = look_at_jobs(instance, repository, datetime.now(UTC))
        return all(job.well for job in jobs), {"jobs": as_json(jobs)}

    return health
