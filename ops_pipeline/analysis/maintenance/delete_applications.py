"""Deleting applications whose grace is over: looked for once more, archived, then deleted in short transactions.

What belongs here: these steps, and finishing what a dead run has left of them. What does not: which applications are
due (`applications`), and the pass (`clean_applications`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from ops_pipeline.analysis.maintenance import application_store as store
from ops_pipeline.analysis.maintenance.applications import Application, Policy
from ops_pipeline.analysis.maintenance.lab import Lab
from ops_pipeline.analysis.maintenance.root import judge, look
from ops_pipeline.analysis.tables import generated_applications
from ops_pipeline.database.batches import next_batch, wait_at_most
from ops_pipeline.database.engine import reading, writing
from ops_pipeline.database.expressions import is_any_of
from ops_pipeline.database.leases import Lease
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.passes import Options

KIND = "generated_applications"
ROWS_PER_ARCHIVE = 10_000
SMALLEST_BATCH, LARGEST_BATCH = 100, 10_000
LOCK_SECONDS = 0.2

Place = tuple[str, int]
"""Model and number of an application: all its versions have one directory."""


@dataclass
class Gone:
    """What was done of a plan: `skipped` came back or changed meanwhile, `left` is for the next run."""

    deleted: int = 0
    skipped: int = 0
    left: int = 0
    archives: list[str] = field(default_factory=list)


def delete_applications(
    lab: Lab, policy: Policy, options: Options, planned: Sequence[Application], lease: Lease
) -> Gone:
    """Archive and delete applications that are due, as long as their directories are still missing.

    Raises:
        Unavailable: the root is not to be believed any more.
        LeaseHeld: another run took over.
        OSError: the archive could not be written; nothing of it was deleted.
    """
    deadline, done = options.deadline(), Gone()
    for first in range(0, len(planned), ROWS_PER_ARCHIVE):
        if deadline.passed:
            done.left = len(planned) - first
            break
        rows = planned[first : first + ROWS_PER_ARCHIVE]
        # Once more, right before: one may have come back while the others were looked at.
        missing = still_missing(lab, {(row.slug, row.number) for row in rows})
        ids = [row.id for row in rows if (row.slug, row.number) in missing]
        deleted, folder = _archive_and_delete(lab, policy, options.run_id, ids, lease) if ids else (0, "")
        done.archives += [folder] if folder else []
        done.deleted += deleted
        done.skipped += len(rows) - deleted
    return done


def still_missing(lab: Lab, places: Collection[Place]) -> set[Place]:
    """Those of some directories that are certainly not there.

    Raises:
        Unavailable: the root could not be looked at, or is not to be believed.
    """
    found = look(lab.applications, {slug for slug, _ in places}, seconds=lab.look_seconds)
    with reading(lab.engine) as connection:
        known = store.read_root(connection, lab.applications)
    judge(lab.applications, found, known, 0)
    nowhere: frozenset[int] = frozenset()
    return {
        (slug, number)
        for slug, number in places
        if number not in found.present.get(slug, nowhere)
        and slug not in found.unknown
        and (slug, number) not in found.odd
    }


def _archive_and_delete(lab: Lab, policy: Policy, run_id: str, ids: Sequence[str], lease: Lease) -> tuple[int, str]:
    """How many were deleted, and the folder of their archive; empty where none of them has a row any more."""
    # pyarrow takes 0.3 s to import, which passes that delete nothing need not pay.
    from ops_pipeline.archives.columns import archived_columns  # noqa: PLC0415
    from ops_pipeline.archives.steps import archive, conclude  # noqa: PLC0415
    from ops_pipeline.archives.store import open_store  # noqa: PLC0415
    from ops_pipeline.archives.writing import ArchiveWriter  # noqa: PLC0415

    table = generated_applications
    with reading(lab.engine) as connection:
        query = select(*archived_columns(table)).where(is_any_of(table.c.id, ids))
        found = [tuple(row) for row in connection.execute(query)]
    if not found:
        return 0, ""
    archived = {row[0]: row[-1] for row in found}

    def fill(writer: ArchiveWriter) -> Mapping[str, Any]:
        writer.write(table, found)
        return {"retention_days": policy.retention.total_seconds() / 86_400}

    where = open_store(lab.archive)
    reason = "their directories were missing"
    manifest = archive(lab.engine, where, KIND, run_id=run_id, reason=reason, fill=fill)
    lease.keep(now=True)
    deleted, kept = _delete_archived(lab, policy, archived)
    conclude(lab.engine, where, manifest, {table.name: sorted(kept)})
    return deleted, manifest.folder


def _delete_archived(lab: Lab, policy: Policy, archived: Mapping[str, int]) -> tuple[int, set[str]]:
    """Delete archived rows that are still what they were; how many, and those that stay."""
    deleted, kept, ids, size = 0, set[str](), sorted(archived), SMALLEST_BATCH
    while ids:
        now, ids = ids[:size], ids[size:]
        started = time.perf_counter()
        batch = {one: archived[one] for one in now}

        def transaction(batch: dict[str, int] = batch) -> tuple[set[str], set[str]]:
            with writing(lab.engine) as connection:
                wait_at_most(connection, LOCK_SECONDS)
                gone = store.delete_archived(connection, batch, policy)
                return gone, store.still_there(connection, sorted(set(batch) - gone))

        gone, there = despite_conflicts(transaction)
        deleted, kept = deleted + len(gone), kept | there
        size = next_batch(size, time.perf_counter() - started, SMALLEST_BATCH, LARGEST_BATCH)
    return deleted, kept


def finish_others(lab: Lab, policy: Policy) -> int:
    """Finish what dead runs have left: a directory may have come back since then, and its application stays.

    Raises:
        Unavailable: the root could not be looked at, or is not to be believed.
    """
    from ops_pipeline.archives import tables  # noqa: PLC0415

    if not tables.unfinished(lab.engine, KIND):
        return 0
    from ops_pipeline.archives import steps  # noqa: PLC0415
    from ops_pipeline.archives.columns import HASH  # noqa: PLC0415
    from ops_pipeline.archives.restoring import rows_of  # noqa: PLC0415

    def delete(where: Any, manifest: Any) -> steps.LeftOut:
        rows = rows_of(where, manifest, generated_applications, ("id", "model_slug", "app_number", HASH))
        missing = still_missing(lab, {(slug, number) for _, slug, number, _ in rows})
        archived = {one: known for one, slug, number, known in rows if (slug, number) in missing}
        _delete_archived(lab, policy, archived)
        with reading(lab.engine) as connection:
            kept = store.still_there(connection, [row[0] for row in rows])
        return {generated_applications.name: sorted(kept)}

    return steps.finish_others(lab.engine, KIND, delete)
