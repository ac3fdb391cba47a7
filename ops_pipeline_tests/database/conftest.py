"""Fixtures of the tests of the database layer."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from ops_pipeline_tests.database.samples import create_samples


@pytest.fixture
def sampled(engine: Engine) -> Engine:
    """Each kind of database in turn, with the table `samples`."""
    create_samples(engine)
    return engine


@pytest.fixture
def sampled_sqlite(sqlite_engine: Engine) -> Engine:
    """SQLite with the table `samples`."""
    create_samples(sqlite_engine)
    return sqlite_engine
