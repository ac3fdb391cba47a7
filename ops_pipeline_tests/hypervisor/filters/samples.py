"""Rows and filters for tests.

What belongs here: making them; nothing is judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from hypothesis import strategies as st
from sqlalchemy import Engine, Table, delete, insert

from ops_pipeline.database.engine import writing
from ops_pipeline.hypervisor.filters.desired import Desired, desired_of
from ops_pipeline.hypervisor.filters.facts import FilterLook, Guest, LiveFilter
from ops_pipeline.hypervisor.filters.model import ACTIONS, DIRECTIONS, Filter, Reference, Rule, default_priority
from ops_pipeline.hypervisor.filters.protocols import PROTOCOLS
from ops_pipeline.hypervisor.filters.rules import FIELDS
from ops_pipeline.hypervisor.filters.values import ARP_OPCODES, ETHERNET_TYPES, IP_PROTOCOLS, STATES, canonical
from ops_pipeline.hypervisor.filters.xml_text import render
from ops_pipeline.hypervisor.tables import network_filter_references, network_filter_rules, network_filters

PREFIX = "ibay-"
Row = dict[str, Any]


def uuid_of(name: str) -> str:
    """The UUID of a filter, always the same for its name."""
    return str(uuid5(NAMESPACE_URL, name))


def filter_row(name: str, **fields: Any) -> Row:
    """A row of `network_filters`; `name` without the prefix is its id and label."""
    internal = f"{PREFIX}{name}"
    known = {"id": name, "name": name.title(), "internal_name": internal, "uuid": uuid_of(internal), "type": "generic"}
    return known | {"chain": "root", "priority": None, "owner": "", "description": ""} | fields


_rule_defaults: Row = {
    "action": "drop",
    "direction": "in",
    "priority": 500,
    "protocol": "all",
    "ip_version": "",
    "icmp_type": None,
    "icmp_code": None,
    "state": [],
    "state_match": True,
    "attributes": {},
    "comment": "",
}


def rule_row(filter_id: str, id_: str = "", **fields: Any) -> Row:
    """A row of `network_filter_rules`."""
    texts = dict.fromkeys(("src_mac", "src_mac_mask", "dst_mac", "dst_mac_mask"), "")
    texts |= dict.fromkeys(("src_ip", "src_ip_mask", "src_ip_end", "dst_ip", "dst_ip_mask", "dst_ip_end"), "")
    ports = dict.fromkeys(("src_port_start", "src_port_end", "dst_port_start", "dst_port_end"))
    return {"id": id_ or f"{filter_id}-1", "filter_id": filter_id} | _rule_defaults | texts | ports | fields


def reference_row(source: str, target: str, **parameters: Any) -> Row:
    """A row of `network_filter_references`."""
    return {"source_filter_id": source, "target_filter_id": target, "parameters": parameters}


def desired(filters: Sequence[Row], rules: Sequence[Row] = (), references: Sequence[Row] = ()) -> Desired:
    """What the database would want."""
    as_text = [row | {"state": json.dumps(row["state"]), "attributes": json.dumps(row["attributes"])} for row in rules]
    return desired_of(
        filters,
        [(row["id"], row["filter_id"], *(row[name] for name in FIELDS)) for row in as_text],
        [row | {"parameters": json.dumps(row["parameters"])} for row in references],
        PREFIX,
    )


def insert_rows(engine: Engine, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, one by one, since they may set different columns."""
    with writing(engine) as connection:
        for row in rows:
            connection.execute(insert(table).values(**row))


def store(engine: Engine, filters: Sequence[Row], rules: Sequence[Row] = (), references: Sequence[Row] = ()) -> None:
    """Make the database want exactly these filters."""
    with writing(engine) as connection:
        for table in (network_filter_rules, network_filter_references, network_filters):
            connection.execute(delete(table))
    insert_rows(engine, network_filters, filters)
    insert_rows(engine, network_filter_rules, rules)
    insert_rows(engine, network_filter_references, references)


def look(*filters: Filter, guests: Sequence[Guest] = (), bindings: Mapping[str, str] | None = None) -> FilterLook:
    """A host that has filters."""
    live = {one.name: LiveFilter(one.name, one.uuid, render(one)) for one in filters}
    return FilterLook(filters=live, guests=tuple(guests), bindings=bindings or {})


