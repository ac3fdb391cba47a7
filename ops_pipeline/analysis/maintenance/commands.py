"""The commands `ops-pipeline restore …`: taking back what maintenance has begun.

What belongs here: arguments and printing. What does not: any rule or query.
"""

from __future__ import annotations

import click

from ops_pipeline.analysis.maintenance.application_store import clear_named
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
    except DatabaseProblem as problem:
        raise click.ClickException(str(problem)) from problem
    finally:
        engine.dispose()
    if not marked:
        raise click.ClickException(
            f"No application {name} is marked as missing. One that was deleted already is in an archive:"
            " `ops-pipeline archive list --kind generated_applications`."
        )
    for row in marked:
        click.echo(f"{row.name} was missing since {row.missing_since:%Y-%m-%d %H:%M} UTC, and is not marked any more.")
