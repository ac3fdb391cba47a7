"""Waking workers that linger: LISTEN on a channel of PostgreSQL, where SQLite's only look often.

What belongs here: the channel and what is said on it. A trigger says `work` for every INSERT, whoever makes it.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

CHANNEL = "analysis_tasks"
WORK, CANCEL = "work", "cancel"


def wake(connection: Connection, what: str) -> None:
    """Tell listening workers, once the transaction commits, of new work or of a cancellation."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(CHANNEL, what)))
