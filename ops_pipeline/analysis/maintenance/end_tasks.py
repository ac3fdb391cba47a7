"""The passes over tasks that cannot come to an end: orphans are cancelled, stuck ones end, ends are stamped.

What belongs here: the sequences. The rules are in `tasks`, SQL in `task_store`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, Engine

from ops_pipeline.analysis.maintenance import task_store as store
from ops_pipeline.analysis.maintenance.lab import Lab, telling
from ops_pipeline.analysis.maintenance.tasks import (
    STAMP,
    Ending,
    TaskDecisions,
    TaskPolicy,
    decide_orphans,
    decide_stuck,
    unknown_status,
)
from ops_pipeline.analysis.tables import FAILED
from ops_pipeline.database.batches import next_batch, wait_at_most
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.leases import Lease, leased
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.passes import SHOWN_CHANGES, Options, Report
from ops_pipeline.reconcile import Change, Outcome, Plan

ORPHANS, STUCK = "orphan_tasks", "stuck_tasks"
FIRST_BATCH, SMALLEST_BATCH, LARGEST_BATCH = 200, 20, 2_000
MOST_STAMPED = 100_000
MOST_UNKNOWN = 10_000
LOCK_SECONDS = 0.2
ADVICE = "Nothing was changed. Read the plan; if it is right, launch again with the limit raised in the run config."

Write = Callable[[Sequence[Ending], Connection, datetime], int]


@dataclass(frozen=True)
class Found:
    """What a look has found, and how it is written.

    Attributes:
        name: of the pass.
        decisions: what follows.
        scanned: how many tasks have not ended.
        write: ends some tasks under the conditions of the plan, and tells how many ended.
        unstamped: id, target and status of tasks that ended at no known time.
    """

    name: str
    decisions: TaskDecisions
    scanned: int
    write: Write
    unstamped: Sequence[tuple[str, str, str]] = ()


@dataclass
class Applied:
    """What was done: ended by status, and what the time budget left."""

    ended: int = 0
    stamped: int = 0
    skipped: int = 0
    left: int = 0


def cancel_orphan_tasks(lab: Lab, policy: TaskPolicy, options: Options) -> Report:
    """Cancel pending and running tasks whose application is gone or was never made; never raises for it."""

    def run() -> Report:
        with reading(lab.engine) as connection:
            now, scanned = database_now(connection), store.count_unfinished(connection)
            tasks, versions = store.read_orphans(connection)
        decisions = decide_orphans(tasks, versions, policy, now)
        return _reported(lab.engine, Found(ORPHANS, decisions, scanned, store.end_orphans), options)

    return telling(ORPHANS, run)


def end_stuck_tasks(lab: Lab, policy: TaskPolicy, options: Options) -> Report:
    """End tasks that nobody works on, and stamp ends that were not recorded; never raises for it."""

    def run() -> Report:
        with reading(lab.engine) as connection:
            now, scanned = database_now(connection), store.count_unfinished(connection)
            tasks = store.read_waiting(connection, now - min(policy.running, policy.pending))
            unstamped = store.read_unstamped(connection, MOST_STAMPED)
            unknown = {task: unknown_status(status) for task, status in store.read_unknown(connection, MOST_UNKNOWN)}
        decisions = decide_stuck(tasks, policy, now)
        decisions = replace(decisions, failed={**decisions.failed, **unknown})
        found = Found(STUCK, decisions, scanned + len(unknown), store.end_stuck, unstamped)
        return _reported(lab.engine, found, options)

    return telling(STUCK, run)


def _reported(engine: Engine, found: Found, options: Options) -> Report:
    decisions = found.decisions
    ends = [ending.change for ending in decisions.endings]
    stamps = [
        Change(f"{task} ({target})", STAMP, "it ended, and when was not recorded", status)
        for task, target, status in found.unstamped
    ]
    changes, scanned = [*ends, *stamps], found.scanned + len(stamps)
    objection = options.limit.objection(Plan(tuple(ends), found.scanned))
    done = Applied()
    if not objection and not options.dry_run:
        with leased(engine, f"maintenance {found.name}") as lease:
            _apply(engine, found, options, done, lease)
        _tell(found, done, options)
    failures = [Change(task, "could not decide", reason) for task, reason in decisions.failed.items()]
    return Report(
        found.name,
        Outcome(
            scanned=scanned,
            changed=done.ended + done.stamped,
            unchanged=scanned - len(changes) - len(failures),
            skipped=done.skipped,
            failed=len(failures),
            reasons=_actions(changes),
        ),
        changes=tuple([*failures, *changes][:SHOWN_CHANGES]),
        planned=len(changes),
        kept=decisions.kept,
        left=done.left,
        backlog_seconds=decisions.oldest.total_seconds() if objection or options.dry_run or done.left else 0.0,
        error=f"Refused: {objection}. {ADVICE}" if objection else "",
        facts={"ended": done.ended, "stamped": done.stamped},
    )


def _actions(changes: Sequence[Change]) -> dict[str, int]:
    """Reasons hold minutes and names: as counts the actions say more."""
    return dict(Counter(f"{change.planned_from}: {change.action}" for change in changes))


def _apply(engine: Engine, found: Found, options: Options, done: Applied, lease: Lease) -> None:
    deadline, size = options.deadline(), FIRST_BATCH
    waiting = list(found.decisions.endings)
    while waiting and not deadline.passed:
        batch, waiting = waiting[:size], waiting[size:]
        started = time.perf_counter()
        ended = despite_conflicts(_transaction, engine, partial(found.write, batch))
        done.ended += ended
        # Parents end with their children: more may have ended than were asked for.
        done.skipped += max(0, len(batch) - ended)
        size = next_batch(size, time.perf_counter() - started, SMALLEST_BATCH, LARGEST_BATCH)
        lease.keep()
    stamps = [task for task, _, _ in found.unstamped]
    while stamps and not deadline.passed:
        ids, stamps = stamps[:LARGEST_BATCH], stamps[LARGEST_BATCH:]
        stamped = despite_conflicts(_transaction, engine, partial(store.stamp, ids))
        done.stamped += stamped
        lease.keep()
    done.left = len(waiting) + len(stamps)


def _transaction(engine: Engine, work: Callable[[Connection, datetime], int]) -> int:
    with writing(engine) as connection:
        wait_at_most(connection, LOCK_SECONDS)
        return work(connection, database_now(connection))


def _tell(found: Found, done: Applied, options: Options) -> None:
    if found.name == ORPHANS:
        options.say(f"Cancelled {done.ended} orphan tasks")
        return
    endings = found.decisions.endings
    failed = sum(ending.status == FAILED for ending in endings)
    options.say(f"Marked {failed} stuck tasks as FAILED, cancelled {len(endings) - failed} that waited too long")
    if done.stamped:
        options.say(f"Stamped {done.stamped} tasks that had ended at no known time")
