"""The definitions of virtualisation, put together.

What belongs here: nothing but that.
"""

from dagster import Definitions

from ops_pipeline.defs.hypervisor.firewall import firewall_defs
from ops_pipeline.defs.hypervisor.graphics import graphics_defs
from ops_pipeline.defs.hypervisor.machine_ticks import events_sensor, status_checks, status_schedule
from ops_pipeline.defs.hypervisor.machines import machines_asset, status_job
from ops_pipeline.settings import Settings


def hypervisor_defs(settings: Settings) -> Definitions:
    """Build the jobs, schedules, sensors and assets of virtualisation."""
    return Definitions.merge(machines_defs(settings), firewall_defs(settings), graphics_defs(settings))


def machines_defs(settings: Settings) -> Definitions:
    """Build what keeps the status of machines."""
    status = status_job(settings)
    return Definitions(
        assets=[machines_asset()],
        asset_checks=[status_checks(settings)],
        jobs=[status],
        schedules=[status_schedule(settings, status)],
        sensors=[events_sensor(settings)],
    )
