"""Sweeps whose Redis dies, refuses or is changed under them: what is told, what was done, and what the next one does.

Every server here is private. `told` and `clock` are called between the steps of a sweep: what a test does there happens
exactly in between.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis

from ops_pipeline.checkpoints.connection import open_store
from ops_pipeline.checkpoints.layouts import Prefixes
from ops_pipeline.checkpoints.lock import LOCK
from ops_pipeline.checkpoints.policy import Policy
from ops_pipeline.checkpoints.sweep import Options, Swept, sweep
from ops_pipeline.reconcile import Unavailable
from ops_pipeline_tests.checkpoints.redis_servers import (
    DAY,
    RedisServer,
    load_blobs,
    load_plain,
    load_saver,
    put_blobs,
    put_plain,
    put_saver,
    snapshot,
)
from ops_pipeline_tests.servers import free_port

THREADS = 400
"""With pointers and writes: two thousand keys, in several batches."""


def ago(days: float) -> float:
    return time.time() - days * DAY


def fill(server: RedisServer) -> None:
    """Idle threads, and two that are alive."""
    with server.client().pipeline(transaction=False) as pipeline:
        for number in range(THREADS):
            put_saver(pipeline, f"idle-{number:03d}", ago(40))
            put_plain(pipeline, f"plain-{number:03d}", ago(41))
            put_plain(pipeline, f"plain-{number:03d}", ago(40))
        put_saver(pipeline, "live", ago(4))
        put_plain(pipeline, "live plain", ago(4))
        pipeline.execute()


def run(url: str, swept: Swept, between: Callable[[str], object] | None = None, **options: Any) -> Swept:
    """Sweep once, and do something between its steps."""
    clock = partial(next, itertools.count(step=6.0)) if between else time.monotonic
    policy = Policy(retention=30 * DAY, grace=DAY)
    with open_store(url) as store:
        settings = Options(**({"time_budget": 1e9} | options))
        return sweep(store, Prefixes(), policy, settings, swept=swept, told=between or (lambda _: None), clock=clock)


def once(word: str, action: Callable[[], object], *, after: int = 1) -> Callable[[str], None]:
    """Do something once, the so-manieth time that the sweep says a word."""
    said = itertools.count(1)

    def between(text: str) -> None:
        if word in text and next(said) == after:
            action()

    return between


def failing(url: str, between: Callable[[str], object] | None = None) -> tuple[str, Swept]:
    """What a failing sweep tells, and what it had done."""
    swept = Swept()
    with pytest.raises(Unavailable) as caught:
        run(url, swept, between)
    return str(caught.value), swept


def whole_or_gone(server: RedisServer) -> int:
    """How many idle threads are there; none of them in part."""
    with server.client() as client:
        threads = [load_saver(client, f"idle-{number:03d}") for number in range(THREADS)]
        plain = [load_plain(client, f"plain-{number:03d}") for number in range(THREADS)]
        assert {len(found.writes) for found in threads if found} <= {2}
        assert load_saver(client, "live") and load_plain(client, "live plain")
        return sum(found is not None for found in (*threads, *plain))


def next_one_finishes(server: RedisServer) -> None:
    """The next sweep removes what this one left, as soon as the lock of a dead one is free."""
    with server.client() as client:
        client.delete(LOCK)
        assert run(server.url(), Swept()).kept == {"live": 2}
        assert whole_or_gone(server) == 0
        assert client.dbsize() == 5 + 1


def test_a_redis_that_dies_while_threads_are_removed_is_told_with_what_was_done(private: RedisServer) -> None:
    fill(private)
    told, swept = failing(private.url(), once("removed", private.kill, after=2))
    assert told.startswith(private.url()) and "Check that the server runs" in told
    assert swept.deleted > 500 and swept.removed["whole"] > 100
    private.start()
    assert whole_or_gone(private) == 2 * THREADS - swept.removed["whole"]
    next_one_finishes(private)


def test_a_redis_restarted_between_two_batches_is_swept_to_the_end(private: RedisServer) -> None:
    """Its scripts are gone, and its connections."""
    fill(private)
    swept = run(private.url(), Swept(), once("removed", private.restart, after=2))
    assert swept.removed == {"whole": 2 * THREADS}
    assert whole_or_gone(private) == 0


def test_a_redis_that_dies_while_it_is_scanned_has_lost_nothing(private: RedisServer) -> None:
    fill(private)
    told, swept = failing(private.url(), once("scanned", private.restart))
    assert "Check that the server runs" in told
    assert (swept.deleted, swept.removed) == (0, {})
    assert whole_or_gone(private) == 2 * THREADS
    next_one_finishes(private)


def test_a_primary_that_becomes_a_replica_is_told(private: RedisServer) -> None:
    """A failover in the night."""
    fill(private)
    client = private.client()
    demote = partial(client.replicaof, "127.0.0.1", free_port())
    told, swept = failing(private.url(), once("removed", demote, after=2))
    assert "is a replica and takes no writes: name the primary" in told
    assert swept.deleted > 500
    client.replicaof("NO", "ONE")
    assert whole_or_gone(private) == 2 * THREADS - swept.removed["whole"]
    next_one_finishes(private)


def test_a_redis_that_is_out_of_memory_can_be_swept(private: RedisServer) -> None:
    """The lock did not fit in any more: of all times, no sweep began when it was needed."""
    fill(private)
    client = private.client()
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        client.set("more", "1")
    run(private.url(), Swept())
    assert whole_or_gone(private) == 0
    assert not client.exists(LOCK)


def test_a_redis_that_runs_out_of_memory_meanwhile_is_swept_all_the_same(private: RedisServer) -> None:
    fill(private)
    swept = run(private.url(), Swept(), once("removed", lambda: private.client().config_set("maxmemory", 1), after=2))
    assert swept.removed == {"whole": 2 * THREADS}
    assert whole_or_gone(private) == 0


@pytest.mark.parametrize("word", ["scanned", "removed"])
def test_connections_cut_meanwhile_lose_nothing(private: RedisServer, word: str) -> None:
    """An administrator's CLIENT KILL, or a proxy that is restarted."""
    fill(private)
    swept = Swept()
    cut = once(word, lambda: private.client().client_kill_filter(_type="normal", skipme=True))
    try:
        run(private.url(), swept, cut)
    except Unavailable as error:
        assert "Check that the server runs" in str(error)
        assert whole_or_gone(private) == 2 * THREADS - swept.removed["whole"]
    next_one_finishes(private)


