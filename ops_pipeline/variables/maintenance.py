"""The variables of maintenance with grace periods."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from ops_pipeline.variables.types import duration_of

Days = Annotated[timedelta, BeforeValidator(duration_of("days"))]
Minutes = Annotated[timedelta, BeforeValidator(duration_of("minutes"))]


class MaintenanceVariables(BaseModel):
    """When maintenance runs by itself, what it cleans up, and after how long."""

    maintenance_auto_start: bool = Field(default=False, description="Whether maintenance runs without being asked.")
    maintenance_interval_seconds: int = Field(
        default=3600, ge=60, le=2_592_000, description="The pause between two runs of maintenance by itself."
    )
    maintenance_archive: str = Field(
        default="",
        description="Where archives are written: a folder, or an fsspec URL; empty for DAGSTER_HOME/archive.",
    )
    maintenance_time_budget_seconds: int = Field(
        default=600, ge=1, le=86_400, description="After so many seconds a pass stops and says what is left."
    )
    maintenance_look_seconds: int = Field(
        default=60, ge=1, le=3600, description="How long a look at the root of applications may take."
    )
    maintenance_max_deletions: int = Field(
        default=100_000, ge=0, le=1_000_000_000, description="A pass that would delete or end more is refused."
    )
    maintenance_max_share: float = Field(
        default=0.5, gt=0, le=1, description="And one that would delete or end a larger share, of at least ten."
    )
    cleanup_orphan_apps: bool = Field(default=True, description="Whether applications without a directory go.")
    cleanup_orphan_tasks: bool = Field(default=True, description="Whether tasks without an application are cancelled.")
    cleanup_stuck_tasks: bool = Field(default=True, description="Whether tasks that nobody works on are ended.")
    cleanup_old_tasks: bool = Field(default=True, description="Whether old tasks are archived and deleted.")
    orphan_app_retention_days: Days = Field(
        default=timedelta(days=7), description="How long an application may be missing before it goes."
    )
    orphan_app_max_newly_missing_share: float = Field(
        default=0.2, gt=0, le=1, description="A look that finds a larger share newly missing, of ten, is refused."
    )
    stuck_task_timeout_minutes: Minutes = Field(
        default=timedelta(minutes=120), description="How long a task may run without a live lease."
    )
    pending_task_timeout_minutes: Minutes = Field(
        default=timedelta(minutes=240), description="How long a task may wait for nothing."
    )
    grace_period_minutes: Minutes = Field(
        default=timedelta(minutes=5), description="How young tasks may lack their application."
    )
    task_retention_days: Days = Field(
        default=timedelta(days=30), description="How long tasks are kept after their end, with all that is theirs."
    )
    model_call_retention_days: Days | None = Field(
        default=None, description="How long raw model calls are kept; unset keeps them for ever."
    )
