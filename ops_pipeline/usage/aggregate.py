"""Aggregation of hours: raw calls in, the rows of three tables out, in one transaction per day at most.

What belongs here: the transaction, its guards and its bookkeeping. The queries are in `statements`; which hours to
do is decided in `hours` and `late`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, delete, exists, select
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.database.engine import database_now, rewriting
from ops_pipeline.database.errors import Conflict, DatabaseProblem, Unreachable
from ops_pipeline.database.replace import Replaced, insert_rows, replace_rows, upsert
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.log_fields import fields
from ops_pipeline.usage.attempts import attempted, begin_attempt, forgive_attempt, record_failures
from ops_pipeline.usage.hours import Window, chunks_of, hour_text, windows_of
from ops_pipeline.usage.statements import (
    ANOMALIES,
    calls_per_hour,
    hourly_rows,
    hours_within,
    latency_rows,
    rolled_up,
    source_facts,
    users_per_hour,
)
from ops_pipeline.usage.tables import (
    TOKEN_COLUMNS,
    hourly_model_latency,
    hourly_model_usage,
    usage_hour_attempts,
    usage_hours,
)
from ops_pipeline.usage.watermarks import pruned_before

log = logging.getLogger(__name__)
SHRINK_SHARE = 2
"""An hour whose calls became fewer than 1/2 of what was counted before is taken for pruned, not for corrected."""
TOP_MODELS = 10


class RollUpMismatch(Exception):
    """The roll-up does not add up to the raw calls of the same snapshot; nothing of it was kept."""


@dataclass(frozen=True)
class Policy:
    """What an aggregation may do.

    Attributes:
        allow_shrink: replace an hour even when most of its raw calls are gone.
        pruned_before: raw calls older than this were pruned, so that their hours must not be made again.
        dry_run: do everything, report it, and roll back.
    """

    allow_shrink: bool = False
    pruned_before: datetime | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class ModelTotal:
    """One model's part of an hour; `tokens` is input plus output."""

    provider: str
    model: str
    calls: int
    failed: int
    tokens: int
    credits: Decimal


@dataclass(frozen=True)
class HourResult:
    """What became of one hour: its totals, and the anomalies counted in it."""

    hour: datetime
    calls: int
    processing: int
    users: int
    tokens: Mapping[str, int]
    credits: Decimal
    rows: int
    anomalies: Mapping[str, int]
    models: tuple[ModelTotal, ...]

    @property
    def state(self) -> str:
        """`provisional` while calls of the hour are still processing, else `complete`."""
        return "provisional" if self.processing else "complete"


@dataclass(frozen=True)
class HourFailure:
    """An hour that was left as it was, and why."""

    hour: datetime
    error: str
    mismatch: bool = False


@dataclass(frozen=True)
class ChunkResult:
    """One transaction's hours: those written, those that failed, and how many rows changed."""

    window: Window
    hours: tuple[HourResult, ...] = ()
    failures: tuple[HourFailure, ...] = ()
    replaced: Replaced = field(default_factory=Replaced)
    seconds: float = 0.0


def aggregate(engine: Engine, hours: Iterable[datetime], policy: Policy) -> Iterator[ChunkResult]:
    """Aggregate whole UTC hours and yield after each commit, so that a killed run keeps what it finished.

    An hour that fails is isolated by halving its transaction; the other hours are done all the same.

    Args:
        engine: the operations database.
        hours: starts of closed UTC hours, in any order.
        policy: what may be done.

    Raises:
        Unreachable: the database cannot be used; hours already yielded stay done.
    """
    wanted = sorted(set(hours))
    for window in chunks_of(wanted, alone=attempted(engine, wanted)):
        if not policy.dry_run:
            despite_conflicts(begin_attempt, engine, window)
        started = time.perf_counter()
        try:
            result = _halving(engine, window, policy)
        except Unreachable:
            if not policy.dry_run:
                forgive_attempt(engine, window)
            raise
        if not policy.dry_run:
            despite_conflicts(record_failures, engine, {one.hour: one.error for one in result.failures})
        done = replace(result, window=window, seconds=time.perf_counter() - started)
        _tell(done)
        yield done


