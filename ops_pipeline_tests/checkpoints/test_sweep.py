"""Whole sweeps of real Redis servers, layout by layout; after each, what survives is read as the savers read it."""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from typing import Any

import pytest
import redis

from ops_pipeline.checkpoints.collecting import LARGEST_PASS
from ops_pipeline.checkpoints.connection import open_store
from ops_pipeline.checkpoints.expiry import EXPIRING
from ops_pipeline.checkpoints.layouts import Prefixes
from ops_pipeline.checkpoints.lock import LOCK
from ops_pipeline.checkpoints.policy import Policy, glob_of
from ops_pipeline.checkpoints.sweep import Options, Swept, sweep
from ops_pipeline.reconcile import PlanRefused, SafetyLimit
from ops_pipeline_tests.checkpoints.redis_servers import (
    DAY,
    EMPTY,
    LAYOUTS,
    Loaded,
    RedisServer,
    forget_reads,
    keys_of,
    load_plain,
    load_saver,
    other_id,
    put_blobs,
    put_plain,
    put_saver,
    put_shallow,
    put_writes,
    snapshot,
    uuid6,
)

READ_ONLY = {"scan", "dbsize", "info", "time", "ping", "type", "getrange", "get", "hmget", "exists", "select", "hello"}
READ_ONLY |= {"client|setinfo", "client|maint_notifications", "config|resetstat"}


def policy(**changes: Any) -> Policy:
    """Threads idle for 30 days go, and nothing that is younger than one."""
    return Policy(**({"retention": 30 * DAY, "grace": DAY} | changes))


def run(server: RedisServer, rules: Policy | None = None, prefixes: Prefixes | None = None, **options: Any) -> Swept:
    """Sweep once."""
    with open_store(server.url()) as store:
        return sweep(
            store,
            prefixes or Prefixes(),
            rules or policy(),
            Options(**options),
            swept=Swept(),
            told=lambda _: None,
        )


def ago(days: float) -> float:
    return time.time() - days * DAY


# Layouts


@pytest.mark.parametrize("name", LAYOUTS)
def test_idle_threads_go_with_all_that_is_theirs_and_live_ones_keep_everything(
    server: RedisServer, client: redis.Redis, name: str
) -> None:
    """Writes, blobs and pointers outlived their checkpoints by years: nobody deleted them any more."""
    put, load = LAYOUTS[name]
    idle = [f"idle-{number}-x" for number in range(3)]
    live = {
        f"live-{number}-x": [put(client, f"live-{number}-x", ago(days)) for days in (90, 10)] for number in range(3)
    }
    before = snapshot(client)
    for thread in idle:
        for days in (90, 40):
            put(client, thread, ago(days))
    gone = int(client.dbsize()) - len(before)
    swept = run(server)
    # Of a shallow thread the writes of an overwritten checkpoint go too, which nobody can read any more.
    overwritten = 3 if name == "shallow" else 0
    assert (swept.threads, swept.removed["whole"], swept.deleted) == (6, 3, gone + overwritten)
    assert [keys_of(client, thread) for thread in idle] == [[], [], []]
    assert {thread: load(client, thread) for thread in live} == {thread: steps[-1] for thread, steps in live.items()}
    kept = snapshot(client)
    assert len(kept) == len(before) - overwritten
    # It leaves the list of writes as well.
    lists = {key for key in kept if key.startswith(b"write_registry:")}
    assert {key: kept[key] for key in kept.keys() - lists}.items() <= before.items()
    assert run(server).deleted == 0
    assert snapshot(client) == kept


def test_all_layouts_live_in_one_database_side_by_side(server: RedisServer, client: redis.Redis) -> None:
    expected = {}
    for name, (put, _) in LAYOUTS.items():
        put(client, f"idle {name}", ago(31))
        expected[name] = put(client, f"live {name}", ago(29))
    swept = run(server)
    assert swept.threads == 2 * len(LAYOUTS)
    assert swept.removed == {"whole": len(LAYOUTS)}
    assert (swept.unknown, swept.foreign) == (0, 0)
    assert {name: load(client, f"live {name}") for name, (_, load) in LAYOUTS.items()} == expected
    assert [key for key in client.scan_iter() if b"idle" in key] == []
    # As a person has to name them: the recipe's was shown as `$idle recipe of hashes`, which finds no thread.
    assert {change.key for change in swept.changes} == {f"idle {name}" for name in LAYOUTS}


