"""The tables of the usage domain.

What belongs here: tables and columns. Every query reaches them by Python attribute (`model_calls.c.user_id`),
so that the same code can run on tables whose database names differ.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)

from ops_pipeline.database.expressions import SQLITE_HOUR_KEY, SQLITE_MILLISECONDS
from ops_pipeline.database.types import ExactDecimal, UtcDateTime

CREDIT_DIGITS = 10
SECONDS_DIGITS = 6
MILLISECONDS_DIGITS = 3

CALL_STATUSES = ("processing", "success", "failed")
DIMENSIONS = ("user_id", "app_id", "provider", "model", "type")
TOKEN_COLUMNS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)
COUNT_COLUMNS = (*TOKEN_COLUMNS, "images")

metadata = MetaData()


def _dimension(name: str, default: str = "") -> Column[Any]:
    return Column(name, Text, server_default=default)


model_calls = Table(
    "model_calls",
    metadata,
    Column("id", Text, primary_key=True),
    _dimension("user_id"),
    _dimension("app_id"),
    _dimension("provider"),
    Column("model", Text, nullable=False),
    _dimension("type", "chatCompletion"),
    _dimension("credential_id"),
    _dimension("status", "processing"),
    Column("called_at", UtcDateTime, nullable=False),
    Column("duration_seconds", Double),
    Column("ttfb_ms", Double),
    *(Column(name, BigInteger, server_default="0") for name in COUNT_COLUMNS),
    Column("media_seconds", Double, server_default="0"),
    Column("credits", ExactDecimal(CREDIT_DIGITS, 20), server_default="0"),
    Column("error_reason", Text),
    Column("request_id", Text),
    Column("trace_id", Text),
    Column("created_at", UtcDateTime, nullable=False, server_default=func.current_timestamp()),
    Column("updated_at", UtcDateTime, nullable=False, server_default=func.current_timestamp()),
    # Given to the table: text alone does not tell which one it indexes.
    Index("model_calls_called_hour", text(SQLITE_HOUR_KEY.format("called_at"))).ddl_if(dialect="sqlite"),
    Index(
        # Another name than on PostgreSQL: by name alone, Alembic takes one for the other.
        "model_calls_processing_ms",
        text(SQLITE_MILLISECONDS.format("called_at")),
        sqlite_where=text("status = 'processing'"),
    ).ddl_if(dialect="sqlite"),
)
"""One row per call of a model, written by the gateway. `updated_at` is kept by triggers on the database's clock."""

Index("model_calls_updated_at", model_calls.c.updated_at)
Index("model_calls_called_at", model_calls.c.called_at).ddl_if(dialect="postgresql")
Index("model_calls_processing", model_calls.c.called_at, postgresql_where=text("status = 'processing'")).ddl_if(
    dialect="postgresql"
)


def _measures() -> list[Column[Any]]:
    counts = ("calls", "succeeded", "failed", "processing", *COUNT_COLUMNS)
    return [
        *(Column(name, BigInteger, nullable=False) for name in counts),
        Column("media_seconds", ExactDecimal(SECONDS_DIGITS), nullable=False),
        Column("credits", ExactDecimal(CREDIT_DIGITS), nullable=False),
        Column("duration_seconds_sum", ExactDecimal(SECONDS_DIGITS), nullable=False),
        Column("duration_count", BigInteger, nullable=False),
        Column("ttfb_ms_sum", ExactDecimal(MILLISECONDS_DIGITS), nullable=False),
        Column("ttfb_count", BigInteger, nullable=False),
        Column("last_called_at", UtcDateTime, nullable=False),
    ]


def _usage_table(name: str, period: Column[Any]) -> Table:
    dimensions = (Column(dimension, Text, primary_key=True) for dimension in DIMENSIONS)
    return Table(name, metadata, period, *dimensions, *_measures(), sqlite_with_rowid=False)


hourly_model_usage = _usage_table("hourly_model_usage", Column("hour", UtcDateTime, primary_key=True))
daily_model_usage = _usage_table("daily_model_usage", Column("day", Date, primary_key=True))
monthly_model_usage = _usage_table("monthly_model_usage", Column("month", Date, primary_key=True))

