"""What becomes of attempts: results, failures, waits for a service, and what came too late."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Engine, select

from ops_pipeline.analysis.ending import finish
from ops_pipeline.analysis.events import read_events
from ops_pipeline.analysis.leases import heartbeat
from ops_pipeline.analysis.states import TIMEOUT, TRANSIENT, failed, handed_back, succeeded, unavailable
from ops_pipeline.analysis.tables import analyzer_services
from ops_pipeline.database.engine import reading, writing
from ops_pipeline_tests.analysis.queueing import (
    NOON,
    POLICY,
    add,
    after,
    change,
    children_of,
    end,
    row_of,
    take,
)


def breaker(engine: Engine, service: str = "static") -> tuple[int, object]:
    with reading(engine) as connection:
        columns = (analyzer_services.c.failures, analyzer_services.c.open_until)
        row = connection.execute(select(*columns).where(analyzer_services.c.service == service)).one_or_none()
    return (row[0], row[1]) if row else (0, None)


def test_a_result_ends_its_task(engine: Engine) -> None:
    task = add(engine)
    (claimed,) = take(engine)
    assert end(engine, succeeded(claimed, {"summary": {"total_findings": 3}}), now=after(9)) == {task: "completed"}
    row = row_of(engine, task)
    assert (row["status"], row["completed_at"], row["lease_owner"]) == ("completed", after(9), None)
    assert (row["result_summary"], row["error_class"]) == ({"summary": {"total_findings": 3}}, "")


def test_a_part_of_a_result_is_told_as_such(engine: Engine) -> None:
    task = add(engine)
    (claimed,) = take(engine)
    assert end(engine, succeeded(claimed, partly=True)) == {task: "partial_success"}


@pytest.mark.parametrize("error_class", ["permanent", TIMEOUT])
def test_a_failure_is_final_and_says_why(engine: Engine, error_class: str) -> None:
    task = add(engine)
    (claimed,) = take(engine)
    assert end(engine, failed(claimed, "no such model", error_class)) == {task: "failed"}
    row = row_of(engine, task)
    assert (row["error_class"], row["error_message"], row["completed_at"]) == (error_class, "no such model", NOON)
    assert take(engine, now=after(1e6)) == []


def test_whoever_lost_a_task_cannot_end_it(engine: Engine) -> None:
    """A worker that woke up after its task had been given to another overwrote what that one had found."""
    task = add(engine)
    (old,) = take(engine, "worker-1")
    change(engine, task, status="pending", lease_owner=None)
    (new,) = take(engine, "worker-2")
    assert end(engine, succeeded(old, {"by": "old"})) == {}
    assert end(engine, succeeded(new, {"by": "new"}), owner="worker-2") == {task: "completed"}
    assert end(engine, failed(old, "late")) == {}
    assert end(engine, failed(new, "again"), owner="worker-2") == {}
    assert row_of(engine, task)["result_summary"] == {"by": "new"}


def test_the_same_worker_with_an_earlier_attempt_cannot_end_it_either(engine: Engine) -> None:
    task = add(engine)
    (first,) = take(engine)
    change(engine, task, status="pending")
    (second,) = take(engine)
    assert (first.attempt, second.attempt) == (1, 2)
    assert end(engine, succeeded(first)) == {}
    assert end(engine, succeeded(second)) == {task: "completed"}


def test_waits_for_a_service_are_30_60_and_120_seconds_and_cost_no_attempt(engine: Engine) -> None:
    task = add(engine)
    moment = 0.0
    for wait in (30, 60, 120):
        (claimed,) = take(engine, now=after(moment))
        assert end(engine, unavailable(claimed, "connection refused"), now=after(moment)) == {task: "pending"}
        row = row_of(engine, task)
        assert (row["attempt"], row["next_attempt_at"]) == (0, after(moment + wait))
        assert row["error_message"] == "connection refused"
        change_nothing_before = after(moment + wait - 0.01)
        assert take(engine, now=change_nothing_before, policy=replace(POLICY, breaker_failures=99)) == []
        moment += wait
        # The breaker is another matter, see below.
        close(engine)
    (claimed,) = take(engine, now=after(moment))
    assert end(engine, unavailable(claimed, "connection refused"), now=after(moment)) == {task: "failed"}
    row = row_of(engine, task)
    assert (row["error_class"], row["attempt"], row["preflight_retries"]) == (TRANSIENT, 1, 3)
    assert row["error_message"] == "connection refused (after 3 waits for the service static)"


def close(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(analyzer_services.update().values(failures=0, open_until=None))


def test_a_task_that_is_handed_back_can_be_claimed_at_once(engine: Engine) -> None:
    task = add(engine)
    (claimed,) = take(engine)
    assert end(engine, handed_back(claimed, "the run was terminated")) == {task: "pending"}
    assert row_of(engine, task)["attempt"] == 0
    assert breaker(engine) == (0, None)
    assert [one.id for one in take(engine, "worker-2")] == [task]


def test_a_service_that_fails_three_times_is_left_alone_and_then_tried_by_one_task(engine: Engine) -> None:
    policy = replace(POLICY, preflight_retries=99)
    for second in range(6):
        add(engine, now=after(second - 10))
    other = add(engine, services=["other"])
    claimed = take(engine, batch=3, services=["static"])
    end(engine, *(unavailable(task, "refused") for task in claimed), policy=policy)
    assert breaker(engine) == (3, after(300))
    assert [task.id for task in take(engine, now=after(299))] == [other]
    # Half open: one at a time.
    (probe,) = take(engine, now=after(300))
    assert take(engine, "worker-2", now=after(300)) == []
    end(engine, unavailable(probe, "still refused"), now=after(310), policy=policy)
    assert breaker(engine) == (4, after(610))
    assert take(engine, now=after(609)) == []
    (probe,) = take(engine, now=after(610))
    end(engine, succeeded(probe), now=after(611))
    assert breaker(engine) == (0, None)
    assert len(take(engine, now=after(700))) == 5


def test_a_permanent_failure_says_nothing_against_the_service(engine: Engine) -> None:
    for _ in range(5):
        add(engine)
    end(engine, *(failed(task, "bad request") for task in take(engine)))
    assert breaker(engine) == (0, None)


def test_a_result_after_the_cancellation_was_asked_for_is_dropped(engine: Engine) -> None:
    task = add(engine)
    (claimed,) = take(engine)
    change(engine, task, cancel_requested_at=NOON, error_message="by ann: not needed")
    assert end(engine, succeeded(claimed, {"found": 1}), now=after(5)) == {task: "cancelled"}
    row = row_of(engine, task)
    assert (row["status"], row["completed_at"], row["result_summary"]) == ("cancelled", after(5), None)
    assert row["error_message"] == "by ann: not needed"


def test_a_wait_for_a_service_ends_with_the_cancellation(engine: Engine) -> None:
    task = add(engine)
    (claimed,) = take(engine)
    change(engine, task, cancel_requested_at=NOON)
    assert end(engine, unavailable(claimed, "refused")) == {task: "cancelled"}
    assert row_of(engine, task)["completed_at"] == NOON


def test_what_is_no_json_in_a_result_does_not_stop_the_others(engine: Engine) -> None:
    """A NaN among a tool's figures rolled back the results of the whole batch."""
    odd, good = add(engine), add(engine)
    tasks = {task.id: task for task in take(engine)}
    summary = {"score": math.nan, "text": "a\0b\\u0000c", "half": "\ud800", "most": math.inf}
    end(engine, succeeded(tasks[odd], summary), failed(tasks[good], "with \0 in it"))
    assert row_of(engine, odd)["result_summary"] == {
        "score": None,
        "text": "a\N{REPLACEMENT CHARACTER}b\\u0000c",
        "half": "?",
        "most": None,
    }
    assert row_of(engine, good)["error_message"] == "with \N{REPLACEMENT CHARACTER} in it"


