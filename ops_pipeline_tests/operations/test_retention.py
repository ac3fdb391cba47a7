"""Which runs of Dagster's history may go."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.operations.retention import NEWEST, NEWEST_SUCCESS, FinishedRun, Retention, plan_pruning
from ops_pipeline_tests.usage.calls import at

NOW = at("2026-11-27 12:00")
RETENTION = Retention(30, {"update_vm_status": 3})


def run(run_id: str, days_ago: float, job: str = "flush_firewall", *, succeeded: bool = True) -> FinishedRun:
    return FinishedRun(run_id, job, NOW - timedelta(days=days_ago), succeeded)


def going(*runs: FinishedRun, now: datetime = NOW) -> list[str]:
    return [change.key for change in plan_pruning(runs, RETENTION, now).changes]


def test_runs_beyond_the_retention_of_their_job_go_oldest_first() -> None:
    runs = [
        run("b", 31),
        run("a", 40),
        run("young", 29),
        run("c", 4, "update_vm_status"),
        run("d", 2, "update_vm_status"),
    ]
    assert going(*runs) == ["a", "b", "c"]


def test_a_run_exactly_as_old_as_its_retention_stays() -> None:
    assert going(run("old", 30), run("new", 1)) == []
    assert going(run("old", 30 + 1 / 86_400), run("new", 1)) == ["old"]


def test_the_last_run_of_a_job_and_its_last_success_stay_however_old() -> None:
    """A yearly job looked as if it had never run."""
    runs = [run("first", 500), run("success", 400), run("failure", 300, succeeded=False)]
    plan = plan_pruning(runs, RETENTION, NOW)
    assert [change.key for change in plan.changes] == ["first"]
    assert plan.kept == {NEWEST: 1, NEWEST_SUCCESS: 1}


def test_a_clock_that_jumped_back_deletes_nothing() -> None:
    assert going(run("a", 40), run("b", 35), now=NOW - timedelta(days=365)) == []


@given(
    st.lists(
        st.builds(run, st.uuids().map(str), st.floats(0, 400), st.sampled_from(["a", "b", "update_vm_status"])),
        unique_by=lambda one: one.run_id,
    ),
    st.randoms(),
)
def test_nothing_young_goes_each_job_keeps_a_run_and_the_order_of_runs_is_irrelevant(runs, random) -> None:  # type: ignore[no-untyped-def]
    plan = plan_pruning(runs, RETENTION, NOW)
    gone = {change.key for change in plan.changes}
    assert all(NOW - one.ended_at > timedelta(days=RETENTION.days_of(one.job)) for one in runs if one.run_id in gone)
    assert {one.job for one in runs} == {one.job for one in runs if one.run_id not in gone}
    shuffled = list(runs)
    random.shuffle(shuffled)
    assert plan_pruning(shuffled, RETENTION, NOW) == plan
    assert plan_pruning([one for one in runs if one.run_id not in gone], RETENTION, NOW).changes == ()
