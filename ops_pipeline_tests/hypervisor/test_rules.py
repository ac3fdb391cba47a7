"""The table from (status, observed state and reason, age) to what follows is complete, and says what the issue says."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.hypervisor.machines.rules import (
    GROUPS,
    NOTHING,
    OBSERVED_STATES,
    REASONS,
    STATES,
    TABLE,
    Group,
    Meaning,
    Policy,
    Verdict,
    alert_of,
    judge,
    observed,
)

STABLE_NOW = ["off", "running", "suspended", "paused"]
TRANSITIONS = ["starting", "updating_hardware", "powering_off_update", "rebuilding", "deleting", "moving"]
LOCKS = ["backing_up", "restoring", "snapshotting", "capturing"]
CURRENT = [*STABLE_NOW, *TRANSITIONS, *LOCKS, "archived", "delete_failed", "error"]
OLD = ["building", "stopped", "failed", "error_hardware_update"]
STABLE = {"running", "off", "stopped", "suspended", "paused"}
SEEN = [(state, reason) for state in OBSERVED_STATES for reason in ("", *REASONS.get(state, {}).values())]
MINUTE = timedelta(minutes=1)
LOOKS = Policy().missing_looks


def after(status: str, state: str, reason: str = "", age: timedelta = MINUTE, looks: int = LOOKS) -> str:
    return judge(status, state, reason, age, looks=looks).status or status


def finding(status: str, state: str, reason: str = "", age: timedelta = MINUTE, looks: int = LOOKS) -> str:
    return judge(status, state, reason, age, looks=looks).finding


def test_every_status_has_a_group_and_every_pair_an_act() -> None:
    assert set(CURRENT + OLD) == set(GROUPS)
    assert len(CURRENT) == 17
    assert {(group, meaning) for group, row in TABLE.items() for meaning in row} == {
        (group, meaning) for group in Group for meaning in Meaning
    }


EXPECTED = {
    # state, reason: what becomes of running, off, stopped, suspended, paused
    ("running", "booted"): "running running running running running",
    ("blocked", ""): "running running running running running",
    ("paused", "user"): "suspended suspended suspended suspended paused",
    ("pmsuspended", ""): "suspended suspended suspended suspended paused",
    ("paused", "io_error"): "suspended suspended suspended suspended paused",
    ("paused", "migration"): "running off stopped suspended paused",
    ("paused", "save"): "running off stopped suspended paused",
    ("paused", "snapshot"): "running off stopped suspended paused",
    ("paused", "from_snapshot"): "running off stopped suspended paused",
    ("paused", "starting"): "running off stopped suspended paused",
    ("shutting_down", "user"): "running off stopped suspended paused",
    ("shutoff", "shutdown"): "stopped off stopped stopped stopped",
    ("shutoff", "destroyed"): "stopped off stopped stopped stopped",
    ("shutoff", "saved"): "stopped off stopped stopped stopped",
    ("shutoff", "migrated"): "running off stopped suspended paused",
    ("crashed", "panicked"): "stopped off stopped stopped stopped",
    ("missing", ""): "stopped off stopped stopped stopped",
    ("unknown", ""): "running off stopped suspended paused",
}


@pytest.mark.parametrize(("seen", "expected"), EXPECTED.items(), ids=str)
def test_stable_statuses_follow_the_domain(seen: tuple[str, str], expected: str) -> None:
    """Paused, blocked, shutting down and suspended domains were written off while QEMU lived."""
    before = ("running", "off", "stopped", "suspended", "paused")
    assert [after(status, *seen) for status in before] == expected.split()


@pytest.mark.parametrize("status", sorted(set(CURRENT + OLD) - STABLE))
def test_no_other_status_is_ever_overwritten(status: str) -> None:
    """Machines that were being built, moved or backed up lost their status, and with it their lock."""
    for age in (MINUTE, timedelta(days=400)):
        written = {seen: judge(status, *seen, age, looks=99).status for seen in SEEN}
        assert written == dict.fromkeys(SEEN)


@given(st.sampled_from(CURRENT + OLD + ["", "Running"]), st.sampled_from(SEEN), st.integers(0, 5))
def test_what_follows_is_settled_by_it(status: str, seen: tuple[str, str], looks: int) -> None:
    """A second pass finds nothing to do."""
    first = judge(status, *seen, MINUTE, looks=looks)
    if first.status is not None:
        assert first.status in {"running", "stopped", "suspended"}
        assert judge(first.status, *seen, MINUTE, looks=looks).status is None


@given(st.sampled_from(CURRENT + OLD), st.sampled_from(SEEN), st.timedeltas(max_value=timedelta(microseconds=-1)))
def test_nothing_follows_from_a_look_that_is_older_than_the_status(
    status: str, seen: tuple[str, str], age: timedelta
) -> None:
    assert judge(status, *seen, age, looks=99) is NOTHING


def test_a_domain_is_missing_only_after_some_looks() -> None:
    for status in ("running", "suspended", "paused"):
        assert [after(status, "missing", looks=looks) for looks in range(1, LOOKS + 1)] == [
            *[status] * (LOOKS - 1),
            "stopped",
        ]
        assert [finding(status, "missing", looks=looks) for looks in range(1, LOOKS + 1)] == [
            *[""] * (LOOKS - 1),
            "missing",
        ]


def test_a_missing_domain_stays_reported_unless_a_user_switched_it_off() -> None:
    """A transient domain is gone once it is off."""
    assert (finding("stopped", "missing"), finding("off", "missing")) == ("missing", "")


@pytest.mark.parametrize("status", ["error", "failed", "error_hardware_update", "archived", "delete_failed"])
def test_an_error_whose_domain_runs_is_a_conflict(status: str) -> None:
    for state in ("running", "blocked", "paused"):
        assert finding(status, state) == "conflict"
        assert judge(status, state, "", MINUTE).reason == f"the status is {status}, but its domain is {state}"
    for state in ("shutoff", "missing", "unknown"):
        assert judge(status, state, "", MINUTE) == NOTHING


@pytest.mark.parametrize(
    ("status", "longest"),
    [(status, timedelta(hours=1)) for status in TRANSITIONS]
    + [("building", timedelta(hours=1))]
    + [(status, timedelta(days=1)) for status in LOCKS],
)
def test_what_outlives_its_maximum_age_is_stuck(status: str, longest: timedelta) -> None:
    hours = "24 hours" if longest == timedelta(days=1) else "60 minutes"
    late = Verdict(None, f"{status} for longer than {hours}", "stuck")
    for state in OBSERVED_STATES:
        assert judge(status, state, "", longest) == NOTHING
        assert judge(status, state, "", longest + timedelta(seconds=1)) == late, state


def test_a_status_of_a_newer_platform_is_left_alone_and_told() -> None:
    assert judge("hibernating", "running", "", MINUTE) == Verdict(
        None, "this program does not know the status 'hibernating'", "strange"
    )


def test_the_platforms_own_word_for_down_is_written_where_it_is_set() -> None:
    policy = Policy(stopped="off")
    assert judge("running", "shutoff", "destroyed", MINUTE, policy=policy).status == "off"
    assert judge("running", "missing", "", MINUTE, looks=3, policy=policy).status == "off"
    assert judge("stopped", "shutoff", "", MINUTE, policy=policy) == NOTHING


def test_an_io_error_and_a_crash_are_alerts_with_advice() -> None:
    assert "look at its storage" in alert_of("running", "paused", "io_error")
    assert alert_of("running", "crashed", "panicked") == "crashed: the guest panicked"
    assert alert_of("stopped", "shutoff", "crashed") == "crashed"
    assert alert_of("off", "shutoff", "crashed") == ""
    assert alert_of("archived", "crashed", "") == ""
    assert alert_of("running", "paused", "user") == ""
    assert alert_of("running", "shutoff", "migrated").startswith("migrated away")
    assert alert_of("moving", "shutoff", "migrated") == ""


def test_numbers_of_libvirt_have_words_and_strange_ones_are_unknown() -> None:
    assert observed(3, 5) == ("paused", "io_error")
    assert observed(5, 0) == ("shutoff", "")
    assert [observed(number, 1)[0] for number in (-1, 0, 8, 99)] == ["unknown"] * 4
    assert observed(1, 99) == ("running", "")


def test_the_words_are_libvirts_own() -> None:
    import libvirt

    for number, word in STATES.items():
        assert getattr(libvirt, f"VIR_DOMAIN_{word.upper().replace('SHUTTING_DOWN', 'SHUTDOWN')}") == number
    prefix = {"paused": "PAUSED", "shutoff": "SHUTOFF", "running": "RUNNING", "crashed": "CRASHED"}
    names = {"io_error": "IOERROR", "starting": "STARTING_UP"}
    for state, reasons in REASONS.items():
        for number, word in reasons.items():
            name = names.get(word, word.upper())
            if state in prefix:
                # An older libvirt does not know the newest.
                assert getattr(libvirt, f"VIR_DOMAIN_{prefix[state]}_{name}", number) == number
