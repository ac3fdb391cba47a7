"""The figures of host services for monitoring.

What belongs here: one small SELECT.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, select

from ops_pipeline.measuring import Measure
from ops_pipeline.services.tables import service_states


def measure_services(connection: Connection, now: datetime) -> Sequence[Measure]:
    """Known services by state, and how many of them flap."""
    state = service_states.c.state
    counts: dict[tuple[str, ...], float] = {
        (row[0],): float(row[1]) for row in connection.execute(select(state, func.count()).group_by(state))
    }
    flapping = select(func.count()).where(service_states.c.flapping.is_(True))
    return [
        Measure("ops_pipeline_services", "Known host services by state.", ("state",), counts),
        Measure(
            "ops_pipeline_services_flapping",
            "Known host services whose state changes all the time.",
            (),
            {(): connection.execute(flapping).scalar_one()},
        ),
    ]
