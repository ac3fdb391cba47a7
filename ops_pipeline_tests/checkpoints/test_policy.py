"""What may go: decided to the second, for single threads and for arbitrary stores."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.checkpoints.groups import Group
from ops_pipeline.checkpoints.layouts import CHECKPOINT, INDEX, WRITE
from ops_pipeline.checkpoints.policy import (
    ERASED,
    KEPT,
    ORPHANS,
    TRIMMED,
    WHOLE,
    Policy,
    Verdict,
    glob_of,
    judge,
    matches,
    threads_of,
)
from ops_pipeline_tests.checkpoints.names import (
    DAY,
    EMPTY,
    HOUR,
    INTERRUPT,
    NIL,
    NOW,
    READ,
    blob,
    checkpoint,
    grouped,
    iso,
    nested,
    plain,
    pointer,
    recipe,
    recipe_write,
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

SECOND = 1.0
MONTH = Policy(retention=30 * DAY, grace=DAY)
TRIMMING = replace(MONTH, keep_newest=2)
INNER = nested(b"agent")


def policy(**fields: Any) -> Policy:
    """A month's retention and a day's grace, with other fields; globs as text."""
    for name in ("pinned", "only"):
        if name in fields:
            fields[name] = tuple(glob_of(text) for text in fields[name])
    if "by_thread" in fields:
        fields["by_thread"] = tuple((glob_of(text), days * DAY) for text, days in fields["by_thread"])
    return replace(MONTH, **fields)


def verdicts(
    keys: Iterable[bytes],
    rules: Policy = MONTH,
    *,
    documents: dict[bytes, tuple[float | None, bytes]] | None = None,
) -> dict[bytes, Verdict]:
    """The verdict on each thread; `documents` tells of groups what values would: a document's time and id."""
    found = grouped(keys, grace=rules.grace, everything=rules.erase)
    found = {name: group for name, group in found.items() if rules.wants(name)}
    for name, (seconds, identifier) in (documents or {}).items():
        if name not in found:
            continue
        if seconds is None:
            found[name].more().undated += 1
        else:
            found[name].more().latest = max(found[name].newest, seconds)
            found[name].more().current.add(identifier)
    threads = threads_of(found).items()
    return {thread: judge(thread, [found[name] for name in names], rules, READ, NOW) for thread, names in threads}


def verdict(keys: Iterable[bytes], rules: Policy = MONTH, **options: Any) -> Verdict:
    (one,) = verdicts(keys, rules, **options).values()
    return one


def said(one: Verdict) -> tuple[str, str]:
    return one.action, one.reason


def gone(one: Verdict) -> set[bytes]:
    return set(one.keys) | set(one.pointers)


LIVE = (KEPT, "live")
IDLE = (WHOLE, "newest checkpoint older than the retention")

# Whole threads


def test_an_idle_thread_goes_with_all_that_is_its_own() -> None:
    """Writes, indexes, blobs and pointers outlived their checkpoints for ever."""
    keys = [
        *thread_keys(b"T", [40 * DAY, 31 * DAY]),
        *thread_keys(b"T", [35 * DAY], INNER),
        blob(b"T", b"messages"),
        blob(b"T", b"branch:to:agent", INNER),
        write(b"T", uuid6(NOW - 50 * DAY)),
        write(b"T", NIL),
        zset(b"T", uuid4()),
    ]
    one = verdict(keys)
    assert said(one) == IDLE
    assert gone(one) == set(keys)
    assert set(one.pointers) == {pointer(b"T"), pointer(b"T", INNER)}
    assert (one.thread, one.newest, one.alive_from) == (b"T", NOW - 31 * DAY, NOW - 30 * DAY)


@pytest.mark.parametrize(("after", "expected"), [(-1, IDLE), (0, LIVE), (1, LIVE)])
@pytest.mark.parametrize("make", [uuid6, ulid, iso])
def test_a_thread_exactly_as_old_as_the_retention_stays(make: Any, after: float, expected: tuple[str, str]) -> None:
    assert said(verdict([plain(b"T", make(NOW - 30 * DAY + after))])) == expected


