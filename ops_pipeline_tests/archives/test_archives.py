"""Archives: what is restored is what was archived, and nothing half-written counts."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, BigInteger, Boolean, Column, Date, Double, Engine, MetaData, Table, Text, delete, select

from ops_pipeline.archives.columns import archived_columns, batch_of, schema_of, stored_batches
from ops_pipeline.archives.manifest import Manifest, new_id, read_manifest, read_manifests, write_deleted
from ops_pipeline.archives.restoring import restore_folders, restore_rows, rows_of
from ops_pipeline.archives.store import Store, open_store, write_small
from ops_pipeline.archives.writing import ArchiveWriter
from ops_pipeline.database.engine import reading, writing
from ops_pipeline.database.rows import row_hash
from ops_pipeline.database.types import ExactDecimal, UtcDateTime
from ops_pipeline.reconcile import Unavailable
from ops_pipeline_tests.object_store import bucket

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
things = Table(
    "things",
    MetaData(),
    Column("id", Text, primary_key=True),
    Column("facts", JSON),
    Column("at", UtcDateTime),
    Column("day", Date),
    Column("amount", ExactDecimal(10, 20)),
    Column("seconds", Double),
    Column("number", BigInteger),
    Column("yes", Boolean),
)
one_database = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def filled(engine: Engine) -> Engine:
    with writing(engine) as connection:
        things.create(connection)
    return engine


@pytest.fixture(params=["folder", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A folder, and a bucket of a real server that speaks S3."""
    if request.param == "folder":
        yield open_store(str(tmp_path / "archive"))
    else:
        with bucket(monkeypatch) as url:
            yield open_store(f"{url}/archive")


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "archive"))


def put(engine: Engine, *rows: dict[str, Any]) -> None:
    with writing(engine) as connection:
        connection.execute(delete(things))
        if rows:
            connection.execute(things.insert(), list(rows))


def stored(engine: Engine) -> list[tuple[Any, ...]]:
    """Every row as it stands, JSON as text, with its hash."""
    with reading(engine) as connection:
        return [tuple(row) for row in connection.execute(select(*archived_columns(things)).order_by(things.c.id))]


def archive(engine: Engine, store: Store, kind: str = "things", **folders: Path) -> Manifest:
    with ArchiveWriter(store, kind, new_id(NOW)) as writer:
        writer.write(things, stored(engine))
        writer.write_folders(folders)
        return writer.finish(NOW, "they were old", {"month": "2026-03"})


def restore(engine: Engine, store: Store, manifest: Manifest) -> dict[str, int]:
    return restore_rows(engine, store, manifest, {"things": things})


def thing(key: str, **values: Any) -> dict[str, Any]:
    return {column.name: values.get(column.name) for column in things.columns} | {"id": key}


def test_rows_that_the_database_copies_out_are_those_that_it_gives_one_by_one(filled: Engine) -> None:
    full = {"day": date(2026, 2, 28), "amount": Decimal("-1.5"), "seconds": 0.1, "number": -(2**62)}
    at = datetime(2026, 3, 10, 12, 0, 0, 123456, tzinfo=UTC)
    put(
        filled,
        thing("nothing"),
        thing("all", facts={"ä": [1, None, '"', "\n,"]}, at=at, **full),
        thing('odd "key", \\ \r\n', facts=""),
        thing("left out"),
    )
    keys = ["nothing", "all", 'odd "key", \\ \r\n']
    with reading(filled) as connection:
        (copied,) = stored_batches(connection, things, things.c.id, keys, 100)
    expected = batch_of(schema_of(things), [row for row in stored(filled) if row[0] in keys])
    assert copied.sort_by("id").to_pylist() == expected.sort_by("id").to_pylist()


def test_what_is_restored_equals_what_was_archived(filled: Engine, store: Store) -> None:
    put(
        filled,
        thing("nothing"),
        thing(
            "all",
            facts={"ä": [1, 2.5, None, "\n"], "b": {"c": True}},
            at=datetime(2026, 3, 10, 12, 0, 0, 123000, tzinfo=UTC),
            day=date(2026, 2, 28),
            amount=Decimal("-1234567890.0123456789"),
            seconds=0.1,
            number=2**62,
            yes=False,
        ),
        thing("infinite", seconds=math.inf, facts="just text", yes=True),
    )
    before = stored(filled)
    manifest = archive(filled, store)
    put(filled)
    assert restore(filled, store, manifest) == {"things": 3}
    assert stored(filled) == before
    # Again: everything is there.
    assert restore(filled, store, manifest) == {"things": 0}
    assert stored(filled) == before
    (read,) = read_manifests(store, "things")
    assert (read.id, read.reason, read.facts, read.rows) == (
        manifest.id,
        "they were old",
        {"month": "2026-03"},
        {"things": 3},
    )
    assert read == manifest


