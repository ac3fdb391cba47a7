"""The analysis lab: tasks, their results and events, services, workers, pipelines and generated applications.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

from ops_pipeline.database.ddl import PerDialect
from ops_pipeline.database.types import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

AHEAD = (
    "CASE lower(priority) WHEN 'urgent' THEN 10800000 WHEN 'high' THEN 7200000 WHEN 'low' THEN 0 ELSE 3600000 END"
)
CLAIM_ORDER = PerDialect(
    postgresql=f"CAST(date_part('epoch', created_at AT TIME ZONE 'UTC') * 1000 AS BIGINT) - {AHEAD}",
    sqlite=f"CAST(ROUND((julianday(created_at) - 2440587.5) * 86400000.0) AS INTEGER) - {AHEAD}",
)

# A worker that lingers hears of new tasks at once, whoever inserts them; SQLite has nothing of the kind.
WAKE_FUNCTION = """
CREATE FUNCTION analysis_tasks_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('analysis_tasks', TG_ARGV[0]);
    RETURN NULL;
END $$
"""
WAKE_TRIGGERS = (
    """
CREATE TRIGGER analysis_tasks_wake AFTER INSERT ON analysis_tasks
FOR EACH STATEMENT EXECUTE FUNCTION analysis_tasks_wake('work')
""",
    # Released, handed back or tried again. Only rows for which the condition holds cost a call.
    """
CREATE TRIGGER analysis_tasks_wake_again AFTER UPDATE ON analysis_tasks FOR EACH ROW
WHEN (NEW.status = 'pending' AND NEW.held_since IS NULL AND (OLD.status <> 'pending' OR OLD.held_since IS NOT NULL))
EXECUTE FUNCTION analysis_tasks_wake('work')
""",
    """
