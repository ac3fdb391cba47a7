"""The benchmark of analysis workers: `python -m benchmarks.analysis_worker`; results are in RESULTS.md.

How soon a worker that lingers asks a service for a task after its INSERT is committed, on PostgreSQL (which wakes it)
and SQLite (which it looks at); the same through a real daemon while no worker lives; and the memory of a worker with
Dagster loaded that has five hundred conversations at once. A missed target is printed, and is no failure.

What belongs here: the service, and the measurement in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, func, insert, select

from benchmarks.child import peak_bytes
from benchmarks.databases import DATABASES, Database, database
from benchmarks.report import MEGABYTE, Measure, machine, table
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.tables import analysis_tasks
from ops_pipeline.analysis.worker.life import run_worker
from ops_pipeline.analysis.worker.plan import WorkerPlan
from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline_tests.integration.processes import running
from ops_pipeline_tests.servers import free_port

SERVICE = "static-analyzer"
ALLOWED_SECONDS = {"postgresql": 0.025}
ALLOWED_BYTES = 300 * MEGABYTE
PAUSE_SECONDS = 0.05
POLL_SECONDS = 10
WORK_SECONDS = 3.0
WAYS = ("until a look", "in the queue", "loading the run", "until the request")


@click.command(context_settings={"show_default": True})
@click.option("--tasks", default=200, help="How many tasks are inserted, one after the other.")
@click.option("--cold", "cold_starts", default=5, help="Starts through a daemon; 0 leaves them out.")
@click.option("--at-once", default=500, help="Conversations of the worker whose memory is measured.")
def main(*, tasks: int, cold_starts: int, at_once: int) -> None:
    """Measure start latency and memory of workers."""
    where = machine()
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name in DATABASES:
            with database(name, Path(folder) / name) as one:
                measures.append(latency(one, tasks))
                if name == "postgresql":
                    measures.append(memory(one, at_once))
        if cold_starts:
            measures.append(cold(Path(folder) / "deployment", cold_starts))
    print(f"{where['cores']} cores of {where['cpu']}, {where['date']}; load average {where['load_average'][0]}\n")
    print(table(measures), flush=True)


def latency(one: Database, count: int) -> Measure:
    """From the commit of an INSERT to the moment at which the service has the request."""
    with service(0.0) as (url, asked):
        worker = subprocess.Popen(command("linger", one, url), stdout=subprocess.DEVNULL)
        try:
            waits = [seconds for _, seconds in (_wait(one.engine, asked, number) for number in range(count + 20))][20:]
        finally:
            worker.terminate()
            worker.wait()
    waits.sort()
    late = waits[int(len(waits) * 0.95)]
    limit = ALLOWED_SECONDS.get(one.name)
    return Measure(
        f"{one.name}: from INSERT to request, worker lingers",
        statistics.median(waits),
        result=f"p50 {statistics.median(waits) * 1000:.1f} ms, p95 {late * 1000:.1f} ms, {count} tasks",
        target=f"p95 < {limit * 1000:g} ms" if limit else "",
        ok=late < limit if limit else None,
        details={"waits": waits},
    )


def _wait(engine: Engine, asked: Any, number: int) -> tuple[float, float]:
    """When the INSERT was committed, and the seconds from then to the request."""
    row = {"id": f"task_{number}", "service": SERVICE, "target": f"model/app{number}"}
    with writing(engine) as connection:
        connection.execute(insert(analysis_tasks), [row])
    committed = time.time()
    arrived = asked.get(timeout=60)
    time.sleep(PAUSE_SECONDS)
    return committed, arrived - committed


def cold(folder: Path, count: int) -> Measure:
    """From the commit of an INSERT to the request while no worker lives: sensor, queue and start of a run."""
    apps = folder / "apps"
    apps.mkdir(parents=True)
    with service(0.0) as (url, asked):
        variables = {
            "ANALYZER_URLS": f"{SERVICE}={url}",
            "ANALYSIS_WORKER_LINGER_SECONDS": "0",
            "GENERATED_APPS_DIR": str(apps),
        }
        with running(folder / "home", **variables) as deployment:
            engine = connect(f"sqlite:///{folder / 'home' / 'ops_pipeline.db'}")
            time.sleep(30)
            starts = [_cold_wait(engine, asked, number) for number in range(count)]
            ways = _ways(folder / "home", starts)
            engine.dispose()
            deployment.stop()
    waits = [seconds for _, seconds in starts]
    parts = {name: statistics.median(way[name] for way in ways) for name in WAYS}
    return Measure(
        "cold: from INSERT to request, no worker lives",
        statistics.median(waits),
        result=f"p50 {statistics.median(waits):.1f} s, the longest of {count} {max(waits):.1f} s; of it, median,"
        f" {', '.join(f'{name} {seconds:.1f} s' for name, seconds in parts.items())}",
        target=f"< {POLL_SECONDS + 5} s",
        ok=max(waits) < POLL_SECONDS + 5,
        details={"waits": waits, "ways": ways},
    )


def _ways(home: Path, starts: list[tuple[float, float]]) -> list[dict[str, float]]:
    """Where the seconds of each cold start went, by what Dagster wrote down of its run."""
    from dagster import DagsterInstance, RunsFilter  # noqa: PLC0415

    with DagsterInstance.from_config(str(home)) as instance:
        records = instance.get_run_records(RunsFilter(job_name="execute_analysis_tasks"), ascending=True)
        created = [(record.create_timestamp.timestamp(), record.dagster_run.run_id) for record in records]
        found = []
        for committed, seconds in starts:
            at, run_id = next(pair for pair in created if pair[0] > committed)
            stats = instance.get_run_stats(run_id)
            times = (committed, at, stats.launch_time or at, stats.start_time or at, committed + seconds)
            found.append(dict(zip(WAYS, (after - before for before, after in pairwise(times)), strict=True)))
    return found


def _cold_wait(engine: Engine, asked: Any, number: int) -> tuple[float, float]:
    start = _wait(engine, asked, number)
    # The worker ends, and its run with it; and not always at the same moment between two looks of the sensor.
    time.sleep(8 + 2.3 * (number % 5))
    return start


def memory(one: Database, at_once: int) -> Measure:
    """The peak of a worker that has so many conversations at the same time, Dagster loaded."""
    with writing(one.engine) as connection:
        rows = [{"id": f"many_{n}", "service": SERVICE, "target": f"model/app{n}"} for n in range(at_once)]
        connection.execute(insert(analysis_tasks), rows)
    with service(WORK_SECONDS) as (url, _):
        done = subprocess.run(command("many", one, url, at_once), check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    with reading(one.engine) as connection:
        ended = analysis_tasks.c.id.like("many_%"), analysis_tasks.c.status == "completed"
        completed = connection.execute(select(func.count()).where(*ended)).scalar_one()
    return Measure(
        f"{at_once} conversations at once in one worker",
        found["seconds"],
        at_once,
        f"{found['peak'] / MEGABYTE:.0f} MB at its peak, {found['at_once']} at once, {completed} completed",
        f"< {ALLOWED_BYTES // MEGABYTE} MB",
        found["peak"] < ALLOWED_BYTES and found["at_once"] == completed == at_once,
        found,
    )


def command(work: str, one: Database, url: str, *arguments: object) -> list[str]:
    """A fresh process, so that its memory is its own."""
    database_url = one.engine.url.render_as_string(hide_password=False)
    return [
        sys.executable,
        "-m",
        "benchmarks.analysis_worker",
        "in-child",
        work,
        database_url,
        url,
        *map(str, arguments),
    ]


def in_child(work: str, database_url: str, url: str, at_once: str = "100") -> None:
    """Be a worker; print figures."""
    import dagster  # noqa: F401, PLC0415 - a worker is a run of Dagster

    linger = 600.0 if work == "linger" else 0.0
    with tempfile.TemporaryDirectory() as folder:
        plan = WorkerPlan(
            Path(folder), Policy(lease=timedelta(seconds=60)), {SERVICE: url}, concurrency=int(at_once), linger=linger
        )
        counted = [0, 0]

        def told(line: str) -> None:
            counted[0] += ("pending -> running" in line) - ("running -> " in line and "pending" not in line)
            counted[1] = max(counted)

        began = time.perf_counter()
        run_worker(connect(database_url), plan, told=told)
    print(json.dumps({"peak": peak_bytes(), "seconds": time.perf_counter() - began, "at_once": counted[1]}))


@contextmanager
def service(seconds: float) -> Generator[tuple[str, Any], None, None]:
    """A service in a process of its own that answers after some seconds, and tells when it was asked."""
    context = multiprocessing.get_context("spawn")
    port, asked = free_port(), context.Queue()
    process = context.Process(target=serve, args=(port, seconds, asked), daemon=True)
    process.start()
    try:
        asked.get(timeout=60)
        yield f"ws://127.0.0.1:{port}", asked
    finally:
        process.terminate()
        process.join()


def serve(port: int, seconds: float, asked: Any) -> None:
    """Answer until the process is ended."""
    from websockets.asyncio.server import ServerConnection  # noqa: PLC0415
    from websockets.asyncio.server import serve as serve_websocket  # noqa: PLC0415
    from websockets.exceptions import ConnectionClosed  # noqa: PLC0415

    finding = {"ruleId": "R1", "level": "warning", "message": {"text": "m"}}
    runs = [{"tool": {"driver": {"name": "t"}}, "results": [finding] * 20}]
    answer = {"status": "success", "type": "static_analysis_result", "analysis": {"sarif_export": {"runs": runs}}}

    async def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await converse(connection)

    async def converse(connection: ServerConnection) -> None:
        async for frame in connection:
            if json.loads(frame)["type"] == "health_check":
                await connection.send(json.dumps({"type": "health_response", "status": "healthy"}))
                continue
            asked.put(time.time())
            await asyncio.sleep(seconds)
            await connection.send(json.dumps(answer))

    async def forever() -> None:
        async with serve_websocket(handle, "127.0.0.1", port, ping_interval=None, compression=None, backlog=1000):
            asked.put(0.0)
            await asyncio.Event().wait()

    asyncio.run(forever())


if __name__ == "__main__":
    if sys.argv[1:2] == ["in-child"]:
        in_child(*sys.argv[2:])
    else:
        main()
