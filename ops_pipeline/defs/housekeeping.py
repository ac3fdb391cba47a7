"""The job `prune_dagster_storage`: Dagster's own history, bounded.

What belongs here: translation between Dagster and the rules of `operations/retention`; how runs are deleted is in
`pruning`. Ticks are purged by Dagster itself, as `retention` in dagster.yaml says.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dagster import (
    Config,
    DagsterInstance,
    DagsterRunStatus,
    DefaultScheduleStatus,
    Definitions,
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    in_process_executor,
    job,
    op,
    schedule,
)
from pydantic import Field

from ops_pipeline.defs.looking import look_first
from ops_pipeline.defs.metadata import JOB_METADATA, outcome_metadata, table
from ops_pipeline.defs.pruning import delete_runs, storage_bytes
from ops_pipeline.defs.resources import FAILURES, OperationsDatabase, handed
from ops_pipeline.defs.runless import count_old_words, delete_old_words
from ops_pipeline.defs.runs import job_tags
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.operations.retention import FinishedRun, Retention, plan_pruning
from ops_pipeline.reconcile import Outcome, Plan, changes_table, counted
from ops_pipeline.settings import Settings

JOB = "prune_dagster_storage"
PAGE = 1000
BATCH = 25
PAUSE_SECONDS = 0.1
"""Between batches: web server and daemon write to the same storage."""
ENDED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
PRUNING = handed("runs to delete", "Runs that have ended and are beyond the retention of their job.")


@dataclass(frozen=True)
class Pruning:
    """What one run is to do: the runs that go, before when events without a run go, and whether it only shows them."""

    plan: Plan
    before: datetime
    dry_run: bool


class PruneConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Show which runs would go; delete nothing.")
    days: float | None = Field(
        default=None,
        gt=0,
        description="Keep runs of every job for so many days. Left out: as RUN_RETENTION_DAYS and its list say.",
    )


def housekeeping_defs(settings: Settings) -> Definitions:
    """Build the job and its schedule."""
    prune = prune_job(settings)
    return Definitions(jobs=[prune], schedules=[prune_schedule(settings, prune)])


def retention_of(settings: Settings) -> Retention:
    """The retention that the environment asks for."""
    return Retention(settings.run_retention_days, settings.run_retention_days_by_job)


def finished_runs(instance: DagsterInstance) -> list[FinishedRun]:
    """Every run that has ended, read in pages."""
    found: list[FinishedRun] = []
    cursor: str | None = None
    while True:
        page = instance.get_run_records(RunsFilter(statuses=ENDED), limit=PAGE, cursor=cursor)
        for record in page:
            run = record.dagster_run
            ended = datetime.fromtimestamp(record.end_time or record.update_timestamp.timestamp(), UTC)
            found.append(FinishedRun(run.run_id, run.job_name, ended, run.status == DagsterRunStatus.SUCCESS))
        if len(page) < PAGE:
            return found
        cursor = page[-1].dagster_run.run_id


def prune_job(settings: Settings) -> JobDefinition:
    """Build the job."""

    @op(description="Reads which runs have ended, and decides which go.", out=PRUNING.out)
    def plan_pruning_of_runs(context: OpExecutionContext, config: PruneConfig) -> Pruning:
        retention = Retention(config.days, {}) if config.days else retention_of(settings)
        now = datetime.now(UTC)
        plan = plan_pruning(finished_runs(context.instance), retention, now)
        before = now - timedelta(days=retention.days)
        context.add_output_metadata(
            {
                "runs": plan.scanned,
                "to_delete": len(plan.changes),
                "events_without_a_run_to_delete": count_old_words(context.instance, before),
                "plan": MetadataValue.md(changes_table(plan.changes) if plan.changes else "Nothing to delete."),
                "kept_although_old": table(("why", "runs"), list(plan.kept.items()), empty="None."),
                "dry_run": config.dry_run,
            }
        )
        return Pruning(plan, before, config.dry_run)

    @op(
        description="Deletes these runs in paced batches; says again what they were the last to say.",
        out=FAILURES.out,
        ins={"pruning": PRUNING.into},
    )
    def delete_old_runs(context: OpExecutionContext, database: OperationsDatabase, pruning: Pruning) -> int:
        if pruning.dry_run:
            context.log.info(
                f"Dry run: {counted(len(pruning.plan.changes), 'run')} would be deleted, nothing was changed."
            )
            return 0
        started = datetime.now(UTC)
        budget = settings.prune_dagster_storage_budget_seconds
        deadline = time.monotonic() + budget

        def enough() -> bool:
            return time.monotonic() > deadline

        before = storage_bytes(context.instance)
        outcome, left, repeated = _prune(context, pruning.plan, enough)
        if left:
            context.log.warning(f"{counted(left, 'run is', 'runs are')} left for the next time: {budget} s are over.")
        words = delete_old_words(context.instance, pruning.before, enough)
        after = storage_bytes(context.instance)
        sizes = {
            "storage_bytes_before": before,
            "storage_bytes_after": after,
            "runs_left": left,
            "events_without_a_run_deleted": words,
        }
        record_outcome(
            database.engine, job=JOB, run_id=context.run_id, started_at=started, outcome=outcome, details=sizes
        )
        context.add_output_metadata({**outcome_metadata(outcome), **sizes, "partitions_said_again": repeated})
        return outcome.failed

    # In an op of its own: Dagster drops what an op that fails has reported.
    @op(ins={"failed": FAILURES.into}, description="Fails the run when runs could not be deleted.")
    def judge_pruning(failed: int) -> None:
        if failed:
            raise Failure(
                f"{counted(failed, 'run')} could not be deleted; see the log of delete_old_runs.", allow_retries=False
            )

    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB, settings.prune_dagster_storage_budget_seconds * 2),
        metadata=JOB_METADATA,
        description="Deletes runs, their events and logs beyond the retention of their job from Dagster's storage.",
    )
    def prune_dagster_storage() -> None:
        judge_pruning(delete_old_runs(plan_pruning_of_runs()))

    return prune_dagster_storage


def _prune(context: OpExecutionContext, plan: Plan, enough: Callable[[], bool]) -> tuple[Outcome, int, int]:
    """Delete batch by batch until it is enough; the outcome, the runs that are left, and the words said again."""
    ids = [change.key for change in plan.changes]
    deleted = kept = failed = repeated = done = 0
    for first in range(0, len(ids), BATCH):
        if enough():
            break
        batch = ids[first : first + BATCH]
        done += len(batch)
        try:
            pruned = delete_runs(context.instance, batch)
        except Exception:
            context.log.exception(f"A batch of {len(batch)} runs could not be deleted, from {batch[0]} on.")
            failed += len(batch)
            continue
        deleted += len(pruned.deleted)
        kept += len(pruned.kept)
        repeated += pruned.repeated
        time.sleep(PAUSE_SECONDS)
    reasons = {**plan.kept, **({"holds the latest word about an asset": kept} if kept else {})}
    outcome = Outcome(plan.scanned, deleted, plan.scanned - deleted - failed, 0, failed, reasons)
    return outcome, len(ids) - done, repeated


def prune_schedule(settings: Settings, prune: JobDefinition) -> ScheduleDefinition:
    """Build the schedule, which skips when nothing is beyond its retention."""

    @schedule(
        name=f"{JOB}_schedule",
        job=prune,
        cron_schedule=settings.prune_dagster_storage_cron_time,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Deletes old runs from Dagster's storage; launches a run when there are any.",
    )
    def tick(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        def look() -> str | None:
            retention, now = retention_of(settings), datetime.now(UTC)
            plan = plan_pruning(finished_runs(context.instance), retention, now)
            if plan.changes or count_old_words(context.instance, now - timedelta(days=retention.days)):
                return None
            return f"None of {counted(plan.scanned, 'run')} is beyond its retention."

        return look_first(context.instance, JOB, look)

    return tick
