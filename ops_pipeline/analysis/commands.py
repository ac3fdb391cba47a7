"""The commands `ops-pipeline tasks …`: submitting, looking, cancelling and trying again.

What belongs here: arguments and printing. What does not: any rule or query.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from sqlalchemy import Engine

from ops_pipeline.analysis.operating import Told, cancel_tasks, retry_tasks
from ops_pipeline.analysis.reading import TaskView, Wanted, list_tasks, view_task
from ops_pipeline.analysis.submitting import PRIORITIES, SubmissionRefused, submit_task
from ops_pipeline.analysis.tables import NORMAL, TERMINAL, UNFINISHED
from ops_pipeline.database.engine import connect, reading
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.settings import SettingsError, load_settings

LONGEST_CELL = 80


@click.group()
def tasks() -> None:
    """Analysis tasks: what is done, what waits, and what an operator says of it."""


@tasks.command()
@click.argument("target")
@click.option(
    "--service", "services", multiple=True, required=True, help="Which analyzer; more than one make a parent."
)
@click.option("--priority", type=click.Choice(PRIORITIES), default=NORMAL, show_default=True, help="Who goes first.")
@click.option("--options", default="{}", help="What the analyzers are told, a JSON object.")
@click.option("--timeout", "timeout_seconds", type=float, default=None, help="Seconds that one attempt may take.")
@click.option("--run-key", default=None, help="Submitted again under the same key, nothing is done.")
@click.option("--legal-hold", is_flag=True, help="Maintenance never deletes the task.")
def submit(target: str, services: Sequence[str], options: str, *, legal_hold: bool, **rest: Any) -> None:
    """Submit one task for TARGET, for example acme_model-1/app3, and print its id."""
    told = _object(options)
    labels = {"legal_hold": True} if legal_hold else {}
    with _engine() as engine:
        try:
            click.echo(submit_task(engine, services, target, options=told, labels=labels, **rest))
        except SubmissionRefused as refusal:
            raise click.UsageError(str(refusal)) from refusal


@tasks.command("list")
@click.option("--status", type=click.Choice((*UNFINISHED, *TERMINAL)), default=None, help="Only these.")
@click.option("--service", default=None, help="Only of this service.")
@click.option("--target", default=None, help="Only of this target.")
@click.option("--pipeline", "pipeline_id", default=None, help="Only of this pipeline.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
def list_command(limit: int, **wanted: str | None) -> None:
    """Show the tasks at work, those that wait in the order of their turn, and the last that ended."""
    with _engine() as engine, reading(engine) as connection:
        rows = list_tasks(connection, Wanted(**wanted), limit)
    for row in rows:
        click.echo(_line(row))
    if not rows:
        click.echo("There is no such task.")


@tasks.command()
@click.argument("task_id")
def show(task_id: str) -> None:
    """Show one task with its children, and everything that happened to it."""
    with _engine() as engine, reading(engine) as connection:
        found = view_task(connection, task_id)
    if found is None:
        raise click.ClickException(f"There is no task {task_id}.")
    for line in _view(found):
        click.echo(line)


@tasks.command()
@click.argument("task_ids", nargs=-1, required=True)
@click.option("--reason", default="no reason given", help="What is kept with it.")
def cancel(task_ids: Sequence[str], reason: str) -> None:
    """Cancel tasks with their children; running ones end as soon as their workers hear of it."""
    with _engine() as engine:
        told = cancel_tasks(engine, task_ids, f"cancelled by command: {reason}")
    for one in told.done:
        click.echo(f"{one} is cancelled.")
    for one in told.asked:
        click.echo(f"{one} is running: its worker is asked to stop.")
    _refuse(told, "cancelled")


@tasks.command()
@click.argument("task_ids", nargs=-1, required=True)
def retry(task_ids: Sequence[str]) -> None:
    """Let tasks that failed or were cancelled begin anew; of a parent only the children that did."""
    with _engine() as engine:
        told = retry_tasks(engine, task_ids)
    for one in told.done:
        click.echo(f"{one} waits for its turn.")
    _refuse(told, "tried again")


def _refuse(told: Told, what: str) -> None:
    if told.refused:
        reasons = "\n".join(f"{one} {reason}: it cannot be {what}." for one, reason in told.refused.items())
        raise click.ClickException(reasons)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--options is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"--options is no JSON object, but {text}")
    return value


def _line(row: Mapping[str, Any]) -> str:
    when = row["completed_at"] or row["started_at"] or row["created_at"] or ""
    words = row["error_message"] or row["current_step"] or ""
    note = words.splitlines()[0][:LONGEST_CELL] if words else ""
    columns = f"{row['id']:<22} {row['status']:<15} {row['priority'] or NORMAL:<7} {row['service']:<20}"
    return f"{columns} {row['target']:<32} {when[:19]:<20} {note}".rstrip()


def _view(found: TaskView) -> list[str]:
    shown = {name: value for name, value in found.task.items() if value not in {None, "", 0}}
    lines = [f"{name:<18} {value}" for name, value in shown.items() if name not in {"claim_order", "result_summary"}]
    lines.append(f"{'findings':<18} {found.findings}")
    if found.children:
        lines += ["", "children:", *(f"  {_line(child)}" for child in found.children)]
    if found.task["result_summary"]:
        lines += ["", "result:", f"  {found.task['result_summary']}"]
    lines += ["", "events:", *(f"  {_event(event)}" for event in found.events)]
    return lines


def _event(event: Mapping[str, Any]) -> str:
    arrow = f"{event['before']} -> {event['after']}" if event["after"] else ""
    who = f"attempt {event['attempt']} of {event['owner']}" if event["owner"] else ""
    return "  ".join(
        part for part in (f"{event['at']:%Y-%m-%d %H:%M:%S}", event["kind"], arrow, who, event["reason"]) if part
    )


@contextmanager
def _engine() -> Generator[Engine, None, None]:
    """The operations database; a problem becomes one line and exit status 1."""
    try:
        settings = load_settings()
    except SettingsError as error:
        raise click.ClickException(f"The environment is not usable.\n{error}") from error
    engine = connect(settings.operations_url())
    try:
        yield engine
    except DatabaseProblem as problem:
        raise click.ClickException(str(problem)) from problem
    finally:
        engine.dispose()
