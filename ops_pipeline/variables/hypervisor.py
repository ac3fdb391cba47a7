"""The variables of virtualisation: hosts, machines, GPUs and network filters."""

from __future__ import annotations

from pydantic import BaseModel, Field

from ops_pipeline.variables.types import CronText


class HypervisorVariables(BaseModel):
    """What the jobs that talk to libvirt are told."""

    libvirt_uri: str = Field(
        default="", description="libvirt of the host `local`, while hypervisor_hosts has no row; empty for none."
    )
    vm_status_interval: CronText = Field(default="*/1 * * * *", description="When the status of machines is compared.")
    graphics_interval: CronText = Field(default="0 */6 * * *", description="When GPUs are looked for.")
    firewall_interval: CronText = Field(default="0 */1 * * *", description="When network filters are compared.")
