"""What Dagster is doing at the moment: which partitions of an asset are queued or running.

What belongs here: questions to the Dagster instance that several domains ask, and how range runs are requested.
"""

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from operator import itemgetter
from typing import Any

from dagster import AssetKey, DagsterInstance, DagsterRun, DagsterRunStatus, RunRequest, RunsFilter
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    MAX_RUNTIME_SECONDS_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
)

JOB_TAG = "ops_pipeline/job"
"""Limits every job to one run at a time, by `tag_concurrency_limits` in dagster.yaml."""
MAX_RUNTIME_SECONDS = 900
"""A month of 5 million calls takes a minute. A run whose process was killed looks alive until this is over."""

UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE]


def ranges_in_flight(instance: DagsterInstance, asset: AssetKey, job_name: str) -> list[tuple[str, str]]:
    """First and last partition key of every unfinished run that includes an asset."""
    runs = instance.get_runs(filters=RunsFilter(statuses=UNFINISHED))
    keys = (_range(run) for run in runs if run.job_name == job_name or asset in (run.asset_selection or ()))
    return [pair for pair in keys if pair is not None]


def _range(run: DagsterRun) -> tuple[str, str] | None:
    single = run.tags.get(PARTITION_NAME_TAG)
    if single:
        return single, single
    first, last = run.tags.get(ASSET_PARTITION_RANGE_START_TAG), run.tags.get(ASSET_PARTITION_RANGE_END_TAG)
    return (first, last) if first and last else None


def keys_in_backfills(instance: DagsterInstance, asset: AssetKey) -> set[str]:
    """Partition keys of an asset in asset backfills that are still at work, launched from the UI for example."""
    active = instance.get_backfills(
        filters=BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING])
    )
    keys: set[str] = set()
    for backfill in active:
        data = backfill.asset_backfill_data
        if data is not None and asset in data.target_subset.partitions_subsets_by_asset_key:
            keys |= set(data.target_subset.partitions_subsets_by_asset_key[asset].get_partition_keys())
    return keys


def range_request(
    job_name: str,
    first: str,
    last: str,
    *,
    run_config: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    priority: int = 0,
) -> RunRequest:
    """Ask for one run over a range of partitions, both ends included."""
    tags = {
        ASSET_PARTITION_RANGE_START_TAG: first,
        ASSET_PARTITION_RANGE_END_TAG: last,
        JOB_TAG: job_name,
        PRIORITY_TAG: str(priority),
        MAX_RUNTIME_SECONDS_TAG: str(MAX_RUNTIME_SECONDS),
    }
    return RunRequest(run_key=run_key, job_name=job_name, run_config=run_config or {}, tags=tags)


def job_tags(job_name: str, longest_seconds: float = MAX_RUNTIME_SECONDS) -> dict[str, str]:
    """The tags of every run of a job: it does not overlap itself, and does not hang for ever."""
    return {JOB_TAG: job_name, MAX_RUNTIME_SECONDS_TAG: str(max(MAX_RUNTIME_SECONDS, round(longest_seconds)))}


def in_flight_text(instance: DagsterInstance, job_name: str) -> str | None:
    """Why a schedule leaves a job alone because a run of it has not ended; None when there is no such run."""
    (run, *_) = instance.get_runs(RunsFilter(job_name=job_name, statuses=UNFINISHED), limit=1) or (None,)
    return f"{job_name} is {run.status.value.lower()} (run {run.run_id[:8]})." if run else None


def resting_until(instance: DagsterInstance, job_name: str, now: datetime) -> datetime | None:
    """Until when sensors leave a job alone because its last runs failed; None when it may run.

    A sensor asks again every half minute for what is not done: without a rest that grows, a job that cannot
    succeed would fail 3,000 times a day.
    """
    records = instance.get_run_records(RunsFilter(job_name=job_name, statuses=FINISHED), limit=12)
    failures = list(takewhile(lambda record: record.dagster_run.status == DagsterRunStatus.FAILURE, records))
    if not failures:
        return None
    ended = max(record.end_time or record.update_timestamp.timestamp() for record in failures)
    lives = [
        (one.start_time or one.create_timestamp.timestamp(), one.end_time or one.update_timestamp.timestamp())
        for one in failures
    ]
    until = datetime.fromtimestamp(ended, UTC) + rest_after(failed_tries(lives))
    return until if until > now else None


def failed_tries(lives: Iterable[tuple[float, float]]) -> int:
    """How often a job was tried anew: runs that lived at the same time failed as one.

    A machine that dies takes all of its workers along: four failures rested for eight minutes, with nobody at work.

    Args:
        lives: begin and end of failed runs, in Unix seconds.
    """
    tries, known = 0, -math.inf
    for began, ended in sorted(lives, key=itemgetter(1)):
        if began >= known:
            tries, known = tries + 1, ended
    return tries


def rest_after(failures: int) -> timedelta:
    """The rest after so many failed runs in a row: none after one, then 2, 4, 8 minutes and so on up to 6 hours."""
    return timedelta(0) if failures <= 1 else min(timedelta(minutes=2 ** (failures - 1)), timedelta(hours=6))
