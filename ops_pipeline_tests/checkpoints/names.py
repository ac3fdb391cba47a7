"""Names of checkpoints as their writers make them: ids from a time, and the keys of each layout.

Made from the specifications and not with what is tested: UUIDv6 after RFC 9562 through `uuid.UUID`, ULIDs by division.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from ops_pipeline.checkpoints.collecting import Groups
from ops_pipeline.checkpoints.groups import Group
from ops_pipeline.checkpoints.layouts import Prefixes, Reader, layouts_of, reader_of, shelved_by

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
EMPTY = b"__empty__"
NIL = b"00000000-0000-0000-0000-000000000000"
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
TASK = b"7f1b2c3d-4e5f-8a9b-8c1d-2e3f4a5b6c7d"
INTERRUPT = -3
READ: Reader = reader_of(layouts_of(Prefixes()))
SHELVED = shelved_by(layouts_of(Prefixes()))
_random = random.Random(20260310)  # noqa: S311 - no secret


# Ids


def ticks_of(seconds: float) -> int:
    """100 ns since 1582-10-15, by the calendar."""
    moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
    since = moment - datetime(1582, 10, 15, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**7 + since.microseconds * 10


def uuid6_of_ticks(ticks: int, tail: int | None = None) -> bytes:
    """A UUIDv6 with these ticks, laid down bit by bit as the RFC draws it."""
    tail = _random.getrandbits(62) if tail is None else tail
    value = (ticks >> 12) << 80 | 6 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | tail
    return str(uuid.UUID(int=value)).encode()


def uuid6(seconds: float = NOW, tail: int | None = None) -> bytes:
    """A UUIDv6 of a Unix time, to the microsecond."""
    return uuid6_of_ticks(ticks_of(seconds), tail)


def uuid4() -> bytes:
    """A UUIDv4."""
    return str(uuid.UUID(int=_random.getrandbits(128), version=4)).encode()


def ulid(seconds: float = NOW) -> bytes:
    """A ULID of a Unix time, to the millisecond."""
    milliseconds, letters = round(seconds * 1000), ""
    for _ in range(10):
        milliseconds, digit = divmod(milliseconds, 32)
        letters = CROCKFORD[digit] + letters
    return (letters + "".join(_random.choices(CROCKFORD, k=16))).encode()


def iso(seconds: float = NOW, spelling: str = "%Y-%m-%dT%H:%M:%S.%f") -> bytes:
    """An ISO 8601 text of a Unix time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime(spelling).encode()


# Keys


def joined(*parts: bytes, by: bytes = b":") -> bytes:
    """Parts of a key."""
    return by.join(parts)


def checkpoint(thread: bytes, identifier: bytes, namespace: bytes = EMPTY) -> bytes:
    """A checkpoint of langgraph-checkpoint-redis."""
    return joined(b"checkpoint", thread, namespace, identifier)


def plain(thread: bytes, identifier: bytes) -> bytes:
    """A checkpoint as documented: no namespace."""
    return joined(b"checkpoint", thread, identifier)


def write(
    thread: bytes, identifier: bytes, namespace: bytes = EMPTY, *, task: bytes = TASK, index: int | bytes = 0
) -> bytes:
    """A pending write."""
    number = index if isinstance(index, bytes) else b"%d" % index
    return joined(b"checkpoint_write", thread, namespace, identifier, task, number)


def zset(thread: bytes, identifier: bytes, namespace: bytes = EMPTY) -> bytes:
    """The index of the writes of a checkpoint."""
    return joined(b"write_keys_zset", thread, namespace, identifier)


def pointer(thread: bytes, namespace: bytes = EMPTY) -> bytes:
    """The key that names the newest checkpoint."""
    return joined(b"checkpoint_latest", thread, namespace)


def blob(thread: bytes, channel: bytes, namespace: bytes = EMPTY, version: bytes = b"1") -> bytes:
    """A channel's value, of older savers."""
    return joined(b"checkpoint_blob", thread, namespace, channel, version)


def shallow(thread: bytes, namespace: bytes = b"") -> bytes:
    """The document of the shallow saver."""
    return joined(b"checkpoint", thread, namespace)


def registry(thread: bytes, namespace: bytes = b"", kind: bytes = b"write_registry") -> bytes:
    """The shallow saver's list of writes."""
    return joined(kind, thread, namespace, b"shallow")


def recipe(thread: bytes, identifier: bytes, namespace: bytes = b"") -> bytes:
    """A checkpoint of the recipe."""
    return joined(b"checkpoint", thread, namespace, identifier, by=b"$")


def recipe_write(thread: bytes, identifier: bytes, namespace: bytes = b"", *, index: int = 0) -> bytes:
    """A pending write of the recipe."""
    return joined(b"writes", thread, namespace, identifier, TASK, b"%d" % index, by=b"$")


def nested(*nodes: bytes) -> bytes:
    """The namespace of a graph within a graph: `node:task|node:task`."""
    return b"|".join(joined(node, uuid4()) for node in nodes)


def unit(thread: bytes, identifier: bytes, namespace: bytes = EMPTY, *, indexes: Sequence[int] = (0, 1)) -> list[bytes]:
    """A checkpoint with its writes and their index."""
    writes = [write(thread, identifier, namespace, index=index) for index in indexes]
    return [checkpoint(thread, identifier, namespace), *writes, *([zset(thread, identifier, namespace)] * bool(writes))]


def thread_keys(thread: bytes, ages: Iterable[float], namespace: bytes = EMPTY, *, now: float = NOW) -> list[bytes]:
    """A thread with checkpoints so many seconds old, each with its writes and index, and its pointer."""
    keys = [key for age in ages for key in unit(thread, uuid6(now - age), namespace)]
    return [*keys, pointer(thread, namespace)]


def grouped(keys: Iterable[bytes], *, grace: float = DAY, everything: bool = False) -> dict[bytes, Group]:
    """What a single pass finds, with names kept."""
    groups = Groups(READ, NOW - grace, shelved=SHELVED, everything=everything, names=True)
    groups.add(list(keys))
    for name, key in groups.documents:
        groups.place(name, key)
    return groups.found
