"""Ending attempts: completed, failed, waiting for a service, or handed back.

What belongs here: the fenced writing of what became of attempts, and of what follows from it.

    with writing(engine) as connection:
        statuses = finish(connection, owner, results, policy=policy, now=database_now(connection), jitter=random.random)
        # In the same transaction: the findings of each result whose task is in `statuses` with the status it gave.

Only whoever has the task may end it: owner and attempt must still match, and what has ended stays as it is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import JSON, Connection, Executable, Integer, Text, bindparam, case, literal, null, update

from ops_pipeline.analysis.breakers import record_failures, record_successes
from ops_pipeline.analysis.events import ENDED, POSTPONED, run_telling, telling
from ops_pipeline.analysis.following import Ended, follow
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.states import TRANSIENT, Ending, Result, ending_of
from ops_pipeline.analysis.tables import (
    CANCELLED,
    COMPLETED,
    PARTIAL_SUCCESS,
    PENDING,
    RUNNING,
    TERMINAL,
    analysis_tasks,
)
from ops_pipeline.database.sent import json_text, sent_rows
from ops_pipeline.database.types import UtcDateTime
from ops_pipeline.log_fields import fields

SENT = {
    "id": Text(),
    "attempt": Integer(),
    "status": Text(),
    "error_class": Text(),
    "message": Text(),
    "next_attempt_at": UtcDateTime(),
    "returned": Integer(),
    "waits": Integer(),
    "summary": JSON(),
}
log = logging.getLogger(__name__)
tasks = analysis_tasks.c


def finish(
    connection: Connection,
    owner: str,
    results: Sequence[Result],
    *,
    policy: Policy,
    now: datetime,
    jitter: Callable[[], float],
) -> dict[str, str]:
    """Write what became of attempts, and do what follows: parents, pipelines and breakers.

    Args:
        connection: a transaction of `engine.writing`.
        owner: the worker whose attempts they were.
        results: how they went, each of another task.
        policy: how often and how long tasks wait.
        now: the database's clock.
        jitter: gives a number from 0 to 1 for each.

    Returns:
        The status that each task has now. Whoever lost a task finds it missing here, and stores nothing of it; a task
        whose cancellation was asked for is `cancelled`, and its result dropped.
    """
    if not results:
        return {}
    endings = [(result, ending_of(result, policy, now, jitter())) for result in results]
    written = _write(connection, owner, endings, now)
    for task in written if log.isEnabledFor(logging.DEBUG) else ():
        log.debug(
            "Task %s is %s.", task.id, task.status, extra=fields(object=task.id, status=task.status, worker=owner)
        )
    ended = [task for task in written if task.status in TERMINAL]
    _judge_services(connection, results, {task.id for task in written}, policy, now)
    follow(connection, [Ended(task.id, task.parent_id, task.pipeline_id) for task in ended], now)
    return {task.id: task.status for task in written}


def _write(connection: Connection, owner: str, endings: Sequence[tuple[Result, Ending]], now: datetime) -> list[Any]:
    rows = [
        {
            "id": result.task.id,
            "attempt": result.task.attempt,
            "status": ending.status,
            "error_class": ending.error_class,
            "message": ending.message or None,
            "next_attempt_at": ending.next_attempt_at,
            "returned": ending.returned,
            "waits": ending.waits,
            "summary": result.summary,
        }
        for result, ending in sorted(endings, key=lambda pair: pair[0].task.id)
    ]
    values = {"sent": json_text(rows), "worker": owner, "before": RUNNING, "now": now}
    return run_telling(connection, _end(connection.dialect.name), values)


@cache
def _end(dialect: str) -> Executable:
    sent, now = sent_rows(dialect, "sent", SENT), bindparam("now", type_=UtcDateTime())
    cancelled = tasks.cancel_requested_at.is_not(None)
    status = case((cancelled, literal(CANCELLED)), else_=sent.c.status)
    ended = (
        update(analysis_tasks)
        .where(
            tasks.id == sent.c.id,
            tasks.attempt == sent.c.attempt,
            tasks.lease_owner == bindparam("worker"),
            tasks.status == RUNNING,
        )
        .values(
            status=status,
            error_class=case((cancelled, literal(CANCELLED)), else_=sent.c.error_class),
            error_message=case((cancelled, tasks.error_message), else_=sent.c.message),
            result_summary=case((cancelled, null()), else_=sent.c.summary),
            completed_at=case((status == PENDING, null()), else_=now),
            next_attempt_at=case((cancelled, null()), else_=sent.c.next_attempt_at),
            attempt=tasks.attempt - sent.c.returned,
            preflight_retries=tasks.preflight_retries + sent.c.waits,
            lease_owner=None,
            lease_expires_at=None,
            deadline_at=None,
            updated_at=now,
        )
        .returning(
            *(tasks.id, tasks.attempt, tasks.status, tasks.error_message, tasks.parent_id, tasks.pipeline_id),
            case((tasks.status == PENDING, literal(POSTPONED, Text())), else_=literal(ENDED, Text())).label("kind"),
        )
    )
    return telling(dialect, ended)


def _judge_services(
    connection: Connection, results: Sequence[Result], written: set[str], policy: Policy, now: datetime
) -> None:
    """Tell the breakers: a service that did anything is there, one that only failed to be is not."""
    told = [result for result in results if result.task.id in written]
    well = {result.task.service for result in told if result.status in {COMPLETED, PARTIAL_SUCCESS}}
    failures = Counter(result.task.service for result in told if result.error_class == TRANSIENT)
    record_successes(connection, sorted(well), now)
    record_failures(connection, {name: count for name, count in failures.items() if name not in well}, policy, now)
