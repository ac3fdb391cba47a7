"""The command `ops-pipeline alerts`.

What belongs here: arguments, printing and exit status.
"""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from ops_pipeline.database.engine import connect, reading
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.operations.alerts.policy import AlertPolicy, read_policy
from ops_pipeline.operations.alerts.work import send_test
from ops_pipeline.operations.tables import alerts as alerts_table
from ops_pipeline.settings import Settings, SettingsError, load_settings, secret_variable
from ops_pipeline.strict_yaml import FileRefused

NO_CHANNEL = "No channel is configured: set ALERT_WEBHOOK_URL, ALERT_EMAIL_TO, ALERT_APPRISE_URL or ALERTS_FILE."
SHOWN_ENDED = 20
WIDTH = 124


@click.group()
def alerts() -> None:
    """What people are told of."""


@alerts.command("test")
def test() -> None:
    """Send a test message to every channel; exit status 1 when one does not get through."""
    _, policy = _configured()
    if not policy.channels:
        raise click.ClickException(NO_CHANNEL)
    results = send_test(policy)
    for channel, problem in results:
        mark = click.style("FAILED", fg="red") if problem else click.style("ok    ", fg="green")
        click.echo(f"{mark} {channel.name} ({channel.kind}){f': {problem}' if problem else ''}")
    if any(problem for _, problem in results):
        sys.exit(1)


@alerts.command("list")
@click.option("--all", "all_", is_flag=True, help="Also the last ones that are over.")
def list_(*, all_: bool) -> None:
    """Show what is wrong; exit status 1 when anything is."""
    settings, _ = _configured()
    engine = connect(settings.operations_url())
    column = alerts_table.c
    still = select(alerts_table).where(column.resolved_at.is_(None)).order_by(column.opened_at)
    ended = select(alerts_table).where(column.resolved_at.is_not(None)).order_by(column.resolved_at.desc())
    try:
        with reading(engine) as connection:
            now_open = connection.execute(still).all()
            over = connection.execute(ended.limit(SHOWN_ENDED)).all() if all_ else []
    except DatabaseProblem as problem:
        raise click.ClickException(str(problem)) from problem
    finally:
        engine.dispose()
    table = Table(title="Alerts (times in UTC)" if now_open or over else "Nothing is wrong")
    for name in ("since", "over", "severity", "cause", "what"):
        table.add_column(name, overflow="fold")
    for row in [*now_open, *over]:
        end = f"{row.resolved_at:%m-%d %H:%M}" if row.resolved_at else ""
        table.add_row(f"{row.opened_at:%m-%d %H:%M}", end, row.severity, row.cause, f"{row.title}: {row.detail}")
    # As wide as its longest cause, whatever reads it: cut names would tell nothing.
    Console(width=max(Console().width, WIDTH)).print(table)
    if now_open:
        sys.exit(1)


def _configured() -> tuple[Settings, AlertPolicy]:
    try:
        settings = load_settings()
        return settings, read_policy(settings, secret_variable)
    except SettingsError as error:
        raise click.ClickException(f"The environment is not usable.\n{error}") from error
    except FileRefused as error:
        raise click.ClickException(str(error)) from error
