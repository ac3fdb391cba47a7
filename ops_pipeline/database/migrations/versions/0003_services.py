"""States of host services, and what happened to them.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from ops_pipeline.database.types import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "service_states",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("since", UtcDateTime()),
        *(sa.Column(name, sa.Text(), nullable=False, server_default="") for name in ("reason", "confirmed")),
        *(sa.Column(name, sa.Integer(), nullable=False, server_default="0") for name in ("failures", "successes")),
        sa.Column("looks", sa.Text(), nullable=False, server_default=""),
        sa.Column("flapping", sa.Boolean(), nullable=False),
        sa.Column("starting_since", UtcDateTime()),
        sa.Column("grace_until", UtcDateTime()),
        sa.Column("restarts", sa.JSON(), nullable=False),
        sa.Column("given_up", sa.Boolean(), nullable=False),
        sa.Column("maintenance_until", UtcDateTime()),
        sa.Column("checked_at", UtcDateTime()),
        sa.Column("latency_ms", sa.Double()),
    )
    op.create_table(
        "service_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("at", UtcDateTime(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("service", "kind")),
        *(sa.Column(name, sa.Text(), nullable=False, server_default="") for name in ("before", "after", "reason")),
        sa.Column("output", sa.Text(), nullable=False, server_default=""),
        sa.Column("duration_seconds", sa.Double()),
        sa.Column("run_id", sa.Text(), nullable=False, server_default=""),
    )
    op.create_index("service_events_service", "service_events", ["service", "at"])
