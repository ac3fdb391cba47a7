"""What may go: a pure decision over what was seen of a thread.

What belongs here: the policy and its reasons in words. What does not: Redis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ops_pipeline.checkpoints.groups import Group, all_belong
from ops_pipeline.checkpoints.layouts import (
    BLOB,
    DOCUMENT,
    EMPTY_NAMESPACE,
    POINTER,
    REGISTRY,
    Reader,
    beginnings,
    thread_of,
)
from ops_pipeline.checkpoints.units import Units

DAY = 86_400.0
FUTURE = DAY
"""Ids so far ahead of the clock are of another clock: their threads are left alone."""
CHARACTER = r"(?>[\xc2-\xf4][\x80-\xbf]{1,3}|.)"
"""One character of UTF-8, or a byte that is none."""

IDLE = "newest checkpoint older than the retention"
WHOLE, ERASED, ORPHANS, TRIMMED, KEPT = "whole", "erased", "orphans", "trimmed", "kept"


def glob_of(pattern: str) -> re.Pattern[bytes]:
    r"""A pattern of thread ids: `*` stands for anything, `?` for one character, `\*` for a star.

    Raises:
        ValueError: it is empty, or would match every thread.
    """
    if not pattern.strip() or not pattern.replace("*", "").replace("?", ""):
        raise ValueError(f"{pattern!r} names no thread, or every one: write an id, or a part of it with a star")
    text, index = "", 0
    while index < len(pattern):
        letter = pattern[index]
        if letter == "\\" and index + 1 < len(pattern):
            index += 1
            text += re.escape(pattern[index])
        else:
            text += {"*": ".*", "?": CHARACTER}.get(letter, re.escape(letter))
        index += 1
    return re.compile(text.encode(), re.DOTALL)


@dataclass(frozen=True)
class Policy:
    """What may go, in seconds.

    Attributes:
        retention: threads whose newest checkpoint is older go as a whole.
        grace: keys younger than this never go.
        by_thread: other retentions for threads that match; the first match counts.
        pinned: threads that never go.
        keep_newest: of live threads only so many checkpoints per namespace are kept; None keeps all.
        trim_age: and what is younger than this.
        erase: threads that go whatever their age.
        only: threads that are looked at; none for all.
    """

    retention: float
    grace: float
    by_thread: tuple[tuple[re.Pattern[bytes], float], ...] = ()
    pinned: tuple[re.Pattern[bytes], ...] = ()
    keep_newest: int | None = None
    trim_age: float = DAY
    erase: bool = False
    only: tuple[re.Pattern[bytes], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot have been meant."""
        if self.retention <= 0 or any(seconds <= 0 for _, seconds in self.by_thread):
            raise ValueError("a retention must be longer than nothing: give days above 0")
        if self.grace < 0 or self.trim_age < 0:
            raise ValueError("no key is younger than nothing: a grace and a trim age are zero or more")
        if self.keep_newest is not None and self.keep_newest < 1:
            raise ValueError("at least one checkpoint of a live thread must be kept")
        if self.erase and not self.only:
            raise ValueError("to delete all of a thread (delete_all), name the threads (threads)")

    def retention_of(self, thread: bytes) -> float:
        """How long this thread is kept after its newest checkpoint."""
        for pattern, seconds in self.by_thread:
            if pattern.fullmatch(thread):
                return seconds
        return self.retention

    def wants(self, name: bytes) -> bool:
        """Whether a group is looked at."""
        if not self.only:
            return True
        # Only a nested namespace may be a thread with such an id: the others say where the thread's id ends, and
        # `user-1:*` must not find `user-1:__empty__`.
        thread = thread_of(name)
        if name[:1] == b"$" and name.startswith(thread + b"$"):
            candidates = {thread[1:]}
        elif name.endswith((EMPTY_NAMESPACE, b":")):
            candidates = {thread}
        else:
            candidates = {thread, name}
        return any(one.fullmatch(candidate) for one in self.only for candidate in candidates)


