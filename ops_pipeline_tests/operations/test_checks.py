"""`ops-pipeline check`: all that a run needs is looked at, nothing is changed, and each failure says what to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ops_pipeline.checking import Check
from ops_pipeline.database.engine import connect, writing
from ops_pipeline.database.migrate import VERSION_TABLE, migrate, newest_version
from ops_pipeline.operations.checks import check_deployment
from ops_pipeline.settings import DEFAULT_START, load_settings
from ops_pipeline_tests.checkpoints.redis_servers import redis_server
from ops_pipeline_tests.servers import PostgresServer, free_port
from ops_pipeline_tests.unprivileged import as_nobody, open_folder

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
SECRET = "geheim"


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def check(now: datetime = NOW, **settings: object) -> dict[str, Check]:
    checks = {found.name: found for found in check_deployment(load_settings(**settings), now)}
    assert SECRET not in str(checks)
    return checks


def test_a_sound_deployment_passes_every_check(engine: Engine, tmp_path: Path) -> None:
    found = check(dagster_home=tmp_path, database_url=url_of(engine))
    assert list(found) == ["MODEL_CALL_STATS_START", "DAGSTER_HOME", "REPORTS_DIR", "DATABASE_URL", "schema"]
    assert all(one.ok for one in found.values())
    assert found["DATABASE_URL"].detail.endswith(" answers")
    assert found["schema"].detail == f"version {newest_version()}"
    assert found["REPORTS_DIR"].detail == f"{tmp_path / 'reports'} (made when first needed)"


def test_checking_makes_neither_folders_nor_files(tmp_path: Path) -> None:
    check(dagster_home=tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_a_start_in_the_future_is_told(tmp_path: Path) -> None:
    """A start of next year passed in silence, and nothing was metered until somebody asked why."""
    found = check(NOW, model_call_stats_start=NOW + timedelta(hours=1))["MODEL_CALL_STATS_START"]
    assert not found.ok
    assert "lies in the future: nothing is aggregated until then. Set it to the first hour" in found.detail
    assert check(NOW, model_call_stats_start=NOW)["MODEL_CALL_STATS_START"].ok
    assert check(DEFAULT_START)["MODEL_CALL_STATS_START"].ok


@pytest.mark.parametrize("variable", ["DAGSTER_HOME", "REPORTS_DIR"])
def test_a_folder_that_is_a_file_or_lies_below_one_is_told(tmp_path: Path, variable: str) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        found = check(**{variable.lower(): folder})[variable]
        assert found == Check(
            variable, ok=False, detail=f"{folder} cannot be written by this user: correct its owner or the variable."
        )


@pytest.mark.parametrize("place", [".", "new/home", "closed", "closed/new/home"])
def test_a_folder_that_this_user_may_not_write_or_enter_is_told(place: str) -> None:
    """For a folder that it may not even look into, the command ended in a traceback."""
    with open_folder() as folder:
        closed = folder / "closed"
        closed.mkdir(mode=0o700)
        if place == "closed" or closed.owner() != "root":
            closed.chmod(0)
        folder.chmod(0o555)
        home = folder / place
        said = as_nobody(lambda: check(dagster_home=home)["DAGSTER_HOME"], folder)
        closed.chmod(0o700)
    assert "ok=False" in said
    assert "cannot be written by this user: correct its owner or the variable." in said


def test_an_embedded_database_in_a_folder_that_this_user_may_not_enter_is_told() -> None:
    with open_folder() as folder:
        closed = folder / "closed"
        closed.mkdir(mode=0o700)
        if closed.owner() != "root":
            closed.chmod(0)
        url = f"sqlite:///{closed / 'operations.db'}"
        said = as_nobody(lambda: check(database_url=url)["DATABASE_URL"], folder)
        closed.chmod(0o700)
    assert "unable to open database file" in said
    assert "Check that the folder exists and is writable by this user." in said


def test_an_embedded_database_that_is_not_there_yet_is_to_be_migrated(tmp_path: Path) -> None:
    found = check(dagster_home=tmp_path / "home")["DATABASE_URL"]
    assert not found.ok
    assert found.detail.endswith("home/ops_pipeline.db does not exist yet: run `ops-pipeline migrate`.")


def test_a_database_named_as_a_file_uri_is_looked_at(sqlite_engine: Engine) -> None:
    found = check(database_url=f"sqlite:///file:{sqlite_engine.url.database}?mode=ro&uri=true")
    assert found["schema"].ok


def test_a_database_without_our_schema_is_to_be_migrated(postgres_server: PostgresServer) -> None:
    found = check(database_url=postgres_server.new_database())
    assert found["DATABASE_URL"].ok
    assert found["schema"] == Check(
        "schema", ok=False, detail=f"no schema, but {newest_version()} is needed: run `ops-pipeline migrate`."
    )


def test_an_older_schema_is_to_be_migrated(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '0000'")
    found = check(database_url=url_of(engine))["schema"]
    assert not found.ok
    assert found.detail == f"schema 0000, but {newest_version()} is needed: run `ops-pipeline migrate`."


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "letter.db").write_text("Dear database, " * 500)
    found = check(database_url=f"sqlite:///{tmp_path / 'letter.db'}")
    assert not found["DATABASE_URL"].ok
    assert "restore it" in found["DATABASE_URL"].detail
    assert "schema" not in found


@pytest.mark.parametrize(
    ("login", "advice"),
    [
        (f"checked_role:{SECRET}", "Check user and password in DATABASE_URL."),
        (f"nobody_known:{SECRET}", "Check user and password in DATABASE_URL."),
    ],
)
def test_a_login_that_is_refused_is_told_without_the_password(
    checked_server: PostgresServer, login: str, advice: str
) -> None:
    url = checked_server.url().replace("postgres@", f"{login}@")
    found = check(database_url=url)["DATABASE_URL"]
    assert not found.ok
    assert advice in found.detail
    assert ":***@127.0.0.1" in found.detail


@pytest.fixture(scope="module")
def checked_server(postgres_server: PostgresServer) -> PostgresServer:
    """The server with a role whose password is another."""
    postgres_server.guard_role("checked_role", "scram-sha-256", password=f"not {SECRET}")
    return postgres_server


def test_a_server_that_is_not_there_is_told() -> None:
    url = f"postgresql+psycopg://ops:{SECRET}@127.0.0.1:{free_port()}/ops"
    found = check(database_url=url)["DATABASE_URL"]
    assert not found.ok
    assert "Check that the server runs and that host and port in DATABASE_URL are right." in found.detail


def test_a_role_that_may_not_read_our_tables_is_told(checked_server: PostgresServer) -> None:
    url = checked_server.new_database()
    owner = connect(url)
    migrate(owner)
    owner.dispose()
    checked_server.execute("CREATE ROLE sees_nothing LOGIN")
    found = check(database_url=url.replace("postgres@", "sees_nothing@"))["DATABASE_URL"]
    assert not found.ok
    assert "permission denied for table" in found.detail
    assert "Grant the role in DATABASE_URL its rights" in found.detail


def test_a_broker_is_tried_and_its_password_not_shown(tmp_path: Path) -> None:
    with redis_server("--requirepass", SECRET) as redis:
        url = redis.url(1, password=SECRET)
        found = check(dagster_home=tmp_path, celery_broker_url=url)["CELERY_BROKER_URL"]
        assert found.ok
        assert found.detail.endswith(" answers")
    found = check(dagster_home=tmp_path, celery_broker_url=url)["CELERY_BROKER_URL"]
    assert not found.ok
    assert "Connection refused" in found.detail
    assert "Start that Redis" in found.detail


@pytest.mark.parametrize("url", [f"nonsense://:{SECRET}@host", f"redis://:{SECRET}@host:port/1"])
def test_a_broker_that_is_no_url_is_told(tmp_path: Path, url: str) -> None:
    found = check(dagster_home=tmp_path, celery_broker_url=url)["CELERY_BROKER_URL"]
    assert not found.ok
    assert "no URL of a broker" in found.detail
