"""All usage definitions of a deployment, and the file that one of them needs; nothing else belongs here."""

from dagster import Definitions

from ops_pipeline.defs.usage.calls import alarm_check, calls_asset
from ops_pipeline.defs.usage.catch_up import catch_up_schedule, missed_hours_sensor
from ops_pipeline.defs.usage.hourly import NAME, hourly_asset
from ops_pipeline.defs.usage.jobs import usage_job
from ops_pipeline.defs.usage.model_status import (
    check_job,
    check_schedule,
    failing_models_sensor,
    models_check,
    statuses_asset,
)
from ops_pipeline.defs.usage.partition_status import partition_status_sensor
from ops_pipeline.defs.usage.partitions import usage_partitions
from ops_pipeline.defs.usage.report import REPORT, report_asset
from ops_pipeline.defs.usage.rollups import DAILY, MONTHLY, rollup_assets
from ops_pipeline.defs.usage.sensors import late_model_calls_sensor, usage_rollups_sensor
from ops_pipeline.defs.usage.stale import cleanup_job, cleanup_schedule, stale_policy
from ops_pipeline.settings import Settings, SettingsError, secret_variable
from ops_pipeline.strict_yaml import FileRefused
from ops_pipeline.usage.probes.targets import Probes, read_probes


def load_probes(settings: Settings) -> Probes | None:
    """The models to probe; None when no file is named.

    Raises:
        SettingsError: the file cannot be used.
    """
    if settings.model_probes_file is None:
        return None
    try:
        return read_probes(settings.model_probes_file, secret_variable)
    except FileRefused as error:
        raise SettingsError(str(error)) from None


def usage_defs(settings: Settings) -> Definitions:
    """Build assets, jobs, the schedule and the sensors."""
    partitions = usage_partitions(settings.model_call_stats_start)
    hourly = hourly_asset(settings, partitions)
    daily, monthly = rollup_assets(settings, partitions)
    hours_job = usage_job(NAME, "Aggregates a range of hours from the raw calls.")
    period_jobs = [
        usage_job(DAILY, "Sums a range of days from their hours."),
        usage_job(MONTHLY, "Sums months from their days."),
        usage_job(REPORT, "Makes the reports of a range of days."),
    ]
    cleanup = cleanup_job(settings)
    probes = load_probes(settings)
    check = check_job(probes)
    return Definitions(
        assets=[calls_asset(), hourly, daily, monthly, report_asset(settings, partitions), statuses_asset()],
        asset_checks=[alarm_check(stale_policy(settings)), models_check()],
        jobs=[hours_job, *period_jobs, cleanup, check],
        schedules=[
            catch_up_schedule(settings, hours_job),
            cleanup_schedule(settings, cleanup),
            check_schedule(settings, check, probes),
        ],
        sensors=[
            missed_hours_sensor(settings, hours_job),
            late_model_calls_sensor(settings, hours_job),
            usage_rollups_sensor(settings, period_jobs),
            failing_models_sensor(probes),
            partition_status_sensor({"hour": hourly, "day": daily, "month": monthly}),
        ],
    )
