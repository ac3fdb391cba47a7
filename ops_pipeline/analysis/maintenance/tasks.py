"""The rules for tasks that cannot come to an end any more: orphans, and stuck ones.

What belongs here: pure decisions that take `now`. What does not: SQL (`task_store`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ops_pipeline.analysis.states import LOST_LEASE
from ops_pipeline.analysis.tables import CANCELLED, CREATED, FAILED, PENDING, RUNNING, STATUSES
from ops_pipeline.reconcile import Change

CANCEL, FAIL, STAMP = "cancel", "fail", "stamp its end"
UNREADABLE = "its times cannot be read: correct created_at and the others"
SHOWN_ERROR = 300
SHOWN_STATUS = 40


@dataclass(frozen=True)
class Task:
    """A task that has not ended, as far as maintenance needs it; a time that cannot be read is None.

    Attributes:
        held: whether its pipeline is paused.
        generation: whether it is to make its application.
        children: those of its children that have not ended; None when it has no children at all.
        last_child: when the last of its children ended.
    """

    id: str
    service: str
    target: str
    status: str
    attempt: int = 0
    parent_id: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    next_attempt_at: datetime | None = None
    lease_expires_at: datetime | None = None
    held: bool = False
    generation: bool = False
    children: int | None = None
    last_child: datetime | None = None


@dataclass(frozen=True)
class Version:
    """A version of an application: how its generation went, and when it was written last."""

    number: int
    status: str
    stage: str = ""
    error: str = ""
    updated_at: datetime | None = None


@dataclass(frozen=True)
class TaskPolicy:
    """How long tasks may wait and run without anybody who works on them."""

    grace: timedelta = timedelta(minutes=5)
    running: timedelta = timedelta(minutes=120)
    pending: timedelta = timedelta(minutes=240)


@dataclass(frozen=True)
class Ending:
    """How a task is ended, and under which conditions."""

    task: Task
    change: Change
    status: str
    error_class: str


@dataclass(frozen=True)
class TaskDecisions:
    """What follows for tasks; `oldest` is by how much the one longest due exceeds its cut-off."""

    endings: tuple[Ending, ...]
    kept: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    oldest: timedelta = timedelta(0)


def decide_orphans(
    tasks: Iterable[Task], versions: Mapping[str, Sequence[Version]], policy: TaskPolicy, now: datetime
) -> TaskDecisions:
    """Which pending and running tasks have no application to work on.

    Args:
        tasks: those that name an application.
        versions: what there is of each application; none where it does not exist.
        policy: the grace.
        now: the database's clock.
    """
    endings: list[Ending] = []
    kept: Counter[str] = Counter()
    failed: dict[str, str] = {}
    oldest = timedelta(0)
    for task in tasks:
        found = versions.get(task.target, ())
        if task.status not in {PENDING, RUNNING} or any(one.status != FAILED for one in found):
            continue
        if task.generation:
            kept["it is to make its application"] += 1
            continue
        since = _latest(task.created_at, *(one.updated_at for one in found))
        if task.created_at is None or since is None:
            failed[task.id] = UNREADABLE
            continue
        if now - since <= policy.grace:
            kept["younger than the grace"] += 1
            continue
        oldest = max(oldest, now - since - policy.grace)
        reason = _orphan_reason(task.target, found)
        endings.append(_ending(task, CANCEL, reason, CANCELLED, CANCELLED))
    return TaskDecisions(tuple(endings), kept, failed, oldest)


def _orphan_reason(target: str, versions: Sequence[Version]) -> str:
    if not versions:
        return f"its application {target} does not exist"
    last = max(versions, key=lambda one: one.number)
    stage = f" at the stage {last.stage}" if last.stage else ""
    error = f": {last.error[:SHOWN_ERROR]}" if last.error else ""
    return f"the generation of its application {target} failed{stage}{error}"


def decide_stuck(tasks: Iterable[Task], policy: TaskPolicy, now: datetime) -> TaskDecisions:
    """Which tasks nobody works on any more.

    Args:
        tasks: those that have not ended.
        policy: the limits.
        now: the database's clock.
    """
    endings: list[Ending] = []
    kept: Counter[str] = Counter()
    failed: dict[str, str] = {}
    oldest = timedelta(0)
    for task in tasks:
        spared = _spared(task, now)
        if spared:
            kept[spared] += 1
            continue
        since, limit = _since(task), policy.running if task.status == RUNNING else policy.pending
        if since is None:
            failed[task.id] = UNREADABLE
        elif now - since > limit:
            oldest = max(oldest, now - since - limit)
            endings.append(_stuck(task, now - since))
    return TaskDecisions(tuple(endings), kept, failed, oldest)


def unknown_status(status: str) -> str:
    """What to tell of a task whose status is none: no worker claims it, no retention begins."""
    return f"its status {status[:SHOWN_STATUS]!r} is none of {', '.join(STATUSES)}: correct it"


def _spared(task: Task, now: datetime) -> str:
    """Why a task is not stuck whatever its age, in words; empty when its age decides."""
    if task.children:
        return "its children have not ended"
    if task.status == RUNNING:
        return "its lease is alive" if task.lease_expires_at is not None and task.lease_expires_at > now else ""
    if task.status == PENDING and task.held:
        return "its pipeline is paused"
    if task.status == PENDING and task.next_attempt_at is not None and task.next_attempt_at > now:
        return "it waits for its due time"
    return ""


def _since(task: Task) -> datetime | None:
    """Since when nobody has worked on a task; None when none of its times can be read."""
    if task.status == RUNNING and task.children is None and task.lease_expires_at is not None:
        return task.lease_expires_at
    if task.created_at is None:
        return None
    if task.status == RUNNING:
        return _latest(task.created_at, task.started_at, task.updated_at, task.last_child)
    if task.status == CREATED:
        return _latest(task.created_at, task.updated_at, task.last_child)
    return _latest(task.created_at, task.updated_at, task.next_attempt_at, task.last_child)


def _stuck(task: Task, age: timedelta) -> Ending:
    minutes = f"{age / timedelta(minutes=1):.0f} minutes"
    if task.children == 0:
        reason = f"all its children ended {minutes} ago and it did not end with them"
        return _ending(task, FAIL, reason, FAILED, LOST_LEASE)
    if task.status == RUNNING:
        return _ending(task, FAIL, f"stuck: running without a live lease for {minutes}", FAILED, LOST_LEASE)
    what = "pending" if task.status == PENDING else "its submission did not end, created"
    return _ending(task, CANCEL, f"stuck: {what} for {minutes}", CANCELLED, CANCELLED)


def _ending(task: Task, action: str, reason: str, status: str, error_class: str) -> Ending:
    return Ending(task, Change(f"{task.id} ({task.target})", action, reason, task.status), status, error_class)


def _latest(*instants: datetime | None) -> datetime | None:
    return max((one for one in instants if one is not None), default=None)
