"""The command `ops-pipeline`.

What belongs here: arguments, printing and exit status. What does not: any rule or query.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, TypeVar

import click
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.analysis.commands import tasks
from ops_pipeline.analysis.demo_command import add_analyzers
from ops_pipeline.analysis.maintenance.commands import restore
from ops_pipeline.analysis.pipelines.commands import pipelines
from ops_pipeline.analysis.tables import metadata as analysis_metadata
from ops_pipeline.archives.commands import archive_commands
from ops_pipeline.checking import Check, tried
from ops_pipeline.database.engine import connect, reading, sqlite_url, where
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.migrate import migrate as migrate_database
from ops_pipeline.database.types import parse_instant
from ops_pipeline.operations.alerts.commands import alerts
from ops_pipeline.operations.checks import check_deployment
from ops_pipeline.operations.commands import daemon, health, metrics, stopped_by_signal
from ops_pipeline.operations.logs import tell_on_terminal
from ops_pipeline.operations.variables import check_variables
from ops_pipeline.services.commands import services
from ops_pipeline.settings import Settings, SettingsError, given_variables, load_settings, secret_variable
from ops_pipeline.usage.commands import usage_command
from ops_pipeline.usage.hours import floor_hour
from ops_pipeline.usage.tables import metadata as usage_metadata

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_YEAR = 2999
Result = TypeVar("Result")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="ops-pipeline")
def main() -> None:
    """Background operations of AI and virtualisation platforms.

    Configuration comes from the environment and from a .env file in the working directory; `.env.example` lists it.
    """
    # What cannot be used is told by the command, if it needs it: `--help` does not.
    with suppress(SettingsError):
        tell_on_terminal(load_settings())


COMMANDS = (
    services,
    alerts,
    daemon,
    health,
    metrics,
    tasks,
    pipelines,
    restore,
)
for command in COMMANDS:
    main.add_command(command)
main.add_command(archive_commands(lambda: (*analysis_metadata.sorted_tables, *usage_metadata.sorted_tables)))


@main.command()
def migrate() -> None:
    """Bring the operations database to the current schema; may be repeated, and started twice at once."""
    with _operations() as (_, engine):
        before, after = migrate_database(engine)
        done = "is up to date" if before == after else f"went from {before or 'nothing'} to {after}"
        click.echo(f"{where(engine)}: the schema {done} (version {after}).")


@main.command()
@click.option("--brief", is_flag=True, help="Leave out variables that nobody set.")
def check(brief: bool) -> None:
    """Validate every variable and try every configured connection; exit status 1 if one fails."""
    settings = _settings()
    results = check_deployment(settings, datetime.now(UTC))
    results += _check_elsewhere(settings)
    told = {result.name for result in results}
    reached = all(result.ok for result in results if result.name in {"DATABASE_URL", "schema"})
    results += check_variables(settings, given_variables(), except_for=told)
    if reached:
        results += _check_tables(settings)
    left_out = sum(result.usual for result in results) if brief else 0
    for result in results:
        if not (brief and result.usual):
            click.echo(f"{_mark(result)} {result.name}: {result.detail}")
    if left_out:
        click.echo(f"All other variables ({left_out}) have their defaults: `ops-pipeline check` shows each.")
    if not all(result.ok for result in results):
        sys.exit(1)


def _check_elsewhere(settings: Settings) -> list[Check]:
    from ops_pipeline.checkpoints.checks import check_checkpoints  # noqa: PLC0415
    from ops_pipeline.operations.alerts.checks import check_alerts  # noqa: PLC0415
    from ops_pipeline.services.checks import check_registry  # noqa: PLC0415
    from ops_pipeline.usage.checks import check_probes  # noqa: PLC0415

    return [
        *tried("MODEL_PROBES_FILE", lambda: check_probes(settings.model_probes_file, secret_variable)),
        *tried("SERVICES_FILE", lambda: check_registry(settings.services_file, secret_variable)),
        *tried("ALERTS_FILE", lambda: check_alerts(settings, secret_variable)),
        *check_checkpoints(settings),
        *_check_retention(settings),
    ]


def _check_retention(settings: Settings) -> list[Check]:
    if "RUN_RETENTION_DAYS_BY_JOB" not in given_variables():
        # The definitions take two seconds to load.
        return []
    from ops_pipeline.defs.watching import check_retention  # noqa: PLC0415

    return tried("RUN_RETENTION_DAYS_BY_JOB", lambda: check_retention(settings))


def _check_tables(settings: Settings) -> list[Check]:
    from ops_pipeline.hypervisor.checks import check_hosts  # noqa: PLC0415
    from ops_pipeline.usage.checks import check_usage  # noqa: PLC0415

    engine = connect(settings.operations_url())
    try:
        return [*check_hosts(engine, settings), *check_usage(engine, settings.model_call_stats_start)]
    finally:
        engine.dispose()


def _mark(result: Check) -> str:
    if not result.ok:
        return click.style("FAILED", fg="red")
    return click.style("warn  ", fg="yellow") if result.warning else click.style("ok    ", fg="green")


@main.command()
@click.option("--days", default=7, help="Days of history up to now.")
@click.option("--calls", type=click.IntRange(1, 100_000_000), default=50_000, help="Calls in that time.")
@click.option("--seed", default=1, help="The same seed writes the same history.")
@click.option("--until", default=None, help="The end of the history, ISO 8601; default: now.")
@click.option("--if-empty", is_flag=True, help="Do nothing when there are calls already.")
@click.option("--force", is_flag=True, help="Write although there are calls that are no demo data.")
@click.option("--live", is_flag=True, help="Go on writing calls until Ctrl-C, late completions included.")
@click.option("--calls-per-minute", type=click.IntRange(0, 100_000), default=60, help="The pace of --live.")
def demo(
    *,
    days: int,
    calls: int,
    seed: int,
    until: str | None,
    if_empty: bool,
    force: bool,
    live: bool,
    calls_per_minute: int,
) -> None:
    """Write a believable history of LLM calls into the operations database."""
    from ops_pipeline.usage import demo as demo_data  # noqa: PLC0415 - numpy costs every other command 0.1 s

    with _operations() as (_, engine):
        real = None if force else demo_data.first_real_call(engine)
        if real is not None and (live or not if_empty):
            raise click.ClickException(
                f"{where(engine)} holds real calls ({real} is none of the demo's): demo data would be metered with"
                " them. Name another database in DATABASE_URL, or give --force."
            )
        if if_empty and not demo_data.is_empty(engine):
            click.echo("There are calls already: no demo data written.")
        else:
            end = _argument("--until", lambda: _time(until)) if until else datetime.now(UTC)
            plan = _argument("--days and --calls", lambda: demo_data.DemoPlan(days, calls, seed, end))
            with click.progressbar(length=calls, label=f"Writing {days} days of calls", file=sys.stderr) as bar:
                written = demo_data.write_history(engine, plan, bar.update)
            click.echo(f"{written} calls written to {where(engine)}.")
        if live:
            stopped = stopped_by_signal()
            demo_data.live(
                engine,
                seed,
                calls_per_minute,
                clock=lambda: datetime.now(UTC),
                sleep=lambda seconds: _ignore(stopped.wait(seconds)),
                stop=stopped.is_set,
                told=click.echo,
            )


@main.command("demo-machines")
@click.option("--live", is_flag=True, help="Go on changing their states until Ctrl-C.")
def demo_machines(*, live: bool) -> None:
    """Write demo machines on hosts of libvirt's test driver, unless there are machines or hosts already."""
    from ops_pipeline.hypervisor import demo as fleet  # noqa: PLC0415

    with _operations() as (settings, engine), _files("Correct DAGSTER_HOME, or the owner of that folder."):
        if settings.libvirt_uri or _has_real_calls(settings):
            click.echo("LIBVIRT_URI is set, or the database holds real calls: no demo machines written.")
            return
        click.echo(fleet.write_demo(engine, settings.dagster_home, seed=1))
        if live:
            stopped = stopped_by_signal()
            fleet.live(engine, settings.dagster_home, 1, lambda seconds: _ignore(stopped.wait(seconds)), stopped.is_set)


