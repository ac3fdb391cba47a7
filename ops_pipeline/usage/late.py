"""Late data: which hours no longer agree with their raw calls.

Calls are inserted, completed, changed and deleted after their hour was aggregated. A look at the index on
`updated_at` finds the hours of everything touched since a cursor that overlaps, because transactions commit out
of order; each of those hours is then compared with what was counted when it was aggregated. On PostgreSQL the cursor
moves on only when every transaction that wrote at the time of a look has ended, however long it took. Deleted calls
leave no `updated_at`: a slower sweep compares the number of calls of every hour.

What belongs here: the look, the comparison and the cursor. What does not: launching runs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection, case, func, or_, select, union_all

from ops_pipeline.database.engine import database_now
from ops_pipeline.database.expressions import hour_key, hour_start, version_number, within_hours
from ops_pipeline.database.snapshots import Writers, writers
from ops_pipeline.database.types import Rows, require_aware
from ops_pipeline.usage.hours import HOUR, Window, floor_hour, hour_text, windows_of
from ops_pipeline.usage.tables import model_calls, usage_hours
from ops_pipeline.usage.watermarks import pruned_before

WINDOWS_PER_QUERY = 50
COMPARED_AT_ONCE = 500
"""Hours compared per look; the rest waits for the next one. 500 hours of 7,000 calls take about 3 s."""

LEAST_OVERLAP = timedelta(seconds=3)
"""SQLite's CURRENT_TIMESTAMP is cut to the second, and its trigger believes a time that is up to 2 s old."""


@dataclass(frozen=True)
class LatePolicy:
    """How late data is looked for.

    Attributes:
        overlap: how far back each look goes over what the last one saw; on SQLite, which does not tell who writes,
            longer than the longest write transaction.
        sweep_every: the pause between two sweeps for deleted calls.
        sweep_hours: how many hours one sweep counts besides the newest as many.
        pruned_before: hours before this are not compared, since their raw calls are gone.
    """

    overlap: timedelta
    sweep_every: timedelta
    sweep_hours: int
    pruned_before: datetime | None = None


@dataclass(frozen=True)
class LateCursor:
    """What a look leaves for the next one; JSON in the sensor's cursor.

    Attributes:
        looked_until: the database's time up to which nothing is left to be seen.
        checkpoint: the time of a later look; `looked_until` moves there when its writers have ended.
        checkpoint_next: the transaction number that came next then; 0 without a checkpoint.
        pending: hours known to be touched and not yet seen to agree again.
        swept_at: when calls were last counted, by the database's clock.
        sweep_next: the hour before which the next sweep goes on, backwards; None begins at the newest.
        compare_next: the hour before which the next comparison goes on, where the last look did not compare all.
    """

    looked_until: datetime | None = None
    pending: frozenset[datetime] = frozenset()
    swept_at: datetime | None = None
    sweep_next: datetime | None = None
    compare_next: datetime | None = None
    checkpoint: datetime | None = None
    checkpoint_next: int = 0

    def dump(self) -> str:
        """Write as JSON."""
        return json.dumps(
            {
                "looked_until": self.looked_until and self.looked_until.isoformat(),
                "pending": [hour.isoformat() for hour in sorted(self.pending)],
                "swept_at": self.swept_at and self.swept_at.isoformat(),
                "sweep_next": self.sweep_next and self.sweep_next.isoformat(),
                "compare_next": self.compare_next and self.compare_next.isoformat(),
                "checkpoint": self.checkpoint and self.checkpoint.isoformat(),
                "checkpoint_next": self.checkpoint_next,
            }
        )

    @staticmethod
    def load(text: str | None) -> LateCursor:
        """Read JSON; an empty or unreadable cursor starts over, which costs one long look and misses nothing."""
        try:
            data = json.loads(text or "{}")
            names = ("looked_until", "swept_at", "sweep_next", "compare_next", "checkpoint")
            times = {name: _instant(data[name]) for name in names if data.get(name)}
            return LateCursor(
                pending=frozenset(map(_instant, data.get("pending", []))),
                checkpoint_next=int(data.get("checkpoint_next", 0)),
                **times,
            )
        except (ValueError, TypeError, AttributeError):
            return LateCursor()


