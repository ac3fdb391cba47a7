"""What a scan learns about each group (thread and namespace), in bounded memory.

What belongs here: collecting keys into groups, page by page. What does not: Redis, values, and any decision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

from ops_pipeline.checkpoints.layouts import CHECKPOINT, DOCUMENT, Reader, thread_of

LARGEST_PASS = 500_000
"""Keys kept at a time, 140 bytes each. With more, the groups are halved by a hash, and scanned in as many passes."""


class Group:
    """One group of keys.

    Attributes:
        newest: the time of its newest id, in Unix seconds; 0 while none is known.
        checkpoints: how many checkpoints were seen, young ones included.
        old: keys whose ids are older than the grace.
        belongings: how many of these are no checkpoints.
        timeless: keys whose names tell no time, each with what it is: pointers, documents, registries, blobs.
        keys: how many keys were seen.
        current: ids of checkpoints that only documents tell.
        unaged: documents whose age nobody knows.
        newest_key: the key of its newest checkpoint, where names are kept.
    """

    __slots__ = ("belongings", "checkpoints", "current", "keys", "newest", "newest_key", "old", "timeless", "unaged")

    def __init__(self) -> None:
        """Begin empty."""
        self.newest = 0.0
        self.checkpoints = 0
        self.belongings = 0
        self.keys = 0
        self.old: list[bytes] = []
        self.timeless: list[tuple[str, bytes]] = []
        self.current: set[bytes] = set()
        self.unaged = 0
        self.newest_key = b""

    def add_timeless(self, kind: str, key: bytes) -> None:
        """Take in a key whose name tells no time."""
        self.timeless.append((kind, key))
        self.checkpoints += kind == DOCUMENT

    def kept(self) -> int:
        """How many keys are in memory."""
        return len(self.old) + len(self.timeless)


class Groups:
    """The groups of one pass over the database, and what else was seen there.

    Attributes:
        found: the groups of this pass, by name.
        unknown: keys under our prefixes that no layout understands; a few of them are kept as examples.
        foreign: keys of somebody else.
        scanned: all keys of the pass, those of other passes included.
        passes: how many there were so far.
    """

    def __init__(
        self,
        read: Reader,
        grace_from: float,
        *,
        wanted: Callable[[bytes], bool] | None = None,
        everything: bool = False,
        names: bool = False,
        largest: int = LARGEST_PASS,
    ) -> None:
        """Prepare a first pass.

        Args:
            read: tells the parts of a key.
            grace_from: Unix time from which on keys are young, and not kept in memory.
            wanted: which groups to look at; all when None.
            everything: keep young keys too, to erase whole threads.
            names: keep the key of the newest checkpoint of each group.
            largest: how many keys may be kept at a time.
        """
        self._read, self._grace_from = read, float("inf") if everything else grace_from
        self._wanted, self._largest, self._names = wanted, largest, names
        self._turn, self._turns = (0, 1), [(0, 1)]
        self.passes = 0
        self.next_pass()

    def _begin(self) -> None:
        self.found: dict[bytes, Group] = {}
        self.unknown: list[bytes] = []
        self.unknown_count = self.foreign = self.scanned = self._kept = 0

    def next_pass(self) -> bool:
        """Go on with groups that had no place in memory so far; False when every group had its turn."""
        if not self._turns:
            return False
        self._turn = self._turns.pop()
        self.passes += 1
        self._begin()
        return True

    def add(self, page: Collection[bytes]) -> None:
        """Take in a page of keys; the hot loop of a sweep."""
        # Two microseconds a key; what is looked up once here is not looked up a thousand times below.
        read, found, grace_from, names = self._read, self.found, self._grace_from, self._names
        self.scanned += len(page)
        kept = 0
        for key in page:
            part = read(key)
            if not part:
                self._add_stranger(key, part)
                continue
            kind, name, _, seconds = part
            group = found.get(name) or self._begun(name)
            if group is None:
                continue
            group.keys += 1
            if seconds is None:
                group.add_timeless(kind, key)
                kept += 1
                continue
            is_checkpoint = kind == CHECKPOINT
            if is_checkpoint:
                group.checkpoints += 1
            if seconds > group.newest:
                group.newest = seconds
                if names and is_checkpoint:
                    group.newest_key = key
            if seconds < grace_from:
                group.old.append(key)
                kept += 1
                if not is_checkpoint:
                    group.belongings += 1
        self._kept += kept
        self._make_room()

    def _add_stranger(self, key: bytes, part: Literal[False] | None) -> None:
        if part is None:
            self.unknown_count += 1
            if len(self.unknown) < 10:
                self.unknown.append(key)
        else:
            self.foreign += 1

    def _is_mine(self, name: bytes) -> bool:
        """Whether a group belongs to this pass; all groups of a thread do, or none."""
        if self._wanted is not None and not self._wanted(name):
            return False
        remainder, divisor = self._turn
        return divisor == 1 or hash(thread_of(name)) % divisor == remainder

    def _begun(self, name: bytes) -> Group | None:
        """A group just met; None for one of another pass."""
        if not self._is_mine(name):
            return None
        group = self.found[name] = Group()
        return group

    def _make_room(self) -> None:
        while self._kept > self._largest and self._halve():
            pass

    def _halve(self) -> bool:
        """Leave half of the groups to a later pass; what is kept was seen from the beginning of this one."""
        if len(self.found) < 2:
            return False
        # What is k modulo n is either k or k + n modulo 2n.
        remainder, divisor = self._turn
        self._turn = (remainder, 2 * divisor)
        self._turns.append((remainder + divisor, 2 * divisor))
        for name in [name for name in self.found if not self._is_mine(name)]:
            self._kept -= self.found.pop(name).kept()
        return True
