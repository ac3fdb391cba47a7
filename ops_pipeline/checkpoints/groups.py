"""What a scan learns about each group (thread and namespace), in bounded memory.

What belongs here: collecting keys into groups, page by page. What does not: Redis, values, and any decision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

from ops_pipeline.checkpoints.layouts import CHECKPOINT, DOCUMENT, Reader, thread_of

LARGEST_PASS = 500_000
"""Keys kept at a time, 140 bytes each. With more, the groups are halved by a hash, and scanned in as many passes."""

NOBODY: frozenset[bytes] = frozenset()


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
        newest_checkpoint: the time of its newest checkpoint, where names are kept.
        newest_key: the key of its newest checkpoint, where names are kept.
        young: ids of checkpoints younger than the grace, where names are kept; a scan may tell of one twice.
    """

    __slots__ = (
        "belongings",
        "checkpoints",
        "current",
        "keys",
        "newest",
        "newest_checkpoint",
        "newest_key",
        "old",
        "timeless",
        "unaged",
        "young",
    )

    def __init__(self) -> None:
        """Begin empty."""
        self.newest = 0.0
        self.checkpoints = 0
        self.belongings = 0
        self.keys = 0
        self.old: list[bytes] = []
        self.timeless: list[tuple[str, bytes]] = []
        self.current: frozenset[bytes] = NOBODY
        self.unaged = 0
        self.newest_checkpoint = 0.0
        self.newest_key = b""
        self.young: set[bytes] | frozenset[bytes] = NOBODY

    def add_timeless(self, kind: str, key: bytes) -> None:
        """Take in a key whose name tells no time; a value tells the age of documents, and of no other checkpoints."""
        self.timeless.append((kind, key))
        self.checkpoints += kind in {DOCUMENT, CHECKPOINT}
        self.unaged += kind == CHECKPOINT

    def name(self, key: bytes, identifier: bytes, seconds: float, grace_from: float) -> bool:
        """Keep the name of a checkpoint if it is the newest, and its id if it is young; whether that takes memory."""
        # Apart from `newest`, since a write of the same id may come first; of two of one time always the same.
        if seconds > self.newest_checkpoint or (seconds == self.newest_checkpoint and key > self.newest_key):
            self.newest_checkpoint, self.newest_key = seconds, key
        if seconds < grace_from or identifier in self.young:
            return False
        if not isinstance(self.young, set):
            self.young = set()
        self.young.add(identifier)
        return True

    def kept(self) -> int:
        """How many keys are in memory."""
        return len(self.old) + len(self.timeless) + len(self.young)


class Groups:
    """The groups of one pass over the database, and what else was seen there.

    Attributes:
        found: the groups of this pass, by name.
        unknown: keys under our prefixes that no layout understands; a few of them are kept as examples.
        foreign: keys of somebody else.
        scanned: all keys of the pass, those of other passes included.
        passes: how many there were so far.
        others: whether there are checkpoints among the groups of other passes.
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
        self._room = self._largest
        self.others = False

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
            kind, name, identifier, seconds = part
            group = found.get(name) or self._begun(name)
            if group is None:
                self.others = self.others or kind in {CHECKPOINT, DOCUMENT}
                continue
            group.keys += 1
            if seconds is None:
                group.add_timeless(kind, key)
                kept += 1
                continue
            is_checkpoint = kind == CHECKPOINT
            if is_checkpoint:
                group.checkpoints += 1
                if names:
                    kept += group.name(key, identifier, seconds, grace_from)
            if seconds > group.newest:  # noqa: PLR1730 - a call of max() costs a tenth of this loop
                group.newest = seconds
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
        return divisor == 1 or _lot(name) % divisor == remainder

    def _begun(self, name: bytes) -> Group | None:
        """A group just met; None for one of another pass."""
        if not self._is_mine(name):
            return None
        group = self.found[name] = Group()
        return group

    def _make_room(self) -> None:
        while self._kept > self._room:
            if not self._halve():
                # What cannot be parted stays; whether it still cannot be is not looked at with every page.
                self._room = self._kept + self._largest
                return
            self._room = self._largest

    def _halve(self) -> bool:
        """Leave half of the groups to a later pass; what is kept was seen from the beginning of this one."""
        first = _lot(next(iter(self.found))) if self.found else 0
        if all(_lot(name) == first for name in self.found):
            return False
        # What is k modulo n is either k or k + n modulo 2n.
        remainder, divisor = self._turn
        self._turn = (remainder, 2 * divisor)
        self._turns.append((remainder + divisor, 2 * divisor))
        for name in [name for name in self.found if not self._is_mine(name)]:
            left = self.found.pop(name)
            self.others = self.others or left.checkpoints > 0
            self._kept -= left.kept()
        return True


def _lot(name: bytes) -> int:
    """The same number for all groups of a thread, so that all fall into one pass.

    By its thread where the name shows which that is. Otherwise by what stands before the first colon: the group of a
    document, `{thread}:{id}`, moves to its thread only when its value was looked at.
    """
    thread = thread_of(name)
    return hash(thread.partition(b":")[0] if thread == name else thread)
