"""A door to a Redis behind which texts under `checkpoint:` are RedisJSON documents, and can be searched.

What belongs here: as much of RedisJSON and RediSearch as LangGraph's savers ask for, where no server has them.
"""

from __future__ import annotations

import json
import re
import socket
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ops_pipeline_tests.checkpoints.redis_servers import RedisServer, keys_under

STRINGS_ONLY = {b"TYPE", b"GET", b"GETRANGE"}
TAG = re.compile(r"@(\w+):\{((?:[^\\}]|\\.)*)\}")
"""What a document must hold, in RediSearch's language: `@thread_id:{user\\-1}`."""


class _AsDocuments(socketserver.StreamRequestHandler):
    """One connection: documents are answered as RedisJSON and RediSearch do, all else by the Redis behind."""

    server: _DocumentServer

    def handle(self) -> None:
        """Answer command by command, as long as the client is there."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.server.behind.socket_path))
            self.line, self.replies = line, line.makefile("rb")
            while parts := self._command():
                name, key = parts[0].upper(), parts[1] if len(parts) > 1 else b""
                if name.startswith(b"FT."):
                    reply = self._index(name, parts[1:])
                elif name.startswith(b"JSON.") or (key.startswith(b"checkpoint:") and name in STRINGS_ONLY):
                    # A checkpoint and the sign that it has writes come on two connections: each is one step in Redis.
                    with self.server.turn:
                        reply = self._document(name, key, parts[2:])
                else:
                    reply = self._ask(*parts)
                self.wfile.write(reply)

    def _ask(self, *parts: bytes) -> bytes:
        """The answer of the Redis behind."""
        self.line.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(one), one) for one in parts))
        return _reply(self.replies)

    def _command(self) -> list[bytes]:
        head = self.rfile.readline()
        parts = []
        for _ in range(int(head[1:]) if head else 0):
            length = int(self.rfile.readline()[1:])
            parts.append(self.rfile.read(length + 2)[:-2])
        return parts

    def _index(self, name: bytes, arguments: Sequence[bytes]) -> bytes:
        prefixes = self.server.prefixes
        if name == b"FT.CREATE":
            prefixes[arguments[0]] = arguments[arguments.index(b"PREFIX") + 2].decode()
            return b"+OK\r\n"
        if name != b"FT.SEARCH" or arguments[0] not in prefixes:
            return b"-Unknown index name\r\n"
        query, options = arguments[1].decode(), [one.decode() for one in arguments[2:]]
        tags = {field: re.sub(r"\\(.)", r"\1", value) for field, value in TAG.findall(query)}
        assert tags or query == "*", f"this index has tags only: {query}"
        with self.server.behind.client() as client:
            keys = keys_under(client, prefixes[arguments[0]])
            found = [(key, json.loads(text)) for key in keys if (text := client.get(key))]
        found = [one for one in found if all(str(one[1].get(field)) == value for field, value in tags.items())]
        if "SORTBY" in options:
            field, order = options[options.index("SORTBY") + 1 :][:2]
            found.sort(key=lambda one: one[1].get(field), reverse=order == "DESC")
        start = options.index("RETURN") + 2
        fields = options[start : start + int(options[start - 1])]
        rows: list[Any] = [len(found)]
        for key, value in found[: int(options[options.index("LIMIT") + 2])]:
            held = {field: _at(value, field.removeprefix("$.").split(".")) for field in fields}
            rows += [key, [text for field, values in held.items() if values for text in (field, _as_text(values[0]))]]
        return _encoded(rows)

    def _document(self, name: bytes, key: bytes, arguments: Sequence[bytes]) -> bytes:
        reply = self._ask(b"GET", key)
        text = None if reply.startswith(b"$-1") else reply.partition(b"\r\n")[2][:-2]
        if name == b"TYPE":
            return b"+none\r\n" if text is None else b"+ReJSON-RL\r\n"
        if name in {b"JSON.SET", b"JSON.MERGE"}:
            value = json.loads(arguments[1])
            if text is not None and (name, arguments[0]) != (b"JSON.SET", b"$"):
                field = arguments[0].decode().removeprefix("$").removeprefix(".")
                value = json.loads(text) | ({field: value} if field else value)
            return self._ask(b"SET", key, json.dumps(value).encode())
        if name != b"JSON.GET":
            return b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
        paths = [one.decode() for one in arguments]
        if text is not None and paths not in ([], ["."]):
            found = {path: _at(json.loads(text), path.split(".")[1:]) for path in paths}
            text = json.dumps(found if len(found) > 1 else found[paths[0]]).encode()
        return b"$-1\r\n" if text is None else b"$%d\r\n%s\r\n" % (len(text), text)


class _DocumentServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    behind: RedisServer
    prefixes: dict[bytes, str]
    turn: threading.Lock


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _encoded(value: int | bytes | str | list[Any]) -> bytes:
    """A reply in the words of Redis."""
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(_encoded, value))
    if isinstance(value, int):
        return b":%d\r\n" % value
    text = value if isinstance(value, bytes) else value.encode()
    return b"$%d\r\n%s\r\n" % (len(text), text)


def _at(value: Any, path: Sequence[str]) -> list[Any]:
    """What lies at a path of a document: a list, as RedisJSON answers."""
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return []
        value = value[name]
    return [value]


def _reply(replies: Any) -> bytes:
    """One whole reply of a Redis, as it came."""
    line = replies.readline()
    kind, count = line[:1], line[1:-2]
    if kind in b"$=" and int(count) >= 0:
        return line + replies.read(int(count) + 2)
    inner = int(count) * (2 if kind == b"%" else 1) if kind in b"*~%>" else 0
    return line + b"".join(_reply(replies) for _ in range(inner))


@contextmanager
def with_documents(server: RedisServer) -> Iterator[str]:
    """The URL of a door to a Redis behind which texts under `checkpoint:` are RedisJSON documents."""
    with _DocumentServer(("127.0.0.1", 0), _AsDocuments) as door:
        door.behind, door.prefixes, door.turn = server, {}, threading.Lock()
        worker = threading.Thread(target=door.serve_forever, args=(0.02,))
        worker.start()
        try:
            yield f"redis://127.0.0.1:{door.server_address[1]}/0"
        finally:
            door.shutdown()
            worker.join()
