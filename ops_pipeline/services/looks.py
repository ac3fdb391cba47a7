"""Looking at services: every kind of check, each with its deadline, all at the same time.

What belongs here: the checks. A service that does not answer in time is down; a checker that cannot tell (no
permission, no systemctl, no resolver) says `unknown`, which leads to nothing.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any

import httpx
import psycopg
import redis.asyncio
import websockets
from pydantic import SecretStr
from redis.exceptions import AuthenticationError, BusyLoadingError, NoPermissionError, RedisError
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from websockets.asyncio.client import connect as connect_websocket

from ops_pipeline.services.actions import secrets_of, without
from ops_pipeline.services.looks_here import (
    CannotTell,
    look_by_command,
    look_by_libvirt,
    look_by_pidfile,
    look_by_systemd,
    words_of,
)
from ops_pipeline.services.registry import (
    CommandCheck,
    HttpCheck,
    LibvirtCheck,
    PidfileCheck,
    PostgresqlCheck,
    RedisCheck,
    Registry,
    Service,
    SystemdCheck,
    TcpCheck,
    WebSocketCheck,
)
from ops_pipeline.services.states import DEGRADED, DOWN, STARTING, UNKNOWN, UP, Look
from ops_pipeline.settings import SettingsError

Variable = Callable[[str], SecretStr | None]
CANNOT_TELL = {
    *(errno.EACCES, errno.EPERM, errno.ENETUNREACH, errno.EADDRNOTAVAIL),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN),
}
UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
"""What OpenSSL says of a certificate whose authority is not known here; an expired one is the service's own fault."""
LONGEST_ANSWER = 1_000_000
NO_ACCESS = ("authentication", "pg_hba", "no password", "permission denied", "not permitted", "does not exist")
"""What PostgreSQL says to those whom it does not let in: it is well, and whoever looks cannot tell more."""
NO_NAME = "the host's name is not known here"


def look_at_all(registry: Registry, variable: Variable, only: Sequence[Service] = ()) -> dict[str, Look]:
    """Look at services.

    Args:
        registry: the services, and how many are looked at at a time.
        variable: the value of an environment variable; None when it is not set.
        only: these services; all when empty.
    """
    secrets = secrets_of(registry, variable)
    with asyncio.Runner(loop_factory=_Loop) as runner:
        looks = runner.run(_look_at_all(registry, variable, only or registry.services))
    # A page, or the output of a command, may show what it was asked with.
    return {name: replace(look, reason=without(look.reason, secrets)) for name, look in looks.items()}


_RESOLVING: ContextVar[list[object] | None] = ContextVar("resolving", default=None)


class _Loop(asyncio.SelectorEventLoop):
    """Asks the resolver in threads that nobody waits for.

    In the usual pool a resolver that hangs holds up the names of other services, and the end of the look.
    """

    async def getaddrinfo(self, host: Any, port: Any, **hints: Any) -> list[Any]:
        found: asyncio.Future[list[Any]] = self.create_future()

        def settle(answer: list[Any] | None, error: Exception | None) -> None:
            if found.done():
                return
            if error is None:
                found.set_result(answer or [])
            else:
                found.set_exception(error)

        def resolve() -> None:
            answer, problem = None, None
            try:
                answer = socket.getaddrinfo(host, port, **hints)
            except Exception as error:  # noqa: BLE001 - told to whoever waits
                problem = error
            # Nobody waits any more when the loop is closed.
            with suppress(RuntimeError):
                self.call_soon_threadsafe(settle, answer, problem)

        waiting = _RESOLVING.get()
        if waiting is not None:
            waiting.append(host)
        threading.Thread(target=resolve, daemon=True).start()
        answer = await found
        if waiting:
            waiting.pop()
        return answer


async def _look_at_all(registry: Registry, variable: Variable, services: Sequence[Service]) -> dict[str, Look]:
    at_once = asyncio.Semaphore(registry.concurrency)

    async def in_turn(service: Service) -> Look:
        async with at_once:
            return await look_at(service, variable)

    looks = await asyncio.gather(*(in_turn(service) for service in services))
    return {service.name: look for service, look in zip(services, looks, strict=True)}


