"""The variables of virtualisation: hosts, machines, GPUs and network filters."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

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
    network_filter_prefix: str = Field(
        default="ibay-",
        pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{1,40}$",
        description="What the names of this platform's filters begin with; no other filter is ever touched.",
    )
    network_filter_orphan_hours: float = Field(
        default=24, ge=0, le=8784, description="How long a filter must have been an orphan before it is removed."
    )
    network_filter_max_removals: int = Field(
        default=50, ge=0, le=100_000, description="So many orphans of one host may be removed by one run."
    )
    network_filter_max_removal_share: float = Field(
        default=0.5, ge=0, le=1, description="And at most this share of a host's own filters, from ten of them on."
    )
    network_filter_apply_seconds: int = Field(
        default=300, ge=1, le=3600, description="How long the changes of one host may take before it is given up."
    )

    hypervisor_deadline_seconds: int = Field(
        default=20, ge=1, le=45, description="How long one host may take to answer, in seconds."
    )
    hypervisor_refresh_minutes: int = Field(
        default=15, ge=1, le=1440, description="How old the time of an unchanged observation may become, in minutes."
    )
    vm_stopped_status: Literal["stopped", "off"] = Field(
        default="stopped", description="The platform's word for a machine that its hypervisor shows to be down."
    )
    vm_missing_looks: int = Field(
        default=3, ge=1, le=100, description="So many looks in a row must miss a domain before a machine is down."
    )
    vm_stuck_minutes: int = Field(
        default=60, ge=1, le=43_200, description="The longest that a machine may be starting, moving and the like."
    )
    vm_lock_stuck_minutes: int = Field(
        default=1440, ge=1, le=43_200, description="The longest that a backup, restore, snapshot or capture may take."
    )
    vm_max_down_share: float = Field(
        default=0.5, ge=0, le=1, description="At most this share of a host's machines may go down in one look."
    )
    vm_max_down_minimum: int = Field(
        default=10, ge=1, le=1_000_000, description="Below so many machines of a host that share is not applied."
    )
    vm_events_seconds: int = Field(
        default=3,
        ge=1,
        le=300,
        description="How often machines are looked at between the schedule's times, in seconds.",
    )
    graphics_missing_scans: int = Field(
        default=3, ge=1, le=1000, description="After so many good looks without a GPU what hangs on it goes."
    )
    graphics_missing_gap_seconds: int = Field(
        default=3600, ge=0, le=604_800, description="Looks closer together than this count as one."
    )
    graphics_allow_boot_vga: bool = Field(
        default=False, description="Whether the GPU that a host's own console uses may be handed out."
    )

    def hypervisor_refresh(self) -> timedelta:
        """How old the time of an unchanged observation may become."""
        return timedelta(minutes=self.hypervisor_refresh_minutes)
