"""Fixtures: one private PostgreSQL per test process, and the operations database on both kinds of server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ops_pipeline.database.engine import connect
from ops_pipeline.database.migrate import migrate
from ops_pipeline_tests.servers import PostgresServer, postgres

VARIABLES = ("DATABASE_URL", "DAGSTER_HOME", "MODEL_CALL", "LATE_MODEL_CALLS", "USAGE_REPORT", "REPORTS_DIR")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test starts with every variable unset, in a folder without a .env file."""
    import os

    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A private PostgreSQL."""
    with postgres() as server:
        yield server


@pytest.fixture
def sqlite_engine(tmp_path: Path) -> Iterator[Engine]:
    """An empty, migrated operations database on SQLite."""
    engine = connect(f"sqlite:///{tmp_path / 'operations.db'}")
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def postgres_engine(postgres_server: PostgresServer) -> Iterator[Engine]:
    """An empty, migrated operations database on PostgreSQL."""
    url = postgres_server.new_database()
    engine = connect(url)
    migrate(engine)
    yield engine
    engine.dispose()
    # Each takes 8 MB: hundreds of them at the end cost a minute of writing to disk.
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """An empty, migrated operations database, on each kind of server in turn."""
    return request.getfixturevalue("sqlite_engine" if request.param == "sqlite" else "postgres_engine")
