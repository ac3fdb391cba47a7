"""The job `cleanup_stale_model_calls`: calls that are processing for too long become failed.

What belongs here: translation between a Dagster run and `usage.stale`.
"""

from datetime import UTC, datetime, timedelta

from dagster import (
    AssetKey,
    AssetObservation,
    Config,
    DefaultScheduleStatus,
    JobDefinition,
    MetadataValue,
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

from ops_pipeline.database.engine import reading
from ops_pipeline.defs.looking import look_first, tell_check
from ops_pipeline.defs.metadata import JOB_METADATA, outcome_metadata, table
from ops_pipeline.defs.resources import OperationsDatabase, handed
from ops_pipeline.defs.runs import job_tags
from ops_pipeline.defs.usage.calls import ALARM_CHECK, CALLS, alarm_result
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import Plan, changes_table, counted
from ops_pipeline.settings import Settings
from ops_pipeline.usage.stale import (
    Cleaned,
    StaleCalls,
    StalePolicy,
    fail_stale,
    find_stale,
    look_for_alarm,
    outcome_of,
    plan_stale,
)

JOB = "cleanup_stale_model_calls"
STALE = handed("stale calls", "Calls that are processing for longer than their type may take.")


class CleanupConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Show which calls would be failed, and change nothing.")


def stale_policy(settings: Settings) -> StalePolicy:
    """The part of the settings that the clean-up needs."""
    return StalePolicy(
        limit=timedelta(minutes=settings.stale_model_call_minutes),
        by_type={
            type_: timedelta(minutes=minutes) for type_, minutes in settings.stale_model_call_minutes_by_type.items()
        },
        alarm_share=settings.stale_model_calls_alarm_share,
    )


def cleanup_job(settings: Settings) -> JobDefinition:
    """Build the job for a deployment's settings."""
    policy = stale_policy(settings)

    @op(
        out=STALE.out,
        description="Finds calls that are processing for longer than their type may take.",
    )
    def observe_stale_model_calls(context: OpExecutionContext, database: OperationsDatabase) -> StaleCalls:
        with reading(database.engine) as connection:
            found = find_stale(connection, policy)
        context.add_output_metadata({"processing": found.processing, "stale": found.calls})
        return found

    @op(out=STALE.out, ins={"found": STALE.into}, description="Shows what would be failed, by model and type.")
    def plan_stale_model_calls(context: OpExecutionContext, found: StaleCalls) -> StaleCalls:
        context.add_output_metadata({"stale": found.calls, "changes": _plan_table(plan_stale(found))})
        return found

    @op(
        ins={"found": STALE.into},
        description="Fails stale calls, in short transactions. A call that ends meanwhile keeps its own result.",
    )
    def apply_stale_model_calls(
        context: OpExecutionContext, config: CleanupConfig, found: StaleCalls, database: OperationsDatabase
    ) -> None:
        if config.dry_run:
            context.log.info(f"Dry run: {counted(found.calls, 'call')} would be failed, nothing was changed.")
            return
        started = datetime.now(UTC)
        cleaned = fail_stale(database.engine, found.now, policy)
        with reading(database.engine) as connection:
            alarm = look_for_alarm(connection, found.now, policy, cleaned)
        tell_check(context, CALLS, ALARM_CHECK, alarm_result(alarm))
        outcome = outcome_of(found, cleaned, policy)
        record_outcome(
            database.engine,
            job=JOB,
            run_id=context.run_id,
            started_at=started,
            outcome=outcome,
            details={"batches": cleaned.batches, "longest_transaction_seconds": round(cleaned.longest_seconds, 3)},
        )
        metadata = outcome_metadata(outcome) | _report(cleaned)
        context.log_event(AssetObservation(AssetKey(CALLS), description="Stale calls cleaned up.", metadata=metadata))
        context.add_output_metadata(metadata)

    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB),
        metadata=JOB_METADATA,
        description="Calls that are processing for too long become failed, since whoever made them died.",
    )
    def cleanup_stale_model_calls() -> None:
        apply_stale_model_calls(plan_stale_model_calls(observe_stale_model_calls()))

    return cleanup_stale_model_calls


def _plan_table(plan: Plan) -> MetadataValue:
    return MetadataValue.md(changes_table(plan.changes) if plan.changes else "Nothing to do.")


def _report(cleaned: Cleaned) -> dict[str, MetadataValue | int | float | str]:
    ordered = sorted(cleaned.counts.items(), key=lambda item: (-item[1], item[0]))
    groups = [(*key, calls) for key, calls in ordered]
    examples = [(call.id, call.provider, call.model, call.type, call.called_at) for call in cleaned.examples]
    return {
        "oldest_call": f"{cleaned.oldest:%Y-%m-%d %H:%M:%S} UTC" if cleaned.oldest else "None.",
        "longest_transaction_seconds": round(cleaned.longest_seconds, 3),
        "by_model": table(("provider", "model", "type", "calls"), groups, empty="None."),
        "examples": table(("id", "provider", "model", "type", "called at"), examples, empty="None."),
    }


def cleanup_schedule(settings: Settings, cleanup: JobDefinition) -> ScheduleDefinition:
    """Build the schedule, which launches a run only when there is something to clean up."""
    policy = stale_policy(settings)

    @schedule(
        name=f"{JOB}_schedule",
        job=cleanup,
        cron_schedule=settings.cleanup_stale_model_calls_cron_time,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Looks for stale calls, and fails them when there are any.",
    )
    def tick(context: ScheduleEvaluationContext, database: OperationsDatabase) -> RunRequest | SkipReason:
        def look() -> str | None:
            with reading(database.engine) as connection:
                found = find_stale(connection, policy)
            return None if found.calls else _skip_text(found)

        return look_first(context.instance, JOB, look)

    return tick


def _skip_text(found: StaleCalls) -> str:
    if not found.processing:
        return "No stale calls: none is processing."
    if found.oldest is None:
        return f"No stale calls: 0 of {found.processing} processing, none of them since a readable time."
    minutes = (found.now - found.oldest) / timedelta(minutes=1)
    return f"No stale calls: 0 of {found.processing} processing, the oldest for {minutes:.0f} minutes."
