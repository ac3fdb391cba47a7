"""What operators do to tasks: cancel and retry, trees included."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from ops_pipeline.analysis.ending import finish
from ops_pipeline.analysis.leases import heartbeat
from ops_pipeline.analysis.operating import Told, cancel, retry
from ops_pipeline.analysis.states import failed, succeeded
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
    take,
)
from ops_pipeline_tests.analysis.test_ending import until_waiting

REASON = "cancelled by ann: not needed"


def stop(engine: Engine, *ids: str, seconds: float = 5) -> Told:
    with writing(engine) as connection:
        return cancel(connection, ids, REASON, after(seconds))


def again(engine: Engine, *ids: str) -> Told:
    with writing(engine) as connection:
        return retry(connection, ids, after(9))


def test_a_waiting_task_is_cancelled_at_once(engine: Engine) -> None:
    task = add(engine)
    assert stop(engine, task) == Told(done=(task,))
    row = row_of(engine, task)
    assert (row["status"], row["completed_at"], row["error_message"]) == ("cancelled", after(5), REASON)
    assert take(engine, now=after(99)) == []


def test_a_running_task_is_cancelled_by_its_worker(engine: Engine) -> None:
    task = add(engine)
    (claimed,) = take(engine)
    assert stop(engine, task) == Told(asked=(task,))
    assert row_of(engine, task)["status"] == "running"
    with writing(engine) as connection:
        assert heartbeat(connection, "worker-1", POLICY, after(6)).cancelled == {task}
    assert end(engine, succeeded(claimed, {"late": True}), now=after(7)) == {task: "cancelled"}
    row = row_of(engine, task)
    assert (row["completed_at"], row["result_summary"], row["error_message"]) == (after(7), None, REASON)


@pytest.mark.parametrize("status", ["completed", "partial_success", "failed", "cancelled"])
def test_a_task_that_has_ended_refuses(engine: Engine, status: str) -> None:
    """A completed task became cancelled, without an end, and its results were gone."""
    add_row(engine, id="t", status=status, completed_at=NOON, result_summary={"found": 1})
    before = row_of(engine, "t")
    assert stop(engine, "t") == Told(refused={"t": f"is {status}"})
    assert row_of(engine, "t") == before


def test_an_unknown_task_is_told(engine: Engine) -> None:
    assert stop(engine, "nobody") == Told(refused={"nobody": "is no task"})
    assert again(engine, "nobody") == Told(refused={"nobody": "is no task"})


def test_children_are_cancelled_with_their_parent(engine: Engine) -> None:
    parent = add(engine, services=["a", "b", "c"])
    children = {name: row["id"] for name, row in children_of(engine, parent).items()}
    (running,) = take(engine, services=["a"])
    (ended,) = take(engine, services=["b"])
    end(engine, succeeded(ended))
    told = stop(engine, parent)
    assert told == Told(done=(children["c"],), asked=(children["a"],))
    assert row_of(engine, parent)["status"] == "running"
    end(engine, succeeded(running), now=after(8))
    row = row_of(engine, parent)
    assert (row["status"], row["completed_at"], row["error_message"]) == ("cancelled", after(8), REASON)
    assert {name: row["status"] for name, row in children_of(engine, parent).items()} == {
        "a": "cancelled",
        "b": "completed",
        "c": "cancelled",
    }


def test_a_parent_of_waiting_children_is_cancelled_with_them_at_once(engine: Engine) -> None:
    """The parent was called completed when all its children had been cancelled."""
    parent = add(engine, services=["a", "b"])
    told = stop(engine, parent)
    assert set(told.done) == {parent, *(row["id"] for row in children_of(engine, parent).values())}
    assert row_of(engine, parent)["status"] == "cancelled"
    assert row_of(engine, parent)["completed_at"] == after(5)


def test_the_last_sibling_ends_the_parent_even_when_it_is_cancelled(engine: Engine) -> None:
    parent = add(engine, services=["a", "b"])
    (first,) = take(engine, services=["a"])
    end(engine, succeeded(first))
    stop(engine, children_of(engine, parent)["b"]["id"])
    assert row_of(engine, parent)["status"] == "partial_success"


def test_a_parent_that_has_no_children_yet_is_cancelled(engine: Engine) -> None:
    add_row(engine, id="p", service="unified", status="created")
    assert stop(engine, "p").refused == {}
    assert row_of(engine, "p")["status"] == "cancelled"


def test_a_cancellation_that_meets_the_end_of_its_task_loses_or_wins_as_a_whole(postgres_engine: Engine) -> None:
    parent = add(postgres_engine, services=["a", "b"])
    first, second = take(postgres_engine)
    with ThreadPoolExecutor(1) as pool, writing(postgres_engine) as connection:
        results = [succeeded(first), succeeded(second)]
        finish(connection, "worker-1", results, policy=POLICY, now=after(1), jitter=lambda: 0.0)
        told = pool.submit(stop, postgres_engine, parent)
        until_waiting(postgres_engine)
        connection.commit()
        assert told.result(30).asked == ()
    assert row_of(postgres_engine, parent)["status"] == "completed"
    assert row_of(postgres_engine, parent)["cancel_requested_at"] is None


def test_a_failed_task_begins_anew(engine: Engine) -> None:
    task = add(engine)
    (claimed,) = take(engine)
    end(engine, failed(claimed, "no"))
    change(engine, task, preflight_retries=3, transient_retries=3, lost_leases=3)
    assert again(engine, task) == Told(done=(task,))
    row = row_of(engine, task)
    assert (row["status"], row["error_class"], row["completed_at"], row["attempt"]) == ("pending", "", None, 1)
    assert (row["preflight_retries"], row["transient_retries"], row["lost_leases"]) == (0, 0, 0)
    (second,) = take(engine, now=after(10))
    assert second.attempt == 2
    end(engine, succeeded(second))
    assert row_of(engine, task)["status"] == "completed"


def test_only_the_failed_children_begin_anew_and_their_parent_with_them(engine: Engine) -> None:
    parent = add(engine, services=["a", "b", "c"])
    tasks = {task.service: task for task in take(engine)}
    end(engine, succeeded(tasks["a"]), failed(tasks["b"], "no"), succeeded(tasks["c"]))
    assert row_of(engine, parent)["status"] == "partial_success"
    assert again(engine, parent) == Told(done=(tasks["b"].id,))
    assert row_of(engine, parent)["status"] == "running"
    assert row_of(engine, parent)["completed_at"] is None
    (second,) = take(engine, now=after(10))
    assert second.id == tasks["b"].id
    end(engine, succeeded(second), now=after(11))
    row = row_of(engine, parent)
    assert (row["status"], row["completed_at"], row["error_message"]) == ("completed", after(11), None)


@pytest.mark.parametrize("status", ["completed", "running", "pending", "created"])
def test_what_has_not_failed_is_not_done_again(engine: Engine, status: str) -> None:
    add_row(engine, id="t", status=status)
    assert again(engine, "t") == Told(refused={"t": f"is {status}"})


def test_a_parent_whose_children_all_succeeded_is_not_done_again(engine: Engine) -> None:
    parent = add(engine, services=["a", "b"])
    end(engine, *(succeeded(task) for task in take(engine)))
    assert again(engine, parent) == Told(refused={parent: "is completed, with no child to do again"})


def test_a_part_of_a_result_may_be_done_again_by_name(engine: Engine) -> None:
    parent = add(engine, services=["a", "b"])
    tasks = take(engine)
    end(engine, *(succeeded(task, partly=True) for task in tasks))
    assert again(engine, parent).done == ()
    assert again(engine, tasks[0].id).done == (tasks[0].id,)
    assert row_of(engine, parent)["status"] == "running"