INSTANTS = st.datetimes(datetime(1971, 1, 1), datetime(9000, 1, 1)).map(  # noqa: DTZ001 - made aware at once
    lambda value: value.replace(microsecond=value.microsecond // 1000 * 1000, tzinfo=UTC)
)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
THINGS = st.builds(
    thing,
    TEXTS,
    facts=JSONS,
    at=st.none() | INSTANTS,
    day=st.none() | st.dates(),
    amount=st.none() | st.decimals(-(10**9), 10**9, allow_nan=False, places=10),
    seconds=st.none() | st.floats(allow_nan=False),
    number=st.none() | st.integers(-(2**63), 2**63 - 1),
    yes=st.none() | st.booleans(),
)


@one_database
@given(st.lists(THINGS, max_size=8, unique_by=lambda row: row["id"]))
def test_whatever_rows_there_are_come_back(filled: Engine, folder: Store, rows: list[dict[str, Any]]) -> None:
    put(filled, *rows)
    before = stored(filled)
    manifest = archive(filled, folder)
    put(filled)
    assert sum(restore(filled, folder, manifest).values()) == len(rows)
    assert stored(filled) == before


def test_the_text_of_json_comes_back_to_the_last_blank(filled: Engine, folder: Store) -> None:
    """A document with a key twice, or with blanks of its own, was another one after it was read and written."""
    text = '{"a" : 1,   "a":2, "n": 1.10}'
    with writing(filled) as connection:
        connection.exec_driver_sql(f"INSERT INTO things (id, facts) VALUES ('one', '{text}')")
    manifest = archive(filled, folder)
    put(filled)
    restore(filled, folder, manifest)
    with reading(filled) as connection:
        assert connection.exec_driver_sql("SELECT CAST(facts AS TEXT) FROM things").scalar() == text


def test_the_hash_of_a_row_changes_with_each_of_its_columns(filled: Engine) -> None:
    values = {
        "facts": {"a": 1},
        "at": NOW,
        "day": NOW.date(),
        "amount": Decimal(1),
        "seconds": 1.5,
        "number": 1,
        "yes": True,
    }

    def hash_of(**changed: Any) -> int:
        put(filled, thing("one", **(values | changed)))
        with reading(filled) as connection:
            return connection.execute(select(row_hash(things))).scalar_one()

    first = hash_of()
    assert hash_of() == first
    others = [
        {"facts": {"a": 2}},
        {"facts": None},
        {"at": NOW + timedelta(milliseconds=1)},
        {"day": None},
        {"amount": Decimal("1.0000000001")},
        {"seconds": 1.25},
        {"number": 2},
        {"yes": False},
        {"yes": None},
    ]
    assert len({first, *(hash_of(**changed) for changed in others)}) == 1 + len(others)


def test_rows_that_were_left_in_the_database_are_not_restored(filled: Engine, folder: Store) -> None:
    put(filled, thing("gone"), thing("kept"))
    manifest = archive(filled, folder)
    write_deleted(folder, manifest, {"things": ["kept"]})
    put(filled)
    read = read_manifest(folder, "things", manifest.id)
    assert read is not None
    assert restore(filled, folder, read) == {"things": 1}
    assert [row[0] for row in stored(filled)] == ["gone"]


def test_a_restore_changes_no_row_that_is_there(filled: Engine, folder: Store) -> None:
    put(filled, thing("one", number=1), thing("two", number=1))
    manifest = archive(filled, folder)
    put(filled, thing("one", number=2))
    assert restore(filled, folder, manifest) == {"things": 1}
    assert [(row[0], row[6]) for row in stored(filled)] == [("one", 2), ("two", 1)]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_file_is_refused_before_anything_is_restored(filled: Engine, folder: Store, damage: str) -> None:
    put(filled, thing("one"))
    manifest = archive(filled, folder)
    put(filled)
    path = Path(folder.path(manifest.folder, "things.parquet"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] if damage == "cut" else content[:-9] + b"x" + content[-8:])
    with pytest.raises(ValueError, match=r"things\.parquet is damaged, its checksum is another one"):
        restore(filled, folder, manifest)
    assert stored(filled) == []


def test_a_damaged_manifest_is_named(filled: Engine, folder: Store) -> None:
    put(filled, thing("one"))
    manifest = archive(filled, folder)
    path = Path(folder.path(manifest.folder, "manifest.json"))
    path.write_text(path.read_text()[:-3])
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        list(read_manifests(folder))
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="has format 99, this version reads 1"):
        list(read_manifests(folder))


