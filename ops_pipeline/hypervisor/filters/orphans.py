"""Orphans: filters of ours on a host that the database does not have.

What belongs here: which of them go, and why the others stay; pure. How many may go is for the plan's limit to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ops_pipeline.hypervisor.filters.facts import FilterLook, LiveFilter, uses


def orphan_key(name: str, uuid: str) -> str:
    """What an orphan is remembered by: another filter under its name is another orphan."""
    return f"{name} {uuid}"


def removals_of(
    look: FilterLook,
    orphans: Mapping[str, LiveFilter],
    due: Mapping[str, datetime],
    now: datetime,
    *,
    anything_desired: bool,
) -> tuple[dict[str, str], dict[str, str]]:
    """UUIDs of the orphans that go, those that include others first, and why the others stay.

    Args:
        look: at the host; what it could not read may use anything.
        orphans: by name.
        due: from when on each may go, by name.
        now: the database's time.
        anything_desired: whether the database has filters at all; an empty one never deletes.
    """
    if not anything_desired:
        return {}, dict.fromkeys(orphans, "orphan, kept: the database has no filters at all")
    if look.unread:
        return {}, dict.fromkeys(orphans, f"orphan, kept: {look.unread[0]} could not be read")
    young = {name: f"orphan, goes after {due[name]:%Y-%m-%d %H:%M} UTC" for name in orphans if due[name] > now}
    order: list[str] = []
    left = {name: one for name, one in orphans.items() if name not in young}
    standing = dict(look.filters)
    while left:
        used = uses(FilterLook(filters=standing, guests=look.guests, bindings=look.bindings))
        free = sorted(left.keys() - used.keys())
        if not free:
            return _uuids(orphans, order), young | {name: f"orphan, kept: {used[name]}" for name in left}
        for name in free:
            del left[name], standing[name]
        order += free
    return _uuids(orphans, order), young


def _uuids(orphans: Mapping[str, LiveFilter], names: list[str]) -> dict[str, str]:
    return {name: orphans[name].uuid for name in names}
