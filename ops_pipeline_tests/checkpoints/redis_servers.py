"""Private Redis servers for tests, threads as the savers lay them down, and readers that load them as these do.

What belongs here: starting and stopping, writing and reading threads. What does not: sweeping, and any judgement.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.cluster import RedisCluster

from ops_pipeline_tests.servers import free_port

DAY = 86_400.0
NOTHING_SAVED = ("--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0")
ON_DISK = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
"""What a server that was killed has when it comes back: everything."""


@dataclass
class RedisServer:
    """A Redis of one's own; it always listens on a Unix socket too."""

    port: int
    folder: Path
    options: Sequence[str]
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket_path(self) -> Path:
        """Its Unix socket."""
        return self.folder / "socket"

    def url(self, database: int = 0, *, user: str = "", password: str = "") -> str:
        """The URL of one of its databases."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
        return f"redis://{login}127.0.0.1:{self.port}/{database}"

    def client(self, database: int = 0, **options: Any) -> redis.Redis:
        """A client of one of its databases."""
        return redis.Redis(unix_socket_path=str(self.socket_path), db=database, **options)

    def start(self) -> None:
        """Start, and wait until it answers."""
        place = ["--bind", "127.0.0.1", "--dir", str(self.folder), "--unixsocket", str(self.socket_path)]
        command = ["redis-server", "--port", str(self.port), *place, "--logfile", str(self.folder / "log")]
        self.process = subprocess.Popen([*command, *self.options], stdout=subprocess.DEVNULL)
        until(self._answers, f"Redis: {self.folder / 'log'}")

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(5)
                line.connect(str(self.socket_path))
                line.sendall(b"PING\r\n")
                return line.recv(100).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        """End at once, as a machine does that loses power."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        """Die, and come back on the same port."""
        self.kill()
        self.start()


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.01)


@contextmanager
def redis_server(*options: str, saved: Sequence[str] = NOTHING_SAVED, port: int | None = None) -> Iterator[RedisServer]:
    """Start a Redis, and stop it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ops_redis_"))
    server = RedisServer(port or free_port(), folder, (*saved, *options))
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def tls_server() -> Iterator[tuple[RedisServer, Path]]:
    """A Redis that speaks TLS only, and the certificate that it made itself."""
    folder = Path(tempfile.mkdtemp(prefix="ops_redis_tls_"))
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *names]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    port = free_port()
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]
    try:
        with redis_server("--tls-port", str(port), *files, "--tls-auth-clients", "no", port=0) as server:
            server.port = port
            yield server, certificate
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replica_of(primary: RedisServer) -> Iterator[RedisServer]:
    """A replica that has caught up."""
    with redis_server("--replicaof", "127.0.0.1", str(primary.port)) as server:
        client = server.client()
        until(lambda: client.info("replication").get("master_link_status") == "up", "the replica")
        yield server


@contextmanager
def sentinel_of(primary: RedisServer, name: str) -> Iterator[RedisServer]:
    """A Sentinel that knows a primary by name, and its replica."""
    folder = Path(tempfile.mkdtemp(prefix="ops_sentinel_"))
    server = RedisServer(free_port(), folder, ())
    lines = [f"port {server.port}", "bind 127.0.0.1", f"dir {folder}", f"unixsocket {server.socket_path}"]
    lines += [f"sentinel monitor {name} 127.0.0.1 {primary.port} 1"]
    (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        ["redis-server", str(folder / "sentinel.conf"), "--sentinel"], stdout=subprocess.DEVNULL, cwd=folder
    )
    try:
        client = redis.Redis(port=server.port)
        until(lambda: _replicas_known(client, name), "the Sentinel to see the replica")
        yield server
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _replicas_known(client: redis.Redis, name: str) -> bool:
    try:
        return bool(client.sentinel_slaves(name))
    except redis.RedisError:
        return False


IN_A_CLUSTER = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000")