def test_every_transition_is_an_event(engine: Engine) -> None:
    task = add(engine)
    (claimed,) = take(engine)
    end(engine, unavailable(claimed, "refused"), now=after(1))
    (claimed,) = take(engine, "worker-2", now=after(60))
    end(engine, succeeded(claimed), owner="worker-2", now=after(61))
    with reading(engine) as connection:
        events = read_events(connection, task)
    told = [(one["kind"], one["owner"], one["attempt"], one["before"], one["after"], one["reason"]) for one in events]
    assert told == [
        ("submitted", "", 0, "", "pending", ""),
        ("claimed", "worker-1", 1, "pending", "running", ""),
        ("postponed", "worker-1", 0, "running", "pending", "refused"),
        ("claimed", "worker-2", 1, "pending", "running", "refused"),
        ("ended", "worker-2", 1, "running", "completed", ""),
    ]


def family(engine: Engine, *ends: str) -> str:
    """A parent whose children end so; returns its id."""
    services = [f"s{number}" for number in range(len(ends))]
    parent = add(engine, services=services)
    for task in sorted(take(engine), key=lambda task: task.service):
        how = ends[int(task.service[1:])]
        if how == "cancelled":
            change(engine, task.id, cancel_requested_at=NOON)
        result = failed(task, "no") if how == "failed" else succeeded(task, partly=how == "partial_success")
        end(engine, result, now=after(int(task.service[1:])))
    return parent


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        (("completed", "completed"), "completed"),
        (("completed", "failed"), "partial_success"),
        (("completed", "cancelled"), "partial_success"),
        (("completed", "partial_success"), "partial_success"),
        (("partial_success", "partial_success"), "partial_success"),
        (("failed", "partial_success"), "partial_success"),
        (("failed", "failed", "failed"), "failed"),
        (("failed", "cancelled"), "failed"),
        (("cancelled", "cancelled"), "cancelled"),
    ],
)
def test_a_parent_ends_with_the_last_of_its_children(engine: Engine, ends: tuple[str, ...], status: str) -> None:
    parent = family(engine, *ends)
    row = row_of(engine, parent)
    assert (row["status"], row["completed_at"]) == (status, after(len(ends) - 1))
    assert {name: one["status"] for name, one in row["result_summary"]["services"].items()} == {
        f"s{number}": how for number, how in enumerate(ends)
    }


