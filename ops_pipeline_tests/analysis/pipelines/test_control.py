"""Pausing, resuming, cancelling and retrying pipelines, and their deadline."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from ops_pipeline.analysis.pipelines.advance import advance, take_back_all
from ops_pipeline.analysis.pipelines.control import (
    Refused,
    cancel,
    cancel_unfinished,
    hold_tasks,
    pause,
    resume,
    retry,
    submit_pipeline,
)
from ops_pipeline.analysis.pipelines.tables import pipelines
from ops_pipeline.analysis.tables import analysis_tasks, generated_applications
from ops_pipeline.database.engine import database_now, writing
from ops_pipeline_tests.analysis.pipelines.lab import (
    ANALYSIS,
    GENERATION,
    application,
    definition,
    end,
    events_of,
    job_statuses,
    jobs_of_step,
    row_of,
    run_all,
    status,
    step_over,
    steps_of,
    submitted,
    tasks_of,
    unfinished,
)
from ops_pipeline_tests.usage.calls import execute, rows


def held(engine: Engine) -> list[bool]:
    return [task["held_since"] is not None for task in rows(engine, analysis_tasks)]


def end_as_cancelled(engine: Engine, ids: list[str], reason: str) -> None:
    end(engine, ids, "cancelled", error_message=reason)


def ask_only(engine: Engine, ids: list[str], _: str) -> None:
    """Running tasks end later: their worker must notice."""
    for one in ids:
        execute(
            engine, "UPDATE analysis_tasks SET cancel_requested_at = '2026-03-10 12:00:00+00' WHERE id = :id", id=one
        )


def test_a_paused_pipeline_starts_nothing_and_its_tasks_are_held(engine: Engine) -> None:
    """Pausing only changed a word: tasks went on being claimed."""
    pipeline = submitted(engine)
    first, second = unfinished(engine, pipeline)
    assert pause(engine, pipeline) == 2
    assert held(engine) == [True, True]
    end(engine, [first])
    assert job_statuses(engine, pipeline) == ["completed", "running", "waiting", "waiting"]
    assert unfinished(engine, pipeline) == [second]
    assert resume(engine, pipeline) == 1
    assert job_statuses(engine, pipeline) == ["completed", "running", "running", "waiting"]
    assert [task["held_since"] for task in tasks_of(engine, pipeline) if task["status"] == "pending"] == [None, None]
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"


def test_pausing_and_resuming_again_changes_nothing(engine: Engine) -> None:
    pipeline = submitted(engine)
    assert (pause(engine, pipeline), pause(engine, pipeline)) == (2, 0)
    assert (resume(engine, pipeline), resume(engine, pipeline)) == (2, 0)
    commands = [event["after"] for event in events_of(engine, pipeline) if event["kind"] == "command"]
    assert commands == ["paused", "resumed"]


def test_a_pipeline_may_be_submitted_paused(engine: Engine) -> None:
    pipeline = submit_pipeline(engine, definition(), paused=True)
    assert (status(engine, pipeline), tasks_of(engine, pipeline)) == ("pending", [])
    resume(engine, pipeline)
    assert (status(engine, pipeline), len(tasks_of(engine, pipeline))) == ("running", 2)


def test_a_pipeline_whose_last_task_ends_while_it_is_paused_has_ended(engine: Engine) -> None:
    application(engine, "gpt:1")
    pipeline = submitted(engine, step_over("gpt:1"))
    pause(engine, pipeline)
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"


def test_cancelling_submits_nothing_more_and_cancels_what_there_is(engine: Engine) -> None:
    pipeline = submitted(engine)
    done, _ = unfinished(engine, pipeline)
    end(engine, [done])
    assert cancel(engine, pipeline, end_as_cancelled, "not needed any more") == 2
    assert status(engine, pipeline) == "cancelled"
    assert row_of(engine, pipeline)["error_message"] == "not needed any more"
    assert job_statuses(engine, pipeline) == ["completed", "cancelled", "cancelled", "cancelled"]
    assert steps_of(engine, pipeline) == ["partial_success", "cancelled"]
    states = [row["generation_status"] for row in rows(engine, generated_applications)]
    assert sorted(states) == ["cancelled"] * 3 + ["completed"]


def test_a_cancelled_pipeline_ends_with_the_last_of_its_running_tasks(engine: Engine) -> None:
    pipeline = submitted(engine)
    first, second = unfinished(engine, pipeline)
    assert cancel(engine, pipeline, ask_only) == 2
    assert status(engine, pipeline) == "running"
    assert cancel(engine, pipeline, ask_only) == 0, "they were asked already"
    end(engine, [first], "cancelled")
    assert status(engine, pipeline) == "running"
    end(engine, [second], "completed")
    assert status(engine, pipeline) == "cancelled"


def test_what_has_ended_or_never_was_cannot_be_told_anything(engine: Engine) -> None:
    """A completed pipeline could be cancelled, and was shown as if nothing of it had been done."""
    pipeline = submitted(engine)
    run_all(engine, pipeline)
    before = row_of(engine, pipeline)
    for command in (pause, resume, lambda *given: cancel(*given, end_as_cancelled)):
        with pytest.raises(Refused, match="has ended: it is completed"):
            command(engine, pipeline)
        with pytest.raises(Refused, match="There is no pipeline pipeline_of_nobody"):
            command(engine, "pipeline_of_nobody")
    with pytest.raises(Refused, match="none of its jobs failed, was cancelled or skipped"):
        retry(engine, pipeline)
    assert row_of(engine, pipeline) == before


def test_only_what_has_ended_is_tried_again(engine: Engine) -> None:
    pipeline = submitted(engine)
    with pytest.raises(Refused, match="is running: only what has ended is tried again"):
        retry(engine, pipeline)


def test_a_retry_runs_what_failed_and_nothing_else_under_new_keys(engine: Engine) -> None:
    """Trying a pipeline again ran all of it again, or nothing."""
    pipeline = submitted(engine)
    first, *_ = unfinished(engine, pipeline)
    end(engine, [first], "failed")
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "partial_success"
    before = {task["id"]: task for task in tasks_of(engine, pipeline)}
    assert retry(engine, pipeline) == 2, "the job that failed, and the one that had no application"
    assert (status(engine, pipeline), steps_of(engine, pipeline)) == ("running", ["running", "pending"])
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"
    after = {task["id"]: task for task in tasks_of(engine, pipeline)}
    new = [after[one]["run_key"] for one in after if one not in before]
    assert sorted(new) == [f"{pipeline}/0/0/2", f"{pipeline}/1/0/2"]
    assert {one: after[one] for one in before} == before
    assert {row["generation_status"] for row in rows(engine, generated_applications)} == {"completed"}
    assert row_of(engine, pipeline)["attempt"] == 2


def test_a_retry_resumes_at_the_critical_step_that_failed(engine: Engine) -> None:
    pipeline = submitted(engine)
    run_all(engine, pipeline, "failed")
    assert status(engine, pipeline) == "failed"
    assert retry(engine, pipeline) == 8
    assert row_of(engine, pipeline)["error_message"] == ""
    run_all(engine, pipeline)
    assert (status(engine, pipeline), steps_of(engine, pipeline)) == ("completed", ["completed", "completed"])
    targets = [task["target"] for task in tasks_of(engine, pipeline, step=0)]
    assert targets[::2] == targets[1::2], "each attempt makes the same application"


def test_a_cancelled_pipeline_can_be_taken_up_again(engine: Engine) -> None:
    pipeline = submitted(engine)
    cancel(engine, pipeline, end_as_cancelled)
    retry(engine, pipeline)
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"


def test_a_retry_of_a_definition_that_was_refused_begins_with_the_corrected_one(engine: Engine) -> None:
    application(engine, "gpt:1")
    execute(engine, "INSERT INTO pipelines (id, definition) VALUES ('mine', '[]')")
    with writing(engine) as connection:
        advance(connection, "mine", database_now(connection))
    assert row_of(engine, "mine")["status"] == "failed"
    with writing(engine) as connection:
        connection.execute(pipelines.update().values(definition=definition(step_over("gpt:1"))))
    retry(engine, "mine")
    run_all(engine, "mine")
    assert status(engine, "mine") == "completed"


def test_its_deadline_stops_a_pipeline_and_it_ends_as_failed(engine: Engine) -> None:
    pipeline = submitted(engine, GENERATION, ANALYSIS, deadline_minutes=30)
    row = row_of(engine, pipeline)
    assert row["deadline_at"] - row["started_at"] == timedelta(minutes=30)
    with writing(engine) as connection:
        assert not advance(connection, pipeline, row["deadline_at"] - timedelta(microseconds=1)).anything
    with writing(engine) as connection:
        assert advance(connection, pipeline, row["deadline_at"]).anything
    assert status(engine, pipeline) == "running"
    assert job_statuses(engine, pipeline) == ["running", "running", "cancelled", "cancelled"]
    assert cancel_unfinished(engine, pipeline, end_as_cancelled) == 2
    assert status(engine, pipeline) == "failed"
    assert row_of(engine, pipeline)["error_message"].startswith("its deadline passed at 20")


def test_a_retry_after_the_deadline_has_the_whole_time_again(engine: Engine) -> None:
    pipeline = submitted(engine, GENERATION, ANALYSIS, deadline_minutes=30)
    first = row_of(engine, pipeline)["deadline_at"]
    with writing(engine) as connection:
        advance(connection, pipeline, first)
    cancel_unfinished(engine, pipeline, end_as_cancelled)
    retry(engine, pipeline)
    assert row_of(engine, pipeline)["deadline_at"] > first
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"


def test_a_task_that_comes_back_after_it_failed_makes_its_job_run_again(engine: Engine) -> None:
    pipeline = submitted(engine)
    first, second = unfinished(engine, pipeline)
    end(engine, [first], "failed")
    assert job_statuses(engine, pipeline) == ["failed", "running", "running", "waiting"]
    execute(engine, "UPDATE analysis_tasks SET status = 'pending' WHERE id = :id", id=first)
    with writing(engine) as connection:
        take_back_all(connection, [pipeline, None, "no-such-pipeline"], database_now(connection))
    assert job_statuses(engine, pipeline) == ["running", "running", "running", "waiting"]
    end(engine, [second])
    assert job_statuses(engine, pipeline) == ["running", "completed", "running", "waiting"], "two are its limit"
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"


def test_a_task_that_comes_back_when_its_step_has_ended_changes_nothing_of_it(engine: Engine) -> None:
    pipeline = submitted(engine)
    first, *_ = unfinished(engine, pipeline)
    end(engine, [first], "failed")
    run_all(engine, pipeline)
    before = jobs_of_step(engine, pipeline), status(engine, pipeline)
    execute(engine, "UPDATE analysis_tasks SET status = 'pending' WHERE id = :id", id=first)
    with writing(engine) as connection:
        take_back_all(connection, [pipeline], database_now(connection))
    end(engine, [first])
    assert (jobs_of_step(engine, pipeline), status(engine, pipeline)) == before


def test_tasks_that_were_submitted_while_a_pause_was_written_are_held_by_the_next_look(engine: Engine) -> None:
    pipeline = submitted(engine)
    pause(engine, pipeline)
    execute(engine, "UPDATE analysis_tasks SET held_since = NULL")
    assert hold_tasks(engine, pipeline) == 2
    assert held(engine) == [True, True]
