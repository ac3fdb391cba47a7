"""Filters as XML: written as libvirt itself dumps them, and read from a dump.

What belongs here: both directions of one format. That they are the same spelling makes most comparisons one of texts.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from ops_pipeline.hypervisor.filters.model import RULE_PRIORITY, Filter, Reference, Rule, Values
from ops_pipeline.hypervisor.filters.protocols import PROTOCOLS
from ops_pipeline.hypervisor.filters.values import ValueRefused, canonical

_PLAIN = re.compile(r"[^&<>'\"]*").fullmatch
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&apos;", '"': "&quot;"})


def render(one: Filter, uuid: str | None = None) -> str:
    """The XML of a filter, as libvirt would dump it.

    Args:
        one: the filter; its oddities are not written.
        uuid: instead of its own; empty to let libvirt choose one.
    """
    uuid = one.uuid if uuid is None else uuid
    priority = f" priority='{one.priority}'" if one.priority else ""
    lines = [f"<filter name='{_escaped(one.name)}' chain='{_escaped(one.chain)}'{priority}>\n"]
    if uuid:
        lines.append(f"  <uuid>{_escaped(uuid)}</uuid>\n")
    lines += [_reference(reference) for reference in one.references]
    lines += [_rule(rule) for rule in one.rules]
    return "".join(lines) + "</filter>\n"


def _reference(one: Reference) -> str:
    start = f"  <filterref filter='{_escaped(one.filter)}'"
    if not one.parameters:
        return f"{start}/>\n"
    inner = [f"    <parameter name='{name}' value='{_escaped(value)}'/>\n" for name, value in one.parameters]
    return f"{start}>\n{''.join(inner)}  </filterref>\n"


def _rule(one: Rule) -> str:
    state_match = "" if one.state_match else " statematch='false'"
    values = "".join([f" {name}='{_escaped(value)}'" for name, value in one.values])
    return (
        f"  <rule action='{one.action}' direction='{one.direction}' priority='{one.priority}'{state_match}>\n"
        f"    <{one.protocol}{values}/>\n"
        "  </rule>\n"
    )


def _escaped(text: str) -> str:
    return text if _PLAIN(text) else text.translate(_ESCAPES)


def parse(text: str) -> Filter:
    """Read a filter as libvirt dumps it, which leaves out a priority of zero only.

    Raises:
        ElementTree.ParseError: the text is no XML.
    """
    root = ElementTree.fromstring(text)  # noqa: S314 - written by libvirt, which has parsed it
    references: list[Reference] = []
    rules: list[Rule] = []
    oddities: list[str] = []
    for element in root:
        if element.tag == "rule":
            rules.append(_read_rule(element, oddities))
        elif element.tag == "filterref":
            if rules:
                oddities.append("a filter is included behind a rule")
            references.append(_read_reference(element))
        elif element.tag != "uuid":
            oddities.append(f"<{element.tag}> is unknown")
    return Filter(
        name=root.get("name", ""),
        uuid=root.findtext("uuid", ""),
        chain=root.get("chain", "root"),
        priority=int(root.get("priority", 0)),
        references=tuple(references),
        rules=tuple(sorted(rules, key=lambda rule: rule.priority)),
        oddities=tuple(oddities),
    )


def _read_reference(element: ElementTree.Element) -> Reference:
    parameters = [(one.get("name", ""), one.get("value", "")) for one in element.iter("parameter")]
    return Reference(element.get("filter", ""), tuple(sorted(parameters, key=lambda pair: pair[0])))


def _read_rule(element: ElementTree.Element, oddities: list[str]) -> Rule:
    children = list(element)
    protocol, values = "", ()
    if len(children) != 1 or children[0].tag not in PROTOCOLS:
        oddities.append("a rule matches nothing, or several things" if len(children) != 1 else "an unknown protocol")
    else:
        protocol, values = children[0].tag, _read_values(children[0], oddities)
    return Rule(
        action=element.get("action", ""),
        direction=element.get("direction", ""),
        priority=int(element.get("priority", RULE_PRIORITY)),
        protocol=protocol,
        values=values,
        state_match=element.get("statematch", "true").lower() not in {"0", "false"},
    )


def _read_values(element: ElementTree.Element, oddities: list[str]) -> Values:
    kinds = PROTOCOLS[element.tag]
    oddities += [f"<{element.tag}> has {name!r}" for name in element.attrib if name not in kinds]
    found = []
    for name, kind in kinds.items():
        text = element.get(name)
        if text is not None:
            try:
                found.append((name, canonical(kind, text)))
            except ValueRefused as error:
                oddities.append(f"{name} of <{element.tag}>: {error}")
    return tuple(found)
