"""Restarts by command, systemd and supervisord: what they come to, how long they take, and what they tell."""

from __future__ import annotations

import os
import signal
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from ops_pipeline.services.actions import Done, restart, secrets_of, without
from ops_pipeline_tests.checkpoints.redis_servers import until
from ops_pipeline_tests.servers import free_port
from ops_pipeline_tests.services.processes import (
    PASSWORD,
    Behaviour,
    Supervisor,
    alive,
    hang,
    page,
    redis_daemon,
    registry,
    restarted_by,
    saying,
    scripted_systemctl,
    service,
    serving,
    silent,
    supervisord,
    takes_connections,
)

TCP = {"kind": "tcp", "port": 1}


def by_shell(script: str, seconds: float = 5) -> Done:
    return restart(restarted_by("a", TCP, "sh", "-c", script, action_timeout_seconds=seconds))


# By command


def test_a_command_restarts_a_real_redis_that_hangs() -> None:
    with redis_daemon() as daemon:
        before = daemon.number
        hang(before)
        done = restart(restarted_by("cache", TCP, str(daemon.restart_script)))
        assert done.ok, done
        until(lambda: takes_connections(daemon.port), "redis-server")
        assert daemon.number != before and not alive(before)


@pytest.mark.parametrize(
    ("script", "ok", "output"),
    [
        ("true", True, ""),
        ("echo done; echo and told >&2", True, "done\nand told"),
        ("echo broken; exit 3", False, "exit status 3: broken"),
        ("kill -9 $$", False, "exit status -9: "),
        ("read line; echo got $line", True, "got"),
    ],
)
def test_a_command_tells_how_it_went(script: str, ok: bool, output: str) -> None:
    done = by_shell(script)
    assert (done.ok, done.output) == (ok, output)
    assert 0 < done.duration_seconds < 2


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    done = by_shell(f"echo begun; sleep 30 & echo $! > {tmp_path}/child; wait", 0.5)
    assert (done.ok, done.output) == (False, "ended after 0.5 s: begun")
    assert 0.5 <= done.duration_seconds < 1
    child = int((tmp_path / "child").read_text())
    until(lambda: not alive(child), "the child to end", 2)


def test_a_daemon_that_a_command_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    """A start script returned at once, and the check waited a minute for the daemon to close its output."""
    done = by_shell(f"setsid sleep 30 & echo $! > {tmp_path}/daemon; echo started")
    daemon = int((tmp_path / "daemon").read_text())
    try:
        assert (done.ok, done.output) == (True, "started")
        assert done.duration_seconds < 1
        assert alive(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_a_huge_output_is_cut_and_takes_neither_memory_nor_disk(tmp_path: Path) -> None:
    """A restart that repeated one error filled /tmp, and with it everything else went down."""
    watched = f"(sleep 0.6; stat -L -c %b /proc/$$/fd/1 > {tmp_path}/blocks) & head -c 300000000 /dev/zero | tr '\\0' x"
    tracemalloc.start()
    try:
        done = by_shell(f"echo first; {watched}; wait")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert (done.ok, done.output[:9], len(done.output)) == (True, "first\nxxx", 2000)
    assert int((tmp_path / "blocks").read_text()) * 512 < 250_000_000
    done = by_shell("yes", 0.4)
    assert (done.ok, done.output[:24]) == (False, "ended after 0.4 s: y\ny\ny")


def test_a_command_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    script = tmp_path / "restart"
    script.write_text("")
    assert restart(restarted_by("a", TCP, "no-such-command")).output == "no-such-command: No such file or directory"
    done = restart(restarted_by("a", TCP, str(script)))
    assert (done.ok, done.output) == (False, f"{script}: Permission denied")
    assert restart(restarted_by("a", TCP, "true", "\0")).ok is False


def test_a_service_without_an_action_is_not_restarted() -> None:
    assert restart(service("a", TCP)).output == "it has no action"


# Secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"login {PASSWORD} failed", "login *** failed"),
        (
            "at redis://:other@host:1/0 and postgresql://anna:p4ss@db/x",
            "at redis://:***@host:1/0 and postgresql://anna:***@db/x",
        ),
        ("amqp://anna:p@ss@host/", "amqp://anna:***@host/"),
        ("host=db PASSWORD=p4ss user=anna", "host=db PASSWORD=*** user=anna"),
        ("postgresql://db/x?password=p4ss&sslmode=require", "postgresql://db/x?password=***&sslmode=require"),
        ("http://host:80/a:b@c", "http://host:80/a:b@c"),
        ("http://host:80/ and anna@example.com", "http://host:80/ and anna@example.com"),
    ],
)
def test_secrets_are_taken_out_of_a_text(text: str, shown: str) -> None:
    assert without(text, [PASSWORD, ""]) == shown


