"""Every kind of check against real servers and processes: well, gone, hung, slow, refusing, and not to be told."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from pydantic import SecretStr

from ops_pipeline.services.looks import look_at, look_at_all
from ops_pipeline.services.looks_here import _unseen
from ops_pipeline.services.registry import PidfileCheck, Service
from ops_pipeline.services.states import Look
from ops_pipeline_tests.checkpoints.redis_servers import RedisServer, redis_server, until
from ops_pipeline_tests.servers import PostgresServer, free_port, postgres
from ops_pipeline_tests.services.processes import (
    PASSWORD,
    Behaviour,
    Systemctl,
    alive,
    certificate,
    endless,
    frame,
    full_port,
    go_on,
    hang,
    hanging_up,
    page,
    registry,
    saying,
    scripted_systemctl,
    service,
    serving,
    silent,
    takes_connections,
    web_socket,
)
from ops_pipeline_tests.unprivileged import as_nobody, open_folder


def variable(values: dict[str, str]) -> Callable[[str], SecretStr | None]:
    return lambda name: SecretStr(values[name]) if name in values else None


def look(check: dict[str, Any], timeout: float = 2, **values: str) -> Look:
    """Look at one service; it must not take longer than its deadline, and a moment."""
    started = time.monotonic()
    found = look_at_all(registry(service("a", check, timeout_seconds=timeout)), variable(values))["a"]
    assert time.monotonic() - started < timeout + 0.5, found
    return found


def hung(check: dict[str, Any], **values: str) -> str:
    """What a look finds that waits in vain."""
    found = look(check, 0.3, **values)
    assert "within 0.3 s" in found.reason
    return found.found


def at(port: int, path: str = "/", scheme: str = "http", **fields: Any) -> dict[str, Any]:
    """A check of a page or a WebSocket."""
    return {
        "kind": "websocket" if scheme.startswith("ws") else "http",
        "url": f"{scheme}://127.0.0.1:{port}{path}",
    } | fields


POSTGRESQL = {"kind": "postgresql", "url_env": "URL"}
REDIS = {"kind": "redis", "url_env": "URL"}


@contextmanager
def memory(most: int) -> Iterator[None]:
    """So many bytes at most are held at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


# All at the same time


def test_all_are_looked_at_at_the_same_time_and_a_hung_one_costs_its_deadline_only() -> None:
    with serving(silent) as hanging, serving(page(delay=0.2)) as slow:
        services = [service(f"hung-{number}", at(hanging), timeout_seconds=0.5) for number in range(10)]
        services += [service(f"slow-{number}", at(slow)) for number in range(30)]
        started = time.monotonic()
        looks = look_at_all(registry(*services), variable({}))
        assert time.monotonic() - started < 1.5
    assert [looks[f"hung-{number}"].found for number in range(10)] == ["down"] * 10
    assert [looks[f"slow-{number}"].found for number in range(30)] == ["up"] * 30
    assert all((looks[f"slow-{number}"].latency_ms or 0) >= 200 for number in range(30))


def test_never_more_at_a_time_than_allowed() -> None:
    with serving(page(delay=0.2)) as slow:
        services = [service(f"slow-{number}", at(slow)) for number in range(6)]
        started = time.monotonic()
        looks = look_at_all(registry(*services, concurrency=2), variable({}))
        assert time.monotonic() - started >= 0.6
    assert {one.found for one in looks.values()} == {"up"}


def test_only_those_asked_for_are_looked_at() -> None:
    with serving(page()) as port:
        first, second = service("a", at(port)), service("b", at(port))
        assert set(look_at_all(registry(first, second), variable({}), only=[second])) == {"b"}


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (at(99_999), ""),
        ({"kind": "tcp", "host": "a..b", "port": 80}, ""),
        (POSTGRESQL, f"postgres://anna:{PASSWORD}@db:port/x"),
        (POSTGRESQL, PASSWORD),
        (POSTGRESQL, f"postgresql://anna:{PASSWORD}@127.0.0.1/x?no_such_option=1"),
        (REDIS, f"redis://:{PASSWORD}@host:{PASSWORD}/0"),
        (REDIS, f"http://:{PASSWORD}@host/0"),
        (at(1, scheme="ws") | {"url": "ws://127.0.0.1:99999"}, ""),
    ],
)
def test_a_check_that_cannot_be_made_is_unknown_and_the_others_are_made_all_the_same(
    check: dict[str, Any], value: str
) -> None:
    """One port with a digit too many, and no service was looked at any more."""
    with serving(page()) as port:
        services = (service("broken", check), service("well", at(port)))
        looks = look_at_all(registry(*services), variable({"URL": value}))
    assert (looks["broken"].found, looks["well"].found) == ("unknown", "up")
    assert looks["broken"].reason
    assert PASSWORD not in looks["broken"].reason