def test_nested_namespaces_live_and_die_with_their_thread(server: RedisServer, client: redis.Redis) -> None:
    nested = f"child:{uuid.uuid4()}|deeper:{uuid.uuid4()}"
    for thread, days in (("idle", 40), ("live", 2)):
        put_saver(client, thread, ago(50), namespace=nested)
        put_saver(client, thread, ago(days))
    put_saver(client, "awake in the subgraph", ago(60))
    inner = put_saver(client, "awake in the subgraph", ago(1.5), namespace=nested)
    swept = run(server)
    assert (swept.threads, dict(swept.removed), keys_of(client, "idle")) == (3, {"whole": 1}, [])
    assert load_saver(client, "live", nested) is not None
    assert load_saver(client, "awake in the subgraph", nested) == inner
    assert load_saver(client, "awake in the subgraph") is not None


@pytest.mark.parametrize("largest", [LARGEST_PASS, 400], ids=["one pass", "many passes"])
@pytest.mark.parametrize("namespace", ["agent", "outer|agent", "outer:7d3c5a0e-6f1b-4c52-9a4e-2b8f60d1c9aa|agent"])
def test_the_state_of_a_subgraph_that_was_not_called_for_long_stays_with_its_thread(
    server: RedisServer, client: redis.Redis, namespace: str, largest: int
) -> None:
    """A graph within a graph that keeps its state has no task in its namespace: it was taken for an idle thread."""
    for thread in ("user", "user:7"):
        put_saver(client, thread, ago(40))
        kept = put_saver(client, thread, ago(40), namespace=namespace)
        put_saver(client, thread, ago(2))
    for number in range(5):
        put_saver(client, f"idle-{number}", ago(40))
        put_saver(client, f"idle-{number}", ago(40), namespace=namespace)
    swept = run(server, largest_pass=largest)
    assert keys_of(client, "idle") == []
    assert load_saver(client, "user:7", namespace) == kept
    assert load_saver(client, "user", namespace) is not None
    assert swept.removed["whole"] >= 5 and (swept.threads == 7 or largest == 400)


def test_erasing_a_thread_takes_the_state_of_its_subgraphs_and_no_thread_that_is_named_alike(
    server: RedisServer, client: redis.Redis
) -> None:
    put_saver(client, "user", ago(1))
    put_saver(client, "user", ago(1), namespace="agent")
    others = [put_saver(client, "user:7", ago(1)), put_plain(client, "user:8", ago(1), make_id=uuid6)]
    run(server, policy(erase=True, only=(glob_of("user"),)))
    assert [load_saver(client, "user:7"), load_plain(client, "user:8")] == others
    assert [load_saver(client, "user"), load_saver(client, "user", "agent")] == [None, None]
    assert keys_of(client, "user:agent") == []


def test_names_with_separators_globs_and_bytes_that_are_no_text_are_threads_like_others(
    server: RedisServer, client: redis.Redis
) -> None:
    names = ["a:b:c", "*", "user[1]?", "it's {1} $HOME", "ünï→", "x" * 500, " ", "\\"]
    for name in names:
        put_saver(client, f"{name}-idle", ago(40))
        put_saver(client, f"{name}-live", ago(4))
    client.set(b"checkpoint:\xff\xfe:" + uuid6(ago(40)).encode(), b"{}")
    swept = run(server)
    assert swept.removed == {"whole": len(names) + 1}
    assert all(load_saver(client, f"{name}-live") and not load_saver(client, f"{name}-idle") for name in names)
    assert [key for key in client.scan_iter() if b"idle" in key or b"\xff" in key] == []


def test_prefixes_may_be_others(server: RedisServer, client: redis.Redis) -> None:
    client.set("app1:cp:idle:" + uuid6(ago(40)), "{}")
    client.set(f"app1:w:idle:{uuid6(ago(40))}:{uuid.uuid4()}:0", "{}")
    put_plain(client, "of another", ago(40))
    swept = run(server, prefixes=Prefixes("app1:cp", "app1:w"))
    assert swept.deleted == 2
    assert keys_of(client, "idle") == [] and keys_of(client, "of another") != []


def test_values_of_megabytes_tell_their_time_too(server: RedisServer, client: redis.Redis) -> None:
    """Only the first 64 kB were read, as JSON that ended in the middle: the largest threads stayed for ever."""
    long = {"history": ["x" * 1000] * 2000}
    put_plain(client, "idle", ago(40), other_id, **long)
    live = put_plain(client, "live", ago(2), other_id, **long)
    assert run(server).removed == {"whole": 1}
    assert (load_plain(client, "idle"), load_plain(client, "live")) == (None, live)


# What is left alone


