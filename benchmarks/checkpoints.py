"""The benchmark of the checkpoint sweep: `python -m benchmarks.checkpoints`; results are in RESULTS.md.

A private Redis is filled with checkpoints, half of them beyond the retention, and swept. The floor is a bare SCAN and
an UNLINK of the same keys, which it knows already; the loop that the original job documents is measured on a sample.
Meanwhile another client pings. A missed target is printed, and is no failure.

What belongs here: the server, the keys and the measurements.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import click
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from benchmarks.child import peak_bytes
from benchmarks.report import MEGABYTE, Measure, Reading, against, machine, table, typical
from ops_pipeline.checkpoints.connection import open_store
from ops_pipeline.checkpoints.ids import GREGORIAN_OFFSET
from ops_pipeline.checkpoints.layouts import Prefixes
from ops_pipeline.checkpoints.policy import DAY, Policy
from ops_pipeline.checkpoints.sweep import Options, Swept, sweep
from ops_pipeline_tests.servers import free_port

POLICY = Policy(retention=30 * DAY, grace=DAY)
PER_THREAD, KEPT = 10, 3
SCENES = {"plain": POLICY, "iso": POLICY, "saver": POLICY, "trim": replace(POLICY, keep_newest=KEPT)}
"""The documented layout with UUIDv6, the same with ISO times as documented, that of the saver, and the same where live
threads are trimmed as well, for which their newest values are read."""
LARGE = {"plain": "", "alike": "app:chat:"}
"""Scenes for memory, by what ids of threads begin with: with a UUID behind it they look like namespaces of `app`."""
SPAWN = multiprocessing.get_context("spawn")
PAGE = 1_000
UNREAD = 1.0
"""Seconds for which nobody may have read the newest checkpoint of an idle thread: the job looks at this too."""
KEYS_PER_SECOND, FLOORS, TIMES_DOCUMENTED = 300_000, 3.0, 20.0
PING_SECONDS, PEAK_MEGABYTES = 0.005, 200
FILL = """
for i = 1, #KEYS do
  if ARGV[1] == 'zset' then redis.call('ZADD', KEYS[i], 0, ARGV[2]) else redis.call('SET', KEYS[i], ARGV[2]) end
