"""One sweep at a time: a lock in Redis itself, with a token, so that nobody frees the lock of somebody else.

What belongs here: taking, keeping and freeing the lock.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import redis

from ops_pipeline.checkpoints.connection import Store
from ops_pipeline.reconcile import Unavailable

LOCK = "ops_pipeline:checkpoint_cleanup"
HELD_MILLISECONDS = 60_000
RENEWED_AFTER_SECONDS = 15.0
IF_MINE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call({command}) end return 0"


EVEN_WITHOUT_MEMORY = """#!lua flags=allow-oom
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
"""
"""Takes the lock in a Redis 7 that is out of memory: it is then that a sweep is needed."""


@contextmanager
def only_sweep(store: Store, clock: Callable[[], float] = time.monotonic) -> Generator[Callable[[], None], None, None]:
    """Hold the lock.

    Yields:
        A function to be called now and then, which renews the lock and raises when it was lost.

    Raises:
        Unavailable: another sweep holds it, or it was lost.
    """
    token = uuid.uuid4().hex
    if not _taken(store, token):
        raise Unavailable(
            f"Another sweep of {store.where} is at work (key {LOCK}): wait for it. The lock of one that died is free"
            f" after {HELD_MILLISECONDS // 1000} s."
        )
    renew = store.client.register_script(IF_MINE.format(command="'PEXPIRE', KEYS[1], ARGV[2]"))
    free = store.client.register_script(IF_MINE.format(command="'DEL', KEYS[1]"))
    renewed = clock()

    def keep() -> None:
        nonlocal renewed
        if clock() - renewed > RENEWED_AFTER_SECONDS:
            if not renew(keys=[LOCK], args=[token, HELD_MILLISECONDS]):
                raise Unavailable(f"The lock {LOCK} was lost to another sweep: this one stopped.")
            renewed = clock()

    try:
        yield keep
    finally:
        with suppress(redis.RedisError, OSError):
            free(keys=[LOCK], args=[token])


def _taken(store: Store, token: str) -> bool:
    try:
        return bool(store.client.set(LOCK, token, nx=True, px=HELD_MILLISECONDS))
    except redis.OutOfMemoryError:
        try:
            return bool(store.client.eval(EVEN_WITHOUT_MEMORY, 1, LOCK, token, HELD_MILLISECONDS))
        except redis.ResponseError:
            # Before 7.0 no script may do so: the first error says what is wrong.
            pass
        raise