@contextmanager
def redis_cluster() -> Iterator[list[RedisServer]]:
    """A cluster of three primaries."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(redis_server(*IN_A_CLUSTER, port=_port_with_a_bus())) for _ in range(3)]
        places = [f"127.0.0.1:{node.port}" for node in nodes]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *places, "--cluster-yes"], check=True, capture_output=True, timeout=60
        )
        until(lambda: all(b"cluster_state:ok" in _cluster_info(node) for node in nodes), "the cluster")
        yield nodes


@contextmanager
def replica_in_cluster(primary: RedisServer) -> Iterator[RedisServer]:
    """A replica of one primary of a cluster, which has caught up, and leaves the cluster at the end."""
    place, identifier = f"127.0.0.1:{primary.port}", primary.client().execute_command("CLUSTER MYID").decode()
    with redis_server(*IN_A_CLUSTER, port=_port_with_a_bus()) as node:
        own, client = f"127.0.0.1:{node.port}", node.client()
        _cluster("add-node", own, place, "--cluster-slave", "--cluster-master-id", identifier)
        until(lambda: client.info("replication").get("master_link_status") == "up", "the replica")
        yield node
        _cluster("del-node", place, client.execute_command("CLUSTER MYID").decode())


def _cluster(*command: str) -> None:
    subprocess.run(["redis-cli", "--cluster", *command], check=True, capture_output=True, timeout=60)


def _cluster_info(node: RedisServer) -> bytes:
    # The parser of the client would make a dictionary of it, of text.
    with socket.create_connection(("127.0.0.1", node.port), 5) as line:
        line.sendall(b"CLUSTER INFO\r\n")
        return line.recv(4096)


def _port_with_a_bus() -> int:
    """A free port whose bus, 10,000 above, is free too."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - no secret
        try:
            for number in (port, port + 10_000):
                with socket.socket() as listener:
                    listener.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


# Ids


def uuid6(seconds: float, node: int | None = None) -> str:
    """A UUIDv6 of a time."""
    ticks = f"{int(seconds * 1e7) + 0x01B21DD213814000:015x}"
    tail = f"{random.getrandbits(48) if node is None else node:012x}"
    return f"{ticks[:8]}-{ticks[8:12]}-6{ticks[12:]}-{0x8000 | random.getrandbits(14):04x}-{tail}"


def ulid(seconds: float) -> str:
    """A ULID of a time."""
    value = (int(seconds * 1000) << 80) | random.getrandbits(80)
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[(value >> shift) & 31] for shift in range(125, -1, -5))


def iso(seconds: float) -> str:
    """An ISO time without zone, as the documented keys have."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def other_id(seconds: float) -> str:
    """An id that tells no time."""
    return f"step-{int(seconds * 1000) % 999_983:06d}"


# Threads. Whoever writes one tells what a reader must find; a reader finds that, nothing at all, or raises Broken.


class Broken(AssertionError):
    """A thread that reads as alive, but is not whole."""


@dataclass(frozen=True)
class Loaded:
    """What a reader finds: the id of the newest checkpoint, and the writes that hang on it."""

    identifier: str
    writes: frozenset[str] = frozenset()


EMPTY = "__empty__"


def put_plain(client: Any, thread: str, seconds: float, make_id: Callable[[float], str] = iso, **fields: Any) -> Loaded:
    """One checkpoint of the documented layout."""
    identifier = make_id(seconds)
    value = {"id": identifier, "ts": iso(seconds), "channel_values": {"messages": ["hello"]}} | fields
    client.set(f"checkpoint:{thread}:{identifier}", json.dumps(value))
    return Loaded(identifier)


def load_plain(client: Any, thread: str) -> Loaded | None:
    """The newest checkpoint of the documented layout, by the time in its value."""
    values = [json.loads(client.get(key)) for key in keys_under(client, f"checkpoint:{thread}:")]
    return Loaded(max(values, key=lambda value: value["ts"])["id"]) if values else None


def document_of(identifier: str, thread: str, namespace: str, seconds: float, **fields: Any) -> dict[str, Any]:
    """A checkpoint's document as langgraph-checkpoint-redis writes it."""
    return {
        "thread_id": thread,
        "checkpoint_ns": namespace,
        "checkpoint_id": identifier,
        "checkpoint_ts": int(seconds * 1000),
        "checkpoint": {"id": identifier, "ts": iso(seconds) + "+00:00", "channel_values": {"messages": ["hello"]}},
        "metadata": json.dumps({"source": "loop", "step": 1}),
    } | fields


