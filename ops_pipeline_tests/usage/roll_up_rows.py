"""Rows of the roll-up tables for tests of the readers, who do not care how the rows were made."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, Table, insert

from ops_pipeline.database.engine import writing
from ops_pipeline.usage.histogram import histogram
from ops_pipeline.usage.tables import hourly_model_latency, hourly_model_usage, usage_hours

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def usage_row(hour: datetime, **changes: Any) -> dict[str, Any]:
    """A row of one successful call without anything else."""
    row: dict[str, Any] = {
        "hour": hour,
        "user_id": "ada",
        "app_id": "chat",
        "provider": "openai",
        "model": "gpt-5",
        "type": "chatCompletion",
        "calls": 1,
        "succeeded": 1,
        **dict.fromkeys(("failed", "processing", "images", "duration_count", "ttfb_count"), 0),
        **dict.fromkeys(("input_tokens", "output_tokens", "reasoning_tokens"), 0),
        **dict.fromkeys(("cache_read_tokens", "cache_write_tokens"), 0),
        **dict.fromkeys(("media_seconds", "credits", "duration_seconds_sum", "ttfb_ms_sum"), Decimal(0)),
        "last_called_at": hour,
    }
    return row | changes


def insert_usage(engine: Engine, *rows: dict[str, Any]) -> None:
    _insert(engine, hourly_model_usage, rows)


def insert_latency(engine: Engine, hour: datetime, milliseconds: Iterable[float], **changes: Any) -> None:
    key = {"provider": "openai", "model": "gpt-5", "type": "chatCompletion", "metric": "duration"} | changes
    counts = histogram(milliseconds)
    rows = [{"hour": hour, **key, "bucket": bucket, "calls": calls} for bucket, calls in counts.items()]
    _insert(engine, hourly_model_latency, rows)


def insert_hours(engine: Engine, *hours: datetime, state: str = "complete") -> None:
    rest = {"state": state, "calls": 0, "processing": 0, "aggregated_at": NOON, "source_version": Decimal(0)}
    _insert(engine, usage_hours, [{"hour": hour, "revision": 1, "anomalies": {}, **rest} for hour in hours])


def _insert(engine: Engine, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    with writing(engine) as connection:
        connection.execute(insert(table), list(rows))
