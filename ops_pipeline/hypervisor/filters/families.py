"""IPv6 is never wider open than IPv4 by omission.

What belongs here: finding what a filter blocks over IPv4 and nothing blocks over IPv6. Rules about certain addresses
are left out, since no address of the other version corresponds to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ops_pipeline.hypervisor.filters.model import BLOCKING, Filter, Rule
from ops_pipeline.hypervisor.filters.protocols import TWINS

IPV6_OF = TWINS | {"ip": "ipv6"}
ADDRESSES = frozenset({"srcipaddr", "dstipaddr", "srcipfrom", "dstipfrom"})
WHOLE = {"all": "ipv4", "ip": "ipv4", "all-ipv6": "ipv6", "ipv6": "ipv6"}
SHOWN = 5


def wider_over_ipv6(filters: Mapping[str, Filter]) -> dict[str, str]:
    """What filters block over IPv4 only, in words, by the name of the filter that machines carry.

    Args:
        filters: all of them, by name; only those that no other includes are judged, together with all they include.
    """
    included = {reference.filter for one in filters.values() for reference in one.references}
    found = {}
    for name in sorted(filters.keys() - included):
        gaps = _gaps(_flat(filters, name))
        if gaps:
            more = f" and {len(gaps) - SHOWN} more" if len(gaps) > SHOWN else ""
            found[name] = f"only over IPv4 it blocks {'; '.join(gaps[:SHOWN])}{more}"
    return found


def _flat(filters: Mapping[str, Filter], name: str) -> list[Rule]:
    """The rules of a filter and of all that it includes, each filter once."""
    rules: list[Rule] = []
    seen: set[str] = set()
    left = [name]
    while left:
        current = left.pop()
        if current not in seen and current in filters:
            seen.add(current)
            rules += filters[current].rules
            left += [reference.filter for reference in filters[current].references]
    return rules


def _gaps(rules: list[Rule]) -> list[str]:
    blocking = [
        replace(rule, values=tuple(pair for pair in rule.values if pair[0] != "comment"))
        for rule in rules
        if rule.action in BLOCKING
    ]
    found = []
    for direction in ("in", "out"):
        these = [rule for rule in blocking if rule.direction in {direction, "inout"}]
        closed = {family for rule in these for family in _closed(rule)}
        if "ipv6" in closed:
            continue
        if "ipv4" in closed:
            found.append(f"everything {direction}")
        found += [_words(rule, direction) for rule in these if _has_no_twin(rule, these)]
    return list(dict.fromkeys(found))


def _closed(rule: Rule) -> set[str]:
    """The versions of IP that a rule blocks as a whole."""
    if rule.protocol == "mac":
        only = rule.value("protocolid")
        others = [name for name, _ in rule.values if name != "protocolid"]
        return set() if others else {only} if only else {"ipv4", "ipv6"}
    return {WHOLE[rule.protocol]} if rule.protocol in WHOLE and not rule.values else set()


def _has_no_twin(rule: Rule, others: list[Rule]) -> bool:
    if rule.protocol not in IPV6_OF or (not rule.values and rule.protocol in WHOLE):
        return False
    if any(name in ADDRESSES for name, _ in rule.values) or (rule.protocol == "icmp" and rule.value("type")):
        return False
    twin = IPV6_OF[rule.protocol]
    return not any(one.protocol == twin and set(one.values) <= set(rule.values) for one in others)


def _words(rule: Rule, direction: str) -> str:
    return " ".join([rule.protocol, *(f"{name}={value}" for name, value in rule.values), direction])
