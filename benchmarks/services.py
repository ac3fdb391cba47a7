"""The benchmark of service checks: `python -m benchmarks.services`; results are in RESULTS.md.

Five hundred checks of ports and pages, of which fifty hang: they may take the deadline and a second, and 100 MB more
than an idle process that has imported Dagster. A missed target is printed, and is no failure.

What belongs here: the server, and the measurement in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import click

from benchmarks.child import peak_bytes
from benchmarks.report import MEGABYTE, Measure, machine, table
from ops_pipeline_tests.servers import free_port

ALLOWED_SECONDS = 1.0
ALLOWED_BYTES = 100 * MEGABYTE
PAGE = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\nall is well"


@click.command(context_settings={"show_default": True})
@click.option("--checks", default=500, help="How many services are looked at.")
@click.option("--hanging", default=50, help="How many of them hang.")
@click.option("--deadline", default=2.0, help="How long each may take, in seconds.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="How often the measurement is repeated.")
def main(*, checks: int, hanging: int, deadline: float, rounds: int) -> None:
    """Measure a look at many services, of which some hang."""
    where = machine()
    idle = json.loads(child("idle"))["peak"]
    with server() as ports:
        found = [json.loads(child("look", checks, hanging, deadline, *ports)) for _ in range(rounds)]
    seconds, extra = max(one["seconds"] for one in found), max(one["peak"] for one in found) - idle
    measures = [
        Measure("floor: the deadline of those that hang", deadline, checks),
        Measure(
            f"look at {checks} services, {hanging} hang",
            seconds,
            checks,
            f"deadline {seconds - deadline:+.2f} s, the worst of {rounds}",
            f"<= deadline +{ALLOWED_SECONDS:g} s",
            seconds <= deadline + ALLOWED_SECONDS,
            cpu_seconds=max(one["cpu"] for one in found),
        ),
        Measure(
            "memory above an idle process with Dagster",
            result=f"{extra / MEGABYTE:.0f} MB above {idle / MEGABYTE:.0f} MB",
            target=f"< {ALLOWED_BYTES // MEGABYTE} MB",
            ok=extra < ALLOWED_BYTES,
        ),
    ]
    print(f"{where['cores']} cores of {where['cpu']}, {where['date']}; load average {where['load_average'][0]}\n")
    print(table(measures), flush=True)


def child(*arguments: object) -> str:
    """What a fresh process tells, so that its memory is its own."""
    command = [sys.executable, "-m", "benchmarks.services", "in-child", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def in_child(work: str, *arguments: str) -> None:
    """Import Dagster, and look at services if asked to; print figures."""
    import dagster  # noqa: F401, PLC0415 - the idle process has it, too

    found: dict[str, Any] = look(*map(float, arguments)) if work == "look" else {}
    print(json.dumps(found | {"peak": peak_bytes()}))


def look(checks: float, hanging: float, deadline: float, well: float, hung: float) -> dict[str, float]:
    """Look once; the seconds that it took."""
    from ops_pipeline.services.looks import look_at_all  # noqa: PLC0415
    from ops_pipeline.services.registry import Registry  # noqa: PLC0415

    def service(number: int) -> dict[str, Any]:
        port = int(hung if number % (checks // hanging) == 0 else well)
        check: dict[str, Any] = {"kind": "http", "url": f"http://127.0.0.1:{port}/", "contains": "well"}
        if number % 2:
            check = {"kind": "tcp", "port": port}
        fields = {"description": "one of many", "recovery": "none", "timeout_seconds": deadline}
        return {"name": f"service-{number}", "check": check, **fields}

    registry = Registry.model_validate({"services": [service(number) for number in range(int(checks))]})
    started, before = time.perf_counter(), time.process_time()
    looks = look_at_all(registry, lambda _: None)
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    states = Counter(one.found for one in looks.values())
    if states != {"up": checks - hanging, "down": hanging}:
        raise RuntimeError(f"{states}: { {one.reason for one in looks.values()} }")
    return {"seconds": seconds, "cpu": cpu}


@contextmanager
def server() -> Generator[tuple[int, int], None, None]:
    """A process with two ports: one that answers, and one that takes connections and says nothing."""
    ports = free_port(), free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=ports, daemon=True)
    process.start()
    try:
        time.sleep(1.5)
        yield ports
    finally:
        process.terminate()
        process.join()


def serve(well: int, hung: int) -> None:
    """Answer, or not, until the process is ended."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(4096):
            writer.write(PAGE)
        writer.close()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            pass
        writer.close()

    async def forever() -> None:
        await asyncio.start_server(answer, "127.0.0.1", well, backlog=1000)
        hanging = await asyncio.start_server(keep, "127.0.0.1", hung, backlog=1000)
        await hanging.serve_forever()

    asyncio.run(forever())


if __name__ == "__main__":
    if sys.argv[1:2] == ["in-child"]:
        in_child(*sys.argv[2:])
    else:
        sys.exit(main())
