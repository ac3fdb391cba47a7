"""When machines are looked at: the schedule, the sensor between its times, and the checks on demand.

What belongs here: deciding whether a look is worth a run.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetObservation,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    JobDefinition,
    MetadataValue,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    multi_asset_check,
    schedule,
    sensor,
)

from ops_pipeline.database.engine import reading
from ops_pipeline.defs.hypervisor.machine_checks import check_results, check_specs
from ops_pipeline.defs.hypervisor.machines import JOB, MACHINES, plan_text, scene_of
from ops_pipeline.defs.looking import TICK_SECONDS, look_first
from ops_pipeline.defs.metadata import outcome_metadata
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.runs import in_flight_text, resting_until
from ops_pipeline.hypervisor.hosts import UNREACHABLE
from ops_pipeline.hypervisor.machines.news import NO_HOSTS, news_of, problems_text
from ops_pipeline.hypervisor.machines.plans import StatusPlan, plan_statuses
from ops_pipeline.hypervisor.machines.sync import Applied, apply, apply_changes, counts_text, look, outcome_of
from ops_pipeline.operations.outcomes import last_details, record_outcome
from ops_pipeline.reconcile import counted
from ops_pipeline.settings import Settings

SENSOR = "vm_events_sensor"
MOST_CHANGES = 100
"""More changes than this at once are left to a run, which shows them all."""
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
            scene = replace(scene_of(settings, database), total_seconds=TICK_SECONDS)
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
    """Build the sensor that sees changes made outside the platform within seconds.

    It writes a few changes itself, under the same rules, limits and guards as the job: a run would take longer to
    start than all the rest. What is more than a few, and what only needs to be told, is left to runs.
    """

    @sensor(
        name=SENSOR,
        # By name: a sensor that holds a job made of ops is copied when resources are bound, and warns of a beta then.
        job_name=JOB,
        minimum_interval_seconds=settings.vm_events_seconds,
        default_status=DefaultSensorStatus.RUNNING,
        description="Looks at the hosts every few seconds, so that what happens outside the platform is known soon.",
    )
    def sense(context: SensorEvaluationContext, database: OperationsDatabase) -> RunRequest | SkipReason:
        busy = in_flight_text(context.instance, JOB)
        if busy:
            return SkipReason(busy)
        started = datetime.now(UTC)
        scene = scene_of(settings, database)
        deadline_seconds = min(QUICK_SECONDS, scene.deadline_seconds)
        quick = replace(scene, deadline_seconds=deadline_seconds, total_seconds=TICK_SECONDS)
        seen = look(quick, lambda host: host.state != UNREACHABLE)
        if not seen.hosts:
            return SkipReason(NO_HOSTS)
        planned = plan_statuses(seen, scene.limits)
        if not planned.changes:
            return SkipReason(counts_text(seen, planned))
        if len(planned.changes) > MOST_CHANGES:
            return RunRequest()
        applied = apply_changes(scene, seen, planned)
        return SkipReason(_tell(context, database, started, planned, applied))

    return sense


def _tell(
    context: SensorEvaluationContext,
    database: OperationsDatabase,
    started: datetime,
    planned: StatusPlan,
    applied: Applied,
) -> str:
    """Show what was written without a run: on the asset, and in `job_outcomes` under the sensor's name."""
    outcome = replace(outcome_of(planned, applied), failed=0)
    changes = [f"{one.label}: {one.write.before} -> {one.write.after}" for one in planned.changes]
    record_outcome(
        database.engine, job=SENSOR, run_id="", started_at=started, outcome=outcome, details={"changes": changes}
    )
    changed = counted(applied.changed, "machine")
    words = f"{changed} changed, {applied.skipped} by others meanwhile: {', '.join(changes[:10])}."
    metadata = {**outcome_metadata(outcome), "changes": MetadataValue.md(plan_text(planned))}
    context.instance.report_runless_asset_event(AssetObservation(MACHINES, description=words, metadata=metadata))
    return words


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