CREATE TRIGGER analysis_tasks_cancelled AFTER UPDATE OF cancel_requested_at ON analysis_tasks FOR EACH ROW
WHEN (NEW.status = 'running' AND NEW.cancel_requested_at IS NOT NULL AND OLD.cancel_requested_at IS NULL)
EXECUTE FUNCTION analysis_tasks_wake('cancel')
""",
)


def upgrade() -> None:
    tasks()
    results_and_events()
    services_and_workers()
    pipelines()
    applications()


def tasks() -> None:
    op.create_table(
        "analysis_tasks",
        sa.Column("id", sa.Text(), primary_key=True),
        *(sa.Column(name, sa.Text()) for name in ("parent_id", "pipeline_id")),
        *(sa.Column(name, sa.Integer()) for name in ("step", "job_index")),
        sa.Column("run_key", sa.Text()),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("service", "target")),
        *(sa.Column(name, sa.JSON()) for name in ("options", "labels")),
        words("status", "pending"),
        sa.Column("priority", sa.Text(), server_default="normal"),
        *(count(name) for name in ("attempt", "preflight_retries", "transient_retries", "lost_leases")),
        *(sa.Column(name, UtcDateTime()) for name in ("next_attempt_at", "held_since")),
        sa.Column("lease_owner", sa.Text()),
        sa.Column("lease_expires_at", UtcDateTime()),
        sa.Column("timeout_seconds", sa.Double()),
        *(sa.Column(name, UtcDateTime()) for name in ("deadline_at", "cancel_requested_at")),
        words("error_class"),
        sa.Column("error_message", sa.Text()),
        sa.Column("progress", sa.Double()),
        words("current_step"),
        sa.Column("result_summary", sa.JSON()),
        now("created_at"),
        *(sa.Column(name, UtcDateTime()) for name in ("started_at", "completed_at")),
        now("updated_at"),
        sa.Column("claim_order", sa.BigInteger(), sa.Computed(CLAIM_ORDER, persisted=True)),
    )
    pending = "status = 'pending' AND held_since IS NULL"
    transient = "status = 'failed' AND error_class = 'transient'"
    index("analysis_tasks_claim", "analysis_tasks", ["service", "claim_order", "id"], pending)
    index("analysis_tasks_running", "analysis_tasks", ["service"], "status = 'running'")
    index("analysis_tasks_transient", "analysis_tasks", ["transient_retries", "service"], transient)
    index("analysis_tasks_parent", "analysis_tasks", ["parent_id"], "parent_id IS NOT NULL")
    index("analysis_tasks_pipeline", "analysis_tasks", ["pipeline_id"], "pipeline_id IS NOT NULL")
    index("analysis_tasks_finished", "analysis_tasks", ["completed_at"], "completed_at IS NOT NULL AND parent_id IS NULL")
    index("analysis_tasks_run_key", "analysis_tasks", ["run_key"], "run_key IS NOT NULL", unique=True)
    index("analysis_tasks_created", "analysis_tasks", ["created_at"], "status = 'created'")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(WAKE_FUNCTION)
        for trigger in WAKE_TRIGGERS:
            op.execute(trigger)


def results_and_events() -> None:
    op.create_table(
        "analysis_results",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("task_id", sa.Text(), nullable=False),
        count("attempt"),
        *(words(name) for name in ("tool", "tool_version")),
        words("result_type", "finding"),
        *(words(name) for name in ("rule_id", "severity", "confidence", "title", "description", "category")),
        words("file_path"),
        *(sa.Column(name, sa.Integer()) for name in ("line_number", "column_number")),
        sa.Column("data", sa.JSON()),
        words("review", "new"),
        now("created_at"),
    )
    op.create_index("analysis_results_task", "analysis_results", ["task_id"])
    op.create_table(
        "task_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("task_id", sa.Text(), nullable=False),
        now("at"),
        sa.Column("kind", sa.Text(), nullable=False),
        count("attempt"),
        *(words(name) for name in ("owner", "before", "after", "reason")),
        sa.Column("data", sa.JSON()),
    )
    op.create_index("task_events_task", "task_events", ["task_id", "id"])


def services_and_workers() -> None:
    op.create_table(
        "analyzer_services",
        sa.Column("service", sa.Text(), primary_key=True),
        words("url"),
        sa.Column("max_concurrent", sa.Integer()),
        *(count(name) for name in ("failures", "opened")),
        sa.Column("open_until", UtcDateTime()),
        sa.Column("healthy", sa.Boolean()),
        *(words(name) for name in ("message", "version")),
        sa.Column("tools", sa.JSON()),
        sa.Column("checked_at", UtcDateTime()),
        now("updated_at"),
    )
    op.create_table(
        "analysis_workers",
        sa.Column("owner", sa.Text(), primary_key=True),
        *(words(name) for name in ("run_id", "host")),
        sa.Column("pid", sa.Integer()),
        *(now(name) for name in ("started_at", "heartbeat_at")),
        *(sa.Column(name, UtcDateTime()) for name in ("lease_expires_at", "stopped_at")),
    )


def pipelines() -> None:
    op.create_table(
        "pipelines",
        sa.Column("id", sa.Text(), primary_key=True),
        words("name"),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON()),
        words("status", "pending"),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("paused_at", UtcDateTime()),
        words("stop_as"),
        sa.Column("deadline_at", UtcDateTime()),
        words("error_message"),
        now("created_at"),
        *(sa.Column(name, UtcDateTime()) for name in ("started_at", "completed_at")),
        now("updated_at"),
    )
    index("pipelines_unfinished", "pipelines", ["created_at"], "status IN ('pending', 'running')")
    op.create_index("pipelines_created_at", "pipelines", ["created_at"])
    op.create_table(
        "pipeline_steps",
        *key("pipeline_id", "position"),
        sa.Column("name", sa.Text(), nullable=False),
        words("status", "pending"),
        *(
            sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false())
            for name in ("critical", "makes_applications")
        ),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        *(sa.Column(name, UtcDateTime()) for name in ("started_at", "completed_at")),
    )
    op.create_table(
        "pipeline_jobs",
        *key("pipeline_id", "step", "job_index"),
        *(words(name) for name in ("target", "template")),
        words("status", "waiting"),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("task_id", sa.Text()),
        words("reason"),
    )
    op.create_index("pipeline_jobs_status", "pipeline_jobs", ["pipeline_id", "step", "status", "job_index"])
    op.create_table(
        "pipeline_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("at", UtcDateTime(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("pipeline_id", "kind")),
        *(words(name) for name in ("step", "before", "after", "reason")),
        *(count(name) for name in ("ended", "submitted")),
        sa.Column("told", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_index("pipeline_events_pipeline", "pipeline_events", ["pipeline_id", "id"])
    op.create_index(
        "pipeline_events_untold",
        "pipeline_events",
        ["id"],
        postgresql_where=sa.text("told = false"),
        sqlite_where=sa.text("told = 0"),
    )


def key(first: str, *numbers: str) -> list[sa.Column]:
    rest = (sa.Column(name, sa.Integer(), primary_key=True, autoincrement=False) for name in numbers)
    return [sa.Column(first, sa.Text(), primary_key=True), *rest]


def applications() -> None:
    target = "model_slug || '/app' || CAST(app_number AS TEXT)"
    op.create_table(
        "generated_applications",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("model_slug", sa.Text(), nullable=False),
        sa.Column("app_number", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("target", sa.Text(), sa.Computed(target, persisted=True)),
        words("template_slug"),
        words("generation_status", "completed"),
        words("failure_stage"),
        sa.Column("error_message", sa.Text()),
        sa.Column("labels", sa.JSON()),
        sa.Column("missing_since", UtcDateTime()),
        count("missing_looks"),
        sa.Column("missing_seen_at", UtcDateTime()),
        now("created_at"),
        now("updated_at"),
        sa.UniqueConstraint("model_slug", "app_number", "version", name="generated_applications_version"),
    )
    op.create_index("generated_applications_target", "generated_applications", ["target"])


def words(name: str, default: str = "") -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=False, server_default=default)


def count(name: str) -> sa.Column:
    return sa.Column(name, sa.Integer(), nullable=False, server_default="0")


def now(name: str) -> sa.Column:
    return sa.Column(name, UtcDateTime(), nullable=False, server_default=sa.func.current_timestamp())


def index(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    op.create_index(name, table, columns, unique=unique, postgresql_where=sa.text(where), sqlite_where=sa.text(where))