@pytest.mark.parametrize(("after", "expected"), [(-1, IDLE), (0, LIVE), (1, LIVE)])
def test_a_grace_longer_than_the_retention_counts(after: float, expected: tuple[str, str]) -> None:
    rules = policy(retention=DAY, grace=7 * DAY)
    one = verdict([checkpoint(b"T", uuid6(NOW - 7 * DAY + after))], rules)
    assert said(one) == expected


def test_a_thread_lives_on_as_long_as_one_of_its_namespaces() -> None:
    """Checkpoints were aged one by one: of a thread in use the history went, and with it what its newest stood on."""
    idle, live = thread_keys(b"T", [90 * DAY]), thread_keys(b"T", [2 * HOUR], INNER)
    assert said(verdict(idle + live)) == LIVE
    idle, live = thread_keys(b"T", [90 * DAY], INNER), thread_keys(b"T", [2 * HOUR])
    assert said(verdict(idle + live)) == LIVE
    assert gone(verdict(idle + live)) == set()


def test_an_empty_namespace_in_two_spellings_is_one_thread() -> None:
    keys = [checkpoint(b"T", uuid6(NOW - 90 * DAY), b""), checkpoint(b"T", uuid6(NOW - HOUR))]
    assert said(verdict(keys)) == LIVE


def test_the_first_retention_that_matches_counts() -> None:
    rules = policy(by_thread=[("vip-*", 365), ("*-1", 5), ("old?", 3)])
    ages = {b"vip-1": 300, b"vip-2": 366, b"user-1": 6, b"user-2": 6, b"old1": 4, b"old12": 4}
    found = verdicts([key for thread, age in ages.items() for key in thread_keys(thread, [age * DAY])], rules)
    assert {thread for thread, one in found.items() if one.action == WHOLE} == {b"vip-2", b"user-1", b"old1"}
    assert found[b"user-1"].alive_from == NOW - 5 * DAY


def test_the_retention_of_a_thread_counts_for_its_namespaces_and_for_the_recipe() -> None:
    rules = policy(by_thread=[("short", 2)])
    keys = [
        *thread_keys(b"short", [3 * DAY]),
        *thread_keys(b"short", [4 * DAY], INNER),
        recipe(b"short", uuid6(NOW - 3 * DAY)),
    ]
    assert {thread: one.action for thread, one in verdicts(keys, rules).items()} == {b"short": WHOLE, b"$short": WHOLE}


# Left alone


@pytest.mark.parametrize(
    "rules",
    [
        policy(pinned=["T"]),
        policy(pinned=["x", "T*"]),
        policy(pinned=["T"], keep_newest=1),
        policy(pinned=["T"], erase=True, only=["T"]),
    ],
)
def test_a_pinned_thread_stays_whatever_is_asked_for(rules: Policy) -> None:
    """A pin is a legal hold as often as not: the erasure of a user does not lift it unnoticed."""
    keys = [
        *thread_keys(b"T", [90 * DAY, 80 * DAY]),
        *thread_keys(b"T", [90 * DAY], INNER),
        write(b"T", uuid6(NOW - 99 * DAY)),
    ]
    one = verdict(keys, rules)
    assert said(one) == (KEPT, "pinned")
    assert gone(one) == set()


def test_pins_are_for_threads_of_every_layout() -> None:
    rules, old = policy(pinned=["a:b", "x$y", "$z"]), uuid6(NOW - 90 * DAY)
    threads = [
        plain(b"a:b", old),
        checkpoint(b"a:b", old),
        shallow(b"a:b"),
        recipe(b"a:b", old),
        recipe(b"x$y", old, b"n"),
    ]
    threads += [plain(b"$z", old), checkpoint(b"$z", old), checkpoint(b"$z", old, INNER), recipe(b"$z", old)]
    for key in threads:
        assert said(verdict([key], rules)) == (KEPT, "pinned")
    assert verdict([plain(b"a:c", old)], rules).action == WHOLE


@pytest.mark.parametrize("rules", [MONTH, TRIMMING])
def test_ids_of_the_future_are_of_another_clock(rules: Policy) -> None:
    keys = thread_keys(b"T", [90 * DAY, 80 * DAY, 70 * DAY])
    ahead, beyond = uuid6(NOW + DAY), uuid6(NOW + DAY + SECOND)
    assert said(verdict([*keys, checkpoint(b"T", beyond)], rules)) == (KEPT, "ids of the future")
    assert verdict([*keys, checkpoint(b"T", ahead)], rules).reason != "ids of the future"
    assert said(verdict([*keys, write(b"T", beyond)], rules)) == (KEPT, "ids of the future")