def matches(patterns: Sequence[re.Pattern[bytes]], name: bytes) -> bool:
    """Whether the thread of a group, or the group's name as a whole, matches a pattern."""
    if not patterns:
        return False
    # With the dollar of the recipe's groups and without, as a thread's own id may begin with one.
    thread = thread_of(name)
    candidates = {name, thread, name.removeprefix(b"$"), thread.removeprefix(b"$")}
    return any(pattern.fullmatch(candidate) for pattern in patterns for candidate in candidates)


class Verdict(NamedTuple):
    """What happens to a thread.

    Attributes:
        thread: its name.
        action: `whole`, `erased`, `orphans`, `trimmed` or `kept`.
        reason: why, in words that repeat from thread to thread.
        pointers: what goes as well if it still points at something that goes.
        newest: Unix time of its newest id; 0 when none is known.
        alive_from: a pointer to an id from this Unix time on means that the thread has come alive.
        examined: the keys of the newest checkpoints, to be looked at before anything is trimmed.
        some: what goes of it, other than pointers, where it is not all of `groups`.
        groups: what goes as a whole; the keys are put together only when they are asked for, batch by batch.
        blobs: those of its keys that a checkpoint which is about to be written may name as well.
        lists: of writes, which stay, and lose what goes.
    """

    thread: bytes
    action: str
    reason: str
    pointers: tuple[bytes, ...] = ()
    newest: float = 0.0
    alive_from: float = 0.0
    examined: tuple[bytes, ...] = ()
    some: tuple[bytes, ...] = ()
    groups: tuple[Group, ...] = ()
    blobs: tuple[bytes, ...] = ()
    lists: tuple[bytes, ...] = ()

    @property
    def keys(self) -> tuple[bytes, ...]:
        """What goes, other than pointers: checkpoints first, and last what tells no time."""
        keys = [*self.some]
        for group in self.groups:
            keys += group.old
        for group in self.groups:
            keys += [key for kind, key in group.timeless if kind != POINTER]
        return tuple(keys)

    @property
    def size(self) -> int:
        """How many keys go, pointers included; without putting them together."""
        if not self.groups:
            return len(self.some) + len(self.pointers)
        size = 0
        for group in self.groups:
            size += group.kept()
        return size


def threads_of(found: Mapping[bytes, Group]) -> dict[bytes, list[bytes]]:
    """The groups of each thread: its namespaces go with the root that is there, others stand for themselves."""
    threads: dict[bytes, list[bytes]] = {}
    for name, group in found.items():
        thread = thread_of(name)
        if thread != name and not name.endswith((EMPTY_NAMESPACE, b":")):
            rooted = thread + EMPTY_NAMESPACE in found or thread + b":" in found or name.startswith(thread + b"$")
            thread = thread if rooted else name
        if thread == name and (group.timeless or group.hanging):
            thread = _root_of(name, group, found) or name
        threads.setdefault(thread, []).append(name)
    return threads


def _root_of(name: bytes, group: Group, found: Mapping[bytes, Group]) -> bytes | None:
    """The thread of a graph within its graph that keeps its state from run to run, and whose namespace is its node.

    Its name does not show where the thread ends; but such a group has a pointer or writes, as only savers with
    namespaces write them, and a root.
    """
    if not group.hanging and all(kind != POINTER for kind, _ in group.timeless):
        return None
    return next((one for one in beginnings(name) if one + EMPTY_NAMESPACE in found), None)


def judge(thread: bytes, groups: Sequence[Group], policy: Policy, read: Reader, now: float) -> Verdict:
    """Decide about one thread.

    Args:
        thread: its name.
        groups: its namespaces, with the ages of documents known as far as they can be.
        policy: what may go.
        read: tells the parts of a key.
        now: Unix time by the clock of Redis.
    """
    # Loops here and below, where generators would say it shorter: this is a third of the time of a sweep.
    newest, has_checkpoints = 0.0, False
    for group in groups:
        newest = max(newest, group.newest)
        has_checkpoints = has_checkpoints or group.has_checkpoints()
    spared = _spared(thread, groups, policy, newest, now)
    if spared:
        return Verdict(thread, KEPT, spared, newest=newest)
    if policy.erase:
        return _whole(thread, groups, newest, float("inf"))._replace(action=ERASED, reason="asked for by name")
    if not has_checkpoints:
        return _orphaned(thread, groups, newest, now - policy.grace)
    retention = policy.retention_of(thread.removeprefix(b"$")) if policy.by_thread else policy.retention
    cutoff = now - retention
    if newest < cutoff and newest < now - policy.grace:
        verdict = _whole(thread, groups, newest, cutoff)
    else:
        verdict = _of_live(thread, groups, policy, read, newest=newest, now=now)
        if verdict.action == KEPT:
            return verdict
    for group in groups:
        if not group.is_sound():
            return Verdict(thread, KEPT, "age unknown", newest=newest)
    return verdict