def test_foreign_and_unknown_keys_stay_and_are_counted(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "idle", ago(40))
    client.mset({"celery": "1", "checkpointed": "2", "session:1": "3"})
    client.hset("checkpoint_hash", "a", "b")
    for key in ("checkpoint_write:no-id", "checkpoint:", "checkpoint$x", "write_registry:x"):
        client.set(key, "?")
    before = {key: value for key, value in snapshot(client).items() if b"idle" not in key}
    swept = run(server)
    assert snapshot(client) == before
    assert swept.unknown == 4
    assert set(swept.unknown_examples) == {
        b"checkpoint_write:no-id",
        b"checkpoint:",
        b"checkpoint$x",
        b"write_registry:x",
    }
    assert (swept.foreign, swept.matched) == (4, 5 + 4)


def test_what_tells_no_age_stays_and_is_counted(server: RedisServer, client: redis.Redis) -> None:
    """A value that is no JSON, or holds a number of 400 digits, must neither go nor stop every sweep to come."""
    values = [
        "no json",
        "{",
        "[]",
        '{"ts": "soon"}',
        '{"ts": 1' + "0" * 400 + "}",
        "\xff" * 9,
        '{"ts": 5}',
        "[" * 100_000,
    ]
    for number, value in enumerate(values):
        client.set(f"checkpoint:odd-{number}:last", value)
    client.rpush("checkpoint:odd-list:last", "x")
    put_plain(client, "odd-future", ago(-3))
    before = snapshot(client)
    swept = run(server)
    assert swept.kept == {"age unknown": len(values) + 1, "ids of the future": 1}
    assert snapshot(client) == before


def test_a_pointer_of_another_type_does_not_stop_the_sweep(server: RedisServer, client: redis.Redis) -> None:
    """One hash under a pointer's name made every sweep fail."""
    put_saver(client, "odd", ago(40))
    client.delete(f"checkpoint_latest:odd:{EMPTY}")
    client.hset(f"checkpoint_latest:odd:{EMPTY}", "a", "b")
    put_saver(client, "idle", ago(40))
    swept = run(server)
    assert (swept.removed, swept.kept) == ({"whole": 1}, {"age unknown": 1})
    erased = run(server, policy(only=(glob_of("odd"),), erase=True))
    assert (erased.removed, keys_of(client, "odd")) == ({"erased": 1}, [])


def test_orphans_go_when_they_are_old(server: RedisServer, client: redis.Redis) -> None:
    for name, days in (("old", 2), ("young", 0.5)):
        put_writes(client, f"{name} writes:{EMPTY}", uuid6(ago(days)), (0, 1))
        client.set(f"checkpoint_latest:{name} pointer:{EMPTY}", f"checkpoint:{name} pointer:{EMPTY}:{uuid6(ago(days))}")
    live = put_saver(client, "live", ago(3))
    put_writes(client, f"live:{EMPTY}", uuid6(ago(4)), (0,))
    swept = run(server)
    assert swept.removed == {"orphans": 3}
    assert [key for key in client.scan_iter() if b"old" in key] == []
    assert len(keys_of(client, "young")) == 3 + 1
    assert load_saver(client, "live") == live
    assert len(keys_of(client, "live")) == 5
    assert run(server).deleted == 0


def test_writes_without_any_checkpoint_stay_since_the_prefix_may_be_wrong(
    server: RedisServer, client: redis.Redis
) -> None:
    """With the prefix of checkpoints misspelt, every pending write of every live thread was an orphan."""
    put_writes(client, f"somebody:{EMPTY}", uuid6(ago(5)), (0, 1))
    swept = run(server)
    assert (swept.deleted, swept.kept) == (0, {"orphans, and no checkpoint anywhere": 1})
    put_saver(client, "live", ago(3))
    assert run(server).removed == {"orphans": 1}


def test_pending_writes_of_a_live_shallow_thread_stay(server: RedisServer, client: redis.Redis) -> None:
    """Its document stands under the empty namespace, its writes under __empty__: they were taken for orphans."""
    live = put_shallow(client, "live", ago(5))
    assert run(server).deleted == 0
    assert LAYOUTS["shallow"][1](client, "live") == live


def test_older_writes_of_a_live_shallow_thread_go_and_leave_its_list(server: RedisServer, client: redis.Redis) -> None:
    """The saver reads the whole list at every step, and never shortens it."""
    for days in (9, 8, 7):
        live = put_shallow(client, "live", ago(days))
    assert client.zcard(f"write_registry:live:{EMPTY}:shallow") == 3
    put_shallow(client, "odd", ago(9))
    put_shallow(client, "odd", ago(7))
    client.set(f"write_registry:odd:{EMPTY}:shallow", "of another type")
    swept = run(server)
    assert (swept.removed, swept.deleted) == ({"orphans": 2}, 3)
    assert LAYOUTS["shallow"][1](client, "live") == live
    assert {key.decode() for key in client.zrange(f"write_registry:live:{EMPTY}:shallow", 0, -1)} == live.writes
    assert run(server).deleted == 0


