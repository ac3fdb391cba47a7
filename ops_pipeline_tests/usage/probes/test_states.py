"""The rules of model status: when a state changes, whom to probe, and how long a model was up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.usage.probes.answers import (
    AVAILABLE,
    CONNECTION,
    DNS,
    INCONCLUSIVE,
    INVALID_RESPONSE,
    LIMITED,
    NOT_TESTED,
    TIMEOUT,
    UNAVAILABLE,
    Answer,
)
from ops_pipeline.usage.probes.states import (
    LEAVE,
    PROBE,
    TRAFFIC,
    Status,
    Traffic,
    advance,
    advance_by_traffic,
    failing,
    intent_for,
    name_of,
    own_network_down,
    plan_probes,
    uptime,
)
from ops_pipeline.usage.probes.targets import ProbesFile, Target
from ops_pipeline_tests.usage.calls import NOON, examples

STATES = [AVAILABLE, LIMITED, UNAVAILABLE]
RESULTS = [*STATES, INCONCLUSIVE]
SECOND = timedelta(seconds=1)
ERRORS = {AVAILABLE: "", LIMITED: "Rate Limit Exceeded", UNAVAILABLE: "Timeout", INCONCLUSIVE: "Invalid Argument"}


def after(results: Sequence[str], needed: int, status: Status = Status()) -> Status:  # noqa: B008 - frozen
    """The status after probes with these results, one each second from noon on."""
    for number, result in enumerate(results):
        answer = Answer(result, ERRORS[result], f"{result} {number}", response_time_ms=float(number))
        status = advance(status, answer, needed, NOON + number * SECOND)
    return status


def target(model: str = "gpt", type_: Any = "chatCompletion", **fields: Any) -> Target:
    usual: dict[str, Any] = {"provider": "openai", "base_url": "https://h/v1", "model": model, "type": type_}
    return Target(**usual | fields)


def listed(*targets: Target, **limits: Any) -> ProbesFile:
    return ProbesFile(models=targets or (target(),), **limits)


# When a state changes


@pytest.mark.parametrize("needed", range(1, 6))
@pytest.mark.parametrize(("old", "new"), [(old, new) for old in STATES for new in STATES if old != new])
def test_a_state_changes_with_the_last_of_so_many_agreeing_probes(old: str, new: str, needed: int) -> None:
    """One time-out took a model out of the list for six hours."""
    start = Status(old, changed_at=NOON - 5 * SECOND)
    for number in range(1, needed):
        seen = after([new] * number, needed, start)
        assert (seen.state, seen.candidate, seen.agreeing) == (old, new, number)
        assert seen.changed_at == start.changed_at
    changed = after([new] * needed, needed, start)
    assert (changed.state, changed.candidate, changed.agreeing) == (new, "", 0)
    assert changed.changed_at == changed.checked_at == NOON + (needed - 1) * SECOND


@pytest.mark.parametrize("needed", range(2, 6))
@pytest.mark.parametrize("old", STATES)
def test_a_model_that_flaps_does_not_change_its_state(old: str, needed: int) -> None:
    for new in set(STATES) - {old}:
        status = after(([new] * (needed - 1) + [old]) * 5, needed, Status(old))
        assert (status.state, status.candidate, status.agreeing, status.changed_at) == (old, "", 0, None)


def test_failures_that_do_not_agree_start_over() -> None:
    """Half the probes limited and half of them failed is not the same failure three times in a row."""
    status = after([UNAVAILABLE, UNAVAILABLE, LIMITED], 3, Status(AVAILABLE))
    assert (status.state, status.candidate, status.agreeing) == (AVAILABLE, LIMITED, 1)
    status = after([UNAVAILABLE, LIMITED] * 5, 3, Status(AVAILABLE))
    assert (status.state, status.candidate, status.agreeing) == (AVAILABLE, LIMITED, 1)


def test_the_first_success_of_a_model_never_tested_counts_at_once() -> None:
    assert after([AVAILABLE], 5).state == AVAILABLE
    assert after([AVAILABLE], 5).changed_at == NOON
    assert after([UNAVAILABLE, LIMITED, LIMITED, AVAILABLE], 5).state == AVAILABLE


@pytest.mark.parametrize("result", [UNAVAILABLE, LIMITED])
def test_the_first_failure_of_a_model_never_tested_does_not(result: str) -> None:
    status = after([result] * 2, 3)
    assert (status.state, status.available, status.candidate, status.agreeing) == (NOT_TESTED, None, result, 2)
    assert after([result] * 3, 3).state == result


@pytest.mark.parametrize("start", [Status(), Status(AVAILABLE), Status(UNAVAILABLE, candidate=AVAILABLE, agreeing=2)])
def test_an_inconclusive_answer_changes_no_state_and_no_count(start: Status) -> None:
    """A probe that the provider refused for its parameters was taken for a model that is down."""
    status = after([INCONCLUSIVE] * 9, 3, start)
    assert (status.state, status.candidate, status.agreeing) == (start.state, start.candidate, start.agreeing)
    assert status.changed_at is None
    assert status.checked_at == NOON + 8 * SECOND
    assert (status.error_code, status.error_message) == ("Invalid Argument", "inconclusive 8")


def test_agreeing_probes_may_have_inconclusive_ones_between_them() -> None:
    assert after([UNAVAILABLE, INCONCLUSIVE, UNAVAILABLE], 2, Status(AVAILABLE)).state == UNAVAILABLE


def test_every_look_leaves_its_error_and_time() -> None:
    status = after([UNAVAILABLE], 3, Status(AVAILABLE, "old", "older", 1.0))
    assert (status.error_code, status.error_message, status.response_time_ms) == ("Timeout", "unavailable 0", 0.0)
    status = after([AVAILABLE], 3, Status(AVAILABLE, "old", "older", 1.0))
    assert (status.error_code, status.error_message, status.checked_at) == ("", "available 0", NOON)


@pytest.mark.parametrize(
    ("state", "available"), [(AVAILABLE, True), (LIMITED, True), (UNAVAILABLE, False), (NOT_TESTED, None)]
)
def test_a_limited_model_is_not_down(state: str, available: bool | None) -> None:
    assert Status(state).available is available


def reference(results: Sequence[str], needed: int) -> str:
    """The state after probes, from the runs of equal results: no counter and no candidate."""
    state = NOT_TESTED
    conclusive = [result for result in results if result != INCONCLUSIVE]
    for result, run in groupby(conclusive):
        long_enough = len(list(run)) >= needed
        if long_enough or (state == NOT_TESTED and result == AVAILABLE):
            state = result
    return state


@given(st.lists(st.sampled_from(RESULTS), max_size=40), st.integers(1, 5))
@examples(400)
def test_the_state_is_the_one_of_the_last_run_of_equal_results_that_is_long_enough(
    results: list[str], needed: int
) -> None:
    status, changed_at = Status(), None
    for number, result in enumerate(results):
        before, status = status, advance(status, Answer(result), needed, NOON + number * SECOND)
        changed_at = status.checked_at if status.state != before.state else changed_at
        assert status.state == reference(results[: number + 1], needed)
        assert status.changed_at == changed_at
        assert 0 <= status.agreeing < needed
        assert (status.candidate == "") == (status.agreeing == 0)
        assert status.candidate != status.state


def test_real_calls_prove_a_model() -> None:
    proved = advance_by_traffic(Status(error_code="x", error_message="y"), NOON)
    assert proved == Status(AVAILABLE, checked_at=NOON, changed_at=NOON)
    again = advance_by_traffic(proved, NOON + SECOND)
    assert again == Status(AVAILABLE, checked_at=NOON + SECOND, changed_at=NOON)


# Whom to probe


def intent(status: Status, traffic: Traffic, *, asked: bool = False, **fields: Any) -> tuple[str, str]:
    """What is done about a model, and why, by limits and fields of the target."""
    limits = {name: fields.pop(name) for name in list(fields) if name in ProbesFile.model_fields}
    one = target(**fields)
    found = intent_for(listed(one, **limits), one, status, traffic, asked)
    assert found.target == one
    return found.action, found.reason


@pytest.mark.parametrize("state", [AVAILABLE, NOT_TESTED])
def test_calls_that_succeeded_make_a_probe_unnecessary(state: str) -> None:
    """Probes of models that everybody was using cost more than all others."""
    text = "1 of 2 calls succeeded lately, no probe is needed"
    assert intent(Status(state), Traffic(1, 1)) == (TRAFFIC, text)
    assert intent(Status(state), Traffic(1, 1), type_="imageGeneration") == (TRAFFIC, text)


@pytest.mark.parametrize(
    "status",
    [
        Status(UNAVAILABLE),
        Status(LIMITED),
        Status(AVAILABLE, candidate=UNAVAILABLE, agreeing=1),
        Status(NOT_TESTED, candidate=LIMITED, agreeing=2),
        Status(UNAVAILABLE, candidate=AVAILABLE, agreeing=1),
    ],
)
def test_a_state_in_question_is_probed_whatever_its_calls(status: Status) -> None:
    """One call of a cache made a model that was down available."""
    assert intent(status, Traffic(100, 0)) == (PROBE, f"to see whether it is still {status.state}")


@pytest.mark.parametrize("state", [AVAILABLE, NOT_TESTED])
@pytest.mark.parametrize("failed", [0, 4])
def test_without_a_success_a_model_is_probed(state: str, failed: int) -> None:
    assert intent(Status(state), Traffic(0, failed)) == (PROBE, "no call succeeded lately")


def test_a_model_that_a_person_names_is_probed_whatever_its_calls() -> None:
    assert intent(Status(AVAILABLE), Traffic(9, 0), asked=True) == (PROBE, "asked for")
    assert intent(Status(UNAVAILABLE), Traffic(), asked=True) == (PROBE, "asked for")


@pytest.mark.parametrize("status", [Status(), Status(AVAILABLE), Status(UNAVAILABLE)])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("traffic", [Traffic(), Traffic(0, 9)])
def test_images_are_not_generated_unless_the_file_says_so(status: Status, asked: bool, traffic: Traffic) -> None:
    """A status page that generated an image of every model each hour cost more than its users."""
    off = intent(status, traffic, asked=asked, type_="imageGeneration")
    assert off == (LEAVE, "image probes cost money and are off (image_probes)")
    assert intent(status, traffic, asked=asked, type_="imageGeneration", image_probes=True)[0] == PROBE
    assert intent(status, traffic, asked=asked, type_="embedding")[0] == PROBE


@pytest.mark.parametrize(("failed", "calls", "share"), [(5, 10, 0.5), (1, 5, 0.2), (10, 10, 1), (55, 100, 0.55)])
def test_a_share_of_failures_exactly_at_the_threshold_leads_to_a_probe(failed: int, calls: int, share: float) -> None:
    """0.55 * 100 is 55.00000000000001, which 55 failures did not reach."""
    at_threshold = Traffic(calls - failed, failed)
    one_less = Traffic(calls - failed + 1, failed - 1)
    limits: dict[str, Any] = {"traffic_failure_share": share, "traffic_fewest_calls": calls}
    assert intent(Status(AVAILABLE), at_threshold, **limits) == (PROBE, f"{failed} of {calls} calls failed lately")
    assert intent(Status(AVAILABLE), one_less, **limits)[0] == TRAFFIC


@given(st.integers(1, 400), st.integers(1, 100), st.data())
@examples(200)
def test_shares_of_failures_compare_as_fractions_do(calls: int, percent: int, data: st.DataObject) -> None:
    failed = data.draw(st.integers(0, calls))
    file = listed(traffic_failure_share=float(Decimal(percent) / 100), traffic_fewest_calls=1)
    assert failing(file, Traffic(calls - failed, failed)) == (failed * 100 >= percent * calls)


def test_fewer_calls_than_the_minimum_say_nothing() -> None:
    assert intent(Status(AVAILABLE), Traffic(1, 3))[0] == TRAFFIC
    assert intent(Status(AVAILABLE), Traffic(1, 4))[0] == PROBE
    assert not failing(listed(traffic_fewest_calls=1), Traffic(0, 0))


# The plan


def test_failing_models_come_first_then_those_never_looked_at_then_those_of_longest_ago() -> None:
    """The day's budget may not last for all."""
    models = [target(name) for name in ("fresh", "old", "never", "failing", "never too", "failing never", "middle")]
    checked = {"fresh": 1, "old": 60, "failing": 0, "middle": 30}
    statuses = {
        one.key: Status(AVAILABLE, checked_at=NOON - checked[one.model] * SECOND)
        for one in models
        if one.model in checked
    }
    statuses[models[2].key] = Status(checked_at=None)
    traffic = {one.key: Traffic(1, 9) for one in models if one.model.startswith("failing")}
    intents = plan_probes(listed(*models), statuses, traffic)
    names = [one.target.model for one in intents]
    assert names == ["failing never", "failing", "never", "never too", "old", "middle", "fresh"]
    assert {one.action for one in intents} == {PROBE}


