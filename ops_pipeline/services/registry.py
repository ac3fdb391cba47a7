"""The registry of known services (SERVICES_FILE): a YAML file, to which a new service is added without any code.

What belongs here: what may stand in the file, and what is wrong with it. What does not: looking at services.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, model_validator

from ops_pipeline.strict_yaml import Problem, Strict, read_strictly

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Words = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
Argument = Annotated[str, StringConstraints(max_length=4000)]


def _names_a_program(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command[0].strip():
        raise ValueError("its first word names no program")
    return command


Command = Annotated[tuple[Argument, ...], Field(min_length=1, max_length=100), AfterValidator(_names_a_program)]
"""A program and its arguments, of which any may be empty."""
LONGEST_MAINTENANCE = timedelta(days=31)


def _url(schemes: str, example: str) -> AfterValidator:
    def check(text: str) -> str:
        if re.fullmatch(rf"({schemes})://[^/?#@\s]+(/[^@\s]*)?", text) is None:
            raise ValueError(f"no such URL; write for example {example} (no user, no password)")
        return text

    return AfterValidator(check)


class SystemdCheck(Strict):
    """A unit of systemd is active; one that its socket wakes may be idle."""

    kind: Literal["systemd"]
    unit: Name


class TcpCheck(Strict):
    """A port takes connections."""

    kind: Literal["tcp"]
    host: Name = "127.0.0.1"
    port: int = Field(ge=1, le=65_535)


class HttpCheck(Strict):
    """A page answers with one of these statuses, and holds a text."""

    kind: Literal["http"]
    url: Annotated[str, _url("https?", "http://127.0.0.1:8080/health")]
    status: tuple[Annotated[int, Field(ge=100, le=599)], ...] = Field(default=(200,), min_length=1)
    contains: str = ""


class PostgresqlCheck(Strict):
    """A PostgreSQL answers SELECT 1; its URL stands in a variable, since it holds a password."""

    kind: Literal["postgresql"]
    url_env: Variable


class RedisCheck(Strict):
    """A Redis answers PING; its URL stands in a variable, since it may hold a password."""

    kind: Literal["redis"]
    url_env: Variable


class LibvirtCheck(Strict):
    """A hypervisor takes connections."""

    kind: Literal["libvirt"]
    uri: Words = "qemu:///system"


class WebSocketCheck(Strict):
    """A WebSocket answers a message with one that holds a text."""

    kind: Literal["websocket"]
    url: Annotated[str, _url("wss?", "ws://127.0.0.1:2001")]
    message: str = '{"type": "health_check"}'
    contains: str = ""


class PidfileCheck(Strict):
    """The process whose number stands in a file lives, and has this name if one is given."""

    kind: Literal["pidfile"]
    path: Path
    process: str = ""


class CommandCheck(Strict):
    """A command ends with one of these exit statuses; with one of the others that nobody can tell."""

    kind: Literal["command"]
    command: Command
    ok: tuple[int, ...] = (0,)
    unknown: tuple[int, ...] = (126, 127)


ServiceCheck = Annotated[
    SystemdCheck
    | TcpCheck
    | HttpCheck
    | PostgresqlCheck
    | RedisCheck
    | LibvirtCheck
    | WebSocketCheck
    | PidfileCheck
    | CommandCheck,
    Field(discriminator="kind"),
]


class SystemdAction(Strict):
    """Restart a unit of systemd."""

    kind: Literal["systemd"]
    unit: Name


class CommandAction(Strict):
    """Run a command."""

    kind: Literal["command"]
    command: Command


class SupervisorAction(Strict):
    """Restart a program of supervisord, over its XML-RPC interface."""

    kind: Literal["supervisor"]
    url: Annotated[str, _url("http", "http://127.0.0.1:9001/RPC2")]
    program: Name


Action = Annotated[SystemdAction | CommandAction | SupervisorAction, Field(discriminator="kind")]


class Maintenance(Strict):
    """A window without recovery and alerts; it must have an end."""

    start: AwareDatetime = Field(alias="from")
    until: AwareDatetime
    reason: Words = "maintenance"

    @model_validator(mode="after")
    def _ends(self) -> Maintenance:
        if not self.start < self.until <= self.start + LONGEST_MAINTENANCE:
            raise ValueError("a window ends after it begins, and within 31 days")
        return self

    def covers(self, now: datetime) -> bool:
        """Whether the window is open."""
        return self.start <= now < self.until


class Service(Strict):
    """One known service."""

    name: Name
    description: Words
    critical: bool = False
    recovery: Literal["auto", "manual", "none"]
    check: ServiceCheck
    action: Action | None = None
    steps: str = Field(default="", max_length=4000)
    alert: str = Field(default="", max_length=200)
    host: Name = "local"
    depends_on: tuple[Name, ...] = ()
    timeout_seconds: float = Field(default=5, gt=0, le=50)
    down_after: int = Field(default=3, ge=1, le=100)
    up_after: int = Field(default=2, ge=1, le=100)
    restarts: int = Field(default=3, ge=1, le=100)
    window_minutes: float = Field(default=15, gt=0, le=10_080)
    wait_seconds: float = Field(default=10, ge=0, le=3600)
    start_grace_seconds: float = Field(default=30, ge=0, le=600)
    action_timeout_seconds: float = Field(default=60, gt=0, le=600)
    maintenance: tuple[Maintenance, ...] = ()
    runs_this: bool = False

    @model_validator(mode="after")
    def _makes_sense(self) -> Service:
        if self.recovery == "auto" and self.action is None:
            raise ValueError("recovery auto needs an action")
        if self.recovery == "auto" and self.runs_this:
            raise ValueError("what runs this deployment is never restarted by it: set recovery to manual or none")
        if self.recovery == "auto" and getattr(self.check, "url_env", "") == "DATABASE_URL":
            raise ValueError("this deployment's database is never restarted by it: set recovery to manual or none")
        if self.window <= self.start_grace:
            raise ValueError("a window that is no longer than the start grace forgets every restart at once")
        if self.recovery == "manual" and not self.steps:
            raise ValueError("recovery manual needs steps, which the alert tells")
        if self.recovery != "auto" and self.action is not None:
            raise ValueError(f"an action is never taken with recovery {self.recovery}: leave it out")
        return self

    @property
    def window(self) -> timedelta:
        """The time in which at most `restarts` restarts are made."""
        return timedelta(minutes=self.window_minutes)

    @property
    def start_grace(self) -> timedelta:
        """How long a service may take to start, and must stay up to count as recovered."""
        return timedelta(seconds=self.start_grace_seconds)


class Registry(Strict):
    """All known services, and what holds for all of them.

    Attributes:
        alert: who is told of services that name nobody.
        concurrency: checks at the same time.
        mass_failure_share: when so large a share is down at once, the host or the network is sick: no recovery.
        mass_failure_fewest: with fewer down services that rule is not applied.
        services: in any order.
    """

    alert: str = Field(default="", max_length=200)
    concurrency: int = Field(default=100, ge=1, le=1000)
    mass_failure_share: float = Field(default=0.5, gt=0, le=1)
    mass_failure_fewest: int = Field(default=3, ge=1, le=10_000)
    services: tuple[Service, ...] = Field(min_length=1)

    def by_name(self) -> dict[str, Service]:
        """The services by name."""
        return {service.name: service for service in self.services}


def read_registry(path: Path) -> Registry:
    """Read and validate a registry.

    Raises:
        FileRefused: it cannot be used; every reason is told, by line.
    """
    return read_strictly(path, Registry, hint="Correct SERVICES_FILE.", further=_of_services)


def _of_services(registry: Registry) -> list[Problem]:
    """What no single field shows."""
    found: list[Problem] = []
    times = Counter(service.name for service in registry.services)
    for index, service in enumerate(registry.services):
        place = ("services", index)
        if times[service.name] > 1:
            found.append(((*place, "name"), f"{service.name} stands here {times[service.name]} times"))
        found += [
            ((*place, "depends_on"), f"{parent} is no service of this file")
            for parent in service.depends_on
            if parent not in times
        ]
        if service.critical and not (service.alert or registry.alert):
            found.append((place, f"{service.name} is critical, and nobody is told: name an alert, here or for all"))
    cycle = _cycle(registry)
    if cycle:
        index = next(index for index, one in enumerate(registry.services) if one.name == cycle[0])
        found.append((("services", index, "depends_on"), f"depends on itself: {' -> '.join(cycle)}"))
    return found


def _cycle(registry: Registry) -> list[str]:
    """The names along a cycle of dependencies; empty when there is none."""
    parents = {service.name: service.depends_on for service in registry.services}
    done: set[str] = set()

    def along(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for parent in parents.get(name, ()):
            found = along(parent, [*path, name])
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in parents if (found := along(name, []))), [])
