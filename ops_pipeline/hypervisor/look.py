"""The process that talks to hosts: `main()` in a Python of its own, started by `looking.ask_hosts`.

A call of libvirt that hangs blocks its thread in C, and no thread can be killed. So every host gets a process of its
own, forked from this one, which has imported little and runs a single thread: 50 hosts take a fork of 2 ms each
instead of a start of Python each. At its deadline a host's process is killed with whatever it started (ssh).

What belongs here: reading the request, forking, deadlines, and writing what came back. What does not: what is asked.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import pickle
import selectors
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from types import GeneratorType
from typing import IO, Any, NamedTuple

from ops_pipeline.hypervisor.explaining import explain

ITEM, RESULT, PROBLEM = "item", "result", "problem"
LENGTH = struct.Struct("!Q")
SPARE_SECONDS = 1.0
"""A host's process ends by a timer of its own so long after its deadline, should this process be gone by then."""
REAP_SECONDS = 0.5
"""So long is waited for a killed process to be gone: one that hangs inside a driver of the kernel cannot be killed."""


# No dataclasses: importing them takes longer than all of this process's own code.
class Question(NamedTuple):
    """What one host is asked: `function` (`module:name`) is called with its connection and the argument."""

    host_id: str
    uri: str
    function: str
    argument: Any
    writes: bool


class Request(NamedTuple):
    """What this process reads from its standard input."""

    questions: tuple[Question, ...]
    deadline_seconds: float
    at_once: int
    total_seconds: float = math.inf


class Returned(NamedTuple):
    """What one host's process sent, as it sent it: pickled pairs of a kind and a value; `ended` says how it ended."""

    host_id: str
    messages: tuple[bytes, ...]
    ended: str
    seconds: float


class _Child(NamedTuple):
    question: Question
    pid: int
    started: float
    received: bytearray


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
    """Ask every host, `at_once` at a time, each until its deadline, and none after the time for all is over."""
    waiting, done = deque(request.questions), []
    starter, over = os.getppid(), time.monotonic() + request.total_seconds
    with selectors.DefaultSelector() as selector:
        at_work: dict[int, _Child] = {}
        while waiting or at_work:
            # Those that are asked together have one deadline: what starting the last of them takes is not added to it.
            started = time.monotonic()
            while waiting and len(at_work) < request.at_once:
                source, child = _start(waiting.popleft(), request.deadline_seconds, started)
                at_work[source] = child
                selector.register(source, selectors.EVENT_READ)
            first = min(over, min(child.started for child in at_work.values()) + request.deadline_seconds)
            # Half a second at most: the one that started this process may be gone, and then so is the reason to ask.
            ready = selector.select(min(0.5, max(0.0, first - time.monotonic())))
            ended = {key.fd: "ended" for key, _ in ready if not _read(key.fd, at_work[key.fd])}
            now = time.monotonic()
            late = {fd: "late" for fd, child in at_work.items() if now - child.started >= request.deadline_seconds}
            if now >= over or os.getppid() != starter:
                late = dict.fromkeys(at_work, "unreached") | late
                done += [Returned(question.host_id, (), "unreached", 0.0) for question in waiting]
                waiting.clear()
            ended = late | ended
            for source in ended:
                selector.unregister(source)
            done += _finished({source: at_work.pop(source) for source in ended}, ended)
    return done


def _start(question: Question, deadline_seconds: float, started: float) -> tuple[int, _Child]:
    source, sink = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sink)
        return source, _Child(question, pid, started, bytearray())
    status = 1
    try:
        os.setpgid(0, 0)
        _let_go(sink)
        # The default action of this signal ends the process even inside C.
        signal.setitimer(signal.ITIMER_REAL, deadline_seconds + SPARE_SECONDS)
        with os.fdopen(sink, "wb") as stream:
            _answer(question, stream)
        status = 0
    finally:
        os._exit(status)


def _answer(question: Question, stream: IO[bytes]) -> None:
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
    child.received.extend(part)
    return bool(part)


def _let_go(sink: int) -> None:
    """Keep no file of the starter's open: one that cannot be killed would keep it waiting for the end of its answer."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    os.closerange(3, sink)
    os.closerange(sink + 1, os.sysconf("SC_OPEN_MAX"))


def _finished(children: Mapping[int, _Child], ended: Mapping[int, str]) -> list[Returned]:
    """Kill what is left of the processes of hosts, by the descriptor that they write to, and take what they sent."""
    for child in children.values():
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                kill(child.pid, signal.SIGKILL)
    patience = time.monotonic() + REAP_SECONDS
    done = []
    for source, child in children.items():
        status, how = _reaped(child.pid, patience), ended[source]
        # What it sent before it was killed still counts: of an apply, what was done. Something that it started and
        # that lives on may keep the pipe open, so its end is not waited for.
        os.set_blocking(source, False)
        with suppress(BlockingIOError):
            while _read(source, child):
                pass
        os.close(source)
        if how == "ended" and status is not None and os.WIFSIGNALED(status):
            how = f"signal {os.WTERMSIG(status)}"
        messages = _messages(child.received)
        done.append(Returned(child.question.host_id, messages, how, time.monotonic() - child.started))
    return done


def _reaped(pid: int, patience: float) -> int | None:
    """The exit status of a killed process; None for one that is not gone when the patience ends."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() >= patience:
            return None
        time.sleep(0.002)


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
