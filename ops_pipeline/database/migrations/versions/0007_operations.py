"""Alerts, and the messages about them.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

from ops_pipeline.database.types import UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def key() -> sa.Column:
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True)


def upgrade() -> None:
    op.create_table(
        "alerts",
        key(),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("cause", "severity", "title")),
        *(sa.Column(name, sa.Text(), nullable=False, server_default="") for name in ("detail", "run_id")),
        *(sa.Column(name, UtcDateTime(), nullable=False) for name in ("opened_at", "told_at", "last_seen_at")),
        sa.Column("reminders", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("resolved_at", UtcDateTime()),
    )
    still_open = sa.text("resolved_at IS NULL")
    op.create_index(
        "alerts_open", "alerts", ["cause"], unique=True, postgresql_where=still_open, sqlite_where=still_open
    )
    op.create_table(
        "alert_messages",
        key(),
        sa.Column("alert_id", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("channel", "what")),
        *(sa.Column(name, UtcDateTime(), nullable=False) for name in ("created_at", "due_at")),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        *(sa.Column(name, UtcDateTime()) for name in ("sent_at", "gave_up_at")),
        sa.Column("error", sa.Text(), nullable=False, server_default=""),
    )
    op.create_index("alert_messages_channel", "alert_messages", ["channel", "sent_at"])
    op.create_index("alert_messages_alert", "alert_messages", ["alert_id"])
