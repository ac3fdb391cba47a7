"""The rules for applications whose directory is missing: marked, looked at again, and deleted after a grace.

What belongs here: pure decisions that take `now`. What does not: looking (`root`), SQL (`application_store`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ops_pipeline.analysis.maintenance.root import Found
from ops_pipeline.reconcile import Change

MARK, LOOK, CLEAR, DELETE = "mark missing", "count look", "clear mark", "delete"
LOOKS = 3
"""An application goes after so many looks that found it missing, whatever its grace."""


@dataclass(frozen=True)
class Application:
    """A row of an application, as far as maintenance needs it.

    Attributes:
        missing_since: since when it is missed; None while it is not.
        looks: how many looks that count have found it missing.
        seen_at: when the last of them was.
        hold: why it must stay whatever its age; empty when nothing says so.
        retention: a longer grace of its own.
    """

    id: str
    slug: str
    number: int
    version: int = 1
    missing_since: datetime | None = None
    looks: int = 0
    seen_at: datetime | None = None
    hold: str = ""
    retention: timedelta | None = None

    @property
    def name(self) -> str:
        """As an operator names it."""
        version = "" if self.version == 1 else f" version {self.version}"
        return f"{self.slug}/app{self.number}{version}"


@dataclass(frozen=True)
class Policy:
    """How long applications may be missing.

    Attributes:
        retention: the grace.
        newly_missing: the share of all applications that one look may find newly missing.
        minimum_population: the share is not applied to fewer applications.
    """

    retention: timedelta
    newly_missing: float = 0.2
    minimum_population: int = 10

    def spacing(self) -> timedelta:
        """How far apart looks lie that count, so that three of them span half of the grace at least."""
        return self.retention / (2 * (LOOKS - 1))


@dataclass(frozen=True)
class Decisions:
    """What follows from a look.

    Attributes:
        changes: by action, with the rows that they are about.
        kept: applications left alone although something is odd about them, by reason.
        failed: those of them that nobody could look at.
        oldest: by how much the oldest that is due, or would be but for something, exceeds its grace.
    """

    scanned: int
    changes: tuple[tuple[Change, Application], ...]
    kept: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    oldest: timedelta = timedelta(0)

    def of(self, action: str) -> list[Application]:
        """The applications that an action is about."""
        return [row for change, row in self.changes if change.action == action]


def decide(rows: Iterable[Application], found: Found, policy: Policy, now: datetime, *, others: int = 0) -> Decisions:
    """Compare applications with what a look has found.

    Args:
        rows: every application, or at least each that is marked or has no directory.
        found: the look.
        policy: the grace.
        now: the database's time.
        others: how many more there are, which have a directory and no mark.
    """
    changes: list[tuple[Change, Application]] = []
    kept: Counter[str] = Counter()
    failed: dict[str, str] = {}
    scanned, oldest = others, timedelta(0)
    nowhere: frozenset[int] = frozenset()
    for row in rows:
        scanned += 1
        if row.number in found.present.get(row.slug, nowhere):
            if row.missing_since is not None:
                changes.append((_change(row, CLEAR, "its directory is back"), row))
            continue
        reason = found.unknown.get(row.slug) or found.odd.get((row.slug, row.number))
        if reason is not None:
            failed[row.name] = reason
            continue
        change, why = _missing(row, policy, now)
        if change is not None:
            changes.append((change, row))
        if why:
            kept[why] += 1
        oldest = max(oldest, _beyond(row, policy, now))
    return Decisions(scanned, tuple(changes), kept, failed, oldest)


def _missing(row: Application, policy: Policy, now: datetime) -> tuple[Change | None, str]:
    """What follows for an application without a directory: a change, and why it stays."""
    since = row.missing_since
    if since is None or since > now:
        # A mark in the future is one from before the clock was set back: the grace begins anew.
        return _change(row, MARK, "its directory is missing"), ""
    retention = _grace(row, policy)
    counts = row.seen_at is None or row.seen_at > now or now - row.seen_at >= policy.spacing()
    looked = _change(row, LOOK, f"missing since {since:%Y-%m-%d %H:%M} UTC") if counts else None
    if now - since <= retention:
        return looked, ""
    if row.hold:
        return looked, row.hold
    if row.looks < LOOKS:
        return looked, f"its grace is over, but it was seen missing less than {LOOKS} times spread over it"
    days = (now - since) / timedelta(days=1)
    return _change(row, DELETE, f"missing for {days:.1f} days, seen {row.looks} times"), ""


def _grace(row: Application, policy: Policy) -> timedelta:
    return max(policy.retention, row.retention or policy.retention)


def _beyond(row: Application, policy: Policy, now: datetime) -> timedelta:
    if row.missing_since is None or row.hold:
        return timedelta(0)
    return max(timedelta(0), now - row.missing_since - _grace(row, policy))


def _change(row: Application, action: str, reason: str) -> Change:
    since = row.missing_since
    was = f"missing since {since:%Y-%m-%d %H:%M:%S}" if since else "present"
    return Change(row.name, action, reason, was)