def test_the_plan_has_every_target_once_each_by_its_own_facts() -> None:
    chat, embedding, image = target(), target(type_="embedding"), target(type_="imageGeneration")
    other = target(provider="azure")
    traffic = {chat.key: Traffic(3, 0), ("openai", "gpt", ""): Traffic(0, 9), ("", "gpt", "embedding"): Traffic(9, 0)}
    statuses = {other.key: Status(LIMITED)}
    actions = {
        one.target.key: (one.action, one.reason)
        for one in plan_probes(listed(chat, embedding, image, other), statuses, traffic)
    }
    assert actions == {
        chat.key: (TRAFFIC, "3 of 3 calls succeeded lately, no probe is needed"),
        embedding.key: (PROBE, "no call succeeded lately"),
        image.key: (LEAVE, "image probes cost money and are off (image_probes)"),
        other.key: (PROBE, "to see whether it is still limited"),
    }


def test_only_the_named_models_are_planned_and_whatever_their_calls() -> None:
    models = [target("a"), target("b"), target("a", provider="azure"), target("a", "embedding"), target("meta/c")]
    traffic = {one.key: Traffic(9, 0) for one in models}
    intents = plan_probes(listed(*models), {}, traffic, only=["openai/a", "openai/meta/c", "nobody/x"])
    assert [one.target.key for one in intents] == [models[0].key, models[3].key, models[4].key]
    assert {(one.action, one.reason) for one in intents} == {(PROBE, "asked for")}
    assert plan_probes(listed(*models), {}, traffic, only=["a"]) == []
    assert {one.action for one in plan_probes(listed(*models), {}, traffic)} == {TRAFFIC}
    assert name_of(models[4].key) == "openai/meta/c"


