"""Collecting keys into groups: the same whatever the order of the pages, in bounded memory."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.checkpoints.collecting import Groups
from ops_pipeline.checkpoints.groups import GROUP_BYTES, KEY_BYTES, SHELF_BYTES, Group
from ops_pipeline.checkpoints.layouts import BLOB, DOCUMENT, POINTER, REGISTRY
from ops_pipeline_tests.checkpoints.names import (
    DAY,
    EMPTY,
    HOUR,
    INTERRUPT,
    MINUTE,
    NIL,
    NOW,
    READ,
    SHELVED,
    blob,
    checkpoint,
    iso,
    nested,
    plain,
    pointer,
    recipe,
    registry,
    shallow,
    thread_keys,
    ulid,
    unit,
    uuid4,
    uuid6,
    write,
    zset,
)
from ops_pipeline_tests.usage.calls import examples

GRACE_FROM = NOW - DAY
INNER = nested(b"agent")
STRANGERS = [b"celery", b"checkpoint:", b"checkpoint_write:x", b"session:1"]


def seen(group: Group) -> dict[str, Any]:
    """What was learnt about a group, less what a key that comes twice may change."""
    return {
        "newest": group.newest,
        "checkpoints": group.checkpoints > 0,
        "old": set(group.old),
        "belongings": group.belongings > 0,
        "timeless": set(group.timeless),
        "dated": group.is_dated(),
        "newest_key": group.newest_key,
        "young": set(group.young),
    }


def split(keys: Sequence[bytes], sizes: Sequence[int]) -> list[list[bytes]]:
    """Keys in pages of these sizes, and a last one with the rest."""
    pages, rest = [], list(keys)
    for size in sizes:
        pages.append(rest[:size])
        rest = rest[size:]
    return [*pages, rest]


def all_passes(pages: Sequence[list[bytes]], **options: Any) -> list[Groups]:
    """Every pass over the pages, as a sweep makes them; each as it was at its end."""
    passes = []
    groups = Groups(READ, GRACE_FROM, shelved=SHELVED, **options)
    while True:
        for page in pages:
            groups.add(page)
        passes.append(placed(copy(groups)))
        if not groups.next_pass():
            return passes


def placed(groups: Groups) -> Groups:
    """With the documents in the groups that their names tell, as if they had been looked at."""
    for name, key in groups.documents:
        groups.place(name, key)
    return groups


def only(keys: Sequence[bytes], **options: Any) -> Group:
    groups = Groups(READ, GRACE_FROM, shelved=SHELVED, **options)
    groups.add(keys)
    placed(groups)
    (group,) = groups.found.values()
    return group


# What a group knows


def test_a_group_knows_its_newest_id_its_old_keys_and_those_without_a_time() -> None:
    old, young = uuid6(NOW - 5 * DAY), uuid6(NOW - HOUR)
    group = only([*unit(b"T", old), *unit(b"T", young), pointer(b"T"), blob(b"T", b"messages")])
    assert group.newest == NOW - HOUR
    assert group.old == unit(b"T", old)
    assert (group.checkpoints, group.belongings, group.keys) == (2, 3, 10)
    assert group.timeless == ((POINTER, pointer(b"T")), (BLOB, blob(b"T", b"messages")))
    assert (group.is_sound(), group.kept()) == (True, 6)


def test_a_key_exactly_as_old_as_the_grace_is_young() -> None:
    at, before = uuid6(GRACE_FROM), uuid6(GRACE_FROM - 0.001)
    assert only([checkpoint(b"T", at), checkpoint(b"T", before)]).old == [checkpoint(b"T", before)]


def test_young_keys_take_no_memory_unless_everything_is_to_go() -> None:
    """A store in use is nearly all young keys."""
    keys = [key for number in range(50) for key in unit(b"T", uuid6(NOW - number * MINUTE))]
    group = only(keys)
    assert (group.old, group.kept(), group.keys, group.checkpoints) == ([], 0, 200, 50)
    assert sorted(only(keys, everything=True).old) == sorted(keys)


def test_documents_and_registries_tell_no_time() -> None:
    group = only([shallow(b"T"), registry(b"T"), registry(b"T", kind=b"current_checkpoint")])
    assert sorted(kind for kind, _ in group.timeless) == [DOCUMENT, REGISTRY, REGISTRY]
    assert (group.newest, group.checkpoints, group.is_dated()) == (0, 1, True)


@pytest.mark.parametrize("identifier", [NIL, uuid4()])
def test_a_checkpoint_of_the_recipe_without_a_time_is_of_unknown_age(identifier: bytes) -> None:
    """Nobody looks at its value; it went with the older ones of its thread, though it was the newest."""
    group = only([recipe(b"T", identifier), recipe(b"T", uuid6(NOW - 90 * DAY))])
    assert (group.is_dated(), group.checkpoints) == (False, 2)


@pytest.mark.parametrize("belongings_first", [False, True])
def test_the_newest_checkpoint_is_named_also_when_its_writes_come_first(belongings_first: bool) -> None:
    """A thread whose newest checkpoint nobody looked at was trimmed, though it lived on its ancestors."""
    identifier = uuid6(NOW - HOUR)
    keys = [*unit(b"T", uuid6(NOW - DAY * 3)), *unit(b"T", identifier)]
    group = only(keys[::-1] if belongings_first else keys, names=True)
    assert group.newest_key == checkpoint(b"T", identifier)


def test_a_write_of_a_checkpoint_that_is_gone_names_no_checkpoint() -> None:
    kept, gone = uuid6(NOW - 3 * DAY), uuid6(NOW - 2 * DAY)
    group = only([checkpoint(b"T", kept), write(b"T", gone), zset(b"T", gone)], names=True)
    assert (group.newest, group.newest_key) == (NOW - 2 * DAY, checkpoint(b"T", kept))


def test_a_checkpoint_that_comes_twice_is_one() -> None:
    """SCAN names a key twice while its table grows: of the newest three, two were kept."""
    keys = [checkpoint(b"T", uuid6(NOW - number * MINUTE)) for number in range(3)]
    assert len(only(keys * 2, names=True).young) == 3
    assert len(only(keys * 2, names=False).young) == 0


def test_strangers_are_counted_and_a_few_of_them_kept() -> None:
    unknown = [b"checkpoint_write:%d" % number for number in range(30)]
    groups = Groups(READ, GRACE_FROM, shelved=SHELVED)
    groups.add([*unknown, b"celery", b"session", *unit(b"T", uuid6())])
    groups.add([b"more"])
    assert (groups.unknown_count, groups.unknown, groups.foreign, groups.scanned) == (30, unknown[:10], 3, 37)
    assert set(groups.found) == {b"T:__empty__"}


def test_only_wanted_groups_are_kept() -> None:
    groups = Groups(READ, GRACE_FROM, shelved=SHELVED, wanted=lambda name: name.startswith(b"A"))
    groups.add([*thread_keys(b"A", [DAY * 3]), *thread_keys(b"B", [DAY * 3]), *STRANGERS])
    assert set(groups.found) == {b"A:__empty__"}
    assert (groups.scanned, groups.unknown_count, groups.foreign) == (14, 2, 2)


# Any order

ALIKE = [b"T:call:" + uuid4() for _ in range(9)]


def timed(thread: bytes) -> list[bytes]:
    """A thread of the documented layout, whose name has no namespace."""
    return [plain(thread, uuid6(NOW - 3 * DAY)), plain(thread, ulid(NOW - 3 * DAY)), plain(thread, b"state")]


threads = st.sampled_from([b"T", b"user:1", b"user:2", b"$x", b"a:b:c", b"\xff\x00", b"U" * 200])


@st.composite
def stores(draw: st.DrawFn, most: int = 8) -> list[bytes]:
    """Keys of some threads, in any layout and of any age, and of strangers."""
    keys = list(draw(st.lists(st.sampled_from(STRANGERS), max_size=3)))
    for thread in draw(st.lists(threads, unique=True, max_size=most)):
        ages = draw(st.lists(st.integers(0, 60), max_size=4, unique=True))
        for namespace in draw(st.sampled_from([[EMPTY], [EMPTY, INNER], [b"", EMPTY], [b"", INNER, EMPTY]])):
            keys += thread_keys(thread, [age * DAY + HOUR for age in ages], namespace)
        if draw(st.booleans()):
            keys += [shallow(thread), registry(thread)]
        if draw(st.booleans()):
            keys += [write(thread, uuid6(NOW - 9 * DAY), index=INTERRUPT), blob(thread, b"messages")]
    # They may be threads with such ids, or namespaces of T, which may have a root.
    keys += [key for name in ALIKE[: draw(st.sampled_from([0, 1, 9]))] for key in timed(name)]
    return draw(st.permutations(keys)) if draw(st.booleans()) else keys


@given(stores(), st.data())
@examples(150)
def test_the_order_of_keys_and_pages_and_duplicates_do_not_matter(keys: list[bytes], data: st.DataObject) -> None:
    whole = Groups(READ, GRACE_FROM, shelved=SHELVED, names=True)
    whole.add(list(dict.fromkeys(keys)))
    twice = keys + data.draw(st.lists(st.sampled_from(keys), max_size=10)) if keys else []
    shuffled = data.draw(st.permutations(twice))
    again = Groups(READ, GRACE_FROM, shelved=SHELVED, names=True)
    for page in split(shuffled, data.draw(st.lists(st.integers(0, 9), max_size=6))):
        again.add(page)
    assert {name: seen(group) for name, group in again.found.items()} == {
        name: seen(group) for name, group in whole.found.items()
    }


USUAL = st.sampled_from([iso, lambda at: iso(at) + b"Z", ulid, uuid6])


@given(USUAL, st.lists(st.tuples(USUAL, st.integers(0, 6), st.sampled_from([b"T", b"U", b"T:V"])), max_size=12))
@examples(150)
def test_whatever_spelling_most_ids_had_so_far_all_others_are_told_as_well(
    usual: Callable[[float], bytes], others: list[tuple[Callable[[float], bytes], int, bytes]]
) -> None:
    """Which spelling is tried first is learnt from page to page."""
    first = [plain(b"T", usual(NOW - age * DAY)) for age in range(4)]
    odd = [plain(b"T", b"2026-W10-1T12:00:00.123456"), plain(b"T", b"summary"), b"session:1", pointer(b"U")]
    rest = odd + [plain(thread, spelled(NOW - age * HOUR * 8)) for spelled, age, thread in others]
    groups, whole = (Groups(READ, GRACE_FROM, shelved=SHELVED, names=True) for _ in range(2))
    for page in (first, rest[::2], first, rest[1::2]):
        groups.add(page)
    whole.add(list(dict.fromkeys(first + rest)))
    assert {name: seen(group) for name, group in groups.found.items()} == {
        name: seen(group) for name, group in whole.found.items()
    }
    assert (groups.foreign, groups.unknown_count) == (whole.foreign, whole.unknown_count)


# Bounded memory


@given(stores(), st.integers(1, 12), st.lists(st.integers(0, 30), max_size=6), st.booleans())
@examples(200)
def test_every_group_is_whole_in_exactly_one_pass_and_a_thread_in_the_same(
    keys: list[bytes], largest: int, sizes: list[int], everything: bool
) -> None:
    """A pass that saw half of a thread would find writes without their checkpoint, and delete them."""
    pages = split(keys, sizes)
    whole = Groups(READ, GRACE_FROM, shelved=SHELVED, names=True, everything=everything)
    whole.add(keys)
    placed(whole)
    passes = all_passes(pages, names=True, everything=everything, largest=largest)
    counts = Counter(name for one in passes for name in one.found)
    assert set(counts) == set(whole.found)
    assert not any(number > 1 for number in counts.values())
    for one in passes:
        assert {name: seen(group) for name, group in one.found.items()} == {
            name: seen(whole.found[name]) for name in one.found
        }
        assert all(group.keys == whole.found[name].keys for name, group in one.found.items())
        assert (one.scanned, one.foreign, one.unknown_count) == (whole.scanned, whole.foreign, whole.unknown_count)
    for thread in (b"T", b"user:1", b"user:2", b"$x", b"a:b:c"):
        namespaces = {thread + b":" + namespace for namespace in (EMPTY, b"", INNER)}
        if thread == b"T" and namespaces & {b"T:", b"T:__empty__"} & set(whole.found):
            namespaces |= {b"T", *ALIKE}
        assert len({number for number, one in enumerate(passes) if namespaces & set(one.found)}) <= 1


@pytest.mark.parametrize("form", [b"thread-%d", b"user:%d", b"tenant:7:user:%d", b"$%d", b"app:user:%032d"])
@pytest.mark.parametrize("make", [lambda thread: thread_keys(thread, [3 * DAY]), timed], ids=["saver", "plain"])
def test_no_more_memory_is_taken_than_allowed_and_a_page(form: bytes, make: Callable[[bytes], list[bytes]]) -> None:
    """Threads were parted by what stands before the first colon: all of `user:1`, `user:2`, … stayed in memory.

    So did all that look like namespaces of a thread `app`, which is not there: `app:user:<uuid>`.
    """
    if b"%032d" in form:
        form = form.replace(b"%032d", b"12345678-1234-4234-8234-%012d")
    keys = [key for number in range(400) for key in make(form % number)]
    pages = split(keys, [20] * (len(keys) // 20))
    largest = 40_000
    groups = Groups(READ, GRACE_FROM, shelved=SHELVED, largest=largest)
    names: Counter[bytes] = Counter()
    most = 0
    while True:
        for page in pages:
            groups.add(page)
            kept = sum(group.kept_bytes() for group in groups.found.values())
            most = max(most, kept + KEY_BYTES * len(groups.documents))
        names.update(groups.found.keys())
        if not groups.next_pass():
            break
    assert most <= largest + 20 * (GROUP_BYTES + SHELF_BYTES + KEY_BYTES)
    ending = b":__empty__" if make is not timed else b""
    assert names == dict.fromkeys((form % number + ending for number in range(400)), 1)
    assert 5 <= groups.passes <= 100


@pytest.mark.parametrize("place", [0, 300, -1])
def test_namespaces_are_one_thread_however_late_its_root_shows(place: int) -> None:
    """Parted by their names, each half of them would look like threads that nobody uses."""
    keys = [key for number in range(300) for key in timed(b"T:call:12345678-1234-4234-8234-%012d" % number)[:2]]
    keys += [key for number in range(200) for key in timed(b"other-%d" % number)[:2]]
    keys.insert(place, checkpoint(b"T", uuid6(NOW - HOUR)))
    passes = all_passes(split(keys, [50] * 20), largest=40_000)
    (home,) = [one for one in passes if b"T:__empty__" in one.found]
    assert sum(name.startswith(b"T:") for name in home.found) == len(home.found) == 301
    assert Counter(name for one in passes for name in one.found if name.startswith(b"other-")) == dict.fromkeys(
        (b"other-%d" % number for number in range(200)), 1
    )
    assert len(passes) < 15, "the others were put off by halves, again and again"


def test_when_all_keys_look_like_namespaces_no_pass_is_for_the_others() -> None:
    keys = [key for number in range(300) for key in timed(b"T:call:12345678-1234-4234-8234-%012d" % number)[:2]]
    pages = split(keys, [50] * 20)
    assert all(one.found for one in all_passes(pages, largest=40_000))
    passes = all_passes([*pages, [plain(b"last", uuid6(NOW - 3 * DAY))]], largest=40_000)
    assert [set(one.found) for one in passes].count({b"last"}) == 1


@pytest.mark.parametrize("names", [False, True])
def test_a_thread_larger_than_allowed_is_kept_all_the_same(names: bool) -> None:
    """Its two namespaces cannot be parted: halving went on for ever."""
    keys = thread_keys(b"T", [3 * DAY] * 30) + thread_keys(b"T", [3 * DAY] * 30, INNER)
    groups = Groups(READ, GRACE_FROM, shelved=SHELVED, largest=5, names=names)
    for page in split(keys, [10] * 20):
        groups.add(page)
    assert sum(group.keys for group in groups.found.values()) == len(keys)
    assert not groups.next_pass()


@pytest.mark.parametrize("form", [b"T%d", b"user:%d"])
def test_a_document_is_looked_at_in_the_pass_of_the_thread_that_it_moves_to(form: bytes) -> None:
    """Its value shows that it is of the documented layout, and then its thread is what stands before its id."""
    threads = [form % number for number in range(40)]
    keys = [key for one in threads for key in (plain(one, uuid6(NOW - 5 * DAY)), plain(one, b"custom-1"))]
    groups = Groups(READ, GRACE_FROM, shelved=SHELVED, largest=2_000)
    homes: Counter[bytes] = Counter()
    while True:
        for page in split(keys, [7] * 9):
            groups.add(page)
        found = set(groups.found)
        looked_at = {name.rpartition(b":")[0] for name, _ in groups.documents}
        assert found <= looked_at
        homes.update(home for home in looked_at if groups.place(home, plain(home, b"custom-1")))
        assert set(groups.found) == found
        if not groups.next_pass():
            break
    assert groups.passes > 4
    assert homes == dict.fromkeys(threads, 1)


def test_a_thread_of_very_many_documents_is_kept_all_the_same() -> None:
    """Each of them may be of two threads: halving went on for ever."""
    keys = [plain(b"user:1", b"step-%d" % number) for number in range(200)]
    groups = Groups(READ, GRACE_FROM, shelved=SHELVED, largest=1_000)
    placed_keys: Counter[bytes] = Counter()
    while True:
        groups.add(keys)
        placed_keys.update(key for _, key in groups.documents if groups.place(b"user:1", key))
        if not groups.next_pass():
            break
    assert placed_keys == dict.fromkeys(keys, 1)
    assert groups.passes < 600


def test_what_only_looks_like_an_id_makes_a_group_of_unknown_age() -> None:
    """Ids are compared as text while they come; digits that are none must not pass for an old one."""
    right = uuid6(NOW - 40 * DAY)
    for wrong in (right[:3] + b"x" + right[4:], right[:-1] + b"g", right[:7] + b"-" + right[8:]):
        group = only([checkpoint(b"T", uuid6(NOW - 50 * DAY)), checkpoint(b"T", wrong)])
        assert not group.is_sound(), wrong
    assert only([checkpoint(b"T", right), *unit(b"T", uuid6(NOW))]).is_sound()


def test_groups_that_are_left_are_freed_though_nobody_looks_for_circles() -> None:
    """The search for circles is off during a sweep: every group held its shelf, and the shelf its group, for ever."""
    gc.collect()
    before = sum(isinstance(one, Group) for one in gc.get_objects())
    gc.disable()
    try:
        groups = Groups(READ, GRACE_FROM, shelved=SHELVED, names=True)
        groups.add([key for number in range(50) for key in thread_keys(b"T%d" % number, [3 * DAY, HOUR])])
        assert len(groups.found) == 50
        del groups
        assert sum(isinstance(one, Group) for one in gc.get_objects()) == before
    finally:
        gc.enable()


def test_a_pass_after_the_last_is_none() -> None:
    groups = Groups(READ, GRACE_FROM, shelved=SHELVED)
    groups.add(thread_keys(b"T", [3 * DAY]))
    assert groups.passes == 1
    assert not groups.next_pass()
    assert set(groups.found) == {b"T:__empty__"}