def test_a_thread_with_a_document_of_unknown_age_stays() -> None:
    keys = [*thread_keys(b"T", [90 * DAY]), shallow(b"T"), write(b"T", uuid6(NOW - 99 * DAY))]
    one = verdict(keys, TRIMMING, documents={b"T:": (None, b"")})
    assert (said(one), gone(one)) == ((KEPT, "age unknown"), set())


def test_a_recipe_thread_with_an_id_of_unknown_age_stays() -> None:
    assert said(verdict([recipe(b"T", uuid6(NOW - 90 * DAY)), recipe(b"T", uuid4())])) == (KEPT, "age unknown")


@pytest.mark.parametrize(
    "key", [registry(b"T"), blob(b"T", b"m", INNER), blob(b"a:__empty__:b", b"m"), write(b"T", NIL), zset(b"T", NIL)]
)
def test_what_alone_tells_no_age_stays(key: bytes) -> None:
    assert said(verdict([key])) == (KEPT, "age unknown")


# Shallow threads


def shallow_thread(age: float, writes: Sequence[bytes], *, ending: bytes = b"") -> tuple[list[bytes], dict[bytes, Any]]:
    """A document so old with the id of the first of the writes, in the spelling of one of the shallow savers."""
    namespace = b"" if ending else EMPTY
    keys = [shallow(b"T") + ending, registry(b"T"), *(write(b"T", one, namespace) for one in writes)]
    return keys, {b"T:": (NOW - age, writes[0] if writes else b"")}


@pytest.mark.parametrize("ending", [b"", b":shallow"], ids=["Python", "JavaScript"])
def test_the_writes_of_the_current_shallow_checkpoint_stay_and_older_ones_go(ending: bytes) -> None:
    """Its document is of the namespace "", its writes of `__empty__`: interrupts of two days ago went as orphans."""
    current, before = uuid6(NOW - 3 * DAY), uuid6(NOW - 4 * DAY)
    keys, documents = shallow_thread(3 * DAY, [current, before], ending=ending)
    one = verdict(keys, documents=documents)
    assert said(one) == (ORPHANS, "writes of checkpoints that are gone")
    assert gone(one) == {write(b"T", before, b"" if ending else EMPTY)}
    assert one.lists == (registry(b"T"),)


@pytest.mark.parametrize("ending", [b"", b":shallow"], ids=["Python", "JavaScript"])
def test_an_idle_shallow_thread_goes_with_writes_and_registry(ending: bytes) -> None:
    keys, documents = shallow_thread(31 * DAY, [uuid6(NOW - 31 * DAY), uuid6(NOW - 40 * DAY)], ending=ending)
    one = verdict(keys, documents=documents)
    assert (said(one), gone(one)) == (IDLE, set(keys))


def test_documents_are_never_trimmed() -> None:
    keys = [shallow(b"T"), *(checkpoint(b"T", uuid6(NOW - age * DAY), b"") for age in range(2, 9))]
    assert said(verdict(keys, TRIMMING, documents={b"T:": (NOW - HOUR, b"x")})) == LIVE


# Orphans


def test_writes_and_indexes_of_checkpoints_that_are_gone_go() -> None:
    left, lost = thread_keys(b"T", [2 * DAY]), unit(b"T", uuid6(NOW - 3 * DAY))[1:]
    one = verdict([*left, *lost, *lost])
    assert (said(one), one.pointers) == ((ORPHANS, "writes of checkpoints that are gone"), ())
    assert sorted(one.keys) == sorted(lost)


@pytest.mark.parametrize(("after", "orphans"), [(-1, True), (0, False)])
def test_orphans_of_a_live_thread_stay_for_the_grace(after: float, orphans: bool) -> None:
    lost = write(b"T", uuid6(NOW - DAY + after))
    assert gone(verdict([*thread_keys(b"T", [HOUR]), lost])) == ({lost} if orphans else set())


