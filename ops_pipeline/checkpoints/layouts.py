"""The layouts in which LangGraph checkpoints lie in Redis: what a key's name says.

Each layout recognises its keys and tells the group (thread and namespace in one text, since their border cannot be
told from a name), the checkpoint's id and its time, without a look at the value where the name carries it. Names are
read from the right: threads, namespaces and channels may hold the separator.

What belongs here: names. What does not: values (`values`), and what may go (`policy`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
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

COLON = ord(":")
EMPTY_NAMESPACE = b":__empty__"
POINTER_PREFIX = b"checkpoint_latest:"
_NESTED = re.compile(rb":[^:|]+:[0-9a-f]{8}-[0-9a-f-]{27}(?:\|[^:|]+:[0-9a-f]{8}-[0-9a-f-]{27})*\Z")
# The last one counts: the thread's own id may look like a namespace.
_NESTED_BEFORE = re.compile(
    rb".+:[^:|]+:[0-9a-f]{8}-[0-9a-f-]{27}(?:\|[^:|]+:[0-9a-f]{8}-[0-9a-f-]{27})*(?=:)", re.DOTALL
)


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
        if seconds is not None and key[-UUID_LENGTH - 1] == COLON:
            group = key[len(self.prefix) : -UUID_LENGTH - 1]
            if group:
                return self.kind, group, end, seconds
        rest = key[len(self.prefix) :]
        end = rest[-ULID_LENGTH:]
        seconds = ulid_seconds(end)
        if seconds is not None and rest[-ULID_LENGTH - 1 : -ULID_LENGTH] == b":":
            return self.kind, rest[: -ULID_LENGTH - 1], end, seconds
        return self._by_iso_time(rest) or (self._document(rest) if self.kind == CHECKPOINT else self._index(rest))

    def _by_iso_time(self, rest: bytes) -> Part | None:
        match = ISO_AT_END.search(rest)
        if match is None or rest[match.start() - 1 : match.start()] != b":":
            return None
        seconds = iso_seconds(match[1])
        return (self.kind, rest[: match.start() - 1], match[1], seconds) if seconds is not None else None

    @staticmethod
    def _document(rest: bytes) -> Part | None:
        # The shallow saver in JavaScript ends its keys so.
        group = rest.removesuffix(b":shallow")
        return (DOCUMENT, group, b"", None) if group.strip(b":") else None

    @staticmethod
    def _index(rest: bytes) -> Part | None:
        group, end = rest[: -UUID_LENGTH - 1], rest[-UUID_LENGTH:]
        return (INDEX, group, end, None) if group and rest == group + b":" + end and is_uuid(end) else None


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
        thread, empty, _ = rest.partition(EMPTY_NAMESPACE + b":")
        if empty:
            return (BLOB, thread + EMPTY_NAMESPACE, b"", None) if thread else None
        group = _NESTED_BEFORE.match(rest)
        return (BLOB, group[0], b"", None) if group else None


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

    def __post_init__(self) -> None:
        """Refuse prefixes by which checkpoints and writes could not be told apart."""
        if self.checkpoint == self.write:
            raise ValueError(f"CHECKPOINT_PREFIX and CHECKPOINT_WRITE_PREFIX are both {self.write!r}: they must differ")


def layouts_of(prefixes: Prefixes) -> tuple[Layout, ...]:
    """All layouts, those with the longer prefixes first."""
    checkpoint, write = prefixes.checkpoint.encode(), prefixes.write.encode()
    found: list[Layout] = [
        IdLayout(checkpoint + b":", CHECKPOINT),
        WriteLayout(write + b":"),
        IdLayout(b"write_keys_zset:", INDEX),
        PointerLayout(POINTER_PREFIX),
        RegistryLayout(b"write_registry:"),
        RegistryLayout(b"current_checkpoint:"),
        BlobLayout(b"checkpoint_blob:"),
        RecipeLayout(b"checkpoint$", CHECKPOINT),
        RecipeLayout(b"writes$", WRITE),
    ]
    return tuple(sorted(found, key=lambda layout: -len(layout.prefix)))


def _by_head(layouts: tuple[Layout, ...]) -> dict[bytes, Layout]:
    """The layouts that what stands before a key's first colon tells: nearly all keys, for a third of the time."""
    return {
        layout.prefix: layout
        for layout in layouts
        if layout.prefix.find(b":") == len(layout.prefix) - 1
        and not any(_is_longer(other.prefix, layout.prefix) for other in layouts)
    }


def shelved_by(layouts: tuple[Layout, ...]) -> dict[bytes, str]:
    """What keys that end in a UUIDv6, and writes, are by what stands before their first colon."""
    found = _by_head(layouts).items()
    return {head: layout.kind for head, layout in found if isinstance(layout, IdLayout)} | {
        head: WRITE for head, layout in found if isinstance(layout, WriteLayout)
    }


def reader_of(layouts: tuple[Layout, ...]) -> Reader:
    """One function for all layouts."""
    candidates = [(layout.prefix, layout.read) for layout in layouts]
    by_head = {head: layout.read for head, layout in _by_head(layouts).items()}

    def read(key: bytes) -> Part | Literal[False] | None:
        known = by_head.get(key[: key.find(b":") + 1])
        if known is not None:
            return known(key)
        for prefix, reader in candidates:
            if key.startswith(prefix):
                return reader(key)
        return False

    return read


def _is_longer(prefix: bytes, other: bytes) -> bool:
    return prefix != other and prefix.startswith(other)


def beginnings(name: bytes) -> Iterator[bytes]:
    """What stands before each of the colons of a name, the longest first."""
    place = name.rfind(b":")
    while place > 0:
        yield name[:place]
        place = name.rfind(b":", 0, place)


def thread_of(group: bytes) -> bytes:
    """The thread of a group, as far as its name shows: without the empty namespace, or nested ones.

    A thread whose own id ends like a nested namespace is told apart only by whether its parent is a group too.
    """
    if group.endswith(EMPTY_NAMESPACE):
        return group[: -len(EMPTY_NAMESPACE)]
    if group[:1] == b"$" and (thread := group.rpartition(b"$")[0]):
        return thread
    if group[-1:] == b":":
        # The shallow saver's root has an empty namespace.
        return group[:-1]
    if group[-UUID_LENGTH - 1 : -UUID_LENGTH] != b":":
        # Nearly all; the search below takes four times as long.
        return group
    nested = _NESTED.search(group)
    return group[: nested.start()] if nested and nested.start() else group
