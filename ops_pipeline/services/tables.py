"""The tables of host services.

What belongs here: tables and columns.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Identity, Index, Integer, MetaData, Table, Text

from ops_pipeline.database.types import UtcDateTime

metadata = MetaData()

service_states = Table(
    "service_states",
    metadata,
    Column("name", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("since", UtcDateTime),
    Column("reason", Text, nullable=False, server_default=""),
    Column("confirmed", Text, nullable=False, server_default=""),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("successes", Integer, nullable=False, server_default="0"),
    Column("looks", Text, nullable=False, server_default=""),
    Column("flapping", Boolean, nullable=False),
    Column("starting_since", UtcDateTime),
    Column("grace_until", UtcDateTime),
    Column("restarts", JSON, nullable=False),
    Column("given_up", Boolean, nullable=False),
    Column("maintenance_until", UtcDateTime),
    Column("checked_at", UtcDateTime),
    Column("latency_ms", Double),
)
"""The last state of each known service; `restarts` are the times of restarts, which the budget counts."""

service_events = Table(
    "service_events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("service", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("before", Text, nullable=False, server_default=""),
    Column("after", Text, nullable=False, server_default=""),
    Column("reason", Text, nullable=False, server_default=""),
    Column("output", Text, nullable=False, server_default=""),
    Column("duration_seconds", Double),
    Column("run_id", Text, nullable=False, server_default=""),
)
"""What happened: transitions of states, restarts with their output, alerts, and what operators did by command."""

Index("service_events_service", service_events.c.service, service_events.c.at)
