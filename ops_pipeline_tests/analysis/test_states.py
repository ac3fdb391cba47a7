"""The pure rules of the queue."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import pytest
from hypothesis import given, strategies

from ops_pipeline.analysis.leases import may_claim
from ops_pipeline.analysis.limits import Breaker, Opening, after_failures, are_limited, open_slots
from ops_pipeline.analysis.policy import policy_of
from ops_pipeline.analysis.states import LONGEST_TASK, Task, aggregate, ending_of, timeout_of, unavailable
from ops_pipeline.analysis.tables import TERMINAL
from ops_pipeline.settings import load_settings
from ops_pipeline_tests.analysis.queueing import NOON, POLICY, after

TASK = Task("t", 1, "static", "acme/app0")


@given(jitter=strategies.floats(0, 1), waited=strategies.integers(0, 2))
def test_jitter_lengthens_a_wait_by_a_tenth_at_most(jitter: float, waited: int) -> None:
    """All tasks came back in the same second, and the service fell over again."""
    ending = ending_of(unavailable(replace(TASK, preflight_retries=waited), "refused"), POLICY, NOON, jitter)
    shortest = 30 * 2**waited
    assert ending.next_attempt_at is not None
    assert after(shortest) <= ending.next_attempt_at <= after(shortest * 1.1)


@given(statuses=strategies.lists(strategies.sampled_from(TERMINAL), min_size=1, max_size=4))
def test_the_status_of_a_parent_depends_on_no_order_and_on_nothing_but_its_children(statuses: list[str]) -> None:
    results = {aggregate(order) for order in permutations(statuses)}
    assert len(results) == 1
    (status,) = results
    assert (status == "completed") == (set(statuses) == {"completed"})
    assert (status == "cancelled") == (set(statuses) == {"cancelled"})
    assert (status == "failed") == (set(statuses) <= {"failed", "cancelled"} and "failed" in statuses)


@pytest.mark.parametrize("open_status", ["created", "pending", "running", "on holiday"])
def test_a_parent_waits_for_whoever_has_not_ended(open_status: str) -> None:
    assert aggregate(["completed", open_status]) is None
    assert aggregate([]) is None


@pytest.mark.parametrize("value", [None, 0, -1, "", "soon", "nan", float("nan"), [], "-inf"])
def test_what_is_no_time_out_is_the_default(value: object) -> None:
    assert timeout_of(value, POLICY) == POLICY.task_timeout


@pytest.mark.parametrize(("value", "expected"), [("90", timedelta(seconds=90)), ("inf", LONGEST_TASK)])
def test_a_time_out_may_be_text_and_has_a_bound(value: object, expected: timedelta) -> None:
    assert timeout_of(value, POLICY) == expected


def test_a_breaker_opens_at_the_third_failure_and_again_at_the_first_of_its_trial() -> None:
    breaker = after_failures(Breaker(), 2, POLICY, NOON)
    assert breaker == Breaker(2)
    breaker = after_failures(breaker, 1, POLICY, NOON)
    assert breaker == Breaker(3, 1, after(300))
    # What was under way when it opened changes nothing.
    assert after_failures(breaker, 5, POLICY, after(10)).open_until == after(300)
    assert after_failures(breaker, 1, POLICY, after(300)) == Breaker(4, 2, after(600))


def test_places_go_by_the_limit_of_the_service_then_by_that_of_all_then_by_the_batch() -> None:
    openings = [
        Opening("any"),
        Opening("own", max_concurrent=3, running=1),
        Opening("full", max_concurrent=3, running=4),
        Opening("open", open_until=after(1)),
        Opening("half open", open_until=NOON),
        Opening("tried", open_until=NOON, running=1),
    ]
    assert open_slots(openings, 10, POLICY, NOON) == {"any": 10, "own": 2, "half open": 1}
    assert open_slots(openings[:1], 10, replace(POLICY, per_service=4), NOON) == {"any": 4}
    assert are_limited(openings, POLICY)
    assert not are_limited(openings[:1], POLICY)


def test_a_worker_whose_heartbeats_fail_claims_nothing() -> None:
    """It went on taking tasks, which were then taken from it one after the other."""
    assert may_claim(timedelta(seconds=29), POLICY)
    assert not may_claim(timedelta(seconds=30), POLICY)


def test_the_policy_comes_from_the_settings() -> None:
    policy = policy_of(load_settings(tasks_per_service=0, tasks_per_target=2, task_timeout=60, task_lease_seconds=30))
    assert (policy.per_service, policy.per_target) == (None, 2)
    assert (policy.task_timeout, policy.lease) == (timedelta(seconds=60), timedelta(seconds=30))
