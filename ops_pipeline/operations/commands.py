"""The commands about the deployment itself: `ops-pipeline daemon`.

What belongs here: arguments, printing and exit status.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import click

from ops_pipeline.operations.leader import daemon_command, fence_for, lead
from ops_pipeline.settings import SettingsError, load_settings

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
LEVELS = ("critical", "error", "warning", "info", "debug")


@click.command()
@click.option(
    "--workspace", "-w", type=click.Path(exists=True, dir_okay=False, path_type=Path), default="workspace.yaml"
)
@click.option("--log-level", type=click.Choice(["critical", "error", "warning", "info", "debug"]), default="warning")
def daemon(workspace: Path, log_level: str) -> None:
    """Run Dagster's daemon, or stand by while another one leads.

    Start it on as many machines as wanted: one works, the others take over within 15 seconds when it dies, hangs or is
    cut off. The lead is held in Dagster's database (DAGSTER_POSTGRES_URL), or in DAGSTER_HOME for embedded storage.
    """
    try:
        settings = load_settings()
    except SettingsError as error:
        raise click.ClickException(f"The environment is not usable.\n{error}") from error
    home = settings.dagster_home.absolute()
    if not (home / "dagster.yaml").exists():
        raise click.ClickException(f"{home} holds no dagster.yaml: set DAGSTER_HOME, or use `make run`.")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    url = settings.dagster_postgres_url.get_secret_value()
    sys.exit(lead(lambda: fence_for(home, url), daemon_command(workspace, log_level), stop, _tell))


def _tell(line: str) -> None:
    click.echo(line, err=True)
