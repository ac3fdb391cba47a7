"""LangGraph itself, on its own saver for Redis, before and after sweeps.

A real Redis holds the keys. What needs a module is answered by a door before it: documents lie behind it as texts, and
are looked through where the savers search. Of threads with delta channels it is shown that every key stays.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from ops_pipeline.checkpoints.connection import open_store
from ops_pipeline.checkpoints.layouts import Prefixes
from ops_pipeline.checkpoints.policy import Policy, glob_of
from ops_pipeline.checkpoints.sweep import Options, Swept, sweep
from ops_pipeline_tests.checkpoints.documents import with_documents
from ops_pipeline_tests.checkpoints.redis_servers import DAY, RedisServer, keys_of, redis_server

PYTHON = Path(__file__).parents[2] / ".venv-saver" / "bin" / "python"
CHILD = Path(__file__).parent / "saver_child.py"
Assistants = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.xdist_group("real saver")


@pytest.fixture(scope="module")
def own() -> Iterator[RedisServer]:
    """A Redis for LangGraph alone, which keeps its connections."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def door(own: RedisServer) -> Iterator[str]:
    """The URL at which that Redis has documents and an index."""
    with with_documents(own) as url:
        yield url


@pytest.fixture(scope="module")
def process(door: str) -> Iterator[subprocess.Popen[str]]:
    """LangGraph, once for all tests: importing it takes seconds."""
    assert PYTHON.exists(), "LangGraph is not installed: run scripts/install-saver.sh"
    with subprocess.Popen([PYTHON, CHILD, door], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield child
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=20) == 0


