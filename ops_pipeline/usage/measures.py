"""The figures of LLM usage for monitoring.

What belongs here: small SELECTs that stay small when the tables are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, select

from ops_pipeline.measuring import Measure, Measurer, age_seconds, single
from ops_pipeline.usage.hours import floor_hour
from ops_pipeline.usage.progress import CatchUpPolicy, failed_attempts, read_missing
from ops_pipeline.usage.tables import model_calls, model_statuses, usage_hours


def usage_measurer(policy: CatchUpPolicy) -> Measurer:
    """The measurer of a deployment whose first partition and pruning are those of `policy`."""

    def measure(connection: Connection, now: datetime) -> Sequence[Measure]:
        return [*_hours(connection, policy, now), *_calls(connection, now), _models(connection)]

    return measure


def _hours(connection: Connection, policy: CatchUpPolicy, now: datetime) -> list[Measure]:
    missing = read_missing(connection, policy, floor_hour(now))
    provisional = select(func.count()).where(usage_hours.c.state == "provisional")
    newest = connection.execute(select(func.max(usage_hours.c.hour))).scalar()
    counts: dict[tuple[str, ...], float] = {
        ("missing",): len(missing),
        ("provisional",): connection.execute(provisional).scalar_one(),
        ("failed",): len(failed_attempts(connection)),
    }
    return [
        Measure("ops_pipeline_usage_partitions", "Hours that are not, or not finally, aggregated.", ("state",), counts),
        single(
            "ops_pipeline_usage_backlog_seconds",
            "Age of the end of the oldest hour that is not aggregated yet.",
            age_seconds(missing[0], now) if missing else 0.0,
        ),
        single(
            "ops_pipeline_usage_newest_hour_timestamp_seconds",
            "Start of the newest hour that was aggregated.",
            newest.timestamp() if newest else None,
        ),
    ]


def _calls(connection: Connection, now: datetime) -> list[Measure]:
    at_work = model_calls.c.status == "processing"
    count, oldest = connection.execute(select(func.count(), func.min(model_calls.c.called_at)).where(at_work)).one()
    return [
        single("ops_pipeline_model_calls_processing", "Calls that have not ended.", count),
        single(
            "ops_pipeline_model_calls_oldest_processing_seconds",
            "Age of the oldest call that has not ended.",
            age_seconds(oldest, now),
        ),
    ]


def _models(connection: Connection) -> Measure:
    names = {True: "available", False: "unavailable", None: "unknown"}
    counts: dict[tuple[str, ...], float] = {(name,): 0 for name in names.values()}
    rows = connection.execute(select(model_statuses.c.available, func.count()).group_by(model_statuses.c.available))
    for available, count in rows:
        counts[(names[available],)] += count
    return Measure("ops_pipeline_models", "Probed models by state.", ("state",), counts)
