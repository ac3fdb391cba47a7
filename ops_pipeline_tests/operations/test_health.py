"""How a job does, told from facts."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ops_pipeline.operations.health import (
    Automation,
    EndedRun,
    JobFacts,
    as_json,
    judge,
    next_tick,
    overdue,
    previous_tick,
)
from ops_pipeline_tests.usage.calls import at

NOW = at("2026-11-27 12:10")


def runs(*succeeded: bool) -> tuple[EndedRun, ...]:
    """Runs of the last hours, newest first."""
    return tuple(EndedRun(f"run-{n}", NOW - timedelta(hours=n), ok) for n, ok in enumerate(succeeded))


def job(*automations: Automation, at_work: int = 0, ended: tuple[EndedRun, ...] = ()) -> JobFacts:
    return JobFacts("flush_firewall", at_work, ended, automations)


def test_a_job_whose_last_run_succeeded_is_well_whatever_came_before() -> None:
    health = judge(job(ended=runs(True, False, False, True)), NOW)
    assert health.well and health.errors == 0
    assert health.success_rate == 0.5
    assert health.last_run == health.last_success == NOW


def test_failures_in_a_row_are_counted_and_the_last_success_is_remembered() -> None:
    health = judge(job(ended=runs(False, False, True, False)), NOW)
    assert health.errors == 2
    assert health.last_success == NOW - timedelta(hours=2)
    assert health.problems == ("2 failed runs in a row, the last is run-0",)


def test_a_job_that_never_ran_is_well_and_knows_its_next_run() -> None:
    health = judge(job(Automation("flush_firewall_schedule", "0 * * * *")), NOW)
    assert health.well and health.enabled
    assert (health.last_run, health.success_rate) == (None, None)
    assert health.next_run == at("2026-11-27 13:00")


@pytest.mark.parametrize(
    ("last", "now", "is_overdue"),
    [
        ("12:00", "12:10", False),
        ("11:00", "12:02", False),
        ("11:00", "12:03", True),
        ("11:00", "12:10", True),
    ],
)
def test_a_schedule_is_overdue_when_it_did_not_tick_within_its_grace(last: str, now: str, *, is_overdue: bool) -> None:
    """A daemon that hangs raises no failure: nothing fails that is never begun."""
    automation = Automation("s", "0 * * * *", last_tick_at=at(f"2026-11-27 {last}"))
    assert bool(overdue(automation, at(f"2026-11-27 {now}"))) is is_overdue


def test_a_sensor_is_overdue_after_ten_of_its_pauses_but_not_before_three_minutes() -> None:
    def late(interval: float, silence: float) -> bool:
        one = Automation("s", interval_seconds=interval, last_tick_at=NOW - timedelta(seconds=silence))
        return bool(overdue(one, NOW))

    assert not late(5, 179)
    assert late(5, 181)
    assert not late(60, 599)
    assert late(60, 601)


def test_what_is_switched_off_is_neither_overdue_nor_does_it_enable_the_job() -> None:
    off = Automation("s", "0 * * * *", switched_on=False, last_tick_at=at("2026-01-01 00:00"), error="boom")
    health = judge(job(off), NOW)
    assert health.well and not health.enabled and health.next_run is None


def test_a_tick_that_failed_makes_its_job_unwell_although_no_run_failed() -> None:
    """A failing sensor raises no run failure, and went unseen for weeks."""
    health = judge(job(Automation("s", interval_seconds=30, last_tick_at=NOW, error="KeyError: 'x'")), NOW)
    assert health.problems == ("s failed: KeyError: 'x'",)


def test_health_for_machines_has_the_documented_fields() -> None:
    (found,) = as_json([judge(job(Automation("s", "0 * * * *"), at_work=1, ended=runs(True)), NOW)])
    assert found == {
        "name": "flush_firewall",
        "enabled": True,
        "running": True,
        "last_run": "2026-11-27T12:10:00+00:00",
        "next_run": "2026-11-27T13:00:00+00:00",
        "errors": 0,
        "success_rate": 1.0,
        "last_success": "2026-11-27T12:10:00+00:00",
        "overdue": False,
        "problems": [],
    }


def test_ticks_are_told_in_utc_and_one_that_is_now_is_the_previous_one() -> None:
    assert previous_tick("0 3 * * *", at("2026-11-27 03:00")) == at("2026-11-27 03:00")
    assert previous_tick("0 3 * * *", at("2026-11-27 02:59")) == at("2026-11-26 03:00")
    assert next_tick("0 3 * * *", at("2026-11-27 03:00")) == at("2026-11-28 03:00")