def put_saver(
    client: Any,
    thread: str,
    seconds: float,
    *,
    namespace: str = EMPTY,
    indices: Sequence[int] = (0, 1),
    pointer: bool = True,
    **fields: Any,
) -> Loaded:
    """One checkpoint of langgraph-checkpoint-redis in its order: checkpoint, pointer, writes, their index."""
    identifier = uuid6(seconds)
    group = f"{thread}:{namespace}"
    client.set(
        f"checkpoint:{group}:{identifier}", json.dumps(document_of(identifier, thread, namespace, seconds, **fields))
    )
    if pointer:
        client.set(f"checkpoint_latest:{group}", f"checkpoint:{group}:{identifier}")
    return Loaded(identifier, put_writes(client, group, identifier, indices))


def put_writes(client: Any, group: str, identifier: str, indices: Sequence[int]) -> frozenset[str]:
    """Writes that hang on a checkpoint, and their index."""
    writes = {}
    for index in indices:
        key = f"checkpoint_write:{group}:{identifier}:{uuid.uuid4()}:{index}"
        client.set(key, json.dumps({"idx": index, "channel": "messages"}))
        writes[key] = index
    if writes:
        client.zadd(f"write_keys_zset:{group}:{identifier}", writes)
    return frozenset(writes)


def load_saver(client: Any, thread: str, namespace: str = EMPTY) -> Loaded | None:
    """The newest checkpoint as the saver finds it: by the pointer and nothing else, with the writes of its index."""
    group = f"{thread}:{namespace}"
    target = client.get(f"checkpoint_latest:{group}")
    if target is None:
        return None
    value = client.get(target)
    if value is None:
        raise Broken(f"{thread}: the pointer points at {target!r}, which is gone")
    identifier = json.loads(value)["checkpoint_id"]
    writes = client.zrange(f"write_keys_zset:{group}:{identifier}", 0, -1)
    missing = [key for key in writes if not client.exists(key)]
    if missing:
        raise Broken(f"{thread}: the index names {missing}, which are gone")
    return Loaded(identifier, frozenset(key.decode() for key in writes))


UNTOUCHED = """
redis.call('RESTORE', KEYS[1], 0, redis.call('DUMP', KEYS[1]), 'REPLACE', 'IDLETIME', ARGV[1])
"""
"""Makes a key look as if nobody had read or written it for so many seconds."""


def put_blobs(client: Any, thread: str, seconds: float, *, as_hash: bool = False) -> Loaded:
    """One checkpoint of an old saver: its channels lie in blobs, one of which never changes, and no pointer is kept.

    One that is written in the past has not been touched since.
    """
    group, identifier = f"{thread}:{EMPTY}", uuid6(seconds)
    versions = {"branch:to:agent": "1", "messages": f"{int(seconds)}.5"}
    for channel, version in versions.items():
        key = f"checkpoint_blob:{group}:{channel}:{version}"
        client.hset(key, mapping={"blob": b"\x81"}) if as_hash else client.set(key, b"\x81")
        idle = int(time.time() - seconds)
        if idle > 1:
            client.eval(UNTOUCHED, 1, key, idle)
    document = document_of(identifier, thread, EMPTY, seconds)
    document["checkpoint"]["channel_versions"] = versions
    client.set(f"checkpoint:{group}:{identifier}", json.dumps(document))
    return Loaded(identifier, put_writes(client, group, identifier, (0,)))


def resume_blobs(client: Any, thread: str, seconds: float) -> Loaded:
    """Load such a thread and write its next checkpoint, which names a channel that did not change by its old blob."""
    group, identifier = f"{thread}:{EMPTY}", uuid6(seconds)
    client.get(f"checkpoint_blob:{group}:branch:to:agent:1")
    version = f"{int(seconds)}.7"
    client.set(f"checkpoint_blob:{group}:messages:{version}", b"\x81")
    document = document_of(identifier, thread, EMPTY, seconds)
    document["checkpoint"]["channel_versions"] = {"branch:to:agent": "1", "messages": version}
    client.set(f"checkpoint:{group}:{identifier}", json.dumps(document))
    return Loaded(identifier)


def forget_reads(client: Any, days: float = 40, prefix: str = "checkpoint_blob:") -> None:
    """Make all blobs look as if nobody had read or written them for so long; `snapshot` reads them too."""
    for key in keys_under(client, prefix):
        client.eval(UNTOUCHED, 1, key, int(days * DAY))


