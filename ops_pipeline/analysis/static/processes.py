"""Running a tool as a process that is held within limits, and ends with whoever waits for it.

What belongs here: starting, limiting and ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PIECE = 65_536
LONGEST_COMPLAINT = 500


class ToolFailed(Exception):
    """A tool gave no output that can be used; the message says why."""


@dataclass(frozen=True)
class Limits:
    """What one process may take.

    Attributes:
        seconds: of time, in all.
        memory: bytes of address space.
        output: bytes of output, and of any file that it writes.
    """

    seconds: float = 300.0
    memory: int = 4 * 2**30
    output: int = 64 * 2**20


async def run_tool(command: Sequence[str], folder: Path, limits: Limits) -> bytes:
    """Run a command in a folder; what it writes to its standard output.

    Raises:
        ToolFailed: it cannot be started, ends with a status other than 0, or exceeds a limit.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Nothing of this service's environment, which may hold secrets.
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )
    except OSError as error:
        raise ToolFailed(f"cannot be started: {error.strerror}") from error
    try:
        _limit(process.pid, limits)
        async with asyncio.timeout(limits.seconds):
            output, complaint = await _drain(process, limits)
            status = await process.wait()
    except TimeoutError:
        raise ToolFailed(f"took longer than {limits.seconds:g} s") from None
    finally:
        await _end(process)
    if status:
        told = complaint.decode("utf-8", "replace").strip()[-LONGEST_COMPLAINT:]
        by = f"signal {-status}" if status < 0 else f"exit status {status}"
        raise ToolFailed(f"ended with {by}: {told or 'it said nothing'}")
    return output


async def _drain(process: asyncio.subprocess.Process, limits: Limits) -> tuple[bytes, bytes]:
    complaint = asyncio.ensure_future(_read(process.stderr, limits.output, keep=PIECE))
    try:
        output = await _read(process.stdout, limits.output, keep=limits.output)
        return output, await complaint
    finally:
        complaint.cancel()


async def _read(stream: asyncio.StreamReader | None, most: int, keep: int) -> bytes:
    kept, seen = bytearray(), 0
    while stream is not None and (piece := await stream.read(PIECE)):
        seen += len(piece)
        if seen > most:
            raise ToolFailed(f"wrote more than {most // 2**20} MiB")
        kept += piece[: keep - len(kept)]
    return bytes(kept)


def _limit(pid: int, limits: Limits) -> None:
    # From outside: code between fork and exec may hang where there are threads. Gone already is fine too.
    with contextlib.suppress(ProcessLookupError):
        for kind, most in (
            (resource.RLIMIT_AS, limits.memory),
            (resource.RLIMIT_CPU, int(limits.seconds) + 1),
            (resource.RLIMIT_FSIZE, limits.output),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.prlimit(pid, kind, (most, most))


async def _end(process: asyncio.subprocess.Process) -> None:
    """End what is left of a process and of all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
