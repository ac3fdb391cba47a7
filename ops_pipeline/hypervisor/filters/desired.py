"""Filters as the database wants them: rows made into the model, or refused with the filter's and the rule's name.

What belongs here: the meaning of columns. What libvirt would drop, cut or misread is refused: a rule that matches less
of what was said is wider than it was meant to be.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple
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


class _Rows(NamedTuple):
    """What one filter is made of: columns of its row, rows of its rules, and names with parameters that it includes."""

    name: str
    uuid: str
    chain: str
    priority: int | None
    rules: tuple[tuple[Any, ...], ...]
    references: tuple[tuple[str, str], ...]


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
    references_by: dict[str, list[tuple[str, str]]] = defaultdict(list)
    rows = sorted(filters, key=lambda row: row["internal_name"])
    names = {row["id"]: row["internal_name"] for row in rows}
    for rule in rules:
        rules_by[rule[1]].append(rule)
    for one in references:
        target = one["target_filter_id"]
        # A name that no filter has: whoever orders them finds the reference dangling, and says so.
        name = names.get(target, f"(no filter with id {target})")
        references_by[one["source_filter_id"]].append((name, one["parameters"]))
    made: dict[str, Filter] = {}
    texts: dict[str, str] = {}
    refused: dict[str, str] = {}
    for row in rows:
        name = row["internal_name"]
        of_rules, includes = tuple(rules_by[row["id"]]), tuple(references_by[row["id"]])
        result = _made(_Rows(name, row["uuid"], row["chain"], row["priority"], of_rules, includes), prefix)
        if isinstance(result, str):
            refused[name] = f"{row['name']} ({name}): {result}"
        else:
            made[name], texts[name] = result
    return Desired(made, texts, refused, {row["internal_name"]: row["name"] for row in rows})


@lru_cache(maxsize=5000)
def _made(rows: _Rows, prefix: str) -> tuple[Filter, str] | str:
    """A filter with its XML, or why it is refused.

    From one time of the schedule to the next hardly a row changes, and making filters takes longer than reading their
    rows: 0.15 s a thousand.
    """
    try:
        one = _filter(rows, prefix)
    except Refused as error:
        return str(error)
    return one, render(one)


def _filter(rows: _Rows, prefix: str) -> Filter:
    name, uuid, chain, priority, rules, references = rows
    if not name.startswith(prefix) or not _NAME.fullmatch(name):
        raise Refused(f"its internal_name must begin with {prefix!r} (NETWORK_FILTER_PREFIX) and have no odd letters")
    if not _CHAIN.fullmatch(chain):
        raise Refused(
            f"{chain!r} is no chain; they are root, or mac, stp, vlan, arp, rarp, ipv4, ipv6 and such with -x"
        )
    default = default_priority(chain)
    if priority == 0 and default:
        # Its own files leave zero out, which it then reads as the default.
        raise Refused(f"libvirt forgets the priority 0 of chain {chain} when it starts again; write 1 or -1")
    return Filter(
        name=name,
        uuid=_uuid(uuid),
        chain=chain,
        priority=default if priority is None else bounded(priority),
        references=tuple(sorted((_reference(*one) for one in references), key=lambda one: one.filter)),
        rules=rules_of(rules),
    )


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise Refused(f"{text!r} is no UUID") from None


def _reference(name: str, parameters: str) -> Reference:
    return Reference(name, parameters_of(from_json(parameters, {})))


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
