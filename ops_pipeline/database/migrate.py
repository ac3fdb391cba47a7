"""Bringing a database to the current schema with Alembic, safely even when two processes start at once.

What belongs here: running migrations. The migrations themselves are in `migrations/versions`.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from ops_pipeline.database.engine import reading, where, writing
from ops_pipeline.database.errors import DatabaseProblem

VERSION_TABLE = "ops_pipeline_schema_version"
"""Not `alembic_version`: Dagster's own storage keeps that name and may live in the same database."""
ADVISORY_LOCK = 0x6F70735F6D6967
"""The bytes of "ops_mig": the key of the lock that only migrations take."""


def migrate(engine: Engine) -> tuple[str | None, str]:
    """Upgrade to the newest schema in one transaction; a second process waits and then finds nothing to do.

    Returns:
        The schema versions before and after.

    Raises:
        DatabaseProblem: the database cannot be reached or written, or a newer program has migrated it.
    """
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        before = _version(connection)
        config = _config()
        if before not in {None, *(script.revision for script in ScriptDirectory.from_config(config).walk_revisions())}:
            raise DatabaseProblem(f"{where(engine)} has schema {before} of a newer ops-pipeline: install that version.")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return before, newest_version()


def schema_version(engine: Engine) -> str | None:
    """The version of the schema in the database; None when it was never migrated."""
    with reading(engine) as connection:
        return _version(connection)


def newest_version() -> str:
    """The version that this program needs."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