# This machine's own network


def down(*hosts_and_errors: tuple[str, str]) -> bool:
    targets = [target(base_url=host) for host, _ in hosts_and_errors]
    return own_network_down(targets, [Answer(UNAVAILABLE, error) for _, error in hosts_and_errors])


def test_when_no_host_of_several_can_be_reached_it_is_this_machines_network() -> None:
    """When the firewall was changed every model of every provider was unavailable, and everybody was told."""
    assert down(("https://a/v1", DNS), ("https://b/v1", CONNECTION))
    assert down(("https://a/v1", CONNECTION), ("https://b/v1", CONNECTION), ("https://a/v2", DNS))


@pytest.mark.parametrize("other", ["", TIMEOUT, INVALID_RESPONSE, "Model Unavailable", "Rate Limit Exceeded"])
def test_one_answer_of_any_kind_shows_that_the_network_is_there(other: str) -> None:
    assert not down(("https://a/v1", DNS), ("https://b/v1", CONNECTION), ("https://c/v1", other))


@pytest.mark.parametrize("second", ["https://a/v2", "http://a/v1", "https://a:8001/v1", "https://A/v1"])
def test_one_host_that_cannot_be_reached_is_down_itself(second: str) -> None:
    """A machine with a server per GPU was switched off, and its models stayed available: each port was a host."""
    assert not down(("https://a/v1", CONNECTION))
    assert not down(("https://a/v1", CONNECTION), (second, CONNECTION))


