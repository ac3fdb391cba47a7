"""Storing what is over: in batches, for as long as the database is away, and one by one when a batch is not taken.

What belongs here: insisting. What is written is in `storing`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ops_pipeline.analysis.protocol import shortened
from ops_pipeline.analysis.states import failed
from ops_pipeline.analysis.storing import Done
from ops_pipeline.analysis.worker.desk import Desk
from ops_pipeline.analysis.worker.report import Report
from ops_pipeline.database.errors import Conflict, DatabaseProblem, Unreachable

STORED_AT_ONCE = 100
SHORTEST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
PATIENCE_AT_THE_END = 90.0
"""For so long a worker that was told to stop tries to store what it has while the database is away."""
InThread = Callable[..., Awaitable[Any]]
Value = TypeVar("Value")


@dataclass
class Storekeeper:
    """Stores for one worker.

    Attributes:
        desk: the worker's side of the database.
        report: hears of trouble.
        in_thread: runs a function of the desk.
        stored: is told the status of each task that was stored; None when it was not the worker's any more.
        hurried: whether the worker was told to stop.
    """

    desk: Desk
    report: Report
    in_thread: InThread
    stored: Callable[[Done, str | None], None]
    hurried: Callable[[], bool]
    _waiting: list[Done] = field(default_factory=list)
    _at_work: int = 0
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, done: Done) -> None:
        """Store this, soon."""
        self._waiting.append(done)
        self._more.set()

    @property
    def empty(self) -> bool:
        """Whether everything is stored."""
        return not self._waiting and not self._at_work

    async def run(self) -> None:
        """Store until cancelled. What comes while a batch is written makes the next one."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:STORED_AT_ONCE], self._waiting[STORED_AT_ONCE:]
                self._at_work = len(batch)
                statuses = await self._store(batch)
                for one in batch:
                    self.stored(one, statuses.get(one.result.task.id))
                self._at_work = 0

    async def _store(self, batch: Sequence[Done]) -> dict[str, str]:
        try:
            return await self.insist(self.desk.store, batch) or {}
        except (DatabaseProblem, SQLAlchemyError, OSError, ValueError) as error:
            if len(batch) == 1:
                return await self._store_as_failed(batch[0], error)
        found: dict[str, str] = {}
        for one in batch:
            found |= await self._store([one])
        return found

    async def _store_as_failed(self, done: Done, error: Exception) -> dict[str, str]:
        """What the database does not take, say an absurd number, ends its task all the same."""
        message = f"its result cannot be stored: {type(error).__name__}: {shortened(str(error), 500)}"
        self.report.trouble(f"{done.result.task.id}: {message}")
        try:
            return await self.insist(self.desk.store, [Done(failed(done.result.task, message))]) or {}
        except (DatabaseProblem, SQLAlchemyError, ValueError) as again:
            # Its lease runs out, and whoever looks for such tasks takes it from there.
            self.report.trouble(f"{done.result.task.id}: not even its failure can be stored: {again}")
            return {}

    async def insist(self, write: Callable[..., Value], *arguments: Any) -> Value | None:
        """Write, again and again while the database is away; None when a worker that stops has waited long enough."""
        pause, since = SHORTEST_PAUSE, time.monotonic()
        while True:
            try:
                return await self.in_thread(write, *arguments)
            except (DatabaseProblem, DBAPIError) as problem:
                if not passes(problem):
                    raise
                self.report.trouble(f"waits for the database: {problem}")
            if self.hurried() and time.monotonic() - since > PATIENCE_AT_THE_END:
                self.report.gave_up = True
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)


def passes(problem: Exception) -> bool:
    """Whether the same may be taken later."""
    if isinstance(problem, DBAPIError):
        return problem.connection_invalidated
    return isinstance(problem, Unreachable | Conflict)