end
"""
"""Keys that share a value are written by a script: over the network, 440 MB would take most of the benchmark."""


@dataclass(frozen=True)
class Server:
    """A private Redis: where it answers, and a connection for filling and looking."""

    url: str
    client: redis.Redis

    def cpu_seconds(self) -> float:
        """Processor time that the server has used."""
        told = self.client.info("cpu")
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


@dataclass
class Scene:
    """Which keys there are, by what stands in them.

    Attributes:
        old: keys that a sweep deletes.
        live: keys that stay.
        values: kind of value and value by keys, in parts of one script call each.
        policy: by which it is swept.
    """

    policy: Policy = POLICY
    old: list[bytes] = field(default_factory=list)
    live: list[bytes] = field(default_factory=list)
    values: list[tuple[str, bytes, list[bytes]]] = field(default_factory=list)

    def keys(self) -> int:
        """How many there are."""
        return len(self.old) + len(self.live)


@click.command(context_settings={"show_default": True})
@click.option("--keys", default=200_000, help="How many checkpoints there are, ten to a thread.")
@click.option("--value-bytes", default=2_200, help="How large each is.")
@click.option("--large-keys", default=2_000_000, help="How many small keys the sweep is for whose memory is measured.")
@click.option("--sample", default=20_000, help="Keys after which the documented loop is stopped.")
@click.option("--only", "names", type=click.Choice(list(SCENES)), multiple=True, help="These scenes only.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="How often each measurement is repeated.")
def main(*, keys: int, value_bytes: int, large_keys: int, sample: int, names: tuple[str, ...], rounds: int) -> None:
    """Measure the sweep of checkpoints against its floor and against the loop that the original documents."""
    where = machine()
    measures: list[Measure] = []
    with server() as one:
        for name in names or SCENES:
            print(f"{name}: {keys:,} checkpoints", file=sys.stderr, flush=True)
            measures += measured(one, name, scene(name, keys, value_bytes), sample, rounds)
        if large_keys:
            for name in LARGE:
                fill(one, scene(name, large_keys, 0))
                measures.append(memory(one, name, large_keys))
        version = one.client.info("server")["redis_version"]
    title = f"Redis {version}, {where['cores']} cores of {where['cpu']}, {where['date']}"
    print(f"\n{title}; load average before {where['load_average'][0]}\n")
    print(table(measures).replace("calls/s", "keys/s ", 1), flush=True)


def measured(one: Server, name: str, keys: Scene, sample: int, rounds: int) -> list[Measure]:
    """All of one scene: floor and sweep in turn, then the loop, then the sweep beside another client."""
    floors, sweeps = list[Reading](), list[Reading]()
    loops: list[float] = []
    quiet, waits = list[list[float]](), list[list[float]]()
    trims = keys.policy is not POLICY
    # What the loop would look at: of a saver's other keys it knows nothing.
    checkpoints = sum(key.startswith(b"checkpoint:") for key in keys.old + keys.live)
    for _ in range(rounds):
        fill(one, keys)
        floors.append(_read(one, lambda: floor(one, keys.old)))
        fill(one, keys)
        sweeps.append(_read(one, lambda: swept(one, keys)))
        fill(one, keys)
        quiet.append(pinged(one, lambda: time.sleep(1.0)))
        waits.append(pinged(one, lambda: swept(one, keys)))
        if not trims:
            fill(one, keys)
            loops.append(documented(one, sample) * checkpoints)
    bare, ours = typical(floors), typical(sweeps)
    rate = keys.keys() / ours.seconds
    found = [
        Measure(f"{name}: floor", bare.seconds, keys.keys(), "bare SCAN and UNLINK", cpu_seconds=bare.cpu_seconds),
        against(f"{name}: sweep", sweeps, keys.keys(), bare, None if trims else FLOORS),
        Measure(
            f"{name}: its speed",
            result=f"{rate:,.0f} keys/s, {len(keys.old):,} of {keys.keys():,} deleted",
            # The floor of trimming knows what only values tell: a target of its own would be arbitrary.
            target="" if trims else f">= {KEYS_PER_SECOND:,} keys/s",
            ok=None if trims else rate >= KEYS_PER_SECOND,
        ),
        _waits(f"{name}: PING without a sweep", quiet),
        _waits(f"{name}: PING beside the sweep", waits, PING_SECONDS),
    ]
    if trims:
        return found
    looped = statistics.median(loops)
    times = looped / ours.seconds
    return [
        *found,
        Measure(
            f"{name}: documented loop",
            looped,
            checkpoints,
            f"{times:.0f} x the sweep, from {sample:,} keys",
            # Of a saver's keys it leaves two thirds alone, which the sweep does not.
            f">= {TIMES_DOCUMENTED:g} x the sweep" if name != "saver" else "",
            times >= TIMES_DOCUMENTED if name != "saver" else None,
        ),
    ]


def _waits(name: str, rounds: list[list[float]], limit: float | None = None) -> Measure:
    """Waits of another client, the median of all rounds."""
    middle, high, longest = (
        statistics.median(sorted(waits)[int((len(waits) - 1) * share)] for waits in rounds) for share in (0.5, 0.99, 1)
    )
    told = f"p50 {middle * 1000:.2f}, p99 {high * 1000:.2f}, max {longest * 1000:.2f} ms"
    if limit is None:
        return Measure(name, result=told)
    return Measure(name, result=told, target=f"p99 < {limit * 1000:g} ms", ok=high < limit)


def _read(one: Server, work: Callable[[], object]) -> Reading:
    cpu, own, started = one.cpu_seconds(), time.process_time(), time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return Reading(seconds, one.cpu_seconds() - cpu + time.process_time() - own)


def floor(one: Server, known: list[bytes]) -> None:
    """Scan everything, and delete what is known to be old; nothing is looked at."""
    connection: Any = one.client.connection_pool.get_connection()
    cursor: Any = 0
    while True:
        connection.send_command("SCAN", cursor, "COUNT", PAGE)
        cursor, _ = connection.read_response()
        if not int(cursor):
            break
    deleted = 0
    for start in range(0, len(known), PAGE):
        connection.send_command("UNLINK", *known[start : start + PAGE])
        deleted += connection.read_response()
    one.client.connection_pool.release(connection)
    assert deleted == len(known), f"{deleted} of {len(known)} keys were there"  # noqa: S101


def swept(one: Server, keys: Scene) -> None:
    """Sweep, and check how much is gone."""
    result = swept_at(one.url, keys.policy)
    if result.deleted != len(keys.old):
        raise RuntimeError(f"{result.deleted} keys were deleted, not {len(keys.old)}: {result}")


def swept_at(url: str, policy: Policy = POLICY) -> Swept:
    """Sweep as the job does."""
    with open_store(url) as store:
        return sweep(store, Prefixes(), policy, Options(unread_seconds=UNREAD), swept=Swept(), told=print)


def documented(one: Server, sample: int) -> float:
    """The loop of the original: SCAN, GET, parse, DELETE one by one; the seconds per checkpoint."""
    cutoff = datetime.now(UTC).timestamp() - POLICY.retention
    started, seen = time.perf_counter(), 0
    for key in one.client.scan_iter(match="checkpoint:*"):
        value: Any = one.client.get(key)
        if datetime.fromisoformat(json.loads(value)["ts"]).timestamp() < cutoff:
            one.client.delete(key)
        seen += 1
        if seen >= sample:
            break
    return (time.perf_counter() - started) / seen


def pinged(one: Server, work: Callable[[], object]) -> list[float]:
    """How long each PING of another process waited while work was done."""
    waits: Any = SPAWN.Queue()
    begin, end = SPAWN.Event(), SPAWN.Event()
    port = one.client.connection_pool.connection_kwargs["port"]
    process = SPAWN.Process(target=ping, args=(port, begin, end, waits), daemon=True)
    process.start()
    begin.wait()
    work()
    end.set()
    found: list[float] = waits.get()
    process.join()
    return found


def ping(port: int, begin: Any, end: Any, waits: Any) -> None:
    """PING once per millisecond until told to end."""
    found: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begin.set()
        due = time.perf_counter()
        while not end.is_set():
            sent = time.perf_counter()
            connection.sendall(b"PING\r\n")
            connection.recv(64)
            now = time.perf_counter()
            found.append(now - sent)
            due = max(due + 0.001, now)
            time.sleep(max(0.0, due - now))
    waits.put(found)


def memory(one: Server, name: str, keys: int) -> Measure:
    """The most memory of a process that sweeps, and does nothing else."""
    told: Any = SPAWN.Queue()
    process = SPAWN.Process(target=sweep_alone, args=(one.url, told), daemon=True)
    process.start()
    seconds, before, peak, passes, deleted = told.get()
    process.join()
    return Measure(
        f"{name}: peak memory of a sweep of {keys:,} small keys",
        seconds,
        keys,
        f"{peak / MEGABYTE:.0f} MB, {before / MEGABYTE:.0f} of them before; {passes} passes, {deleted:,} deleted",
        f"< {PEAK_MEGABYTES} MB",
        peak < PEAK_MEGABYTES * MEGABYTE,
    )


def sweep_alone(url: str, told: Any) -> None:
    """Sweep in a process of its own; its seconds, memory before and at its peak, passes and deleted keys."""
    before, started = peak_bytes(), time.perf_counter()
    result = swept_at(url)
    told.put((time.perf_counter() - started, before, peak_bytes(), result.passes, result.deleted))


def scene(name: str, keys: int, value_bytes: int) -> Scene:
    """The keys: threads of ten checkpoints, every other thread idle for longer than the retention."""
    rng, now, made = random.Random(1), time.time(), Scene(policy=SCENES.get(name, POLICY))  # noqa: S311 - no secret
    for idle in (True, False):
        moment = datetime.fromtimestamp(now - (60 if idle else 3) * DAY, UTC).isoformat()
        value = json.dumps({"ts": moment, "metadata": {}, "channel_values": {"messages": ""}})
        value = value[:-3] + "x" * max(0, value_bytes - len(value)) + value[-3:] if value_bytes else "1"
        contents = {"value": ("string", value.encode()), "write": ("string", b'{"value": 1}'), "zset": ("zset", b"m")}
        named: dict[tuple[str, bool], list[bytes]] = {}
        for number in range(keys // PER_THREAD // 2):
            for content, key, goes in _thread(name, rng, number, now, idle=idle):
                named.setdefault((content, goes), []).append(key)
        for (content, goes), found in named.items():
            # A pointer holds its target.
            kind, held = contents.get(content, ("string", content.encode()))
            (made.old if goes else made.live).extend(found)
            made.values += [(kind, held, found[start : start + PAGE]) for start in range(0, len(found), PAGE)]
    return made


def _thread(name: str, rng: random.Random, number: int, now: float, *, idle: bool) -> Iterator[tuple[str, bytes, bool]]:
    """The keys of a thread, each with what stands in it, a pointer with its target, and whether it goes."""
    thread = f"user-{number % 997}-{'idle' if idle else 'live'}-{number:06d}"
    if prefix := LARGE.get(name):
        thread = prefix + str(uuid.UUID(int=rng.getrandbits(128), version=4))
    newest = now - (rng.uniform(31, 90) if idle else rng.uniform(2 if name == "trim" else 0, 20)) * DAY
    between = ":__empty__" if name in {"saver", "trim"} else ""
    key = ""
    for step in range(PER_THREAD):
        moment = newest - (PER_THREAD - 1 - step) * 600
        spelled = datetime.fromtimestamp(moment, UTC).replace(tzinfo=None).isoformat()
        identifier = spelled if name == "iso" else uuid6(moment, rng)
        key = f"checkpoint:{thread}{between}:{identifier}"
        goes = idle or (name == "trim" and step < PER_THREAD - KEPT)
        yield "value", key.encode(), goes
        if between:
            task = uuid.UUID(int=rng.getrandbits(128))
            yield "write", f"checkpoint_write:{thread}{between}:{identifier}:{task}:0".encode(), goes
            yield "zset", f"write_keys_zset:{thread}{between}:{identifier}".encode(), goes
    if between:
        yield key, f"checkpoint_latest:{thread}{between}".encode(), idle


def uuid6(seconds: float, rng: random.Random) -> str:
    """A UUIDv6 of that time."""
    digits = f"{int(seconds * 1e7) + GREGORIAN_OFFSET:015x}"
    return f"{digits[:8]}-{digits[8:12]}-6{digits[12:]}-{rng.getrandbits(14) | 0x8000:04x}-{rng.getrandbits(48):012x}"


def fill(one: Server, keys: Scene) -> None:
    """Leave exactly these keys, and wait until the server rests."""
    one.client.flushall(asynchronous=False)
    script = one.client.register_script(FILL)
    pipeline = one.client.pipeline(transaction=False)
    for number, (kind, value, names) in enumerate(keys.values):
        script(keys=names, args=[kind, value], client=pipeline)
        if number % 500 == 499:
            pipeline.execute()
    pipeline.execute()
    if one.client.dbsize() != keys.keys():
        raise RuntimeError(f"{one.client.dbsize()} keys, not {keys.keys()}")
    # Redis tells whole seconds since a key was touched, and an idle thread stays whose newest checkpoint was.
    time.sleep(2 * UNREAD + 0.1)


@contextmanager
def server() -> Generator[Server, None, None]:
    """A Redis that keeps everything in memory, on a free port."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ops_pipeline_benchmark_") as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        process = subprocess.Popen(["redis-server", *options, "--loglevel", "warning"], stdout=subprocess.DEVNULL)
        client = redis.Redis(port=port, retry=Retry(ConstantBackoff(0.1), 50))
        try:
            client.ping()
            yield Server(f"redis://127.0.0.1:{port}/0", client)
        finally:
            client.close()
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