def test_writes_and_indexes_in_another_spelling_of_the_namespace_are_no_orphans() -> None:
    """Savers 0.1.0 to 0.1.2 wrote the index of `T:__empty__` as that of `T:`."""
    identifier = uuid6(NOW - 3 * DAY)
    keys = [checkpoint(b"T", identifier), write(b"T", identifier), zset(b"T", identifier, b"")]
    assert said(verdict(keys)) == LIVE
    newer = [checkpoint(b"T", uuid6(NOW - age)) for age in (HOUR, 2 * HOUR)]
    assert gone(verdict([*keys, *newer], TRIMMING)) == set(keys)


@pytest.mark.parametrize(("after", "action"), [(-1, ORPHANS), (0, KEPT)])
def test_what_has_no_checkpoint_at_all_goes_after_the_grace(after: float, action: str) -> None:
    keys = [*unit(b"T", uuid6(NOW - DAY + after))[1:], registry(b"T", EMPTY), pointer(b"T")]
    one = verdict(keys)
    assert one.action == action
    assert gone(one) == (set(keys) if action == ORPHANS else set())
    assert one.reason == ("belongs to no checkpoint" if action == ORPHANS else "orphans younger than the grace")


def test_a_pointer_alone_goes_if_it_points_at_nothing() -> None:
    one = verdict([pointer(b"T")])
    assert (one.action, one.keys, one.pointers, one.alive_from) == (ORPHANS, (), (pointer(b"T"),), NOW - DAY)


def test_blobs_without_a_checkpoint_go_while_nobody_touches_them() -> None:
    """Their names tell no age: whoever carries it out asks Redis since when nobody has read or written them."""
    lost, alone = write(b"T", uuid6(NOW - 50 * DAY)), blob(b"T", b"messages")
    for one in (verdict([lost, alone]), verdict([alone])):
        assert (one.action, one.blobs) == (ORPHANS, (alone,))
    assert gone(verdict([lost, alone])) == {lost, alone}
    assert said(verdict([alone, write(b"T", uuid6(NOW - HOUR))])) == (KEPT, "orphans younger than the grace")


# Trimming


def trimmed(ages: Sequence[float], rules: Policy = TRIMMING, *more: bytes) -> set[float]:
    """The ages, in days, of the checkpoints that stay of a live thread whose checkpoints have these ages."""
    keys = {age: checkpoint(b"T", uuid6(NOW - age * DAY)) for age in ages}
    one = verdict([*keys.values(), *more], rules)
    return {age for age, key in keys.items() if key not in one.keys}


def test_the_newest_checkpoints_stay_and_older_ones_go_with_their_writes() -> None:
    old = [uuid6(NOW - age * DAY) for age in (5, 4)]
    kept = [uuid6(NOW - age * DAY) for age in (3, 2)]
    units = [key for one in old for key in unit(b"T", one)]
    keys = [*units, *(key for one in kept for key in unit(b"T", one)), pointer(b"T")]
    one = verdict(keys, TRIMMING)
    assert said(one) == (TRIMMED, "live: older checkpoints beyond those to keep")
    assert sorted(one.keys) == sorted(units)
    assert (one.pointers, one.examined) == ((pointer(b"T"),), (checkpoint(b"T", kept[1]),))


@pytest.mark.parametrize(
    ("ages", "left"),
    [
        ([2, 3, 4], {2, 3}),
        ([0.5, 2, 3, 4], {0.5, 2}),
        ([0.1, 0.2, 0.3, 2, 3], {0.1, 0.2, 0.3}),
        ([0.1, 0.2], {0.1, 0.2}),
        ([2, 3], {2, 3}),
        ([5], {5}),
    ],
)
def test_young_checkpoints_count_among_those_to_keep(ages: list[float], left: set[float]) -> None:
    assert trimmed(ages) == left


def test_a_checkpoint_that_the_scan_names_twice_counts_once() -> None:
    """The newest checkpoint of a thread was one too many when the scan had named another twice."""
    keys = [checkpoint(b"T", uuid6(NOW - age * DAY)) for age in (2, 3, 0.5)]
    assert gone(verdict(keys * 3, replace(MONTH, keep_newest=3))) == set()
    assert gone(verdict(keys * 3, replace(MONTH, keep_newest=2))) == {keys[1]}
    assert gone(verdict([keys[0]] * 3, replace(MONTH, keep_newest=1))) == set()


