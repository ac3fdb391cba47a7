"""Restarting a service: through systemd, supervisord or a command.

What belongs here: the doing. Whether it may be done is decided in `recovery`.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.parsers.expat import ExpatError

from pydantic import SecretStr

from ops_pipeline.services.registry import CommandAction, Registry, Service, SupervisorAction, SystemdAction
from ops_pipeline.settings import SettingsError

SHOWN_LETTERS = 2_000
KEPT_BYTES = SHOWN_LETTERS * 8
SHORTEST_SECRET = 3
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Done:
    """What an action came to: whether it succeeded, what it said, and how long it took."""

    ok: bool
    output: str
    duration_seconds: float


def restart(service: Service, secrets: Iterable[str] = ()) -> Done:
    """Carry out a service's action; whatever goes wrong is told in its output.

    Args:
        service: one with an action.
        secrets: texts that must not be shown.
    """
    started = time.perf_counter()
    action = service.action
    if isinstance(action, SupervisorAction):
        ok, output = _supervisor(action, service.action_timeout_seconds)
    elif isinstance(action, SystemdAction):
        ok, output = _run(("systemctl", "restart", action.unit), service.action_timeout_seconds)
    elif isinstance(action, CommandAction):
        ok, output = _run(action.command, service.action_timeout_seconds)
    else:
        ok, output = False, "it has no action"
    return Done(ok, without(output, secrets), time.perf_counter() - started)


def without(text: str, secrets: Iterable[str]) -> str:
    """A text cut, and without secrets: those given, and passwords in URLs."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    # A password with an @ that should have been written as %40 ends at the last one.
    text = re.sub(r"(://[^/\s:@]*):[^/\s]+@", r"\1:***@", text)
    return re.sub(r"(?i)(password=)[^\s&]+", r"\1***", text)[:SHOWN_LETTERS]


def secrets_of(registry: Registry, variable: Callable[[str], SecretStr | None]) -> list[str]:
    """The URLs that checks are made with, and the passwords in them, which may be shown by themselves too."""
    names = {name for one in registry.services if (name := getattr(one.check, "url_env", None))}
    found: set[str] = set()
    for value in filter(None, (_known(variable, name) for name in names)):
        url = value.get_secret_value()
        found.add(url)
        with suppress(ValueError):
            parts = urlsplit(url)
            passwords = [parts.password or "", *parse_qs(parts.query).get("password", [])]
            found.update(form for one in passwords for form in (one, unquote(one)))
    return [one for one in found if len(one) >= SHORTEST_SECRET]


def _known(variable: Callable[[str], SecretStr | None], name: str) -> SecretStr | None:
    try:
        return variable(name)
    except SettingsError:
        # The look tells that its file cannot be used; here there is nothing to remove.
        return None


def _run(command: Iterable[str], seconds: float) -> tuple[bool, str]:
    # Into a file: a daemon that the command leaves behind would hold a pipe open, and never be waited out.
    try:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(  # noqa: S603 - the operator's own command
                list(command), stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
            failure, output = _waited(process, said, seconds)
    except (OSError, ValueError) as error:
        return False, f"{getattr(error, 'filename', None) or 'a restart'}: {getattr(error, 'strerror', None) or error}"
    return not failure, f"{failure}{output}"


def _waited(process: subprocess.Popen[bytes], said: IO[bytes], seconds: float) -> tuple[str, str]:
    """Why a command failed, and the beginning of what it said."""
    kept = b""
    deadline = time.monotonic() + seconds
    while True:
        try:
            status = process.wait(timeout=max(0.0, min(PAUSE_SECONDS, deadline - time.monotonic())))
            failure = f"exit status {status}: " if status else ""
            break
        except subprocess.TimeoutExpired:
            kept = _kept(said, kept)
        if time.monotonic() >= deadline:
            # With all that it started: a command that hangs would hold the run for ever.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            failure = f"ended after {seconds:g} s: "
            break
    return failure, _kept(said, kept).decode("utf-8", "replace").strip()


def _kept(said: IO[bytes], kept: bytes) -> bytes:
    """The beginning of a file; once there is enough of it, the file is emptied, or it could fill the disk."""
    if len(kept) < KEPT_BYTES:
        kept = os.pread(said.fileno(), KEPT_BYTES, 0)
    if len(kept) >= KEPT_BYTES:
        # What the command writes next stands behind a hole, which takes no space.
        os.ftruncate(said.fileno(), 0)
    return kept


class _Transport(xmlrpc.client.Transport):
    """HTTP with a deadline, which the standard one has not."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        """Connect."""
        connection = super().make_connection(host)  # ty: ignore[invalid-argument-type]
        connection.timeout = self._seconds
        return connection


def _supervisor(action: SupervisorAction, seconds: float) -> tuple[bool, str]:
    server = xmlrpc.client.ServerProxy(action.url, transport=_Transport(seconds))
    try:
        try:
            server.supervisor.stopProcess(action.program, True)
        except xmlrpc.client.Fault as fault:
            # 70 is NOT_RUNNING, which is what a program that died is.
            if fault.faultCode != 70:
                raise
        server.supervisor.startProcess(action.program, True)
    except xmlrpc.client.Fault as fault:
        return False, f"supervisord: {fault.faultString}"
    except (OSError, ValueError, ExpatError, xmlrpc.client.Error, http.client.HTTPException) as error:
        return False, f"supervisord: {error}"
    return True, f"supervisord restarted {action.program}"