@pytest.mark.parametrize("check", [POSTGRESQL, REDIS])
def test_a_variable_that_is_not_set_is_unknown(check: dict[str, Any]) -> None:
    assert look(check) == Look("unknown", "the environment variable URL is not set")


NAMELESS = "no-such-host.invalid"


@pytest.mark.parametrize(
    ("check", "url"),
    [
        ({"kind": "tcp", "host": NAMELESS, "port": 80}, ""),
        ({"kind": "http", "url": f"http://{NAMELESS}/"}, ""),
        ({"kind": "http", "url": f"https://{NAMELESS}/"}, ""),
        ({"kind": "websocket", "url": f"ws://{NAMELESS}/"}, ""),
        (POSTGRESQL, f"postgresql://{NAMELESS}/x"),
        (REDIS, f"redis://{NAMELESS}/0"),
    ],
)
def test_a_name_that_nobody_knows_is_unknown(check: dict[str, Any], url: str) -> None:
    """The resolver was down for a minute, and every database was restarted."""
    found = look(check, 5, URL=url)
    assert (found.found, found.reason) == ("unknown", "the host's name is not known here")


@pytest.mark.parametrize(
    ("check", "url"),
    [
        ({"kind": "tcp", "host": "slow.test", "port": 80}, ""),
        ({"kind": "http", "url": "http://slow.test/"}, ""),
        ({"kind": "websocket", "url": "ws://slow.test/"}, ""),
        (POSTGRESQL, "postgresql://slow.test/x"),
        (REDIS, "redis://slow.test/0"),
    ],
)
def test_a_resolver_that_hangs_is_unknown_and_holds_up_nobody(
    check: dict[str, Any], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a look waited for every thread that waited for the resolver, half a minute each."""
    resolve = socket.getaddrinfo

    def slowly(host: Any, *rest: Any, **more: Any) -> Any:
        if host in {"slow.test", b"slow.test"}:
            time.sleep(12)
        return resolve(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    with serving(page()) as port:
        # More than the threads of the usual pool.
        services = [service(f"a{number}", check, timeout_seconds=0.4) for number in range(40)]
        services.append(service("well", {"kind": "http", "url": f"http://localhost:{port}/"}, timeout_seconds=1))
        started = time.monotonic()
        looks = look_at_all(registry(*services), variable({"URL": url}))
        # Not at once on a busy machine, but long before the resolver answers.
        assert time.monotonic() - started < 8
    assert looks.pop("well").found == "up"
    assert {(one.found, one.reason) for one in looks.values()} == {
        ("unknown", "the resolver does not answer within 0.4 s")
    }


# A checker that has no file descriptors left


async def _starved(one: Service, values: dict[str, str]) -> Look:
    held = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
    try:
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        return await look_at(one, variable(values))
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", ["tcp", "http", "websocket", "postgresql", "redis", "command", "pidfile", "systemd"])
def test_a_checker_without_file_descriptors_says_unknown(
    kind: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """The checker ran out of files, and everything on the host was restarted."""
    pidfile = tmp_path / "pid"
    pidfile.write_text(str(os.getpid()))
    with serving(page()) as port, redis_server() as cache, scripted_systemctl() as systemctl:
        systemctl.unit("a.service")
        checks: dict[str, tuple[dict[str, Any], str]] = {
            "tcp": ({"kind": "tcp", "port": port}, ""),
            "http": (at(port), ""),
            "websocket": (at(port, scheme="ws"), ""),
            "postgresql": (POSTGRESQL, postgres_server.url()),
            "redis": (REDIS, cache.url()),
            "command": ({"kind": "command", "command": ["true"]}, ""),
            "pidfile": ({"kind": "pidfile", "path": str(pidfile)}, ""),
            "systemd": ({"kind": "systemd", "unit": "a.service"}, ""),
        }
        check, url = checks[kind]
        found = asyncio.run(_starved(service("a", check), {"URL": url}))
        assert found.found == "unknown", found
        # What drives PostgreSQL does not say why.
        assert kind == "postgresql" or "too many open files" in found.reason.lower()


# TCP


def test_a_port_that_takes_connections_is_up() -> None:
    with serving(silent) as port:
        found = look({"kind": "tcp", "port": port})
    assert (found.found, found.reason) == ("up", f"127.0.0.1:{port} takes connections")
    assert 0 < (found.latency_ms or 0) < 1000


def test_a_port_that_refuses_is_down() -> None:
    found = look({"kind": "tcp", "port": free_port()})
    assert (found.found, "refused" in found.reason.lower()) == ("down", True)
    assert look({"kind": "tcp", "host": "localhost", "port": free_port()}).found == "down"


def test_a_port_whose_queue_is_full_is_down_at_the_deadline() -> None:
    with full_port() as port:
        assert hung({"kind": "tcp", "port": port}) == "down"


# HTTP


@pytest.mark.parametrize(
    ("behaviour", "fields", "expected", "words"),
    [
        (page(), {}, "up", "status 200"),
        (page(delay=0.3), {}, "up", "status 200"),
        (page(), {"contains": "is well"}, "up", "status 200"),
        (page(), {"contains": "very well"}, "degraded", "the page does not hold 'very well'"),
        (page("out of\n memory", 500), {}, "down", "status 500: out of memory"),
        (page(status=204), {}, "down", "status 204:"),
        (page("no", 503), {"status": [200, 503]}, "up", "status 503"),
        (page("", 302, "Location: http://127.0.0.1:1/\r\n"), {}, "down", "status 302:"),
        (page("", 302, "Location: http://127.0.0.1:1/\r\n"), {"status": [302]}, "up", "status 302"),
        (saying(b"+PONG\r\n"), {}, "down", ""),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), {}, "down", "peer closed"),
        (hanging_up, {}, "down", ""),
    ],
)
def test_a_page(behaviour: Behaviour, fields: dict[str, Any], expected: str, words: str) -> None:
    with serving(behaviour) as port:
        found = look(at(port, **fields))
    assert found.found == expected
    assert found.reason.startswith(words)
    assert found.reason


def test_a_page_that_refuses_is_down_and_says_so() -> None:
    found = look(at(free_port()))
    assert (found.found, "refused" in found.reason.lower()) == ("down", True)


def test_a_page_that_hangs_or_drips_for_ever_is_down_at_the_deadline() -> None:
    with serving(silent) as port:
        assert hung(at(port)) == "down"
    with serving(endless(piece=b"x", every=0.05)) as port:
        assert hung(at(port)) == "down"
    with serving(endless(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n", 0.05)) as port:
        assert hung(at(port)) == "down"


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9000000000\r\n\r\n"])
def test_of_an_endless_page_only_the_beginning_is_read(head: bytes) -> None:
    """A health page that pointed at a log without end took all memory of the checker."""
    sent: list[int] = []
    with serving(endless(head, sent=sent)) as port, memory(8_000_000):
        assert look(at(port)).found == "up"
        assert look(at(port, contains="well")).found == "degraded"
    assert sum(sent) < 40_000_000


def test_an_endless_page_with_a_wrong_status_is_down() -> None:
    with serving(endless(b"HTTP/1.1 500 no\r\n\r\n")) as port, memory(8_000_000):
        found = look(at(port))
    assert (found.found, found.reason[:15], len(found.reason)) == ("down", "status 500: xxx", 312)


def test_a_packed_page_is_not_unpacked() -> None:
    """A few kilobytes unpack to gigabytes."""
    with serving(page("not packed at all", headers="Content-Encoding: gzip\r\n")) as port:
        assert look(at(port, contains="not packed")).found == "up"


def test_a_proxy_of_the_checker_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy for the internet answered 502 for every service on loopback, and all were restarted."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "ws_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with serving(page()) as port:
        assert look(at(port)).found == "up"
    with serving(web_socket(frame("well"))) as port:
        assert look(at(port, scheme="ws")).found == "up"


@pytest.mark.parametrize(("scheme", "behaviour"), [("https", page()), ("wss", web_socket(frame("well")))])
def test_a_certificate_of_an_unknown_authority_is_unknown(scheme: str, behaviour: Behaviour) -> None:
    """The checker's own list of authorities was old: a restart of the service would not have helped."""
    with certificate() as (context, _), serving(behaviour, context) as port:
        found = look(at(port, scheme=scheme))
    assert (found.found, found.reason) == ("unknown", "the authority of its certificate is not known here")


@pytest.mark.parametrize(("scheme", "behaviour"), [("https", page()), ("wss", web_socket(frame("well")))])
def test_tls_to_a_server_that_speaks_none_is_down(scheme: str, behaviour: Behaviour) -> None:
    with serving(behaviour) as port:
        assert look(at(port, scheme=scheme)).found == "down"


def test_a_certificate_of_a_known_authority_is_trusted(tmp_path: Path) -> None:
    # In a process of its own, since the list of authorities is read once.
    script = tmp_path / "look.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio, sys
        from ops_pipeline.services.looks import look_at
        from ops_pipeline_tests.services.processes import service
        print(asyncio.run(look_at(service("a", {"kind": "http", "url": sys.argv[1]}), lambda name: None)))
        """)
    )
    with certificate() as (context, path), serving(page(), context) as port:
        names = os.environ | {"SSL_CERT_FILE": str(path), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(script), f"https://127.0.0.1:{port}/"]
        told = subprocess.run(command, env=names, capture_output=True, text=True, check=True).stdout
    assert "found='up'" in told


# PostgreSQL


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """A PostgreSQL that may be hung and killed."""
    with postgres() as server:
        server.guard_role("locked", "scram-sha-256", PASSWORD)
        server.guard_role("rejected", "reject")
        server.execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
        server.execute("CREATE ROLE sleeper NOLOGIN")
        server.execute("CREATE ROLE outsider LOGIN")
        server.execute("CREATE DATABASE closed")
        server.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
        yield server


def postmaster(server: PostgresServer) -> int:
    return int((server.folder / "data" / "postmaster.pid").read_text().split()[0])


def test_a_postgresql_that_answers_is_up(database: PostgresServer) -> None:
    assert look(POSTGRESQL, URL=database.url()).found == "up"
    assert look(POSTGRESQL, URL=database.url("postgres", "locked", PASSWORD)).reason == "answers SELECT 1"


@pytest.mark.parametrize(
    ("login", "expected", "words"),
    [
        (("postgres", "locked", f"wrong-{PASSWORD}"), "unknown", "password authentication failed"),
        (("postgres", "locked"), "unknown", "no password supplied"),
        (("postgres", "rejected"), "unknown", "pg_hba.conf"),
        (("postgres", "nobody_knows"), "unknown", "does not exist"),
        (("no_such_database",), "unknown", "does not exist"),
        (("postgres", "sleeper"), "unknown", "not permitted to log in"),
        (("closed", "outsider"), "unknown", "permission denied"),
        (("postgres", "crowded"), "degraded", "too many connections"),
    ],
)
def test_a_postgresql_that_does_not_let_the_checker_in_is_not_down(
    database: PostgresServer, login: tuple[str, ...], expected: str, words: str
) -> None:
    """A password was changed, and the database was restarted for it every five minutes."""
    found = look(POSTGRESQL, URL=database.url(*login))
    assert (found.found, words in found.reason) == (expected, True), found
    assert PASSWORD not in found.reason


def test_a_postgresql_without_free_slots_is_degraded(database: PostgresServer) -> None:
    lines = []
    try:
        with pytest.raises(psycopg.OperationalError):
            while len(lines) < 100:
                lines.append(psycopg.connect(host="127.0.0.1", port=database.port, user="postgres", dbname="postgres"))
        found = look(POSTGRESQL, URL=database.url())
    finally:
        for line in lines:
            line.close()
    assert (found.found, "too many clients" in found.reason) == ("degraded", True)


def test_a_postgresql_that_hangs_is_down_at_the_deadline_and_up_when_it_goes_on(database: PostgresServer) -> None:
    number = postmaster(database)
    hang(number)
    try:
        assert hung(POSTGRESQL, URL=database.url()) == "down"
    finally:
        go_on(number)
    assert look(POSTGRESQL, 5, URL=database.url()).found == "up"


def test_a_postgresql_that_takes_the_login_and_then_hangs_is_down_at_the_deadline() -> None:
    """Its driver asked the hung server to cancel, and waited ten seconds for that."""
    ready = b"R\0\0\0\x08\0\0\0\0" + b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02" + b"Z\0\0\0\x05I"

    def behave(line: socket.socket, stopping: Any) -> None:
        line.recv(1000)
        line.sendall(ready)
        stopping.wait(20)

    with serving(behave) as port:
        url = f"postgresql://anna@127.0.0.1:{port}/x?sslmode=disable&gssencmode=disable"
        assert hung(POSTGRESQL, URL=url) == "down"


def test_what_is_no_postgresql_is_down() -> None:
    with serving(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert look(POSTGRESQL, URL=f"postgresql://anna:{PASSWORD}@127.0.0.1:{port}/x").found == "down"


def test_a_postgresql_that_was_killed_is_down() -> None:
    with postgres() as server:
        os.kill(postmaster(server), signal.SIGKILL)
        until(lambda: look(POSTGRESQL, URL=server.url()).found == "down", "PostgreSQL to be gone", 5)
        assert "refused" in look(POSTGRESQL, URL=server.url()).reason


def test_a_postgresql_that_starts_up_is_starting() -> None:
    fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
    with serving(saying(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)) as port:
        url = f"postgresql://anna@127.0.0.1:{port}/x?sslmode=disable&gssencmode=disable"
        found = look(POSTGRESQL, URL=url)
    assert (found.found, "starting up" in found.reason) == ("starting", True), found


# Redis


@pytest.fixture(scope="module")
def cache() -> Iterator[RedisServer]:
    """A Redis that asks for a password."""
    with redis_server("--requirepass", PASSWORD, "--enable-debug-command", "yes") as server:
        yield server


def test_a_redis_that_answers_is_up(cache: RedisServer) -> None:
    found = look(REDIS, URL=cache.url(password=PASSWORD))
    assert (found.found, found.reason) == ("up", "answers PING")


@pytest.mark.parametrize("password", ["", f"wrong-{PASSWORD}"])
def test_a_redis_that_does_not_let_the_checker_in_is_unknown(cache: RedisServer, password: str) -> None:
    found = look(REDIS, URL=cache.url(password=password))
    assert found.found == "unknown", found
    assert found.reason and PASSWORD not in found.reason


def test_a_redis_that_does_not_allow_ping_is_unknown(cache: RedisServer) -> None:
    cache.client(password=PASSWORD).execute_command("ACL", "SETUSER", "eve", "on", f">{PASSWORD}", "+client")
    found = look(REDIS, URL=cache.url(user="eve", password=PASSWORD))
    assert (found.found, "permission" in found.reason) == ("unknown", True), found


def test_a_redis_that_takes_no_more_clients_is_degraded() -> None:
    with redis_server("--maxclients", "1") as server, socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(b"PING\r\n")
        assert line.recv(100) == b"+PONG\r\n"
        found = look(REDIS, URL=server.url())
    assert (found.found, "max number of clients" in found.reason) == ("degraded", True), found


def test_a_redis_that_hangs_is_down_at_the_deadline_and_slow_is_not_hung(cache: RedisServer) -> None:
    assert cache.process is not None
    url = cache.url(password=PASSWORD)
    hang(cache.process.pid)
    try:
        assert hung(REDIS, URL=url) == "down"
    finally:
        go_on(cache.process.pid)
    with cache.client(password=PASSWORD).pubsub() as line:
        line.execute_command("DEBUG", "SLEEP", "0.4")
        found = look(REDIS, URL=url)
    assert found.found == "up"


def test_a_redis_that_was_killed_is_down_and_says_that_it_refuses() -> None:
    with redis_server() as server:
        server.kill()
        found = look(REDIS, URL=server.url())
    assert (found.found, "refused" in found.reason.lower()) == ("down", True)


def test_a_redis_that_loads_its_data_is_starting() -> None:
    """A cache of 20 GB was restarted for as long as it took to load, which was for ever."""
    with redis_server("--enable-debug-command", "yes") as server:
        client = server.client()
        client.execute_command("DEBUG", "POPULATE", "5000")
        client.save()
        server.kill()
        place = ["--port", str(server.port), "--dir", str(server.folder), "--bind", "127.0.0.1"]
        slowly = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]
        server.process = subprocess.Popen(["redis-server", *place, *slowly], stdout=subprocess.DEVNULL)
        until(lambda: takes_connections(server.port), "Redis to listen", 5)
        found = look(REDIS, URL=server.url())
        assert (found.found, "loading" in found.reason.lower()) == ("starting", True), found


def test_what_is_no_redis_is_down() -> None:
    with serving(page()) as port:
        assert look(REDIS, URL=f"redis://:{PASSWORD}@127.0.0.1:{port}/0").found == "down"
    with serving(hanging_up) as port:
        assert look(REDIS, URL=f"redis://127.0.0.1:{port}/0").found == "down"


# WebSocket

HEALTHY = frame('{"status": "healthy"}')


@pytest.mark.parametrize(
    ("behaviour", "expected", "words"),
    [
        (web_socket(HEALTHY), "up", "answers its health message"),
        (web_socket(HEALTHY, delay=0.3), "up", "answers its health message"),
        (web_socket(frame("healthy", kind=2)), "up", "answers its health message"),
        (web_socket(frame("sick")), "degraded", "the answer does not hold 'healthy': sick"),
        (web_socket(b"\xff\xff\xff\xff"), "down", ""),
        (web_socket(), "down", ""),
        (web_socket(frame("\x03\xe8", kind=8)), "down", ""),
        (web_socket(frame("x" * 2_000_000)), "down", ""),
        (saying(b"SSH-2.0-OpenSSH_9.6\r\n"), "down", ""),
        (page("no", 403), "down", "server rejected WebSocket connection: HTTP 403"),
        (hanging_up, "down", ""),
    ],
)
def test_a_websocket(behaviour: Behaviour, expected: str, words: str) -> None:
    with serving(behaviour) as port:
        found = look(at(port, scheme="ws", contains="healthy"))
    assert (found.found, found.reason.startswith(words)) == (expected, True), found
    assert found.reason


def test_a_websocket_that_never_takes_leave_is_up_at_once() -> None:
    """It answered within a millisecond, and was down since it did not close as the standard wants."""
    with serving(web_socket(HEALTHY, farewell=False)) as port:
        assert look(at(port, scheme="ws"), 0.5).found == "up"


@pytest.mark.parametrize("behaviour", [silent, web_socket(farewell=False), web_socket(HEALTHY[:10], farewell=False)])
def test_a_websocket_that_says_nothing_is_down_at_the_deadline(behaviour: Behaviour) -> None:
    with serving(behaviour) as port:
        assert hung(at(port, scheme="ws")) == "down"


def test_a_huge_message_of_a_websocket_is_not_kept() -> None:
    head = b"\x82\x7f" + (8_000_000_000).to_bytes(8, "big")

    def behave(line: socket.socket, stopping: Any) -> None:
        web_socket(head)(line, stopping)
        while not stopping.is_set():
            line.sendall(b"x" * 65_536)

    with serving(behave) as port, memory(8_000_000):
        assert look(at(port, scheme="ws")).found == "down"


def test_a_websocket_that_refuses_is_down() -> None:
    assert look(at(free_port(), scheme="ws")).found == "down"


# Processes by pidfile


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process."""
    process = subprocess.Popen(["sleep", "30"])
    yield process
    process.kill()
    process.wait()


def by_pidfile(path: Path, content: str | bytes, process: str = "") -> Look:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return look({"kind": "pidfile", "path": str(path), "process": process})


def test_a_process_lives_whatever_else_stands_in_its_pidfile(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """The pidfile of PostgreSQL has eight lines: it was down all the time."""
    path, number = tmp_path / "pid", sleeper.pid
    for content in (f"{number}", f" {number}\n", f"{number}\n/var/lib/postgresql\n1700000000\n5432\n"):
        assert by_pidfile(path, content, "sleep") == Look("up", f"process {number} lives", pytest.approx(0, abs=1000))
    assert by_pidfile(path, str(number), "nginx") == Look(
        "down", f"process {number} is sleep, not nginx", pytest.approx(0, abs=1000)
    )


def test_a_process_that_is_gone_or_that_nobody_took_notice_of_is_down(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    path = tmp_path / "pid"
    sleeper.kill()
    until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE, "the process to end")
    found = by_pidfile(path, str(sleeper.pid), "sleep")
    assert (found.found, "nobody took notice" in found.reason) == ("down", True)
    sleeper.wait()
    found = by_pidfile(path, str(sleeper.pid))
    assert (found.found, "is gone" in found.reason) == ("down", True)


@pytest.mark.parametrize("content", ["", "redis", "-1", "0", "1e3", "²", b"\xff\xfe\0", "99999999999999999999"])
def test_a_pidfile_without_a_number_is_down(tmp_path: Path, content: str | bytes) -> None:
    found = by_pidfile(tmp_path / "pid", content)
    assert (found.found, "holds no number of a process" in found.reason) == ("down", True)


def test_a_process_with_any_name_is_read(tmp_path: Path) -> None:
    program = tmp_path / "a) Z (b c"
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([str(program), "30"])
    try:
        until(lambda: psutil.Process(process.pid).name() == program.name, "the program to begin")
        assert by_pidfile(tmp_path / "pid", str(process.pid), program.name).found == "up"
    finally:
        process.kill()
        process.wait()


def test_without_a_pidfile_the_process_is_down_and_a_folder_tells_nothing(tmp_path: Path) -> None:
    found = look({"kind": "pidfile", "path": str(tmp_path / "none")})
    assert (found.found, found.reason) == ("down", f"there is no {tmp_path}/none")
    assert look({"kind": "pidfile", "path": str(tmp_path)}).found == "unknown"


def test_a_pidfile_that_may_not_be_read_is_unknown() -> None:
    with open_folder() as folder:
        path = folder / "pid"
        path.write_text(str(os.getpid()))
        path.chmod(0)
        one = service("a", {"kind": "pidfile", "path": str(path)})
        found = as_nobody(lambda: asyncio.run(look_at(one, lambda _: None)), folder)
    assert "found='unknown'" in found and "Permission denied" in found, found


def test_a_process_that_proc_hides_is_unknown() -> None:
    """With /proc mounted as hidepid=2 every service of another user was dead."""
    check = PidfileCheck(kind="pidfile", path=Path("/run/first.pid"))
    with open_folder() as folder:
        # The first process is another user's, and there whether /proc shows it or not.
        found = as_nobody(lambda: _unseen(1, check), folder)
    assert found == "CannotTell: process 1 of /run/first.pid lives, but is hidden from this user"


# Commands


def command(*words: str, timeout: float = 2, **fields: Any) -> Look:
    return look({"kind": "command", "command": list(words)} | fields, timeout)


def shell(script: str, timeout: float = 2, **fields: Any) -> Look:
    return command("sh", "-c", script, timeout=timeout, **fields)


@pytest.mark.parametrize(
    ("script", "fields", "expected", "reason"),
    [
        ("true", {}, "up", "exit status 0"),
        ("echo all well", {}, "up", "all well"),
        ("sleep 0.3", {}, "up", "exit status 0"),
        ("echo broken >&2; exit 1", {}, "down", "exit status 1: broken"),
        ("exit 3", {"ok": [0, 3]}, "up", "exit status 3"),
        ("exit 3", {"unknown": [3]}, "unknown", "exit status 3: "),
        ("exit 126", {}, "unknown", "exit status 126: "),
        ("no-such-command", {}, "unknown", "exit status 127: "),
        ("kill -9 $$", {}, "down", "exit status -9: "),
        ("printf '\\377\\376'", {}, "up", "\ufffd\ufffd"),
    ],
)
def test_a_command(script: str, fields: dict[str, Any], expected: str, reason: str) -> None:
    found = shell(script, **fields)
    assert (found.found, found.reason.startswith(reason)) == (expected, True), found


def test_a_command_that_cannot_be_started_is_unknown(tmp_path: Path) -> None:
    """A check whose script had lost its first line restarted its service."""
    script = tmp_path / "check"
    script.write_text("\x7fELF")
    assert command("no-such-command-at-all").reason == "there is no command no-such-command-at-all"
    assert command(str(script)).found == command(str(tmp_path)).found == "unknown"
    script.chmod(0o755)
    found = command(str(script))
    assert (found.found, "Exec format error" in found.reason) == ("unknown", True)
    assert command("true", "\0").found == "unknown"


def test_a_command_that_hangs_is_unknown_and_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """Every five minutes a check left a process behind that hung like the service."""
    assert shell(f"sleep 30 & echo $! > {tmp_path}/child; sleep 30", 0.5).found == "unknown"
    child = int((tmp_path / "child").read_text())
    until(lambda: not alive(child), "the child to end", 2)


def test_what_a_command_leaves_behind_is_ended_with_it(tmp_path: Path) -> None:
    found = shell(f"sleep 30 >/dev/null 2>&1 & echo $! > {tmp_path}/child; exit 1")
    assert found.found == "down"
    child = int((tmp_path / "child").read_text())
    until(lambda: not alive(child), "the child to end", 2)


def test_a_command_whose_child_went_away_and_holds_its_output_is_unknown_at_the_deadline(tmp_path: Path) -> None:
    """Ending what had ended already looked like a service that is down."""
    try:
        assert shell(f"setsid sleep 30 & echo $! > {tmp_path}/child; exit 0", 0.5).found == "unknown"
    finally:
        until((tmp_path / "child").exists, "the child")
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_of_a_huge_output_only_the_beginning_is_kept() -> None:
    with memory(8_000_000):
        found = shell("echo first; head -c 60000000 /dev/zero | tr '\\0' x", 20)
    assert (found.found, found.reason[:9], len(found.reason)) == ("up", "first xxx", 300)
    with memory(8_000_000):
        assert shell("yes", 0.5).found == "unknown"


def test_no_secret_stands_in_a_reason() -> None:
    """A check printed the URL that it had used, and it stood in the table for everybody."""
    url = f"redis://:p%40{PASSWORD}@127.0.0.1:{free_port()}/0"
    words = f"tried {url} with p@{PASSWORD}, p%40{PASSWORD} and amqp://anna:other@host?password=third"
    with serving(page(words, 500)) as port:
        services = [
            service("cache", REDIS),
            service("command", {"kind": "command", "command": ["echo", words]}),
            service("page", at(port)),
        ]
        looks = look_at_all(registry(*services), variable({"URL": url}))
    for name in ("command", "page"):
        assert looks[name].reason.endswith("tried *** with ***, *** and amqp://anna:***@host?password=***")
    assert PASSWORD not in str(looks)


# libvirt


@pytest.mark.parametrize(
    ("module", "expected", "words"),
    [
        ("raise ModuleNotFoundError(\"No module named 'libvirt'\")", "unknown", "libvirt-python is not installed"),
        ("def openReadOnly(uri): raise OSError('Failed to connect socket: No such file')", "down", "No such file"),
        ("def openReadOnly(uri): raise OSError('Failed to connect socket: Permission denied')", "unknown", "denied"),
        ("def openReadOnly(uri):\n import time; time.sleep(30)", "unknown", "no answer within"),
        (
            "class Line:\n def getVersion(self): return 1\n"
            "def openReadOnly(uri): assert uri == 'test:///default'; return Line()",
            "up",
            "takes connections",
        ),
    ],
)
def test_libvirt_as_a_module_of_that_name_tells(
    module: str, expected: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libvirt.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = look({"kind": "libvirt", "uri": "test:///default"}, 1)
    assert (found.found, words in found.reason) == (expected, True), found


# systemd


@pytest.fixture
def systemctl() -> Iterator[Systemctl]:
    """A systemctl that says what a test wants."""
    with scripted_systemctl() as scripted:
        yield scripted


UNIT = {"kind": "systemd", "unit": "a.service"}


@pytest.mark.parametrize(
    ("active", "sub", "properties", "expected"),
    [
        ("active", "running", {}, "up"),
        ("reloading", "reload", {}, "starting"),
        ("activating", "start", {}, "starting"),
        ("activating", "auto-restart", {"Result": "exit-code"}, "down"),
        ("failed", "failed", {"Result": "exit-code"}, "down"),
        ("inactive", "dead", {}, "stopped"),
        ("inactive", "dead", {"UnitFileState": "disabled"}, "stopped"),
        ("inactive", "dead", {"LoadState": "masked"}, "stopped"),
        ("inactive", "dead", {"TriggeredBy": "a.socket b.socket"}, "up"),
        ("inactive", "dead", {"TriggeredBy": "b.socket c.timer"}, "stopped"),
        ("inactive", "dead", {"LoadState": "not-found"}, "unknown"),
    ],
)
def test_a_unit_of_systemd(
    systemctl: Systemctl, active: str, sub: str, properties: dict[str, str], expected: str
) -> None:
    systemctl.unit("a.service", active, sub, **properties)
    systemctl.unit("a.socket", "active", "listening")
    systemctl.unit("b.socket", "inactive", "dead")
    assert look(UNIT).found == expected


@pytest.mark.parametrize(
    "message",
    ["System has not been booted with systemd as init system (PID 1). Can't operate.", "Access denied"],
)
def test_a_systemctl_that_does_not_work_is_unknown(systemctl: Systemctl, message: str) -> None:
    systemctl.fails(message)
    assert look(UNIT) == Look("unknown", f"systemctl: {message}")


def test_a_systemctl_that_hangs_is_unknown_and_is_ended(systemctl: Systemctl) -> None:
    systemctl.hangs()
    assert hung(UNIT) == "unknown"


def test_without_systemctl_a_unit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look(UNIT) == Look("unknown", "there is no command systemctl")


def test_a_systemctl_without_any_unit_known_to_it_is_unknown(systemctl: Systemctl) -> None:
    found = look(UNIT)
    assert (found.found, found.reason) == ("unknown", "systemd knows no unit a.service")
