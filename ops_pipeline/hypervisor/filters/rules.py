"""Rules of filters as the database wants them.

What belongs here: the meaning of the columns of `network_filter_rules`, and which rules one row stands for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from ops_pipeline.hypervisor.filters.model import ACTIONS, DIRECTIONS, LEAST_PRIORITY, MOST_PRIORITY, Rule
from ops_pipeline.hypervisor.filters.protocols import (
    NEEDS,
    OVER_IPV4,
    OVER_IPV6,
    PORT_PROTOCOLS,
    PROTOCOLS,
    RANGES,
    TWINS,
)
from ops_pipeline.hypervisor.filters.values import ValueRefused, canonical

Row = Mapping[str, Any]

ALIASES = {"ipv4": "ip", "icmp-ipv6": "icmpv6"}
FAMILIES = {"": "", "both": "both"} | dict.fromkeys(("ipv4", "4", "ip"), "ipv4") | dict.fromkeys(("ipv6", "6"), "ipv6")
COLUMNS = {
    "src_mac": "srcmacaddr",
    "src_mac_mask": "srcmacmask",
    "dst_mac": "dstmacaddr",
    "dst_mac_mask": "dstmacmask",
    "src_ip": "srcipaddr",
    "src_ip_mask": "srcipmask",
    "dst_ip": "dstipaddr",
    "dst_ip_mask": "dstipmask",
    "src_port_start": "srcportstart",
    "src_port_end": "srcportend",
    "dst_port_start": "dstportstart",
    "dst_port_end": "dstportend",
    "icmp_type": "type",
    "icmp_code": "code",
    "comment": "comment",
}
"""The attribute that each column sets."""
FIELDS = (
    *("action", "direction", "priority", "protocol", "ip_version", "state", "state_match", "attributes"),
    *COLUMNS,
    *("src_ip_end", "dst_ip_end"),
)
"""The columns that a rule is made of; `state` and `attributes` as the text of their JSON."""
IN_ARP = {
    "srcipaddr": "arpsrcipaddr",
    "srcipmask": "arpsrcipmask",
    "dstipaddr": "arpdstipaddr",
    "dstipmask": "arpdstipmask",
}


class Refused(Exception):
    """A filter or rule that cannot be defined as it is meant."""


def rules_of(rows: Iterable[tuple[Any, ...]]) -> tuple[Rule, ...]:
    """The rules of one filter, sorted by priority and, where that is the same, by the rows' ids.

    Args:
        rows: the id of each rule, that of its filter, and its `FIELDS`.

    Raises:
        Refused: naming the rule.
    """
    found: list[tuple[int, str, tuple[Rule, ...]]] = []
    for whole in rows:
        try:
            made = _rules(whole[2:])
        except (Refused, ValueRefused) as error:
            row = dict(zip(FIELDS, whole[2:], strict=True))
            raise Refused(f"rule {whole[0]} ({row['action']} {row['direction']} {row['protocol']}): {error}") from None
        found.append((made[0].priority, str(whole[0]), made))
    found.sort(key=lambda entry: entry[:2])
    return tuple(rule for _, _, made in found for rule in made)


def _rules(fields: tuple[Any, ...]) -> tuple[Rule, ...]:
    """What one row stands for: a rule, or one for each version of IP."""
    row = dict(zip(FIELDS, fields, strict=True))
    action, direction, priority = row["action"], row["direction"], row["priority"]
    if action not in ACTIONS:
        raise Refused(f"{action!r} is no action; they are {', '.join(ACTIONS)}")
    if direction not in DIRECTIONS:
        raise Refused(f"{direction!r} is no direction; they are {', '.join(DIRECTIONS)}")
    bounded(priority)
    given = _given(row)
    return tuple(
        Rule(action, direction, priority, protocol, _values(protocol, given), bool(row["state_match"]))
        for protocol in _protocols(row, given)
    )


def bounded(priority: Any) -> int:
    """A priority of a rule or chain.

    Raises:
        Refused: libvirt would take another one.
    """
    if not isinstance(priority, int) or not LEAST_PRIORITY <= priority <= MOST_PRIORITY:
        raise Refused(f"the priority {priority!r} is no number from {LEAST_PRIORITY} to {MOST_PRIORITY}")
    return priority


_loads = lru_cache(maxsize=10_000)(json.loads)
"""Most rules have one of a few lists of states. What it returns is only read."""


def from_json(text: str, empty: Any) -> Any:
    """What a column of JSON holds.

    Raises:
        Refused: it is no JSON, written by a program that does not know better.
    """
    if text in {"", "[]", "{}", "null"}:
        return empty
    try:
        return _loads(text)
    except ValueError:
        raise Refused(f"{text!r} is no JSON") from None


def _given(row: Row) -> dict[str, str]:
    """Attributes by libvirt's name, in the spelling of the database."""
    given = {
        attribute: str(value)
        for column, attribute in COLUMNS.items()
        if (value := row[column]) is not None and value != ""
    }
    for side in ("src", "dst"):
        last = row[f"{side}_ip_end"]
        if last:
            if f"{side}ipmask" in given or f"{side}ipaddr" not in given:
                raise Refused(f"{side}_ip_end is the end of a range: it needs {side}_ip, and no {side}_ip_mask")
            given[f"{side}ipfrom"], given[f"{side}ipto"] = given.pop(f"{side}ipaddr"), last
    states = from_json(row["state"], [])
    if states:
        given["state"] = ",".join(map(str, states)) if isinstance(states, list) else str(states)
    attributes = from_json(row["attributes"], {})
    if not isinstance(attributes, Mapping):
        raise Refused(f"its attributes must be an object, not {attributes!r}")
    for name, value in attributes.items():
        if name in given:
            raise Refused(f"{name!r} is given twice, by a column and in its attributes")
        given[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return given


def _protocols(row: Row, given: Mapping[str, str]) -> list[str]:
    """The protocols of libvirt; over IPv4 and IPv6 both, as long as nothing says otherwise."""
    name = str(row["protocol"]).lower()
    protocol = ALIASES.get(name, name)
    version = str(row["ip_version"]).lower()
    if protocol not in PROTOCOLS:
        raise Refused(f"{row['protocol']!r} is no protocol; they are {', '.join(PROTOCOLS)}")
    if version not in FAMILIES:
        raise Refused(f"{row['ip_version']!r} is no version of IP; write ipv4, ipv6 or both, or leave it empty")
    wanted = FAMILIES[version]
    only = "ipv4" if protocol == "ip" else "ipv6" if protocol == "ipv6" or protocol in OVER_IPV6 else ""
    if only or protocol not in OVER_IPV4:
        if wanted and wanted != only:
            raise Refused(f"{name} and ip_version {version} contradict each other")
        return [protocol]
    wanted = wanted or _version_of(protocol, given)
    if wanted != "ipv4" and protocol not in TWINS:
        raise Refused(f"{name} exists over IPv4 only; write ip_version ipv4")
    return {"ipv4": [protocol], "ipv6": [TWINS.get(protocol, "")]}.get(wanted) or [protocol, TWINS[protocol]]


def _version_of(protocol: str, given: Mapping[str, str]) -> str:
    """The version of IP that a rule's addresses, types or protocol speak of; `both` when none of them does."""
    for name in ("srcipaddr", "dstipaddr", "srcipfrom", "dstipfrom"):
        address = given.get(name)
        if address:
            # $IP is an IPv4 address that libvirt learns, as $IPV6 is by custom one of IPv6.
            return "ipv6" if ":" in address or "V6" in address.upper() else "ipv4"
    # Types of ICMP have other numbers over IPv6.
    return "ipv4" if protocol == "igmp" or (protocol == "icmp" and "type" in given) else "both"


def _values(protocol: str, given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    kinds = PROTOCOLS[protocol]
    renamed = {IN_ARP.get(name, name): text for name, text in given.items()} if "arpsrcipaddr" in kinds else given
    unknown = [name for name in renamed if name not in kinds]
    if unknown:
        raise Refused(f"{protocol} cannot match {', '.join(unknown)}: libvirt would drop it, and match more")
    found: dict[str, str] = {}
    for name in [name for name in kinds if name in renamed]:
        try:
            found[name] = canonical(kinds[name], renamed[name])
        except ValueRefused as error:
            raise Refused(f"{name}: {error}") from None
    _together(protocol, found)
    return tuple(found.items())


def _together(protocol: str, values: Mapping[str, str]) -> None:
    """Refuse what libvirt takes, and then forgets when it makes rules."""
    for name in values:
        needed = NEEDS.get(name)
        if needed and needed not in values:
            raise Refused(f"{name} without {needed} would match everything")
        start = values.get(RANGES.get(name, ""))
        if start and start.isdigit() and values[name].isdigit() and int(start) > int(values[name]):
            raise Refused(f"{needed} {start} lies behind {name} {values[name]}")
    if protocol in {"ip", "ipv6"}:
        inner = values.get("protocol", "")
        if any("port" in name for name in values) and inner not in PORT_PROTOCOLS:
            raise Refused("ports need the attribute protocol: tcp, udp or sctp")
        if "type" in values and inner != "icmpv6":
            raise Refused("type and code need the attribute protocol: icmpv6")
