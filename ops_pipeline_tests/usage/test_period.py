"""How readers name a period, and which periods hour rows cannot answer."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.usage.period import Period, UsageQuestionError, parse_period

NOW = datetime(2026, 12, 24, 10, 30, tzinfo=UTC)


def hours(from_text: str | None, to_text: str | None, zone: str) -> int:
    return len(parse_period(from_text, to_text, zone, NOW).window)


def refusal(from_text: str, to_text: str, zone: str = "UTC", now: datetime = NOW) -> str:
    with pytest.raises(UsageQuestionError) as caught:
        parse_period(from_text, to_text, zone, now)
    return str(caught.value)


def test_both_dates_are_included_and_are_days_of_the_readers_zone():
    period = parse_period("2026-11-29", "2026-11-30", "Europe/Berlin", NOW)
    assert period.start == datetime(2026, 11, 28, 23, tzinfo=UTC)
    assert period.end == datetime(2026, 11, 30, 23, tzinfo=UTC)
    assert period.zone.key == "Europe/Berlin"


def test_a_time_is_the_readers_own_and_its_end_is_exclusive():
    period = parse_period("2026-11-29T10:00", "2026-11-29T12:00", "America/New_York", NOW)
    assert (period.start.hour, period.end.hour, len(period.window)) == (15, 17, 2)


@pytest.mark.parametrize("text", ["2026-11-29T10:00+05:00", "2026-11-29T05:00Z", "2026-11-29 05:00:00+00:00"])
def test_a_time_with_an_offset_keeps_it(text: str):
    assert parse_period(text, "2026-11-29", "Europe/Berlin", NOW).start == datetime(2026, 11, 29, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("day", "zone", "expected"),
    [
        ("2026-03-29", "Europe/Berlin", 23),
        ("2026-10-25", "Europe/Berlin", 25),
        ("2026-11-21", "Europe/Berlin", 24),
        ("2018-11-04", "America/Sao_Paulo", 23),  # clocks went from 00:00 to 01:00
        ("2025-11-02", "America/Havana", 25),  # midnight came twice
    ],
)
def test_days_on_which_clocks_change_have_their_true_length(day: str, zone: str, expected: int):
    assert hours(day, day, zone) == expected


def test_without_texts_the_period_is_the_readers_today():
    period = parse_period(None, None, "Pacific/Auckland", NOW)
    assert period.start == datetime(2026, 12, 23, 11, tzinfo=UTC)
    assert period.end == datetime(2026, 12, 24, 11, tzinfo=UTC)


@given(
    day=st.dates(date(2000, 1, 1), date(2026, 12, 1)),
    zone=st.sampled_from(["Europe/Berlin", "America/Los_Angeles", "Pacific/Auckland", "Africa/Cairo", "Asia/Tokyo"]),
)
def test_consecutive_days_leave_no_gap_and_share_no_hour(day: date, zone: str):
    one, two = (parse_period(d.isoformat(), d.isoformat(), zone, NOW) for d in (day, day + timedelta(days=1)))
    assert one.end == two.start


@pytest.mark.parametrize(
    ("zone", "offset"),
    [("Asia/Kolkata", "+0530"), ("Asia/Kathmandu", "+0545"), ("America/St_Johns", "-0330")],
)
def test_zones_of_half_hours_are_refused_and_the_offset_is_named(zone: str, offset: str):
    words = refusal("2026-11-21", "2026-11-21", zone)
    assert zone in words
    assert offset in words
    assert "Ask in UTC" in words


def test_such_a_zone_is_refused_even_when_the_bounds_are_whole_utc_hours():
    """Grouped by day, its midnight would still have been put at the wrong minute."""
    assert "Asia/Kolkata" in refusal("2026-11-21T00:00Z", "2026-11-22T00:00Z", "Asia/Kolkata")


def test_a_zone_is_judged_by_its_offsets_within_the_period():
    """Lord Howe is 11 hours from UTC in summer and 10:30 in winter; Monrovia kept 44:30 minutes until 1972."""
    assert hours("2026-12-01", "2026-12-02", "Australia/Lord_Howe") == 48
    assert "+1030" in refusal("2026-07-01", "2026-07-02", "Australia/Lord_Howe")
    assert "+1030" in refusal("2026-01-01", "2026-12-02", "Australia/Lord_Howe")
    assert "+1030" in refusal("2026-04-04", "2026-04-05", "Australia/Lord_Howe")
    assert hours("1975-01-01", "1975-01-01", "Africa/Monrovia") == 24
    assert "Africa/Monrovia" in refusal("1971-01-01", "1971-01-01", "Africa/Monrovia")


def test_a_midnight_inside_a_utc_hour_is_refused():
    """Goose Bay turned its clocks back at one minute past midnight: whole-hour offsets, and a day cut at 00:01."""
    words = refusal("2010-11-01", "2010-11-30", "America/Goose_Bay")
    assert "midnight falls inside the UTC hour 2010-11-07 03:00" in words


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Europe/Berln", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        ("Europe", "Did you mean"),
        ("../etc/passwd", "IANA"),
        ("", "IANA"),
        ("UTC+5", "UTC"),
        ("Europe/Berlin\0", "Europe/Berlin"),
    ],
)
def test_an_unknown_zone_is_named_with_a_hint(name: str, hint: str):
    words = refusal("2026-11-21", "2026-11-21", name)
    assert repr(name) in words
    assert hint in words


@pytest.mark.parametrize("text", ["21.11.2026", "yesterday", "2026-02-30", "2026-11-21T25:00", ""])
def test_what_is_no_date_is_refused_with_an_example(text: str):
    assert "2026-11-21T10:00" in refusal(text, "2026-11-21")


def test_a_time_off_the_hour_is_refused():
    assert "not on the hour" in refusal("2026-11-21T10:30", "2026-11-21")
    assert "not on the hour" in refusal("2026-11-21T10:00", "2026-11-21T11:00:00.000001")


@pytest.mark.parametrize(("start", "end"), [("2026-11-22", "2026-11-21"), ("2026-11-21T10:00", "2026-11-21T10:00")])
def test_an_empty_period_is_refused(start: str, end: str):
    assert "holds no hour" in refusal(start, end)


def test_a_local_day_that_never_was_holds_no_hour():
    """Samoa went from 29 to 31 December 2011."""
    assert "holds no hour" in refusal("2011-12-30", "2011-12-30", "Pacific/Apia")


def test_the_doubled_hour_must_be_said_with_its_offset():
    words = refusal("2026-10-25T02:00", "2026-10-25", "Europe/Berlin")
    assert "happens twice" in words
    assert "2026-10-25T02:00:00+02:00 or 2026-10-25T02:00:00+01:00" in words
    assert hours("2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "Europe/Berlin") == 1


def test_an_hour_that_clocks_skip_is_refused():
    assert "does not exist" in refusal("2026-03-29T02:00", "2026-03-29", "Europe/Berlin")


def test_a_start_in_the_future_is_refused_but_an_end_is_not():
    """A typing error in the year would otherwise be answered with a confident zero."""
    assert "future" in refusal("2062-11-21", "2062-11-22")
    assert hours("2026-12-24", "2026-12-31", "UTC") == 8 * 24


@pytest.mark.parametrize("text", ["0001-01-01", "9999-12-31", "9999-12-31T23:00", "1969-12-31"])
def test_years_that_no_calendar_arithmetic_survives_are_refused(text: str):
    assert "outside the years" in refusal(text, "2026-11-21")
    assert "outside the years" in refusal("2026-11-21", text)


def test_more_than_ten_years_are_refused():
    assert "ten years" in refusal("2010-01-01", "2026-01-01")


def test_a_period_made_by_hand_is_checked_like_a_parsed_one():
    start = datetime(2026, 11, 21, tzinfo=UTC)
    with pytest.raises(UsageQuestionError, match="Asia/Kolkata"):
        Period(start, start + timedelta(hours=24), ZoneInfo("Asia/Kolkata"))
    with pytest.raises(UsageQuestionError, match="time zone"):
        Period(start.replace(tzinfo=None), start, ZoneInfo("UTC"))