@pytest.fixture
def restricted(private: RedisServer) -> Iterator[Callable[..., str]]:
    """A URL of a user who may do everything but what is named."""

    def without(*commands: str) -> str:
        with private.client() as client:
            client.acl_setuser(
                "sweeper", enabled=True, reset=True, passwords=["+secret"], keys=["*"], commands=["+@all", *commands]
            )
        return private.url(user="sweeper", password="secret")

    fill(private)
    yield without


@pytest.mark.parametrize("command", ["scan", "unlink", "eval", "set", "info", "dbsize"])
def test_a_user_without_a_right_is_told_which(
    private: RedisServer, restricted: Callable[..., str], command: str
) -> None:
    with private.client() as client:
        before = snapshot(client)
    told, swept = failing(restricted(f"-{command}"))
    assert "Check the rights of this user in the Redis URL." in told
    # Redis tells the command, except from within a script.
    assert command in told.lower() or command == "unlink"
    assert "secret" not in told
    assert swept.deleted == 0
    with private.client() as client:
        # Without scripts the lock cannot be freed: it expires.
        assert {key: value for key, value in snapshot(client).items() if key != LOCK.encode()} == before
    next_one_finishes(private)


def test_a_user_who_sees_some_keys_only_is_told(private: RedisServer) -> None:
    fill(private)
    with private.client() as client:
        client.acl_setuser(
            "sweeper", enabled=True, passwords=["+secret"], keys=["checkpoint:*", LOCK], commands=["+@all"]
        )
    told, _ = failing(private.url(user="sweeper", password="secret"))
    assert "Check the rights of this user" in told
    whole_or_gone(private)
    next_one_finishes(private)


def test_of_a_large_thread_that_was_half_deleted_nothing_reads_as_alive_and_broken(private: RedisServer) -> None:
    """Blobs went first: the checkpoints that were left named channels that were gone."""
    with private.client().pipeline(transaction=False) as pipeline:
        for number in range(1200):
            put_blobs(pipeline, "old saver", ago(40 + number / 100))
            put_saver(pipeline, "large", ago(40 + number / 100))
        pipeline.execute()
    swept = Swept()
    url = private.url()
    watcher = private.client()
    size = int(watcher.dbsize())

    class Killed(Exception):
        """The test ends the sweep here."""

    with open_store(url) as store:
        ask, calls = store.client.execute_command, itertools.count(1)

        def dying(*command: Any, **options: Any) -> Any:
            if command[0] == "EVAL" and next(calls) == 4:
                watcher.client_kill_filter(_type="normal", skipme=True)
                raise Killed
            return ask(*command, **options)

        store.client.execute_command = dying
        with pytest.raises(Killed):
            sweep(
                store,
                Prefixes(),
                Policy(retention=30 * DAY, grace=DAY),
                Options(),
                swept=swept,
                told=lambda _: None,
            )
    assert swept.deleted == size - int(watcher.dbsize()) + watcher.exists(LOCK) > 1000
    load_blobs(watcher, "old saver")
    load_saver(watcher, "large")
    watcher.delete(LOCK)
    run(url, Swept())
    assert watcher.dbsize() == 0
