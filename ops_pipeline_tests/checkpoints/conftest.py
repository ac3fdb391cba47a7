"""Fixtures: one Redis for the whole session, emptied before each test, and private ones for failures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from ops_pipeline_tests.checkpoints.redis_servers import ON_DISK, RedisServer, redis_server


@pytest.fixture(scope="session")
def redis_for_all() -> Iterator[RedisServer]:
    """A Redis that no test stops."""
    with redis_server() as server:
        yield server


@pytest.fixture
def server(redis_for_all: RedisServer) -> RedisServer:
    """An empty Redis."""
    with redis_for_all.client() as client:
        client.flushall()
    return redis_for_all


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """A client of the empty Redis."""
    with server.client() as connected:
        yield connected


@pytest.fixture
def private() -> Iterator[RedisServer]:
    """A Redis that a test may kill: what it held is there again when it comes back."""
    with redis_server(saved=ON_DISK) as running:
        yield running
