"""Talking to analyzer services over WebSockets: one analysis per connection, and the health check.

What belongs here: sockets, deadlines and retries of connecting. What a frame means is in `protocol`; whoever cancels
the coroutine closes the socket and gets no result.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import cast

import websockets
from websockets.asyncio.client import connect as connect_websocket
from websockets.frames import CloseCode

from ops_pipeline.analysis.gate import LARGE, GatedConnection, Slot
from ops_pipeline.analysis.protocol import (
    HEALTH_CHECK,
    LONGEST_FRAME,
    MOST_NOISE,
    Ending,
    Outcome,
    Progress,
    Request,
    classify,
    health_of,
    parsed,
    shortened,
)

GOING = {CloseCode.GOING_AWAY, CloseCode.SERVICE_RESTART, CloseCode.TRY_AGAIN_LATER}
"""Close codes by which a service says that it goes away, restarts, or has no room just now."""


@dataclass(frozen=True)
class Patience:
    """How long things may take, in seconds, and how often connecting is tried again."""

    opening: float = 10.0
    closing: float = 10.0
    health: float = 5.0
    connect_waits: tuple[float, ...] = (2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Health:
    """What a service says of itself; `tools` are empty when it names none."""

    healthy: bool
    reason: str = ""
    tools: tuple[str, ...] = ()


async def analyze(
    url: str,
    request: Request,
    *,
    timeout_seconds: float,
    told: Callable[[Progress], None] = lambda _: None,
    patience: Patience = Patience(),
    slot: Slot | None = None,
    answered: Callable[[], None] = lambda: None,
) -> Outcome:
    """Ask for one analysis, and wait for its end; whatever goes wrong is an outcome too.

    Args:
        url: of the service.
        request: what is asked for.
        timeout_seconds: for all of it, connecting included.
        told: hears of progress.
        patience: with single steps.
        slot: taken when the reply is large; the caller gives it back when the outcome is stored.
        answered: is called when the outcome is there, before the farewell.
    """
    started = time.monotonic()
    talk = _Talk(url, request, told, patience, slot)
    try:
        try:
            async with asyncio.timeout(timeout_seconds):
                outcome = await _talk(talk)
        except TimeoutError:
            last = f"; the last frame was {talk.last}" if talk.last else ""
            outcome = Outcome(Ending.TIMEOUT, f"no result within {timeout_seconds:g} s{last}")
        answered()
        outcome = replace(outcome, seconds=time.monotonic() - started)
        # Not within the deadline: the answer is there, and a service that says no farewell must not lose it.
        if outcome.reply is not None and talk.connection is not None:
            await talk.connection.close()
        return outcome
    finally:
        if talk.connection is not None:
            talk.connection.transport.abort()


@dataclass
class _Talk:
    """A conversation, and what came before its end, to be told when there is nothing else."""

    url: str
    request: Request
    told: Callable[[Progress], None]
    patience: Patience
    slot: Slot | None
    connection: GatedConnection | None = None
    junk: int = 0
    noise: int = 0
    last: str = ""


async def _talk(talk: _Talk) -> Outcome:
    try:
        talk.connection = await _connect_again(talk)
        await talk.connection.send(talk.request.frame(datetime.now(UTC)))
        return await _answer(talk, talk.connection)
    except _NotConnected as error:
        return Outcome(Ending.UNREACHABLE, str(error))
    except websockets.ConnectionClosed as closed:
        return _closed(closed, talk)


async def _connect_again(talk: _Talk) -> GatedConnection:
    for wait in talk.patience.connect_waits:
        try:
            return await _connect(talk.url, talk.patience, talk.slot)
        except _NotConnected as error:
            if not error.again:
                raise
        await asyncio.sleep(wait)
    return await _connect(talk.url, talk.patience, talk.slot)


class _NotConnected(Exception):
    """There is no connection; `again` when the reason is one that passes."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


