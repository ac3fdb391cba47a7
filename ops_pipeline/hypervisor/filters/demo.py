"""Network filters of the demo: generic ones, one for each department, and one for each of a few machines.

What belongs here: rows. libvirt's test driver, on which the demo's hosts run, knows no filters: what is seen of them is
the plan, and what the checks say about them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert

from ops_pipeline.hypervisor.tables import (
    network_filter_departments,
    network_filter_references,
    network_filter_rules,
    network_filters,
)

NAMESPACE = uuid.UUID("0d9f5e0c-5d0b-4a59-9d38-7f2c1a4b6e10")
DROP_ALL = 900

GENERIC: dict[str, list[dict[str, Any]]] = {
    "Basic Security": [],
    "Clean Traffic": [
        {"action": "drop", "direction": "out", "protocol": "mac", "attributes": {"protocolid": "0x88cc"}}
    ],
    "No MAC Spoofing": [
        {"action": "return", "direction": "out", "protocol": "mac", "src_mac": "$MAC", "priority": 350},
        {"action": "drop", "direction": "out", "protocol": "mac", "priority": 400},
    ],
    "DHCP": [
        {"protocol": "udp", "ip_version": "ipv4", "src_port_start": 68, "dst_port_start": 67, "direction": "out"},
        {"protocol": "udp", "ip_version": "ipv6", "src_port_start": 546, "dst_port_start": 547, "direction": "out"},
    ],
    "Use HTTP(S)": [
        {"protocol": "tcp", "dst_port_start": port, "direction": "out", "state": ["NEW", "ESTABLISHED"]}
        for port in (80, 443)
    ],
    "Drop All": [{"action": "drop", "direction": "inout", "priority": DROP_ALL}],
}
"""Rules by filter; the chain of `No MAC Spoofing` is mac, that of the others root."""
INCLUDES = {
    "Basic Security": ("Clean Traffic", "DHCP", "Use HTTP(S)"),
    "Clean Traffic": ("No MAC Spoofing",),
}


def write_demo_filters(connection: Connection, departments: Sequence[str]) -> int:
    """Write the filters, and one for each department that its machines are to carry; how many there are."""
    rules: list[dict[str, Any]] = []
    rows = [_filter(name, "generic", "mac" if name == "No MAC Spoofing" else "root") for name in GENERIC]
    for name, theirs in GENERIC.items():
        rules += [_rule(name, number, fields) for number, fields in enumerate(theirs)]
    includes = [(name, target) for name, targets in INCLUDES.items() for target in targets]
    for department in departments:
        name = f"Department {department}"
        rows.append(_filter(name, "department", "root"))
        includes += [(name, "Basic Security"), (name, "Drop All")]
        rules.append(_rule(name, 0, {"protocol": "tcp", "direction": "in", "dst_port_start": 22, "comment": "SSH"}))
    connection.execute(insert(network_filters), rows)
    for rule in rules:
        connection.execute(insert(network_filter_rules).values(**rule))
    references = [{"source_filter_id": _id(name), "target_filter_id": _id(target)} for name, target in includes]
    connection.execute(insert(network_filter_references), references)
    links = [{"department_id": one, "filter_id": _id(f"Department {one}")} for one in departments]
    connection.execute(insert(network_filter_departments), links)
    return len(rows)


def _id(name: str) -> str:
    return f"demo-{name.lower().replace(' ', '-')}"


def _filter(name: str, type_: str, chain: str) -> dict[str, Any]:
    identity = uuid.uuid5(NAMESPACE, name)
    known = {"id": _id(name), "name": name, "uuid": str(identity), "internal_name": f"ibay-{identity.hex[:16]}"}
    return known | {"type": type_, "chain": chain}


def _rule(name: str, number: int, fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"{_id(name)}-{number}", "filter_id": _id(name), "action": "accept"} | fields
