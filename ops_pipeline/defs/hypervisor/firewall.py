"""The job `flush_firewall`: the network filters of every host are those of the database.

What belongs here: translation between Dagster and `ops_pipeline.hypervisor.filters`. What is shown is in
`firewall_shown`.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetKey,
    AssetMaterialization,
    AssetSpec,
    Config,
    DefaultScheduleStatus,
    Definitions,
    Failure,
    JobDefinition,
    OpExecutionContext,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    asset_check,
    in_process_executor,
    job,
    op,
    schedule,
)
from pydantic import Field
from sqlalchemy import Engine

from ops_pipeline.database.engine import reading
from ops_pipeline.defs.hypervisor.firewall_shown import (
    CHECKS,
    FILTERS,
    NOTHING_TO_LOOK_AT,
    check_results,
    host_table,
    looked_metadata,
    plan_metadata,
    skip_text,
    told_details,
)
from ops_pipeline.defs.looking import TICK_SECONDS, look_first, tell_check
from ops_pipeline.defs.metadata import JOB_METADATA, OWNERS, outcome_metadata
from ops_pipeline.defs.resources import FAILURES, OperationsDatabase, handed
from ops_pipeline.defs.runs import job_tags
from ops_pipeline.hypervisor.filters import sync
from ops_pipeline.hypervisor.filters.plan import FilterPolicy
from ops_pipeline.hypervisor.filters.sync import Firewall, Looked, Planned, outcome_of
from ops_pipeline.operations.outcomes import last_details, record_outcome
from ops_pipeline.reconcile import Outcome, PlanRefused, SafetyLimit, counted
from ops_pipeline.settings import Settings

JOB = "flush_firewall"
SHOWN_FAILURES = 10
SEEN = handed("filters of the hosts", "Network filters, bindings and interfaces, as every host showed them.")
DECIDED = handed("changes of filters", "What would be defined and removed, host by host.")


class PlanConfig(Config):
    """How much one run may remove."""

    max_removals: int | None = Field(
        default=None, description="So many orphans of one host may go. Left out: NETWORK_FILTER_MAX_REMOVALS."
    )
    max_removal_share: float | None = Field(
        default=None,
        description="This share of a host's filters may go, 0 to 1. Left out: NETWORK_FILTER_MAX_REMOVAL_SHARE.",
    )


class ApplyConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Show what would be defined and removed, and change nothing.")


def firewall_defs(settings: Settings) -> Definitions:
    """Build the asset, its checks, the job and its schedule."""
    flush = flush_job(settings)
    return Definitions(
        assets=[filters_asset()],
        asset_checks=[filters_check(settings, name, text) for name, text in CHECKS.items()],
        jobs=[flush],
        schedules=[flush_schedule(settings, flush)],
    )


def firewall_of(settings: Settings, engine: Engine, config: PlanConfig | None = None) -> Firewall:
    """The part of the settings that a sync needs; the run's own limits win.

    Raises:
        ValueError: a limit could not be meant.
    """
    count, share = settings.network_filter_max_removals, settings.network_filter_max_removal_share
    if config is not None:
        count = count if config.max_removals is None else config.max_removals
        share = share if config.max_removal_share is None else config.max_removal_share
    policy = FilterPolicy(
        prefix=settings.network_filter_prefix,
        orphan_age=timedelta(hours=settings.network_filter_orphan_hours),
        limit=SafetyLimit(count=count, share=share),
    )
    return Firewall(
        engine,
        settings.libvirt_uri,
        policy,
        look_seconds=settings.hypervisor_deadline_seconds,
        apply_seconds=settings.network_filter_apply_seconds,
    )


def filters_asset() -> AssetSpec:
    """The filters of the hosts."""
    return AssetSpec(
        FILTERS,
        description="The network filters of every host, made to be those of the database by the job `flush_firewall`.",
        group_name="hypervisor",
        kinds={"libvirt"},
        owners=OWNERS,
    )


def filters_check(settings: Settings, name: str, text: str) -> AssetChecksDefinition:
    """Build one of the checks, which looks for itself when it is executed alone."""

    @asset_check(asset=AssetKey(FILTERS), name=name, description=text)
    def check(database: OperationsDatabase) -> AssetCheckResult:
        firewall = firewall_of(settings, database.engine)
        try:
            planned = sync.plan(firewall, sync.look(firewall))
        except PlanRefused as error:
            return AssetCheckResult(passed=False, description=str(error))
        differing = [f"{change.key}: {change.reason}" for change in planned.changes]
        return check_results(planned, [*sync.Synced(planned).failures(), *differing])[name]

    return check


# In an op of its own: Dagster drops what an op that fails has reported.
@op(
    ins={"failures": FAILURES.into},
    description="Fails the run when a host or a filter failed, after everything else was done.",
)
def judge_network_filters(failures: list[str]) -> None:
    """Fail with what went wrong."""
    if failures:
        shown = "\n".join(failures[:SHOWN_FAILURES])
        more = f"\n… and {len(failures) - SHOWN_FAILURES} more" if len(failures) > SHOWN_FAILURES else ""
        raise Failure(f"{counted(len(failures), 'problem')} with network filters:\n{shown}{more}", allow_retries=False)


def flush_job(settings: Settings) -> JobDefinition:
    """Build the job for a deployment's settings."""

    @op(out=SEEN.out, description="Looks at the filters, bindings and interfaces of every host, all at once.")
    def observe_network_filters(context: OpExecutionContext, database: OperationsDatabase) -> Looked:
        looked = sync.look(firewall_of(settings, database.engine))
        if not looked.hosts:
            raise Failure(NOTHING_TO_LOOK_AT, allow_retries=False)
        context.add_output_metadata(looked_metadata(looked))
        return looked

    @op(
        out=DECIDED.out,
        ins={"looked": SEEN.into},
        description="Compares the filters with the database, and shows what would be defined and removed.",
    )
    def plan_network_filters(
        context: OpExecutionContext, config: PlanConfig, looked: Looked, database: OperationsDatabase
    ) -> Planned:
        started = datetime.now(UTC)
        try:
            planned = sync.plan(firewall_of(settings, database.engine, config), looked)
        except (PlanRefused, ValueError) as error:
            _record(context, database, started, Outcome(failed=1), {"failures": [str(error)], "told": 1})
            raise Failure(str(error), allow_retries=False) from None
        context.add_output_metadata(plan_metadata(planned))
        return planned

    @op(
        out=FAILURES.out,
        ins={"planned": DECIDED.into},
        description="Defines filters that differ, those that are included first; removes old orphans; and looks again.",
    )
    def apply_network_filters(
        context: OpExecutionContext, config: ApplyConfig, planned: Planned, database: OperationsDatabase
    ) -> list[str]:
        if config.dry_run:
            context.log.info(f"Dry run: {counted(len(planned.changes), 'filter')} would be changed, nothing was.")
            return []
        started = datetime.now(UTC)
        synced = sync.apply(firewall_of(settings, database.engine), planned)
        failures, outcome = synced.failures(), outcome_of(synced)
        _record(context, database, started, outcome, told_details(synced, failures))
        for name, result in check_results(planned, failures).items():
            tell_check(context, FILTERS, name, result)
        metadata = outcome_metadata(outcome) | {"hosts": host_table(synced)}
        context.log_event(AssetMaterialization(FILTERS, metadata=metadata))
        context.add_output_metadata(metadata)
        return failures

    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB, 2 * settings.network_filter_apply_seconds + 300),
        metadata=JOB_METADATA,
        description="Makes the network filters of every host those of the database; never leaves a machine without.",
    )
    def flush_firewall() -> None:
        judge_network_filters(apply_network_filters(plan_network_filters(observe_network_filters())))

    return flush_firewall