async def look_at(service: Service, variable: Variable) -> Look:
    """Look at one service, within its deadline; whatever goes wrong is a look too."""
    check = service.check
    started = time.perf_counter()
    resolving: list[object] = []
    _RESOLVING.set(resolving)
    try:
        async with asyncio.timeout(service.timeout_seconds):
            look = await _KINDS[type(check)](check, variable)
    except TimeoutError:
        # A checker that hangs tells nothing; a service that does is down for whoever needs it.
        if resolving:
            return Look(UNKNOWN, f"the resolver does not answer within {service.timeout_seconds:g} s")
        ours = isinstance(check, SystemdCheck | CommandCheck | LibvirtCheck | PidfileCheck)
        return Look(UNKNOWN if ours else DOWN, f"no answer within {service.timeout_seconds:g} s")
    except CannotTell as error:
        return Look(UNKNOWN, str(error))
    except OSError as error:
        return _judged(error)
    except Exception as error:  # noqa: BLE001 - one check that cannot be made must not end all the others
        return Look(UNKNOWN, words_of(f"cannot be looked at: {type(error).__name__}: {error}"))
    return replace(look, latency_ms=(time.perf_counter() - started) * 1000)


async def _tcp(check: TcpCheck, _variable: Variable) -> Look:
    _, writer = await asyncio.open_connection(check.host, check.port)
    writer.close()
    return Look(UP, f"{check.host}:{check.port} takes connections")


async def _http(check: HttpCheck, _variable: Variable) -> Look:
    # The service itself is asked, whatever proxy is set; look_at() has the deadline.
    secure = check.url.startswith("https")
    try:
        async with (
            httpx.AsyncClient(timeout=None, trust_env=False, verify=_trusted() if secure else False) as client,  # noqa: S113
            client.stream("GET", check.url, headers={"Accept-Encoding": "identity"}) as answer,
        ):
            text = await _beginning(answer.aiter_raw())
    except httpx.HTTPError as error:
        return _judged(error)
    if answer.status_code not in check.status:
        return Look(DOWN, f"status {answer.status_code}: {words_of(text)}")
    if check.contains and check.contains not in text:
        return Look(DEGRADED, f"the page does not hold {check.contains!r}")
    return Look(UP, f"status {answer.status_code}")


@cache
def _trusted() -> ssl.SSLContext:
    """The known authorities; reading them takes longer than a whole look."""
    return httpx.create_ssl_context()


async def _beginning(pieces: AsyncIterator[bytes]) -> str:
    """The beginning of a page, which may be endless."""
    kept = bytearray()
    async for piece in pieces:
        kept += piece
        if len(kept) >= LONGEST_ANSWER:
            break
    return kept[:LONGEST_ANSWER].decode("utf-8", "replace")


async def _postgresql(check: PostgresqlCheck, variable: Variable) -> Look:
    try:
        url = make_url(_value(variable, check.url_env)).set(drivername="postgresql")
    except (ArgumentError, ValueError):
        # Its own text may hold a part of the password.
        raise CannotTell(f"{check.url_env} holds no URL of a PostgreSQL") from None
    try:
        connection = await psycopg.AsyncConnection.connect(url.render_as_string(hide_password=False))
        query = asyncio.ensure_future(connection.execute("SELECT 1"))
        try:
            await asyncio.shield(query)
        finally:
            # Closed first: psycopg asks the server to cancel, and waits for that long after the deadline.
            connection.pgconn.finish()
            query.cancel()
            await asyncio.wait([query])
    except psycopg.OperationalError as error:
        return _of_postgresql(error)
    return Look(UP, "answers SELECT 1")


