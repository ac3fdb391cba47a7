"""What is to be done about the filters of a host: pure, from what it has, what it should have, and the time.

What belongs here: the rules. Only names with the prefix are ours; a filter is redefined, never undefined first; orphans
go last, old enough, unused (see `orphans`), and only as many as the limit allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from xml.etree import ElementTree

from ops_pipeline.hypervisor.filters.desired import Desired
from ops_pipeline.hypervisor.filters.facts import FilterLook, LiveFilter, Order, included
from ops_pipeline.hypervisor.filters.model import BLOCKING, Filter, difference
from ops_pipeline.hypervisor.filters.order import dependency_order
from ops_pipeline.hypervisor.filters.orphans import orphan_key, removals_of
from ops_pipeline.hypervisor.filters.xml_text import parse, render
from ops_pipeline.reconcile import Change, Plan, SafetyLimit

DEFINE, REDEFINE, REMOVE = "define", "redefine", "remove"


@dataclass(frozen=True)
class FilterPolicy:
    """What this deployment may touch.

    Attributes:
        prefix: what the names of its filters begin with.
        orphan_age: how long an orphan must have been one before it goes.
        limit: how many of a host's filters of ours one run may remove.
    """

    prefix: str = "ibay-"
    orphan_age: timedelta = timedelta(hours=24)
    limit: SafetyLimit = field(default_factory=partial(SafetyLimit, count=50, share=0.5))


@dataclass(frozen=True)
class HostPlan:
    """What would be done on one host.

    Attributes:
        orders: filters to define, those that are included first.
        reasons: why, by name.
        removals: UUIDs of orphans to remove, by name, sources first.
        orphans: UUIDs of all orphans, by name.
        kept: why something odd is left as it is, by name.
        failed: why a filter cannot be defined, by name.
        objection: why the removals are refused altogether; None when they may be done.
        ours: how many filters of ours the host has.
        wanted: how many it is to have, as far as they can be defined.
    """

    orders: tuple[Order, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    removals: Mapping[str, str] = field(default_factory=dict)
    orphans: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    objection: str | None = None
    ours: int = 0
    wanted: int = 0

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes, in the order in which they are made."""
        defined = [
            Change(one.name, REDEFINE if one.planned_from else DEFINE, self.reasons[one.name], _state(one.planned_from))
            for one in self.orders
        ]
        removed = [Change(name, REMOVE, "the database does not have it", "orphan") for name in self.removals]
        return (*defined, *removed)


def _state(xml: str) -> str:
    return "defined" if xml else "missing"


def check_structure(desired: Desired) -> None:
    """Refuse everything when filters include each other in a circle, or one that the database does not have.

    Raises:
        PlanRefused: naming them.
    """
    dependency_order(desired.filters, desired.names, lambda name: _label(desired, name))


def _label(desired: Desired, name: str) -> str:
    return f"{desired.labels.get(name, '')} ({name})"


def plan_host(
    desired: Desired, look: FilterLook, policy: FilterPolicy, first_seen: Mapping[str, datetime], now: datetime
) -> HostPlan:
    """Plan one host.

    Args:
        desired: of the database; its structure has been checked.
        look: at the host, made before the database was read.
        policy: of the deployment.
        first_seen: since when each orphan of the host is known, by `orphan_key`.
        now: the database's time.
    """
    if not look.supported:
        return HostPlan(
            kept={"(all)": "libvirt's driver of this host knows no network filters"} if desired.names else {}
        )
    orders, reasons, kept, failed = _definitions(desired, look)
    names = desired.names
    ours = {name: one for name, one in look.filters.items() if name.startswith(policy.prefix)}
    orphans = {name: one for name, one in ours.items() if name not in names}
    due = {name: first_seen.get(orphan_key(name, one.uuid), now) + policy.orphan_age for name, one in orphans.items()}
    removals, kept_orphans = removals_of(look, orphans, due, now, anything_desired=bool(names))
    objection = policy.limit.objection(Plan(tuple(Change(name, REMOVE, "") for name in removals), scanned=len(ours)))
    return HostPlan(
        orders=orders,
        reasons=reasons,
        removals={} if objection else removals,
        orphans={name: one.uuid for name, one in orphans.items()},
        kept=kept | kept_orphans | (dict.fromkeys(removals, f"not removed: {objection}") if objection else {}),
        failed=failed,
        objection=objection,
        ours=len(ours),
        wanted=len(desired.filters),
    )


