"""The backstop: pipelines for which something is due that no transaction did.

A worker that ends a task advances its pipeline at once. What is left: tasks that another program ended or deleted,
pipelines that one inserted, deadlines, and commands that were interrupted between the pipeline and its tasks.

What belongs here: the look, the plan, and doing it pipeline by pipeline. What does not: the advance itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, or_, select

from ops_pipeline.analysis.pipelines import store
from ops_pipeline.analysis.pipelines.advance import advance, take_back_all
from ops_pipeline.analysis.pipelines.control import CancelTasks, cancel_unfinished, hold_tasks
from ops_pipeline.analysis.pipelines.forgetting import forget
from ops_pipeline.analysis.pipelines.rules import (
    End,
    EndStep,
    Lay,
    Pipeline,
    StartStep,
    Stop,
    Submit,
    Withdraw,
    next_action,
)
from ops_pipeline.analysis.pipelines.tables import pipeline_jobs, pipeline_steps, pipelines
from ops_pipeline.analysis.tables import RUNNING, TERMINAL, UNFINISHED, analysis_tasks
from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.database.errors import Unreachable
from ops_pipeline.database.expressions import is_any_of
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.reconcile import Change, Outcome, Plan, count_reasons

ADVANCE, FORGET = "advance", "forget"
jobs, tasks = pipeline_jobs.c, analysis_tasks.c


@dataclass(frozen=True)
class Looked:
    """An unfinished pipeline, as a look found it.

    Attributes:
        pipeline: its rows.
        missed: running jobs whose task has ended, or is gone.
        returned: jobs that have failed whose task is on its way again.
        misheld: tasks that are held and should not be, or the other way round.
        unasked: tasks of a pipeline that is to stop which nobody has asked to.
    """

    pipeline: Pipeline
    missed: int = 0
    returned: int = 0
    misheld: int = 0
    unasked: int = 0


def observe(connection: Connection) -> list[Looked]:
    """Look at every pipeline that has not ended, the oldest first."""
    ids = store.unfinished_ids(connection)
    if not ids:
        return []
    step, task = pipeline_steps.c, tasks.status
    of_jobs = pipeline_jobs.join(pipeline_steps, and_(step.pipeline_id == jobs.pipeline_id, step.position == jobs.step))
    of_jobs = of_jobs.outerjoin(analysis_tasks, tasks.id == jobs.task_id)
    at_work = and_(is_any_of(jobs.pipeline_id, ids), step.status == RUNNING, jobs.task_id.is_not(None))
    over = and_(jobs.status == RUNNING, or_(task.is_(None), task.in_(TERMINAL)))
    back = and_(jobs.status.in_(store.MAY_COME_BACK), task.in_(UNFINISHED))
    of_tasks = analysis_tasks.join(pipelines, pipelines.c.id == tasks.pipeline_id)
    theirs = and_(is_any_of(tasks.pipeline_id, ids), task.in_(UNFINISHED))
    differs = pipelines.c.paused_at.is_not(None) != tasks.held_since.is_not(None)
    unasked = and_(pipelines.c.stop_as != "", tasks.parent_id.is_(None), tasks.cancel_requested_at.is_(None))

    def count(column: Any, source: Any, *conditions: Any) -> dict[str, int]:
        query = select(column, func.count()).select_from(source).where(*conditions).group_by(column)
        return {row[0]: row[1] for row in connection.execute(query)}

    missed = count(jobs.pipeline_id, of_jobs, at_work, over)
    returned = count(jobs.pipeline_id, of_jobs, at_work, back)
    misheld = count(tasks.pipeline_id, of_tasks, theirs, differs)
    to_ask = count(tasks.pipeline_id, of_tasks, theirs, unasked)
    return [
        Looked(one, missed.get(one.id, 0), returned.get(one.id, 0), misheld.get(one.id, 0), to_ask.get(one.id, 0))
        for one in store.read_pipelines(connection, ids)
    ]


def plan_of(looked: Sequence[Looked], now: datetime, forgettable: Sequence[str] = ()) -> Plan:
    """Which of the pipelines something is due for, and what; and which ended ones can go."""
    changes = [Change(one, FORGET, "it ended 30 days ago, and none of its tasks is left") for one in forgettable]
    for one in looked:
        told = reason_of(one, now)
        if told:
            changes.append(Change(one.pipeline.id, ADVANCE, told, one.pipeline.status))
    return Plan(tuple(changes), len(looked) + len(forgettable))


def reason_of(looked: Looked, now: datetime) -> str:
    """What is due for a pipeline, in words; empty when there is nothing but to wait."""
    counts = (
        (looked.missed, "tasks ended unseen"),
        (looked.returned, "tasks came back unseen"),
        (looked.misheld, "tasks are to be let go" if not looked.pipeline.paused else "tasks are to be held"),
        (looked.unasked, "tasks are to be cancelled"),
    )
    found = [words for count, words in counts if count]
    return "; ".join(found) or _words(looked.pipeline, now)


_WORDS: dict[type[Any], str] = {
    Lay: "it is to begin",
    Stop: "its deadline has passed",
    StartStep: "a step is to begin",
    Submit: "jobs are to be submitted",
    EndStep: "a step has ended",
    Withdraw: "jobs are not to be submitted any more",
    End: "it has ended",
}


def _words(pipeline: Pipeline, now: datetime) -> str:
    action = next_action(pipeline, now)
    return "" if action is None else _WORDS[type(action)]


def apply(engine: Engine, plan: Plan, cancel_tasks: CancelTasks) -> tuple[Outcome, list[str]]:
    """Do what is due, pipeline by pipeline.

    Returns:
        The outcome, and for each pipeline that failed why; the others are done all the same.

    Raises:
        Unreachable: the database cannot be used just now.
    """
    gone = [change.key for change in plan.changes if change.action == FORGET]
    done = forget(engine, gone)
    skipped, failures = len(gone) - done, []
    for change in plan.changes:
        if change.action == FORGET:
            continue
        try:
            changed = catch_up(engine, change.key, cancel_tasks)
        except Unreachable:
            raise
        except Exception as problem:  # noqa: BLE001 - one broken pipeline stops no other
            failures.append(f"{change.key}: {str(problem).partition(chr(10))[0]}")
            continue
        done, skipped = done + changed, skipped + (not changed)
    outcome = Outcome(
        scanned=plan.scanned,
        changed=done,
        unchanged=plan.unchanged,
        skipped=skipped,
        failed=len(failures),
        reasons=count_reasons(plan.changes),
    )
    return outcome, failures


def catch_up(engine: Engine, pipeline_id: str, cancel_tasks: CancelTasks) -> bool:
    """Do all that is due for one pipeline; whether there was anything, or somebody else had done it meanwhile."""

    def transaction() -> tuple[bool, bool]:
        with writing(engine) as connection:
            now = database_now(connection)
            back = take_back_all(connection, [pipeline_id], now)
            changed = advance(connection, pipeline_id, now).anything
            pipeline = store.read_pipeline(connection, pipeline_id)
            return bool(back) or changed, pipeline is not None and bool(pipeline.stop_as)

    changed, stopping = despite_conflicts(transaction)
    held = hold_tasks(engine, pipeline_id)
    cancelled = cancel_unfinished(engine, pipeline_id, cancel_tasks) if stopping else 0
    return bool(changed or held or cancelled)
