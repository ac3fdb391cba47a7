"""States and events of services in the database.

What belongs here: every statement over `service_states` and `service_events`. Decisions are in `states` and `recovery`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, insert, or_, select

from ops_pipeline.database.engine import database_now, reading, rewriting
from ops_pipeline.database.replace import upsert
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.services.registry import Service
from ops_pipeline.services.states import MAINTENANCE, Look, State, advance, reset, restarted
from ops_pipeline.services.tables import service_events, service_states

TRANSITION, RESTARTED, ALERTED, COMMANDED = "transition", "restart", "alert", "command"
LONGEST_TEXT = 4_000


@dataclass(frozen=True)
class Event:
    """Something that happened to a service: a transition, a restart, an alert or an operator's command."""

    service: str
    kind: str
    before: str = ""
    after: str = ""
    reason: str = ""
    output: str = ""
    duration_seconds: float | None = None


def read_states(connection: Connection) -> dict[str, State]:
    """Every known state."""
    return {row["name"]: _state(row) for row in connection.execute(select(service_states)).mappings()}


def _state(row: Mapping[str, Any]) -> State:
    fields: dict[str, Any] = {name: row[name] for name in State.__annotations__}
    fields["restarts"] = tuple(datetime.fromisoformat(moment) for moment in row["restarts"])
    return State(**fields)


def record_looks(
    engine: Engine, services: Sequence[Service], looks: Mapping[str, Look], run_id: str
) -> list[tuple[Event, State]]:
    """Advance the states by looks and write them, with an event for each transition; one transaction for all.

    Returns:
        The transitions, each with the state after it.
    """

    def write(connection: Connection) -> list[tuple[Event, State]]:
        now, states = database_now(connection), read_states(connection)
        changed: dict[Service, State] = {}
        transitions: list[tuple[Event, State]] = []
        for service in services:
            before = states.get(service.name, State())
            after = advance(service, before, looks[service.name], now)
            changed[service] = after
            if before.state != after.state:
                event = Event(service.name, TRANSITION, before.state, after.state, after.reason)
                transitions.append((event, after))
        _save(connection, changed)
        _tell(connection, [event for event, _ in transitions], now, run_id)
        return transitions

    return _one_at_a_time(engine, write)


def claim_restart(
    engine: Engine, service: Service, wanted: Callable[[Mapping[str, State], datetime], bool], run_id: str
) -> bool:
    """Write a restart into the budget before it is made, so that neither two runs nor one that dies exceed it.

    Args:
        engine: the operations database.
        service: what is restarted.
        wanted: decides once more, under the lock and from the states of all services.
        run_id: of the run that restarts.
    """

    def write(connection: Connection) -> bool:
        now, states = database_now(connection), read_states(connection)
        before = states.get(service.name, State())
        if not wanted(states, now):
            return False
        after = restarted(before, now, service)
        _save(connection, {service: after})
        _tell(connection, [Event(service.name, TRANSITION, before.state, after.state, "restarting")], now, run_id)
        return True

    return _one_at_a_time(engine, write)


def begin_grace(engine: Engine, service: Service) -> None:
    """Let the grace of a restarted service begin now: the restart itself may have taken longer than that."""

    def write(connection: Connection) -> None:
        state = read_states(connection).get(service.name)
        if state is not None and state.grace_until is not None:
            _save(connection, {service: replace(state, grace_until=database_now(connection) + service.start_grace)})

    _one_at_a_time(engine, write)


def told_since(connection: Connection, service: str, since: datetime | None) -> set[str]:
    """What alerts have told about a service since it became what it is: the actions that they named."""
    table = service_events.c
    told = select(table.after).where(table.service == service, table.kind == ALERTED)
    return set(connection.scalars(told if since is None else told.where(table.at >= since)))


