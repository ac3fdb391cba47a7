"""The worker's loop: claims, conversations, heartbeats and storing, all at the same time.

What belongs here: what runs beside what, and when it ends. A worker whose heartbeats fail claims nothing, one whose
task was taken away drops it, and one that is told to stop hands its tasks back, but stores answers that are there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.analysis.client import Health
from ops_pipeline.analysis.gate import Gate
from ops_pipeline.analysis.protocol import Progress, shortened
from ops_pipeline.analysis.states import failed, handed_back
from ops_pipeline.analysis.storing import Done
from ops_pipeline.analysis.tables import CANCELLED
from ops_pipeline.analysis.waking import CANCEL, CHANNEL, WORK
from ops_pipeline.analysis.worker.attempt import Asked, Setting, attempt
from ops_pipeline.analysis.worker.desk import Desk
from ops_pipeline.analysis.worker.progress import Heard, hear_gateway
from ops_pipeline.analysis.worker.report import Report
from ops_pipeline.analysis.worker.running import Running
from ops_pipeline.analysis.worker.services import Services
from ops_pipeline.analysis.worker.storekeeper import Storekeeper
from ops_pipeline.analysis.worker.watch import Watch
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.wakeups import can_listen, listen

BREATH = 0.01
"""Between two claims: ends of tasks that come together are answered with one."""
LISTENING_POLL = 1.0
STORING = "storing"
URLS_SECONDS = 5.0
PROGRESS_SECONDS = 1.0
LONGEST_PAUSE = 5.0
Value = TypeVar("Value")


@dataclass
class Worker:
    """One worker; `run` is its life.

    Attributes:
        desk: its side of the database.
        report: hears of everything that happens.
        stopping: why it was told to stop; empty while it was not.
        running: the tasks at hand, until they are stored.
    """

    desk: Desk
    report: Report
    stopping: str = ""
    running: dict[str, Running] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _announced: bool = False
    _gate: Gate = field(default_factory=Gate)
    _heard: Heard = field(default_factory=Heard)
    _health: dict[str, Health] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Put together what belongs to one worker."""
        plan = self.desk.plan
        # Heartbeats have a thread of their own: they must not wait behind a long claim.
        self._beats, self._threads = ThreadPoolExecutor(1, "beat"), ThreadPoolExecutor(3, "desk")
        services = Services(plan.patience, plan.health, plan.urls, self._read_urls, self._health.__setitem__)
        self._setting = Setting(plan, services)
        self._store = Storekeeper(self.desk, self.report, self._in_thread, self._stored, lambda: bool(self.stopping))
        self._watch = Watch(self.desk, self.report, self._in_beat, self.running, self._store.add)

    async def run(self, run_id: str, host: str, pid: int) -> None:
        """Work until there is nothing to do for a while, the lifetime is over, or `stop` is called.

        Raises:
            DatabaseProblem: the worker could not begin.
            ExceptionGroup: a part of it failed; its tasks were handed back.
        """
        await self._in_thread(self.desk.begin, run_id, host, pid)
        await self._read_urls()
        loops = [self._watch.run(), self._follow_urls(), self._write_down(), *self._listeners()]
        beside = [asyncio.create_task(self._store.run(), name=STORING), *(asyncio.create_task(one) for one in loops)]
        for one in beside:
            one.add_done_callback(self._judge_end)
        try:
            await self._claim_until_the_end()
            while (self.running or not self._store.empty) and not self.report.gave_up:
                self._wake.clear()
                await self._pause(0.05)
            if not self.report.gave_up:
                await self._store.insist(self.desk.end)
        finally:
            for one in beside:
                one.cancel()
            ended = await asyncio.gather(*beside, return_exceptions=True)
            await self._setting.services.close()
            self._beats.shutdown(wait=False)
            self._threads.shutdown(wait=False)
        failures = [one for one in ended if isinstance(one, Exception)]
        if failures:
            raise ExceptionGroup("a part of the worker failed", failures)

    def stop(self, reason: str) -> None:
        """Hand everything back and end; to be called within the loop."""
        if not self.stopping:
            self.stopping = reason
            self.report.tell(f"stops: {reason}")
            for one in list(self.running.values()):
                one.interrupt()
            self._wake.set()

    def _judge_end(self, part: asyncio.Task[None]) -> None:
        if not part.cancelled() and part.exception() is not None:
            self.report.gave_up = part.get_name() == STORING
            self.stop(f"{type(part.exception()).__name__}: {part.exception()}")

    def _listeners(self) -> list[Coroutine[Any, Any, None]]:
        found = []
        if can_listen(self.desk.engine):
            found.append(listen(self.desk.engine, CHANNEL, self._notified))
        if self.desk.plan.gateway:
            found.append(hear_gateway(self.desk.plan.gateway, self._hear))
        return found

    def _notified(self, payload: str) -> None:
        if payload != CANCEL:
            self._announced = True
            self._wake.set()
        if payload != WORK:
            self._watch.look.set()

    def _hear(self, identifier: str, progress: Progress) -> None:
        """Progress through the gateway, which names requests as `protocol.request_id` makes them."""
        for one in self.running.values():
            if identifier.endswith(f"_{one.task.id}_{one.task.attempt}"):
                self._heard.of(one.task)(progress)

    async def _claim_until_the_end(self) -> None:
        plan, began = self.desk.plan, time.monotonic()
        idle_since, pause = began, BREATH
        poll = LISTENING_POLL if can_listen(self.desk.engine) else plan.poll
        while not self.stopping and time.monotonic() - began < plan.lifetime_with(self.report.longest):
            self._wake.clear()
            claimed, looked = 0, time.monotonic()
            try:
                claimed = await self._claim()
                pause = BREATH
            except (DatabaseProblem, SQLAlchemyError) as problem:
                self.report.trouble(f"claims nothing: {problem}")
                pause = min(pause * 4, LONGEST_PAUSE)
            if self.running:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= plan.linger:
                return
            if not claimed:
                await self._pause(poll)
            await asyncio.sleep(max(0.0, pause - (time.monotonic() - looked)))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _claim(self) -> int:
        free = self.desk.plan.concurrency - len(self.running)
        if free <= 0 or not self._watch.may_claim():
            return 0
        began, announced, self._announced = time.monotonic(), self._announced, False
        tasks = await self._in_thread(partial(self.desk.take, free, announced=announced))
        for task in tasks:
            running = Running(task, began, time.monotonic(), self._gate.slot())
            self.running[task.id] = running
            self.report.claimed(task)
            running.work = asyncio.create_task(self._do(running))
        return len(tasks)

    async def _do(self, running: Running) -> None:
        task = running.task
        running.started = True
        asked = Asked(task, running.began, running.slot, self._heard.of(task), running.settle)
        try:
            interrupted = running.dropped or running.cancelled or self.stopping
            done = None if interrupted else await attempt(asked, self._setting)
        except asyncio.CancelledError:
            done = None
        except Exception as error:  # noqa: BLE001 - whatever a task does to its worker, the others go on
            done = Done(failed(task, f"the worker failed on it: {type(error).__name__}: {shortened(str(error), 500)}"))
        running.over = True
        if done is None and running.dropped:
            self._forget(running)
        elif done is None and running.cancelled:
            self._store.add(Done(failed(task, "cancelled", CANCELLED)))
        else:
            self._store.add(done or Done(handed_back(task, self.stopping)))

    def _forget(self, running: Running) -> None:
        running.slot.release()
        self._heard.forget(running.task.id)
        del self.running[running.task.id]
        self._wake.set()

    def _stored(self, done: Done, status: str | None) -> None:
        self.report.ended(done, status)
        running = self.running.get(done.result.task.id)
        if running is not None and running.task.attempt == done.result.task.attempt:
            self._forget(running)

    async def _follow_urls(self) -> None:
        while True:
            await asyncio.sleep(URLS_SECONDS)
            await self._read_urls()

    async def _read_urls(self) -> None:
        try:
            self._setting.services.urls = await self._in_thread(self.desk.urls)
        except (DatabaseProblem, SQLAlchemyError) as problem:
            self.report.trouble(f"does not know where services are: {problem}")

    async def _write_down(self) -> None:
        """Write down progress and health, once a second; what cannot be written is let go."""
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            heard, health = self._heard.take(), dict(self._health)
            self._health.clear()
            for task, progress in heard:
                self.report.progressed(task, progress)
            try:
                if heard:
                    await self._in_thread(self.desk.note_progress, heard)
                if health:
                    await self._in_thread(self.desk.note_health, health)
            except (DatabaseProblem, SQLAlchemyError) as problem:
                self.report.trouble(f"does not write down progress: {problem}")

    async def _in_thread(self, function: Callable[..., Value], *arguments: Any) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def _in_beat(self, function: Callable[..., Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._beats, function)