def test_what_is_younger_than_the_trim_age_stays() -> None:
    rules = replace(TRIMMING, keep_newest=1, trim_age=5 * DAY)
    assert trimmed([2, 4, 5, 5 + 1 / DAY, 6], rules) == {2, 4, 5}


def test_each_namespace_keeps_its_newest() -> None:
    roots = [uuid6(NOW - age * DAY) for age in (2, 3, 4)]
    inner = [uuid6(NOW - age * DAY) for age in (10, 11, 12)]
    keys = [checkpoint(b"T", one) for one in roots] + [checkpoint(b"T", one, INNER) for one in inner]
    one = verdict(keys, TRIMMING)
    assert gone(one) == {checkpoint(b"T", roots[2]), checkpoint(b"T", inner[2], INNER)}
    assert set(one.examined) == {checkpoint(b"T", roots[0]), checkpoint(b"T", inner[0], INNER)}


@pytest.mark.parametrize("index", [INTERRUPT, 0, -4])
def test_a_checkpoint_that_waits_for_a_person_is_not_trimmed(index: int) -> None:
    waiting = uuid6(NOW - 9 * DAY)
    keys = [checkpoint(b"T", waiting), write(b"T", waiting, index=index), zset(b"T", waiting)]
    others = [checkpoint(b"T", uuid6(NOW - age * DAY)) for age in (2, 3, 4)]
    assert gone(verdict([*keys, *others], TRIMMING)) == {others[2], *([] if index == INTERRUPT else keys)}


def test_a_checkpoint_of_the_recipe_that_waits_for_a_person_is_not_trimmed() -> None:
    """Its writes end with `$-3`, and not with `:-3`."""
    waiting = uuid6(NOW - 9 * DAY)
    keys = [recipe(b"T", waiting), recipe_write(b"T", waiting, index=INTERRUPT)]
    others = [recipe(b"T", uuid6(NOW - age * DAY)) for age in (2, 3, 4)]
    assert gone(verdict([*keys, *others], TRIMMING)) == {others[2]}


def test_orphans_go_with_what_is_trimmed() -> None:
    keys = [checkpoint(b"T", uuid6(NOW - age * DAY)) for age in (2, 3, 4)]
    lost = write(b"T", uuid6(NOW - 3.5 * DAY))
    assert gone(verdict([*keys, lost], TRIMMING)) == {keys[2], lost}


def test_an_id_in_two_namespaces_keeps_its_writes_while_one_of_them_stays() -> None:
    shared = uuid6(NOW - 9 * DAY)
    keys = [checkpoint(b"T", shared), write(b"T", shared), checkpoint(b"T", shared, INNER)]
    others = [checkpoint(b"T", uuid6(NOW - age * DAY)) for age in (2, 3)]
    assert gone(verdict([*keys, *others], TRIMMING)) == {keys[0]}


# Erasure


def test_a_thread_that_is_erased_goes_young_and_unknown_keys_and_all() -> None:
    rules = policy(erase=True, only=["T"])
    keys = [*thread_keys(b"T", [40 * DAY, HOUR, -9 * DAY]), *thread_keys(b"T", [0], INNER)]
    keys += [shallow(b"T"), registry(b"T"), blob(b"T", b"m"), write(b"T", NIL)]
    one = verdict([*keys, *thread_keys(b"other", [90 * DAY])], rules, documents={b"T:": (NOW, b"x")})
    assert said(one) == (ERASED, "asked for by name")
    assert gone(one) == set(keys)
    assert one.alive_from == float("inf")


