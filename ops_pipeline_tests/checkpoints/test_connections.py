"""Ways to reach a Redis, and what is told when there is none: real servers, TLS, Sentinel, a cluster."""

from __future__ import annotations

import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis.cluster import RedisCluster

from ops_pipeline.checkpoints import connection
from ops_pipeline.checkpoints.connection import Store, check_url, masked, open_store, redis_url
from ops_pipeline.checkpoints.layouts import Prefixes
from ops_pipeline.checkpoints.policy import Policy, glob_of
from ops_pipeline.checkpoints.sweep import Options, Swept, sweep
from ops_pipeline.reconcile import Unavailable
from ops_pipeline_tests.checkpoints.redis_servers import (
    DAY,
    EMPTY,
    RedisServer,
    cluster_client,
    forget_reads,
    keys_of,
    load_saver,
    other_id,
    put_plain,
    put_saver,
    put_writes,
    redis_cluster,
    redis_server,
    replica_in_cluster,
    replica_of,
    sentinel_of,
    tls_server,
    until,
    uuid6,
)
from ops_pipeline_tests.servers import free_port

SECRET = "p@ss:w/rd%41#? ü&=+"
USER = "clean:er@ops"


def ago(days: float) -> float:
    return time.time() - days * DAY


def swept(store: Store, policy: Policy | None = None, **options: Any) -> Swept:
    rules = policy or Policy(retention=30 * DAY, grace=DAY)
    return sweep(store, Prefixes(), rules, Options(**options), swept=Swept(), told=lambda _: None)


def sweep_of(url: str, *, replicas: bool = False, **options: Any) -> Swept:
    with open_store(url, replicas=replicas) as store:
        return swept(store, **options)


def two_threads(client: Any) -> None:
    put_saver(client, "idle", ago(40))
    put_saver(client, "live", ago(4))


def check_two_threads(client: Any) -> None:
    assert keys_of(client, "idle") == []
    assert load_saver(client, "live") is not None


# Ways in


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    """A Redis with a password, and a user of its own for sweeps."""
    with redis_server("--requirepass", SECRET) as server:
        with server.client(password=SECRET) as client:
            client.acl_setuser(USER, enabled=True, passwords=[f"+{SECRET}"], keys=["*"], commands=["+@all"])
        yield server


@pytest.mark.parametrize("user", ["", USER])
def test_odd_letters_in_user_and_password_are_no_trouble(guarded: RedisServer, user: str) -> None:
    """An @ in the password made the host of the original another one."""
    client = guarded.client(password=SECRET)
    two_threads(client)
    url = guarded.url(user=user, password=SECRET)
    with open_store(url) as store:
        assert swept(store).removed == {"whole": 1}
        assert store.where == f"redis://***@127.0.0.1:{guarded.port}/0"
    check_two_threads(client)
    assert redis_url(host="127.0.0.1", port=guarded.port, password=SECRET, database=0) == guarded.url(password=SECRET)


def test_a_database_is_chosen_by_its_number(server: RedisServer) -> None:
    for number in (0, 2, 15):
        two_threads(server.client(number))
    with open_store(server.url(2)) as store:
        assert store.database == 2
        assert swept(store).removed == {"whole": 1}
    check_two_threads(server.client(2))
    assert len(keys_of(server.client(0), "idle")) == len(keys_of(server.client(15), "idle")) == 5


def test_a_unix_socket_is_a_way_too(server: RedisServer) -> None:
    two_threads(server.client(3))
    with open_store(f"unix://{server.socket_path}?db=3") as store:
        assert (store.database, store.where) == (3, f"unix://{server.socket_path}")
        assert swept(store).removed == {"whole": 1}
    check_two_threads(server.client(3))


@pytest.fixture(scope="module")
def secure() -> Iterator[tuple[RedisServer, Path]]:
    """A Redis that speaks TLS only."""
    with tls_server() as running:
        yield running


def test_tls_is_spoken_and_the_certificate_is_checked(secure: tuple[RedisServer, Path]) -> None:
    server, certificate = secure
    two_threads(server.client())
    place = f"rediss://127.0.0.1:{server.port}/0"
    with pytest.raises(Unavailable, match=r"certificate verify failed.*TLS of the Redis URL"):
        sweep_of(place)
    assert sweep_of(f"{place}?ssl_ca_certs={quote(str(certificate))}").removed == {"whole": 1}
    check_two_threads(server.client())


