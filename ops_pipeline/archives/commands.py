"""The commands `ops-pipeline archive …`: what maintenance has removed, and putting it back.

What belongs here: arguments and printing. What does not: any rule or query.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from sqlalchemy import Engine, Table

from ops_pipeline.database.engine import connect
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.reconcile import Unavailable
from ops_pipeline.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    # pyarrow and fsspec take half a second to import, which no other command has to pay.
    from ops_pipeline.archives.manifest import Manifest
    from ops_pipeline.archives.store import Store


def archive_commands(tables: Callable[[], Iterable[Table]]) -> click.Group:
    """Build the group.

    Args:
        tables: gives every table that archives may hold rows of.
    """

    @click.group("archive")
    def group() -> None:
        """Archives of what maintenance removed: what there is, and putting it back."""

    @group.command("list")
    @click.option("--kind", help="Only of this kind: analysis_tasks, generated_applications or model_calls.")
    def list_archives(kind: str | None) -> None:
        """Show every archive, the oldest of each kind first."""
        with _store() as (_, _, store):
            shown, damaged = 0, 0
            for line, is_error in _lines(store, kind):
                click.echo(line, err=is_error)
                shown, damaged = shown + 1, damaged + is_error
            if not shown:
                click.echo(f"There are no archives{_of_kind(store, kind)} in {store.where}.")
        if damaged:
            raise click.ClickException(f"{damaged} archives cannot be read: put copies of their manifests back.")

    @group.command()
    @click.argument("name")
    def restore(name: str) -> None:
        """Put back what the archive NAME (KIND/ID, as `archive list` shows it) holds and is not there.

        Rows that are there stay as they are. What is older than its retention goes again with the next maintenance:
        switch that off, or put a label legal_hold on it.
        """
        kind, _, archive_id = name.partition("/")
        if not archive_id or "/" in archive_id or {kind, archive_id} & {"", ".", ".."}:
            raise click.UsageError(
                f"{name!r} is no name of an archive, KIND/ID: `ops-pipeline archive list` shows them."
            )
        with _store() as (settings, engine, store):
            manifest = _named(store, kind, archive_id)
            for line in _restored(settings, engine, store, manifest, {one.name: one for one in tables()}):
                click.echo(line)

    return group


def _restored(
    settings: Settings, engine: Engine, store: Store, manifest: Manifest, tables: Mapping[str, Table]
) -> Generator[str, None, None]:
    from ops_pipeline.archives.restoring import restore_folders, restore_rows  # noqa: PLC0415

    inserted = restore_rows(engine, store, manifest, tables)
    kept = manifest.left_out or {}
    for name, rows in manifest.rows.items():
        if name != "files":
            there = rows - len(kept.get(name, ())) - inserted[name]
            yield f"{name}: {inserted[name]} rows restored, {there} were there already."
    if "files" in manifest.rows:
        folder = settings.results_folder()
        count = restore_folders(store, manifest, folder, [str(one) for one in kept.get("files", ())])
        yield f"{count} directories restored below {folder}."


def _lines(store: Store, kind: str | None) -> Generator[tuple[str, bool], None, None]:
    """A line for each archive, and whether it says that one cannot be read."""
    from ops_pipeline.archives.manifest import archive_names, read_manifest  # noqa: PLC0415

    for one, archive_id in archive_names(store, kind):
        try:
            manifest = read_manifest(store, one, archive_id)
        except ValueError as error:
            yield f"Error: {error}", True
        else:
            if manifest is not None:
                yield _line(manifest), False


def _of_kind(store: Store, kind: str | None) -> str:
    from ops_pipeline.archives.store import names_in  # noqa: PLC0415

    if kind is None:
        return ""
    others = ", ".join(names_in(store))
    return f" of the kind {kind}" + (f" (there are {others})" if others else "")


def _line(manifest: Manifest) -> str:
    rows = ", ".join(f"{count} {name}" for name, count in manifest.rows.items())
    size = sum(part.bytes for part in manifest.parts)
    left = sum(map(len, (manifest.left_out or {}).values()))
    state = "being deleted" if manifest.left_out is None else f"{left} left in the database" if left else "deleted"
    when = f"{manifest.created_at:%Y-%m-%d %H:%M} UTC"
    return f"{manifest.folder}  {when}  {rows}  {size / 1e6:,.3f} MB  {state}: {manifest.reason}"


def _named(store: Store, kind: str, archive_id: str) -> Manifest:
    from ops_pipeline.archives.manifest import read_manifest  # noqa: PLC0415

    manifest = read_manifest(store, kind, archive_id)
    if manifest is None:
        raise click.ClickException(
            f"There is no archive {kind}/{archive_id} in {store.where}: `ops-pipeline archive list` shows all."
        )
    return manifest


@contextmanager
def _store() -> Generator[tuple[Settings, Engine, Store], None, None]:
    """Settings, database and store; a problem becomes one line and exit status 1."""
    from ops_pipeline.archives.store import library_errors, open_store  # noqa: PLC0415

    try:
        settings = load_settings()
        engine = connect(settings.operations_url())
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    try:
        yield settings, engine, open_store(settings.archive_location())
    except (DatabaseProblem, Unavailable, ValueError) as problem:
        raise click.ClickException(str(problem)) from problem
    except (OSError, *library_errors()) as problem:
        words = str(problem)
        if isinstance(problem, OSError) and problem.filename and problem.strerror:
            words = f"{problem.filename}: {problem.strerror}"
        where = settings.archive_location()
        raise click.ClickException(f"{words}. Archives are looked for in {where} (MAINTENANCE_ARCHIVE).") from problem
    finally:
        engine.dispose()
