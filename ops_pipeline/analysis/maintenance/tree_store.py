"""Old trees in the database: pages of them, and their guarded deletion.

A deletion is committed only when it took exactly what was archived: whatever changed in between, was added, or came
under a hold, undoes it.

What belongs here: SQL. Decisions are in `old_trees`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Table,
    Text,
    and_,
    case,
    cast,
    delete,
    exists,
    func,
    or_,
    select,
    type_coerce,
)

from ops_pipeline.analysis.maintenance.labels import hold_of, json_or_text, retention_of
from ops_pipeline.analysis.maintenance.old_trees import Member, Owner, Tree, trees_of
from ops_pipeline.analysis.pipelines.tables import pipelines
from ops_pipeline.analysis.tables import (
    TERMINAL,
    analysis_results,
    analysis_tasks,
    generated_applications,
    task_events,
)
from ops_pipeline.database.engine import database_now
from ops_pipeline.database.expressions import instant_order, is_any_of
from ops_pipeline.database.instants import EARLIEST, known_instant
from ops_pipeline.database.rows import row_hash
from ops_pipeline.database.types import StoredInstant

_task = analysis_tasks.c
BELONGINGS = (analysis_results, task_events)
"""The tables whose rows go with their task."""
DEEPEST = 50
KEYS_PER_QUERY = 1_000


@dataclass(frozen=True)
class Key:
    """Where a page of roots ends."""

    completed_at: datetime = EARLIEST
    id: str = ""


@dataclass
class Archived:
    """What was archived of a tree.

    Attributes:
        root: the id of the task at its top.
        tasks: the hash of each task, by id.
        rows: the hash of each row that belongs to them, by table and key.
        folders: the folder of each task that has one.
        targets: what its tasks work on.
        pipelines: the ids of the pipelines that they belong to.
        last_end: when the last of them ended.
    """

    root: str
    tasks: dict[str, int] = field(default_factory=dict)
    rows: dict[str, dict[Any, int]] = field(default_factory=lambda: {table.name: {} for table in BELONGINGS})
    folders: dict[str, str] = field(default_factory=dict)
    targets: set[str] = field(default_factory=set)
    pipelines: set[str] = field(default_factory=set)
    last_end: datetime = EARLIEST

    def belongs(self, target: str, pipeline_id: str | None, completed_at: datetime | None) -> None:
        """Keep what may keep a task of it."""
        self.targets.add(target)
        if pipeline_id:
            self.pipelines.add(pipeline_id)
        if completed_at is not None and completed_at > self.last_end:
            self.last_end = completed_at

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.tasks) + sum(map(len, self.rows.values()))


class Changed(Exception):
    """What is there is not what was archived."""


def count_old(connection: Connection, cutoff: datetime) -> tuple[int, int]:
    """How many tasks there are, and how many of them have ended before the cut-off: no more than these can go."""
    old = and_(_task.status.in_(TERMINAL), instant_order(_task.completed_at) < instant_order(cutoff))
    counted = select(func.count(), func.count(case((old, 1)))).select_from(analysis_tasks)
    total, due = connection.execute(counted).one()
    return total, due


def oldest_root(connection: Connection, cutoff: datetime, after: Key) -> datetime | None:
    """When the oldest root behind a page ended; None when none is due."""
    query = _roots(cutoff, after).limit(1)
    row = connection.execute(query).first()
    return row.completed_at if row else None


def read_page(connection: Connection, cutoff: datetime, after: Key, size: int) -> tuple[list[Tree], Key | None]:
    """Some trees whose roots ended before the cut-off, the oldest first; and where to go on, None at the end."""
    roots = [_member(row) for row in connection.execute(_roots(cutoff, after).limit(size)).all()]
    last = roots[-1] if roots else None
    following = Key(last.completed_at or EARLIEST, last.id) if last is not None and len(roots) == size else None
    return _whole(connection, roots), following


def read_abandoned(connection: Connection, cutoff: datetime, after: str, size: int) -> tuple[list[Tree], str | None]:
    """The same of tasks whose parent is gone: each is the root of what is left of its tree."""
    parent = analysis_tasks.alias("parent")
    gone = ~exists().where(parent.c.id == _task.parent_id)
    query = _members().where(_task.parent_id.is_not(None), gone, _old(cutoff), _task.id > after).order_by(_task.id)
    roots = [_member(row) for row in connection.execute(query.limit(size))]
    return _whole(connection, roots), roots[-1].id if len(roots) == size else None


def _old(cutoff: datetime) -> ColumnElement[bool]:
    return and_(_task.completed_at.is_not(None), instant_order(_task.completed_at) < instant_order(cutoff))


def _roots(cutoff: datetime, after: Key) -> Any:
    order = instant_order(_task.completed_at)
    start = instant_order(after.completed_at)
    onwards = and_(order >= start, or_(order > start, _task.id > after.id)) if after.id else order >= start
    return _members().where(_task.parent_id.is_(None), _old(cutoff), onwards).order_by(order, _task.id)


def _members() -> Any:
    lengths = [func.coalesce(func.length(cast(_task[name], Text)), 0) for name in ("result_summary", "options")]
    return select(
        _task.id,
        _task.parent_id,
        _task.status,
        type_coerce(known_instant(_task.completed_at), StoredInstant()).label("completed_at"),
        _task.target,
        _task.pipeline_id,
        cast(_task.labels, Text).label("labels"),
        (lengths[0] + lengths[1]).label("size"),
    )


def _member(row: Sequence[Any]) -> Member:
    *known, labels, size = row
    if labels is None:
        return Member(*known, size=size)
    value = json_or_text(labels)
    return Member(*known, hold=hold_of(value), retention=retention_of(value), size=size)


def _whole(connection: Connection, roots: Sequence[Member]) -> list[Tree]:
    levels = [list(roots)]
    while levels[-1] and len(levels) < DEEPEST:
        wanted = is_any_of(_task.parent_id, [member.id for member in levels[-1]])
        levels.append([_member(row) for row in connection.execute(_members().where(wanted)).all()])
    return trees_of(levels)


def read_pipelines(connection: Connection, ids: Collection[str]) -> dict[str, Owner]:
    """Pipelines by their ids."""
    if not ids:
        return {}
    table = pipelines.c
    wanted = is_any_of(table.id, sorted(ids))
    query = select(table.id, table.status, cast(table.labels, Text).label("labels")).where(wanted)
    return {row.id: _owner(row.labels, unfinished=row.status not in TERMINAL) for row in connection.execute(query)}


def read_keepers(connection: Connection, targets: Collection[str]) -> dict[str, Owner]:
    """The applications with labels among some targets."""
    table = generated_applications.c
    labels = cast(table.labels, Text).label("labels")
    query = select(table.target, labels).where(is_any_of(table.target, sorted(targets)), table.labels.is_not(None))
    found: dict[str, Owner] = {}
    for row in connection.execute(query):
        one, known = _owner(row.labels), found.get(row.target, Owner())
        longest = max((keep for keep in (one.retention, known.retention) if keep is not None), default=None)
        found[row.target] = Owner(hold=one.hold or known.hold, retention=longest)
    return found


def _owner(text: str | None, *, unfinished: bool = False) -> Owner:
    labels = json_or_text(text)
    return Owner(unfinished, hold_of(labels), retention_of(labels))


def belonging(table: Table) -> Column[str]:
    """The column of a table of `BELONGINGS` that names the task."""
    return table.c.task_id


def delete_trees(connection: Connection, trees: Sequence[Archived], cutoff: datetime) -> None:
    """Delete trees with all that belongs to them, children first.

    Args:
        connection: a transaction of `engine.writing`, which must be rolled back when this raises.
        trees: as they were archived.
        cutoff: nothing younger goes.

    Raises:
        Changed: something is not what was archived, or is new.
    """
    if _kept_meanwhile(connection, trees):
        raise Changed
    # One by one says which row is another one. Of many trees the sum says as much: whoever called halves them then.
    sums = connection.dialect.name == "postgresql" and len(trees) > 1
    delete_those = _delete_in_sum if sums else _delete_one_by_one
    tasks = {task: number for tree in trees for task, number in tree.tasks.items()}
    ids = list(tasks)
    for table in BELONGINGS:
        known = {key: number for tree in trees for key, number in tree.rows[table.name].items()}
        delete_those(connection, table, is_any_of(belonging(table), ids), known)
    unfinished = exists().where(pipelines.c.id == _task.pipeline_id, pipelines.c.status.not_in(TERMINAL))
    due = and_(_task.status.in_(TERMINAL), _old(cutoff), ~unfinished)
    roots = {tree.root: tree.tasks[tree.root] for tree in trees}
    below = {task: number for task, number in tasks.items() if task not in roots}
    for some in (below, roots):
        if some:
            delete_those(connection, analysis_tasks, and_(is_any_of(_task.id, list(some)), due), some)
    left = is_any_of(_task.parent_id, ids)
    if not sums:
        left = or_(is_any_of(_task.id, ids), left)
    if connection.execute(select(exists().where(left))).scalar_one():
        raise Changed


def _kept_meanwhile(connection: Connection, trees: Sequence[Archived]) -> bool:
    """Whether a pipeline or an application keeps one of the trees by now, whatever it did when they were archived."""
    owners = read_pipelines(connection, {one for tree in trees for one in tree.pipelines})
    keepers = read_keepers(connection, {one for tree in trees for one in tree.targets})
    if not owners and not keepers:
        return False
    now = database_now(connection)
    return any(
        owner.unfinished or owner.hold or (owner.retention is not None and now - tree.last_end <= owner.retention)
        for tree in trees
        for owner in (*map(owners.get, tree.pipelines), *map(keepers.get, tree.targets))
        if owner is not None
    )


def _delete_in_sum(
    connection: Connection, table: Table, condition: ColumnElement[bool], archived: Mapping[Any, int]
) -> None:
    """Delete rows and compare how many they are, and the sum of what they are: no row travels to this process."""
    gone = delete(table).where(condition).returning(row_hash(table).label("hash")).cte("gone")
    count, total = connection.execute(select(func.count(), func.sum(gone.c.hash))).one()
    if count != len(archived) or (total or 0) != sum(archived.values()):
        raise Changed


def _delete_one_by_one(
    connection: Connection, table: Table, condition: ColumnElement[bool], archived: Mapping[Any, int]
) -> None:
    """Delete rows and compare each; one that is not there any more needs no comparison."""
    key = next(iter(table.primary_key.columns))
    statement = delete(table).where(condition).returning(key, row_hash(table))
    # All of them at once: on SQLite a deletion that is read only in part can be neither committed nor undone.
    if any(archived.get(key) != number for key, number in connection.execute(statement).all()):
        raise Changed


def still_there(connection: Connection, tree: Archived) -> dict[str, list[Any]]:
    """What of a tree's archived rows is in the database, by table."""
    found: dict[str, list[Any]] = {}
    rows = {analysis_tasks: tree.tasks, **{table: tree.rows[table.name] for table in BELONGINGS}}
    for table, archived in rows.items():
        key, keys = next(iter(table.primary_key.columns)), list(archived)
        there: list[Any] = []
        for first in range(0, len(keys), KEYS_PER_QUERY):
            wanted = key.in_(keys[first : first + KEYS_PER_QUERY])
            there += connection.scalars(select(key).where(wanted))
        if there:
            found[table.name] = sorted(there)
    return found
