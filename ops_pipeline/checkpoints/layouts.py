"""The layouts in which LangGraph checkpoints lie in Redis: what a key's name says.

Each layout recognises its keys and tells the group (thread and namespace in one text, since their border cannot be
told from a name), the checkpoint's id and its time, without a look at the value where the name carries it. Names are
read from the right: threads, namespaces and channels may hold the separator.

What belongs here: names. What does not: values (`values`), and what may go (`policy`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ops_pipeline.checkpoints.ids import (
    ISO_AT_END,
    ULID_LENGTH,
    UUID_LENGTH,
    is_uuid,
    iso_seconds,
    ulid_seconds,
    uuid6_seconds,
)

CHECKPOINT, WRITE, INDEX, POINTER, BLOB, DOCUMENT, REGISTRY = (
    "checkpoint",
    "write",
    "index of writes",
    "pointer",
    "blob",
    "document",
    "registry",
)
"""What a key is. A document is a checkpoint whose name tells no time: its value is looked at."""

Part = tuple[str, bytes, bytes, float | None]
"""What a key is, its group, the checkpoint's id (empty where it has none), and the id's time in Unix seconds."""
Reader = Callable[[bytes], Part | Literal[False] | None]
"""Tells the parts of a key; None for one under our prefixes that nobody understands, False for somebody else's."""

EMPTY_NAMESPACE = b":__empty__"
_NAMESPACE_BEFORE = re.compile(
    rb":__empty__(?=:)|:[^:|]+:[0-9a-f]{8}-[0-9a-f-]{27}(?:\|[^:|]+:[0-9a-f]{8}-[0-9a-f-]{27})*(?=:)"
)
_NESTED = re.compile(rb":[^:|]+:[0-9a-f]{8}-[0-9a-f-]{27}(?:\|[^:|]+:[0-9a-f]{8}-[0-9a-f-]{27})*\Z")


@dataclass(frozen=True)
class IdLayout:
    """Keys that end in a checkpoint's id, as in `checkpoint:{thread}:{id}` and `checkpoint:{thread}:{namespace}:{id}`.

    The plain layout has ISO times, UUIDv6 or ULIDs; langgraph-checkpoint-redis 0.5 has UUIDv6. Whatever ends
    otherwise is a document: of the shallow saver, which has one per namespace, or with an id that is no time.
    """

    prefix: bytes
    kind: str

    def read(self, key: bytes) -> Part | None:
        """The parts of a key; None when it is not of this layout."""
        # UUIDv6 first: nearly all keys of the savers.
        end = key[-UUID_LENGTH:]
        seconds = uuid6_seconds(end)
        if seconds is not None and key[-UUID_LENGTH - 1 : -UUID_LENGTH] == b":":
            return self.kind, key[len(self.prefix) : -UUID_LENGTH - 1], end, seconds
        rest = key[len(self.prefix) :]
        end = rest[-ULID_LENGTH:]
        seconds = ulid_seconds(end)
        if seconds is not None and rest[-ULID_LENGTH - 1 : -ULID_LENGTH] == b":":
            return self.kind, rest[: -ULID_LENGTH - 1], end, seconds
        return self._by_iso_time(rest) or (self._document(rest) if self.kind == CHECKPOINT else None)

    def _by_iso_time(self, rest: bytes) -> Part | None:
        match = ISO_AT_END.search(rest)
        if match is None or rest[match.start() - 1 : match.start()] != b":":
            return None
        seconds = iso_seconds(match[1])
        return (self.kind, rest[: match.start() - 1], match[1], seconds) if seconds is not None else None

    @staticmethod
    def _document(rest: bytes) -> Part | None:
        return (DOCUMENT, rest, b"", None) if rest.strip(b":") else None


@dataclass(frozen=True)
class WriteLayout:
    """`checkpoint_write:{thread}:{namespace}:{id}:{task}:{index}`: a pending write of a checkpoint."""

    prefix: bytes

    def read(self, key: bytes) -> Part | None:
        """The parts of a key; None when it is not of this layout."""
        # Threads and namespaces may hold the separator; the task and the index do not.
        pieces = key[len(self.prefix) :].rsplit(b":", 2)
        if len(pieces) != 3 or not pieces[1] or not pieces[2].removeprefix(b"-").isdigit():
            return None
        rest = pieces[0]
        end = rest[-UUID_LENGTH:]
        if rest[-UUID_LENGTH - 1 : -UUID_LENGTH] == b":":
            seconds = uuid6_seconds(end)
            if seconds is not None or is_uuid(end):
                return WRITE, rest[: -UUID_LENGTH - 1], end, seconds
        end = rest[-ULID_LENGTH:]
        seconds = ulid_seconds(end)
        if seconds is not None and rest[-ULID_LENGTH - 1 : -ULID_LENGTH] == b":":
            return WRITE, rest[: -ULID_LENGTH - 1], end, seconds
        return None


