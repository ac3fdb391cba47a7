"""The commands about the deployment itself: `ops-pipeline daemon`, `health` and `metrics`.

What belongs here: arguments, printing and exit status.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ops_pipeline.database.engine import connect
from ops_pipeline.operations.health import JobHealth, as_json
from ops_pipeline.operations.leader import daemon_command, fence_for, lead
from ops_pipeline.settings import Settings, SettingsError, load_settings

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
TABLE_WIDTH = 124
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
    settings = _settings()
    home = settings.dagster_home.absolute()
    _require_home(home)
    stop = stopped_by_signal()
    url = settings.dagster_postgres_url.get_secret_value()
    sys.exit(lead(lambda: fence_for(home, url), daemon_command(workspace, log_level, settings.log_format), stop, _tell))


@click.command()
@click.option("--json", "as_json_", is_flag=True, help="For machines.")
def health(*, as_json_: bool) -> None:
    """Show how every job does; exit status 1 when one is not well, 2 when nobody can tell.

    A job is not well when its last run failed, when what starts it failed, or when it is overdue.
    """
    from ops_pipeline.defs.watching import look_at_jobs, open_instance, repository_of_deployment  # noqa: PLC0415

    _require_home(_settings().dagster_home.absolute())
    now = datetime.now(UTC)
    try:
        with open_instance() as instance:
            jobs = look_at_jobs(instance, repository_of_deployment(), now)
    except Exception as error:  # noqa: BLE001 - whatever it is, a monitor must not take it for a sick job
        click.echo(f"Nobody can tell: {str(error).partition(chr(10))[0]}", err=True)
        sys.exit(2)
    if as_json_:
        click.echo(json.dumps({"jobs": as_json(jobs)}, indent=1))
    else:
        # Cut names would tell nothing: wider than the terminal if need be, it is piped as often as read.
        Console(width=max(Console().width, TABLE_WIDTH)).print(_table(jobs))
        for job in jobs:
            for problem in job.problems:
                click.echo(f"{job.name}: {problem}")
    sys.exit(0 if all(job.well for job in jobs) else 1)


def _table(jobs: Sequence[JobHealth]) -> Table:
    table = Table(title="Jobs (times in UTC)")
    for name in ("job", "", "running", "last run", "next run", "errors", "success", "last success"):
        table.add_column(name, no_wrap=True)
    for job in jobs:
        state = "ok" if job.well else "overdue" if job.overdue else "failing"
        rate = "" if job.success_rate is None else f"{job.success_rate:.0%}"
        running = "yes" if job.running else "" if job.enabled else "off"
        times = [f"{value:%m-%d %H:%M}" if value else "" for value in (job.last_run, job.next_run, job.last_success)]
        table.add_row(job.name, state, running, times[0], times[1], str(job.errors or ""), rate, times[2])
    return table


@click.command()
@click.option("--host", default="127.0.0.1", help="Where to listen; nobody is asked for a password here.")
@click.option("--port", type=click.IntRange(0, 65_535), default=9464, help="On which port; 0 for a free one.")
def metrics(host: str, port: int) -> None:
    """Serve OpenMetrics for Prometheus on /metrics, and /livez, /readyz and /health for monitors, until Ctrl-C."""
    from ops_pipeline.defs.watching import (  # noqa: PLC0415
        health_page,
        measurers,
        open_instance,
        readiness,
        repository_of_deployment,
    )
    from ops_pipeline.operations.exposition import (  # noqa: PLC0415
        MeasureCollector,
        application,
        look_ahead,
        server_for,
    )

    settings = _settings()
    _require_home(settings.dagster_home.absolute())
    engine = connect(settings.operations_url())
    repository = repository_of_deployment()
    with open_instance() as instance:
        collector = MeasureCollector(engine, measurers(settings, repository))
        served = application(collector, readiness(engine, instance), health_page(instance, repository))
        try:
            server = server_for(host, port, served)
        except OSError as error:
            raise click.ClickException(
                f"{host}:{port} cannot be used: {error.strerror}. Give another --port."
            ) from error
        click.echo(f"Serving http://{host}:{server.server_port}/metrics, /livez, /readyz and /health (Ctrl-C stops it)")
        signal.signal(signal.SIGTERM, _interrupt)
        look_ahead(collector)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.server_close()
    engine.dispose()


def stopped_by_signal() -> threading.Event:
    """What is set once somebody presses Ctrl-C, or ends this process."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        raise click.ClickException(f"The environment is not usable.\n{error}") from error


def _require_home(home: Path) -> None:
    if not (home / "dagster.yaml").exists():
        raise click.ClickException(f"{home} holds no dagster.yaml: set DAGSTER_HOME, or use `make run`.")


def _tell(line: str) -> None:
    logging.getLogger("ops_pipeline.operations.leader").info(line)
