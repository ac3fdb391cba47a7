"""The commands `ops-pipeline services …`: what operators tell about services.

What belongs here: arguments and printing. What does not: any rule or query.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime

import click
from sqlalchemy import Engine

from ops_pipeline.database.engine import connect, reading
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.types import parse_instant
from ops_pipeline.services.registry import LONGEST_MAINTENANCE, Registry, Service, read_registry
from ops_pipeline.services.states import State
from ops_pipeline.services.store import command_maintenance, command_reset, read_states
from ops_pipeline.settings import SettingsError, load_settings
from ops_pipeline.strict_yaml import FileRefused


@click.group()
def services() -> None:
    """Known host services: what they are, and what an operator says of them."""


@services.command("list")
def list_services() -> None:
    """Show every known service with its state."""
    with _registry() as (registry, engine):
        with reading(engine) as connection:
            states = read_states(connection)
        for service in registry.services:
            state = states.get(service.name, State())
            since = f"since {state.since:%Y-%m-%d %H:%M} UTC" if state.since else "never looked at"
            click.echo(f"{service.name:<24} {state.state:<12} {since:<26} {state.reason}")


@services.command()
@click.argument("name")
def reset(name: str) -> None:
    """Forget what is held against a service: failures, restarts, and that it was given up."""
    with _registry() as (registry, engine):
        command_reset(engine, _named(registry, name))
        click.echo(f"{name} begins anew: it is looked at, and restarted where that is due, as if for the first time.")


@services.command()
@click.argument("name")
@click.option("--until", required=True, help="The end, ISO 8601, UTC without a zone; `now` ends a window.")
@click.option("--reason", default="by command", help="What is kept with it.")
def maintenance(name: str, until: str, reason: str) -> None:
    """Open a window without recovery and alerts; it must have an end."""
    now = datetime.now(UTC)
    try:
        end = now if until == "now" else parse_instant(until)
    except ValueError as error:
        raise click.UsageError(f"--until: {error}") from error
    if until != "now" and not now < end <= now + LONGEST_MAINTENANCE:
        raise click.UsageError(f"--until: {until} does not lie within the next {LONGEST_MAINTENANCE.days} days")
    with _registry() as (registry, engine):
        command_maintenance(engine, _named(registry, name), end, reason)
        told = "Maintenance has ended" if until == "now" else f"Maintenance until {end:%Y-%m-%d %H:%M} UTC"
        click.echo(f"{told}: {name}.")


@contextmanager
def _registry() -> Generator[tuple[Registry, Engine], None, None]:
    """The known services and the operations database; a problem becomes one line and exit status 1."""
    try:
        settings = load_settings()
        if settings.services_file is None:
            raise click.ClickException("SERVICES_FILE names no file of known services.")
        registry = read_registry(settings.services_file)
    except (SettingsError, FileRefused) as error:
        raise click.ClickException(str(error)) from error
    engine = connect(settings.operations_url())
    try:
        yield registry, engine
    except DatabaseProblem as problem:
        raise click.ClickException(str(problem)) from problem
    finally:
        engine.dispose()


def _named(registry: Registry, name: str) -> Service:
    found = registry.by_name().get(name)
    if found is None:
        raise click.ClickException(f"{name} is no known service; there are {', '.join(sorted(registry.by_name()))}.")
    return found
