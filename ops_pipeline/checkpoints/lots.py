"""In which lots and in which order keys go.

What belongs here: cutting and sorting. What does not: Redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ops_pipeline.checkpoints.layouts import BLOB, CHECKPOINT, Reader
from ops_pipeline.checkpoints.policy import ERASED, WHOLE, Verdict

BATCH_KEYS = 500
"""Keys per command: they take Redis half a millisecond, and 0.8 in a script, during which nobody else is served. A
thousand take a script 2.5 ms."""


def batches(verdicts: Iterable[Verdict]) -> Iterator[list[Verdict]]:
    """Verdicts of about as many keys each as one command takes; one of a large thread stands alone."""
    batch: list[Verdict] = []
    size = 0
    for verdict in verdicts:
        if batch and size + verdict.size > BATCH_KEYS:
            yield batch
            batch, size = [], 0
        batch.append(verdict)
        size += verdict.size
    if batch:
        yield batch


def expirable(verdict: Verdict) -> bool:
    """Whether a verdict can be carried out by expiry: whole idle threads only, and what was asked for by name."""
    return verdict.action in {WHOLE, ERASED}


def order_of(read: Reader, key: bytes) -> tuple[bool, float, bool]:
    """Blobs, which any checkpoint may name, last; the older first; checkpoints before what hangs on them."""
    part = read(key)
    kind, seconds = (part[0], part[3] or 0.0) if isinstance(part, tuple) else (BLOB, 0.0)
    return kind == BLOB, seconds, kind != CHECKPOINT
