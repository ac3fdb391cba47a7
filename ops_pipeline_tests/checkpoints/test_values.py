"""What only values tell. RedisJSON cannot be installed here: a door before a real Redis answers in its place.

Through it, texts under `checkpoint:` are documents, as the savers of langgraph-checkpoint-redis write them; GET on
one is an error, as with the module.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from ops_pipeline.checkpoints.connection import Store, open_store
from ops_pipeline.checkpoints.layouts import Prefixes
from ops_pipeline.checkpoints.policy import Policy, glob_of
from ops_pipeline.checkpoints.sweep import Options, Swept, sweep
from ops_pipeline.checkpoints.values import ages_of, deltas_of
from ops_pipeline_tests.checkpoints.documents import with_documents
from ops_pipeline_tests.checkpoints.redis_servers import (
    DAY,
    EMPTY,
    Loaded,
    RedisServer,
    document_of,
    iso,
    keys_of,
    load_saver,
    load_shallow,
    put_plain,
    put_saver,
    put_shallow,
    put_writes,
    ulid,
    uuid6,
)

WHEN = 1_760_000_000.5


@pytest.fixture
def store(server: RedisServer) -> Iterator[Store]:
    """The Redis through its door: texts under `checkpoint:` are RedisJSON documents."""
    with with_documents(server) as url, open_store(url) as opened:
        yield opened


@pytest.fixture
def plain(server: RedisServer) -> Iterator[Store]:
    """The Redis itself."""
    with open_store(server.url()) as opened:
        yield opened


def ago(days: float) -> float:
    return time.time() - days * DAY


def run(store: Store, told: Any = None, clock: Any = time.monotonic, **changes: Any) -> Swept:
    rules = Policy(**({"retention": 30 * DAY, "grace": DAY} | changes))
    return sweep(store, Prefixes(), rules, Options(time_budget=1e9), swept=Swept(), told=told or print, clock=clock)


def age(store: Store, client: redis.Redis, value: Any) -> tuple[float | None, bytes]:
    """Time and id of a document."""
    client.set("checkpoint:one:", json.dumps(value))
    (found,) = ages_of(store, [b"checkpoint:one:"])
    return found.seconds, found.identifier


@pytest.mark.parametrize(
    ("value", "seconds", "identifier"),
    [
        (document_of("a", "t", "", WHEN), WHEN, b"a"),
        ({"checkpoint_ts": int(WHEN * 1000), "checkpoint_id": "a"}, WHEN, b"a"),
        # Milliseconds of a UUIDv6, seconds of a ULID.
        ({"checkpoint_ts": int(WHEN), "checkpoint": {"id": "b"}}, int(WHEN), b"b"),
        ({"checkpoint_id": (known := uuid6(WHEN))}, WHEN, known.encode()),
        ({"checkpoint": {"id": (other := ulid(WHEN))}}, WHEN, other.encode()),
        ({"checkpoint": {"ts": "soon"}, "checkpoint_ts": None, "checkpoint_id": known}, WHEN, known.encode()),
        # The stub of a late write, and what a cancelled run leaves.
        ({"has_writes": "true"}, None, b""),
        ({"checkpoint": "text"}, None, b""),
        ([], None, b""),
    ],
    # The ids within are random, and every worker must collect the same names.
    ids=itertools.count(),
)
def test_a_document_tells_its_time_in_one_of_several_places(
    store: Store, client: redis.Redis, value: Any, seconds: float | None, identifier: bytes
) -> None:
    found, named = age(store, client, value)
    assert (found if found is None else pytest.approx(seconds, abs=0.001)) == seconds
    assert named == identifier


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ({"ts": iso(WHEN)}, WHEN),
        ({"timestamp": WHEN}, WHEN),
        ({"created_at": iso(WHEN - 9), "updated_at": iso(WHEN) + "Z"}, WHEN),
        ({"checkpoint": {"ts": iso(WHEN) + "+00:00"}}, WHEN),
        ({"checkpoint_ts": str(int(WHEN * 1000))}, WHEN),
        ({"ts": True}, None),
        ({"ts": 10**400}, None),
        ({"ts": "9" * 400}, None),
        ({"ts": 12}, None),
        ({"text": '"ts": "2020-01-01T00:00:00"'}, None),
        ("2020-01-01T00:00:00", None),
    ],
)
def test_a_plain_value_tells_its_time_if_it_is_one(
    plain: Store, client: redis.Redis, value: Any, seconds: float | None
) -> None:
    found, _ = age(plain, client, value)
    assert found == (seconds if seconds is None else pytest.approx(seconds, abs=0.001))


def test_hashes_tell_their_time_and_other_types_none(plain: Store, client: redis.Redis) -> None:
    client.hset("checkpoint:a:x", mapping={"ts": iso(WHEN), "updated_at": str(WHEN + 5)})
    client.hset("checkpoint:b:x", mapping={"ts": b"\xff\xfe"})
    client.rpush("checkpoint:c:x", "1")
    keys = [b"checkpoint:a:x", b"checkpoint:b:x", b"checkpoint:c:x", b"checkpoint:nowhere:x"]
    assert [found.seconds for found in ages_of(plain, keys)] == [pytest.approx(WHEN + 5), None, None, None]


def test_shallow_threads_of_documents_go_when_idle_and_keep_their_writes_when_not(
    store: Store, client: redis.Redis
) -> None:
    for thread in ("idle", "a:idle"):
        put_shallow(client, thread, ago(40))
    live = {thread: put_shallow(client, thread, ago(5)) for thread in ("live", "a:live")}
    put_writes(client, f"live:{EMPTY}", uuid6(ago(6)), (0,))
    swept = run(store)
    assert (swept.removed, swept.deleted) == ({"whole": 2, "orphans": 1}, 2 * 4 + 2)
    assert keys_of(client, "idle") == []
    assert {thread: load_shallow(client, thread) for thread in live} == live
    assert run(store).deleted == 0


def test_a_shallow_document_overwritten_after_the_look_stays(store: Store, client: redis.Redis) -> None:
    """The saver overwrites it in place, and keeps no pointer that would tell."""
    for thread in ("idle", "resumed"):
        put_shallow(client, thread, ago(40))
    news: list[Loaded] = []
    ticks = itertools.count(step=6.0)
    scanned: list[str] = []

    def clock() -> float:
        if scanned and not news:
            # All keys fit into one page: the next look at the clock comes before the first batch.
            news.append(put_shallow(client, "resumed", time.time()))
        return next(ticks)

    swept = run(store, told=scanned.append, clock=clock)
    assert (swept.removed, swept.kept) == ({"whole": 1}, {"came alive": 1})
    assert load_shallow(client, "resumed") == news[0]
    assert keys_of(client, "idle") == []


@pytest.mark.parametrize("as_text", [True, False])
def test_documents_with_delta_channels_are_not_trimmed(store: Store, client: redis.Redis, as_text: bool) -> None:
    """The saver keeps metadata as JSON within JSON; the shallow one as an object."""
    delta: Any = {"counters_since_delta_snapshot": {"messages": 2}}
    other: Any = {"step": 3}
    for days in (9, 8, 7):
        put_saver(client, "delta", ago(days), metadata=json.dumps(delta) if as_text else delta)
        newest = put_saver(client, "other", ago(days), metadata=json.dumps(other) if as_text else other)
    keys = {thread: client.get(f"checkpoint_latest:{thread}:{EMPTY}") for thread in ("delta", "other")}
    assert deltas_of(store, list(keys.values())) == {keys["delta"]}
    swept = run(store, keep_newest=1)
    assert (swept.removed, swept.deleted, swept.kept) == ({"trimmed": 1}, 8, {"delta channels": 1})
    assert len(client.keys("checkpoint:delta:*")) == 3
    assert load_saver(client, "other") == newest


def test_stubs_of_late_writes_stay_and_are_counted(store: Store, client: redis.Redis) -> None:
    """A write that came after its checkpoint was deleted made a document without a time; its name has one."""
    client.set(f"checkpoint:stub:{EMPTY}:{uuid6(ago(40))}", '{"has_writes": "true"}')
    client.set("checkpoint:unknown:", '{"has_writes": "true"}')
    swept = run(store)
    assert (swept.removed, swept.kept) == ({"whole": 1}, {"age unknown": 1})
    assert list(client.scan_iter()) == [b"checkpoint:unknown:"]


def test_a_shallow_user_is_erased_by_the_exact_id(store: Store, client: redis.Redis) -> None:
    put_shallow(client, "user-1", ago(0.1))
    other = put_shallow(client, "user-11", ago(0.1))
    swept = run(store, erase=True, only=(glob_of("user-1"),))
    assert swept.removed == {"erased": 1}
    assert load_shallow(client, "user-1") is None and load_shallow(client, "user-11") == other
    assert len(keys_of(client, "user-1")) == 4


def test_thousands_of_documents_are_read_in_parts(plain: Store, client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for number in range(1500):
            put_plain(pipeline, f"t{number}", ago(40 if number % 2 else 4), lambda _: "state")
        pipeline.execute()
    swept = run(plain)
    assert (swept.documents, swept.removed, client.dbsize()) == (1500, {"whole": 750}, 750)
