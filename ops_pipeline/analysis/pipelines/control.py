"""What people and programs tell pipelines: submit, pause, resume, cancel and retry.

What belongs here: the transactions of these commands. Each one locks the pipeline alone, or its tasks alone, so that it
never waits in a circle with a worker, which holds tasks and waits for the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, Engine, select

from ops_pipeline.analysis.pipelines import store
from ops_pipeline.analysis.pipelines.advance import COMMANDED, advance, stop
from ops_pipeline.analysis.pipelines.definition import Definition, parse_definition
from ops_pipeline.analysis.pipelines.rules import Pipeline
from ops_pipeline.analysis.pipelines.tables import pipelines
from ops_pipeline.analysis.tables import CANCELLED, RUNNING, TERMINAL, UNFINISHED, analysis_tasks
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.retry import despite_conflicts

CancelTasks = Callable[[Engine, list[str], str], object]
"""Cancels tasks by id, with their children, for a reason; those that have ended stay as they are."""

Result = TypeVar("Result")


class Refused(Exception):
    """A pipeline cannot be told this; the message says why."""


def submit_pipeline(
    engine: Engine, definition: Definition | Mapping[str, Any], *, pipeline_id: str = "", paused: bool = False
) -> str:
    """Submit a pipeline and begin it.

    Args:
        engine: the operations database.
        definition: what a file of one holds, read or as a mapping.
        pipeline_id: a key of the caller's: submitted again under the same key, nothing is done. Made up when empty.
        paused: begin only when it is resumed.

    Returns:
        The pipeline's id.

    Raises:
        DefinitionRefused: the definition cannot be used.
    """
    valid = definition if isinstance(definition, Definition) else parse_definition(definition)
    name = pipeline_id or f"pipeline_{uuid4().hex[:12]}"

    def submit() -> None:
        with writing(engine) as connection:
            if connection.scalar(select(pipelines.c.id).where(pipelines.c.id == name)) is not None:
                return
            now = database_now(connection)
            row = {
                "id": name,
                "name": valid.name,
                "definition": valid.model_dump(mode="json"),
                "paused_at": now if paused else None,
                "created_at": now,
                "updated_at": now,
            }
            store.insert_pipeline(connection, row)
            advance(connection, name, now)

    despite_conflicts(submit)
    return name


def pause(engine: Engine, pipeline_id: str) -> int:
    """Start nothing more of a pipeline: its running tasks go on, those not yet claimed are held. How many were held.

    Raises:
        Refused: there is no such pipeline, or it has ended.
    """

    def write(connection: Connection, pipeline: Pipeline) -> None:
        now = database_now(connection)
        if not pipeline.paused:
            store.set_pipeline(connection, pipeline_id, now, paused_at=now)
            store.tell(connection, pipeline_id, now, COMMANDED, after="paused")

    _locked(engine, pipeline_id, write)
    return hold_tasks(engine, pipeline_id)


def resume(engine: Engine, pipeline_id: str) -> int:
    """Let a paused pipeline go on. How many held tasks may be claimed again.

    Raises:
        Refused: there is no such pipeline, or it has ended.
    """

    def write(connection: Connection, pipeline: Pipeline) -> None:
        now = database_now(connection)
        if pipeline.paused:
            store.set_pipeline(connection, pipeline_id, now, paused_at=None)
            store.tell(connection, pipeline_id, now, COMMANDED, after="resumed")
            advance(connection, pipeline_id, now)

    _locked(engine, pipeline_id, write)
    return hold_tasks(engine, pipeline_id)


def cancel(engine: Engine, pipeline_id: str, cancel_tasks: CancelTasks, reason: str = "cancelled by command") -> int:
    """Submit nothing more of a pipeline and cancel its tasks; it ends with the last of them. How many tasks there were.

    Raises:
        Refused: there is no such pipeline, or it has ended.
    """

    def write(connection: Connection, pipeline: Pipeline) -> None:
        now = database_now(connection)
        if not pipeline.stop_as:
            stop(connection, pipeline, CANCELLED, reason, now)
            advance(connection, pipeline_id, now)

    _locked(engine, pipeline_id, write)
    return cancel_unfinished(engine, pipeline_id, cancel_tasks)


def cancel_unfinished(engine: Engine, pipeline_id: str, cancel_tasks: CancelTasks) -> int:
    """Cancel the tasks of a pipeline that is to stop; how many there were."""
    tasks = analysis_tasks.c
    mine = select(tasks.id).where(tasks.pipeline_id == pipeline_id, tasks.status.in_(UNFINISHED))
    with reading(engine) as connection:
        asked_before = tasks.cancel_requested_at.is_not(None)
        ids = list(connection.scalars(mine.where(~asked_before, tasks.parent_id.is_(None)).order_by(tasks.id)))
        told = connection.scalar(select(pipelines.c.error_message).where(pipelines.c.id == pipeline_id))
    if ids:
        cancel_tasks(engine, ids, f"its pipeline is stopped: {told}")
    return len(ids)


def hold_tasks(engine: Engine, pipeline_id: str) -> int:
    """Hold the unclaimed tasks of a pipeline while it is paused, and let go of them when it is not."""

    def write() -> int:
        with writing(engine) as connection:
            return store.hold(connection, pipeline_id, database_now(connection))

    return despite_conflicts(write)


def retry(engine: Engine, pipeline_id: str) -> int:
    """Run the jobs of an ended pipeline again that failed, were cancelled or skipped, and no others; how many.

    Raises:
        Refused: there is no such pipeline, it has not ended, or nothing of it failed.
    """

    def write(connection: Connection, pipeline: Pipeline) -> int:
        if pipeline.status not in TERMINAL:
            raise Refused(f"{pipeline_id} is {pipeline.status}: only what has ended is tried again.")
        now = database_now(connection)
        again = store.wait_again(connection, pipeline_id, now)
        if not again and pipeline.steps:
            raise Refused(f"{pipeline_id} is {pipeline.status}: none of its jobs failed, was cancelled or skipped.")
        definition = parse_definition(store.read_definition_of(connection, pipeline_id))
        minutes = definition.deadline_minutes
        store.begin_again(connection, pipeline_id, now, now + timedelta(minutes=minutes) if minutes else None)
        store.tell(connection, pipeline_id, now, COMMANDED, before=pipeline.status, after=RUNNING, reason="retry")
        advance(connection, pipeline_id, now)
        return again

    return _locked(engine, pipeline_id, write, ended=True)


def _locked(
    engine: Engine, pipeline_id: str, write: Callable[[Connection, Pipeline], Result], *, ended: bool = False
) -> Result:
    def transaction() -> Result:
        with writing(engine) as connection:
            there = store.lock(connection, pipeline_id)
            pipeline = store.read_pipeline(connection, pipeline_id) if there else None
            if pipeline is None:
                raise Refused(f"There is no pipeline {pipeline_id}.")
            if pipeline.status in TERMINAL and not ended:
                raise Refused(f"{pipeline_id} has ended: it is {pipeline.status}.")
            return write(connection, pipeline)

    return despite_conflicts(transaction)
