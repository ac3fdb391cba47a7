"""What a snapshot does not see yet: the transactions that were writing when it was taken.

What belongs here: transaction numbers. What does not: anything about rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Text, cast, func, select


@dataclass(frozen=True)
class Writers:
    """Transactions at work: `oldest` is the lowest number that has not ended, `next` the one given out next."""

    oldest: int
    next: int


def writers(connection: Connection) -> Writers | None:
    """The transactions whose writes the connection's snapshot does not show; None on SQLite, which does not tell.

    Prepared transactions and those of other roles are among them: no right is needed to see their numbers.
    """
    if connection.dialect.name != "postgresql":
        return None
    # As text: the numbers have a type of their own, which has no cast to bigint.
    snapshot = func.pg_current_snapshot()
    oldest = cast(func.pg_snapshot_xmin(snapshot), Text)
    following = cast(func.pg_snapshot_xmax(snapshot), Text)
    numbers = [int(str(value)) for value in connection.execute(select(oldest, following)).one()]
    return Writers(*numbers)
