"""Units of deletion in a thread that lives: a checkpoint, with what hangs on it.

What belongs here: which old keys belong together, and which of them are too many or left alone. What does not: whether
anything goes (`policy`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ops_pipeline.checkpoints.groups import Group
from ops_pipeline.checkpoints.layouts import CHECKPOINT, INDEX, WRITE, Reader

INTERRUPTS = (b":-3", b"$-3")
"""How the keys of writes end on which a thread waits for a person."""


class Units:
    """The old keys of a thread by checkpoint: each goes with its writes and their index, or stays with them.

    Writes are looked for in all of its namespaces, as savers spell the empty one in two ways: the shallow saver's
    document is `{thread}:`, and its writes are of `{thread}:__empty__`.
    """

    def __init__(self, groups: Sequence[Group], read: Reader) -> None:
        """Sort the keys of a thread.

        Args:
            groups: its namespaces.
            read: tells the parts of a key.
        """
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
