"""How looks become a state: hysteresis, start grace, flapping, maintenance, and the share of time that it was up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.services.registry import Maintenance, Service, SystemdAction, TcpCheck
from ops_pipeline.services.states import (
    DEGRADED,
    DOWN,
    GIVEN_UP,
    MAINTENANCE,
    RECOVERING,
    STARTING,
    STOPPED,
    UNKNOWN,
    UP,
    Look,
    State,
    advance,
    change_share,
    reset,
    restarted,
    uptime,
)
from ops_pipeline_tests.usage.calls import NOON, examples

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
LOOKS = {"U": UP, "D": DOWN, "G": DEGRADED, "?": UNKNOWN, "S": STARTING, "O": STOPPED}
"""The letters of the sequences below: up, down, degraded, unknown, starting, and stopped by an operator."""


def service(**fields: Any) -> Service:
    usual: dict[str, Any] = {"name": "web", "description": "The shop", "recovery": "auto"}
    usual["check"] = TcpCheck(kind="tcp", port=80)
    usual["action"] = SystemdAction(kind="systemd", unit="nginx.service")
    return Service(**usual | fields)


def window(start: datetime, until: datetime) -> Maintenance:
    return Maintenance.model_validate({"from": start, "until": until})


def walk(letters: str, state: State = State(), start: datetime = NOON, **fields: Any) -> list[State]:  # noqa: B008
    """The states after looks, one each 10 seconds from `start` on."""
    found = []
    for number, letter in enumerate(letters):
        look = Look(LOOKS[letter], f"look {number}", float(number + 1))
        state = advance(service(**fields), state, look, start + number * 10 * SECOND)
        found.append(state)
    return found


def names(letters: str, state: State = State(), start: datetime = NOON, **fields: Any) -> list[str]:  # noqa: B008
    return [one.state for one in walk(letters, state, start, **fields)]


def last(letters: str, **fields: Any) -> State:
    return walk(letters, **fields)[-1]


# Hysteresis


@pytest.mark.parametrize("down_after", range(1, 6))
def test_a_service_is_down_with_the_last_of_so_many_failures_in_a_row(down_after: int) -> None:
    """One lost packet paged somebody at night."""
    found = walk("U" + "D" * down_after, down_after=down_after)
    assert [one.state for one in found] == [UP] * down_after + [DOWN]
    assert [one.failures for one in found] == list(range(down_after + 1))
    assert found[-1].since == found[-1].checked_at == NOON + down_after * 10 * SECOND


@pytest.mark.parametrize("up_after", range(1, 6))
def test_a_service_that_was_down_is_up_with_the_last_of_so_many_successes_in_a_row(up_after: int) -> None:
    found = walk("DDD" + "U" * up_after, up_after=up_after)[3:]
    assert [one.state for one in found] == [DOWN] * (up_after - 1) + [UP]
    assert [one.successes for one in found] == list(range(1, up_after + 1))


@pytest.mark.parametrize("between", ["U", "G", "O"])
def test_failures_that_are_not_in_a_row_start_over(between: str) -> None:
    assert DOWN not in names(f"UDD{between}DD{between}DD")


def test_successes_that_are_not_in_a_row_start_over() -> None:
    assert UP not in names("DDDUDUDUD")
    assert names("DDDUDUU")[-1] == UP


def test_the_first_success_of_a_service_never_seen_counts_at_once_and_the_first_failure_does_not() -> None:
    assert names("U") == [UP]
    assert names("DDD") == [UNKNOWN, UNKNOWN, DOWN]
    assert names("DDU") == [UNKNOWN, UNKNOWN, UP]


def test_what_is_degraded_is_up_with_a_flaw() -> None:
    assert names("GUG") == [DEGRADED, UP, DEGRADED]
    assert names("DDDGG") == [UNKNOWN, UNKNOWN, DOWN, DOWN, DEGRADED]
    assert last("GGGGGGGG").looks == "UUUUUUUU"


@pytest.mark.parametrize("before", ["U", "DDD", "DD", "DDDU"])
def test_a_look_that_cannot_tell_is_unknown_and_counts_for_nothing(before: str) -> None:
    """A time-out of systemctl was a failure of every service at once."""
    (*_, known) = walk(before)
    (*_, unknown) = walk("???", known, NOON + HOUR)
    assert unknown.state == UNKNOWN
    kept = ("confirmed", "failures", "successes", "looks", "flapping", "given_up", "restarts")
    assert {name: getattr(unknown, name) for name in kept} == {name: getattr(known, name) for name in kept}
    assert unknown.since == (known.since if known.state == UNKNOWN else NOON + HOUR)
    assert unknown.checked_at == NOON + HOUR + 20 * SECOND


def test_failures_may_have_looks_that_cannot_tell_between_them() -> None:
    assert names("UD?D?D") == [UP, UP, UNKNOWN, UP, UNKNOWN, DOWN]


def test_a_state_keeps_the_reason_and_the_time_of_its_last_look() -> None:
    state = last("UD")
    assert (state.state, state.reason, state.latency_ms) == (UP, "look 1", 2.0)
    assert (state.since, state.checked_at) == (NOON, NOON + 10 * SECOND)
    told_none = advance(service(), state, Look(DOWN, "no answer"), NOON + HOUR)
    assert (told_none.reason, told_none.latency_ms) == ("no answer", 2.0)


# Stopped by an operator


def test_what_an_operator_stopped_is_neither_up_nor_down() -> None:
    assert names("UOOOO") == [UP, STOPPED, STOPPED, STOPPED, STOPPED]
    assert names("DDDO")[-1] == STOPPED


@pytest.mark.parametrize("before", ["DDD", "UDUDUDUDUDUD", "U"])
def test_what_was_stopped_begins_anew_when_it_is_started(before: str) -> None:
    """The looks of services taken out of use counted as failing for ever: nothing was recovered any more."""
    given_up = replace(last(before), given_up=True)
    (*_, stopped) = walk("O", given_up, NOON + HOUR)
    begun = (stopped.confirmed, stopped.failures, stopped.successes, stopped.looks, stopped.flapping, stopped.given_up)
    assert begun == ("", 0, 0, "", False, False)
    assert names("U", stopped, NOON + 2 * HOUR) == [UP]
    assert names("DDD", stopped, NOON + 2 * HOUR) == [UNKNOWN, UNKNOWN, DOWN]


def test_stopping_a_service_gives_back_no_restarts() -> None:
    again = restarted(last("DDD"), NOON + HOUR, service())
    (*_, stopped) = walk("O", again, NOON + HOUR)
    assert stopped.restarts == (NOON + HOUR,)


# On its way up


def test_a_service_may_take_its_grace_to_start_and_no_longer() -> None:
    """A service that hung while it started was on its way up for a week."""
    assert names("USSSSSSS", start_grace_seconds=30) == [UP] * 7 + [DOWN]
    (*_, state) = walk("USSSSSSS", start_grace_seconds=30)
    assert (state.failures, state.reason) == (3, "still look 7 after 30 s")
    assert names("USSSS", start_grace_seconds=30, down_after=1) == [UP] * 5
    assert names("USSSSS", start_grace_seconds=30, down_after=1) == [UP] * 5 + [DOWN]


def test_a_start_between_failures_is_a_start_of_its_own() -> None:
    assert names("USSSUSSSUSSS", start_grace_seconds=30, down_after=1) == [UP] * 12


def test_a_service_that_is_down_recovers_when_somebody_starts_it() -> None:
    """An operator was starting the database when its start was cut short by a restart."""
    assert names("DDDSSS") == [UNKNOWN, UNKNOWN, DOWN, RECOVERING, RECOVERING, RECOVERING]
    assert names("DDDSSSUU")[-2:] == [DOWN, UP]


def test_starting_is_told_of_no_service_that_was_not_down() -> None:
    assert names("SS") == [UNKNOWN, UNKNOWN]
    assert names("GS") == [DEGRADED, UP]


# After a restart


def after_restart(letters: str, grace: float = 30, **fields: Any) -> list[State]:
    """The states after looks, the first one 10 seconds after a restart."""
    fields["start_grace_seconds"] = grace
    down = walk("DDD", start=NOON - HOUR, **fields)[-1]
    return walk(letters, restarted(down, NOON - 10 * SECOND, service(**fields)), **fields)


def test_a_restart_forgets_the_failures_and_begins_a_grace() -> None:
    """A booting service was restarted again and again, since its failures survived the restart."""
    down = last("DDDD")
    state = restarted(down, NOON + HOUR, service(start_grace_seconds=45))
    assert (state.state, state.since, state.failures, state.successes) == (RECOVERING, NOON + HOUR, 0, 0)
    assert (state.grace_until, state.restarts) == (NOON + HOUR + 45 * SECOND, (NOON + HOUR,))
    assert (state.confirmed, state.looks) == (DOWN, "DDDD")


def test_failures_during_the_grace_after_a_restart_are_none() -> None:
    found = after_restart("DDDD")
    assert [one.state for one in found] == [RECOVERING, RECOVERING, DOWN, DOWN]
    assert [one.failures for one in found] == [0, 0, 1, 2]
    assert [len(one.looks) for one in found] == [3, 3, 4, 5]


def test_a_restart_succeeds_only_when_the_service_stays_up_for_its_grace() -> None:
    """A service that ran for three seconds after each restart was recovered every time."""
    assert [one.state for one in after_restart("UUUU", grace=45)] == [RECOVERING, RECOVERING, RECOVERING, RECOVERING]
    assert [one.state for one in after_restart("UUUUU", grace=45)][-1] == UP
    assert [one.state for one in after_restart("UUUUDDD", grace=60)] == [RECOVERING] * 5 + [DOWN, DOWN]
    assert after_restart("UUUUU", grace=45)[-1].grace_until is None


def test_a_service_that_is_up_only_after_its_grace_needs_so_many_successes() -> None:
    assert [one.state for one in after_restart("DDUU", grace=20, up_after=2)] == [RECOVERING, DOWN, DOWN, UP]
    assert [one.state for one in after_restart("??UU", grace=20)] == [UNKNOWN, UNKNOWN, RECOVERING, UP]


def test_what_starts_after_a_restart_recovers_until_its_grace_is_over() -> None:
    assert [one.state for one in after_restart("SSSSS", grace=20)] == [RECOVERING] * 3 + [DOWN, DOWN]


def test_restarts_are_remembered_for_their_window() -> None:
    one = service(window_minutes=15)
    state = State(restarts=(NOON - timedelta(minutes=20), NOON - timedelta(minutes=15), NOON - timedelta(minutes=14)))
    assert restarted(state, NOON, one).restarts == (NOON - timedelta(minutes=14), NOON)


def test_what_was_given_up_stays_so_until_it_is_up() -> None:
    given_up = replace(last("DDD"), given_up=True, state=GIVEN_UP)
    assert names("DU?SDU", given_up) == [GIVEN_UP, GIVEN_UP, UNKNOWN, RECOVERING, GIVEN_UP, GIVEN_UP]
    (*_, up) = walk("DUU", given_up)
    assert (up.state, up.given_up) == (UP, False)


def test_a_reset_holds_nothing_against_a_service_but_keeps_its_maintenance() -> None:
    held = State(
        GIVEN_UP, NOON, "x", DOWN, 7, 0, "DDD", True, NOON, NOON, (NOON,), True, NOON + HOUR, NOON, latency_ms=3.0
    )
    fresh = reset(held, NOON + SECOND)
    kept = State(since=NOON + SECOND, reason="reset by an operator", maintenance_until=NOON + HOUR, checked_at=NOON)
    assert fresh == kept


# Flapping


@pytest.mark.parametrize(
    ("letters", "share"), [("UDUDUD", 0), ("UDUDUDU", 1), ("UUUDDDD", 1 / 6), ("U" * 21, 0), ("", 0)]
)
def test_the_share_of_changes_is_told_from_seven_looks_on(letters: str, share: float) -> None:
    assert change_share(letters) == share


def test_a_service_that_changes_with_half_of_its_looks_flaps_until_a_quarter() -> None:
    """A service that failed every other look was never three times down in a row, so nobody was told."""
    flaps = walk("UDUDUDU")
    assert [one.flapping for one in flaps] == [False] * 6 + [True]
    calm = walk("U" * 30, flaps[-1], NOON + HOUR)
    shares = [change_share(one.looks) for one in calm]
    assert [one.flapping for one in calm] == [share > 0.25 for share in shares]
    assert shares[0] > 0.5 and not calm[-1].flapping
    between = [one for one, share in zip(calm, shares, strict=True) if 0.25 < share < 0.5]
    assert between and all(one.flapping for one in between)


def test_only_the_last_twenty_one_looks_are_remembered() -> None:
    assert last("D" * 5 + "U" * 20).looks == "D" + "U" * 20


@given(st.text("UDG?O", max_size=60), st.integers(1, 4), st.integers(1, 4))
@examples(300)
def test_the_state_is_that_of_the_last_run_of_looks_that_is_long_enough(
    letters: str, down_after: int, up_after: int
) -> None:
    """Against a reading of the whole sequence, with neither counters nor steps."""
    since_stop = letters.rpartition("O")[2].replace("?", "").replace("G", "U")
    confirmed, run = "", ""
    for letter in since_stop:
        run = run + letter if run.endswith(letter) else letter
        if letter == "U" and (not confirmed or len(run) >= up_after):
            confirmed = UP
        elif letter == "D" and len(run) >= down_after:
            confirmed = DOWN
    state = ([State(), *walk(letters, down_after=down_after, up_after=up_after)])[-1]
    assert state.confirmed == confirmed
    assert state.looks == since_stop[-21:]
    shown = {"?": UNKNOWN, "O": STOPPED, "G": DEGRADED if confirmed == UP else confirmed}
    assert state.state == (shown.get(letters[-1:], confirmed) or UNKNOWN)


# Maintenance


def test_during_maintenance_looks_say_nothing_and_afterwards_everything_begins_anew() -> None:
    """Upgrades were alerted as outages, and their failures counted on the morning after."""
    open_ = window(NOON + 20 * SECOND, NOON + 60 * SECOND)
    found = walk("UDDDDUDDD", maintenance=[open_])
    assert [one.state for one in found] == [UP, UP] + [MAINTENANCE] * 4 + [UP, UP, DOWN]
    assert {(one.failures, one.successes, one.looks) for one in found[2:6]} == {(0, 0, "")}
    assert found[2].since == found[5].since == NOON + 20 * SECOND


def test_a_window_that_an_operator_opened_ends_by_itself() -> None:
    opened = replace(last("U"), maintenance_until=NOON + 30 * SECOND)
    assert names("DDDDDD", opened) == [MAINTENANCE] * 3 + [UP, UP, DOWN]


def test_a_start_before_a_window_is_not_held_against_a_service_after_it() -> None:
    open_ = window(NOON + 10 * SECOND, NOON + 60 * SECOND)
    assert names("SSSSSSSS", maintenance=[open_], down_after=1)[-2:] == [UNKNOWN, UNKNOWN]


def test_what_is_stopped_or_unknown_during_maintenance_is_in_maintenance() -> None:
    assert names("O?SDGU", maintenance=[window(NOON, NOON + HOUR)]) == [MAINTENANCE] * 6


def test_maintenance_gives_back_neither_restarts_nor_hope() -> None:
    before = replace(restarted(last("DDD"), NOON, service()), given_up=True)
    (*_, within) = walk("UUUU", before, maintenance=[window(NOON, NOON + HOUR)])
    assert (within.restarts, within.given_up, within.confirmed) == ((NOON,), True, DOWN)


# The share of time in which it was up


def share(*changes: tuple[float, str], start: float = 0, end: float = 10) -> float | None:
    transitions: Sequence[tuple[datetime, str]] = [(NOON + hours * HOUR, state) for hours, state in changes]
    return uptime(transitions, NOON + start * HOUR, NOON + end * HOUR)


@pytest.mark.parametrize("state", [DOWN, GIVEN_UP, RECOVERING])
def test_uptime_is_the_share_of_time_in_which_it_was_up_or_degraded(state: str) -> None:
    assert share((0, UP), (2, DEGRADED), (6, state)) == 0.6
    assert share((0, state)) == 0


@pytest.mark.parametrize("state", [UNKNOWN, MAINTENANCE, STOPPED])
def test_time_of_which_nothing_is_known_or_that_was_meant_does_not_count(state: str) -> None:
    """A night of maintenance made the month's figure fall below what was promised."""
    assert share((0, UP), (3, state), (9, DOWN)) == 0.75
    assert share((0, state)) is None
    assert share() is None


def test_uptime_begins_with_the_first_state_and_the_window_cuts_states() -> None:
    assert share((8, UP)) == 1
    assert share((-5, DOWN), (5, UP)) == 0.5
    assert share((-5, DOWN), (-1, UP)) == 1
    assert share((12, DOWN)) is None
    assert share((0, UP), (9, DOWN), (11, UP)) == 0.9


@given(
    st.lists(
        st.tuples(st.integers(-20, 40), st.sampled_from([UP, DEGRADED, DOWN, GIVEN_UP, UNKNOWN, STOPPED])), max_size=8
    ),
    st.integers(-10, 10),
    st.integers(1, 20),
)
@examples(200)
def test_uptime_agrees_with_asking_for_every_hour(changes: list[tuple[int, str]], start: int, length: int) -> None:
    changes.sort(key=lambda change: change[0])
    seen = []
    for hour in range(start, start + length):
        current = [state for at, state in changes if at <= hour]
        seen += [current[-1] in {UP, DEGRADED}] if current and current[-1] not in {UNKNOWN, STOPPED} else []
    found = share(*changes, start=start, end=start + length)
    assert found == (pytest.approx(sum(seen) / len(seen)) if seen else None)