def _definitions(
    desired: Desired, look: FilterLook
) -> tuple[tuple[Order, ...], dict[str, str], dict[str, str], dict[str, str]]:
    """Filters to define with the reasons, what is odd about others, and those that cannot be defined."""
    holders = {one.uuid: one.name for one in look.filters.values()}
    differing: dict[str, tuple[Filter, str]] = {}
    kept: dict[str, str] = {}
    for name, wanted in desired.filters.items():
        live = look.filters.get(name)
        reason, oddity = _compare(wanted, desired.texts[name], live, holders)
        if reason:
            differing[name] = wanted, reason
        if oddity:
            kept[name] = oddity
    failed: dict[str, str] = {}
    orders: list[Order] = []
    for name in _order(desired, differing, look):
        wanted, _ = differing[name]
        includes = tuple(one.filter for one in wanted.references)
        # A refused filter that a host has may be included all the same: what stands there holds on.
        without = [one for one in includes if one not in look.filters and (one in desired.refused or one in failed)]
        if without:
            failed[name] = f"{_label(desired, name)} includes {without[0]}, which cannot be defined"
            continue
        live = look.filters.get(name)
        orders.append(Order(name, render(wanted, _uuid(wanted, live, holders)), live.xml if live else "", includes))
    return tuple(orders), {name: reason for name, (_, reason) in differing.items()}, kept, failed


def _compare(wanted: Filter, text: str, live: LiveFilter | None, holders: Mapping[str, str]) -> tuple[str, str]:
    """Why a filter must be defined, and what is odd about it; either may be empty."""
    if live is None:
        holder = holders.get(wanted.uuid)
        oddity = f"its UUID belongs to {holder}; it gets another one on this host" if holder else ""
        return "it is missing", oddity
    oddity = "" if live.uuid == wanted.uuid else f"it has the UUID {live.uuid} on this host, and keeps it"
    # Most are equal by their text, which is far cheaper than reading them.
    if live.xml == text or (oddity and live.xml == render(wanted, live.uuid)):
        return "", oddity
    try:
        return difference(parse(live.xml), wanted), oddity
    except (ElementTree.ParseError, ValueError) as error:
        return f"its dump cannot be read ({error})", oddity


def _uuid(wanted: Filter, live: LiveFilter | None, holders: Mapping[str, str]) -> str:
    """The UUID under which libvirt takes it: the one that stands there, else its own unless another filter has it."""
    if live is not None:
        return live.uuid
    return "" if wanted.uuid in holders else wanted.uuid


def _order(desired: Desired, differing: Mapping[str, tuple[Filter, str]], look: FilterLook) -> list[str]:
    """Those that are included first; among the others those that block more come before those that block less.

    A rule that moves from one filter to another is then for a moment in both rather than in neither.
    """

    def rank(name: str) -> tuple[int, str]:
        live = look.filters.get(name)
        if live is None:
            return 0, name
        return int(_blocks(desired.filters[name]) < _blocks_of(live)), name

    if not differing:
        return []
    order = dependency_order(desired.filters, desired.names, first=rank)
    return [name for name in order if name in differing]


def _blocks(one: Filter) -> int:
    return sum(rule.action in BLOCKING for rule in one.rules)


def _blocks_of(live: LiveFilter) -> int:
    return sum(live.xml.count(f"<rule action='{action}'") for action in BLOCKING)


def missing_includes(look: FilterLook, prefix: str) -> dict[str, str]:
    """Filters of ours on a host that include one which the host does not have: machines with them do not start."""
    return {
        one.name: f"{one.name} includes {name}, which this host does not have"
        for one in look.filters.values()
        if one.name.startswith(prefix)
        for name in included(one.xml)
        if name not in look.filters
    }
