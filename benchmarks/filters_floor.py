"""The floor of `benchmarks.filters`: what must be read in any case.

What belongs here: one function, in a module that imports nothing, as those do that talk to hosts.
"""

from __future__ import annotations

from typing import Any


def filter_xml(connection: Any, _argument: object) -> dict[str, str]:
    """The XML of every filter."""
    return {one.name(): one.XMLDesc() for one in connection.listAllNWFilters()}
