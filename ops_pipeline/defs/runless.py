"""Deleting old events that belong to no run, of which Dagster itself never deletes any.

Sensors say things without a run: that a partition is done after all, what became of machines, what pipelines did; and
Dagster keeps a row of every check that was ever evaluated, after its run went too.

What belongs here: which of these go, and their deletion. The newest word about each partition, asset and check stays,
whatever its age: the partition status is made of them.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from dagster import DagsterEventType, DagsterInstance
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select

BATCH = 1000


def count_old_words(instance: DagsterInstance, before: datetime) -> int:
    """How many events without a run, and evaluations of checks, `delete_old_words` would delete."""
    with _index(instance) as connection:
        return sum(
            connection.execute(select(func.count()).select_from(table).where(condition)).scalar_one()
            for table, condition in _old(before)
        )


def delete_old_words(instance: DagsterInstance, before: datetime, enough: Callable[[], bool]) -> int:
    """Delete them in batches, until all are gone or it is enough; returns how many rows went.

    Args:
        instance: Dagster's.
        before: what is older goes, unless it is the newest of its kind.
        enough: asked between batches.
    """
    deleted = 0
    for table, condition in _old(before):
        while not enough():
            with _index(instance) as connection:
                ids = list(connection.scalars(select(table.c.id).where(condition).limit(BATCH)))
                if not ids:
                    break
                if table is SqlEventLogStorageTable:
                    connection.execute(delete(AssetEventTagsTable).where(AssetEventTagsTable.c.event_id.in_(ids)))
                connection.execute(delete(table).where(table.c.id.in_(ids)))
                deleted += len(ids)
    storage: Any = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        # A second copy, which nothing but the page of a run would read.
        with storage.run_connection(RUNLESS_RUN_ID) as connection:
            connection.execute(
                delete(SqlEventLogStorageTable).where(SqlEventLogStorageTable.c.timestamp < _naive(before))
            )
    return deleted


@contextmanager
def _index(instance: DagsterInstance) -> Generator[Connection]:
    storage: Any = instance.event_log_storage
    with storage.index_connection() as connection:
        yield connection


def _naive(when: datetime) -> datetime:
    """As Dagster writes times of events."""
    return when.astimezone(UTC).replace(tzinfo=None)


def _old(before: datetime) -> list[tuple[Any, ColumnElement[bool]]]:
    """Tables and what goes of each."""
    event, check = SqlEventLogStorageTable, AssetCheckExecutionsTable
    later, checked_later = event.alias("later"), check.alias("checked_later")
    same = and_(
        later.c.asset_key == event.c.asset_key,
        later.c.dagster_event_type == event.c.dagster_event_type,
        later.c.id > event.c.id,
    )
    superseded = or_(
        # Apart: the index of partitions serves one, that of assets the other.
        and_(event.c.partition.is_not(None), exists().where(same, later.c.partition == event.c.partition)),
        and_(event.c.partition.is_(None), exists().where(same, later.c.partition.is_(None))),
    )
    events = and_(
        event.c.run_id == RUNLESS_RUN_ID,
        event.c.timestamp < _naive(before),
        # What a check said stands in its own table too.
        or_(event.c.dagster_event_type == DagsterEventType.ASSET_CHECK_EVALUATION.value, superseded),
    )
    checks = and_(
        check.c.create_timestamp < _naive(before),
        exists().where(
            checked_later.c.asset_key == check.c.asset_key,
            checked_later.c.check_name == check.c.check_name,
            checked_later.c.partition.is_not_distinct_from(check.c.partition),
            checked_later.c.id > check.c.id,
        ),
    )
    return [(event, events), (check, checks)]