def test_indices_of_the_first_versions_stay_with_their_live_checkpoint(
    server: RedisServer, client: redis.Redis
) -> None:
    """Versions 0.1.0 to 0.1.2 named them with an empty namespace, their checkpoints with __empty__."""
    live = put_saver(client, "live", ago(5))
    client.rename(f"write_keys_zset:live:{EMPTY}:{live.identifier}", f"write_keys_zset:live::{live.identifier}")
    assert run(server).deleted == 0


def test_pinned_threads_stay_and_some_have_another_retention(server: RedisServer, client: redis.Redis) -> None:
    for thread in ("vip-1", "vip-2", "user-42-a", "user-4-b", "user-42-young"):
        put_saver(client, thread, ago(5 if "young" in thread else 40))
    by_thread = ((glob_of("user-42-*"), 4 * DAY), (glob_of("vip-2"), 50 * DAY))
    swept = run(server, policy(pinned=(glob_of("vip-1"),), by_thread=by_thread))
    assert swept.removed == {"whole": 3}
    assert swept.kept == {"pinned": 1, "live": 1}
    assert {thread for thread in ("vip-1", "vip-2") if load_saver(client, thread)} == {"vip-1", "vip-2"}
    assert keys_of(client, "user-") == []


def test_nothing_younger_than_the_grace_goes_however_short_the_retention(
    server: RedisServer, client: redis.Redis
) -> None:
    put_saver(client, "young", ago(0.5))
    assert run(server, policy(retention=60.0)).deleted == 0
    assert run(server, policy(retention=60.0, grace=0.0)).removed == {"whole": 1}


# Dry runs


def commands_sent(client: redis.Redis) -> set[str]:
    """The commands that the server has served since its statistics were reset."""
    return {str(name).removeprefix("cmdstat_").lower() for name in client.info("commandstats")}


def test_a_dry_run_sends_no_command_that_writes(server: RedisServer, client: redis.Redis) -> None:
    for name, (put, _) in LAYOUTS.items():
        put(client, f"idle {name}", ago(40))
        put(client, f"live {name}", ago(4))
    before = snapshot(client)
    client.config_resetstat()
    planned = run(server, policy(keep_newest=1), dry_run=True, purge_memory=True)
    assert commands_sent(client) <= READ_ONLY
    assert snapshot(client) == before
    assert (planned.deleted, planned.removed) == (0, {})
    assert len(planned.changes) == len(LAYOUTS)
    forget_reads(client)
    done = run(server, policy(keep_newest=1))
    assert done.deleted == planned.planned_keys > 0
    # The proof can fail: a sweep that is none leaves these.
    assert commands_sent(client) - READ_ONLY >= {"set", "unlink", "evalsha"}


# Trimming


def trimmed(server: RedisServer, keep: int = 2, **options: Any) -> Swept:
    return run(server, policy(keep_newest=keep, trim_age=DAY), **options)


def test_trimming_keeps_the_newest_of_each_namespace_with_its_writes(server: RedisServer, client: redis.Redis) -> None:
    nested = f"child:{uuid.uuid4()}"
    steps = [put_saver(client, "live", ago(days)) for days in (9, 8, 7, 6, 5)]
    inner = [put_saver(client, "live", ago(days), namespace=nested) for days in (9, 8, 7)]
    swept = trimmed(server)
    assert (swept.removed, swept.deleted) == ({"trimmed": 1}, (3 + 1) * 4)
    assert load_saver(client, "live") == steps[-1]
    assert load_saver(client, "live", nested) == inner[-1]
    kept = {key.decode().rpartition(":")[2] for key in client.keys("checkpoint:*")}
    assert kept == {one.identifier for one in (*steps[-2:], *inner[-2:])}
    assert sorted(key.decode() for key in client.keys("checkpoint_write:*")) == sorted(
        write for one in (*steps[-2:], *inner[-2:]) for write in one.writes
    )
    assert trimmed(server).deleted == 0


def test_young_checkpoints_count_among_those_to_keep_and_none_of_them_goes(
    server: RedisServer, client: redis.Redis
) -> None:
    for days in (5, 4, 3):
        put_saver(client, "live", ago(days))
    young = [put_saver(client, "live", ago(days)) for days in (0.3, 0.2, 0.1)]
    assert trimmed(server).deleted == 3 * 4
    assert load_saver(client, "live") == young[-1]
    assert len(client.keys("checkpoint:*")) == 3