def _spared(thread: bytes, groups: Sequence[Group], policy: Policy, newest: float, now: float) -> str:
    """Why a thread is left alone whatever its age; empty when it is not."""
    if policy.pinned and matches(policy.pinned, thread):
        return "pinned"
    if policy.erase:
        return ""
    for group in groups:
        if not group.is_dated():
            return "age unknown"
    return "ids of the future" if newest > now + FUTURE else ""


def _whole(thread: bytes, groups: Sequence[Group], newest: float, alive_from: float) -> Verdict:
    pointers, blobs = (), ()
    for group in groups:
        if group.timeless:
            pointers, blobs = _of_kind(groups, POINTER), _of_kind(groups, BLOB)
            break
    return Verdict(thread, WHOLE, IDLE, pointers, newest, alive_from, (), (), tuple(groups), blobs)


def _orphaned(thread: bytes, groups: Sequence[Group], newest: float, grace_from: float) -> Verdict:
    """Writes, indexes, blobs and pointers of nothing; registries alone tell no age."""
    pointers = _of_kind(groups, POINTER)
    if newest >= grace_from:
        return Verdict(thread, KEPT, "orphans younger than the grace", newest=newest)
    if not all(group.is_sound() for group in groups):
        return Verdict(thread, KEPT, "age unknown", newest=newest)
    keys = _once([key for group in groups for key in group.old])
    # A thread whose own id holds this too may be another one than the name of its blob shows.
    blobs = tuple(key for key in _of_kind(groups, BLOB) if key.count(EMPTY_NAMESPACE) == 1)
    if keys:
        keys += _of_kind(groups, REGISTRY)
    if not keys and not pointers and not blobs:
        return Verdict(thread, KEPT, "age unknown", newest=newest)
    why = "belongs to no checkpoint"
    return Verdict(thread, ORPHANS, why, pointers, newest, grace_from, some=keys + blobs, blobs=blobs)


def _of_live(
    thread: bytes, groups: Sequence[Group], policy: Policy, read: Reader, *, newest: float, now: float
) -> Verdict:
    if policy.keep_newest is None and all_belong(groups):
        return Verdict(thread, KEPT, "live", (), newest)
    trims = [policy.keep_newest is not None and not _has_documents(group) for group in groups]
    units, trimmed = Units(groups, read), list[bytes]()
    for number, group in enumerate(groups):
        if trims[number] and policy.keep_newest:
            keep = max(0, policy.keep_newest - len(group.young))
            trimmed += units.trim(number, keep, now - policy.trim_age)
    orphans = units.orphans()
    if trimmed:
        newest_keys = tuple(group.newest_key for group in groups if group.newest_key)
        keys, why = _once(trimmed + orphans), "live: older checkpoints beyond those to keep"
        return Verdict(thread, TRIMMED, why, _of_kind(groups, POINTER), newest, examined=newest_keys, some=keys)
    if orphans:
        why, lists = "writes of checkpoints that are gone", _of_kind(groups, REGISTRY)
        return Verdict(thread, ORPHANS, why, newest=newest, some=_once(orphans), lists=lists)
    return Verdict(thread, KEPT, "live", newest=newest)


def _has_documents(group: Group) -> bool:
    return any(kind == DOCUMENT for kind, _ in group.timeless)


def _of_kind(groups: Sequence[Group], wanted: str) -> tuple[bytes, ...]:
    return _once([key for group in groups for kind, key in group.timeless if kind == wanted])


def _once(keys: Sequence[bytes]) -> tuple[bytes, ...]:
    # A scan may name a key twice.
    return tuple(dict.fromkeys(keys))
