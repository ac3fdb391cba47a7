"""Waking whoever waits for rows: LISTEN on PostgreSQL, which triggers notify; SQLite has nothing of the kind.

What belongs here: the connection that listens. Whoever waits must look by itself too: a notification can be missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
from psycopg import sql
from sqlalchemy import Engine

SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0


def can_listen(engine: Engine) -> bool:
    """Whether there are notifications at all."""
    return engine.dialect.name == "postgresql"


async def listen(engine: Engine, channel: str, heard: Callable[[str], None]) -> None:
    """Hear of notifications until cancelled, and connect again when the connection is lost.

    Args:
        engine: of a PostgreSQL.
        channel: its name.
        heard: gets the payload of each notification; and an empty one whenever listening begins, since what came
            before was missed.
    """
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    pause = SHORTEST_PAUSE
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=10) as connection:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                heard("")
                pause = SHORTEST_PAUSE
                async for notification in connection.notifies():
                    heard(notification.payload)
        except psycopg.Error:
            # Whoever waits looks by itself meanwhile; what is wrong with the database is told by those looks.
            pause = min(pause * 2, LONGEST_PAUSE)
        await asyncio.sleep(pause)
