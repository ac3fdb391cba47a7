"""Which groups a pass over the database is about, when there are more of them than have room.

What belongs here: parting names so that all groups of a thread have the same turn. What does not: what is kept of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ops_pipeline.checkpoints.layouts import EMPTY_NAMESPACE, thread_of


class Turn(NamedTuple):
    """The groups of one pass.

    Attributes:
        remainder: of the hash that these groups have.
        divisor: of that hash.
        within: the thread of which these groups are namespaces, or look like it; None for all other threads.
        whole: these are namespaces indeed, and must not be parted.
    """

    remainder: int = 0
    divisor: int = 1
    within: bytes | None = None
    whole: bool = False

    def has(self, text: bytes) -> bool:
        """Whether a text's hash is of this turn."""
        return self.divisor == 1 or hash(text) % self.divisor == self.remainder

    def halves(self) -> tuple[Turn, Turn]:
        """Two turns: what is k modulo n is either k or k + n modulo 2n."""
        double = 2 * self.divisor
        return self._replace(divisor=double), self._replace(remainder=self.remainder + self.divisor, divisor=double)


class Turns:
    """The turns of a sweep, one after another.

    Threads are parted by their hash. `a:b:<uuid>` may be a namespace of the thread `a`, or a thread with such an id:
    only a root of `a` tells which. Where most names are of one such `a` they get turns of their own, parted by whole
    names. A root of `a` is of each of these turns; if it shows, they are one thread, and begin again as one turn.

    Attributes:
        is_parted: whether this turn is not of everything.
        is_void: what was seen in this turn is to be forgotten, and comes again: a root showed late.
    """

    def __init__(self) -> None:
        """Prepare a first turn, which is of everything."""
        self._now, self._later = Turn(), [Turn()]
        self._apart: set[bytes] = set()
        self._is_all_of_one = self._others_met = self.is_parted = self.is_void = False

    def begin(self) -> bool:
        """Begin the next turn; False when there is none."""
        # A whole scan met nothing of all the others: a turn of theirs would be one more scan for nothing.
        while self._is_all_of_one and not self._others_met and self._later and self._later[-1].within is None:
            self._later.pop()
        if not self._later:
            return False
        self._now = self._later.pop()
        self.is_parted = self._now.divisor > 1 or bool(self._apart)
        self._is_all_of_one = self._now.within is not None
        self._others_met = self.is_void = False
        return True

    def have(self, name: bytes) -> bool:
        """Whether a group is of this turn; all groups of a thread are, or none."""
        thread, now = thread_of(name), self._now
        if now.within is None:
            return thread not in self._apart and now.has(thread)
        if thread != now.within:
            self._others_met = self._others_met or thread not in self._apart
            return False
        if not now.whole and _is_root(name, thread):
            self._begin_again_as_one(thread)
        return not self.is_void and now.has(name)

    def halve(self, names: Iterable[bytes]) -> bool:
        """Leave a part of these names, all of this turn, to later ones; False when they cannot be parted."""
        names = set(names)
        if self._now.within is None:
            threads = Counter(map(thread_of, names))
            ((most, count),) = threads.most_common(1) or [(b"", 0)]
            whole = any(_is_root(name, most) for name in names)
            if count > 2 and 2 * count > len(names) and not (whole and len(threads) == 1):
                self._set_apart(most, whole=whole)
                return True
            if len(threads) < 2:
                return False
        elif self._now.whole or len(names) < 2:
            return False
        self._leave_half()
        return True

    def _leave_half(self) -> None:
        self._now, later = self._now.halves()
        self._later.append(later)
        self.is_parted = True

    def _set_apart(self, thread: bytes, *, whole: bool) -> None:
        """Go on with what may be namespaces of one thread; all others begin anew in a later turn."""
        self._apart.add(thread)
        self._later.append(self._now)
        self._now, self.is_parted = Turn(within=thread, whole=whole), True
        if not whole:
            self._leave_half()

    def _begin_again_as_one(self, thread: bytes) -> None:
        """These are namespaces: nobody knows the age of their thread without those that were put off."""
        self._later = [*(turn for turn in self._later if turn.within != thread), Turn(within=thread, whole=True)]
        self.is_void = True


def _is_root(name: bytes, thread: bytes) -> bool:
    return name in {thread + EMPTY_NAMESPACE, thread + b":"}
