"""The benchmark of the stale-call clean-up: `python -m benchmarks.stale`; results are in RESULTS.md.

Among millions of calls a hundred thousand are left processing, and failed again: by one bare UPDATE, the floor, and by
the clean-up with its short transactions. A missed target is printed, and is no failure.

What belongs here: arguments and the order of measurements.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import click
from sqlalchemy import Engine, text

from benchmarks.databases import DATABASES, Database, database
from benchmarks.report import Measure, Reading, against, machine, plain, table, typical
from benchmarks.usage_data import load
from ops_pipeline.database.engine import reading
from ops_pipeline.usage.stale import Cleaned, StalePolicy, fail_stale, find_stale

POLICY = StalePolicy(timedelta(minutes=30))
LONGEST_LOCK = 0.5
"""Seconds for which a gateway that ends a call may have to wait."""
RATIO = 1.5
LOOK_SECONDS = 0.01
FEW = 100


@click.command(context_settings={"show_default": True})
@click.option("--calls", default=5_000_000, help="How many calls there are.")
@click.option("--stale", default=100_000, help="How many of them are stale.")
@click.option("--database", "which", default="postgresql", type=click.Choice(DATABASES), help="Where.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="How often each measurement is repeated.")
def main(*, calls: int, stale: int, which: str, rounds: int) -> None:
    """Measure the clean-up of stale calls against one bare UPDATE of the same rows."""
    where = machine()
    with tempfile.TemporaryDirectory(prefix="ops_pipeline_benchmark_") as name:
        Path(name).chmod(0o755)
        with database(which, Path(name)) as one:
            print(f"{which}: filling {calls:,} calls", file=sys.stderr, flush=True)
            load(one, calls, 30)
            measures = measured(one, calls, stale, rounds)
            title = f"{which} {one.version()}, {where['cores']} cores of {where['cpu']}, {where['date']}"
    print(f"\n{title}: {stale:,} stale of {calls:,} calls; load average before {where['load_average'][0]}\n")
    print(table(measures), flush=True)


def measured(one: Database, calls: int, stale: int, rounds: int) -> list[Measure]:
    """Floor and clean-up in turn, then the look."""
    floors: list[Reading] = []
    readings: list[Reading] = []
    cleanings: list[Cleaned] = []
    for _ in range(rounds):
        _leave_processing(one, calls, stale)
        floors.append(_read(one, lambda: _bare_update(one.bare_engine())))
        _leave_processing(one, calls, stale)
        readings.append(_read(one, lambda: cleanings.append(_clean(one.engine))))
    if {cleaned.calls for cleaned in cleanings} != {stale}:
        raise RuntimeError(f"{stale} calls should have been failed, not {[one.calls for one in cleanings]}")
    floor = typical(floors)
    longest = max(cleaned.longest_seconds for cleaned in cleanings)
    _leave_processing(one, calls, FEW)
    looks = [_read(one, lambda: _look(one.engine, FEW)) for _ in range(20)]
    few = [_read(one, lambda: _clean(one.engine))]
    return [
        Measure("floor: one bare UPDATE", floor.seconds, stale, "1.00 x floor", cpu_seconds=floor.cpu_seconds),
        against("clean-up", readings, stale, floor, RATIO),
        Measure(
            "its longest transaction",
            longest,
            result=f"{cleanings[-1].batches} transactions",
            target=f"< {LONGEST_LOCK * 1000:g} ms",
            ok=longest < LONGEST_LOCK,
        ),
        plain(f"look that finds {FEW}", looks, limit=LOOK_SECONDS, result="median of 20"),
        plain(f"clean-up of {FEW}", few),
    ]


def _read(one: Database, work: Callable[[], object]) -> Reading:
    cpu, started = one.cpu_seconds(), time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return Reading(seconds, one.cpu_seconds() - cpu)


def _leave_processing(one: Database, calls: int, stale: int) -> None:
    """Make so many calls processing that lie anywhere in the month, and settle."""
    every = calls // stale
    if one.name == "postgresql":
        number = "('x' || substr(md5(id), 1, 8))::bit(32)::bigint"
        picked = f"SELECT id FROM model_calls ORDER BY ({number} % {every}), id LIMIT {stale}"
    else:
        picked = f"SELECT id FROM model_calls ORDER BY (rowid % {every}) LIMIT {stale}"
    one.execute(
        "UPDATE model_calls SET status = 'processing', error_reason = NULL, duration_seconds = NULL"
        f" WHERE id IN ({picked})",
        *(["VACUUM (ANALYZE) model_calls", "CHECKPOINT"] if one.name == "postgresql" else ["ANALYZE"]),
    )


def _bare_update(engine: Engine) -> None:
    age = "now() - interval '30 minutes'" if engine.dialect.name == "postgresql" else "datetime('now', '-30 minutes')"
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE model_calls SET status = 'failed', duration_seconds = 1800,"
                " error_reason = 'Timeout: Processing exceeded 30 minutes'"
                f" WHERE status = 'processing' AND called_at < {age}"
            )
        )
    engine.dispose()


def _clean(engine: Engine) -> Cleaned:
    with reading(engine) as connection:
        found = find_stale(connection, POLICY)
    return fail_stale(engine, found.now, POLICY)


def _look(engine: Engine, expected: int) -> None:
    with reading(engine) as connection:
        found = find_stale(connection, POLICY)
    if found.calls != expected:
        raise RuntimeError(f"{expected} calls are stale, not {found.calls}")


if __name__ == "__main__":
    main()
