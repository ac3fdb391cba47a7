"""What the passes of maintenance share, whichever domain they belong to: their options and their report.

What belongs here: these two shapes and the time budget. What does not: any rule of a pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ops_pipeline.reconcile import Change, Outcome, Plan, SafetyLimit

PREFIX = "[MaintenanceService]"
SHOWN_CHANGES = 1_000
"""A report keeps so many changes for its table; their number is counted in full."""


@dataclass(frozen=True)
class Options:
    """How a pass may act.

    Attributes:
        dry_run: plan and show, write nothing, neither to the database nor to a disk.
        limit: what may be deleted or ended at most; a larger plan is refused as a whole.
        budget_seconds: after so long the pass stops between two transactions and says what is left.
        run_id: of the run, kept with what it writes.
        told: takes each line of the log.
        clock: monotonic, in seconds.
    """

    dry_run: bool = False
    limit: SafetyLimit = field(default_factory=SafetyLimit)
    budget_seconds: float = 600.0
    run_id: str = ""
    told: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic

    def say(self, line: str) -> None:
        """Log a line with the prefix that operators look for."""
        self.told(f"{PREFIX} {line}")

    def deadline(self) -> Deadline:
        """The time budget, from now on."""
        return Deadline(self.clock() + self.budget_seconds, self.clock)


@dataclass(frozen=True)
class Deadline:
    """When a pass stops."""

    at: float
    clock: Callable[[], float]

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return self.clock() >= self.at


@dataclass(frozen=True)
class Report:
    """What a pass did, or would do.

    Attributes:
        name: of the pass.
        outcome: its counts.
        changes: the first of its changes, for the table.
        planned: how many changes it had planned.
        kept: what it left alone although it looked due, counted by reason.
        left: how many due objects the time budget left for the next run.
        backlog_seconds: by how much the oldest object that is still there exceeds its cut-off; 0 without one.
        error: why the pass failed or refused, in words; empty when it did not.
        skipped: why it did not run at all, for example since it is switched off.
        facts: whatever else a person wants to see: archives, bytes.
    """

    name: str
    outcome: Outcome = field(default_factory=Outcome)
    changes: tuple[Change, ...] = ()
    planned: int = 0
    kept: Mapping[str, int] = field(default_factory=dict)
    left: int = 0
    backlog_seconds: float = 0.0
    error: str = ""
    skipped: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def red(self) -> bool:
        """Whether the run must fail for it."""
        return bool(self.error) or self.outcome.failed > 0

    @property
    def status(self) -> str:
        """`off`, `failed` or `success`."""
        return "off" if self.skipped else "failed" if self.red else "success"


def shown(plan: Plan) -> tuple[Change, ...]:
    """The changes of a plan that a report keeps."""
    return plan.changes[:SHOWN_CHANGES]
