"""Analyzer services that speak the protocol, and misbehave on demand.

What belongs here: the server and its behaviours. One behaviour is a coroutine that gets the connection and the request.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import websockets
from websockets.asyncio.server import ServerConnection, serve

Behaviour = Callable[[ServerConnection, dict[str, Any]], Awaitable[None]]
MIB = 1024 * 1024

FINDING = {
    "ruleId": "S105",
    "level": "warning",
    "message": {"text": "Possible hardcoded password"},
    "locations": [
        {
            "physicalLocation": {
                "artifactLocation": {"uri": "backend/app.py"},
                "region": {"startLine": 3, "startColumn": 5},
            }
        }
    ],
}


def sarif_run(tool: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"tool": {"driver": {"name": tool, "version": "1.0"}}, "results": results}


def reply(request: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A reply as services send it: without the id of its request."""
    kinds = {
        "static_analyze": "static_analysis_result",
        "dynamic_analyze": "dynamic_analysis_result",
        "performance_test": "performance_analysis_result",
        "ai_analyze": "ai_analysis_result",
        "generate": "generation_result",
    }
    analysis = {
        "tools_used": ["ruff"],
        "results": {"python": {"ruff": {"tool": "ruff", "executed": True, "status": "success", "total_issues": 1}}},
        "sarif_export": {"version": "2.1.0", "runs": [sarif_run("ruff", [FINDING])]},
    }
    found = {
        "type": kinds.get(request["type"], f"{request['type']}_result"),
        "status": "success",
        "service": "static-analyzer",
        "analysis": analysis,
        "timestamp": "2026-11-27T12:00:00",
    }
    return found | changes


async def answers(connection: ServerConnection, request: dict[str, Any]) -> None:
    await connection.send(json.dumps(reply(request)))


def says(*frames: Any, close: int | None = 1000) -> Behaviour:
    """Send frames, objects as JSON, and close."""

    async def behave(connection: ServerConnection, _request: dict[str, Any]) -> None:
        for frame in frames:
            await connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))
        if close is None:
            await connection.wait_closed()
        else:
            await connection.close(close)

    return behave


def replies(**changes: Any) -> Behaviour:
    """Send a reply with other fields."""

    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        await connection.send(json.dumps(reply(request, **changes)))

    return behave


def after(seconds: float, then: Behaviour) -> Behaviour:
    """Work for a while first."""

    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        await asyncio.sleep(seconds)
        await then(connection, request)

    return behave


async def is_silent(_connection: ServerConnection, _request: dict[str, Any]) -> None:
    await asyncio.Event().wait()


async def breaks_off(connection: ServerConnection, _request: dict[str, Any]) -> None:
    connection.transport.abort()


@dataclass
class Analyzer:
    """A running service.

    Attributes:
        url: of it.
        behaviour: what it does with requests; may be changed while it runs.
        health: the status it tells; None for silence.
        tools: what it says it has.
        requests: what it was asked.
        dropped: ids of requests whose connection was closed from the other side before the answer.
        checks: how often its health was asked for.
    """

    url: str = ""
    behaviour: Behaviour = answers
    health: str | None = "healthy"
    tools: list[str] = field(default_factory=lambda: ["ruff", "bandit"])
    requests: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    checks: int = 0

    async def handle(self, connection: ServerConnection) -> None:
        """Answer until the other side is gone."""
        with suppress(websockets.ConnectionClosed):
            async for frame in connection:
                await self._answer(connection, json.loads(frame))

    async def _answer(self, connection: ServerConnection, asked: dict[str, Any]) -> None:
        if asked["type"] == "health_check":
            self.checks += 1
            if self.health is None:
                await connection.wait_closed()
                return
            told = {"type": "health_response", "status": self.health, "available_tools": self.tools}
            await connection.send(json.dumps(told))
            return
        self.requests.append(asked)
        working = asyncio.ensure_future(self.behaviour(connection, asked))
        gone = asyncio.ensure_future(connection.wait_closed())
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            self.dropped.append(asked["id"])
            working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)
        await connection.close()


@contextmanager
def analyzer(behaviour: Behaviour = answers, port: int = 0, **settings: Any) -> Iterator[Analyzer]:
    """Run a service on a free port, in a thread of its own."""
    service = Analyzer(behaviour=behaviour, **settings)
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def run() -> None:
        options: dict[str, Any] = {"ping_interval": None, "max_size": 4 * MIB, "compression": None}
        async with serve(service.handle, "127.0.0.1", port, close_timeout=0.5, **options) as server:
            service.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield service
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
