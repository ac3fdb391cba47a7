"""Reading archives: their rows and keys, and putting them back.

What belongs here: everything that reads Parquet and tar files. What does not: printing (`commands`).
"""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from sqlalchemy import Engine, Table

from ops_pipeline.archives.columns import HASH, insert_absent
from ops_pipeline.archives.manifest import Manifest, Part
from ops_pipeline.archives.store import Store, reading_checked
from ops_pipeline.database.engine import writing
from ops_pipeline.database.retry import despite_conflicts

ROWS_AT_ONCE = 10_000


def restore_rows(engine: Engine, store: Store, manifest: Manifest, tables: Mapping[str, Table]) -> dict[str, int]:
    """Insert the rows of an archive that are not in the database, in transactions of 10,000 rows.

    Args:
        engine: the operations database.
        store: where the archive lies.
        manifest: the archive.
        tables: every table by name.

    Returns:
        Rows inserted, by table; the others were there already.

    Raises:
        ValueError: a file is damaged, or the database has no such table.
    """
    inserted: dict[str, int] = {}
    for part in manifest.parts:
        if not part.table:
            continue
        if part.table not in tables:
            raise ValueError(f"{manifest.folder} holds rows of {part.table}, and there is no such table")
        table = tables[part.table]
        for batch in batches(store, manifest, part):
            kept = without(batch, _key_of(table), (manifest.left_out or {}).get(part.table, ()))
            count = despite_conflicts(_insert, engine, table, kept)
            inserted[part.table] = inserted.get(part.table, 0) + count
    return inserted


def _insert(engine: Engine, table: Table, batch: pa.RecordBatch) -> int:
    with writing(engine) as connection:
        return insert_absent(connection, table, batch)


def _key_of(table: Table) -> str:
    return next(iter(table.primary_key.columns)).name


def without(batch: pa.RecordBatch, key: str, left_out: Sequence[Any]) -> pa.RecordBatch:
    """The rows whose key is not among those left out."""
    if not left_out:
        return batch
    left = set(left_out)
    return batch.filter(pa.array([value not in left for value in batch.column(key).to_pylist()], pa.bool_()))


def batches(
    store: Store, manifest: Manifest, part: Part, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a part, checked and in order.

    Raises:
        ValueError: the file is damaged.
    """
    with reading_checked(store, manifest.folder, part.name, part.sha256) as file:
        yield from parquet.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False)


def rows_of(store: Store, manifest: Manifest, table: Table, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Some columns of all archived rows of a table, `HASH` among them where asked for."""
    found: list[tuple[Any, ...]] = []
    for part in manifest.parts:
        if part.table == table.name:
            for batch in batches(store, manifest, part, columns):
                found += zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    return found


def hashes_of(store: Store, manifest: Manifest, table: Table) -> Iterator[dict[Any, int]]:
    """The hash of each archived row of a table by its key, 10,000 at a time: however many there are, few are held."""
    key = _key_of(table)
    for part in manifest.parts:
        if part.table == table.name:
            for batch in batches(store, manifest, part, (key, HASH)):
                yield dict(zip(batch.column(key).to_pylist(), batch.column(HASH).to_pylist(), strict=True))


def restore_folders(store: Store, manifest: Manifest, target: Path, left_out: Collection[str]) -> int:
    """Put archived directories back below `target`, those that are not there; returns how many.

    Raises:
        ValueError: the file is damaged, or a name in it leads elsewhere.
        OSError: it could not be written.
    """
    restored = 0
    for part in manifest.parts:
        if part.table:
            continue
        with (
            reading_checked(store, manifest.folder, part.name, part.sha256) as file,
            tarfile.open(fileobj=file, mode="r:gz") as tar,
        ):
            restored += _extract(tar, target, left_out)
    return restored


def _extract(tar: tarfile.TarFile, target: Path, left_out: Collection[str]) -> int:
    target.mkdir(parents=True, exist_ok=True)
    wanted: set[str] = set()
    current: str | None = None
    for member in tar:
        if current is None or not (member.name == current or member.name.startswith(f"{current}/")):
            # The first member of each directory is the directory itself.
            current = member.name
            if current not in left_out and not (target / current).exists():
                wanted.add(current)
        if current in wanted:
            try:
                tar.extract(member, target, filter="data")
            except tarfile.FilterError as error:
                raise ValueError(f"{member.name} in the archive leads elsewhere: {error}") from error
    return len(wanted)
