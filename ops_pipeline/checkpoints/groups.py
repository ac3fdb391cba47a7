"""What a scan learns about a group (thread and namespace), kept in few bytes.

What belongs here: what is known of one group. What does not: collecting (`collecting`), and any decision.
"""

from __future__ import annotations

from collections.abc import Sequence

from ops_pipeline.checkpoints.ids import UUID_LENGTH, uuid6_seconds
from ops_pipeline.checkpoints.layouts import CHECKPOINT, DOCUMENT
from ops_pipeline.checkpoints.spellings import Spelling

ID_BYTES, KEY_BYTES, GROUP_BYTES, SHELF_BYTES = 40, 160, 300, 260
"""What an id, a key, a group and a shelf take in memory, about."""

NOTHING, NO_WRITES = bytearray(), list[bytes]()
"""The ids of shelves of writes, and the writes of all others: they stay empty."""
HEXADECIMAL = b"0123456789abcdef"


class Shelf:
    """Keys of one kind of a group that differ in their id only, which is of one spelling, or in what begins with it.

    Of most groups these are all keys. Of keys that end in the id only that is kept, one after another: a fourth of the
    memory; and what comes is compared as text, in whose order these ids are made.

    Attributes:
        names: where the ids of young ones are kept, if they are.
        stem: what the keys begin with, the separator before the id included.
        ids: the ids of old keys, one after another; of writes none.
        writes: old writes, in full; `NO_WRITES` where it is of other keys.
        newest: the newest id.
        spelling: of the ids; None for UUIDv6.
        width: how long an id is.
        young: how many keys are younger than the grace.
    """

    __slots__ = ("ids", "names", "newest", "spelling", "stem", "width", "writes", "young")

    def __init__(self, stem: bytes, *, of_writes: bool = False, spelling: Spelling | None = None) -> None:
        """Begin empty."""
        self.spelling, self.width = spelling, spelling.width if spelling else UUID_LENGTH
        self.stem, self.newest, self.young = stem, b"", 0
        self.names: set[bytes] | None = None
        self.writes: list[bytes] = [] if of_writes else NO_WRITES
        self.ids = NOTHING if of_writes else bytearray()

    def name(self, identifier: bytes) -> int:
        """Keep the id of a young one, if they are kept; and how many bytes that takes, about."""
        if self.names is None or identifier in self.names:
            return 0
        self.names.add(identifier)
        return KEY_BYTES

    def old_ids(self) -> list[bytes]:
        """The ids of old keys; of writes too."""
        if self.writes:
            begin = len(self.stem)
            end = begin + UUID_LENGTH
            return [key[begin:end] for key in self.writes]
        ids, width = bytes(self.ids), self.width
        return [ids[start : start + width] for start in range(0, len(ids), width)]

    def old_keys(self) -> list[bytes]:
        """Old keys, in full."""
        if self.writes:
            return self.writes
        stem, ids, width = self.stem, bytes(self.ids), self.width
        return [stem + ids[start : start + width] for start in range(0, len(ids), width)]

    def old(self) -> int:
        """How many old keys there are."""
        return len(self.writes) if self.writes else len(self.ids) // self.width

    def newest_seconds(self) -> float:
        """The time of its newest id, in Unix seconds; 0 where that is none."""
        spelling = self.spelling
        return (spelling.seconds(self.newest) if spelling else uuid6_seconds(self.newest)) or 0.0

    def is_sound(self) -> bool:
        """Whether all ids are what they looked like at a glance, as far as their order tells their age."""
        if self.spelling:
            return self.spelling.are_sound(bytes(self.ids) + self.newest)
        ids = self.newest
        if self.writes:
            ids += b"".join(self.old_ids())
            after = len(self.stem) + UUID_LENGTH
            # Behind the id of each are a task and a number, and no other separator.
            if b"".join([key[after:] for key in self.writes]).count(b":") != 2 * len(self.writes):
                return False
        else:
            ids = bytes(self.ids) + ids
        dashes = b"-" * (len(ids) // UUID_LENGTH)
        return (
            ids.translate(None, HEXADECIMAL) == dashes * 4
            and ids[8::UUID_LENGTH] == dashes
            and ids[13::UUID_LENGTH] == dashes
            and ids[18::UUID_LENGTH] == dashes
            and ids[23::UUID_LENGTH] == dashes
        )

    def kept_bytes(self) -> int:
        """Its memory, about."""
        return SHELF_BYTES + len(self.ids) // self.width * ID_BYTES + len(self.writes) * KEY_BYTES


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
        spelled: its checkpoints with ids that are times in other usual spellings.
        hanging: the shelves of its writes and indexes.
        timeless: keys whose names tell no time, each with what it is: pointers, documents, registries, blobs.
        loose: all else; None while there is nothing.
    """

    __slots__ = ("first", "hanging", "loose", "spelled", "timeless")

    def __init__(self) -> None:
        """Begin empty."""
        self.first: Shelf | None = None
        self.spelled: tuple[Shelf, ...] = ()
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
        return (self.first, *self.spelled, *self.hanging) if self.first else self.spelled + self.hanging

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
        for shelf in self.spelled:
            seconds = max(seconds, shelf.newest_seconds())
        return max(seconds, self.loose.latest) if self.loose else seconds

    @property
    def checkpoints(self) -> int:
        """How many checkpoints were seen, young ones and documents included."""
        count = self.loose.checkpoints if self.loose else 0
        for shelf in (self.first, *self.spelled) if self.first else self.spelled:
            count += shelf.old() + shelf.young
        return count

    def has_checkpoints(self) -> bool:
        """Whether any was seen."""
        return self.first is not None or bool(self.spelled) or (self.loose is not None and self.loose.checkpoints > 0)

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
        if self.first:
            count += len(self.first.ids) // UUID_LENGTH + self.first.young
        for shelf in self.spelled + self.hanging:
            count += shelf.old() + shelf.young
        return count

    def is_dated(self) -> bool:
        """Whether the ages of its checkpoints are known, as far as they were read."""
        return self.loose is None or not self.loose.undated

    def is_sound(self) -> bool:
        """Whether the age of all of its keys is known: looked at before anything of it goes."""
        # A loop, as this is asked of every thread that goes.
        for shelf in self.shelves():
            if not shelf.is_sound():
                return False
        return self.is_dated()

    @property
    def newest_key(self) -> bytes:
        """The key of its newest checkpoint; those on no shelf are known where names are kept."""
        named = self.loose.named if self.loose else (0.0, b"")
        for shelf in (self.first, *self.spelled) if self.first else self.spelled:
            named = max(named, (shelf.newest_seconds(), shelf.stem + shelf.newest))
        return named[1]

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
    hanging: set[bytes] = set()
    for group in groups:
        if group.loose and group.loose.belongings:
            return False
        for shelf in group.hanging:
            hanging.update(shelf.old_ids())
    if not hanging:
        return True
    there: set[bytes] = set()
    for group in groups:
        if group.first:
            there.update(group.first.old_ids())
    return hanging <= there