def test_nothing_sent_says_nothing_about_the_network() -> None:
    assert not own_network_down([], [])


# Uptime


def at(*changes: tuple[float, str]) -> list[tuple[datetime, str]]:
    """States by the second since noon at which they began."""
    return [(NOON + second * SECOND, state) for second, state in changes]


def up(changes: Sequence[tuple[datetime, str]], start: float = 0, end: float = 100) -> float | None:
    return uptime(changes, NOON + start * SECOND, NOON + end * SECOND)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (at(), None),
        (at((0, NOT_TESTED)), None),
        (at((0, AVAILABLE)), 1),
        (at((0, LIMITED)), 1),
        (at((0, UNAVAILABLE)), 0),
        (at((-500, AVAILABLE)), 1),
        (at((-500, UNAVAILABLE), (25, AVAILABLE)), 0.75),
        (at((-500, AVAILABLE), (-400, UNAVAILABLE), (-1, AVAILABLE)), 1),
        (at((-500, AVAILABLE), (75, UNAVAILABLE), (80, AVAILABLE), (90, LIMITED)), 0.95),
        (at((50, AVAILABLE)), 1),
        (at((50, AVAILABLE), (75, UNAVAILABLE)), 0.5),
        (at((0, AVAILABLE), (20, NOT_TESTED), (80, UNAVAILABLE)), 0.5),
        (at((0, NOT_TESTED), (99, UNAVAILABLE)), 0),
        (at((0, AVAILABLE), (100, UNAVAILABLE)), 1),
        (at((100, UNAVAILABLE)), None),
        (at((200, UNAVAILABLE)), None),
        (at((-9, UNAVAILABLE), (0, AVAILABLE)), 1),
        (at((-500, AVAILABLE), (50, UNAVAILABLE), (150, AVAILABLE)), 0.5),
        (at((10, AVAILABLE), (10, UNAVAILABLE)), 0),
    ],
)
def test_uptime_is_the_share_of_the_known_time(changes: list[tuple[datetime, str]], expected: float | None) -> None:
    """A model without any probe yet ended the whole table with an error."""
    assert up(changes) == expected


