"""The backstop: what no transaction did is found, told in words, done once, and then nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from ops_pipeline.analysis.pipelines import due
from ops_pipeline.analysis.pipelines.control import cancel, pause, submit_pipeline
from ops_pipeline.analysis.pipelines.due import apply, observe, plan_of
from ops_pipeline.analysis.pipelines.forgetting import find_forgettable
from ops_pipeline.analysis.pipelines.tables import pipeline_events, pipeline_jobs, pipeline_steps, pipelines
from ops_pipeline.analysis.pipelines.telling import mark_told, untold
from ops_pipeline.analysis.tables import analysis_tasks
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.errors import Conflict, Unreachable
from ops_pipeline.reconcile import Plan
from ops_pipeline_tests.analysis.pipelines.lab import (
    ANALYSIS,
    GENERATION,
    definition,
    end,
    events_of,
    job_statuses,
    row_of,
    run_all,
    status,
    submitted,
    tasks_of,
    unfinished,
)
from ops_pipeline_tests.usage.calls import execute, rows


def look(engine: Engine, later: timedelta = timedelta(0)) -> Plan:
    with reading(engine) as connection:
        return plan_of(observe(connection), database_now(connection) + later)


def reasons(engine: Engine) -> list[str]:
    return [change.reason for change in look(engine).changes]


def end_as_cancelled(engine: Engine, ids: list[str], reason: str) -> None:
    end(engine, ids, "cancelled", error_message=reason)


def do_nothing(engine: Engine, ids: list[str], reason: str) -> None:
    """A command that died between the pipeline and its tasks."""


def ended_unseen(engine: Engine, _: str) -> None:
    execute(engine, "UPDATE analysis_tasks SET status = 'completed'")


def deleted(engine: Engine, _: str) -> None:
    execute(engine, "DELETE FROM analysis_tasks")


def came_back(engine: Engine, pipeline: str) -> None:
    end(engine, unfinished(engine, pipeline)[:1], "failed")
    execute(engine, "UPDATE analysis_tasks SET status = 'pending' WHERE status = 'failed'")


def let_go(engine: Engine, pipeline: str) -> None:
    pause(engine, pipeline)
    execute(engine, "UPDATE analysis_tasks SET held_since = NULL")


def held(engine: Engine, _: str) -> None:
    execute(engine, "UPDATE analysis_tasks SET held_since = created_at")


def cancelled_in_part(engine: Engine, pipeline: str) -> None:
    cancel(engine, pipeline, do_nothing)


def overdue(engine: Engine, _: str) -> None:
    execute(engine, "UPDATE pipelines SET deadline_at = created_at")


def emptied(engine: Engine, _: str) -> None:
    execute(engine, "UPDATE pipeline_jobs SET status = 'completed' WHERE step = 0")


def not_submitted(engine: Engine, _: str) -> None:
    execute(engine, "UPDATE pipeline_jobs SET status = 'waiting', task_id = NULL WHERE step = 0 AND job_index = 0")


Harm = Callable[[Engine, str], None]


@pytest.mark.parametrize(
    ("harm", "told", "after"),
    [
        (ended_unseen, "tasks ended unseen", ["completed", "completed", "running", "running"]),
        (deleted, "tasks ended unseen", ["failed", "failed", "running", "running"]),
        (came_back, "tasks came back unseen", ["running", "running", "running", "waiting"]),
        (let_go, "tasks are to be held", ["running", "running", "waiting", "waiting"]),
        (held, "tasks are to be let go", ["running", "running", "waiting", "waiting"]),
        (cancelled_in_part, "tasks are to be cancelled", ["cancelled"] * 4),
        (overdue, "its deadline has passed", ["cancelled"] * 4),
        (emptied, "a step has ended", ["completed"] * 4),
        (not_submitted, "jobs are to be submitted", ["running", "running", "waiting", "waiting"]),
    ],
)
def test_what_was_missed_is_found_and_done_and_the_second_look_finds_nothing(
    engine: Engine, harm: Harm, told: str, after: list[str]
) -> None:
    pipeline = submitted(engine)
    assert look(engine) == Plan((), 1)
    harm(engine, pipeline)
    plan = look(engine)
    assert [(change.key, change.action, change.reason) for change in plan.changes] == [(pipeline, "advance", told)]
    outcome, failures = apply(engine, plan, end_as_cancelled)
    assert (outcome.changed, outcome.skipped, failures) == (1, 0, [])
    assert job_statuses(engine, pipeline) == after
    assert look(engine).changes == ()
    before = rows(engine, analysis_tasks)
    outcome, _ = apply(engine, plan, end_as_cancelled)
    assert (outcome.changed, outcome.skipped) == (0, 1)
    assert rows(engine, analysis_tasks) == before


def test_what_another_program_inserted_is_begun(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(pipelines.insert(), [{"id": "mine", "definition": definition()}])
    assert reasons(engine) == ["it is to begin"]
    apply(engine, look(engine), end_as_cancelled)
    assert (status(engine, "mine"), reasons(engine)) == ("running", [])


def test_deadlines_are_due_to_the_second(engine: Engine) -> None:
    submitted(engine, GENERATION, ANALYSIS, deadline_minutes=30)
    assert look(engine, timedelta(minutes=29)).changes == ()
    assert [change.reason for change in look(engine, timedelta(minutes=30)).changes] == ["its deadline has passed"]


def test_what_is_paused_or_has_ended_is_left_alone(engine: Engine) -> None:
    pause(engine, submitted(engine))
    submit_pipeline(engine, definition(), paused=True)
    run_all(engine, submitted(engine))
    assert look(engine) == Plan((), 2)


def test_one_pipeline_that_cannot_be_advanced_stops_no_other(engine: Engine) -> None:
    broken, sound = submitted(engine), submitted(engine)
    ended_unseen(engine, "")

    def fail(connection: Connection, pipeline_id: str, now: Any) -> Any:
        if pipeline_id == broken:
            raise Conflict("database is locked")
        return whole(connection, pipeline_id, now)

    whole, due.advance = due.advance, fail
    try:
        outcome, failures = apply(engine, look(engine), end_as_cancelled)
    finally:
        due.advance = whole
    assert (outcome.changed, outcome.failed, outcome.status) == (1, 1, "failed")
    assert failures == [f"{broken}: database is locked"]
    assert row_of(engine, broken)["status"] == "running", "a locked database fails no pipeline"
    assert job_statuses(engine, sound)[:2] == ["completed", "completed"]


def test_ended_pipelines_go_after_their_tasks(engine: Engine) -> None:
    """Nobody deleted them, and their jobs grew by thousands a day."""
    old, kept, young, going = (submitted(engine) for _ in range(4))
    for one in (old, kept, young):
        run_all(engine, one)
    for one in (old, kept):
        execute(engine, "UPDATE pipelines SET completed_at = '2026-01-01 00:00:00+00:00' WHERE id = :id", id=one)
    with reading(engine) as connection:
        assert find_forgettable(connection, database_now(connection)) == [], "maintenance has not deleted their tasks"
    execute(engine, "DELETE FROM analysis_tasks WHERE pipeline_id <> :id", id=going)
    execute(engine, """UPDATE pipelines SET labels = '{"legal_hold": true}' WHERE id = :id""", id=kept)
    with reading(engine) as connection:
        now = database_now(connection)
        plan = plan_of(observe(connection), now, find_forgettable(connection, now))
    assert [(change.key, change.action) for change in plan.changes] == [(old, "forget")]
    outcome, failures = apply(engine, plan, end_as_cancelled)
    assert (outcome.scanned, outcome.changed, outcome.skipped, failures) == (2, 1, 0, [])
    for table in (pipelines, pipeline_steps, pipeline_jobs, pipeline_events):
        assert {row.get("pipeline_id", row.get("id")) for row in rows(engine, table)} == {kept, young, going}
    outcome, _ = apply(engine, plan, end_as_cancelled)
    assert (outcome.changed, outcome.skipped) == (0, 1)


def test_a_database_that_is_gone_ends_the_pass(sqlite_engine: Engine) -> None:
    submitted(sqlite_engine)
    ended_unseen(sqlite_engine, "")
    plan = look(sqlite_engine)
    execute(sqlite_engine, "ALTER TABLE pipeline_jobs RENAME TO gone")
    with pytest.raises(Unreachable, match="no such table"):
        apply(sqlite_engine, plan, end_as_cancelled)


def test_advances_between_two_looks_are_told_together_and_transitions_by_themselves(engine: Engine) -> None:
    pipeline = submitted(engine)
    run_all(engine, pipeline)
    with reading(engine) as connection:
        told = untold(connection)
    assert [one.words for one in told] == [
        "pending -> running",
        "generation: pending -> running (4 jobs)",
        "advanced (1 job ended, 0 submitted; 100% done)",
        "generation: running -> completed (4 completed)",
        "analysis: pending -> running (4 jobs)",
        "analysis: running -> completed (4 completed)",
        "running -> completed",
    ]
    assert sum(one.ended for one in told) == sum(one.submitted for one in told) == 8
    assert {one.name for one in told} == {"nightly"}
    mark_told(engine, told)
    with reading(engine) as connection:
        assert untold(connection) == []
    assert {event["kind"] for event in events_of(engine, pipeline)} == {"step", "pipeline"}
    assert len(tasks_of(engine, pipeline)) == 8


def test_an_event_that_is_written_while_others_are_told_is_told_next(engine: Engine) -> None:
    """A cursor on the number of the last event told lost those that committed later with a lower one."""
    first = submitted(engine)
    with reading(engine) as connection:
        told = untold(connection)
    second = submitted(engine)
    mark_told(engine, told)
    with reading(engine) as connection:
        left = untold(connection)
    assert {one.pipeline_id for one in told} == {first}
    assert {one.pipeline_id for one in left} == {second}
    assert len(rows(engine, pipeline_events)) == len(told) - 1 + len(left)
