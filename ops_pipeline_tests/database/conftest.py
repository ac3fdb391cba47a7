"""Fixtures of the tests of the database layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, delete

from ops_pipeline.database.engine import connect, writing
from ops_pipeline_tests.database.samples import create_samples, samples
from ops_pipeline_tests.servers import PostgresServer


@pytest.fixture(scope="session")
def samples_on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """SQLite with the table `samples` and nothing else."""
    engine = connect(f"sqlite:///{tmp_path_factory.mktemp('samples') / 'samples.db'}")
    create_samples(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def samples_on_postgres(postgres_server: PostgresServer) -> Iterator[Engine]:
    """PostgreSQL with the table `samples` and nothing else."""
    engine = connect(postgres_server.new_database())
    create_samples(engine)
    yield engine
    engine.dispose()


def _emptied(engine: Engine) -> Engine:
    with writing(engine) as connection:
        connection.execute(delete(samples))
    return engine


@pytest.fixture(params=["sqlite", "postgresql"])
def sampled(request: pytest.FixtureRequest) -> Engine:
    """Each kind of database in turn, with an empty table `samples`."""
    name = "samples_on_sqlite" if request.param == "sqlite" else "samples_on_postgres"
    return _emptied(request.getfixturevalue(name))


@pytest.fixture
def sampled_sqlite(samples_on_sqlite: Engine) -> Engine:
    """SQLite with an empty table `samples`."""
    return _emptied(samples_on_sqlite)


@pytest.fixture
def sampled_postgres(samples_on_postgres: Engine) -> Engine:
    """PostgreSQL with an empty table `samples`."""
    return _emptied(samples_on_postgres)
