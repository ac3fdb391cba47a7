"""What pointers and values say right before a thread goes: whether it has come alive, or must be left whole.

What belongs here: looks at single threads. What does not: removing anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import redis

from ops_pipeline.checkpoints.connection import Store
from ops_pipeline.checkpoints.guards import BLOBS_IN_USE, UNTOLD
from ops_pipeline.checkpoints.layouts import EMPTY_NAMESPACE, POINTER_PREFIX, Reader, beginnings
from ops_pipeline.checkpoints.policy import ERASED, ORPHANS, WHOLE, Verdict

UNREADABLE = b"\xff"
"""Stands for what a pointer points at that is no string."""


def targets_of(store: Store, verdicts: Iterable[Verdict]) -> dict[bytes, bytes | None]:
    """What each pointer points at."""
    pointers = [pointer for verdict in verdicts for pointer in verdict.pointers]
    if not pointers:
        return {}
    pipeline = store.client.pipeline(transaction=False)
    for pointer in pointers:
        pipeline.get(pointer)
    answers = pipeline.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and "WRONGTYPE" not in str(answer):
            raise answer
    return {
        pointer: UNREADABLE if isinstance(answer, Exception) else answer
        for pointer, answer in zip(pointers, answers, strict=True)
    }


def spared_by(store: Store, read: Reader, verdict: Verdict, targets: dict[bytes, bytes | None]) -> str:
    """Why a thread with pointers stays after all; empty when it goes."""
    if verdict.action == ERASED:
        # What was written since the scan would be left, with no pointer that tells of it.
        known = {*verdict.keys, None, UNREADABLE}
        new = {targets[pointer] for pointer in verdict.pointers} - known
        return "came alive" if any(store.client.exists(target) for target in new) else ""
    for pointer in verdict.pointers:
        target = targets[pointer]
        if target is None:
            continue
        part = read(target)
        seconds = part[3] if isinstance(part, tuple) else None
        if seconds is None:
            return "age unknown"
        if seconds >= verdict.alive_from:
            return "came alive"
        if verdict.action == ORPHANS and store.client.exists(target):
            return "came alive"
    return "of a live thread" if verdict.action == WHOLE and _has_live_root(store, read, verdict) else ""


def may_have_root(verdict: Verdict) -> bool:
    """Whether these may be namespaces of a thread that was not seen with them, since it was in another pass."""
    return bool(verdict.pointers) and not any(pointer.endswith(EMPTY_NAMESPACE) for pointer in verdict.pointers)


def _has_live_root(store: Store, read: Reader, verdict: Verdict) -> bool:
    if not may_have_root(verdict):
        return False
    part = read(verdict.pointers[0])
    name = part[1] if isinstance(part, tuple) else b""
    roots = [POINTER_PREFIX + one + EMPTY_NAMESPACE for one in beginnings(name)]
    targets = targets_of(store, [verdict._replace(pointers=tuple(roots))])
    parts = [read(target) for target in targets.values() if target]
    return any(isinstance(one, tuple) and (one[3] or verdict.alive_from) >= verdict.alive_from for one in parts)


def touched(store: Store, grace: float, blobs: Sequence[bytes]) -> int:
    """Why blobs must stay; 0 when nobody has read or written them lately."""
    for blob in blobs:
        try:
            idle = store.client.object("IDLETIME", blob)
        except redis.ResponseError:
            return UNTOLD
        if idle is not None and int(idle) < grace:
            return BLOBS_IN_USE
    return 0


def trimmable(
    read: Reader, verdict: Verdict, targets: dict[bytes, bytes | None], deltas: set[bytes]
) -> list[bytes] | None:
    """The keys of a trimmed thread, less what a pointer points at; None when it lives on its ancestors."""
    if not verdict.examined or not deltas.isdisjoint(verdict.examined):
        return None
    # The newest stays whatever was counted: a scan may name a checkpoint twice.
    identifiers = {_identifier(read, key) for key in verdict.examined}
    for pointer in verdict.pointers:
        part = read(targets[pointer] or b"")
        if isinstance(part, tuple):
            identifiers.add(part[2])
    # Their text is looked for, for a tenth of the time of reading names; where a thread's own id holds it, more stays.
    spared = [one for one in identifiers if one]
    return [key for key in verdict.keys if not any(one in key for one in spared)]


def _identifier(read: Reader, key: bytes) -> bytes:
    part = read(key)
    return part[2] if isinstance(part, tuple) else b""
