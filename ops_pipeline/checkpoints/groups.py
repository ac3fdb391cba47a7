"""What a scan learns about a group (thread and namespace), kept in few bytes.

What belongs here: what is known of one group. What does not: collecting (`collecting`), and any decision.
"""

from __future__ import annotations

from collections.abc import Sequence

from ops_pipeline.checkpoints.ids import UUID_LENGTH, uuid6_seconds
from ops_pipeline.checkpoints.layouts import CHECKPOINT, DOCUMENT

ID_BYTES, KEY_BYTES, GROUP_BYTES, SHELF_BYTES = 40, 160, 300, 260
"""What an id, a key, a group and a shelf take in memory, about."""

NOTHING = bytearray()
"""The ids of shelves that have none."""
HEXADECIMAL, DASHES = b"0123456789abcdef", (8, 13, 18, 23)


class Shelf:
    """Keys of one kind of a group that differ in a UUIDv6 only, or in what begins with one.

    Of most groups these are all keys. Of keys that end in the id only that is kept, one after another: a fourth of the
    memory; and what comes is compared as text, in whose order these ids are made.

    Attributes:
        names: where the ids of young ones are kept, if they are. Not the group itself: in a circle, neither would be
            freed while Python's search for circles is off.
        stem: what the keys begin with, the separator before the id included.
        ids: the ids of old keys, one after another; of writes none.
        writes: old writes, in full.
        newest: the newest id.
        young: how many keys are younger than the grace.
    """

    __slots__ = ("ids", "names", "newest", "stem", "writes", "young")

    def __init__(self, stem: bytes, *, of_writes: bool = False) -> None:
        """Begin empty."""
        self.stem, self.newest, self.young = stem, b"", 0
        self.names: Loose | None = None
        self.writes: list[bytes] | None = [] if of_writes else None
        self.ids = NOTHING if of_writes else bytearray()

    def old_ids(self) -> list[bytes]:
        """The ids of old keys; of writes too."""
        if self.writes:
            begin = len(self.stem)
            end = begin + UUID_LENGTH
            return [key[begin:end] for key in self.writes]
        ids = bytes(self.ids)
        return [ids[start : start + UUID_LENGTH] for start in range(0, len(ids), UUID_LENGTH)]

    def old_keys(self) -> list[bytes]:
        """Old keys, in full."""
        if self.writes:
            return self.writes
        stem, ids = self.stem, bytes(self.ids)
        return [stem + ids[start : start + UUID_LENGTH] for start in range(0, len(ids), UUID_LENGTH)]

    def old(self) -> int:
        """How many old keys there are."""
        return len(self.writes) if self.writes else len(self.ids) // UUID_LENGTH

    def is_sound(self) -> bool:
        """Whether all ids are what they looked like at a glance: hexadecimal digits, and dashes at their places."""
        ids = (b"".join(self.old_ids()) if self.writes else bytes(self.ids)) + self.newest
        dashes = b"-" * (len(ids) // UUID_LENGTH)
        return ids.translate(None, HEXADECIMAL) == dashes * len(DASHES) and all(
            ids[place::UUID_LENGTH] == dashes for place in DASHES
        )

    def kept_bytes(self) -> int:
        """Its memory, about."""
        return SHELF_BYTES + len(self.ids) // UUID_LENGTH * ID_BYTES + len(self.writes or ()) * KEY_BYTES


class Loose:
    """What of a group lies on no shelf, pointers and their like excepted. Most groups have nothing of it.

    Attributes:
        others: keys whose ids are older than the grace.
        current: ids of checkpoints that only documents tell.
        latest: the newest time that these keys, and documents, tell in Unix seconds.
        counted: how many keys were seen.
        checkpoints: how many of these are checkpoints, young ones included, and documents.
        belongings: how many of the old ones are no checkpoints.
        undated: keys whose age nobody knows.
        named: the newest checkpoint, with its time, where names are kept.
        young: ids of all checkpoints younger than the grace, where names are kept; a scan may tell of one twice.
    """

    __slots__ = ("belongings", "checkpoints", "counted", "current", "latest", "named", "others", "undated", "young")

    def __init__(self) -> None:
        """Begin empty."""
        self.others: list[bytes] = []
        self.current: set[bytes] = set()
        self.latest = 0.0
        self.counted = self.checkpoints = self.belongings = self.undated = 0
        self.named = (0.0, b"")
        self.young: set[bytes] = set()


class Group:
    """One group of keys.

    Attributes:
        first: its checkpoints with a UUIDv6.
        hanging: the shelves of its writes and indexes.
        timeless: keys whose names tell no time, each with what it is: pointers, documents, registries, blobs.
        loose: all else; None while there is nothing.
    """

    __slots__ = ("first", "hanging", "loose", "timeless")

    def __init__(self) -> None:
        """Begin empty."""
        self.first: Shelf | None = None
        self.hanging: tuple[Shelf, ...] = ()
        self.timeless: tuple[tuple[str, bytes], ...] = ()
        self.loose: Loose | None = None

    def more(self) -> Loose:
        """Where what lies on no shelf is noted."""
        if self.loose is None:
            self.loose = Loose()
        return self.loose

    def add_timeless(self, kind: str, key: bytes) -> None:
        """Take in a key whose name tells no time; a value tells the age of documents, and of no other checkpoints."""
        self.timeless = (*self.timeless, (kind, key))
        if kind in {DOCUMENT, CHECKPOINT}:
            loose = self.more()
            loose.checkpoints += 1
            loose.undated += kind == CHECKPOINT

    def shelves(self) -> tuple[Shelf, ...]:
        """All of its shelves, checkpoints first."""
        return (self.first, *self.hanging) if self.first else self.hanging

    @property
    def old(self) -> list[bytes]:
        """All keys whose ids are older than the grace, checkpoints first."""
        keys = []
        for shelf in self.shelves():
            keys += shelf.old_keys()
        return keys + self.loose.others if self.loose else keys

    @property
    def newest(self) -> float:
        """The time of its newest id, in Unix seconds; 0 while none is known."""
        # As text, since a time of each would be read for nothing; loops, since this is asked of every thread.
        identifier = self.first.newest if self.first else b""
        for shelf in self.hanging:
            identifier = max(identifier, shelf.newest)
        seconds = (uuid6_seconds(identifier) or 0.0) if identifier else 0.0
        return max(seconds, self.loose.latest) if self.loose else seconds

    @property
    def checkpoints(self) -> int:
        """How many checkpoints were seen, young ones and documents included."""
        loose = self.loose.checkpoints if self.loose else 0
        return loose + (self.first.old() + self.first.young if self.first else 0)

    @property
    def current(self) -> set[bytes]:
        """Ids of checkpoints that only documents tell."""
        return self.loose.current if self.loose else set()

    @property
    def young(self) -> set[bytes]:
        """Ids of checkpoints younger than the grace, where names are kept."""
        return self.loose.young if self.loose else set()

    @property
    def belongings(self) -> int:
        """How many old keys are no checkpoints."""
        return (self.loose.belongings if self.loose else 0) + sum(shelf.old() for shelf in self.hanging)

    @property
    def keys(self) -> int:
        """How many keys were seen."""
        count = len(self.timeless) + (self.loose.counted if self.loose else 0)
        for shelf in self.shelves():
            count += shelf.old() + shelf.young
        return count

    def is_dated(self) -> bool:
        """Whether the ages of its checkpoints are known, as far as they were read."""
        return self.loose is None or not self.loose.undated

    def is_sound(self) -> bool:
        """Whether the age of all of its keys is known: looked at before anything of it goes."""
        return self.is_dated() and all(shelf.is_sound() for shelf in self.shelves())

    @property
    def newest_key(self) -> bytes:
        """The key of its newest checkpoint; those on no shelf are known where names are kept."""
        shelf, named = self.first, self.loose.named if self.loose else (0.0, b"")
        if shelf is None or not shelf.newest:
            return named[1]
        return max((uuid6_seconds(shelf.newest) or 0.0, shelf.stem + shelf.newest), named)[1]

    def kept(self) -> int:
        """How many keys are in memory."""
        count = len(self.timeless) + (len(self.loose.others) + len(self.loose.young) if self.loose else 0)
        for shelf in self.shelves():
            count += shelf.old()
        return count

    def kept_bytes(self) -> int:
        """Its memory, about."""
        count = len(self.timeless) + (len(self.loose.others) + len(self.loose.young) if self.loose else 0)
        return GROUP_BYTES + count * KEY_BYTES + sum(shelf.kept_bytes() for shelf in self.shelves())


def all_belong(groups: Sequence[Group]) -> bool:
    """Whether each write and index of a thread certainly hangs on a checkpoint of it; False also where it is unknown.

    By the ids on shelves alone, for a tenth of the time of reading names.
    """
    there: set[bytes] = set()
    hanging: set[bytes] = set()
    for group in groups:
        if group.loose and group.loose.belongings:
            return False
        for shelf in group.hanging:
            hanging.update(shelf.old_ids())
    if hanging:
        for group in groups:
            if group.first:
                there.update(group.first.old_ids())
    return hanging <= there
