"""Raw calls into archives, by month.

What belongs here: writing and reading these archives. When and which is decided in `pruning`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from ops_pipeline.archives.columns import batches_where
from ops_pipeline.archives.manifest import Manifest
from ops_pipeline.archives.restoring import hashes_of
from ops_pipeline.archives.steps import LeftOut, archive, conclude, finish_others, give_up
from ops_pipeline.archives.store import Store, open_store
from ops_pipeline.archives.tables import WRITTEN
from ops_pipeline.archives.writing import ArchiveWriter
from ops_pipeline.database.engine import reading
from ops_pipeline.database.expressions import within_hours
from ops_pipeline.database.leases import Lease
from ops_pipeline.usage.deleting_calls import delete_calls
from ops_pipeline.usage.hours import Window
from ops_pipeline.usage.pruning import KIND, ROWS_AT_ONCE, Pruned, claim, window_of
from ops_pipeline.usage.tables import model_calls
from ops_pipeline.usage.watermarks import pruned_before


@dataclass(frozen=True)
class CallArchive:
    """Where calls go."""

    engine: Engine
    location: str
    run_id: str

    def prune(self, window: Window, lease: Lease, done: Pruned) -> str:
        """Archive the calls of a window, and delete them; why not, in words, or empty.

        Raises:
            OSError: the archive could not be written; nothing was deleted.
        """

        def fill(writer: ArchiveWriter) -> Mapping[str, Any]:
            inside = within_hours(model_calls.c.called_at, window.start, window.end)
            with reading(self.engine) as connection:
                for batch in batches_where(connection, model_calls, inside, ROWS_AT_ONCE):
                    writer.write_batch(model_calls, batch)
            return {
                "month": f"{window.start:%Y-%m}",
                "first_hour": window.start.isoformat(),
                "end": window.end.isoformat(),
            }

        where, month = open_store(self.location), f"{window.start:%Y-%m}"
        reason = f"raw calls of {window}"
        manifest = archive(self.engine, where, KIND, run_id=self.run_id, reason=reason, fill=fill, prefix=f"{month}-")
        lease.keep(now=True)
        refused = claim(self.engine, window)
        if refused:
            give_up(self.engine, where, KIND, manifest.id, WRITTEN)
            return refused
        # From the archive itself: what cannot be read back is not deleted, and no list of millions of ids is held.
        left = delete_calls(self.engine, hashes_of(where, manifest, model_calls), lease, done)
        lease.keep(now=True)
        conclude(self.engine, where, manifest, {model_calls.name: left})
        done.kept += len(left)
        done.archives.append(manifest.folder)
        return ""

    def finish_others(self, lease: Lease) -> int:
        """Finish what dead runs have left: only hours behind the watermark may have lost calls already."""

        def delete(where: Store, manifest: Manifest) -> LeftOut | None:
            with reading(self.engine) as connection:
                watermark = pruned_before(connection)
            if watermark is None or watermark < window_of(manifest.facts).end:
                return None
            left = delete_calls(self.engine, hashes_of(where, manifest, model_calls), lease)
            lease.keep(now=True)
            return {model_calls.name: left}

        return finish_others(self.engine, KIND, delete)
