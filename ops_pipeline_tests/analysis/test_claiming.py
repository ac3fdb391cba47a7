"""Who gets which task, and when."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine, insert

from ops_pipeline.analysis.states import succeeded
from ops_pipeline.analysis.submitting import Submission, submit
from ops_pipeline.analysis.tables import analyzer_services
from ops_pipeline.database.engine import writing
from ops_pipeline_tests.analysis.queueing import (
    NOON,
    POLICY,
    add,
    add_row,
    after,
    change,
    children_of,
    end,
    row_of,
    rows_of,
    take,
)


def test_a_claimed_task_has_an_owner_an_attempt_a_lease_and_a_deadline(engine: Engine) -> None:
    task = add(engine, options={"tools": ["ruff"]})
    (claimed,) = take(engine)
    assert (claimed.id, claimed.attempt, claimed.service, claimed.target) == (task, 1, "static", "acme/app1")
    assert claimed.options == {"tools": ["ruff"]}
    row = row_of(engine, task)
    assert (row["status"], row["lease_owner"], row["attempt"]) == ("running", "worker-1", 1)
    assert (row["started_at"], row["lease_expires_at"], row["deadline_at"]) == (NOON, after(60), after(1800))
    assert take(engine, "worker-2") == []


def test_urgent_goes_before_high_before_normal_before_low_and_the_older_first(engine: Engine) -> None:
    ids = [
        add(engine, priority=priority, now=after(second))
        for priority in ("low", "normal", "urgent", "high")
        for second in (1, 0)
    ]
    low, normal, urgent, high = ids[:2], ids[2:4], ids[4:6], ids[6:]
    expected = [*reversed(urgent), *reversed(high), *reversed(normal), *reversed(low)]
    assert [task.id for task in take(engine, now=after(10))] == expected


def test_a_low_task_that_has_waited_three_hours_goes_before_an_urgent_one_of_now(engine: Engine) -> None:
    """As long as urgent tasks came in faster than they were done, the others starved."""
    low = add(engine, priority="low")
    soon = add(engine, priority="urgent", now=after(3 * 3600 - 1))
    late = add(engine, priority="urgent", now=after(3 * 3600 + 1))
    assert [task.id for task in take(engine, now=after(4 * 3600))] == [soon, low, late]


def test_a_task_is_not_claimed_before_it_is_due(engine: Engine) -> None:
    task = add(engine)
    change(engine, task, next_attempt_at=after(30))
    assert take(engine, now=after(29)) == []
    assert [one.id for one in take(engine, now=after(30))] == [task]


def test_tasks_of_a_paused_pipeline_and_created_ones_are_not_claimed(engine: Engine) -> None:
    held, created, unknown = add(engine), add(engine), add(engine)
    change(engine, held, held_since=NOON)
    change(engine, created, status="created")
    change(engine, unknown, status="on holiday")
    assert take(engine) == []
    change(engine, held, held_since=None)
    assert [one.id for one in take(engine)] == [held]


def test_a_plain_insert_by_another_program_is_enough(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO analysis_tasks (id, service, target) VALUES ('t', 'static', 'a/app0')")
    (task,) = take(engine, now=NOON + timedelta(days=4000))
    assert (task.id, task.target, task.options, task.timeout) == ("t", "a/app0", {}, timedelta(seconds=1800))


@pytest.mark.parametrize("priority", [None, "", "asap", "NORMAL", "4"])
def test_a_priority_that_nobody_knows_is_normal(engine: Engine, priority: str | None) -> None:
    add_row(engine, id="odd", priority=priority, created_at=after(1))
    high, low = add(engine, priority="high"), add(engine, priority="low")
    normal = add(engine)
    assert [task.id for task in take(engine, now=after(9))] == [high, normal, "odd", low]


@pytest.mark.parametrize("spelling", ["2026-03-10T12:00:00Z", "2026-03-10 14:00:00+02:00", "2026-03-10 12:00:00.000"])
def test_times_of_other_programs_are_read_in_any_spelling(sqlite_engine: Engine, spelling: str) -> None:
    for name, column in (("a", "created_at"), ("b", "next_attempt_at")):
        with writing(sqlite_engine) as connection:
            statement = f"INSERT INTO analysis_tasks (id, service, target, {column}) VALUES ('{name}', 's', 't', ?)"
            connection.exec_driver_sql(statement, (spelling,))
    change(sqlite_engine, "b", created_at=after(-1))
    assert [task.id for task in take(sqlite_engine, now=after(-1))] == ["a"]
    assert [task.id for task in take(sqlite_engine)] == ["b"]


def test_rows_that_cannot_be_read_do_not_stop_the_others(sqlite_engine: Engine) -> None:
    """One row of another program, and the poller failed on every look from then on."""
    junk = {
        "options": "{not json",
        "timeout_seconds": "soon",
        "created_at": "yesterday",
        "next_attempt_at": "later",
        "labels": "{",
    }
    for column, value in junk.items():
        with writing(sqlite_engine) as connection:
            statement = f"INSERT INTO analysis_tasks (id, service, target, {column}) VALUES ('{column}', 's', 't', ?)"
            connection.exec_driver_sql(statement, (value,))
    good = add(sqlite_engine)
    tasks = {task.id: task for task in take(sqlite_engine, now=NOON + timedelta(days=4000))}
    assert set(tasks) == {*junk, good}
    assert "no JSON" in tasks["options"].unreadable
    assert tasks["timeout_seconds"].timeout == timedelta(seconds=1800)
    assert [task.unreadable for name, task in tasks.items() if name != "options"] == [""] * 5


def test_options_that_are_no_object_are_told_to_the_worker(engine: Engine) -> None:
    for name, options in (("list", ["ruff"]), ("none", None), ("text", "ruff")):
        add_row(engine, id=name, options=options)
    unreadable = {task.id: bool(task.unreadable) for task in take(engine, now=NOON + timedelta(days=4000))}
    assert unreadable == {"list": True, "none": False, "text": True}


@pytest.mark.parametrize(
    ("timeout", "seconds"), [(None, 1800), (0, 1800), (-1, 1800), (5.5, 5.5), (1e300, 604_800), (90_000, 90_000)]
)
def test_the_time_out_of_a_task_is_its_own_where_that_is_a_time(
    engine: Engine, timeout: float | None, seconds: float
) -> None:
    add_row(engine, id="t", timeout_seconds=timeout, created_at=NOON)
    (task,) = take(engine)
    assert task.timeout == timedelta(seconds=seconds)
    assert row_of(engine, "t")["deadline_at"] == after(seconds)


def test_only_so_many_tasks_of_a_service_run_at_once(engine: Engine) -> None:
    """The limit was applied after the rows were fetched: a hundred tasks of a full service hid all others."""
    policy = replace(POLICY, per_service=2)
    for second in range(20):
        add(engine, services=["slow"], now=after(second))
    other = add(engine, services=["quick"], now=after(30))
    first = take(engine, policy=policy, batch=3, now=after(60))
    assert sorted(task.service for task in first) == ["quick", "slow", "slow"]
    assert take(engine, "worker-2", policy=policy, now=after(60)) == []
    end(engine, *(succeeded(task) for task in first if task.service == "slow"), now=after(60))
    assert [task.service for task in take(engine, policy=policy, now=after(61))] == ["slow", "slow"]
    assert row_of(engine, other)["status"] == "running"


def test_a_service_has_a_limit_of_its_own(engine: Engine) -> None:
    with writing(engine) as connection:
        rows = [{"service": "one", "max_concurrent": 1}, {"service": "closed", "max_concurrent": 0}]
        connection.execute(insert(analyzer_services), rows)
    for service in ("one", "one", "closed", "free", "free", "free"):
        add(engine, services=[service])
    assert sorted(task.service for task in take(engine)) == ["free", "free", "free", "one"]


def test_only_so_many_tasks_of_a_target_run_at_once(engine: Engine) -> None:
    policy = replace(POLICY, per_target=2)
    for second in range(10):
        add(engine, target="busy/app1", services=[("a", "b")[second % 2]], now=after(second))
    add(engine, target="calm/app1", now=after(30))
    first = take(engine, policy=policy, now=after(60))
    assert sorted(task.target for task in first) == ["busy/app1", "busy/app1", "calm/app1"]
    assert take(engine, "worker-2", policy=policy, now=after(60)) == []
    done = next(task for task in first if task.target == "busy/app1")
    end(engine, succeeded(done))
    assert [task.target for task in take(engine, policy=policy, now=after(61))] == ["busy/app1"]


def test_a_worker_may_claim_for_some_services_only(engine: Engine) -> None:
    for service in ("a", "b", "c"):
        add(engine, services=[service])
    assert [task.service for task in take(engine, services=["b", "z"])] == ["b"]


def test_parents_are_not_claimed_and_start_with_their_first_child(engine: Engine) -> None:
    parent = add(engine, services=["a", "b"])
    (child,) = take(engine, batch=1, now=after(5))
    assert child.parent_id == parent
    row = row_of(engine, parent)
    assert (row["status"], row["started_at"], row["attempt"]) == ("running", after(5), 0)
    take(engine, now=after(9))
    assert row_of(engine, parent)["started_at"] == after(5)
    assert {row["status"] for row in children_of(engine, parent).values()} == {"running"}


def test_a_thousand_tasks_are_claimed_once_each_by_eight_claimers(engine: Engine) -> None:
    """Reading first and writing then, two pollers ran the same task."""
    with writing(engine) as connection:
        submit(connection, [Submission((f"s{n % 3}",), "t/app1") for n in range(1000)], NOON)
    claimed: list[str] = []

    def work(owner: str) -> None:
        while tasks := take(engine, owner, 17):
            claimed.extend(task.id for task in tasks)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [f"worker-{number}" for number in range(8)]))
    assert len(claimed) == len(set(claimed)) == 1000
    assert {row["attempt"] for row in rows_of(engine)} == {1}


def test_limits_hold_when_claims_meet(engine: Engine) -> None:
    """Each of two claims counted before the other one had committed, and the service got twice its share."""
    policy = replace(POLICY, per_service=5)
    for second in range(40):
        add(engine, now=after(second))
    barrier = threading.Barrier(6)

    def work(owner: str) -> int:
        barrier.wait()
        return len(take(engine, owner, 3, policy=policy, now=after(99)))

    with ThreadPoolExecutor(6) as pool:
        counts = list(pool.map(work, [f"worker-{number}" for number in range(6)]))
    assert sum(counts) == 5
