"""The variables of the clean-up of LangGraph checkpoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from ops_pipeline.variables.types import CronText, TextTuple, days_by_name

DaysByThread = Annotated[dict[str, float], NoDecode, BeforeValidator(days_by_name("user-42-*=7"))]


class CheckpointVariables(BaseModel):
    """What the sweep is told."""

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
    checkpoint_retention_by_thread: DaysByThread = Field(
        default={}, description="Other retentions by pattern of thread ids, as in user-42-*=7,vip-*=365."
    )
    checkpoint_pinned_threads: TextTuple = Field(
        default=(), description="Threads that never go: ids or patterns, separated by commas."
    )
    checkpoint_grace_hours: float = Field(
        default=24, ge=0, le=8784, description="Keys younger than this never go, orphans included."
    )
    checkpoint_in_use_minutes: float = Field(
        default=10,
        ge=0,
        le=1440,
        description="Idle threads whose newest checkpoint was read within so many minutes stay; 0 looks at no reads.",
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
