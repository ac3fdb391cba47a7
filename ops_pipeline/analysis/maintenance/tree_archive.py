"""Trees into archives, and out of the database: what was archived is what goes.

What belongs here: writing and reading the archives of trees, and their deletion in short transactions. The SQL is in
`tree_store`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine

from ops_pipeline.analysis.maintenance import tree_store as store
from ops_pipeline.analysis.maintenance.old_trees import Tree
from ops_pipeline.analysis.maintenance.result_folders import Folders
from ops_pipeline.analysis.maintenance.tree_store import BELONGINGS, Archived, Changed
from ops_pipeline.analysis.tables import analysis_tasks
from ops_pipeline.archives.columns import HASH, stored_batches
from ops_pipeline.archives.manifest import Manifest
from ops_pipeline.archives.restoring import rows_of
from ops_pipeline.archives.store import Store
from ops_pipeline.archives.writing import ArchiveWriter
from ops_pipeline.database.batches import next_batch, wait_at_most
from ops_pipeline.database.engine import reading, writing
from ops_pipeline.database.errors import Conflict
from ops_pipeline.database.retry import despite_conflicts

BYTES_AT_ONCE = 4_000_000
ROWS_AT_ONCE = 2_000
FIRST_BATCH, SMALLEST_BATCH, LARGEST_BATCH = 500, 1, 2_500
LOCK_SECONDS = 0.2


@dataclass
class Deleted:
    """What a deletion did.

    Attributes:
        trees, rows: that went.
        left_out: by table, keys of archived rows that stay.
        kept: trees that stay since they changed, or somebody holds them.
        failed: folders that could not be removed, and why.
        longest_seconds: of its transactions.
    """

    trees: int = 0
    rows: int = 0
    tasks: int = 0
    left_out: dict[str, list[Any]] = field(default_factory=dict)
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    longest_seconds: float = 0.0


def fill(connection: Connection, writer: ArchiveWriter, trees: Sequence[Tree], folders: Folders) -> list[Archived]:
    """Write trees with all that belongs to them, from one snapshot; returns what was written of each.

    Raises:
        ValueError: a value is none of its column's type.
        OSError: a file could not be read or written.
    """
    tree_of: dict[str, Archived] = {}
    found: list[Archived] = []
    labels: dict[str, Any] = {}
    for tree in trees:
        one = Archived(tree.root.id)
        found.append(one)
        for member in tree.members:
            tree_of[member.id] = one
            one.belongs(member.target, member.pipeline_id, member.completed_at)
            folder = folders.of(member.id, member.target)
            if folder:
                one.folders[member.id] = folder
                labels[folder] = folders.path(folder)
    ids = list(tree_of)
    size = sum(tree.size for tree in trees) // max(len(ids), 1)

    # Rows of some megabytes each must not be held by the thousand.
    at_once = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // max(size, 1)))
    for batch in stored_batches(connection, analysis_tasks, analysis_tasks.c.id, ids, at_once):
        for task, number in _values(batch, "id", HASH):
            tree_of[task].tasks[task] = number
        writer.write_batch(analysis_tasks, batch)
    for table in BELONGINGS:
        key = next(iter(table.primary_key.columns)).name
        for batch in stored_batches(connection, table, store.belonging(table), ids, at_once):
            for row, owner, number in _values(batch, key, "task_id", HASH):
                tree_of[owner].rows[table.name][row] = number
            writer.write_batch(table, batch)
    writer.write_folders(labels)
    return found


def _values(batch: Any, *names: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(batch.column(name).to_pylist() for name in names), strict=True)


def read_back(where: Store, manifest: Manifest, folders: Folders) -> list[Archived]:
    """The trees of an archive that a dead run left."""
    columns = ("id", "parent_id", "target", "pipeline_id", "completed_at", HASH)
    tasks = rows_of(where, manifest, analysis_tasks, columns)
    above = {task: parent for task, parent, *_ in tasks}
    trees: dict[str, Archived] = {}
    tree_of: dict[str, Archived] = {}
    for task, _, target, pipeline_id, completed_at, number in tasks:
        root = task
        while above.get(above[root] or "", root) is not root and above[root] in above:
            root = above[root]
        one = tree_of[task] = trees.setdefault(root, Archived(root))
        one.tasks[task] = number
        one.belongs(target, pipeline_id, completed_at)
        folder = folders.of(task, target)
        if folder:
            one.folders[task] = folder
    for table in BELONGINGS:
        key = next(iter(table.primary_key.columns)).name
        for row, owner, number in rows_of(where, manifest, table, (key, "task_id", HASH)):
            tree_of[owner].rows[table.name][row] = number
    return list(trees.values())


def delete_archived(
    engine: Engine, trees: Sequence[Archived], cutoff: Any, folders: Folders, keep: Callable[[], None]
) -> Deleted:
    """Delete archived trees in transactions that aim at a fifth of a second, each tree as a whole.

    Args:
        engine: the operations database.
        trees: as they were archived.
        cutoff: nothing that ended later goes.
        folders: the directories, which go after the rows.
        keep: called between two transactions.
    """
    done, waiting, size = Deleted(), list(reversed(trees)), FIRST_BATCH
    while waiting:
        batch = [waiting.pop()]
        rows = batch[0].size
        while waiting and rows + waiting[-1].size <= size:
            batch.append(waiting.pop())
            rows += batch[-1].size
        started = time.perf_counter()
        _delete(engine, batch, cutoff, folders, done)
        seconds = time.perf_counter() - started
        size = next_batch(size, seconds, SMALLEST_BATCH, LARGEST_BATCH)
        keep()
    return done


def _delete(engine: Engine, batch: Sequence[Archived], cutoff: Any, folders: Folders, done: Deleted) -> None:
    started = time.perf_counter()
    try:
        despite_conflicts(_transaction, engine, batch, cutoff)
    except (Changed, Conflict):
        if len(batch) > 1:
            middle = len(batch) // 2
            _delete(engine, batch[:middle], cutoff, folders, done)
            _delete(engine, batch[middle:], cutoff, folders, done)
        else:
            _leave(engine, batch[0], done)
        return
    done.longest_seconds = max(done.longest_seconds, time.perf_counter() - started)
    done.trees += len(batch)
    done.tasks += sum(len(tree.tasks) for tree in batch)
    done.rows += sum(tree.size for tree in batch)
    done.failed |= folders.remove(folder for tree in batch for folder in tree.folders.values())


def _transaction(engine: Engine, batch: Sequence[Archived], cutoff: Any) -> None:
    with writing(engine) as connection:
        wait_at_most(connection, LOCK_SECONDS)
        store.delete_trees(connection, batch, cutoff)


def _leave(engine: Engine, tree: Archived, done: Deleted) -> None:
    """A tree that changed, or that somebody holds, stays; what of it is archived is no archive of it."""
    done.kept += 1
    with reading(engine) as connection:
        there = store.still_there(connection, tree)
    for name, keys in there.items():
        done.left_out.setdefault(name, []).extend(keys)
    stays = set(there.get(analysis_tasks.name, ()))
    kept = [folder for task, folder in tree.folders.items() if task in stays]
    if kept:
        done.left_out.setdefault("files", []).extend(kept)


def facts_of(trees: Sequence[Tree], retention_days: float) -> Mapping[str, Any]:
    """What a person wants to know about an archive."""
    ends = [member.completed_at for tree in trees for member in tree.members if member.completed_at is not None]
    period = {"first_end": min(ends).isoformat(), "last_end": max(ends).isoformat()} if ends else {}
    return {"trees": len(trees), "retention_days": retention_days, **period}
