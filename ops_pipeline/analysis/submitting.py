"""Submitting tasks.

What belongs here: what a submission is, and writing it. Other programs may as well INSERT into `analysis_tasks`: `id`,
`service` and `target` are enough.

    submit_task(engine, ["static-analyzer"], "acme_model-1/app3", priority="high")

A task for several services is a parent with one child for each, all written in one transaction. With a `run_key` a
submission that is repeated changes nothing and tells the id of the first.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.dialects import postgresql, sqlite

from ops_pipeline.analysis.events import SUBMITTED
from ops_pipeline.analysis.tables import HAS_RUN_KEY, NORMAL, PENDING, RANKS, UNIFIED, analysis_tasks, task_events
from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.database.expressions import is_any_of
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.database.sent import json_text

PRIORITIES = (*RANKS, NORMAL)
LONGEST_NAME = 500
tasks = analysis_tasks.c


class SubmissionRefused(Exception):
    """A task that could never be done; the message says what is wrong with it."""


@dataclass(frozen=True)
class Submission:
    """One task to submit.

    Attributes:
        services: which analyzers do it, each named once; more than one make a parent with children.
        target: what is analysed, `<model slug>/app<number>` for a generated application.
        options: what the analyzers are told.
        priority: `urgent`, `high`, `normal` or `low`.
        run_key: names this submission; a second one of the same name is the first.
        timeout_seconds: how long one attempt may take; None for TASK_TIMEOUT.
        labels: what maintenance goes by: `legal_hold`.
        pipeline_id: the pipeline that it belongs to, with `step` and `job_index`.
        step: its position there.
        job_index: of the job within the step.
    """

    services: tuple[str, ...]
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    priority: str = NORMAL
    run_key: str | None = None
    timeout_seconds: float | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    pipeline_id: str | None = None
    step: int | None = None
    job_index: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could never be done.

        Raises:
            SubmissionRefused: with what is wrong.
        """
        problem = _problem(self)
        if problem:
            raise SubmissionRefused(problem)


def submit_task(engine: Engine, services: Sequence[str], target: str, **rest: Any) -> str:
    """Submit one task, and tell its id; the further arguments are those of `Submission`.

    Raises:
        SubmissionRefused: it could never be done.
    """
    submission = Submission(tuple(services), target, **rest)

    def transaction() -> str:
        with writing(engine) as connection:
            return submit(connection, [submission], database_now(connection))[0]

    return despite_conflicts(transaction)


def submit(connection: Connection, submissions: Sequence[Submission], now: datetime) -> list[str]:
    """Submit tasks, all or none of them.

    Args:
        connection: a transaction of `engine.writing`.
        submissions: any number.
        now: the database's clock.

    Returns:
        The id of each, in the order given; of one whose run key is known already the first one's.
    """
    mains = [_row(submission, now) for submission in submissions]
    known = _insert(connection, mains)
    children = [
        _row(submission, now, service=service, parent_id=row["id"])
        for submission, row in zip(submissions, mains, strict=True)
        if row["service"] == UNIFIED and known.get(row["run_key"], row["id"]) == row["id"]
        for service in submission.services
    ]
    _insert(connection, children)
    new = [row for row in (*mains, *children) if known.get(row["run_key"], row["id"]) == row["id"]]
    _tell(connection, new, now)
    return [known.get(row["run_key"], row["id"]) for row in mains]


def _row(
    submission: Submission, now: datetime, *, service: str | None = None, parent_id: str | None = None
) -> dict[str, Any]:
    main = parent_id is None
    if service is None:
        service = submission.services[0] if len(submission.services) == 1 else UNIFIED
    return {
        "id": new_id(),
        "parent_id": parent_id,
        "service": service,
        "target": submission.target,
        "options": _json(submission.options),
        "labels": _json(submission.labels),
        "priority": submission.priority,
        "run_key": submission.run_key if main else None,
        "timeout_seconds": submission.timeout_seconds,
        "pipeline_id": submission.pipeline_id,
        "step": submission.step,
        "job_index": submission.job_index,
        "created_at": now,
        "updated_at": now,
    }


def new_id() -> str:
    """An id that no other task has."""
    return f"task_{secrets.token_hex(8)}"


def _json(value: Mapping[str, Any]) -> Any:
    # Through the text, so that what PostgreSQL takes for no JSON is gone: NUL, and numbers that are none.
    return json.loads(json_text(dict(value))) if value else None


def _insert(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> dict[str | None, str]:
    """Insert rows whose run key is new, and tell whose each run key is."""
    if not rows:
        return {}
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    # Two programs may submit the same key at the same moment: the later one waits here for the first to commit.
    statement = dialect.insert(analysis_tasks).on_conflict_do_nothing(
        index_elements=["run_key"], index_where=HAS_RUN_KEY
    )
    connection.execute(statement, sorted(rows, key=lambda row: (row["run_key"] or "", row["id"])))
    keys = sorted({row["run_key"] for row in rows if row["run_key"] is not None})
    if not keys:
        return {}
    found = connection.execute(select(tasks.run_key, tasks.id).where(is_any_of(tasks.run_key, keys)))
    return {row.run_key: row.id for row in found}


def _tell(connection: Connection, rows: Sequence[Mapping[str, Any]], now: datetime) -> None:
    events = [{"task_id": row["id"], "at": now, "kind": SUBMITTED, "after": PENDING} for row in rows]
    if events:
        connection.execute(task_events.insert(), events)


def _problem(submission: Submission) -> str | None:
    """Why a submission could never be done, in words."""
    services = submission.services
    if not services or any(not service.strip() or service == UNIFIED for service in services):
        return f"a task needs at least one service, by name, and {UNIFIED!r} is none: {services!r}"
    if len(set(services)) < len(services):
        return f"each service is named once, not as in {', '.join(services)}"
    if not submission.target.strip():
        return "a task needs a target, for example acme_model-1/app3"
    if any(len(name) > LONGEST_NAME or "\0" in name for name in (*services, submission.target)):
        return f"names have at most {LONGEST_NAME} characters, and no NUL among them"
    return _value_problem(submission)


def _value_problem(submission: Submission) -> str | None:
    if submission.priority not in PRIORITIES:
        return f"the priority {submission.priority!r} is none of {', '.join(PRIORITIES)}"
    timeout = submission.timeout_seconds
    if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
        return f"a time-out is a number of seconds above 0, not {timeout}; leave it out for TASK_TIMEOUT"
    try:
        json_text([dict(submission.options), dict(submission.labels)])
    except (TypeError, ValueError, RecursionError) as error:
        return f"options and labels must be JSON objects: {error}"
    return None
