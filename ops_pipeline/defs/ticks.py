"""What makes ticks cheap: Dagster opens its storage anew for each, 34 times a minute.

What belongs here: savings in Dagster's own storage on SQLite, none of which changes what is read or written.
"""

from functools import cache, lru_cache
from typing import Any

from alembic.script import ScriptDirectory
from dagster._core.storage import sql
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from sqlalchemy import Engine, create_engine

STORAGES = (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage)
MOST_ENGINES = 32
"""Three files of a deployment, and the events of the runs that were looked at last."""


class _Scripts:
    """Stands in for alembic's class where Dagster compares the schema of SQLite with its newest migration."""

    from_config: Any = staticmethod(cache(ScriptDirectory.from_config))


def make_ticks_cheap() -> None:
    """Read Dagster's migrations once in a process, and keep the engines of its files of SQLite.

    Dagster imports all migrations, 60 files, twice for each tick, which was 60 % of what ticks cost. They do not change
    while a process lives; the version of the database is read each time as before.

    It also makes an engine for each statement, which compiles all of its SQL anew: half of the rest. An engine here
    has no pool: each transaction still opens the file, and closes it.
    """
    sql.ScriptDirectory = _Scripts  # ty: ignore[invalid-assignment]
    for storage in STORAGES:
        storage.create_engine = _kept_engine  # ty: ignore[invalid-assignment]


def _kept_engine(url: str, *, poolclass: Any, connect_args: dict[str, float] | None = None) -> Engine:
    return _engine(url, poolclass, tuple(sorted((connect_args or {}).items())))


@lru_cache(maxsize=MOST_ENGINES)
def _engine(url: str, poolclass: Any, connect_args: tuple[tuple[str, float], ...]) -> Engine:
    return create_engine(url, poolclass=poolclass, connect_args=dict(connect_args))
