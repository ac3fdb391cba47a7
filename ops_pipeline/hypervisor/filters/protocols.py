"""The protocols of filter rules, each with its attributes in the order in which libvirt dumps them.

What belongs here: what libvirt 9 really takes. It drops unknown attributes without a word, so that a rule is wider than
it was meant to be: whatever does not stand here is refused. Not here, and refused, are `ipset` (libvirt loses it when
its flags are given) and `dstipto` over IPv6 (libvirt reads it as an IPv4 address). Source: libvirt's format
of filters, and what a libvirtd made of each.
"""

from __future__ import annotations

from collections.abc import Mapping

Attributes = Mapping[str, str]
"""Kinds of values by attribute."""

_SOURCE_MAC = {"srcmacaddr": "mac", "srcmacmask": "mac mask"}
_MACS = _SOURCE_MAC | {"dstmacaddr": "mac", "dstmacmask": "mac mask"}
_PORTS = dict.fromkeys(("srcportstart", "srcportend", "dstportstart", "dstportend"), "u16")
_COMMENT = {"comment": "comment"}
_ARP = (
    _MACS
    | {"hwtype": "u16", "protocoltype": "u16", "opcode": "arp opcode", "arpsrcmacaddr": "mac", "arpdstmacaddr": "mac"}
    | {"arpsrcipaddr": "ipv4", "arpsrcipmask": "ipv4 mask", "arpdstipaddr": "ipv4", "arpdstipmask": "ipv4 mask"}
    | {"gratuitous": "boolean"}
    | _COMMENT
)
_STP = (
    _SOURCE_MAC
    | {"type": "u8", "flags": "u8", "root-priority": "u16", "root-priority-hi": "u16"}
    | {"root-address": "mac", "root-address-mask": "mac mask", "root-cost": "u32", "root-cost-hi": "u32"}
    | {
        "sender-priority": "u16",
        "sender-priority-hi": "u16",
        "sender-address": "mac",
        "sender-address-mask": "mac mask",
    }
    | {"port": "u16", "port-hi": "u16", "age": "u16", "age-hi": "u16", "max-age": "u16", "max-age-hi": "u16"}
    | {"hello-time": "u16", "hello-time-hi": "u16", "forward-delay": "u16", "forward-delay-hi": "u16"}
    | _COMMENT
)
_ICMP = {"type": "u8", "code": "u8"}


def _addresses(kind: str) -> dict[str, str]:
    return {"srcipaddr": kind, "srcipmask": f"{kind} mask", "dstipaddr": kind, "dstipmask": f"{kind} mask"}


def _packets(kind: str, *more: Attributes) -> dict[str, str]:
    """Attributes of what becomes rules of iptables and ip6tables."""
    ranges = {"srcipfrom": kind, "srcipto": kind, "dstipfrom": kind, "dstipto": kind}
    if kind == "ipv6":
        del ranges["dstipfrom"], ranges["dstipto"]
    found = {"srcmacaddr": "mac"} | _addresses(kind) | ranges
    found |= {"dscp": "u6", "connlimit-above": "u16", "state": "states"}
    for one in more:
        found |= one
    return found | _COMMENT


_ETHERNET: dict[str, Attributes] = {
    "mac": _MACS | {"protocolid": "ethernet type"} | _COMMENT,
    "vlan": _MACS | {"vlanid": "u12", "encap-protocol": "vlan type"} | _COMMENT,
    "stp": _STP,
    "arp": _ARP,
    "rarp": _ARP,
    "ip": _MACS | _addresses("ipv4") | {"protocol": "ip protocol"} | _PORTS | {"dscp": "u6"} | _COMMENT,
    "ipv6": _MACS
    | _addresses("ipv6")
    | {"protocol": "ip protocol"}
    | _PORTS
    | dict.fromkeys(("type", "typeend", "code", "codeend"), "u8")
    | _COMMENT,
}
_OVER_IP = {
    "tcp": _packets("ipv4", _PORTS, {"option": "u8", "flags": "tcp flags"}),
    "udp": _packets("ipv4", _PORTS),
    "udplite": _packets("ipv4"),
    "esp": _packets("ipv4"),
    "ah": _packets("ipv4"),
    "sctp": _packets("ipv4", _PORTS),
    "icmp": _packets("ipv4", _ICMP),
    "igmp": _packets("ipv4"),
    "all": _packets("ipv4"),
}
_OVER_IPV6 = {
    "tcp-ipv6": _packets("ipv6", _PORTS, {"option": "u8"}),
    "udp-ipv6": _packets("ipv6", _PORTS),
    "udplite-ipv6": _packets("ipv6"),
    "esp-ipv6": _packets("ipv6"),
    "ah-ipv6": _packets("ipv6"),
    "sctp-ipv6": _packets("ipv6", _PORTS),
    "icmpv6": _packets("ipv6", _ICMP),
    "all-ipv6": _packets("ipv6"),
}
PROTOCOLS: dict[str, Attributes] = _ETHERNET | _OVER_IP | _OVER_IPV6
"""By the name of the element within <rule>."""

TWINS = {name: f"{name}-ipv6" for name in _OVER_IP if name not in {"icmp", "igmp"}} | {"icmp": "icmpv6"}
"""The protocol over IPv6 of a protocol over IPv4."""
OVER_IPV4 = frozenset(_OVER_IP)
OVER_IPV6 = frozenset(_OVER_IPV6)

NEEDS = {
    "srcmacmask": "srcmacaddr",
    "dstmacmask": "dstmacaddr",
    "srcipmask": "srcipaddr",
    "dstipmask": "dstipaddr",
    "arpsrcipmask": "arpsrcipaddr",
    "arpdstipmask": "arpdstipaddr",
    "srcipto": "srcipfrom",
    "dstipto": "dstipfrom",
    "srcportend": "srcportstart",
    "dstportend": "dstportstart",
    "code": "type",
    "typeend": "type",
    "codeend": "code",
    "root-priority-hi": "root-priority",
    "root-address-mask": "root-address",
    "root-cost-hi": "root-cost",
    "sender-priority-hi": "sender-priority",
    "sender-address-mask": "sender-address",
    "port-hi": "port",
    "age-hi": "age",
    "max-age-hi": "max-age",
    "hello-time-hi": "hello-time",
    "forward-delay-hi": "forward-delay",
}
"""Attributes that libvirt takes alone, and then forgets when it makes rules: the packets of a mask without an address
are all packets."""

RANGES = {end: start for end, start in NEEDS.items() if end.endswith(("to", "end", "-hi"))}
"""The end of a range, and its start."""

PORT_PROTOCOLS = frozenset({"tcp", "udp", "sctp", "33"})
"""The values of `protocol` with which <ip> and <ipv6> may name ports."""
