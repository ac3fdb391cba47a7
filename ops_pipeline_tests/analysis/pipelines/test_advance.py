"""Pipelines on real databases: the transaction that ends a task does what its pipeline is due for."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from ops_pipeline.analysis.pipelines.advance import advance, advance_all
from ops_pipeline.analysis.pipelines.control import submit_pipeline
from ops_pipeline.analysis.pipelines.definition import DefinitionRefused
from ops_pipeline.analysis.pipelines.tables import pipeline_jobs, pipelines
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


def test_a_submitted_pipeline_begins_with_as_many_tasks_as_it_may_have(engine: Engine) -> None:
    pipeline = submitted(engine)
    assert status(engine, pipeline) == "running"
    tasks = tasks_of(engine, pipeline)
    assert [(task["service"], task["target"]) for task in tasks] == [
        ("generation", "gpt/app1"),
        ("generation", "gpt/app2"),
    ]
    assert [task["options"] for task in tasks] == [{"template_slug": "chat"}, {"template_slug": "todo"}]
    assert [(task["step"], task["job_index"], task["run_key"]) for task in tasks] == [
        (0, 0, f"{pipeline}/0/0/1"),
        (0, 1, f"{pipeline}/0/1/1"),
    ]
    assert job_statuses(engine, pipeline) == ["running", "running", "waiting", "waiting"]


def test_a_pipeline_runs_every_job_of_every_step_once_and_in_order(engine: Engine) -> None:
    """The first job of the second stage was lost, and every stage had as many in flight as a process remembered."""
    pipeline = submitted(engine)
    at_once = []
    while ids := unfinished(engine, pipeline):
        at_once.append(len(ids))
        end(engine, ids[:1])
    assert status(engine, pipeline) == "completed"
    assert at_once == [2, 2, 2, 1, 3, 3, 2, 1]
    for step in (0, 1):
        tasks = tasks_of(engine, pipeline, step=step)
        assert [task["job_index"] for task in tasks] == [0, 1, 2, 3]
        assert [task["target"] for task in tasks] == ["gpt/app1", "gpt/app2", "claude/app1", "claude/app2"]
        assert [task["options"]["template_slug"] for task in tasks] == ["chat", "todo"] * 2
    row = row_of(engine, pipeline)
    assert row["created_at"] <= row["started_at"] <= row["completed_at"]


def test_the_next_step_begins_only_when_the_one_before_has_ended_whole(engine: Engine) -> None:
    pipeline = submitted(engine)
    for _ in range(3):
        end(engine, unfinished(engine, pipeline)[:1])
    assert steps_of(engine, pipeline) == ["running", "pending"]
    end(engine, unfinished(engine, pipeline))
    assert steps_of(engine, pipeline) == ["completed", "running"]


def test_a_job_of_several_services_is_a_parent_with_a_child_for_each(engine: Engine) -> None:
    application(engine, "gpt:1")
    tools = {"static-analyzer": ["ruff"]}
    pipeline = submitted(engine, step_over("gpt:1", services=["static-analyzer", "ai-analyzer"], tools=tools))
    (parent,) = tasks_of(engine, pipeline)
    assert parent["service"] == "unified"
    children = [task for task in rows(engine, analysis_tasks) if task["parent_id"] == parent["id"]]
    assert sorted(task["service"] for task in children) == ["ai-analyzer", "static-analyzer"]
    assert {task["pipeline_id"] for task in children} == {pipeline}
    end(engine, [parent["id"]], "partial_success")
    assert status(engine, pipeline) == "partial_success"


def test_what_an_end_is_told_twice_counts_once(engine: Engine) -> None:
    """A repeated callback counted a job twice, and the stage ended before its last job."""
    pipeline = submitted(engine)
    first, second = unfinished(engine, pipeline)
    end(engine, [first])
    for _ in range(3):
        with writing(engine) as connection:
            advance_all(connection, [pipeline, pipeline, None, "no-such-pipeline"], database_now(connection))
    assert job_statuses(engine, pipeline) == ["completed", "running", "running", "waiting"]
    assert second in unfinished(engine, pipeline)


def test_what_the_failure_of_a_critical_step_ends(engine: Engine) -> None:
    pipeline = submitted(engine)
    run_all(engine, pipeline, "failed")
    assert status(engine, pipeline) == "failed"
    assert row_of(engine, pipeline)["error_message"] == "the critical step generation has failed"
    assert steps_of(engine, pipeline) == ["failed", "cancelled"]
    assert {job["reason"] for job in jobs_of_step(engine, pipeline, 1)} == {"not reached: a critical step has failed"}
    assert tasks_of(engine, pipeline, step=1) == []


def test_applications_that_were_not_made_are_skipped_with_a_reason_and_the_others_analysed(engine: Engine) -> None:
    pipeline = submitted(engine)
    first, *_ = unfinished(engine, pipeline)
    end(engine, [first], "failed", error_message="no such model")
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "partial_success"
    assert steps_of(engine, pipeline) == ["partial_success", "partial_success"]
    assert jobs_of_step(engine, pipeline)[0]["reason"] == "no such model"
    skipped, *done = jobs_of_step(engine, pipeline, 1)
    assert (skipped["status"], skipped["reason"]) == ("skipped", "no application: job 0 of generation failed")
    assert [job["status"] for job in done] == ["completed"] * 3


def test_a_step_whose_jobs_are_all_skipped_has_failed(engine: Engine) -> None:
    """With nothing to wait for, a stage without jobs was never ended, or ended as completed."""
    application(engine, "gpt:2", missing_since=_before(engine))
    pipeline = submitted(engine, step_over("gpt:1", "gpt:2"))
    assert status(engine, pipeline) == "failed"
    assert row_of(engine, pipeline)["error_message"] == "no job of any step succeeded"
    first, second = jobs_of_step(engine, pipeline)
    assert first["reason"] == "app missing: gpt/app1 does not stand in generated_applications"
    assert second["reason"].startswith("app missing: gpt/app2 is gone since 20")
    assert tasks_of(engine, pipeline) == []


def _before(engine: Engine) -> object:
    with writing(engine) as connection:
        return database_now(connection)


def test_a_step_that_follows_one_of_which_nothing_was_made_has_nothing_to_do(engine: Engine) -> None:
    pipeline = submitted(engine, GENERATION | {"critical": False}, ANALYSIS)
    run_all(engine, pipeline, "failed")
    assert status(engine, pipeline) == "failed"
    assert job_statuses(engine, pipeline, 1) == ["skipped"] * 4


def test_an_application_that_vanished_under_way_is_skipped_and_one_healthy_version_is_enough(engine: Engine) -> None:
    for target in ("gpt:1", "gpt:2", "gpt:3"):
        application(engine, target)
    application(engine, "gpt:2", version=2, missing_since=_before(engine))
    second = step_over("gpt:1", "gpt:2", "gpt:3", name="again")
    pipeline = submitted(engine, step_over("gpt:1"), second)
    execute(engine, "DELETE FROM generated_applications WHERE app_number = 1")
    execute(engine, "UPDATE generated_applications SET generation_status = 'failed' WHERE app_number = 3")
    run_all(engine, pipeline)
    assert job_statuses(engine, pipeline, 1) == ["skipped", "completed", "skipped"]
    assert jobs_of_step(engine, pipeline, 1)[2]["reason"] == "no application: the generation of gpt/app3 was failed"


def test_tools_that_no_service_has_are_no_run_with_all_of_them(engine: Engine) -> None:
    """A list of tools of which none was known led to a full run."""
    application(engine, "gpt:1")
    execute(engine, """INSERT INTO analyzer_services (service, tools) VALUES ('static-analyzer', '["ruff"]')""")
    tools = {"static-analyzer": ["zap", "nmap"]}
    pipeline = submitted(engine, step_over("gpt:1", tools=tools))
    assert status(engine, pipeline) == "failed"
    assert jobs_of_step(engine, pipeline)[0]["reason"] == "no valid tools: static-analyzer has none of zap, nmap"
    other = submitted(engine, step_over("gpt:1", tools={"static-analyzer": ["zap", "ruff"]}))
    assert status(engine, other) == "running"


def test_the_same_template_twice_makes_two_applications(engine: Engine) -> None:
    steps = [GENERATION | {"models": ["gpt"], "templates": ["chat", "chat"]}, ANALYSIS]
    pipeline = submitted(engine, *steps)
    run_all(engine, pipeline)
    assert [task["target"] for task in tasks_of(engine, pipeline)] == ["gpt/app1", "gpt/app2"] * 2
    assert status(engine, pipeline) == "completed"


def test_new_applications_take_the_next_free_numbers_and_their_rows_say_how_far_they_are(engine: Engine) -> None:
    application(engine, "gpt:7")
    first, second = submitted(engine), submitted(engine)
    assert [job["target"] for job in jobs_of_step(engine, first)] == [
        "gpt/app8",
        "gpt/app9",
        "claude/app1",
        "claude/app2",
    ]
    assert jobs_of_step(engine, second)[0]["target"] == "gpt/app10"
    done, failed = unfinished(engine, first)
    end(engine, [done])
    end(engine, [failed], "failed")
    states = {
        (row["model_slug"], row["app_number"]): row["generation_status"]
        for row in rows(engine, generated_applications)
        if row["app_number"] in {1, 2, 7, 8, 9}
    }
    assert states == {
        ("gpt", 7): "completed",
        ("gpt", 8): "completed",
        ("gpt", 9): "failed",
        ("claude", 1): "running",
        ("claude", 2): "running",
    }


def test_an_application_that_was_looked_for_before_it_was_made_is_not_missing(engine: Engine) -> None:
    """Maintenance looked into the folders while its generation was waiting."""
    pipeline = submitted(engine, GENERATION | {"models": ["gpt"], "templates": ["chat"]}, ANALYSIS)
    execute(engine, "UPDATE generated_applications SET missing_since = created_at, missing_looks = 2")
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"
    (row,) = rows(engine, generated_applications)
    assert (row["generation_status"], row["missing_since"], row["missing_looks"]) == ("completed", None, 0)


def test_a_task_that_was_deleted_is_a_job_that_failed(engine: Engine) -> None:
    pipeline = submitted(engine, GENERATION | {"models": ["gpt"], "templates": ["chat"]})
    execute(engine, "DELETE FROM analysis_tasks")
    with writing(engine) as connection:
        assert advance(connection, pipeline, database_now(connection)).ended == 1
    assert status(engine, pipeline) == "failed"
    assert jobs_of_step(engine, pipeline)[0]["reason"] == "its task is gone"


def test_a_step_that_was_interrupted_goes_on_where_it_was(engine: Engine) -> None:
    """A process that died between two stages left a pipeline that nobody went on with."""
    pipeline = submitted(engine)
    execute(engine, "UPDATE analysis_tasks SET status = 'completed'")
    with writing(engine) as connection:
        done = advance(connection, pipeline, database_now(connection))
    assert (done.ended, done.submitted) == (2, 2)
    with writing(engine) as connection:
        assert not advance(connection, pipeline, database_now(connection)).anything
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"


def test_a_transaction_that_is_lost_after_the_step_began_leaves_nothing_of_it(engine: Engine) -> None:
    pipeline = submitted(engine)
    before = rows(engine, pipeline_jobs)
    connection = engine.connect()
    transaction = connection.begin()
    connection.exec_driver_sql("UPDATE analysis_tasks SET status = 'completed'")
    advance_all(connection, [pipeline], database_now(connection))
    transaction.rollback()
    connection.close()
    assert rows(engine, pipeline_jobs) == before
    assert len(tasks_of(engine, pipeline)) == 2


def test_submitting_again_under_the_same_key_changes_nothing(engine: Engine) -> None:
    first = submit_pipeline(engine, definition(), pipeline_id="nightly-2026-03-10")
    before = rows(engine, pipeline_jobs), rows(engine, analysis_tasks)
    assert submit_pipeline(engine, definition(step_over("gpt:1")), pipeline_id="nightly-2026-03-10") == first
    assert (rows(engine, pipeline_jobs), rows(engine, analysis_tasks)) == before


def test_what_another_program_inserts_begins_at_the_next_look(engine: Engine) -> None:
    application(engine, "gpt:1")
    with writing(engine) as connection:
        connection.execute(pipelines.insert(), [{"id": "mine", "definition": definition(step_over("gpt:1"))}])
    assert status(engine, "mine") == "pending"
    with writing(engine) as connection:
        advance(connection, "mine", database_now(connection))
    assert status(engine, "mine") == "running"
    assert row_of(engine, "mine")["name"] == "nightly"


@pytest.mark.parametrize("wrong", [[], {}, "text", {"name": "a", "steps": [{"name": "b"}]}, 7])
def test_a_definition_that_cannot_be_used_fails_its_pipeline_with_the_reason(engine: Engine, wrong: object) -> None:
    with writing(engine) as connection:
        connection.execute(pipelines.insert(), [{"id": "mine", "definition": wrong}])
        advance(connection, "mine", database_now(connection))
    assert row_of(engine, "mine")["status"] == "failed"
    assert row_of(engine, "mine")["error_message"].startswith("its definition cannot be used: ")


def test_a_definition_that_was_changed_under_way_stops_its_pipeline(engine: Engine) -> None:
    pipeline = submitted(engine)
    with writing(engine) as connection:
        changed = definition(GENERATION | {"name": "other"}, ANALYSIS | {"applications_of": "other"})
        connection.execute(pipelines.update().values(definition=changed))
    run_all(engine, pipeline)
    assert row_of(engine, pipeline)["status"] == "failed"
    assert "its steps are not generation, analysis any more" in row_of(engine, pipeline)["error_message"]


def test_a_wrong_definition_is_refused_when_it_is_submitted_and_nothing_is_written(engine: Engine) -> None:
    with pytest.raises(DefinitionRefused, match=r"steps\.0: give either models"):
        submit_pipeline(engine, definition({"name": "a", "services": "b"}))
    assert rows(engine, pipelines) == []


def test_a_pipeline_that_cannot_be_advanced_does_not_undo_the_end_of_its_tasks(engine: Engine) -> None:
    """One broken row kept a worker from ending any of its tasks."""
    broken, sound = submitted(engine), submitted(engine)
    execute(engine, "DELETE FROM pipeline_steps WHERE pipeline_id = :id", id=broken)
    end(engine, [*unfinished(engine, broken), *unfinished(engine, sound)])
    assert [task["status"] for task in tasks_of(engine, broken)] == ["completed"] * 2
    assert job_statuses(engine, sound) == ["completed", "completed", "running", "running"]


def test_every_transition_and_every_advance_is_an_event(engine: Engine) -> None:
    application(engine, "gpt:1")
    pipeline = submitted(engine, step_over("gpt:1"))
    run_all(engine, pipeline)
    told = [(one["kind"], one["step"], one["after"], one["reason"]) for one in events_of(engine, pipeline)]
    assert told == [
        ("pipeline", "", "running", ""),
        ("step", "check", "running", "1 job"),
        ("advance", "", "", "0 jobs ended, 1 submitted; 0% done"),
        ("step", "check", "completed", "1 completed"),
        ("pipeline", "", "completed", ""),
        ("advance", "", "", "1 job ended, 0 submitted; 100% done"),
    ]
