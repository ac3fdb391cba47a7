"""The assets `daily_model_usage` and `monthly_model_usage`: sums of hours and of days.

What belongs here: translation between a Dagster run and `usage.rollups`.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime

from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetDep,
    AssetExecutionContext,
    AssetMaterialization,
    AssetObservation,
    AssetsDefinition,
    BackfillPolicy,
    Config,
    Failure,
    MetadataValue,
    PartitionsDefinition,
    TimeWindowPartitionMapping,
    asset,
)
from pydantic import Field
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.database.engine import reading
from ops_pipeline.database.errors import DatabaseProblem, Unreachable
from ops_pipeline.defs.metadata import OWNERS, table, totals_metadata
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.usage.partitions import UsagePartitions, date_of
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import Outcome, counted
from ops_pipeline.settings import Settings
from ops_pipeline.usage.aggregate import RollUpMismatch
from ops_pipeline.usage.hours import next_month
from ops_pipeline.usage.progress import first_wanted_hour
from ops_pipeline.usage.rollups import PeriodResult, roll_up_day, roll_up_month

DAILY = "daily_model_usage"
MONTHLY = "monthly_model_usage"
DAYS_CHECK = "days_match_their_hours"
MONTHS_CHECK = "months_match_their_days"

DAILY_DESCRIPTION = """\
Usage per UTC day: the exact sums of the day's hours, remade by itself whenever one of them changes, however old.

A day that lacks an hour is *partial*: its rows can be read, `usage_days.state` says so, and the partition stays
unmaterialized until the hour is there.
"""
MONTHLY_DESCRIPTION = """\
Usage per UTC month: the exact sums of the month's days, remade by itself whenever one of them changes.

The running month holds the days so far; `usage_months.state` is *partial* until its last day is in.
"""

RollUp = Callable[..., PeriodResult]


class RollUpConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Do everything, show what would change, keep nothing.")


def rollup_assets(settings: Settings, partitions: UsagePartitions) -> list[AssetsDefinition]:
    """Build both assets for a deployment's settings."""
    return [
        _rollup_asset(
            settings,
            name=DAILY,
            source="hourly_model_usage",
            partitions_def=partitions.days,
            roll_up=roll_up_day,
            check=(DAYS_CHECK, "Calls, tokens and credits of each day equal those of its hours."),
            description=DAILY_DESCRIPTION,
        ),
        _rollup_asset(
            settings,
            name=MONTHLY,
            source=DAILY,
            partitions_def=partitions.months,
            roll_up=roll_up_month,
            check=(MONTHS_CHECK, "Calls, tokens and credits of each month equal those of its days."),
            description=MONTHLY_DESCRIPTION,
        ),
    ]


def _rollup_asset(
    settings: Settings,
    *,
    name: str,
    source: str,
    partitions_def: PartitionsDefinition,
    roll_up: RollUp,
    check: tuple[str, str],
    description: str,
) -> AssetsDefinition:
    @asset(
        name=name,
        deps=[
            AssetDep(source, partition_mapping=TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True))
        ],
        partitions_def=partitions_def,
        backfill_policy=BackfillPolicy.single_run(),
        output_required=False,
        check_specs=[AssetCheckSpec(check[0], asset=name, description=check[1])],
        group_name="usage",
        kinds={"sql"},
        owners=OWNERS,
        description=description,
    )
    def rollup(
        context: AssetExecutionContext, config: RollUpConfig, database: OperationsDatabase
    ) -> Iterator[AssetMaterialization | AssetObservation | AssetCheckResult]:
        started = datetime.now(UTC)
        with reading(database.engine) as connection:
            start = settings.model_call_stats_start
            origin = first_wanted_hour(connection, start) or start
        results: list[PeriodResult] = []
        failures: list[tuple[str, str]] = []
        for key in context.partition_keys:
            result, error = _attempt(roll_up, database.engine, date_of(key), origin, dry_run=config.dry_run)
            if result is None:
                failures.append((key, error))
                continue
            results.append(result)
            if not config.dry_run:
                yield _event(name, key, result)
        if config.dry_run:
            yield AssetObservation(name, description="Dry run: nothing was kept.", metadata={"plan": _plan(results)})
        yield _check(check[0], results, failures)
        if not config.dry_run:
            record_outcome(
                database.engine,
                job=name,
                run_id=context.run_id,
                started_at=started,
                outcome=_outcome(results, failures),
                details={"first": context.partition_keys[0], "last": context.partition_keys[-1]},
            )
        if failures:
            raise Failure(
                description=f"{counted(len(failures), 'period')} failed, with the old numbers kept. {failures[0][0]}:"
                f" {failures[0][1]}",
                metadata={"failed": table(("period", "why"), failures, empty="")},
                allow_retries=False,
            )

    return rollup


def _attempt(
    roll_up: RollUp, engine: Engine, first: date, origin: datetime, *, dry_run: bool
) -> tuple[PeriodResult | None, str]:
    """One period's result, or the error that one bad period may have without failing the others."""
    try:
        return roll_up(engine, first, origin, dry_run=dry_run), ""
    except Unreachable:
        raise
    except (DatabaseProblem, RollUpMismatch, SQLAlchemyError) as error:
        return None, str(error)


def _event(name: str, key: str, result: PeriodResult) -> AssetMaterialization | AssetObservation:
    """A materialization, or only an observation for a closed period that lacks a part: it must not look complete."""
    metadata = totals_metadata(
        state=result.state,
        calls=result.calls,
        processing=result.processing,
        tokens=result.tokens,
        credits=result.credits,
        rows=result.rows,
    ) | {"parts": result.parts, "parts_expected": result.expected, "rows_changed": result.written + result.deleted}
    running = name == MONTHLY and next_month(result.first) > datetime.now(UTC).date()
    if result.state == "partial" and not running:
        return AssetObservation(
            name,
            partition=key,
            description=f"Only {result.parts} of {result.expected} parts are there.",
            metadata=metadata,
        )
    return AssetMaterialization(name, partition=key, metadata=metadata)


def _plan(results: Sequence[PeriodResult]) -> MetadataValue:
    rows = [(one.first, one.state, one.calls, one.written, one.deleted) for one in results]
    return table(("period", "state", "calls", "rows to write", "rows to delete"), rows, empty="Nothing to do.")


def _check(name: str, results: Sequence[PeriodResult], failures: Sequence[tuple[str, str]]) -> AssetCheckResult:
    return AssetCheckResult(
        check_name=name,
        passed=not failures,
        metadata={
            "periods": len(results),
            "partial_periods": sum(result.state == "partial" for result in results),
            "calls": sum(result.calls for result in results),
            "credits": float(sum(result.credits for result in results)),
            "differences": table(("period", "difference"), failures, empty="None."),
        },
    )


def _outcome(results: Sequence[PeriodResult], failures: Sequence[tuple[str, str]]) -> Outcome:
    return Outcome(
        scanned=len(results) + len(failures),
        changed=sum(result.written + result.deleted for result in results),
        unchanged=sum(not (result.written or result.deleted) for result in results),
        failed=len(failures),
        reasons={state: sum(one.state == state for one in results) for state in ("complete", "provisional", "partial")},
    )
