"""Fixtures: one private libvirtd per test process, cleared before each test that uses it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer, libvirt_server


@pytest.fixture(scope="session")
def libvirtd_process() -> Iterator[LibvirtServer]:
    """A private libvirtd; tests that use it carry `pytest.mark.xdist_group("libvirtd")`, so that one is enough."""
    with libvirt_server() as server:
        yield server


@pytest.fixture
def libvirtd(libvirtd_process: LibvirtServer) -> LibvirtServer:
    """A private libvirtd without a guest, and with no filters but those that it came with."""
    libvirtd_process.clear()
    return libvirtd_process
