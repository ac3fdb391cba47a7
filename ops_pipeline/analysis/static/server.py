"""The static analyzer as a service: requests of the protocol in, progress and replies out.

What belongs here: sockets, validation of requests, and the sequence of one analysis.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import websockets
from websockets.asyncio.server import Server, ServerConnection, serve

from ops_pipeline.analysis.protocol import parsed, shortened
from ops_pipeline.analysis.static.processes import Limits, ToolFailed, run_tool
from ops_pipeline.analysis.static.tools import (
    NotAsked,
    Tool,
    analysis_of,
    installed_tools,
    read_sarif,
    tool_result,
)
from ops_pipeline.analysis.targets import Target, parse_target

SERVICE = "static-analyzer"
REQUEST, REPLY = "static_analyze", "static_analysis_result"
LONGEST_REQUEST = 2**20
NOT_OF_A_TOOL = {"template_slug", "ports"}
SOURCES = (".py", ".pyi", ".pyw", ".ipynb")


@dataclass(frozen=True)
class Analyzer:
    """The service.

    Attributes:
        root: the folder of all applications; nothing outside it is read.
        limits: of one tool's process.
        at_once: how many analyses are made at a time; the others wait.
        tools: that are installed.
        started: when, by the monotonic clock.
    """

    root: Path
    limits: Limits = field(default_factory=Limits)
    at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    tools: Mapping[str, Tool] = field(default_factory=installed_tools)
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Asked:
    """A valid request."""

    id: str
    target: Target
    folder: Path
    commands: Mapping[str, list[str]]


async def serve_static(analyzer: Analyzer, host: str, port: int) -> Server:
    """Begin to listen; the caller closes the server."""

    async def handle(connection: ServerConnection) -> None:
        with suppress(websockets.ConnectionClosed):
            await _converse(analyzer, connection)

    return await serve(
        handle, host, port, ping_interval=None, max_size=LONGEST_REQUEST, open_timeout=10, close_timeout=10
    )


async def _converse(analyzer: Analyzer, connection: ServerConnection) -> None:
    """Answer until the other side is gone, or its one analysis is done; an analysis ends with the connection."""
    working: asyncio.Task[None] | None = None
    try:
        async for frame in connection:
            asked = parsed(frame) if isinstance(frame, str) else None
            kind = (asked or {}).get("type")
            if asked is None:
                await _say(connection, type="error", message="a frame is no JSON object")
            elif kind == "ping":
                await _say(connection, type="pong")
            elif kind == "health_check":
                await _say(connection, **_health(analyzer))
            elif kind == REQUEST and working is None:
                working = asyncio.create_task(_analyze(analyzer, connection, asked))
            elif kind == REQUEST:
                await _say(connection, type="error", message="one analysis per connection")
            elif kind == "cancel_request":
                await _say(connection, type="error", id=asked.get("id"), message="cancelled")
                return
            else:
                await _say(connection, type="error", message=f"the type {shortened(str(kind), 80)!r} is unknown")
    finally:
        if working is not None:
            working.cancel()
            await asyncio.wait([working])


async def _say(connection: ServerConnection, **fields: Any) -> None:
    told = {**fields, "service": SERVICE, "timestamp": datetime.now(UTC).isoformat()}
    await connection.send(json.dumps(told))


def _health(analyzer: Analyzer) -> dict[str, Any]:
    return {
        "type": "health_response",
        # Without a tool it can do nothing, and with no folder there is nothing to do it to.
        "status": "healthy" if analyzer.tools and analyzer.root.is_dir() else "unhealthy",
        "version": metadata.version("ops-pipeline"),
        "uptime": round(time.monotonic() - analyzer.started, 3),
        "available_tools": sorted(analyzer.tools),
    }


async def _analyze(analyzer: Analyzer, connection: ServerConnection, asked: Mapping[str, Any]) -> None:
    identifier = str(asked.get("id") or "")

    async def tell(stage: str, message: str, percent: int) -> None:
        await _say(
            connection,
            type="progress_update",
            correlation_id=identifier,
            stage=stage,
            message=message,
            progress=percent,
        )

    with suppress(websockets.ConnectionClosed):
        try:
            request = await asyncio.to_thread(read_request, analyzer, asked)
        except NotAsked as error:
            await _say(connection, type="error", id=identifier, message=str(error))
        else:
            if analyzer.at_once.locked():
                await tell("queued", "other analyses come first", 0)
            async with analyzer.at_once:
                analysis = await _run(analyzer, request, tell)
            status = analysis["status"]
            await _say(connection, type=REPLY, id=identifier, status=status, analysis=analysis)
        await connection.close()


async def _run(analyzer: Analyzer, asked: Asked, tell: Callable[[str, str, int], Any]) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {}
    runs: list[Mapping[str, Any]] = []
    for number, (name, command) in enumerate(asked.commands.items()):
        await tell("scanning", f"{name} reads {asked.target.model_slug}", 100 * number // len(asked.commands))
        tool, began = analyzer.tools[name], time.monotonic()
        try:
            output = await run_tool(command, asked.folder, analyzer.limits)
            run = await asyncio.to_thread(read_sarif, tool, output, asked.folder)
        except (ToolFailed, ValueError) as error:
            results[name] = {"tool": name, "executed": False, "status": "error", "error": str(error)}
        else:
            runs.append(run)
            results[name] = tool_result(tool, run, time.monotonic() - began)
    await tell("reporting", "all tools are done", 100)
    facts = {"model_slug": asked.target.model_slug, "app_number": asked.target.app_number}
    return {**facts, **analysis_of(results, runs)}


def read_request(analyzer: Analyzer, asked: Mapping[str, Any]) -> Asked:
    """Validate a request.

    Raises:
        NotAsked: it cannot be done; the message says why.
    """
    number = asked.get("app_number")
    if isinstance(number, bool) or not isinstance(number, int):
        raise NotAsked("app_number is no number")
    try:
        target = parse_target(f"{asked.get('model_slug')}/app{number}")
    except ValueError as error:
        raise NotAsked(str(error)) from None
    config = asked.get("config") or {}
    tools = _tools_of(analyzer, asked.get("tools"))
    if not isinstance(config, Mapping) or not all(isinstance(config.get(name, {}), Mapping) for name in tools):
        raise NotAsked("config is no object with an object for each tool")
    unknown = sorted(set(config) - set(analyzer.tools) - NOT_OF_A_TOOL)
    if unknown:
        raise NotAsked(
            f"config.{shortened(unknown[0], 80)} is of no tool; there are {', '.join(sorted(analyzer.tools))}"
        )
    commands = {name: analyzer.tools[name].command(config.get(name, {})) for name in tools}
    return Asked(str(asked.get("id") or ""), target, folder_of(analyzer.root, target), commands)


def _tools_of(analyzer: Analyzer, named: Any) -> list[str]:
    """The tools that a request names, or all; never all because those that it names are not there."""
    available = ", ".join(sorted(analyzer.tools)) or "none"
    if named is None or named == []:
        if not analyzer.tools:
            raise NotAsked("no tool is installed; install ops-pipeline with its extra `analyzer`")
        return list(analyzer.tools)
    if not isinstance(named, list) or not all(isinstance(tool, str) for tool in named):
        raise NotAsked("tools is no list of names")
    unknown = [tool for tool in named if tool.lower() not in analyzer.tools]
    if unknown:
        raise NotAsked(f"no valid tool: {shortened(', '.join(unknown), 200)}; there are {available}")
    return list(dict.fromkeys(tool.lower() for tool in named))


def folder_of(root: Path, target: Target) -> Path:
    """The folder of an application, whose model's name may be one folder or several.

    Raises:
        NotAsked: there is none within the root, or a source in it is a link that leads out of it.
    """
    inside = root.resolve()
    for model in dict.fromkeys((target.folders[0], target.model_slug)):
        folder = (inside / model / f"app{target.app_number}").resolve()
        if folder.is_dir():
            if not folder.is_relative_to(inside):
                raise NotAsked(f"{model}/app{target.app_number} leads out of the folder of applications")
            _refuse_links(folder)
            return folder
    raise NotAsked(f"there are no sources of {target.model_slug} app {target.app_number}")


def _refuse_links(folder: Path) -> None:
    """Sources that are links elsewhere: findings quote lines, and would show files of this machine."""
    for path in (path for suffix in SOURCES for path in folder.rglob(f"*{suffix}")):
        if path.is_symlink() and not path.resolve().is_relative_to(folder):
            raise NotAsked(f"{path.relative_to(folder)} is a link that leads out of the application's folder")
