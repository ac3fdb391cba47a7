"""Raw calls for tests, and what their roll-up must be, computed in Python from the same rows."""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, Table, delete, event, insert, select, text, update

from ops_pipeline.database.engine import reading, writing
from ops_pipeline.settings import CALL_TYPES
from ops_pipeline.usage.aggregate import ChunkResult, Policy, aggregate
from ops_pipeline.usage.histogram import bucket_of
from ops_pipeline.usage.hours import floor_hour
from ops_pipeline.usage.tables import (
    CALL_STATUSES,
    COUNT_COLUMNS,
    DIMENSIONS,
    hourly_model_latency,
    hourly_model_usage,
    metadata,
    model_calls,
    usage_hour_attempts,
    usage_hours,
)

_numbers = itertools.count()
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
MICROSECONDS = Decimal("0.000001")
MILLISECOND = timedelta(milliseconds=1)
CLOCKS = ("aggregated_at", "attempted_at")
"""Columns that tell when something was done, not what: they differ between two runs that do the same."""


def examples(number: int) -> settings:
    """Hypothesis settings: so many examples, each as long as it takes, on one database (see `erase`) if any."""
    unharmed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=number, deadline=None, database=None, suppress_health_check=unharmed)


def at(text: str) -> datetime:
    """An aware UTC time, for example `at("2026-03-10 12:30")`."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def call(called_at: datetime = NOON, **fields: Any) -> dict[str, Any]:
    """One successful chat call; any field may be set."""
    values: dict[str, Any] = {
        "id": f"call-{next(_numbers)}",
        "user_id": "anna",
        "app_id": "chat",
        "provider": "openai",
        "model": "gpt",
        "type": "chatCompletion",
        "status": "success",
        "called_at": called_at,
        "duration_seconds": 2.0,
        "ttfb_ms": 300.0,
        "input_tokens": 10,
        "output_tokens": 5,
        "credits": Decimal("0.0123456789"),
    }
    return values | fields


def arbitrary_calls(start: datetime, hours: int, most: int = 25) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Lists of calls with any content that a database keeps, believable or not, all within some hours."""
    names = st.sampled_from([None, "", "null", "anna", "ben", "Ärger 🙂", "'; --"])
    amounts = st.none() | st.integers(-50, 1000) | st.integers(2**31, 2**40)
    moments = st.integers(0, hours * 3600 * 10**6 - 1) | st.sampled_from(
        [index * 3600 * 10**6 + edge for index in range(hours) for edge in (0, 3600 * 10**6 - 1)]
    )
    # Whole microseconds: the databases round a half of one to different sides.
    timings = st.none() | st.integers(-(10**6), 10**11).map(lambda count: count / 10**6)
    absurd = st.sampled_from([math.inf, -math.inf, 1e12, 1e306, -1e10])
    prices = st.none() | st.decimals(-100, 10**6, places=10)
    one = st.builds(
        call,
        moments.map(lambda count: start + timedelta(microseconds=count)),
        user_id=names,
        app_id=names,
        provider=names,
        model=st.sampled_from(["gpt", "veo", ""]),
        type=st.sampled_from([*CALL_TYPES, None, "", "telepathy"]),
        status=st.sampled_from([*CALL_STATUSES, *CALL_STATUSES, None, "", "on fire"]),
        duration_seconds=timings | absurd,
        ttfb_ms=timings.map(lambda value: value and round(value, 3)) | absurd,
        media_seconds=timings | absurd,
        credits=prices,
        **dict.fromkeys(COUNT_COLUMNS, amounts),
    )
    return st.lists(one, max_size=most)


def write(engine: Engine, *calls: dict[str, Any]) -> None:
    """Insert calls, each with the fields it has."""
    alike: dict[frozenset[str], list[dict[str, Any]]] = defaultdict(list)
    for one in calls:
        alike[frozenset(one)].append(one)
    with writing(engine) as connection:
        for group in alike.values():
            connection.execute(insert(model_calls), group)


def change(engine: Engine, one: dict[str, Any], **fields: Any) -> None:
    """Update a call as a gateway does, and its dict with it."""
    with writing(engine) as connection:
        connection.execute(update(model_calls).where(model_calls.c.id == one["id"]).values(**fields))
    one.update(fields)


def remove(engine: Engine, *calls: dict[str, Any]) -> None:
    """Delete calls."""
    with writing(engine) as connection:
        connection.execute(delete(model_calls).where(model_calls.c.id.in_([one["id"] for one in calls])))


def execute(engine: Engine, statement: str, **parameters: Any) -> None:
    """Run one statement as another program might."""
    with writing(engine) as connection:
        connection.execute(text(statement), parameters)


def backdate(engine: Engine, *calls: dict[str, Any]) -> None:
    """Make calls (or all there are) look as if written a day ago, which the triggers would not let anybody do."""
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            a_day_before, triggers = "updated_at - interval '1 day'", []
        else:
            a_day_before = "strftime('%Y-%m-%d %H:%M:%f', updated_at, '-1 day')"
            triggers = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
        for trigger in triggers:
            connection.execute(text(f"DROP TRIGGER {trigger.name}"))
        earlier = update(model_calls).values(updated_at=text(a_day_before))
        if calls:
            earlier = earlier.where(model_calls.c.id.in_([one["id"] for one in calls]))
        connection.execute(earlier)
        for trigger in triggers:
            connection.exec_driver_sql(trigger.sql)