def _of_postgresql(error: psycopg.OperationalError) -> Look:
    text = words_of(error)
    if "starting up" in text or "recovery" in text:
        return Look(STARTING, text)
    if "failed to resolve" in text or "could not translate" in text:
        return Look(UNKNOWN, NO_NAME)
    # Without any detail libpq has failed before it reached the server, for want of file descriptors for example.
    if "no error details" in text or "Too many open files" in text or any(words in text for words in NO_ACCESS):
        return Look(UNKNOWN, text)
    if "too many" in text or "connection slots" in text:
        return Look(DEGRADED, text)
    return replace(_judged(error), reason=text)


async def _redis(check: RedisCheck, variable: Variable) -> Look:
    try:
        client = redis.asyncio.Redis.from_url(_value(variable, check.url_env), retry=None)
    except ValueError:
        raise CannotTell(f"{check.url_env} holds no URL of a Redis") from None
    try:
        await client.ping()
    except (AuthenticationError, NoPermissionError) as error:
        raise CannotTell(words_of(error)) from None
    except BusyLoadingError as error:
        return Look(STARTING, words_of(error))
    except RedisError as error:
        if "max number of clients" in str(error):
            return Look(DEGRADED, words_of(error))
        return _judged(error)
    finally:
        await client.aclose()
    return Look(UP, "answers PING")


async def _websocket(check: WebSocketCheck, _variable: Variable) -> Look:
    try:
        connection = await connect_websocket(check.url, open_timeout=None, proxy=None)
        try:
            await connection.send(check.message)
            answer = await connection.recv()
        finally:
            # Without a farewell: many a small server sends none, and would be waited for beyond the deadline.
            connection.transport.abort()
    except websockets.WebSocketException as error:
        return Look(DOWN, words_of(error))
    text = answer if isinstance(answer, str) else answer.decode("utf-8", "replace")
    if check.contains and check.contains not in text:
        return Look(DEGRADED, f"the answer does not hold {check.contains!r}: {words_of(text)}")
    return Look(UP, "answers its health message")


def _value(variable: Variable, name: str) -> str:
    try:
        value = variable(name)
    except SettingsError as error:
        raise CannotTell(str(error)) from None
    if value is None:
        raise CannotTell(f"the environment variable {name} is not set")
    return value.get_secret_value()


def _judged(error: BaseException) -> Look:
    """What a connection that failed says: nothing about the service when the reason lies here."""
    causes = _causes(error)
    if any(isinstance(one, socket.gaierror) for one in causes):
        return Look(UNKNOWN, NO_NAME)
    if any(isinstance(one, ssl.SSLCertVerificationError) and one.verify_code in UNKNOWN_ISSUER for one in causes):
        return Look(UNKNOWN, "the authority of its certificate is not known here")
    # An SSLError has numbers of its own.
    known = [one for one in causes if isinstance(one, OSError) and one.errno and not isinstance(one, ssl.SSLError)]
    cannot_tell = bool(known) and all(one.errno in CANNOT_TELL for one in known)
    # asyncio writes "Connect call failed ('127.0.0.1', 80)" where the system says "Connection refused".
    shown = os.strerror(known[-1].errno or 0) if known else ""
    return Look(UNKNOWN if cannot_tell else DOWN, words_of(shown or str(error)) or type(error).__name__)


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it; several addresses of one name fail as a group."""
    found: list[BaseException] = []
    ahead: list[BaseException | None] = [error]
    while ahead:
        following = ahead.pop(0)
        if following is not None and following not in found:
            found.append(following)
            ahead += getattr(following, "exceptions", ())
            ahead.append(following.__cause__ or following.__context__)
    return found


_KINDS: dict[type, Callable[[Any, Variable], Any]] = {
    SystemdCheck: look_by_systemd,
    TcpCheck: _tcp,
    HttpCheck: _http,
    PostgresqlCheck: _postgresql,
    RedisCheck: _redis,
    LibvirtCheck: look_by_libvirt,
    WebSocketCheck: _websocket,
    PidfileCheck: look_by_pidfile,
    CommandCheck: look_by_command,
}
