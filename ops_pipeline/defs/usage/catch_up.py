"""Catch-up: the schedule that aggregates the hour just closed and every other that lacks, and its back-up.

What belongs here: evaluation of the schedule and of the sensor for ticks that were missed. The rule of what to
launch is `usage.hours.plan_catch_up`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from croniter import croniter
from dagster import (
    AssetKey,
    DagsterInstance,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    schedule,
    sensor,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from ops_pipeline.database.engine import reading
from ops_pipeline.database.errors import Unreachable
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.runs import keys_in_backfills, range_request, ranges_in_flight, resting_until
from ops_pipeline.defs.usage.hourly import NAME
from ops_pipeline.defs.usage.jobs import job_name
from ops_pipeline.defs.usage.partitions import hour_key, hour_of, hours_between
from ops_pipeline.reconcile import counted
from ops_pipeline.settings import Settings
from ops_pipeline.usage.hours import HOUR, CatchUp, Window, floor_hour, hour_text
from ops_pipeline.usage.progress import CatchUpPolicy, read_catch_up

ONLY_NEEDED = {"ops": {NAME: {"config": {"only_needed": True}}}}
GRACE = timedelta(minutes=2)
"""How long a tick of the schedule is left alone before the sensor takes over what it should have launched."""


def catch_up_policy(settings: Settings) -> CatchUpPolicy:
    """The part of the settings that catch-up needs."""
    return CatchUpPolicy(
        start=settings.model_call_stats_start,
        pruned_before=settings.model_calls_pruned_before,
        max_range_hours=settings.model_call_stats_max_range_hours,
        max_attempts=settings.model_call_stats_max_attempts,
    )


def hours_in_flight(instance: DagsterInstance) -> set[datetime]:
    """Hours that queued or running runs and backfills already cover."""
    asset = AssetKey(NAME)
    hours = {hour_of(key) for key in keys_in_backfills(instance, asset)}
    for first, last in ranges_in_flight(instance, asset, job_name(NAME)):
        hours.update(hours_between(first, last))
    return hours


def hour_requests(windows: Sequence[Window], tick: datetime | None = None, *, priority: int = 0) -> list[RunRequest]:
    """One run per window, which leaves alone the hours that need nothing.

    Args:
        windows: what to run.
        tick: the time of a schedule's tick, which makes its run keys unique; sensors ask without keys.
        priority: of the runs in the queue; higher ones overtake.
    """
    return [
        range_request(
            job_name(NAME),
            hour_key(window.start),
            hour_key(window.end - HOUR),
            run_config=ONLY_NEEDED,
            run_key=f"{tick.isoformat()} {window}" if tick else None,
            priority=priority,
        )
        for window in windows
    ]


def evaluate_catch_up(
    instance: DagsterInstance, database: OperationsDatabase, policy: CatchUpPolicy, due: datetime, *, keyed: bool
) -> list[RunRequest] | SkipReason:
    """Requests for all that lacks up to the last hour that was over when a tick was due, or why there are none.

    Several requests of a schedule's tick must have run keys; a sensor's key would never be launched a second time.
    """
    closed_until = floor_hour(due)
    if closed_until <= policy.start:
        return SkipReason(
            f"MODEL_CALL_STATS_START is {hour_text(policy.start)}, and no hour from there on is over yet."
        )
    with reading(database.engine) as connection:
        plan = read_catch_up(connection, policy, closed_until, hours_in_flight(instance))
    return hour_requests(plan.ranges, due if keyed else None) or SkipReason(skip_text(plan, closed_until))


def skip_text(plan: CatchUp, closed_until: datetime) -> str:
    """Why nothing is launched, in words."""
    parts = []
    if plan.in_flight:
        parts.append(f"{counted(plan.in_flight, 'hour is', 'hours are')} queued or running.")
    if plan.given_up:
        hours = ", ".join(hour_text(hour) for hour in plan.given_up[:5])
        more = f" and {len(plan.given_up) - 5} more" if len(plan.given_up) > 5 else ""
        parts.append(
            f"{counted(len(plan.given_up), 'hour')} failed too often, to be seen to by a person: {hours}{more}. The"
            " reasons are in the table usage_hour_attempts; they run again when their calls are"
            " corrected, or when launched by hand."
        )
    return " ".join(parts) or f"Every hour up to {hour_text(closed_until)} is done."


def rest_text(instance: DagsterInstance, asset: str) -> str | None:
    """Why a sensor leaves the job of an asset alone for now; None when it need not."""
    until = resting_until(instance, job_name(asset), datetime.now(UTC))
    if until is None:
        return None
    return f"The last runs of {job_name(asset)} failed: read why there. The next try is at {until:%H:%M:%S} UTC."


def catch_up_schedule(settings: Settings, job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """Build `model_call_stats_schedule`."""
    policy = catch_up_policy(settings)

    @schedule(
        name="model_call_stats_schedule",
        job=job,
        cron_schedule=settings.model_call_stats_cron_time,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Aggregates the hour just closed, and with it every other hour that lacks, whatever its age.",
    )
    def model_call_stats_schedule(
        context: ScheduleEvaluationContext, database: OperationsDatabase
    ) -> list[RunRequest] | SkipReason:
        due = context.scheduled_execution_time.astimezone(UTC)
        try:
            return evaluate_catch_up(context.instance, database, policy, due, keyed=True)
        except Unreachable:
            # Nobody watches skipped ticks: a run that fails on the same database is seen and alerted.
            last = max(floor_hour(due) - HOUR, policy.start)
            return hour_requests([Window(last, last + HOUR)], due)

    return model_call_stats_schedule


def last_tick(cron: str, now: datetime) -> datetime:
    """The latest time at or before `now` at which a cron schedule was due, in UTC."""
    return croniter(cron, now.astimezone(UTC) + timedelta(microseconds=1)).get_prev(datetime)


def missed_hours_sensor(settings: Settings, job: UnresolvedAssetJobDefinition) -> SensorDefinition:
    """Build the sensor that does what a tick should have done while nothing was running."""
    policy = catch_up_policy(settings)

    @sensor(
        name="missed_hours_sensor",
        job=job,
        minimum_interval_seconds=60,
        default_status=DefaultSensorStatus.RUNNING,
        description="Dagster does not repeat ticks that fell into a downtime: this launches what they would have.",
    )
    def sense(context: SensorEvaluationContext, database: OperationsDatabase) -> list[RunRequest] | SkipReason:
        rest = rest_text(context.instance, NAME)
        if rest:
            return SkipReason(rest)
        due = last_tick(settings.model_call_stats_cron_time, datetime.now(UTC) - GRACE)
        return evaluate_catch_up(context.instance, database, policy, due, keyed=False)

    return sense