def load_blobs(client: Any, thread: str) -> Loaded | None:
    """The newest checkpoint of an old saver, which names its blobs."""
    group = f"{thread}:{EMPTY}"
    found = sorted(keys_under(client, f"checkpoint:{group}:"))
    if not found:
        return None
    document = json.loads(client.get(found[-1]))
    for channel, version in document["checkpoint"]["channel_versions"].items():
        if not client.exists(f"checkpoint_blob:{group}:{channel}:{version}"):
            raise Broken(f"{thread}: {channel} {version} is named, and gone")
    writes = keys_under(client, f"checkpoint_write:{group}:{document['checkpoint_id']}:")
    return Loaded(document["checkpoint_id"], frozenset(key.decode() for key in writes))


def put_recipe(client: Any, thread: str, seconds: float) -> Loaded:
    """One checkpoint of the recipe that keeps hashes."""
    identifier = uuid6(seconds)
    client.hset(f"checkpoint${thread}$$" + identifier, mapping={"checkpoint": b"\x81\xa2", "type": "msgpack"})
    write = f"writes${thread}$${identifier}${uuid.uuid4()}$0"
    client.hset(write, mapping={"channel": "messages", "value": b"\x81"})
    return Loaded(identifier, frozenset({write}))


def load_recipe(client: Any, thread: str) -> Loaded | None:
    """The newest checkpoint of the recipe."""
    found = sorted(keys_under(client, f"checkpoint${thread}$$"))
    if not found:
        return None
    identifier = found[-1].rpartition(b"$")[2].decode()
    return Loaded(identifier, frozenset(key.decode() for key in keys_under(client, f"writes${thread}$${identifier}$")))


def put_shallow(client: Any, thread: str, seconds: float) -> Loaded:
    """The only checkpoint of a shallow thread, overwritten at every step; as a string, for want of RedisJSON."""
    identifier, group = uuid6(seconds), f"{thread}:{EMPTY}"
    client.set(f"checkpoint:{thread}:", json.dumps(document_of(identifier, thread, "", seconds)))
    write = f"checkpoint_write:{group}:{identifier}:{uuid.uuid4()}:0"
    client.set(write, "{}")
    client.zadd(f"write_registry:{group}:shallow", {write: 0})
    client.set(f"current_checkpoint:{group}:shallow", identifier)
    return Loaded(identifier, frozenset({write}))


def load_shallow(client: Any, thread: str) -> Loaded | None:
    """The checkpoint of a shallow thread, with its writes."""
    value = client.get(f"checkpoint:{thread}:")
    if value is None:
        return None
    identifier = json.loads(value)["checkpoint_id"]
    writes = keys_under(client, f"checkpoint_write:{thread}:{EMPTY}:{identifier}:")
    return Loaded(identifier, frozenset(key.decode() for key in writes))


def keys_under(client: Any, prefix: str) -> list[bytes]:
    """All keys that begin so."""
    return list(client.scan_iter(match=_literally(prefix) + "*", count=10_000))


def _literally(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "*?[]^\\" else letter for letter in text)


Writer = Callable[[Any, str, float], Loaded]
LAYOUTS: Mapping[str, tuple[Writer, Callable[[Any, str], Loaded | None]]] = {
    "plain, ISO times": (put_plain, load_plain),
    "plain, UUIDv6": (partial(put_plain, make_id=uuid6), load_plain),
    "plain, ULIDs": (partial(put_plain, make_id=ulid), load_plain),
    "plain, times in values": (partial(put_plain, make_id=other_id), load_plain),
    "saver": (put_saver, load_saver),
    "blobs": (put_blobs, load_blobs),
    "blobs as hashes": (partial(put_blobs, as_hash=True), load_blobs),
    "recipe of hashes": (put_recipe, load_recipe),
    "shallow": (put_shallow, load_shallow),
}


def snapshot(client: redis.Redis) -> dict[bytes, tuple[Any, int]]:
    """Everything that there is, with what is left of its life."""
    keys = sorted(client.scan_iter(count=10_000))
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.dump(key)
        pipeline.pttl(key)
    answers = pipeline.execute()
    return {key: (answers[2 * place], answers[2 * place + 1]) for place, key in enumerate(keys)}


def keys_of(client: Any, thread: str) -> list[bytes]:
    """All keys in whose name a thread stands."""
    return [key for key in client.scan_iter(count=10_000) if thread.encode() in key]


def cluster_client(nodes: Sequence[RedisServer]) -> RedisCluster:
    """A client of a whole cluster."""
    return RedisCluster(host="127.0.0.1", port=nodes[0].port)
