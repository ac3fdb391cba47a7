"""Calls, their roll-ups and the outcomes of jobs.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

from ops_pipeline.database.types import ExactDecimal, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "images")
DIMENSIONS = ("user_id", "app_id", "provider", "model", "type")


def upgrade() -> None:
    calls()
    usage("hourly_model_usage", sa.Column("hour", UtcDateTime(), primary_key=True))
    usage("daily_model_usage", sa.Column("day", sa.Date(), primary_key=True))
    usage("monthly_model_usage", sa.Column("month", sa.Date(), primary_key=True))
    op.create_table(
        "hourly_model_latency",
        sa.Column("hour", UtcDateTime(), primary_key=True),
        *(sa.Column(name, sa.Text(), primary_key=True) for name in ("provider", "model", "type", "metric")),
        sa.Column("bucket", sa.SmallInteger(), primary_key=True, autoincrement=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    progress()
    op.create_table(
        "job_outcomes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("scanned", "changed", "skipped", "failed")),
        sa.Column("details", sa.JSON(), nullable=False),
    )
    op.create_index("job_outcomes_job", "job_outcomes", ["job", "finished_at"])


def calls() -> None:
    op.create_table(
        "model_calls",
        sa.Column("id", sa.Text(), primary_key=True),
        *(sa.Column(name, sa.Text(), server_default="") for name in ("user_id", "app_id", "provider")),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), server_default="chatCompletion"),
        sa.Column("credential_id", sa.Text(), server_default=""),
        sa.Column("status", sa.Text(), server_default="processing"),
        sa.Column("called_at", UtcDateTime(), nullable=False),
        sa.Column("duration_seconds", sa.Double()),
        sa.Column("ttfb_ms", sa.Double()),
        *(sa.Column(name, sa.BigInteger(), server_default="0") for name in COUNTS),
        sa.Column("media_seconds", sa.Double(), server_default="0"),
        sa.Column("credits", ExactDecimal(10, 20), server_default="0"),
        *(sa.Column(name, sa.Text()) for name in ("error_reason", "request_id", "trace_id")),
        sa.Column("created_at", UtcDateTime(), nullable=False, server_default=sa.func.current_timestamp()),
        sa.Column("updated_at", UtcDateTime(), nullable=False, server_default=sa.func.current_timestamp()),
    )
    op.create_index("model_calls_updated_at", "model_calls", ["updated_at"])
    statements = POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE
    for statement in statements:
        op.execute(statement)


def usage(name: str, period: sa.Column) -> None:
    op.create_table(
        name,
        period,
        *(sa.Column(dimension, sa.Text(), primary_key=True) for dimension in DIMENSIONS),
        *(
            sa.Column(count, sa.BigInteger(), nullable=False)
            for count in ("calls", "succeeded", "failed", "processing", *COUNTS)
        ),
        sa.Column("media_seconds", ExactDecimal(6), nullable=False),
        sa.Column("credits", ExactDecimal(10), nullable=False),
        sa.Column("duration_seconds_sum", ExactDecimal(6), nullable=False),
        sa.Column("duration_count", sa.BigInteger(), nullable=False),
        sa.Column("ttfb_ms_sum", ExactDecimal(3), nullable=False),
        sa.Column("ttfb_count", sa.BigInteger(), nullable=False),
        sa.Column("last_called_at", UtcDateTime(), nullable=False),
        sqlite_with_rowid=False,
    )


def progress() -> None:
    op.create_table(
        "usage_hours",
        sa.Column("hour", UtcDateTime(), primary_key=True),
        *state(),
        sa.Column("source_version", ExactDecimal(0, 38), nullable=False),
        sa.Column("anomalies", sa.JSON(), nullable=False),
    )
    op.create_table(
        "usage_hour_attempts",
        sa.Column("hour", UtcDateTime(), primary_key=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("attempted_at", UtcDateTime(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False, server_default=""),
    )
    op.create_table(
        "usage_days",
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("hours", sa.Integer(), nullable=False),
        *state(),
        sa.Column("reported_revision", sa.BigInteger()),
    )
    op.create_table(
        "usage_months",
        sa.Column("month", sa.Date(), primary_key=True),
        sa.Column("days", sa.Integer(), nullable=False),
        *state(),
    )


def state() -> list[sa.Column]:
    return [
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("processing", sa.BigInteger(), nullable=False),
        sa.Column("aggregated_at", UtcDateTime(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    ]


# The late-data path finds changed calls by updated_at. Only the database's own clock can be trusted for it:
# imports carry the times of their source, and most UPDATEs of other programs do not mention the column.
POSTGRESQL = (
    "CREATE INDEX model_calls_called_at ON model_calls (called_at)",
    """
    CREATE FUNCTION model_calls_touch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.updated_at := clock_timestamp();
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER model_calls_touch BEFORE INSERT OR UPDATE ON model_calls
    FOR EACH ROW EXECUTE FUNCTION model_calls_touch()
    """,
)

NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
STRANGE = f"NEW.updated_at < strftime('%Y-%m-%d %H:%M:%f', 'now', '-2 seconds') OR NEW.updated_at > {NOW}"
TOUCH = f"BEGIN UPDATE model_calls SET updated_at = {NOW} WHERE rowid = NEW.rowid; END"

SQLITE = (
    # Hours since 1970. A fraction beyond milliseconds is cut off: SQLite would round it up into the next hour.
    "CREATE INDEX model_calls_called_hour ON model_calls ((CAST(strftime('%s', CASE WHEN length(called_at) > 23"
    " THEN substr(called_at, 1, 19) || ltrim(substr(called_at, 20), '.0123456789') ELSE called_at END) AS INTEGER)"
    " / 3600))",
    # An insert that leaves updated_at to its default is within the second already, and costs no second write.
    f"CREATE TRIGGER model_calls_touch_insert AFTER INSERT ON model_calls WHEN {STRANGE} {TOUCH}",
    f"""
    CREATE TRIGGER model_calls_touch_update AFTER UPDATE ON model_calls
    WHEN NEW.updated_at IS OLD.updated_at OR {STRANGE} {TOUCH}
    """,
)
