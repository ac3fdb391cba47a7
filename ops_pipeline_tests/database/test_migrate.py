"""Migrating is safe to repeat, to start twice at once and to share a database, and makes what the code expects."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import Engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.analysis.maintenance.tables import metadata as maintenance_metadata
from ops_pipeline.analysis.pipelines.tables import metadata as analysis_metadata
from ops_pipeline.archives.tables import metadata as archives_metadata
from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.leases import metadata as leases_metadata
from ops_pipeline.database.migrate import VERSION_TABLE, migrate, newest_version, schema_version
from ops_pipeline.hypervisor.tables import metadata as hypervisor_metadata
from ops_pipeline.operations.tables import metadata as operations_metadata
from ops_pipeline.services.tables import metadata as services_metadata
from ops_pipeline.usage.tables import metadata as usage_metadata
from ops_pipeline_tests.servers import PostgresServer

NewUrl = Callable[[], str]
ALL_METADATA = [
    usage_metadata,
    operations_metadata,
    services_metadata,
    hypervisor_metadata,
    analysis_metadata,
    leases_metadata,
    archives_metadata,
    maintenance_metadata,
]
MIGRATE = """
import sys
from ops_pipeline.database.engine import connect
from ops_pipeline.database.migrate import migrate
print(*migrate(connect(sys.argv[1])))
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> NewUrl:
    """Makes an empty database of each kind in turn, and tells its URL."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / f'{len(list(tmp_path.iterdir()))}.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database


def migrate_url(url: str) -> tuple[str | None, str]:
    engine = connect(url)
    try:
        return migrate(engine)
    finally:
        engine.dispose()


def scalars(engine: Engine, query: str) -> list[Any]:
    with reading(engine) as connection:
        return list(connection.exec_driver_sql(query).scalars())


def test_migrating_again_changes_nothing_and_keeps_the_data(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO model_calls (id, model, called_at) VALUES ('a', 'm', '2026-03-10')")
    assert schema_version(engine) == newest_version()
    assert migrate(engine) == (newest_version(), newest_version())
    assert scalars(engine, "SELECT id FROM model_calls") == ["a"]


def test_the_first_migration_tells_that_there_was_nothing(new_url: NewUrl) -> None:
    url = new_url()
    engine = connect(url)
    assert schema_version(engine) is None
    assert migrate(engine) == (None, newest_version())
    engine.dispose()


def test_processes_that_start_at_once_wait_for_the_first(new_url: NewUrl) -> None:
    """Web server, daemon and code location of one deployment all migrate when they start."""
    url = new_url()
    command = [sys.executable, "-c", MIGRATE, url]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [process.communicate(timeout=60) for process in started]
    assert [error for _, error in ends] == ["", "", ""]
    assert sorted(out.strip() for out, _ in ends) == sorted(
        [f"None {newest_version()}", *[f"{newest_version()} {newest_version()}"] * 2]
    )


def test_threads_that_start_at_once_wait_for_the_first(new_url: NewUrl) -> None:
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            befores = [before for before, _ in pool.map(migrate_url, [new_url()] * 4)]
        assert sorted(befores, key=str) == sorted([None, *[newest_version()] * 3], key=str)


def test_a_migration_that_fails_leaves_nothing_behind(new_url: NewUrl) -> None:
    """Half a schema made every later attempt fail on the tables that were there already."""
    url = new_url()
    engine = connect(url)
    with writing(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE job_outcomes (mine TEXT)")
    with pytest.raises(SQLAlchemyError, match=r"job_outcomes.* already exists"):
        migrate(engine)
    assert inspect(engine).get_table_names() == ["job_outcomes"]
    with writing(engine) as connection:
        connection.exec_driver_sql("DROP TABLE job_outcomes")
    assert migrate(engine) == (None, newest_version())
    engine.dispose()


def test_a_schema_of_a_newer_program_is_left_alone(engine: Engine) -> None:
    """After a deployment was rolled back, "Can't locate revision" told nobody what to do."""
    with writing(engine) as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(DatabaseProblem, match="has schema 9999 of a newer ops-pipeline: install that version"):
        migrate(engine)
    assert schema_version(engine) == "9999"


def alembic_version(engine: Engine) -> list[Any]:
    return scalars(engine, "SELECT version_num FROM alembic_version")


@pytest.mark.parametrize("ours_first", [True, False])
def test_our_schema_and_dagsters_live_in_one_database(postgres_server: PostgresServer, *, ours_first: bool) -> None:
    """Both are migrated with Alembic; with one table of versions, each took the other's for its own."""
    url = postgres_server.new_database()
    engine = connect(url)
    if ours_first:
        migrate(engine)
    storage = DagsterPostgresStorage(url.replace("+psycopg:", "+psycopg2:"), should_autocreate_tables=True)
    dagsters = alembic_version(engine)
    assert migrate(engine) == (newest_version() if ours_first else None, newest_version())
    assert dagsters
    assert alembic_version(engine) == dagsters
    assert schema_version(engine) == newest_version()
    assert storage.run_storage.get_runs_count() == 0
    for part in (storage.run_storage, storage.event_log_storage, storage.schedule_storage):
        part.dispose()
    engine.dispose()


