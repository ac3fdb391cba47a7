"""The worker's side of the database: short transactions, each made in a thread while its conversations go on.

What belongs here: which functions of the queue make one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Integer, Text, and_, select, update

from ops_pipeline.analysis.breakers import Health as SeenHealth
from ops_pipeline.analysis.breakers import record_health
from ops_pipeline.analysis.claiming import claim
from ops_pipeline.analysis.client import Health
from ops_pipeline.analysis.events import tell_progress
from ops_pipeline.analysis.leases import Beat, heartbeat, start, stop
from ops_pipeline.analysis.limits import IS_RUNNING, open_slots, read_openings
from ops_pipeline.analysis.protocol import Progress
from ops_pipeline.analysis.states import Task
from ops_pipeline.analysis.storing import Done, store
from ops_pipeline.analysis.tables import analysis_tasks, analyzer_services
from ops_pipeline.analysis.worker.plan import CLAIMED_AT_ONCE, WorkerPlan
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.sent import json_text, sent_rows

tasks = analysis_tasks.c


@dataclass(frozen=True)
class Desk:
    """A worker and its database."""

    engine: Engine
    owner: str
    plan: WorkerPlan

    def begin(self, run_id: str, host: str, pid: int) -> None:
        """Write down that the worker begins."""
        with writing(self.engine) as connection:
            now = database_now(connection)
            start(connection, self.owner, self.plan.policy, now, run_id=run_id, host=host, pid=pid)

    def end(self) -> None:
        """Write down that it ended."""
        with writing(self.engine) as connection:
            stop(connection, self.owner, database_now(connection))

    def take(self, count: int, *, announced: bool = False) -> list[Task]:
        """Claim at most so many tasks.

        Args:
            count: how many the worker has room for.
            announced: that there are any was just heard, so that a look before is time lost.
        """
        batch = min(count, CLAIMED_AT_ONCE)
        # An idle worker asks several times a second: that must not stand in the way of those who write.
        if not announced and not self._anything(batch):
            return []
        with writing(self.engine) as connection:
            now = database_now(connection)
            return claim(connection, self.owner, batch, policy=self.plan.policy, now=now)

    def _anything(self, batch: int) -> bool:
        with reading(self.engine) as connection:
            openings, now = read_openings(connection, self.plan.policy), database_now(connection)
        return bool(open_slots(openings, batch, self.plan.policy, now))

    def beat(self) -> Beat:
        """Give a sign of life, and learn which tasks are still this worker's."""
        with writing(self.engine) as connection:
            return heartbeat(connection, self.owner, self.plan.policy, database_now(connection))

    def cancelled(self) -> set[str]:
        """The running tasks of this worker whose cancellation was asked for."""
        asked = and_(IS_RUNNING, tasks.lease_owner == self.owner, tasks.cancel_requested_at.is_not(None))
        with reading(self.engine) as connection:
            return set(connection.scalars(select(tasks.id).where(asked)))

    def store(self, done: Sequence[Done]) -> dict[str, str]:
        """Write what came of attempts."""
        return store(self.engine, self.owner, done, self.plan.policy)

    def urls(self) -> dict[str, str]:
        """Where services are: what the table says, else what the worker was told."""
        known = analyzer_services.c
        with reading(self.engine) as connection:
            rows = connection.execute(select(known.service, known.url).where(known.url != ""))
            return {**self.plan.urls, **{row.service: row.url for row in rows}}

    def note_health(self, found: Mapping[str, Health]) -> None:
        """Write down what health checks found."""
        seen = {name: SeenHealth(one.healthy, one.reason, tools=one.tools) for name, one in found.items()}
        with writing(self.engine) as connection:
            record_health(connection, seen, database_now(connection))

    def note_progress(self, heard: Sequence[tuple[Task, Progress]]) -> None:
        """Write down the last progress of tasks that are still this worker's, as rows of their own and in their row."""
        rows = [
            {"id": task.id, "attempt": task.attempt, "stage": one.stage or one.message, "percent": one.percent}
            for task, one in sorted(heard, key=lambda pair: pair[0].id)
        ]
        columns: dict[str, Any] = {"id": Text(), "attempt": Integer(), "stage": Text(), "percent": Integer()}
        with writing(self.engine) as connection:
            sent = sent_rows(connection.dialect.name, "heard", columns)
            changed = (
                update(analysis_tasks)
                .where(tasks.id == sent.c.id, tasks.attempt == sent.c.attempt)
                .where(tasks.lease_owner == self.owner, IS_RUNNING)
                .values(current_step=sent.c.stage, progress=sent.c.percent)
                .returning(tasks.id)
            )
            held = set(connection.scalars(changed, {"heard": json_text(rows)}))
            frames = [
                {"task_id": task.id, "attempt": task.attempt, "reason": _words(one), "data": _data(one)}
                for task, one in heard
                if task.id in held
            ]
            tell_progress(connection, self.owner, frames, database_now(connection))


def _words(progress: Progress) -> str:
    return ": ".join(part for part in (progress.stage, progress.message) if part)


def _data(progress: Progress) -> dict[str, Any] | None:
    return None if progress.percent is None else {"percent": progress.percent}
