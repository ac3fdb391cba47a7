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
        from ops_pipeline.archives.manifest import read_manifests  # noqa: PLC0415

        with _store() as (_, _, store):
            found = list(read_manifests(store, kind))
            for manifest in found:
                click.echo(_line(manifest))
            if not found:
                click.echo(f"There are no archives in {store.where}.")

    @group.command()
    @click.argument("name")
    def restore(name: str) -> None:
        """Put back what the archive NAME (KIND/ID, as `archive list` shows it) holds and is not there.

        Rows that are there stay as they are. What is older than its retention goes again with the next maintenance:
        switch that off, or put a label legal_hold on it.
        """
        kind, slash, archive_id = name.partition("/")
        if not slash:
            raise click.UsageError(f"{name!r} is no name of an archive: `ops-pipeline archive list` shows them")
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


def _line(manifest: Manifest) -> str:
    rows = ", ".join(f"{count} {name}" for name, count in manifest.rows.items())
    size = sum(part.bytes for part in manifest.parts) / 1e6
    left = sum(map(len, (manifest.left_out or {}).values()))
    state = "being deleted" if manifest.left_out is None else f"{left} left in the database" if left else "deleted"
    when = f"{manifest.created_at:%Y-%m-%d %H:%M} UTC"
    return f"{manifest.folder}  {when}  {rows}  {size:.1f} MB  {state}: {manifest.reason}"


def _named(store: Store, kind: str, archive_id: str) -> Manifest:
    from ops_pipeline.archives.manifest import read_manifest  # noqa: PLC0415

    manifest = read_manifest(store, kind, archive_id)
    if manifest is None:
        raise click.ClickException(f"There is no archive {kind}/{archive_id} in {store.where}.")
    return manifest


@contextmanager
def _store() -> Generator[tuple[Settings, Engine, Store], None, None]:
    """Settings, database and store; a problem becomes one line and exit status 1."""
    from ops_pipeline.archives.store import open_store  # noqa: PLC0415

    try:
        settings = load_settings()
        engine = connect(settings.operations_url())
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    try:
        yield settings, engine, open_store(settings.archive_location())
    except (DatabaseProblem, Unavailable, OSError, ValueError) as problem:
        raise click.ClickException(str(problem)) from problem
    finally:
        engine.dispose()
