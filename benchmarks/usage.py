"""The usage benchmark: `python -m benchmarks.usage`; `--help` lists its options, RESULTS.md its results.

Fills a private database with a month of calls and measures aggregation against its floor, a bare INSERT … SELECT …
GROUP BY of the same two tables, all in one run. A missed target is printed, and is no failure.

What belongs here: arguments and the order of measurements.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from benchmarks.dagster_run import launch
from benchmarks.databases import DATABASES, database
from benchmarks.late_measures import late_calls
from benchmarks.measures import aggregation, peak_memory, per_user_and_hour, roll_ups, single_hours
from benchmarks.report import MEGABYTE, Measure, Reading, as_json, machine, table
from benchmarks.scene import Scene
from benchmarks.usage_data import START, load
from ops_pipeline.usage.hours import Window

DAGSTER_SECONDS = 15
"""What a run of a month may cost beyond the floor."""


@click.command(context_settings={"show_default": True})
@click.option("--calls", default=5_000_000, help="How many calls.")
@click.option("--days", default=30, type=click.IntRange(1, 360), help="Over how many days.")
@click.option("--database", "which", default="both", type=click.Choice([*DATABASES, "both"]), help="Where.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="How often the long measurements are repeated.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write every reading here.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Leave the databases in this folder, and use those that are there.",
)
def main(*, calls: int, days: int, which: str, rounds: int, json_file: Path | None, keep: Path | None) -> None:
    """Measure the aggregation of LLM usage against its floor."""
    window = Window(START, START + timedelta(days=days))
    report: dict[str, Any] = {"calls": calls, "days": days, "rounds": rounds, "machine": machine(), "databases": {}}
    for name in DATABASES if which == "both" else [which]:
        with _folder(keep) as folder, database(name, folder) as one:
            _say(f"{name}: filling {calls:,} calls over {days} days")
            load(one, calls, days)
            measures = list(measured(Scene(one, calls, window), folder, rounds))
            version = one.version()
        print(_title(name, version, report))
        print(table(measures), flush=True)
        report["databases"][name] = {"version": version, "measures": as_json(measures)}
        report["machine"]["load_average_after"] = machine()["load_average"]
    if json_file:
        json_file.write_text(json.dumps(report, indent=2) + "\n")


def measured(scene: Scene, folder: Path, rounds: int) -> Iterator[Measure]:
    """Take all measurements of a database."""
    floor, measures = aggregation(scene, rounds)
    yield from _told(measures)
    for question in (single_hours, roll_ups, late_calls, peak_memory):
        yield from _told(question(scene))
    for storage in ["sqlite", "postgresql"] if scene.database.name == "postgresql" else ["sqlite"]:
        yield from _told([through_dagster(scene, floor, folder, storage)])
    aggregated = next(one for one in measures if one.name.startswith("aggregate"))
    yield from _told(per_user_and_hour(scene, aggregated))


def through_dagster(scene: Scene, floor: Reading, folder: Path, storage: str) -> Measure:
    """All hours in one run of Dagster, from the command line to its end."""
    scene.database.empty()
    run = launch(scene, folder, storage)
    over, over_by_cpu = run.cost.seconds - floor.seconds, run.cost.cpu_seconds - floor.cpu_seconds
    return Measure(
        f"through Dagster, its storage on {storage}",
        run.cost.seconds,
        scene.calls,
        f"floor {over:+.1f} s ({over_by_cpu:+.1f} s by CPU); the run alone {run.run_seconds:.1f} s;"
        f" {run.peak_bytes / MEGABYTE:.0f} MB",
        f"<= floor +{DAGSTER_SECONDS} s",
        over <= DAGSTER_SECONDS and run.status == "SUCCESS",
        {"run_seconds": run.run_seconds, "peak_bytes": run.peak_bytes, "status": run.status, "over_floor": over},
        run.cost.cpu_seconds,
    )


def _told(measures: list[Measure]) -> list[Measure]:
    """The same, after telling whoever waits."""
    for measure in measures:
        _say("  " + "  ".join(cell for cell in measure.cells() if cell))
    return measures


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _title(name: str, version: str, report: dict[str, Any]) -> str:
    where = report["machine"]
    return (
        f"\n{name} {version}, Python {where['python']}, {where['cores']} cores of {where['cpu']}, {where['date']}:"
        f" {report['calls']:,} calls in {report['days']} days; load average before {where['load_average'][0]}\n"
    )


@contextmanager
def _folder(keep: Path | None) -> Generator[Path, None, None]:
    """An absolute folder that the server's user can reach."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="ops_pipeline_benchmark_") as name:
        Path(name).chmod(0o755)
        yield Path(name)


if __name__ == "__main__":
    main()
