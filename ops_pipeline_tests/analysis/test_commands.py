"""What an operator does to tasks on the command line."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine

from ops_pipeline.analysis.states import failed, succeeded
from ops_pipeline.cli import main
from ops_pipeline.database.engine import writing
from ops_pipeline_tests.analysis.queueing import add, add_row, end, row_of, rows_of, take


def tasks(engine: Engine, *arguments: str) -> Result:
    url = engine.url.render_as_string(hide_password=False)
    return CliRunner().invoke(main, ["tasks", *arguments], env={"DATABASE_URL": url})


def test_a_task_is_submitted_for_one_service(engine: Engine) -> None:
    result = tasks(
        engine, "submit", "acme/app1", "--service", "static", "--priority", "high", "--options", '{"tools": ["ruff"]}'
    )
    assert result.exit_code == 0, result.output
    row = row_of(engine, result.output.strip())
    assert (row["service"], row["target"], row["priority"]) == ("static", "acme/app1", "high")
    assert row["options"] == {"tools": ["ruff"]}


def test_a_task_for_two_services_is_a_parent_and_the_same_key_submits_it_once(engine: Engine) -> None:
    arguments = ("submit", "acme/app1", "--service", "a", "--service", "b", "--run-key", "k", "--legal-hold")
    first, second = tasks(engine, *arguments), tasks(engine, *arguments)
    assert first.output == second.output
    assert len(rows_of(engine)) == 3
    assert row_of(engine, first.output.strip())["labels"] == {"legal_hold": True}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("acme/app1",), "Missing option '--service'"),
        (("", "--service", "a"), "a task needs a target"),
        (("t", "--service", "unified"), "'unified' is none"),
        (("t", "--service", "a", "--service", "a"), "each service is named once, not as in a, a"),
        (("t", "--service", "a", "--timeout", "0"), "a time-out is a number of seconds above 0, not 0.0"),
        (("t", "--service", "a", "--timeout", "nan"), "a time-out is a number of seconds above 0"),
        (("t", "--service", "a", "--options", "{"), "--options is no JSON"),
        (("t", "--service", "a", "--options", "[1]"), "--options is no JSON object, but [1]"),
        (("t", "--service", "a", "--priority", "asap"), "'asap' is not one of 'urgent', 'high', 'low', 'normal'"),
        (("t", "--service", "a" * 501), "names have at most 500 characters"),
    ],
)
def test_what_could_never_be_done_is_refused_with_the_reason(
    sqlite_engine: Engine, arguments: tuple[str, ...], told: str
) -> None:
    result = tasks(sqlite_engine, "submit", *arguments)
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
    assert rows_of(sqlite_engine) == []


def test_the_list_shows_what_runs_then_what_waits_in_turn_then_what_ended(engine: Engine) -> None:
    ended, running = add(engine, priority="urgent"), add(engine, priority="high")
    (first,) = take(engine, batch=1)
    end(engine, failed(first, "no such model\nat all"))
    take(engine, batch=1)
    low, normal = add(engine, priority="low"), add(engine)
    parent = add(engine, services=["a", "b"], priority="low", target="other/app2")
    lines = tasks(engine, "list").output.splitlines()
    assert [line.split()[0] for line in lines[:2]] == [running, normal]
    assert {line.split()[0] for line in lines[2:4]} == {low, parent}
    assert lines[4].split()[:2] == [ended, "failed"]
    assert lines[4].endswith("no such model")
    assert len(lines) == 5
    assert tasks(engine, "list", "--status", "failed").output.split()[0] == ended
    assert tasks(engine, "list", "--target", "other/app2").output.split()[0] == parent
    assert len(tasks(engine, "list", "--limit", "2").output.splitlines()) == 2
    assert tasks(engine, "list", "--service", "nobody").output == "There is no such task.\n"


def test_a_row_that_cannot_be_read_is_listed_and_shown(sqlite_engine: Engine) -> None:
    with writing(sqlite_engine) as connection:
        connection.exec_driver_sql(
            "INSERT INTO analysis_tasks (id, service, target, options, created_at, status)"
            " VALUES ('odd', 's', 't', '{no', 'yesterday', 'on holiday')"
        )
    assert "odd" in tasks(sqlite_engine, "list").output
    shown = tasks(sqlite_engine, "show", "odd").output
    assert "{no" in shown
    assert "yesterday" in shown


def test_a_task_is_shown_with_children_and_events(engine: Engine) -> None:
    parent = add(engine, services=["a", "b"])
    end(engine, *(succeeded(task, {"summary": {"total_findings": 2}}) for task in take(engine)))
    shown = tasks(engine, "show", parent).output
    assert "children:" in shown
    assert shown.count("completed") >= 3
    assert "aggregated  running -> completed" in shown
    assert tasks(engine, "show", "nobody").output == "Error: There is no task nobody.\n"


def test_cancel_says_what_becomes_of_each_task(engine: Engine) -> None:
    waiting, running = add(engine), add(engine, priority="high")
    take(engine, batch=1)
    add_row(engine, id="done", status="completed")
    result = tasks(engine, "cancel", waiting, running, "done", "nobody", "--reason", "not needed")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"{waiting} is cancelled.",
        f"{running} is running: its worker is asked to stop.",
        "Error: done is completed: it cannot be cancelled.",
        "nobody is no task: it cannot be cancelled.",
    ]
    assert row_of(engine, waiting)["error_message"] == "cancelled by command: not needed"


def test_retry_brings_a_failed_task_back(engine: Engine) -> None:
    task = add(engine)
    end(engine, failed(take(engine)[0], "no"))
    assert tasks(engine, "retry", task).output == f"{task} waits for its turn.\n"
    assert row_of(engine, task)["status"] == "pending"
    refused = tasks(engine, "retry", task)
    assert (refused.exit_code, refused.output) == (1, f"Error: {task} is pending: it cannot be tried again.\n")


def test_a_database_without_tables_is_told_in_one_line(tmp_path: Any) -> None:
    result = CliRunner().invoke(main, ["tasks", "list"], env={"DATABASE_URL": f"sqlite:///{tmp_path / 'new.db'}"})
    assert result.exit_code == 1
    assert "Run `ops-pipeline migrate`" in result.output
