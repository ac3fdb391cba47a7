"""A deployment for tests: definitions over a given database and a Dagster instance.

What belongs here: running jobs and evaluating schedules and sensors through Dagster itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dagster import (
    AssetKey,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
    RunRequest,
    ScheduleDefinition,
    SensorResult,
    SkipReason,
    build_schedule_context,
    build_sensor_context,
)
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from sqlalchemy import Engine

from ops_pipeline.definitions import build_defs
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline_tests.usage.calls import at


@dataclass(frozen=True)
class Deployment:
    """Definitions, their Dagster instance, and the operations database."""

    definitions: Definitions
    instance: DagsterInstance
    engine: Engine

    def run(self, job: str, first: str, last: str | None = None, **config: Any) -> ExecuteInProcessResult:
        """Run a job over a range of partition keys; never raises, look at `success`."""
        asset = job.removesuffix("_job")
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            tags={ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last or first},
            run_config={"ops": {asset: {"config": config}}} if config else None,
            raise_on_error=False,
        )

    def run_job(self, job: str, **config: Any) -> ExecuteInProcessResult:
        """Run a job without partitions, with the config of each op by name; never raises, look at `success`."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            run_config={"ops": {op: {"config": values} for op, values in config.items()}} if config else None,
            raise_on_error=False,
        )

    def run_requests(self, requests: Sequence[RunRequest], default_job: str = "hourly_model_usage_job") -> list[bool]:
        """Do what a schedule or sensor asked for; whether each run succeeded."""
        return [
            self.definitions.resolve_job_def(request.job_name or default_job)
            .execute_in_process(
                instance=self.instance,
                tags=dict(request.tags),
                run_config=dict(request.run_config or {}),
                raise_on_error=False,
            )
            .success
            for request in requests
        ]

    def tick(self, schedule: str, time: datetime) -> list[RunRequest] | SkipReason:
        """Evaluate a schedule as the daemon does."""
        definition: ScheduleDefinition = self.definitions.resolve_schedule_def(schedule)
        resources = {"database": self.database()}
        with build_schedule_context(self.instance, scheduled_execution_time=time, resources=resources) as context:
            data = definition.evaluate_tick(context)
        return list(data.run_requests or []) or SkipReason(data.skip_message)

    def sense(self, sensor: str, cursor: str | None = None) -> SensorResult:
        """Evaluate a sensor as the daemon does."""
        definition = self.definitions.resolve_sensor_def(sensor)
        with build_sensor_context(
            self.instance,
            cursor=cursor,
            resources={"database": self.database()},
            definitions=self.definitions,
            sensor_name=sensor,
        ) as context:
            data = definition.evaluate_tick(context)
        return SensorResult(
            run_requests=data.run_requests or [],
            skip_reason=SkipReason(data.skip_message) if data.skip_message else None,
            cursor=data.cursor,
        )

    def status(self, asset: str) -> Mapping[str, AssetPartitionStatus | None]:
        """The status of every partition that the UI would show."""
        partitions = self.definitions.resolve_assets_def(asset).partitions_def
        assert partitions is not None
        keys = partitions.get_partition_keys()
        return self.instance.get_status_by_partition(AssetKey(asset), keys, partitions) or {}

    def materialized(self, asset: str) -> list[str]:
        """The partition keys that look done."""
        return [key for key, status in self.status(asset).items() if status == AssetPartitionStatus.MATERIALIZED]

    def database(self) -> OperationsDatabase:
        """The database resource."""
        return OperationsDatabase(url=self.engine.url.render_as_string(hide_password=False))


def deployment(engine: Engine, instance: DagsterInstance, **settings: Any) -> Deployment:
    """Definitions with hours from 2026-03-01 on."""
    values = {"model_call_stats_start": at("2026-03-01 00:00")} | settings
    database = OperationsDatabase(url=engine.url.render_as_string(hide_password=False))
    return Deployment(build_defs(database=database, **values), instance, engine)