@pytest.fixture
def assistants(own: RedisServer, process: subprocess.Popen[str]) -> Assistants:
    """Assistants without a memory, which do what a test says."""
    with own.client() as client:
        client.flushall()

    def obey(do: str, graph: str, thread: str, days: float = 0) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        order = {"do": do, "graph": graph, "thread": thread, "days": days}
        print(json.dumps(order), file=process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    return obey


@pytest.fixture
def client(own: RedisServer) -> Iterator[redis.Redis]:
    """A look behind the door."""
    with own.client() as connected:
        yield connected


def run(door: str, **rules: Any) -> Swept:
    """Sweep once, as a client that sees documents."""
    policy = Policy(**({"retention": 30 * DAY, "grace": DAY} | rules))
    with open_store(door) as store:
        return sweep(store, Prefixes(), policy, Options(), swept=Swept(), told=lambda _: None)


def test_idle_threads_of_the_real_saver_go_and_live_ones_are_resumed_where_they_were(
    assistants: Assistants, client: redis.Redis, door: str
) -> None:
    for graph in ("plain", "asking", "delta", "outer"):
        assistants("run", graph, f"idle:{graph}", 40)
        assistants("run", graph, f"live:{graph}", 40)
    before = {graph: assistants("run", graph, f"live:{graph}", 2) for graph in ("plain", "delta", "outer")}
    # It still waits for its person; and one whose person came back after the retention, but before the sweep.
    assert assistants("load", "asking", "live:asking")["next"] == ["ask"]
    assistants("resume", "asking", "live:asking")
    swept = run(door)
    assert swept.removed == {"whole": 4} and swept.unknown == swept.foreign == 0, swept
    assert keys_of(client, "idle") == []
    assert {graph: assistants("load", graph, f"live:{graph}") for graph in before} == before
    assert before["plain"]["messages"] == ["question", "answer 1", "question", "answer 3"]
    assert assistants("load", "asking", "live:asking") == {"messages": ["question", "yes"], "next": []}
    for graph in ("plain", "outer"):
        after = assistants("run", graph, f"live:{graph}")["messages"]
        assert after[: len(before[graph]["messages"])] == before[graph]["messages"]
    for graph in ("plain", "asking"):
        assert assistants("load", graph, f"idle:{graph}")["messages"] == []
    assert run(door).deleted == 0


def test_trimmed_threads_of_the_real_saver_are_resumed_with_all_their_messages(
    assistants: Assistants, client: redis.Redis, door: str
) -> None:
    """The saver's own prune turned the six messages of a thread with delta channels into none."""
    for days in (9, 7, 5):
        for graph in ("plain", "delta", "outer"):
            assistants("run", graph, graph, days)
    assistants("run", "plain", "asking", 9)
    assistants("run", "asking", "asking", 5)
    names = {"plain": "plain", "delta": "delta", "outer": "outer", "asking": "asking"}
    before = {thread: assistants("load", graph, thread) for thread, graph in names.items()}
    untouched = sorted(keys_of(client, "delta"))
    swept = run(door, keep_newest=1)
    assert swept.removed["trimmed"] == 3 and swept.kept["delta channels"] == 1, swept
    assert len(keys_of(client, "checkpoint:plain:")) == 1
    assert sorted(keys_of(client, "delta")) == untouched
    assert {thread: assistants("load", graph, thread) for thread, graph in names.items()} == before
    assert assistants("resume", "asking", "asking") == {"messages": [*before["asking"]["messages"], "yes"], "next": []}
    assert assistants("run", "plain", "plain")["messages"] == [*before["plain"]["messages"], "question", "answer 7"]


def test_a_subgraph_of_the_real_saver_that_keeps_its_state_stays_with_its_thread_and_is_erased_with_it(
    assistants: Assistants, client: redis.Redis, door: str
) -> None:
    assistants("run", "outer", "user", 40)
    held = [key for key in keys_of(client, "user:inner") if key.startswith(b"checkpoint_latest:")]
    assert held == [b"checkpoint_latest:user:inner"]
    assistants("run", "plain", "user", 2)
    swept = run(door)
    assert (swept.threads, swept.kept, swept.deleted) == (1, {"live": 1}, 0)
    assistants("run", "plain", "user:2", 1)
    assert run(door, erase=True, only=(glob_of("user"),)).removed == {"erased": 1}
    assert assistants("load", "plain", "user:2")["messages"] == ["question", "answer 1"]
    assert all(b"user:2:" in key for key in keys_of(client, "user"))


def test_idle_threads_of_the_real_shallow_saver_go_and_live_ones_are_resumed_where_they_were(
    assistants: Assistants, client: redis.Redis, door: str
) -> None:
    names = ("shallow plain", "shallow asking", "shallow outer")
    for graph in names:
        assistants("run", graph, f"idle:{graph}", 40)
        assistants("run", graph, f"live:{graph}", 40)
    before = {graph: assistants("run", graph, f"live:{graph}", 2) for graph in names}
    swept = run(door)
    assert swept.removed == {"whole": 3, "orphans": 3} and swept.unknown == swept.foreign == 0, swept
    assert keys_of(client, "idle") == [] and run(door).deleted == 0
    assert {graph: assistants("load", graph, f"live:{graph}") for graph in names} == before
    assert before["shallow plain"]["messages"] == ["question", "answer 1", "question", "answer 3"]
    waiting = before["shallow asking"]
    assert waiting["next"] == ["ask"]
    assert assistants("resume", "shallow asking", "live:shallow asking") == {
        "messages": [*waiting["messages"], "yes"],
        "next": [],
    }
    for graph in ("shallow plain", "shallow outer"):
        assert assistants("list", graph, f"live:{graph}")["listed"] > 0
        after = assistants("run", graph, f"live:{graph}")["messages"]
        assert after[: len(before[graph]["messages"])] == before[graph]["messages"]
    assert assistants("load", "shallow plain", "idle:shallow plain")["messages"] == []


def test_what_a_sweep_leaves_the_savers_own_commands_find(
    assistants: Assistants, client: redis.Redis, door: str
) -> None:
    for thread, days in (("idle", 40), ("live", 40), ("live", 5), ("trimmed", 9), ("trimmed", 5), ("pruned", 5)):
        assistants("run", "plain", thread, days)
    listed = {thread: assistants("list", "plain", thread)["listed"] for thread in ("live", "trimmed", "pruned")}
    assert listed == {"live": 6, "trimmed": 6, "pruned": 3}
    assistants("prune", "plain", "pruned")
    only = (glob_of("idle"), glob_of("trimmed"))
    assert run(door, keep_newest=1, only=only).removed == {"whole": 1, "trimmed": 1}
    listed = {thread: assistants("list", "plain", thread)["listed"] for thread in ("idle", "live", "trimmed", "pruned")}
    assert listed == {"idle": 0, "live": 6, "trimmed": 1, "pruned": 1}
    assert run(door).deleted == 0, "of what the saver pruned nothing is left to do"
    assert assistants("load", "plain", "pruned")["messages"] == ["question", "answer 1"]
    for thread in ("live", "trimmed"):
        assert assistants("delete", "plain", thread)["messages"] == []
        assert keys_of(client, thread) == []
