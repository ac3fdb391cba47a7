"""Which services are restarted and when: the budget, the waits, the order, and everything that forbids a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ops_pipeline.services.recovery import (
    ALERT,
    GIVE_UP,
    REFUSED,
    RESTART,
    SUPPRESSED,
    WAIT,
    Decision,
    blamed,
    decide,
    mass_failure,
    next_restart,
)
from ops_pipeline.services.registry import Maintenance, Registry, Service, SystemdAction, TcpCheck
from ops_pipeline.services.states import (
    DEGRADED,
    DOWN,
    GIVEN_UP,
    MAINTENANCE,
    RECOVERING,
    STARTING,
    STOPPED,
    UNKNOWN,
    UP,
    Look,
    State,
    advance,
    reset,
    restarted,
)
from ops_pipeline_tests.usage.calls import NOON, examples

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
FOUND = (UP, DEGRADED, DOWN, UNKNOWN, STARTING, STOPPED)
IS_DOWN = State(DOWN, NOON, "no answer", DOWN, failures=3, looks="DDD")
IS_UP = State(UP, NOON, "", UP, successes=2, looks="UU")


def service(name: str = "web", recovery: str = "auto", **fields: Any) -> Service:
    usual: dict[str, Any] = {"name": name, "description": name, "recovery": recovery}
    usual["check"] = TcpCheck(kind="tcp", port=80)
    usual |= {
        "auto": {"action": SystemdAction(kind="systemd", unit=f"{name}.service")},
        "manual": {"steps": "Call Anna."},
        "none": {},
    }[recovery]
    return Service(**usual | fields)


def registry(*services: Service, **fields: Any) -> Registry:
    return Registry(services=services, **{"mass_failure_fewest": 100} | fields)


def decided(all_: Registry, now: datetime = NOON, **states: State) -> dict[str, tuple[str, str]]:
    """What is decided about each service, and why; services without a state given are up."""
    known = {one.name: states.get(one.name, IS_UP) for one in all_.services}
    return {one.service.name: (one.action, one.reason) for one in decide(all_, known, now)}


def actions(all_: Registry, now: datetime = NOON, **states: State) -> dict[str, str]:
    return {name: action for name, (action, _) in decided(all_, now, **states).items()}


# What is restarted at all


def test_a_service_that_is_down_is_restarted_for_the_reason_of_its_last_look() -> None:
    assert decided(registry(service()), web=IS_DOWN) == {"web": (RESTART, "no answer")}


@pytest.mark.parametrize("name", [UP, DEGRADED, UNKNOWN, RECOVERING, MAINTENANCE, STOPPED])
@pytest.mark.parametrize("confirmed", ["", UP, DOWN])
def test_nothing_is_decided_about_a_service_in_any_other_state(name: str, confirmed: str) -> None:
    """A checker without systemctl restarted every service of a host."""
    state = State(name, NOON, "", confirmed, failures=9, looks="DDD")
    assert decided(registry(service()), web=state) == {}


def test_a_service_that_was_never_looked_at_is_left_alone() -> None:
    assert decide(registry(service(), service("b")), {}, NOON) == []


def test_manual_recovery_is_an_alert_with_its_steps_and_none_is_an_alert() -> None:
    both = registry(service("db", "manual"), service("ftp", "none"))
    assert decided(both, db=IS_DOWN, ftp=IS_DOWN) == {
        "db": (ALERT, "recovery is manual: Call Anna."),
        "ftp": (ALERT, "recovery is none"),
    }


@pytest.mark.parametrize("restarts", [(), (NOON - 40 * MINUTE,)])
def test_a_service_whose_last_look_succeeded_is_not_restarted_though_it_is_not_up_yet(
    restarts: tuple[datetime, ...],
) -> None:
    """It had to wait for another service of its host, came up by itself, and was restarted for it."""
    state = replace(IS_DOWN, failures=0, successes=1, looks="DDDU", restarts=restarts)
    assert decided(registry(service()), web=state) == {"web": (WAIT, "0 of 3 failures since")}


def test_after_a_restart_failures_are_counted_anew_before_the_next_one_and_before_giving_up() -> None:
    lately = replace(IS_DOWN, failures=2, restarts=(NOON - 5 * MINUTE,))
    told = (WAIT, "restarted lately, 2 of 3 failures since")
    assert decided(registry(service(restarts=2)), web=lately) == {"web": told}
    assert decided(registry(service(restarts=1)), web=lately) == {"web": told}


def test_a_service_that_flaps_is_not_restarted() -> None:
    state = replace(IS_DOWN, flapping=True)
    assert decided(registry(service()), web=state) == {"web": (ALERT, "it flaps: a restart would be one more change")}


def test_what_is_given_up_is_not_restarted_however_long_ago_its_restarts_are() -> None:
    state = replace(IS_DOWN, state=GIVEN_UP, given_up=True)
    told = "given up: restarts are spent until it is up, or an operator resets it"
    assert decided(registry(service()), web=state) == {"web": (ALERT, told)}


# Budget and waits


def test_a_restart_more_than_the_budget_of_a_window_is_not_made() -> None:
    one = registry(service(restarts=3, window_minutes=15))
    spent = tuple(NOON - minutes * MINUTE for minutes in (14, 12, 10))
    told = (GIVE_UP, "3 restarts within 15 minutes did not help")
    assert decided(one, web=replace(IS_DOWN, restarts=spent)) == {"web": told}
    assert actions(one, web=replace(IS_DOWN, restarts=spent[1:])) == {"web": RESTART}


def test_a_restart_counts_until_its_window_is_over_to_the_microsecond() -> None:
    one = registry(service(restarts=1, window_minutes=15))
    state = replace(IS_DOWN, restarts=(NOON - 15 * MINUTE,))
    assert actions(one, NOON, web=state) == {"web": RESTART}
    assert actions(one, NOON - timedelta(microseconds=1), web=state) == {"web": GIVE_UP}


@pytest.mark.parametrize(
    ("before", "wait_seconds", "waits"),
    [
        (1, 10, 10),
        (2, 10, 20),
        (3, 10, 40),
        (6, 10, 300),
        (1, 0, 0),
        (9, 0, 0),
        (1, 300, 300),
        (1, 900, 900),
        (2, 900, 900),
    ],
)
def test_the_wait_doubles_with_each_restart_up_to_five_minutes_or_what_the_file_says(
    before: int, wait_seconds: float, waits: float
) -> None:
    """Of the hour that an operator had asked for, five minutes were kept."""
    one = service(wait_seconds=wait_seconds, start_grace_seconds=30, restarts=20, window_minutes=60)
    recent = [NOON - number * MINUTE for number in range(before)]
    due = NOON + (30 + waits) * SECOND
    assert next_restart(one, recent) == due
    state = replace(IS_DOWN, restarts=tuple(recent))
    assert decided(registry(one), due - SECOND, web=state) == {
        "web": (WAIT, f"the next restart is due at {due:%H:%M:%S} UTC")
    }
    assert actions(registry(one), due, web=state) == {"web": RESTART}


def test_the_largest_budget_there_is_can_be_spent() -> None:
    """With the forty-fourth restart of a day, all services of all hosts went without a check: OverflowError."""
    one = service(restarts=100, window_minutes=10_080, wait_seconds=3600)
    state = replace(IS_DOWN, restarts=tuple(NOON - number * MINUTE for number in range(100, 1, -1)))
    assert actions(registry(one), NOON, web=state) == {"web": WAIT}
    assert actions(registry(one), NOON + 60 * MINUTE, web=state) == {"web": RESTART}
    assert next_restart(one, []) is None


# Order


def test_of_several_on_a_host_critical_ones_come_first_then_by_name_and_the_others_wait() -> None:
    """Ten services that were started at once starved each other until all of them were given up."""
    several = registry(service("b"), service("a"), service("vip", critical=True), service("far", host="other"))
    order = [one.service.name for one in decide(several, dict.fromkeys(several.by_name(), IS_DOWN), NOON)]
    assert order == ["vip", "a", "b", "far"]
    waits = (WAIT, "another service of local is being restarted")
    assert decided(several, vip=IS_DOWN, a=IS_DOWN, b=IS_DOWN, far=IS_DOWN) == {
        "vip": (RESTART, "no answer"),
        "a": waits,
        "b": waits,
        "far": (RESTART, "no answer"),
    }


@pytest.mark.parametrize("name", [RECOVERING, UNKNOWN, MAINTENANCE])
def test_while_a_service_has_its_grace_no_other_of_its_host_is_restarted(name: str) -> None:
    """The check of the first one timed out, and the second one was restarted into it."""
    both = registry(service("a"), service("b"))
    recovers = replace(IS_DOWN, state=name, grace_until=NOON + SECOND)
    assert actions(both, NOON, a=recovers, b=IS_DOWN) == {"b": WAIT}
    assert actions(both, NOON + SECOND, a=recovers, b=IS_DOWN) == {"b": RESTART}


def test_one_that_gives_up_does_not_hold_up_the_others() -> None:
    both = registry(service("a", restarts=1), service("b"))
    spent = replace(IS_DOWN, restarts=(NOON - MINUTE,))
    assert actions(both, a=spent, b=IS_DOWN) == {"a": GIVE_UP, "b": RESTART}


FAMILY = registry(
    service("child", depends_on=["parent"], critical=True), service("parent", depends_on=["top"]), service("top")
)


def test_parents_are_restarted_first_and_what_depends_on_them_waits() -> None:
    because = (SUPPRESSED, "because of top")
    assert decided(FAMILY, child=IS_DOWN, parent=IS_DOWN, top=IS_DOWN) == {
        "top": (RESTART, "no answer"),
        "parent": because,
        "child": because,
    }
    assert list(decided(FAMILY, child=IS_DOWN, parent=IS_DOWN, top=IS_DOWN)) == ["top", "parent", "child"]
    assert decided(FAMILY, child=IS_DOWN, parent=IS_DOWN)["child"] == (SUPPRESSED, "because of parent")


@pytest.mark.parametrize(
    ("parent", "suppressed"),
    [
        (IS_DOWN, True),
        (replace(IS_DOWN, state=GIVEN_UP, given_up=True), True),
        (replace(IS_DOWN, state=RECOVERING), True),
        (State(UNKNOWN, NOON, "", UP), True),
        (State(), True),
        (State(STOPPED), True),
        (State(MAINTENANCE, NOON, "", UP), True),
        (IS_UP, False),
        (State(DEGRADED, NOON, "", UP), False),
    ],
)
def test_dependents_of_a_service_that_is_not_well_are_suppressed_with_its_name(parent: State, suppressed: bool) -> None:
    """Of one database that was down came forty alerts, and its own was among them."""
    states = {"child": IS_DOWN, "parent": IS_UP, "top": parent}
    assert blamed(FAMILY, states, "child") == ("top" if suppressed else "")
    assert decided(FAMILY, child=IS_DOWN, top=parent)["child"][0] == (SUPPRESSED if suppressed else RESTART)


def test_a_manual_service_is_suppressed_by_its_parent_too() -> None:
    both = registry(service("db", "manual", depends_on=["disk"]), service("disk"))
    assert decided(both, db=IS_DOWN, disk=IS_DOWN)["db"] == (SUPPRESSED, "because of disk")


# When many fail at once


def many(down: int, up: int, **fields: Any) -> tuple[Registry, dict[str, State]]:
    """So many services that are down and up, each on a host of its own."""
    states = {f"s{number:03}": IS_DOWN if number < down else IS_UP for number in range(down + up)}
    return registry(*(service(name, host=name) for name in states), **fields), states


@pytest.mark.parametrize(
    ("down", "up", "share", "sick"),
    [
        (5, 5, 0.5, False),
        (6, 4, 0.5, True),
        (29, 71, 0.29, False),
        (30, 70, 0.29, True),
        (55, 45, 0.55, False),
        (7, 3, 0.7, False),
        (10, 0, 1, False),
        (2, 0, 0.1, False),
        (3, 0, 0.1, True),
    ],
)
def test_more_than_a_share_of_all_services_at_once_is_not_recovered_at_all(
    down: int, up: int, share: float, sick: bool
) -> None:
    """A switch was down, and two hundred healthy services were restarted. In floats 0.29 * 100 is less than 29."""
    all_, states = many(down, up, mass_failure_share=share, mass_failure_fewest=3)
    found = decide(all_, states, NOON)
    reason = f"{down} of {down + up} services fail at once: look at the host and its network first"
    assert mass_failure(all_, states) == (reason if sick else "")
    assert {(one.action, one.reason) for one in found} == ({(REFUSED, reason)} if sick else {(RESTART, "no answer")})


def test_a_first_failure_counts_among_those_that_fail_at_once() -> None:
    """The first service was restarted before the other hundred had failed three times."""
    all_, states = many(4, 3, mass_failure_fewest=1)
    almost = replace(IS_UP, failures=1, looks="UUD")
    unconfirmed = {name: almost if name != "s000" and state == IS_DOWN else state for name, state in states.items()}
    assert [one.action for one in decide(all_, unconfirmed, NOON)] == [REFUSED]


def test_services_that_were_never_up_or_down_are_not_among_all() -> None:
    all_, states = many(2, 4, mass_failure_fewest=1)
    assert mass_failure(all_, {name: state if state == IS_DOWN else State() for name, state in states.items()})
    assert not mass_failure(all_, states)


def test_services_that_operators_stopped_after_they_failed_do_not_fail_any_more() -> None:
    """Three old services had been taken out of use, and the only one left was never recovered again."""
    all_, states = many(4, 0, mass_failure_fewest=1)
    for name in ("s001", "s002", "s003"):
        states[name] = advance(all_.by_name()[name], states[name], Look(STOPPED), NOON)
    assert mass_failure(all_, states) == "1 of 1 services fail at once: look at the host and its network first"
    states["s001"] = IS_UP
    assert [(one.service.name, one.action) for one in decide(all_, states, NOON)] == [("s000", RESTART)]


# Whatever happens


@dataclass
class Seen:
    """What was really seen of a service and done to it, written down by the test itself.

    Attributes:
        found: what its last look found.
        letters: its looks that told up (`U`) or down (`D`) since it was last stopped, in maintenance or reset.
        failures: looks in a row that found it down since its last success, restart and so on.
        successes: looks in a row that found it up.
        starting_since: since when it has been starting.
        given_up: whether its restarts are spent.
        restarts: since the last reset by an operator, who starts a new budget.
    """

    found: str = ""
    letters: str = ""
    failures: int = 0
    successes: int = 0
    starting_since: datetime | None = None
    given_up: bool = False
    maintenance_until: datetime | None = None
    restarts: list[datetime] = field(default_factory=list)

    def forget(self) -> None:
        """Begin anew."""
        self.letters, self.failures, self.successes, self.starting_since = "", 0, 0, None

    def in_grace(self, one: Service, now: datetime) -> bool:
        """Whether it was restarted just now."""
        return bool(self.restarts) and now < self.restarts[-1] + one.start_grace

    def look(self, one: Service, found: str, now: datetime, quiet: bool) -> None:
        """Write down what a look found; `quiet` is a time of maintenance."""
        self.found = found
        if quiet or found == STOPPED:
            self.given_up = self.given_up and quiet
            self.forget()
        elif found in {UP, DEGRADED}:
            self.letters, self.failures, self.successes = self.letters + "U", 0, self.successes + 1
            self.starting_since = None
        elif found == STARTING:
            self.starting_since = self.starting_since or now
            if now - self.starting_since > one.start_grace:
                self._fail(one, now)
        elif found == DOWN:
            self.starting_since = None
            self._fail(one, now)

    def _fail(self, one: Service, now: datetime) -> None:
        self.successes = 0
        if not self.in_grace(one, now):
            self.letters, self.failures = self.letters + "D", self.failures + 1

    def changes(self) -> float:
        """The share of changes among its last 21 looks."""
        letters = self.letters[-21:]
        return sum(a != b for a, b in pairwise(letters)) / (len(letters) - 1) if len(letters) >= 7 else 0


SETTINGS = st.fixed_dictionaries(
    {
        "recovery": st.sampled_from(["auto", "auto", "auto", "manual", "none"]),
        "host": st.sampled_from(["a", "a", "b"]),
        "critical": st.booleans(),
        "down_after": st.integers(1, 4),
        "up_after": st.integers(1, 3),
        "restarts": st.integers(1, 4),
        "window_minutes": st.sampled_from([0.75, 2, 15, 60]),
        "wait_seconds": st.sampled_from([0, 10, 60, 400]),
        "start_grace_seconds": st.sampled_from([0, 10, 30]),
        "windows": st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 600)), max_size=1),
    }
)
STEPS = st.sampled_from([0, 1, 5, 10, 10, 10, 30, 60, 300])


def built(number: int, parents: set[int], windows: list[tuple[int, int]], **fields: Any) -> Service:
    """A service from drawn settings, with windows in seconds from noon on."""
    maintenance = tuple(
        Maintenance.model_validate(
            {"from": NOON + start * SECOND, "until": NOON + (start + length) * SECOND, "reason": "disks"}
        )
        for start, length in windows
    )
    above = tuple(f"s{parent}" for parent in sorted(parents))
    # One that is not recovered automatically may be what runs this deployment.
    own = fields["recovery"] != "auto"
    return service(f"s{number}", maintenance=maintenance, depends_on=above, alert="ops", runs_this=own, **fields)


class HostServices(RuleBasedStateMachine):
    """Services that go up and down as they like, while time passes and operators do what they do."""

    @initialize(data=st.data(), several=st.lists(SETTINGS, min_size=1, max_size=5))
    def register(self, data: st.DataObject, several: list[dict[str, Any]]) -> None:
        """Any services, of which later ones depend on earlier ones."""
        services = []
        for number, fields in enumerate(several):
            parents = data.draw(st.sets(st.integers(0, number - 1), max_size=2)) if number else set()
            services.append(built(number, parents, **fields))
        share, fewest = data.draw(st.tuples(st.sampled_from([0.3, 0.5, 1]), st.integers(1, 4)))
        self.registry = Registry(
            services=tuple(services), alert="ops", mass_failure_share=share, mass_failure_fewest=fewest
        )
        self.services = self.registry.by_name()
        self.states = {name: State() for name in self.services}
        self.seen = {name: Seen() for name in self.services}
        self.now = NOON

    @rule(data=st.data(), usual=st.sampled_from(FOUND), step=STEPS, times=st.integers(1, 6))
    def looks(self, data: st.DataObject, usual: str, step: int, times: int) -> None:
        """Most services are found alike, a few times in a row."""
        found = {name: data.draw(st.sampled_from([usual, usual, *FOUND])) for name in self.services}
        for _ in range(times):
            self._check(found, step)

    @rule(data=st.data(), step=STEPS)
    def one_or_two_are_down_among_others_that_are_up(self, data: st.DataObject, step: int) -> None:
        """What recovery is for."""
        down = data.draw(st.sets(st.sampled_from(sorted(self.services)), min_size=1, max_size=2))
        for _ in range(data.draw(st.integers(1, 15))):
            self._check({name: DOWN if name in down else UP for name in self.services}, step)
        then, after = data.draw(st.tuples(st.sampled_from(FOUND), STEPS))
        self._check({name: then if name in down else UP for name in self.services}, after)

    @rule(data=st.data(), step=STEPS)
    def one_goes_up_and_down(self, data: st.DataObject, step: int) -> None:
        """It flaps, perhaps."""
        name = data.draw(st.sampled_from(sorted(self.services)))
        for found in data.draw(st.lists(st.sampled_from([UP, DOWN]), min_size=6, max_size=12)):
            self._check(dict.fromkeys(self.services, UP) | {name: found}, step)

    @rule(data=st.data(), seconds=st.integers(1, 300))
    def an_operator_opens_a_window(self, data: st.DataObject, seconds: int) -> None:
        """By command; a later one replaces it."""
        name = data.draw(st.sampled_from(sorted(self.services)))
        until = self.now + seconds * SECOND
        self.seen[name].maintenance_until = until
        # As store.command_maintenance writes it.
        self.states[name] = replace(self.states[name], maintenance_until=until, state=MAINTENANCE, since=self.now)

    @rule(data=st.data())
    def an_operator_resets_one(self, data: st.DataObject) -> None:
        """Nothing is held against it any more."""
        name = data.draw(st.sampled_from(sorted(self.services)))
        self.states[name] = reset(self.states[name], self.now)
        self.seen[name] = Seen(self.seen[name].found, maintenance_until=self.seen[name].maintenance_until)

    def _check(self, found: dict[str, str], step: int) -> None:
        """What services/check.py does: look, advance, decide, decide again right before each restart."""
        self.now += step * SECOND
        for name, one in self.services.items():
            before = self.states[name]
            quiet = self._in_maintenance(name)
            self.seen[name].look(one, found[name], self.now, quiet)
            self.states[name] = advance(one, before, Look(found[name]), self.now)
            self._has_advanced(one, before, self.states[name], quiet)
        for decision in decide(self.registry, self.states, self.now):
            name = decision.service.name
            if decision.action == GIVE_UP:
                self._is_spent(decision.service)
                self.states[name] = replace(self.states[name], given_up=True, state=GIVEN_UP, since=self.now)
                self.seen[name].given_up = True
            elif decision.action == RESTART and RESTART in self._again(name):
                self._may_be_restarted(decision.service)
                self.states[name] = restarted(self.states[name], self.now, decision.service)
                self.seen[name].restarts.append(self.now)
                self.seen[name].failures = self.seen[name].successes = 0
                self.seen[name].starting_since = None
                # As long as the restart takes.
                self.now += SECOND

    def _again(self, name: str) -> list[str]:
        return [one.action for one in decide(self.registry, self.states, self.now) if one.service.name == name]

    def _in_maintenance(self, name: str) -> bool:
        commanded = self.seen[name].maintenance_until
        windows = [(one.start, one.until) for one in self.services[name].maintenance]
        windows += [(self.now, commanded)] if commanded else []
        return any(start <= self.now < until for start, until in windows)

    def _has_advanced(self, one: Service, before: State, after: State, quiet: bool) -> None:
        """Down and up are confirmed by enough looks in a row only, and a look that cannot tell confirms nothing."""
        seen = self.seen[one.name]
        if quiet or seen.found in {UNKNOWN, STOPPED}:
            assert after.state == (MAINTENANCE if quiet else seen.found)
            assert after.confirmed == ("" if seen.found == STOPPED and not quiet else before.confirmed)
            return
        assert after.state in {UP, DEGRADED, DOWN, UNKNOWN, RECOVERING, GIVEN_UP}
        if before.confirmed != DOWN and after.confirmed == DOWN:
            assert seen.failures >= one.down_after
        if seen.failures >= one.down_after:
            assert after.confirmed == DOWN
        if before.confirmed == DOWN and after.confirmed != DOWN:
            assert after.confirmed == UP
            assert seen.successes >= one.up_after
            assert not seen.in_grace(one, self.now)
        if after.state in {UP, DEGRADED}:
            assert after.confirmed == UP
            seen.given_up = False
        if seen.found in {UP, DEGRADED} and seen.successes >= one.up_after and not seen.in_grace(one, self.now):
            # Found on its way up it stays what it was, whatever was seen in its grace.
            assert after.state in {UP, DEGRADED}

    def _is_spent(self, one: Service) -> None:
        seen = self.seen[one.name]
        recent = [moment for moment in seen.restarts if moment > self.now - one.window]
        assert len(recent) == one.restarts
        assert seen.failures >= one.down_after
        assert one.recovery == "auto"

    def _may_be_restarted(self, one: Service) -> None:
        """All that must hold at a restart, by what the test itself has seen."""
        seen = self.seen[one.name]
        assert one.recovery == "auto" and not one.runs_this
        assert seen.found in {DOWN, STARTING}
        assert seen.failures >= one.down_after
        assert not self._in_maintenance(one.name)
        assert not seen.given_up
        assert seen.changes() < 0.5
        self._keeps_budget_and_wait(one, seen)
        for name, other in self.seen.items():
            assert self.services[name].host != one.host or not other.in_grace(self.services[name], self.now)
        for parent in self._above(one.name):
            assert self.states[parent].state in {UP, DEGRADED}, parent
            assert self.seen[parent].found not in {UNKNOWN, STOPPED}, parent
        last = {name: other.letters[-1] for name, other in self.seen.items() if other.letters}
        failing = {name for name, letter in last.items() if letter == "D"}
        # Those below a failing service fail because of it, and are not counted.
        below = {name for name in failing if failing.intersection(self._above(name))}
        fails, judged = len(failing - below), len(last) - len(below)
        assert fails < self.registry.mass_failure_fewest or fails / judged <= self.registry.mass_failure_share

    def _keeps_budget_and_wait(self, one: Service, seen: Seen) -> None:
        recent = [moment for moment in seen.restarts if moment > self.now - one.window]
        assert len(recent) < one.restarts
        if recent:
            wait = min(one.wait_seconds * 2 ** (len(recent) - 1), max(300, one.wait_seconds))
            assert self.now - recent[-1] >= one.start_grace + wait * SECOND

    def _above(self, name: str) -> set[str]:
        parents = set(self.services[name].depends_on)
        return parents.union(*(self._above(parent) for parent in parents))

    @invariant()
    def no_window_of_any_length_has_more_restarts_than_its_budget(self) -> None:
        """Wherever the window begins."""
        for name, one in getattr(self, "services", {}).items():
            moments = self.seen[name].restarts
            assert all(
                later - first >= one.window for first, later in zip(moments, moments[one.restarts :], strict=False)
            )
            assert one.recovery == "auto" or not moments
            assert set(self.states[name].restarts) <= set(moments)

    @invariant()
    def what_is_given_up_is_so_for_both(self) -> None:
        """Only being up, stopped or reset ends it."""
        for name, seen in getattr(self, "seen", {}).items():
            assert self.states[name].given_up == seen.given_up


HostServices.TestCase.settings = settings(examples(250), stateful_step_count=25)
TestHostServices = HostServices.TestCase


# In the end


def play(one: Service, state: State, looks: Sequence[str], start: datetime, step: int) -> tuple[State, list[Decision]]:
    """The state of a single service after looks, one every `step` seconds, and what was decided on the way."""
    all_, made = registry(one), []
    for number, found in enumerate(looks, 1):
        now = start + number * step * SECOND
        state = advance(one, state, Look(found), now)
        for decision in decide(all_, {one.name: state}, now):
            made.append(decision)
            if decision.action == RESTART:
                state = restarted(state, now, one)
            elif decision.action == GIVE_UP:
                state = replace(state, given_up=True, state=GIVEN_UP, since=now)
    return state, made


LONG_WINDOWS = st.fixed_dictionaries(
    {
        "down_after": st.integers(1, 4),
        "up_after": st.integers(1, 4),
        "restarts": st.integers(1, 4),
        "window_minutes": st.just(240),
        "wait_seconds": st.sampled_from([0, 10, 60]),
        "start_grace_seconds": st.sampled_from([0, 10, 45]),
    }
)
PASTS = st.lists(st.sampled_from(FOUND), max_size=40)


@given(LONG_WINDOWS, st.sampled_from([5, 10, 60]))
@examples(40)
def test_a_service_that_stays_down_is_restarted_as_often_as_its_budget_says_and_then_given_up(
    fields: dict[str, Any], step: int
) -> None:
    one = service(**fields)
    state, made = play(one, State(), [DOWN] * (4500 // step), NOON, step)
    acted = [decision.action for decision in made if decision.action in {RESTART, GIVE_UP}]
    assert acted == [RESTART] * one.restarts + [GIVE_UP]
    assert made[0].action == RESTART
    assert state.state == GIVEN_UP
    # The next day, too.
    _, later = play(one, state, [DOWN] * 50, NOON + timedelta(days=1), step)
    assert {decision.action for decision in later} == {ALERT}


@given(LONG_WINDOWS, PASTS, st.sampled_from([10, 60]))
@examples(100)
def test_whatever_was_before_a_service_that_stays_down_is_given_up(
    fields: dict[str, Any], past: list[str], step: int
) -> None:
    """No past may leave a service in a state in which nobody ever does anything about it."""
    one = service(**fields)
    before, early = play(one, State(), past, NOON, step)
    state, made = play(one, before, [DOWN] * (4500 // step), NOON + len(past) * step * SECOND, step)
    assert state.state == GIVEN_UP
    restarts = [decision.action for decision in early + made].count(RESTART)
    assert restarts == one.restarts


@given(LONG_WINDOWS, PASTS, st.sampled_from([1, 10, 60]), st.sampled_from([UP, DEGRADED]))
@examples(200)
def test_whatever_was_before_a_service_that_stays_up_becomes_up_and_is_not_restarted(
    fields: dict[str, Any], past: list[str], step: int, found: str
) -> None:
    one = service(**fields)
    before, _ = play(one, State(), past, NOON, step)
    needed = one.up_after + int(one.start_grace_seconds) // step + 1
    state, made = play(one, before, [found] * needed, NOON + len(past) * step * SECOND, step)
    assert (state.state, state.given_up, state.failures) == (found, False, 0)
    assert [decision.action for decision in made if decision.action == RESTART] == []


@given(LONG_WINDOWS, st.lists(st.sampled_from([UP, DEGRADED, UNKNOWN, STOPPED]), max_size=30))
@examples(100)
def test_a_service_that_is_never_found_down_is_never_decided_about(fields: dict[str, Any], looks: list[str]) -> None:
    _, made = play(service(**fields), State(), looks, NOON, 10)
    assert made == []


@given(st.integers(1, 3), st.integers(20, 60))
@examples(30)
def test_a_service_that_goes_up_and_down_all_the_time_is_not_restarted_all_the_time(runs: int, cycles: int) -> None:
    """U D U D U D led to a storm of restarts."""
    assume(cycles * runs < 100)
    one = service(down_after=1, up_after=1, restarts=100, window_minutes=600, wait_seconds=0, start_grace_seconds=0)
    _, made = play(one, State(), ([UP] + [DOWN] * runs) * cycles, NOON, 60)
    assert [decision.action for decision in made].count(RESTART) <= 7 * runs


def test_a_database_with_many_clients_that_fail_with_it_is_one_failure() -> None:
    """All ten clients of a database were down with it, and just that kept the database from being restarted."""
    clients = [service(f"client{number}", depends_on=("base",)) for number in range(10)]
    all_ = registry(service("base"), *clients, mass_failure_fewest=3)
    found = decide(all_, {one.name: IS_DOWN for one in all_.services}, NOON)
    assert {one.service.name: one.action for one in found if one.action != SUPPRESSED} == {"base": RESTART}


def test_a_child_waits_for_a_parent_that_has_just_begun_to_fail() -> None:
    all_ = registry(service("base", down_after=5), service("child", down_after=1, depends_on=("base",)))
    failing = replace(IS_UP, failures=1, looks="UUUD")
    (found,) = decide(all_, {"base": failing, "child": IS_DOWN}, NOON)
    assert (found.action, found.reason) == (SUPPRESSED, "because of base")
