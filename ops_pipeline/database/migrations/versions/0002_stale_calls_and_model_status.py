"""Stale calls are found by an index; probes of models and what they found.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

from ops_pipeline.database.types import ExactDecimal, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements = POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE
    for statement in statements:
        op.execute(statement)
    op.create_table(
        "model_statuses",
        *model_key(primary_key=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("available", sa.Boolean()),
        *error(),
        sa.Column("response_time_ms", sa.Double()),
        sa.Column("checked_at", UtcDateTime()),
        sa.Column("changed_at", UtcDateTime()),
        sa.Column("candidate", sa.Text(), nullable=False, server_default=""),
        sa.Column("agreeing", sa.Integer(), nullable=False, server_default="0"),
    )
    op.create_table(
        "model_probe_results",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("probed_at", UtcDateTime(), nullable=False),
        *model_key(primary_key=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("purpose", "result", "state")),
        *error(),
        sa.Column("http_status", sa.Integer()),
        sa.Column("response_time_ms", sa.Double()),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
            for name in ("input_tokens", "output_tokens")
        ),
        sa.Column("credits", ExactDecimal(10), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
    )
    op.create_index(
        "model_probe_results_model", "model_probe_results", ["provider", "model", "type", "probed_at"]
    )
    op.create_index("model_probe_results_probed_at", "model_probe_results", ["probed_at"])


def model_key(*, primary_key: bool) -> list[sa.Column]:
    return [
        sa.Column(name, sa.Text(), primary_key=primary_key, nullable=False) for name in ("provider", "model", "type")
    ]


def error() -> list[sa.Column]:
    return [
        sa.Column(name, sa.Text(), nullable=False, server_default="") for name in ("error_code", "error_message")
    ]


# A call that ends after it was taken for stale is a success: the text of the time-out would contradict it.
POSTGRESQL = (
    "CREATE INDEX model_calls_processing ON model_calls (called_at) WHERE status = 'processing'",
    """
    CREATE OR REPLACE FUNCTION model_calls_touch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.updated_at := clock_timestamp();
        IF NEW.status = 'success' AND starts_with(NEW.error_reason, 'Timeout: Processing exceeded ') THEN
            NEW.error_reason := NULL;
        END IF;
        RETURN NEW;
    END $$
    """,
)

SQLITE = (
    "CREATE INDEX model_calls_processing_ms ON model_calls"
    " (CAST(ROUND((julianday(called_at) - 2440587.5) * 86400000.0) AS INTEGER)) WHERE status = 'processing'",
    """
    CREATE TRIGGER model_calls_late_success AFTER UPDATE OF status ON model_calls
    WHEN NEW.status = 'success' AND substr(NEW.error_reason, 1, 29) = 'Timeout: Processing exceeded '
    BEGIN UPDATE model_calls SET error_reason = NULL WHERE rowid = NEW.rowid; END
    """,
)
