"""What one run of maintenance may be told, pass by pass.

What belongs here: the run config, and how it and the variables become options of a pass.
"""

from datetime import timedelta
from typing import TypeVar

from dagster import Config, OpExecutionContext
from pydantic import Field

from ops_pipeline.passes import Options
from ops_pipeline.reconcile import SafetyLimit
from ops_pipeline.settings import Settings
from ops_pipeline.variables.types import duration_of

Otherwise = TypeVar("Otherwise")


class PassConfig(Config):
    """What one run of a pass may do; whatever is left out is as the variables say."""

    enabled: bool | None = Field(default=None, description="Whether the pass runs. Left out: as its variable says.")
    dry_run: bool = Field(default=False, description="Plan and show, write nothing.")
    max_count: int | None = Field(
        default=None, description="At most so many deletions or ends. Left out: MAINTENANCE_MAX_DELETIONS."
    )
    max_share: float | None = Field(
        default=None, description="At most this share of what was looked at, 0 to 1. Left out: MAINTENANCE_MAX_SHARE."
    )
    time_budget_seconds: int | None = Field(
        default=None, description="Stop after so long. Left out: MAINTENANCE_TIME_BUDGET_SECONDS."
    )


class ApplicationsConfig(PassConfig):
    """What a run may do to applications."""

    retention: str = Field(
        default="",
        description="Missing for so long before it goes: '7' (days), '12h'. Empty: ORPHAN_APP_RETENTION_DAYS.",
    )
    max_newly_missing_share: float | None = Field(
        default=None,
        description="At most this share may be newly missing, 0 to 1. Left out: ORPHAN_APP_MAX_NEWLY_MISSING_SHARE.",
    )
    adopt_root: bool = Field(
        default=False, description="Believe the root of applications, whatever its marker and device were before."
    )


class OrphansConfig(PassConfig):
    """What a run may do to tasks without an application."""

    grace: str = Field(
        default="", description="Tasks younger than this stay: '5' (minutes), '1h'. Empty: GRACE_PERIOD_MINUTES."
    )


class StuckConfig(PassConfig):
    """What a run may do to tasks that nobody works on."""

    running: str = Field(
        default="",
        description="Running for longer than this: '120' (minutes), '2h'. Empty: STUCK_TASK_TIMEOUT_MINUTES.",
    )
    pending: str = Field(
        default="",
        description="Waiting for longer than this: '240' (minutes), '4h'. Empty: PENDING_TASK_TIMEOUT_MINUTES.",
    )


class OldTasksConfig(PassConfig):
    """What a run may do to old tasks."""

    retention: str = Field(default="", description="Kept for so long: '30' (days), '12h'. Empty: TASK_RETENTION_DAYS.")


class OldCallsConfig(PassConfig):
    """What a run may do to old calls."""

    retention: str = Field(
        default="", description="Kept for so long: '90' (days), '12h'. Empty: MODEL_CALL_RETENTION_DAYS."
    )


def duration(text: str, unit: str, otherwise: Otherwise) -> timedelta | Otherwise:
    """What the run config says, or else the variable.

    Raises:
        ValueError: it is no duration above zero.
    """
    return duration_of(unit)(text) if text.strip() else otherwise


def options_of(config: PassConfig, settings: Settings, context: OpExecutionContext) -> Options:
    """The options of a pass.

    Raises:
        ValueError: a limit cannot be meant.
    """
    count, share = config.max_count, config.max_share
    budget = config.time_budget_seconds
    if budget is not None and budget < 1:
        raise ValueError(f"time_budget_seconds: {budget} is below one second")
    return Options(
        dry_run=config.dry_run,
        limit=SafetyLimit(
            count=settings.maintenance_max_deletions if count is None else count,
            share=settings.maintenance_max_share if share is None else share,
        ),
        budget_seconds=budget or settings.maintenance_time_budget_seconds,
        run_id=context.run_id,
        told=context.log.info,
    )
