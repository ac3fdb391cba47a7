"""The tables of the analysis lab.

What belongs here: tables, columns and indexes. No foreign keys: other programs insert rows in an order of their own,
and finished trees are deleted in bulk.

A task is a row of `analysis_tasks`; a program that submits one sets `id`, `service` and `target`, everything else has a
default. A task of the service `unified` is a parent: it is never claimed, its children (`parent_id`) are, and it ends
when the last of them does.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Computed,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)

from ops_pipeline.database.ddl import PerDialect
from ops_pipeline.database.expressions import SQLITE_MILLISECONDS
from ops_pipeline.database.types import UtcDateTime

CREATED, PENDING, RUNNING = "created", "pending", "running"
COMPLETED, PARTIAL_SUCCESS, FAILED, CANCELLED = "completed", "partial_success", "failed", "cancelled"
UNFINISHED = (CREATED, PENDING, RUNNING)
TERMINAL = (COMPLETED, PARTIAL_SUCCESS, FAILED, CANCELLED)
STATUSES = (*UNFINISHED, *TERMINAL)

UNIFIED = "unified"
"""The service of parents."""

AGEING_SECONDS = 3600
"""How much longer a task must have waited to go before one that is one rank above it. A `low` task that has waited for
three hours thus goes before an `urgent` one of this moment, before maintenance would call it stuck."""
NORMAL, NORMAL_RANK = "normal", 1
RANKS = {"urgent": 3, "high": 2, "low": 0}
"""How far each priority goes ahead; NULL and unknown ones count as normal."""

_AHEAD = (
    "CASE lower(priority) "
    + " ".join(f"WHEN '{name}' THEN {rank * AGEING_SECONDS * 1000}" for name, rank in RANKS.items())
    + f" ELSE {NORMAL_RANK * AGEING_SECONDS * 1000} END"
)
CLAIM_ORDER = PerDialect(
    postgresql=f"CAST(date_part('epoch', created_at AT TIME ZONE 'UTC') * 1000 AS BIGINT) - {_AHEAD}",
    sqlite=f"{SQLITE_MILLISECONDS.format('created_at')} - {_AHEAD}",
)

metadata = MetaData()


def _when(name: str) -> Column[Any]:
    return Column(name, UtcDateTime)


def _now(name: str) -> Column[Any]:
    return Column(name, UtcDateTime, nullable=False, server_default=func.current_timestamp())


def _count(name: str) -> Column[Any]:
    return Column(name, Integer, nullable=False, server_default="0")


def _text(name: str, default: str = "") -> Column[Any]:
    return Column(name, Text, nullable=False, server_default=default)


analysis_tasks = Table(
    "analysis_tasks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("parent_id", Text),
    Column("pipeline_id", Text),
    Column("step", Integer),
    Column("job_index", Integer),
    Column("run_key", Text),
    Column("service", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("options", JSON(none_as_null=True)),
    Column("labels", JSON(none_as_null=True)),
    _text("status", PENDING),
    Column("priority", Text, server_default="normal"),
    _count("attempt"),
    _count("preflight_retries"),
    _count("transient_retries"),
    _count("lost_leases"),
    _when("next_attempt_at"),
    _when("held_since"),
    Column("lease_owner", Text),
    _when("lease_expires_at"),
    Column("timeout_seconds", Double),
    _when("deadline_at"),
    _when("cancel_requested_at"),
    _text("error_class"),
    Column("error_message", Text),
    Column("progress", Double),
    _text("current_step"),
    Column("result_summary", JSON(none_as_null=True)),
    _now("created_at"),
    _when("started_at"),
    _when("completed_at"),
    _now("updated_at"),
    Column("claim_order", BigInteger, Computed(CLAIM_ORDER, persisted=True)),
)
"""The queue. `target` is what is analysed: `<model slug>/app<number>` for a generated application. `attempt` is the
number of claims, without those that an unavailable service cost. While `held_since` is set (its pipeline is paused)
a task is not claimed. `error_class` says what kind of failure ended it (`states`). `labels` may hold `legal_hold`."""

_PENDING = text("status = 'pending' AND held_since IS NULL")
_RUNNING = text("status = 'running'")
_TRANSIENT = text("status = 'failed' AND error_class = 'transient'")
_HAS_PARENT, _HAS_PIPELINE = text("parent_id IS NOT NULL"), text("pipeline_id IS NOT NULL")
_FINISHED = text("completed_at IS NOT NULL AND parent_id IS NULL")
HAS_RUN_KEY = text("run_key IS NOT NULL")
HAS_UNKNOWN_STATUS = text(f"status NOT IN ({', '.join(map(repr, STATUSES))})")
"""Another program spelled it in its own way: such a task is never claimed and never ends."""
_CREATED = text("status = 'created'")
_UNSTAMPED = text("status IN ('completed', 'partial_success', 'failed', 'cancelled') AND completed_at IS NULL")


def _index(name: str, *columns: Column[Any], where: Any) -> Index:
    return Index(name, *columns, postgresql_where=where, sqlite_where=where)


_task = analysis_tasks.c
_index("analysis_tasks_claim", _task.service, _task.claim_order, _task.id, where=_PENDING)
_index("analysis_tasks_running", _task.service, where=_RUNNING)
_index("analysis_tasks_transient", _task.transient_retries, _task.service, where=_TRANSIENT)
_index("analysis_tasks_parent", _task.parent_id, where=_HAS_PARENT)
_index("analysis_tasks_pipeline", _task.pipeline_id, where=_HAS_PIPELINE)
_index("analysis_tasks_finished", _task.completed_at, where=_FINISHED)
Index("analysis_tasks_run_key", _task.run_key, unique=True, postgresql_where=HAS_RUN_KEY, sqlite_where=HAS_RUN_KEY)
_index("analysis_tasks_created", _task.created_at, where=_CREATED)
_index("analysis_tasks_unstamped", _task.id, where=_UNSTAMPED)
_index("analysis_tasks_unknown", _task.service, _task.id, where=HAS_UNKNOWN_STATUS)

analysis_results = Table(
    "analysis_results",
    metadata,
    Column("id", Text, primary_key=True),
    Column("task_id", Text, nullable=False),
    _count("attempt"),
    _text("tool"),
    _text("tool_version"),
    _text("result_type", "finding"),
    _text("rule_id"),
    _text("severity"),
    _text("confidence"),
    _text("title"),
    _text("description"),
    _text("category"),
    _text("file_path"),
    Column("line_number", Integer),
    Column("column_number", Integer),
    Column("data", JSON(none_as_null=True)),
    _text("review", "new"),
    _now("created_at"),
    Index("analysis_results_task", "task_id"),
)
"""What the tools found. The id is made from the task and the finding, so that storing again changes nothing."""

task_events = Table(
    "task_events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("task_id", Text, nullable=False),
    _now("at"),
    Column("kind", Text, nullable=False),
    _count("attempt"),
    _text("owner"),
    _text("before"),
    _text("after"),
    _text("reason"),
    Column("data", JSON(none_as_null=True)),
    Index("task_events_task", "task_id", "id"),
)
"""What happened to tasks: every transition and every progress frame, with the attempt and the worker."""

analyzer_services = Table(
    "analyzer_services",
    metadata,
    Column("service", Text, primary_key=True),
    _text("url"),
    Column("max_concurrent", Integer),
    _count("failures"),
    _count("opened"),
    _when("open_until"),
    Column("healthy", Boolean),
    _text("message"),
    _text("version"),
    Column("tools", JSON(none_as_null=True)),
    _when("checked_at"),
    _now("updated_at"),
)
"""What is known of each service: its circuit breaker (`failures` in a row; closed while `open_until` is NULL), its last
health check, and how many tasks it may have at once (NULL: the default)."""

analysis_workers = Table(
    "analysis_workers",
    metadata,
    Column("owner", Text, primary_key=True),
    _text("run_id"),
    _text("host"),
    Column("pid", Integer),
    _now("started_at"),
    _now("heartbeat_at"),
    _when("lease_expires_at"),
    _when("stopped_at"),
)
"""Workers: alive while `lease_expires_at` lies ahead and `stopped_at` is NULL."""

generated_applications = Table(
    "generated_applications",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model_slug", Text, nullable=False),
    Column("app_number", Integer, nullable=False),
    Column("version", Integer, nullable=False, server_default="1"),
    Column("target", Text, Computed("model_slug || '/app' || CAST(app_number AS TEXT)", persisted=True)),
    _text("template_slug"),
    _text("generation_status", COMPLETED),
    _text("failure_stage"),
    Column("error_message", Text),
    Column("labels", JSON(none_as_null=True)),
    _when("missing_since"),
    _count("missing_looks"),
    _when("missing_seen_at"),
    _now("created_at"),
    _now("updated_at"),
    UniqueConstraint("model_slug", "app_number", "version", name="generated_applications_version"),
    Index("generated_applications_target", "target"),
)
"""Generated applications; `target` is what the tasks of an application name."""
