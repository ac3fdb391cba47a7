"""The registry of services: what it may hold, and that every mistake is told by its line."""

from __future__ import annotations

import random
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.services.registry import (
    CommandAction,
    CommandCheck,
    HttpCheck,
    LibvirtCheck,
    Maintenance,
    PidfileCheck,
    PostgresqlCheck,
    RedisCheck,
    Registry,
    Service,
    SupervisorAction,
    SystemdAction,
    SystemdCheck,
    TcpCheck,
    WebSocketCheck,
    read_registry,
)
from ops_pipeline.strict_yaml import FileRefused
from ops_pipeline_tests.usage.calls import at, examples

ONE = """\
services:
- name: web
  description: The shop
  recovery: auto
  check: {kind: systemd, unit: nginx.service}
  action: {kind: systemd, unit: nginx.service}
"""
"""A valid file of six lines; more fields of its service may follow."""
QUIET = "- {name: %s, description: d, recovery: none, check: {kind: tcp, port: 80}, depends_on: [%s]}\n"
"""One more service on one line: its name and what it depends on."""
WINDOW = "  maintenance:\n  - from: 2026-03-10T12:00:00Z\n    until: 2026-03-10T14:00:00+01:00\n"

FULL = """\
alert: ops@example.org
concurrency: 20
mass_failure_share: 0.3
mass_failure_fewest: 5
services:
- name: libvirtd
  description: Virtual machines
  critical: true
  recovery: auto
  check: {kind: systemd, unit: libvirtd.service}
  action: {kind: systemd, unit: libvirtd.service}
  host: node-1
  timeout_seconds: 2.5
  down_after: 4
  up_after: 1
  restarts: 2
  window_minutes: 30
  wait_seconds: 20
  start_grace_seconds: 45
  action_timeout_seconds: 90
  maintenance:
  - {from: 2026-03-10T12:00:00Z, until: 2026-03-10T14:00:00Z, reason: new disks}
- name: database
  description: Calls and users
  critical: true
  recovery: manual
  check: {kind: postgresql, url_env: DATABASE_URL}
  steps: Read the log, then call Anna.
  alert: dba@example.org
  depends_on: [libvirtd]
  runs_this: true
"""

CHECKS: dict[str, Any] = {
    "{kind: systemd, unit: getty@tty1.service}": SystemdCheck(kind="systemd", unit="getty@tty1.service"),
    "{kind: tcp, port: 65535}": TcpCheck(kind="tcp", host="127.0.0.1", port=65_535),
    "{kind: http, url: 'https://h:1/a?b=c', status: [200, 401], contains: ok}": HttpCheck(
        kind="http", url="https://h:1/a?b=c", status=(200, 401), contains="ok"
    ),
    "{kind: postgresql, url_env: PG}": PostgresqlCheck(kind="postgresql", url_env="PG"),
    "{kind: redis, url_env: _R1}": RedisCheck(kind="redis", url_env="_R1"),
    "{kind: libvirt}": LibvirtCheck(kind="libvirt", uri="qemu:///system"),
    "{kind: websocket, url: 'ws://h:2001', contains: up}": WebSocketCheck(
        kind="websocket", url="ws://h:2001", message='{"type": "health_check"}', contains="up"
    ),
    "{kind: pidfile, path: /run/a.pid, process: a}": PidfileCheck(kind="pidfile", path=Path("/run/a.pid"), process="a"),
    "{kind: command, command: [pg_isready, -q], ok: [0, 1], unknown: [3]}": CommandCheck(
        kind="command", command=("pg_isready", "-q"), ok=(0, 1), unknown=(3,)
    ),
}
ACTIONS: dict[str, Any] = {
    "{kind: systemd, unit: a.service}": SystemdAction(kind="systemd", unit="a.service"),
    "{kind: command, command: [/etc/init.d/a, restart]}": CommandAction(
        kind="command", command=("/etc/init.d/a", "restart")
    ),
    "{kind: supervisor, url: 'http://127.0.0.1:9001/RPC2', program: a}": SupervisorAction(
        kind="supervisor", url="http://127.0.0.1:9001/RPC2", program="a"
    ),
}


def read(folder: Path, content: str) -> Registry:
    """Read a file of this content."""
    path = folder / "services.yaml"
    path.write_text(content)
    return read_registry(path)


def refusal(folder: Path, content: str) -> list[str]:
    """The lines of the message about a file that is refused, without its path."""
    with pytest.raises(FileRefused) as caught:
        read(folder, content)
    prefix = f"{folder}/services.yaml:"
    lines = str(caught.value).splitlines()
    assert [line for line in lines if not line.startswith(prefix)] == []
    return [line.removeprefix(prefix) for line in lines]


# What is taken


