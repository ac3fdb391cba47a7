"""DATABASE_URL: what is accepted, what is refused, and that no secret of it is ever shown."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from sqlalchemy import text

from ops_pipeline.database.engine import connect, reading, sqlite_url, where
from ops_pipeline.database.errors import DatabaseProblem, masked
from ops_pipeline_tests.servers import PostgresServer

SECRET = "geheim"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql+psycopg://ops:{SECRET}@db:5432/ops", "postgresql+psycopg://ops:***@db:5432/ops"),
        (f"postgresql://ops@db/ops?password={SECRET}", "postgresql://ops@db/ops?password=***"),
        (f"postgresql://db/ops?user=a&PASSWORD={SECRET}&sslmode=require", "postgresql://db/ops?PASSWORD=***"),
        (f"postgresql://db/ops?sslpassword={SECRET}&passfile=/{SECRET}", "sslpassword=***"),
        (f"mysql://ops:{SECRET}@db/ops", "mysql://ops:***@db/ops"),
        ("sqlite:////srv/ops.db", "sqlite:////srv/ops.db"),
        (f"the password is {SECRET}", "***"),
        (f"postgresql://ops:p@{SECRET}:5432@db/ops", "***"),
        (f"postgresql://ops:p@{SECRET}@db:5432/ops", "***"),
        (f"postgresql://ops:p@x:{SECRET}@db/ops", "***"),
        (f"postgresql:/ops:{SECRET}@db/ops", "***"),
        ("", "***"),
    ],
)
def test_a_shown_url_holds_no_secret(url: str, shown: str) -> None:
    """A password with an @ in it was cut there, and its second half shown as the host's name."""
    assert shown in masked(url)
    assert SECRET not in masked(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"mysql://ops:{SECRET}@db/ops", "mysql is not supported"),
        (f"postgres://ops:{SECRET}@db/ops", "postgres is not supported"),
        (f"{SECRET}", "it is no database URL"),
        ("", "it is no database URL"),
        (f"postgresql://ops:{SECRET}@db:port/ops", "its port is no number"),
        (f"postgresql://ops:p@x:{SECRET}@db/ops", "its port is no number; in a password write @ as %40 and : as %3A"),
        (f"postgresql://ops:p@{SECRET}@db:5432/ops", "it has two @; in a password write @ as %40"),
        ("sqlite://relative.db", "after sqlite: stand three slashes, and four before an absolute path"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_an_example(url: str, reason: str) -> None:
    """`sqlite://relative.db` and a port that is no number ended in SQLAlchemy's own traceback, password and all."""
    with pytest.raises(DatabaseProblem) as caught:
        connect(url)
    said = str(caught.value)
    assert f"is not usable: {reason}" in said
    assert "Write postgresql+psycopg://user:password@host:5432/name or sqlite:////absolute/path.db" in said
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_postgresql_is_always_reached_through_psycopg_3(postgres_server: PostgresServer, driver: str) -> None:
    engine = connect(postgres_server.url().replace("postgresql+psycopg", driver))
    with reading(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    assert engine.dialect.driver == "psycopg"
    engine.dispose()


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+pysqlite", "sqlite+aiosqlite", "sqlite+nonsense"])
def test_sqlite_is_always_reached_through_pythons_own_module(tmp_path: Path, driver: str) -> None:
    """A URL copied from an asyncio program ended in "No module named aiosqlite"."""
    engine = connect(f"{driver}:///{tmp_path / 'x.db'}")
    with reading(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def session_settings(url: str, *names: str) -> list[str]:
    engine = connect(url)
    with reading(engine) as connection:
        found = [
            connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one() for name in names
        ]
    engine.dispose()
    return found


def test_a_session_of_postgresql_is_in_utc_without_jit_and_under_our_name(postgres_server: PostgresServer) -> None:
    found = session_settings(postgres_server.url(), "timezone", "jit", "application_name")
    assert found == ["UTC", "off", "ops_pipeline"]


def test_parameters_of_the_url_are_kept(postgres_server: PostgresServer) -> None:
    """A search path in DATABASE_URL was dropped without a word, and the tables were made in another schema."""
    url = f"{postgres_server.url()}?options=-csearch_path%3Dops&application_name=mine&connect_timeout=3"
    found = session_settings(url, "search_path", "timezone", "jit", "application_name")
    assert found == ["ops", "UTC", "off", "mine"]


def test_a_shown_engine_has_no_secret() -> None:
    engine = connect(f"postgresql://ops:{SECRET}@db/ops?sslpassword={SECRET}")
    assert where(engine) == "postgresql+psycopg://ops:***@db/ops?sslpassword=***"


def test_the_embedded_database_lies_in_the_folder_wherever_it_is_opened_from(tmp_path: Path) -> None:
    assert sqlite_url(tmp_path) == f"sqlite:///{tmp_path}/ops_pipeline.db"
    assert sqlite_url(Path("home")) == f"sqlite:///{Path.cwd()}/home/ops_pipeline.db"
