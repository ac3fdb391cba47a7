"""One check of all services: look, advance the states, decide, and recover what may be recovered.

What belongs here: the sequence. The rules are in `states` and `recovery`, SQL in `store`, I/O in `looks` and `actions`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Engine

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.log_fields import fields
from ops_pipeline.reconcile import Change, Outcome, Plan
from ops_pipeline.services.actions import Done, restart, secrets_of
from ops_pipeline.services.looks import Variable, look_at_all
from ops_pipeline.services.recovery import (
    ALERT,
    GIVE_UP,
    REFUSED,
    RESTART,
    SUPPRESSED,
    WAIT,
    Decision,
    decide,
    next_restart,
)
from ops_pipeline.services.registry import Registry, Service
from ops_pipeline.services.states import DEGRADED, DOWN, GIVEN_UP, UP, Look, State, advance
from ops_pipeline.services.store import (
    ALERTED,
    RESTARTED,
    Event,
    begin_grace,
    claim_restart,
    give_up,
    read_states,
    record_looks,
    tell,
    told_since,
)

log = logging.getLogger(__name__)
LOOKS_IN_GRACE = 10
SHORTEST_PAUSE = 0.2
LONGEST_PAUSE = 60.0
"""A run waits so long for the next restart of a service; longer waits are for the next check."""


@dataclass(frozen=True)
class Watch:
    """What a check needs besides the registry.

    Attributes:
        engine: the operations database.
        variable: the value of an environment variable; None when it is not set.
        sleep: waits, in seconds.
        run_id: of the run that checks, kept with every event.
    """

    engine: Engine
    variable: Variable
    sleep: Callable[[float], object]
    run_id: str = ""


@dataclass(frozen=True)
class Prospect:
    """What a look would lead to, before anything is written.

    Attributes:
        looks: by service.
        states: as they would be.
        changed: services whose state would be another one.
        decisions: about services that are down.
    """

    looks: Mapping[str, Look]
    states: Mapping[str, State]
    changed: tuple[str, ...]
    decisions: tuple[Decision, ...]

    @property
    def due(self) -> bool:
        """Whether a state changes, or an action is due."""
        return bool(self.changed) or any(one.action in {RESTART, GIVE_UP} for one in self.decisions)


@dataclass(frozen=True)
class Checked:
    """What a check did: transitions, decisions and restarts, and the states at its end."""

    looks: Mapping[str, Look]
    events: tuple[Event, ...]
    decisions: tuple[Decision, ...]
    restarts: tuple[tuple[str, Done], ...]
    states: Mapping[str, State]


def prospect(registry: Registry, watch: Watch) -> Prospect:
    """Look at everything, and tell what would follow; writes nothing."""
    looks = look_at_all(registry, watch.variable)
    with reading(watch.engine) as connection:
        now, known = database_now(connection), read_states(connection)
    states = {one.name: advance(one, known.get(one.name, State()), looks[one.name], now) for one in registry.services}
    changed = tuple(name for name, state in states.items() if state.state != known.get(name, State()).state)
    return Prospect(looks, states, changed, tuple(decide(registry, states, now)))


def plan_of(found: Prospect) -> Plan:
    """The restarts that would be made, and why other services that are down are left alone."""
    changes = tuple(
        Change(one.service.name, one.action, one.reason, found.states[one.service.name].state)
        for one in found.decisions
        if one.action in {RESTART, GIVE_UP}
    )
    kept = Counter(f"{one.action}: {one.reason}" for one in found.decisions if one.action not in {RESTART, GIVE_UP})
    return Plan(changes, scanned=len(found.states), kept=kept)


def check_services(registry: Registry, watch: Watch) -> Checked:
    """Look, write what was seen, and recover what may be recovered; one service of a host at a time."""
    looks = look_at_all(registry, watch.variable)
    transitions = record_looks(watch.engine, registry.services, looks, watch.run_id)
    events = [event for event, _ in transitions]
    with reading(watch.engine) as connection:
        now, states = database_now(connection), read_states(connection)
    decisions = decide(registry, states, now)
    events += _told(decisions, states, watch)
    restarts: list[tuple[str, Done]] = []
    for decision in decisions:
        if decision.action == GIVE_UP:
            events.append(_give_up(decision, watch))
        elif decision.action == RESTART:
            told, done = _recover(registry, decision.service, watch)
            events += told
            restarts += done
    with reading(watch.engine) as connection:
        states = read_states(connection)
    _tell(looks, decisions)
    return Checked(looks, tuple(events), tuple(decisions), tuple(restarts), states)


def _tell(looks: Mapping[str, Look], decisions: Sequence[Decision]) -> None:
    """Each look and each decision, as a detail of the log."""
    for name, one in looks.items():
        seconds = None if one.latency_ms is None else round(one.latency_ms / 1000, 3)
        known = fields(object=name, found=one.found, reason=one.reason, duration_seconds=seconds)
        log.debug("%s: %s %s", name, one.found, one.reason, extra=known)
    for decision in decisions:
        known = fields(object=decision.service.name, action=decision.action, reason=decision.reason)
        log.debug("%s: %s, because %s", decision.service.name, decision.action, decision.reason, extra=known)


def _told(decisions: Sequence[Decision], states: Mapping[str, State], watch: Watch) -> list[Event]:
    """Alerts about services that are left alone; each is told once while the service is what it is."""
    told = {ALERT, SUPPRESSED, REFUSED}
    with reading(watch.engine) as connection:
        alerts = [
            Event(one.service.name, ALERTED, DOWN, one.action, one.reason)
            for one in decisions
            if one.action in told
            and one.action not in told_since(connection, one.service.name, states[one.service.name].since)
        ]
    tell(watch.engine, alerts, watch.run_id)
    return alerts


def _give_up(decision: Decision, watch: Watch) -> Event:
    give_up(watch.engine, decision.service, decision.reason, watch.run_id)
    return Event(decision.service.name, ALERTED, DOWN, GIVEN_UP, decision.reason)


def _recover(registry: Registry, service: Service, watch: Watch) -> tuple[list[Event], list[tuple[str, Done]]]:
    """Restart a service until it is up or given up; with five minutes between checks no budget would ever be spent."""
    events: list[Event] = []
    restarts: list[tuple[str, Done]] = []
    while True:
        told, done = _restart_once(registry, service, watch)
        events += told
        restarts += done
        decision, now = _decision(registry, service, watch)
        if decision is not None and decision.action == GIVE_UP:
            events.append(_give_up(decision, watch))
        if not done or decision is None or decision.action not in {RESTART, WAIT}:
            return events, restarts
        wait = _wait(service, watch, now)
        if wait > LONGEST_PAUSE:
            return events, restarts
        watch.sleep(wait)


def _decision(registry: Registry, service: Service, watch: Watch) -> tuple[Decision | None, datetime]:
    """What is to be done about a service now; None when it is not down."""
    with reading(watch.engine) as connection:
        now, states = database_now(connection), read_states(connection)
    return next((one for one in decide(registry, states, now) if one.service == service), None), now


def _wait(service: Service, watch: Watch, now: datetime) -> float:
    """Seconds until the next restart is due."""
    with reading(watch.engine) as connection:
        state = read_states(connection)[service.name]
    ready = next_restart(service, [moment for moment in state.restarts if moment > now - service.window])
    return max(0.0, (ready - now).total_seconds()) + SHORTEST_PAUSE if ready else SHORTEST_PAUSE


def _restart_once(registry: Registry, service: Service, watch: Watch) -> tuple[list[Event], list[tuple[str, Done]]]:
    """Restart a service, and look at it until its grace is over; only one that is up by then was restarted well."""

    def still_wanted(states: Mapping[str, State], now: datetime) -> bool:
        return any(one.service == service and one.action == RESTART for one in decide(registry, states, now))

    # Written before it is done, and decided once more under the lock: the budget holds whatever dies in between.
    if not claim_restart(watch.engine, service, still_wanted, watch.run_id):
        return [], []
    done = restart(service, secrets_of(registry, watch.variable))
    begin_grace(watch.engine, service)
    event = Event(
        service.name,
        RESTARTED,
        DOWN,
        "done" if done.ok else "failed",
        f"restart by {service.action.kind if service.action else 'nothing'}",
        done.output,
        done.duration_seconds,
    )
    tell(watch.engine, [event], watch.run_id)
    transitions = _watch_grace(registry, service, watch)
    if done.ok and not any(one.after in {UP, DEGRADED} for one in transitions[-1:]):
        reason = transitions[-1].reason if transitions else "recovery goes on"
        done = replace(done, ok=False, output=f"not up after its grace ({reason}). {done.output}")
    return [event, *transitions], [(service.name, done)]


def _watch_grace(registry: Registry, service: Service, watch: Watch) -> list[Event]:
    """Look at a restarted service until it is up, or has failed often enough after its grace to be down again."""
    pause = max(service.start_grace_seconds / LOOKS_IN_GRACE, SHORTEST_PAUSE)
    transitions: list[Event] = []
    for _ in range(LOOKS_IN_GRACE + service.up_after + service.down_after):
        watch.sleep(pause)
        looks = look_at_all(registry, watch.variable, only=[service])
        transitions += [event for event, _ in record_looks(watch.engine, [service], looks, watch.run_id)]
        with reading(watch.engine) as connection:
            state = read_states(connection)[service.name]
        if state.confirmed == UP or state.failures >= service.down_after:
            return transitions
    return transitions


def longest_recovery_seconds(registry: Registry) -> float:
    """How long a check may take when everything is restarted as often as may be, one service after the other."""
    return sum(
        one.restarts * (one.action_timeout_seconds + 2 * one.start_grace_seconds + one.down_after * one.timeout_seconds)
        + one.restarts * LONGEST_PAUSE
        for one in registry.services
        if one.recovery == "auto"
    )


def outcome_of(checked: Checked) -> Outcome:
    """The check as an outcome: changed are states, failed are restarts that did not succeed."""
    states = Counter(state.state for state in checked.states.values())
    failed = sum(not done.ok for _, done in checked.restarts)
    changed = len({event.service for event in checked.events})
    return Outcome(
        scanned=len(checked.looks),
        changed=changed,
        unchanged=max(0, len(checked.looks) - changed),
        failed=failed,
        reasons={**states, "restarts": len(checked.restarts)},
    )
