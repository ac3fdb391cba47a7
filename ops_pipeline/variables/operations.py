"""The variables of the deployment's own housekeeping."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_settings import NoDecode

from ops_pipeline.variables.types import CronText, days_by_name

OFTEN = 3.0
MONTHS = 180.0
RUN_RETENTION_DAYS_BY_JOB = {
    # Every minute, or as long as there is work: what they did stands in the operations database.
    "update_vm_status": OFTEN,
    "execute_analysis_tasks": OFTEN,
    "recover_analysis_tasks": OFTEN,
    "advance_pipelines": OFTEN,
    "hourly_model_usage_job": MONTHS,
    "daily_model_usage_job": MONTHS,
    "monthly_model_usage_job": MONTHS,
}


class OperationsVariables(BaseModel):
    """How long Dagster's own history is kept."""

    prune_dagster_storage_cron_time: CronText = Field(
        default="30 4 * * *", description="When runs beyond their retention are deleted from Dagster's storage."
    )
    run_retention_days: float = Field(default=30, gt=0, le=36_500, description="For how many days runs are kept.")
    run_retention_days_by_job: Annotated[
        dict[str, float], NoDecode, BeforeValidator(days_by_name("update_vm_status=3,run_maintenance=90"))
    ] = Field(default=RUN_RETENTION_DAYS_BY_JOB, description="Other retentions by job; these replace the default ones.")
    prune_dagster_storage_budget_seconds: int = Field(
        default=600, ge=1, le=86_400, description="After so many seconds pruning stops and says what is left."
    )
