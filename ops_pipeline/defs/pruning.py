"""Deleting runs from Dagster's storage without losing what they were the last to say.

What belongs here: deletion, the words that are said again before it, and the size of the storage.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import AssetKey, AssetMaterialization, AssetRecordsFilter, DagsterEventType, DagsterInstance
from dagster._core.storage.event_log import SqliteEventLogStorage
from sqlalchemy import text

MOST_EVENTS = 1000
"""Events read at once: a run of a month has 720 materializations, of 2 kB each."""


@dataclass(frozen=True)
class Pruned:
    """What one batch did.

    Attributes:
        deleted: runs that are gone.
        kept: runs that hold the latest materialization of an asset without partitions.
        repeated: partitions about which the latest word was said again.
    """

    deleted: tuple[str, ...]
    kept: tuple[str, ...]
    repeated: int


def delete_runs(instance: DagsterInstance, run_ids: Sequence[str]) -> Pruned:
    """Delete runs with their events and compute logs; says the latest word about a partition again before."""
    said: dict[AssetKey, set[str]] = {}
    whole: dict[AssetKey, set[str]] = {}
    for run_id in run_ids:
        for asset, partition in _materialized(instance, run_id):
            if partition is None:
                whole.setdefault(asset, set()).add(run_id)
            else:
                said.setdefault(asset, set()).add(partition)
    kept = {run_id for asset, runs in whole.items() for run_id in runs if _says_last(instance, asset, run_id)}
    going = [run_id for run_id in run_ids if run_id not in kept]
    repeated = sum(_repeat(instance, asset, partitions, set(going)) for asset, partitions in said.items())
    for run_id in going:
        _delete(instance, run_id)
    return Pruned(tuple(going), tuple(sorted(kept)), repeated)


def _materialized(instance: DagsterInstance, run_id: str) -> list[tuple[AssetKey, str | None]]:
    found: list[tuple[AssetKey, str | None]] = []
    cursor: str | None = None
    while True:
        page = instance.get_records_for_run(
            run_id, cursor, of_type=DagsterEventType.ASSET_MATERIALIZATION, limit=MOST_EVENTS
        )
        for record in page.records:
            said = record.event_log_entry.asset_materialization
            if said is not None:
                found.append((said.asset_key, said.partition))
        if not page.has_more:
            return found
        cursor = page.cursor


def _says_last(instance: DagsterInstance, asset: AssetKey, run_id: str) -> bool:
    latest = instance.get_latest_materialization_event(asset)
    return latest is not None and latest.run_id == run_id


def _repeat(instance: DagsterInstance, asset: AssetKey, partitions: set[str], going: set[str]) -> int:
    """Say again what a run that goes was the last to say about a partition."""
    latest = instance.get_latest_storage_id_by_partition(asset, DagsterEventType.ASSET_MATERIALIZATION, partitions)
    ids = sorted(latest.values())
    repeated = 0
    for first in range(0, len(ids), MOST_EVENTS):
        wanted = AssetRecordsFilter(asset_key=asset, storage_ids=ids[first : first + MOST_EVENTS])
        for record in instance.fetch_materializations(wanted, limit=MOST_EVENTS).records:
            said = record.asset_materialization
            if record.run_id in going and said is not None:
                instance.report_runless_asset_event(
                    AssetMaterialization(asset, said.description, said.metadata, said.partition, said.tags)
                )
                repeated += 1
    return repeated


def _delete(instance: DagsterInstance, run_id: str) -> None:
    # Compute logs first: without their run nobody would find them again. A run that wrote none has no folder
    # (FileNotFoundError), and some managers of logs offer no deletion (NotImplementedError): the run goes all the same.
    with contextlib.suppress(FileNotFoundError, NotImplementedError):
        instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.delete_run(run_id)
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        # Each run has a file of its own there, 120 kB, which Dagster empties and leaves behind.
        file = Path(storage.path_for_shard(run_id))
        for one in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
            one.unlink(missing_ok=True)


def storage_bytes(instance: DagsterInstance) -> int:
    """What runs, events, ticks and compute logs take, in bytes."""
    storage: Any = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        return _folder_bytes(Path(instance.root_directory))
    with storage.index_connection() as connection:
        tables = text(
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c"
            " WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace"
        )
        return int(connection.execute(tables).scalar_one())


def _folder_bytes(folder: Path) -> int:
    ours = ("history", "schedules", "storage", "logs")
    files = (file for name in ours for file in (folder / name).rglob("*"))
    return sum(_size(file) for file in files)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:
        return 0