def test_a_time_of_no_length_has_no_uptime() -> None:
    assert up(at((-5, AVAILABLE)), 10, 10) is None


histories = st.lists(st.tuples(st.integers(-50, 150), st.sampled_from([*STATES, NOT_TESTED])), max_size=8).map(
    lambda changes: at(*sorted(changes, key=lambda change: change[0]))
)


def by_seconds(changes: Sequence[tuple[datetime, str]], start: int, end: int) -> tuple[int, int]:
    """Seconds up, and seconds known, counted one by one."""
    states = [
        next((state for moment, state in reversed(changes) if moment <= NOON + second * SECOND), NOT_TESTED)
        for second in range(start, end)
    ]
    return sum(state in {AVAILABLE, LIMITED} for state in states), sum(state != NOT_TESTED for state in states)


@given(histories, st.integers(-60, 160), st.integers(0, 100), st.integers(0, 100))
@examples(300)
def test_uptime_is_what_counting_seconds_gives_and_adds_up_over_windows(
    changes: list[tuple[datetime, str]], start: int, first: int, second: int
) -> None:
    middle, end = start + first, start + first + second
    whole, known = by_seconds(changes, start, end)
    found = up(changes, start, end)
    assert found == (whole / known if known else None)
    assert found is None or 0 <= found <= 1
    parts = [(up(changes, *span) or 0) * by_seconds(changes, *span)[1] for span in ((start, middle), (middle, end))]
    assert sum(parts) == pytest.approx(whole)
