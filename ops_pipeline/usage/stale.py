"""Stale calls: processing for longer than their type may take, because whoever made them died.

What belongs here: the rule, the look and the guarded clean-up. A stale call becomes `failed`; a writer that ends it
afterwards all the same wins, and the hour follows through the late-data path.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, case, func, literal, or_, select, update

from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.database.expressions import instant_order, is_any_of, readable_instant, within_hours
from ops_pipeline.log_fields import fields
from ops_pipeline.reconcile import Change, Outcome, Plan, counted
from ops_pipeline.usage.hours import HOUR, floor_hour
from ops_pipeline.usage.tables import model_calls

log = logging.getLogger(__name__)
TIMEOUT_TEXT = "Timeout: Processing exceeded "
"""The beginning of `error_reason`. The database clears such a text when the call succeeds after all."""
RECENT = timedelta(hours=1)
FEWEST_RECENT = 20
"""Below so many calls a share says nothing: one of two is a half."""
EXAMPLES = 20
FIRST_BATCH, SMALLEST_BATCH, LARGEST_BATCH = 1_000, 100, 20_000
BATCH_SECONDS = 0.2
"""What a batch aims at. The rows are locked until it commits, and a gateway that ends one of them waits so long."""
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True)
class StalePolicy:
    """When a processing call is stale.

    Attributes:
        limit: how long a call may take.
        by_type: other limits, by type of call.
        alarm_share: from which share of the recent calls on so many time-outs mean that the gateway is down.
    """

    limit: timedelta
    by_type: Mapping[str, timedelta] = field(default_factory=dict)
    alarm_share: float = 0.2

    def limit_of(self, type_: str) -> timedelta:
        """How long a call of this type may take."""
        return self.by_type.get(type_, self.limit)


@dataclass(frozen=True)
class StaleGroup:
    """The stale calls of one model and type: how many, when the oldest began, and the limit that they exceed."""

    provider: str
    model: str
    type: str
    calls: int
    oldest: datetime
    limit: timedelta


@dataclass(frozen=True)
class StaleCalls:
    """What a look found, by the database's clock at `now`; `processing` counts the calls that are not stale too.

    `oldest` is None when nothing is processing, or nothing with a time that Python knows.
    """

    now: datetime
    processing: int
    oldest: datetime | None
    groups: tuple[StaleGroup, ...]

    @property
    def calls(self) -> int:
        """How many calls are stale."""
        return sum(group.calls for group in self.groups)


@dataclass(frozen=True)
class StaleCall:
    """One call that was failed."""

    id: str
    provider: str
    model: str
    type: str
    called_at: datetime


@dataclass(frozen=True)
class Cleaned:
    """What a clean-up did: calls failed by (provider, model, type), a few of them, and its longest transaction."""

    counts: Mapping[tuple[str, str, str], int]
    oldest: datetime | None
    examples: tuple[StaleCall, ...]
    batches: int
    longest_seconds: float

    @property
    def calls(self) -> int:
        """How many calls were failed."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Alarm:
    """How many of the recent calls timed out; `raised` when that says that the gateway is probably down."""

    timed_out: int
    calls: int
    raised: bool

    @property
    def share(self) -> float:
        """The share of the calls that timed out, from 0 to 1."""
        return self.timed_out / self.calls if self.calls else 0.0


def timeout_text(limit: timedelta) -> str:
    """The `error_reason` of a call that exceeded its limit."""
    minutes = limit / timedelta(minutes=1)
    return f"{TIMEOUT_TEXT}{minutes:g} minutes"


def find_stale(connection: Connection, policy: StalePolicy) -> StaleCalls:
    """Look for stale calls through the index of processing ones; reads no other call."""
    now = database_now(connection)
    called, kind = model_calls.c.called_at, func.coalesce(model_calls.c.type, "")
    provider = func.coalesce(model_calls.c.provider, "")
    counted = (
        select(
            provider.label("provider"),
            model_calls.c.model,
            kind.label("type"),
            func.count().label("calls"),
            func.min(_start(called)).label("oldest"),
        )
        .where(_stale(now, policy))
        .group_by(provider, model_calls.c.model, kind)
    )
    processing = select(func.count(), func.min(_start(called))).where(_processing())
    total, oldest = connection.execute(processing).one()
    groups = [
        StaleGroup(row.provider, row.model, row.type, row.calls, row.oldest, policy.limit_of(row.type))
        for row in connection.execute(counted)
    ]
    groups.sort(key=lambda group: (-group.calls, group.provider, group.model, group.type))
    return StaleCalls(now, total, oldest, tuple(groups))


