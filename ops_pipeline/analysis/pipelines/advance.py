"""Advancing pipelines: the transaction that ends a task also does what its pipeline is due for.

    with writing(engine) as connection:
        … end tasks …
        advance_all(connection, pipeline_ids_of_these_tasks, now)

A pipeline's row is locked, its running jobs take in what became of their tasks, and what the rules ask for is done
until there is nothing but to wait. Two tasks that end together do this one after the other, so that the second one sees
what the first one did: every step begins once. Done again, nothing is left to do.

What belongs here: the sequence. What does not: decisions (`rules`, `starting`), and statements (`store`, `submitting`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from ops_pipeline.analysis.pipelines import store
from ops_pipeline.analysis.pipelines.definition import Definition, DefinitionRefused, parse_definition
from ops_pipeline.analysis.pipelines.rules import (
    SKIPPED,
    Action,
    End,
    EndStep,
    Lay,
    Pipeline,
    StartStep,
    Stop,
    Submit,
    Withdraw,
    next_action,
    progress_of,
)
from ops_pipeline.analysis.pipelines.starting import prepare
from ops_pipeline.analysis.pipelines.submitting import submit_jobs
from ops_pipeline.analysis.submitting import SubmissionRefused
from ops_pipeline.analysis.tables import FAILED, RUNNING
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.reconcile import counted

MOST_ACTIONS = 1_000
"""A pipeline of 50 steps takes less than 300; more means that the rules go round in a circle."""
ADVANCED, STEP, PIPELINE, COMMANDED = "advance", "step", "pipeline", "command"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Advance:
    """What one advance did.

    Attributes:
        ended: jobs that took in the end of their task.
        submitted: jobs submitted as tasks.
        actions: how many things were done in all.
        status: of the pipeline afterwards; '' when there is none.
    """

    ended: int = 0
    submitted: int = 0
    actions: int = 0
    status: str = ""

    @property
    def anything(self) -> bool:
        """Whether anything changed."""
        return bool(self.ended or self.actions)


def advance_all(connection: Connection, pipeline_ids: Iterable[str | None], now: datetime) -> None:
    """Advance the pipelines of tasks that ended, in the transaction that ends them.

    A pipeline that cannot be advanced stays as it was, for the next look: it must not undo the end of the tasks.

    Raises:
        DatabaseProblem: the whole transaction is lost.
    """
    # In this order, so that two transactions never wait for each other's pipelines in a circle.
    for pipeline_id in sorted({one for one in pipeline_ids if one}):
        try:
            with connection.begin_nested():
                advance(connection, pipeline_id, now)
        except DatabaseProblem:
            raise
        except Exception:
            log.exception("The pipeline %s could not be advanced; advance_pipelines will try again.", pipeline_id)


def take_back_all(connection: Connection, pipeline_ids: Iterable[str | None], now: datetime) -> int:
    """Let the jobs of tasks that came back after they had failed count as running again, while their step runs.

    Returns:
        How many there were.
    """
    wanted = sorted({one for one in pipeline_ids if one})
    return sum(store.take_back(connection, one, now) for one in wanted if store.lock(connection, one))


def advance(connection: Connection, pipeline_id: str, now: datetime) -> Advance:
    """Do what one pipeline is due for; nothing when there is none, or it waits."""
    if not store.lock(connection, pipeline_id):
        return Advance()
    done = Advance(ended=store.take_in(connection, pipeline_id, now))
    while (pipeline := store.read_pipeline(connection, pipeline_id)) is not None:
        action = next_action(pipeline, now)
        done = replace(done, status=pipeline.status)
        if action is None:
            break
        done = replace(done, actions=done.actions + 1)
        if done.actions > MOST_ACTIONS:
            raise RuntimeError(f"the rules of {pipeline_id} come to no end; the last action was {action}")
        done = replace(done, submitted=done.submitted + _do(connection, pipeline, action, now))
    if pipeline is not None and (done.ended or done.submitted):
        share = progress_of(pipeline.steps).share
        told = f"{counted(done.ended, 'job')} ended, {done.submitted} submitted; {share:.0%} done"
        store.tell(connection, pipeline_id, now, ADVANCED, reason=told, ended=done.ended, submitted=done.submitted)
    return done


def _do(connection: Connection, pipeline: Pipeline, action: Action, now: datetime) -> int:
    """Do one thing; how many jobs it submitted."""
    try:
        match action:
            case Lay():
                _lay(connection, pipeline, now)
            case StartStep(position):
                _start_step(connection, pipeline, position, now)
            case Submit(position):
                step = _definition(connection, pipeline).steps[position]
                return submit_jobs(connection, pipeline.id, step, action, now)
            case EndStep(position, status):
                _end_step(connection, pipeline, position, status, now)
            case Withdraw():
                _withdraw(connection, pipeline, now)
            case Stop(status, reason):
                stop(connection, pipeline, status, reason, now)
            case End(status, reason):
                _end(connection, pipeline, status, reason, now)
    except (DefinitionRefused, SubmissionRefused) as refusal:
        # Of another program's INSERT, or changed under way: nothing can be done with it.
        stop(connection, pipeline, FAILED, f"its definition cannot be used: {refusal}", now)
    return 0


def _definition(connection: Connection, pipeline: Pipeline) -> Definition:
    definition = parse_definition(store.read_definition_of(connection, pipeline.id))
    names = [step.name for step in pipeline.steps]
    if names and names != [step.name for step in definition.steps]:
        raise DefinitionRefused(f"its steps are not {', '.join(names)} any more")
    return definition


def _lay(connection: Connection, pipeline: Pipeline, now: datetime) -> None:
    definition = _definition(connection, pipeline)
    store.lay(connection, pipeline.id, definition, now)
    minutes = definition.deadline_minutes
    store.set_pipeline(
        connection,
        pipeline.id,
        now,
        name=definition.name,
        status=RUNNING,
        started_at=now,
        deadline_at=now + timedelta(minutes=minutes) if minutes else None,
    )
    store.tell(connection, pipeline.id, now, PIPELINE, before=pipeline.status, after=RUNNING)


def _start_step(connection: Connection, pipeline: Pipeline, position: int, now: datetime) -> None:
    decided = prepare(connection, pipeline.id, _definition(connection, pipeline), position)
    store.set_jobs(connection, pipeline.id, position, decided)
    store.set_step(connection, pipeline.id, position, status=RUNNING, started_at=now)
    skipped = [str(one["reason"]) for one in decided if one["status"] == SKIPPED]
    told = f"{len(skipped)} of {len(decided)} jobs skipped: {skipped[0]}" if skipped else counted(len(decided), "job")
    name = pipeline.steps[position].name
    store.tell(connection, pipeline.id, now, STEP, step=name, before="pending", after=RUNNING, reason=told)


def _end_step(connection: Connection, pipeline: Pipeline, position: int, status: str, now: datetime) -> None:
    step = pipeline.steps[position]
    store.set_step(connection, pipeline.id, position, status=status, completed_at=now)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(step.jobs.items()))
    store.tell(connection, pipeline.id, now, STEP, step=step.name, before=step.status, after=status, reason=counted)


def _withdraw(connection: Connection, pipeline: Pipeline, now: datetime) -> None:
    told = f"the pipeline was {pipeline.stop_as}" if pipeline.stop_as else "not reached: a critical step has failed"
    store.withdraw(connection, pipeline.id, told, now)


def stop(connection: Connection, pipeline: Pipeline, status: str, reason: str, now: datetime) -> None:
    """Let a pipeline that is locked submit nothing more, and end with a status when its last task has ended."""
    store.set_pipeline(connection, pipeline.id, now, stop_as=status, error_message=reason)
    store.tell(connection, pipeline.id, now, PIPELINE, before=pipeline.status, after=pipeline.status, reason=reason)


def _end(connection: Connection, pipeline: Pipeline, status: str, reason: str, now: datetime) -> None:
    values = {"error_message": reason} if reason else {}
    store.set_pipeline(connection, pipeline.id, now, status=status, completed_at=now, **values)
    store.tell(connection, pipeline.id, now, PIPELINE, before=pipeline.status, after=status, reason=reason)
