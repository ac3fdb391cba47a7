"""When machines are looked at: the schedule, the sensor between its times, and the checks on demand.

What belongs here: deciding whether a look is worth a run.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    JobDefinition,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    multi_asset_check,
    schedule,
    sensor,
)

from ops_pipeline.database.engine import reading
from ops_pipeline.defs.hypervisor.machine_checks import check_results, check_specs
from ops_pipeline.defs.hypervisor.machines import JOB, MACHINES, scene_of
from ops_pipeline.defs.looking import look_first
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.runs import in_flight_text, resting_until
from ops_pipeline.hypervisor.hosts import UNREACHABLE
from ops_pipeline.hypervisor.machines.news import NO_HOSTS, changes_key, news_of, problems_text
from ops_pipeline.hypervisor.machines.plans import plan_statuses
from ops_pipeline.hypervisor.machines.sync import apply, counts_text, look
from ops_pipeline.operations.outcomes import last_details
from ops_pipeline.settings import Settings

QUICK_SECONDS = 5.0
"""The sensor's deadline for a host: one that hangs is left to the schedule, which marks it."""


def status_schedule(settings: Settings, job: JobDefinition) -> ScheduleDefinition:
    """Build the schedule, which looks first, and launches a run when something is to be changed or told."""

    @schedule(
        name=f"{JOB}_schedule",
        job=job,
        cron_schedule=settings.vm_status_interval,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Looks at every host; launches a run when a status differs or there is something new to report.",
    )
    def tick(context: ScheduleEvaluationContext, database: OperationsDatabase) -> RunRequest | SkipReason:
        def find() -> str | None:
            scene = scene_of(settings, database)
            seen = look(scene)
            if not seen.hosts:
                return NO_HOSTS
            planned = plan_statuses(seen, scene.limits)
            with reading(database.engine) as connection:
                told = last_details(connection, JOB).get("findings_key", "")
            news = news_of(seen, planned, told)
            rest = resting_until(context.instance, JOB, datetime.now(UTC)) if news.problems else None
            if news.changes or news.findings or news.hosts or (news.problems and rest is None):
                return None
            # Observations, and how many looks have missed a domain, need no run.
            apply(scene, seen, planned)
            return problems_text(planned.problems) if news.problems else counts_text(seen, planned)

        return look_first(context.instance, JOB, find)

    return tick


def events_sensor(settings: Settings) -> SensorDefinition:
    """Build the sensor that sees changes made outside the platform within seconds."""

    @sensor(
        name="vm_events_sensor",
        # By name: a sensor that holds a job made of ops is copied when resources are bound, and warns of a beta then.
        job_name=JOB,
        minimum_interval_seconds=settings.vm_events_seconds,
        default_status=DefaultSensorStatus.RUNNING,
        description="Looks at the hosts every few seconds, so that what happens outside the platform is known soon.",
    )
    def sense(context: SensorEvaluationContext, database: OperationsDatabase) -> SensorResult:
        busy = in_flight_text(context.instance, JOB)
        if busy:
            return SensorResult(skip_reason=SkipReason(busy), cursor=context.cursor)
        scene = scene_of(settings, database)
        quick = replace(scene, deadline_seconds=min(QUICK_SECONDS, scene.deadline_seconds))
        seen = look(quick, lambda host: host.state != UNREACHABLE)
        if not seen.hosts:
            return SensorResult(skip_reason=SkipReason(NO_HOSTS), cursor=context.cursor)
        planned = plan_statuses(seen, scene.limits)
        key = changes_key(planned)
        if not planned.changes:
            return SensorResult(skip_reason=SkipReason(counts_text(seen, planned)), cursor="")
        if key == context.cursor:
            # A run that could not write them would otherwise be launched every few seconds; the schedule tries again.
            return SensorResult(skip_reason=SkipReason("A run was launched for these changes already."), cursor=key)
        return SensorResult(run_requests=[RunRequest()], cursor=key)

    return sense


def status_checks(settings: Settings) -> AssetChecksDefinition:
    """Build the checks for whoever runs them by hand; every run of the job tells their results too."""

    @multi_asset_check(
        name="machines_checks", specs=check_specs(MACHINES), description="Looks at every host and writes nothing."
    )
    def machines_checks(database: OperationsDatabase) -> Iterator[AssetCheckResult]:
        scene = scene_of(settings, database)
        seen = look(scene)
        for name, result in check_results(seen, plan_statuses(seen, scene.limits)).items():
            yield result._replace(check_name=name)

    return machines_checks