def test_interrupts_and_what_the_pointer_names_are_not_trimmed(server: RedisServer, client: redis.Redis) -> None:
    """A thread that waits for its user for a week had lost the question."""
    interrupted = put_saver(client, "live", ago(9), indices=(0, -3))
    rewound = put_saver(client, "live", ago(8), indices=(0,))
    for days in (7, 6, 5, 4):
        put_saver(client, "live", ago(days))
    client.set(f"checkpoint_latest:live:{EMPTY}", f"checkpoint:live:{EMPTY}:{rewound.identifier}")
    assert trimmed(server).deleted == 2 * 4
    assert load_saver(client, "live") == rewound
    assert all(client.exists(write) for write in interrupted.writes)
    assert client.exists(f"checkpoint:live:{EMPTY}:{interrupted.identifier}")


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("round_number", range(4))
def test_threads_that_live_on_their_ancestors_are_not_trimmed(
    server: RedisServer, client: redis.Redis, as_text: bool, round_number: int
) -> None:
    """A pruned thread with delta channels came back without its messages. Which key a scan names first is chance."""
    metadata: Any = {"source": "loop", "counters_since_delta_snapshot": {"messages": 3}}
    plain: Any = {"source": "loop", "counters_since_delta_snapshot": {}}
    for number in range(10):
        for days in (9, 8, 7, 6):
            fields = {"metadata": json.dumps(metadata) if as_text else metadata} if days == 6 else {"metadata": plain}
            put_saver(client, f"delta-{round_number}-{number}", ago(days), **fields)
    put_saver(client, "other", ago(9), metadata=json.dumps(plain) if as_text else plain)
    put_saver(client, "other", ago(8), metadata=json.dumps(plain) if as_text else plain)
    swept = trimmed(server, keep=1)
    assert swept.kept == {"delta channels": 10}
    assert (swept.removed, swept.deleted) == ({"trimmed": 1}, 4)
    assert len(client.keys("checkpoint:delta-*")) == 40


@pytest.mark.parametrize("value", ["no json", '{"metadata": "{"}', '{"metadata": 5}', "[]", "{}"])
def test_a_newest_checkpoint_that_nobody_can_read_keeps_its_thread_from_being_trimmed(
    server: RedisServer, client: redis.Redis, value: str
) -> None:
    put_saver(client, "live", ago(9))
    newest = put_saver(client, "live", ago(8))
    client.set(f"checkpoint:live:{EMPTY}:{newest.identifier}", value)
    swept = trimmed(server, keep=1)
    assert (swept.deleted, swept.kept) == (0, {"delta channels": 1})


def test_trimmed_threads_without_a_pointer_keep_their_newest(server: RedisServer, client: redis.Redis) -> None:
    newest = [put_plain(client, "live", ago(days), metadata={"step": 1}) for days in (9, 8, 7)][-1]
    assert trimmed(server, keep=1).deleted == 2
    assert load_plain(client, "live") == newest


# Erasure


def erase(server: RedisServer, *patterns: str, **options: Any) -> Swept:
    return run(server, policy(only=tuple(glob_of(one) for one in patterns), erase=True), **options)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_user_is_erased_with_everything_whatever_its_age_and_others_are_not(
    server: RedisServer, client: redis.Redis, name: str
) -> None:
    """`user-1-*` also met user 1-2's neighbours, and documents without a time in their names stayed."""
    put, load = LAYOUTS[name]
    for days in (40, 0.001):
        put(client, "user-1", ago(days))
    others = {thread: put(client, thread, ago(3)) for thread in ("user-11", "user-1-7", "user-2", "xuser-1")}
    swept = erase(server, "user-1")
    assert swept.removed == {"erased": 1}
    assert load(client, "user-1") is None
    assert {key for key in client.scan_iter() if b"user-1:" in key or b"user-1$" in key} <= set(
        keys_of(client, "xuser-1")
    )
    assert {thread: load(client, thread) for thread in others} == others


def test_patterns_erase_what_they_match_and_a_star_in_an_id_is_no_pattern(
    server: RedisServer, client: redis.Redis
) -> None:
    """An id of `*` erased everybody."""
    threads = ["user-1-a", "user-1-b", "user-1", "user-12-a", "*", "user-[1]", "user-?"]
    for thread in threads:
        put_saver(client, thread, ago(3))
    erase(server, "user-1-*")
    left = {"user-1", "user-12-a", "*", "user-[1]", "user-?"}
    assert {thread for thread in threads if load_saver(client, thread)} == left
    erase(server, r"\*")
    erase(server, r"user-\?")
    erase(server, "user-[1]")
    assert {thread for thread in threads if load_saver(client, thread)} == {"user-1", "user-12-a"}


