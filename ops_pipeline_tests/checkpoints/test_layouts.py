"""What the names of keys say, in every layout and with every id that a thread may have."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.checkpoints.layouts import (
    BLOB,
    CHECKPOINT,
    DOCUMENT,
    INDEX,
    POINTER,
    REGISTRY,
    WRITE,
    Layout,
    Prefixes,
    layouts_of,
    reader_of,
    thread_of,
)
from ops_pipeline.checkpoints.policy import threads_of
from ops_pipeline_tests.checkpoints.names import (
    DAY,
    EMPTY,
    NIL,
    NOW,
    READ,
    TASK,
    blob,
    checkpoint,
    grouped,
    iso,
    joined,
    nested,
    plain,
    pointer,
    recipe,
    recipe_write,
    registry,
    shallow,
    ulid,
    uuid4,
    uuid6,
    write,
    zset,
)
from ops_pipeline_tests.usage.calls import examples

ID, ULID, V4 = uuid6(), ulid(), uuid4()
INNER = nested(b"agent")
DEEP = nested(b"agent", b"tool", b"search")
THREADS = [
    b"T",
    b"user:1:chat",
    b"$x",
    b"a$b$c",
    b"*",
    b"user-?[1]",
    b"back\\slash",
    b"\xff\xfe\x00",
    "Ärger 🙂 {x}".encode(),
    b" ",
    b"line\nbreak",
    b"x" * 5000,
    b"trailing:",
    b":leading",
    str(uuid.UUID(int=1)).encode(),
    uuid6(),
    ulid(),
    iso(),
    b"a:session:" + uuid4(),
    b"checkpoint:T",
    b"__empty__",
]
NAMESPACES = [EMPTY, b"", INNER, DEEP]


def group(thread: bytes, namespace: bytes = EMPTY) -> bytes:
    return thread + b":" + namespace


# Every layout with every id


@pytest.mark.parametrize("thread", THREADS)
@pytest.mark.parametrize("namespace", NAMESPACES, ids=["__empty__", "empty", "nested", "deep"])
def test_the_keys_of_the_savers_are_read_whatever_the_id_of_the_thread(thread: bytes, namespace: bytes) -> None:
    """Ids with colons were cut at the first one: `user:1` and `user:2` were one thread, and went together."""
    name = group(thread, namespace)
    for identifier in (ID, ULID):
        assert READ(checkpoint(thread, identifier, namespace)) == (CHECKPOINT, name, identifier, NOW)
        assert READ(zset(thread, identifier, namespace)) == (INDEX, name, identifier, NOW)
        for index in (0, 12, -3, -4):
            assert READ(write(thread, identifier, namespace, index=index)) == (WRITE, name, identifier, NOW)
    assert READ(pointer(thread, namespace)) == (POINTER, name, b"", None)
    for kind in (b"write_registry", b"current_checkpoint"):
        assert READ(registry(thread, namespace, kind)) == (REGISTRY, name, b"", None)


@pytest.mark.parametrize("thread", THREADS)
def test_the_documented_keys_are_read_whatever_the_id_of_the_thread(thread: bytes) -> None:
    for identifier in (ID, ULID, iso(), iso() + b"Z", iso() + b"+00:00", iso(NOW, "%Y%m%dT%H%M%S"), iso()[:19]):
        assert READ(plain(thread, identifier)) == (CHECKPOINT, thread, identifier, NOW)


@pytest.mark.parametrize("thread", THREADS)
@pytest.mark.parametrize("namespace", [b"", b"ns", b"a:b"])
def test_the_keys_of_the_recipe_are_read_whatever_the_id_of_the_thread(thread: bytes, namespace: bytes) -> None:
    name = joined(b"", thread, namespace, by=b"$")
    for identifier in (ID, ULID, iso()):
        assert READ(recipe(thread, identifier, namespace)) == (CHECKPOINT, name, identifier, NOW)
        assert READ(recipe_write(thread, identifier, namespace, index=-3)) == (WRITE, name, identifier, NOW)
    assert READ(recipe(thread, V4, namespace)) == (CHECKPOINT, name, V4, None)
    assert thread_of(name) == b"$" + thread


@pytest.mark.parametrize("thread", [thread for thread in THREADS if thread != b"__empty__"])
@pytest.mark.parametrize("channel", [b"messages", b"branch:to:agent", b"__start__", b"a|b:c", b"\xff"])
@pytest.mark.parametrize("namespace", [EMPTY, INNER, DEEP], ids=["empty", "nested", "deep"])
def test_blobs_belong_to_their_namespace_whatever_their_channel(
    thread: bytes, channel: bytes, namespace: bytes
) -> None:
    """The blobs of a thread with an id like `user:session:{uuid}` went with the thread `user`."""
    assert READ(blob(thread, channel, namespace)) == (BLOB, group(thread, namespace), b"", None)


def test_a_blob_whose_namespace_cannot_be_seen_is_unknown() -> None:
    assert READ(b"checkpoint_blob:T::messages:1") is None
    assert READ(b"checkpoint_blob:T:ns:messages:1") is None
    assert READ(b"checkpoint_blob:") is None


# The shallow savers


@pytest.mark.parametrize("thread", [thread for thread in THREADS if not thread.endswith(b":")])
def test_the_document_of_the_shallow_saver_is_of_the_group_of_its_registry(thread: bytes) -> None:
    for namespace in (b"", INNER, DEEP):
        name = group(thread, namespace)
        assert READ(shallow(thread, namespace)) == (DOCUMENT, name, b"", None)
        assert READ(shallow(thread, namespace) + b":shallow") == (DOCUMENT, name, b"", None)
        assert READ(registry(thread, namespace)) == (REGISTRY, name, b"", None)


def test_the_shallow_saver_in_javascript_has_its_document_in_the_group_of_its_writes() -> None:
    """Writes on which a thread waited for a person were taken for those of no checkpoint."""
    document = READ(b"checkpoint:T::shallow")
    assert document and document[0] == DOCUMENT
    for key in (write(b"T", ID, b""), zset(b"T", ID, b"")):
        part = READ(key)
        assert part and part[1] == document[1]


@pytest.mark.parametrize("digit", b"012345789abcdef")
def test_a_nested_shallow_document_is_no_checkpoint_of_a_time(digit: int) -> None:
    task = bytearray(uuid6())
    task[14] = digit
    assert READ(shallow(b"T", b"agent:" + bytes(task))) == (DOCUMENT, b"T:agent:" + bytes(task), b"", None)


def test_a_nested_shallow_document_whose_hash_looks_like_a_time_that_cannot_be_is_one_too() -> None:
    task = b"ffffffff-1234-6abc-8123-0123456789ab"
    assert READ(shallow(b"T", b"agent:" + task)) == (DOCUMENT, b"T:agent:" + task, b"", None)


# Ids without a time


@pytest.mark.parametrize("identifier", [NIL, V4, V4.replace(b"-4", b"-1", 1)])
def test_ids_without_a_time_are_ours_and_have_no_age(identifier: bytes) -> None:
    """The index of a random id was of no known layout, and outlived its thread."""
    assert READ(write(b"T", identifier)) == (WRITE, b"T:__empty__", identifier, None)
    assert READ(zset(b"T", identifier)) == (INDEX, b"T:__empty__", identifier, None)
    document = READ(checkpoint(b"T", identifier))
    assert document and (document[0], document[3]) == (DOCUMENT, None)
    assert thread_of(document[1]) == b"T"


@pytest.mark.parametrize("identifier", [b"1", b"my checkpoint", b"2026-03-10", b"2026-13-10T12:00:00", ulid().lower()])
def test_documented_keys_with_any_other_id_are_documents(identifier: bytes) -> None:
    assert READ(plain(b"T", identifier)) == (DOCUMENT, b"T:" + identifier, b"", None)


@pytest.mark.parametrize("identifier", [ID, ULID, iso()])
def test_a_key_without_a_thread_is_of_no_thread(identifier: bytes) -> None:
    """Threads that were nothing but an id were all of one thread, and trimmed as its checkpoints."""
    assert READ(b"checkpoint:" + identifier) == (DOCUMENT, identifier, b"", None)


# Theirs, ours, and nobody's


@pytest.mark.parametrize(
    "key",
    [b"", b":", b"celery-task-meta-1", b"checkpoint", b"checkpoints:T:1", b"Checkpoint:T:" + ID, b" checkpoint:T:1",
     b"checkpoint_x:T:1", b"checkpoint_write", b"checkpoint_writes:T", b"write_keys:T", b"checkpoint/T", b"\xff\x00",
     b"my:checkpoint:T:" + ID, b"writes:T:1", b"lock:checkpoint:T"],
)  # fmt: skip
def test_keys_of_somebody_else(key: bytes) -> None:
    assert READ(key) is False


@pytest.mark.parametrize(
    "key",
    [
        b"checkpoint:",
        b"checkpoint::",
        b"checkpoint_latest:",
        b"write_registry:",
        b"write_registry:T:",
        b"write_registry::shallow",
        b"write_registry:T:deep",
        b"checkpoint_write:",
        b"checkpoint_write:T",
        write(b"T", b"no-id"),
        write(b"T", ID, task=b""),
        write(b"T", ID, index=b""),
        write(b"T", ID, index=b"x"),
        write(b"T", ID, index=b"--3"),
        write(b"T", ID, index=b"1.5"),
        write(b"T", ID, index=b"-"),
        write(b"T", ID, index="\u0663".encode()),
        joined(b"checkpoint_write", b"T", EMPTY, ID, b"0"),
        joined(b"checkpoint_write", ID, TASK, b"0"),
        joined(b"write_keys_zset", b"T", EMPTY, b"no-id"),
        joined(b"write_keys_zset", V4),
        b"checkpoint$",
        b"checkpoint$T",
        b"checkpoint$$" + ID,
        b"checkpoint$$$" + ID,
        b"writes$T$ns$id",
        b"writes$T$ns$" + ID + b"$task$x",
        b"writes$T$ns$" + ID + b"$$0",
    ],
)
def test_keys_under_our_prefixes_that_nobody_understands_are_unknown(key: bytes) -> None:
    assert READ(key) is None


# Prefixes


@pytest.mark.parametrize(
    ("checkpoints", "writes"),
    [
        ("app", "app_write"),
        ("app:checkpoint", "app:write"),
        ("app", "app:write"),
        ("app:write", "app"),
        ("a:b:c", "a:b"),
        ("checkpoint", "checkpoint:write"),
        ("Ä*[1]", "Ä*"),
        ("checkpoint_latest2", "checkpoint_w"),
    ],
)
def test_configured_prefixes_are_read_though_one_begins_the_other(checkpoints: str, writes: str) -> None:
    """Writes under `app:write:` were checkpoints of the thread `write`."""
    read = reader_of(layouts_of(Prefixes(checkpoints, writes)))
    rest = joined(b"user:1", EMPTY, ID)
    assert read(joined(checkpoints.encode(), rest)) == (CHECKPOINT, b"user:1:__empty__", ID, NOW)
    assert read(joined(writes.encode(), rest, TASK, b"-3")) == (WRITE, b"user:1:__empty__", ID, NOW)
    assert read(zset(b"T", ID)) == (INDEX, b"T:__empty__", ID, NOW)
    assert read(pointer(b"T")) == (POINTER, b"T:__empty__", b"", None)
    if not checkpoints.startswith("checkpoint") and not writes.startswith("checkpoint"):
        assert read(checkpoint(b"T", ID)) is False
        assert read(write(b"T", ID)) is False


# Arbitrary bytes

names = st.binary(max_size=40) | st.sampled_from(THREADS)
namespaces = st.binary(max_size=40) | st.sampled_from(NAMESPACES)
identifiers = st.builds(
    lambda make, age: make(NOW - age),
    st.sampled_from([uuid6, ulid]),
    st.integers(-1000, 3000).map(lambda days: days * DAY),
)


@given(names, namespaces, identifiers, st.integers(-9, 10**6))
@examples(300)
def test_what_was_built_is_read_back(thread: bytes, namespace: bytes, identifier: bytes, index: int) -> None:
    name = group(thread, namespace)
    built: list[tuple[Callable[[], bytes], str]] = [
        (lambda: checkpoint(thread, identifier, namespace), CHECKPOINT),
        (lambda: zset(thread, identifier, namespace), INDEX),
        (lambda: write(thread, identifier, namespace, index=index), WRITE),
    ]
    for make, kind in built:
        part = READ(make())
        assert part and part[:3] == (kind, name, identifier)
        assert part[3] is not None
    assert READ(pointer(thread, namespace)) == (POINTER, name, b"", None)


@given(st.binary(max_size=120), st.sampled_from(layouts_of(Prefixes())))
@examples(500)
def test_no_bytes_raise_an_error_and_nothing_under_our_prefixes_is_foreign(rest: bytes, layout: Layout) -> None:
    part = READ(layout.prefix + rest)
    assert part is not False
    assert part is None or isinstance(part, tuple)
    assert READ(rest) is False or any(rest.startswith(one.prefix) for one in layouts_of(Prefixes()))
    assert isinstance(thread_of(rest), bytes)
    assert rest.startswith(thread_of(rest))


@given(st.lists(names.filter(bool), min_size=1, max_size=4, unique=True), st.data())
@examples(200)
def test_every_group_is_of_one_thread(threads: list[bytes], data: st.DataObject) -> None:
    groups = [group(thread, data.draw(namespaces)) for thread in threads]
    assert sorted(
        itertools.chain(*threads_of(grouped(pointer(*one.rsplit(b":", 1)) for one in groups)).values())
    ) == sorted(set(groups))


# Threads


@pytest.mark.parametrize("thread", [one for one in THREADS if one != b"__empty__"])
@pytest.mark.parametrize("root", [EMPTY, b""], ids=["__empty__", "empty"])
def test_nested_namespaces_are_of_the_thread_whose_root_is_there(thread: bytes, root: bytes) -> None:
    """The namespace of a subgraph that ran once went after a month, while its thread went on."""
    keys = [checkpoint(thread, ID, namespace) for namespace in (root, INNER, DEEP)]
    expected = {thread: [group(thread, namespace) for namespace in (root, INNER, DEEP)]}
    assert threads_of(grouped(keys)) == expected


def test_the_namespaces_of_a_root_that_is_not_there_stand_for_themselves() -> None:
    keys = [checkpoint(b"T", ID, namespace) for namespace in (INNER, DEEP)]
    assert threads_of(grouped(keys)) == {group(b"T", one): [group(b"T", one)] for one in (INNER, DEEP)}


def test_a_thread_whose_id_ends_like_a_namespace_is_of_no_other_thread() -> None:
    """`user-1:session:{uuid}` is a usual id."""
    longer = b"user-1:session:" + uuid4()
    keys = [plain(longer, ID), plain(b"user-1", ID)]
    assert threads_of(grouped(keys)) == {longer: [longer], b"user-1": [b"user-1"]}
    keys = [checkpoint(longer, ID), checkpoint(longer, ID, INNER), checkpoint(b"user-1", ID), blob(longer, b"messages")]
    assert threads_of(grouped(keys)) == {
        longer: [group(longer), group(longer, INNER)],
        b"user-1": [b"user-1:__empty__"],
    }


def test_both_spellings_of_the_empty_namespace_are_one_thread() -> None:
    keys = [shallow(b"T"), write(b"T", ID), zset(b"T", ID, b"")]
    assert {thread: set(names) for thread, names in threads_of(grouped(keys)).items()} == {
        b"T": {b"T:", b"T:__empty__"}
    }


def test_the_recipes_thread_is_not_the_savers() -> None:
    keys = [checkpoint(b"T", ID), recipe(b"T", ID), recipe(b"T", ID, b"ns"), plain(b"T", ID)]
    assert threads_of(grouped(keys)) == {b"T": [b"T:__empty__", b"T"], b"$T": [b"$T$", b"$T$ns"]}