def test_without_a_manifest_there_is_no_archive(filled: Engine, folder: Store) -> None:
    put(filled, thing("one"))
    with ArchiveWriter(folder, "things", new_id(NOW)) as writer:
        writer.write(things, stored(filled))
    assert list(read_manifests(folder)) == []
    assert list(Path(folder.root).rglob("*.parquet")) != []


def test_a_writer_that_fails_leaves_no_file(filled: Engine, folder: Store) -> None:
    put(filled, thing("one"))
    with pytest.raises(RuntimeError), ArchiveWriter(folder, "things", new_id(NOW)) as writer:
        writer.write(things, stored(filled))
        raise RuntimeError
    assert [path for path in Path(folder.root).rglob("*") if path.is_file()] == []


def test_a_value_of_another_type_names_its_column(sqlite_engine: Engine, folder: Store) -> None:
    """SQLite keeps whatever somebody writes into a column of numbers."""
    with writing(sqlite_engine) as connection:
        things.create(connection)
        connection.exec_driver_sql("INSERT INTO things (id, number) VALUES ('one', 'many')")
    with pytest.raises(ValueError, match="column number: "):
        archive(sqlite_engine, folder)


def test_a_table_that_lost_a_column_is_refused(filled: Engine, folder: Store) -> None:
    put(filled, thing("one"))
    manifest = archive(filled, folder)
    narrow = Table("things", MetaData(), Column("id", Text, primary_key=True))
    with pytest.raises(ValueError, match="things has no columns facts, at, day"):
        restore_rows(filled, folder, manifest, {"things": narrow})
    with pytest.raises(ValueError, match="holds rows of things, and there is no such table"):
        restore_rows(filled, folder, manifest, {})


def test_columns_of_archived_rows_can_be_read_alone(filled: Engine, folder: Store) -> None:
    put(filled, thing("one", number=1), thing("two", number=2))
    manifest = archive(filled, folder)
    assert rows_of(folder, manifest, things, ("number", "id")) == [(1, "one"), (2, "two")]


def test_directories_come_back_with_their_files_and_links(filled: Engine, store: Store, tmp_path: Path) -> None:
    task = tmp_path / "results" / "task_1"
    (task / "sarif").mkdir(parents=True)
    (task / "manifest.json").write_text("{}")
    (task / "sarif" / "a.json").write_bytes(b"\0" * 1000)
    (task / "latest").symlink_to("manifest.json")
    empty = tmp_path / "results" / "task_2"
    empty.mkdir()
    manifest = archive(filled, store, **{"gpt/app1/task_1": task, "gpt/app1/task_2": empty})
    assert manifest.rows == {"files": 2}
    target = tmp_path / "again"
    assert restore_folders(store, manifest, target, ["gpt/app1/task_2"]) == 1
    found = target / "gpt" / "app1" / "task_1"
    assert (found / "sarif" / "a.json").read_bytes() == b"\0" * 1000
    assert (found / "latest").readlink() == Path("manifest.json")
    assert not (target / "gpt" / "app1" / "task_2").exists()
    # What is there stays as it is.
    (found / "manifest.json").write_text("mine")
    assert restore_folders(store, manifest, target, []) == 1
    assert (found / "manifest.json").read_text() == "mine"


def test_a_link_that_leads_out_of_the_results_is_refused(filled: Engine, folder: Store, tmp_path: Path) -> None:
    task = tmp_path / "task_1"
    task.mkdir()
    (task / "passwd").symlink_to("/etc/passwd")
    manifest = archive(filled, folder, **{"task_1": task})
    with pytest.raises(ValueError, match=r"task_1/passwd in the archive leads elsewhere"):
        restore_folders(folder, manifest, tmp_path / "again", [])


def test_a_small_file_is_replaced_as_a_whole(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(folder, "a", "manifest.json", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_small(folder, "a", "manifest.json", b"new")
    assert [path.read_bytes() for path in Path(folder.root, "a").iterdir()] == [b"old"]


@pytest.mark.parametrize("name", ["../a", "/etc", "a/../../b"])
def test_a_name_that_leads_out_of_the_store_is_refused(folder: Store, name: str) -> None:
    with pytest.raises(ValueError, match="leads out of"):
        folder.path(name)


def test_a_url_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(Unavailable, match="nothing://a"):
        open_store("nothing://a/b")
