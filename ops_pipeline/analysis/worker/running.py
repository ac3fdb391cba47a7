"""A task that a worker has at the moment, and the ways to interrupt it.

What belongs here: one task's state within its worker.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ops_pipeline.analysis.gate import Slot
from ops_pipeline.analysis.states import Task


@dataclass
class Running:
    """One task at hand.

    Attributes:
        task: as it was claimed.
        began: when its claim began, by the monotonic clock: its time runs from there.
        since: when the worker got it.
        slot: for a large reply.
        work: its conversation.
        started: the conversation has begun.
        settling: its answer is there, and is only stored from now on.
        over: it waits to be stored, or was dropped.
        dropped: it was taken away.
        cancelled: its cancellation was asked for.
    """

    task: Task
    began: float
    since: float
    slot: Slot
    work: asyncio.Task[None] | None = None
    started: bool = False
    settling: bool = False
    over: bool = False
    dropped: bool = False
    cancelled: bool = False

    def settle(self) -> None:
        """From now on nothing interrupts it: the database decides whether its result counts."""
        self.settling = True

    def drop(self) -> None:
        """Forget it; somebody else has it."""
        self.dropped = True
        self.interrupt()

    def cancel(self) -> None:
        """End it as cancelled."""
        if not self.cancelled:
            self.cancelled = True
            self.interrupt()

    def interrupt(self) -> None:
        """End the conversation. One that has not begun looks for itself; an answer that is there is kept."""
        if self.work is not None and self.started and not self.settling:
            self.work.cancel()
