"""The commands `ops-pipeline restore …`: taking back what maintenance has begun.

What belongs here: arguments and printing. What does not: any rule or query.
"""

from __future__ import annotations

import click

from ops_pipeline.analysis.maintenance.application_store import clear_named, is_known
from ops_pipeline.analysis.targets import parse_target
from ops_pipeline.database.engine import connect
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.settings import SettingsError, load_settings


@click.group()
def restore() -> None:
    """Take back what maintenance has begun, as long as its grace lasts."""


@restore.command("app")
@click.argument("name")
def restore_app(name: str) -> None:
    """Take the mark of the missing application NAME (MODEL/appN) away; its grace begins anew if it is still missing."""
    try:
        engine = connect(load_settings().operations_url())
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    try:
        marked = clear_named(engine, name)
        known = bool(marked) or is_known(engine, name)
    except DatabaseProblem as problem:
        raise click.ClickException(str(problem)) from problem
    finally:
        engine.dispose()
    if not marked:
        raise click.ClickException(_nothing_of(name, known=known))
    for row in marked:
        click.echo(f"{row.name} was missing since {row.missing_since:%Y-%m-%d %H:%M} UTC, and is not marked any more.")


def _nothing_of(name: str, *, known: bool) -> str:
    """Why there is no mark to take away, and what to do."""
    if known:
        return f"{name} is not marked as missing: there is nothing to take back."
    try:
        parse_target(name)
    except ValueError as error:
        return f"{error}."
    return (
        f"There is no application {name}. If maintenance has deleted it, it is in an archive: see `ops-pipeline archive"
        " list --kind generated_applications`, and put it back with `ops-pipeline archive restore KIND/ID`."
    )
