"""Deleting archived calls in short transactions: only what is still what was archived goes.

What belongs here: the deletion. What does not: which calls (`pruning`), and their archives (`call_archive`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from sqlalchemy import Engine, delete, func, select

from ops_pipeline.database.batches import next_batch, wait_at_most
from ops_pipeline.database.engine import writing
from ops_pipeline.database.expressions import is_any_of
from ops_pipeline.database.leases import Lease
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.database.rows import row_hash
from ops_pipeline.usage.pruning import Pruned
from ops_pipeline.usage.tables import model_calls

FIRST_BATCH, SMALLEST_BATCH, LARGEST_BATCH = 2_000, 100, 10_000
LOCK_SECONDS = 0.2


class _Changed(Exception):
    """A call is not what was archived, or not there: the whole batch is undone."""


def delete_calls(
    engine: Engine, archived: Iterable[Mapping[str, int]], lease: Lease, done: Pruned | None = None
) -> list[str]:
    """Delete calls that are what they were when they were archived.

    Args:
        engine: the operations database.
        archived: the hash of each call by its id, some thousands at a time.
        lease: kept between two transactions.
        done: counts what goes.

    Returns:
        The ids of the others that are there.
    """
    left, size = list[str](), FIRST_BATCH
    for some in archived:
        ids = list(some)
        while ids:
            batch, ids = {one: some[one] for one in ids[:size]}, ids[size:]
            started = time.perf_counter()
            deleted, others = despite_conflicts(_delete_batch, engine, batch)
            seconds = time.perf_counter() - started
            left += others
            if done is not None:
                done.calls += deleted
                done.longest_seconds = max(done.longest_seconds, seconds)
            size = next_batch(size, seconds, SMALLEST_BATCH, LARGEST_BATCH)
            lease.keep()
    return left


def _delete_batch(engine: Engine, batch: Mapping[str, int]) -> tuple[int, list[str]]:
    """Delete some calls; how many, and the ids of those that are there and another thing than was archived."""
    if engine.dialect.name == "postgresql":
        with suppress(_Changed):
            _delete_in_sum(engine, batch)
            return len(batch), []
    mine = is_any_of(model_calls.c.id, list(batch))
    locking = select(model_calls.c.id, row_hash(model_calls).label("hash")).where(mine).with_for_update()
    with writing(engine) as connection:
        wait_at_most(connection, LOCK_SECONDS)
        rows = connection.execute(locking).all()
        same = [row.id for row in rows if batch[row.id] == row.hash]
        connection.execute(delete(model_calls).where(is_any_of(model_calls.c.id, same)))
    return len(same), [row.id for row in rows if batch[row.id] != row.hash]


def _delete_in_sum(engine: Engine, batch: Mapping[str, int]) -> None:
    """Delete calls if all are there and none is another one, which their number and the sum of their hashes tell.

    Raises:
        _Changed: otherwise; nothing is deleted.
    """
    mine = is_any_of(model_calls.c.id, list(batch))
    gone = delete(model_calls).where(mine).returning(row_hash(model_calls).label("hash")).cte("gone")
    with writing(engine) as connection:
        wait_at_most(connection, LOCK_SECONDS)
        count, total = connection.execute(select(func.count(), func.sum(gone.c.hash))).one()
        if count != len(batch) or total != sum(batch.values()):
            raise _Changed
