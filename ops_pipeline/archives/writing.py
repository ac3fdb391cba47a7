"""Writing an archive: rows by batches into Parquet, directories into tar files, the manifest last.

What belongs here: the writer. What does not: which rows, and their deletion.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from sqlalchemy import Table

from ops_pipeline.archives.columns import batch_of, schema_of
from ops_pipeline.archives.manifest import Manifest, Part, folder_of, write_manifest
from ops_pipeline.archives.store import Store, Written, writing_file

COMPRESSION = "zstd"
COMPRESSION_LEVEL = 3


@dataclass
class _Open:
    """A Parquet file that is being written."""

    writer: parquet.ParquetWriter
    written: list[Written]
    rows: int = 0


@dataclass
class ArchiveWriter:
    """An archive that is being written; use it in a `with`, and call `finish` at the end.

    Attributes:
        store: where.
        kind: of what.
        id: its name.
    """

    store: Store
    kind: str
    id: str
    _files: ExitStack = field(default_factory=ExitStack)
    _open: dict[str, _Open] = field(default_factory=dict)
    _parts: list[Part] = field(default_factory=list)

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def write(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows as `archived_columns` selects them.

        Raises:
            ValueError: a value is none of its column's type.
            OSError: the file could not be written.
        """
        if rows:
            self.write_batch(table, batch_of(schema_of(table), rows))

    def write_batch(self, table: Table, batch: pa.RecordBatch) -> None:
        """Write rows as `stored_batches` gives them.

        Raises:
            OSError: the file could not be written.
        """
        one = self._open.get(table.name) or self._begin(table, batch.schema)
        one.writer.write_batch(batch)
        one.rows += batch.num_rows

    def _begin(self, table: Table, schema: pa.Schema) -> _Open:
        folder = folder_of(self.kind, self.id)
        file, written = self._files.enter_context(writing_file(self.store, folder, f"{table.name}.parquet"))
        # Arrow takes any object with write, flush and close.
        writer = self._files.enter_context(parquet.ParquetWriter(file, schema, compression=COMPRESSION))
        self._open[table.name] = one = _Open(writer, written)
        return one

    def write_folders(self, folders: Mapping[str, Path]) -> None:
        """Write directories into a compressed tar file, each under its name; links in them stay links.

        Raises:
            OSError: one could not be read, or the file not be written.
        """
        if not folders:
            return
        name = "files.tar.gz"
        with (
            writing_file(self.store, folder_of(self.kind, self.id), name) as (file, written),
            gzip.GzipFile(fileobj=file, mode="wb", compresslevel=COMPRESSION_LEVEL, mtime=0) as packed,
            # As a stream: an object store takes bytes in order.
            tarfile.open(fileobj=packed, mode="w|") as tar,
        ):
            for label, path in folders.items():
                tar.add(path, arcname=label)
        self._parts.append(_part(written, "", len(folders)))

    def finish(self, created_at: datetime, reason: str, facts: Mapping[str, Any]) -> Manifest:
        """Close all files and write the manifest."""
        self._files.close()
        rows = [_part(one.written, table, one.rows) for table, one in self._open.items()]
        manifest = Manifest(self.id, self.kind, created_at, reason, (*rows, *self._parts), facts)
        write_manifest(self.store, manifest)
        return manifest


def _part(written: list[Written], table: str, rows: int) -> Part:
    (one,) = written
    return Part(one.name, table, rows, one.bytes, one.sha256)
