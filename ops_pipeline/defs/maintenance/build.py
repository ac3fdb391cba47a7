"""The job `run_maintenance`, its sensor, and the asset of archives.

What belongs here: putting the passes together. What does not: what a pass does (`passes`).
"""

from collections.abc import Mapping
from typing import Any

from dagster import (
    AssetSpec,
    DefaultSensorStatus,
    Definitions,
    JobDefinition,
    OpDefinition,
    OpExecutionContext,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    in_process_executor,
    job,
    op,
    sensor,
)

from ops_pipeline.analysis.maintenance.records import COUNTS, read_passes
from ops_pipeline.defs.maintenance.passes import ARCHIVES, OPS, PRIORITY, passes_of
from ops_pipeline.defs.metadata import JOB_METADATA, OWNERS, table
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.runs import in_flight_text, job_tags
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.passes import PREFIX
from ops_pipeline.reconcile import Outcome
from ops_pipeline.settings import Settings

JOB = "run_maintenance"
FIRST, LAST = 100, -100
NOTHING_WRITTEN = "A dry run writes nothing down: the plan of each op stands in its own output."
GRACE_SECONDS = 300
"""What a pass may take beyond its time budget: one more page, and its report."""


def maintenance_defs(settings: Settings) -> Definitions:
    """Build the asset, the job and its sensor."""
    return Definitions(
        assets=[archives_asset()], jobs=[maintenance_job(settings)], sensors=[maintenance_sensor(settings)]
    )


def archives_asset() -> AssetSpec:
    """What maintenance has removed, and can be put back."""
    return AssetSpec(
        ARCHIVES,
        description="What the job `run_maintenance` removed: Parquet and tar files, restorable with"
        " `ops-pipeline archive restore`.",
        group_name="maintenance",
        kinds={"parquet"},
        owners=OWNERS,
    )


def maintenance_job(settings: Settings) -> JobDefinition:
    """Build the job for a deployment's settings."""
    begin, passes, conclude = _begin(), passes_of(settings), _conclude()
    longest = len(passes) * (settings.maintenance_time_budget_seconds + GRACE_SECONDS)

    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB, longest),
        metadata=JOB_METADATA,
        description="Cleans up applications, tasks and raw calls that nobody needs any more, after their grace."
        f" In this order, and whatever fails stops no other: {', '.join(f'`{one}`' for one in OPS.values())}.",
    )
    def run_maintenance() -> None:
        for one in (begin, *passes, conclude):
            one()

    return run_maintenance


def _begin() -> OpDefinition:
    @op(description="Tells that maintenance begins.", tags={PRIORITY: str(FIRST)})
    def begin_maintenance(context: OpExecutionContext) -> None:
        context.log.info(f"{PREFIX} Starting maintenance run {context.run_id}")

    return begin_maintenance


def _conclude() -> OpDefinition:
    @op(description="Writes down what the passes did, those that failed too.", tags={PRIORITY: str(LAST)})
    def conclude_maintenance(context: OpExecutionContext, database: OperationsDatabase) -> None:
        rows = read_passes(database.engine, context.run_id)
        cells = [
            (
                OPS[row["name"]],
                row["status"],
                *(row[name] for name in COUNTS),
                round(row["backlog_seconds"]),
                row["error"],
            )
            for row in rows
        ]
        header = ("op", "status", *COUNTS, "backlog seconds", "error")
        context.add_output_metadata({"passes": table(header, cells, empty=NOTHING_WRITTEN)})
        # A dry run has written nothing, and is none of the job's outcomes.
        if rows:
            record_outcome(
                database.engine,
                job=JOB,
                run_id=context.run_id,
                started_at=min(row["started_at"] for row in rows),
                outcome=_sum(rows),
                details={"passes": {row["name"]: _facts(row) for row in rows}},
            )
        context.log.info(f"{PREFIX} Maintenance run complete")

    return conclude_maintenance


def _sum(rows: list[dict[str, Any]]) -> Outcome:
    sums = {name: sum(row[name] for row in rows) for name in COUNTS}
    # A pass that was refused or could not look has no failed object, and failed all the same.
    failed = sums["failed"] + sum(row["status"] == "failed" and not row["failed"] for row in rows)
    return Outcome(scanned=sums["scanned"], changed=sums["changed"], skipped=sums["skipped"], failed=failed)


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("status", "error", "backlog_seconds", *COUNTS, "details")
    return {name: row[name] for name in names}


def maintenance_sensor(settings: Settings) -> SensorDefinition:
    """Build the sensor that runs maintenance by itself, where MAINTENANCE_AUTO_START says so."""
    running = settings.maintenance_auto_start

    @sensor(
        name="maintenance_sensor",
        # By name: given the job itself, Dagster rebuilds the sensor, and warns of a parameter of its own.
        job_name=JOB,
        minimum_interval_seconds=settings.maintenance_interval_seconds,
        default_status=DefaultSensorStatus.RUNNING if running else DefaultSensorStatus.STOPPED,
        description="Runs maintenance every MAINTENANCE_INTERVAL_SECONDS, once switched on (MAINTENANCE_AUTO_START).",
    )
    def sense(context: SensorEvaluationContext) -> RunRequest | SkipReason:
        busy = in_flight_text(context.instance, JOB)
        return SkipReason(busy) if busy else RunRequest()

    return sense
