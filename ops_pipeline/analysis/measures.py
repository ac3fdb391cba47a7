"""The figures of the analysis lab for monitoring.

What belongs here: SELECTs that partial indexes serve, whatever the number of finished tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, select

from ops_pipeline.analysis.maintenance.tables import maintenance_passes
from ops_pipeline.analysis.pipelines.tables import pipelines
from ops_pipeline.analysis.states import PENDING
from ops_pipeline.analysis.tables import HAS_UNKNOWN_STATUS, analysis_tasks, analysis_workers, analyzer_services
from ops_pipeline.measuring import Measure, age_seconds, single

RUNNING, UNKNOWN = "running", "unknown"


def measure_analysis(connection: Connection, now: datetime) -> Sequence[Measure]:
    """The queue's depth and age, workers, breakers, unfinished pipelines, and what maintenance left."""
    return [*_queue(connection, now), *_workers(connection), _pipelines(connection), _maintenance(connection)]


def _queue(connection: Connection, now: datetime) -> list[Measure]:
    task = analysis_tasks.c
    depth: dict[tuple[str, ...], float] = {}
    claimable = select(task.service, func.count()).where(task.status == PENDING, task.held_since.is_(None))
    at_work = select(task.service, func.count()).where(task.status == RUNNING)
    unknown = select(task.service, func.count()).where(HAS_UNKNOWN_STATUS)
    for state, query in ((PENDING, claimable), (RUNNING, at_work), (UNKNOWN, unknown)):
        for service, count in connection.execute(query.group_by(task.service)):
            depth[service, state] = count
    oldest = select(func.min(task.created_at)).where(task.status == PENDING, task.held_since.is_(None))
    return [
        Measure(
            "ops_pipeline_analysis_tasks",
            "Tasks that have not ended; those with a status that nobody knows never will, as `unknown`.",
            ("service", "state"),
            depth,
        ),
        single(
            "ops_pipeline_analysis_oldest_task_seconds",
            "Age of the oldest task that waits, those that wait for a due time included.",
            age_seconds(connection.execute(oldest).scalar(), now),
        ),
    ]


def _workers(connection: Connection) -> list[Measure]:
    worker = analysis_workers.c
    alive = select(func.count()).where(worker.stopped_at.is_(None), worker.lease_expires_at.is_not(None))
    count = connection.execute(alive).scalar_one()
    broken = select(analyzer_services.c.service, analyzer_services.c.open_until)
    states: dict[tuple[str, ...], float] = {
        (row.service,): float(row.open_until is not None) for row in connection.execute(broken)
    }
    return [
        single("ops_pipeline_analysis_workers", "Workers that have not stopped.", count),
        Measure("ops_pipeline_analysis_service_broken", "1 while a service's breaker is open.", ("service",), states),
    ]


def _pipelines(connection: Connection) -> Measure:
    status = pipelines.c.status
    query = select(status, func.count()).where(status.in_((PENDING, RUNNING))).group_by(status)
    counts: dict[tuple[str, ...], float] = {(name,): count for name, count in connection.execute(query)}
    return Measure("ops_pipeline_pipelines", "Pipelines that have not ended.", ("state",), counts)


def _maintenance(connection: Connection) -> Measure:
    done = maintenance_passes.c
    latest = select(func.max(done.id)).group_by(done.name)
    rows = connection.execute(select(done.name, done.backlog_seconds).where(done.id.in_(latest)))
    values: dict[tuple[str, ...], float] = {(name,): seconds for name, seconds in rows}
    help_ = "Age beyond its limit of the oldest thing that the last pass of maintenance left."
    return Measure("ops_pipeline_maintenance_backlog_seconds", help_, ("pass",), values)