def erase(engine: Engine) -> None:
    """Empty every table of the usage domain: the next example of a property starts from nothing."""
    with writing(engine) as connection:
        for table in metadata.sorted_tables:
            connection.execute(delete(table))


def meddle(engine: Engine, before: str, work: Callable[[], None]) -> threading.Thread:
    """Start `work` once, as another program, just before the aggregation runs its first statement on a table.

    PostgreSQL lets it commit at once; on SQLite it waits until the aggregation has committed.
    """
    thread = threading.Thread(target=work)

    @event.listens_for(engine, "before_cursor_execute")
    def hook(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if before in statement and not thread.ident:
            thread.start()
            thread.join(0.3 if engine.dialect.name == "sqlite" else 30)

    return thread


def run(engine: Engine, *hours: datetime, **policy: Any) -> list[ChunkResult]:
    """Aggregate hours."""
    return list(aggregate(engine, hours, Policy(**policy)))


def rows(engine: Engine, table: Any) -> list[dict[str, Any]]:
    """All rows of a table in the order of its key."""
    with reading(engine) as connection:
        return [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]


def contents(engine: Engine, *tables: Table) -> dict[str, list[dict[str, Any]]]:
    """All rows of the tables (by default: all that an aggregation writes) without the times of writing."""
    written = tables or (hourly_model_usage, hourly_model_latency, usage_hours, usage_hour_attempts)
    return {
        table.name: [{name: row[name] for name in row if name not in CLOCKS} for row in rows(engine, table)]
        for table in written
    }


def totals(engine: Engine, table: Any = hourly_model_usage) -> dict[str, Any]:
    """The sums of a roll-up table's counts and credits."""
    found = rows(engine, table)
    return {name: sum(row[name] for row in found) for name in ("calls", *COUNT_COLUMNS, "credits")}


def expected_totals(calls: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The same sums over raw calls."""
    listed = list(calls)
    return {"calls": len(listed)} | {
        name: sum(one.get(name) or 0 for one in listed) for name in (*COUNT_COLUMNS, "credits")
    }


def usable(value: float | None) -> bool:
    """True for a timing that may be summed."""
    return value is not None and -1e9 <= value <= 1e9


def rounded(value: float, digits: int) -> Decimal:
    """A float as a decimal of so many digits."""
    return round(Decimal(repr(value)), digits)


def dimension(one: dict[str, Any], name: str) -> str:
    """A dimension of a call as the roll-up must hold it."""
    value = one.get(name)
    return "" if value is None or (name in {"user_id", "app_id"} and value == "null") else value


def grouped(calls: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of `hourly_model_usage` that calls must become, by hour and dimensions."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(lambda: defaultdict(Decimal))
    for one in calls:
        group = groups[floor_hour(one["called_at"]), *(dimension(one, name) for name in DIMENSIONS)]
        group["calls"] += 1
        status = {"success": "succeeded", "failed": "failed", "processing": "processing"}.get(one["status"])
        if status:
            group[status] += 1
        for name in (*COUNT_COLUMNS, "credits"):
            group[name] += one.get(name) or 0
        if usable(one.get("media_seconds")):
            group["media_seconds"] += rounded(one["media_seconds"], 6)
        for name, total, count, digits in (
            ("duration_seconds", "duration_seconds_sum", "duration_count", 6),
            ("ttfb_ms", "ttfb_ms_sum", "ttfb_count", 3),
        ):
            if status == "succeeded" and usable(one.get(name)):
                group[total] += rounded(one[name], digits)
                group[count] += 1
        group["last_called_at"] = max(group.get("last_called_at") or one["called_at"], one["called_at"])
    return groups


def bucketed(calls: Iterable[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    """The rows of `hourly_model_latency` that calls must become: calls by key and bucket."""
    found: Counter[tuple[Any, ...]] = Counter()
    for one in calls:
        key = floor_hour(one["called_at"]), *(dimension(one, name) for name in ("provider", "model", "type"))
        for name, metric, factor in (("duration_seconds", "duration", 1000.0), ("ttfb_ms", "ttfb", 1.0)):
            if one["status"] == "success" and one.get(name) is not None:
                found[*key, metric, bucket_of(one[name] * factor)] += 1
    return found


def assert_rolled_up(engine: Engine, calls: Iterable[dict[str, Any]]) -> None:
    """Every column of every row of the two hourly tables is what the calls make it, and there is no other row."""
    listed = list(calls)
    expected = grouped(listed)
    found = {(row["hour"], *(row[name] for name in DIMENSIONS)): row for row in rows(engine, hourly_model_usage)}
    assert found.keys() == expected.keys()
    for key, row in found.items():
        group = expected[key]
        # SQLite keeps milliseconds of it.
        assert abs(row["last_called_at"] - group["last_called_at"]) <= MILLISECOND
        measures = {name: value for name, value in row.items() if name not in {"hour", *DIMENSIONS, "last_called_at"}}
        assert measures == {name: group[name] for name in measures}
    key_names = ("hour", "provider", "model", "type", "metric", "bucket")
    latency = {tuple(row[name] for name in key_names): row["calls"] for row in rows(engine, hourly_model_latency)}
    assert latency == bucketed(listed)
