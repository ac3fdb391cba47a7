"""Tasks that nobody was going to end are found, each by its own pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, insert, select, update

from ops_pipeline.analysis.breakers import Health
from ops_pipeline.analysis.operating import cancel
from ops_pipeline.analysis.pipelines.tables import pipeline_steps, pipelines
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.recovery.due import count_due
from ops_pipeline.analysis.recovery.leases import find_lost, give_up, recover_leases
from ops_pipeline.analysis.recovery.transient import find_waiting, recover_transient
from ops_pipeline.analysis.recovery.trees import recover_created, recover_parents
from ops_pipeline.analysis.states import TRANSIENT, failed, lost, succeeded
from ops_pipeline.analysis.tables import analysis_tasks, analyzer_services
from ops_pipeline.database.engine import database_now, reading, writing
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
    take,
)


def ago(engine: Engine, seconds: float) -> datetime:
    with reading(engine) as connection:
        return database_now(connection) - timedelta(seconds=seconds)


def well(services: Sequence[str]) -> Mapping[str, Health]:
    return {service: Health(healthy=True, version="1.0") for service in services}


def ill(services: Sequence[str]) -> Mapping[str, Health]:
    return {service: Health(healthy=False, message="connection refused") for service in services}


def test_a_lease_is_lost_when_it_has_run_out_and_not_before(engine: Engine) -> None:
    """A healthy task of twenty minutes was taken for stuck after fifteen, and ran twice."""
    task = add(engine)
    take(engine)
    with writing(engine) as connection:
        assert find_lost(connection, POLICY, after(59.9))[0] == []
        found, running = find_lost(connection, POLICY, after(60))
        assert ([one.id for one in found], running) == ([task], 1)
        assert give_up(connection, found, POLICY, after(60)) == 1
    row = row_of(engine, task)
    assert (row["status"], row["lost_leases"], row["attempt"], row["lease_owner"]) == ("pending", 1, 1, None)


def test_a_task_comes_back_from_dead_workers_three_times_and_then_fails(engine: Engine) -> None:
    """A task that kills its worker killed one after the other for ever."""
    task = add(engine)
    for time in range(4):
        assert len(take(engine, f"worker-{time}", now=ago(engine, 3600))) == 1
        assert recover_leases(engine, POLICY).outcome.changed == 1
    row = row_of(engine, task)
    assert (row["status"], row["error_class"], row["attempt"], row["lost_leases"]) == ("failed", "lost_lease", 4, 4)
    assert "died 4 times" in row["error_message"]
    assert row["completed_at"] is not None


def test_a_heartbeat_between_look_and_change_keeps_the_task(engine: Engine) -> None:
    task = add(engine)
    take(engine)
    with writing(engine) as connection:
        found, _ = find_lost(connection, POLICY, after(60))
    change(engine, task, lease_expires_at=after(120))
    with writing(engine) as connection:
        assert give_up(connection, found, POLICY, after(61)) == 0
    assert row_of(engine, task)["status"] == "running"


def test_a_new_attempt_between_look_and_change_keeps_the_task(engine: Engine) -> None:
    task = add(engine)
    take(engine)
    with writing(engine) as connection:
        found, _ = find_lost(connection, POLICY, after(60))
    change(engine, task, attempt=2)
    with writing(engine) as connection:
        assert give_up(connection, found, POLICY, after(61)) == 0


def test_a_cancellation_between_look_and_change_ends_the_task(engine: Engine) -> None:
    """It went back into the queue, and another worker began what nobody wanted any more."""
    task = add(engine)
    take(engine)
    with writing(engine) as connection:
        found, _ = find_lost(connection, POLICY, after(60))
        assert cancel(connection, [task], "by ann", after(60)).asked == (task,)
        assert give_up(connection, found, POLICY, after(61)) == 1
    row = row_of(engine, task)
    assert (row["status"], row["error_class"], row["error_message"]) == ("cancelled", "cancelled", "by ann")
    assert row["completed_at"] == after(61)


def test_a_lost_task_fails_when_its_worker_lived_past_the_deadline_and_a_cancelled_one_is_cancelled(
    engine: Engine,
) -> None:
    late, cancelled, quick = add(engine, timeout_seconds=10), add(engine), add(engine, timeout_seconds=10)
    take(engine, now=ago(engine, 3600))
    change(engine, late, lease_expires_at=ago(engine, 3500))
    change(engine, cancelled, cancel_requested_at=NOON, error_message="by ann")
    recover_leases(engine, POLICY)
    assert (row_of(engine, late)["status"], row_of(engine, late)["error_class"]) == ("failed", "timeout")
    row = row_of(engine, cancelled)
    assert (row["status"], row["error_class"], row["error_message"]) == ("cancelled", "cancelled", "by ann")
    assert row_of(engine, quick)["status"] == "pending"


def test_a_lost_child_comes_back_and_the_last_loss_ends_its_parent(engine: Engine) -> None:
    """A child that was set back to pending was never claimed again, since only parents were."""
    parent = add(engine, services=["a", "b"])
    tasks = take(engine, now=ago(engine, 3600))
    end(engine, succeeded(tasks[0]), now=ago(engine, 3599))
    recover_leases(engine, POLICY)
    assert row_of(engine, tasks[1].id)["status"] == "pending"
    assert row_of(engine, parent)["status"] == "running"
    change(engine, tasks[1].id, lost_leases=3)
    take(engine, "worker-2", now=ago(engine, 3600))
    recover_leases(engine, POLICY)
    assert row_of(engine, parent)["status"] == "partial_success"


def test_a_running_task_that_never_had_a_lease_is_lost_too(engine: Engine) -> None:
    add_row(engine, id="foreign", status="running", updated_at=ago(engine, 61))
    add_row(engine, id="fresh", status="running", updated_at=ago(engine, 5))
    recovered = recover_leases(engine, POLICY)
    assert [change.key for change in recovered.plan.changes] == ["foreign"]
    assert row_of(engine, "foreign")["status"] == "pending"


def test_a_lease_that_is_no_time_is_lost(sqlite_engine: Engine) -> None:
    add(sqlite_engine)
    (task,) = take(sqlite_engine)
    with writing(sqlite_engine) as connection:
        connection.exec_driver_sql("UPDATE analysis_tasks SET lease_expires_at = 'soon'")
    assert recover_leases(sqlite_engine, POLICY).outcome.changed == 1
    assert row_of(sqlite_engine, task.id)["status"] == "pending"


def test_more_lost_tasks_than_a_batch_all_come_back(engine: Engine) -> None:
    """Long tasks on the first page hid the stuck ones behind it."""
    with writing(engine) as connection:
        rows = [
            {"id": f"t{n}", "service": "s", "target": "t", "status": "running", "lease_owner": "w", "attempt": 1}
            for n in range(1200)
        ]
        moment = after(0)
        connection.execute(insert(analysis_tasks), [row | {"lease_expires_at": moment} for row in rows])
    recovered = recover_leases(engine, POLICY)
    assert (recovered.outcome.scanned, recovered.outcome.changed) == (1200, 1200)
    assert recover_leases(engine, POLICY).plan.changes == ()


def test_a_dry_run_changes_nothing(engine: Engine) -> None:
    task = add(engine)
    take(engine, now=ago(engine, 3600))
    recovered = recover_leases(engine, POLICY, dry_run=True)
    assert [(change.key, change.action) for change in recovered.plan.changes] == [(task, "pending")]
    assert recovered.outcome.changed == 0
    assert row_of(engine, task)["status"] == "running"


def broken(engine: Engine, *services: str, seconds_ago: float = 301) -> str:
    """A task that failed for its service so long ago."""
    moment = ago(engine, seconds_ago)
    task = add(engine, services=services or ("static",), now=moment)
    end(engine, *(failed(one, "refused", TRANSIENT) for one in take(engine, now=moment)), now=moment)
    with writing(engine) as connection:
        connection.execute(update(analyzer_services).values(open_until=None, failures=0))
    return task


def test_a_transient_failure_returns_after_five_minutes_when_the_service_is_well(engine: Engine) -> None:
    task = broken(engine, seconds_ago=290)
    assert recover_transient(engine, POLICY, well).plan.changes == ()
    ended = row_of(engine, task)["completed_at"]
    with reading(engine) as connection:
        assert find_waiting(connection, POLICY, ended + timedelta(seconds=299)) == []
        assert [one.id for one in find_waiting(connection, POLICY, ended + timedelta(seconds=300))] == [task]
    change(engine, task, completed_at=ago(engine, 300))
    assert recover_transient(engine, POLICY, well).outcome.changed == 1
    row = row_of(engine, task)
    assert (row["status"], row["transient_retries"], row["completed_at"]) == ("pending", 1, None)
    assert [one.id for one in take(engine, now=after(1e9))] == [task]


def test_a_transient_failure_stays_while_the_service_is_ill(engine: Engine) -> None:
    task = broken(engine)
    recovered = recover_transient(engine, POLICY, ill)
    assert recovered.plan.kept == {"static: connection refused": 1}
    assert recovered.outcome.changed == 0
    assert row_of(engine, task)["status"] == "failed"
    with reading(engine) as connection:
        row = connection.execute(select(analyzer_services)).one()
        assert (row.healthy, row.message) == (False, "connection refused")
    # Asked again only five minutes later.
    assert count_due(engine, POLICY)["transient"] == 0
    assert recover_transient(engine, POLICY, well).plan.scanned == 0


def test_a_transient_failure_returns_three_times_at_most(engine: Engine) -> None:
    task = broken(engine)
    for time in range(3):
        assert recover_transient(engine, POLICY, well).outcome.changed == 1
        assert row_of(engine, task)["transient_retries"] == time + 1
        moment = ago(engine, 400)
        (claimed,) = take(engine, now=ago(engine, -10))
        end(engine, failed(claimed, "refused", TRANSIENT), now=moment)
    assert recover_transient(engine, POLICY, well).plan.scanned == 0
    assert row_of(engine, task)["status"] == "failed"


@pytest.mark.parametrize("error_class", ["permanent", "timeout", "lost_lease", "cancelled", ""])
def test_no_other_failure_returns(engine: Engine, error_class: str) -> None:
    add_row(engine, id="t", status="failed", error_class=error_class, completed_at=NOON)
    assert recover_transient(engine, POLICY, well).plan.scanned == 0


def test_only_the_failed_children_return_and_the_parent_waits_for_them(engine: Engine) -> None:
    """Recovery ran the children that had succeeded once more."""
    moment = ago(engine, 400)
    parent = add(engine, services=["a", "b", "c"], now=moment)
    tasks = {task.service: task for task in take(engine, now=moment)}
    results = (succeeded(tasks["a"]), failed(tasks["b"], "refused", TRANSIENT), failed(tasks["c"], "bad model"))
    end(engine, *results, now=moment)
    assert row_of(engine, parent)["status"] == "partial_success"
    recover_transient(engine, POLICY, well)
    statuses = {name: row["status"] for name, row in children_of(engine, parent).items()}
    assert statuses == {"a": "completed", "b": "pending", "c": "failed"}
    assert (row_of(engine, parent)["status"], row_of(engine, parent)["completed_at"]) == ("running", None)
    (again,) = take(engine, now=ago(engine, -10))
    end(engine, succeeded(again))
    assert row_of(engine, parent)["status"] == "partial_success"


@pytest.mark.parametrize("started", [False, True], ids=["waiting", "running"])
def test_a_child_of_a_cancelled_parent_does_not_return(engine: Engine, *, started: bool) -> None:
    """The service was well again, and a task that an operator had cancelled began anew by itself."""
    moment = ago(engine, 400)
    parent = add(engine, services=["a", "b"], now=moment)
    (task,) = take(engine, now=moment, services=["a"])
    if started:
        take(engine, now=moment, services=["b"])
    end(engine, failed(task, "refused", TRANSIENT), now=moment)
    with writing(engine) as connection:
        cancel(connection, [parent], "wrong model", moment)
    assert recover_transient(engine, POLICY, well).plan.scanned == 0
    assert children_of(engine, parent)["a"]["status"] == "failed"
    assert row_of(engine, parent)["status"] == ("running" if started else "cancelled")


def test_a_task_of_a_pipeline_that_is_to_stop_does_not_return(engine: Engine) -> None:
    change(engine, broken(engine), pipeline_id="p", step=0)
    with writing(engine) as connection:
        connection.execute(insert(pipelines).values(id="p", definition={}, status="running", stop_as="cancelled"))
        values = {"pipeline_id": "p", "position": 0, "name": "s", "status": "running", "concurrency": 1}
        connection.execute(insert(pipeline_steps).values(**values))
    assert recover_transient(engine, POLICY, well).plan.scanned == 0


def test_a_service_without_an_address_keeps_its_failures(engine: Engine) -> None:
    broken(engine)
    recovered = recover_transient(engine, POLICY, lambda _: {})
    assert recovered.plan.kept == {"static: nobody knows its address": 1}


@pytest.mark.parametrize(
    ("step", "returns"), [("running", True), ("failed", False), ("completed", False), (None, True)]
)
def test_a_task_returns_while_its_pipeline_still_wants_it(engine: Engine, step: str | None, *, returns: bool) -> None:
    """A pipeline that had gone on got a second result for a step that it had left behind."""
    task = broken(engine)
    change(engine, task, pipeline_id="p", step=0)
    if step:
        with writing(engine) as connection:
            connection.execute(insert(pipelines).values(id="p", definition={}))
            values = {"pipeline_id": "p", "position": 0, "name": "s", "status": step, "concurrency": 1}
            connection.execute(insert(pipeline_steps).values(**values))
    assert bool(recover_transient(engine, POLICY, well).outcome.changed) is returns


def test_a_parent_that_nobody_ended_is_ended(engine: Engine) -> None:
    for name, status in (("p", "pending"), ("r", "running"), ("open", "running")):
        add_row(engine, id=name, service="unified", status=status)
        add_row(engine, id=f"{name}1", parent_id=name, status="completed", completed_at=NOON)
        add_row(engine, id=f"{name}2", parent_id=name, status="failed", completed_at=NOON)
    change(engine, "open2", status="pending")
    assert count_due(engine, POLICY)["parents"] == 2
    assert recover_parents(engine, POLICY).outcome.changed == 2
    assert {name: row_of(engine, name)["status"] for name in ("p", "r", "open")} == {
        "p": "partial_success",
        "r": "partial_success",
        "open": "running",
    }
    assert recover_parents(engine, POLICY).plan.changes == ()


def test_a_parent_that_never_got_children_fails_in_the_end(engine: Engine) -> None:
    add_row(engine, id="old", service="unified", status="pending", updated_at=ago(engine, 901))
    add_row(engine, id="new", service="unified", status="pending", updated_at=ago(engine, 60))
    recover_parents(engine, POLICY)
    row = row_of(engine, "old")
    assert (row["status"], row["error_class"]) == ("failed", "permanent")
    assert row_of(engine, "new")["status"] == "pending"


def test_tasks_left_in_created_are_released(engine: Engine) -> None:
    rows = {
        "leaf": {},
        "parent": {"service": "unified"},
        "child": {"parent_id": "parent"},
        "childless": {"service": "unified"},
    }
    for name, values in rows.items():
        add_row(engine, id=name, status="created", created_at=ago(engine, 901), **values)
    add_row(engine, id="young", status="created", created_at=ago(engine, 60))
    assert count_due(engine, POLICY)["created"] == 4
    recovered = recover_created(engine, POLICY)
    assert recovered.outcome.changed == 4
    assert {name: row_of(engine, name)["status"] for name in (*rows, "young")} == {
        "leaf": "pending",
        "parent": "pending",
        "child": "pending",
        "childless": "failed",
        "young": "created",
    }
    assert {task.id for task in take(engine, now=ago(engine, -10))} == {"leaf", "child"}
    assert recover_created(engine, POLICY).plan.changes == ()


def test_each_pass_finds_its_own_when_there_is_nothing_for_the_others(engine: Engine) -> None:
    """As long as nothing was stuck, failed tasks were not looked at either."""
    broken(engine)
    assert count_due(engine, POLICY) == {"leases": 0, "transient": 1, "parents": 0, "created": 0}


@pytest.mark.parametrize(
    ("lost_leases", "overdue", "cancelled", "status"),
    [
        (0, False, False, "pending"),
        (2, False, False, "pending"),
        (3, False, False, "failed"),
        (0, True, False, "failed"),
        (9, True, True, "cancelled"),
    ],
)
def test_what_becomes_of_a_lost_task(lost_leases: int, *, overdue: bool, cancelled: bool, status: str) -> None:
    assert lost(lost_leases, Policy(), overdue=overdue, cancelled=cancelled).status == status


def test_no_retries_at_all_means_none(engine: Engine) -> None:
    broken(engine)
    assert recover_transient(engine, replace(POLICY, transient_retries=0), well).plan.scanned == 0