@pytest.mark.parametrize("pattern", ["", " ", "*", "**", "?*"])
def test_a_pattern_that_names_nobody_or_everybody_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="names no thread, or every one"):
        glob_of(pattern)


def test_erasing_takes_nested_namespaces_and_orphans_too(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "user-1", ago(1), namespace=f"child:{uuid.uuid4()}")
    put_writes(client, f"user-1:{EMPTY}", uuid6(ago(0.1)), (0,))
    put_blobs(client, "user-1", ago(0.1))
    assert erase(server, "user-1", limit=SafetyLimit(share=0.5, minimum_population=20)).deleted == 8 + 4
    assert client.dbsize() == 0


def test_only_named_threads_are_swept_when_threads_are_named(server: RedisServer, client: redis.Redis) -> None:
    for thread in ("user-1-a", "user-2-a"):
        put_saver(client, thread, ago(40))
    swept = run(server, policy(only=(glob_of("user-1-*"),)))
    assert (swept.threads, swept.removed) == (1, {"whole": 1})
    assert load_saver(client, "user-2-a") is not None


# Expiry


def test_idle_threads_expire_and_one_that_comes_alive_stays_alive(server: RedisServer, client: redis.Redis) -> None:
    for number in range(20):
        put_saver(client, f"idle-{number:02d}", ago(40))
        put_plain(client, f"plain-{number:02d}", ago(40))
    put_saver(client, "live", ago(4))
    put_writes(client, f"orphan:{EMPTY}", uuid6(ago(4)), (0,))
    swept = run(server, expire_seconds=100.0, jitter_seconds=1000.0)
    assert (swept.removed, swept.deleted) == ({"whole": 40}, 20 * 5 + 20)
    assert {change.action for change in swept.changes} == {"let expire: 5 keys", "let expire: 1 key"}
    lives = {key: client.ttl(key) for key in client.scan_iter()}
    assert all(lives[key] == -1 for key in (*keys_of(client, "live"), *keys_of(client, "orphan")))
    idle = {key: left for key, left in lives.items() if b"idle" in key or b"plain" in key}
    assert all(98 <= left <= 1101 for left in idle.values())
    assert len(set(idle.values())) > 10
    assert len({lives[key] for key in keys_of(client, "idle-07")}) == 1
    back = put_saver(client, "idle-07", time.time())
    assert client.ttl(f"checkpoint_latest:idle-07:{EMPTY}") == -1
    assert all(client.ttl(key) == -1 for key in keys_of(client, back.identifier))
    assert load_saver(client, "idle-07") == back


def test_a_second_sweep_does_not_put_expiry_off(server: RedisServer, client: redis.Redis) -> None:
    """Every nightly sweep gave all idle threads two more days: nothing ever expired."""
    put_saver(client, "idle", ago(40))
    put_plain(client, "plain", ago(40))
    run(server, expire_seconds=100.0, jitter_seconds=0.0)
    before = {key: client.expiretime(key) for key in client.scan_iter()}
    again = run(server, expire_seconds=10_000.0, jitter_seconds=0.0)
    assert {key: client.expiretime(key) for key in client.scan_iter()} == before
    assert again.deleted == 0


@pytest.mark.parametrize("again", [None, 100.0])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_thread_that_comes_alive_before_it_expires_keeps_all_it_has(
    server: RedisServer, client: redis.Redis, name: str, again: float | None
) -> None:
    """Its older checkpoints and unchanged blobs went a day after its user had come back."""
    put, load = LAYOUTS[name]
    for thread in ("idle-x", "back-x"):
        for days in (50, 40):
            put(client, thread, ago(days))
    put_saver(client, "live", ago(4))
    run(server, expire_seconds=1000.0, jitter_seconds=500.0)
    assert all(900 < client.ttl(key) <= 1501 for key in keys_of(client, "idle-x"))
    back = put(client, "back-x", time.time())
    swept = run(server, expire_seconds=again)
    assert all(client.ttl(key) == -1 for key in keys_of(client, "back-x"))
    assert (load(client, "back-x"), swept.taken_back) == (back, 1)
    left = {client.ttl(key) > 0 for key in keys_of(client, "idle-x")}
    # To set an expiry is to touch a blob: these wait for it.
    assert left == ({True} if again or "blobs" in name else set())
    assert run(server, expire_seconds=again).taken_back == 0
    assert swept.foreign == 0


def test_what_expires_by_the_savers_own_will_still_does(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "back", ago(40))
    # Not its pointer: the saver writes that anew, without an expiry.
    first = next(key for key in keys_of(client, "back") if key.startswith(b"checkpoint:"))
    client.expire(first, 5000)
    run(server, expire_seconds=1000.0, jitter_seconds=0.0)
    put_saver(client, "back", time.time())
    run(server)
    assert 4990 < client.ttl(first) <= 5000
    assert {client.ttl(key) for key in keys_of(client, "back") if key != first} == {-1}


