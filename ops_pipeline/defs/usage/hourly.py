"""The asset `hourly_model_usage`: raw calls to hours.

What belongs here: translation between a Dagster run and `usage.aggregate`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetMaterialization,
    AssetObservation,
    AssetsDefinition,
    BackfillPolicy,
    Config,
    Failure,
    MetadataValue,
    asset,
)
from pydantic import Field

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.defs.metadata import OWNERS, table, totals_metadata
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.usage.calls import CALLS
from ops_pipeline.defs.usage.partitions import UsagePartitions, hour_key, hour_of
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import Outcome, counted
from ops_pipeline.settings import Settings
from ops_pipeline.usage.aggregate import ChunkResult, HourResult, Policy, aggregate
from ops_pipeline.usage.hours import hour_text
from ops_pipeline.usage.late import compare
from ops_pipeline.usage.progress import future_calls, recent_anomalies
from ops_pipeline.usage.statements import ANOMALIES

NAME = "hourly_model_usage"
TOTALS_CHECK = "totals_match_raw_calls"
ANOMALY_CHECK = "no_absurd_values"
SHOWN_ANOMALIES = timedelta(days=7)

DESCRIPTION = """\
Calls, tokens, credits and timings per hour, user, app, provider, model and type, summed from `model_calls`.

A range of hours is one run. Days commit one by one, so that a run that dies keeps what it finished. An hour whose
calls are still processing is *provisional*; it is made again by itself when they end. `usage_hours` holds the truth
about which hours are done; the partition status shown here follows it.
"""


class HourlyUsageConfig(Config):
    """What one run may do; every default is the safe choice."""

    dry_run: bool = Field(default=False, description="Do everything, show what would change, keep nothing.")
    allow_shrink: bool = Field(
        default=False,
        description="Replace hours even when their raw calls were pruned or most of them are gone.",
    )
    only_needed: bool = Field(
        default=False,
        description="Leave alone the hours of the range that are done and whose calls have not changed since.",
    )


def hourly_asset(settings: Settings, partitions: UsagePartitions) -> AssetsDefinition:
    """Build the asset for a deployment's settings."""

    @asset(
        name=NAME,
        deps=[CALLS],
        partitions_def=partitions.hours,
        backfill_policy=BackfillPolicy.single_run(),
        output_required=False,
        check_specs=[
            AssetCheckSpec(
                TOTALS_CHECK,
                asset=NAME,
                description="Calls, every kind of tokens and credits of each hour equal those of its raw calls.",
            ),
            AssetCheckSpec(
                ANOMALY_CHECK,
                asset=NAME,
                description="No unknown status or type, negative value, impossible duration or future call. Such"
                " calls are counted and kept, never dropped.",
            ),
        ],
        group_name="usage",
        kinds={"sql"},
        owners=OWNERS,
        description=DESCRIPTION,
    )
    def hourly_model_usage(
        context: AssetExecutionContext, config: HourlyUsageConfig, database: OperationsDatabase
    ) -> Iterator[AssetMaterialization | AssetObservation | AssetCheckResult]:
        started = datetime.now(UTC)
        policy = Policy(config.allow_shrink, settings.model_calls_pruned_before, config.dry_run)
        asked = [hour_of(key) for key in context.partition_keys]
        with reading(database.engine) as connection:
            wanted = sorted(compare(connection, asked)) if config.only_needed else asked
            future = future_calls(connection, database_now(connection))
        chunks: list[ChunkResult] = []
        for chunk in aggregate(database.engine, wanted, policy):
            chunks.append(_without_models(chunk))
            if not config.dry_run:
                for hour in chunk.hours:
                    yield AssetMaterialization(NAME, partition=hour_key(hour.hour), metadata=_metadata(hour, chunk))
        if config.dry_run:
            yield AssetObservation(NAME, description="Dry run: nothing was kept.", metadata={"plan": _plan(chunks)})
        with reading(database.engine) as connection:
            anomalies = recent_anomalies(connection, started - SHOWN_ANOMALIES)
        yield _totals_check(chunks)
        yield _anomaly_check(chunks, anomalies, future)
        outcome = _outcome(chunks, unchanged=len(asked) - len(wanted))
        if not config.dry_run:
            record_outcome(
                database.engine,
                job=NAME,
                run_id=context.run_id,
                started_at=started,
                outcome=outcome,
                details={"first_hour": context.partition_keys[0], "last_hour": context.partition_keys[-1]},
            )
        _raise_failures(chunks)

    return hourly_model_usage