def test_every_field_of_a_full_file_is_read(tmp_path: Path) -> None:
    window = Maintenance.model_validate(
        {"from": at("2026-03-10 12:00"), "until": at("2026-03-10 14:00"), "reason": "new disks"}
    )
    libvirtd = Service(
        name="libvirtd",
        description="Virtual machines",
        critical=True,
        recovery="auto",
        check=SystemdCheck(kind="systemd", unit="libvirtd.service"),
        action=SystemdAction(kind="systemd", unit="libvirtd.service"),
        host="node-1",
        timeout_seconds=2.5,
        down_after=4,
        up_after=1,
        restarts=2,
        window_minutes=30,
        wait_seconds=20,
        start_grace_seconds=45,
        action_timeout_seconds=90,
        maintenance=(window,),
    )
    database = Service(
        name="database",
        description="Calls and users",
        critical=True,
        recovery="manual",
        check=PostgresqlCheck(kind="postgresql", url_env="DATABASE_URL"),
        steps="Read the log, then call Anna.",
        alert="dba@example.org",
        depends_on=("libvirtd",),
        runs_this=True,
    )
    registry = read(tmp_path, FULL)
    assert registry == Registry(
        alert="ops@example.org",
        concurrency=20,
        mass_failure_share=0.3,
        mass_failure_fewest=5,
        services=(libvirtd, database),
    )
    assert registry.by_name() == {"libvirtd": libvirtd, "database": database}
    assert (libvirtd.window, libvirtd.start_grace) == (timedelta(minutes=30), timedelta(seconds=45))


def test_a_service_needs_no_more_than_what_it_is_and_how_it_is_looked_at(tmp_path: Path) -> None:
    registry = read(tmp_path, ONE)
    limits = registry.model_dump(exclude={"services"})
    assert limits == {"alert": "", "concurrency": 100, "mass_failure_share": 0.5, "mass_failure_fewest": 3}
    (service,) = registry.services
    assert service.model_dump(exclude={"name", "description", "recovery", "check", "action"}) == {
        "critical": False,
        "steps": "",
        "alert": "",
        "host": "local",
        "depends_on": (),
        "timeout_seconds": 5,
        "down_after": 3,
        "up_after": 2,
        "restarts": 3,
        "window_minutes": 15,
        "wait_seconds": 10,
        "start_grace_seconds": 30,
        "action_timeout_seconds": 60,
        "maintenance": (),
        "runs_this": False,
    }


@pytest.mark.parametrize("check", CHECKS)
def test_every_kind_of_check_is_taken(tmp_path: Path, check: str) -> None:
    (service,) = read(tmp_path, ONE.replace("{kind: systemd, unit: nginx.service}", check, 1)).services
    assert service.check == CHECKS[check]


@pytest.mark.parametrize("action", ACTIONS)
def test_every_kind_of_action_is_taken(tmp_path: Path, action: str) -> None:
    text = ONE.replace("action: {kind: systemd, unit: nginx.service}", f"action: {action}")
    assert read(tmp_path, text).services[0].action == ACTIONS[action]


def test_the_example_of_the_docs_can_be_used() -> None:
    """The first thing an operator does is to copy it."""
    path = Path(__file__).parents[2] / "docs" / "services.example.yaml"
    assert {service.recovery for service in read_registry(path).services} == {"auto", "manual", "none"}


def test_a_window_is_open_from_its_first_moment_until_before_its_last(tmp_path: Path) -> None:
    (window,) = read(tmp_path, ONE + WINDOW).services[0].maintenance
    second = timedelta(seconds=1)
    start, until = at("2026-03-10 12:00"), at("2026-03-10 13:00")
    assert (window.start, window.until, window.reason) == (start, until, "maintenance")
    covered = [window.covers(moment) for moment in (start - second, start, until - second, until)]
    assert covered == [False, True, True, False]


# What is refused


def refused_with(folder: Path, field: str) -> list[str]:
    """The message about the valid service with this field on its seventh line."""
    return refusal(folder, f"{ONE}  {field}\n")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("colour: red", "7: services.0.colour: unknown field"),
        ("restart: 3", "7: services.0.restart: unknown field"),
        ("down_after: 0", "7: services.0.down_after: Input should be greater than or equal to 1"),
        ("restarts: 0", "7: services.0.restarts: Input should be greater than or equal to 1"),
        ("window_minutes: 0", "7: services.0.window_minutes: Input should be greater than 0"),
        ("start_grace_seconds: 601", "7: services.0.start_grace_seconds: Input should be less than or equal to 600"),
        ("wait_seconds: -1", "7: services.0.wait_seconds: Input should be greater than or equal to 0"),
        ("depends_on: [nowhere]", "7: services.0.depends_on: nowhere is no service of this file"),
        ("depends_on: [web]", "7: services.0.depends_on: depends on itself: web -> web"),
        ("name: web", "2: name stands here 2 times"),
    ],
)
def test_a_field_that_cannot_be_used_is_told_with_its_line(tmp_path: Path, field: str, message: str) -> None:
    assert message in refused_with(tmp_path, field)


