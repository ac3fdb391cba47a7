"""Sensors that keep the numbers true: late calls, stale days and months, and the partition status.

What belongs here: evaluation of these sensors. The rules are in `usage.late` and `usage.rollups`.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

from dagster import (
    AssetKey,
    DefaultSensorStatus,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from ops_pipeline.database.engine import reading
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.runs import keys_in_backfills, range_request, ranges_in_flight
from ops_pipeline.defs.usage.catch_up import catch_up_policy, hour_requests, hours_in_flight, rest_text
from ops_pipeline.defs.usage.hourly import NAME
from ops_pipeline.defs.usage.jobs import job_name
from ops_pipeline.defs.usage.partitions import date_of, ranges_of_dates
from ops_pipeline.defs.usage.report import REPORT
from ops_pipeline.defs.usage.rollups import DAILY, MONTHLY
from ops_pipeline.reconcile import counted
from ops_pipeline.settings import Settings
from ops_pipeline.usage.hours import CatchUp, floor_hour, plan_catch_up
from ops_pipeline.usage.late import Late, LateCursor, LatePolicy, look_for_late_calls
from ops_pipeline.usage.progress import attempts_that_count, first_wanted_hour, read_missing
from ops_pipeline.usage.rollups import read_due

LOOK_SECONDS = 20
"""A look every 20 s, the queue's 2 s and a run of 3 s leave a late call half a minute behind at worst."""
LATE_PRIORITY = 10
"""Late calls overtake the ranges of a long catch-up in the queue."""
MAX_DAYS_PER_RUN = 366


def late_model_calls_sensor(settings: Settings, job: UnresolvedAssetJobDefinition) -> SensorDefinition:
    """Build the sensor for calls that were inserted, completed, changed or deleted after their hour was done."""
    policy = LatePolicy(
        overlap=settings.late_overlap(),
        sweep_every=timedelta(seconds=settings.late_model_calls_sweep_seconds),
        sweep_hours=settings.late_model_calls_sweep_hours,
    )
    limits = catch_up_policy(settings)

    @sensor(
        name="late_model_calls_sensor",
        job=job,
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=DefaultSensorStatus.RUNNING,
        description="Aggregates an hour again when its calls changed after it was done, whatever its age.",
    )
    def sense(context: SensorEvaluationContext, database: OperationsDatabase) -> SensorResult:
        with reading(database.engine) as connection:
            # Before the first partition, or the first call that was not pruned, no hour can be made again.
            first = max(
                first_wanted_hour(connection, limits.start) or limits.start, limits.pruned_before or limits.start
            )
            looked = replace(policy, pruned_before=first)
            late = look_for_late_calls(connection, LateCursor.load(context.cursor), looked)
            plan = plan_catch_up(
                list(late.stale),
                in_flight=hours_in_flight(context.instance) if late.stale else (),
                attempts=attempts_that_count(connection),
                max_attempts=limits.max_attempts,
                max_range_hours=limits.max_range_hours,
            )
        rest = rest_text(context.instance, NAME) if plan.ranges else None
        requests = [] if rest else hour_requests(plan.ranges, priority=LATE_PRIORITY)
        skip = None if requests else SkipReason(rest or _late_text(late, plan))
        return SensorResult(run_requests=requests, skip_reason=skip, cursor=late.cursor.dump())

    return sense


def _late_text(late: Late, plan: CatchUp) -> str:
    if not late.stale:
        swept = f", counted the calls of every hour looked at and found {late.swept} differing" if late.swept else ""
        return f"No late calls: compared {counted(late.compared, 'hour')}{swept}."
    parts = [f"{counted(len(late.stale), 'hour has', 'hours have')} late calls"]
    if plan.in_flight:
        parts.append(f"{plan.in_flight} of them queued or running")
    if plan.given_up:
        parts.append(
            f"{len(plan.given_up)} failed too often, to be seen to by a person (usage_hour_attempts says why):"
            f" {late.stale[plan.given_up[0]]}"
        )
    return "; ".join(parts) + "."


def usage_rollups_sensor(settings: Settings, jobs: Sequence[UnresolvedAssetJobDefinition]) -> SensorDefinition:
    """Build the sensor that rolls up days and months, and reports, when what they are made of has changed."""
    policy = catch_up_policy(settings)

    @sensor(
        name="usage_rollups_sensor",
        jobs=jobs,
        minimum_interval_seconds=15,
        default_status=DefaultSensorStatus.RUNNING,
        description="Sums days and months again whenever one of their hours changed, and renews recent reports.",
    )
    def sense(context: SensorEvaluationContext, database: OperationsDatabase) -> list[RunRequest] | SkipReason:
        now = datetime.now(UTC)
        with reading(database.engine) as connection:
            given_up = {hour for hour, count in attempts_that_count(connection).items() if count >= policy.max_attempts}
            waiting = set(read_missing(connection, policy, floor_hour(now))) - given_up
            due = read_due(
                connection,
                today=now.date(),
                waiting=waiting,
                report_days=settings.usage_report_days,
                start=policy.start.date(),
                days_rest=rest_text(context.instance, DAILY) is not None,
            )
        requests: list[RunRequest] = []
        reasons: list[str] = []
        for asset, dates in ((DAILY, due.days), (MONTHLY, due.months), (REPORT, due.reports)):
            if not dates:
                continue
            rest = rest_text(context.instance, asset)
            wanted = [] if rest else _date_requests(context, asset, dates)
            requests += wanted
            if not wanted:
                reasons.append(rest or f"Of {asset} {counted(len(dates), 'partition is', 'partitions are')} under way.")
        return requests or SkipReason(" ".join(reasons) or "Every day, month and report is up to date.")

    return sense


def _date_requests(context: SensorEvaluationContext, asset: str, dates: Sequence[date]) -> list[RunRequest]:
    key = AssetKey(asset)
    busy = {date_of(one) for one in keys_in_backfills(context.instance, key)}
    ranges = [
        (date_of(first), date_of(last)) for first, last in ranges_in_flight(context.instance, key, job_name(asset))
    ]
    free = [one for one in dates if one not in busy and not any(first <= one <= last for first, last in ranges)]
    if asset == MONTHLY:
        return [range_request(job_name(asset), str(one), str(one)) for one in free]
    return [
        range_request(job_name(asset), str(first), str(last)) for first, last in ranges_of_dates(free, MAX_DAYS_PER_RUN)
    ]
