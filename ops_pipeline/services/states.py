"""The state of a service: how looks become a state. Pure: a state, a look and `now` in, the next state out.

What belongs here: hysteresis, start grace, flapping, maintenance. What does not: recovery (`recovery`), and looking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

from ops_pipeline.services.registry import Service

UP, DEGRADED, DOWN, UNKNOWN = "up", "degraded", "down", "unknown"
STARTING, STOPPED = "starting", "stopped"
"""Two more things that a look may find: on its way up, and stopped by somebody on purpose."""
RECOVERING, GIVEN_UP, MAINTENANCE = "recovering", "given_up", "maintenance"

REMEMBERED = 21
FLAPPING_FROM, FLAPPING_UNTIL = 0.5, 0.25
"""Shares of changes among the last 21 looks from which on a service flaps, and at which it no longer does."""


@dataclass(frozen=True)
class Look:
    """What a check found: `up`, `degraded`, `down`, `unknown`, `starting` or `stopped`, and why."""

    found: str
    reason: str = ""
    latency_ms: float | None = None


@dataclass(frozen=True)
class State:
    """What is known about a service.

    Attributes:
        state: `up`, `degraded`, `down`, `unknown`, `recovering`, `given_up`, `maintenance` or `stopped`.
        since: when it became that.
        reason: of the last look or action.
        confirmed: `up` or `down`, whichever enough looks in a row have shown last; empty before.
        failures: looks in a row that found it down.
        successes: looks in a row that found it up.
        looks: the last 21 looks that told up (`U`) or down (`D`), oldest first.
        flapping: whether too many of them differ from the one before.
        starting_since: since when it has been on its way up.
        grace_until: until when it may be down after a restart.
        restarts: when it was restarted, as far back as its window reaches.
        given_up: whether its restarts are spent; only being up, or an operator, ends that.
        maintenance_until: the end of a window that an operator opened by command.
        checked_at: the last look.
        latency_ms: of the last look that told one.
    """

    state: str = UNKNOWN
    since: datetime | None = None
    reason: str = ""
    confirmed: str = ""
    failures: int = 0
    successes: int = 0
    looks: str = ""
    flapping: bool = False
    starting_since: datetime | None = None
    grace_until: datetime | None = None
    restarts: tuple[datetime, ...] = ()
    given_up: bool = False
    maintenance_until: datetime | None = None
    checked_at: datetime | None = None
    latency_ms: float | None = None


def advance(service: Service, state: State, look: Look, now: datetime) -> State:
    """The state after a look.

    Args:
        service: thresholds and windows.
        state: before.
        look: what the check found.
        now: when.
    """
    seen = replace(state, reason=look.reason, checked_at=now, latency_ms=look.latency_ms or state.latency_ms)
    if in_maintenance(service, state, now):
        # Looks during maintenance say nothing about the service: it begins anew afterwards.
        anew = replace(seen, failures=0, successes=0, looks="", flapping=False, starting_since=None)
        return _named(anew, MAINTENANCE, now)
    if look.found == UNKNOWN:
        return _named(seen, UNKNOWN, now)
    if look.found == STOPPED:
        # Its old looks would count it among those that fail at once for as long as it stays stopped.
        settled = replace(seen, confirmed="", failures=0, successes=0, looks="", flapping=False)
        return _named(replace(settled, starting_since=None, given_up=False), STOPPED, now)
    if look.found == STARTING:
        since = state.starting_since or now
        seen = replace(seen, starting_since=since)
        if now - since <= service.start_grace:
            # Whoever started it: a restart now would only throw it back.
            return _named(seen, RECOVERING if state.confirmed == DOWN else _shown(seen, look), now)
        look = Look(DOWN, f"still {look.reason or STARTING} after {service.start_grace_seconds:g} s")
        return _down(service, replace(seen, reason=look.reason), now)
    seen = replace(seen, starting_since=None)
    return _down(service, seen, now) if look.found == DOWN else _up(service, seen, look, now)


def _down(service: Service, state: State, now: datetime) -> State:
    if state.grace_until is not None and now < state.grace_until:
        # Just restarted: it may take its time, and is not restarted again for it.
        return _named(replace(state, successes=0), RECOVERING, now)
    # Its grace is over: what was restarted in vain is plainly down, and its failures are counted anew.
    state = replace(state, grace_until=None)
    failures = state.failures + 1
    confirmed = DOWN if failures >= service.down_after else state.confirmed
    changed = _remember(replace(state, failures=failures, successes=0, confirmed=confirmed), "D")
    return _named(changed, _shown(changed, Look(DOWN)), now)


def _up(service: Service, state: State, look: Look, now: datetime) -> State:
    successes = state.successes + 1
    enough = successes >= service.up_after or not state.confirmed
    # After a restart it must have stayed up for its grace, too.
    waited = state.grace_until is None or now >= state.grace_until
    confirmed = UP if enough and waited else state.confirmed
    changed = _remember(replace(state, successes=successes, failures=0, confirmed=confirmed), "U")
    if confirmed == UP:
        changed = replace(changed, grace_until=None, given_up=False)
    return _named(changed, _shown(changed, look), now)


def _shown(state: State, look: Look) -> str:
    """The name of a state from what was confirmed."""
    if state.confirmed == UP:
        return DEGRADED if look.found == DEGRADED else UP
    if state.confirmed == DOWN:
        if state.given_up:
            return GIVEN_UP
        return RECOVERING if state.grace_until is not None else DOWN
    return UNKNOWN


def _remember(state: State, letter: str) -> State:
    looks = (state.looks + letter)[-REMEMBERED:]
    share = change_share(looks)
    flapping = share >= FLAPPING_FROM if not state.flapping else share > FLAPPING_UNTIL
    return replace(state, looks=looks, flapping=flapping)


def change_share(looks: str) -> float:
    """The share of changes from one look to the next among the last 21; few looks are no reason to say much."""
    if len(looks) < REMEMBERED // 3:
        return 0.0
    return sum(one != other for one, other in pairwise(looks)) / (len(looks) - 1)


def _named(state: State, name: str, now: datetime) -> State:
    return state if state.state == name else replace(state, state=name, since=now)


def in_maintenance(service: Service, state: State, now: datetime) -> bool:
    """Whether a window of the file, or one opened by command, is open."""
    commanded = state.maintenance_until is not None and now < state.maintenance_until
    return commanded or any(window.covers(now) for window in service.maintenance)


def restarted(state: State, now: datetime, service: Service) -> State:
    """The state right after a restart: the failures are forgotten, and it has its grace."""
    recent = tuple(moment for moment in state.restarts if moment > now - service.window)
    changed = replace(
        state,
        failures=0,
        successes=0,
        grace_until=now + service.start_grace,
        restarts=(*recent, now),
        starting_since=None,
    )
    return _named(changed, RECOVERING, now)


def reset(state: State, now: datetime) -> State:
    """The state after an operator's reset: nothing is held against the service any more."""
    fresh = State(since=now, reason="reset by an operator", checked_at=state.checked_at)
    return replace(fresh, maintenance_until=state.maintenance_until)


def uptime(transitions: Sequence[tuple[datetime, str]], start: datetime, end: datetime) -> float | None:
    """The share of the time in which a service was up, degraded included; maintenance and no knowledge do not count.

    Args:
        transitions: states and since when, oldest first.
        start: of the time looked at.
        end: of it.
    """
    known, up = timedelta(0), timedelta(0)
    for (at, state), (until, _) in pairwise([*transitions, (end, "")]):
        span = min(until, end) - max(at, start)
        if span <= timedelta(0) or state in {UNKNOWN, MAINTENANCE, STOPPED}:
            continue
        known += span
        up += span if state in {UP, DEGRADED} else timedelta(0)
    return up / known if known else None
