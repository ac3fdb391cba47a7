"""Is every job well: the rules, from what is known of its runs and of what starts them.

What belongs here: facts, the judgement, and its words. What does not: where facts come from (see `defs/health`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

from croniter import croniter

TICK_GRACE = timedelta(minutes=3)
"""A tick may be so late: a standby takes over in seconds, and a daemon that restarts loads for some more."""
MISSED_INTERVALS = 10
"""A sensor may leave out so many of its looks while others take long."""


@dataclass(frozen=True)
class Automation:
    """A schedule or sensor that starts a job.

    Attributes:
        name: its name.
        cron: when a schedule ticks, in UTC; empty for a sensor.
        interval_seconds: the pause between two looks of a sensor; 0 for a schedule.
        switched_on: whether it is running.
        last_tick_at: its last evaluation; None before the first.
        error: why that failed; empty when it did not.
    """

    name: str
    cron: str = ""
    interval_seconds: float = 0
    switched_on: bool = True
    last_tick_at: datetime | None = None
    error: str = ""


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended."""

    run_id: str
    ended_at: datetime
    succeeded: bool


@dataclass(frozen=True)
class JobFacts:
    """What is known of a job.

    Attributes:
        name: the job's.
        at_work: how many of its runs are queued or running.
        runs: those that ended, newest first; the last few.
        automations: what starts it.
    """

    name: str
    at_work: int
    runs: tuple[EndedRun, ...]
    automations: tuple[Automation, ...]


@dataclass(frozen=True)
class JobHealth:
    """How a job does.

    Attributes:
        name: the job's.
        enabled: whether anything that is switched on starts it.
        running: whether a run is at work.
        last_run: the end of the last run.
        last_success: the end of the last run that succeeded.
        next_run: the next tick of its schedule; None without one.
        errors: failed runs in a row, up to now.
        success_rate: of the last runs, from 0 to 1; None before the first.
        problems: what is wrong, in words; empty when the job is well.
        overdue: whether something that should have looked did not.
    """

    name: str
    enabled: bool
    running: bool
    last_run: datetime | None
    last_success: datetime | None
    next_run: datetime | None
    errors: int
    success_rate: float | None
    problems: tuple[str, ...]
    overdue: bool

    @property
    def well(self) -> bool:
        """True when nothing is wrong with it."""
        return not self.problems


def judge(job: JobFacts, now: datetime) -> JobHealth:
    """The health of a job at a time."""
    on = [one for one in job.automations if one.switched_on]
    late = [words for one in on if (words := overdue(one, now))]
    failures = consecutive_failures(job.runs)
    problems = [*late, *(f"{one.name} failed: {one.error}" for one in on if one.error)]
    if failures:
        problems.append(f"{failures} failed runs in a row, the last is {job.runs[0].run_id[:8]}")
    ticks = [next_tick(one.cron, now) for one in on if one.cron]
    succeeded = [run for run in job.runs if run.succeeded]
    return JobHealth(
        name=job.name,
        enabled=bool(on),
        running=job.at_work > 0,
        last_run=job.runs[0].ended_at if job.runs else None,
        last_success=succeeded[0].ended_at if succeeded else None,
        next_run=min(ticks) if ticks else None,
        errors=failures,
        success_rate=len(succeeded) / len(job.runs) if job.runs else None,
        problems=tuple(problems),
        overdue=bool(late),
    )


def consecutive_failures(runs: Sequence[EndedRun]) -> int:
    """How many of the last runs failed in a row; newest first."""
    return sum(1 for _ in takewhile(lambda run: not run.succeeded, runs))


def overdue(automation: Automation, now: datetime) -> str:
    """Why a schedule or sensor should have been evaluated and was not, in words; empty when it was in time.

    A tick that found nothing to do counts: it looked. One that was never evaluated yet is not overdue; whether a
    daemon works at all is another question.
    """
    last = automation.last_tick_at
    if last is None:
        return ""
    if automation.cron:
        expected = previous_tick(automation.cron, now - TICK_GRACE)
        if last < expected:
            return f"{automation.name} is overdue: it should have ticked at {expected:%Y-%m-%d %H:%M} UTC"
        return ""
    longest = max(timedelta(seconds=automation.interval_seconds * MISSED_INTERVALS), TICK_GRACE)
    if now - last > longest:
        return f"{automation.name} is overdue: it last looked at {last:%Y-%m-%d %H:%M} UTC"
    return ""


def previous_tick(cron: str, at: datetime) -> datetime:
    """The last time before or at `at` that a cron schedule names, in UTC."""
    # croniter looks strictly before.
    return croniter(cron, at.astimezone(UTC) + timedelta(seconds=1)).get_prev(datetime)


def next_tick(cron: str, at: datetime) -> datetime:
    """The first time after `at` that a cron schedule names, in UTC."""
    return croniter(cron, at.astimezone(UTC)).get_next(datetime)


def as_json(jobs: Iterable[JobHealth]) -> list[dict[str, Any]]:
    """Health for machines: times in ISO 8601, rates from 0 to 1."""

    def text(value: datetime | None) -> str | None:
        return value.isoformat(timespec="seconds") if value else None

    return [
        {
            "name": job.name,
            "enabled": job.enabled,
            "running": job.running,
            "last_run": text(job.last_run),
            "next_run": text(job.next_run),
            "errors": job.errors,
            "success_rate": job.success_rate,
            "last_success": text(job.last_success),
            "overdue": job.overdue,
            "problems": list(job.problems),
        }
        for job in jobs
    ]