@pytest.mark.parametrize(
    ("pattern", "erased"),
    [
        ("user-1", {b"user-1"}),
        ("user-1-*", {b"user-1-a", b"user-1-"}),
        ("user-1:*", {b"user-1:chat"}),
        ("user-1?", {b"user-1x", b"user-1-"}),
        ("user-1*", {b"user-1", b"user-1-a", b"user-1-", b"user-1:chat", b"user-1x"}),
        ("*:*", {b"user-1:chat"}),
        ("user.1", set()),
        ("[*]", {b"[x]"}),
        ("\\*", {b"*"}),
        ("user-1:__empty__", set()),
    ],
)
@pytest.mark.parametrize("namespace", [EMPTY, b"", None])
def test_a_pattern_finds_the_threads_it_names_and_no_others(
    pattern: str, erased: set[bytes], namespace: bytes | None
) -> None:
    """`user-1:*` found `user-1:__empty__`, the group of the thread `user-1`; `*:*` found everybody."""
    threads = [b"user-1", b"user-1-a", b"user-1-", b"user-1:chat", b"user-1x", b"user-2", b"[x]", b"*", b"xuser-1"]
    make = plain if namespace is None else lambda thread, one: checkpoint(thread, one, namespace)
    found = verdicts([make(thread, uuid6()) for thread in threads], policy(erase=True, only=[pattern]))
    assert {thread for thread, one in found.items() if one.action == ERASED} == erased
    recipes = verdicts([recipe(thread, uuid6()) for thread in threads], policy(erase=True, only=[pattern]))
    assert {thread.removeprefix(b"$") for thread in recipes} == erased


def test_a_thread_with_an_id_like_a_namespace_is_found_by_its_name() -> None:
    thread = b"user:session:" + uuid4()
    (name,) = verdicts([plain(thread, uuid6())], policy(erase=True, only=[thread.decode()]))
    assert name == thread


@pytest.mark.parametrize(("thread", "other"), [("$x", "x"), ("$x$y", "x$y"), ("$x$y", "$x")])
def test_a_thread_whose_id_begins_with_a_dollar_is_found_by_it_alone(thread: str, other: str) -> None:
    """The recipe's threads are told from the savers' by a dollar."""
    keys = unit(thread.encode(), uuid6())
    assert verdict(keys, policy(erase=True, only=[thread])).action == ERASED
    assert verdicts(keys, policy(erase=True, only=[other])) == {}


# Patterns


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("a", "a", True), ("a", "ab", False), ("a", "ba", False), ("a", "A", False), ("a*", "a", True),
        ("*a", "bba", True),
        ("a*c", "abbc", True), ("a*c", "ac", True), ("a*c", "acd", False), ("a?c", "abc", True), ("a?c", "ac", False),
        ("a?c", "abbc", False), ("user-?", "user-ä", True), ("user-??", "user-ä", False), ("?x", "🙂x", True),
        ("a.c", "abc", False), ("a.c", "a.c", True), ("[ab]", "a", False), ("[ab]", "[ab]", True), ("a+", "aa", False),
        ("a|b", "a", False), ("(a)", "(a)", True), ("a{2}", "aa", False), ("^a$", "^a$", True), ("^a", "a", False),
        ("\\*", "*", True), ("\\*", "x", False), ("\\?", "?", True), ("\\?", "x", False), ("a\\\\b", "a\\b", True),
        ("a\\", "a\\", True), ("\\a", "a", True), ("a*b", "a\nb", True), ("a?b", "a\nb", True), ("a", "a\n", False),
        ("Ärger*", "Ärger-1", True), ("user-1-*", "user-1", False), ("user-1-*", "user-1-2", True), (" a", " a", True),
    ],
)  # fmt: skip
def test_stars_and_question_marks_are_the_only_signs(pattern: str, name: str, found: bool) -> None:
    assert (glob_of(pattern).fullmatch(name.encode()) is not None) is found


def test_a_question_mark_stands_for_a_byte_that_is_no_character() -> None:
    assert glob_of("a?b").fullmatch(b"a\xffb")
    assert not glob_of("a?b").fullmatch(b"a\xff\xfeb")


@pytest.mark.parametrize("pattern", ["", " ", "\t", "*", "**", "?", "?*", "*?*", "\n"])
def test_patterns_of_nobody_and_of_everybody_are_refused(pattern: str) -> None:
    """An empty id became `checkpoint:user--*`, and a star that of everybody."""
    with pytest.raises(ValueError, match="names no thread, or every one"):
        glob_of(pattern)


