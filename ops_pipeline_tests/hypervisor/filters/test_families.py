"""IPv6 is never wider open than IPv4 by omission."""

from __future__ import annotations

from typing import Any

import pytest

from ops_pipeline.hypervisor.filters.families import wider_over_ipv6
from ops_pipeline_tests.hypervisor.filters.samples import desired, filter_row, reference_row, rule_row


def gaps(*rules: dict[str, Any]) -> dict[str, str]:
    rows = [rule_row("web", str(number), **rule) for number, rule in enumerate(rules)]
    return wider_over_ipv6(desired([filter_row("web")], rows).filters)


@pytest.mark.parametrize(
    ("rules", "gap"),
    [
        ([{"protocol": "all", "ip_version": "ipv4"}], "everything in"),
        ([{"protocol": "ipv4", "direction": "out"}], "everything out"),
        ([{"protocol": "mac", "attributes": {"protocolid": "ipv4"}}], "everything in"),
        (
            [{"protocol": "all", "ip_version": "ipv4", "action": "reject", "direction": "inout"}],
            "everything in; everything out",
        ),
        (
            [{"protocol": "tcp", "ip_version": "ipv4", "dst_port_start": 25, "comment": "no mail"}],
            "tcp dstportstart=25 in",
        ),
        ([{"protocol": "icmp", "ip_version": "ipv4"}], "icmp in"),
        (
            [
                {"protocol": "all", "ip_version": "ipv4", "direction": "inout"},
                {"protocol": "all", "ip_version": "ipv6", "direction": "out"},
            ],
            "everything in",
        ),
        (
            [
                {"protocol": "tcp", "ip_version": "ipv4", "dst_port_start": 25},
                {"protocol": "tcp", "ip_version": "ipv6", "dst_port_start": 26},
            ],
            "tcp dstportstart=25 in",
        ),
    ],
)
def test_what_is_blocked_over_ipv4_only_is_named(rules: list[dict[str, Any]], gap: str) -> None:
    assert gaps(*rules) == {"ibay-web": f"only over IPv4 it blocks {gap}"}


@pytest.mark.parametrize(
    "rules",
    [
        [{"protocol": "all"}],
        [{"protocol": "mac"}],
        [{"protocol": "tcp", "dst_port_start": 25}],
        [{"protocol": "tcp", "ip_version": "ipv4", "dst_port_start": 25}, {"protocol": "tcp-ipv6"}],
        [{"protocol": "tcp", "ip_version": "ipv4", "dst_port_start": 25}, {"protocol": "ipv6", "direction": "inout"}],
        [{"protocol": "tcp", "src_ip": "10.0.0.1"}],
        [{"protocol": "icmp", "icmp_type": 8}],
        [{"protocol": "all", "ip_version": "ipv4", "action": "accept"}],
        [{"protocol": "arp"}],
        [{"protocol": "all", "ip_version": "ipv6"}],
    ],
)
def test_what_is_closed_over_both_or_concerns_one_only_is_none(rules: list[dict[str, Any]]) -> None:
    assert gaps(*rules) == {}


def test_filters_are_judged_together_with_what_they_include() -> None:
    rows = [filter_row(name) for name in ("vm", "open", "base", "six")]
    rules = [rule_row("base", protocol="all", ip_version="ipv4"), rule_row("six", protocol="all", ip_version="ipv6")]
    references = [reference_row("vm", "base"), reference_row("vm", "six"), reference_row("open", "base")]
    assert wider_over_ipv6(desired(rows, rules, references).filters) == {
        "ibay-open": "only over IPv4 it blocks everything in"
    }


def test_many_gaps_are_counted() -> None:
    found = gaps(*({"protocol": "tcp", "ip_version": "ipv4", "dst_port_start": port} for port in range(1, 9)))
    assert found["ibay-web"].endswith("dstportstart=5 in and 3 more")
