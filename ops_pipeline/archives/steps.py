"""The steps by which rows go: archived, then deleted, so that whatever dies in between loses nothing.

1. `begin`: the archive is told in the database, its files are written, the manifest last.
2. `written`: from now on what it holds may be deleted. Whoever deletes compares each row with its archived hash.
3. `done`: what was left in the database after all is named beside the manifest.

A run that died is finished by the next one: before step 2 nothing was deleted, and the files go; after it the deletion
goes on from the archive itself.

What belongs here: these steps. What does not: which rows, and how they are deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine

from ops_pipeline.archives import tables
from ops_pipeline.archives.manifest import Manifest, folder_of, new_id, read_manifest, write_deleted
from ops_pipeline.archives.store import Store, open_store, remove_folder
from ops_pipeline.archives.writing import ArchiveWriter
from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.log_fields import fields
from ops_pipeline.reconcile import Unavailable

log = logging.getLogger(__name__)
LeftOut = Mapping[str, Sequence[Any]]
"""By table, the keys of archived rows that stay in the database."""


def archive(
    engine: Engine,
    store: Store,
    kind: str,
    *,
    run_id: str,
    reason: str,
    fill: Callable[[ArchiveWriter], Mapping[str, Any]],
    prefix: str = "",
) -> Manifest:
    """Write an archive.

    Args:
        engine: the operations database.
        store: where it shall lie.
        kind: of what.
        run_id: of the run.
        reason: why its rows go.
        fill: writes the rows, and tells facts for the manifest.
        prefix: begins its name, for example a month.

    Raises:
        OSError: the store cannot be written; nothing is left of the archive.
        Unavailable: another run took this one for dead meanwhile; nothing is left of the archive.
    """
    with reading(engine) as connection:
        now = database_now(connection)
    archive_id = f"{prefix}{new_id(now)}"
    tables.begin(engine, archive_id, kind, store.where, run_id)
    try:
        with ArchiveWriter(store, kind, archive_id) as writer:
            facts = fill(writer)
            manifest = writer.finish(now, reason, facts)
    except Exception:
        give_up(engine, store, kind, archive_id, tables.WRITING)
        raise
    rows = sum(manifest.rows.values())
    if not tables.move(engine, archive_id, tables.WRITING, tables.WRITTEN, rows):
        # Another run took this one for dead, and removed its files: what it holds must not be deleted.
        remove_folder(store, manifest.folder)
        raise Unavailable(f"The archive {manifest.folder} was given up by another run. Nothing of it was deleted.")
    log.debug("Archive %s: %d rows, %s", archive_id, rows, reason, extra=fields(object=archive_id, reason=reason))
    return manifest


def conclude(engine: Engine, store: Store, manifest: Manifest, left_out: LeftOut) -> None:
    """Tell that what an archive holds is deleted, but for what was left in the database."""
    write_deleted(store, manifest, {name: list(keys) for name, keys in left_out.items() if keys})
    tables.move(engine, manifest.id, tables.WRITTEN, tables.DONE)


def finish_others(
    engine: Engine,
    kind: str,
    delete: Callable[[Store, Manifest], LeftOut | None],
    opened: Callable[[str], Store] = open_store,
) -> int:
    """Finish what dead runs have left; only under the lease of the pass, since a live run looks the same.

    Args:
        engine: the operations database.
        kind: of the archives.
        delete: deletes what an archive holds, and tells what stays; None when nothing of it may be deleted: it goes.
        opened: opens the store of a location.

    Returns:
        How many archives were finished.
    """
    finished = 0
    for archive_id, location, state in tables.unfinished(engine, kind):
        store = opened(location)
        manifest = read_manifest(store, kind, archive_id) if state == tables.WRITTEN else None
        if state == tables.WRITTEN and manifest is None:
            raise FileNotFoundError(
                f"{store.where}: the archive {folder_of(kind, archive_id)}, whose rows are being deleted, has no"
                " manifest any more. Restore it, or set its state to done in the table archives."
            )
        left_out = delete(store, manifest) if manifest is not None else None
        if manifest is None or left_out is None:
            give_up(engine, store, kind, archive_id, state)
        else:
            conclude(engine, store, manifest, left_out)
        finished += 1
    return finished


def give_up(engine: Engine, store: Store, kind: str, archive_id: str, state: str) -> None:
    """Remove an archive of which nothing was deleted."""
    remove_folder(store, folder_of(kind, archive_id))
    tables.move(engine, archive_id, state, tables.GIVEN_UP)
