"""Every environment variable: typed, documented, validated once.

What belongs here: names, meanings, defaults and bounds. What does not: reading any of it anywhere else.
A `.env` file in the working directory is read too; variables of the environment win over it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from croniter import croniter
from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ops_pipeline.database.engine import connect, sqlite_url
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.types import parse_instant

CALL_TYPES = ("chatCompletion", "embedding", "imageGeneration", "audioGeneration", "video", "custom")
DEFAULT_START = datetime(2026, 1, 1, tzinfo=UTC)


class SettingsError(Exception):
    """Variables that cannot be used; the message has a line for each, with what to do."""


def _cron(text: str) -> str:
    fields = text.split()
    if len(fields) != 5:
        raise ValueError(
            f"{text!r} has {len(fields)} fields, but a schedule has five: minute hour day-of-month month day-of-week"
            " (there is no field for seconds), for example '0 * * * *'"
        )
    # Strict also finds days that no month has; "r" is another random minute at each look.
    if not croniter.is_valid(text, strict=True) or any(field.lower().startswith("r") for field in fields):
        raise ValueError(f"{text!r} is no cron schedule, write for example '0 * * * *' for every full hour")
    return " ".join(fields)


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


CronText = Annotated[str, AfterValidator(_cron)]


class Settings(BaseSettings):
    """The configuration of one deployment."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", case_sensitive=False, validate_default=True)

    dagster_home: Path = Field(default=Path(".dagster_home"), description="Dagster's folder; holds the embedded data.")
    database_url: SecretStr = Field(
        default=SecretStr(""),
        description="The operations database: postgresql+psycopg://… or sqlite:///…; empty for SQLite in DAGSTER_HOME.",
    )
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

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any, info: ValidationInfo) -> Any:
        # `VARIABLE=` in an .env file means the default, not the empty text.
        if value == "" and info.field_name:
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)
        return value

    @field_validator("database_url")
    @classmethod
    def _usable_url(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            try:
                connect(value.get_secret_value()).dispose()
            except DatabaseProblem as error:
                raise ValueError(str(error)) from None
        return value

    def operations_url(self) -> str:
        """The URL of the operations database, password included: only for connecting."""
        return self.database_url.get_secret_value() or sqlite_url(self.dagster_home)

    def reports_folder(self) -> Path:
        """Where reports are written."""
        return self.reports_dir or self.dagster_home.absolute() / "reports"

    def late_overlap(self) -> timedelta:
        """The overlap of looks for late calls."""
        return timedelta(seconds=self.late_model_calls_overlap_seconds)


def given_variables() -> set[str]:
    """The names of all variables that are set, in the environment or in `.env`."""
    return set(os.environ) | set(dotenv_values(".env"))


def secret_variable(name: str) -> SecretStr | None:
    """The value of a variable that a file names, for example an API key; None when it is not set or empty."""
    value = os.environ.get(name) or dotenv_values(".env").get(name)
    return SecretStr(value) if value else None


def load_settings(**overrides: Any) -> Settings:
    """Read and validate the environment.

    Raises:
        SettingsError: one or more variables cannot be used; no value of a secret is in the message.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [_line(problem) for problem in error.errors(include_input=False, include_url=False)]
        raise SettingsError("\n".join(lines)) from None


def _line(problem: Any) -> str:
    name = "_".join(str(part) for part in problem["loc"]).upper()
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}"
