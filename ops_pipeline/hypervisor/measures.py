"""The figures of virtualisation for monitoring.

What belongs here: small SELECTs over indexed or short tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, func, select

from ops_pipeline.hypervisor.tables import gpus, hypervisor_hosts, machines
from ops_pipeline.measuring import Measure


def measure_hypervisors(connection: Connection, now: datetime) -> Sequence[Measure]:
    """Hosts, machines and GPUs by state."""
    return [
        _counted(connection, "ops_pipeline_hypervisor_hosts", "Hypervisors by state.", hypervisor_hosts.c.state),
        _counted(connection, "ops_pipeline_machines", "Machines by the platform's status.", machines.c.status),
        _counted(connection, "ops_pipeline_machines_observed", "Machines by what was seen.", machines.c.observed_state),
        _counted(connection, "ops_pipeline_gpus", "GPUs by state.", gpus.c.state),
    ]


def _counted(connection: Connection, name: str, words: str, state: Column[Any]) -> Measure:
    rows = connection.execute(select(state, func.count()).group_by(state))
    return Measure(name, words, ("state",), {(row[0] or "unknown",): float(row[1]) for row in rows})
