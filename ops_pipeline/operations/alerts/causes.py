"""What a person must know just now: causes, from the health of jobs and from failed checks.

What belongs here: the rules. What does not: where facts come from, and who is told (see `plan` and `store`).

Causes are states, not events: a cause is there as long as what is wrong is wrong. So nothing is missed while nobody
looked, nothing is told twice, and that it is over can be told too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Literal

from ops_pipeline.operations.health import JobFacts, consecutive_failures, overdue

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Cause:
    """Something that is wrong.

    Attributes:
        key: what it is about, the same as long as it lasts: `job:…`, `tick:…`, `overdue:…`, `check:…`.
        severity: how bad it is.
        title: one line.
        detail: what is known, and where to look.
        run_id: the run that shows it; empty without one.
    """

    key: str
    severity: Severity
    title: str
    detail: str
    run_id: str = ""


@dataclass(frozen=True)
class FailedCheck:
    """The last evaluation of an asset's check, where it failed.

    Attributes:
        asset: the asset.
        name: of the check.
        severe: whether it failed as an error, not as a warning.
        description: what it says.
        run_id: the run that told it.
    """

    asset: str
    name: str
    severe: bool
    description: str
    run_id: str


@dataclass(frozen=True)
class Thresholds:
    """After how many failed runs in a row a job is told of.

    Attributes:
        failures: of every job that `by_job` does not name.
        by_job: by patterns of names, such as `update_*`; the first that matches counts.
    """

    failures: int = 1
    by_job: Mapping[str, int] | None = None

    def of(self, job: str) -> int:
        """The threshold of a job."""
        for pattern, failures in (self.by_job or {}).items():
            if fnmatchcase(job, pattern):
                return failures
        return self.failures


def causes_of(
    jobs: Iterable[JobFacts], checks: Iterable[FailedCheck], thresholds: Thresholds, now: datetime
) -> dict[str, Cause]:
    """Everything that is wrong, by key."""
    found: list[Cause] = []
    for job in jobs:
        found += _of_runs(job, thresholds.of(job.name))
        for automation in (one for one in job.automations if one.switched_on):
            # One sensor may start several jobs; by key it is told of once.
            if automation.error:
                title = f"{automation.name} failed"
                found.append(Cause(f"tick:{automation.name}", "error", title, automation.error))
            late = overdue(automation, now)
            if late:
                title = f"{automation.name} is overdue"
                found.append(Cause(f"overdue:{automation.name}", "error", title, f"{late}. Does the daemon run?"))
    found += [_of_check(check) for check in checks]
    return {cause.key: cause for cause in found}


def _of_runs(job: JobFacts, threshold: int) -> list[Cause]:
    failures = consecutive_failures(job.runs)
    if failures < threshold:
        return []
    last = job.runs[0]
    times = "Its last run" if failures == 1 else f"Its last {failures} runs"
    detail = f"{times} failed, the latest at {last.ended_at:%Y-%m-%d %H:%M} UTC: see the run's log for the reason."
    return [Cause(f"job:{job.name}", "error", f"{job.name} failed", detail, last.run_id)]


def _of_check(check: FailedCheck) -> Cause:
    severity: Severity = "error" if check.severe else "warning"
    words = check.description or "See the check in the UI."
    return Cause(
        f"check:{check.asset}:{check.name}", severity, f"{check.asset}: {check.name} failed", words, check.run_id
    )
