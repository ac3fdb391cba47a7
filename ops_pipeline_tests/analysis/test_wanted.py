"""How many workers there should be."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import Engine

from ops_pipeline.analysis.leases import start, stop
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.tables import analyzer_services
from ops_pipeline.analysis.worker.wanted import Crew, Look, free_places, look, workers_wanted
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline_tests.analysis.working import STATIC, add_task
from ops_pipeline_tests.usage.calls import at

NOON = at("2026-03-01 12:00")
POLICY = Policy()
CREW = Crew([], most=2, concurrency=10, lifetime=timedelta(minutes=30))


def found(claimable: int, **workers: int) -> Look:
    """A look: workers by run, each so many minutes old."""
    return Look(
        {"s": claimable} if claimable else {},
        0,
        0,
        {run: NOON - timedelta(minutes=age) for run, age in workers.items()},
    )


def test_no_worker_is_wanted_where_nothing_can_be_claimed() -> None:
    assert workers_wanted(found(0), CREW, NOON) == (0, "No task can be claimed: 0 run, 0 wait.")


def test_as_many_are_wanted_as_the_tasks_fill_but_no_more_than_may_be() -> None:
    assert workers_wanted(found(1), CREW, NOON)[0] == 1
    assert workers_wanted(found(11), CREW, NOON)[0] == 2
    assert workers_wanted(found(500), CREW, NOON)[0] == 2


def test_runs_that_have_not_begun_will_take_their_share() -> None:
    """Every tick until the first run had begun launched another one."""
    assert workers_wanted(found(5), replace(CREW, runs=["a"]), NOON) == (
        0,
        "5 tasks can be claimed; 1 worker is about to begin.",
    )
    assert workers_wanted(found(15), replace(CREW, runs=["a"]), NOON)[0] == 1


def test_workers_that_are_full_get_company_up_to_the_limit() -> None:
    assert workers_wanted(found(5, a=1), replace(CREW, runs=["a"]), NOON)[0] == 1
    full = replace(CREW, runs=["a", "b"])
    assert workers_wanted(found(5, a=1, b=1), full, NOON) == (
        0,
        "5 tasks can be claimed; 2 workers are at work, as many as may be.",
    )


def test_a_worker_at_the_end_of_its_lifetime_makes_way() -> None:
    """It takes nothing any more, but may have a long task to the end of."""
    assert workers_wanted(found(5, a=1, b=30), replace(CREW, runs=["a", "b"]), NOON)[0] == 1


def test_places_are_the_first_that_are_free() -> None:
    assert free_places(set(), 2) == [1, 2]
    assert free_places({"1", "3", "by-hand"}, 3) == [2, 4, 5]


def seen(engine: Engine, policy: Policy = POLICY, most: int = 10) -> Look:
    with reading(engine) as connection:
        return look(connection, policy, most, database_now(connection), ["r1", "r2", "r3"])


def test_what_can_be_claimed_is_counted_as_a_claim_would_see_it(engine: Engine) -> None:
    with reading(engine) as connection:
        now = database_now(connection)
    for number in range(5):
        add_task(engine, f"due_{number}")
    add_task(engine, "later", next_attempt_at=now + timedelta(minutes=1))
    add_task(engine, "held", held_since=now)
    add_task(engine, "running", status="running")
    add_task(engine, "other", service="ai-analyzer")
    add_task(engine, "parent", service="unified")
    assert (seen(engine).claimable, seen(engine).waiting, seen(engine).running) == ({STATIC: 5, "ai-analyzer": 1}, 1, 1)
    assert seen(engine, Policy(per_service=3)).claimable == {STATIC: 2, "ai-analyzer": 1}
    assert seen(engine, most=1).claimable == {STATIC: 1, "ai-analyzer": 1}


def test_tasks_of_a_service_whose_breaker_is_open_start_no_worker(engine: Engine) -> None:
    add_task(engine)
    with writing(engine) as connection:
        until = database_now(connection) + timedelta(minutes=5)
        connection.execute(analyzer_services.insert().values(service=STATIC, open_until=until))
    assert (seen(engine).claimable, seen(engine).waiting) == ({}, 1)


def test_workers_are_those_that_live(engine: Engine) -> None:
    with writing(engine) as connection:
        now = database_now(connection)
        start(connection, "another", Policy(), now, run_id="of another deployment")
        start(connection, "alive", Policy(), now, run_id="r1")
        start(connection, "ended", Policy(), now, run_id="r2")
        stop(connection, "ended", now)
        start(connection, "dead", Policy(), now - timedelta(hours=1), run_id="r3")
    found = seen(engine)
    assert (list(found.workers), found.dead, found.ended) == (["r1"], {"r3"}, {"r2"})


def test_a_worker_that_was_killed_is_replaced_at_once() -> None:
    """To Dagster its run looks alive for an hour."""
    dead = replace(found(5), dead=frozenset({"a"}), ended=frozenset({"b"}))
    assert workers_wanted(dead, replace(CREW, runs=["a", "b"], most=1), NOON)[0] == 1
