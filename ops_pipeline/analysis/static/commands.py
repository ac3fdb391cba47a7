"""The commands `ops-pipeline analyzer …`: analyzer services that come with the project.

What belongs here: arguments, and the life of the process.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from ops_pipeline.settings import SettingsError, load_settings

PORT = 2001


@click.group()
def analyzer() -> None:
    """Analyzer services that come with the project."""


@analyzer.command()
@click.option("--host", default="127.0.0.1", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65_535), default=PORT, help="Where to listen; 0 for any free port.")
@click.option(
    "--apps",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=None,
    help="The folder of generated applications; default GENERATED_APPS_DIR.",
)
@click.option("--at-once", type=click.IntRange(1, 64), default=2, help="Analyses at a time; the others wait.")
@click.option("--tool-seconds", type=click.FloatRange(1, 86_400), default=300, help="Time of one tool per analysis.")
def static(*, host: str, port: int, apps: Path | None, at_once: int, tool_seconds: float) -> None:
    """Serve static analyses (ruff, bandit) of generated applications, until Ctrl-C."""
    root = apps or _configured()
    try:
        asyncio.run(_serve(root, host, port, at_once, tool_seconds))
    except OSError as error:
        raise click.ClickException(f"{host}:{port} cannot be listened on: {error.strerror}.") from error


def _configured() -> Path:
    try:
        named = load_settings().generated_apps_dir
    except SettingsError as error:
        raise click.ClickException(f"The environment is not usable.\n{error}") from error
    if not named or "://" in named or not Path(named).is_dir():
        raise click.ClickException("Name the folder of applications with --apps, or in GENERATED_APPS_DIR.")
    return Path(named)


async def _serve(root: Path, host: str, port: int, at_once: int, tool_seconds: float) -> None:
    # Every other command would wait for these imports too.
    from ops_pipeline.analysis.static.processes import Limits  # noqa: PLC0415
    from ops_pipeline.analysis.static.server import Analyzer, serve_static  # noqa: PLC0415

    service = Analyzer(root, Limits(seconds=tool_seconds), asyncio.Semaphore(at_once))
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = await serve_static(service, host, port)
    listening = next(iter(server.sockets)).getsockname()[1]
    tools = ", ".join(f"{tool.name} {tool.version}" for tool in service.tools.values()) or "no tools"
    click.echo(f"static-analyzer on ws://{host}:{listening} over {root} with {tools} (Ctrl-C stops it)")
    await stopped.wait()
    server.close()
    await server.wait_closed()
