"""Old raw calls: archived by month, then pruned, hour by hour as far as the roll-ups are complete and true.

Pruning goes on from the hour where it stopped and stops at the first hour that is not complete, or whose roll-up does
not add up to its calls: behind it nothing is pruned until that hour is mended. Before anything is deleted the
watermark (`watermarks`) moves on, after which no aggregation makes these hours again.

What belongs here: the rule, the look and the sequence. Archives are written by `ops_pipeline.archives`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.archives.store import library_errors
from ops_pipeline.database.engine import database_now, reading, rewriting
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.expressions import within_hours
from ops_pipeline.database.leases import LeaseHeld, leased
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.database.types import parse_instant
from ops_pipeline.passes import SHOWN_CHANGES, Options, Report
from ops_pipeline.reconcile import Change, Outcome, Unavailable
from ops_pipeline.usage.hours import Window, floor_hour, hour_text
from ops_pipeline.usage.progress import EARLIEST_HOUR, first_wanted_hour
from ops_pipeline.usage.statements import hours_within, rolled_up, source_facts
from ops_pipeline.usage.tables import TOKEN_COLUMNS, model_calls, usage_hours
from ops_pipeline.usage.watermarks import move_pruned_before, pruned_before

NAME = "old_model_calls"
KIND = "model_calls"
PRUNE = "archive and prune"
CALLS_PER_ARCHIVE = 200_000
ROWS_AT_ONCE = 5_000
ADVICE = "Nothing was changed. Read the plan; if it is right, launch again with the limit raised in the run config."


@dataclass(frozen=True)
class PrunePolicy:
    """What may go.

    Attributes:
        start: the first hour that is metered; calls before it stay, since no roll-up holds them.
        retention: how long raw calls are kept; None for ever.
        told: MODEL_CALLS_PRUNED_BEFORE.
    """

    start: datetime
    retention: timedelta | None
    told: datetime | None = None


@dataclass(frozen=True)
class Due:
    """What is due by age.

    Attributes:
        window: the hours; None when there are none.
        calls: in them, as they were counted when they were aggregated.
        known: calls of all hours from there on.
        late: calls in hours that are pruned already: they came later, are in no roll-up, and stay.
    """

    window: Window | None
    calls: int
    known: int
    late: int


@dataclass
class Pruned:
    """What was done.

    Attributes:
        until: hours before it are pruned.
        blocked: why the hour at `until` stops the rest, in words.
    """

    until: datetime
    changes: list[Change] = field(default_factory=list)
    calls: int = 0
    kept: int = 0
    archives: list[str] = field(default_factory=list)
    blocked: str = ""
    stopped: bool = False
    finished: int = 0
    longest_seconds: float = 0.0


def prune_old_calls(engine: Engine, archive: str, policy: PrunePolicy, options: Options) -> Report:
    """Archive and prune calls of hours that are older than the retention; never raises for it.

    Args:
        engine: the operations database.
        archive: where archives are written, a folder or a URL.
        policy: what may go.
        options: how.
    """
    if policy.retention is None:
        return Report(NAME, skipped="MODEL_CALL_RETENTION_DAYS is not set: raw calls are kept.")
    try:
        return _run(engine, archive, look(engine, policy, policy.retention), options)
    except (Unavailable, LeaseHeld, DatabaseProblem, OSError, ValueError, *library_errors()) as error:
        return Report(NAME, error=str(error))
    except SQLAlchemyError as error:
        return Report(NAME, error=str(error).partition("\n")[0])


def look(engine: Engine, policy: PrunePolicy, retention: timedelta) -> Due:
    """What is due by age; whether its roll-ups are true is looked at hour by hour."""
    with reading(engine) as connection:
        cutoff = floor_hour(database_now(connection) - retention)
        first = first_wanted_hour(connection, policy.start)
        watermark = pruned_before(connection, policy.told)
        begin = max(first, watermark or first) if first else None
        window = Window(begin, cutoff) if begin is not None and begin < cutoff else None
        calls = func.coalesce(func.sum(usage_hours.c.calls), 0)
        known = connection.execute(select(calls).where(usage_hours.c.hour >= (begin or cutoff))).scalar_one()
        due = 0
        if window:
            due = connection.execute(select(calls).where(_hours(window))).scalar_one()
        late = _late(connection, policy.start, watermark) if watermark else 0
        return Due(window, int(due), int(known), late)


def _hours(window: Window) -> Any:
    return hours_within(usage_hours, window.start, window.end)


def _late(connection: Connection, start: datetime, watermark: datetime) -> int:
    begin = max(start, EARLIEST_HOUR)
    if begin >= watermark:
        return 0
    inside = within_hours(model_calls.c.called_at, begin, watermark)
    return connection.execute(select(func.count()).select_from(model_calls).where(inside)).scalar_one()


def untrue_hours(connection: Connection, window: Window) -> dict[datetime, str]:
    """The hours whose raw calls must not be pruned, and why: not complete, or not what their roll-up says."""
    known = {row.hour: row for row in connection.execute(select(usage_hours).where(_hours(window)))}
    facts = {row.hour: row for row in connection.execute(source_facts(window))}
    sums: dict[datetime, dict[str, Any]] = {}
    for row in connection.execute(rolled_up(window)).mappings():
        total = sums.setdefault(row["hour"], dict.fromkeys(("calls", *TOKEN_COLUMNS, "credits"), 0))
        for name in total:
            total[name] += row[name]
    return {
        hour: reason
        for hour in window
        if (reason := _untrue(known.get(hour), facts.get(hour), sums.get(hour))) is not None
    }


def _untrue(known: Any, facts: Any, sums: Mapping[str, Any] | None) -> str | None:
    if known is None:
        return "it was never aggregated"
    if known.state != "complete":
        return f"it is {known.state}: {known.processing} of its calls have not ended"
    calls, version = (facts.calls, int(facts.source_version)) if facts else (0, 0)
    if (calls, version) != (known.calls, int(known.source_version)):
        return f"its calls changed since it was aggregated ({known.calls} calls then, {calls} now)"
    for name in ("calls", *TOKEN_COLUMNS, "credits"):
        there, summed = (getattr(facts, name) if facts else 0), (sums[name] if sums else 0)
        if there != summed:
            return f"its roll-up has {name} {summed}, its raw calls have {there}"
    return None


def next_window(connection: Connection, due: Window) -> Window:
    """The hours of the next archive: within one month, and of so many calls."""
    month = due.start.replace(day=1, hour=0)
    end = min(due.end, (month + timedelta(days=32)).replace(day=1))
    query = select(usage_hours.c.hour, usage_hours.c.calls).where(_hours(Window(due.start, end)))
    calls = 0
    for row in connection.execute(query.order_by(usage_hours.c.hour)):
        calls += row.calls
        if calls > CALLS_PER_ARCHIVE and row.hour > due.start:
            return Window(due.start, row.hour)
    return Window(due.start, end)


def _run(engine: Engine, archive: str, due: Due, options: Options) -> Report:
    objection = options.limit.objection_to(due.calls, due.known)
    done = Pruned(due.window.start if due.window else EARLIEST_HOUR)
    if objection or options.dry_run:
        _walk(engine, due, options, done, None)
    else:
        # pyarrow takes 0.3 s to import, which deployments that keep their calls need not pay.
        from ops_pipeline.usage.call_archive import CallArchive  # noqa: PLC0415

        with leased(engine, f"maintenance {NAME}") as lease:
            calls = CallArchive(engine, archive, options.run_id)
            done.finished = calls.finish_others(lease)
            _walk(engine, due, options, done, lambda window: calls.prune(window, lease, done))
        waits = f"; the rest waits for {done.blocked}" if done.blocked else ""
        options.say(f"Pruned {done.calls} raw model calls{waits}")
    return _report(due, done, options, f"Refused: {objection}. {ADVICE}" if objection else "")


def _walk(engine: Engine, due: Due, options: Options, done: Pruned, prune: Callable[[Window], str] | None) -> None:
    """Go on window by window until an hour is untrue, the time is up, or all is done."""
    deadline = options.deadline()
    while due.window is not None and done.until < due.window.end and not done.blocked:
        if deadline.passed:
            done.stopped = True
            return
        with reading(engine) as connection:
            window = next_window(connection, Window(done.until, due.window.end))
            untrue = untrue_hours(connection, window)
        if untrue:
            first = min(untrue)
            done.blocked = f"{hour_text(first)}: {untrue[first]}"
            if first == window.start:
                return
            window = Window(window.start, first)
        reason = prune(window) if prune else ""
        if reason:
            done.blocked = reason
            return
        done.changes.append(Change(str(window), PRUNE, "its roll-up is complete and adds up", "raw calls"))
        done.until = window.end


def claim(engine: Engine, window: Window) -> str:
    """Look once more and move the watermark on, with all aggregation held off; why not, in words, or empty."""

    def transaction() -> str:
        with rewriting(engine, usage_hours) as connection:
            untrue = untrue_hours(connection, window)
            if untrue:
                first = min(untrue)
                return f"{hour_text(first)}: {untrue[first]}"
            move_pruned_before(connection, window.end)
            return ""

    return despite_conflicts(transaction)


def window_of(facts: Mapping[str, Any]) -> Window:
    """The hours of an archive, from its manifest."""
    return Window(parse_instant(facts["first_hour"]), parse_instant(facts["end"]))


def _report(due: Due, done: Pruned, options: Options, error: str) -> Report:
    window = due.window
    acted = not error and not options.dry_run
    begin = done.until if acted or not window else window.start
    overdue = (window.end - begin).total_seconds() if window else 0.0
    kept = {f"waits, with all after it, for {done.blocked}": 1} if done.blocked else {}
    if due.late:
        kept["came after their hours were pruned: in no roll-up"] = due.late
    return Report(
        NAME,
        Outcome(
            scanned=due.known,
            changed=done.calls,
            unchanged=due.known - done.calls,
            skipped=done.kept,
            reasons={PRUNE: done.calls} if done.calls else {},
        ),
        changes=tuple(done.changes[:SHOWN_CHANGES]),
        planned=len(done.changes),
        kept=kept,
        left=max(0, due.calls - done.calls) if done.stopped or done.blocked else 0,
        backlog_seconds=overdue,
        error=error,
        facts={
            "calls": done.calls,
            "due_calls": due.calls,
            "pruned_before": done.until.isoformat() if window else "",
            "archives": done.archives,
            "longest_transaction_seconds": round(done.longest_seconds, 3),
            "finished_archives_of_dead_runs": done.finished,
        },
    )