@pytest.mark.parametrize("recovery", ["automatic", "Auto", "yes", "null", "''", "restart"])
def test_an_unknown_recovery_is_told_with_its_line(tmp_path: Path, recovery: str) -> None:
    """A misspelt recovery made a service that nobody recovered."""
    text = ONE.replace("recovery: auto", f"recovery: {recovery}")
    assert refusal(tmp_path, text) == ["4: services.0.recovery: Input should be 'auto', 'manual' or 'none'"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  description: The shop\n", "", "2: services.0.description: Field required"),
        ("  recovery: auto\n", "", "2: services.0.recovery: Field required"),
        (
            "unit: nginx.service}\n  action",
            "colour: red}\n  action",
            "5: services.0.check.systemd.unit: Field required",
        ),
        ("unit: nginx.service}\n  action", "unit: a, b: c}\n  action", "5: services.0.check.systemd.b: unknown field"),
        ("name: web", "name: the shop", "2: services.0.name: String should match pattern"),
        ("name: web", "name: -web", "2: services.0.name: String should match pattern"),
        ("services:", "service:", "1: service: unknown field"),
        ("services:", "mass_failure_share: 1.1\nservices:", "1: mass_failure_share: Input should be less than"),
    ],
)
def test_what_is_missing_or_misspelt_is_told_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    lines = refusal(tmp_path, ONE.replace(old, new, 1))
    assert [line for line in lines if line.startswith(message)] != [], lines


@pytest.mark.parametrize("kind", ["ping", "Systemd", "''"])
def test_an_unknown_kind_of_check_is_told_with_the_kinds_that_there_are(tmp_path: Path, kind: str) -> None:
    (line,) = refusal(tmp_path, ONE.replace("kind: systemd", f"kind: {kind}", 1))
    assert line.startswith(f"5: services.0.check: Input tag '{kind.strip(chr(39))}' found using 'kind' does not match")
    assert "'systemd', 'tcp', 'http', 'postgresql', 'redis', 'libvirt', 'websocket', 'pidfile', 'command'" in line


@pytest.mark.parametrize("services", ["services: []\n", "services:\n", "{}\n"])
def test_an_empty_registry_is_refused_instead_of_being_all_green(tmp_path: Path, services: str) -> None:
    (line,) = refusal(tmp_path, services)
    assert line.startswith("1: services: ")


def test_a_registry_that_is_not_there_is_told_with_the_variable_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match=r"services.yaml: No such file or directory. Correct SERVICES_FILE."):
        read_registry(tmp_path / "services.yaml")


def test_a_name_that_stands_there_twice_is_told_at_both_places(tmp_path: Path) -> None:
    """Of two services of one name the second one's state overwrote the first one's."""
    message = "name: web stands here 2 times"
    assert refusal(tmp_path, ONE + QUIET % ("web", "")) == [f"2: services.0.{message}", f"7: services.1.{message}"]


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = ONE.replace("auto", "sometimes") + "  colour: red\n" + QUIET.replace("recovery", "recover") % ("b", "")
    assert [line.partition(": ")[0] for line in refusal(tmp_path, text)] == ["4", "7", "8", "8"]


@pytest.mark.parametrize(
    "url", ["ftp://h", "h:80", "http://", "http://anna:geheim@h/", "https://geheim@h/x", "http://h h"]
)
def test_a_url_without_a_host_or_with_a_password_is_refused(tmp_path: Path, url: str) -> None:
    text = ONE.replace("{kind: systemd, unit: nginx.service}", f"{{kind: http, url: '{url}'}}", 1)
    (line,) = refusal(tmp_path, text)
    assert line.startswith("5: services.0.check.http.url: no such URL; write for example http://127.0.0.1:8080/health")
    assert "geheim" not in line


# What does not go together


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("recovery: auto", "recovery auto needs an action"),
        ("recovery: manual", "recovery manual needs steps, which the alert tells"),
        (
            "recovery: none\n  action: {kind: systemd, unit: a}",
            "an action is never taken with recovery none: leave it out",
        ),
        (
            "recovery: manual\n  steps: Call.\n  action: {kind: systemd, unit: a}",
            "an action is never taken with recovery manual: leave it out",
        ),
        (
            "recovery: auto\n  action: {kind: systemd, unit: a}\n  runs_this: true",
            "what runs this deployment is never restarted by it: set recovery to manual or none",
        ),
    ],
)
def test_a_recovery_that_cannot_be_meant_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    """The database of the deployment was restarted by the deployment, which died of it."""
    head, _, _ = ONE.partition("  recovery")
    text = f"{head}  check: {{kind: tcp, port: 1}}\n  {lines}\n"
    assert refusal(tmp_path, text) == [f"2: services.0: {message}"]


