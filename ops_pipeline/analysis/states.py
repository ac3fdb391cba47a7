"""The rules of the queue, as pure functions: what becomes of a task, of its parent and of a service.

What belongs here: decisions from facts, policy and `now`; jitter is passed in. What does not: any I/O.

A task is `pending` until a worker claims it, `running` under a lease, then ends once: `completed`, `partial_success`,
`failed` or `cancelled`. `error_class` says what kind of failure ended it:

- `permanent`: the analyzer or the task is wrong; never tried again by itself.
- `transient`: the service was not available; comes back when it is healthy, a bounded number of times.
- `timeout`: the attempt took longer than it may.
- `lost_lease`: its workers died again and again.
- `cancelled`: by an operator or by what it belongs to.
- `children`: a parent none of whose children succeeded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.tables import (
    CANCELLED,
    COMPLETED,
    FAILED,
    PARTIAL_SUCCESS,
    PENDING,
    TERMINAL,
)

PERMANENT, TRANSIENT, TIMEOUT, LOST_LEASE = "permanent", "transient", "timeout", "lost_lease"
CHILDREN = "children"
UNAVAILABLE, HANDED_BACK = "unavailable", "handed_back"
"""Outcomes of an attempt that do not end the task."""
LONGEST_TASK = timedelta(days=7)
LONGEST_TEXT = 4_000


@dataclass(frozen=True)
class Task:
    """A task as its worker has it.

    Attributes:
        id: of the task.
        attempt: together with the worker's name the fence of its end.
        service: which analyzer does it.
        target: what is analysed, `<model slug>/app<number>` for a generated application.
        options: what the submitter said; empty when it said nothing.
        unreadable: why the row cannot be done, in words; empty for a sound one. Its worker ends it as failed.
        timeout: how long this attempt may take.
        preflight_retries: how often it has waited for its service.
        parent_id: of the task that waits for it.
        pipeline_id: of the pipeline that it belongs to.
    """

    id: str
    attempt: int
    service: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    unreadable: str = ""
    timeout: timedelta = timedelta(seconds=1800)
    preflight_retries: int = 0
    parent_id: str | None = None
    pipeline_id: str | None = None


@dataclass(frozen=True)
class Result:
    """How an attempt went; made by the functions below.

    Attributes:
        task: as it was claimed.
        status: `completed`, `partial_success`, `failed`, `cancelled`, `unavailable` or `handed_back`.
        error_class: the kind of failure.
        message: what to tell about it.
        summary: the result, for `result_summary`.
    """

    task: Task
    status: str
    error_class: str = ""
    message: str = ""
    summary: Mapping[str, Any] | None = None


def succeeded(task: Task, summary: Mapping[str, Any] | None = None, *, partly: bool = False) -> Result:
    """The analyzer did it, or a part of it."""
    return Result(task, PARTIAL_SUCCESS if partly else COMPLETED, summary=summary)


def failed(task: Task, message: str, error_class: str = PERMANENT, summary: Mapping[str, Any] | None = None) -> Result:
    """It ended without a usable result. A `transient` failure comes back by itself, and counts against its service."""
    return Result(task, FAILED, error_class, message, summary)


def unavailable(task: Task, message: str) -> Result:
    """The service could not be reached, or said that it is not well: the task waits, at no cost."""
    return Result(task, UNAVAILABLE, TRANSIENT, message)


def handed_back(task: Task, message: str) -> Result:
    """The worker stops: another one takes the task at once, at no cost."""
    return Result(task, HANDED_BACK, message=message)


@dataclass(frozen=True)
class Ending:
    """What is written for an attempt that is over.

    Attributes:
        status: of the task from now on.
        error_class: empty unless it failed.
        message: empty unless there is something to tell.
        next_attempt_at: when it may be claimed again; None for at once, or never.
        returned: attempts given back.
        waits: waits for the service that are added.
    """

    status: str
    error_class: str = ""
    message: str = ""
    next_attempt_at: datetime | None = None
    returned: int = 0
    waits: int = 0


def ending_of(result: Result, policy: Policy, now: datetime, jitter: float) -> Ending:
    """What becomes of a task after an attempt.

    Args:
        result: how the attempt went.
        policy: how often and how long a task waits.
        now: the database's clock.
        jitter: from 0 to 1; lengthens a wait by up to a tenth, so that not all return at once.
    """
    message = result.message[:LONGEST_TEXT]
    if result.status == HANDED_BACK:
        return Ending(PENDING, message=message, returned=1)
    if result.status != UNAVAILABLE:
        return Ending(result.status, result.error_class, message)
    waited = result.task.preflight_retries
    if waited >= policy.preflight_retries:
        told = f"{message} (after {waited} waits for the service {result.task.service})"
        return Ending(FAILED, TRANSIENT, told)
    return Ending(PENDING, message=message, next_attempt_at=now + wait(policy, waited, jitter), returned=1, waits=1)


def wait(policy: Policy, waited: int, jitter: float) -> timedelta:
    """How long a task waits for its service the next time: 30, 60, 120 seconds, and up to a tenth more."""
    return policy.preflight_wait * 2 ** min(waited, 10) * (1 + jitter / 10)


def timeout_of(value: Any, policy: Policy) -> timedelta:
    """How long an attempt may take: what the row says, where that is a time, else TASK_TIMEOUT."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return policy.task_timeout
    if not seconds > 0:
        return policy.task_timeout
    return LONGEST_TASK if math.isinf(seconds) else timedelta(seconds=min(seconds, LONGEST_TASK.total_seconds()))


def lost(lost_leases: int, policy: Policy, *, overdue: bool, cancelled: bool) -> Ending:
    """What becomes of a task whose worker let the lease run out.

    Args:
        lost_leases: how often that had happened before.
        policy: how often it may.
        overdue: whether the attempt has taken longer than it may.
        cancelled: whether its cancellation was asked for.
    """
    if cancelled:
        return Ending(CANCELLED, CANCELLED, "cancelled; its worker did not answer")
    if overdue:
        return Ending(FAILED, TIMEOUT, "took longer than it may, and its worker did not end it")
    if lost_leases >= policy.lost_leases:
        told = f"its worker died {lost_leases + 1} times: the task itself probably ends it"
        return Ending(FAILED, LOST_LEASE, told)
    return Ending(PENDING, message="its worker let the lease run out")


def aggregate(statuses: Sequence[str]) -> str | None:
    """The status of a parent, from those of its children; None while one of them has not ended.

    All ok is completed; none ok is failed, or cancelled when all are; anything partial or mixed is partial_success.
    """
    if not statuses or any(status not in TERMINAL for status in statuses):
        return None
    kinds = set(statuses)
    if len(kinds) == 1:
        return kinds.pop()
    return PARTIAL_SUCCESS if kinds & {COMPLETED, PARTIAL_SUCCESS} else FAILED
