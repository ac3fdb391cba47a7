"""The process that talks to hosts: `main()` in a Python of its own, started by `looking.ask_hosts`.

A call of libvirt that hangs blocks its thread in C, and no thread can be killed. So every host gets a process of its
own, forked from this one, which has imported little and runs a single thread: 50 hosts take a fork of 2 ms each
instead of a start of Python each. At its deadline a host's process is killed with whatever it started (ssh).

What belongs here: reading the request, forking, deadlines, and writing what came back. What does not: what is asked.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import selectors
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from types import GeneratorType
from typing import IO, Any

ITEM, RESULT, PROBLEM = "item", "result", "problem"
LENGTH = struct.Struct("!Q")
SPARE_SECONDS = 1.0
"""A host's process ends by a timer of its own so long after its deadline, should this process be gone by then."""


@dataclass(frozen=True)
class Question:
    """What one host is asked: `function` (`module:name`) is called with its connection and the argument."""

    host_id: str
    uri: str
    function: str
    argument: Any
    writes: bool


@dataclass(frozen=True)
class Request:
    """What this process reads from its standard input."""

    questions: tuple[Question, ...]
    deadline_seconds: float
    at_once: int


@dataclass(frozen=True)
class Returned:
    """What one host's process sent, as it sent it: pickled pairs of a kind and a value; `ended` says how it ended."""

    host_id: str
    messages: tuple[bytes, ...]
    ended: str
    seconds: float


@dataclass
class _Child:
    question: Question
    pid: int
    started: float
    received: bytearray = field(default_factory=bytearray)


def main() -> None:
    """Answer one request, and end."""
    # It lives for seconds: looking for cycles among 10,000 domains costs a fifth of the time of listing them.
    gc.disable()
    # Whatever a library prints must not end up in the answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request: Request = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by the process that started this one
    load_libvirt()
    for function in {question.function for question in request.questions}:
        resolve(function)
    with answers:
        pickle.dump(returned(request), answers)


def load_libvirt() -> Any:
    """libvirt, which prints nothing: its errors are raised.

    Raises:
        ModuleNotFoundError: libvirt-python is not installed.
    """
    libvirt = importlib.import_module("libvirt")
    libvirt.registerErrorHandler(_ignore, None)
    return libvirt


def _ignore(_context: object, _error: object) -> None:
    return


def resolve(function: str) -> Callable[[Any, Any], Any]:
    """The function of a name `module:function`."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def returned(request: Request) -> list[Returned]:
    """Ask every host, `at_once` at a time, each until its deadline."""
    waiting, done = deque(request.questions), []
    starter = os.getppid()
    with selectors.DefaultSelector() as selector:
        at_work: dict[int, _Child] = {}
        while waiting or at_work:
            while waiting and len(at_work) < request.at_once:
                source, child = _start(waiting.popleft(), request.deadline_seconds)
                at_work[source] = child
                selector.register(source, selectors.EVENT_READ)
            first = min(child.started for child in at_work.values()) + request.deadline_seconds
            # Half a second at most: the one that started this process may be gone, and then so is the reason to ask.
            ready = selector.select(min(0.5, max(0.0, first - time.monotonic())))
            ended = {key.fd: "ended" for key, _ in ready if not _read(key.fd, at_work[key.fd])}
            now = time.monotonic()
            late = [fd for fd, child in at_work.items() if now - child.started >= request.deadline_seconds]
            if os.getppid() != starter:
                late = list(at_work)
                waiting.clear()
            ended |= {fd: "late" for fd in late if fd not in ended}
            for source, how in ended.items():
                selector.unregister(source)
                done.append(_finished(source, at_work.pop(source), how))
    return done


def _start(question: Question, deadline_seconds: float) -> tuple[int, _Child]:
    source, sink = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sink)
        return source, _Child(question, pid, time.monotonic())
    status = 1
    try:
        os.setpgid(0, 0)
        # The default action of this signal ends the process even inside C.
        signal.setitimer(signal.ITIMER_REAL, deadline_seconds + SPARE_SECONDS)
        with os.fdopen(sink, "wb") as stream:
            _answer(question, stream)
        status = 0
    finally:
        os._exit(status)


def _answer(question: Question, stream: IO[bytes]) -> None:
    from ops_pipeline.hypervisor.explaining import explain  # noqa: PLC0415 - only here, after libvirt was found

    try:
        _send(stream, RESULT, _called(question, stream))
    except Exception as error:  # noqa: BLE001 - told to whoever asked, as the reason why there are no facts
        _send(stream, PROBLEM, explain(error, question.uri))


def _called(question: Question, stream: IO[bytes]) -> Any:
    libvirt = importlib.import_module("libvirt")
    connection = (libvirt.open if question.writes else libvirt.openReadOnly)(question.uri)
    answer = resolve(question.function)(connection, question.argument)
    return _drained(answer, stream) if isinstance(answer, GeneratorType) else answer


def _drained(items: Generator[Any, None, Any], stream: IO[bytes]) -> Any:
    while True:
        try:
            _send(stream, ITEM, next(items))
        except StopIteration as stop:
            return stop.value


def _send(stream: IO[bytes], kind: str, value: Any) -> None:
    message = pickle.dumps((kind, value), pickle.HIGHEST_PROTOCOL)
    stream.write(LENGTH.pack(len(message)) + message)
    stream.flush()


def _read(source: int, child: _Child) -> bool:
    """Take what is there; False at the end."""
    part = os.read(source, 1 << 20)
    child.received += part
    return bool(part)


def _finished(source: int, child: _Child, how: str) -> Returned:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    _, status = os.waitpid(child.pid, 0)
    # What it sent before it was killed still counts: of an apply, what was done.
    while _read(source, child):
        pass
    os.close(source)
    if how == "ended" and os.WIFSIGNALED(status):
        how = f"signal {os.WTERMSIG(status)}"
    return Returned(child.question.host_id, _messages(child.received), how, time.monotonic() - child.started)


def _messages(received: bytearray) -> tuple[bytes, ...]:
    messages, start = [], 0
    while len(received) >= start + LENGTH.size:
        (length,) = LENGTH.unpack_from(received, start)
        start += LENGTH.size
        if len(received) < start + length:
            break
        messages.append(bytes(received[start : start + length]))
        start += length
    return tuple(messages)
