"""Analysis tasks whose status nobody knows are found without reading all that have ended.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KNOWN = ("created", "pending", "running", "completed", "partial_success", "failed", "cancelled")


def upgrade() -> None:
    unknown = sa.text(f"status NOT IN ({', '.join(map(repr, KNOWN))})")
    op.create_index(
        "analysis_tasks_unknown", "analysis_tasks", ["service", "id"], postgresql_where=unknown, sqlite_where=unknown
    )
