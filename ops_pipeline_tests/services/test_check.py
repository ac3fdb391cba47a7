"""Whole checks of services on both databases: real processes that die, hang, crash and come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from ops_pipeline.database.engine import reading
from ops_pipeline.services.check import Checked, Watch, check_services, outcome_of, plan_of, prospect
from ops_pipeline.services.registry import Registry
from ops_pipeline.services.states import State
from ops_pipeline.services.store import command_maintenance, command_reset, read_states
from ops_pipeline.services.tables import service_events, service_states
from ops_pipeline_tests.servers import PostgresServer, free_port
from ops_pipeline_tests.services.processes import (
    PASSWORD,
    Daemon,
    hang,
    redis_daemon,
    registry,
    restarted_by,
    scripted_systemctl,
    service,
    serving,
    silent,
    supervisord,
)
from ops_pipeline_tests.usage.calls import rows

NOBODY_LISTENS = {"kind": "tcp", "port": 1}


@dataclass
class Home:
    """Checks of the same services, one after the other."""

    engine: Engine
    registry: Registry
    values: dict[str, str] = field(default_factory=dict)

    @property
    def watch(self) -> Watch:
        """What a check needs."""
        return Watch(
            self.engine, lambda name: SecretStr(self.values[name]) if name in self.values else None, time.sleep, "run-1"
        )

    def check(self, times: int = 1) -> Checked:
        """Check so many times; the last one."""
        for _ in range(times - 1):
            check_services(self.registry, self.watch)
        return check_services(self.registry, self.watch)

    def state(self, name: str) -> State:
        """What is known of a service."""
        with reading(self.engine) as connection:
            return read_states(connection)[name]

    def events(self, name: str) -> list[tuple[str, str, str]]:
        """Kind and states of all that happened to a service."""
        found = [row for row in rows(self.engine, service_events) if row["service"] == name]
        return [(row["kind"], row["before"], row["after"]) for row in found]


@pytest.fixture
def cache() -> Iterator[Daemon]:
    """A Redis that its script restarts."""
    with redis_daemon() as daemon:
        yield daemon


def home_of(engine: Engine, cache: Daemon, **fields: Any) -> Home:
    check = {"kind": "redis", "url_env": "CACHE"}
    one = restarted_by("cache", check, str(cache.restart_script), **({"timeout_seconds": 0.5} | fields))
    return Home(engine, registry(one), {"CACHE": cache.url})


RECOVERED = [
    ("transition", "unknown", "up"),
    ("transition", "up", "down"),
    ("transition", "down", "recovering"),
    ("restart", "down", "done"),
    ("transition", "recovering", "up"),
]


@pytest.mark.parametrize("happens", ["killed", "hung"])
def test_a_redis_that_was_killed_or_hangs_is_restarted_and_found_up_again(
    engine: Engine, cache: Daemon, happens: str
) -> None:
    home = home_of(engine, cache)
    assert (home.check().restarts, home.state("cache").state) == ((), "up")
    before = cache.number
    cache.kill() if happens == "killed" else hang(before)
    # One look is no proof.
    assert (home.check().restarts, home.state("cache").state, cache.restarts) == ((), "up", 0)
    started = time.monotonic()
    checked = home.check()
    assert time.monotonic() - started >= 0.4
    ((name, done),) = checked.restarts
    assert (name, done.ok, cache.restarts) == ("cache", True, 1)
    assert cache.number != before
    assert home.events("cache") == RECOVERED
    state = home.state("cache")
    assert (state.state, state.confirmed, len(state.restarts), state.grace_until) == ("up", "up", 1, None)
    told = [(event.kind, event.after) for event in checked.events]
    assert told == [("transition", "down"), ("restart", "done"), ("transition", "up")]
    found = {row["kind"]: row for row in rows(engine, service_events)}
    assert found["restart"]["duration_seconds"] > 0 and found["restart"]["run_id"] == "run-1"
    assert found["restart"]["reason"] == "restart by command"
    outcome = outcome_of(checked)
    assert (outcome.scanned, outcome.changed, outcome.failed, outcome.reasons) == (1, 1, 0, {"up": 1, "restarts": 1})
    # What has recovered is left alone.
    assert (home.check().restarts, cache.restarts) == ((), 1)


def test_a_postgresql_with_a_wrong_password_is_unknown_and_never_restarted(
    engine: Engine, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    one = restarted_by("db", {"kind": "postgresql", "url_env": "DB"}, "touch", str(tmp_path / "restarted"))
    home = Home(engine, registry(one), {"DB": postgres_server.url("postgres", "no_such_role", PASSWORD)})
    home.check(4)
    assert (home.state("db").state, (tmp_path / "restarted").exists()) == ("unknown", False)
    assert PASSWORD not in str(rows(engine, service_events) + rows(engine, service_states))


def test_a_crash_loop_ends_given_up_after_exactly_its_budget_and_a_reset_brings_it_back(
    engine: Engine, tmp_path: Path
) -> None:
    """A broken configuration was restarted every minute for a weekend."""
    port, script = free_port(), tmp_path / "restart"
    # It starts well each time, and dies within its grace.
    dying = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(0.2)"
    script.write_text(f'#!/bin/sh\necho x >> {tmp_path}/count\n{sys.executable} -c "{dying}" >/dev/null 2>&1 &\n')
    script.chmod(0o755)
    check = {"kind": "tcp", "port": port}
    one = restarted_by("a", check, str(script), restarts=2, start_grace_seconds=0.5, up_after=2, down_after=3)
    home = Home(engine, registry(one))

    def restarts() -> int:
        return len((tmp_path / "count").read_text().split()) if (tmp_path / "count").exists() else 0

    made = []
    for _ in range(15):
        made += home.check().restarts
        if home.state("a").state == "given_up":
            break
    assert (home.state("a").state, restarts()) == ("given_up", 2)
    assert [done.ok for _, done in made] == [False, False]
    assert "not up after its grace" in made[0][1].output
    given_up = [event for event in home.events("a") if event[2] == "given_up"]
    home.check(3)
    assert (home.state("a").state, restarts()) == ("given_up", 2)
    assert given_up == [event for event in home.events("a") if event[2] == "given_up"] != []
    command_reset(engine, one)
    home.check(3)
    assert restarts() == 4


def test_a_restart_that_fails_is_told_with_what_it_said(engine: Engine) -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0"
    one = restarted_by(
        "a", {"kind": "redis", "url_env": "URL"}, "sh", "-c", f"echo no {url} {PASSWORD}; exit 1", restarts=1
    )
    home = Home(engine, registry(one), {"URL": url})
    ((_, done),) = home.check(2).restarts
    assert (done.ok, done.output) == (False, "exit status 1: no *** ***")
    assert ("restart", "down", "failed") in home.events("a")
    found = rows(engine, service_events) + rows(engine, service_states)
    assert "no *** ***" in str(found) and PASSWORD not in str(found)


def test_a_manual_service_is_told_once_with_its_steps_and_not_at_every_look(engine: Engine) -> None:
    one = service("db", NOBODY_LISTENS, recovery="manual", steps="Call Anna.")
    home = Home(engine, registry(one))
    home.check(5)
    alerts = [row for row in rows(engine, service_events) if row["kind"] == "alert"]
    assert [row["reason"] for row in alerts] == ["recovery is manual: Call Anna."]


def test_a_child_is_not_restarted_while_its_parent_is_down(engine: Engine, tmp_path: Path) -> None:
    parent = service("db", NOBODY_LISTENS)
    child = restarted_by("api", NOBODY_LISTENS, "touch", str(tmp_path / "restarted"), depends_on=["db"])
    home = Home(engine, registry(parent, child))
    decisions = {one.service.name: (one.action, one.reason) for one in home.check(3).decisions}
    assert decisions["api"] == ("suppressed", "because of db")
    assert not (tmp_path / "restarted").exists()
    alerts = [row["reason"] for row in rows(engine, service_events) if row["kind"] == "alert"]
    assert sorted(alerts) == ["because of db", "recovery is none"]


def test_when_most_services_fail_at_once_none_is_restarted(engine: Engine, tmp_path: Path) -> None:
    services = [restarted_by(f"a{n}", NOBODY_LISTENS, "touch", str(tmp_path / "restarted")) for n in range(3)]
    home = Home(engine, registry(*services, mass_failure_fewest=3))
    checked = home.check(3)
    assert {one.action for one in checked.decisions} == {"refused"}
    assert (checked.restarts, (tmp_path / "restarted").exists()) == ((), False)
    assert "3 of 3 services fail at once" in checked.decisions[0].reason


def test_of_one_host_one_service_is_restarted_at_a_time_and_of_two_hosts_both(engine: Engine, tmp_path: Path) -> None:
    hosts = {"a": "one", "b": "one", "c": "two"}
    services = [restarted_by(name, NOBODY_LISTENS, "true", host=host, restarts=1) for name, host in hosts.items()]
    checked = Home(engine, registry(*services)).check(2)
    assert [name for name, _ in checked.restarts] == ["a", "c"]
    assert [one.action for one in checked.decisions if one.service.name == "b"] == ["wait"]


def test_in_maintenance_nothing_is_restarted_and_afterwards_it_is(engine: Engine, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    one = restarted_by("a", NOBODY_LISTENS, "touch", str(tmp_path / "restarted"))
    home = Home(engine, registry(one))
    command_maintenance(engine, one, now + timedelta(hours=1), "moving")
    home.check(4)
    assert (home.state("a").state, (tmp_path / "restarted").exists()) == ("maintenance", False)
    command_maintenance(engine, one, now - timedelta(seconds=1), "moved")
    home.check(2)
    assert (tmp_path / "restarted").exists()


def test_systemd_and_supervisord_bring_a_real_service_back(engine: Engine) -> None:
    port, other = free_port(), free_port()
    listen = (
        "import socket, time; s = socket.create_server(('127.0.0.1', int(__import__('sys').argv[1]))); time.sleep(60)"
    )
    started = f'exec {sys.executable} -c "{listen}" {port} >/dev/null 2>&1 & echo $! > pid\n'
    program = f'{sys.executable} -c "{listen}" {other}'
    with scripted_systemctl() as systemctl, supervisord({"listener": program}) as running:
        systemctl.on_restart("a.service", started)
        grace: dict[str, Any] = {"start_grace_seconds": 1, "recovery": "auto"}
        action = {"kind": "supervisor", "url": running.url, "program": "listener"}
        services = (
            service("unit", {"kind": "tcp", "port": port}, action={"kind": "systemd", "unit": "a.service"}, **grace),
            service("program", {"kind": "tcp", "port": other}, action=action, host="two", **grace),
        )
        home = Home(engine, registry(*services))
        os.kill(running.info("listener")["pid"], signal.SIGKILL)
        try:
            checked = home.check(3)
            states = {name: home.state(name).state for name in ("unit", "program")}
            assert states == {"unit": "up", "program": "up"}, (checked, rows(engine, service_events))
            assert systemctl.restarted == ["a.service"]
        finally:
            os.kill(int((systemctl.folder / "pid").read_text()), signal.SIGKILL)


def test_a_checker_that_dies_between_claim_and_restart_has_used_up_budget(engine: Engine, tmp_path: Path) -> None:
    """A restart that took the checker down with it was made again and again."""
    script = tmp_path / "check.py"
    script.write_text(
        "import sys, time\n"
        "from ops_pipeline.database.engine import connect\n"
        "from ops_pipeline.services.check import Watch, check_services\n"
        "from ops_pipeline_tests.services.processes import registry, restarted_by\n"
        "one = restarted_by('a', {'kind': 'tcp', 'port': 1}, 'sh', '-c', 'kill -9 $PPID; sleep 1',\n"
        "    restarts=1, down_after=1)\n"
        "check_services(registry(one), Watch(connect(sys.argv[1]), lambda name: None, time.sleep))\n"
    )
    names = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    url = engine.url.render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, str(script), url], env=names, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    one = restarted_by("a", NOBODY_LISTENS, "touch", str(tmp_path / "restarted"), restarts=1, down_after=1)
    home = Home(engine, registry(one))
    assert (home.state("a").state, len(home.state("a").restarts)) == ("recovering", 1)
    time.sleep(0.5)
    home.check(2)
    assert (home.state("a").state, (tmp_path / "restarted").exists()) == ("given_up", False)


def test_two_checkers_at_once_restart_once(engine: Engine, cache: Daemon) -> None:
    home = home_of(engine, cache)
    home.check()
    cache.kill()
    home.check()
    both = threading.Barrier(2)
    found: list[Checked] = []

    def check() -> None:
        both.wait()
        found.append(home.check())

    threads = [threading.Thread(target=check) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert (cache.restarts, sum(len(one.restarts) for one in found)) == (1, 1)
    assert len(home.state("cache").restarts) == 1


def test_a_look_ahead_tells_what_would_be_restarted_and_writes_nothing(engine: Engine, cache: Daemon) -> None:
    home = home_of(engine, cache)
    assert prospect(home.registry, home.watch).due
    assert rows(engine, service_states) == rows(engine, service_events) == []
    home.check()
    assert not prospect(home.registry, home.watch).due
    cache.kill()
    home.check()
    before = rows(engine, service_states), rows(engine, service_events)
    found = prospect(home.registry, home.watch)
    assert (found.due, found.changed) == (True, ("cache",))
    (change,) = plan_of(found).changes
    assert change.action == "restart"
    assert (rows(engine, service_states), rows(engine, service_events), cache.restarts) == (*before, 0)


def test_hung_services_cost_their_deadline_together(engine: Engine) -> None:
    with serving(silent) as port:
        check = {"kind": "http", "url": f"http://127.0.0.1:{port}/"}
        services: Sequence[Any] = [service(f"a{number}", check, timeout_seconds=0.5) for number in range(40)]
        home = Home(engine, registry(*services))
        started = time.monotonic()
        home.check()
        assert time.monotonic() - started < 1.5