def test_threads_that_expired_are_forgotten(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "idle", ago(40))
    put_saver(client, "live", ago(4))
    run(server, expire_seconds=0.0, jitter_seconds=0.0)
    assert client.zcard(EXPIRING) == 1
    client.zadd(EXPIRING, {"idle": time.time() - 10})
    run(server)
    assert not client.exists(EXPIRING)


def test_what_expires_is_gone_when_its_time_has_come(server: RedisServer, client: redis.Redis) -> None:
    put_saver(client, "idle", ago(40))
    run(server, expire_seconds=0.0, jitter_seconds=0.0)
    assert keys_of(client, "idle") == []


# Limits


def test_a_sweep_that_would_take_too_many_threads_takes_none(server: RedisServer, client: redis.Redis) -> None:
    """A clock that stood a year ahead would have emptied the database."""
    for number in range(20):
        put_saver(client, f"thread-{number}", ago(40 if number < 11 else 4))
    put_writes(client, f"orphan:{EMPTY}", uuid6(ago(4)), (0,))
    before = snapshot(client)
    with pytest.raises(PlanRefused, match="11 of 21 objects are more than the limit of 50%"):
        run(server, limit=SafetyLimit(share=0.5))
    assert snapshot(client) == before
    assert run(server, limit=SafetyLimit(share=0.53)).removed == {"whole": 11, "orphans": 1}


def test_when_time_is_up_the_sweep_says_what_is_left_and_the_next_one_goes_on(
    server: RedisServer, client: redis.Redis
) -> None:
    threads = [f"idle-{number:03d}" for number in range(600)]
    with client.pipeline(transaction=False) as pipeline:
        for thread in threads:
            put_saver(pipeline, thread, ago(40))
        pipeline.execute()
    ticks = itertools.count(step=2)
    swept = Swept()
    with open_store(server.url()) as store:
        rules = Options(time_budget=56)
        sweep(store, Prefixes(), policy(), rules, swept=swept, told=lambda _: None, clock=lambda: float(next(ticks)))
    assert 0 < swept.left < 600
    assert swept.left + swept.removed["whole"] == 600
    assert {len(keys_of(client, thread)) for thread in threads} == {0, 5}
    assert sum(load_saver(client, thread) is not None for thread in threads) == swept.left
    assert not client.exists(LOCK)
    then = run(server)
    assert (then.removed["whole"], client.dbsize()) == (swept.left, 0)


def test_when_time_is_up_before_all_was_scanned_nothing_goes_and_that_is_told(
    server: RedisServer, client: redis.Redis
) -> None:
    """The budget counted for deleting only: a scan of a huge database went on until Dagster ended the run."""
    with client.pipeline(transaction=False) as pipeline:
        for number in range(1_000):
            put_saver(pipeline, f"idle-{number}", ago(40))
        pipeline.execute()
    ticks = itertools.count(step=2)
    swept = Swept()
    with open_store(server.url()) as store:
        rules = Options(time_budget=12)
        sweep(store, Prefixes(), policy(), rules, swept=swept, told=lambda _: None, clock=lambda: float(next(ticks)))
    assert swept.processed + swept.unscanned == client.dbsize() + 1 == 5_001, "its own lock was there too"
    assert (swept.processed > 0, swept.unscanned > 0, swept.deleted, swept.threads) == (True, True, 0, 0)
    assert not client.exists(LOCK)


def scene(client: redis.Redis) -> dict[str, tuple[str, Loaded]]:
    """Threads of all layouts, old, young and in between; the survivors with what their readers must find."""
    survivors = {}
    for number in range(12):
        for name, (put, _) in LAYOUTS.items():
            thread = f"{name} {number:02d}"
            put(client, thread, ago(60))
            last = put(client, thread, ago(40 if number % 3 else 4))
            if not number % 3:
                survivors[thread] = (name, last)
        put_saver(client, f"saver {number:02d}", ago(39 if number % 3 else 3), namespace=f"child:{uuid.uuid4()}")
        put_writes(client, f"orphan {number}:{EMPTY}", uuid6(ago(3)), (0, 1))
    return survivors