@main.command("with-home", context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True)
def with_home(command: tuple[str, ...]) -> None:
    """Prepare DAGSTER_HOME, then run COMMAND with the variables that Dagster needs besides (used by `make run`)."""
    from ops_pipeline.operations.home import prepare_home  # noqa: PLC0415
    from ops_pipeline.usage.progress import first_wanted_hour  # noqa: PLC0415

    def first_hour(engine: Engine) -> datetime:
        with reading(engine) as connection:
            return first_wanted_hour(connection, EPOCH) or floor_hour(datetime.now(UTC))

    with _operations() as (settings, _), _files("Run this in the project's folder, and see who owns DAGSTER_HOME."):
        variables = prepare_home(settings, Path.cwd(), first_hour)
    _become(command, variables)


@main.command("with-demo-redis", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def with_demo_redis(command: tuple[str, ...]) -> None:
    """Run COMMAND with a private Redis of demo checkpoints, unless a Redis is named (used by `make run`).

    It ends with COMMAND, and its data with it. A database with real calls is not told about demo checkpoints.
    """
    from ops_pipeline.checkpoints import demo as demo_data  # noqa: PLC0415
    from ops_pipeline.checkpoints.connection import configured_url  # noqa: PLC0415

    settings = _settings()
    variables: dict[str, str] = {}
    if configured_url(settings) is None and _has_real_calls(settings):
        click.echo("No Redis is named, and the database holds real calls: checkpoints are not cleaned up.")
    elif configured_url(settings) is None:
        with _files("Correct DAGSTER_HOME, or the owner of that folder."):
            settings.dagster_home.mkdir(parents=True, exist_ok=True)
            server, told = demo_data.start(settings.dagster_home.absolute())
        if server:
            keys = demo_data.fill(server.url, now=datetime.now(UTC).timestamp())
            told += f", with {keys} keys"
            variables["CHECKPOINT_REDIS_URL"] = server.url
        else:
            told += ": checkpoints are not cleaned up"
        click.echo(f"No Redis is named in CHECKPOINT_REDIS_URL or NAUTOBOT_REDIS_HOST; {told}.")
    _become(command, variables)


def _has_real_calls(settings: Settings) -> bool:
    from ops_pipeline.usage import demo as demo_data  # noqa: PLC0415

    engine = connect(settings.operations_url())
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    try:
        return (file is None or Path(file).exists()) and demo_data.first_real_call(engine) is not None
    except DatabaseProblem:
        # Whoever comes next tells what is wrong with the database.
        return False
    finally:
        engine.dispose()


def _become(command: tuple[str, ...], variables: dict[str, str]) -> NoReturn:
    # Handed over, not printed: the URLs hold passwords.
    for name, value in variables.items():
        os.putenv(name, value)
    with _files("Give a command that exists."):
        os.execvp(command[0], command)  # noqa: S606 - the caller's own command
    raise AssertionError("exec returned")


@contextmanager
def _operations(*, make: bool = True) -> Generator[tuple[Settings, Engine], None, None]:
    """The settings and the operations database; a problem becomes one line and exit status 1.

    Args:
        make: whether an embedded database may be made where there is none.
    """
    settings = _settings()
    url = settings.operations_url()
    if url == sqlite_url(settings.dagster_home):
        if not make and not settings.dagster_home.exists():
            raise click.ClickException(
                f"There is no {settings.dagster_home.absolute()}: run this in the project's folder, or set DAGSTER_HOME"
                " or DATABASE_URL."
            )
        with _files("Correct DAGSTER_HOME, or the owner of that folder."):
            settings.dagster_home.mkdir(parents=True, exist_ok=True)
    engine = connect(url)
    try:
        yield settings, engine
    except DatabaseProblem as problem:
        raise click.ClickException(str(problem)) from problem
    except SQLAlchemyError as error:
        reason = str(error).partition("\n")[0]
        raise click.ClickException(f"{where(engine)}: {reason}") from error
    finally:
        engine.dispose()


@contextmanager
def _files(advice: str) -> Generator[None, None, None]:
    """A file or folder that cannot be used becomes one line and exit status 1."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}. {advice}") from error


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        raise click.ClickException(f"The environment is not usable.\n{error}") from error


def _argument(names: str, make: Callable[[], Result]) -> Result:
    """What `make` returns; its ValueError becomes a usage error about these options."""
    try:
        return make()
    except ValueError as error:
        raise click.UsageError(f"{names}: {error}") from error


def _time(text: str) -> datetime:
    value = parse_instant(text)
    if value < EPOCH or value.year > LAST_YEAR:
        raise ValueError(f"{text!r} lies outside the years {EPOCH.year} to {LAST_YEAR}")
    return value


def _ignore(_: object) -> None:
    """Waiting for a signal tells whether it came; the caller asks for itself."""


add_analyzers(main, _has_real_calls, _become)
main.add_command(usage_command(lambda: _operations(make=False)))