def plan_stale(found: StaleCalls) -> Plan:
    """One change for each model and type, in words; how many calls each concerns stands in its key."""
    changes = tuple(
        Change(
            key=f"{counted(group.calls, 'call')} of {group.provider or '(no provider)'} {group.model}"
            f" {group.type}".strip(),
            action="fail",
            reason=timeout_text(group.limit),
            planned_from=f"processing since {group.oldest:%Y-%m-%d %H:%M:%S}",
        )
        for group in found.groups
    )
    return Plan(changes, scanned=found.processing)


def fail_stale(engine: Engine, cutoff: datetime, policy: StalePolicy) -> Cleaned:
    """Fail every call that was stale at `cutoff`, in transactions that aim at a fifth of a second.

    Each row is locked before it is looked at a last time, so that a call that ends at the same moment keeps its own
    result. Rows that somebody else holds are left to the next run.

    Args:
        engine: the operations database.
        cutoff: the database's time at which the calls were found.
        policy: when a call is stale.

    Raises:
        DatabaseProblem: the database failed; what was committed is told in a note of the error.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    examples: list[StaleCall] = []
    oldest: datetime | None = None
    batches, longest, size, after = 0, 0.0, FIRST_BATCH, EARLIEST
    while True:
        started = time.perf_counter()
        try:
            calls = _fail_batch(engine, cutoff, policy, after, size)
        except Exception as error:
            error.add_note(f"{counts.total()} stale calls were failed before.")
            raise
        seconds = time.perf_counter() - started
        if calls:
            batches, longest = batches + 1, max(longest, seconds)
            counts.update(call[1:4] for call in calls)
            examples += [StaleCall(*call) for call in calls[: EXAMPLES - len(examples)]]
            oldest = oldest or calls[0][4]
            after = calls[-1][4]
            known = fields(object="model_calls", changed=len(calls), duration_seconds=round(seconds, 3))
            log.debug("%d stale calls failed in %.2f s.", len(calls), seconds, extra=known)
        if len(calls) < size:
            return Cleaned(counts, oldest, tuple(examples), batches, longest)
        size = next_batch(size, seconds)


def next_batch(size: int, seconds: float) -> int:
    """How many rows the next transaction takes, so that it lasts as long as it should; at most twice as many."""
    wanted = size * BATCH_SECONDS / max(seconds, 0.001)
    return int(min(max(wanted, SMALLEST_BATCH), 2 * size, LARGEST_BATCH))


def _fail_batch(
    engine: Engine, cutoff: datetime, policy: StalePolicy, after: datetime, size: int
) -> list[tuple[str, str, str, str, datetime]]:
    """Fail a batch, and return its calls as the fields of `StaleCall`: as objects 100,000 would take half a second."""
    called, key = model_calls.c.called_at, model_calls.c.id
    order = instant_order(called)
    # From the last batch's end on: what lies before it in the index are the rows failed so far, thousands of them.
    onwards = [order >= instant_order(after)] if after > EARLIEST else []
    picked = (
        select(
            key,
            func.coalesce(model_calls.c.provider, "").label("provider"),
            model_calls.c.model,
            func.coalesce(model_calls.c.type, "").label("type"),
            _start(called).label("called_at"),
        )
        .where(_stale(cutoff, policy), *onwards)
        .order_by(order)
        .limit(size)
        .with_for_update(skip_locked=True)
    )
    with writing(engine) as connection:
        calls = [tuple(row) for row in connection.execute(picked)]
        if calls:
            failing = update(model_calls).where(is_any_of(key, [call[0] for call in calls]), _processing())
            connection.execute(failing.values(_failed(policy)))
        return calls


def _failed(policy: StalePolicy) -> dict[str, Any]:
    special = [(model_calls.c.type == type_, limit) for type_, limit in policy.by_type.items()]
    seconds = _by_type([(one, limit.total_seconds()) for one, limit in special], policy.limit.total_seconds())
    reason = _by_type([(one, timeout_text(limit)) for one, limit in special], timeout_text(policy.limit))
    took = model_calls.c.duration_seconds
    return {
        "status": "failed",
        "error_reason": reason,
        # Not the time until somebody looked: a cleaner that was down for a day would make calls of a day.
        "duration_seconds": case((took > seconds, took), else_=seconds),
    }


def _by_type(choices: Sequence[tuple[ColumnElement[bool], Any]], otherwise: Any) -> ColumnElement[Any]:
    return case(*choices, else_=otherwise) if choices else literal(otherwise)


def _processing() -> ColumnElement[bool]:
    # Written out, not as a parameter: only then does the partial index of both databases serve.
    return model_calls.c.status == literal("processing", literal_execute=True)


def _stale(now: datetime, policy: StalePolicy) -> ColumnElement[bool]:
    """Processing, and begun strictly before `now` less the limit of its type."""
    order, type_ = instant_order(model_calls.c.called_at), func.coalesce(model_calls.c.type, "")
    longest_ago = min([policy.limit, *policy.by_type.values()])
    by_type = [and_(type_ == name, order < instant_order(now - limit)) for name, limit in policy.by_type.items()]
    others = order < instant_order(now - policy.limit)
    if policy.by_type:
        others = and_(type_.not_in(list(policy.by_type)), others)
    # The first comparison holds for all of them, and is what the index serves.
    return and_(_processing(), order < instant_order(now - longest_ago), or_(*by_type, others))


def _start(called: ColumnElement[Any]) -> ColumnElement[datetime]:
    """The start of a call: 1970 for times before it, NULL from the year 9999 on, since Python may not know them."""
    order, earliest = instant_order(called), literal(EARLIEST, type_=model_calls.c.called_at.type)
    return case(
        (order < instant_order(EARLIEST), earliest),
        (order < instant_order(LATEST), readable_instant(called)),
    )


def look_for_alarm(connection: Connection, now: datetime, policy: StalePolicy, cleaned: Cleaned | None) -> Alarm:
    """How many of the calls that began within an hour before the limit have timed out, and of older ones just failed.

    Args:
        connection: after the clean-up.
        now: the database's time at which stale calls were looked for.
        policy: limit and share.
        cleaned: what the clean-up did; calls that it failed count even when they are older than that hour.
    """
    end = now - policy.limit
    start = end - RECENT
    called = model_calls.c.called_at
    order = instant_order(called)
    recent = and_(
        within_hours(called, floor_hour(start), floor_hour(end) + HOUR),
        order >= instant_order(start),
        order < instant_order(end),
    )
    timed_out = and_(model_calls.c.status == "failed", model_calls.c.error_reason.startswith(TIMEOUT_TEXT))
    counted = select(func.count(), func.count(case((timed_out, 1)))).where(recent)
    calls, failed = connection.execute(counted).one()
    return alarm_of(calls, failed, cleaned.calls if cleaned else 0, policy.alarm_share)


def alarm_of(calls: int, failed: int, cleaned: int, alarm_share: float) -> Alarm:
    """Decide whether so many time-outs are an alarm.

    Args:
        calls: calls of the hour before the limit.
        failed: those of them that timed out.
        cleaned: calls failed just now; those beyond `failed` are older than that hour.
        alarm_share: the share from which on it is one.
    """
    older = max(0, cleaned - failed)
    timed_out, total = failed + older, calls + older
    return Alarm(timed_out, total, raised=total >= FEWEST_RECENT and timed_out / total >= alarm_share)


def outcome_of(found: StaleCalls, cleaned: Cleaned, policy: StalePolicy) -> Outcome:
    """What the clean-up comes to; calls that ended meanwhile, or were held by somebody, count as skipped."""
    reasons: Counter[str] = Counter()
    for (_, _, type_), calls in cleaned.counts.items():
        reasons[timeout_text(policy.limit_of(type_))] += calls
    return Outcome(
        scanned=found.processing,
        changed=cleaned.calls,
        unchanged=found.processing - found.calls,
        skipped=max(0, found.calls - cleaned.calls),
        reasons=reasons,
    )
