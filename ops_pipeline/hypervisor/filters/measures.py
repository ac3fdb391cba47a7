"""The figures of network filters for monitoring.

What belongs here: small SELECTs. What a run defined and removed is in the figures of its job.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, select

from ops_pipeline.hypervisor.tables import network_filter_orphans, network_filters
from ops_pipeline.measuring import Measure, age_seconds, single


def measure_filters(connection: Connection, now: datetime) -> Sequence[Measure]:
    """How many filters the hosts are to have, and how many orphans they have besides."""
    wanted = connection.execute(select(func.count()).select_from(network_filters)).scalar_one()
    since = network_filter_orphans.c.first_seen_at
    orphans = select(func.count(), func.min(since, type_=since.type))
    count, oldest = connection.execute(orphans).one()
    return [
        single("ops_pipeline_network_filters", "Network filters that every host is to have.", wanted),
        single("ops_pipeline_network_filter_orphans", "Filters on hosts that the database does not have.", count),
        single(
            "ops_pipeline_network_filter_oldest_orphan_seconds",
            "How long the oldest of them has been known.",
            age_seconds(oldest, now),
        ),
    ]
