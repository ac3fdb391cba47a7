"""The variables of LLM usage: hours, late calls, stale calls, model status and reports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from ops_pipeline.database.types import parse_instant
from ops_pipeline.variables.types import CronText

CALL_TYPES = ("chatCompletion", "embedding", "imageGeneration", "audioGeneration", "video", "custom")
DEFAULT_START = datetime(2026, 1, 1, tzinfo=UTC)


def _on_the_hour(value: datetime) -> datetime:
    if value.timestamp() % 3600:
        raise ValueError(f"{value.isoformat()} does not lie on a full UTC hour; write for example 2026-01-01T00:00Z")
    return value


def _minutes_by_type(value: Any) -> Any:
    """Read `video=120,imageGeneration=45`."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    for type_, equals, minutes in pairs:
        if type_.strip() not in CALL_TYPES or not equals or not minutes.strip().isdigit():
            raise ValueError(
                f"{value!r} does not name types of calls with minutes; write for example video=120,imageGeneration=45."
                f" The types are {', '.join(CALL_TYPES)}"
            )
    return {type_.strip(): int(minutes) for type_, _, minutes in pairs}


class UsageVariables(BaseModel):
    """What metering is told."""

    model_call_stats_cron_time: CronText = Field(default="0 * * * *", description="When hours are aggregated.")
    model_call_stats_start: Annotated[datetime, AfterValidator(_on_the_hour)] = Field(
        default=DEFAULT_START, description="The first hourly partition, a full UTC hour."
    )
    model_calls_pruned_before: Annotated[datetime, AfterValidator(_on_the_hour)] | None = Field(
        default=None, description="Raw calls before this full UTC hour were pruned: those hours are never made again."
    )
    model_call_stats_max_range_hours: int = Field(
        default=744, ge=1, le=8784, description="The longest range of hours that one catch-up run does."
    )
    model_call_stats_max_attempts: int = Field(
        default=3, ge=1, le=100, description="How often an hour may fail before it waits for a person."
    )
    late_model_calls_overlap_seconds: int = Field(
        default=300, ge=0, le=86_400, description="How far back each look for late calls goes over the last one."
    )
    late_model_calls_sweep_seconds: int = Field(
        default=600, ge=30, le=86_400, description="The pause between two sweeps for deleted calls."
    )
    late_model_calls_sweep_hours: int = Field(
        default=168, ge=1, le=8784, description="Hours counted per sweep: the newest as many, and as many older ones."
    )
    cleanup_stale_model_calls_cron_time: CronText = Field(
        default="*/5 * * * *", description="When stale calls are looked for."
    )
    stale_model_call_minutes: int = Field(
        default=30, ge=1, le=10_080, description="After how many minutes a processing call is stale."
    )
    stale_model_call_minutes_by_type: Annotated[
        dict[str, Annotated[int, Field(ge=1, le=10_080)]], NoDecode, BeforeValidator(_minutes_by_type)
    ] = Field(default={"video": 120}, description="Other limits by type of call, as in video=120,imageGeneration=45.")
    stale_model_calls_alarm_share: float = Field(
        default=0.2, gt=0, le=1, description="From which share of the recent calls on time-outs raise an alarm."
    )
    check_model_status_cron_time: CronText = Field(
        default="0 */6 * * *", description="When models are probed, once the schedule is switched on."
    )
    model_probes_file: Path | None = Field(default=None, description="The YAML file of models to probe.")
    usage_report_days: int = Field(
        default=7, ge=0, le=366, description="For how many days back a report is made without being asked for."
    )
    reports_dir: Path | None = Field(
        default=None, description="Where reports are written; default DAGSTER_HOME/reports."
    )

    @field_validator("model_call_stats_start", "model_calls_pruned_before", mode="before")
    @classmethod
    def _instant(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not value.strip():
            return None
        try:
            return parse_instant(value)
        except ValueError as error:
            raise ValueError(f"{value!r} is no time; write for example 2026-01-01T00:00Z") from error

    def late_overlap(self) -> timedelta:
        """The overlap of looks for late calls."""
        return timedelta(seconds=self.late_model_calls_overlap_seconds)
