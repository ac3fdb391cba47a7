"""Fixtures: one private PostgreSQL per test process, and the operations database on both kinds of server."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ops_pipeline.database.engine import connect
from ops_pipeline.database.migrate import migrate
from ops_pipeline.settings import Settings, secret_file_variables
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer, libvirt_server
from ops_pipeline_tests.servers import PostgresServer, postgres

OURS = {name.upper() for name in Settings.model_fields} | secret_file_variables()
"""Every variable that a developer may have set for a deployment of their own."""


def pytest_configure() -> None:
    """Make Ctrl-C arrive, also where a shell started the tests in the background: it tells its children to ignore it.

    What the tests start inherits that, and never ended when it was told to.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test starts with every variable unset, in a folder without a .env file."""
    import os

    for name in list(os.environ):
        if name.upper() in OURS:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A private PostgreSQL."""
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database to copy, since a migration takes longer than many a test."""
    path = tmp_path_factory.mktemp("migrated") / "operations.db"
    engine = connect(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """The name of a migrated PostgreSQL database to copy."""
    url = postgres_server.new_database()
    engine = connect(url)
    migrate(engine)
    engine.dispose()
    return url.rpartition("/")[2]


@pytest.fixture
def sqlite_engine(tmp_path: Path, migrated_file: Path) -> Iterator[Engine]:
    """An empty, migrated operations database on SQLite."""
    engine = connect(f"sqlite:///{shutil.copy(migrated_file, tmp_path / 'operations.db')}")
    yield engine
    engine.dispose()


@pytest.fixture
def postgres_engine(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Engine]:
    """An empty, migrated operations database on PostgreSQL."""
    url = postgres_server.new_database(migrated_template)
    engine = connect(url)
    yield engine
    engine.dispose()
    # Each takes 8 MB: hundreds of them at the end cost a minute of writing to disk.
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """An empty, migrated operations database, on each kind of server in turn."""
    return request.getfixturevalue("sqlite_engine" if request.param == "sqlite" else "postgres_engine")


@pytest.fixture(scope="session")
def libvirtd_process() -> Iterator[LibvirtServer]:
    """A private libvirtd, one for each test process: its namespaces keep several apart, and it starts in a second."""
    with libvirt_server() as server:
        yield server


@pytest.fixture
def libvirtd(libvirtd_process: LibvirtServer) -> LibvirtServer:
    """A private libvirtd without a guest, and with no filters but those that it came with."""
    libvirtd_process.clear()
    return libvirtd_process
