"""The command `ops-pipeline usage`.

What belongs here: arguments and printing. What does not: periods, queries and formats, which have modules of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Literal, get_args

import click
from sqlalchemy import Engine

from ops_pipeline.settings import Settings

Grouping = Literal["model", "user", "app", "provider", "type", "hour", "day"]
Format = Literal["table", "csv", "json"]


def usage_command(operations: Callable[[], AbstractContextManager[tuple[Settings, Engine]]]) -> click.Command:
    """Build the command; `operations` opens the operations database."""

    @click.command()
    @click.option("--from", "from_", default=None, help="First local day (both ends included), or a date and time.")
    @click.option("--to", default=None, help="Last local day, or a date and time that is not included.")
    @click.option("--by", type=click.Choice(get_args(Grouping)), default="model", help="What to group by.")
    @click.option("--tz", default="UTC", help="The reader's IANA time zone, for example Europe/Berlin.")
    @click.option("--format", "format_", type=click.Choice(get_args(Format)), default="table")
    def usage(from_: str | None, to: str | None, by: Grouping, tz: str, format_: Format) -> None:
        """Show calls, tokens and credits of a period, exact, from the hourly roll-up."""
        # Only this command needs them, and all are started often.
        from ops_pipeline.usage import formats, period, reading  # noqa: PLC0415

        now = datetime.now(UTC)
        with operations() as (_, engine):
            try:
                asked = period.parse_period(from_, to, tz, now)
            except ValueError as error:
                raise click.UsageError(f"--from, --to and --tz: {error}") from error
            table = reading.usage(engine, asked, by, now=now)
            click.echo(formats.render(table, format_), nl=False)
            note = formats.note(table)
            if note and format_ != "table":
                click.echo(note, err=True)

    return usage
