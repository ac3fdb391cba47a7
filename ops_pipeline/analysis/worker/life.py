"""A worker's life in a process: its loop in a thread of its own, so that any exception here ends it in good order.

What belongs here: starting, and what a termination means. Whoever runs a worker interrupts the main thread, by a signal
or by an exception that is raised in it; within a loop such an exception would be lost in some callback.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Engine

from ops_pipeline.analysis.worker.desk import Desk
from ops_pipeline.analysis.worker.loop import Worker
from ops_pipeline.analysis.worker.plan import WorkerPlan
from ops_pipeline.analysis.worker.report import Report

TICK_SECONDS = 0.2
LONGEST_END = 120.0
"""A worker that was interrupted has so long to hand its tasks back."""


def worker_name(run_id: str = "") -> str:
    """A name that no other worker has or ever had."""
    return f"{run_id[:8] or 'worker'}@{socket.gethostname()}:{os.getpid()}-{uuid.uuid4().hex[:8]}"


def run_worker(
    engine: Engine,
    plan: WorkerPlan,
    *,
    run_id: str = "",
    told: Callable[[str], None] = lambda _: None,
    may_take: Callable[[float], None] = lambda _: None,
) -> Report:
    """Be a worker until there is nothing to do.

    Args:
        engine: the operations database.
        plan: the worker's numbers.
        run_id: of the run that is the worker.
        told: gets a line for everything that happens, in this thread.
        may_take: gets the seconds that a task may take, in this thread, whenever one begins that may take longer than
            all before: whoever limits the worker's life must let it end such a task.

    Raises:
        DatabaseProblem: the worker could not begin.
        BaseException: whatever interrupted this thread, after the tasks were handed back.
    """
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    report = Report(lines.put)
    life = _Life(Desk(engine, worker_name(run_id), plan), report, run_id)
    life.thread.start()
    longest = 0.0
    try:
        while life.thread.is_alive():
            _tell(lines, told)
            if report.longest > longest:
                longest = report.longest
                may_take(longest)
    except BaseException as interruption:
        life.stop(f"interrupted ({type(interruption).__name__})")
        life.thread.join(LONGEST_END)
        raise
    _tell(lines, told)
    if life.failure is not None:
        raise life.failure
    return report


def _tell(lines: queue.SimpleQueue[str], told: Callable[[str], None]) -> None:
    """Pass on what was said, and wait a little for more."""
    with suppress(queue.Empty):
        told(lines.get(timeout=TICK_SECONDS))
        while True:
            told(lines.get_nowait())


class _Life:
    """The thread of a worker."""

    def __init__(self, desk: Desk, report: Report, run_id: str) -> None:
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(desk, report, run_id), name="worker", daemon=True)
        self._begun = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: Worker | None = None

    def stop(self, reason: str) -> None:
        """Tell the worker to hand its tasks back."""
        self._begun.wait(LONGEST_END)
        # It may have ended by itself meanwhile.
        with suppress(RuntimeError):
            if self._loop is not None and self._worker is not None:
                self._loop.call_soon_threadsafe(self._worker.stop, reason)

    def _run(self, desk: Desk, report: Report, run_id: str) -> None:
        try:
            asyncio.run(self._live(desk, report, run_id))
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self.failure = error
        finally:
            self._begun.set()

    async def _live(self, desk: Desk, report: Report, run_id: str) -> None:
        self._loop, self._worker = asyncio.get_running_loop(), Worker(desk, report)
        self._begun.set()
        await self._worker.run(run_id, socket.gethostname(), os.getpid())
