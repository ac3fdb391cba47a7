"""Model status in the database: reservations of the budget, results of probes, states, and what real calls say.

What belongs here: every statement over `model_probe_results` and `model_statuses`. Decisions are in `states`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, and_, case, func, insert, select, update

from ops_pipeline.database.engine import database_now, rewriting
from ops_pipeline.database.expressions import within_hours
from ops_pipeline.database.replace import upsert
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.database.sums import exact_sum
from ops_pipeline.usage.hours import HOUR, floor_hour
from ops_pipeline.usage.probes.answers import AVAILABLE, NOT_TESTED, Answer
from ops_pipeline.usage.probes.states import Status, Traffic, advance, advance_by_traffic
from ops_pipeline.usage.probes.targets import Key, ProbesFile, Target
from ops_pipeline.usage.tables import CREDIT_DIGITS, model_calls, model_probe_results, model_statuses

PROBE_PURPOSE, VERIFICATION, BY_TRAFFIC = "probe", "verification", "traffic"
SENT = "sent"
"""The result of a probe whose answer is not there (yet): it counts for the budget, since it may have cost something."""
LONGEST_CALL = timedelta(days=1)


@dataclass(frozen=True)
class Transition:
    """A model's status before and after something was learned about it."""

    key: Key
    before: Status
    after: Status

    @property
    def flipped(self) -> bool:
        """True when the state is another one."""
        return self.before.state != self.after.state


def read_statuses(connection: Connection) -> dict[Key, Status]:
    """Every known status."""
    table = model_statuses
    return {
        (row["provider"], row["model"], row["type"]): Status(**{name: row[name] for name in Status.__annotations__})
        for row in connection.execute(select(table)).mappings()
    }


def read_traffic(connection: Connection, file: ProbesFile, now: datetime) -> dict[Key, Traffic]:
    """How many real calls of each model succeeded and failed within the last minutes, through the index of updates."""
    calls = model_calls.c
    provider, type_ = func.coalesce(calls.provider, ""), func.coalesce(calls.type, "")
    ended = and_(
        calls.updated_at >= now - timedelta(minutes=file.traffic_minutes),
        calls.status.in_(("success", "failed")),
        # A correction of last year's calls says nothing about a model's health.
        within_hours(calls.called_at, floor_hour(now - LONGEST_CALL), floor_hour(now) + HOUR),
    )
    counted = (
        select(
            provider.label("provider"),
            calls.model,
            type_.label("type"),
            func.count(case((calls.status == "success", 1))).label("succeeded"),
            func.count(case((calls.status == "failed", 1))).label("failed"),
        )
        .where(ended)
        .group_by(provider, calls.model, type_)
    )
    return {
        (row.provider, row.model, row.type): Traffic(row.succeeded, row.failed) for row in connection.execute(counted)
    }


def reserve(engine: Engine, file: ProbesFile, targets: Sequence[Target], purpose: str, run_id: str) -> list[int | None]:
    """Write a row for each probe about to be sent, as far as the day's budget goes.

    One reservation at a time, and before anything is sent: neither two runs at once nor one that is killed can
    spend more than the budget.

    Returns:
        The id of each target's row; None where the budget does not reach.
    """
    return despite_conflicts(_reserve, engine, file, targets, purpose, run_id)


def _reserve(
    engine: Engine, file: ProbesFile, targets: Sequence[Target], purpose: str, run_id: str
) -> list[int | None]:
    with rewriting(engine, model_probe_results) as connection:
        now = database_now(connection)
        probes, credits = spent_on(connection, now)
        ids: list[int | None] = []
        for target in targets:
            probes, credits = probes + 1, credits + target.expected_credits
            if probes > file.probes_per_day or credits > file.credits_per_day:
                probes, credits = probes - 1, credits - target.expected_credits
                ids.append(None)
                continue
            row = _row(target.key, now, run_id, purpose=purpose, result=SENT)
            row["credits"] = target.expected_credits
            written = insert(model_probe_results).values(row).returning(model_probe_results.c.id)
            ids.append(connection.execute(written).scalar_one())
        return ids