def _without_models(chunk: ChunkResult) -> ChunkResult:
    """Keep what the end of the run needs; the models' tables of 8,784 hours would not be small."""
    return replace(chunk, hours=tuple(replace(hour, models=()) for hour in chunk.hours))


def _metadata(hour: HourResult, chunk: ChunkResult) -> dict[str, Any]:
    models = [
        (model.provider, model.model, model.calls, model.failed, model.tokens, model.credits) for model in hour.models
    ]
    return totals_metadata(
        state=hour.state,
        calls=hour.calls,
        processing=hour.processing,
        tokens=hour.tokens,
        credits=hour.credits,
        rows=hour.rows,
    ) | {
        "users": hour.users,
        "anomalies": sum(hour.anomalies.values()),
        "duration_seconds": round(chunk.seconds / max(1, len(chunk.hours)), 6),
        "top_models": table(("provider", "model", "calls", "failed", "tokens", "credits"), models, empty="No calls."),
    }


def _plan(chunks: Sequence[ChunkResult]) -> MetadataValue:
    rows = [
        (str(chunk.window), sum(hour.calls for hour in chunk.hours), chunk.replaced.written, chunk.replaced.deleted)
        for chunk in chunks
    ]
    return table(("hours", "calls", "rows to write", "rows to delete"), rows, empty="Nothing to do.")


def _totals_check(chunks: Sequence[ChunkResult]) -> AssetCheckResult:
    mismatches = [failure for chunk in chunks for failure in chunk.failures if failure.mismatch]
    hours = [hour for chunk in chunks for hour in chunk.hours]
    return AssetCheckResult(
        check_name=TOTALS_CHECK,
        passed=not mismatches,
        metadata={
            "hours": len(hours),
            "calls": sum(hour.calls for hour in hours),
            "tokens": sum(hour.tokens["input_tokens"] + hour.tokens["output_tokens"] for hour in hours),
            "credits": float(sum(hour.credits for hour in hours)),
            "mismatches": table(("hour", "difference"), [(one.hour, one.error) for one in mismatches], empty="None."),
        }
        if mismatches or hours
        else {"hours": 0},
    )


def _anomaly_check(
    chunks: Sequence[ChunkResult], recent: Mapping[datetime, Mapping[str, int]], future: int
) -> AssetCheckResult:
    """Anomalies of this run's hours and of all recent ones, so that the next hour does not hide the last one's."""
    hours = dict(recent) | {hour.hour: hour.anomalies for chunk in chunks for hour in chunk.hours}
    counts = {name: sum(counts.get(name, 0) for counts in hours.values()) for name in ANOMALIES} | {
        "future_calls": future
    }
    where = [
        (hour_text(hour), name, found) for hour in sorted(hours, reverse=True) for name, found in hours[hour].items()
    ]
    return AssetCheckResult(
        check_name=ANOMALY_CHECK,
        passed=not any(counts.values()),
        severity=AssetCheckSeverity.WARN,
        metadata={**counts, "odd_hours": table(("hour", "what", "calls"), where, empty="None.")},
        description="All calls are counted; look for the writer that made the odd ones."
        if any(counts.values())
        else "",
    )


def _outcome(chunks: Sequence[ChunkResult], *, unchanged: int) -> Outcome:
    hours = [hour for chunk in chunks for hour in chunk.hours]
    failures = [failure for chunk in chunks for failure in chunk.failures]
    return Outcome(
        scanned=sum(hour.calls for hour in hours),
        changed=sum(chunk.replaced.written + chunk.replaced.deleted for chunk in chunks),
        unchanged=unchanged,
        failed=len(failures),
        reasons={"hours aggregated": len(hours), "hours failed": len(failures)},
    )


def _raise_failures(chunks: Sequence[ChunkResult]) -> None:
    failures = [failure for chunk in chunks for failure in chunk.failures]
    if not failures:
        return
    why = table(("hour", "why"), [(hour_text(failure.hour), failure.error) for failure in failures], empty="")
    raise Failure(
        description=f"{counted(len(failures), 'hour')} failed, with the old numbers kept; the others are done."
        f" {hour_text(failures[0].hour)}: {failures[0].error}",
        metadata={"failed_hours": why},
        allow_retries=False,
    )
