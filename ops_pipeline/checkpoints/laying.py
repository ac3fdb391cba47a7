"""The hot loops of a sweep: laying the keys of a page on the shelves that are there already.

What belongs here: what is done with nearly every key, in a fraction of a microsecond. What does not: everything else,
which is `add_other`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ops_pipeline.checkpoints.groups import ID_BYTES, KEY_BYTES, Shelf
from ops_pipeline.checkpoints.ids import EARLIEST_UUID6, FARTHEST_UUID6
from ops_pipeline.checkpoints.spellings import Spelling


def lay_uuids(
    page: Iterable[bytes],
    ending: Mapping[bytes, Shelf],
    hanging: Mapping[bytes, Shelf],
    first_young: bytes,
    add_other: Callable[[bytes], None],
) -> int:
    """Lay down keys whose ids are UUIDv6, and writes.

    Args:
        page: keys.
        ending: shelves of keys that end in an id, by what stands before it.
        hanging: shelves of writes, by what stands before the id.
        first_young: ids from this one on are younger than the grace.
        add_other: takes whatever is not plainly of such a shelf.

    Returns:
        Bytes that are kept of them, about.
    """
    # Ids are compared as text. The numbers stand here as such, since a name for each takes a tenth of the loop: an id
    # is 36 long, 54 is the 6 at its 14, and behind that of a write come the task's 36 and one digit, each after a colon
    # (58).
    find_ending, find_hanging = ending.get, hanging.get
    earliest, farthest = EARLIEST_UUID6, FARTHEST_UUID6
    kept = 0
    for key in page:
        shelf = find_ending(key[:-36])
        if shelf is not None:
            end = key[-36:]
            if end < first_young:
                if end < earliest or end[14] != 54:
                    add_other(key)
                    continue
                shelf.ids += end
                kept += ID_BYTES
            else:
                if end > farthest or end[14] != 54:
                    add_other(key)
                    continue
                shelf.young += 1
                if shelf.names is not None:
                    kept += shelf.name(end)
        else:
            shelf = find_hanging(key[:-75])
            end = key[-75:-39]
            if (
                shelf is None
                or not earliest < end < farthest
                or end[14] != 54
                or key[-39] != 58
                or key[-2] != 58
                or not 48 <= key[-1] <= 57
            ):
                add_other(key)
                continue
            if end < first_young:
                shelf.writes.append(key)
                kept += KEY_BYTES
            else:
                shelf.young += 1
        if end > shelf.newest:  # noqa: PLR1730 - max() takes three times as long
            shelf.newest = end
    return kept


def lay_spelled(
    page: Iterable[bytes],
    spelled: Mapping[bytes, Shelf],
    spelling: Spelling,
    first_young: bytes,
    add_other: Callable[[bytes], None],
) -> int:
    """Lay down keys whose ids are times in one other spelling.

    Args:
        page: keys.
        spelled: shelves by what stands before the id, of all such spellings.
        spelling: that of most keys.
        first_young: ids from this one on are younger than the grace.
        add_other: takes whatever is not plainly of such a shelf.

    Returns:
        Bytes that are kept of them, about.
    """
    find, fits, cut = spelled.get, spelling.fits, -spelling.width
    kept = 0
    for key in page:
        shelf, end = find(key[:cut]), key[cut:]
        if shelf is None or shelf.spelling is not spelling or not fits(end):
            add_other(key)
            continue
        if end < first_young:
            shelf.ids += end
            kept += ID_BYTES
        else:
            shelf.young += 1
            if shelf.names is not None:
                kept += shelf.name(end)
        if end > shelf.newest:  # noqa: PLR1730 - see above
            shelf.newest = end
    return kept
