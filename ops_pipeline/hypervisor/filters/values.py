"""The values that attributes of filter rules may have, each in the one spelling that libvirt dumps.

What belongs here: reading one value of one kind. Which protocol has which attributes is in `protocols`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache, partial

LONGEST_COMMENT = 256
"""Bytes; libvirt cuts the rest off."""
ETHERNET_TYPES = {0x806: "arp", 0x8035: "rarp", 0x800: "ipv4", 0x86DD: "ipv6", 0x8100: "vlan"}
IP_PROTOCOLS = {
    6: "tcp",
    17: "udp",
    136: "udplite",
    50: "esp",
    51: "ah",
    1: "icmp",
    2: "igmp",
    132: "sctp",
    58: "icmpv6",
}
ARP_OPCODES = {
    1: "Request",
    2: "Reply",
    3: "Request_Reverse",
    4: "Reply_Reverse",
    5: "DRARP_Request",
    6: "DRARP_Reply",
    7: "DRARP_Error",
    8: "InARP_Request",
    9: "ARP_NAK",
}
STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID")
TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")

_VARIABLE = re.compile(r"\$[A-Za-z0-9_]+(\[@?[0-9]{1,9}\])?")
_MAC = re.compile(r"[0-9a-f]{1,2}(:[0-9a-f]{1,2}){5}")
_NUMBER = re.compile(r"[0-9]{1,10}|0x[0-9a-f]{1,8}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


class ValueRefused(Exception):
    """A value that libvirt would refuse, or take for another one."""


@lru_cache(maxsize=100_000)
def canonical(kind: str, text: str) -> str:
    """A value as libvirt dumps it: masks as prefix lengths, numbers decimal or by name, addresses short.

    Raises:
        ValueRefused: it is no such value.
    """
    if text.startswith("$") and kind != "comment":
        if _VARIABLE.fullmatch(text):
            return text
        raise ValueRefused(f"{text!r} is no variable; write for example $IP or $PORTS[@1]")
    return _READERS[kind](text)


def _number(text: str, *, least: int = 0, most: int) -> int:
    lowered = text.strip().lower()
    number = int(lowered, 0 if lowered.startswith("0x") else 10) if _NUMBER.fullmatch(lowered) else -1
    if not least <= number <= most:
        raise ValueRefused(f"{text!r} is no number from {least} to {most}")
    return number


def _decimal(text: str, *, most: int) -> str:
    return str(_number(text, most=most))


def _named(text: str, names: dict[int, str], least: int, most: int) -> str:
    wanted = text.strip().lower()
    for name in names.values():
        if name.lower() == wanted:
            return name
    try:
        number = _number(text, least=least, most=most)
    except ValueRefused as error:
        raise ValueRefused(f"{error}, nor one of {', '.join(names.values())}") from None
    return names.get(number, str(number))


def _mac(text: str) -> str:
    lowered = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(lowered):
        raise ValueRefused(f"{text!r} is no MAC address; write for example 52:54:00:12:34:56")
    return ":".join(part.zfill(2) for part in lowered.split(":"))


def _mac_mask(text: str) -> str:
    mac = _mac(text)
    if "01" in f"{int(mac.replace(':', ''), 16):048b}":
        raise ValueRefused(f"{text!r} is no mask of ones followed by zeros; write for example ff:ff:ff:00:00:00")
    return mac


def _address(text: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        address = None
    if address is None or address.version != version or "%" in text:
        raise ValueRefused(f"{text!r} is no IPv{version} address")
    # As the C library writes it, which is how libvirt dumps it.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return f"::ffff:{mapped}" if mapped else str(address)


def _mask(text: str, version: int) -> str:
    stripped, bits = text.strip(), 32 if version == 4 else 128
    if stripped.isdigit():
        return str(_number(stripped, most=bits))
    try:
        number = int(ipaddress.ip_address(stripped)) if _address(stripped, version) else 0
    except ValueRefused:
        raise ValueRefused(f"{text!r} is no IPv{version} mask; write its length, from 0 to {bits}") from None
    ones = f"{number:0{bits}b}"
    if "01" in ones:
        raise ValueRefused(f"{text!r} is no mask of ones followed by zeros; write its length, from 0 to {bits}")
    return str(ones.count("1"))


def _states(text: str) -> str:
    given = {part.strip().upper() for part in text.split(",") if part.strip()}
    unknown = given - {*STATES, "NONE"}
    if unknown or not given:
        raise ValueRefused(f"{text!r} is no list of connection states; they are {', '.join(STATES)}, or NONE alone")
    if "NONE" in given:
        if len(given) > 1:
            raise ValueRefused(f"{text!r}: NONE stands alone, libvirt would forget the others")
        return "NONE"
    return ",".join(state for state in STATES if state in given)


def _tcp_flags(text: str) -> str:
    mask, slash, flags = text.partition("/")
    if not slash:
        raise ValueRefused(f"{text!r} is no pair of flags; write which are looked at, a slash, and which are set")
    return f"{_flag_list(mask)}/{_flag_list(flags)}"


def _flag_list(text: str) -> str:
    given = {part.strip().upper() for part in text.split(",") if part.strip()}
    if given in ({"ALL"}, set(TCP_FLAGS)):
        return "ALL"
    if given in ({"NONE"}, set()):
        return "NONE"
    if not given <= set(TCP_FLAGS):
        raise ValueRefused(f"{text!r} are no TCP flags; they are {', '.join(TCP_FLAGS)}, ALL or NONE")
    return ",".join(flag for flag in TCP_FLAGS if flag in given)


def _boolean(text: str) -> str:
    lowered = text.strip().lower()
    if lowered in {"true", "1", "yes"}:
        return "true"
    if lowered in {"false", "0", "no"}:
        return "false"
    raise ValueRefused(f"{text!r} is neither true nor false")


def _comment(text: str) -> str:
    if text.startswith("$"):
        raise ValueRefused("the comment begins with $, libvirt would take it for a variable")
    if _UNPRINTABLE.search(text):
        raise ValueRefused("the comment has a line break or another control character")
    if len(text.encode()) > LONGEST_COMMENT:
        raise ValueRefused(f"the comment is longer than {LONGEST_COMMENT} bytes, libvirt would cut it")
    return text


_READERS: dict[str, Callable[[str], str]] = {
    "u6": partial(_decimal, most=63),
    "u8": partial(_decimal, most=0xFF),
    "u12": partial(_decimal, most=0xFFF),
    "u16": partial(_decimal, most=0xFFFF),
    "u32": partial(_decimal, most=0xFFFFFFFF),
    "mac": _mac,
    "mac mask": _mac_mask,
    "ipv4": partial(_address, version=4),
    "ipv4 mask": partial(_mask, version=4),
    "ipv6": partial(_address, version=6),
    "ipv6 mask": partial(_mask, version=6),
    "ethernet type": partial(_named, names=ETHERNET_TYPES, least=0x600, most=0xFFFF),
    "vlan type": partial(_named, names=ETHERNET_TYPES, least=0x3C, most=0xFFFF),
    "ip protocol": partial(_named, names=IP_PROTOCOLS, least=0, most=0xFF),
    "arp opcode": partial(_named, names=ARP_OPCODES, least=0, most=0xFFFF),
    "states": _states,
    "tcp flags": _tcp_flags,
    "boolean": _boolean,
    "comment": _comment,
}