@given(st.text(min_size=1, max_size=20).filter(str.strip))
@examples(200)
def test_an_id_with_every_sign_escaped_finds_itself_alone(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    pattern = glob_of(re.sub(r"([*?\\])", r"\\\1", text) if text.strip("*?") else "x" + re.sub(r"(.)", r"\\\1", text))
    name = text.encode() if text.strip("*?") else b"x" + text.encode()
    assert matches([pattern], name)
    for other in (name + b"x", b"x" + name, name[:-1], b""):
        assert pattern.fullmatch(other) is None


# Policies that cannot have been meant


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retention": 0}, "longer than nothing"),
        ({"retention": -DAY}, "longer than nothing"),
        ({"by_thread": [("x", 0)]}, "longer than nothing"),
        ({"by_thread": [("x", 1), ("y", -1)]}, "longer than nothing"),
        ({"keep_newest": 0}, "at least one checkpoint"),
        ({"keep_newest": -1}, "at least one checkpoint"),
        ({"erase": True}, "name the threads"),
        ({"grace": -1}, "zero or more"),
        ({"trim_age": -1}, "zero or more"),
    ],
)
def test_policies_that_cannot_have_been_meant_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy(**fields)


def test_a_grace_of_nothing_and_a_single_checkpoint_may_be_meant() -> None:
    assert policy(grace=0, trim_age=0, keep_newest=1).wants(b"anything")


# Arbitrary stores

ages = st.integers(0, 80 * 24).map(lambda hours: hours * HOUR + 60)
thread_ids = st.sampled_from([b"T", b"user:1", b"user:2", b"pinned", b"$x", b"\xff", b"a:session:" + uuid4()])
policies = st.builds(
    lambda days, grace, keep, trim, pins: policy(
        retention=days * DAY,
        grace=grace * DAY,
        keep_newest=keep,
        trim_age=trim * DAY,
        pinned=["pinned"] if pins else [],
    ),
    st.integers(1, 60),
    st.sampled_from([0, 1, 2, 10, 70]),
    st.none() | st.integers(1, 4),
    st.sampled_from([0, 1, 5]),
    st.booleans(),
)


@st.composite
def stores(draw: st.DrawFn) -> list[bytes]:
    """Threads in every layout that tells times, some of whose keys are missing, and unknown keys."""
    keys = [b"celery", b"checkpoint_write:junk", b"checkpoint_blob:T::m:1"]
    for thread in draw(st.lists(thread_ids, unique=True, max_size=5)):
        some: list[bytes] = []
        for namespace in draw(st.sampled_from([[EMPTY], [EMPTY, INNER], [INNER], [b"", INNER]])):
            for age in draw(st.lists(ages, max_size=5)):
                some += unit(thread, uuid6(NOW - age), namespace, indexes=draw(st.sampled_from([(), (0,), (0, -3)])))
            some.append(pointer(thread, namespace))
        for age in draw(st.lists(ages, max_size=2)):
            some += [plain(thread, iso(NOW - age)), recipe(thread, ulid(NOW - age))]
        lost = draw(st.sets(st.sampled_from(some), max_size=4))
        keys += [key for key in some if key not in lost]
    return list(dict.fromkeys(keys))


def seconds_of(key: bytes) -> float | None:
    part = READ(key)
    return part[3] if part else None


def of_kind(keys: Iterable[bytes], *kinds: str) -> dict[bytes, tuple[bytes, bytes, float]]:
    """Keys of these kinds with a time, each with its group, its id and its time."""
    parts = {key: READ(key) for key in keys}
    return {
        key: (part[1], part[2], part[3])
        for key, part in parts.items()
        if part and part[0] in kinds and part[3] is not None
    }


def removed(found: dict[bytes, Verdict]) -> set[bytes]:
    """What would go: a pointer only with what it points at, as whoever carries a verdict out sees to."""
    return {
        key for one in found.values() for key in (*one.keys, *(one.pointers if one.action in {WHOLE, ORPHANS} else ()))
    }


