"""What happens to a guest outside the platform, on a real hypervisor, reaches the database through a real daemon."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import select

from ops_pipeline.database.engine import connect, reading
from ops_pipeline.hypervisor.tables import machines
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer, libvirt_server
from ops_pipeline_tests.hypervisor.scenes import add_machines
from ops_pipeline_tests.integration.daemons import daemon
from ops_pipeline_tests.servers import wait_until


def test_a_guest_destroyed_by_hand_is_stopped_in_the_database_by_the_sensor(tmp_path: Path) -> None:
    """The schedule sleeps: only the sensor can have seen it."""
    with libvirt_server() as server:
        home = tmp_path / "home"
        uuid = server.define("guest")
        with daemon(home, LIBVIRT_URI=server.uri, VM_STATUS_INTERVAL="0 0 1 1 *") as url:
            add_machine(url, uuid)
            wait_until(lambda: status(url) == "running", 120, "the first look")
            destroy(server, "guest")
            started = time.monotonic()
            wait_until(lambda: status(url) == "stopped", 120, "the machine to be stopped")
            print(f"in the database after {time.monotonic() - started:.1f} s")
            wait_until(lambda: len(outcomes(url)) == 2, 60, "the sensor to report")
            assert outcomes(url) == [("vm_events_sensor", 1)] * 2


def outcomes(url: str) -> list[tuple[str, int]]:
    engine = connect(url)
    with reading(engine) as connection:
        found = connection.execute(select(job_outcomes.c.job, job_outcomes.c.changed)).all()
    engine.dispose()
    return [(job, changed) for job, changed in found]


def add_machine(url: str, uuid: str) -> None:
    engine = connect(url)
    add_machines(engine, {"id": "guest", "uuid": uuid, "status": "off"})
    engine.dispose()


def status(url: str) -> str:
    engine = connect(url)
    with reading(engine) as connection:
        found = connection.execute(select(machines.c.status)).scalar_one()
    engine.dispose()
    return found


def destroy(server: LibvirtServer, name: str) -> None:
    with server.connection() as connection:
        connection.lookupByName(name).destroy()
