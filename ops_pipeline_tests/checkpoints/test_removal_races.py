"""Assistants that write while a sweep is at work, and two sweeps at once, on a real Redis.

A sweep's `clock` and `told` are called between its steps: what a test does there happens exactly in between.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import redis

from ops_pipeline.checkpoints import removal
from ops_pipeline.checkpoints.connection import Store, open_store
from ops_pipeline.checkpoints.layouts import Prefixes
from ops_pipeline.checkpoints.lock import HELD_MILLISECONDS, LOCK, RENEWED_AFTER_SECONDS, only_sweep
from ops_pipeline.checkpoints.policy import Policy, glob_of
from ops_pipeline.checkpoints.sweep import Options, Swept, sweep
from ops_pipeline.checkpoints.values import Age
from ops_pipeline.reconcile import Unavailable
from ops_pipeline_tests.checkpoints.redis_servers import (
    DAY,
    EMPTY,
    LAYOUTS,
    Loaded,
    RedisServer,
    forget_reads,
    keys_of,
    load_blobs,
    load_saver,
    load_shallow,
    other_id,
    put_blobs,
    put_plain,
    put_saver,
    put_shallow,
    put_writes,
    resume_blobs,
    snapshot,
    until,
    uuid6,
)

INTERRUPT, ANSWER = -3, -4
"""The numbers of writes by which a thread waits for a person, and of that person's answer."""
SECONDS = 3.0
"""How long assistants and sweeps race."""


def ago(days: float) -> float:
    return time.time() - days * DAY


def run(
    server: RedisServer,
    between: Callable[[str], None] | None = None,
    decided: Callable[[], object] | None = None,
    rules: Policy | None = None,
    **options: Any,
) -> Swept:
    """Sweep once, and do something between its steps, or once it has decided what goes."""
    hours = itertools.count(step=6.0)
    scanned: list[str] = []
    done: list[object] = []

    def told(text: str) -> None:
        scanned.append(text)
        if between:
            between(text)

    def clock() -> float:
        if not between and not decided:
            return time.monotonic()
        if scanned and decided and not done:
            # All keys fit into one page: the next look at the clock comes before the first batch.
            done.append(decided())
        return next(hours)

    settings = Options(**({"time_budget": 1e9} | options))
    with open_store(server.url()) as store:
        policy = rules or Policy(retention=30 * DAY, grace=DAY)
        return sweep(store, Prefixes(), policy, settings, swept=Swept(), told=told, clock=clock)


def once_scanned(action: Callable[[], object]) -> Callable[[str], None]:
    """Do something once, when all keys were scanned and nothing was decided."""
    done = []

    def between(text: str) -> None:
        if "scanned" in text and not done:
            done.append(action())

    return between


# One thread, at the worst moment


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_thread_resumed_after_the_scan_is_there_afterwards(
    server: RedisServer, client: redis.Redis, name: str
) -> None:
    """The saver overwrites some documents in place: what the sweep had seen as old was new when it was deleted."""
    put, load = LAYOUTS[name]
    for thread in ("idle", "resumed"):
        put(client, thread, ago(40))
    news: list[Loaded] = []
    swept = run(server, once_scanned(lambda: news.append(put(client, "resumed", time.time()))))
    assert load(client, "resumed") == news[0]
    assert keys_of(client, "idle") == []
    assert swept.removed["whole"] >= 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_thread_resumed_after_the_decision_is_there_afterwards(
    server: RedisServer, client: redis.Redis, name: str
) -> None:
    put, load = LAYOUTS[name]
    for thread in ("idle", "resumed"):
        put(client, thread, ago(40))
    news: list[Loaded] = []
    run(server, decided=lambda: news.append(put(client, "resumed", time.time())))
    assert load(client, "resumed") == news[0]
    assert keys_of(client, "idle") == []


