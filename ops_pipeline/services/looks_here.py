"""Looks at this machine itself: processes, commands, units of systemd, and libvirt in a process of its own.

What belongs here: checks that start or read processes. Those that go over a connection are in `looks`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ops_pipeline.services.registry import CommandCheck, LibvirtCheck, PidfileCheck, SystemdCheck
from ops_pipeline.services.states import DOWN, UNKNOWN, UP, Look
from ops_pipeline.services.systemd import PROPERTIES, look_of, properties_of, sockets_of

SHOWN_LETTERS = 300
LONGEST_OUTPUT = 1_000_000
OPEN_LIBVIRT = "import libvirt, sys; libvirt.openReadOnly(sys.argv[1]).getVersion()"


class CannotTell(Exception):
    """The checker cannot look; it says nothing about the service."""


async def look_by_pidfile(check: PidfileCheck, _variable: object) -> Look:
    """The process whose number stands in a file."""
    try:
        with check.path.open("rb") as file:
            # PostgreSQL, for one, writes more lines below its number.
            number = (file.read(100).decode("ascii", "replace").split() or [""])[0]
    except FileNotFoundError:
        return Look(DOWN, f"there is no {check.path}")
    except OSError as error:
        raise CannotTell(f"{check.path}: {error.strerror}") from None
    if re.fullmatch("[1-9][0-9]{0,8}", number) is None:
        return Look(DOWN, f"{check.path} holds no number of a process")
    try:
        status = Path(f"/proc/{number}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return _unseen(int(number), check)
    # The name stands in brackets, and may hold blanks and brackets itself.
    name, _, rest = status.partition("(")[2].rpartition(")")
    if check.process and name != check.process[:15]:
        return Look(DOWN, f"process {number} is {name}, not {check.process}")
    if rest.split()[0] == "Z":
        return Look(DOWN, f"process {number} has ended, and nobody took notice")
    return Look(UP, f"process {number} lives")


def _unseen(number: int, check: PidfileCheck) -> Look:
    try:
        os.kill(number, 0)
    except PermissionError:
        # /proc may be mounted so that it hides the processes of others.
        raise CannotTell(f"process {number} of {check.path} lives, but is hidden from this user") from None
    except ProcessLookupError:
        pass
    return Look(DOWN, f"process {number} of {check.path} is gone")


async def look_by_command(check: CommandCheck, _variable: object) -> Look:
    """The exit status of a command."""
    status, output = await _run(check.command)
    if status in check.ok:
        return Look(UP, words_of(output) or f"exit status {status}")
    return Look(UNKNOWN if status in check.unknown else DOWN, f"exit status {status}: {words_of(output)}")


async def look_by_libvirt(check: LibvirtCheck, _variable: object) -> Look:
    """A connection to a hypervisor."""
    # In a process of its own: a call of libvirt that hangs cannot be interrupted.
    status, output = await _run((sys.executable, "-c", OPEN_LIBVIRT, check.uri))
    if status == 0:
        return Look(UP, "takes connections")
    last = (output.strip().splitlines() or ["no message"])[-1]
    if "ModuleNotFoundError" in last:
        raise CannotTell("libvirt-python is not installed: pip install ops-pipeline[hypervisor]")
    if any(words in last for words in ("Permission denied", "authentication ", "access denied")):
        raise CannotTell(words_of(last))
    return Look(DOWN, words_of(last))


async def look_by_systemd(check: SystemdCheck, _variable: object) -> Look:
    """A unit of systemd, and the sockets that wake it."""
    properties = await _show(check.unit)
    listens = False
    if properties.get("ActiveState") == "inactive":
        for unit in sockets_of(properties):
            listens = listens or (await _show(unit)).get("ActiveState") == "active"
    return look_of(check.unit, properties, socket_listens=listens)


async def _show(unit: str) -> dict[str, str]:
    status, output = await _run(("systemctl", "show", unit, f"--property={','.join(PROPERTIES)}"))
    if status:
        raise CannotTell(f"systemctl: {words_of(output)}")
    return properties_of(output)


async def _run(command: Sequence[str]) -> tuple[int, str]:
    """Exit status and output of a command; what it started is ended with it, at the deadline at the latest."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise CannotTell(f"there is no command {command[0]}") from None
    except (OSError, ValueError) as error:
        raise CannotTell(f"{command[0]}: {getattr(error, 'strerror', None) or error}") from None
    try:
        output = await _drained(process.stdout)
        status = await process.wait()
    finally:
        # Nobody is left when it has ended already.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # Before the wait: a daemon in a session of its own holds the pipe open, and a full one never ends.
        process._transport.close()  # ty: ignore[missing-attribute]
        await process.wait()
    return status, output


async def _drained(stream: asyncio.StreamReader | None) -> str:
    """The beginning of what a command says; the rest is read too, or it would never end."""
    kept = bytearray()
    while stream is not None and (piece := await stream.read(65_536)):
        kept += piece[: LONGEST_OUTPUT - len(kept)]
    return kept.decode("utf-8", "replace")


def words_of(text: object) -> str:
    """A text on one line, and cut."""
    return " ".join(str(text).split())[:SHOWN_LETTERS]
