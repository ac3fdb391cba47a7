"""The benchmark of maintenance: `python -m benchmarks.maintenance`; results are in RESULTS.md.

Applications on a local disk are looked at, against one bare walk with `os.scandir`; a million old tasks, in trees of
four, and old raw calls are archived and deleted, each in a process of its own. A missed target is printed, and is no
failure.

What belongs here: making the scene, and the measurements.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.child import peak_bytes
from benchmarks.databases import DATABASES, Database, database
from benchmarks.report import MEGABYTE, Measure, Reading, against, machine, plain, table, typical

if TYPE_CHECKING:
    from ops_pipeline.passes import Report

APPS_PER_MODEL = 1_000
APP_RATIO = 2.0
ROWS_PER_SECOND = 20_000
LONGEST_LOCK = 0.5
MOST_BYTES = 200 * MEGABYTE
TREE = 4
CALL_DAYS = 20


@click.command(context_settings={"show_default": True})
@click.option("--applications", default=100_000, help="How many applications lie on the disk.")
@click.option("--tasks", default=1_000_000, help="How many old tasks there are.")
@click.option("--results", default=0, help="How many results each of them has.")
@click.option("--calls", default=500_000, help="How many old raw calls there are.")
@click.option("--database", "which", default="postgresql", type=click.Choice(DATABASES), help="Where.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="How often a look is repeated.")
def main(*, applications: int, tasks: int, results: int, calls: int, which: str, rounds: int) -> None:
    """Measure looks at applications, and the archiving and deletion of old tasks and calls."""
    where = machine()
    with tempfile.TemporaryDirectory(prefix="ops_pipeline_benchmark_") as name:
        Path(name).chmod(0o755)
        with database(which, Path(name) / "db") as one:
            measures = looks(one, Path(name), applications, rounds) if applications else []
            measures += old_tasks(one, Path(name), tasks, results) if tasks else []
            measures += old_calls(one, Path(name), calls) if calls else []
            title = f"{which} {one.version()}, {where['cores']} cores of {where['cpu']}, {where['date']}"
    print(f"\n{title}; load average before {where['load_average'][0]}\n")
    print(table(measures), flush=True)


def looks(one: Database, folder: Path, applications: int, rounds: int) -> list[Measure]:
    """A bare walk, the look in its process, and the whole pass in which nothing is to be done."""
    from ops_pipeline.analysis.maintenance.applications import Policy  # noqa: PLC0415
    from ops_pipeline.analysis.maintenance.clean_applications import clean_orphan_applications  # noqa: PLC0415
    from ops_pipeline.analysis.maintenance.lab import Lab  # noqa: PLC0415
    from ops_pipeline.analysis.maintenance.root import look  # noqa: PLC0415
    from ops_pipeline.passes import Options  # noqa: PLC0415

    root, models = folder / "apps", max(1, applications // APPS_PER_MODEL)
    print(f"making {applications:,} applications", file=sys.stderr, flush=True)
    for number in range(applications):
        (root / f"model-{number % models}" / f"app{number // models}").mkdir(parents=True)
    one.execute(
        "INSERT INTO generated_applications (id, model_slug, app_number) "
        + numbers(one, applications, f"'a' || n, 'model-' || (n % {models}), n / {models}")
    )
    one.execute("ANALYZE generated_applications")
    slugs = [f"model-{number}" for number in range(models)]
    lab = Lab(one.engine, str(root), folder / "results", str(folder / "archive"))

    def whole() -> None:
        report = clean_orphan_applications(lab, Policy(timedelta(days=7)), Options())
        if report.status != "success" or report.outcome.scanned != applications or report.changes:
            raise RuntimeError(f"{report.error or report.outcome}: {report.changes[:3]}")

    bare_walk(str(root))
    whole()
    floors = [read(one, lambda: bare_walk(str(root))) for _ in range(rounds)]
    floor = typical(floors)
    looked = [read(one, lambda: look(str(root), slugs)) for _ in range(rounds)]
    passes = [read(one, whole) for _ in range(rounds)]
    return [
        Measure("floor: one walk with os.scandir", floor.seconds, applications, "1.00 x floor"),
        against("look at the disk, in its process", looked, applications, floor, APP_RATIO),
        against("whole pass, database included", passes, applications, floor, APP_RATIO),
    ]


def bare_walk(root: str) -> int:
    """What a script of five lines does."""
    found = 0
    with os.scandir(root) as models:
        for model in models:
            if model.is_dir():
                with os.scandir(model.path) as apps:
                    found += sum(app.is_dir() for app in apps)
    return found


def old_tasks(one: Database, folder: Path, tasks: int, results: int) -> list[Measure]:
    """Archive and delete them all in a process of its own."""
    print(f"making {tasks:,} old tasks", file=sys.stderr, flush=True)
    fill(one, tasks, results)
    what = f"archive and delete {tasks:,} tasks" + (f" with {results} results each" if results else "")
    return deletion(one, folder, "tasks", tasks, what, rows_each=1 + results)


def old_calls(one: Database, folder: Path, calls: int) -> list[Measure]:
    """The same of raw calls, whose hours are aggregated first."""
    from ops_pipeline.usage.aggregate import Policy, aggregate  # noqa: PLC0415
    from ops_pipeline.usage.hours import DAY, Window, floor_hour  # noqa: PLC0415

    print(f"making {calls:,} old calls", file=sys.stderr, flush=True)
    end = floor_hour(datetime.now(UTC)) - 40 * DAY
    window = Window(end - CALL_DAYS * DAY, end)
    seconds = f"{CALL_DAYS * 86_400} * (n / {calls}.0)"
    if one.name == "postgresql":
        at = f"timestamptz '{window.start.isoformat()}' + make_interval(secs => {seconds})"
    else:
        at = f"strftime('%Y-%m-%d %H:%M:%f', {window.start.timestamp()} + {seconds}, 'unixepoch')"
    columns = f"'call_' || n, 'gpt-4o', 'openai', 'user-' || (n % 500), 'success', {at}, 1.5, 900, 250"
    names = "id, model, provider, user_id, status, called_at, duration_seconds, input_tokens, output_tokens"
    one.execute(f"INSERT INTO model_calls ({names}) " + numbers(one, calls, columns))
    one.execute(*(["VACUUM (ANALYZE)", "CHECKPOINT"] if one.name == "postgresql" else ["ANALYZE"]))
    for _ in aggregate(one.engine, window, Policy()):
        pass
    return deletion(one, folder, "calls", calls, f"archive and prune {calls:,} raw calls")


def deletion(one: Database, folder: Path, kind: str, objects: int, what: str, *, rows_each: int = 1) -> list[Measure]:
    """Archive and delete in a process of its own."""
    where = folder / f"archive of {kind}"
    command = [sys.executable, "-m", "benchmarks.maintenance", "in-child", kind, one.url, str(where)]
    cpu, started = one.cpu_seconds(), time.perf_counter()
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    cpu = one.cpu_seconds() - cpu
    if found["changed"] != objects or found["error"]:
        raise RuntimeError(f"{found} after {time.perf_counter() - started:.0f} s")
    rows, seconds = objects * rows_each, found["seconds"]
    size = sum(path.stat().st_size for path in where.rglob("*") if path.is_file())
    return [
        Measure(
            what,
            seconds,
            rows,
            f"{rows / seconds:,.0f} rows/s, {rows / cpu:,.0f} by CPU; archives {size / MEGABYTE:.0f} MB",
            f">= {ROWS_PER_SECOND:,} rows/s",
            rows / seconds >= ROWS_PER_SECOND,
            cpu_seconds=cpu,
        ),
        Measure(
            "its longest transaction",
            found["longest"],
            target=f"< {LONGEST_LOCK * 1000:g} ms",
            ok=found["longest"] < LONGEST_LOCK,
        ),
        Measure(
            "peak memory of the process",
            result=f"{found['peak'] / MEGABYTE:.0f} MB, {found['imports'] / MEGABYTE:.0f} of it imports",
            target=f"< {MOST_BYTES // MEGABYTE} MB",
            ok=found["peak"] < MOST_BYTES,
        ),
        plain("the same again, nothing left", [Reading(found["again"], 0.0)]),
    ]


def in_child(kind: str, url: str, archive: str) -> None:
    """Archive and delete, and print figures."""
    from ops_pipeline.analysis.maintenance import tree_archive  # noqa: F401, PLC0415
    from ops_pipeline.analysis.maintenance.archive_tasks import archive_old_tasks  # noqa: PLC0415
    from ops_pipeline.analysis.maintenance.lab import Lab  # noqa: PLC0415
    from ops_pipeline.database.engine import connect  # noqa: PLC0415
    from ops_pipeline.passes import Options  # noqa: PLC0415
    from ops_pipeline.usage.pruning import PrunePolicy, prune_old_calls  # noqa: PLC0415

    imports, month, options = peak_bytes(), timedelta(days=30), Options(budget_seconds=3_600)
    engine = connect(url)

    def work() -> Report:
        if kind == "tasks":
            return archive_old_tasks(Lab(engine, "", Path(archive, "results"), archive), month, options)
        return prune_old_calls(engine, archive, PrunePolicy(datetime(2020, 1, 1, tzinfo=UTC), month), options)

    started = time.perf_counter()
    report = work()
    seconds = time.perf_counter() - started
    work()
    figures = {
        "changed": report.outcome.changed,
        "error": report.error,
        "seconds": seconds,
        "again": time.perf_counter() - started - seconds,
        "longest": report.facts.get("longest_transaction_seconds", 0),
        "peak": peak_bytes(),
        "imports": imports,
    }
    print(json.dumps(figures))


def fill(one: Database, tasks: int, results: int) -> None:
    """Trees of four that ended between 31 and 90 days ago, with the options and summaries of real ones."""
    now = "now()" if one.name == "postgresql" else "julianday('now')"
    day = "interval '1 day'" if one.name == "postgresql" else "1"
    ended = f"{now} - (31 + (n / {TREE}) % 60) * {day}"
    if one.name == "sqlite":
        ended = f"strftime('%Y-%m-%d %H:%M:%f', {ended})"
    summary = '{"summary": {"status": "completed", "total_findings": 7, "services_executed": ["static-analyzer"]}}'
    columns = (
        f"'task_' || n, CASE WHEN n % {TREE} > 0 THEN 'task_' || (n - n % {TREE}) END,"
        f" CASE WHEN n % {TREE} > 0 THEN 'static-analyzer' ELSE 'unified' END, 'gpt-4o/app' || (n % 5000), 'completed',"
        f' 1, \'{{"tools": ["ruff", "bandit"]}}\', \'{summary}\', {ended}, {ended}, {ended}, {ended}'
    )
    names = "id, parent_id, service, target, status, attempt, options, result_summary, created_at, started_at,"
    casts = columns
    if one.name == "postgresql":
        casts = casts.replace('"bandit"]}\'', '"bandit"]}\'::json').replace(f"'{summary}'", f"'{summary}'::json")
    one.execute(
        f"INSERT INTO analysis_tasks ({names} completed_at, updated_at) " + numbers(one, tasks, casts),
    )
    for number in range(results):
        one.execute(
            "INSERT INTO analysis_results (id, task_id, tool, rule_id, severity, title, file_path, line_number) "
            + numbers(
                one, tasks, f"'r{number}-' || n, 'task_' || n, 'ruff', 'E501', 'low', 'Line too long', 'a.py', n % 500"
            )
        )
    one.execute(*(["VACUUM (ANALYZE)", "CHECKPOINT"] if one.name == "postgresql" else ["ANALYZE"]))


def numbers(one: Database, count: int, columns: str) -> str:
    """A SELECT of columns over the numbers `n` from 0 on."""
    if one.name == "postgresql":
        return f"SELECT {columns} FROM generate_series(0, {count - 1}) AS n"
    series = f"WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {count - 1})"
    return f"{series} SELECT {columns} FROM s"


def read(one: Database, work: Callable[[], object]) -> Reading:
    """One measurement."""
    cpu, started = one.cpu_seconds(), time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return Reading(seconds, one.cpu_seconds() - cpu)


if __name__ == "__main__":
    if sys.argv[1:2] == ["in-child"]:
        in_child(*sys.argv[2:])
    else:
        main()