def _record(
    context: OpExecutionContext,
    database: OperationsDatabase,
    started: datetime,
    outcome: Outcome,
    details: dict[str, Any],
) -> None:
    record_outcome(
        database.engine, job=JOB, run_id=context.run_id, started_at=started, outcome=outcome, details=details
    )


def flush_schedule(settings: Settings, flush: JobDefinition) -> ScheduleDefinition:
    """Build the schedule, which looks first, and launches a run when there is something to do or to tell."""

    @schedule(
        name=f"{JOB}_schedule",
        job=flush,
        cron_schedule=settings.firewall_interval,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Compares the network filters of the hosts with the database; runs when they differ.",
    )
    def tick(context: ScheduleEvaluationContext, database: OperationsDatabase) -> RunRequest | SkipReason:
        def look() -> str | None:
            firewall = replace(firewall_of(settings, database.engine), total_seconds=TICK_SECONDS)
            looked = sync.look(firewall)
            if not looked.hosts:
                return NOTHING_TO_LOOK_AT
            try:
                planned = sync.plan(firewall, looked)
            except PlanRefused:
                return None
            with reading(database.engine) as connection:
                last = last_details(connection, JOB)
            # One more run after trouble shows that it is over; without it the checks would stay red.
            return None if planned.due or last.get("told") else skip_text(planned)

        return look_first(context.instance, JOB, look)

    return tick
