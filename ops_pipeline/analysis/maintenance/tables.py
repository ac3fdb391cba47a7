"""The tables of maintenance: the roots that were seen, and what each pass did.

What belongs here: tables and columns.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Double, Identity, Index, Integer, MetaData, Table, Text

from ops_pipeline.database.types import UtcDateTime

metadata = MetaData()

application_roots = Table(
    "application_roots",
    metadata,
    Column("location", Text, primary_key=True),
    Column("marker", Text, nullable=False),
    Column("device", BigInteger),
    Column("adopted_at", UtcDateTime, nullable=False),
    Column("looked_at", UtcDateTime, nullable=False),
    Column("applications", Integer, nullable=False),
)
"""Roots of generated applications, each with the id in its marker file and its device: another one is not believed."""

maintenance_passes = Table(
    "maintenance_passes",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime, nullable=False),
    Column("status", Text, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in ("scanned", "changed", "skipped", "failed", "left_over")),
    Column("backlog_seconds", Double, nullable=False),
    Column("error", Text, nullable=False, server_default=""),
    Column("details", JSON, nullable=False),
    Index("maintenance_passes_name", "name", "finished_at"),
    Index("maintenance_passes_run", "run_id"),
)
"""One row per pass and run: `status` is `success`, `failed` or `off`. `backlog_seconds` is by how much the
oldest object that is still there exceeds its cut-off."""
