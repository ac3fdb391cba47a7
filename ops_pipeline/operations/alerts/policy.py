"""Who is told, and when: the variables, and the YAML file of routes (ALERTS_FILE).

What belongs here: what may stand in the file, and the way from a cause to its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, StringConstraints

from ops_pipeline.operations.alerts.causes import Thresholds
from ops_pipeline.settings import Settings
from ops_pipeline.strict_yaml import Problem, Strict, read_strictly

Kind = Literal["webhook", "slack", "teams", "email", "apprise"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,60}$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Address = Annotated[str, StringConstraints(pattern=r"^[^@\s,<>]+@[^@\s,<>]+$")]
HINT = "ALERTS_FILE names it."


class ChannelOfFile(Strict):
    """A channel; its URL stands in a variable, since whoever knows it can write there."""

    name: Name
    kind: Kind
    url_env: Variable | None = None
    to: tuple[Address, ...] = ()


class Route(Strict):
    """Causes that match go to these channels, or to nobody; jobs among them are told of after so many failures."""

    match: str = Field(min_length=1)
    channels: tuple[Name, ...] = ()
    silent: bool = False
    after_failures: int | None = Field(default=None, ge=1, le=1000)


class AlertsFile(Strict):
    """The whole file."""

    channels: tuple[ChannelOfFile, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class Channel:
    """Where messages go.

    Attributes:
        name: as it is shown.
        kind: what is spoken there.
        url: of the webhook, the SMTP server or Apprise; a secret.
        to: addresses, for mail.
        sender: the address that mail comes from.
    """

    name: str
    kind: Kind
    url: SecretStr
    to: tuple[str, ...] = ()
    sender: str = ""


@dataclass(frozen=True)
class AlertPolicy:
    """Who is told of what.

    Attributes:
        channels: all there are, by the order of the environment and the file.
        default: names of channels for what no route names.
        routes: patterns of keys with names of channels; the first that matches counts.
        thresholds: failures in a row per job.
        remind_after: the pause between two messages about the same cause.
        most_per_hour: messages per channel.
        ui_url: the address of the web UI, for links; empty for none.
    """

    channels: tuple[Channel, ...] = ()
    default: tuple[str, ...] = ()
    routes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    thresholds: Thresholds = field(default_factory=Thresholds)
    remind_after: timedelta = timedelta(hours=24)
    most_per_hour: int = 30
    ui_url: str = ""

    def channels_of(self, key: str) -> tuple[str, ...]:
        """The names of the channels of a cause."""
        for pattern, names in self.routes:
            if fnmatchcase(key, pattern):
                return names
        return self.default


def read_policy(settings: Settings, secret: Callable[[str], SecretStr | None]) -> AlertPolicy:
    """The policy of the environment.

    Args:
        settings: the environment.
        secret: looks up a variable that the file names.

    Raises:
        FileRefused: the file cannot be used; every reason is told with its line.
    """
    own = _channels_of_environment(settings)
    file = _read_file(settings, own, secret) if settings.alerts_file else AlertsFile()
    named = tuple(_channel(one, settings, secret) for one in file.channels)
    by_job = {route.match.removeprefix("job:"): route.after_failures for route in file.routes if route.after_failures}
    return AlertPolicy(
        channels=(*own, *named),
        default=tuple(channel.name for channel in own) or tuple(channel.name for channel in named[:1]),
        routes=tuple((one.match, one.channels) for one in file.routes if one.channels or one.silent),
        thresholds=Thresholds(settings.alert_after_failures, by_job),
        remind_after=timedelta(hours=settings.alert_remind_hours),
        most_per_hour=settings.alert_max_per_hour,
        ui_url=settings.alert_ui_url.rstrip("/"),
    )


def _channels_of_environment(settings: Settings) -> list[Channel]:
    found = []
    if settings.alert_webhook_url.get_secret_value():
        found.append(Channel("webhook", settings.alert_webhook_format, settings.alert_webhook_url))
    if settings.alert_email_to:
        found.append(_mail("email", settings.alert_email_to, settings))
    if settings.alert_apprise_url.get_secret_value():
        found.append(Channel("apprise", "apprise", settings.alert_apprise_url))
    return found


def _mail(name: str, to: Sequence[str], settings: Settings) -> Channel:
    return Channel(name, "email", settings.alert_smtp_url, tuple(to), settings.alert_email_from or to[0])


def _channel(one: ChannelOfFile, settings: Settings, secret: Callable[[str], SecretStr | None]) -> Channel:
    if one.kind == "email":
        return _mail(one.name, one.to, settings)
    return Channel(one.name, one.kind, secret(one.url_env or "") or SecretStr(""))


def _read_file(settings: Settings, own: Sequence[Channel], secret: Callable[[str], SecretStr | None]) -> AlertsFile:
    def further(file: AlertsFile) -> list[Problem]:
        names = [channel.name for channel in own] + [channel.name for channel in file.channels]
        problems: list[Problem] = []
        for index, one in enumerate(file.channels):
            if names.count(one.name) > 1:
                problems.append((("channels", index, "name"), f"{one.name} stands here, or in the environment, twice"))
            if one.kind == "email" and not one.to:
                problems.append((("channels", index, "kind"), "mail needs `to`, a list of addresses"))
            elif one.kind != "email" and secret(one.url_env or "") is None:
                problems.append((("channels", index, "kind"), f"{one.kind} needs `url_env`, a variable that is set"))
        for index, route in enumerate(file.routes):
            if route.silent and route.channels:
                problems.append((("routes", index, "silent"), "a silent route goes to no channels"))
            unknown = sorted(set(route.channels) - set(names))
            place = ("routes", index, "channels")
            problems += [(place, f"there is no channel {name}; there are {', '.join(names)}") for name in unknown]
        return problems

    return read_strictly(Path(settings.alerts_file or ""), AlertsFile, hint=HINT, further=further)
