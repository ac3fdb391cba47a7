"""The usual spellings of a time as the id of a checkpoint, other than UUIDv6: their text orders them as their times do.

What belongs here: telling such an id at a glance, and whether many of them really are what they look like.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from ops_pipeline.checkpoints.ids import EARLIEST, FARTHEST, ULID_LENGTH, iso_seconds, ulid_seconds

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULIDS = re.compile(rb"(?:[0-7][0-9A-HJKMNP-TV-Z]{25})*")


@dataclass(frozen=True)
class Spelling:
    """One spelling, of one length.

    Attributes:
        width: how long an id is.
        ending: what it ends with.
        fraction: digits of the fraction of its seconds; 0 for ULIDs.
        earliest: before all ids that a clock can have made.
        farthest: behind all of them.
    """

    width: int
    ending: bytes
    fraction: int
    earliest: bytes = b""
    farthest: bytes = b""

    def fits(self, end: bytes) -> bool:
        """Whether the end of a key looks like one."""
        if len(end) != self.width or not self.earliest < end < self.farthest:
            return False
        if not self.fraction:
            return True
        # 2026-03-10T12:00:00.123456: weeks and days of the year have their dashes elsewhere, and sort otherwise.
        return end[4:20:3] == b"--T::." and end.endswith(self.ending)

    def first(self, seconds: float) -> bytes:
        """What sorts before every id of that time or later, and behind those that are earlier by a millisecond."""
        if not self.fraction:
            value, letters = int(seconds * 1000), ""
            for _ in range(10):
                value, digit = divmod(value, 32)
                letters = CROCKFORD[digit] + letters
            return (letters + "0" * 16).encode()
        moment = datetime.fromtimestamp(seconds, UTC)
        text = moment.isoformat(timespec="microseconds" if self.fraction == 6 else "milliseconds")
        return text.removesuffix("+00:00").encode() + self.ending

    def seconds(self, identifier: bytes) -> float | None:
        """The time of an id in Unix seconds; None when it is none."""
        return iso_seconds(identifier) if self.fraction else ulid_seconds(identifier)

    def are_sound(self, ids: bytes) -> bool:
        """Whether all ids, one after another, are what they look like."""
        if not self.fraction:
            return _ULIDS.fullmatch(ids) is not None
        try:
            text = ids.decode("ascii")
            for start in range(0, len(text), self.width):
                datetime.fromisoformat(text[start : start + self.width])
        except ValueError:
            return False
        return True


def _spelling(width: int, ending: bytes, fraction: int) -> Spelling:
    bare = Spelling(width, ending, fraction)
    return Spelling(width, ending, fraction, bare.first(EARLIEST), bare.first(FARTHEST))


SPELLINGS = (
    _spelling(26, b"", 6),
    _spelling(32, b"+00:00", 6),
    _spelling(27, b"Z", 6),
    _spelling(24, b"Z", 3),
    _spelling(ULID_LENGTH, b"", 0),
)
"""As Python and JavaScript write the time of now, and ULIDs."""
