"""Filters as the database wants them: rows made into the model, or refused with the filter's and the rule's name.

What belongs here: the meaning of columns. What libvirt would drop, cut or misread is refused: a rule that matches less
of what was said is wider than it was meant to be.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from ops_pipeline.hypervisor.filters.model import (
    Filter,
    Reference,
    Values,
    default_priority,
)
from ops_pipeline.hypervisor.filters.rules import Refused, bounded, from_json, rules_of
from ops_pipeline.hypervisor.filters.xml_text import render

Row = Mapping[str, Any]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
_CHAIN = re.compile(r"root|(?=.{3,12}$)(mac|stp|vlan|arp|rarp|ipv4|ipv6)[A-Za-z0-9_.:-]*")
_VARIABLE = re.compile(r"[A-Za-z0-9_]+")
_PARAMETER = re.compile(r"[A-Za-z0-9_.:]+")


@dataclass(frozen=True)
class Desired:
    """What every host is to have.

    Attributes:
        filters: by name in libvirt.
        texts: their XML.
        refused: why a filter of the database cannot be defined, by its name in libvirt; what stands on the hosts
            under that name is left as it is.
        labels: what an operator calls each of them.
    """

    filters: Mapping[str, Filter] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """Every name that the database has, refused or not: none of them is an orphan."""
        return frozenset(self.labels)


def desired_of(
    filters: Iterable[Row], rules: Iterable[tuple[Any, ...]], references: Iterable[Row], prefix: str
) -> Desired:
    """Make filters of rows; their order does not matter.

    Args:
        filters: rows of `network_filters`.
        rules: of `network_filter_rules` the id, the filter's id, and the `FIELDS` of rules.
        references: rows of `network_filter_references`; `parameters` as the text of its JSON.
        prefix: what the names of all filters begin with that this deployment may touch.
    """
    rules_by: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    references_by: dict[str, list[Row]] = defaultdict(list)
    for rule in rules:
        rules_by[rule[1]].append(rule)
    for reference in references:
        references_by[reference["source_filter_id"]].append(reference)
    rows = sorted(filters, key=lambda row: row["internal_name"])
    names = {row["id"]: row["internal_name"] for row in rows}
    made: dict[str, Filter] = {}
    refused: dict[str, str] = {}
    for row in rows:
        name = row["internal_name"]
        try:
            made[name] = _filter(row, rules_by[row["id"]], references_by[row["id"]], names, prefix)
        except Refused as error:
            refused[name] = f"{row['name']} ({name}): {error}"
    texts = {name: render(one) for name, one in made.items()}
    return Desired(made, texts, refused, {row["internal_name"]: row["name"] for row in rows})


def _filter(
    row: Row, rules: Sequence[tuple[Any, ...]], references: Sequence[Row], names: Mapping[str, str], prefix: str
) -> Filter:
    name, chain = row["internal_name"], row["chain"]
    if not name.startswith(prefix) or not _NAME.fullmatch(name):
        raise Refused(f"its internal_name must begin with {prefix!r} (NETWORK_FILTER_PREFIX) and have no odd letters")
    if not _CHAIN.fullmatch(chain):
        raise Refused(
            f"{chain!r} is no chain; they are root, or mac, stp, vlan, arp, rarp, ipv4, ipv6 and such with -x"
        )
    default, given = default_priority(chain), row["priority"]
    if given == 0 and default:
        # Its own files leave zero out, which it then reads as the default.
        raise Refused(f"libvirt forgets the priority 0 of chain {chain} when it starts again; write 1 or -1")
    return Filter(
        name=name,
        uuid=_uuid(row["uuid"]),
        chain=chain,
        priority=default if given is None else bounded(given),
        references=tuple(sorted((_reference(one, names) for one in references), key=lambda one: one.filter)),
        rules=rules_of(rules),
    )


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise Refused(f"{text!r} is no UUID") from None


def _reference(row: Row, names: Mapping[str, str]) -> Reference:
    target = row["target_filter_id"]
    # A name that no filter has: whoever orders them finds the reference dangling, and says so.
    return Reference(
        names.get(target, f"(no filter with id {target})"), parameters_of(from_json(row["parameters"], {}))
    )


def parameters_of(given: Any) -> Values:
    """Values of variables, as libvirt sorts them.

    Raises:
        Refused: libvirt would drop one.
    """
    if not isinstance(given, Mapping):
        raise Refused(f'parameters must be an object such as {{"IP": "10.0.0.5"}}, not {given!r}')
    found: list[tuple[str, str]] = []
    for name, values in sorted(given.items()):
        for value in values if isinstance(values, list) else [values]:
            if not _VARIABLE.fullmatch(name) or not _PARAMETER.fullmatch(str(value)):
                raise Refused(f"libvirt takes no variable {name!r} with the value {value!r}")
            found.append((name, str(value)))
    return tuple(found)
