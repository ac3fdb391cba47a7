"""The rule for old tasks: a tree goes as a whole, when every task of it has ended long ago.

What belongs here: pure decisions that take `now`. What does not: SQL (`tree_store`), archives (`archive_tasks`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from ops_pipeline.analysis.tables import TERMINAL


class Member(NamedTuple):
    """A task of a tree: a tuple, since a million frozen dataclasses take two seconds longer to make.

    Attributes:
        hold: why it must stay, in words; empty when nothing says so.
        retention: a longer retention of its own.
        size: of its JSON, in characters.
    """

    id: str
    parent_id: str | None
    status: str
    completed_at: datetime | None
    target: str = ""
    pipeline_id: str | None = None
    hold: str = ""
    retention: timedelta | None = None
    size: int = 0


@dataclass(frozen=True)
class Owner:
    """What a task belongs to, a pipeline or an application, as far as it keeps the task."""

    unfinished: bool = False
    hold: str = ""
    retention: timedelta | None = None


@dataclass(frozen=True)
class Tree:
    """A task without parent and all that descend from it, parents before children."""

    members: tuple[Member, ...]

    @property
    def root(self) -> Member:
        """The task at its top."""
        return self.members[0]

    @property
    def size(self) -> int:
        """Of its JSON, in characters."""
        return sum(member.size for member in self.members)


@dataclass(frozen=True)
class TreeDecisions:
    """Trees that go, and those that stay by reason."""

    going: tuple[Tree, ...]
    kept: Mapping[str, int] = field(default_factory=dict)


def decide_trees(
    trees: Iterable[Tree],
    pipelines: Mapping[str, Owner],
    applications: Mapping[str, Owner],
    retention: timedelta,
    now: datetime,
) -> TreeDecisions:
    """Which trees are old as a whole.

    Args:
        trees: each with all its members.
        pipelines: those that any of them names, by id.
        applications: those that any of them names and that keep tasks, by target.
        retention: how long a task is kept after its end; the longest that concerns any member counts.
        now: the database's clock.
    """
    going: list[Tree] = []
    kept: Counter[str] = Counter()
    for tree in trees:
        reason = _kept(tree, pipelines, applications, retention, now)
        if reason:
            kept[reason] += 1
        else:
            going.append(tree)
    return TreeDecisions(tuple(going), kept)


def _kept(
    tree: Tree,
    pipelines: Mapping[str, Owner],
    applications: Mapping[str, Owner],
    retention: timedelta,
    now: datetime,
) -> str:
    owners: list[Owner] = []
    if applications or any(member.pipeline_id for member in tree.members):
        owners = [
            owner
            for member in tree.members
            for owner in (pipelines.get(member.pipeline_id or ""), applications.get(member.target))
            if owner is not None
        ]
    hold = next((one.hold for one in (*tree.members, *owners) if one.hold), "")
    if hold:
        return hold
    if any(owner.unfinished for owner in owners):
        return "its pipeline has not ended"
    longest = max([retention, *(one.retention for one in (*tree.members, *owners) if one.retention is not None)])
    for member in tree.members:
        whose = "" if member is tree.root else "a child "
        if member.status not in TERMINAL:
            return f"{whose}has not ended"
        if member.completed_at is None:
            return f"{whose}ended at no known time"
        if now - member.completed_at <= longest:
            return f"{whose}is younger than its retention"
    return ""


def trees_of(levels: Sequence[Sequence[Member]]) -> list[Tree]:
    """Put trees together from their levels, the roots first."""
    if not levels:
        return []
    root_of = {member.id: member.id for member in levels[0]}
    members: dict[str, list[Member]] = {member.id: [member] for member in levels[0]}
    for level in levels[1:]:
        for member in level:
            root = root_of[member.parent_id or ""]
            root_of[member.id] = root
            members[root].append(member)
    return [Tree(tuple(some)) for some in members.values()]
