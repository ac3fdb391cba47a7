"""The variables of host services."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from ops_pipeline.variables.types import CronText


class ServiceVariables(BaseModel):
    """What the checks of host services are told."""

    services_file: Path | None = Field(default=None, description="The YAML file of known host services.")
    services_interval: CronText = Field(default="*/5 * * * *", description="When host services are looked at.")
