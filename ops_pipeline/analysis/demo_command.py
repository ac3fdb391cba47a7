"""The commands of analyzers: `ops-pipeline analyzer …`, and `with-demo-analyzer`, which `make run` uses.

What belongs here: when there is a demonstration of the analysis lab, and what whoever runs in it is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import click

from ops_pipeline.analysis.static.commands import analyzer
from ops_pipeline.database.engine import connect
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.settings import Settings, SettingsError, load_settings


def add_analyzers(
    main: click.Group,
    has_real_calls: Callable[[Settings], bool],
    become: Callable[[tuple[str, ...], dict[str, str]], NoReturn],
) -> None:
    """Add the commands of analyzers.

    Args:
        main: the command that they belong to.
        has_real_calls: whether the operations database holds data of another domain that is no demo's.
        become: runs a command in this process, with variables.
    """
    main.add_command(analyzer)

    @main.command(
        "with-demo-analyzer", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
    )
    @click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
    def with_demo_analyzer(command: tuple[str, ...]) -> None:
        """Run COMMAND with the static analyzer, demo applications and tasks for it (used by `make run`).

        The analyzer ends with COMMAND. A database with real calls or tasks gets none of it.
        """
        try:
            settings = load_settings()
            variables = _variables(settings, real=bool(settings.generated_apps_dir) or has_real_calls(settings))
        except (SettingsError, DatabaseProblem) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{error.filename}: {error.strerror}. Correct DAGSTER_HOME.") from error
        become(command, variables)


def _variables(settings: Settings, *, real: bool) -> dict[str, str]:
    """Start the demonstration, and tell where it is; nothing where there is real data."""
    # SQLAlchemy's tables cost every other command 0.1 s.
    from ops_pipeline.analysis import demo  # noqa: PLC0415
    from ops_pipeline.analysis.demo_leftovers import write_leftovers  # noqa: PLC0415

    home = settings.dagster_home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    engine = connect(settings.operations_url())
    try:
        if real or demo.has_real_tasks(engine):
            click.echo("There are applications or data of your own: no demo of the analysis lab.")
            return {}
        apps = home / "demo_apps"
        demo.write_applications(apps)
        server, told = demo.start(home, apps)
        if server is None:
            click.echo(f"No demo of the analysis lab: {told}.")
            return {}
        click.echo(f"Analysis lab: {told}, with {demo.submit(engine)} tasks.")
        if write_leftovers(engine):
            click.echo("There is something to clean up, too: launch run_maintenance with dry_run to see its plans.")
        return {"ANALYZER_URLS": f"{demo.SERVICE}={server.url}", "GENERATED_APPS_DIR": str(apps)}
    finally:
        engine.dispose()
