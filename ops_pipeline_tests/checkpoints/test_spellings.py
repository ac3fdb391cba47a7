"""Ids that are compared as text while they come: their order must be that of their times, and nothing else fits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.checkpoints.collecting import Groups
from ops_pipeline.checkpoints.ids import FARTHEST, iso_seconds
from ops_pipeline.checkpoints.spellings import SPELLINGS, Spelling
from ops_pipeline_tests.checkpoints.names import DAY, NOW, READ, SHELVED, plain, ulid
from ops_pipeline_tests.usage.calls import examples

times = st.datetimes(datetime(2015, 1, 2), datetime(2199, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001


def spelled(spelling: Spelling, moment: datetime) -> bytes:
    """An id as its writers make it."""
    if not spelling.fraction:
        return ulid(moment.timestamp())
    text = moment.isoformat(timespec="microseconds" if spelling.fraction == 6 else "milliseconds")
    return text.removesuffix("+00:00").encode() + spelling.ending


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(times, times)
@examples(60)
def test_ids_fit_one_spelling_and_sort_as_their_times_do(spelling: Spelling, one: datetime, other: datetime) -> None:
    ids = [spelled(spelling, one), spelled(spelling, other)]
    assert [[fits for fits in SPELLINGS if fits.fits(end)] for end in ids] == [[spelling], [spelling]]
    seconds = [spelling.seconds(end) for end in ids]
    assert None not in seconds
    assert (ids[0] < ids[1]) == (seconds[0] < seconds[1]) or seconds[0] == seconds[1]
    assert spelling.are_sound(b"".join(ids))
    # Nothing that is as young as the limit, or younger, sorts before it; and what does is older.
    assert ids[0] >= spelling.first(one.timestamp())
    assert spelling.first(one.timestamp() + 0.002) > ids[0]


@pytest.mark.parametrize(
    "end",
    [
        b"2026-03-10 12:00:00.123456",
        b"2026-W10-1T12:00:00.123456",
        b"2026-069T12:00:00.12345678",
        b"2026-03-10T12:00:00,123456",
        b"2014-03-10T12:00:00.123456",
        b"2300-03-10T12:00:00.123456",
        b"2026-03-10T12:00:00.123456+01:00",
        b"8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        b"01JQZZZZZZ",
        b"2026-03-10T12:00:00",
    ],
)
def test_what_sorts_otherwise_or_cannot_be_is_none_of_them(end: bytes) -> None:
    assert not any(spelling.fits(end) for spelling in SPELLINGS)


@pytest.mark.parametrize(
    "end",
    [b"2026-13-10T12:00:00.123456", b"2026-02-30T12:00:00.123456", b"2026-02-03T12:00:0x.123456", b"01JQ" + b"U" * 22],
)
def test_what_only_looks_like_a_time_makes_a_group_of_unknown_age(end: bytes) -> None:
    groups = Groups(READ, FARTHEST, shelved=SHELVED)
    groups.add([plain(b"T", end)])
    (group,) = groups.found.values()
    assert not group.is_sound()
    assert group.newest == 0


def test_a_thread_may_have_ids_of_every_spelling() -> None:
    """An assistant that changed its ids went on with its threads."""
    ids = [spelled(one, datetime.fromtimestamp(NOW - (3 + day) * DAY, UTC)) for day, one in enumerate(SPELLINGS)]
    ids += [b"2026-03-01T12:00:00", spelled(SPELLINGS[0], datetime.fromtimestamp(NOW, UTC))]
    for order in (ids, ids[::-1]):
        groups = Groups(READ, NOW - DAY, shelved=SHELVED, names=True)
        groups.add([plain(b"T", end) for end in order])
        group = groups.found[b"T"]
        assert (group.checkpoints, group.newest_key, group.newest) == (7, plain(b"T", ids[-1]), iso_seconds(ids[-1]))
        assert sorted(group.old) == sorted(plain(b"T", end) for end in ids[:-1])
        assert group.is_sound() and group.is_dated()
