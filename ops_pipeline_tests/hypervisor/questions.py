"""Functions that tests ask hosts with, in the processes of the hosts.

What belongs here: functions that `ask_hosts` names. What does not: heavy imports.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from typing import Any


def names(connection: Any, _argument: object) -> list[str]:
    """The domains of a host."""
    return sorted(domain.name() for domain in connection.listAllDomains())


def given(_connection: object, argument: object) -> object:
    """The argument itself."""
    return argument


def sleep(_connection: object, seconds: float) -> str:
    """Answers late."""
    time.sleep(seconds)
    return "slept"


def in_steps(_connection: object, last_seconds: float) -> Generator[int, None, str]:
    """Two steps at once, the third one late."""
    yield 1
    yield 2
    time.sleep(last_seconds)
    yield 3
    return "all"


def with_a_child(_connection: object, file: str) -> None:
    """Starts a process of its own, as ssh is started, and hangs."""
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    with open(file, "w") as stream:  # noqa: PTH123 - as light as it gets
        stream.write(str(pid))
    time.sleep(60)


def with_an_escapee(_connection: object, seconds: float) -> str:
    """Starts a process that leaves the group with every file it has, and hangs."""
    if not os.fork():
        os.setsid()
        time.sleep(20)
        os._exit(0)
    time.sleep(seconds)
    return "answered"


def crash(_connection: object, _argument: object) -> None:
    """Ends as a bug in C does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(_connection: object, _argument: object) -> None:
    """Raises what no host is to blame for."""
    raise KeyError("surprise")


def destroy(connection: Any, name: str) -> None:
    """Changes something."""
    connection.lookupByName(name).destroy()


def chatter(_connection: object, _argument: object) -> str:
    """Prints."""
    print("noise")
    return "quiet"