def give_up(engine: Engine, service: Service, reason: str, run_id: str) -> None:
    """Write that a service's restarts are spent."""

    def write(connection: Connection) -> None:
        now, states = database_now(connection), read_states(connection)
        before = states.get(service.name, State())
        if before.given_up:
            # Another run was faster.
            return
        after = replace(before, given_up=True, state="given_up", since=now, reason=reason)
        _save(connection, {service: after})
        _tell(connection, [Event(service.name, TRANSITION, before.state, after.state, reason)], now, run_id)

    _one_at_a_time(engine, write)


def tell(engine: Engine, events: Sequence[Event], run_id: str) -> None:
    """Write events."""
    if events:
        _one_at_a_time(engine, lambda connection: _tell(connection, events, database_now(connection), run_id))


def command_reset(engine: Engine, service: Service) -> None:
    """Forget what is held against a service: its failures, its restarts, and that it was given up."""

    def write(connection: Connection) -> None:
        now, states = database_now(connection), read_states(connection)
        before = states.get(service.name, State())
        after = reset(before, now)
        _save(connection, {service: after})
        _tell(connection, [Event(service.name, COMMANDED, before.state, after.state, "reset")], now, "")

    _one_at_a_time(engine, write)


def command_maintenance(engine: Engine, service: Service, until: datetime, reason: str) -> None:
    """Open a maintenance window that ends at `until`; one that has ended already closes it."""

    def write(connection: Connection) -> None:
        now, states = database_now(connection), read_states(connection)
        before = states.get(service.name, State())
        open_ = until > now
        after = replace(before, maintenance_until=until if open_ else None)
        if open_ and before.state != MAINTENANCE:
            after = replace(after, state=MAINTENANCE, since=now)
        _save(connection, {service: after})
        words = f"maintenance until {until:%Y-%m-%d %H:%M} UTC: {reason}" if open_ else f"maintenance ended: {reason}"
        _tell(connection, [Event(service.name, COMMANDED, before.state, after.state, words)], now, "")

    _one_at_a_time(engine, write)


def read_transitions(engine: Engine, since: datetime) -> dict[str, list[tuple[datetime, str]]]:
    """The states of each service and since when, from the last one before `since` on, oldest first."""
    table = service_events.c
    changes = table.kind.in_((TRANSITION, COMMANDED))
    before = select(func.max(table.id)).where(changes, table.at < since).group_by(table.service).scalar_subquery()
    wanted = and_(changes, or_(table.at >= since, table.id.in_(before)))
    found: dict[str, list[tuple[datetime, str]]] = {}
    with reading(engine) as connection:
        for row in connection.execute(select(table.service, table.at, table.after).where(wanted).order_by(table.id)):
            found.setdefault(row.service, []).append((row.at, row.after))
    return found


def last_actions(engine: Engine) -> dict[str, tuple[datetime, str]]:
    """The last restart or command of each service, and when."""
    table = service_events.c
    acted = table.kind.in_((RESTARTED, COMMANDED))
    newest = select(func.max(table.id)).where(acted).group_by(table.service).scalar_subquery()
    with reading(engine) as connection:
        rows = connection.execute(select(table.service, table.at, table.reason).where(table.id.in_(newest)))
        return {row.service: (row.at, row.reason) for row in rows}


def _one_at_a_time(engine: Engine, write: Callable[[Connection], Any]) -> Any:
    def transaction() -> Any:
        with rewriting(engine, service_states) as connection:
            return write(connection)

    return despite_conflicts(transaction)


def _save(connection: Connection, states: Mapping[Service, State]) -> None:
    rows = [
        {
            "name": service.name,
            "host": service.host,
            **asdict(state),
            "reason": state.reason[:LONGEST_TEXT],
            "restarts": [moment.isoformat() for moment in state.restarts],
        }
        for service, state in states.items()
    ]
    upsert(connection, service_states, rows)


def _tell(connection: Connection, events: Sequence[Event], now: datetime, run_id: str) -> None:
    rows = [
        {
            **asdict(event),
            "at": now,
            "run_id": run_id,
            "reason": event.reason[:LONGEST_TEXT],
            "output": event.output[:LONGEST_TEXT],
        }
        for event in events
    ]
    if rows:
        connection.execute(insert(service_events), rows)
