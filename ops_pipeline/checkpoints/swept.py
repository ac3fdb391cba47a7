"""How a sweep works, and what it did.

What belongs here: these two lists of facts. What does not: doing it (`sweep`), and saying it in words (`plans`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ops_pipeline.checkpoints.collecting import LARGEST_PASS
from ops_pipeline.reconcile import Change, SafetyLimit


@dataclass(frozen=True)
class Options:
    """How a sweep works.

    Attributes:
        dry_run: decide, and write nothing.
        expire_seconds: let idle threads expire after so many seconds instead of deleting them; None deletes.
        jitter_seconds: over how long expiry is spread.
        limit: how large a share of the threads may go.
        time_budget: seconds after which the sweep stops cleanly.
        largest_pass: how many bytes of keys are kept in memory at a time, about.
        unread_seconds: idle threads whose newest checkpoint somebody has read since stay; 0 looks at no reads.
        purge_memory: ask Redis to give memory back at the end.
    """

    dry_run: bool = False
    expire_seconds: float | None = None
    jitter_seconds: float = 3600.0
    limit: SafetyLimit = field(default_factory=SafetyLimit)
    time_budget: float = 600.0
    largest_pass: int = LARGEST_PASS
    unread_seconds: float = 0.0
    purge_memory: bool = False


@dataclass
class Swept:
    """What a sweep did; filled as it goes, so that a failure tells what was done before.

    Attributes:
        processed: keys scanned, in the first pass.
        deleted: keys deleted, or set to expire.
        threads: threads seen.
        removed: threads by action.
        kept: threads by the reason for which they stay.
        unknown: keys under our prefixes that no layout understands, and a few of them.
        foreign: keys of somebody else.
        documents: keys whose values were looked at.
        left: threads to remove for which there was no time.
        unscanned: keys that there was no time to scan: nothing of that pass was decided.
        taken_back: threads that were set to expire and came alive, or are kept now: what they have stays.
        passes: scans of the database.
        used_bytes: memory in use before and after.
        resident_bytes: memory of the process before and after.
        ages: threads by whole days since their newest checkpoint.
        largest: the largest threads, with their keys.
        changes: the first of the changes, as a plan shows them.
        planned: how many threads were to go, in whole or in part, and with how many keys.
        seconds: how long it took.
    """

    processed: int = 0
    deleted: int = 0
    threads: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    unknown_examples: list[bytes] = field(default_factory=list)
    foreign: int = 0
    documents: int = 0
    left: int = 0
    unscanned: int = 0
    taken_back: int = 0
    passes: int = 0
    used_bytes: tuple[int, int] = (0, 0)
    resident_bytes: tuple[int, int] = (0, 0)
    ages: Counter[int] = field(default_factory=Counter)
    largest: list[tuple[int, bytes]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    planned: int = 0
    planned_keys: int = 0
    seconds: float = 0.0

    @property
    def matched(self) -> int:
        """Keys that belong to checkpoints as far as their names show."""
        return self.processed - self.foreign