async def _connect(url: str, patience: Patience, slot: Slot | None = None) -> GatedConnection:
    try:
        # Without compression a connection takes 0.1 MB instead of 0.4. Services answer no pings while they work.
        connection = await connect_websocket(
            url,
            create_connection=GatedConnection,
            open_timeout=patience.opening,
            close_timeout=patience.closing,
            ping_interval=None,
            max_size=LONGEST_FRAME,
            max_queue=2,
            compression=None,
            proxy=None,
        )
    except TimeoutError:
        raise _NotConnected(f"{url} takes no connection within {patience.opening:g} s", again=True) from None
    except OSError as error:
        raise _NotConnected(f"{url} takes no connection: {_words(error)}", again=True) from None
    except (websockets.InvalidURI, ValueError):
        raise _NotConnected(f"{url} is no WebSocket URL", again=False) from None
    except (websockets.WebSocketException, EOFError) as error:
        raise _NotConnected(f"{url} is no WebSocket service: {_words(error)}", again=False) from None
    gated = cast("GatedConnection", connection)
    gated.slot = slot
    return gated


async def _answer(talk: _Talk, connection: GatedConnection) -> Outcome:
    while talk.noise < MOST_NOISE:
        frame = await connection.recv()
        # Reading 100 MiB of JSON takes a second, in which nobody else would be heard.
        found = (
            await asyncio.to_thread(classify, frame, talk.request)
            if len(frame) > LARGE
            else classify(frame, talk.request)
        )
        if isinstance(found, Outcome):
            return found
        if isinstance(found, Progress):
            talk.told(found)
        else:
            talk.junk += found.junk
            talk.noise += 1
            talk.last = found.reason
    return Outcome(Ending.JUNK, f"{talk.noise} frames and no answer; the last one was {talk.last}")


def _closed(closed: websockets.ConnectionClosed, talk: _Talk) -> Outcome:
    """The outcome of a connection that ended without an answer."""
    sent, received = closed.sent, closed.rcvd
    if sent is not None and sent.code == CloseCode.MESSAGE_TOO_BIG:
        return Outcome(Ending.TOO_LARGE, f"a frame of the service is larger than {LONGEST_FRAME // 2**20} MiB")
    if sent is not None and sent.code == CloseCode.INVALID_DATA:
        return Outcome(Ending.JUNK, "a text frame of the service is no UTF-8")
    if talk.junk:
        return Outcome(Ending.JUNK, f"closed after {talk.junk} frames of junk; the last frame was {talk.last}")
    code = received.code if received is not None else None
    reason = shortened(received.reason, 200) if received is not None else ""
    if code in GOING:
        return Outcome(Ending.UNREACHABLE, f"the service went away (close code {code}{_also(reason)})")
    ended = f"close code {code}{_also(reason)}" if code is not None else "the connection broke"
    noise = f"; before that came {talk.last}" if talk.last else ""
    return Outcome(Ending.CLOSED_EARLY, f"the service closed before its result ({ended}){noise}")


def _also(reason: str) -> str:
    return f", {reason}" if reason else ""


async def check_health(url: str, patience: Patience = Patience()) -> Health:
    """Ask a service how it is, as WebSocket clients do: an open port may belong to one that is ill."""
    try:
        async with asyncio.timeout(patience.health):
            return await _check_health(url, patience)
    except TimeoutError:
        return Health(healthy=False, reason=f"{url} does not answer a health check within {patience.health:g} s")


async def _check_health(url: str, patience: Patience) -> Health:
    try:
        connection = await _connect(url, patience)
    except _NotConnected as error:
        return Health(healthy=False, reason=str(error))
    try:
        await connection.send(json.dumps(HEALTH_CHECK))
        for _ in range(MOST_NOISE):
            frame = await connection.recv()
            told = health_of(frame)
            if told is not None:
                healthy, reason = told
                return Health(healthy, f"{url}: {reason}" if reason else "", _tools(frame))
        return Health(healthy=False, reason=f"{url} answers {MOST_NOISE} times, but no health check")
    except websockets.ConnectionClosed:
        return Health(healthy=False, reason=f"{url} closes instead of answering a health check")
    finally:
        # Without a farewell: it would count against the five seconds, and many a service says none.
        connection.transport.abort()


def _tools(frame: str | bytes) -> tuple[str, ...]:
    found = parsed(frame) if isinstance(frame, str) else None
    tools = (found or {}).get("available_tools")
    return tuple(str(tool) for tool in tools) if isinstance(tools, list) else ()


def _words(error: BaseException) -> str:
    """The reason of an error in the system's words, without the addresses that asyncio writes instead of them."""
    if isinstance(error, socket.gaierror):
        return "the host's name is not known here"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:
        return shortened(error.strerror, 200)
    return shortened(str(error), 200) or type(error).__name__
