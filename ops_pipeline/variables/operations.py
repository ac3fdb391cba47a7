"""The variables of the deployment itself: alerts and housekeeping."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from ops_pipeline.variables.types import CronText, MailAddress, MailAddresses, days_by_name, url_of

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
    """Who is told what is wrong, and how long Dagster's own history is kept."""

    alert_webhook_url: Annotated[SecretStr, AfterValidator(url_of("https", "http"))] = Field(
        default=SecretStr(""), description="Where alerts are posted as JSON."
    )
    alert_webhook_format: Literal["webhook", "slack", "teams"] = Field(
        default="webhook", description="What is spoken there: webhook (generic JSON), slack or teams."
    )
    alert_email_to: MailAddresses = Field(default=(), description="Who gets alerts by mail, separated by commas.")
    alert_email_from: MailAddress = Field(
        default="", description="The sender of such mail; default: the first of those."
    )
    alert_smtp_url: Annotated[SecretStr, AfterValidator(url_of("smtp", "smtps"))] = Field(
        default=SecretStr(""), description="The mail server: smtp://user:password@host:587 or smtps://…; default local."
    )
    alert_apprise_url: SecretStr = Field(default=SecretStr(""), description="Any URL of the library Apprise.")
    alerts_file: Path | None = Field(default=None, description="The YAML file of further channels and of routes.")
    alert_after_failures: int = Field(
        default=1, ge=1, le=1000, description="After how many failed runs in a row a job is told of."
    )
    alert_remind_hours: float = Field(
        default=24, gt=0, le=8784, description="The pause between two messages about the same cause."
    )
    alert_max_per_hour: int = Field(
        default=30, ge=1, le=10_000, description="Messages per channel and hour; more go as one digest."
    )
    alert_ui_url: Annotated[str, AfterValidator(url_of("https", "http"))] = Field(
        default="", description="The address of the web UI, for links in messages."
    )
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
