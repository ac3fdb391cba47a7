"""The shape that every job shares: observe, plan, guard, apply, report.

What belongs here: a vocabulary of frozen dataclasses, the guard and the report. What does not: any I/O, any
domain rule, Dagster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

MAX_TABLE_ROWS = 50


class Unavailable(Exception):
    """The facts could not be looked at. "Could not look" is never "nothing there": nothing may be changed on it."""


class PlanRefused(Exception):
    """The plan would change more than its safety limit allows; nothing was changed."""


class IncompleteRun(Exception):
    """Some objects failed; the others were done. A batch with failures is never green."""


@dataclass(frozen=True)
class Change:
    """One change to one object, with its reason in the operator's words.

    Attributes:
        key: what is changed, as an operator would name it.
        action: what happens to it, for example `fail` or `delete`.
        reason: why.
        planned_from: the state under which it was planned; whoever applies it checks that it still holds.
    """

    key: str
    action: str
    reason: str
    planned_from: str = ""


@dataclass(frozen=True)
class Plan:
    """What a pass would change, out of how many objects it looked at.

    Attributes:
        changes: in the order in which they are applied.
        scanned: objects looked at; the population of a `SafetyLimit`.
        kept: objects left alone although something was odd about them, counted by reason.
    """

    changes: tuple[Change, ...]
    scanned: int
    kept: Mapping[str, int] = field(default_factory=dict)

    @property
    def unchanged(self) -> int:
        """Objects that are as they should be, or were left alone."""
        return self.scanned - len(self.changes)


@dataclass(frozen=True)
class SafetyLimit:
    """How much of a population one plan may change.

    Attributes:
        count: at most so many changes; None for any number.
        share: at most this share of the scanned objects, from 0 to 1; None for any share.
        minimum_population: below so many scanned objects the share is not applied, since one of two is a half.
    """

    count: int | None = None
    share: float | None = None
    minimum_population: int = 10

    def __post_init__(self) -> None:
        """Refuse limits that could never have been meant."""
        if self.count is not None and self.count < 0:
            raise ValueError(f"a limit of {self.count} changes is below zero")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"a share lies between 0 and 1, not at {self.share}")

    def objection(self, plan: Plan) -> str | None:
        """Why the plan is too large, in words; None when it may be applied."""
        return self.objection_to(len(plan.changes), plan.scanned)

    def objection_to(self, changes: int, scanned: int) -> str | None:
        """The same of a plan that is too large to be held: its number of changes, and of objects scanned."""
        if self.count is not None and changes > self.count:
            return f"{changes} changes are more than the limit of {self.count}"
        if self.share is not None and scanned >= self.minimum_population and changes > self.share * scanned:
            return f"{changes} of {scanned} objects are more than the limit of {self.share:.0%}"
        return None

    def check(self, plan: Plan) -> None:
        """Let a plan pass.

        Raises:
            PlanRefused: it is too large.
        """
        objection = self.objection(plan)
        if objection:
            raise PlanRefused(
                f"{objection}. Nothing was changed. Read the plan in this run's metadata; if it is right, launch"
                " again with the limit raised in the run config."
            )


@dataclass(frozen=True)
class Outcome:
    """What a pass did.

    Attributes:
        scanned: objects looked at.
        changed: changes applied.
        unchanged: objects that were as they should be.
        skipped: changes not applied because someone else changed the object meanwhile.
        failed: objects that failed; the others were done.
        reasons: how often each reason occurred.
    """

    scanned: int = 0
    changed: int = 0
    unchanged: int = 0
    skipped: int = 0
    failed: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`failed` when anything failed, else `success`."""
        return "failed" if self.failed else "success"


def counted(number: int, one: str, several: str = "") -> str:
    """A number and what it counts: `1 host`, `2 hosts`; `several` where that is not `one` with an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def count_reasons(changes: Sequence[Change]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first."""
    return dict(Counter(change.reason for change in changes).most_common())


def changes_table(changes: Sequence[Change]) -> str:
    """A Markdown table of the changes, cut at 50 rows with a line that says so."""
    rows = [(change.key, change.action, change.planned_from, change.reason) for change in changes]
    return markdown_table(("object", "action", "was", "reason"), rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, cut at 50 rows with a line that says so; cells cannot break out of it."""
    lines = [_row(header), _row(["---"] * len(header))]
    lines += [_row(row) for row in rows[:MAX_TABLE_ROWS]]
    if len(rows) > MAX_TABLE_ROWS:
        lines.append(f"\n… and {len(rows) - MAX_TABLE_ROWS} more of {len(rows)} in all.")
    return "\n".join(lines)


def _row(cells: Sequence[object]) -> str:
    # Not only "\n" ends a line: Markdown also takes "\r" for an end, and some readers other characters.
    texts = (" ".join(_text(cell).replace("\\", "\\\\").replace("|", "\\|").splitlines()) for cell in cells)
    return "| " + " | ".join(texts) + " |"


def _text(cell: object) -> str:
    """A cell as a person reads it; times of this project are UTC."""
    if isinstance(cell, datetime):
        return f"{cell:%Y-%m-%d %H:%M:%S}"
    return "" if cell is None else str(cell)
