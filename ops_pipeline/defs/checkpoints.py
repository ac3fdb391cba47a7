"""The job `cleanup_checkpoints`: old LangGraph checkpoints in Redis go.

What belongs here: translation between Dagster and `ops_pipeline.checkpoints`.
"""

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetSpec,
    Config,
    DefaultScheduleStatus,
    Definitions,
    Failure,
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

from ops_pipeline.checkpoints.connection import configured_url, in_words, open_store
from ops_pipeline.checkpoints.plans import (
    Request,
    Retention,
    changes_of,
    failure_of,
    largest_table,
    options_of,
    outcome_of,
    policy_of,
    prefixes_of,
    result_of,
    retention_now,
    summary_of,
    warnings_of,
    warnings_of_request,
)
from ops_pipeline.checkpoints.sweep import Swept, memory_of, sweep
from ops_pipeline.defs.metadata import JOB_METADATA, OWNERS, outcome_metadata, table
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.runs import in_flight_text, job_tags
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import PlanRefused, Unavailable
from ops_pipeline.settings import Settings

JOB = "cleanup_checkpoints"
STORE = "langgraph_checkpoints"
NO_REDIS = "No Redis is named: set CHECKPOINT_REDIS_URL, or NAUTOBOT_REDIS_HOST and the variables beside it."
GRACE_SECONDS = 300
"""What a run may take beyond its time budget: the scan, and the picture."""


class SweepConfig(Config):
    """What one run may do; every default is the safe choice."""

    dry_run: bool = Field(default=False, description="Decide and show, delete nothing.")
    threads: list[str] = Field(
        default=[], description=r"Only these threads: ids, or patterns with * and ? (\* for a star itself)."
    )
    delete_all: bool = Field(
        default=False, description="Erase those of `threads` with all that is theirs, whatever their age."
    )
    retention_days: float | None = Field(
        default=None, description="Idle for so many days before a thread goes. Left out: CHECKPOINT_RETENTION_DAYS."
    )
    max_share: float | None = Field(
        default=None,
        description="More is refused: the share of threads that may go. Left out: CHECKPOINT_MAX_SHARE.",
    )
    expire_hours: float | None = Field(
        default=None,
        description="Let idle threads expire after so many hours, spread over one. Left out: they are deleted at once.",
    )
    purge_memory: bool = Field(default=False, description="Ask Redis to give memory back to the system afterwards.")


def checkpoints_defs(settings: Settings) -> Definitions:
    """Build the asset, the job and its schedule."""
    cleanup = cleanup_job(settings)
    return Definitions(assets=[store_asset()], jobs=[cleanup], schedules=[cleanup_schedule(settings, cleanup)])


def store_asset() -> AssetSpec:
    """The checkpoints, as the assistants write them."""
    return AssetSpec(
        STORE,
        description="LangGraph checkpoints in Redis. The assistants write them; the job `cleanup_checkpoints` removes"
        " idle threads.",
        group_name="checkpoints",
        kinds={"redis"},
        owners=OWNERS,
    )


def cleanup_job(settings: Settings) -> JobDefinition:
    """Build the job for a deployment's settings."""

    @op(description="Scans the checkpoints, decides thread by thread, and deletes what is idle for too long.")
    def sweep_checkpoints(context: OpExecutionContext, config: SweepConfig, database: OperationsDatabase) -> None:
        request = Request(**config.model_dump())
        started = datetime.now(UTC)
        swept, retention, error = Swept(), Retention(settings.checkpoint_retention_days), None
        warnings: list[str] = []
        try:
            retention, warnings = _sweep(settings, request, swept, context.log.info)
        except (Unavailable, PlanRefused, ValueError) as problem:
            error = str(problem)
        for warning in warnings:
            context.log.warning(warning)
        result = result_of(swept, retention, error)
        metadata = {**_shown(swept, retention, warnings, error), **_numbers(result)}
        if not config.dry_run:
            outcome = outcome_of(swept, failed=error is not None)
            record_outcome(
                database.engine, job=JOB, run_id=context.run_id, started_at=started, outcome=outcome, details=result
            )
            metadata |= outcome_metadata(outcome)
            context.log_event(AssetMaterialization(AssetKey(STORE), metadata=metadata))
        if error:
            raise Failure(failure_of(swept, error), metadata=metadata, allow_retries=False)
        context.add_output_metadata(metadata)

    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB, settings.checkpoint_time_budget_seconds + GRACE_SECONDS),
        metadata=JOB_METADATA,
        description="Deletes LangGraph threads whose newest checkpoint is older than the retention, and orphans.",
    )
    def cleanup_checkpoints() -> None:
        sweep_checkpoints()

    return cleanup_checkpoints


def _sweep(
    settings: Settings, request: Request, swept: Swept, told: Callable[[str], None]
) -> tuple[Retention, list[str]]:
    """Sweep the configured Redis; the retention that counted, and what a person should see.

    Raises:
        Failure: no Redis is named.
        Unavailable: it cannot be reached.
        PlanRefused: too much would go.
        ValueError: the request cannot be meant.
    """
    url = configured_url(settings)
    if url is None:
        raise Failure(NO_REDIS, allow_retries=False)
    prefixes = prefixes_of(settings)
    with open_store(url, replicas=settings.checkpoint_scan_replicas) as store:
        with in_words(store.where):
            used, _ = memory_of(store)
        retention = retention_now(settings, request, used)
        policy, options = policy_of(settings, request, retention), options_of(settings, request)
        sweep(store, prefixes, policy, options, swept=swept, told=told)
        told(summary_of(swept, store.where, request))
        found = warnings_of(swept, retention, store.where, prefixes, store.database)
        return retention, [*found, *warnings_of_request(request)]


def _numbers(result: dict[str, Any]) -> dict[str, Any]:
    """The result as metadata: numbers for plots, the rest in words."""
    plotted = {name: value for name, value in result.items() if isinstance(value, int | float)}
    counts = {
        name: table(("what", "threads"), list(result[name].items()), empty="None.") for name in ("removed", "kept")
    }
    return {**plotted, **counts, "error": result["error"] or "None."}


def _shown(swept: Swept, retention: Retention, warnings: list[str], error: str | None) -> dict[str, Any]:
    # matplotlib takes half a second to import, which no other run has to pay.
    from ops_pipeline.checkpoints.figures import picture  # noqa: PLC0415

    image = base64.b64encode(picture(swept.ages, swept.largest, retention.days)).decode()
    # The log of a run shows the first six entries of many: what a person decides by comes before all numbers.
    return {
        "changes": MetadataValue.md(changes_of(swept, error)),
        "warnings": MetadataValue.md("\n".join(f"- {warning}" for warning in warnings) or "None."),
        "threads_by_age": MetadataValue.md(f"![Threads by age](data:image/png;base64,{image})"),
        "largest_threads": MetadataValue.md(largest_table(swept)),
    }


def cleanup_schedule(settings: Settings, cleanup: JobDefinition) -> ScheduleDefinition:
    """Build the schedule; it runs where a Redis is named."""

    @schedule(
        name=f"{JOB}_schedule",
        job=cleanup,
        cron_schedule=settings.checkpoint_cleanup_cron_time,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Cleans up checkpoints once a day, where a Redis that holds them is named.",
    )
    def tick(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        if configured_url(settings) is None:
            return SkipReason(NO_REDIS)
        busy = in_flight_text(context.instance, JOB)
        return SkipReason(busy) if busy else RunRequest()

    return tick