@pytest.mark.parametrize("largest", [500, 8_000, 40_000])
def test_many_small_passes_do_what_one_does(server: RedisServer, client: redis.Redis, largest: int) -> None:
    """Documents of one live thread fell into several passes, and in each the thread looked idle."""
    survivors = scene(client)
    size = int(client.dbsize())
    planned = run(server, dry_run=True)
    swept = run(server, largest_pass=largest)
    assert swept.passes > 1 and swept.processed == size
    assert swept.deleted == planned.planned_keys
    assert (swept.threads, swept.kept) == (planned.threads, planned.kept)
    assert swept.removed == {"whole": 8 * len(LAYOUTS), "orphans": 12 + 4}
    assert {thread: (name, LAYOUTS[name][1](client, thread)) for thread, (name, _) in survivors.items()} == survivors
    assert run(server, largest_pass=largest).deleted == 0


def test_a_thread_larger_than_a_pass_is_one_pass(server: RedisServer, client: redis.Redis) -> None:
    """Two namespaces of one thread cannot be told apart by the hash of its name: the sweep tried for ever."""
    for namespace in (EMPTY, f"child:{uuid.uuid4()}"):
        for days in (40, 41, 42):
            put_saver(client, "large", ago(days), namespace=namespace)
    put_saver(client, "live", ago(3))
    done: list[Swept] = []
    worker = threading.Thread(target=lambda: done.append(run(server, largest_pass=500)), daemon=True)
    worker.start()
    worker.join(10)
    assert done and done[0].removed == {"whole": 1}
    assert load_saver(client, "live") is not None


def test_a_thread_of_more_keys_than_a_command_takes_goes_as_a_whole(server: RedisServer, client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for number in range(700):
            put_saver(pipeline, "large", ago(40 + number / 100))
            put_blobs(pipeline, "old saver", ago(40 + number / 100))
        pipeline.execute()
    assert int(client.dbsize()) > 5000
    assert run(server).removed == {"whole": 2}
    assert client.dbsize() == 0


# What is told


def test_the_result_counts_keys_threads_and_memory(server: RedisServer, client: redis.Redis) -> None:
    for number in range(3):
        put_saver(client, f"idle-{number}", ago(40))
    put_plain(client, "live", ago(2), other_id)
    client.set("foreign", "1")
    swept = run(server, purge_memory=True)
    assert (swept.processed, swept.matched, swept.foreign, swept.threads) == (17, 16, 1, 4)
    assert (swept.deleted, swept.documents, swept.passes) == (15, 1, 1)
    assert swept.ages == {40: 3, 2: 1}
    assert max(swept.largest)[0] == 5
    assert all(number > 0 for pair in (swept.used_bytes, swept.resident_bytes) for number in pair)
    assert "memory|purge" in commands_sent(client)
    (first, *_) = swept.changes
    assert first.action == "delete: 5 keys" and first.planned_from == "newest 40 days old"


def test_an_empty_database_is_empty_although_the_lock_lies_in_it(server: RedisServer) -> None:
    """The advice for a wrong number of the database never came: the sweep counted its own lock."""
    swept = run(server)
    assert (swept.processed, swept.matched, swept.foreign) == (0, 0, 0)


def test_all_of_a_hundred_thousand_keys_are_swept_while_others_are_served_at_once(server: RedisServer) -> None:
    """One KEYS, or one DEL of everything, stops every assistant for a second."""
    import subprocess
    import sys

    client = server.client()
    for first in range(0, 25_000, 2_500):
        with client.pipeline(transaction=False) as pipeline:
            for number in range(first, first + 2_500):
                put_saver(pipeline, f"thread-{number}", ago(40 if number % 2 else 4), indices=(0,))
            pipeline.execute()
    assert int(client.dbsize()) == 100_000
    code = (
        "import socket, sys, time\n"
        "line = socket.socket(socket.AF_UNIX); line.connect(sys.argv[1]); waits = []; print('ready', flush=True)\n"
        "until = time.monotonic() + 60\n"
        "while time.monotonic() < until:\n"
        "    began = time.perf_counter(); line.sendall(b'EXISTS stop\\r\\n'); answer = line.recv(64)\n"
        "    waits.append(time.perf_counter() - began)\n"
        "    if answer == b':1\\r\\n': break\n"
        "    time.sleep(0.001)\n"
        "waits.sort(); print(len(waits), waits[int(len(waits) * 0.99)])\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(server.socket_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "ready\n"
    swept = run(server)
    client.set("stop", "1")
    count, slowest = other.communicate(timeout=20)[0].split()
    assert swept.removed == {"whole": 12_500} and swept.deleted == 50_000
    assert int(count) > 100
    # In relation to the sweep, since a busy machine is slow with both; a single command for all takes most of it.
    assert float(slowest) < max(0.020, swept.seconds / 20)
    assert sum(load_saver(client, f"thread-{number}") is not None for number in range(0, 25_000, 250)) == 100
