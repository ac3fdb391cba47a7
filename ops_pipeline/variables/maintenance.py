"""The variables of maintenance with grace periods."""

from __future__ import annotations

from pydantic import BaseModel, Field


class MaintenanceVariables(BaseModel):
    """When maintenance runs by itself."""

    maintenance_auto_start: bool = Field(default=False, description="Whether maintenance runs without being asked.")
    maintenance_interval_seconds: int = Field(
        default=3600, ge=60, le=2_592_000, description="The pause between two runs of maintenance by itself."
    )