def live(name: str, *references: str, uuid: str = "", rules: Sequence[Rule] = ()) -> Filter:
    """A filter with the prefix that includes others."""
    internal = f"{PREFIX}{name}"
    included = tuple(Reference(f"{PREFIX}{one}") for one in references)
    return Filter(internal, uuid or uuid_of(internal), references=included, rules=tuple(rules))


_macs = st.binary(min_size=6, max_size=6).map(lambda raw: ":".join(f"{byte:02x}" for byte in raw))
_mac_masks = st.integers(0, 48).map(lambda ones: f"{((1 << ones) - 1) << (48 - ones):012x}")
_states = st.lists(st.sampled_from(STATES), min_size=1, unique=True).map(",".join) | st.just("NONE")
_texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=60).filter(
    lambda text: not text.startswith("$")
)


def _named(names: dict[int, str], least: int, most: int) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(names.values())) | st.integers(least, most).map(str)


VALUES: dict[str, st.SearchStrategy[str]] = {
    "u6": st.integers(0, 63).map(str),
    "u8": st.integers(0, 0xFF).map(str),
    "u12": st.integers(0, 0xFFF).map(str),
    "u16": st.integers(0, 0xFFFF).map(str) | st.integers(0, 0xFFFF).map(hex),
    "u32": st.integers(0, 0xFFFFFFFF).map(str),
    "mac": _macs | st.just("$MAC"),
    "mac mask": _mac_masks.map(lambda text: ":".join(text[at : at + 2] for at in range(0, 12, 2))),
    "ipv4": st.ip_addresses(v=4).map(str) | st.just("$IP") | st.just("$IPS[@1]"),
    "ipv4 mask": st.integers(0, 32).map(str) | st.just("255.255.0.0"),
    "ipv6": st.ip_addresses(v=6).map(str) | st.just("$IPV6"),
    "ipv6 mask": st.integers(0, 128).map(str) | st.just("ffff:ffff::"),
    "ethernet type": _named(ETHERNET_TYPES, 0x600, 0xFFFF),
    "vlan type": _named(ETHERNET_TYPES, 0x3C, 0xFFFF),
    "ip protocol": _named(IP_PROTOCOLS, 0, 0xFF),
    "arp opcode": _named(ARP_OPCODES, 0, 0xFFFF),
    "states": _states,
    "tcp flags": st.sampled_from(["SYN,ACK/SYN", "ALL/NONE", "FIN,SYN,RST,PSH,ACK,URG/FIN"]),
    "boolean": st.sampled_from(["true", "yes", "0", "false"]),
    "comment": _texts,
}
"""Values of each kind, in any spelling."""


@st.composite
def rules(draw: st.DrawFn, protocol: str = "", whole: bool = False) -> Rule:
    """Rules, with any attributes of their protocol, or with all of them."""
    protocol = protocol or draw(st.sampled_from(sorted(PROTOCOLS)))
    kinds = PROTOCOLS[protocol]
    chosen = [name for name in kinds if whole or draw(st.booleans())]
    if protocol in {"ip", "ipv6"}:
        # libvirt takes ports for some protocols only.
        chosen = [name for name in chosen if "port" not in name or whole]
    values = {name: canonical(kinds[name], draw(VALUES[kinds[name]])) for name in chosen}
    if whole and protocol in {"ip", "ipv6"}:
        values["protocol"] = "udp"
    return Rule(
        draw(st.sampled_from(ACTIONS)),
        draw(st.sampled_from(DIRECTIONS)),
        draw(st.integers(-1000, 1000)),
        protocol,
        tuple(values.items()),
        draw(st.booleans()),
    )


@st.composite
def filters(draw: st.DrawFn, whole: bool = False) -> Filter:
    """Filters, with references to nothing."""
    chain = draw(st.sampled_from(["root", "mac", "stp", "vlan", "arp-xyz", "rarp", "ipv4", "ipv6-web"]))
    made = draw(st.lists(rules(whole=whole), max_size=6))
    references = draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=3))
    parameters = draw(st.lists(st.sampled_from(["10.0.0.1", "aa_b", "::1"]), max_size=2))
    return Filter(
        name=f"{PREFIX}{draw(st.sampled_from(['one', 'two']))}",
        uuid=uuid_of("any"),
        chain=chain,
        priority=draw(st.integers(-1000, 1000).filter(bool)) if default_priority(chain) else 0,
        references=tuple(
            Reference(f"{PREFIX}{one}", tuple(("IP", value) for value in parameters)) for one in references
        ),
        rules=tuple(sorted(made, key=lambda rule: rule.priority)),
    )
