"""The two fences that let one daemon lead: an advisory lock in Dagster's PostgreSQL, or a lock on a file beside SQLite.

What belongs here: taking, keeping and losing the lead. What does not: processes (see `leader`), Dagster.

A lock alone is not enough: a process that is stopped (SIGSTOP, a paused virtual machine) keeps it and does nothing. So
the leader also beats, and who waits takes the lock away from one that has not beaten for `STALE_SECONDS`: by ending its
session in PostgreSQL, by killing it beside SQLite. What a leader that wakes up later still writes is kept out by
its token, which every connection of its daemon asks for (see `defs/daemon`), or because it is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, Text, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.database.engine import connect
from ops_pipeline.database.errors import DatabaseProblem, masked
from ops_pipeline.database.types import UtcDateTime

BEAT_SECONDS = 2.0
STALE_SECONDS = 6.0
"""Three beats: a take-over then needs less than 15 seconds, the start of the daemon included."""
LOCK = 0x6F70735F6C656164
"""The bytes of "ops_lead"."""

metadata = MetaData()
leader = Table(
    "ops_pipeline_leader",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("token", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("taken_at", UtcDateTime, nullable=False),
    Column("beat_at", UtcDateTime, nullable=False),
)
"""One row: who leads. It lives beside Dagster's own tables, which it protects."""


class Lost(Exception):
    """The lead is gone, or nobody can tell: the daemon must end."""


class Fence(Protocol):
    """One claim to the lead."""

    token: str

    def take(self) -> bool:
        """Try to take the lead; False while another has it."""
        ...

    def beat(self) -> None:
        """Say that the leader lives.

        Raises:
            Lost: it does not lead any more.
        """
        ...

    def leads_with(self, child: int) -> None:
        """Say which process does the work, so that it can be ended when the leader cannot end it."""
        ...

    def release(self) -> None:
        """Give the lead back at once, so that nobody has to wait for it."""
        ...


class PostgresFence:
    """The lead as a session's advisory lock in Dagster's database, beside a row with its token."""

    def __init__(self, url: str, stale_seconds: float = STALE_SECONDS) -> None:
        """Remember where; connects when the lead is first asked for."""
        self.token = uuid.uuid4().hex
        self._stale = stale_seconds
        self._where = masked(url)
        self._engine: Engine = connect(_watchful(url))
        self._session: Connection | None = None

    def take(self) -> bool:
        """Try to take the lead; ends the session of a leader that does not beat any more.

        Raises:
            DatabaseProblem: the database cannot be used.
        """
        session = self._open()
        if not session.execute(select(func.pg_try_advisory_lock(LOCK))).scalar_one():
            self._end_stale(session)
            return False
        now = func.clock_timestamp()
        row: dict[str, Any] = {"token": self.token, "host": socket.gethostname(), "taken_at": now, "beat_at": now}
        statement = insert(leader).values(id=1, **row)
        session.execute(statement.on_conflict_do_update(index_elements=[leader.c.id], set_=row))
        self._end_sessions_of_others(session)
        return True

    def beat(self) -> None:
        """Write the beat, if the row is still ours.

        Raises:
            Lost: it is not, or the session is gone and the lock with it.
        """
        if self._session is None:
            raise Lost("no session")
        statement = leader.update().where(leader.c.token == self.token).values(beat_at=func.clock_timestamp())
        try:
            ours = self._session.execute(statement).rowcount
        except (SQLAlchemyError, DatabaseProblem) as error:
            self.release()
            raise Lost(f"its session with {self._where} is gone ({str(error).partition(chr(10))[0]})") from error
        if not ours:
            self.release()
            raise Lost("another daemon leads now")

    def leads_with(self, child: int) -> None:
        """Nothing to write down: its connections carry the token."""

    def release(self) -> None:
        """Close the session, which frees the lock."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(SQLAlchemyError, DatabaseProblem):
                session.invalidate()
        self._engine.dispose()

    def _open(self) -> Connection:
        if self._session is not None and not self._session.closed:
            try:
                self._session.execute(select(1))
            except (SQLAlchemyError, DatabaseProblem):
                self.release()
        if self._session is None:
            session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                session.execute(text("SET statement_timeout = '3s'"))
                metadata.create_all(session)
            except BaseException:
                session.close()
                raise
            self._session = session
        return self._session

    def _end_stale(self, session: Connection) -> None:
        stale = leader.c.beat_at < func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, self._stale)
        if session.execute(select(leader.c.token).where(stale)).first() is None:
            return
        holders = text(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
            " AND classid = :high AND objid = :low AND pid <> pg_backend_pid()"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        session.execute(holders, {"high": LOCK >> 32, "low": LOCK & 0xFFFFFFFF})

    def _end_sessions_of_others(self, session: Connection) -> None:
        # A statement of the former leader may still be under way; what it opens from now on is refused by its token.
        others = text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE :ours"
            " AND application_name <> :mine AND datname = current_database() AND usename = current_user"
        )
        session.execute(others, {"ours": f"{session_name('')}%", "mine": session_name(self.token)})


def session_name(token: str) -> str:
    """The name under which the connections of the leader's daemon are seen in pg_stat_activity."""
    return f"ops_pipeline_daemon_{token}"


def _watchful(url: str) -> str:
    """The URL with limits after which a connection that was cut is given up, in seconds and milliseconds."""
    defaults = {"connect_timeout": "3", "tcp_user_timeout": "4000", "keepalives_idle": "2", "keepalives_interval": "1"}
    parsed = make_url(url)
    missing = {name: value for name, value in defaults.items() if name not in parsed.query}
    return parsed.update_query_dict(missing).render_as_string(hide_password=False)


class FileFence:
    """The lead as a lock on a file in DAGSTER_HOME: for one machine, where a leader that hangs can be killed."""

    def __init__(self, home: Path, stale_seconds: float = STALE_SECONDS) -> None:
        """Remember where."""
        self.token = uuid.uuid4().hex
        self._stale = stale_seconds
        self._file = home / "daemon.lock"
        self._handle: int | None = None

    def take(self) -> bool:
        """Try to take the lead; kills a leader of this machine that does not beat any more.

        Raises:
            OSError: the file cannot be written.
        """
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._end_stale(handle)
            os.close(handle)
            return False
        self._handle = handle
        self._write({"pids": [[os.getpid(), _started(os.getpid())]]})
        return True

    def beat(self) -> None:
        """Touch the file.

        Raises:
            Lost: the file is gone, or another one stands in its place.
        """
        if self._handle is None:
            raise Lost("no lock")
        try:
            same = os.fstat(self._handle).st_ino == self._file.stat().st_ino
        except OSError as error:
            self.release()
            raise Lost(f"{self._file} is gone") from error
        if not same:
            self.release()
            raise Lost(f"{self._file} was replaced")
        os.utime(self._handle)

    def leads_with(self, child: int) -> None:
        """Write down the daemon's process beside the leader's."""
        self._write({"pids": [[pid, _started(pid)] for pid in (os.getpid(), child)]})

    def release(self) -> None:
        """Close the file, which frees the lock."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def _write(self, content: dict[str, Any]) -> None:
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(content).encode(), 0)

    def _end_stale(self, handle: int) -> None:
        if time.time() - os.fstat(handle).st_mtime < self._stale:
            return
        with contextlib.suppress(ValueError):
            # The daemon first: its parent could start another one.
            for pid, started in reversed(json.loads(os.pread(handle, 4096, 0) or b"{}").get("pids", [])):
                # The number alone may be another process by now.
                if _started(pid) == started:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks since boot; empty when it does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