@dataclass(frozen=True)
class PointerLayout:
    """`checkpoint_latest:{thread}:{namespace}`: the full key of the newest checkpoint."""

    prefix: bytes

    def read(self, key: bytes) -> Part | None:
        """The parts of a key; None when it is not of this layout."""
        rest = key[len(self.prefix) :]
        return (POINTER, rest, b"", None) if rest else None


@dataclass(frozen=True)
class RegistryLayout:
    """`write_registry:{thread}:{namespace}:shallow` and `current_checkpoint:…:shallow`, of the shallow saver."""

    prefix: bytes

    def read(self, key: bytes) -> Part | None:
        """The parts of a key; None when it is not of this layout."""
        rest = key[len(self.prefix) :]
        group = rest.removesuffix(b":shallow")
        return (REGISTRY, group, b"", None) if group != rest and group else None


@dataclass(frozen=True)
class BlobLayout:
    """`checkpoint_blob:{thread}:{namespace}:{channel}:{version}`, where the namespace shows where the group ends."""

    prefix: bytes

    def read(self, key: bytes) -> Part | None:
        """The parts of a key; None when it is not of this layout."""
        rest = key[len(self.prefix) :]
        border = _NAMESPACE_BEFORE.search(rest)
        return (BLOB, rest[: border.end()], b"", None) if border and border.start() else None


@dataclass(frozen=True)
class RecipeLayout:
    """`checkpoint$thread$namespace$id` and `writes$thread$namespace$id$task$index`: hashes of a recipe often copied."""

    prefix: bytes
    kind: str

    def read(self, key: bytes) -> Part | None:
        """The parts of a key; None when it is not of this layout."""
        rest = key[len(self.prefix) :]
        if self.kind == WRITE:
            rest, _, index = rest.rpartition(b"$")
            rest, _, task = rest.rpartition(b"$")
            if not index.removeprefix(b"-").isdigit() or not task:
                return None
        group, separator, end = rest.rpartition(b"$")
        if not separator or not group.strip(b"$"):
            return None
        seconds = uuid6_seconds(end)
        if seconds is None:
            seconds = ulid_seconds(end)
        # A group of its own kind: the recipe's thread "a" and the savers' thread "a" are two.
        return self.kind, b"$" + group, end, seconds if seconds is not None else iso_seconds(end)


Layout = IdLayout | WriteLayout | PointerLayout | RegistryLayout | BlobLayout | RecipeLayout


@dataclass(frozen=True)
class Prefixes:
    """What the names begin with; those of the savers can be configured there, the others cannot."""

    checkpoint: str = "checkpoint"
    write: str = "checkpoint_write"


def layouts_of(prefixes: Prefixes) -> tuple[Layout, ...]:
    """All layouts, those with the longer prefixes first."""
    checkpoint, write = prefixes.checkpoint.encode(), prefixes.write.encode()
    found: list[Layout] = [
        IdLayout(checkpoint + b":", CHECKPOINT),
        WriteLayout(write + b":"),
        IdLayout(b"write_keys_zset:", INDEX),
        PointerLayout(b"checkpoint_latest:"),
        RegistryLayout(b"write_registry:"),
        RegistryLayout(b"current_checkpoint:"),
        BlobLayout(b"checkpoint_blob:"),
        RecipeLayout(b"checkpoint$", CHECKPOINT),
        RecipeLayout(b"writes$", WRITE),
    ]
    return tuple(sorted(found, key=lambda layout: -len(layout.prefix)))


def reader_of(layouts: tuple[Layout, ...]) -> Reader:
    """One function for all layouts."""
    candidates = [(layout.prefix, layout.read) for layout in layouts]
    # Nearly all keys are found by what stands before their first colon, for a third of the time.
    by_head = {prefix: read for prefix, read in candidates if prefix.find(b":") == len(prefix) - 1}

    def read(key: bytes) -> Part | Literal[False] | None:
        known = by_head.get(key[: key.find(b":") + 1])
        if known is not None:
            return known(key)
        for prefix, reader in candidates:
            if key.startswith(prefix):
                return reader(key)
        return False

    return read


def thread_of(group: bytes) -> bytes:
    """The thread of a group, as far as its name shows: without the empty namespace, or nested ones.

    A thread whose own id ends like a nested namespace is told apart only by whether its parent is a group too.
    """
    if group.endswith(EMPTY_NAMESPACE):
        return group[: -len(EMPTY_NAMESPACE)]
    if group[:1] == b"$":
        return group.rpartition(b"$")[0] or group
    if group[-1:] == b":":
        # The shallow saver's root has an empty namespace.
        return group[:-1]
    nested = _NESTED.search(group)
    return group[: nested.start()] if nested and nested.start() else group