def test_a_critical_service_must_have_somebody_who_is_told(tmp_path: Path) -> None:
    critical = f"{ONE}  critical: true\n"
    message = "services.0: web is critical, and nobody is told: name an alert, here or for all"
    assert refusal(tmp_path, critical) == [f"2: {message}"]
    assert read(tmp_path, f"{critical}  alert: anna\n").services[0].alert == "anna"
    assert read(tmp_path, f"{critical}alert: ops\n").alert == "ops"


@pytest.mark.parametrize(
    ("window", "line", "message"),
    [
        ("{from: 2026-03-10T12:00:00Z}", 8, "until: Field required"),
        ("{until: 2026-03-10T12:00:00Z}", 8, "from: Field required"),
        ("{from: 2026-03-10T12:00:00, until: 2026-03-10T13:00:00Z}", 8, "from: Input should have timezone info"),
        ("{from: 2026-03-10T12:00:00Z, until: 2026-03-10}", 8, "until: Input should have timezone info"),
        ("{from: 2026-03-10T12:00:00Z, until: 2026-03-10T12:00:00Z}", 8, "a window ends after it begins"),
        ("{from: 2026-03-10T12:00:00Z, until: 2026-03-10T11:59:59Z}", 8, "a window ends after it begins"),
        ("{from: 2026-03-10T12:00:00Z, until: 2026-04-10T12:00:01Z}", 8, "and within 31 days"),
    ],
)
def test_a_maintenance_window_must_have_an_end_within_a_month(
    tmp_path: Path, window: str, line: int, message: str
) -> None:
    """A window was forgotten, and nobody was told of the outage two months later."""
    (told,) = refusal(tmp_path, f"{ONE}  maintenance:\n  - {window}\n")
    assert told.startswith(f"{line}: services.0.maintenance.0")
    assert message in told


def test_a_cycle_of_dependencies_is_told_with_the_names_along_it(tmp_path: Path) -> None:
    text = "services:\n" + QUIET % ("a", "b") + QUIET % ("b", "c") + QUIET % ("c", "d, b") + QUIET % ("d", "")
    assert refusal(tmp_path, text) == ["3: services.1.depends_on: depends on itself: b -> c -> b"]


@given(st.integers(2, 12), st.randoms(use_true_random=False), st.data())
@examples(60)
def test_every_cycle_is_found_and_no_other_registry_is_refused(
    tmp_path: Path, count: int, chance: random.Random, data: st.DataObject
) -> None:
    names = [f"s{number}" for number in range(count)]
    chance.shuffle(names)
    parents = {
        name: data.draw(st.sets(st.sampled_from(names[:index]))) if index else set() for index, name in enumerate(names)
    }
    order = sorted(names)

    def text() -> str:
        return "services:\n" + "".join(QUIET % (name, ", ".join(sorted(parents[name]))) for name in order)

    assert {one.name: set(one.depends_on) for one in read(tmp_path, text()).services} == parents
    length = data.draw(st.integers(1, count))
    ring = data.draw(st.permutations(names))[:length]
    for one, following in zip(ring, [*ring[1:], ring[0]], strict=True):
        parents[one].add(following)
    (line,) = refusal(tmp_path, text())
    found = line.partition("depends on itself: ")[2].split(" -> ")
    assert found[0] == found[-1]
    assert all(following in parents[one] for one, following in pairwise(found))
    assert line.startswith(f"{order.index(found[0]) + 2}: ")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"check": {"kind": "postgresql", "url_env": "DATABASE_URL"}}, "this deployment's database is never restarted"),
        ({"window_minutes": 0.5, "start_grace_seconds": 30}, "a window that is no longer than the start grace"),
    ],
)
def test_what_cannot_have_been_meant_is_refused(fields: dict[str, object], said: str) -> None:
    given = {
        "name": "one",
        "description": "One.",
        "recovery": "auto",
        "check": {"kind": "tcp", "port": 80},
        "action": {"kind": "command", "command": ["true"]},
    }
    with pytest.raises(ValueError, match=said):
        Service.model_validate(given | fields)


def test_an_argument_of_a_command_may_be_empty_and_its_program_may_not() -> None:
    """`redis-server --save ""` was refused, for its last word."""
    check = CommandCheck(kind="command", command=("redis-server", "--save", ""))
    assert check.command[-1] == ""
    with pytest.raises(ValueError, match="its first word names no program"):
        CommandCheck(kind="command", command=(" ", "a"))
