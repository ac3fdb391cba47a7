"""What the usage benchmark measures inside one process: the floor, aggregation, late calls, roll-ups, and the old way.

What belongs here: one function per question, each of which returns lines of the table.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from benchmarks.databases import Database
from benchmarks.report import MEGABYTE, Measure, against, plain, timed
from benchmarks.usage_data import START
from ops_pipeline.database.engine import database_now, reading, rewriting, writing
from ops_pipeline.database.replace import insert_rows
from ops_pipeline.database.types import Rows
from ops_pipeline.usage.aggregate import Policy, aggregate
from ops_pipeline.usage.hours import DAY, HOUR, Window
from ops_pipeline.usage.late import Late, LateCursor, LatePolicy, look_for_late_calls
from ops_pipeline.usage.rollups import roll_up_day, roll_up_month
from ops_pipeline.usage.statements import hourly_rows, latency_rows
from ops_pipeline.usage.tables import hourly_model_latency, hourly_model_usage, model_calls, usage_hours

PROJECT = Path(__file__).parent.parent
SINGLE_HOURS = 20
CHANGED = 1_000
PAIRS = 2_000
PEAK_LIMIT = 250 * MEGABYTE
WAL_SHARE = 0.05
"""An aggregation that changes nothing may write so much of the floor's write-ahead log."""
LATE = LatePolicy(overlap=timedelta(minutes=5), sweep_every=timedelta(minutes=10), sweep_hours=168)
"""The defaults of `settings`."""


@dataclass(frozen=True)
class Scene:
    """A filled database, and the window that all calls lie in."""

    database: Database
    calls: int
    window: Window

    @property
    def engine(self) -> Engine:
        """The engine with the project's settings."""
        return self.database.engine

    def aggregate(self, hours: Iterable[datetime] | None = None) -> None:
        """Aggregate hours, all of them unless told; no hour may fail."""
        for chunk in aggregate(self.engine, self.window if hours is None else hours, Policy()):
            if chunk.failures:
                raise RuntimeError(chunk.failures[0].error)

    def counted(self, work: Callable[[], object]) -> tuple[float, int]:
        """Seconds that work takes and bytes that it writes ahead."""
        before = self.database.wal_bytes() or 0
        seconds = timed(work)
        return seconds, (self.database.wal_bytes() or 0) - before


@dataclass(frozen=True)
class Floor:
    """What cannot be beaten: the two INSERT … SELECT … GROUP BY without chunks, checks or bookkeeping."""

    seconds: float
    wal_bytes: int


def bare_insert(connection: Connection, window: Window) -> None:
    """Fill both tables by one statement each."""
    insert_rows(connection, hourly_model_usage, hourly_rows(window))
    insert_rows(connection, hourly_model_latency, latency_rows(window))


def _bare_floor(scene: Scene) -> None:
    engine = scene.database.bare_engine()
    with engine.begin() as connection:
        bare_insert(connection, scene.window)
    engine.dispose()


def _tuned_floor(scene: Scene) -> None:
    with rewriting(scene.engine, usage_hours) as connection:
        bare_insert(connection, scene.window)