def test_a_parent_sums_the_findings_of_its_children_and_names_what_failed(engine: Engine) -> None:
    parent = add(engine, services=["a", "b", "c"])
    tasks = {task.service: task for task in take(engine)}
    end(engine, succeeded(tasks["a"], {"summary": {"total_findings": 3}}))
    end(engine, succeeded(tasks["b"], {"summary": {"total_findings": 4}}))
    assert row_of(engine, parent)["status"] == "running"
    end(engine, failed(tasks["c"], "no such model"))
    row = row_of(engine, parent)
    assert row["result_summary"]["summary"]["total_findings"] == 7
    assert row["error_message"] == "c: no such model"


def test_siblings_that_end_in_one_batch_end_their_parent_once(engine: Engine) -> None:
    parent = add(engine, services=["a", "b", "c"])
    end(engine, *(succeeded(task) for task in take(engine)))
    assert row_of(engine, parent)["status"] == "completed"
    with reading(engine) as connection:
        assert [one["kind"] for one in read_events(connection, parent)] == ["submitted", "aggregated"]


def test_two_siblings_that_end_at_the_same_time_end_their_parent_once(postgres_engine: Engine) -> None:
    """Each of two transactions saw the other's child still running, and the parent ran for ever."""
    parent = add(postgres_engine, services=["a", "b"])
    first, second = take(postgres_engine)

    def finish_second() -> dict[str, str]:
        return end(postgres_engine, succeeded(second))

    with ThreadPoolExecutor(1) as pool, writing(postgres_engine) as connection:
        finish(connection, "worker-1", [succeeded(first)], policy=POLICY, now=NOON, jitter=lambda: 0.0)
        other = pool.submit(finish_second)
        until_waiting(postgres_engine)
        connection.commit()
        assert other.result(30) == {second.id: "completed"}
    assert row_of(postgres_engine, parent)["status"] == "completed"
    with reading(postgres_engine) as connection:
        assert [one["kind"] for one in read_events(connection, parent)].count("aggregated") == 1


def until_waiting(engine: Engine) -> None:
    """Wait until another transaction waits for a lock."""
    for _ in range(1000):
        with reading(engine) as connection:
            if connection.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE NOT granted").scalar_one():
                return
        threading.Event().wait(0.01)
    raise AssertionError("nobody waits")


def test_many_siblings_that_end_at_once_end_their_parents_once(engine: Engine) -> None:
    parents = [add(engine, services=["a", "b", "c", "d"]) for _ in range(10)]
    tasks = take(engine)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda task: end(engine, succeeded(task)), tasks))
    assert len(done) == 40
    for parent in parents:
        assert row_of(engine, parent)["status"] == "completed"
        with reading(engine) as connection:
            assert [one["kind"] for one in read_events(connection, parent)].count("aggregated") == 1


def test_a_heartbeat_prolongs_what_is_held_and_tells_what_is_cancelled(engine: Engine) -> None:
    kept, cancelled, lost = add(engine), add(engine), add(engine)
    take(engine)
    change(engine, cancelled, cancel_requested_at=NOON)
    change(engine, lost, status="pending", lease_owner=None)
    with writing(engine) as connection:
        beat = heartbeat(connection, "worker-1", POLICY, after(40))
    assert beat.held == {kept: 1, cancelled: 1}
    assert beat.cancelled == {cancelled}
    assert row_of(engine, kept)["lease_expires_at"] == after(100)
    assert row_of(engine, lost)["lease_expires_at"] == after(60)


def test_a_heartbeat_does_not_prolong_what_is_long_past_its_deadline(engine: Engine) -> None:
    """A worker that hung in one task kept it for ever, as long as its heart beat."""
    task = add(engine, timeout_seconds=100)
    take(engine)
    for second, held in ((129, {task: 1}), (131, {})):
        with writing(engine) as connection:
            assert heartbeat(connection, "worker-1", POLICY, after(second)).held == held


def test_a_heartbeat_of_one_worker_touches_no_other(engine: Engine) -> None:
    add(engine)
    (task,) = take(engine, "worker-2")
    with writing(engine) as connection:
        assert heartbeat(connection, "worker-1", POLICY, after(40)).held == {}
    assert row_of(engine, task.id)["lease_expires_at"] == after(60)


def test_children_have_the_options_of_their_parent(engine: Engine) -> None:
    parent = add(engine, services=["a", "b"], options={"tools": ["x"]}, priority="high")
    children = children_of(engine, parent)
    assert {name: row["options"] for name, row in children.items()} == {"a": {"tools": ["x"]}, "b": {"tools": ["x"]}}
    assert {row["priority"] for row in children.values()} == {"high"}
