"""What may go: a pure decision over what was seen of a thread.

What belongs here: the policy and its reasons in words. What does not: Redis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ops_pipeline.checkpoints.groups import Group
from ops_pipeline.checkpoints.layouts import (
    CHECKPOINT,
    DOCUMENT,
    EMPTY_NAMESPACE,
    INDEX,
    POINTER,
    REGISTRY,
    WRITE,
    Reader,
    thread_of,
)

DAY = 86_400.0
FUTURE = DAY
"""Ids so far ahead of the clock are of another clock: their threads are left alone."""
INTERRUPTS = (b":-3", b"$-3")
"""How the keys of writes end on which a thread waits for a person."""

CHARACTER = r"(?>[\xc2-\xf4][\x80-\xbf]{1,3}|.)"
"""One character of UTF-8, or a byte that is none."""

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
            raise ValueError("a retention must be longer than nothing")
        if self.grace < 0 or self.trim_age < 0:
            raise ValueError("no key is younger than nothing: a grace and a trim age are zero or more")
        if self.keep_newest is not None and self.keep_newest < 1:
            raise ValueError("at least one checkpoint of a live thread must be kept")
        if self.erase and not self.only:
            raise ValueError("to delete all of a thread, name the threads")

    def retention_of(self, thread: bytes) -> float:
        """How long this thread is kept after its newest checkpoint."""
        return next((seconds for pattern, seconds in self.by_thread if pattern.fullmatch(thread)), self.retention)

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


@dataclass(frozen=True)
class Verdict:
    """What happens to a thread.

    Attributes:
        thread: its name.
        action: `whole`, `erased`, `orphans`, `trimmed` or `kept`.
        reason: why, in words that repeat from thread to thread.
        keys: what goes, other than pointers.
        pointers: what goes as well if it still points at something that goes.
        newest: Unix time of its newest id; 0 when none is known.
        alive_from: a pointer to an id from this Unix time on means that the thread has come alive.
        examined: the keys of the newest checkpoints, to be looked at before anything is trimmed.
    """

    thread: bytes
    action: str
    reason: str
    keys: tuple[bytes, ...] = ()
    pointers: tuple[bytes, ...] = ()
    newest: float = 0.0
    alive_from: float = 0.0
    examined: tuple[bytes, ...] = ()


def threads_of(found: Mapping[bytes, Group]) -> dict[bytes, list[bytes]]:
    """The groups of each thread: nested namespaces go with the root that is there, others stand for themselves."""
    threads: dict[bytes, list[bytes]] = {}
    for name in found:
        thread = thread_of(name)
        rooted = thread + b":__empty__" in found or thread + b":" in found or name[:1] == b"$"
        threads.setdefault(thread if rooted else name, []).append(name)
    return threads


def judge(thread: bytes, groups: Sequence[Group], policy: Policy, read: Reader, now: float) -> Verdict:
    """Decide about one thread.

    Args:
        thread: its name.
        groups: its namespaces, with the ages of documents known as far as they can be.
        policy: what may go.
        read: tells the parts of a key.
        now: Unix time by the clock of Redis.
    """
    newest = max(group.newest for group in groups)
    spared = _spared(thread, groups, policy, now)
    if spared:
        return Verdict(thread, KEPT, spared, newest=newest)
    if policy.erase:
        return _all_of(thread, ERASED, "asked for by name", groups, float("inf"))
    if not any(group.checkpoints for group in groups):
        return _orphaned(thread, groups, now - policy.grace)
    cutoff = now - policy.retention_of(thread.removeprefix(b"$"))
    if newest < min(cutoff, now - policy.grace):
        return _all_of(thread, WHOLE, "newest checkpoint older than the retention", groups, cutoff)
    return _of_live(thread, groups, policy, read, now)


def _spared(thread: bytes, groups: Sequence[Group], policy: Policy, now: float) -> str:
    """Why a thread is left alone whatever its age; empty when it is not."""
    if matches(policy.pinned, thread):
        return "pinned"
    if policy.erase:
        return ""
    if any(group.unaged for group in groups):
        return "age unknown"
    return "ids of the future" if max(group.newest for group in groups) > now + FUTURE else ""


def _all_of(thread: bytes, action: str, reason: str, groups: Sequence[Group], alive_from: float) -> Verdict:
    keys = [key for group in groups for key in group.old]
    keys += [key for group in groups for kind, key in group.timeless if kind != POINTER]
    newest = max(group.newest for group in groups)
    return Verdict(thread, action, reason, _once(keys), _pointers(groups), newest, alive_from)


def _orphaned(thread: bytes, groups: Sequence[Group], grace_from: float) -> Verdict:
    """Writes, indexes and pointers of nothing; registries and blobs alone tell no age."""
    newest = max(group.newest for group in groups)
    pointers = _pointers(groups)
    if newest >= grace_from:
        return Verdict(thread, KEPT, "orphans younger than the grace", newest=newest)
    keys = _once([key for group in groups for key in group.old])
    if keys:
        keys += tuple(key for group in groups for kind, key in group.timeless if kind == REGISTRY)
    if not keys and not pointers:
        return Verdict(thread, KEPT, "age unknown", newest=newest)
    return Verdict(thread, ORPHANS, "belongs to no checkpoint", keys, pointers, newest, grace_from)


def _of_live(thread: bytes, groups: Sequence[Group], policy: Policy, read: Reader, now: float) -> Verdict:
    newest = max(group.newest for group in groups)
    trims = [policy.keep_newest is not None and not _has_documents(group) for group in groups]
    if not any(trims) and not any(group.belongings for group in groups):
        return Verdict(thread, KEPT, "live", newest=newest)
    units = _Units(groups, read)
    trimmed: list[bytes] = []
    for number, group in enumerate(groups):
        if trims[number] and policy.keep_newest:
            keep = max(0, policy.keep_newest - len(group.young))
            trimmed += units.trim(number, keep, now - policy.trim_age)
    orphans = units.orphans()
    if trimmed:
        newest_keys = tuple(group.newest_key for group in groups if group.newest_key)
        keys, why = _once(trimmed + orphans), "live: older checkpoints beyond those to keep"
        return Verdict(thread, TRIMMED, why, keys, _pointers(groups), newest, examined=newest_keys)
    if orphans:
        return Verdict(thread, ORPHANS, "writes of checkpoints that are gone", _once(orphans), newest=newest)
    return Verdict(thread, KEPT, "live", newest=newest)


class _Units:
    """The old keys of a thread by checkpoint: each goes with its writes and their index, or stays with them.

    Writes are looked for in all of its namespaces, as savers spell the empty one in two ways: the shallow saver's
    document is `{thread}:`, and its writes are of `{thread}:__empty__`.
    """

    def __init__(self, groups: Sequence[Group], read: Reader) -> None:
        self.checkpoints: list[dict[bytes, tuple[float, bytes]]] = []
        self.belongings: dict[bytes, list[bytes]] = {}
        self.current: set[bytes] = set().union(*(group.current for group in groups))
        for group in groups:
            checkpoints: dict[bytes, tuple[float, bytes]] = {}
            self.checkpoints.append(checkpoints)
            for key in group.old:
                part = read(key)
                if not part or part[3] is None:
                    continue
                if part[0] == CHECKPOINT:
                    checkpoints[part[2]] = (part[3], key)
                elif part[0] in {WRITE, INDEX}:
                    self.belongings.setdefault(part[2], []).append(key)

    def trim(self, number: int, keep: int, trim_before: float) -> Iterator[bytes]:
        """Take out checkpoints of a group that are older than the newest `keep`, and than a time; interrupts stay."""
        checkpoints = self.checkpoints[number]
        by_age = sorted(checkpoints.items(), key=lambda item: (item[1][0], item[0]), reverse=True)
        for identifier, (seconds, key) in by_age[keep:]:
            interrupted = any(one.endswith(INTERRUPTS) for one in self.belongings.get(identifier, ()))
            if seconds < trim_before and not interrupted:
                del checkpoints[identifier]
                yield key

    def orphans(self) -> list[bytes]:
        """Writes and indexes whose checkpoint is not there, or was taken out."""
        there = self.current.union(*self.checkpoints)
        return [key for identifier, keys in self.belongings.items() if identifier not in there for key in keys]


def _has_documents(group: Group) -> bool:
    return any(kind == DOCUMENT for kind, _ in group.timeless)


def _pointers(groups: Sequence[Group]) -> tuple[bytes, ...]:
    return _once([key for group in groups for kind, key in group.timeless if kind == POINTER])


def _once(keys: Sequence[bytes]) -> tuple[bytes, ...]:
    # A scan may name a key twice.
    return tuple(dict.fromkeys(keys))
