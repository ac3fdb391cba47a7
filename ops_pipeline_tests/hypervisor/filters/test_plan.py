"""What is to be done about the filters of a host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops_pipeline.hypervisor.filters.desired import Desired
from ops_pipeline.hypervisor.filters.facts import FilterLook, Guest, Interface, LiveFilter, uses
from ops_pipeline.hypervisor.filters.model import Filter, Rule
from ops_pipeline.hypervisor.filters.orphans import orphan_key
from ops_pipeline.hypervisor.filters.plan import FilterPolicy, HostPlan, plan_host
from ops_pipeline.hypervisor.filters.xml_text import render
from ops_pipeline.reconcile import SafetyLimit
from ops_pipeline_tests.hypervisor.filters.samples import (
    desired,
    filter_row,
    filters,
    live,
    look,
    reference_row,
    rule_row,
    uuid_of,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=30)
POLICY = FilterPolicy()


def planned(
    wanted: Desired, found: FilterLook, policy: FilterPolicy = POLICY, since: Mapping[str, datetime] | None = None
) -> HostPlan:
    """A plan in which all orphans are old, unless said otherwise."""
    if since is None:
        since = {orphan_key(one.name, one.uuid): LONG_AGO for one in found.filters.values()}
    return plan_host(wanted, found, policy, since, NOW)


def host_of(wanted: Desired, *more: Filter, **look_fields: Any) -> FilterLook:
    """A host that has everything already, and more."""
    return look(*wanted.filters.values(), *more, **look_fields)


def apply(plan: HostPlan, found: FilterLook) -> FilterLook:
    """The host after a plan."""
    after = {name: one for name, one in found.filters.items() if name not in plan.removals}
    for order in plan.orders:
        uuid = order.xml.partition("<uuid>")[2].partition("</uuid>")[0] or uuid_of(f"made for {order.name}")
        xml = order.xml if "<uuid>" in order.xml else order.xml.replace(">\n", f">\n  <uuid>{uuid}</uuid>\n", 1)
        after[order.name] = LiveFilter(order.name, uuid, xml)
    return replace(found, filters=after)


def interface(name: str, device: str = "") -> Interface:
    return Interface("52:54:00:00:00:01", "bridge", device, f"ibay-{name}")


WEB = desired([filter_row("web")], [rule_row("web", protocol="tcp", dst_port_start=80)])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(filters(), max_size=3), st.lists(filters(), max_size=3))
def test_a_second_plan_is_empty(wanted: list[Filter], present: list[Filter]) -> None:
    names = {one.name: replace(one, references=()) for one in wanted}
    texts = {name: render(one) for name, one in names.items()}
    goal = Desired(names, texts, {}, dict.fromkeys(names, "label"))
    found = look(*{one.name: one for one in present}.values())
    first = planned(goal, found)
    after = apply(first, found)
    second = planned(goal, after)
    assert (second.orders, second.removals, second.failed) == ((), {}, {})
    assert {name: after.filters[name].xml for name in names} == {
        name: render(one, after.filters[name].uuid) for name, one in names.items()
    }


def test_what_is_missing_is_defined_and_what_differs_redefined_those_that_are_included_first() -> None:
    rows = [filter_row(name) for name in ("vm", "department", "base", "fine")]
    wanted = desired(rows, references=[reference_row("vm", "department"), reference_row("department", "base")])
    found = look(wanted.filters["ibay-fine"], live("department"), live("vm", "department"))
    plan = planned(wanted, found)
    assert [(one.key, one.action, one.planned_from, one.reason) for one in plan.changes] == [
        ("ibay-base", "define", "missing", "it is missing"),
        ("ibay-department", "redefine", "defined", "1 references missing"),
    ]
    assert plan.orders[1].includes == ("ibay-base",)
    assert plan.orders[1].planned_from == found.filters["ibay-department"].xml


def test_a_rule_that_moves_between_filters_is_for_a_moment_in_both_rather_than_in_neither() -> None:
    wanted = desired([filter_row("a"), filter_row("z")], [rule_row("z")])
    drops = [Rule("drop", "in", 500, protocol) for protocol in ("all", "all-ipv6")]
    found = look(live("a", rules=drops), live("z"))
    assert [order.name for order in planned(wanted, found).orders] == ["ibay-z", "ibay-a"]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"chain": "ipv4", "priority": -700}, "chain ipv4, not root; priority -700, not 0"),
        ({"rules": ()}, "2 rules missing"),
        ({"rules": (*WEB.filters["ibay-web"].rules, Rule("accept", "in", 900, "all"))}, "1 rules too many"),
        ({"rules": WEB.filters["ibay-web"].rules[::-1]}, "rules in another order"),
        ({"references": live("x", "y").references}, "1 references too many"),
    ],
)
def test_a_filter_edited_by_hand_is_redefined_and_told_why(edit: dict[str, Any], reason: str) -> None:
    plan = planned(WEB, look(replace(WEB.filters["ibay-web"], **edit)))
    assert [(one.action, one.reason) for one in plan.changes] == [("redefine", reason)]


def test_another_spelling_of_the_same_is_in_sync() -> None:
    one = LiveFilter("ibay-web", uuid_of("ibay-web"), render(WEB.filters["ibay-web"]).replace("'80'", "'0x50'"))
    assert planned(WEB, FilterLook(filters={one.name: one})).changes == ()


def test_a_dump_that_cannot_be_read_is_replaced() -> None:
    one = LiveFilter("ibay-web", uuid_of("ibay-web"), "<filter")
    (change,) = planned(WEB, FilterLook(filters={one.name: one})).changes
    assert (change.action, "its dump cannot be read" in change.reason) == ("redefine", True)


def test_a_filter_under_another_uuid_keeps_it_and_is_told() -> None:
    other = uuid_of("another")
    found = look(replace(WEB.filters["ibay-web"], uuid=other, rules=()))
    plan = planned(WEB, found)
    assert f"<uuid>{other}</uuid>" in plan.orders[0].xml
    assert plan.kept == {"ibay-web": f"it has the UUID {other} on this host, and keeps it"}
    assert planned(WEB, apply(plan, found)).changes == ()


@pytest.mark.parametrize("holder", ["ibay-old-name", "clean-traffic"])
def test_a_uuid_that_another_filter_has_is_not_taken_from_it(holder: str) -> None:
    """Libvirt refuses it, and to undefine the other one first would leave machines without."""
    found = look(Filter(holder, uuid_of("ibay-web")))
    plan = planned(WEB, found, since={})
    assert "<uuid>" not in plan.orders[0].xml
    assert plan.kept["ibay-web"] == f"its UUID belongs to {holder}; it gets another one on this host"
    assert plan.removals == {}


def test_a_refused_filter_stays_as_it_is_and_those_that_include_it_are_defined_where_it_stands() -> None:
    wanted = desired(
        [filter_row("vm"), filter_row("base")], [rule_row("base", action="allow")], [reference_row("vm", "base")]
    )
    standing = planned(wanted, look(live("base"), live("vm")))
    assert ([one.name for one in standing.orders], standing.removals, standing.orphans) == (["ibay-vm"], {}, {})
    missing = planned(wanted, look())
    assert missing.orders == ()
    assert missing.failed == {"ibay-vm": "Vm (ibay-vm) includes ibay-base, which cannot be defined"}


def test_what_includes_a_failed_filter_fails_with_it() -> None:
    names = ("vm", "department", "base")
    wanted = desired(
        [filter_row(name) for name in names],
        [rule_row("base", action="allow")],
        [reference_row("vm", "department"), reference_row("department", "base")],
    )
    assert list(planned(wanted, look()).failed) == ["ibay-department", "ibay-vm"]


def test_only_names_that_begin_with_the_prefix_are_ours() -> None:
    """An unanchored grep for `ibay-` hit the filters of others."""
    foreign = [Filter(name, uuid_of(name)) for name in ("clean-traffic", "x-ibay-web", "IBAY-web", "ibay", " ibay-x")]
    plan = planned(WEB, host_of(WEB, *foreign))
    assert (plan.changes, plan.orphans, plan.ours) == ((), {}, 1)


def test_old_unused_orphans_go_sources_first() -> None:
    chain = [live("a", "b"), live("b", "c"), live("c"), live("d")]
    plan = planned(WEB, host_of(WEB, *chain))
    assert list(plan.removals) == ["ibay-a", "ibay-d", "ibay-b", "ibay-c"]
    assert plan.removals["ibay-a"] == uuid_of("ibay-a")
    assert {change.action for change in plan.changes} == {"remove"}


def test_a_young_orphan_waits_and_so_does_what_it_includes() -> None:
    found = host_of(WEB, live("young", "old"), live("old"))
    since = {
        orphan_key("ibay-young", uuid_of("ibay-young")): NOW - timedelta(hours=23),
        orphan_key("ibay-old", uuid_of("ibay-old")): LONG_AGO,
    }
    plan = planned(WEB, found, since=since)
    assert plan.removals == {}
    assert plan.kept == {
        "ibay-young": "orphan, goes after 2026-03-01 13:00 UTC",
        "ibay-old": "orphan, kept: ibay-young includes it",
    }
    assert planned(WEB, found, since={}).removals == {}


def test_an_orphan_that_was_made_anew_is_young_again() -> None:
    found = host_of(WEB, live("old", uuid=uuid_of("new")))
    assert planned(WEB, found, since={orphan_key("ibay-old", uuid_of("ibay-old")): LONG_AGO}).removals == {}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bindings": {"vnet0": "ibay-old"}}, "it is bound to vnet0"),
        ({"guests": [Guest("one", "u", True, (interface("old"),))]}, "an interface of one names it"),
        ({"guests": [Guest("off", "u", False, (interface("old"),))]}, "an interface of off, which is off, names it"),
        ({"guests": [Guest("one", "u", True, (), (interface("old"),))]}, "an interface of one names it"),
    ],
)
def test_an_orphan_in_use_is_kept_and_told(fields: dict[str, Any], reason: str) -> None:
    """Libvirt lets go of what a machine that is off names, which then never starts again."""
    plan = planned(WEB, host_of(WEB, live("old"), **fields))
    assert (plan.removals, plan.kept) == ({}, {"ibay-old": f"orphan, kept: {reason}"})


def test_what_a_filter_of_others_includes_is_in_use() -> None:
    foreign = Filter("theirs", uuid_of("theirs"), references=live("x", "old").references)
    assert planned(WEB, host_of(WEB, live("old"), foreign)).kept == {"ibay-old": "orphan, kept: theirs includes it"}


def test_orphans_that_include_each_other_are_kept_for_a_person() -> None:
    plan = planned(WEB, host_of(WEB, live("a", "b"), live("b", "a")))
    assert (plan.removals, len(plan.kept)) == ({}, 2)


def test_while_a_domain_cannot_be_read_no_orphan_goes() -> None:
    found = replace(host_of(WEB, live("old")), unread=("broken (error)",))
    assert planned(WEB, found).kept == {"ibay-old": "orphan, kept: broken (error) could not be read"}


def test_an_empty_database_never_deletes() -> None:
    plan = planned(desired([]), look(live("a"), live("b")), FilterPolicy(limit=SafetyLimit(share=1)))
    assert (plan.removals, plan.changes) == ({}, ())
    assert set(plan.kept.values()) == {"orphan, kept: the database has no filters at all"}


@pytest.mark.parametrize(
    ("limit", "objection"),
    [
        (SafetyLimit(count=2), "3 changes are more than the limit of 2"),
        (SafetyLimit(share=0.2), "3 of 12 objects are more than the limit of 20%"),
        (SafetyLimit(count=3, share=0.5), None),
    ],
)
def test_too_many_removals_are_refused_while_the_rest_is_defined(limit: SafetyLimit, objection: str | None) -> None:
    rows = [filter_row(f"keep{number}") for number in range(10)]
    wanted = desired(rows)
    present = [one for name, one in wanted.filters.items() if name != "ibay-keep0"]
    plan = planned(wanted, look(*present, live("a"), live("b"), live("c")), FilterPolicy(limit=limit))
    assert plan.objection == objection
    assert [one.name for one in plan.orders] == ["ibay-keep0"]
    assert len(plan.removals) == (0 if objection else 3)
    if objection:
        assert plan.kept["ibay-a"] == f"not removed: {objection}"


def test_a_host_without_filters_of_its_kind_is_left_alone_and_told() -> None:
    plan = planned(WEB, FilterLook(supported=False))
    assert (plan.changes, plan.kept) == ((), {"(all)": "libvirt's driver of this host knows no network filters"})


def test_of_several_users_the_same_one_is_told_whatever_the_order_in_which_libvirt_lists_them() -> None:
    """The reason for which a filter is kept was another one at each look, although nothing had changed."""
    found = [LiveFilter(name, "", '<filter><filterref filter="base"/></filter>') for name in ("vm-2", "vm-1", "vm-3")]
    for order in (found, found[::-1]):
        assert uses(FilterLook(filters={one.name: one for one in order})) == {"base": "vm-1 includes it"}