def floor_and_aggregate(scene: Scene, rounds: int) -> tuple[Floor, list[Measure]]:
    """The floor and the aggregation of empty tables by turns, so that a slow minute of the machine hits both."""
    works: dict[str, Callable[[], None]] = {
        "bare": lambda: _bare_floor(scene),
        "tuned": lambda: _tuned_floor(scene),
        "aggregate": scene.aggregate,
    }
    readings: dict[str, list[tuple[float, int]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            scene.database.empty()
            readings[name].append(scene.counted(work))
            print(f"  {name}: {readings[name][-1][0]:.2f} s", file=sys.stderr, flush=True)
    seconds = {name: [one for one, _ in pairs] for name, pairs in readings.items()}
    wal = {name: round(statistics.median(one for _, one in pairs)) for name, pairs in readings.items()}
    floor = Floor(statistics.median(seconds["bare"]), wal["bare"])
    hours = len(scene.window)
    return floor, [
        against("floor: two bare INSERT … SELECT", seconds["bare"], scene.calls, floor.seconds, wal_bytes=wal["bare"]),
        against("the same with the project's settings", seconds["tuned"], scene.calls, floor.seconds),
        against(
            f"aggregate {hours} hours",
            seconds["aggregate"],
            scene.calls,
            floor.seconds,
            1.3,
            wal_bytes=wal["aggregate"],
            **_sizes(scene),
        ),
    ]


def _sizes(scene: Scene) -> dict[str, int]:
    with reading(scene.engine) as connection:
        return {
            f"{table.name}_rows": connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (hourly_model_usage, hourly_model_latency)
        }


def unchanged(scene: Scene, floor: Floor, rounds: int) -> list[Measure]:
    """All hours once more, none of which changed."""
    readings: list[tuple[float, int]] = []
    for _ in range(rounds):
        scene.database.settle()
        readings.append(scene.counted(scene.aggregate))
    name = f"the same {len(scene.window)} hours, unchanged"
    measures = [against(name, [seconds for seconds, _ in readings], scene.calls, floor.seconds, 1.6)]
    if scene.database.name == "postgresql":
        written = statistics.median(one for _, one in readings)
        share = written / floor.wal_bytes
        measures.append(
            Measure(
                "write-ahead log of that",
                result=f"{written / MEGABYTE:,.1f} MB, {share:.1%} of the floor's",
                target=f"<= {WAL_SHARE:.0%}",
                ok=share <= WAL_SHARE,
                details={"readings": [one for _, one in readings], "floor": floor.wal_bytes},
            )
        )
    return measures


def single_hours(scene: Scene) -> list[Measure]:
    """One unchanged hour at a time, taken from all over the month."""
    step = max(1, len(scene.window) // SINGLE_HOURS)
    readings = [timed(lambda hour=hour: scene.aggregate([hour])) for hour in list(scene.window)[::step][:SINGLE_HOURS]]
    return [plain("one hour again", readings, limit=0.1, result=f"at most {max(readings) * 1000:.0f} ms")]


def late_calls(scene: Scene) -> list[Measure]:
    """Looks for late calls: nothing to find, deletions counted, and `CHANGED` calls changed all over the month."""
    with reading(scene.engine) as connection:
        now = database_now(connection)
    idle, swept = LateCursor(looked_until=now, swept_at=now), LateCursor(looked_until=now)
    measures = [
        plain("look for late calls, none there", _looks(scene, idle, 20)[0]),
        plain("look that counts calls as well", _looks(scene, swept, 3)[0], result=f"{2 * LATE.sweep_hours} hours"),
    ]
    _change(scene)
    seconds, late = _looks(scene, idle, 3)
    found = f"{len(late.stale)} hours stale, {len(late.waiting)} waiting"
    measures.append(plain(f"look with {CHANGED:,} calls changed", seconds, result=found))
    _, hours = _all_stale(scene, idle)
    measures.append(plain(f"aggregate those {len(hours)} hours", [timed(lambda: scene.aggregate(hours))]))
    seconds, late = _looks(scene, idle, 3)
    found = f"{late.compared} hours compared, {len(late.stale)} stale"
    measures.append(plain("next look, while these calls are within its overlap", seconds, result=found))
    return measures


def _looks(scene: Scene, cursor: LateCursor, times: int) -> tuple[list[float], Late]:
    readings: list[float] = []
    for _ in range(times):
        with reading(scene.engine) as connection:
            started = time.perf_counter()
            late = look_for_late_calls(connection, cursor, LATE)
            readings.append(time.perf_counter() - started)
    return readings, late


def _all_stale(scene: Scene, cursor: LateCursor) -> tuple[LateCursor, Sequence[datetime]]:
    """The stale hours of as many looks as it takes until none waits."""
    stale: set[datetime] = set()
    while True:
        _, late = _looks(scene, cursor, 1)
        stale |= set(late.stale)
        if not late.waiting:
            return late.cursor, sorted(stale)
        cursor = LateCursor(late.cursor.looked_until, late.waiting, late.cursor.swept_at)


def _change(scene: Scene) -> None:
    ids = [f"call-{number:09d}" for number in range(0, scene.calls, max(1, scene.calls // CHANGED))][:CHANGED]
    with writing(scene.engine) as connection:
        changed = update(model_calls).where(model_calls.c.id.in_(ids))
        connection.execute(changed.values(output_tokens=model_calls.c.output_tokens + 1))


def roll_ups(scene: Scene) -> list[Measure]:
    """Days from hours, months from days."""
    days = [START.date() + index * DAY for index in range(len(scene.window) // 24)]
    months = sorted({day.replace(day=1) for day in days})
    daily = [timed(lambda day=day: roll_up_day(scene.engine, day, START)) for day in days]
    monthly = [timed(lambda month=month: roll_up_month(scene.engine, month, START)) for month in months]
    return [
        plain(f"roll up {len(days)} days", [sum(daily)], result=f"at most {max(daily) * 1000:.0f} ms a day"),
        plain(f"roll up {len(months)} month", [sum(monthly)]),
    ]


def peak_memory(scene: Scene) -> list[Measure]:
    """The peak of a process that does nothing but aggregate all hours, twice."""
    scene.database.empty()
    window = scene.window
    command = [sys.executable, "-m", "benchmarks.child", "aggregate", window.start.isoformat(), window.end.isoformat()]
    environment = {**os.environ, "DATABASE_URL": scene.database.url}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    peak = max(peaks.values())
    return [
        Measure(
            "peak memory of a process that aggregates",
            result=f"{peak / MEGABYTE:.0f} MB, {peaks['imports'] / MEGABYTE:.0f} of it imports",
            target=f"< {PEAK_LIMIT / MEGABYTE:.0f} MB",
            ok=peak < PEAK_LIMIT,
            details=peaks,
        )
    ]


def per_user_and_hour(scene: Scene, aggregated_seconds: float) -> list[Measure]:
    """The way of the program that this replaces: for each user and hour a query, then an INSERT of its rows."""
    scene.database.empty()
    with reading(scene.engine) as connection:
        users = sorted(connection.scalars(select(model_calls.c.user_id).distinct()))
    hours = list(scene.window)
    query, names = _query_of_a_pair(scene.engine)
    drawn = np.random.default_rng(1).choice(len(hours) * len(users), PAIRS, replace=False).tolist()
    started = time.perf_counter()
    for number in drawn:
        hour, user = hours[number // len(users)], users[number % len(users)]
        asked = dict(zip(names, (hour, hour + HOUR, user), strict=True))
        with writing(scene.engine) as connection:
            found = connection.execute(query, asked).mappings().all()
            if found:
                connection.execute(insert(hourly_model_usage), [dict(row) for row in found])
    seconds = (time.perf_counter() - started) / PAIRS
    with writing(scene.engine) as connection:
        connection.execute(delete(hourly_model_usage))
    total = seconds * len(users) * len(hours)
    speed = total / aggregated_seconds
    return [
        Measure(
            f"one query per user and hour, {len(users):,} x {len(hours)} (extrapolated)",
            total,
            scene.calls,
            f"{seconds * 1000:.2f} ms a pair; aggregate is {speed:,.0f} times as fast",
            ">= 200 times",
            speed >= 200,
            {"pairs": PAIRS, "seconds_per_pair": seconds, "times": speed},
        )
    ]


def _query_of_a_pair(engine: Engine) -> tuple[Rows, list[str]]:
    """The query for one user and hour, built once, and the names of its parameters: start, end and user."""
    window = Window(START, START + HOUR)
    query = hourly_rows(window).where(model_calls.c.user_id == "somebody")
    names = {value: name for name, value in query.compile(engine).params.items()}
    return query, [names[value] for value in (window.start, window.end, "somebody")]