@given(stores(), policies)
@examples(300)
def test_nothing_goes_that_must_stay(keys: list[bytes], rules: Policy) -> None:
    found = verdicts(keys, rules)
    going = removed(found)
    assert going <= set(keys)
    for key in going:
        assert READ(key), "unknown, or of somebody else"
        assert not key.startswith((b"checkpoint:pinned", b"checkpoint_write:pinned")) or not rules.pinned
        seconds = seconds_of(key)
        assert seconds is None or seconds < NOW - rules.grace
    groups = grouped(keys, grace=rules.grace)
    for thread, names in threads_of(groups).items():
        newest = max(groups[name].newest for name in names)
        if newest >= NOW - rules.retention:
            assert not {groups[name].newest_key for name in names} & going
            assert found[thread].action in {KEPT, ORPHANS, TRIMMED}
        if rules.keep_newest is None and newest >= NOW - rules.retention:
            assert not of_kind(found[thread].keys, CHECKPOINT)


@given(stores(), policies)
@examples(300)
def test_of_a_live_namespace_the_newest_stay(keys: list[bytes], rules: Policy) -> None:
    for one in verdicts(keys, rules).values():
        if one.action != TRIMMED:
            continue
        checkpoints = of_kind(keys, CHECKPOINT)
        for name in {checkpoints[key][0] for key in one.keys if key in checkpoints}:
            by_age = sorted((seconds, key) for key, (group, _, seconds) in checkpoints.items() if group == name)
            newest = {key for _, key in by_age[-(rules.keep_newest or 0) :]}
            assert not newest & set(one.keys)
            assert all(seconds < NOW - rules.trim_age for seconds, key in by_age if key in one.keys)


@given(stores(), policies)
@examples(300)
def test_a_checkpoint_goes_with_its_writes_and_its_index_and_they_never_without_it(
    keys: list[bytes], rules: Policy
) -> None:
    going = removed(verdicts(keys, rules))
    left = of_kind(set(keys) - going, CHECKPOINT)
    belongings = of_kind(keys, WRITE, INDEX)
    there = {(name, identifier) for name, identifier, _ in left.values()}
    gone_with = {(name, identifier) for name, identifier, _ in of_kind(going, CHECKPOINT).values()}
    for key, (name, identifier, _) in belongings.items():
        if (name, identifier) in there:
            assert key not in going
        if (name, identifier) in gone_with:
            assert key in going


@given(stores(), policies)
@examples(300)
def test_a_second_look_finds_nothing_to_remove(keys: list[bytes], rules: Policy) -> None:
    first = verdicts(keys, rules)
    left = [key for key in keys if key not in removed(first)]
    # Orphans are a sign of life while they are there: a thread may be older after they went.
    older = {thread for thread, one in first.items() if one.newest in {seconds_of(key) for key in one.keys}}
    again = verdicts(left, rules)
    for thread, one in again.items():
        # Whether a pointer points at nothing is looked at before it goes, and nobody looks here.
        assert one.keys == () or (thread in older and one.action == WHOLE)
        assert one.action in {KEPT, ORPHANS} or thread in older


@given(stores(), policies, st.data())
@examples(150)
def test_the_order_of_keys_and_duplicates_change_no_verdict(
    keys: list[bytes], rules: Policy, data: st.DataObject
) -> None:
    twice = [*keys, *data.draw(st.lists(st.sampled_from(keys), max_size=8))]
    first, second = verdicts(keys, rules), verdicts(data.draw(st.permutations(twice)), rules)
    assert {
        thread: (said(one), set(one.keys), set(one.pointers), set(one.examined)) for thread, one in first.items()
    } == {thread: (said(one), set(one.keys), set(one.pointers), set(one.examined)) for thread, one in second.items()}


@given(stores())
@examples(100)
def test_erasing_a_thread_leaves_nothing_of_it_and_touches_no_other(keys: list[bytes]) -> None:
    going = removed_by_name(keys, "T")
    ours = [key for key in keys if READ(key) and re.match(rb"[a-z_]+[:$]T[:$]", key)]
    assert going == set(ours)


def removed_by_name(keys: Collection[bytes], pattern: str) -> set[bytes]:
    found = verdicts(keys, policy(erase=True, only=[pattern]))
    return {key for one in found.values() for key in (*one.keys, *one.pointers)}


def test_threads_without_any_group_are_none() -> None:
    assert verdicts([b"celery", b"checkpoint_write:junk"]) == {}
    assert judge(b"T", [Group()], MONTH, READ, NOW).action == KEPT
