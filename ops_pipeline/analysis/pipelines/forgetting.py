"""Pipelines go after their tasks: maintenance archives and deletes those, and what is left says nothing any more.

What belongs here: finding ended pipelines that have no task left, and deleting them with all that is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Engine, Text, and_, cast, delete, func, or_, select

from ops_pipeline.analysis.pipelines.tables import pipeline_events, pipeline_jobs, pipeline_steps, pipelines
from ops_pipeline.analysis.tables import TERMINAL, analysis_tasks
from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.database.expressions import instant_order, is_any_of
from ops_pipeline.database.retry import despite_conflicts

KEPT = timedelta(days=30)
"""Also of pipelines that never had a task. Longer than anybody looks back for why nothing ran."""
MOST_FORGOTTEN = 100
"""In one run; each may have ten thousands of jobs. The rest is due again at once."""


def _may_go(now: datetime) -> ColumnElement[bool]:
    table, tasks = pipelines.c, analysis_tasks.c
    # Labels tell maintenance what to keep: whatever has some is kept with its tasks.
    plain = or_(table.labels.is_(None), cast(table.labels, Text).in_(("null", "{}")))
    has_task = select(tasks.id).where(tasks.pipeline_id == table.id).exists()
    old = instant_order(func.coalesce(table.completed_at, table.updated_at)) < instant_order(now - KEPT)
    return and_(table.status.in_(TERMINAL), old, plain, ~has_task)


def find_forgettable(connection: Connection, now: datetime) -> list[str]:
    """The ended pipelines that have no task left, 30 days after their end."""
    wanted = select(pipelines.c.id).where(_may_go(now)).order_by(pipelines.c.id).limit(MOST_FORGOTTEN)
    return list(connection.scalars(wanted))


def forget(engine: Engine, ids: Sequence[str]) -> int:
    """Delete pipelines with their steps, jobs and events; how many still had no task left."""

    def write() -> int:
        with writing(engine) as connection:
            now = database_now(connection)
            mine = and_(is_any_of(pipelines.c.id, list(ids)), _may_go(now))
            locked = select(pipelines.c.id).where(mine).order_by(pipelines.c.id).with_for_update()
            gone = list(connection.scalars(locked))
            for table in (pipeline_jobs, pipeline_steps, pipeline_events):
                connection.execute(delete(table).where(is_any_of(table.c.pipeline_id, gone)))
            connection.execute(delete(pipelines).where(is_any_of(pipelines.c.id, gone)))
            return len(gone)

    return despite_conflicts(write) if ids else 0