def test_a_secret_across_the_cut_is_taken_out_too() -> None:
    assert PASSWORD[:5] not in without("x" * 1995 + PASSWORD, [PASSWORD])


def test_the_output_of_a_restart_holds_no_password_of_a_url() -> None:
    url = f"redis://:p%40{PASSWORD}@127.0.0.1/0"
    cache = restarted_by("cache", {"kind": "redis", "url_env": "URL"}, "echo", f"{url} p@{PASSWORD} p%40{PASSWORD}")
    found = secrets_of(registry(cache, service("b", {"kind": "redis", "url_env": "NONE"})), {"URL": SecretStr(url)}.get)
    assert set(found) == {url, f"p@{PASSWORD}", f"p%40{PASSWORD}"}
    assert restart(cache, found).output == "*** *** ***"


# By systemd


def test_systemd_restarts_a_unit() -> None:
    unit = service("a", TCP, recovery="auto", action={"kind": "systemd", "unit": "a.service"})
    with scripted_systemctl() as systemctl:
        done = restart(unit)
        assert (done.ok, done.output) == (False, "exit status 5: Failed to restart a.service: Unit not found.")
        systemctl.on_restart("a.service", "exit 0")
        assert restart(unit).ok
        systemctl.on_restart("a.service", f"echo 'Job for a.service failed: redis://:{PASSWORD}@host'; exit 1")
        assert restart(unit).output == "exit status 1: Job for a.service failed: redis://:***@host"
        assert systemctl.restarted == ["a.service"] * 3


# By supervisord


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    """A supervisord with a program that runs, one that ends at once, and one that cannot be started."""
    with supervisord({"sleeper": "sleep 100", "short": "true", "missing": "/no/such/program"}) as running:
        yield running


def by_supervisor(url: str, program: str, seconds: float = 5) -> Done:
    action = {"kind": "supervisor", "url": url, "program": program}
    return restart(service("a", TCP, recovery="auto", action=action, action_timeout_seconds=seconds))


def test_supervisord_restarts_a_program_that_runs_hangs_or_died(supervisor: Supervisor) -> None:
    until(lambda: supervisor.info("sleeper")["statename"] == "RUNNING", "the program")
    seen = [supervisor.info("sleeper")["pid"]]
    for happened in (None, signal.SIGSTOP, signal.SIGKILL):
        if happened:
            os.kill(seen[-1], happened)
        if happened == signal.SIGKILL:
            until(lambda: supervisor.info("sleeper")["statename"] == "EXITED", "supervisord to see it")
        done = by_supervisor(supervisor.url, "sleeper")
        assert (done.ok, done.output) == (True, "supervisord restarted sleeper")
        assert supervisor.info("sleeper")["statename"] == "RUNNING"
        seen.append(supervisor.info("sleeper")["pid"])
    assert len(set(seen)) == 4
    assert not [number for number in seen[:-1] if alive(number)]


@pytest.mark.parametrize(
    ("program", "words"), [("unknown", "supervisord: BAD_NAME"), ("missing", "supervisord: NO_FILE")]
)
def test_supervisord_says_why_it_restarts_nothing(supervisor: Supervisor, program: str, words: str) -> None:
    done = by_supervisor(supervisor.url, program)
    assert (done.ok, done.output.startswith(words)) == (False, True), done


def test_a_supervisord_that_refuses_is_a_failed_restart() -> None:
    done = by_supervisor(f"http://127.0.0.1:{free_port()}/RPC2", "a")
    assert (done.ok, "refused" in done.output) == (False, True)
    with pytest.raises(ValueError, match="no such URL"):
        by_supervisor("https://127.0.0.1:1/RPC2", "a")


def test_a_supervisord_that_hangs_costs_the_deadline() -> None:
    with supervisord({"sleeper": "sleep 100"}) as running:
        hang(running.process.pid)
        done = by_supervisor(running.url, "sleeper", 0.4)
    assert (done.ok, done.output) == (False, "supervisord: timed out")
    assert 0.4 <= done.duration_seconds < 1


@pytest.mark.parametrize(
    "behaviour",
    [
        page("this is no XML", headers="Content-Type: text/xml\r\n"),
        page("<methodResponse><params><param><value><int>x</int></value></param></params></methodResponse>"),
        page("<methodResponse/>"),
        page("forbidden", 401),
        saying(b"+PONG\r\n"),
        saying(b""),
        silent,
    ],
)
def test_what_is_no_supervisord_is_a_failed_restart(behaviour: Behaviour) -> None:
    """Junk instead of XML ended the check of all services."""
    with serving(behaviour) as port:
        done = by_supervisor(f"http://127.0.0.1:{port}/RPC2", "a", 0.4)
    assert (done.ok, done.output.startswith("supervisord: ")) == (False, True), done
