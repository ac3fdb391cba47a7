"""A believable history of calls for demonstrations, benchmarks and tests, and calls that go on while one watches.

What belongs here: when calls happen, writing them to `model_calls`, and ending them later. What does not: which
models there are and how a call turns out (`demo_catalogue`), and any roll-up. Every id begins with `demo-`, and
no other call is ever changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ops_pipeline.database.engine import reading, writing
from ops_pipeline.database.errors import Conflict
from ops_pipeline.database.expressions import within_hours
from ops_pipeline.database.types import require_aware
from ops_pipeline.usage.demo_catalogue import (
    MODELS,
    Floats,
    Gateway,
    draw_calls,
    draw_outcome,
    edges,
    gateway,
    generator,
)
from ops_pipeline.usage.hours import DAY, HOUR, floor_hour, hour_text
from ops_pipeline.usage.tables import CREDIT_DIGITS, model_calls

ID_PREFIX = "demo-"
BATCH = 20_000
LONGEST_DAYS = 3660
FEWEST_USERS, MOST_USERS, CALLS_PER_NEW_USER = 200, 2_000, 500
LONGEST_CALL = timedelta(minutes=20)
"""Only calls that began so recently can still run, except those that never end."""

WORKDAY = (22, 18, 16, 16, 18, 26, 40, 62, 82, 94, 98, 95, 90, 97, 100, 98, 92, 80, 66, 56, 48, 42, 36, 28)
WEEKEND = (18, 15, 13, 12, 12, 13, 15, 18, 23, 28, 31, 33, 33, 34, 35, 34, 33, 32, 31, 31, 30, 28, 25, 21)
"""Calls per UTC hour, in percent of the busiest hour."""

UNFINISHED: dict[str, Any] = {
    "status": "processing",
    "duration_seconds": None,
    "ttfb_ms": None,
    "input_tokens": 0,
    "output_tokens": 0,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "reasoning_tokens": 0,
    "images": 0,
    "media_seconds": 0.0,
    "credits": Decimal(0).scaleb(-CREDIT_DIGITS),
    "error_reason": None,
}
"""The outcome of a call that still runs; its keys are what ending a call sets."""

_CELL = timedelta(minutes=10)
_MINUTE = timedelta(minutes=1)
_LINGERING = 0.15
_LOST_CALLS, _LOST_WITHIN, _LOST_BEFORE = 6, 3 * DAY, 2 * HOUR
_ROUND_SECONDS = 5.0
_REVISIT_EVERY = timedelta(minutes=2)
_REVISIT_HOURS = 72
_CANDIDATES = 50
_MODELS = {(model.provider, model.name): model for model in MODELS}

Row = dict[str, Any]


@dataclass(frozen=True)
class DemoPlan:
    """`calls` calls in the `days` days before `until`; equal plans make equal calls on any machine."""

    days: int
    calls: int
    seed: int
    until: datetime

    def __post_init__(self) -> None:
        """Refuse what makes no history."""
        if not 1 <= self.days <= LONGEST_DAYS:
            raise ValueError(f"days is {self.days}; a history covers 1 to {LONGEST_DAYS} days")
        if self.calls < 1:
            raise ValueError(f"calls is {self.calls}; a history has at least 1 call")
        require_aware(self.until)

    @property
    def start(self) -> datetime:
        """The first instant of the history."""
        return self.until.astimezone(UTC) - self.days * DAY

    @property
    def key(self) -> tuple[object, ...]:
        """What all its random numbers and ids depend on."""
        return (self.seed, self.days, self.calls, self.until.astimezone(UTC).isoformat())


def history(plan: DemoPlan) -> Iterator[list[Row]]:
    """The rows in the order of `called_at`, in batches of at most `BATCH`."""
    offered = gateway(plan.seed, min(MOST_USERS, FEWEST_USERS + plan.calls // CALLS_PER_NEW_USER))
    cells = _cells(plan)
    lost = _lost_calls(plan, cells)
    prefix = _prefix(plan.key)
    for first in range(0, plan.calls, BATCH):
        numbers = range(first, min(first + BATCH, plan.calls))
        rng = generator("history", *plan.key, first)
        instants = _instants(plan, cells, numbers, rng)
        rows = draw_calls(rng, offered, [f"{prefix}{number:09d}" for number in numbers], instants)
        lingering = (rng.random(len(rows)) < _LINGERING).tolist()
        for number, row, lingers in zip(numbers, rows, lingering, strict=True):
            if number in lost or _still_runs(row, plan.until, lingers=lingers):
                row.update(UNFINISHED)
        yield rows


def write_history(engine: Engine, plan: DemoPlan, progress: Callable[[int], None]) -> int:
    """Write the history, each batch in a transaction of its own; what is there already stays as it is.

    Args:
        engine: the operations database.
        plan: what to write.
        progress: is told after each batch how many rows it added.

    Returns:
        The number of new rows: 0 when the same plan was written before.
    """
    written = 0
    for rows in history(plan):
        with writing(engine) as connection:
            new = _insert(connection, rows)
        written += new
        progress(new)
    return written


def is_empty(engine: Engine) -> bool:
    """True when there is no call at all, from this module or any other writer."""
    with reading(engine) as connection:
        return connection.execute(select(model_calls.c.id).limit(1)).first() is None


def first_real_call(engine: Engine) -> str | None:
    """The id of some call that this module did not write; None when there is none."""
    with reading(engine) as connection:
        foreign = select(model_calls.c.id).where(model_calls.c.id.not_like(f"{ID_PREFIX}%")).limit(1)
        return connection.execute(foreign).scalar()


def live(
    engine: Engine,
    seed: int,
    calls_per_minute: float,
    *,
    clock: Callable[[], datetime],
    sleep: Callable[[float], None],
    stop: Callable[[], bool],
    told: Callable[[str], None],
) -> None:
    """Write calls as they happen: begin them, end them, and every two minutes revisit one of an earlier hour.

    Calls that still run when it stops stay `processing`, as when a real gateway dies.

    Args:
        engine: the operations database.
        seed: chooses users and their habits, the same as in a history of that seed.
        calls_per_minute: how many calls begin.
        clock: the time, aware.
        sleep: waits a number of seconds.
        stop: asked before each round.
        told: receives one line per round.

    Raises:
        ValueError: `calls_per_minute` is negative, or the clock has no time zone.
    """
    if calls_per_minute < 0:
        raise ValueError(f"calls_per_minute is {calls_per_minute}; it must not be negative")
    looked = revisited = require_aware(clock())
    rng = generator("live", seed, looked.isoformat())
    offered = gateway(seed, FEWEST_USERS)
    prefix = _prefix(("live", seed, looked.isoformat()))
    running: list[Row] = []
    owed = 0.0
    while not stop():
        sleep(_ROUND_SECONDS)
        now = clock()
        # A machine that slept for a night owes no burst of calls, nor does a clock that was set back.
        passed = min(max(now - looked, timedelta(0)), _MINUTE)
        looked = now
        owed += calls_per_minute * (passed / _MINUTE)
        begun = _begun(rng, offered, prefix, int(owed), after=now - passed, until=now)
        owed -= len(begun)
        revisits = now - revisited >= _REVISIT_EVERY
        try:
            with writing(engine) as connection:
                _insert(connection, [row | UNFINISHED for row in begun])
                ended = _end(connection, [row for row in running if _ends_at(row) <= now])
                late = _revisit(connection, rng, offered, now) if revisits else ""
        except Conflict as problem:
            # What should have ended is still in `running`, and the next round tries it again.
            told(f"{now:%H:%M:%S} nothing written: {problem}")
            continue
        running = [row for row in running if _ends_at(row) > now] + begun
        revisited = now if revisits else revisited
        told(f"{now:%H:%M:%S} {len(begun)} began, {ended} ended, {len(running)} running{late}")


def _prefix(key: tuple[object, ...]) -> str:
    return f"{ID_PREFIX}{blake2b(repr(key).encode(), digest_size=5).hexdigest()}-"


def _cells(plan: DemoPlan) -> Floats:
    """The share of all calls before each ten minutes of the history: 0 at its start, 1 at its end."""
    week = np.array((*WORKDAY * 5, *WEEKEND * 2), dtype=np.float64)
    start = plan.start
    minute = start.weekday() * 1440 + start.hour * 60 + start.minute
    minutes = (minute + 10 * np.arange(plan.days * (DAY // _CELL))) % (7 * 1440)
    hour, within = minutes // 60, minutes % 60 / 60
    rate = week[hour] + (week[(hour + 1) % len(week)] - week[hour]) * within
    noise = 0.7 + 0.6 * generator("cells", *plan.key).random(len(rate))
    return np.concatenate([[0.0], edges(rate * noise)])


def _instants(plan: DemoPlan, cells: Floats, numbers: range, rng: np.random.Generator) -> list[datetime]:
    """When the calls of these numbers happen, in order: the n-th has about n of all calls before it."""
    share = (np.arange(numbers.start, numbers.stop) + rng.random(len(numbers))) / plan.calls
    cell = np.minimum(np.searchsorted(cells, share, side="right") - 1, len(cells) - 2)
    within = (share - cells[cell]) / (cells[cell + 1] - cells[cell])
    length = _CELL // timedelta(milliseconds=1)
    offset = cell * length + np.minimum((within * length).astype(np.int64), length - 1)
    start = plan.start
    return [start + timedelta(milliseconds=milliseconds) for milliseconds in offset.tolist()]


def _lost_calls(plan: DemoPlan, cells: Floats) -> frozenset[int]:
    """The numbers of a handful of calls of the last days, at least two hours old, whose end nobody wrote down."""
    last = len(cells) - 1
    bounds = [cells[max(0, last - age // _CELL)] * plan.calls for age in (_LOST_WITHIN, _LOST_BEFORE)]
    low, high = int(bounds[0]) + 1, int(bounds[1]) - 1
    count = min(_LOST_CALLS, plan.calls // 50, high - low)
    if count < 1:
        return frozenset()
    # One in each part of the period, so that they are distinct.
    parts = (np.arange(count) + generator("lost", *plan.key).random(count)) / count
    return frozenset((low + parts * (high - low)).astype(np.int64).tolist())


def _still_runs(row: Row, now: datetime, *, lingers: bool) -> bool:
    """True for a call that the end of the history cuts off, or whose client is slow to hang up."""
    return row["called_at"] >= now - LONGEST_CALL and (lingers or _ends_at(row) > now)


def _ends_at(row: Row) -> datetime:
    return row["called_at"] + timedelta(seconds=row["duration_seconds"])


def _begun(
    rng: np.random.Generator, offered: Gateway, prefix: str, count: int, *, after: datetime, until: datetime
) -> list[Row]:
    """New calls between two instants, with the outcome that they are going to have."""
    instants = [after + (until - after) * share for share in sorted(rng.random(count).tolist())]
    return draw_calls(rng, offered, [f"{prefix}{rng.bytes(6).hex()}" for _ in range(count)], instants)


def _insert(connection: Connection, rows: Sequence[Row]) -> int:
    """Insert the rows that are not there yet, and count them."""
    if not rows:
        return 0
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(model_calls).on_conflict_do_nothing(index_elements=[model_calls.c.id])
    return connection.execute(statement, rows, execution_options={"preserve_rowcount": True}).rowcount


def _end(connection: Connection, rows: Sequence[Row]) -> int:
    """Write the outcomes of calls that are still `processing`; the cleaner may have given one up meanwhile."""
    if not rows:
        return 0
    statement = (
        update(model_calls)
        .where(model_calls.c.id == bindparam("call_id"), model_calls.c.status == UNFINISHED["status"])
        .values({name: bindparam(f"new_{name}") for name in UNFINISHED})
    )
    outcomes = [{"call_id": row["id"], **{f"new_{name}": row[name] for name in UNFINISHED}} for row in rows]
    return connection.execute(statement, outcomes).rowcount


def _revisit(connection: Connection, rng: np.random.Generator, offered: Gateway, now: datetime) -> str:
    """Change one call of an earlier hour, as late reports do, and say which."""
    # At least an hour old: calls of this process have long ended by themselves then.
    newest = floor_hour(now) - HOUR
    lost = _candidates(connection, "processing", newest - _REVISIT_HOURS * HOUR, newest)
    if lost and rng.random() < 0.5:
        call = lost[int(rng.random() * len(lost))]
        outcome = draw_outcome(rng, offered, _MODELS[call.provider, call.model])
        ended = _end(connection, [{"id": call.id, **outcome}])
        return f"; ended {call.id} of {hour_text(call.called_at)} late" if ended else ""
    hour = newest - int(1 + rng.random() * _REVISIT_HOURS) * HOUR
    done = [call for call in _candidates(connection, "success", hour, hour + HOUR) if call.output_tokens]
    if not done:
        return f"; found no call of {hour_text(hour)} to correct"
    return _correct(connection, rng, done[int(rng.random() * len(done))])


def _candidates(connection: Connection, status: str, start: datetime, end: datetime) -> list[Any]:
    """Some calls of this module that have a status, from whole hours."""
    calls = select(model_calls).where(
        within_hours(model_calls.c.called_at, start, end),
        model_calls.c.status == status,
        model_calls.c.id.startswith(ID_PREFIX),
    )
    found = connection.execute(calls.limit(_CANDIDATES)).all()
    return [call for call in found if (call.provider, call.model) in _MODELS]


def _correct(connection: Connection, rng: np.random.Generator, call: Any) -> str:
    """Add output tokens, and what they cost, that the provider reported after the call."""
    more = 1 + int(rng.random() * call.output_tokens / 2)
    corrected = (
        update(model_calls)
        .where(model_calls.c.id == call.id, model_calls.c.status == "success")
        .where(model_calls.c.output_tokens == call.output_tokens)
        .values(
            output_tokens=call.output_tokens + more,
            credits=call.credits + more * _MODELS[call.provider, call.model].prices[1],
        )
    )
    if not connection.execute(corrected).rowcount:
        return ""
    return f"; corrected {call.id} of {hour_text(call.called_at)} by {more} output tokens"