hourly_model_latency = Table(
    "hourly_model_latency",
    metadata,
    Column("hour", UtcDateTime, primary_key=True),
    Column("provider", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("type", Text, primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("calls", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""One row per filled bucket of a latency histogram (`histogram.py`); `metric` is `duration` or `ttfb`."""

usage_hours = Table(
    "usage_hours",
    metadata,
    Column("hour", UtcDateTime, primary_key=True),
    Column("state", Text, nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("processing", BigInteger, nullable=False),
    Column("aggregated_at", UtcDateTime, nullable=False),
    Column("source_version", ExactDecimal(0, 38), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("anomalies", JSON, nullable=False),
)
"""The truth about which hours are done, and from what: `source_version` changes with any raw call of the hour,
`revision` grows by one each time the hour's roll-up changes. It begins at the database's time in seconds, so that
an hour whose row here was lost does not come back with a revision that it had before."""

usage_hour_attempts = Table(
    "usage_hour_attempts",
    metadata,
    Column("hour", UtcDateTime, primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("attempted_at", UtcDateTime, nullable=False),
    Column("error", Text, nullable=False, server_default=""),
)
"""Hours begun and not finished since; the row goes when the hour succeeds."""

usage_days = Table(
    "usage_days",
    metadata,
    Column("day", Date, primary_key=True),
    Column("state", Text, nullable=False),
    Column("hours", Integer, nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("processing", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("aggregated_at", UtcDateTime, nullable=False),
    Column("reported_revision", BigInteger),
)
"""Which days are rolled up: `revision` is the sum of the revisions of the hours that were summed."""

usage_months = Table(
    "usage_months",
    metadata,
    Column("month", Date, primary_key=True),
    Column("state", Text, nullable=False),
    Column("days", Integer, nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("processing", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("aggregated_at", UtcDateTime, nullable=False),
)
"""Which months are rolled up: `revision` is the sum of the revisions of the days that were summed."""

usage_watermarks = Table(
    "usage_watermarks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("hour", UtcDateTime, nullable=False),
    Column("set_at", UtcDateTime, nullable=False),
)
"""Hours up to which something is true: `model_calls_pruned_before` is the hour before which raw calls were pruned."""

model_statuses = Table(
    "model_statuses",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("type", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("available", Boolean),
    Column("error_code", Text, nullable=False, server_default=""),
    Column("error_message", Text, nullable=False, server_default=""),
    Column("response_time_ms", Double),
    Column("checked_at", UtcDateTime),
    Column("changed_at", UtcDateTime),
    Column("candidate", Text, nullable=False, server_default=""),
    Column("agreeing", Integer, nullable=False, server_default="0"),
)
"""The current state of each probed model (`available`, `limited`, `unavailable`, `not_tested`). `available` is true
while calls can be expected to succeed, for limited models too, and NULL as long as nobody knows. `candidate` is the
state that the last `agreeing` probes in a row found instead."""

model_probe_results = Table(
    "model_probe_results",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("probed_at", UtcDateTime, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("error_code", Text, nullable=False, server_default=""),
    Column("error_message", Text, nullable=False, server_default=""),
    Column("http_status", Integer),
    Column("response_time_ms", Double),
    Column("input_tokens", BigInteger, nullable=False, server_default="0"),
    Column("output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("credits", ExactDecimal(CREDIT_DIGITS), nullable=False),
    Column("run_id", Text, nullable=False),
)
"""One row per probe, written before it is sent (`result` is `sent`, and counts for the budget) and completed after it;
`purpose` is `probe`, `verification` or `traffic` (no probe: real calls showed it). `state` is the model's after it."""

Index(
    "model_probe_results_model",
    model_probe_results.c.provider,
    model_probe_results.c.model,
    model_probe_results.c.type,
    model_probe_results.c.probed_at,
)
Index("model_probe_results_probed_at", model_probe_results.c.probed_at)
