"""Which services are restarted now, and which are not and why. Pure: states and `now` in, a decision out.

What belongs here: budget, back-off, order, mass failure. What does not: restarting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from ops_pipeline.services.registry import Registry, Service
from ops_pipeline.services.states import DOWN, GIVEN_UP, MAINTENANCE, RECOVERING, STOPPED, UNKNOWN, State

LONGEST_WAIT = timedelta(minutes=5)

RESTART, WAIT, GIVE_UP, ALERT, SUPPRESSED, REFUSED = "restart", "wait", "give up", "alert", "suppressed", "refused"


@dataclass(frozen=True)
class Decision:
    """What happens to a service that is down, and why."""

    service: Service
    action: str
    reason: str


def decide(registry: Registry, states: Mapping[str, State], now: datetime) -> list[Decision]:
    """Decide about every service that is confirmed down; parents first, critical ones before others.

    Args:
        registry: the services.
        states: by name; services without one were never looked at.
        now: when.
    """
    down = [one for one in registry.services if _is_down(states.get(one.name))]
    if not down:
        return []
    sick = mass_failure(registry, states)
    if sick:
        return [Decision(service, REFUSED, sick) for service in down]
    decisions = []
    # One at a time per host: a second restart would meet what the first one shakes.
    busy = {one.host for one in registry.services if _recovers(states.get(one.name), now)}
    for service in sorted(down, key=lambda one: (_depth(registry, one.name), not one.critical, one.name)):
        decision = _about(service, states, now, registry)
        if decision.action == RESTART and service.host in busy:
            decision = Decision(service, WAIT, f"another service of {service.host} is being restarted")
        elif decision.action == RESTART:
            busy.add(service.host)
        decisions.append(decision)
    return decisions


def _is_down(state: State | None) -> bool:
    return state is not None and state.confirmed == DOWN and state.state in {DOWN, GIVEN_UP}


def _recovers(state: State | None, now: datetime) -> bool:
    # By its grace alone: one that cannot be looked at meanwhile is being restarted all the same.
    return state is not None and (state.grace_until or now) > now


def _about(service: Service, states: Mapping[str, State], now: datetime, registry: Registry) -> Decision:
    state = states[service.name]
    parent = blamed(registry, states, service.name)
    if parent:
        return Decision(service, SUPPRESSED, f"because of {parent}")
    if service.recovery != "auto":
        steps = f": {service.steps}" if service.steps else ""
        return Decision(service, ALERT, f"recovery is {service.recovery}{steps}")
    if state.given_up:
        return Decision(service, ALERT, "given up: restarts are spent until it is up, or an operator resets it")
    decision = _within_budget(service, state, now)
    if decision.action == RESTART and state.flapping:
        return Decision(service, ALERT, "it flaps: a restart would be one more change")
    return decision


def _within_budget(service: Service, state: State, now: datetime) -> Decision:
    recent = [moment for moment in state.restarts if moment > now - service.window]
    if state.failures < service.down_after:
        # Restarted lately, or on its way up: its last look may well have succeeded.
        lately = "restarted lately, " if recent else ""
        return Decision(service, WAIT, f"{lately}{state.failures} of {service.down_after} failures since")
    if len(recent) >= service.restarts:
        return Decision(
            service, GIVE_UP, f"{len(recent)} restarts within {service.window_minutes:g} minutes did not help"
        )
    ready = next_restart(service, recent)
    if ready is not None and now < ready:
        return Decision(service, WAIT, f"the next restart is due at {ready:%H:%M:%S} UTC")
    return Decision(service, RESTART, state.reason or "down")


def next_restart(service: Service, recent: list[datetime]) -> datetime | None:
    """When the next restart is due after these: the wait doubles with each of them."""
    if not recent:
        return None
    first = timedelta(seconds=service.wait_seconds)
    # After forty doublings it would be no length of time at all; it is the longest wait long before.
    wait = first * 2 ** min(len(recent) - 1, 20)
    return max(recent) + service.start_grace + min(wait, max(LONGEST_WAIT, first))


def blamed(registry: Registry, states: Mapping[str, State], name: str) -> str:
    """The nearest service further up that is not well, for which this one is not to blame; empty when all are."""
    services = registry.by_name()
    for parent in services[name].depends_on:
        above = blamed(registry, states, parent)
        if above:
            return above
        state = states.get(parent, State())
        # Failing already counts: a child that is confirmed sooner would be restarted before its parent.
        failing = state.confirmed == DOWN or state.looks.endswith("D")
        if failing or state.state in {UNKNOWN, RECOVERING, STOPPED, MAINTENANCE}:
            return parent
    return ""


def mass_failure(registry: Registry, states: Mapping[str, State]) -> str:
    """Why nothing is restarted at all: so many services fail at once that the host or the network is sick."""
    looked_at = {one.name: state for one in registry.services if (state := states.get(one.name)) and state.looks}
    down = {name for name, state in looked_at.items() if state.looks.endswith("D")}
    services = registry.by_name()
    # What stands below a failing service fails because of it: one database with ten clients is one failure.
    dependent = {name for name in down if _above(services, name) & down}
    failing, judged = len(down - dependent), len(looked_at) - len(dependent)
    enough = failing >= registry.mass_failure_fewest
    # In decimals: 0.29 * 100 is less than 29 in floats.
    if not enough or failing <= Decimal(str(registry.mass_failure_share)) * judged:
        return ""
    return f"{failing} of {judged} services fail at once: look at the host and its network first"


def _above(services: Mapping[str, Service], name: str) -> set[str]:
    """All services on which one depends, at any distance."""
    parents = services[name].depends_on
    return set(parents).union(*(_above(services, parent) for parent in parents))


def _depth(registry: Registry, name: str) -> int:
    """How many services stand above one."""
    parents = registry.by_name()[name].depends_on
    return 1 + max(_depth(registry, parent) for parent in parents) if parents else 0
