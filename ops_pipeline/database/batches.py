"""Bounded transactions: how many rows the next one takes, and how long it may wait for a lock.

What belongs here: what keeps transactions short. What does not: which rows.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

BATCH_SECONDS = 0.2
"""What a batch aims at. Its rows are locked until it commits, and whoever wants one of them waits so long."""


def next_batch(size: int, seconds: float, smallest: int, largest: int) -> int:
    """How many rows the next transaction takes, so that it lasts as long as it should; at most twice as many.

    Args:
        size: rows of the last one.
        seconds: how long that took.
        smallest: never fewer rows than these.
        largest: never more.
    """
    wanted = size * BATCH_SECONDS / max(seconds, 0.001)
    return int(min(max(wanted, smallest), 2 * size, largest))


def wait_at_most(connection: Connection, seconds: float) -> None:
    """Let no statement of this transaction wait longer for a row that somebody else holds.

    What the transaction has locked itself stays locked while it waits. SQLite has one writer at a time, which waits
    before it locks anything. Whoever waits too long gets a `Conflict`.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = {int(seconds * 1000)}"))


def without_waiting_for_disk(connection: Connection) -> None:
    """Let the commit of this transaction return before it lies on the disk.

    Everybody sees it at once. When the server itself dies within the next moments it is gone, as if it had never been:
    for what nothing depends on then. What is committed later and does wait lies behind it on the disk.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL synchronous_commit = off"))
