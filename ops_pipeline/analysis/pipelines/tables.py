"""The tables of pipelines.

What belongs here: tables, columns and indexes. A program that submits a pipeline sets `id` and `definition`, everything
else has a default, and its steps and jobs are written when it begins.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Identity, Index, Integer, Table, Text, false, func, text

from ops_pipeline.analysis.tables import PENDING, metadata
from ops_pipeline.database.types import UtcDateTime

pipelines = Table(
    "pipelines",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, server_default=""),
    Column("definition", JSON, nullable=False),
    Column("labels", JSON),
    Column("status", Text, nullable=False, server_default=PENDING),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("paused_at", UtcDateTime),
    Column("stop_as", Text, nullable=False, server_default=""),
    Column("deadline_at", UtcDateTime),
    Column("error_message", Text, nullable=False, server_default=""),
    Column("created_at", UtcDateTime, nullable=False, server_default=func.current_timestamp()),
    Column("started_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    Column("updated_at", UtcDateTime, nullable=False, server_default=func.current_timestamp()),
)
"""Pipelines. `definition` is what a file of one holds. `attempt` grows with every retry. While `paused_at` is set,
nothing new starts. With `stop_as` it submits nothing more, and ends with that status when its last task has ended."""

_UNFINISHED = text("status IN ('pending', 'running')")
Index(
    "pipelines_unfinished",
    pipelines.c.created_at,
    postgresql_where=_UNFINISHED,
    sqlite_where=_UNFINISHED,
)
Index("pipelines_created_at", pipelines.c.created_at)

pipeline_steps = Table(
    "pipeline_steps",
    metadata,
    Column("pipeline_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False, server_default=PENDING),
    Column("critical", Boolean, nullable=False, server_default=false()),
    Column("makes_applications", Boolean, nullable=False, server_default=false()),
    Column("concurrency", Integer, nullable=False),
    Column("started_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
)
"""The steps of a pipeline, in order. What their tasks are told stands in the definition."""

pipeline_jobs = Table(
    "pipeline_jobs",
    metadata,
    Column("pipeline_id", Text, primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("job_index", Integer, primary_key=True, autoincrement=False),
    Column("target", Text, nullable=False, server_default=""),
    Column("template", Text, nullable=False, server_default=""),
    Column("status", Text, nullable=False, server_default="waiting"),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("task_id", Text),
    Column("reason", Text, nullable=False, server_default=""),
    Index("pipeline_jobs_status", "pipeline_id", "step", "status", "job_index"),
)
"""The jobs of each step: waiting, running (submitted as the task `task_id`), skipped, or ended as their task did."""

pipeline_events = Table(
    "pipeline_events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("pipeline_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("step", Text, nullable=False, server_default=""),
    Column("before", Text, nullable=False, server_default=""),
    Column("after", Text, nullable=False, server_default=""),
    Column("reason", Text, nullable=False, server_default=""),
    Column("ended", Integer, nullable=False, server_default="0"),
    Column("submitted", Integer, nullable=False, server_default="0"),
    Column("told", Boolean, nullable=False, server_default=false()),
    Index("pipeline_events_pipeline", "pipeline_id", "id"),
)
"""What happened to pipelines: transitions, commands, and advances, which go once they were `told` to Dagster."""

Index(
    "pipeline_events_untold",
    pipeline_events.c.id,
    postgresql_where=text("told = false"),
    sqlite_where=text("told = 0"),
)
