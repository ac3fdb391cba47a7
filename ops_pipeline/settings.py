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


def _listed(value: Any) -> Any:
    """Read `a,b`."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _days_by_thread(value: Any) -> Any:
    """Read `user-42-*=7,vip-*=365`."""
    if not isinstance(value, str):
        return value
    found: dict[str, float] = {}
    for part in _listed(value):
        pattern, _, days = part.rpartition("=")
        try:
            found[pattern] = float(days)
        except ValueError:
            found[pattern] = 0
        if not pattern or not 0 < found[pattern] <= 36_500:
            raise ValueError(f"{part!r} gives no days for a pattern of threads; write for example user-42-*=7")
    return found


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
    checkpoint_redis_url: SecretStr = Field(
        default=SecretStr(""),
        description="The Redis that holds LangGraph checkpoints; empty for NAUTOBOT_REDIS_HOST and the three after it.",
    )
    nautobot_redis_host: str = Field(default="", description="Host of that Redis; without it and a URL the job is off.")
    nautobot_redis_port: int = Field(default=6379, ge=1, le=65_535, description="Its port.")
    nautobot_redis_password: SecretStr = Field(default=SecretStr(""), description="Its password.")
    langgraph_redis_db: int = Field(default=2, ge=0, le=100_000, description="The number of its database.")
    checkpoint_cleanup_cron_time: CronText = Field(default="0 3 * * *", description="When checkpoints are cleaned up.")
    checkpoint_retention_days: float = Field(
        default=30, gt=0, le=36_500, description="Threads whose newest checkpoint is older go as a whole."
    )
    checkpoint_retention_by_thread: Annotated[dict[str, float], NoDecode, BeforeValidator(_days_by_thread)] = Field(
        default={}, description="Other retentions by pattern of thread ids, as in user-42-*=7,vip-*=365."
    )
    checkpoint_pinned_threads: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = Field(
        default=(), description="Threads that never go: ids or patterns, separated by commas."
    )
    checkpoint_grace_hours: float = Field(
        default=24, ge=0, le=8784, description="Keys younger than this never go, orphans included."
    )
    checkpoint_keep_newest: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Of live threads keep so many checkpoints; unset keeps all."
    )
    checkpoint_trim_days: float = Field(
        default=1, ge=0, le=36_500, description="And those younger than this, of live threads that are trimmed."
    )
    checkpoint_memory_limit_mb: int | None = Field(
        default=None, ge=1, description="Above so much memory in use the shorter retention counts; unset for never."
    )
    checkpoint_short_retention_days: float = Field(
        default=7, gt=0, le=36_500, description="The retention above the memory limit; never below the floor."
    )
    checkpoint_retention_floor_days: float = Field(
        default=7, gt=0, le=36_500, description="No shortage of memory makes the retention shorter than this."
    )
    checkpoint_max_share: float = Field(
        default=0.8, gt=0, le=1, description="A sweep that would delete a larger share of the threads is refused."
    )
    checkpoint_time_budget_seconds: int = Field(
        default=600, ge=1, le=86_400, description="After so many seconds a sweep stops and says what is left."
    )
    checkpoint_prefix: str = Field(default="checkpoint", min_length=1, description="What checkpoint keys begin with.")
    checkpoint_write_prefix: str = Field(
        default="checkpoint_write", min_length=1, description="What keys of pending writes begin with."
    )
    checkpoint_scan_replicas: bool = Field(default=False, description="Scan replicas instead of primaries.")
    services_file: Path | None = Field(default=None, description="The YAML file of known host services.")
    services_interval: CronText = Field(default="*/5 * * * *", description="When host services are looked at.")
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
