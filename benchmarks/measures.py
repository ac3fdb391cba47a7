"""What the usage benchmark measures inside one process: the floor, aggregation, single hours, roll-ups, the old way.

What belongs here: one function per question, each of which returns lines of the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Engine, insert, select

from benchmarks.report import MEGABYTE, Measure, Reading, against, plain, typical
from benchmarks.scene import Scene
from benchmarks.usage_data import START
from ops_pipeline.database.engine import reading, rewriting, writing
from ops_pipeline.database.replace import insert_rows
from ops_pipeline.database.types import Rows
from ops_pipeline.usage.hours import DAY, HOUR, Window
from ops_pipeline.usage.rollups import roll_up_day, roll_up_month
from ops_pipeline.usage.statements import hourly_rows, latency_rows
from ops_pipeline.usage.tables import hourly_model_latency, hourly_model_usage, model_calls, usage_hours

PROJECT = Path(__file__).parent.parent
SINGLE_HOURS = 20
PAIRS = 2_000
SPEED_UP = 200
PEAK_LIMIT = 250 * MEGABYTE
WAL_SHARE = 0.05
"""An aggregation that changes nothing may write so much of the floor's write-ahead log."""


def insert_bare(connection: Connection, window: Window) -> None:
    """Fill both tables by one statement each."""
    insert_rows(connection, hourly_model_usage, hourly_rows(window))
    insert_rows(connection, hourly_model_latency, latency_rows(window))


def _floor(scene: Scene) -> None:
    engine = scene.database.bare_engine()
    with engine.begin() as connection:
        insert_bare(connection, scene.window)
    engine.dispose()


def _tuned_floor(scene: Scene) -> None:
    with rewriting(scene.engine, usage_hours) as connection:
        insert_bare(connection, scene.window)


def aggregation(scene: Scene, rounds: int) -> tuple[Reading, list[Measure]]:
    """The floor and aggregation by turns, so that a slow minute of the machine hits all of them.

    Returns:
        The floor, and the lines.
    """
    works: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "floor": (scene.database.empty, lambda: _floor(scene)),
        "tuned": (scene.database.empty, lambda: _tuned_floor(scene)),
        "aggregate": (scene.database.empty, scene.aggregate),
        "unchanged": (scene.database.settle, scene.aggregate),
    }
    readings: dict[str, list[Reading]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (prepare, work) in works.items():
            prepare()
            one = scene.measure(work)
            readings[name].append(one)
            print(f"  {name}: {one.seconds:.1f} s, CPU {one.cpu_seconds:.1f} s", file=sys.stderr, flush=True)
    floor, hours = typical(readings["floor"]), len(scene.window)
    sizes = {f"{table.name}_rows": scene.count(table) for table in (hourly_model_usage, hourly_model_latency)}
    measures = [
        against("floor: two bare INSERT … SELECT", readings["floor"], scene.calls, floor),
        against("the same with the project's settings", readings["tuned"], scene.calls, floor),
        against(f"aggregate {hours} hours", readings["aggregate"], scene.calls, floor, 1.3, **sizes),
        against(f"the same {hours} hours, unchanged", readings["unchanged"], scene.calls, floor, 1.6),
    ]
    if scene.database.name == "postgresql":
        measures.append(_write_ahead_log(readings["unchanged"], floor))
    return floor, measures


def _write_ahead_log(unchanged: Sequence[Reading], floor: Reading) -> Measure:
    written = typical(unchanged).wal_bytes
    share = written / floor.wal_bytes
    return Measure(
        "write-ahead log of that",
        result=f"{written / MEGABYTE:,.1f} MB, {share:.1%} of the floor's",
        target=f"<= {WAL_SHARE:.0%}",
        ok=share <= WAL_SHARE,
        details={"wal_bytes": written, "floor_wal_bytes": floor.wal_bytes},
    )


def single_hours(scene: Scene) -> list[Measure]:
    """One unchanged hour at a time, taken from all over the month."""
    step = max(1, len(scene.window) // SINGLE_HOURS)
    hours = list(scene.window)[::step][:SINGLE_HOURS]
    readings = [scene.measure(lambda hour=hour: scene.aggregate([hour])) for hour in hours]
    longest = max(one.seconds for one in readings)
    return [
        plain("one hour again", readings, limit=0.1, result=f"median of {len(hours)}; at most {longest * 1000:.0f} ms")
    ]


def roll_ups(scene: Scene) -> list[Measure]:
    """Days from hours, months from days."""
    days = [START.date() + index * DAY for index in range(len(scene.window) // 24)]
    months = sorted({day.replace(day=1) for day in days})

    def all_days() -> None:
        for day in days:
            roll_up_day(scene.engine, day, START)

    def all_months() -> None:
        for month in months:
            roll_up_month(scene.engine, month, START)

    return [
        plain(f"roll up {len(days)} days", [scene.measure(all_days)]),
        plain(f"roll up {len(months)} month(s)", [scene.measure(all_months)]),
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


def per_user_and_hour(scene: Scene, aggregated: Measure) -> list[Measure]:
    """The way of the program that this replaces: for each user and hour a query, then an INSERT of its rows."""
    scene.database.empty()
    with reading(scene.engine) as connection:
        users = sorted(connection.scalars(select(model_calls.c.user_id).distinct()))
    hours = list(scene.window)
    drawn = np.random.default_rng(1).choice(len(hours) * len(users), PAIRS, replace=False).tolist()
    pairs = [(hours[number // len(users)], users[number % len(users)]) for number in drawn]
    sample = scene.measure(lambda: _one_by_one(scene.engine, pairs))
    share = PAIRS / (len(users) * len(hours))
    speed = sample.seconds / share / (aggregated.seconds or 1)
    each = sample.seconds / PAIRS
    by_cpu = sample.cpu_seconds / share / (aggregated.cpu_seconds or 1)
    return [
        Measure(
            f"one query per user and hour, {len(users):,} x {len(hours)} pairs",
            sample.seconds / share,
            scene.calls,
            f"{each * 1000:.2f} ms a pair; all at once: {speed:,.0f} times as fast ({by_cpu:,.0f} by CPU)",
            f">= {SPEED_UP} times",
            speed >= SPEED_UP,
            {"pairs": PAIRS, "seconds_per_pair": each, "times": speed, "times_by_cpu": by_cpu},
            sample.cpu_seconds / share,
        )
    ]


def _one_by_one(engine: Engine, pairs: Sequence[tuple[datetime, str]]) -> None:
    query, names = _query_of_a_pair(engine)
    for hour, user in pairs:
        asked = dict(zip(names, (hour, hour + HOUR, user), strict=True))
        with writing(engine) as connection:
            found = connection.execute(query, asked).mappings().all()
            if found:
                connection.execute(insert(hourly_model_usage), [dict(row) for row in found])


def _query_of_a_pair(engine: Engine) -> tuple[Rows, list[str]]:
    """The query for one user and hour, built once, and the names of its parameters: start, end and user."""
    window = Window(START, START + HOUR)
    query = hourly_rows(window).where(model_calls.c.user_id == "somebody")
    names = {value: name for name, value in query.compile(engine).params.items()}
    return query, [names[value] for value in (window.start, window.end, "somebody")]
