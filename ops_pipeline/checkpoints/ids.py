"""The time within a checkpoint's id: UUIDv6, ULID and ISO 8601.

What belongs here: reading times from names. Times are Unix seconds, UTC; None stands for an age that nobody knows.
Sources: RFC 9562 (UUIDv6), the ULID specification, ISO 8601.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

UUID_LENGTH, ULID_LENGTH = 36, 26
VERSION_6 = ord("6")
GREGORIAN_OFFSET = 0x01B21DD213814000
"""Ticks of 100 ns from 1582-10-15 to 1970-01-01."""
EARLIEST = datetime(2015, 1, 1, tzinfo=UTC).timestamp()
"""Ids that claim to be older were not made by a clock: the digits of a hash look like a UUIDv6 now and then."""
FARTHEST = datetime(2200, 1, 1, tzinfo=UTC).timestamp()
_ULID_DIGITS = {digit: value for value, digit in enumerate(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ")}
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ULID = re.compile(rb"[0-7][0-9A-HJKMNP-TV-Z]{25}")
ISO_AT_END = re.compile(
    rb"(\d{4}-\d\d-\d\d[T ]\d\d:?\d\d(?::?\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?|\d{8}T\d{6}(?:\.\d+)?Z?)\Z"
)


def is_uuid(text: bytes) -> bool:
    """Whether a text has the form of a UUID, of any version."""
    return len(text) == UUID_LENGTH and _UUID.fullmatch(text) is not None


def uuid6_seconds(text: bytes) -> float | None:
    """The time of a UUIDv6; None for anything else, and for times that no clock can have shown."""
    # The hot path of a sweep: the four dashes and the version are looked at by hand, for a quarter of a microsecond.
    if len(text) != UUID_LENGTH or text[8:24:5] != b"----" or text[14] != VERSION_6:
        return None
    try:
        # int() takes a sign, spaces and underscores too: with a digit less it is a time before 1811.
        ticks = int(text[:8] + text[9:13] + text[15:18], 16)
    except ValueError:
        return None
    seconds = (ticks - GREGORIAN_OFFSET) / 1e7
    return seconds if EARLIEST < seconds < FARTHEST else None


def first_uuid6(seconds: float) -> bytes:
    """What sorts before every UUIDv6 of that time or later, and behind all earlier ones: their text orders them."""
    digits = f"{math.ceil(seconds * 1e7) + GREGORIAN_OFFSET:015x}"
    return f"{digits[:8]}-{digits[8:12]}-6{digits[12:]}".encode()


EARLIEST_UUID6, FARTHEST_UUID6 = first_uuid6(EARLIEST + 1e-6), first_uuid6(FARTHEST)
"""Between these lie all that a clock can have made."""


def ulid_seconds(text: bytes) -> float | None:
    """The time of a ULID; None for anything else."""
    if len(text) != ULID_LENGTH or _ULID.fullmatch(text) is None:
        return None
    milliseconds = 0
    for digit in text[:10]:
        milliseconds = milliseconds * 32 + _ULID_DIGITS[digit]
    seconds = milliseconds / 1000
    return seconds if EARLIEST < seconds < FARTHEST else None


def iso_seconds(text: bytes | str) -> float | None:
    """The time of an ISO 8601 text; without a zone it is UTC; None for anything else."""
    try:
        words = text.decode() if isinstance(text, bytes) else text
        moment = datetime.fromisoformat(words)
    except (ValueError, UnicodeDecodeError):
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    try:
        seconds = aware.timestamp()
    except (OverflowError, ValueError):
        return None
    return seconds if EARLIEST < seconds < FARTHEST else None


def number_seconds(value: float) -> float | None:
    """The time of a number: seconds or milliseconds since 1970, whichever is plausible."""
    # Compared before it is divided: JSON may hold an integer that no float can.
    if EARLIEST < value < FARTHEST:
        return float(value)
    return value / 1000 if EARLIEST * 1000 < value < FARTHEST * 1000 else None
