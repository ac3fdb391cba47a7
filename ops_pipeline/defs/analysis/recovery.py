"""The job `recover_analysis_tasks`: four passes over tasks that nobody is going to end; none of them stops another.

What belongs here: translation between Dagster and `ops_pipeline.analysis.recovery`.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from dagster import (
    Config,
    DefaultScheduleStatus,
    Definitions,
    JobDefinition,
    MetadataValue,
    OpDefinition,
    OpExecutionContext,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    in_process_executor,
    job,
    op,
    schedule,
)
from pydantic import Field
from sqlalchemy import Engine

from ops_pipeline.analysis.policy import policy_of
from ops_pipeline.analysis.recovery.due import count_due
from ops_pipeline.analysis.recovery.leases import recover_leases
from ops_pipeline.analysis.recovery.passes import Recovered
from ops_pipeline.analysis.recovery.probing import probe_services
from ops_pipeline.analysis.recovery.transient import recover_transient
from ops_pipeline.analysis.recovery.trees import recover_created, recover_parents
from ops_pipeline.defs.looking import look_first
from ops_pipeline.defs.metadata import JOB_METADATA, outcome_metadata, table
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.runs import job_tags
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import changes_table
from ops_pipeline.settings import Settings

JOB = "recover_analysis_tasks"
CRON = "* * * * *"
Pass = Callable[[Engine, bool], Recovered]


class RecoverConfig(Config):
    """What one pass may do."""

    dry_run: bool = Field(default=False, description="Look, show what would be changed, and write nothing.")


def recovery_defs(settings: Settings) -> Definitions:
    """Build the job and its schedule."""
    recover = recovery_job(settings)
    return Definitions(jobs=[recover], schedules=[recovery_schedule(settings, recover)])


def recovery_job(settings: Settings) -> JobDefinition:
    """Build the job of four ops that know nothing of each other, so that one that fails stops no other."""
    policy = policy_of(settings)
    ops = [
        pass_op(
            "recover_expired_leases",
            "Gives back running tasks whose worker gave no sign of life, a bounded number of times.",
            lambda engine, dry_run: recover_leases(engine, policy, dry_run=dry_run),
        ),
        pass_op(
            "recover_transient_failures",
            "Asks services for which tasks failed how they are, and brings the tasks of those that are well back.",
            lambda engine, dry_run: recover_transient(
                engine, policy, probe_services(engine, settings.analyzer_urls), dry_run=dry_run
            ),
        ),
        pass_op(
            "recover_parents",
            "Ends parents whose children have all ended, and those that never got any.",
            lambda engine, dry_run: recover_parents(engine, policy, dry_run=dry_run),
        ),
        pass_op(
            "recover_created_tasks",
            "Releases tasks that their writer left half made.",
            lambda engine, dry_run: recover_created(engine, policy, dry_run=dry_run),
        ),
    ]

    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB),
        metadata=JOB_METADATA,
        description="Brings back or ends analysis tasks that nobody else is going to end.",
    )
    def recover_analysis_tasks() -> None:
        for one in ops:
            one()

    return recover_analysis_tasks


def pass_op(name: str, description: str, recover: Pass) -> OpDefinition:
    """Build the op of one pass, which reports its own counts."""

    @op(name=name, description=description)
    def recover_pass(context: OpExecutionContext, config: RecoverConfig, database: OperationsDatabase) -> None:
        started = datetime.now(UTC)
        recovered = recover(database.engine, config.dry_run)
        plan = recovered.plan
        for change in plan.changes:
            context.log.info(f"{change.key}: {change.action} ({change.reason})")
        shown = {
            "plan": MetadataValue.md(changes_table(plan.changes) if plan.changes else "Nothing to do."),
            "left_alone": table(("why", "tasks"), list(plan.kept.items()), empty="None."),
        }
        context.add_output_metadata(shown | outcome_metadata(recovered.outcome))
        if not config.dry_run:
            record_outcome(
                database.engine,
                job=JOB,
                run_id=context.run_id,
                started_at=started,
                outcome=recovered.outcome,
                details={"pass": name},
            )

    return recover_pass


def recovery_schedule(settings: Settings, recover: JobDefinition) -> ScheduleDefinition:
    """Build the schedule, which looks every minute and launches a run when there is something to do."""
    policy = policy_of(settings)

    @schedule(
        name=f"{JOB}_schedule",
        job=recover,
        cron_schedule=CRON,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Looks every minute for analysis tasks that nobody will end; launches a run when it finds some.",
    )
    def tick(context: ScheduleEvaluationContext, database: OperationsDatabase) -> RunRequest | SkipReason:
        def look() -> str | None:
            due = count_due(database.engine, policy)
            return None if any(due.values()) else "No lease has run out, and no task, parent or failure waits."

        return look_first(context.instance, JOB, look)

    return tick
