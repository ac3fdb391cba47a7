"""The SQLAlchemy engine and the three kinds of transaction that the domains use.

What belongs here: connecting, and how each database is told to isolate. What does not: any query of a domain.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import ArgumentError

from ops_pipeline.database.errors import explain, masked, unusable_url
from ops_pipeline.database.rows import SQLITE_ROW_HASH, hash_on_sqlite
from ops_pipeline.database.types import UtcDateTime

BUSY_TIMEOUT_SECONDS = 30
_WRITES = "ops_pipeline_writes"


def connect(url: str) -> Engine:
    """Make the engine for DATABASE_URL; connects only when first used.

    Raises:
        DatabaseProblem: the URL cannot be read, or names neither PostgreSQL nor SQLite.
    """
    parsed = _parsed(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.host:
            raise unusable_url(url, "after sqlite: stand three slashes, and four before an absolute path")
        parsed = parsed.set(drivername="sqlite")
        engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    elif backend == "postgresql":
        # jit costs 0.7 s on a month's aggregation and gains nothing; the zone makes text casts mean UTC.
        defaults = {"application_name": "ops_pipeline", "connect_timeout": 10}
        arguments: dict[str, Any] = {name: value for name, value in defaults.items() if name not in parsed.query}
        # Arguments replace parameters of the URL, which may choose a schema: -csearch_path=ops.
        arguments["options"] = f"{parsed.query.get('options', '')} -c timezone=UTC -c jit=off".lstrip()
        parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=arguments)
    else:
        raise unusable_url(url, f"{backend} is not supported")
    event.listen(engine, "handle_error", _translate)
    return engine


def _parsed(url: str) -> URL:
    # The errors' own texts may hold a part of the password.
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise unusable_url(url, "it is no database URL") from None
    except ValueError:
        raise unusable_url(url, "its port is no number; in a password write @ as %40 and : as %3A") from None
    if "@" in (parsed.host or ""):
        raise unusable_url(url, "it has two @; in a password write @ as %40")
    return parsed


def sqlite_url(folder: Path) -> str:
    """The URL of the embedded database in a folder, usually the Dagster home."""
    return f"sqlite:///{folder.absolute() / 'ops_pipeline.db'}"


def where(engine: Engine) -> str:
    """The engine's URL without secrets."""
    return masked(engine.url)


@contextmanager
def reading(engine: Engine) -> Generator[Connection, None, None]:
    """One consistent snapshot for as many SELECTs as wanted; never writes."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


@contextmanager
def writing(engine: Engine) -> Generator[Connection, None, None]:
    """A transaction of guarded writes; on SQLite it takes the write lock at its start."""
    with engine.connect() as connection:
        connection.execution_options(**{_WRITES: True})
        with connection.begin():
            yield connection


@contextmanager
def rewriting(engine: Engine, turnstile: Table) -> Generator[Connection, None, None]:
    """A transaction that reads one snapshot and replaces rows from it, one such transaction at a time.

    `turnstile` is locked against other writers before the snapshot is taken (LOCK TABLE is the only statement
    that takes none), so that whoever waited sees what the one before committed. Readers are not held up.

    Raises:
        Conflict: another writer touched the rows all the same; try the transaction again.
    """
    # With 64 MB a day's groups are hashed in memory: half the time of the sort on disk that 4 MB leads to.
    with engine.connect() as connection:
        connection.execution_options(**{_WRITES: True})
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL work_mem = '64MB'"))
                name = engine.dialect.identifier_preparer.format_table(turnstile)
                connection.execute(text(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE"))
            yield connection


def database_now(connection: Connection) -> datetime:
    """The database's clock, which decides staleness instead of the host's."""
    if connection.dialect.name == "sqlite":
        clock: Any = func.strftime("%Y-%m-%d %H:%M:%f", "now", type_=UtcDateTime())
    else:
        clock = func.clock_timestamp(type_=UtcDateTime())
    return connection.execute(select(clock)).scalar_one()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy's "begin" event starts transactions, so that they can be IMMEDIATE.
    connection.isolation_level = None
    connection.create_function(SQLITE_ROW_HASH, -1, hash_on_sqlite, deterministic=True)
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = NORMAL")
    # 48 MB of pages: the indexes of a day's chunk stay in memory, and a run of Dagster stays below 250 MB.
    cursor.execute("PRAGMA cache_size = -49152")
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal" and not _is_read_only(cursor):
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _is_read_only(cursor: Any) -> bool:
    """True when the database file cannot be written by this user, where WAL cannot be switched on."""
    path = cursor.execute("PRAGMA database_list").fetchone()[2]
    if not path:
        return True
    return not os.access(path, os.W_OK)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _translate(context: Any) -> None:
    if context.is_pre_ping:
        # A pooled connection that died meanwhile is replaced, unless somebody raises here.
        return
    original = context.original_exception
    engine = context.engine
    problem = explain(original, masked(engine.url) if engine is not None else "the database")
    if problem is not None:
        raise problem from original
