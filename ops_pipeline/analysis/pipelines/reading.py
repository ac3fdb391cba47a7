"""Pipelines as people read them: a line for each, and one with all of its steps.

What belongs here: reading for tables and commands. What does not: printing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from ops_pipeline.analysis.pipelines.rules import Pipeline, Progress, Step, progress_of
from ops_pipeline.analysis.pipelines.store import read_pipelines
from ops_pipeline.analysis.pipelines.tables import pipeline_events, pipeline_jobs, pipelines
from ops_pipeline.analysis.tables import COMPLETED, RUNNING, TERMINAL

SHOWN = 50


@dataclass(frozen=True)
class Line:
    """A pipeline as a table shows it."""

    id: str
    name: str
    status: str
    progress: Progress
    step: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error_message: str

    @property
    def took(self) -> float | None:
        """Seconds from begin to end; None while it has not ended."""
        return (self.completed_at - self.started_at).total_seconds() if self.started_at and self.completed_at else None


def read_lines(connection: Connection, *, status: str | None = None, most: int = SHOWN) -> list[Line]:
    """The newest pipelines, the newest first."""
    table = pipelines.c
    wanted = select(pipelines).order_by(table.created_at.desc(), table.id).limit(most)
    if status:
        wanted = wanted.where(table.status == status)
    rows = connection.execute(wanted).all()
    found = {one.id: one for one in read_pipelines(connection, [row.id for row in rows])}
    return [_line(row, found[row.id]) for row in rows if row.id in found]


def _line(row: Any, pipeline: Pipeline) -> Line:
    return Line(
        id=row.id,
        name=row.name,
        status=shown_status(pipeline),
        progress=progress_of(pipeline.steps),
        step=next((step.name for step in pipeline.steps if step.status not in TERMINAL), ""),
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        error_message=row.error_message,
    )


def shown_status(pipeline: Pipeline) -> str:
    """The status as people call it: one that is held is paused, one that is to end is stopping."""
    if pipeline.status in TERMINAL:
        return pipeline.status
    if pipeline.stop_as:
        return "stopping"
    return "paused" if pipeline.paused else pipeline.status


@dataclass(frozen=True)
class Page:
    """One pipeline with all that is known of it.

    Attributes:
        line: as in the table.
        steps: in order.
        troubles: step, job and reason of jobs that did not complete, the first of them.
        events: when, step and what, the last of them.
    """

    line: Line
    steps: tuple[Step, ...]
    troubles: tuple[tuple[int, int, str, str], ...]
    events: tuple[tuple[datetime, str, str, str], ...]


def read_page(connection: Connection, pipeline_id: str) -> Page | None:
    """One pipeline; None when there is none of this id."""
    row = connection.execute(select(pipelines).where(pipelines.c.id == pipeline_id)).first()
    if row is None:
        return None
    (pipeline,) = read_pipelines(connection, [pipeline_id])
    jobs, events = pipeline_jobs.c, pipeline_events.c
    wrong = select(jobs.step, jobs.job_index, jobs.status, jobs.reason).where(
        jobs.pipeline_id == pipeline_id, jobs.status.not_in((COMPLETED, RUNNING)), jobs.reason != ""
    )
    happened = select(events.at, events.step, events.after, events.reason).where(events.pipeline_id == pipeline_id)
    troubles = connection.execute(wrong.order_by(jobs.step, jobs.job_index).limit(SHOWN))
    last = connection.execute(happened.order_by(events.id.desc()).limit(SHOWN))
    return Page(
        line=_line(row, pipeline),
        steps=pipeline.steps,
        troubles=tuple((one.step, one.job_index, one.status, one.reason) for one in troubles),
        events=tuple((one.at, one.step, one.after, one.reason) for one in reversed(last.all())),
    )