def _tell(chunk: ChunkResult) -> None:
    """Each transaction as a detail of the log, and each hour that failed."""
    period = f"{chunk.window.start:%Y-%m-%dT%H:%MZ} to {chunk.window.end:%Y-%m-%dT%H:%MZ}"
    known = fields(object=period, hours=len(chunk.hours), duration_seconds=round(chunk.seconds, 3))
    log.debug("%s: %d hours aggregated in %.2f s.", period, len(chunk.hours), chunk.seconds, extra=known)
    for one in chunk.failures:
        hour = f"{one.hour:%Y-%m-%dT%H:%MZ}"
        log.debug("%s: not aggregated: %s", hour, one.error, extra=fields(object=hour, reason=one.error))


def _halving(engine: Engine, window: Window, policy: Policy) -> ChunkResult:
    try:
        return despite_conflicts(_rewrite, engine, window, policy)
    except Unreachable:
        raise
    except Conflict as error:
        # No hour is to blame: half of them would wait as long for whoever holds the lock.
        return ChunkResult(window, failures=tuple(HourFailure(hour, str(error)) for hour in window))
    except (DatabaseProblem, SQLAlchemyError, RollUpMismatch) as error:
        if len(window) == 1:
            # Of an error that nobody translated, the first line: the statement follows.
            reason = str(error).partition("\n")[0]
            failure = HourFailure(window.start, reason, isinstance(error, RollUpMismatch))
            return ChunkResult(window, failures=(failure,))
    middle = window.start + (window.end - window.start) * (len(window) // 2) / len(window)
    first = _halving(engine, Window(window.start, middle), policy)
    second = _halving(engine, Window(middle, window.end), policy)
    return ChunkResult(
        window, first.hours + second.hours, first.failures + second.failures, first.replaced + second.replaced
    )


def _rewrite(engine: Engine, window: Window, policy: Policy) -> ChunkResult:
    """One transaction: guard, write the three tables, check that they add up, commit (or roll back a dry run)."""
    with rewriting(engine, usage_hours) as connection:
        known = _rows_by_hour(
            connection, select(usage_hours).where(hours_within(usage_hours, window.start, window.end))
        )
        facts = _rows_by_hour(connection, source_facts(window))
        policy = replace(policy, pruned_before=pruned_before(connection, policy.pruned_before))
        counted = known
        if len(known) < len(window):
            # usage_hours may have lost a row that the roll-up still has, after a restore of single tables.
            counted = _rows_by_hour(connection, calls_per_hour(window)) | known
        refused = {
            hour: reason for hour in window if (reason := refusal(hour, counted.get(hour), facts.get(hour), policy))
        }
        results: list[HourResult] = []
        total = Replaced()
        for part in windows_of(hour for hour in window if hour not in refused):
            replaced = _write_rows(connection, part, fresh=not any(hour in counted for hour in part))
            part_results = _checked(connection, part, facts)
            _mark_done(connection, part_results, known, facts, bump=replaced.anything)
            results += part_results
            total += replaced
        if policy.dry_run:
            connection.rollback()
    failures = tuple(HourFailure(hour, reason) for hour, reason in sorted(refused.items()))
    return ChunkResult(window, tuple(results), failures, total)


def refusal(
    hour: datetime, known: Mapping[str, Any] | None, facts: Mapping[str, Any] | None, policy: Policy
) -> str | None:
    """Why an hour must not be made again from the raw calls there are now; None when it may.

    Args:
        hour: its start.
        known: its row in `usage_hours` or its sum in the roll-up, if it was done before.
        facts: its row of `source_facts`; None when it has no calls.
        policy: what may be done.
    """
    if policy.allow_shrink:
        return None
    advice = "The old numbers stay. To replace them all the same, launch with allow_shrink: true."
    if policy.pruned_before is not None and hour < policy.pruned_before:
        limit = hour_text(policy.pruned_before)
        return f"Its raw calls were pruned (all before {limit}, see MODEL_CALLS_PRUNED_BEFORE). {advice}"
    calls = facts["calls"] if facts else 0
    before = known["calls"] if known else 0
    if calls * SHRINK_SHARE < before:
        return f"Only {calls} of the {before} calls counted before are left: they look pruned, not corrected. {advice}"
    return None


def _write_rows(connection: Connection, window: Window, *, fresh: bool) -> Replaced:
    total = Replaced()
    for table, rows in (
        (hourly_model_usage, hourly_rows(window)),
        (hourly_model_latency, latency_rows(window)),
    ):
        period = hours_within(table, window.start, window.end)
        if fresh and not connection.execute(select(exists().where(period))).scalar_one():
            total += insert_rows(connection, table, rows)
        else:
            total += replace_rows(connection, table, rows, period)
    return total


def _checked(connection: Connection, window: Window, facts: Mapping[datetime, Any]) -> list[HourResult]:
    """Read back what was written and compare it with the raw calls of the same snapshot.

    Raises:
        RollUpMismatch: calls, a kind of tokens or credits differ; the transaction is rolled back by it.
    """
    models: dict[datetime, list[Mapping[str, Any]]] = {}
    for row in connection.execute(rolled_up(window)).mappings():
        models.setdefault(row["hour"], []).append(row)
    users = {row.hour: row.users for row in connection.execute(users_per_hour(window))}
    results = []
    for hour in window:
        fact = facts.get(hour)
        parts = models.get(hour, [])
        for name in ("calls", *TOKEN_COLUMNS, "credits"):
            expected = fact[name] if fact else 0
            found = sum(part[name] for part in parts)
            if found != expected:
                raise RollUpMismatch(f"{hour_text(hour)}: the roll-up has {name} {found}, the raw calls {expected}")
        results.append(_hour_result(hour, fact, parts, users.get(hour, 0)))
    return results


def _hour_result(
    hour: datetime, fact: Mapping[str, Any] | None, parts: Sequence[Mapping[str, Any]], users: int
) -> HourResult:
    totals = sorted(
        (
            ModelTotal(
                part["provider"],
                part["model"],
                part["calls"],
                part["failed"],
                part["input_tokens"] + part["output_tokens"],
                part["credits"],
            )
            for part in parts
        ),
        key=lambda total: (-total.calls, total.provider, total.model),
    )
    return HourResult(
        hour=hour,
        calls=fact["calls"] if fact else 0,
        processing=fact["processing"] if fact else 0,
        users=users,
        tokens={name: int(fact[name]) if fact else 0 for name in TOKEN_COLUMNS},
        credits=fact["credits"] if fact else Decimal(0),
        rows=sum(part["rows"] for part in parts),
        anomalies={name: fact[name] for name in ANOMALIES if fact and fact[name]},
        models=tuple(totals[:TOP_MODELS]),
    )


def _mark_done(
    connection: Connection,
    results: Sequence[HourResult],
    known: Mapping[datetime, Any],
    facts: Mapping[datetime, Any],
    *,
    bump: bool,
) -> None:
    now = database_now(connection)
    rows = [
        {
            "hour": result.hour,
            "state": result.state,
            "calls": result.calls,
            "processing": result.processing,
            "aggregated_at": now,
            "source_version": facts[result.hour]["source_version"] if result.hour in facts else 0,
            "revision": (known[result.hour]["revision"] + bump) if result.hour in known else round(now.timestamp()),
            "anomalies": dict(result.anomalies),
        }
        for result in results
    ]
    upsert(connection, usage_hours, rows)
    for window in windows_of(result.hour for result in results):
        connection.execute(
            delete(usage_hour_attempts).where(hours_within(usage_hour_attempts, window.start, window.end))
        )


def _rows_by_hour(connection: Connection, statement: Any) -> dict[datetime, Mapping[str, Any]]:
    return {row["hour"]: row for row in connection.execute(statement).mappings()}
