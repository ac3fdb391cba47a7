"""Probes over real HTTP: what is sent, what each failure becomes, deadlines and concurrency."""

from __future__ import annotations

import gzip
import json
import socket
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from ops_pipeline.usage.probes.answers import Answer
from ops_pipeline.usage.probes.client import LARGEST_BODY, probe_all
from ops_pipeline.usage.probes.targets import Probes, ProbesFile, Target
from ops_pipeline_tests.servers import free_port
from ops_pipeline_tests.usage.probes.provider import (
    CHAT,
    Behaviour,
    Provider,
    dripping,
    endless_headers,
    error,
    hanging_up,
    hanging_up_within,
    packed,
    provider,
    raw,
    silent,
    status,
    trickling,
    well,
)

KEY = "sk-test-5e2f0b7c91d84a36"
DEADLINE = 0.3


@pytest.fixture
def server() -> Iterator[Provider]:
    """A provider that is well as long as nothing else is said."""
    with provider() as running:
        yield running


def target(base_url: str, **fields: Any) -> Target:
    values = {"provider": "openai", "model": "gpt", "timeout_seconds": 5} | fields
    return Target.model_validate({"base_url": base_url} | values)


def ask(*targets: Target, key: str = KEY, **limits: Any) -> list[Answer]:
    """Probe targets, with the same key for each that names one."""
    names = {target.api_key_env for target in targets if target.api_key_env}
    file = ProbesFile.model_validate({"models": targets} | limits)
    return probe_all(Probes(file, {name: SecretStr(key) for name in names}), targets)


def answer_to(server: Provider, behaviour: Behaviour, **fields: Any) -> Answer:
    """The answer to one probe of a model that behaves like that."""
    server.on("gpt", behaviour)
    (answer,) = ask(target(server.url(), **fields))
    return answer


# Requests


