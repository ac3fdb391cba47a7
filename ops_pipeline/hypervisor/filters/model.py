"""What a network filter is, as desired and as defined: two are the same filter when their values are equal.

What belongs here: the dataclasses, and defaults that libvirt fills in. Reading and writing of XML is in `xml_text`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ACTIONS = ("drop", "accept", "reject", "return", "continue")
DIRECTIONS = ("in", "out", "inout")
BLOCKING = frozenset({"drop", "reject"})
CHAIN_PRIORITIES = {
    "root": 0,
    "stp": -810,
    "mac": -800,
    "vlan": -750,
    "ipv4": -700,
    "ipv6": -600,
    "arp": -500,
    "rarp": -400,
}
"""The order of chains that libvirt documents; it forgets stp itself (0), so that priorities are always written out."""
RULE_PRIORITY = 500
LEAST_PRIORITY, MOST_PRIORITY = -1000, 1000

Values = tuple[tuple[str, str], ...]
"""Names with values, in libvirt's order."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        action: one of `ACTIONS`.
        direction: as the machine sees it, one of `DIRECTIONS`.
        priority: rules with a lower one come first.
        protocol: the element of libvirt, for example `tcp-ipv6`.
        values: what is matched, by libvirt's attributes in its order and its spelling.
        state_match: whether the state of connections is kept for it.
    """

    action: str
    direction: str
    priority: int
    protocol: str
    values: Values = ()
    state_match: bool = True

    def value(self, name: str) -> str | None:
        """What one attribute must be; None when it does not matter."""
        return dict(self.values).get(name)


@dataclass(frozen=True)
class Reference:
    """Another filter that is included, with values for its variables, sorted by variable."""

    filter: str
    parameters: Values = ()


@dataclass(frozen=True)
class Filter:
    """A filter.

    Attributes:
        name: of the filter in libvirt.
        uuid: of the filter in libvirt; no part of what it does, and not compared.
        chain: where its rules stand.
        priority: of the chain.
        references: the filters that it includes, in order; before its rules.
        rules: sorted by priority, in their own order where that is the same.
        oddities: what stands in a dump that no desired filter has, so that it differs from every one.
    """

    name: str
    uuid: str = field(compare=False)
    chain: str = "root"
    priority: int = 0
    references: tuple[Reference, ...] = ()
    rules: tuple[Rule, ...] = ()
    oddities: tuple[str, ...] = ()


def default_priority(chain: str) -> int:
    """The priority of a chain that names none: its kind's, as for `ipv4` in `ipv4-web`."""
    return next((CHAIN_PRIORITIES[kind] for kind in _BY_LENGTH if chain.startswith(kind)), 0)


_BY_LENGTH = sorted(CHAIN_PRIORITIES, key=len, reverse=True)


def difference(live: Filter, desired: Filter) -> str:
    """What tells two filters of one name apart, in words; empty when they are the same."""
    found = list(live.oddities[:2])
    if live.chain != desired.chain:
        found.append(f"chain {live.chain}, not {desired.chain}")
    if live.priority != desired.priority:
        found.append(f"priority {live.priority}, not {desired.priority}")
    if live.references != desired.references:
        found.append(_counted("reference", set(live.references), set(desired.references)))
    if live.rules != desired.rules:
        found.append(_counted("rule", set(live.rules), set(desired.rules)))
    return "; ".join(found)


def _counted(word: str, live: set[object], desired: set[object]) -> str:
    missing, extra = len(desired - live), len(live - desired)
    parts = [f"{count} {word}s {what}" for count, what in ((missing, "missing"), (extra, "too many")) if count]
    return ", ".join(parts) or f"{word}s in another order"
