"""What only values tell: the age of documents whose names tell none, and whether a thread can be trimmed.

What belongs here: reading values, many per round trip. What does not: decisions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ops_pipeline.checkpoints.collecting import Groups
from ops_pipeline.checkpoints.connection import Store
from ops_pipeline.checkpoints.ids import iso_seconds, number_seconds, ulid_seconds, uuid6_seconds

AT_ONCE = 200
"""Documents read per round trip; one may hold a whole conversation."""
HEAD = 65_536
"""As much of each plain value is read at first, many per round trip."""
LONGEST = 16_777_216
"""A longer value is read by itself, up to here: half a piece of JSON tells no time, or a wrong one."""
TIME_FIELDS = ("ts", "timestamp", "created_at", "updated_at", "checkpoint_ts")
DOCUMENT_PATHS = ("$.checkpoint.ts", "$.checkpoint_ts", "$.checkpoint_id", "$.checkpoint.id")


@dataclass(frozen=True)
class Age:
    """What a document says of itself: its time in Unix seconds, None when nobody knows, and its checkpoint's id."""

    seconds: float | None = None
    identifier: bytes = b""
    plain: bool = False


def read_ages(
    store: Store, groups: Groups, *, everything: bool = False, pause: Callable[[str], None] = lambda _: None
) -> int:
    """Look at the documents of a pass, and put them into their groups with what they say.

    A plain document, `checkpoint:{thread}:{id}` with an id that is no time, belongs to the thread before its last
    colon; any other to the group that its name tells.

    Args:
        store: the Redis.
        groups: the groups of the pass; changed.
        everything: the age does not matter, since whole threads are erased.
        pause: called between two round trips with how far this is, since a million documents take minutes.

    Returns:
        How many documents are of this pass.
    """
    placed = looked_at = 0
    for part in _parts(groups.documents):
        if looked_at:
            pause(f"{looked_at} of {len(groups.documents)} documents read")
        looked_at += len(part)
        ages = _ages(store, [key for _, key in part])
        for (name, key), age in zip(part, ages, strict=True):
            home = (name.rpartition(b":")[0] if age.plain else b"") or name
            group = groups.place(home, key, seconds=age.seconds, identifier=age.identifier)
            placed += group is not None
            if group and age.seconds is None and not everything:
                group.more().undated += 1
    return placed


def deltas_of(store: Store, keys: Sequence[bytes]) -> set[bytes]:
    """Those of some checkpoints that live on their ancestors (delta channels), or may do so as far as can be told."""
    return {
        key
        for part in _parts(keys)
        for key, metadata in zip(part, _metadata(store, part), strict=True)
        if not isinstance(metadata, dict) or metadata.get("counters_since_delta_snapshot")
    }


def ages_of(store: Store, keys: Sequence[bytes]) -> list[Age]:
    """What documents say of themselves at this moment."""
    return [age for part in _parts(keys) for age in _ages(store, part)]


def _ages(store: Store, keys: Sequence[bytes]) -> Iterator[Age]:
    types = _pipelined(store, [("TYPE", key) for key in keys])
    commands = [_reading(key, kind) for key, kind in zip(keys, types, strict=True)]
    for key, kind, answer in zip(keys, types, _pipelined(store, commands), strict=True):
        if kind == b"string" and isinstance(answer, bytes) and len(answer) == HEAD:
            (whole,) = _pipelined(store, [("GETRANGE", key, 0, LONGEST - 1)])
            yield _age(kind, whole)
        else:
            yield _age(kind, answer)


def _reading(key: bytes, kind: Any) -> tuple[Any, ...]:
    if kind == b"string":
        return ("GETRANGE", key, 0, HEAD - 1)
    if kind == b"ReJSON-RL":
        return ("JSON.GET", key, *DOCUMENT_PATHS)
    if kind == b"hash":
        return ("HMGET", key, *TIME_FIELDS)
    return ("EXISTS", key)


def _age(kind: Any, answer: Any) -> Age:
    if kind == b"string" and isinstance(answer, bytes):
        return _in_text(answer)
    if kind == b"ReJSON-RL" and isinstance(answer, bytes):
        return _of_json(answer)
    if kind == b"hash" and isinstance(answer, list):
        times = [seconds for value in answer if (seconds := _time(value)) is not None]
        return Age(max(times, default=None), plain=True)
    return Age()


def _in_text(text: bytes) -> Age:
    """The time and the id of a JSON value: of the document, or of the checkpoint in it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return Age(plain=True)
    holders = [value, value.get("checkpoint")] if isinstance(value, dict) else []
    times = [
        seconds
        for holder in holders
        if isinstance(holder, dict)
        for field in TIME_FIELDS
        if (seconds := _time(holder.get(field))) is not None
    ]
    ids = [holder.get(name) for holder in holders if isinstance(holder, dict) for name in ("checkpoint_id", "id")]
    identifier = next((one for one in ids if one and isinstance(one, str)), "")
    return Age(max(times, default=None), identifier.encode("utf-8", "replace"), plain=True)


def _of_json(answer: bytes) -> Age:
    """Of a RedisJSON document: `checkpoint.ts`, else `checkpoint_ts`, else the time in its id."""
    try:
        found = json.loads(answer)
    except ValueError:
        return Age()
    values = {path: (found.get(path) or [None])[0] for path in DOCUMENT_PATHS} if isinstance(found, dict) else {}
    identifier = str(values.get("$.checkpoint_id") or values.get("$.checkpoint.id") or "").encode()
    for path in DOCUMENT_PATHS:
        seconds = _time(values.get(path))
        if seconds is not None:
            return Age(seconds, identifier)
    return Age(identifier=identifier)


def _time(value: Any) -> float | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        # An integer of 400 digits is no float.
        return number_seconds(value) if abs(value) < 1e18 else None
    if not isinstance(value, str):
        return None
    try:
        return number_seconds(float(value))
    except ValueError:
        encoded = value.encode()
        return iso_seconds(value) or uuid6_seconds(encoded) or ulid_seconds(encoded)


def _metadata(store: Store, keys: Sequence[bytes]) -> Iterator[Any]:
    """The metadata of documents; None of those that hold none that can be read."""
    types = _pipelined(store, [("TYPE", key) for key in keys])
    commands = [
        ("JSON.GET", key, "$.metadata") if kind == b"ReJSON-RL" else ("GET", key)
        for key, kind in zip(keys, types, strict=True)
    ]
    for answer in _pipelined(store, commands):
        try:
            value = json.loads(answer) if isinstance(answer, bytes) else None
            found = value.get("metadata") if isinstance(value, dict) else (value or [None])[0]
            # A text, in the saver's documents.
            yield json.loads(found) if isinstance(found, str) else found
        except (ValueError, TypeError, LookupError, RecursionError):
            yield None


def _pipelined(store: Store, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Answers of single commands in one round trip; an error of one command stands in its place."""
    pipeline = store.client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline.execute(raise_on_error=False)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE))
