"""A provider for tests: a real HTTP server on loopback that answers like OpenAI, or fails in every way that one can.

What belongs here: serving, counting, and the ways to fail. What does not: anything that a probe makes of it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JSON = "application/json"
CHAT = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9},
}
EMBEDDING = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
    "usage": {"prompt_tokens": 1, "total_tokens": 1},
}
IMAGE = {"created": 1, "data": [{"url": "https://images.invalid/1.png"}]}
ANSWERS: Mapping[str, Any] = {"chat/completions": CHAT, "embeddings": EMBEDDING, "images/generations": IMAGE}


@dataclass(frozen=True)
class Request:
    """One request as it came: the provider is the first part of its path."""

    provider: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    at: float


class Exchange(BaseHTTPRequestHandler):
    """One request and the chance to answer it."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        """Count the request, and let the behaviour of its model answer."""
        self.close_connection = True
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, provider, path = self.path.split("/", 2)
        headers = {name.lower(): value for name, value in self.headers.items()}
        behaviour = self.server.owner.begin(Request(provider, f"/{path}", headers, body, time.monotonic()))
        # A probe that ran into its deadline is not there any more.
        with suppress(ConnectionError):
            behaviour(self)
            self.wfile.flush()
        self.server.owner.end(provider)

    def default(self) -> bytes:
        """What a healthy model answers to this path."""
        return json.dumps(ANSWERS[self.path.split("/v1/", 1)[1]]).encode()

    def answer(self, status: int, body: bytes, content_type: str = JSON, **headers: str) -> None:
        """Send a whole answer; a header `content_length` replaces the true one."""
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        named = {"Content-Type": content_type, "Content-Length": str(len(body)), "Connection": "close"} | named
        lines = [f"HTTP/1.1 {status} whatever", *(f"{name}: {value}" for name, value in named.items())]
        self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def wait(self, seconds: float) -> None:
        """Wait, unless the server is to stop."""
        self.server.owner.stopping.wait(seconds)

    def drip(self, piece: bytes, every: float) -> None:
        """Send the same piece for as long as anybody listens."""
        while not self.server.owner.stopping.is_set():
            self.wfile.write(piece)
            self.wfile.flush()
            self.wait(every)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing to stderr."""


Behaviour = Callable[[Exchange], None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: Provider

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A probe that ran into its deadline is not there any more; anything else is a mistake of a test.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Provider:
    """A running server; several providers may live in it, told apart by the first part of the path."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        """Start to serve on a free port."""
        self.host = host
        self.requests: list[Request] = []
        self.most: Counter[str] = Counter()
        self.most_at_all = 0
        self.stopping = threading.Event()
        self._now: Counter[str] = Counter()
        self._scripts: dict[str, list[Behaviour]] = defaultdict(list)
        self._lock = threading.Lock()
        self._server = _Server((host, 0), Exchange)
        self._server.owner = self
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def url(self, provider: str = "openai") -> str:
        """The base URL of one of its providers."""
        return f"http://{self.host}:{self.port}/{provider}/v1"

    def on(self, model: str, *behaviours: Behaviour) -> None:
        """How a model answers from now on: one after the other, and the last one for ever."""
        with self._lock:
            self._scripts[model] = list(behaviours)

    def models_asked(self) -> list[str]:
        """The model of every request so far, in order."""
        return [request.body["model"] for request in self.requests]

    def begin(self, request: Request) -> Behaviour:
        """Count a request that begins, and say how to answer it."""
        with self._lock:
            self.requests.append(request)
            self._now[request.provider] += 1
            self.most[request.provider] = max(self.most[request.provider], self._now[request.provider])
            self.most_at_all = max(self.most_at_all, self._now.total())
            script = self._scripts[request.body["model"]]
            if len(script) > 1:
                return script.pop(0)
            return script[0] if script else well()

    def end(self, provider: str) -> None:
        """Count a request that has ended."""
        with self._lock:
            self._now[provider] -= 1

    def stop(self) -> None:
        """End it: from now on its port is closed."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def provider(host: str = "127.0.0.1") -> Iterator[Provider]:
    """A running provider; every address 127.x.y.z is this machine."""
    running = Provider(host)
    try:
        yield running
    finally:
        if not running.stopping.is_set():
            running.stop()


# Ways to answer


def well(delay: float = 0) -> Behaviour:
    """As a healthy model does, after so many seconds."""

    def behave(exchange: Exchange) -> None:
        exchange.wait(delay)
        exchange.answer(200, exchange.default())

    return behave


def status(code: int, body: Any = None, content_type: str = JSON, **headers: str) -> Behaviour:
    """With a status and a body: text as it is, anything else as JSON."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return lambda exchange: exchange.answer(code, content, content_type, **headers)


def error(code: int, message: str, type_: str = "some_error") -> Behaviour:
    """With an error in OpenAI's form."""
    return status(code, {"error": {"message": message, "type": type_, "param": None, "code": None}})


def raw(answer: bytes) -> Behaviour:
    """With these bytes, HTTP or not, and the end of the connection."""
    return lambda exchange: _ignore(exchange.wfile.write(answer))


def dripping(piece: bytes, every: float = 0.02) -> Behaviour:
    """With the same bytes over and over."""
    return lambda exchange: exchange.drip(piece, every)


def trickling() -> Behaviour:
    """At once, but with a body that comes byte by byte and never ends."""

    def behave(exchange: Exchange) -> None:
        exchange.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        exchange.drip(b" ", 0.02)

    return behave


def endless_headers() -> Behaviour:
    """With one header after the other."""

    def behave(exchange: Exchange) -> None:
        exchange.wfile.write(b"HTTP/1.1 200 OK\r\n")
        exchange.drip(b"X-More: and more\r\n", 0.02)

    return behave


def silent() -> Behaviour:
    """Not at all."""
    return lambda exchange: exchange.wait(60)


def hanging_up() -> Behaviour:
    """By closing the connection before the first byte."""
    return lambda exchange: None


def hanging_up_within() -> Behaviour:
    """By closing the connection in the middle of a healthy answer."""

    def behave(exchange: Exchange) -> None:
        body = exchange.default()
        exchange.answer(200, body[: len(body) // 2], content_length=str(len(body)))

    return behave


def packed(body: bytes, encoding: str = "gzip") -> Behaviour:
    """With a body that is said to be compressed, whatever was asked for."""
    return lambda exchange: exchange.answer(200, body, content_encoding=encoding)


def _ignore(_: object) -> None:
    """Forget a result, where nothing may be returned."""