def spent_on(connection: Connection, now: datetime) -> tuple[int, Decimal]:
    """Probes and credits of the UTC day in which `now` lies, reserved ones included."""
    table = model_probe_results.c
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    spent = select(func.count(), exact_sum(table.credits, CREDIT_DIGITS)).where(
        table.probed_at >= midnight, table.purpose != BY_TRAFFIC
    )
    probes, credits = connection.execute(spent).one()
    return probes, credits


def complete(engine: Engine, results: Sequence[tuple[int, Target, Answer]]) -> list[Transition]:
    """Write the answers of probes, and what follows for the states; one transaction.

    Args:
        engine: the operations database.
        results: the row that `reserve` made, the target and its answer.
    """

    def write(connection: Connection) -> list[Transition]:
        now, known = database_now(connection), read_statuses(connection)
        transitions = []
        for row, target, answer in results:
            before = known.get(target.key, Status())
            after = advance(before, answer, target.probes_needed, now)
            known[target.key] = after
            values = asdict(answer) | {"state": after.state}
            connection.execute(update(model_probe_results).where(model_probe_results.c.id == row).values(values))
            transitions.append(Transition(target.key, before, after))
        return _saved(connection, transitions)

    return _one_at_a_time(engine, write)


def complete_by_traffic(engine: Engine, targets: Sequence[Target], run_id: str) -> list[Transition]:
    """Write that real calls of these models succeeded."""

    def write(connection: Connection) -> list[Transition]:
        now, known = database_now(connection), read_statuses(connection)
        transitions = []
        for target in targets:
            before = known.get(target.key, Status())
            transitions.append(Transition(target.key, before, advance_by_traffic(before, now)))
            row = _row(target.key, now, run_id, purpose=BY_TRAFFIC, result=AVAILABLE)
            connection.execute(insert(model_probe_results).values(row | {"state": AVAILABLE}))
        return _saved(connection, transitions)

    return _one_at_a_time(engine, write) if targets else []


def retire(engine: Engine, file: ProbesFile, run_id: str) -> list[Transition]:
    """Set models that are no longer listed to `not_tested`: their last state would stand there for ever."""
    listed = {target.key for target in file.models}

    def write(connection: Connection) -> list[Transition]:
        now = database_now(connection)
        gone = {key: status for key, status in read_statuses(connection).items() if key not in listed}
        text = "no longer in MODEL_PROBES_FILE"
        transitions = [
            Transition(key, before, Status(error_message=text, checked_at=before.checked_at, changed_at=now))
            for key, before in gone.items()
            if before.state != NOT_TESTED
        ]
        for one in transitions:
            row = _row(one.key, now, run_id, purpose=BY_TRAFFIC, result=NOT_TESTED)
            connection.execute(insert(model_probe_results).values(row | {"error_message": text}))
        return _saved(connection, transitions)

    return _one_at_a_time(engine, write)


def _one_at_a_time(engine: Engine, write: Callable[[Connection], list[Transition]]) -> list[Transition]:
    def transaction() -> list[Transition]:
        with rewriting(engine, model_statuses) as connection:
            return write(connection)

    return despite_conflicts(transaction)


def _saved(connection: Connection, transitions: Sequence[Transition]) -> list[Transition]:
    """Write the last status of each model."""
    last = {one.key: one.after for one in transitions}
    rows = [
        {"provider": key[0], "model": key[1], "type": key[2], "available": status.available, **asdict(status)}
        for key, status in last.items()
    ]
    if rows:
        upsert(connection, model_statuses, rows)
    return list(transitions)


def _row(key: Key, now: datetime, run_id: str, *, purpose: str, result: str) -> dict[str, Any]:
    return {
        "probed_at": now,
        "provider": key[0],
        "model": key[1],
        "type": key[2],
        "purpose": purpose,
        "result": result,
        "state": NOT_TESTED,
        "credits": Decimal(0),
        "run_id": run_id,
    }