def _instant(text: str) -> datetime:
    return require_aware(datetime.fromisoformat(text))


@dataclass(frozen=True)
class Late:
    """The result of a look.

    Attributes:
        stale: hours whose roll-up no longer agrees with their calls, and how, in words.
        cursor: what to remember once the stale hours have been asked for.
        compared: how many hours were compared.
    """

    stale: Mapping[datetime, str]
    cursor: LateCursor
    compared: int = 0
    swept: int = 0
    waiting: frozenset[datetime] = field(default_factory=frozenset)


def look_for_late_calls(connection: Connection, cursor: LateCursor, policy: LatePolicy) -> Late:
    """Find the aggregated hours that need another aggregation.

    Args:
        connection: a snapshot (`engine.reading`).
        cursor: what the last look left.
        policy: how to look.
    """
    writing = writers(connection)
    now = database_now(connection)
    policy = replace(policy, pruned_before=pruned_before(connection, policy.pruned_before))
    touched = cursor.pending | _touched(connection, cursor, policy)
    # A sweep in the future is one before the database's clock was set back.
    sweep_due = cursor.swept_at is None or abs(now - cursor.swept_at) >= policy.sweep_every
    swept, sweep_next = _sweep(connection, cursor, policy) if sweep_due else (frozenset(), cursor.sweep_next)
    candidates = sorted(_known(connection, touched, policy) | swept, reverse=True)
    if cursor.compare_next is not None:
        # Hours that stay late, because the guard refuses them, must not keep the others from being compared.
        compared_before = cursor.compare_next
        candidates.sort(key=lambda hour: hour >= compared_before)
    compared, waiting = candidates[:COMPARED_AT_ONCE], frozenset(candidates[COMPARED_AT_ONCE:])
    stale = compare(connection, compared)
    return Late(
        stale=stale,
        cursor=replace(
            moved_on(cursor, now, writing),
            pending=frozenset(stale) | waiting,
            swept_at=now if sweep_due else cursor.swept_at,
            sweep_next=sweep_next,
            compare_next=compared[-1] if waiting else None,
        ),
        compared=len(compared),
        swept=len(swept),
        waiting=waiting,
    )


def moved_on(cursor: LateCursor, now: datetime, writing: Writers | None) -> LateCursor:
    """The cursor after a look, moved as far as nothing uncommitted can still appear behind it.

    Args:
        cursor: the one before.
        now: the database's time of the look.
        writing: the transactions at work in its snapshot; None where the database does not tell.
    """
    if writing is None or writing.oldest >= writing.next:
        return replace(cursor, looked_until=now, checkpoint=None, checkpoint_next=0)
    here = replace(cursor, checkpoint=now, checkpoint_next=writing.next)
    if cursor.checkpoint is None or writing.next < cursor.checkpoint_next:
        # A number that went back is that of another server, after a restore for example.
        return here
    return replace(here, looked_until=cursor.checkpoint) if writing.oldest >= cursor.checkpoint_next else cursor


def _touched(connection: Connection, cursor: LateCursor, policy: LatePolicy) -> set[datetime]:
    """Hours of the calls written since the cursor, less the overlap; only those between the first and last known."""
    known = usage_hours.c
    bounds = select(func.min(known.hour), func.max(known.hour), func.min(known.aggregated_at))
    oldest, newest, first_aggregation = connection.execute(bounds).one()
    if newest is None:
        return set()
    # Without a cursor, everything written since the oldest aggregation is a candidate.
    since = (cursor.looked_until or first_aggregation) - max(policy.overlap, LEAST_OVERLAP)
    # The index on `updated_at` is the one to use, and years that Python does not know stay in the database.
    called = case((within_hours(model_calls.c.called_at, oldest, newest + HOUR), model_calls.c.called_at))
    written = select(called.label("called_at")).where(model_calls.c.updated_at >= since).subquery()
    hours = select(hour_start(written.c.called_at)).group_by(hour_key(written.c.called_at))
    return {hour for hour in connection.scalars(hours) if hour is not None}


