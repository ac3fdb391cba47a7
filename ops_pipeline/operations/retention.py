"""Which of Dagster's runs may go: the rules, without Dagster.

What belongs here: the decision. What does not: reading or deleting runs (see `defs/housekeeping`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ops_pipeline.reconcile import Change, Plan

NEWEST = "the newest of its job"
NEWEST_SUCCESS = "the newest success of its job"


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended.

    Attributes:
        run_id: Dagster's.
        job: its job's name.
        ended_at: when it ended; where Dagster does not tell, when it was last touched.
        succeeded: whether it ended well.
    """

    run_id: str
    job: str
    ended_at: datetime
    succeeded: bool


@dataclass(frozen=True)
class Retention:
    """For how long runs are kept.

    Attributes:
        days: of every job that `by_job` does not name.
        by_job: of single jobs, by name.
    """

    days: float
    by_job: Mapping[str, float]

    def days_of(self, job: str) -> float:
        """The retention of a job, in days."""
        return self.by_job.get(job, self.days)


def plan_pruning(runs: Sequence[FinishedRun], retention: Retention, now: datetime) -> Plan:
    """The runs that go, oldest first: those beyond the retention of their job, but never a job's last word.

    A job that has not run for a year still shows when it last ran, and when it last ran well.

    Args:
        runs: all runs that have ended, in any order.
        retention: for how long they are kept.
        now: the time of the decision.
    """
    last = {run.run_id: NEWEST for run in _newest(runs)}
    for run in _newest([run for run in runs if run.succeeded]):
        last.setdefault(run.run_id, NEWEST_SUCCESS)
    changes, kept = [], Counter[str]()
    for run in sorted(runs, key=lambda one: (one.ended_at, one.run_id)):
        days = retention.days_of(run.job)
        if now - run.ended_at <= timedelta(days=days):
            continue
        if run.run_id in last:
            kept[last[run.run_id]] += 1
            continue
        changes.append(Change(run.run_id, "delete", f"{run.job}: older than {days:g} days", f"{run.ended_at:%Y-%m-%d}"))
    return Plan(tuple(changes), scanned=len(runs), kept=dict(kept))


def _newest(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    newest: dict[str, FinishedRun] = {}
    for run in runs:
        known = newest.get(run.job)
        if known is None or (run.ended_at, run.run_id) > (known.ended_at, known.run_id):
            newest[run.job] = run
    return list(newest.values())
