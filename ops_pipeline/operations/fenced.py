"""What keeps a process that has lost the lead from writing: for the daemon that a leader starts.

A daemon that was stopped and wakes up, or whose leader died, must not launch what another daemon has launched already:
each of its connections to Dagster's storage asks first whether its token still leads, and it ends when its leader does.

What belongs here: how such a process gets its token, and the two ways in which it ends itself.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

from ops_pipeline.operations.fences import leader, session_name

log = logging.getLogger(__name__)
FENCED = 70
"""The exit status of a daemon that found another one leading."""
LEADERLESS = 71
"""The exit status of a daemon whose leader has ended."""


def fence_connections(token: str) -> None:
    """Let every new connection to PostgreSQL ask whether the token leads; end the process where it does not.

    Dagster's storage keeps no connections: each of its operations opens one, so that none is older than an operation.
    """

    @event.listens_for(Pool, "connect")
    def _ask(connection: Any, _record: Any) -> None:
        if not type(connection).__module__.startswith("psycopg"):
            return
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('application_name', %s, false)", (session_name(token),))
            cursor.execute(f"SELECT token FROM {leader.name} WHERE id = 1")  # noqa: S608 - the table's own name
            row = cursor.fetchone()
        # A rollback would take the name back.
        connection.commit()
        if row is None or row[0] != token:
            _end(FENCED, "Another daemon leads: this one ends without writing anything more.")


def token_of_leader() -> str | None:
    """Wait for the token on standard input, where a leader writes it once it leads; None when the leader has ended."""
    told = b""
    while not told.endswith(b"\n"):
        # Byte by byte, and not through `sys.stdin`: what comes after the line is for `end_with_leader`.
        read = os.read(0, 1)
        if not read:
            return None
        told += read
    # A leader that died since then has closed it: two would work for as long as it takes to notice.
    ended = bool(select.select([0], [], [], 0)[0])
    return None if ended else told.decode().strip()


def end_with_leader() -> None:
    """End this process when standard input closes, which the leader holds open as long as it lives."""

    def watch() -> None:
        # Not through `sys.stdin`: its lock, held here, would abort the interpreter when it ends by itself.
        while os.read(0, 4096):
            pass
        _end(LEADERLESS, "The leader of this daemon has ended: so does it.")

    threading.Thread(target=watch, name="leader-watch", daemon=True).start()


def _end(status: int, why: str) -> None:
    log.warning(why)
    # Not an exception: Dagster's threads catch those and go on.
    os._exit(status)