def _known(connection: Connection, hours: Collection[datetime], policy: LatePolicy) -> set[datetime]:
    """Those of the hours that were aggregated: the others are missing, which is the schedule's matter."""
    if not hours:
        return set()
    done = select(usage_hours.c.hour).where(usage_hours.c.hour.between(min(hours), max(hours)))
    if policy.pruned_before is not None:
        done = done.where(usage_hours.c.hour >= policy.pruned_before)
    return set(connection.scalars(done)) & set(hours)


def _sweep(
    connection: Connection, cursor: LateCursor, policy: LatePolicy
) -> tuple[frozenset[datetime], datetime | None]:
    """Count the calls of the newest hours, and of the next slice of older ones, through the index alone.

    Returns:
        The hours whose number of calls differs from what was aggregated, and where the next sweep goes on.
    """
    bounds = connection.execute(select(func.min(usage_hours.c.hour), func.max(usage_hours.c.hour))).one()
    oldest, newest = bounds
    if newest is None:
        return frozenset(), None
    oldest = max(oldest, policy.pruned_before or oldest)
    recent = Window(newest + HOUR - policy.sweep_hours * HOUR, newest + HOUR)
    end = min(floor_hour(cursor.sweep_next or recent.start), recent.start)
    slices = [recent]
    following = None
    if end > oldest:
        older = Window(max(oldest, end - policy.sweep_hours * HOUR), end)
        slices.append(older)
        following = older.start if older.start > oldest else None
    differing: set[datetime] = set()
    for window in slices:
        differing |= _differing_counts(connection, window, oldest)
    return frozenset(differing), following


def _differing_counts(connection: Connection, window: Window, oldest: datetime) -> set[datetime]:
    called = model_calls.c.called_at
    counted = (
        select(hour_start(called).label("hour"), func.count().label("calls"))
        .where(within_hours(called, window.start, window.end))
        .group_by(hour_key(called))
    )
    calls = {row.hour: row.calls for row in connection.execute(counted)}
    known = select(usage_hours.c.hour, usage_hours.c.calls).where(
        usage_hours.c.hour >= max(window.start, oldest), usage_hours.c.hour < window.end
    )
    return {row.hour for row in connection.execute(known) if calls.get(row.hour, 0) != row.calls}


def compare(connection: Connection, hours: Iterable[datetime]) -> dict[datetime, str]:
    """Compare hours with their raw calls: number, and the sum of the versions (`updated_at`) of all of them.

    Returns:
        The hours that differ, each with the reason in words. Hours never aggregated differ as well.
    """
    wanted = sorted(set(hours))
    windows = windows_of(wanted)
    stale: dict[datetime, str] = {}
    for index in range(0, len(windows), WINDOWS_PER_QUERY):
        stale |= _compare_windows(connection, windows[index : index + WINDOWS_PER_QUERY])
    return stale


def _compare_windows(connection: Connection, windows: list[Window]) -> dict[datetime, str]:
    # A query for each window: SQLite scans every call when windows stand in one OR.
    now_there = union_all(*(_versions(window) for window in windows))
    found = {row.hour: (row.calls, int(row.version)) for row in connection.execute(now_there)}
    hour = usage_hours.c.hour
    within = or_(*((hour >= window.start) & (hour < window.end) for window in windows))
    known = select(hour, usage_hours.c.calls, usage_hours.c.source_version).where(within)
    counted = {row.hour: (row.calls, int(row.source_version)) for row in connection.execute(known)}
    differing: dict[datetime, str] = {}
    for window in windows:
        for one in window:
            reason = _difference(counted.get(one), found.get(one, (0, 0)))
            if reason:
                differing[one] = f"{hour_text(one)}: {reason}"
    return differing


def _versions(window: Window) -> Rows:
    called = model_calls.c.called_at
    version = func.sum(version_number(model_calls.c.updated_at))
    return (
        select(hour_start(called).label("hour"), func.count().label("calls"), version.label("version"))
        .where(within_hours(called, window.start, window.end))
        .group_by(hour_key(called))
    )


def _difference(counted: tuple[int, int] | None, found: tuple[int, int]) -> str | None:
    if counted is None:
        return "not aggregated yet"
    if counted[0] != found[0]:
        return f"{counted[0]} calls became {found[0]}"
    return "calls changed after the hour was aggregated" if counted[1] != found[1] else None