@pytest.mark.parametrize(
    ("fields", "path", "body"),
    [
        ({}, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
        (
            {"token_parameter": "max_completion_tokens"},
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 1},
        ),
        ({"type": "embedding"}, "/v1/embeddings", {"input": "hi"}),
        ({"type": "imageGeneration"}, "/v1/images/generations", {"prompt": "a dot", "n": 1}),
        (
            {"type": "imageGeneration", "image_size": "256x256"},
            "/v1/images/generations",
            {"prompt": "a dot", "n": 1, "size": "256x256"},
        ),
    ],
)
def test_the_request_of_each_type_is_the_smallest_that_proves_the_model(
    server: Provider, fields: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    (answer,) = ask(target(server.url(), **fields))
    assert (answer.result, answer.error_code, answer.error_message) == ("available", "", "")
    assert answer.http_status == 200
    (request,) = server.requests
    assert request.path == path
    assert request.body == {"model": "gpt"} | body
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"


def test_what_the_provider_counted_and_how_long_it_took_is_kept(server: Provider) -> None:
    answer = answer_to(server, well(0.1))
    assert (answer.input_tokens, answer.output_tokens) == (8, 1)
    assert answer.response_time_ms is not None
    assert 100 <= answer.response_time_ms < 2000


def test_the_key_is_sent_as_bearer_and_only_by_targets_that_have_one(server: Provider) -> None:
    ask(target(server.url(), model="with", api_key_env="KEY"), target(server.url(), model="without"))
    sent = {request.body["model"]: request.headers.get("authorization") for request in server.requests}
    assert sent == {"with": f"Bearer {KEY}", "without": None}


def test_no_answer_holds_the_key_that_a_provider_repeats(server: Provider) -> None:
    """OpenAI answers "Incorrect API key provided: sk-proj-…", which then stood in a table that many may read."""
    server.on("json", error(401, f"Incorrect API key provided: {KEY}."))
    server.on("html", status(403, f"<p>denied for Bearer {KEY}</p>", "text/html"))
    server.on("part", error(401, f"Incorrect API key provided: {KEY[:11]}****{KEY[-4:]}."))
    server.on("other", error(500, f"upstream refused {KEY[::-1]}"))
    models = ("json", "html", "part", "other")
    targets = [target(server.url(), model=model, api_key_env="KEY") for model in models]
    targets[3] = target(server.url(), model="other", api_key_env="REVERSED")
    file = ProbesFile(models=tuple(targets))
    keys = {"KEY": SecretStr(KEY), "REVERSED": SecretStr(KEY[::-1])}
    answers = probe_all(Probes(file, keys), targets)
    for answer in answers:
        assert "***" in answer.error_message
        assert KEY not in str(answer) and KEY[::-1] not in str(answer)
        assert KEY[-4:] not in answer.error_message


@pytest.mark.parametrize("key", ["sk-abc def-12345\n", "schlüssel-12345", "sk-abc-12345\x00"])
def test_a_key_that_no_header_may_hold_is_told_apart_from_a_broken_network(server: Provider, key: str) -> None:
    """A key from a file came with its line break: every model was "Connection Error", and the network was searched."""
    (answer,) = ask(target(server.url(), api_key_env="KEY"), key=key)
    assert (answer.result, answer.error_code) == ("unavailable", "Invalid API Key")
    assert "12345" not in str(answer) and "abc" not in str(answer)
    assert server.requests == []


# Failures


@pytest.mark.parametrize(
    ("code", "message", "result", "error_code"),
    [
        (400, "max_tokens is too small", "inconclusive", "Invalid Argument"),
        (400, "The model `gpt` does not exist", "unavailable", "Model Not Found"),
        (401, "Incorrect API key provided", "unavailable", "Invalid API Key"),
        (402, "Insufficient balance", "unavailable", "No Credits Available"),
        (403, "expired", "unavailable", "Expired Credential"),
        (403, "Country not supported", "unavailable", "Region Restriction"),
        (404, "no such thing", "unavailable", "Model Not Found"),
        (418, "I am a teapot", "unavailable", "Unknown Error"),
        (429, "Too many requests", "limited", "Rate Limit Exceeded"),
        (429, "You exceeded your current quota", "unavailable", "No Credits Available"),
        (500, "The server had an error", "unavailable", "Model Unavailable"),
        (503, "Overloaded", "unavailable", "Model Unavailable"),
    ],
)
def test_every_status_becomes_its_class_with_the_providers_own_words(
    server: Provider, code: int, message: str, result: str, error_code: str
) -> None:
    answer = answer_to(server, error(code, message))
    assert (answer.result, answer.error_code, answer.http_status) == (result, error_code, code)
    assert message in answer.error_message


@pytest.mark.parametrize(
    ("behaviour", "error_code", "told"),
    [
        (hanging_up(), "Connection Error", "without sending a response"),
        (hanging_up_within(), "Connection Error", "closed connection"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Le"), "Connection Error", "without sending a response"),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "Invalid Response", "illegal status line"),
        (raw(bytes(range(256)) * 10), "Invalid Response", "illegal request line"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}"), "Invalid Response", "Content-Length"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "Invalid Response", "chunk"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"a" * 200_000), "Invalid Response", ""),
        (status(200, "", content_length="0"), "Invalid Response", "an empty answer"),
        (status(200, CHAT, content_length="25"), "Invalid Response", "no chatCompletion in"),
        (status(200, "OK", "text/plain"), "Invalid Response", "no chatCompletion in: OK"),
        (status(200, "<html><h1>Welcome</h1></html>", "text/html"), "Invalid Response", "Welcome"),
        (status(200, {"choices": []}), "Invalid Response", "no chatCompletion in"),
        (status(200, ["choices"]), "Invalid Response", "no chatCompletion in"),
        (status(200, "[" * 100_000), "Invalid Response", "no chatCompletion in"),
        (status(200, " " * (LARGEST_BODY + 1)), "Invalid Response", "longer than 1 MB"),
        (status(200, {"error": {"message": "rate limit"}}), "Rate Limit Exceeded", "rate limit"),
        (status(502, "<html><title>502 Bad Gateway</title></html>", "text/html"), "Model Unavailable", "Bad Gateway"),
        (status(503, "", content_length="0"), "Model Unavailable", ""),
        (status(301, "", location="/login"), "Unknown Error", ""),
    ],
)
def test_whatever_comes_instead_of_an_answer_becomes_a_class_and_never_an_exception(
    server: Provider, behaviour: Behaviour, error_code: str, told: str
) -> None:
    answer = answer_to(server, behaviour)
    assert answer.result == ("limited" if error_code == "Rate Limit Exceeded" else "unavailable")
    assert answer.error_code == error_code
    assert told in answer.error_message
    assert len(answer.error_message) <= 300
    assert "<" not in answer.error_message
    assert len(server.requests) == 1


def test_a_name_that_does_not_exist_is_a_dns_error() -> None:
    (answer,) = ask(target("http://nothing.invalid/v1"))
    assert (answer.result, answer.error_code, answer.http_status) == ("unavailable", "DNS Error", None)
    assert answer.response_time_ms is None


def test_a_closed_port_is_a_connection_error() -> None:
    (answer,) = ask(target(f"http://127.0.0.1:{free_port()}/v1"))
    assert (answer.result, answer.error_code, answer.http_status) == ("unavailable", "Connection Error", None)


def test_a_server_without_tls_behind_https_is_a_connection_error(server: Provider) -> None:
    (answer,) = ask(target(server.url().replace("http:", "https:")))
    assert (answer.result, answer.error_code) == ("unavailable", "Connection Error")
    assert server.requests == []


def test_the_key_does_not_follow_a_redirect(server: Provider) -> None:
    with provider("127.0.0.2") as other:
        server.on("gpt", status(307, "", location=other.url() + "/chat/completions"))
        (answer,) = ask(target(server.url(), api_key_env="KEY"))
        assert (answer.error_code, answer.http_status) == ("Unknown Error", 307)
        assert (len(server.requests), other.requests) == (1, [])


def test_an_answer_that_is_zipped_although_nobody_asked_is_read(server: Provider) -> None:
    assert answer_to(server, packed(gzip.compress(json.dumps(CHAT).encode()))).result == "available"


@pytest.mark.parametrize("body", [b"no gzip at all", gzip.compress(b"{}" * 1000, mtime=0)[:20]])
def test_what_cannot_be_unzipped_is_no_answer(server: Provider, body: bytes) -> None:
    answer = answer_to(server, packed(body))
    assert (answer.result, answer.error_code) == ("unavailable", "Invalid Response")


@pytest.mark.parametrize("times", [1, 2])
def test_a_small_answer_that_unzips_to_a_large_one_takes_no_memory(server: Provider, times: int) -> None:
    """One kilobyte, zipped twice, took 600 MB of the process before its deadline was looked at."""
    bomb = bytes(2**26)
    for _ in range(times):
        bomb = gzip.compress(bomb)
    behaviour = packed(bomb, ", ".join(["gzip"] * times))
    tracemalloc.start()
    try:
        answer = answer_to(server, behaviour)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.result, answer.error_code) == ("unavailable", "Invalid Response")
    assert most < 20 * 2**20


def test_an_endless_body_is_not_read_to_its_end(server: Provider) -> None:
    answer = answer_to(server, dripping(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 65_536, every=0))
    assert (answer.result, answer.error_code) == ("unavailable", "Invalid Response")
    assert "longer than 1 MB" in answer.error_message


# Deadlines


@pytest.mark.parametrize(
    "behaviour", [silent(), trickling(), endless_headers(), dripping(b"HTTP/1.1 102 Processing\r\n\r\n"), well(2)]
)
def test_the_deadline_covers_everything_up_to_the_last_byte(server: Provider, behaviour: Behaviour) -> None:
    """A time-out that begins anew with every byte let one probe hang for minutes."""
    server.on("gpt", behaviour)
    started = time.monotonic()
    (answer,) = ask(target(server.url(), timeout_seconds=DEADLINE))
    took = time.monotonic() - started
    assert (answer.result, answer.error_code) == ("unavailable", "Timeout")
    assert answer.error_message == "no complete answer within 0.3 s"
    assert DEADLINE <= took < DEADLINE + 1


def test_a_host_that_swallows_packets_is_a_timeout() -> None:
    """The listener's queue is full: connecting neither succeeds nor fails."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        (answer,) = ask(target(f"http://127.0.0.1:{port}/v1", timeout_seconds=DEADLINE))
        for one in waiting:
            one.close()
    assert (answer.result, answer.error_code) == ("unavailable", "Timeout")


def test_every_target_has_a_deadline_of_its_own(server: Provider) -> None:
    server.on("quick", well(0.4))
    server.on("patient", well(0.4))
    targets = [
        target(server.url("a"), provider="a", model="quick", timeout_seconds=0.2),
        target(server.url("b"), provider="b", model="patient", timeout_seconds=3),
    ]
    assert [answer.error_code for answer in ask(*targets)] == ["Timeout", ""]


def test_the_deadline_begins_when_a_target_has_its_turn(server: Provider) -> None:
    """Waiting for others of the same provider would have made the last of ten a time-out."""
    targets = [target(server.url(), model=f"gpt-{index}", timeout_seconds=0.5) for index in range(5)]
    for one in targets:
        server.on(one.model, well(0.15))
    assert [answer.result for answer in ask(*targets)] == ["available"] * 5


# Concurrency


def test_a_provider_is_asked_one_at_a_time_unless_more_is_allowed(server: Provider) -> None:
    targets = [
        target(server.url(name), provider=name, model=f"{name}-{index}")
        for name in ("shy", "busy")
        for index in range(6)
    ]
    for one in targets:
        server.on(one.model, well(0.1))
    answers = ask(*targets, provider_concurrency={"busy": 3})
    assert [answer.result for answer in answers] == ["available"] * 12
    assert dict(server.most) == {"shy": 1, "busy": 3}


def test_sixty_targets_are_probed_twenty_at_a_time(server: Provider) -> None:
    targets = [target(server.url(f"p{index}"), provider=f"p{index}", model=f"gpt-{index}") for index in range(60)]
    for one in targets:
        server.on(one.model, well(0.2))
    started = time.monotonic()
    answers = ask(*targets, concurrency=20)
    assert [answer.result for answer in answers] == ["available"] * 60
    assert server.most_at_all == 20
    assert time.monotonic() - started < 60 * 0.2


def test_the_limit_over_all_holds_against_a_provider_that_may_more(server: Provider) -> None:
    targets = [target(server.url(), model=f"gpt-{index}") for index in range(12)]
    for one in targets:
        server.on(one.model, well(0.1))
    ask(*targets, concurrency=4, provider_concurrency={"openai": 10})
    assert server.most_at_all == server.most["openai"] == 4


def test_a_slow_provider_does_not_hold_up_the_others(server: Provider) -> None:
    """Its models filled all places while they waited for each other."""
    slow = [target(server.url("slow"), provider="slow", model=f"slow-{index}") for index in range(2)]
    quick = [target(server.url(f"q{index}"), provider=f"q{index}", model=f"quick-{index}") for index in range(8)]
    for one in slow:
        server.on(one.model, well(0.8))
    answers = ask(*slow, *quick, concurrency=2)
    assert {answer.result for answer in answers} == {"available"}
    # One place is the slow one's: all others went through the second before its second model had its turn.
    assert set(server.models_asked()[:9]) == {"slow-0", *(one.model for one in quick)}


def test_the_answers_stand_in_the_order_of_the_targets(server: Provider) -> None:
    server.on("late", well(0.2))
    server.on("broken", error(500, "broken"))
    names = ("late", "broken", "early")
    answers = ask(*(target(server.url(name), provider=name, model=name) for name in names))
    assert [answer.result for answer in answers] == ["available", "unavailable", "available"]


def test_no_targets_are_no_answers() -> None:
    assert probe_all(Probes(ProbesFile(models=(target("http://127.0.0.1:1/v1"),)), {}), []) == []
