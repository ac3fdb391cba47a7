"""The table of models: state, latency, last change and uptime.

What belongs here: reading results for people. What does not: anything that decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import quantiles

from sqlalchemy import Connection, and_, func, or_, select

from ops_pipeline.usage.probes.answers import AVAILABLE
from ops_pipeline.usage.probes.states import Status, uptime
from ops_pipeline.usage.probes.store import BY_TRAFFIC, SENT, read_statuses
from ops_pipeline.usage.probes.targets import Key
from ops_pipeline.usage.tables import model_probe_results

DAY, WEEK = timedelta(days=1), timedelta(days=7)


@dataclass(frozen=True)
class ModelRow:
    """One model: its status, latency of its successful probes of seven days in milliseconds, and uptime (0 to 1)."""

    key: Key
    status: Status
    p50_ms: float | None
    p95_ms: float | None
    uptime_day: float | None
    uptime_week: float | None


def model_rows(connection: Connection, keys: Collection[Key], now: datetime) -> list[ModelRow]:
    """The rows of the given models, those first that are not available."""
    statuses = read_statuses(connection)
    changes, times = _history(connection, now - WEEK)
    rows = []
    for key in keys:
        p50, p95 = percentiles(times.get(key, ()))
        history = changes.get(key, ())
        day, week = (uptime(history, now - span, now) for span in (DAY, WEEK))
        rows.append(ModelRow(key, statuses.get(key, Status()), p50, p95, day, week))
    return sorted(rows, key=lambda row: (row.status.state == AVAILABLE, row.key))


def percentiles(milliseconds: Sequence[float]) -> tuple[float | None, float | None]:
    """The median and the 95th percentile, interpolated linearly; None without values."""
    if len(milliseconds) < 2:
        value = milliseconds[0] if milliseconds else None
        return value, value
    cuts = quantiles(milliseconds, n=100, method="inclusive")
    return cuts[49], cuts[94]


def _history(
    connection: Connection, since: datetime
) -> tuple[Mapping[Key, list[tuple[datetime, str]]], Mapping[Key, list[float]]]:
    """States of each model, from the last one before `since` on, and response times of successful probes since."""
    table = model_probe_results.c
    model = (table.provider, table.model, table.type)
    answered = table.result != SENT
    before = select(func.max(table.id)).where(answered, table.probed_at < since).group_by(*model).scalar_subquery()
    wanted = and_(answered, or_(table.probed_at >= since, table.id.in_(before)))
    columns = (*model, table.probed_at, table.state, table.result, table.purpose, table.response_time_ms)
    changes: dict[Key, list[tuple[datetime, str]]] = defaultdict(list)
    times: dict[Key, list[float]] = defaultdict(list)
    for row in connection.execute(select(*columns).where(wanted).order_by(table.id)):
        key = (row.provider, row.model, row.type)
        if not changes[key] or changes[key][-1][1] != row.state:
            changes[key].append((row.probed_at, row.state))
        proved = row.result == AVAILABLE and row.purpose != BY_TRAFFIC and row.response_time_ms is not None
        if proved and row.probed_at >= since:
            times[key].append(row.response_time_ms)
    return changes, times
