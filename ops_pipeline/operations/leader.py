"""One leader: Dagster's daemon runs under a fence, and a second one waits beside it.

Two daemons on one storage fire every schedule twice; Dagster only logs an error about it. Here each is started by a
leader that holds a fence (see `fences`): the second waits, takes over when the first dies, is stopped or is cut off,
and the first ends its daemon when it loses the lead. Who waits has its daemon ready: it has loaded its code, and begins
to work when it is handed the token of the lead.

What belongs here: the loop and the child process. What does not: how the lead is taken (see `fences`).
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.operations.fenced import FENCED
from ops_pipeline.operations.fences import BEAT_SECONDS, Fence, FileFence, Lost, PostgresFence
from ops_pipeline.settings import environment_of_leader

WAIT_SECONDS = 1.0
LONGEST_STOP_SECONDS = 30.0
Tell = Callable[[str], None]


def fence_for(home: Path, dagster_postgres_url: str) -> Fence:
    """The fence of a deployment: in Dagster's PostgreSQL if it has one, else in its home folder."""
    return PostgresFence(dagster_postgres_url) if dagster_postgres_url else FileFence(home)


def lead(make: Callable[[], Fence], command: Sequence[str], stop: threading.Event, tell: Tell) -> int:
    """Wait for the lead, run the daemon under it, and wait again when it is lost; until told to stop.

    Args:
        make: a new fence, with a token of its own.
        command: the daemon, which waits for a line with its token on standard input, and ends when that closes.
        stop: set by whoever wants it to end.
        tell: takes one line for the operator.

    Returns:
        0 when it was told to stop, else the exit status of a daemon that ended by itself.
    """
    while not stop.is_set():
        fence = make()
        ready: list[subprocess.Popen[bytes]] = []
        try:
            if not _wait_for(fence, command, ready, stop, tell):
                return 0
            if not ready or ready[-1].poll() is not None:
                ready.append(_start(command))
            tell("Leading: the daemon starts.")
            status = _run(fence, ready[-1], stop)
        except Lost as lost:
            tell(f"The lead is lost: {lost}. The daemon was ended; waiting to lead again.")
            continue
        finally:
            for daemon in ready:
                _kill(daemon)
            fence.release()
        if stop.is_set():
            return 0
        if status == FENCED:
            tell("The daemon found another one leading, and ended.")
            continue
        tell(f"The daemon ended by itself with status {status}.")
        return status or 1
    return 0


def _wait_for(
    fence: Fence, command: Sequence[str], ready: list[subprocess.Popen[bytes]], stop: threading.Event, tell: Tell
) -> bool:
    """Wait until this one leads, and make a daemon ready once another does; False when told to stop before."""
    told = ""
    while not stop.is_set():
        try:
            if fence.take():
                return True
            why = "Another daemon leads: standing by."
            # Not before: where nobody can tell who leads, it would find no storage either. And once only: one that
            # ends, for lack of memory for example, would do so again.
            if not ready:
                ready.append(_start(command))
        except DatabaseProblem as problem:
            why = f"Standing by: {problem}"
        if why != told:
            tell(why)
            told = why
        stop.wait(WAIT_SECONDS)
    return False


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    # The child watches its standard input, which closes however this process ends.
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment_of_leader())  # noqa: S603 - our own command


def _kill(daemon: subprocess.Popen[bytes]) -> None:
    """At once and hard: who took over has started already."""
    daemon.kill()
    daemon.wait()
    if daemon.stdin is not None:
        daemon.stdin.close()


def _run(fence: Fence, daemon: subprocess.Popen[bytes], stop: threading.Event) -> int:
    fence.leads_with(daemon.pid)
    if daemon.stdin is not None:
        # One that has just ended is told of by its status below.
        with contextlib.suppress(BrokenPipeError):
            daemon.stdin.write(f"{fence.token}\n".encode())
            daemon.stdin.flush()
    while True:
        try:
            return daemon.wait(BEAT_SECONDS)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                return _end(fence, daemon)
            fence.beat()


def _end(fence: Fence, daemon: subprocess.Popen[bytes]) -> int:
    """End the daemon as asked for, beating until it has."""
    daemon.send_signal(signal.SIGTERM)
    waited = 0.0
    while waited < LONGEST_STOP_SECONDS:
        try:
            return daemon.wait(BEAT_SECONDS)
        except subprocess.TimeoutExpired:
            waited += BEAT_SECONDS
            fence.beat()
    return 0


def daemon_command(workspace: Path, log_level: str, log_format: str) -> list[str]:
    """The command of the daemon's process; `log_format` is that of LOG_FORMAT."""
    module = [sys.executable, "-m", "ops_pipeline.defs.daemon", "-w", str(workspace), "--log-level", log_level]
    return [*module, "--log-format", "json" if log_format == "json" else "colored"]
