"""The figures of the jobs themselves, from their outcomes.

What belongs here: SELECTs over `job_outcomes` that stay short when it has a million rows.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, func, select

from ops_pipeline.measuring import Measure
from ops_pipeline.operations.tables import job_outcomes

SETTLED_AFTER = timedelta(minutes=10)
"""Rows older than this have all been committed: a run writes its outcome in one short transaction."""
KINDS = ("scanned", "changed", "skipped", "failed")


class OutcomeTotals:
    """Totals of all outcomes for counters: what is settled is counted once and kept, the rest each time.

    A million rows take half a second to count on SQLite; a scrape must not.
    """

    def __init__(self, jobs: Sequence[str] = ()) -> None:
        """Begin with nothing counted; jobs that had no outcome yet at the first count must be named."""
        self._jobs = set(jobs)
        self._settled_until: datetime | None = None
        self._settled: Counter[tuple[str, ...]] = Counter()
        self._one_at_a_time = threading.Lock()

    def read(self, connection: Connection, now: datetime) -> Counter[tuple[str, ...]]:
        """Totals by (`outcome`, job, status) and by (`objects`, job, kind)."""
        # Two servers of Prometheus scrape at the same moment: both would add what has settled since the last scrape.
        with self._one_at_a_time:
            until = self._settle(connection, now - SETTLED_AFTER)
            jobs, settled = set(self._jobs), Counter(self._settled)
        return settled + self._totals(connection, jobs, until, None)

    def _settle(self, connection: Connection, until: datetime) -> datetime:
        """Count what has settled by then, and keep it; returns until when all is counted.

        Whoever waited for another scrape may come with an older time than that one.
        """
        if self._settled_until is None or until > self._settled_until:
            self._settled += self._totals(connection, self._jobs, self._settled_until, until)
            self._settled_until = until
            self._jobs |= {key[1] for key in self._settled}
        return self._settled_until

    def _totals(
        self, connection: Connection, jobs: Collection[str], after: datetime | None, until: datetime | None
    ) -> Counter[tuple[str, ...]]:
        totals: Counter[tuple[str, ...]] = Counter()
        for row in connection.execute(totals_query(jobs, after, until)):
            totals["outcome", row.job, row.status] += row.runs
            for kind in KINDS:
                totals["objects", row.job, kind] += int(row._mapping[kind])
        return totals


def totals_query(jobs: Collection[str], after: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """Totals by job and status of what ended after `after`, until `until`."""
    outcome = job_outcomes.c
    sums = [func.sum(outcome[kind]).label(kind) for kind in KINDS]
    query = select(outcome.job, outcome.status, func.count().label("runs"), *sums).group_by(outcome.job, outcome.status)
    if after is not None:
        # Named, jobs are found by the index on job and time: a million rows would be read for the last ten minutes.
        query = query.where(outcome.finished_at > after, outcome.job.in_(sorted(jobs)))
    if until is not None:
        query = query.where(outcome.finished_at <= until)
    return query


class JobMeasurer:
    """The measurer of jobs; remembers totals from scrape to scrape."""

    def __init__(self, jobs: Sequence[str]) -> None:
        """Remember which jobs there are: each is looked up by the index, whatever the size of the table."""
        self._jobs = tuple(jobs)
        self._totals = OutcomeTotals(jobs)

    def __call__(self, connection: Connection, now: datetime) -> Sequence[Measure]:
        """The figures of every job, from one snapshot."""
        totals = self._totals.read(connection, now)
        last = {job: row for job in self._jobs if (row := _last(connection, job)) is not None}
        good = {job: row for job in self._jobs if (row := _last(connection, job, "success")) is not None}
        return [
            Measure(
                "ops_pipeline_job_outcomes",
                "Runs of jobs that reported, by how they ended.",
                ("job", "status"),
                {key[1:]: float(count) for key, count in totals.items() if key[0] == "outcome"},
                "counter",
            ),
            Measure(
                "ops_pipeline_job_objects",
                "Objects that jobs scanned, changed, skipped and failed on.",
                ("job", "kind"),
                {key[1:]: float(count) for key, count in totals.items() if key[0] == "objects"},
                "counter",
            ),
            _by_job("last_run_timestamp_seconds", "End of the last run that reported.", last, _ended),
            _by_job("last_success_timestamp_seconds", "End of the last run without failures.", good, _ended),
            _by_job("last_duration_seconds", "Duration of the last run that reported.", last, _duration),
            *_backlogs(last),
            *_checkpoints(last),
        ]


def _last(connection: Connection, job: str, status: str | None = None) -> Any:
    outcome = job_outcomes.c
    query = select(outcome.started_at, outcome.finished_at, outcome.details).where(outcome.job == job)
    if status:
        query = query.where(outcome.status == status)
    return connection.execute(query.order_by(outcome.finished_at.desc()).limit(1)).first()


def _by_job(name: str, help_: str, rows: dict[str, Any], value: Any) -> Measure:
    return Measure(f"ops_pipeline_job_{name}", help_, ("job",), {(job,): value(row) for job, row in rows.items()})


def _ended(row: Any) -> float:
    return row.finished_at.timestamp()


def _duration(row: Any) -> float:
    return (row.finished_at - row.started_at).total_seconds()


def _backlogs(last: dict[str, Any]) -> list[Measure]:
    """What the last runs told of work left: `backlog_seconds` of their details, by pass where there are many."""
    values: dict[tuple[str, ...], float] = {}
    for job, row in last.items():
        told = row.details.get("backlog_seconds") if isinstance(row.details, dict) else None
        if isinstance(told, dict):
            values |= {(job, str(name)): float(seconds) for name, seconds in told.items()}
        elif told is not None:
            values[(job, "")] = float(told)
    help_ = "Age of the oldest thing beyond its limit that the last run of a job left."
    return [Measure("ops_pipeline_job_backlog_seconds", help_, ("job", "pass"), values)]


def _checkpoints(last: dict[str, Any]) -> list[Measure]:
    """What the last sweep found in Redis: nobody counts millions of keys for a scrape."""
    row = last.get("cleanup_checkpoints")
    told = row.details if row is not None and isinstance(row.details, dict) else {}
    keys = {("of_checkpoints",): "matched_keys", ("of_no_known_layout",): "unknown_keys", ("deleted",): "deleted_count"}
    threads = {("found",): "threads", ("removed",): "threads_removed", ("left",): "threads_left"}
    return [
        Measure(
            f"ops_pipeline_checkpoint_{name}",
            f"{name.capitalize()} of checkpoints in Redis, as the last sweep found them.",
            ("state",),
            {state: float(told[one]) for state, one in names.items() if one in told},
        )
        for name, names in (("keys", keys), ("threads", threads))
    ]
