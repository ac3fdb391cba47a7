"""The pure rules over hours: windows, transactions' chunks, what is missing and which ranges to launch."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.usage.hours import (
    DAY,
    HOUR,
    CatchUp,
    Window,
    chunks_of,
    day_start,
    floor_hour,
    hour_text,
    missing_hours,
    next_month,
    plan_catch_up,
    windows_of,
)
from ops_pipeline_tests.usage.calls import at, examples

START = at("2026-03-01 00:00")
BERLIN = timezone(timedelta(hours=1))
INDIA = timezone(timedelta(hours=5, minutes=30))

indexes = st.sets(st.integers(0, 80))
few_indexes = st.sets(st.integers(0, 14))


def hours(*numbers: int) -> list[datetime]:
    """Hours by their distance from the start."""
    return [START + number * HOUR for number in numbers]


def held(windows: Iterable[Window]) -> list[datetime]:
    """All hours of some windows, as often as they occur."""
    return [hour for window in windows for hour in window]


# Window


def test_a_window_counts_and_lists_its_hours_without_its_end() -> None:
    window = Window(START, START + 3 * HOUR)
    assert len(window) == 3
    assert list(window) == hours(0, 1, 2)
    assert START in window
    assert window.end - timedelta(microseconds=1) in window
    assert window.end not in window
    assert START - timedelta(microseconds=1) not in window


def test_a_window_names_its_first_and_last_hour() -> None:
    assert str(Window(START, START + HOUR)) == "2026-03-01 00:00"
    assert str(Window(START, START + 24 * HOUR)) == "2026-03-01 00:00 to 2026-03-01 23:00"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (START, START),
        (START + HOUR, START),
        (START + timedelta(minutes=30), START + HOUR),
        (START, START + timedelta(minutes=90)),
        (START, START + timedelta(hours=1, microseconds=1)),
    ],
)
def test_a_window_off_the_hour_or_empty_is_refused(start: datetime, end: datetime) -> None:
    with pytest.raises(ValueError, match="no range of whole UTC hours"):
        Window(start, end)


def test_a_window_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Window(datetime(2026, 3, 1), datetime(2026, 3, 2))  # noqa: DTZ001


def test_a_window_in_another_zone_is_the_same_window_if_its_hours_are_utc_hours() -> None:
    assert len(Window(START.astimezone(BERLIN), (START + 2 * HOUR).astimezone(BERLIN))) == 2
    with pytest.raises(ValueError, match="no range of whole UTC hours"):
        Window(datetime(2026, 3, 1, 5, tzinfo=INDIA), datetime(2026, 3, 1, 6, tzinfo=INDIA))


# The hour of an instant


@pytest.mark.parametrize(
    ("instant", "hour"),
    [
        ("2026-03-10 12:00:00", "2026-03-10 12:00"),
        ("2026-03-10 12:59:59.999999", "2026-03-10 12:00"),
        ("2026-03-10 23:59:59.999999", "2026-03-10 23:00"),
        ("2026-12-31 23:30:00", "2026-12-31 23:00"),
        ("2028-02-29 00:00:00.000001", "2028-02-29 00:00"),
    ],
)
def test_the_hour_of_an_instant_is_the_one_it_lies_in(instant: str, hour: str) -> None:
    assert floor_hour(at(instant)) == at(hour)


def test_the_hour_is_the_utc_hour_also_of_a_zone_with_half_hours() -> None:
    assert floor_hour(datetime(2026, 3, 10, 12, 15, tzinfo=INDIA)) == at("2026-03-10 06:00")
    assert floor_hour(datetime(2026, 3, 10, 12, 45, tzinfo=INDIA)).tzinfo is UTC


def test_an_instant_without_a_time_zone_has_no_hour() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        floor_hour(datetime(2026, 3, 10, 12))  # noqa: DTZ001


def test_hours_are_told_in_utc() -> None:
    assert hour_text(datetime(2026, 3, 10, 1, tzinfo=BERLIN)) == "2026-03-10 00:00"


@pytest.mark.parametrize(
    ("day", "following"),
    [
        (date(2026, 1, 1), date(2026, 2, 1)),
        (date(2026, 1, 31), date(2026, 2, 1)),
        (date(2028, 2, 29), date(2028, 3, 1)),
        (date(2026, 12, 31), date(2027, 1, 1)),
    ],
)
def test_the_next_month_begins_on_its_first_day(day: date, following: date) -> None:
    assert next_month(day) == following


def test_a_day_starts_at_midnight_utc() -> None:
    assert day_start(date(2028, 2, 29)) == at("2028-02-29 00:00")


# Windows of scattered hours


@given(indexes, st.randoms())
@examples(60)
def test_windows_hold_exactly_the_hours_and_none_could_be_joined(numbers: set[int], random: Random) -> None:
    wanted = hours(*numbers)
    random.shuffle(wanted)
    windows = windows_of(wanted + wanted[:5])
    assert held(windows) == sorted(wanted)
    assert all(one.end < other.start for one, other in pairwise(windows))


# Chunks: one transaction each


@given(indexes, st.sets(st.integers(0, 80)), st.randoms())
@examples(80)
def test_chunks_hold_every_hour_once_within_one_day_and_failed_hours_alone(
    numbers: set[int], failed: set[int], random: Random
) -> None:
    wanted = hours(*numbers)
    random.shuffle(wanted)
    alone = set(hours(*failed))
    chunks = chunks_of(wanted + wanted[:3], alone)
    assert held(chunks) == sorted(wanted)
    for chunk in chunks:
        assert chunk.start.date() == (chunk.end - HOUR).date()
        assert len(chunk) == 1 or not alone.intersection(chunk)


@given(indexes, st.sets(st.integers(0, 80)))
@examples(60)
def test_no_two_chunks_could_have_been_one_transaction(numbers: set[int], failed: set[int]) -> None:
    chunks = chunks_of(hours(*numbers), set(hours(*failed)))
    alone = set(hours(*failed))
    for one, other in pairwise(chunks):
        adjacent = one.end == other.start and one.end.hour != 0
        assert not adjacent or alone.intersection(one) or alone.intersection(other)


def test_a_month_is_one_transaction_a_day() -> None:
    chunks = chunks_of(hours(*range(31 * 24)))
    assert len(chunks) == 31
    assert {len(chunk) for chunk in chunks} == {24}


def test_a_range_over_midnight_is_cut_there() -> None:
    assert chunks_of(hours(22, 23, 24, 25)) == [
        Window(START + 22 * HOUR, START + DAY),
        Window(START + DAY, START + 26 * HOUR),
    ]


# What is missing


def missing(**facts: Any) -> list[datetime]:
    given: dict[str, Any] = {"first_call": START, "start": START, "closed_until": START + 6 * HOUR, "done": ()} | facts
    return missing_hours(**given)


def test_without_calls_nothing_is_missing() -> None:
    assert missing(first_call=None) == []


def test_hours_count_from_the_first_call_to_the_last_closed_hour() -> None:
    found = missing(first_call=START + timedelta(hours=2, minutes=59))
    assert found == hours(2, 3, 4, 5)


def test_hours_before_the_configured_start_are_not_missing() -> None:
    assert missing(start=START + 4 * HOUR) == hours(4, 5)


def test_a_start_in_the_future_asks_for_nothing() -> None:
    assert missing(start=START + 100 * HOUR) == []
    assert missing(start=START + 6 * HOUR) == []


def test_the_hour_still_running_is_never_missing() -> None:
    assert missing(closed_until=START, first_call=START) == []
    assert missing(closed_until=START + HOUR) == hours(0)


def test_hours_whose_raw_calls_were_pruned_are_not_missing() -> None:
    """A pruned hour that is asked for again would be made from fewer calls, or from none."""
    assert missing(pruned_before=START + 4 * HOUR) == hours(4, 5)
    assert missing(pruned_before=START - 4 * HOUR) == hours(*range(6))
    assert missing(pruned_before=START + 99 * HOUR) == []


@given(st.sets(st.integers(-5, 60)))
@examples(60)
def test_holes_are_found_anywhere(done: set[int]) -> None:
    """The watermark of the system this one replaces was the newest hour: a hole behind it stayed for ever."""
    found = missing(closed_until=START + 50 * HOUR, done=hours(*done))
    assert found == [hour for hour in hours(*range(50)) if hour not in set(hours(*done))]


# What to launch


def plan(wanted: list[datetime], **options: Any) -> CatchUp:
    given: dict[str, Any] = {"in_flight": (), "attempts": {}, "max_attempts": 3, "max_range_hours": 744} | options
    return plan_catch_up(wanted, **given)


def fewest(wanted: set[int], barred: set[int], longest: int) -> int:
    """The least number of ranges that hold the wanted hours and no barred one, by trying every range."""
    left = sorted(wanted)
    best = {len(left): 0}
    for first in range(len(left) - 1, -1, -1):
        options = []
        for last in range(first, len(left)):
            span = range(left[first], left[last] + 1)
            if len(span) <= longest and not barred.intersection(span):
                options.append(1 + best[last + 1])
        best[first] = min(options)
    return best[0]


@given(few_indexes, few_indexes, few_indexes, st.integers(1, 8), st.randoms())
@examples(300)
def test_ranges_are_as_few_as_possible_and_hold_nothing_they_must_not(
    lacking: set[int], flying: set[int], failed: set[int], longest: int, random: Random
) -> None:
    barred = failed | flying
    wanted = lacking - barred
    asked = hours(*lacking)
    random.shuffle(asked)
    found = plan(
        asked,
        in_flight=set(hours(*flying)),
        attempts=dict.fromkeys(hours(*failed), 3),
        max_range_hours=longest,
    )
    covered = held(found.ranges)
    assert len(covered) == len(set(covered))
    assert set(hours(*wanted)) <= set(covered)
    assert not set(covered) & set(hours(*barred))
    # Whatever else is covered does not lack: it is done, and the run leaves it alone.
    assert not (set(covered) - set(hours(*wanted))) & set(hours(*lacking))
    assert all(len(window) <= longest for window in found.ranges)
    assert list(found.ranges) == sorted(found.ranges, reverse=True)
    assert len(found.ranges) == fewest(wanted, barred, longest)
    assert found.hours == len(wanted)
    assert set(found.given_up) == set(hours(*(lacking & failed)))
    assert list(found.given_up) == sorted(found.given_up)
    assert found.in_flight == len(lacking & flying)


@given(st.sets(st.integers(0, 3000), max_size=60), st.integers(1, 744))
@examples(30)
def test_no_range_begins_or_ends_with_an_hour_that_is_done(lacking: set[int], longest: int) -> None:
    found = plan(hours(*lacking), max_range_hours=longest)
    wanted = set(hours(*lacking))
    assert all(window.start in wanted and window.end - HOUR in wanted for window in found.ranges)


def test_nothing_missing_launches_nothing() -> None:
    assert plan([]).ranges == ()
    assert plan([]).hours == 0


def test_scattered_holes_of_one_outage_are_one_run() -> None:
    assert plan(hours(0, 5, 9, 40)).ranges == (Window(START, START + 41 * HOUR),)


def test_the_newest_hours_come_first() -> None:
    """After an outage the dashboards of today matter before those of last year."""
    found = plan(hours(*range(30)), max_range_hours=10)
    assert [window.start for window in found.ranges] == hours(20, 10, 0)


def test_an_hour_that_keeps_failing_is_left_out_and_named_and_holds_up_no_other() -> None:
    found = plan(hours(0, 1, 2, 3), attempts=dict.fromkeys(hours(1), 3) | dict.fromkeys(hours(2), 2))
    assert found.given_up == tuple(hours(1))
    assert found.ranges == (Window(START + 2 * HOUR, START + 4 * HOUR), Window(START, START + HOUR))


def test_a_range_does_not_bridge_an_hour_whose_renewal_failed_too_often() -> None:
    """It is there and does not lack, but it is late: the run would try it once more, and be red for nothing."""
    found = plan(hours(0, 2), attempts=dict.fromkeys(hours(1), 3))
    assert found.ranges == (Window(START + 2 * HOUR, START + 3 * HOUR), Window(START, START + HOUR))
    assert found.given_up == ()


def test_hours_already_queued_are_not_asked_for_twice() -> None:
    found = plan(hours(0, 1, 2), in_flight=set(hours(1)))
    assert found.ranges == (Window(START + 2 * HOUR, START + 3 * HOUR), Window(START, START + HOUR))
    assert (found.hours, found.in_flight) == (2, 1)


def test_a_year_of_holes_is_planned_in_a_moment() -> None:
    every_second = hours(*range(0, 9000, 2))
    found = plan(every_second)
    assert len(found.ranges) == 13
    assert found.hours == 4500
