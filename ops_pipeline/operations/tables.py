"""The tables of the deployment itself.

What belongs here: what every job writes about itself.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Identity, Index, Integer, MetaData, Table, Text

from ops_pipeline.database.types import UtcDateTime

metadata = MetaData()

job_outcomes = Table(
    "job_outcomes",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("job", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime, nullable=False),
    Column("status", Text, nullable=False),
    Column("scanned", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("skipped", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("details", JSON, nullable=False),
)
"""One row per run of a job that got as far as reporting: the source of metrics and of "last success"."""

Index("job_outcomes_job", job_outcomes.c.job, job_outcomes.c.finished_at)
