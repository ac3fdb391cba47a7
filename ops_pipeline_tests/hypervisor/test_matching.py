"""Which domain is which machine's, and what cannot be told."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.hypervisor.machines.domains import Domain
from ops_pipeline.hypervisor.machines.matching import MachineRow, Matches, match

NOW = datetime(2026, 5, 4, tzinfo=UTC)


def row(name: str, *, uuid: str = "", internal: str | None = None, host: str | None = None, **more: str) -> MachineRow:
    internal_name = name if internal is None else internal
    return MachineRow(name, host, internal_name, uuid, "", more.get("status", "running"), NOW, "", "", None, 0)


def domain(name: str, uuid: str = "", state: int = 1, reason: int = 1) -> Domain:
    return Domain(name, uuid or f"uuid of {name}", state, reason)


def matched(machines: list[MachineRow], *domains: Domain, **others: list[Domain]) -> Matches:
    hosts = {"local": list(domains), **others}
    return match(machines, hosts, list(hosts))


def pairs(found: Matches) -> list[tuple[str, str]]:
    return sorted((machine.id, one.name) for machine, one in found.found)


def told(found: Matches) -> list[tuple[str, str]]:
    return sorted((finding.kind, finding.key) for finding in found.findings)


def test_a_machine_is_found_by_its_uuid_whatever_its_domain_is_called() -> None:
    """Two machines whose names were swapped got each other's status."""
    machines = [row("a", uuid="1", internal="b"), row("b", uuid="2", internal="a")]
    found = matched(machines, domain("a", "1"), domain("b", "2"))
    assert pairs(found) == [("a", "a"), ("b", "b")]
    assert told(found) == []


def test_a_uuid_may_be_written_in_either_case() -> None:
    assert pairs(matched([row("a", uuid="AB-CD")], domain("a", "ab-cd"))) == [("a", "a")]


def test_a_machine_without_a_uuid_is_found_by_its_name() -> None:
    assert pairs(matched([row("a")], domain("a"), domain("b"))) == [("a", "a")]


def test_a_domain_of_the_same_name_with_another_uuid_is_no_match() -> None:
    """A domain that somebody made anew is not the platform's machine."""
    found = matched([row("a", uuid="1")], domain("a", "2"))
    assert (pairs(found), found.missing, told(found)) == ([], [], [("conflict", "a")])
    assert "has the UUID 2, the machine has 1" in found.findings[0].words


def test_machines_that_share_a_name_are_reported_and_none_is_matched() -> None:
    found = matched([row("a", internal="x"), row("b", internal="x")], domain("x"))
    assert (pairs(found), found.missing, told(found)) == ([], [], [("duplicate", "x (a)"), ("duplicate", "x (b)")])


def test_a_name_shared_with_a_machine_that_has_a_uuid_is_the_others() -> None:
    found = matched([row("a", internal="x", uuid="1"), row("b", internal="x")], domain("x", "1"))
    assert (pairs(found), told(found)) == ([("a", "x")], [("duplicate", "x (b)")])


def test_a_domain_that_is_another_machines_by_uuid_is_not_taken_by_name() -> None:
    found = matched([row("a", internal="y", uuid="1"), row("b", internal="x")], domain("x", "1"))
    assert (pairs(found), told(found)) == ([("a", "x")], [("duplicate", "x (b)")])


def test_machines_that_share_a_uuid_are_reported_and_none_is_matched() -> None:
    found = matched([row("a", uuid="1"), row("b", uuid="1")], domain("a", "1"))
    assert (pairs(found), told(found)) == ([], [("duplicate", "a"), ("duplicate", "b")])


def test_a_machine_without_name_and_uuid_is_reported() -> None:
    """The empty name matched an empty one."""
    found = matched([row("a", internal=""), row("b", internal="")], domain(""))
    assert (pairs(found), found.missing) == ([], [])
    assert told(found) == [("unknown_domain", ""), ("unnamed", "a"), ("unnamed", "b")]


def test_a_domain_that_is_nobodys_is_reported() -> None:
    assert told(matched([row("a")], domain("a"), domain("stranger"))) == [("unknown_domain", "stranger")]


def test_a_machine_is_looked_for_on_its_own_host_only() -> None:
    """Machines of other hosts were written off, and namesakes took each other's status."""
    machines = [row("a"), row("b", internal="a", host="h2")]
    found = matched(machines, domain("a", "1"), h2=[domain("a", "2", 5)])
    assert [(machine.id, one.uuid) for machine, one in found.found] == [("a", "1"), ("b", "2")]
    assert told(found) == []


def test_nothing_is_said_about_machines_of_a_host_that_did_not_answer() -> None:
    found = match([row("a"), row("b", host="h2")], {"local": [domain("a")]}, ["local", "h2"])
    assert (pairs(found), found.missing, found.unasked, told(found)) == ([("a", "a")], [], 1, [])


def test_a_machine_whose_host_does_not_exist_is_reported() -> None:
    assert told(matched([row("a", host="gone")])) == [("no_host", "a")]


def test_a_machine_whose_domain_is_on_another_host_is_not_missing() -> None:
    """A machine that was moved by hand was written off on one host while it ran on the other."""
    found = matched([row("a", uuid="1")], h2=[domain("a", "1")])
    assert ([(machine.id, host) for machine, host in found.elsewhere], found.missing) == ([("a", "h2")], [])
    assert told(found) == []


def test_a_machine_that_runs_on_two_hosts_is_a_conflict_unless_it_is_being_moved() -> None:
    for status, expected in (("running", [("conflict", "a")]), ("moving", [])):
        found = matched([row("a", uuid="1", status=status)], domain("a", "1"), h2=[domain("a", "1")])
        assert (pairs(found), told(found)) == ([("a", "a")], expected)
    found = matched([row("a", uuid="1")], domain("a", "1"), h2=[domain("a", "1", 5)])
    assert told(found) == []


@pytest.mark.parametrize("half", [domain("a", "1", 3, 2), domain("a", "1", 3, 11), domain("a", "1", 3, 12)])
def test_a_machine_that_somebody_migrates_is_not_taken_to_run_twice(half: Domain) -> None:
    """Each virsh migrate was reported as one machine on two hosts."""
    for here, there in ((domain("a", "1"), half), (half, domain("a", "1")), (half, half)):
        assert told(matched([row("a", uuid="1")], here, h2=[there])) == []


NAMES = st.sampled_from(["", "a", "b", "c"])
MACHINES = st.lists(st.tuples(NAMES, NAMES, st.sampled_from([None, "h2"])), max_size=6)


@given(
    MACHINES, st.lists(st.tuples(NAMES, st.sampled_from("abc")), max_size=3, unique_by=(lambda d: d[0], lambda d: d[1]))
)
def test_no_domain_is_ever_two_machines_and_the_order_is_irrelevant(
    made: list[tuple[str, str, str | None]], on: list[tuple[str, str]]
) -> None:
    machines = [
        row(str(number), internal=internal, uuid=uuid, host=host) for number, (internal, uuid, host) in enumerate(made)
    ]
    domains = [domain(name, uuid) for name, uuid in on]
    found = matched(machines, *domains, h2=[])
    assert len({one.uuid for _, one in found.found}) == len(found.found)
    accounted = [machine.id for machine, _ in found.found] + [machine.id for machine in found.missing]
    accounted += [machine.id for machine, _ in found.elsewhere]
    assert len(accounted) == len(set(accounted))
    again = matched(machines[::-1], *domains[::-1], h2=[])
    assert (pairs(found), told(found)) == (pairs(again), told(again))
