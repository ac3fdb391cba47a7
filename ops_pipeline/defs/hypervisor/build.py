"""The definitions of virtualisation, put together.

What belongs here: nothing but that.
"""

from dagster import Definitions

from ops_pipeline.settings import Settings


def hypervisor_defs(settings: Settings) -> Definitions:
    """Build the jobs, schedules, sensors and assets of virtualisation."""
    del settings
    return Definitions()
