"""Taking turns: transactions of one kind, one after the other.

What belongs here: the lock. What does not: what is done under it.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select


def take_turn(connection: Connection, name: str) -> None:
    """Wait until no other transaction has this turn, and keep it to the end of the transaction.

    A transaction of `engine.writing` has every turn on SQLite already.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
