"""What makes ticks cheap: Dagster opens its storage anew for each, 34 times a minute.

What belongs here: this one saving.
"""

from functools import cache
from typing import Any

from alembic.script import ScriptDirectory
from dagster._core.storage import sql


class _Scripts:
    """Stands in for alembic's class where Dagster compares the schema of SQLite with its newest migration."""

    from_config: Any = staticmethod(cache(ScriptDirectory.from_config))


def read_migrations_once() -> None:
    """Read the files of Dagster's migrations once in a process.

    Dagster imports all of them, 60 files, twice for each tick on SQLite, which was 60 % of what ticks cost. They do not
    change while a process lives; the version of the database is read each time as before.
    """
    sql.ScriptDirectory = _Scripts  # ty: ignore[invalid-assignment]
