"""The benchmark of model probes: `python -m benchmarks.probes`; results are in RESULTS.md.

Two hundred models at a server that answers after half a second, probed twenty at a time. The floor is the time that
the answers take when nothing is lost in between. A missed target is printed, and is no failure.

What belongs here: the server, and the measurement.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from benchmarks.databases import DATABASES, database
from benchmarks.report import Measure, machine, table
from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.usage.probes.check import Report, check_models
from ops_pipeline.usage.probes.states import plan_probes
from ops_pipeline.usage.probes.store import read_statuses, read_traffic
from ops_pipeline.usage.probes.targets import Probes, ProbesFile, Target
from ops_pipeline_tests.servers import free_port

BODY = json.dumps({"choices": [{}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
ALLOWED_SECONDS = 1.0


@click.command(context_settings={"show_default": True})
@click.option("--models", default=200, help="How many models are probed.")
@click.option("--concurrency", default=20, help="How many at a time.")
@click.option("--answer-seconds", default=0.5, help="How long each takes to answer.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="How often the measurement is repeated.")
def main(*, models: int, concurrency: int, answer_seconds: float, rounds: int) -> None:
    """Measure a check of many models against the time that their answers take."""
    where = machine()
    floor = answer_seconds * models / concurrency
    measures = [Measure("floor: the answers, so many at a time", floor, models)]
    with provider(answer_seconds) as url:
        for name in DATABASES:
            times = [checked(name, url, models, concurrency) for _ in range(rounds)]
            worst = max(times)
            measures.append(
                Measure(
                    f"check of {models} models, {concurrency} at a time, on {name}",
                    worst,
                    models,
                    f"floor {worst - floor:+.2f} s, {worst / floor:.2f} x floor, the worst of {rounds}",
                    f"<= floor +{ALLOWED_SECONDS:g} s",
                    worst <= floor + ALLOWED_SECONDS,
                )
            )
    print(f"{where['cores']} cores of {where['cpu']}, {where['date']}; load average {where['load_average'][0]}\n")
    print(table(measures), flush=True)


def checked(name: str, url: str, models: int, concurrency: int) -> float:
    """The seconds of one check: look, plan, budget, probes and states."""
    targets = tuple(Target(provider=f"provider-{number}", base_url=url, model="m") for number in range(models))
    probes = Probes(ProbesFile(models=targets, concurrency=concurrency, probes_per_day=10 * models), {})
    with tempfile.TemporaryDirectory(prefix="ops_pipeline_benchmark_") as folder:
        Path(folder).chmod(0o755)
        with database(name, Path(folder)) as one:
            started = time.perf_counter()
            with reading(one.engine) as connection:
                traffic = read_traffic(connection, probes.file, database_now(connection))
                intents = plan_probes(probes.file, read_statuses(connection), traffic)
            report: Report = check_models(one.engine, probes, intents, run_id="benchmark", sleep=time.sleep)
            seconds = time.perf_counter() - started
    if len(report.flips) != models or report.probes != models:
        raise RuntimeError(f"{report.probes} probes made {len(report.flips)} of {models} models available")
    return seconds


@contextmanager
def provider(answer_seconds: float) -> Generator[str, None, None]:
    """A process that answers every request after a while; gives its base URL."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port, answer_seconds), daemon=True)
    process.start()
    try:
        time.sleep(1.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.join()


def serve(port: int, answer_seconds: float) -> None:
    """Answer until the process is ended."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.decode().lower().split("\r\n") if line.startswith("content-length:"))
        await reader.readexactly(int(length.partition(":")[2]))
        await asyncio.sleep(answer_seconds)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
        await writer.drain()
        writer.close()

    async def forever() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(forever())


if __name__ == "__main__":
    sys.exit(main())
