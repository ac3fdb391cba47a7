"""Rows of the database as filters: what each column means, and what is refused by the names of filter and rule."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops_pipeline.hypervisor.filters.desired import Desired
from ops_pipeline.hypervisor.filters.model import CHAIN_PRIORITIES, Reference, Rule
from ops_pipeline.hypervisor.filters.protocols import TWINS
from ops_pipeline_tests.hypervisor.filters.samples import desired, filter_row, reference_row, rule_row, uuid_of


def made(**fields: Any) -> tuple[Rule, ...]:
    """The rules that one row stands for."""
    found = desired([filter_row("web")], [rule_row("web", **fields)])
    assert not found.refused, found.refused
    return found.filters["ibay-web"].rules


def refusal(found: Desired) -> str:
    assert not found.filters
    return found.refused["ibay-web"]


def refused(**fields: Any) -> str:
    """Why a rule is refused."""
    return refusal(desired([filter_row("web")], [rule_row("web", "r7", **fields)]))


def test_a_rule_has_everything_that_its_row_says() -> None:
    (rule,) = made(
        action="accept",
        direction="inout",
        priority=-7,
        protocol="tcp",
        src_mac="52-54-00-AA-BB-CC",
        src_ip="10.1.0.0",
        src_ip_mask="255.255.0.0",
        dst_ip="10.2.0.1",
        dst_ip_end="10.2.0.9",
        src_port_start=1024,
        dst_port_start=80,
        dst_port_end=89,
        state=["RELATED", "new"],
        state_match=False,
        attributes={"dscp": 5, "flags": "SYN,ACK/SYN"},
        comment="web & 'more'",
    )
    assert (rule.action, rule.direction, rule.priority, rule.protocol) == ("accept", "inout", -7, "tcp")
    assert not rule.state_match
    assert dict(rule.values) == {
        "srcmacaddr": "52:54:00:aa:bb:cc",
        "srcipaddr": "10.1.0.0",
        "srcipmask": "16",
        "dstipfrom": "10.2.0.1",
        "dstipto": "10.2.0.9",
        "dscp": "5",
        "state": "NEW,RELATED",
        "srcportstart": "1024",
        "dstportstart": "80",
        "dstportend": "89",
        "flags": "SYN,ACK/SYN",
        "comment": "web & 'more'",
    }


def test_types_of_icmp_addresses_in_arp_and_other_attributes_have_libvirts_names() -> None:
    assert made(protocol="icmp", icmp_type=8, icmp_code=0)[0].values == (("type", "8"), ("code", "0"))
    (arp,) = made(protocol="arp", src_ip="$IP", src_mac="$MAC", attributes={"opcode": 1, "gratuitous": True})
    assert dict(arp.values) == {
        "srcmacaddr": "$MAC",
        "opcode": "Request",
        "arpsrcipaddr": "$IP",
        "gratuitous": "true",
    }
    (vlan,) = made(protocol="vlan", attributes={"vlanid": "0x10", "encap-protocol": "ipv4"})
    assert vlan.values == (("vlanid", "16"), ("encap-protocol", "ipv4"))


@pytest.mark.parametrize(
    ("fields", "protocols"),
    [
        ({"protocol": "tcp"}, ["tcp", "tcp-ipv6"]),
        ({"protocol": "all"}, ["all", "all-ipv6"]),
        ({"protocol": "icmp"}, ["icmp", "icmpv6"]),
        ({"protocol": "icmp", "icmp_type": 8}, ["icmp"]),
        ({"protocol": "igmp"}, ["igmp"]),
        ({"protocol": "tcp", "ip_version": "ipv4"}, ["tcp"]),
        ({"protocol": "TCP", "ip_version": "IPv6"}, ["tcp-ipv6"]),
        ({"protocol": "udp", "ip_version": "both"}, ["udp", "udp-ipv6"]),
        ({"protocol": "tcp", "src_ip": "10.0.0.1"}, ["tcp"]),
        ({"protocol": "tcp", "src_ip": "$IP"}, ["tcp"]),
        ({"protocol": "tcp", "dst_ip": "2001:db8::1"}, ["tcp-ipv6"]),
        ({"protocol": "tcp", "src_ip": "$IPV6"}, ["tcp-ipv6"]),
        ({"protocol": "sctp-ipv6"}, ["sctp-ipv6"]),
        ({"protocol": "ipv4"}, ["ip"]),
        ({"protocol": "ipv6"}, ["ipv6"]),
        ({"protocol": "mac"}, ["mac"]),
        ({"protocol": "ipv4", "ip_version": "ipv4"}, ["ip"]),
    ],
)
def test_a_rule_holds_over_both_versions_of_ip_as_long_as_nothing_says_otherwise(
    fields: dict[str, Any], protocols: list[str]
) -> None:
    """A rule without a version was IPv4 only, and what it dropped came in over IPv6."""
    assert [rule.protocol for rule in made(**fields)] == protocols


def test_twins_differ_in_their_protocol_only() -> None:
    for protocol, twin in TWINS.items():
        first, second = made(protocol=protocol, src_mac="52:54:00:12:34:56", state=["NEW"], comment="both")
        assert (first.protocol, second.protocol) == (protocol, twin)
        assert (first.values, first.priority, first.action) == (second.values, second.priority, second.action)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"action": "allow"}, "'allow' is no action"),
        ({"direction": "both"}, "'both' is no direction"),
        ({"priority": 1001}, "the priority 1001 is no number from -1000 to 1000"),
        ({"protocol": "quic"}, "'quic' is no protocol"),
        ({"ip_version": "5"}, "'5' is no version of IP"),
        ({"protocol": "igmp", "ip_version": "ipv6"}, "igmp exists over IPv4 only"),
        ({"protocol": "ipv6", "ip_version": "ipv4"}, "ipv6 and ip_version ipv4 contradict each other"),
        ({"protocol": "mac", "ip_version": "ipv6"}, "mac and ip_version ipv6 contradict each other"),
        ({"protocol": "tcp", "ip_version": "both", "src_ip": "10.0.0.1"}, "srcipaddr: '10.0.0.1' is no IPv6 address"),
        ({"protocol": "tcp", "src_ip": "10.0.0.1", "dst_ip": "::1"}, "dstipaddr: '::1' is no IPv4 address"),
        ({"protocol": "tcp", "src_ip": "10.0.0.300"}, "srcipaddr: '10.0.0.300' is no IPv4 address"),
        ({"protocol": "tcp", "src_ip": "10.0.0.1", "src_ip_mask": "255.0.255.0"}, "no mask of ones followed by zeros"),
        ({"protocol": "tcp", "src_ip": "10.0.0.1", "src_ip_mask": "33"}, "srcipmask: '33' is no number from 0 to 32"),
        ({"protocol": "tcp", "src_ip_mask": "24", "ip_version": "ipv4"}, "srcipmask without srcipaddr"),
        ({"protocol": "tcp", "dst_mac": "52:54:00:12:34:56"}, "tcp cannot match dstmacaddr"),
        ({"protocol": "mac", "dst_port_start": 80}, "mac cannot match dstportstart"),
        ({"protocol": "icmp", "dst_port_start": 80}, "icmp cannot match dstportstart"),
        ({"protocol": "udp", "state": ["NEW", "OLD"]}, "is no list of connection states"),
        ({"protocol": "udp", "state": ["NEW", "NONE"]}, "NONE stands alone"),
        ({"protocol": "udp", "state": {"NEW": True}}, "is no list of connection states"),
        ({"protocol": "arp", "state": ["NEW"]}, "arp cannot match state"),
        ({"protocol": "ipv4", "state": ["NEW"]}, "ip cannot match state"),
        ({"protocol": "tcp", "dst_port_end": 80}, "dstportend without dstportstart would match everything"),
        ({"protocol": "tcp", "dst_port_start": 90, "dst_port_end": 80}, "dstportstart 90 lies behind dstportend 80"),
        ({"protocol": "tcp", "dst_port_start": 65536}, "dstportstart: '65536' is no number from 0 to 65535"),
        ({"protocol": "tcp", "dst_port_start": -1}, "dstportstart: '-1' is no number"),
        ({"protocol": "icmp", "icmp_code": 3}, "code without type"),
        ({"protocol": "icmp", "icmp_type": 256}, "type: '256' is no number from 0 to 255"),
        ({"protocol": "tcp", "icmp_type": 8}, "tcp cannot match type"),
        ({"protocol": "tcp", "src_ip_end": "10.0.0.9"}, "src_ip_end is the end of a range: it needs src_ip"),
        (
            {"protocol": "tcp", "src_ip": "10.0.0.1", "src_ip_mask": "24", "src_ip_end": "10.0.0.9"},
            "and no src_ip_mask",
        ),
        ({"protocol": "tcp", "dst_ip": "::1", "dst_ip_end": "::9"}, "tcp-ipv6 cannot match dstipfrom, dstipto"),
        ({"protocol": "ipv4", "src_ip": "10.0.0.1", "src_ip_end": "10.0.0.9"}, "ip cannot match srcipfrom, srcipto"),
        (
            {"protocol": "tcp", "attributes": {"ipset": "bad", "ipsetflags": "src"}},
            "tcp cannot match ipset, ipsetflags",
        ),
        ({"protocol": "tcp", "attributes": {"match": "no"}}, "tcp cannot match match"),
        ({"protocol": "tcp", "attributes": {"state": "NEW"}, "state": ["NEW"]}, "'state' is given twice"),
        ({"protocol": "tcp", "attributes": ["dscp"]}, "its attributes must be an object"),
        ({"protocol": "tcp", "attributes": {"dscp": 64}}, "dscp: '64' is no number from 0 to 63"),
        ({"protocol": "ipv6", "attributes": {"dscp": 5}}, "ipv6 cannot match dscp"),
        ({"protocol": "ipv4", "dst_port_start": 80}, "ports need the attribute protocol"),
        ({"protocol": "ipv6", "icmp_type": 133}, "type and code need the attribute protocol: icmpv6"),
        ({"protocol": "tcp", "comment": "é" * 129}, "the comment is longer than 256 bytes"),
        ({"protocol": "tcp", "comment": "two\nlines"}, "the comment has a line break"),
        ({"protocol": "tcp", "comment": "$5 a month"}, "the comment begins with $"),
        ({"protocol": "tcp", "src_mac": "52:54:00:12:34"}, "is no MAC address"),
        ({"protocol": "mac", "src_mac": "52:54:00:12:34:56", "src_mac_mask": "ff:00:ff:00:00:00"}, "no mask of ones"),
        ({"protocol": "mac", "src_mac_mask": "ff:ff:ff:00:00:00"}, "srcmacmask without srcmacaddr"),
        ({"protocol": "mac", "attributes": {"protocolid": "0x500"}}, "nor one of arp, rarp, ipv4, ipv6, vlan"),
        ({"protocol": "tcp", "src_ip": "$I P", "ip_version": "ipv4"}, "is no variable; write for example $IP"),
        ({"protocol": "tcp", "attributes": {"flags": "SYN"}}, "is no pair of flags"),
        ({"protocol": "tcp", "ip_version": "ipv4", "attributes": {"flags": "SYN/SIN"}}, "are no TCP flags"),
        ({"protocol": "arp", "attributes": {"gratuitous": "perhaps"}}, "is neither true nor false"),
    ],
)
def test_a_rule_that_libvirt_would_make_wider_or_refuse_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    found = refused(**fields)
    assert found.startswith("Web (ibay-web): rule r7 (")
    assert reason in found


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"internal_name": "clean-traffic"}, "its internal_name must begin with 'ibay-' (NETWORK_FILTER_PREFIX)"),
        ({"internal_name": "x-ibay-web"}, "its internal_name must begin with 'ibay-'"),
        ({"internal_name": "ibay-../../etc"}, "have no odd letters"),
        ({"uuid": "no"}, "'no' is no UUID"),
        ({"chain": "ipv5"}, "'ipv5' is no chain"),
        ({"chain": "root-x"}, "'root-x' is no chain"),
        ({"chain": "ipv4-longer-than"}, "is no chain"),
        ({"priority": -1001}, "the priority -1001 is no number"),
        ({"chain": "arp", "priority": 0}, "libvirt forgets the priority 0 of chain arp"),
    ],
)
def test_a_filter_that_cannot_be_ours_or_libvirts_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    found = desired([filter_row("web", **fields)])
    (message,) = found.refused.values()
    assert message.startswith("Web (") and reason in message
    assert (found.filters, found.names) == ({}, frozenset(found.refused))


def test_a_refused_filter_leaves_the_others() -> None:
    found = desired([filter_row("web"), filter_row("mail")], [rule_row("web", action="allow")])
    assert (list(found.filters), list(found.refused)) == (["ibay-mail"], ["ibay-web"])


@pytest.mark.parametrize("chain", sorted(CHAIN_PRIORITIES))
def test_a_chain_without_a_priority_has_its_own_default(chain: str) -> None:
    """A constant of 500 turned the order of chains around."""
    assert desired([filter_row("a", chain=chain)]).filters["ibay-a"].priority == CHAIN_PRIORITIES[chain]
    assert desired([filter_row("a", chain=chain, priority=5)]).filters["ibay-a"].priority == 5


def test_references_carry_values_for_variables() -> None:
    found = desired(
        [filter_row("vm"), filter_row("clean")], references=[reference_row("vm", "clean", IP=["10.0.0.1", "10.0.0.2"])]
    )
    expected = Reference("ibay-clean", (("IP", "10.0.0.1"), ("IP", "10.0.0.2")))
    assert found.filters["ibay-vm"].references == (expected,)


@pytest.mark.parametrize("parameters", [{"IP": "10.0.0.0/8"}, {"a-b": "1"}, {"IP": ["10.0.0.1", ""]}, ["IP"]])
def test_a_variable_that_libvirt_would_drop_is_refused(parameters: Any) -> None:
    row = reference_row("web", "web") | {"parameters": parameters}
    assert "parameter" in refusal(desired([filter_row("web")], references=[row])) or "variable" in refusal(
        desired([filter_row("web")], references=[row])
    )


@settings(deadline=None, max_examples=50)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_is_irrelevant(shuffler: random.Random) -> None:
    filters = [filter_row(name) for name in "abcd"]
    rules = [rule_row(name, f"{name}{number}", priority=number // 2) for name in "abc" for number in range(5)]
    references = [reference_row("d", name) for name in "abc"]
    expected = desired(filters, rules, references)
    for rows in (filters, rules, references):
        shuffler.shuffle(rows)
    assert desired(filters, rules, references) == expected
    assert [rule.priority for rule in expected.filters["ibay-a"].rules] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_uuids_are_compared_in_one_spelling() -> None:
    found = desired([filter_row("a", uuid=uuid_of("a").upper())])
    assert found.filters["ibay-a"].uuid == uuid_of("a")
