"""The figures of virtualisation for monitoring."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Engine

from ops_pipeline.database.engine import reading
from ops_pipeline.hypervisor.measures import measure_hypervisors
from ops_pipeline_tests.hypervisor.scenes import add_host, add_machines


def test_hosts_and_machines_are_counted_by_state(engine: Engine) -> None:
    add_host(engine, "a", "x", state="up")
    add_host(engine, "b", "x")
    add_machines(
        engine, {"id": "1", "status": "running", "observed_state": "running"}, {"id": "2", "status": "running"}
    )
    with reading(engine) as connection:
        found = {one.name: one.values for one in measure_hypervisors(connection, datetime.now(UTC))}
    assert found == {
        "ops_pipeline_hypervisor_hosts": {("up",): 1, ("unknown",): 1},
        "ops_pipeline_machines": {("running",): 2},
        "ops_pipeline_machines_observed": {("running",): 1, ("unknown",): 1},
        "ops_pipeline_gpus": {},
    }
