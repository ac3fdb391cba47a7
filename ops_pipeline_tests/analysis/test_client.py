"""Conversations with real WebSocket servers that misbehave in every way that was seen, and in some that were not."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from ops_pipeline.analysis.client import Health, Patience, analyze, check_health
from ops_pipeline.analysis.gate import LARGE, Gate
from ops_pipeline.analysis.protocol import LONGEST_FRAME, MOST_NOISE, Ending, Outcome, Progress, Request
from ops_pipeline_tests.analysis.analyzers import (
    MIB,
    Behaviour,
    after,
    analyzer,
    answers,
    breaks_off,
    is_silent,
    replies,
    reply,
    says,
)
from ops_pipeline_tests.servers import free_port

REQUEST = Request("slug_app0_static-analyzer_t1_1", "static-analyzer", "slug", 0)
QUICK = Patience(opening=2, closing=0.3, health=0.5, connect_waits=())


def outcome_of(url: str, timeout_seconds: float = 20, patience: Patience = QUICK, told: Any = None) -> Outcome:
    heard = told if told is not None else []
    return asyncio.run(analyze(url, REQUEST, timeout_seconds=timeout_seconds, told=heard.append, patience=patience))


def test_an_analysis_is_asked_for_and_its_reply_comes_back_whole() -> None:
    with analyzer() as service:
        outcome = outcome_of(service.url)
    assert outcome.ending is Ending.COMPLETED
    assert outcome.reply == reply(service.requests[0])
    assert outcome.size == len(json.dumps(outcome.reply))
    assert service.requests[0]["id"] == REQUEST.id
    assert service.requests[0]["app_number"] == 0


ENDINGS: list[tuple[Behaviour, Ending, str]] = [
    (says({"type": "error", "message": "no such model"}), Ending.REFUSED, "no such model"),
    (says({"type": "error", "error": "no such model"}), Ending.REFUSED, "no such model"),
    (says({"type": "error", "message": "x"}, close=None), Ending.REFUSED, "x"),
    (replies(analysis={"status": "error", "error": "crashed"}), Ending.FAILED, "crashed"),
    (replies(status="partial_success"), Ending.PARTIAL, "the service finished in part"),
    (replies(analysis=None), Ending.BAD_REPLY, "the reply holds no analysis"),
    (says(), Ending.CLOSED_EARLY, "the service closed before its result (close code 1000)"),
    (says(close=1011), Ending.CLOSED_EARLY, "the service closed before its result (close code 1011)"),
    (says(close=1001), Ending.UNREACHABLE, "the service went away (close code 1001)"),
    (says(close=1012), Ending.UNREACHABLE, "the service went away (close code 1012)"),
    (breaks_off, Ending.CLOSED_EARLY, "the service closed before its result (the connection broke)"),
    (
        says("junk", "[]"),
        Ending.JUNK,
        "closed after 2 frames of junk; the last frame was a frame that is no JSON object: '[]'",
    ),
    (says(b"\x00\x01"), Ending.JUNK, "closed after 1 frames of junk; the last frame was a binary frame of 2 bytes"),
    (says({"type": "pong"}), Ending.CLOSED_EARLY, "before that came pong"),
    (
        replies(id="another"),
        Ending.CLOSED_EARLY,
        "before that came static_analysis_result for another request, another",
    ),
    (says(*["junk"] * (MOST_NOISE + 1), close=None), Ending.JUNK, f"{MOST_NOISE} frames and no answer"),
]


@pytest.mark.parametrize(
    ("behaviour", "ending", "message"), ENDINGS, ids=[f"{n}-{e.value}" for n, (_, e, _) in enumerate(ENDINGS)]
)
def test_every_ending_has_an_outcome_of_its_own(behaviour: Behaviour, ending: Ending, message: str) -> None:
    with analyzer(behaviour) as service:
        outcome = outcome_of(service.url)
    assert (outcome.ending, message in outcome.message) == (ending, True), outcome


def test_text_that_is_no_utf8_is_junk() -> None:
    async def sends_bytes(connection: ServerConnection, _request: dict[str, Any]) -> None:
        await connection.send(b"\xff\xfe", text=True)
        await connection.wait_closed()

    with analyzer(sends_bytes) as service:
        assert outcome_of(service.url).ending is Ending.JUNK


def test_junk_before_the_answer_is_passed_over() -> None:
    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        for frame in ["junk", "[]", b"\x00", json.dumps(reply(request, id="another")), json.dumps({"type": "pong"})]:
            await connection.send(frame)
        await connection.send(json.dumps(reply(request, id=request["id"])))

    with analyzer(behave) as service:
        assert outcome_of(service.url).ending is Ending.COMPLETED


def test_progress_on_the_same_socket_is_told_in_order() -> None:
    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        for percent in (10, 60):
            frame = {"type": "progress_update", "correlation_id": request["id"], "stage": "scan", "progress": percent}
            await connection.send(json.dumps(frame))
        await connection.send(json.dumps({"type": "progress_update", "correlation_id": "another", "stage": "x"}))
        await answers(connection, request)

    heard: list[Progress] = []
    with analyzer(behave) as service:
        outcome_of(service.url, told=heard)
    assert heard == [Progress("scan", "", 10), Progress("scan", "", 60)]


def test_silence_ends_at_the_deadline() -> None:
    with analyzer(is_silent) as service:
        started = time.monotonic()
        outcome = outcome_of(service.url, timeout_seconds=0.5)
        assert outcome.ending is Ending.TIMEOUT
        assert outcome.message == "no result within 0.5 s"
        assert time.monotonic() - started < 5
        wait_for(lambda: service.dropped == [REQUEST.id])


def test_progress_does_not_move_the_deadline() -> None:
    """A service that told of progress for ever kept its task running for ever."""

    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        while True:
            await connection.send(json.dumps({"type": "progress_update", "stage": "still at it"}))
            await asyncio.sleep(0.05)

    with analyzer(behave) as service:
        assert outcome_of(service.url, timeout_seconds=0.5).ending is Ending.TIMEOUT


def test_connecting_counts_against_the_deadline() -> None:
    """The wait between two attempts to connect is longer than what is left."""
    url = f"ws://127.0.0.1:{free_port()}"
    outcome = outcome_of(url, timeout_seconds=0.4, patience=replace(QUICK, connect_waits=(30.0,)))
    assert outcome.ending is Ending.TIMEOUT


def test_a_service_that_says_no_farewell_loses_no_answer() -> None:
    """The answer came within the deadline, the closing handshake would not."""

    async def answers_and_hangs(connection: ServerConnection, request: dict[str, Any]) -> None:
        await answers(connection, request)
        time.sleep(2)

    with analyzer(answers_and_hangs) as service:
        outcome = outcome_of(service.url, timeout_seconds=0.5, patience=replace(QUICK, closing=1.0))
    assert outcome.ending is Ending.COMPLETED
    assert outcome.seconds < 0.5


def test_connecting_is_tried_again_while_nobody_listens() -> None:
    port = free_port()

    async def talk() -> Outcome:
        patience = replace(QUICK, connect_waits=(0.3, 0.3, 30.0))
        return await analyze(f"ws://127.0.0.1:{port}", REQUEST, timeout_seconds=20, patience=patience)

    async def both() -> Outcome:
        talking = asyncio.ensure_future(talk())
        await asyncio.sleep(0.4)
        with analyzer(port=port):
            return await asyncio.wait_for(asyncio.shield(talking), 10)

    assert asyncio.run(both()).ending is Ending.COMPLETED


def test_only_failing_to_connect_is_tried_again() -> None:
    """A task whose connection breaks has begun: another request would run it twice."""
    with analyzer(breaks_off) as service:
        outcome = outcome_of(service.url, patience=replace(QUICK, connect_waits=(0.0, 0.0)))
    assert outcome.ending is Ending.CLOSED_EARLY
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ws://127.0.0.1:{port}", "takes no connection: Connection refused"),
        ("http://127.0.0.1:1", "is no WebSocket URL"),
        ("ws://", "is no WebSocket URL"),
        ("", "is no WebSocket URL"),
        ("ws://no-such-host.invalid:2001", "the host's name is not known here"),
    ],
)
def test_what_cannot_be_connected_to_is_unreachable(url: str, message: str) -> None:
    outcome = outcome_of(url.format(port=free_port()))
    assert outcome.ending is Ending.UNREACHABLE
    assert message in outcome.message, outcome.message


def test_a_server_of_another_kind_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        outcome = outcome_of(f"ws://127.0.0.1:{listener.getsockname()[1]}")
    assert outcome.ending is Ending.UNREACHABLE
    assert "503" in outcome.message


def test_who_takes_a_connection_and_says_nothing_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        outcome = outcome_of(f"ws://127.0.0.1:{listener.getsockname()[1]}", patience=replace(QUICK, opening=0.3))
    assert outcome.ending is Ending.UNREACHABLE
    assert "takes no connection within 0.3 s" in outcome.message


def padded(request: dict[str, Any], size: int) -> str:
    frame = json.dumps(reply(request, padding=""))
    return frame.replace('"padding": ""', f'"padding": "{"x" * (size - len(frame))}"')


@pytest.mark.parametrize(("size", "ending"), [(LONGEST_FRAME, Ending.COMPLETED), (LONGEST_FRAME + 1, Ending.TOO_LARGE)])
def test_frames_may_have_100_mebibytes_and_not_one_byte_more(size: int, ending: Ending) -> None:
    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        await connection.send(padded(request, size))
        await connection.wait_closed()

    with analyzer(behave) as service:
        outcome = outcome_of(service.url, timeout_seconds=60)
    assert outcome.ending is ending, outcome.message
    assert outcome.size == (size if ending is Ending.COMPLETED else 0)


def test_large_replies_are_received_few_at_a_time() -> None:
    """Hundreds of frames of 100 MiB at once would need more memory than any worker has."""
    sent: list[str] = []

    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        await connection.send(padded(request, 16 * MIB))
        sent.append(request["id"])
        await connection.wait_closed()

    async def talk(service_url: str) -> tuple[int, int]:
        gate = Gate(slots=1)
        slots = [gate.slot() for _ in range(3)]
        talking = [
            asyncio.ensure_future(
                analyze(service_url, replace(REQUEST, id=f"r{n}"), timeout_seconds=60, slot=slot, patience=QUICK)
            )
            for n, slot in enumerate(slots)
        ]
        done, waiting = await asyncio.wait(talking, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.5)
        held = len(sent)
        next(slot for slot in slots if slot.taken).release()
        later, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [one.result().ending for one in (*done, *later)] == [Ending.COMPLETED] * 2
        for one in waiting:
            one.cancel()
        return held, len(sent)

    with analyzer(behave) as service:
        held, later = asyncio.run(talk(service.url))
    assert (held, later) == (1, 2)


def test_small_replies_need_no_slot() -> None:
    async def talk(url: str) -> Outcome:
        gate = Gate(slots=1)
        other = gate.slot()
        other._free = asyncio.Semaphore(0)
        return await analyze(url, REQUEST, timeout_seconds=10, slot=other, patience=QUICK)

    with analyzer() as service:
        outcome = asyncio.run(talk(service.url))
    assert outcome.ending is Ending.COMPLETED
    assert outcome.size < LARGE


def test_cancelling_closes_the_socket_and_gives_no_result() -> None:
    async def talk(url: str) -> None:
        talking = asyncio.ensure_future(analyze(url, REQUEST, timeout_seconds=60))
        await asyncio.to_thread(wait_for, lambda: bool(service.requests))
        talking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await talking

    with analyzer(after(30, answers)) as service:
        asyncio.run(talk(service.url))
        wait_for(lambda: service.dropped == [REQUEST.id])


@pytest.mark.parametrize(
    ("settings", "health"),
    [
        ({}, Health(healthy=True, reason="", tools=("ruff", "bandit"))),
        ({"tools": []}, Health(healthy=True)),
        (
            {"health": "degraded"},
            Health(healthy=False, reason="{url}: it says that it is 'degraded'", tools=("ruff", "bandit")),
        ),
        ({"health": None}, Health(healthy=False, reason="{url} does not answer a health check within 0.5 s")),
    ],
)
def test_a_service_is_asked_how_it_is(settings: dict[str, Any], health: Health) -> None:
    """An open port was taken for health: tasks went to a service that hung."""
    with analyzer(**settings) as service:
        found = asyncio.run(check_health(service.url, QUICK))
        assert found == replace(health, reason=health.reason.format(url=service.url))


def test_a_port_on_which_nobody_speaks_the_protocol_is_not_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = asyncio.run(check_health(f"ws://127.0.0.1:{listener.getsockname()[1]}", QUICK))
    assert not found.healthy
    assert "does not answer a health check within 0.5 s" in found.reason


def wait_for(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
