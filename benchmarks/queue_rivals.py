"""The queues that ours is compared with: PgQueuer and procrastinate, doing tasks that do nothing.

`python benchmarks/queue_rivals.py pgqueuer URL TASKS BATCH`, run by the interpreter of `.venv-queues`, which
`benchmarks/queues.sh` makes; prints the seconds from the first claim to the last end as JSON.

What belongs here: nothing of the project, whose packages are not there.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time


async def pgqueuer(url: str, tasks: int, batch: int) -> float:
    """Tasks through PgQueuer, one worker, as its own benchmark runs it."""
    import asyncpg  # noqa: PLC0415  # ty: ignore[import-not-found]
    from pgqueuer import PgQueuer  # noqa: PLC0415  # ty: ignore[import-not-found]
    from pgqueuer.db import AsyncpgDriver  # noqa: PLC0415  # ty: ignore[import-not-found]
    from pgqueuer.types import QueueExecutionMode  # noqa: PLC0415  # ty: ignore[import-not-found]

    connection = await asyncpg.connect(url)
    worker = PgQueuer(AsyncpgDriver(connection))
    await worker.qm.queries.install()
    for start in range(0, tasks, 1000):
        count = min(1000, tasks - start)
        await worker.qm.queries.enqueue(["noop"] * count, [None] * count, [0] * count)
    await connection.execute("VACUUM ANALYZE")
    done = 0

    @worker.entrypoint("noop")
    async def noop(_job: object) -> None:
        nonlocal done
        done += 1

    started = time.perf_counter()
    await worker.qm.run(batch_size=batch, mode=QueueExecutionMode.drain)
    seconds = time.perf_counter() - started
    if done != tasks:
        raise RuntimeError(f"{done} of {tasks} were done")
    return seconds


async def procrastinate(url: str, tasks: int, concurrency: int) -> float:
    """Tasks through procrastinate, one worker that ends when there is nothing left."""
    from procrastinate import App, PsycopgConnector  # noqa: PLC0415  # ty: ignore[import-not-found]

    app = App(connector=PsycopgConnector(conninfo=url))
    done = 0

    @app.task(name="noop")
    async def noop(number: int) -> None:
        nonlocal done
        done += 1

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await noop.batch_defer_async(*({"number": number} for number in range(tasks)))
        started = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=concurrency, install_signal_handlers=False)
        seconds = time.perf_counter() - started
    if done != tasks:
        raise RuntimeError(f"{done} of {tasks} were done")
    return seconds


if __name__ == "__main__":
    name, url, tasks, setting = sys.argv[1:]
    work = {"pgqueuer": pgqueuer, "procrastinate": procrastinate}[name]
    print(json.dumps({"seconds": asyncio.run(work(url, int(tasks), int(setting)))}))
