"""DAGSTER_HOME as `make run` prepares it: Dagster's file, its schema, and a first hour that never moves."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import DagsterInstance
from sqlalchemy import Engine, inspect, make_url

from ops_pipeline.database.engine import connect, writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.operations.home import DAGSTER_SCHEMA, prepare_home
from ops_pipeline.settings import load_settings
from ops_pipeline_tests.servers import PostgresServer

PROJECT = Path(__file__).parents[2]
FIRST = datetime(2026, 3, 3, 7, tzinfo=UTC)
LATER = datetime(2026, 3, 9, 7, tzinfo=UTC)


def prepare(home: Path, url: str = "", first: datetime = FIRST, **settings: object) -> dict[str, str]:
    """The variables that Dagster's processes get."""

    def first_hour(engine: Engine) -> datetime:
        with engine.connect():
            return first

    return prepare_home(load_settings(dagster_home=home, database_url=url, **settings), PROJECT, first_hour)


def test_an_embedded_deployment_gets_dagsters_file_and_its_first_hour(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    assert prepare(home) == {"LOG_FORMAT": "text", "MODEL_CALL_STATS_START": "2026-03-03T07:00:00+00:00"}
    assert (home / "dagster.yaml").read_text() == (PROJECT / "dagster.yaml").read_text()


def test_the_first_hour_is_remembered_when_the_oldest_calls_are_gone(tmp_path: Path) -> None:
    """Partitions are counted from the first: had it moved, each backfill would have named other hours."""
    prepare(tmp_path, first=FIRST)
    assert prepare(tmp_path, first=LATER)["MODEL_CALL_STATS_START"] == FIRST.isoformat()


def test_a_first_hour_from_the_environment_is_left_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODEL_CALL_STATS_START", "2026-02-01T00:00Z")
    assert prepare(tmp_path / "home") == {"LOG_FORMAT": "text"}
    assert not (tmp_path / "home" / "model_call_stats_start.json").exists()


def test_what_is_remembered_can_be_read_as_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODEL_CALL_STATS_START", prepare(tmp_path)["MODEL_CALL_STATS_START"])
    assert load_settings().model_call_stats_start == FIRST


def test_a_changed_file_of_the_project_reaches_the_home_at_the_next_start(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "dagster.yaml").write_text("# Dagster's instance for one machine, of an older release")
    prepare(tmp_path)
    assert (tmp_path / "dagster.yaml").read_text() == (PROJECT / "dagster.yaml").read_text()


def test_on_postgresql_dagster_gets_a_schema_of_its_own_and_the_driver_it_needs(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """Under SQLAlchemy 2.1 plain `postgresql://` means psycopg 3, on which Dagster's NOTIFY fails."""
    url = postgres_server.new_database()
    found = make_url(prepare(tmp_path, url)["DAGSTER_POSTGRES_URL"])
    assert found.drivername == "postgresql+psycopg2"
    assert found.database == make_url(url).database
    assert found.query == {"options": f"-csearch_path={DAGSTER_SCHEMA}"}
    assert (tmp_path / "dagster.yaml").read_text() == (PROJECT / "deploy" / "postgres" / "dagster.yaml").read_text()


def test_with_a_broker_runs_go_to_celery_workers(
    monkeypatch: pytest.MonkeyPatch, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.new_database()
    prepare(tmp_path, url)
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    prepare(tmp_path, url)
    assert (tmp_path / "dagster.yaml").read_text() == (PROJECT / "deploy" / "distributed" / "dagster.yaml").read_text()
    monkeypatch.delenv("CELERY_BROKER_URL")
    prepare(tmp_path, url)
    assert (tmp_path / "dagster.yaml").read_text() == (PROJECT / "deploy" / "postgres" / "dagster.yaml").read_text()


def test_dagster_really_keeps_its_tables_in_that_schema(
    monkeypatch: pytest.MonkeyPatch, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.new_database()
    for _ in range(2):
        exported = prepare(tmp_path, url)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", exported["DAGSTER_POSTGRES_URL"])
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_runs_count() == 0
    engine = connect(url)
    assert "runs" in inspect(engine).get_table_names(schema=DAGSTER_SCHEMA)
    assert inspect(engine).get_table_names(schema="public") == []
    engine.dispose()


def test_a_password_of_any_characters_reaches_dagster_as_it_is(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """A quote in a password ended the shell's line, and a % was decoded once too often."""
    password = """p@s's "w$HOME`:/%41"""
    postgres_server.guard_role("with_odd_password", "scram-sha-256", password=password.replace("'", "''"))
    postgres_server.execute("GRANT CREATE ON DATABASE postgres TO with_odd_password")
    url = make_url(postgres_server.url()).set(username="with_odd_password", password=password)
    exported = prepare(tmp_path, url.render_as_string(hide_password=False))
    found = make_url(exported["DAGSTER_POSTGRES_URL"])
    assert found.password == password
    engine = connect(exported["DAGSTER_POSTGRES_URL"])
    with writing(engine) as connection:
        assert connection.exec_driver_sql("SELECT current_user").scalar_one() == "with_odd_password"
        assert connection.exec_driver_sql("SHOW search_path").scalar_one() == DAGSTER_SCHEMA
        connection.exec_driver_sql(f"DROP SCHEMA {DAGSTER_SCHEMA} CASCADE")
    engine.dispose()


def test_a_database_that_cannot_be_used_is_told_before_dagster_starts(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with pytest.raises(DatabaseProblem, match="Create the database, or correct its name"):
        prepare(tmp_path, postgres_server.url("nowhere"))
    with pytest.raises(DatabaseProblem, match="unable to open database file"):
        prepare(tmp_path, f"sqlite:///{tmp_path}/missing/x.db")


def test_each_database_has_its_own_first_hour(tmp_path: Path) -> None:
    """A folder first used with the embedded database metered another one only from that one's first call on."""
    assert prepare(tmp_path, first=LATER)["MODEL_CALL_STATS_START"] == LATER.isoformat()
    other = f"sqlite:///{tmp_path}/other.db"
    assert prepare(tmp_path, other, first=FIRST)["MODEL_CALL_STATS_START"] == FIRST.isoformat()
    assert prepare(tmp_path, first=FIRST)["MODEL_CALL_STATS_START"] == LATER.isoformat()


def test_an_instance_file_of_the_operators_own_stays(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    prepare(tmp_path)
    assert (tmp_path / "dagster.yaml").read_text() == "telemetry:\n  enabled: false\n"
    (tmp_path / "dagster.yaml").write_text("# Dagster's instance for one machine, of an older version\n")
    prepare(tmp_path)
    assert (tmp_path / "dagster.yaml").read_text() == (PROJECT / "dagster.yaml").read_text()


def test_a_schema_that_someone_else_made_is_enough(postgres_server: PostgresServer) -> None:
    """CREATE SCHEMA IF NOT EXISTS needs the right to create even where there is nothing to create."""
    url = make_url(postgres_server.new_database())
    database = str(url.database)
    postgres_server.execute("CREATE ROLE lowly LOGIN", database)
    postgres_server.execute(f"CREATE SCHEMA {DAGSTER_SCHEMA} AUTHORIZATION lowly", database)
    try:
        engine = connect(url.set(username="lowly").render_as_string(hide_password=False))
        with writing(engine) as connection:
            assert inspect(connection).has_schema(DAGSTER_SCHEMA)
        engine.dispose()
    finally:
        postgres_server.execute(f"DROP SCHEMA {DAGSTER_SCHEMA}", database)
        postgres_server.execute("DROP ROLE lowly", database)
