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

alerts = Table(
    "alerts",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("cause", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("detail", Text, nullable=False, server_default=""),
    Column("run_id", Text, nullable=False, server_default=""),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("told_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
    Column("reminders", Integer, nullable=False, server_default="0"),
    Column("resolved_at", UtcDateTime),
)
"""What is or was wrong: one open row per cause."""

OPEN = alerts.c.resolved_at.is_(None)
Index("alerts_open", alerts.c.cause, unique=True, postgresql_where=OPEN, sqlite_where=OPEN)

alert_messages = Table(
    "alert_messages",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("alert_id", BigInteger, nullable=False),
    Column("channel", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("sent_at", UtcDateTime),
    Column("gave_up_at", UtcDateTime),
    Column("error", Text, nullable=False, server_default=""),
)
"""The outbox: what is to be, or was, told to which channel."""

Index("alert_messages_channel", alert_messages.c.channel, alert_messages.c.sent_at)
Index("alert_messages_alert", alert_messages.c.alert_id)
