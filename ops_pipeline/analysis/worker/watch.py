"""A worker's signs of life, and what it learns from them: cancellations, and tasks that were taken away.

What belongs here: when to beat, and what the answer means for the tasks at hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.analysis.leases import Beat, may_claim
from ops_pipeline.analysis.states import Task, handed_back
from ops_pipeline.analysis.storing import Done
from ops_pipeline.analysis.worker.desk import Desk
from ops_pipeline.analysis.worker.report import Report
from ops_pipeline.analysis.worker.running import Running
from ops_pipeline.analysis.worker.storekeeper import InThread
from ops_pipeline.database.errors import DatabaseProblem


@dataclass
class Watch:
    """Watches over the tasks of one worker.

    Attributes:
        desk: the worker's side of the database.
        report: hears of trouble.
        in_thread: runs a function of the desk, in a thread that nobody else keeps busy.
        running: the worker's tasks, by id.
        give_back: gets tasks of the worker that it never heard of.
        look: set by whoever knows of a cancellation.
        last_beat: when the last heartbeat that succeeded began.
    """

    desk: Desk
    report: Report
    in_thread: InThread
    running: Mapping[str, Running]
    give_back: Callable[[Done], None]
    look: asyncio.Event = field(default_factory=asyncio.Event)
    last_beat: float = field(default_factory=time.monotonic)
    _strangers: dict[str, int] = field(default_factory=dict)

    @property
    def silence(self) -> timedelta:
        """For how long no heartbeat succeeded."""
        return timedelta(seconds=time.monotonic() - self.last_beat)

    def may_claim(self) -> bool:
        """Whether the worker may take more tasks."""
        if may_claim(self.silence, self.desk.plan.policy):
            return True
        self.report.trouble("claims nothing, since its heartbeats fail")
        return False

    async def run(self) -> None:
        """Watch until cancelled."""
        plan = self.desk.plan
        while True:
            try:
                async with asyncio.timeout(min(plan.watch, plan.beat)):
                    await self.look.wait()
            except TimeoutError:
                pass
            self.look.clear()
            try:
                await self._look()
            except (DatabaseProblem, SQLAlchemyError) as problem:
                self.report.trouble(f"gives no sign of life: {problem}")

    async def _look(self) -> None:
        began = time.monotonic()
        if began - self.last_beat >= self.desk.plan.beat:
            beat = await self.in_thread(self.desk.beat)
            self.last_beat = began
            self.judge(beat, began)
        elif self.running:
            self._cancel(await self.in_thread(self.desk.cancelled))

    def judge(self, beat: Beat, began: float) -> None:
        """Drop what is not the worker's any more, and give back what it never heard of.

        Args:
            beat: what the heartbeat told.
            began: when it began; it says nothing of tasks that the worker got later.
        """
        for one in list(self.running.values()):
            if beat.held.get(one.task.id) != one.task.attempt and one.since < began and not one.over:
                one.drop()
                self.report.tell(f"{one.task.id}: was taken away (attempt {one.task.attempt}), its result is dropped")
        self._cancel(beat.cancelled)
        strangers = {task_id: number for task_id, number in beat.held.items() if task_id not in self.running}
        for task_id, number in strangers.items():
            # The answer to its claim was lost with the connection; seen twice, since a claim may be under way.
            if self._strangers.get(task_id) == number:
                self.give_back(Done(handed_back(Task(task_id, number, "", ""), "its worker never heard of its claim")))
        self._strangers = strangers

    def _cancel(self, ids: Iterable[str]) -> None:
        for task_id in ids:
            if task_id in self.running:
                self.running[task_id].cancel()
