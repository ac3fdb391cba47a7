"""The variables of the analysis lab: task queue, worker and pipelines."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field


class AnalysisVariables(BaseModel):
    """What queue and worker are told."""

    task_poll_interval: int = Field(
        default=10,
        ge=1,
        le=3600,
        description="At most so many seconds (at least 5) between two looks for claimable tasks while no worker lives.",
    )
    task_lease_seconds: int = Field(
        default=60, ge=5, le=3600, description="For how long a worker has its tasks without a sign of life."
    )
    tasks_per_service: int = Field(
        default=5, ge=0, le=100_000, description="Tasks of one service at a time, unless it says otherwise; 0 for any."
    )
    tasks_per_target: int = Field(
        default=0, ge=0, le=100_000, description="Tasks of one application at a time; 0 for any number."
    )
    task_timeout: int = Field(default=1800, ge=1, le=604_800, description="Seconds that one task may take in all.")
    preflight_max_retries: int = Field(
        default=3, ge=0, le=100, description="How often a task waits for a service that is not available."
    )
    transient_failure_max_retries: int = Field(
        default=3, ge=0, le=100, description="How often a task that failed for an unavailable service comes back."
    )
    generated_apps_dir: str = Field(
        default="", description="Where generated applications lie: a folder, or an fsspec URL such as s3://bucket/apps."
    )
    analysis_results_dir: Path | None = Field(
        default=None, description="Where results of tasks are written; default DAGSTER_HOME/results."
    )
