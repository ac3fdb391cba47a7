"""States and events of services in the database: one restart however many claim it, and a state that survives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select

from ops_pipeline.database.engine import connect, database_now, reading, writing
from ops_pipeline.services.recovery import RESTART, decide
from ops_pipeline.services.registry import Registry, Service, SystemdAction, TcpCheck
from ops_pipeline.services.states import DOWN, GIVEN_UP, MAINTENANCE, RECOVERING, UNKNOWN, UP, Look, State
from ops_pipeline.services.store import (
    COMMANDED,
    LONGEST_TEXT,
    RESTARTED,
    TRANSITION,
    Event,
    claim_restart,
    command_maintenance,
    command_reset,
    give_up,
    last_actions,
    read_states,
    read_transitions,
    record_looks,
    tell,
)
from ops_pipeline.services.tables import service_events
from ops_pipeline_tests.usage.calls import NOON

HOUR = timedelta(hours=1)


def service(name: str = "web", **fields: Any) -> Service:
    usual: dict[str, Any] = {"name": name, "description": name, "recovery": "auto"}
    usual["check"] = TcpCheck(kind="tcp", port=80)
    usual["action"] = SystemdAction(kind="systemd", unit="nginx.service")
    return Service(**usual | fields)


WEB = service()


def looked(engine: Engine, *found: str, one: Service = WEB) -> list[tuple[str, str]]:
    """The transitions of a service that looks lead to."""
    transitions: list[tuple[str, str]] = []
    for number, what in enumerate(found):
        written = record_looks(engine, [one], {one.name: Look(what, f"look {number}", 1.5)}, f"run {number}")
        transitions += [(event.before, event.after) for event, _ in written]
    return transitions


def state_of(engine: Engine, name: str = "web") -> State:
    with reading(engine) as connection:
        return read_states(connection).get(name, State())


def clock(engine: Engine) -> datetime:
    with reading(engine) as connection:
        return database_now(connection)


def events(engine: Engine) -> list[dict[str, Any]]:
    with reading(engine) as connection:
        found = connection.execute(select(service_events).order_by(service_events.c.id)).mappings()
        return [dict(row) for row in found]


def told(engine: Engine) -> list[tuple[str, str, str]]:
    return [(event["kind"], event["before"], event["after"]) for event in events(engine)]


def wanted(one: Service) -> Callable[[Mapping[str, State], datetime], bool]:
    """The question that is asked once more under the lock."""
    all_ = Registry(services=(one,), mass_failure_fewest=100)
    return lambda states, now: [each.action for each in decide(all_, states, now)] == [RESTART]


def happened(engine: Engine, *changes: tuple[datetime, str], name: str = "web", kind: str = TRANSITION) -> None:
    """Write events of any time."""
    rows = [{"at": at, "service": name, "kind": kind, "after": after, "reason": after} for at, after in changes]
    with writing(engine) as connection:
        connection.execute(insert(service_events), rows)


# States


def test_looks_are_written_with_an_event_for_each_change_of_state(engine: Engine) -> None:
    before = clock(engine)
    assert looked(engine, UP, UP, DOWN, DOWN, DOWN) == [(UNKNOWN, UP), (UP, DOWN)]
    assert told(engine) == [(TRANSITION, UNKNOWN, UP), (TRANSITION, UP, DOWN)]
    first, second = events(engine)
    assert before <= first.pop("at") <= second["at"] <= clock(engine)
    first.pop("id")
    assert first == {
        "service": "web",
        "kind": TRANSITION,
        "before": UNKNOWN,
        "after": UP,
        "reason": "look 0",
        "output": "",
        "duration_seconds": None,
        "run_id": "run 0",
    }
    state = state_of(engine)
    assert (state.state, state.confirmed, state.failures, state.looks) == (DOWN, DOWN, 3, "UUDDD")
    assert (state.reason, state.latency_ms, state.since) == ("look 4", 1.5, second["at"])


def test_a_state_survives_the_process_that_wrote_it(engine: Engine) -> None:
    """Whoever restarted the checker got a new budget, and so did a service that killed it."""
    one = service(down_after=1, start_grace_seconds=600)
    looked(engine, UP, DOWN, one=one)
    assert claim_restart(engine, one, wanted(one), "run")
    command_maintenance(engine, one, clock(engine) + HOUR, "disks")
    before = state_of(engine)
    engine.dispose()
    other = connect(engine.url.render_as_string(hide_password=False))
    assert state_of(other) == before
    assert len(before.restarts) == 1 and before.grace_until == before.restarts[0] + timedelta(minutes=10)
    assert before.restarts[0].utcoffset() == timedelta(0)
    assert before.maintenance_until is not None and before.maintenance_until.utcoffset() == timedelta(0)
    other.dispose()


def test_all_services_are_written_together_and_none_touches_another(engine: Engine) -> None:
    several = [service("a", host="one", down_after=1), service("b", host="two"), service("c")]
    looks = {"a": Look(DOWN), "b": Look(UP), "c": Look(UNKNOWN)}
    written = record_looks(engine, several, looks, "run")
    assert [(event.service, event.after, state.state) for event, state in written] == [
        ("a", DOWN, DOWN),
        ("b", UP, UP),
    ]
    looked(engine, DOWN, one=several[1])
    assert {name: state_of(engine, name).looks for name in looks} == {"a": "D", "b": "UD", "c": ""}


def test_texts_of_any_length_and_letters_are_kept_up_to_a_limit(engine: Engine) -> None:
    """A stack trace of a megabyte stood in every row."""
    reason = "Ärger 🙂 '; --\n" + "x" * 10_000
    ((event, state),) = record_looks(engine, [WEB], {"web": Look(UP, reason)}, "run")
    assert (event.reason, state.reason) == (reason, reason)
    tell(engine, [Event("web", RESTARTED, DOWN, "done", reason, reason, 1.25)], "run")
    assert state_of(engine).reason == reason[:LONGEST_TEXT]
    assert [one["reason"] for one in events(engine)] == [reason[:LONGEST_TEXT]] * 2
    assert (events(engine)[1]["output"], events(engine)[1]["duration_seconds"]) == (reason[:LONGEST_TEXT], 1.25)


def test_nothing_to_tell_is_nothing_written(engine: Engine) -> None:
    tell(engine, [], "run")
    assert events(engine) == []


# One restart


def at_once(count: int, work: Callable[[], Any]) -> list[Any]:
    """What so many threads get that start at the same moment."""
    barrier = threading.Barrier(count)

    def one() -> Any:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(one) for _ in range(count)]]


@pytest.mark.parametrize("grace", [0, 30])
def test_of_checks_that_claim_a_restart_at_once_one_gets_it(engine: Engine, grace: float) -> None:
    """Two schedulers ran for a day, and every service that failed was restarted twice."""
    one = service(down_after=1, start_grace_seconds=grace, wait_seconds=60)
    for round_ in range(1, 4):
        command_reset(engine, one)
        looked(engine, UP, DOWN, one=one)
        claims = at_once(4, lambda: claim_restart(engine, one, wanted(one), "run"))
        assert sorted(claims) == [False, False, False, True]
        assert len(state_of(engine).restarts) == 1
        assert told(engine).count((TRANSITION, DOWN, RECOVERING)) == round_


def test_the_last_restart_of_a_budget_is_made_once(engine: Engine) -> None:
    one = service(down_after=1, start_grace_seconds=0, wait_seconds=0, restarts=3)
    for _ in range(5):
        looked(engine, DOWN, one=one)
        at_once(2, lambda: claim_restart(engine, one, wanted(one), "run"))
    assert len(state_of(engine).restarts) == 3


def test_a_claim_that_is_no_longer_wanted_writes_nothing(engine: Engine) -> None:
    looked(engine, UP, DOWN, DOWN, DOWN)
    before, seen = state_of(engine), []

    def refuse(states: Mapping[str, State], now: datetime) -> bool:
        seen.append((states.get(WEB.name, State()), now))
        return False

    assert not claim_restart(engine, WEB, refuse, "run")
    assert state_of(engine) == before
    assert [state for state, _ in seen] == [before]
    assert before.since is not None and before.since <= seen[0][1] <= clock(engine)
    assert told(engine) == [(TRANSITION, UNKNOWN, UP), (TRANSITION, UP, DOWN)]


def test_a_service_that_came_up_in_the_meantime_is_not_restarted(engine: Engine) -> None:
    one = service(down_after=1, up_after=1)
    looked(engine, UP, DOWN, UP, one=one)
    assert not claim_restart(engine, one, wanted(one), "run")
    assert state_of(engine).restarts == ()


def test_a_service_is_given_up_once_though_two_checks_find_it_so(engine: Engine) -> None:
    looked(engine, UP, DOWN, DOWN, DOWN)
    at_once(3, lambda: give_up(engine, WEB, "3 restarts did not help", "run"))
    state = state_of(engine)
    assert (state.state, state.given_up, state.reason) == (GIVEN_UP, True, "3 restarts did not help")
    assert told(engine)[2:] == [(TRANSITION, DOWN, GIVEN_UP)]
    assert looked(engine, DOWN, UP, UP) == [(GIVEN_UP, UP)]
    assert not state_of(engine).given_up


# What operators do


def test_a_reset_is_an_event_and_begins_a_new_budget(engine: Engine) -> None:
    one = service(down_after=1, restarts=1, wait_seconds=0, start_grace_seconds=0)
    looked(engine, UP, DOWN, one=one)
    assert claim_restart(engine, one, wanted(one), "run")
    looked(engine, DOWN, one=one)
    assert not claim_restart(engine, one, wanted(one), "run")
    give_up(engine, one, "spent", "run")
    command_reset(engine, one)
    assert replace(state_of(engine), since=None, checked_at=None) == State(reason="reset by an operator")
    assert told(engine)[-1] == (COMMANDED, GIVEN_UP, UNKNOWN)
    looked(engine, DOWN, one=one)
    assert claim_restart(engine, one, wanted(one), "run")


def test_a_window_by_command_is_open_at_once_until_it_ends_or_is_closed(engine: Engine) -> None:
    looked(engine, UP)
    until = clock(engine) + HOUR
    command_maintenance(engine, WEB, until, "new disks")
    opened = state_of(engine)
    assert (opened.state, opened.maintenance_until) == (MAINTENANCE, until)
    assert looked(engine, DOWN, DOWN, DOWN) == []
    command_maintenance(engine, WEB, clock(engine), "done early")
    assert state_of(engine).maintenance_until is None
    assert looked(engine, UP) == [(MAINTENANCE, UP)]
    words = [(event["kind"], event["after"], event["reason"]) for event in events(engine)[1:3]]
    assert words == [
        (COMMANDED, MAINTENANCE, f"maintenance until {until:%Y-%m-%d %H:%M} UTC: new disks"),
        (COMMANDED, MAINTENANCE, "maintenance ended: done early"),
    ]


def test_a_window_may_be_prolonged_and_keeps_its_beginning(engine: Engine) -> None:
    command_maintenance(engine, WEB, clock(engine) + HOUR, "disks")
    begun = state_of(engine).since
    command_maintenance(engine, WEB, clock(engine) + 2 * HOUR, "more disks")
    prolonged = state_of(engine)
    assert (prolonged.state, prolonged.since) == (MAINTENANCE, begun)
    assert prolonged.maintenance_until is not None and prolonged.maintenance_until > clock(engine) + HOUR


# History


def transitions_since(engine: Engine, since: datetime) -> dict[str, Sequence[tuple[datetime, str]]]:
    return dict(read_transitions(engine, since))


def test_the_history_begins_with_the_last_state_before_it(engine: Engine) -> None:
    """A service that had been up for a year had no uptime, since nothing had changed within the month."""
    happened(engine, (NOON - 9 * HOUR, DOWN), (NOON - 5 * HOUR, UP), (NOON, DOWN), (NOON + HOUR, UP))
    happened(engine, (NOON - 400 * HOUR, UP), name="old")
    happened(engine, (NOON + HOUR, UP), name="new")
    assert transitions_since(engine, NOON) == {
        "web": [(NOON - 5 * HOUR, UP), (NOON, DOWN), (NOON + HOUR, UP)],
        "old": [(NOON - 400 * HOUR, UP)],
        "new": [(NOON + HOUR, UP)],
    }
    assert transitions_since(engine, NOON + 2 * HOUR)["web"] == [(NOON + HOUR, UP)]


def test_alerts_and_restarts_are_no_states(engine: Engine) -> None:
    happened(engine, (NOON, UP))
    happened(engine, (NOON + HOUR, "done"), kind=RESTARTED)
    happened(engine, (NOON + HOUR, "suppressed"), kind="alert")
    happened(engine, (NOON + 2 * HOUR, MAINTENANCE), kind=COMMANDED)
    assert transitions_since(engine, NOON) == {"web": [(NOON, UP), (NOON + 2 * HOUR, MAINTENANCE)]}


def test_the_last_action_of_a_service_is_its_last_restart_or_command(engine: Engine) -> None:
    happened(engine, (NOON, "first"), (NOON + HOUR, "second"), kind=RESTARTED)
    happened(engine, (NOON + 2 * HOUR, UP))
    happened(engine, (NOON, "restarted"), name="db", kind=RESTARTED)
    happened(engine, (NOON + HOUR, "reset"), name="db", kind=COMMANDED)
    happened(engine, (NOON, UP), name="quiet")
    assert last_actions(engine) == {"web": (NOON + HOUR, "second"), "db": (NOON + HOUR, "reset")}