@pytest.mark.parametrize("times", [0, 1, 99])
def test_what_is_removed_is_counted_once_however_often_a_document_is_written_meanwhile(
    server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Four threads go in one step of Redis, which is done again when one of their documents is written in between."""
    for number in range(4):
        in_place(client, f"idle-{number}", ago(40))
        put_saver(client, f"idle-{number}", ago(40 + number))
    looks = itertools.count(1)
    look = removal.ages_of

    def looked(store: Store, keys: list[bytes]) -> list[Age]:
        ages = look(store, keys)
        if b"checkpoint:idle-2:state" in keys and next(looks) <= times:
            # Written between the look and the step, and no younger than before.
            in_place(client, "idle-2", ago(40))
        return ages

    monkeypatch.setattr(removal, "ages_of", looked)
    before = client.dbsize()
    swept = run(server)
    assert swept.deleted == before - client.dbsize()
    if times < 99:
        assert (swept.removed, swept.kept, client.dbsize()) == ({"whole": 4}, {}, 0)
    else:
        assert (swept.removed, swept.kept, client.dbsize()) == ({"whole": 3}, {"came alive": 1}, 6)
        assert len(keys_of(client, "idle-2")) == 6


@pytest.mark.parametrize("expire_seconds", [None, 100.0])
def test_documents_written_in_place_stay_and_do_not_expire(
    server: RedisServer, client: redis.Redis, expire_seconds: float | None
) -> None:
    """A thread of one document, overwritten at every step, was deleted a second after its user came back."""
    for thread in ("idle", "resumed"):
        client.set(f"checkpoint:{thread}:state", json.dumps({"ts": ago(40)}))
    fresh = json.dumps({"ts": time.time()})
    swept = run(
        server,
        decided=lambda: client.set("checkpoint:resumed:state", fresh),
        expire_seconds=expire_seconds,
    )
    assert client.get("checkpoint:resumed:state") == fresh.encode()
    assert client.ttl("checkpoint:resumed:state") == -1
    assert (
        client.ttl("checkpoint:idle:state") == -2
        if expire_seconds is None
        else client.ttl("checkpoint:idle:state") > 90
    )
    assert swept.removed == {"whole": 1}


def test_a_document_with_a_pointer_beside_it_stays_when_it_is_written_meanwhile(
    server: RedisServer, client: redis.Redis
) -> None:
    """Where an assistant had moved to the shallow saver, old pointers were left, and only these were looked at."""
    for thread in ("idle", "resumed"):
        put_saver(client, thread, ago(50))
        put_shallow(client, thread, ago(40))
    news: list[Loaded] = []
    swept = run(server, decided=lambda: news.append(put_shallow(client, "resumed", time.time())))
    assert load_shallow(client, "resumed") == news[0]
    assert load_saver(client, "resumed") is not None
    assert keys_of(client, "idle") == []
    assert (swept.removed, swept.kept) == ({"whole": 1}, {"came alive": 1})


def test_a_thread_resumed_in_a_subgraph_only_stays_as_a_whole(server: RedisServer, client: redis.Redis) -> None:
    nested = "child:00000000-0000-4000-8000-000000000007"
    for namespace in (EMPTY, nested):
        put_saver(client, "resumed", ago(40), namespace=namespace)
    before = snapshot(client)
    swept = run(server, once_scanned(lambda: put_saver(client, "resumed", time.time(), namespace=nested)))
    assert (swept.deleted, swept.kept) == (0, {"came alive": 1})
    assert set(before) < set(snapshot(client))
    assert load_saver(client, "resumed") and load_saver(client, "resumed", nested)


def test_blobs_of_a_resumed_thread_stay_however_many_there_are(server: RedisServer, client: redis.Redis) -> None:
    """The second look at threads with blobs ran out of room, and forgot half of them."""
    for number in range(40):
        put_blobs(client, f"thread-{number:02d}", ago(40))
    news: dict[str, Loaded] = {}

    def resume() -> None:
        for number in range(0, 40, 2):
            news[f"thread-{number:02d}"] = put_blobs(client, f"thread-{number:02d}", time.time())

    swept = run(server, once_scanned(resume))
    assert {thread: load_blobs(client, thread) for thread in news} == news
    assert (swept.removed, swept.kept) == ({"whole": 20}, {"blobs in use": 20})
    # The same with more keys than a pass keeps.
    for number in range(0, 80):
        put_blobs(client, f"later-{number:02d}", ago(40))
    news.clear()
    done: list[int] = []

    def resume_later(text: str) -> None:
        if "scanned" in text and not done:
            done.append(1)
            for number in range(0, 80, 2):
                news[f"later-{number:02d}"] = put_blobs(client, f"later-{number:02d}", time.time())

    run(server, resume_later, largest_pass=4_000)
    assert len(news) == 40
    assert {thread: load_blobs(client, thread) for thread in news} == news


MOMENTS = ("before the sweep", "after the scan", "after the decision")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("checkpoints", "expire_seconds"), [(2, None), (2, 100.0), (800, None)])
def test_a_thread_whose_person_answers_stays_before_its_first_new_checkpoint(
    server: RedisServer, client: redis.Redis, moment: str, checkpoints: int, expire_seconds: float | None
) -> None:
    """A run had read its thread, and was at work: no new checkpoint told of it, and its history went meanwhile."""
    with client.pipeline(transaction=False) as pipeline:
        for thread in ("idle", "answered"):
            for number in range(checkpoints):
                newest = put_saver(pipeline, thread, ago(60 - number / 100), indices=(INTERRUPT,))
        pipeline.execute()
    forget_reads(client, prefix="checkpoint:")
    written: list[frozenset[str]] = []

    def answer() -> None:
        found = load_saver(client, "answered")
        assert found == newest
        written.append(put_writes(client, f"answered:{EMPTY}", found.identifier, (ANSWER,)))

    if moment == MOMENTS[0]:
        answer()
    between = once_scanned(answer) if moment == MOMENTS[1] else None
    decided = answer if moment == MOMENTS[2] else None
    swept = run(server, between, decided, unread_seconds=600, expire_seconds=expire_seconds)
    assert (swept.removed, swept.kept) == ({"whole": 1}, {"in use": 1})
    assert load_saver(client, "answered") == replace(newest, writes=newest.writes | written[0])
    kept = keys_of(client, "answered")
    assert len(kept) == 3 * checkpoints + 2 and all(client.ttl(key) == -1 for key in kept)
    assert expire_seconds or keys_of(client, "idle") == []


def test_a_thread_that_is_read_is_erased_all_the_same(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "read", ago(40))
    rules = Policy(retention=30 * DAY, grace=DAY, erase=True, only=(glob_of("read"),))
    assert run(server, rules=rules, unread_seconds=600).removed == {"erased": 1}


def test_where_redis_does_not_tell_of_reads_idle_threads_go(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "idle", ago(40))
    client.config_set("maxmemory-policy", "allkeys-lfu")
    try:
        assert run(server, unread_seconds=600).removed == {"whole": 1}
    finally:
        client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize("moment", ["scanned", "decided"])
def test_blobs_that_a_resumed_thread_read_stay_though_it_did_not_write_them(
    server: RedisServer, client: redis.Redis, moment: str
) -> None:
    """A second look at the keys had shown nothing, and a moment later a checkpoint named blobs that then went."""
    for thread in ("idle", "resumed"):
        put_blobs(client, thread, ago(40))
    news: list[Loaded] = []

    def resume() -> None:
        news.append(resume_blobs(client, "resumed", time.time()))

    swept = run(server, once_scanned(resume)) if moment == "scanned" else run(server, decided=resume)
    assert load_blobs(client, "resumed") == news[0]
    assert (swept.removed, swept.kept) == ({"whole": 1}, {"blobs in use": 1})
    assert keys_of(client, "idle") == []


def test_a_run_that_loaded_a_thread_before_the_sweep_finds_its_blobs_after_it(
    server: RedisServer, client: redis.Redis
) -> None:
    """It writes its checkpoint at its very end, hours later as the case may be."""
    put_blobs(client, "under way", ago(40))
    client.get(f"checkpoint_blob:under way:{EMPTY}:branch:to:agent:1")
    assert run(server).kept == {"blobs in use": 1}
    news = resume_blobs(client, "under way", time.time())
    assert load_blobs(client, "under way") == news


def test_keys_that_somebody_else_deletes_meanwhile_are_not_counted(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "cut", ago(40), indices=(0, 1))
    put_plain(client, "plain", ago(40))
    gone = [*keys_of(client, "cut")[:2], *keys_of(client, "plain")]
    swept = run(server, once_scanned(lambda: client.delete(*gone)))
    assert (swept.planned_keys, swept.deleted, client.dbsize()) == (6, 3, 0)


def test_blobs_of_nothing_go_when_nobody_touches_them(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "live", ago(2))
    for thread in ("old", "touched"):
        put_blobs(client, thread, ago(40))
        client.delete(*client.keys(f"checkpoint:{thread}:*"), *client.keys(f"*:{thread}:*-*"))
    client.get(f"checkpoint_blob:touched:{EMPTY}:branch:to:agent:1")
    swept = run(server)
    assert (swept.removed, swept.kept) == ({"orphans": 1}, {"live": 1, "blobs in use": 1})
    assert keys_of(client, "old") == [] and len(keys_of(client, "touched")) == 2


def test_where_redis_does_not_tell_who_touches_blobs_they_stay(server: RedisServer, client: redis.Redis) -> None:
    """Under a policy that counts uses, no times are kept."""
    put_blobs(client, "idle", ago(40))
    client.config_set("maxmemory-policy", "allkeys-lfu")
    try:
        assert run(server).kept == {"age of blobs unknown": 1}
        assert load_blobs(client, "idle") is not None
    finally:
        client.config_set("maxmemory-policy", "noeviction")


def test_an_erased_thread_that_is_written_to_meanwhile_is_left_whole_and_told(
    server: RedisServer, client: redis.Redis
) -> None:
    """Its newest checkpoint was left behind, with no pointer that told of it."""
    put_saver(client, "user-1", ago(4))
    rules = Policy(retention=30 * DAY, grace=DAY, only=(glob_of("user-1"),), erase=True)
    news: list[Loaded] = []
    between = once_scanned(lambda: news.append(put_saver(client, "user-1", time.time())))
    assert run(server, between, rules=rules).kept == {"came alive": 1}
    assert load_saver(client, "user-1") == news[0]
    assert run(server, rules=rules).removed == {"erased": 1}
    assert client.dbsize() == 0


def test_an_orphaned_pointer_whose_checkpoint_appears_stays(server: RedisServer, client: redis.Redis) -> None:
    identifier = uuid6(ago(3))
    client.set(f"checkpoint_latest:late:{EMPTY}", f"checkpoint:late:{EMPTY}:{identifier}")
    run(server, once_scanned(lambda: client.set(f"checkpoint:late:{EMPTY}:{identifier}", "{}")))
    assert client.exists(f"checkpoint_latest:late:{EMPTY}", f"checkpoint:late:{EMPTY}:{identifier}") == 2


# Thousands of moments


class Assistants:
    """Assistants that resume idle threads as fast as they can, and remember what each thread must hold."""

    def __init__(self, server: RedisServer, threads: list[str], put: Callable[..., Loaded]) -> None:
        """Begin at once."""
        self.newest: dict[str, Loaded] = {}
        self.problems: list[BaseException] = []
        self._stop = threading.Event()
        halves = (threads[::2], threads[1::2])
        self._workers = [threading.Thread(target=self._work, args=(server, half, put)) for half in halves]
        for worker in self._workers:
            worker.start()

    def _work(self, server: RedisServer, threads: list[str], put: Callable[..., Loaded]) -> None:
        order = random.sample(threads, len(threads))
        try:
            with server.client() as client:
                for thread in order:
                    if self._stop.is_set():
                        return
                    self.newest[thread] = put(client, thread, time.time())
        except BaseException as error:  # noqa: BLE001 - the test judges it
            self.problems.append(error)

    def stop(self) -> None:
        """Let each finish the thread at hand."""
        self._stop.set()
        for worker in self._workers:
            worker.join()


def in_place(client: Any, thread: str, seconds: float) -> Loaded:
    """A thread of one document that is overwritten at every step."""
    return put_plain(client, thread, seconds, lambda _: "state", step=random.random())  # noqa: S311 - no secret


def load_in_place(client: Any, thread: str) -> Loaded | None:
    """The document of such a thread, if it is young."""
    value = client.get(f"checkpoint:{thread}:state")
    return Loaded(json.loads(value)["id"]) if value else None


RACED: dict[str, tuple[Callable[..., Loaded], Callable[[Any, str], Loaded | None]]] = {
    "saver": (put_saver, load_saver),
    "in place": (in_place, load_in_place),
    "plain, times in values": (partial(put_plain, make_id=other_id), LAYOUTS["plain, times in values"][1]),
}


@pytest.mark.parametrize("name", RACED)
def test_no_resumed_thread_is_ever_lost(server: RedisServer, client: redis.Redis, name: str) -> None:
    """The pointer went after its thread had been resumed: the assistant began anew, its history there unread."""
    put, load = RACED[name]
    deadline = time.monotonic() + (SECONDS if name == "saver" else SECONDS / 2)
    resumed = spared = gone = 0
    for turn in itertools.count():
        threads = [f"t{turn}-{number:03d}" for number in range(150)]
        with client.pipeline(transaction=False) as pipeline:
            for thread in threads:
                put(pipeline, thread, ago(40))
            pipeline.execute()
        assistants = Assistants(server, threads[::2], put)
        swept = run(server)
        assistants.stop()
        assert assistants.problems == []
        assert {thread: load(client, thread) for thread in assistants.newest} == assistants.newest
        for thread in set(threads) - set(assistants.newest):
            assert load(client, thread) is None, thread
        resumed += len(assistants.newest)
        spared += swept.kept["came alive"]
        gone += swept.removed["whole"]
        client.flushdb()
        if time.monotonic() > deadline and resumed > 500 and gone > 500:
            break
    # Many moments were met, on both sides of the deletion.
    assert resumed > 500 and gone > 500
    assert spared > 0 or name == "plain, times in values"


# Two sweeps


def test_of_two_sweeps_at_once_one_refuses(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "idle", ago(40))
    refusals: list[str] = []

    def second() -> None:
        with pytest.raises(Unavailable) as caught:
            run(server)
        refusals.append(str(caught.value))

    assert run(server, once_scanned(second)).removed == {"whole": 1}
    (told,) = refusals
    assert f"Another sweep of {server.url()} is at work (key {LOCK})" in told
    assert not client.exists(LOCK)


def test_a_dry_run_may_look_while_a_sweep_is_at_work(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "idle", ago(40))
    looks: list[Swept] = []
    run(server, once_scanned(lambda: looks.append(run(server, dry_run=True))))
    assert (looks[0].threads, looks[0].deleted) == (1, 0)


def test_the_lock_of_a_sweep_that_died_expires(server: RedisServer, client: redis.Redis) -> None:
    """A machine that lost power had stopped all sweeps for good."""
    put_saver(client, "idle", ago(40))
    child = os.fork()
    if child == 0:
        run(server, once_scanned(lambda: os._exit(9)))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with pytest.raises(Unavailable, match="Another sweep"):
        run(server)
    assert 0 < client.pttl(LOCK) <= HELD_MILLISECONDS
    client.pexpire(LOCK, 50)
    until(lambda: not client.exists(LOCK), "the lock to expire")
    assert run(server).removed == {"whole": 1}


@pytest.mark.parametrize("other", ["another sweep's token", None])
def test_a_sweep_that_lost_its_lock_stops_and_leaves_that_of_the_other(
    server: RedisServer, client: redis.Redis, other: str | None
) -> None:
    """A suspended laptop woke up, and swept on beside the sweep that had taken over."""
    put_saver(client, "idle", ago(40))
    before = snapshot(client)

    def taken_over() -> None:
        client.delete(LOCK)
        if other:
            client.set(LOCK, other)

    with pytest.raises(Unavailable, match="was lost"):
        run(server, once_scanned(taken_over))
    assert client.get(LOCK) == (other.encode() if other else None)
    client.delete(LOCK)
    assert snapshot(client) == before


def test_the_lock_is_renewed_while_a_sweep_scans_reads_and_removes(server: RedisServer, client: redis.Redis) -> None:
    """Reading a million documents takes minutes, in which the lock ran out and a second sweep began."""
    with client.pipeline(transaction=False) as pipeline:
        for number in range(1500):
            put_saver(pipeline, f"idle-{number}", ago(40))
        for number in range(1000):
            put_plain(pipeline, f"document-{number}", ago(40), other_id)
        pipeline.execute()
    lives: dict[str, list[int]] = {}

    def between(text: str) -> None:
        (phase,) = (one for one in ("scanned", "documents read", "removed") if one in text)
        lives.setdefault(phase, []).append(client.pttl(LOCK))
        client.pexpire(LOCK, 30_000)

    assert run(server, between).removed == {"whole": 2500}
    assert lives.keys() == {"scanned", "documents read", "removed"}
    for phase, left in lives.items():
        assert min(left) > 0 and sum(one > 30_000 for one in left[1:]) > 1, phase


def test_the_lock_is_renewed_in_time_and_no_more_often(server: RedisServer, client: redis.Redis) -> None:
    now = [0.0]
    with open_store(server.url()) as store, only_sweep(store, lambda: now[0]) as keep:
        for seconds, renewed in ((RENEWED_AFTER_SECONDS, False), (1, True), (RENEWED_AFTER_SECONDS - 1, False)):
            client.pexpire(LOCK, 30_000)
            now[0] += seconds
            keep()
            assert (client.pttl(LOCK) > 30_000) is renewed
        client.delete(LOCK)
        now[0] += 2
        with pytest.raises(Unavailable, match="was lost to another sweep"):
            keep()
    assert not client.exists(LOCK)
