"""Collecting keys into groups, page by page, in bounded memory: with more groups than have room, in several passes.

What belongs here: which group a key belongs to, and which groups a pass is about. What does not: Redis, values, and
any decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ops_pipeline.checkpoints.groups import (
    GROUP_BYTES,
    ID_BYTES,
    KEY_BYTES,
    NO_WRITES,
    SHELF_BYTES,
    Group,
    Loose,
    Shelf,
)
from ops_pipeline.checkpoints.ids import EARLIEST_UUID6, FARTHEST_UUID6, UUID_LENGTH, VERSION_6, first_uuid6
from ops_pipeline.checkpoints.laying import lay_spelled, lay_uuids
from ops_pipeline.checkpoints.layouts import CHECKPOINT, DOCUMENT, WRITE, Reader
from ops_pipeline.checkpoints.spellings import SPELLINGS, Spelling
from ops_pipeline.checkpoints.turns import Turns

LARGEST_PASS = 74 * 1_048_576
"""Bytes kept at a time, about. With more, the groups are halved by a hash, and scanned in as many passes."""


class Groups:
    """The groups of one pass over the database, and what else was seen there.

    Attributes:
        found: the groups of this pass, by name.
        documents: group and key of checkpoints whose values tell their thread and age; `place` puts them into groups.
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
        shelved: Mapping[bytes, str],
        wanted: Callable[[bytes], bool] | None = None,
        everything: bool = False,
        names: bool = False,
        largest: int = LARGEST_PASS,
    ) -> None:
        """Prepare a first pass.

        Args:
            read: tells the parts of a key.
            grace_from: Unix time from which on keys are young, and not kept in memory.
            shelved: what keys with these beginnings are (`layouts.shelved_by`).
            wanted: which groups to look at; all when None.
            everything: keep young keys too, to erase whole threads.
            names: keep the key of the newest checkpoint of each group.
            largest: how many bytes may be kept at a time, about.
        """
        self._shelved = shelved
        self._read, self._grace_from = read, float("inf") if everything else grace_from
        self._first_young = FARTHEST_UUID6 if everything else first_uuid6(grace_from)
        self._young_from = {one: one.farthest if everything else one.first(grace_from) for one in SPELLINGS}
        self._wanted, self._largest, self._names = wanted, largest, names
        self._turns, self.passes = Turns(), 0
        self.next_pass()

    def _begin(self) -> None:
        self._forget()
        self.unknown: list[bytes] = []
        self.unknown_count = self.foreign = self.scanned = 0
        self._room = self._largest
        self.others = False

    def _forget(self) -> None:
        self.found: dict[bytes, Group] = {}
        self.documents: list[tuple[bytes, bytes]] = []
        # By what stands before the id: of whole keys that end in one, and of writes.
        self._ending: dict[bytes, Shelf] = {}
        self._hanging: dict[bytes, Shelf] = {}
        self._spelled: dict[bytes, Shelf] = {}
        # How many keys were laid on shelves with care, how the id of the last was spelled, and what is tried first.
        self._laid = 0
        self._last: Spelling | None = None
        self._usual: Spelling | None = None
        self._kept = 0

    def next_pass(self) -> bool:
        """Go on with groups that had no place in memory so far; False when every group had its turn."""
        if not self._turns.begin():
            return False
        self.passes += 1
        self._begin()
        return True

    def add(self, page: Sequence[bytes]) -> None:
        """Take in a page of keys."""
        before, spelling = self._laid, self._usual
        if spelling is None:
            kept = lay_uuids(page, self._ending, self._hanging, self._first_young, self._add_other)
        else:
            kept = lay_spelled(page, self._spelled, spelling, self._young_from[spelling], self._add_other)
        # Not added in one statement with the call, which adds to it as well.
        self._kept += kept
        self.scanned += len(page)
        if 2 * (self._laid - before) > len(page):
            # Most of the page was laid with care, a tenfold work: what the last of it was like is looked for first.
            self._usual = self._last
        self._make_room()

    def _add_other(self, key: bytes) -> None:
        """Take in a key that is the first of its shelf, or of none, or whose id is spelled in another way."""
        stem, end, is_write = key[:-UUID_LENGTH], key[-UUID_LENGTH:], False
        if stem[-1:] != b":":
            pieces = key.rsplit(b":", 2)
            stem, end = pieces[0][:-UUID_LENGTH], pieces[0][-UUID_LENGTH:]
            # A task and a number come behind it.
            is_write = len(pieces) == 3 and pieces[2].isdigit() and pieces[1] != b"" and stem[-1:] == b":"
            if not is_write:
                end = b""
        if not EARLIEST_UUID6 < end < FARTHEST_UUID6 or len(end) != UUID_LENGTH or end[14] != VERSION_6:
            if not self._add_spelled(key):
                self._add_with_care(key)
            return
        shelf = (self._hanging if is_write else self._ending).get(stem) or self._new_shelf(stem, of_writes=is_write)
        if shelf is None:
            self._add_with_care(key)
        else:
            self._lay(shelf, key, end, is_young=end >= self._first_young)

    def _add_spelled(self, key: bytes) -> bool:
        """Take in a key of the documented layout whose id is a time in one of the usual spellings, or a ULID."""
        for spelling in SPELLINGS:
            end = key[-spelling.width :]
            if not spelling.fits(end):
                continue
            stem = key[: -spelling.width]
            shelf = self._spelled.get(stem)
            if shelf is None or shelf.spelling is not spelling:
                shelf = None if shelf else self._new_spelled(stem, spelling)
            if shelf is None:
                return False
            self._lay(shelf, key, end, is_young=end >= self._young_from[spelling])
            return True
        return False

    def _new_spelled(self, stem: bytes, spelling: Spelling) -> Shelf | None:
        """A shelf for ids that are spelled so; None when it is of another pass, or no stem of a thread."""
        head = stem[: stem.find(b":") + 1]
        name = stem[len(head) : -1]
        if self._shelved.get(head) != CHECKPOINT or stem[-1:] != b":" or not name:
            return None
        group = self.found.get(name) or self._begun(name)
        if group is None:
            return None
        shelf = self._spelled[stem] = Shelf(stem, spelling=spelling)
        group.spelled = (*group.spelled, shelf)
        shelf.names = group.more().young if self._names else None
        self._kept += SHELF_BYTES
        return shelf

    def _lay(self, shelf: Shelf, key: bytes, identifier: bytes, *, is_young: bool) -> None:
        """Lay a key on its shelf."""
        self._laid, self._last = self._laid + 1, shelf.spelling
        shelf.newest = max(shelf.newest, identifier)
        if is_young:
            shelf.young += 1
            self._kept += shelf.name(identifier)
        elif shelf.writes is NO_WRITES:
            shelf.ids += identifier
            self._kept += ID_BYTES
        else:
            shelf.writes.append(key)
            self._kept += KEY_BYTES

    def _new_shelf(self, stem: bytes, *, of_writes: bool) -> Shelf | None:
        """A shelf for what begins so, up to a UUIDv6; None when it cannot lie on one."""
        place = stem.find(b":") + 1
        kind, name = self._shelved.get(stem[:place]), stem[place:-1]
        if kind is None or (kind == WRITE) != of_writes or not name:
            return None
        group = self.found.get(name) or self._begun(name)
        if group is None:
            return None
        shelf = Shelf(stem, of_writes=of_writes)
        (self._hanging if of_writes else self._ending)[stem] = shelf
        if kind == CHECKPOINT:
            group.first = shelf
            if self._names:
                shelf.names = group.more().young
        else:
            group.hanging = (*group.hanging, shelf)
        self._kept += SHELF_BYTES
        return shelf

    def _add_with_care(self, key: bytes) -> None:
        """Take in a key of any layout."""
        part = self._read(key)
        if not part:
            self._add_stranger(key, part)
            return
        kind, name, identifier, seconds = part
        if kind == DOCUMENT:
            self._add_document(name, key)
            return
        group = self.found.get(name) or self._begun(name)
        if group is None:
            self.others = self.others or kind == CHECKPOINT
        elif seconds is None:
            group.add_timeless(kind, key)
            self._kept += KEY_BYTES
        else:
            self._add_loose(group.more(), kind, key, identifier, seconds)

    def _add_document(self, name: bytes, key: bytes) -> None:
        """Keep what only its value can tell the thread of: its group's name, or that before the last colon."""
        if any([self._is_mine(name), self._is_mine(name.rpartition(b":")[0])]):
            self.documents.append((name, key))
            self._kept += KEY_BYTES
        else:
            self.others = True

    def _add_loose(self, loose: Loose, kind: str, key: bytes, identifier: bytes, seconds: float) -> None:
        """Take in a key with a time that lies on no shelf."""
        loose.counted += 1
        loose.latest = max(loose.latest, seconds)
        is_young = seconds >= self._grace_from
        if kind == CHECKPOINT:
            loose.checkpoints += 1
            if self._names:
                # Of two of one time always the same.
                loose.named = max(loose.named, (seconds, key))
                if is_young and identifier not in loose.young:
                    loose.young.add(identifier)
                    self._kept += KEY_BYTES
        if not is_young:
            loose.others.append(key)
            loose.belongings += kind != CHECKPOINT
            self._kept += KEY_BYTES

    def _add_stranger(self, key: bytes, part: Literal[False] | None) -> None:
        if part is None:
            self.unknown_count += 1
            if len(self.unknown) < 10:
                self.unknown.append(key)
        else:
            self.foreign += 1

    def place(self, name: bytes, key: bytes, *, seconds: float | None = None, identifier: bytes = b"") -> Group | None:
        """Put a document whose value was looked at into its group; None when that is of another pass."""
        group = self.found.get(name) or self._begun(name)
        if group is None:
            self.others = True
            return None
        group.add_timeless(DOCUMENT, key)
        if seconds is not None:
            loose = group.more()
            loose.latest = max(loose.latest, seconds)
            loose.current |= {identifier} if identifier else set()
        return group

    def _shelves_like(self, shelf: Shelf) -> dict[bytes, Shelf]:
        if shelf.spelling:
            return self._spelled
        return self._ending if shelf.writes is NO_WRITES else self._hanging

    def _is_mine(self, name: bytes) -> bool:
        """Whether a group belongs to this pass; all groups of a thread do, or none."""
        return (self._wanted is None or self._wanted(name)) and self._turns.have(name)

    def _begun(self, name: bytes) -> Group | None:
        """A group just met; None for one of another pass."""
        if (self._turns.is_parted or self._wanted is not None) and not self._is_mine(name):
            return None
        group = self.found[name] = Group()
        self._kept += GROUP_BYTES
        return group

    def _make_room(self) -> None:
        if self._turns.is_void:
            self._forget()
        while self._kept > self._room:
            if not self._halve():
                # What cannot be parted stays; whether it still cannot be is not looked at with every page.
                self._room = self._kept + self._largest
                return
            self._room = self._largest

    def _halve(self) -> bool:
        """Leave half of the groups to a later pass; what is kept was seen from the beginning of this one."""
        names = [*self.found, *(one for name, _ in self.documents for one in (name, name.rpartition(b":")[0]))]
        if not self._turns.halve(name for name in names if self._is_mine(name)):
            return False
        for name in [name for name in self.found if not self._is_mine(name)]:
            left = self.found.pop(name)
            self.others = self.others or left.checkpoints > 0
            self._kept -= left.kept_bytes()
            for shelf in left.shelves():
                del (self._shelves_like(shelf))[shelf.stem]
        here = [one for one in self.documents if self._is_mine(one[0]) or self._is_mine(one[0].rpartition(b":")[0])]
        self._kept -= KEY_BYTES * (len(self.documents) - len(here))
        self.documents = here
        return True
