"""What the rows of a pipeline say, without any database: its status, its progress, and what is to be done next."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.analysis.pipelines.rules import (
    JOB_STATUSES,
    End,
    EndStep,
    Lay,
    Pipeline,
    StartStep,
    Step,
    Stop,
    Submit,
    Withdraw,
    next_action,
    pipeline_result,
    progress_of,
    status_of,
    step_result,
)
from ops_pipeline.analysis.tables import TERMINAL
from ops_pipeline_tests.usage.calls import at, examples

NOW = at("2026-03-10 12:00")


def step(position: int = 0, status: str = "running", *, critical: bool = False, **jobs: int) -> Step:
    return Step(position, f"step{position}", status, critical, concurrency=3, jobs=jobs)


def pipeline(*steps: Step, **fields: Any) -> Pipeline:
    return Pipeline("pipeline_1", "running", steps=steps, **fields)


def following(*steps: Step, **fields: Any) -> Any:
    return next_action(pipeline(*steps, **fields), NOW)


@pytest.mark.parametrize(
    ("jobs", "status"),
    [
        ({"completed": 3}, "completed"),
        ({"completed": 2, "failed": 1}, "partial_success"),
        ({"completed": 2, "skipped": 1}, "partial_success"),
        ({"completed": 2, "cancelled": 1}, "partial_success"),
        ({"partial_success": 1}, "partial_success"),
        ({"partial_success": 1, "failed": 2}, "partial_success"),
        ({"failed": 3}, "failed"),
        ({"skipped": 3}, "failed"),
        ({}, "failed"),
        ({"failed": 1, "cancelled": 2}, "failed"),
        ({"cancelled": 2}, "cancelled"),
        ({"cancelled": 2, "skipped": 1}, "cancelled"),
    ],
)
def test_a_step_ends_as_its_jobs_did(jobs: dict[str, int], status: str) -> None:
    """Pipelines of which every job had failed were shown as completed."""
    assert step_result(step(**jobs)) == status


@pytest.mark.parametrize(
    ("steps", "status"),
    [
        ([("completed", False, {"completed": 1})] * 2, "completed"),
        ([("completed", True, {"completed": 1}), ("failed", False, {"failed": 1})], "partial_success"),
        ([("completed", True, {"completed": 1}), ("failed", True, {"failed": 1})], "failed"),
        ([("partial_success", True, {"completed": 1, "failed": 3})], "partial_success"),
        ([("failed", False, {"failed": 1}), ("failed", False, {"skipped": 1})], "failed"),
        ([("failed", False, {"skipped": 2})], "failed"),
        ([("cancelled", False, {"cancelled": 2})], "cancelled"),
        ([("cancelled", True, {"cancelled": 2}), ("cancelled", False, {"cancelled": 1})], "failed"),
        ([("failed", False, {"failed": 1}), ("completed", False, {"completed": 1})], "partial_success"),
    ],
)
def test_a_pipeline_ends_as_its_steps_did(steps: list[tuple[str, bool, dict[str, int]]], status: str) -> None:
    made = [step(i, ended, critical=critical, **jobs) for i, (ended, critical, jobs) in enumerate(steps)]
    assert pipeline_result(made) == status
    assert status_of(pipeline(*made)) == status
    action = following(*made)
    assert isinstance(action, End) and action.status == status


def test_what_was_not_looked_at_is_laid_out_first_unless_it_is_paused() -> None:
    new = Pipeline("pipeline_1")
    assert next_action(new, NOW) == Lay()
    assert next_action(replace(new, paused=True), NOW) is None


def test_jobs_are_submitted_up_to_the_limit_that_the_rows_show() -> None:
    """How many were in flight was kept in memory, and forgotten by a restart."""
    assert following(step(waiting=5)) == Submit(0, 3)
    assert following(step(waiting=5, running=2)) == Submit(0, 1)
    assert following(step(waiting=5, running=3)) is None
    assert following(step(waiting=5, running=4)) is None
    assert following(step(waiting=1, completed=9)) == Submit(0, 1)


def test_a_step_begins_when_the_one_before_has_ended_and_with_all_of_its_jobs() -> None:
    """The step from one stage to the next also advanced the index: job 0 was never done."""
    done, next_ = step(0, "completed", completed=2), step(1, "pending", waiting=2)
    assert following(step(0, running=1, completed=1), next_) is None
    assert following(step(0, completed=2), next_) == EndStep(0, "completed")
    assert following(done, next_) == StartStep(1)
    assert following(done, replace(next_, status="running")) == Submit(1, 2)


def test_a_critical_step_without_success_ends_the_pipeline_and_the_others_are_not_reached() -> None:
    broken = step(0, "failed", critical=True, failed=2)
    assert following(broken, step(1, "pending", waiting=2)) == Withdraw()
    assert following(broken, step(1, "pending", cancelled=2)) == EndStep(1, "cancelled")
    ended = following(broken, step(1, "cancelled", cancelled=2))
    assert ended == End("failed", "the critical step step0 has failed")


def test_a_critical_step_that_succeeded_in_part_lets_the_next_begin() -> None:
    broken = step(0, "partial_success", critical=True, failed=2, completed=1)
    assert following(broken, step(1, "pending", waiting=2)) == StartStep(1)


def test_a_step_that_is_not_critical_may_fail() -> None:
    assert following(step(0, "failed", failed=2), step(1, "pending", waiting=2)) == StartStep(1)


def test_while_it_is_paused_nothing_starts_but_what_has_ended_is_counted() -> None:
    assert following(step(waiting=5), paused=True) is None
    assert following(step(0, "completed", completed=1), step(1, "pending", waiting=1), paused=True) is None
    assert following(step(completed=1), paused=True) == EndStep(0, "completed")
    assert following(step(0, "completed", completed=1), paused=True) == End("completed", "")


def test_its_deadline_stops_it_to_the_second_paused_or_not() -> None:
    going = step(running=1, waiting=1)
    assert following(step(running=1), deadline_at=NOW + timedelta(microseconds=1)) is None
    for paused in (False, True):
        stopped = following(going, deadline_at=NOW, paused=paused)
        assert stopped == Stop("failed", "its deadline passed at 2026-03-10 12:00:00 UTC")


def test_what_was_stopped_ends_only_when_its_last_task_has() -> None:
    """A cancelled pipeline was shown as ended while its tasks ran on."""
    next_ = step(1, "pending", waiting=2)
    assert following(step(waiting=1, running=1), next_, stop_as="cancelled") == Withdraw()
    gone = step(1, "pending", cancelled=2)
    assert following(step(cancelled=1, running=1), gone, stop_as="cancelled") is None
    assert following(step(cancelled=2), gone, stop_as="cancelled") == EndStep(0, "cancelled")
    assert following(step(cancelled=1, completed=1), gone, stop_as="failed") == EndStep(0, "partial_success")
    ended = (step(0, "cancelled", cancelled=2), replace(gone, status="cancelled"))
    assert following(*ended, stop_as="cancelled") == End("cancelled", "")
    assert status_of(pipeline(*ended, stop_as="cancelled")) == "cancelled"


@pytest.mark.parametrize("status", TERMINAL)
def test_what_has_ended_stays_as_it_is(status: str) -> None:
    assert next_action(replace(pipeline(step(waiting=3)), status=status, deadline_at=NOW), NOW) is None


def test_progress_counts_each_step_the_same_and_jobs_once() -> None:
    progress = progress_of([step(0, "completed", completed=2), step(1, waiting=4, running=3, failed=2, skipped=1)])
    assert (progress.total, progress.ended, progress.succeeded, progress.failed) == (12, 5, 2, 2)
    assert (progress.skipped, progress.running) == (1, 3)
    assert progress.share == pytest.approx((1 + 3 / 10) / 2)
    assert progress_of([step(0, "failed"), step(1, "pending", waiting=1)]).share == 0.5
    assert progress_of([]).share == 0


counts = st.dictionaries(st.sampled_from(JOB_STATUSES), st.integers(0, 3))
steps_of_any_kind = st.lists(
    st.builds(
        Step,
        position=st.just(0),
        name=st.just("s"),
        status=st.sampled_from(["pending", "running", *TERMINAL]),
        critical=st.booleans(),
        concurrency=st.integers(1, 3),
        jobs=counts,
    ),
    max_size=4,
)


@examples(300)
@given(steps=steps_of_any_kind)
def test_progress_adds_up_whatever_the_rows(steps: list[Step]) -> None:
    progress = progress_of(steps)
    assert progress.ended == progress.succeeded + progress.failed + progress.skipped
    assert 0 <= progress.share <= 1
    assert progress.total == sum(sum(one.jobs.values()) for one in steps)
