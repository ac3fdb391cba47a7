"""Threads that were set to expire, remembered in Redis: one that comes alive again keeps what it has.

What belongs here: that memory, and taking an expiry back. What does not: which threads expire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ops_pipeline.checkpoints.connection import Store

EXPIRING = "ops_pipeline:checkpoints_expiring"
"""A sorted set: threads, by the Unix time when their keys expire."""
NEAR_SECONDS = 2.0
"""Redis counts in whole seconds here. An expiry farther from ours is the saver's own, and stays."""
AT_ONCE = 1_000


def remember(store: Store, moments: Mapping[bytes, int]) -> None:
    """Note when threads expire, before any of their keys is set to; what is noted already stays, as do its keys."""
    if moments:
        store.client.zadd(EXPIRING, dict(moments), nx=True)


def expiring(store: Store) -> dict[bytes, float]:
    """The threads whose keys are set to expire, with the time; those whose time has come are forgotten."""
    seconds, _ = store.scanned[0].time()
    store.client.zremrangebyscore(EXPIRING, "-inf", int(seconds) - 1)
    return dict(store.client.zrange(EXPIRING, 0, -1, withscores=True))


def take_back(store: Store, thread: bytes, moment: float, keys: Sequence[bytes]) -> int:
    """Let the keys of a thread stay that were to expire at a moment; how many these were."""
    kept = 0
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        seconds, _ = store.scanned[0].time()
        left = _each(store, "TTL", some)
        ours = [key for key, ttl in zip(some, left, strict=True) if abs(int(seconds) + ttl - moment) <= NEAR_SECONDS]
        kept += sum(_each(store, "PERSIST", ours))
    store.client.zrem(EXPIRING, thread)
    return kept


def _each(store: Store, command: str, keys: Sequence[bytes]) -> list[Any]:
    pipeline = store.client.pipeline(transaction=False)
    for key in keys:
        pipeline.execute_command(command, key)
    return pipeline.execute() if keys else []
