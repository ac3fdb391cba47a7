"""Sending probes: the smallest request that proves a model answers, many at a time, each with its own deadline.

What belongs here: HTTP and concurrency. What does not: what an answer means (`answers`), nor whom to ask (`states`).
"""

from __future__ import annotations

import asyncio
import socket
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx

from ops_pipeline.usage.probes.answers import (
    CONNECTION,
    DNS,
    INVALID_RESPONSE,
    TIMEOUT,
    UNAVAILABLE,
    Answer,
    cleaned,
    read_answer,
)
from ops_pipeline.usage.probes.targets import Probes, Target

LARGEST_BODY = 1_048_576
"""A small embedding takes 60 kB. More than this is no answer to a probe, and is not read."""
WORD = "hi"
INVALID_KEY = "Invalid API Key"
HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "ops_pipeline model probe"}


def request_of(target: Target) -> tuple[str, dict[str, Any]]:
    """The path below the base URL, and the JSON to post there."""
    if target.type == "embedding":
        return "/embeddings", {"model": target.model, "input": WORD}
    if target.type == "imageGeneration":
        size = {"size": target.image_size} if target.image_size else {}
        return "/images/generations", {"model": target.model, "prompt": "a dot", "n": 1, **size}
    message = {"role": "user", "content": WORD}
    return "/chat/completions", {"model": target.model, "messages": [message], target.token_parameter: 1}


def probe_all(probes: Probes, targets: Sequence[Target]) -> list[Answer]:
    """Probe targets, at most `concurrency` at a time and as many of a provider as it may be.

    Returns:
        The answers in the order of the targets; whatever goes wrong is an answer too.
    """
    return asyncio.run(_probe_all(probes, targets))


async def _probe_all(probes: Probes, targets: Sequence[Target]) -> list[Answer]:
    at_all = asyncio.Semaphore(probes.file.concurrency)
    of_provider = {
        target.provider: asyncio.Semaphore(probes.file.provider_concurrency.get(target.provider, 1))
        for target in targets
    }

    async def in_turn(target: Target) -> Answer:
        # Who waits for a provider must not hold up the others.
        async with of_provider[target.provider], at_all:
            return await probe(client, target, probes)

    # Names are looked up in threads, of which a loop has six on two cores: hanging ones would hold up the others.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(probes.file.concurrency))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=None, limits=limits, headers=HEADERS) as client:  # noqa: S113 - see probe()
        return list(await asyncio.gather(*(in_turn(target) for target in targets)))


async def probe(client: httpx.AsyncClient, target: Target, probes: Probes) -> Answer:
    """Probe one target, within its deadline from the first byte sent to the last one read."""
    path, content = request_of(target)
    key = probes.key_of(target)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    started = time.perf_counter()
    try:
        # One deadline for all of it: the client's own time-outs begin anew with every byte.
        async with (
            asyncio.timeout(target.timeout_seconds),
            client.stream("POST", f"{target.base_url}{path}", json=content, headers=headers) as response,
        ):
            body, complete = await _body(response)
        answer = read_answer(target.type, response.status_code, body, complete=complete)
        answer = replace(answer, response_time_ms=(time.perf_counter() - started) * 1000)
    except TimeoutError:
        answer = Answer(UNAVAILABLE, TIMEOUT, f"no complete answer within {target.timeout_seconds:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        answer = _of_exception(error)
    return cleaned(answer, probes.secrets())


async def _body(response: httpx.Response) -> tuple[bytes, bool]:
    body = b""
    # Raw: httpx would unzip all of a part, and a kilobyte that was zipped twice may be gigabytes.
    async for part in response.aiter_raw():
        body += part
        if len(body) > LARGEST_BODY:
            return body[:LARGEST_BODY], False
    zipped = response.headers.get("Content-Encoding", "").lower() == "gzip"
    return _unzipped(body) if zipped else (body, True)


def _unzipped(body: bytes) -> tuple[bytes, bool]:
    """The body of a provider that zips whatever it was asked for, as far as it is read."""
    try:
        unzipped = zlib.decompressobj(wbits=31).decompress(body, LARGEST_BODY + 1)
    except zlib.error:
        return body, True
    return unzipped[:LARGEST_BODY], len(unzipped) <= LARGEST_BODY


def _of_exception(error: Exception) -> Answer:
    causes = _causes(error)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Answer(UNAVAILABLE, DNS, "the host's name is not known here")
    if isinstance(error, httpx.LocalProtocolError | UnicodeEncodeError):
        # Of all that is sent, only the key may be like that; the error's own words hold it.
        return Answer(UNAVAILABLE, INVALID_KEY, "the key holds a character that no header may hold")
    if isinstance(error, httpx.RemoteProtocolError) and not _closed(error):
        return Answer(UNAVAILABLE, INVALID_RESPONSE, str(error))
    return Answer(UNAVAILABLE, CONNECTION, str(error) or type(error).__name__)


def _closed(error: Exception) -> bool:
    return "disconnected" in str(error) or "closed" in str(error)


def _causes(error: BaseException) -> list[BaseException]:
    """The error, and all that led to it."""
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        following = following.__cause__ or following.__context__
    return found