def test_tls_against_plain_and_plain_against_tls_are_told(
    secure: tuple[RedisServer, Path], server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(Unavailable, match="Check that the server runs, and host, port and TLS"):
        sweep_of(server.url().replace("redis:", "rediss:"))
    with pytest.raises(Unavailable, match="Check that the server runs, and host, port and TLS"):
        sweep_of(f"redis://127.0.0.1:{secure[0].port}/0")


def test_sentinel_finds_the_primary_and_a_replica_to_scan(server: RedisServer) -> None:
    with replica_of(server) as replica, sentinel_of(server, "my-primary") as sentinel:
        client = server.client()
        two_threads(client)
        client.wait(1, 5000)
        url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/my-primary/0"
        with replica.client() as copy:
            copy.config_resetstat()
        client.config_resetstat()
        assert sweep_of(url, replicas=True).removed == {"whole": 1}
        assert "cmdstat_scan" in replica.client().info("commandstats")
        assert "cmdstat_scan" not in client.info("commandstats")
        check_two_threads(client)
        put_saver(client, "idle", ago(40))
        assert sweep_of(url).removed == {"whole": 1}
        assert "cmdstat_scan" in client.info("commandstats")
        with pytest.raises(Unavailable, match=r"No master found for 'other'"):
            sweep_of(url.replace("my-primary", "other"))


def test_a_replica_is_no_place_to_delete(server: RedisServer) -> None:
    with replica_of(server) as replica:
        with pytest.raises(Unavailable, match="is a replica and takes no writes: name the primary"):
            sweep_of(replica.url())
        assert sweep_of(replica.url(), dry_run=True).deleted == 0


# A cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    """Three primaries."""
    with redis_cluster() as nodes:
        yield nodes


@pytest.fixture
def spread(cluster: list[RedisServer]) -> Iterator[RedisCluster]:
    """A client of the empty cluster."""
    with cluster_client(cluster) as client:
        client.flushall(target_nodes=RedisCluster.PRIMARIES)
        yield client


def cluster_url(cluster: list[RedisServer]) -> str:
    return f"redis+cluster://127.0.0.1:{cluster[1].port}"


def test_every_primary_of_a_cluster_is_scanned_and_threads_go_over_all_slots(
    cluster: list[RedisServer], spread: RedisCluster
) -> None:
    for number in range(30):
        put_saver(spread, f"idle-{number}", ago(40), indices=range(3))
        put_saver(spread, f"idle-{number}", ago(41), namespace=f"child:{uuid.UUID(int=number, version=4)}")
        put_plain(spread, f"idle document-{number}", ago(40), other_id)
        put_saver(spread, f"live-{number}", ago(4))
    put_writes(spread, f"idle orphan:{EMPTY}", uuid6(ago(4)), (0, 1))
    assert all(node.client().dbsize() > 50 for node in cluster)
    assert len({spread.keyslot(key) for key in keys_of(spread, "idle-7")}) > 5
    with open_store(cluster_url(cluster)) as store:
        done = swept(store)
        assert len(store.scanned) == 3
        assert done.removed == {"whole": 60, "orphans": 1}
        assert done.deleted == 30 * (6 + 5 + 1) + 3
        assert keys_of(spread, "idle") == []
        assert all(load_saver(spread, f"live-{number}") for number in range(30))
        assert swept(store).deleted == 0


def test_of_each_primary_of_a_cluster_one_replica_is_scanned_or_itself(
    cluster: list[RedisServer], spread: RedisCluster
) -> None:
    """Where only some had replicas, the keys of the others were not seen, and what belongs to them looked orphaned."""
    for number in range(30):
        put_saver(spread, f"idle-{number}", ago(40))
        put_saver(spread, f"live-{number}", ago(4))
    with replica_in_cluster(cluster[0]) as replica:

        def scanned_by(node: RedisServer) -> list[int]:
            with open_store(f"redis+cluster://127.0.0.1:{node.port}", replicas=True) as store:
                return sorted(client.connection_pool.connection_kwargs["port"] for client in store.scanned)

        places = sorted([replica.port, cluster[1].port, cluster[2].port])
        until(lambda: all(scanned_by(node) == places for node in cluster), "all to know the replica")
        until(lambda: replica.client().dbsize() == cluster[0].client().dbsize(), "the replica to have all keys")
        with open_store(cluster_url(cluster), replicas=True) as store:
            assert swept(store).removed == {"whole": 30}
    assert keys_of(spread, "idle") == []
    assert all(load_saver(spread, f"live-{number}") for number in range(30))


def test_pointers_of_a_cluster_that_moved_keep_their_threads(cluster: list[RedisServer], spread: RedisCluster) -> None:
    for number in range(20):
        put_saver(spread, f"thread-{number}", ago(40))
    news = {}

    def clock() -> float:
        # After the scan, each look at the clock comes before a batch.
        ticks.append(1)
        return len(ticks) * 6.0

    def told(text: str) -> None:
        scanned, _, size, *_ = text.split()
        # The lock is counted among the keys, and not among those scanned.
        if "scanned" in text and int(scanned) + 1 >= int(size) and not news:
            for number in range(0, 20, 2):
                news[f"thread-{number}"] = put_saver(spread, f"thread-{number}", time.time())

    ticks: list[int] = []
    policy = Policy(retention=30 * DAY, grace=DAY)
    with open_store(cluster_url(cluster)) as store:
        options = Options(time_budget=1e9)
        done = sweep(store, Prefixes(), policy, options, swept=Swept(), told=told, clock=clock)
    assert (done.removed, done.kept) == ({"whole": 10}, {"came alive": 10})
    assert {thread: load_saver(spread, thread) for thread in news} == news
    assert all(load_saver(spread, f"thread-{number}") is None for number in range(1, 20, 2))


def test_threads_of_a_cluster_that_somebody_reads_stay(cluster: list[RedisServer], spread: RedisCluster) -> None:
    for thread in ("idle", "read"):
        put_saver(spread, thread, ago(40))
    forget_reads(spread, prefix="checkpoint:")
    read = load_saver(spread, "read")
    with open_store(cluster_url(cluster)) as store:
        done = swept(store, unread_seconds=600.0)
    assert (done.removed, done.kept) == ({"whole": 1}, {"in use": 1})
    assert load_saver(spread, "read") == read


def test_a_cluster_erases_trims_and_expires_too(cluster: list[RedisServer], spread: RedisCluster) -> None:
    for number in range(10):
        put_saver(spread, f"user-{number}", ago(3))
        put_saver(spread, f"idle-{number}", ago(40))
        put_plain(spread, f"idle-plain-{number}", ago(40))
        for days in (9, 8, 7):
            put_saver(spread, f"long-{number}", ago(days))
    with open_store(cluster_url(cluster)) as store:
        erased = swept(store, Policy(retention=DAY, grace=DAY, erase=True, only=(glob_of("user-3"),)))
        assert (erased.removed, erased.deleted) == ({"erased": 1}, 5)
        assert load_saver(spread, "user-3") is None
        trimmed = swept(store, Policy(retention=90 * DAY, grace=DAY, keep_newest=1))
        assert (trimmed.removed, trimmed.deleted) == ({"trimmed": 10}, 10 * 2 * 4)
        assert all(load_saver(spread, f"long-{number}") for number in range(10))
        done = swept(store, expire_seconds=500.0, jitter_seconds=10.0)
        assert (done.removed, done.deleted) == ({"whole": 20}, 10 * 5 + 10)
        assert all(490 < spread.ttl(key) <= 510 for key in keys_of(spread, "idle"))
        assert swept(store, expire_seconds=9000.0).deleted == 0
        assert all(spread.ttl(key) == -1 for key in keys_of(spread, "long-"))


def test_a_server_that_is_no_cluster_is_told(server: RedisServer) -> None:
    """The errors of the cluster's client are no errors of Redis to the library: the run ended in a traceback."""
    with pytest.raises(Unavailable, match="Check that the server runs"):
        sweep_of(f"redis+cluster://127.0.0.1:{server.port}")
    with pytest.raises(Unavailable, match="Check that the server runs"):
        sweep_of(f"redis+cluster://127.0.0.1:{free_port()}")


def test_a_cluster_has_no_numbered_databases(cluster: list[RedisServer]) -> None:
    with pytest.raises((Unavailable, ValueError), match="db"):
        sweep_of(f"redis+cluster://:{quote(SECRET, safe='')}@127.0.0.1:{cluster[0].port}/2")


def test_a_node_of_a_cluster_is_not_taken_for_a_server(cluster: list[RedisServer], spread: RedisCluster) -> None:
    """Only a third of the keys was swept; the rest failed with MOVED, or was not seen at all."""
    for number in range(10):
        put_saver(spread, f"idle-{number}", ago(40))
    with pytest.raises(Unavailable, match="is one node of a cluster, with a part of the keys"):
        sweep_of(f"redis://127.0.0.1:{cluster[0].port}/0")


# What is told, and what is not


def no_secret(text: str) -> None:
    """No part of the password stands in a text."""
    for secret in (SECRET, quote(SECRET, safe=""), SECRET[:4], SECRET[-6:], USER, "clean", "w/rd"):
        assert secret not in text, text


def refusal(url: str, kind: type[Exception] | tuple[type[Exception], ...] = Unavailable) -> str:
    with pytest.raises(kind) as caught:
        sweep_of(url)
    no_secret(str(caught.value))
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_wrong_logins_are_told_without_secrets(guarded: RedisServer) -> None:
    advice = "Check user and password of the Redis URL."
    for url in (
        guarded.url(password=SECRET + "x"),
        guarded.url(user=USER + "x", password=SECRET),
        guarded.url(),
    ):
        assert refusal(url).endswith(advice)
    assert "it wants a password, and none was given" in refusal(guarded.url())


def test_nobody_at_that_port_is_told_at_once() -> None:
    began = time.monotonic()
    told = refusal(f"redis://{quote(USER, safe='')}:{quote(SECRET, safe='')}@127.0.0.1:{free_port()}/0")
    assert "Connection refused" in told and "Check that the server runs" in told
    assert time.monotonic() - began < 2


def test_a_host_that_does_not_exist_is_told() -> None:
    assert "Check that the server runs, and host" in refusal("redis://no-such-host.invalid:6379/0")


def test_a_database_that_does_not_exist_is_told(server: RedisServer) -> None:
    told = refusal(server.url(99))
    assert "DB index is out of range" in told and "Check the number of the database" in told


@contextmanager
def listener(answer: bytes) -> Iterator[int]:
    """A port where somebody answers who is no Redis; with nothing to say, who says nothing."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def serve() -> None:
            lines = []
            while not stop.is_set():
                try:
                    line, _ = server.accept()
                except TimeoutError:
                    continue
                lines.append(line)
                if answer:
                    line.recv(1000)
                    line.sendall(answer)
            for line in lines:
                line.close()

        worker = threading.Thread(target=serve)
        worker.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            worker.join()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x01\x02\r\n"]
)
def test_a_server_that_is_no_redis_is_told(answer: bytes) -> None:
    """The port of the dashboard, one digit off."""
    with listener(answer) as port:
        assert "Check that the server runs, and host, port" in refusal(f"redis://127.0.0.1:{port}/0")


def test_a_server_that_says_nothing_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TIMEOUT_SECONDS", 0.2)
    with listener(b"") as port:
        began = time.monotonic()
        assert "Check that the server runs" in refusal(f"redis://127.0.0.1:{port}/0")
        assert time.monotonic() - began < 5


HIDDEN = quote(SECRET, safe="")


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "localhost:6379",
        "",
        f"http://x:{HIDDEN}@localhost:6379",
        f"postgresql://x:{HIDDEN}@localhost/db",
        f"redis://:{SECRET}@localhost:6379/0",
        f"redis://x:{HIDDEN}@localhost:port/0",
        f"redis://x:{HIDDEN}@localhost:6379/two",
        f"redis://x:{HIDDEN}@localhost:99999/0",
        f"redis+magic://x:{HIDDEN}@localhost",
        f"redis+sentinel://x:{HIDDEN}@localhost:26379",
        f"redis+sentinel://x:{HIDDEN}@localhost:26379/name/two",
        f"redis+sentinel://x:{HIDDEN}@localhost:x/name/2",
        "redis://",
        "redis://[::1/0",
    ],
)
def test_what_is_no_url_of_a_redis_is_refused_with_examples(url: str) -> None:
    with pytest.raises(ValueError, match="is no Redis URL; write for example") as caught:
        check_url(url)
    no_secret(str(caught.value))
    assert "redis://user:password@host:6379/2" in str(caught.value)


def test_a_parameter_that_nobody_knows_is_refused(server: RedisServer) -> None:
    """It ended in a traceback about __init__."""
    told = refusal(f"{server.url()}?colour=blue&password={HIDDEN}", ValueError)
    assert "has a parameter that its scheme does not know" in told


@pytest.mark.parametrize("secret", [SECRET, "a/b", "a?b", "a#b", "12?34", "a@b", "%", "1/2@3", "?@?", "@", "#@/?"])
@pytest.mark.parametrize("shape", ["redis://:{}@host:1/0", "redis://u:{}@host:1/0", "redis://host:1/0?password={}"])
@pytest.mark.parametrize("quoted", [True, False])
def test_a_masked_url_never_shows_a_secret(secret: str, shape: str, quoted: bool) -> None:
    """A password with a question mark was shown up to it: what came after was taken for parameters."""
    text = f"k7{secret}k7{secret}k7"
    shown = masked(shape.format(quote(text, safe="") if quoted else text))
    assert "k7" not in shown
    assert quoted is False or "host:1/0" in shown


def test_masked_urls_still_tell_the_place() -> None:
    assert masked("redis://host:6379/2") == "redis://host:6379/2"
    assert masked("rediss://u:p@host:6379/2?ssl_ca_certs=/a") == "rediss://***@host:6379/2"
    assert masked("redis+sentinel://:p@a:1,b:2/name/2") == "redis+sentinel://***@a:1,b:2/name/2"
    assert masked("user:secret") == "***"
    assert re.search("secret", masked("unix://u:secret@/run/redis?db=2")) is None


def test_connections_are_closed_at_the_end(server: RedisServer) -> None:
    client = server.client()
    before = len(client.client_list())
    for _ in range(3):
        sweep_of(server.url())
    with pytest.raises(RuntimeError), open_store(server.url()) as store:
        store.client.ping()
        raise RuntimeError("the sweep broke")
    assert len(client.client_list()) <= before
