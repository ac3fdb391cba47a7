"""The order of filters: those that are included come before those that include them.

What belongs here: the graph of references. Cycles and references to nothing are refused before anything is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ops_pipeline.hypervisor.filters.model import Filter
from ops_pipeline.reconcile import PlanRefused


def dependency_order(
    filters: Mapping[str, Filter], known: Collection[str], label: Callable[[str], str] = str, first: Any = None
) -> list[str]:
    """The names of filters, those that are included first, each once.

    Args:
        filters: what is to be ordered, by name.
        known: names that may be included although they are not among these.
        label: what an operator calls a filter.
        first: the key by which filters are sorted that do not depend on each other; by default their name.

    Raises:
        PlanRefused: filters include each other in a circle, or one that does not exist.
    """
    dangling = [
        f"{label(name)} includes {reference.filter}, which does not exist"
        for name, one in sorted(filters.items())
        for reference in one.references
        if reference.filter not in filters and reference.filter not in known
    ]
    if dangling:
        raise PlanRefused(f"{'; '.join(dangling)}. No filter was touched.")
    sorter: TopologicalSorter[str] = TopologicalSorter(
        {name: [one.filter for one in filters[name].references if one.filter in filters] for name in sorted(filters)}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " includes ".join(label(name) for name in reversed(error.args[1]))
        raise PlanRefused(f"filters include each other in a circle: {circle}. No filter was touched.") from None
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=first)
        order += ready
        sorter.done(*ready)
    return order
