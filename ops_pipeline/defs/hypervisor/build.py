"""The definitions of virtualisation, put together.

What belongs here: nothing but that.
"""

from dagster import Definitions

from ops_pipeline.defs.hypervisor.firewall import firewall_defs
from ops_pipeline.settings import Settings


def hypervisor_defs(settings: Settings) -> Definitions:
    """Build the jobs, schedules, sensors and assets of virtualisation."""
    return Definitions.merge(firewall_defs(settings))
