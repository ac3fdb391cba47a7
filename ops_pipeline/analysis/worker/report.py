"""What a worker did, for whoever started it: lines as things happen, counts, and a table of the last tasks.

What belongs here: collecting, safe to be read from another thread. What does not: how it is shown.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ops_pipeline.analysis.protocol import Progress
from ops_pipeline.analysis.states import HANDED_BACK, UNAVAILABLE, Task
from ops_pipeline.analysis.storing import Done
from ops_pipeline.analysis.tables import COMPLETED, PENDING
from ops_pipeline.reconcile import Outcome, counted

KEPT_ROWS = 50
SAID_AGAIN_SECONDS = 60.0
LOST = "lost"


@dataclass(frozen=True)
class Row:
    """One attempt that is over, for a table."""

    task_id: str
    service: str
    target: str
    attempt: int
    status: str
    findings: int
    message: str


@dataclass
class Report:
    """What happened so far.

    Attributes:
        line: gets every line, in the worker's thread.
        counts: attempts by what became of them: the status that their task got, `waiting` for a service, `handed back`,
            `lost` to another worker.
        rows: the last attempts that are over.
        claims: attempts begun.
        longest: seconds that one of them may take, of the one that may take the longest.
        findings: stored.
        gave_up: the worker ended without having stored everything.
    """

    line: Callable[[str], None] = lambda _: None
    counts: Counter[str] = field(default_factory=Counter)
    rows: deque[Row] = field(default_factory=lambda: deque(maxlen=KEPT_ROWS))
    claims: int = 0
    longest: float = 0.0
    findings: int = 0
    gave_up: bool = False
    _said: dict[str, float] = field(default_factory=dict)

    def tell(self, text: str) -> None:
        """Say something."""
        self.line(text)

    def trouble(self, text: str) -> None:
        """Say that something is wrong; the same is said again after a minute at the earliest."""
        now = time.monotonic()
        if now - self._said.get(text, -SAID_AGAIN_SECONDS) >= SAID_AGAIN_SECONDS:
            self._said = {said: at for said, at in self._said.items() if now - at < SAID_AGAIN_SECONDS} | {text: now}
            self.line(text)

    def claimed(self, task: Task) -> None:
        """An attempt begins."""
        self.claims += 1
        self.longest = max(self.longest, task.timeout.total_seconds())
        self.tell(f"{task.id}: pending -> running ({task.service}, {task.target}, attempt {task.attempt})")

    def progressed(self, task: Task, progress: Progress) -> None:
        """A service tells how far it is."""
        percent = "" if progress.percent is None else f"{progress.percent} % "
        self.tell(f"{task.id}: {percent}{progress.stage} {progress.message}".rstrip())

    def ended(self, done: Done, status: str | None) -> None:
        """An attempt is over, and its task has this status now; None when the worker had lost it."""
        result = done.result
        became = status or LOST
        if status == PENDING:
            became = {HANDED_BACK: "handed back", UNAVAILABLE: "waiting"}.get(result.status, PENDING)
        self.counts[became] += 1
        findings = len(done.found.findings) if status == result.status else 0
        self.findings += findings
        task = result.task
        self.rows.append(Row(task.id, task.service, task.target, task.attempt, became, findings, result.message))
        told = counted(findings, "finding") if status == COMPLETED else result.message
        self.tell(f"{task.id}: running -> {became}{f' ({told})' if told else ''}")

    def outcome(self) -> Outcome:
        """The worker's life as an outcome: a task that failed is an end like any other, and fails no worker."""
        ended = sum(self.counts.values())
        return Outcome(
            scanned=self.claims,
            changed=ended - self.counts[LOST],
            skipped=self.counts[LOST],
            failed=max(0, self.claims - ended) if self.gave_up else 0,
            reasons={**dict(self.counts.most_common()), "findings": self.findings},
        )