def test_a_foreign_table_of_versions_is_left_alone(new_url: NewUrl) -> None:
    engine = connect(new_url())
    with writing(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('somebody else''s')")
    migrate(engine)
    assert alembic_version(engine) == ["somebody else's"]
    engine.dispose()


@pytest.mark.filterwarnings("ignore:.*expression-based index")
def test_the_migrated_schema_is_what_the_tables_in_code_say(engine: Engine) -> None:
    dialect = engine.dialect.name

    def is_of_this_database(item: Any, _name: Any, kind: str, reflected: bool, _other: Any) -> bool:
        # Alembic looks at no `ddl_if`, nor can it read an expression back from SQLite: see the next test.
        meant = dict.fromkeys(("model_calls_called_at", "model_calls_processing"), "postgresql")
        meant |= dict.fromkeys(("model_calls_called_hour", "model_calls_processing_ms"), "nowhere")
        return kind != "index" or reflected or meant.get(item.name, dialect) == dialect

    with reading(engine) as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True, "include_object": is_of_this_database}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, ALL_METADATA) == []  # type: ignore[arg-type]


SQLITE_COLUMNS = """
SELECT t.name || ' ' || c.name || ' ' || c.type || ' ' || c."notnull" || ' ' || ifnull(c.dflt_value, '-') || ' ' || c.pk
       || ' ' || c.hidden
FROM sqlite_master t, pragma_table_xinfo(t.name) c WHERE t.type = 'table'
"""
SQLITE_TABLES = "SELECT name || ' ' || wr || ' ' || strict FROM pragma_table_list WHERE schema = 'main'"
SQLITE_INDEXES = "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
POSTGRESQL_COLUMNS = """
SELECT concat_ws(' ', table_name, column_name, column_default, is_nullable, is_identity, generation_expression,
                 data_type, numeric_precision, numeric_scale)
FROM information_schema.columns WHERE table_schema = 'public'
"""
POSTGRESQL_INDEXES = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"


def described(engine: Engine) -> list[str]:
    """Every column with its default, every key and index, in the database's own words."""
    queries = (POSTGRESQL_COLUMNS, POSTGRESQL_INDEXES)
    if engine.dialect.name == "sqlite":
        queries = (SQLITE_COLUMNS, SQLITE_TABLES, SQLITE_INDEXES)
    lines = [" ".join(line.split()) for query in queries for line in scalars(engine, query)]
    return sorted(line for line in lines if VERSION_TABLE not in line and "sqlite_" not in line)


def test_the_migrated_schema_is_the_one_that_the_code_would_make(new_url: NewUrl) -> None:
    """Alembic's comparison looks at neither defaults nor expressions, nor at tables without row ids."""
    migrated, made = connect(new_url()), connect(new_url())
    migrate(migrated)
    with writing(made) as connection:
        for metadata in ALL_METADATA:
            metadata.create_all(connection)
    assert described(migrated) == described(made)
    assert len(described(made)) > 100
    for engine in (migrated, made):
        engine.dispose()
