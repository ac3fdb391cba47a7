"""Any order of operations on the queue leads to what a model of it in memory says, on both databases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, delete, select

from ops_pipeline.analysis import submitting
from ops_pipeline.analysis.leases import heartbeat
from ops_pipeline.analysis.operating import cancel, retry
from ops_pipeline.analysis.recovery.leases import find_lost, give_up
from ops_pipeline.analysis.recovery.transient import find_waiting, may_return
from ops_pipeline.analysis.returning import bring_back
from ops_pipeline.analysis.states import TRANSIENT, Task, aggregate, failed, handed_back, succeeded, unavailable
from ops_pipeline.analysis.tables import RANKS, TERMINAL, analysis_tasks, analyzer_services, task_events
from ops_pipeline.database.engine import reading, writing
from ops_pipeline_tests.analysis.queueing import NOON, POLICY, add, end, take

SERVICES = ("a", "b")
WORKERS = strategies.sampled_from(("worker-1", "worker-2"))
HOUR_MS = 3600 * 1000
QUIET = replace(POLICY, breaker_failures=10**6, preflight_retries=2, transient_retries=1, lost_leases=1)
"""Without breakers, whose states are tested for themselves; with few retries, so that their ends are reached."""


@dataclass
class Modelled:
    """A task that is claimed, as it should be."""

    service: str
    parent: str | None
    order: tuple[int, str]
    status: str = "pending"
    attempt: int = 0
    owner: str | None = None
    lease_end: datetime = NOON
    due: datetime = NOON
    cancelled: bool = False
    waits: int = 0
    lost: int = 0
    returns: int = 0
    ended: datetime | None = None
    transient: bool = False

    def finish(self, status: str, now: datetime, *, transient: bool = False) -> None:
        """End it."""
        self.status, self.ended, self.transient, self.owner = status, now, transient, None

    def begin_anew(self) -> None:
        """Let it wait again, as if it were new but for its attempts."""
        self.status, self.ended, self.transient, self.cancelled = "pending", None, False, False
        self.due, self.waits = NOON, 0


class Queue(RuleBasedStateMachine):
    """The queue beside its model; time goes on when told."""

    engine: Engine
    count: list[None]

    def __init__(self) -> None:
        super().__init__()
        self.now = NOON
        self.tasks: dict[str, Modelled] = {}
        self.parents: dict[str, list[str]] = {}
        self.claims: list[tuple[str, Task]] = []
        self.count.clear()
        with writing(self.engine) as connection:
            for table in (analysis_tasks, task_events, analyzer_services):
                connection.execute(delete(table))

    @rule(
        services=strategies.sampled_from((("a",), ("b",), ("a", "b"))), priority=strategies.sampled_from(sorted(RANKS))
    )
    def submit(self, services: tuple[str, ...], priority: str) -> None:
        """Submit one task, or a parent with children."""
        main = add(self.engine, services=services, priority=priority, now=self.now)
        order = round(self.now.timestamp() * 1000) - RANKS[priority] * HOUR_MS
        if len(services) == 1:
            self.tasks[main] = Modelled(services[0], None, (order, main))
            return
        with reading(self.engine) as connection:
            columns = analysis_tasks.c
            query = select(columns.id, columns.service).where(columns.parent_id == main)
            for row in connection.execute(query):
                self.tasks[row.id] = Modelled(row.service, main, (order, row.id))
                self.parents.setdefault(main, []).append(row.id)

    @rule(worker=WORKERS, batch=strategies.integers(1, 4))
    def claim(self, worker: str, batch: int) -> None:
        """Claim as many as there are, the first ones first."""
        due = [key for key, one in self.tasks.items() if one.status == "pending" and one.due <= self.now]
        expected = sorted(due, key=lambda key: self.tasks[key].order)[:batch]
        claimed = take(self.engine, worker, batch, now=self.now, policy=QUIET)
        assert [task.id for task in claimed] == expected
        for task in claimed:
            one = self.tasks[task.id]
            one.status, one.owner, one.attempt = "running", worker, one.attempt + 1
            one.lease_end = self.now + QUIET.lease
            assert task.attempt == one.attempt
            assert task.preflight_retries == one.waits
            self.claims.append((worker, task))

    @precondition(lambda self: self.claims)
    @rule(data=strategies.data(), how=strategies.sampled_from(("ok", "part", "no", "transient", "away", "back")))
    def finish(self, data: Any, how: str) -> None:
        """Also by whoever has lost the task, and twice."""
        worker, task = data.draw(strategies.sampled_from(self.claims))
        one = self.tasks[task.id]
        result = {
            "ok": succeeded(task),
            "part": succeeded(task, partly=True),
            "no": failed(task, "no"),
            "transient": failed(task, "gone", TRANSIENT),
            "away": unavailable(task, "refused"),
            "back": handed_back(task, "stopped"),
        }[how]
        written = end(self.engine, result, owner=worker, now=self.now, policy=QUIET)
        if (one.status, one.owner, one.attempt) != ("running", worker, task.attempt):
            assert written == {}
            return
        self._finish(one, how)
        assert written == {task.id: one.status}

    def _finish(self, one: Modelled, how: str) -> None:
        if one.cancelled:
            one.attempt -= how == "back" or (how == "away" and one.waits < QUIET.preflight_retries)
            one.waits += how == "away" and one.waits < QUIET.preflight_retries
            one.finish("cancelled", self.now)
        elif how == "back" or (how == "away" and one.waits < QUIET.preflight_retries):
            one.status, one.owner, one.attempt = "pending", None, one.attempt - 1
            one.due = self.now
            if how == "away":
                one.due, one.waits = self.now + QUIET.preflight_wait * 2**one.waits, one.waits + 1
        else:
            status = {"ok": "completed", "part": "partial_success"}.get(how, "failed")
            one.finish(status, self.now, transient=how in {"transient", "away"})

    @rule(worker=WORKERS)
    def beat(self, worker: str) -> None:
        """Give a sign of life."""
        with writing(self.engine) as connection:
            beat = heartbeat(connection, worker, QUIET, self.now)
        mine = {key: one for key, one in self.tasks.items() if one.status == "running" and one.owner == worker}
        assert beat.held == {key: one.attempt for key, one in mine.items()}
        assert beat.cancelled == {key for key, one in mine.items() if one.cancelled}
        for one in mine.values():
            one.lease_end = self.now + QUIET.lease

    @rule(seconds=strategies.sampled_from((1, 30, 59, 60, 61, 299, 300)))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    @rule()
    def recover_leases(self) -> None:
        """Give back what has lost its worker."""
        lost = {key: one for key, one in self.tasks.items() if one.status == "running" and one.lease_end <= self.now}
        with writing(self.engine) as connection:
            found, _ = find_lost(connection, QUIET, self.now)
            assert {one.id for one in found} == set(lost)
            assert give_up(connection, found, QUIET, self.now) == len(lost)
        for one in lost.values():
            one.lost += 1
            if one.cancelled:
                one.finish("cancelled", self.now)
            elif one.lost > QUIET.lost_leases:
                one.finish("failed", self.now)
            else:
                one.status, one.owner = "pending", None

    @rule()
    def recover_failures(self) -> None:
        """Bring back what failed for its service."""
        rested = self.now - QUIET.transient_rest
        back = {
            key: one
            for key, one in self.tasks.items()
            if one.transient and one.returns < QUIET.transient_retries and one.ended is not None and one.ended <= rested
        }
        with writing(self.engine) as connection:
            found = [one.id for one in find_waiting(connection, QUIET, self.now)]
            assert set(found) == set(back)
            condition = may_return(QUIET, self.now)
            bring_back(connection, found, self.now, kind="returned", condition=condition, keep_count=True)
        for one in back.values():
            one.begin_anew()
            one.returns += 1

    @precondition(lambda self: self.tasks)
    @rule(data=strategies.data())
    def cancel(self, data: Any) -> None:
        """Cancel a task or a whole tree."""
        named = data.draw(strategies.sampled_from(sorted({*self.tasks, *self.parents})))
        leaves = [self.tasks[key] for key in self.parents.get(named, [named])]
        with writing(self.engine) as connection:
            told = cancel(connection, [named], "by hand", self.now)
        ended = all(one.status in TERMINAL for one in leaves)
        assert bool(told.refused) == ended
        if not ended:
            for one in leaves:
                if one.status == "pending":
                    one.finish("cancelled", self.now)
                elif one.status == "running":
                    one.cancelled = True

    @precondition(lambda self: self.tasks)
    @rule(data=strategies.data())
    def retry(self, data: Any) -> None:
        """Let a task or a tree begin anew."""
        named = data.draw(strategies.sampled_from(sorted({*self.tasks, *self.parents})))
        again = {"failed", "cancelled"} | (set() if named in self.parents else {"partial_success"})
        leaves = {key: self.tasks[key] for key in self.parents.get(named, [named])}
        expected = {key: one for key, one in leaves.items() if one.status in again}
        with writing(self.engine) as connection:
            told = retry(connection, [named], self.now)
        assert set(told.done) == set(expected)
        for one in expected.values():
            one.begin_anew()
            one.returns = one.lost = 0

    @invariant()
    def rows_are_as_modelled(self) -> None:
        """Every row is what the model says."""
        with reading(self.engine) as connection:
            rows = {row.id: row for row in connection.execute(select(analysis_tasks))}
        for key, one in self.tasks.items():
            row = rows[key]
            assert (row.status, row.attempt, row.completed_at) == (one.status, one.attempt, one.ended), key
            assert row.lease_owner == (one.owner if one.status == "running" else None)
        for parent, children in self.parents.items():
            statuses = [rows[child].status for child in children]
            asked = rows[parent].cancel_requested_at is not None and "cancelled" in statuses
            ended = aggregate(statuses)
            expected = "cancelled" if ended and asked else ended
            assert (rows[parent].status if rows[parent].status in TERMINAL else None) == expected
            assert (rows[parent].completed_at is None) == (expected is None)


def test_the_queue_does_what_its_model_says(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[None] = []

    def new_id() -> str:
        # Always the same: hypothesis repeats what it did, and tasks of one moment go by their ids.
        count.append(None)
        return f"task_{len(count):03}"

    monkeypatch.setattr(submitting, "new_id", new_id)
    machine = type("QueueOfEngine", (Queue,), {"engine": engine, "count": count})
    bounds = settings(max_examples=25, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(machine, settings=bounds)
