"""Times within ids: read to the last digit, or not at all."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.checkpoints.ids import (
    EARLIEST,
    FARTHEST,
    is_uuid,
    iso_seconds,
    number_seconds,
    ulid_seconds,
    uuid6_seconds,
)
from ops_pipeline_tests.checkpoints.names import CROCKFORD, NIL, NOW, iso, ticks_of, ulid, uuid4, uuid6, uuid6_of_ticks
from ops_pipeline_tests.usage.calls import examples

OFFSET = ticks_of(0)
plausible = st.floats(EARLIEST + 1, FARTHEST - 1)

# UUIDv6


def test_the_example_of_the_rfc_is_read() -> None:
    assert (
        uuid6_seconds(b"1ec9414c-232a-6b00-b3c8-9e6bdeced846")
        == datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC).timestamp()
    )


@given(st.integers(int(EARLIEST + 1) * 10**7, int(FARTHEST - 1) * 10**7), st.integers(0, 2**62 - 1))
@examples(300)
def test_a_uuid6_tells_its_time_as_exactly_as_a_float_can(since_1970: int, tail: int) -> None:
    identifier = uuid6_of_ticks(since_1970 + OFFSET, tail)
    assert uuid.UUID(identifier.decode()).version == 6
    seconds = uuid6_seconds(identifier)
    assert seconds is not None
    assert abs(Fraction(seconds) - Fraction(since_1970, 10**7)) < Fraction(1, 10**6)


@given(plausible, plausible)
@examples(200)
def test_ids_sort_as_their_times_do(one: float, other: float) -> None:
    first, second = sorted((uuid6(one), uuid6(other)))
    assert (uuid6_seconds(first) or 0) <= (uuid6_seconds(second) or 0)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 7, 8])
def test_other_versions_tell_no_time(version: int) -> None:
    identifier = bytearray(uuid6())
    identifier[14] = ord(str(version))
    assert uuid6_seconds(bytes(identifier)) is None
    assert is_uuid(bytes(identifier))


def test_upper_case_tells_the_same_time() -> None:
    assert uuid6_seconds(uuid6().upper()) == NOW


def test_the_nil_uuid_and_random_ones_tell_no_time() -> None:
    assert uuid6_seconds(NIL) is None
    assert is_uuid(NIL)
    assert [uuid6_seconds(uuid4()) for _ in range(50)] == [None] * 50


@pytest.mark.parametrize("day", ["1582-10-15", "1969-12-31", "2014-12-31", "2200-01-02", "4000-01-01"])
def test_times_that_no_clock_showed_are_none(day: str) -> None:
    """The task ids in namespaces are hashes: one of sixteen has the version digit of a time."""
    assert uuid6_seconds(uuid6_of_ticks(ticks_of(datetime.fromisoformat(f"{day}T00:00Z").timestamp()))) is None


def test_the_largest_digits_are_a_hash() -> None:
    assert uuid6_seconds(b"ffffffff-ffff-6fff-bfff-ffffffffffff") is None


@pytest.mark.parametrize("junk", [b"_", b"+", b"-", b" ", b"g", b":", b"\n", b"\xff", b"\x00"])
@pytest.mark.parametrize("place", [0, 1, 3, 7, 9, 12, 16])
def test_a_character_that_is_no_digit_makes_it_no_id(junk: bytes, place: int) -> None:
    identifier = uuid6()
    assert uuid6_seconds(identifier[:place] + junk + identifier[place + 1 :]) is None


@pytest.mark.parametrize("place", [8, 13, 18, 23])
def test_every_dash_counts(place: int) -> None:
    identifier = uuid6()
    assert uuid6_seconds(identifier[:place] + b"0" + identifier[place + 1 :]) is None
    assert not is_uuid(identifier[:place] + b"0" + identifier[place + 1 :])


@pytest.mark.parametrize(
    "identifier", [b"", uuid6()[1:], uuid6() + b"0", uuid6().replace(b"-", b""), b"{" + uuid6() + b"}"]
)
def test_other_lengths_are_no_id(identifier: bytes) -> None:
    assert uuid6_seconds(identifier) is None
    assert not is_uuid(identifier)


# ULIDs


def test_the_example_of_the_specification_is_read() -> None:
    assert ulid_seconds(b"01ARZ3NDEKTSV4RRFFQ69G5FAV") == 1_469_922_850.259


@given(st.integers(int(EARLIEST * 1000) + 1, int(FARTHEST * 1000) - 1))
@examples(200)
def test_a_ulid_tells_its_time_to_the_millisecond(milliseconds: int) -> None:
    assert ulid_seconds(ulid(milliseconds / 1000)) == milliseconds / 1000


@pytest.mark.parametrize("letter", [b"I", b"L", b"O", b"U", b"a", b"-", b":", b"\xff"])
@pytest.mark.parametrize("place", [1, 9, 10, 25])
def test_letters_that_a_ulid_does_not_have(letter: bytes, place: int) -> None:
    identifier = ulid()
    assert ulid_seconds(identifier[:place] + letter + identifier[place + 1 :]) is None


@pytest.mark.parametrize("first", CROCKFORD[8:])
def test_a_ulid_that_overflows_is_none(first: str) -> None:
    assert ulid_seconds(first.encode() + ulid()[1:]) is None


@pytest.mark.parametrize("identifier", [b"", ulid()[1:], ulid() + b"0", b"0" * 26, b"7" + b"Z" * 25, ulid().lower()])
def test_what_is_no_ulid_of_our_time(identifier: bytes) -> None:
    assert ulid_seconds(identifier) is None


# ISO 8601

BERLIN = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("2026-03-10T12:00:00", 0),
        ("2026-03-10 12:00:00", 0),
        ("2026-03-10T12:00", 0),
        ("2026-03-10T12:00:00Z", 0),
        ("2026-03-10T12:00:00+00:00", 0),
        ("2026-03-10T13:00:00+01:00", 0),
        ("2026-03-10T13:00:00+0100", 0),
        ("2026-03-10T06:30:00-05:30", 0),
        ("2026-03-10T12:00:00.5", 0.5),
        ("2026-03-10T12:00:00,25Z", 0.25),
        ("2026-03-10T12:00:00.123456+00:00", 0.123456),
        ("20260310T120000", 0),
        ("20260310T120000Z", 0),
        ("20260310T120000.250Z", 0.25),
        ("2026-03-10", -43_200),
    ],
)
def test_a_time_is_read_in_every_spelling_and_is_utc_without_a_zone(text: str, after: float) -> None:
    """The documented example has no zone; taken for local time, threads went hours too early east of Greenwich."""
    assert iso_seconds(text) == iso_seconds(text.encode()) == pytest.approx(NOW + after, abs=1e-6)


@given(st.datetimes(datetime(2015, 1, 2), datetime(2199, 12, 30)), st.integers(-14 * 60, 14 * 60))  # noqa: DTZ001
@examples(200)
def test_what_python_writes_is_read_back(moment: datetime, offset: int) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    assert iso_seconds(aware.isoformat()) == aware.timestamp()
    assert iso_seconds(moment.isoformat().encode()) == moment.replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "text",
    ["", "today", "2026", "2026-13-01T00:00:00", "2026-02-30T00:00:00", "2026-03-10T25:00:00", "1999-01-01T00:00:00",
     "2014-12-31T23:59:59Z", "2200-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00",
     "0001-01-01T00:00:00+14:00", "\x00", "T"],
)  # fmt: skip
def test_what_is_no_time_of_our_time(text: str) -> None:
    assert iso_seconds(text) is None


# Numbers


@pytest.mark.parametrize("seconds", [NOW, NOW + 0.25, EARLIEST + 1, FARTHEST - 1])
def test_seconds_and_milliseconds_are_told_apart(seconds: float) -> None:
    """`checkpoint_ts` is in milliseconds for UUIDv6 ids, and in seconds for ULIDs."""
    assert number_seconds(seconds) == seconds
    assert number_seconds(seconds * 1000) == seconds
    assert number_seconds(int(seconds)) == int(seconds)


@pytest.mark.parametrize(
    "value", [0, -1, 1, EARLIEST, FARTHEST, FARTHEST * 1000, -NOW, NOW * 1e6, float("nan"), float("inf"), -float("inf")]
)
def test_numbers_that_are_no_time_are_none(value: float) -> None:
    assert number_seconds(value) is None


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_integers_beyond_every_float_are_none(value: int) -> None:
    """JSON has integers of any length; one of them in a value ended the sweep."""
    assert number_seconds(value) is None


# Anything at all

alike = st.sampled_from([uuid6(), uuid4(), ulid(), iso(), iso() + b"Z", iso()[:19]])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Something like an id, with some bytes changed."""
    text = bytearray(draw(alike))
    for place in draw(st.lists(st.integers(0, len(text) - 1), max_size=3)):
        text[place] = draw(st.integers(0, 255))
    return bytes(text)


@given(st.binary(max_size=60) | damaged())
@examples(500)
def test_garbage_is_none_or_a_plausible_time_and_never_an_error(text: bytes) -> None:
    found = [uuid6_seconds(text), ulid_seconds(text), iso_seconds(text), iso_seconds(text.decode("latin-1"))]
    assert all(seconds is None or EARLIEST < seconds < FARTHEST for seconds in found)
    assert is_uuid(text) in {True, False}


@given(st.floats(allow_nan=True) | st.integers())
@examples(200)
def test_any_number_is_none_or_a_plausible_time(value: float) -> None:
    seconds = number_seconds(value)
    assert seconds is None or EARLIEST < seconds < FARTHEST
