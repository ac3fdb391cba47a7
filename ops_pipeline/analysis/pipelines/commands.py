"""The commands `ops-pipeline pipelines …`.

What belongs here: arguments and printing. What does not: any rule or query.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine

from ops_pipeline.analysis.operating import cancel_tasks
from ops_pipeline.analysis.pipelines import control
from ops_pipeline.analysis.pipelines.definition import DefinitionRefused, read_definition
from ops_pipeline.analysis.pipelines.reading import Line, Page, read_lines, read_page
from ops_pipeline.analysis.pipelines.rules import Step
from ops_pipeline.database.engine import connect, reading
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.settings import SettingsError, load_settings
from ops_pipeline.strict_yaml import FileRefused

STATUSES = ("pending", "running", "completed", "partial_success", "failed", "cancelled")
Format = click.Choice(["table", "json"])


@click.group()
def pipelines() -> None:
    """Pipelines of analysis tasks: submit, see, and say how they go on."""


@pipelines.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--id", "id_", default="", help="A key of your own: under the same one nothing is submitted twice.")
@click.option("--paused", is_flag=True, help="Begin only when it is resumed.")
def submit(file: Path, id_: str, *, paused: bool) -> None:
    """Submit the pipeline of a YAML FILE and tell its id."""
    try:
        definition = read_definition(file)
    except FileRefused as error:
        raise click.ClickException(str(error)) from error
    with _operations() as engine:
        click.echo(control.submit_pipeline(engine, definition, pipeline_id=id_, paused=paused))


@pipelines.command("list")
@click.option("--status", type=click.Choice(STATUSES), default=None, help="Only those of this status.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, help="At most so many, the newest.")
@click.option("--format", "format_", type=Format, default="table")
def list_pipelines(status: str | None, limit: int, format_: str) -> None:
    """Show the newest pipelines with their progress."""
    with _operations() as engine, reading(engine) as connection:
        lines = read_lines(connection, status=status, most=limit)
    if format_ == "json":
        click.echo(json.dumps([asdict(line) for line in lines], default=str))
    for line in lines if format_ == "table" else ():
        click.echo(_words(line))


@pipelines.command()
@click.argument("pipeline")
@click.option("--format", "format_", type=Format, default="table")
def show(pipeline: str, format_: str) -> None:
    """Show a pipeline: its steps, what went wrong, and what happened last."""
    with _operations() as engine, reading(engine) as connection:
        page = read_page(connection, pipeline)
    if page is None:
        raise click.ClickException(f"There is no pipeline {pipeline}.")
    if format_ == "json":
        click.echo(json.dumps(asdict(page), default=str))
    else:
        _show(page)


@pipelines.command()
@click.argument("pipeline")
def pause(pipeline: str) -> None:
    """Start nothing more of a pipeline; its running tasks go on."""
    with _operations() as engine:
        held = control.pause(engine, pipeline)
        click.echo(f"{pipeline} is paused; {held} of its tasks are held until it is resumed.")


@pipelines.command()
@click.argument("pipeline")
def resume(pipeline: str) -> None:
    """Let a paused pipeline go on."""
    with _operations() as engine:
        control.resume(engine, pipeline)
        click.echo(f"{pipeline} goes on.")


@pipelines.command()
@click.argument("pipeline")
@click.option("--reason", default="cancelled by command", help="What is kept with it.")
def cancel(pipeline: str, reason: str) -> None:
    """Submit nothing more of a pipeline, and cancel its tasks."""
    with _operations() as engine:
        count = control.cancel(engine, pipeline, cancel_tasks, reason)
        click.echo(f"{pipeline} is cancelled; {count} of its tasks were told, running ones end within seconds.")


@pipelines.command()
@click.argument("pipeline")
def retry(pipeline: str) -> None:
    """Run again what failed, was cancelled or skipped in a pipeline that has ended."""
    with _operations() as engine:
        click.echo(f"{pipeline} goes on: {control.retry(engine, pipeline)} jobs run again.")


@contextmanager
def _operations() -> Generator[Engine, None, None]:
    """The operations database; a problem becomes one line and exit status 1."""
    try:
        engine = connect(load_settings().operations_url())
    except SettingsError as error:
        raise click.ClickException(f"The environment is not usable.\n{error}") from error
    try:
        yield engine
    except (control.Refused, DefinitionRefused, DatabaseProblem) as problem:
        raise click.ClickException(str(problem)) from problem
    finally:
        engine.dispose()


def _words(line: Line) -> str:
    done = line.progress
    since = f"{line.created_at:%Y-%m-%d %H:%M}"
    jobs = f"{done.ended}/{done.total} jobs"
    wrong = f"{done.failed} failed" if done.failed else ""
    parts = (f"{line.id:<22}", f"{line.status:<16}", f"{done.share:>4.0%}", f"{jobs:<14}", since, line.name)
    return " ".join((*parts, *(f"({words})" for words in (line.step, wrong, line.error_message) if words)))


def _show(page: Page) -> None:
    click.echo(_words(page.line))
    for step in page.steps:
        click.echo(f"  {step.name:<24} {step.status:<16} {_counts(step)}{'  critical' if step.critical else ''}")
    for position, index, status, reason in page.troubles:
        click.echo(f"  {page.steps[position].name} job {index}: {status}: {reason}")
    for at, step, after, reason in page.events:
        click.echo(f"  {at:%Y-%m-%d %H:%M:%S} {' '.join(word for word in (step, after, reason) if word)}")


def _counts(step: Step) -> Any:
    return ", ".join(f"{count} {status}" for status, count in sorted(step.jobs.items())) or "no jobs"
