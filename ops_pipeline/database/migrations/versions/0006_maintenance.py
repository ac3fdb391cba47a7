"""Maintenance: leases, archives, roots of applications, what passes did, and until where raw calls were pruned.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

from ops_pipeline.database.types import UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

UNSTAMPED = "status IN ('completed', 'partial_success', 'failed', 'cancelled') AND completed_at IS NULL"


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
    )
    op.create_table(
        "archives",
        sa.Column("id", sa.Text(), primary_key=True),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("kind", "location", "state")),
        sa.Column("row_count", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("run_id", sa.Text(), nullable=False, server_default=""),
    )
    op.create_table(
        "application_roots",
        sa.Column("location", sa.Text(), primary_key=True),
        sa.Column("marker", sa.Text(), nullable=False),
        sa.Column("device", sa.BigInteger()),
        *(sa.Column(name, UtcDateTime(), nullable=False) for name in ("adopted_at", "looked_at")),
        sa.Column("applications", sa.Integer(), nullable=False),
    )
    op.create_table(
        "maintenance_passes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("run_id", "name")),
        *(sa.Column(name, UtcDateTime(), nullable=False) for name in ("started_at", "finished_at")),
        sa.Column("status", sa.Text(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("scanned", "changed", "skipped", "failed", "left_over")
        ),
        sa.Column("backlog_seconds", sa.Double(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False, server_default=""),
        sa.Column("details", sa.JSON(), nullable=False),
    )
    op.create_index("maintenance_passes_name", "maintenance_passes", ["name", "finished_at"])
    op.create_index("maintenance_passes_run", "maintenance_passes", ["run_id"])
    op.create_table(
        "usage_watermarks",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("hour", UtcDateTime(), nullable=False),
        sa.Column("set_at", UtcDateTime(), nullable=False),
    )
    where = sa.text(UNSTAMPED)
    op.create_index(
        "analysis_tasks_unstamped", "analysis_tasks", ["id"], postgresql_where=where, sqlite_where=where
    )
