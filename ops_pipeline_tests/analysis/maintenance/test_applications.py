"""Orphan applications: marked, looked at for days, archived and deleted, and nothing on one look."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, update

from ops_pipeline.analysis.maintenance import application_store as store
from ops_pipeline.analysis.maintenance import clean_applications as module
from ops_pipeline.analysis.maintenance import delete_applications as deletion
from ops_pipeline.analysis.maintenance.applications import (
    CLEAR,
    DELETE,
    LOOK,
    LOOKS,
    MARK,
    Application,
    Policy,
    decide,
)
from ops_pipeline.analysis.maintenance.labels import hold_of, retention_of
from ops_pipeline.analysis.maintenance.root import Found
from ops_pipeline.analysis.maintenance.tables import application_roots
from ops_pipeline.analysis.maintenance.walk import MARKER
from ops_pipeline.analysis.tables import generated_applications
from ops_pipeline.archives.manifest import read_manifests
from ops_pipeline.archives.restoring import restore_rows
from ops_pipeline.archives.store import open_store
from ops_pipeline.archives.tables import archives
from ops_pipeline.database.engine import reading, writing
from ops_pipeline.database.leases import leased
from ops_pipeline.reconcile import SafetyLimit
from ops_pipeline_tests.analysis.maintenance.scene import DAY, HOUR, SECOND, WEEK, Scene, changed

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
NOTHING = Found(1, "m", {"gpt": frozenset()})


def missing(age: timedelta, *, looks: int = LOOKS, seen: timedelta = timedelta(0), **fields: Any) -> Application:
    return Application("1", "gpt", 1, 1, NOW - age, looks, NOW - seen, **fields)


def action_of(row: Application, found: Found = NOTHING, policy: Policy = WEEK, now: datetime = NOW) -> str | None:
    changes = decide([row], found, policy, now).changes
    return changes[0][0].action if changes else None


# The rule


@pytest.mark.parametrize(
    ("age", "action"),
    [
        (7 * DAY - SECOND, None),
        (7 * DAY, None),
        (7 * DAY + SECOND, DELETE),
        (400 * DAY, DELETE),
        (6 * DAY, None),
        (timedelta(0), None),
    ],
)
def test_an_application_goes_after_seven_days_and_not_exactly_at_them(age: timedelta, action: str | None) -> None:
    assert action_of(missing(age)) == action


def test_the_first_look_marks_and_a_directory_that_is_back_takes_the_mark_away() -> None:
    there = Found(1, "m", {"gpt": frozenset({1})})
    assert action_of(Application("1", "gpt", 1)) == MARK
    assert action_of(Application("1", "gpt", 1), there) is None
    assert action_of(missing(6 * DAY), there) == CLEAR
    # Also when it was due.
    assert action_of(missing(8 * DAY), there) == CLEAR


@pytest.mark.parametrize("looks", [1, 2])
def test_an_application_seen_missing_on_too_few_looks_stays(looks: int) -> None:
    """Two runs, eight days apart, and the second one deleted what an unmounted disk held."""
    row = missing(8 * DAY, looks=looks, seen=8 * DAY)
    assert action_of(row) == LOOK
    kept = decide([row], NOTHING, WEEK, NOW).kept
    assert kept == {"its grace is over, but it was seen missing less than 3 times spread over it": 1}


def test_looks_count_when_they_lie_a_quarter_of_the_grace_apart() -> None:
    assert WEEK.spacing() == timedelta(hours=42)
    assert action_of(missing(3 * DAY, looks=1, seen=42 * HOUR)) == LOOK
    assert action_of(missing(3 * DAY, looks=1, seen=42 * HOUR - SECOND)) is None


def test_a_clock_that_jumps_ahead_deletes_nothing_at_once() -> None:
    row, now = missing(HOUR, looks=1, seen=HOUR), NOW + 365 * DAY
    steps = []
    for _ in range(4):
        action = action_of(row, now=now)
        steps.append(action)
        if action == LOOK:
            row = replace(row, looks=row.looks + 1, seen_at=now)
        now += HOUR
    # One look counts at the jump; the next one counts almost two days later.
    assert steps == [LOOK, None, None, None]
    assert row.looks == 2


def test_a_clock_that_was_set_back_begins_the_grace_anew() -> None:
    assert action_of(missing(-HOUR)) == MARK
    assert action_of(missing(6 * DAY, looks=2, seen=-HOUR)) == LOOK


@pytest.mark.parametrize("labels", [{"legal_hold": True}, ["legal_hold"], {"legal_hold": "case 7"}, "junk", 5])
def test_a_hold_keeps_an_application_whatever_its_age(labels: Any) -> None:
    row = missing(400 * DAY, hold=hold_of(labels))
    assert action_of(row) is None
    assert sum(decide([row], NOTHING, WEEK, NOW).kept.values()) == 1


@pytest.mark.parametrize("labels", [None, {}, [], {"legal_hold": False}, {"legal_hold": None}, {"legal_hold": ""}])
def test_labels_without_a_hold_keep_nothing(labels: Any) -> None:
    assert hold_of(labels) == ""


def test_the_longest_retention_wins() -> None:
    assert action_of(missing(8 * DAY, retention=30 * DAY)) is None
    assert action_of(missing(31 * DAY, retention=30 * DAY)) == DELETE
    assert action_of(missing(8 * DAY, retention=DAY)) == DELETE
    assert action_of(missing(6 * DAY, retention=DAY)) is None
    assert action_of(missing(6000 * DAY, retention=retention_of({"retention_days": "for ever"}))) is None
    assert retention_of({"retention_days": "30"}) == 30 * DAY


def test_what_nobody_could_look_at_is_neither_missing_nor_there() -> None:
    found = Found(1, "m", {"gpt": frozenset()}, {("gpt", 1): "app1 is a dangling link"}, unknown={"o1": "Stale handle"})
    rows = [missing(8 * DAY), replace(missing(8 * DAY), id="2", slug="o1")]
    decisions = decide(rows, found, WEEK, NOW)
    assert decisions.changes == ()
    assert decisions.failed == {"gpt/app1": "app1 is a dangling link", "o1/app1": "Stale handle"}


def test_the_backlog_is_how_overdue_the_oldest_is() -> None:
    assert decide([missing(9 * DAY), missing(8 * DAY)], NOTHING, WEEK, NOW).oldest == 2 * DAY
    assert decide([missing(7 * DAY)], NOTHING, WEEK, NOW).oldest == timedelta(0)


ROWS = st.builds(
    Application,
    st.just("1"),
    st.sampled_from(["gpt", "o1", "lost"]),
    st.integers(1, 2),
    missing_since=st.none() | st.integers(-20, 20).map(lambda hours: NOW - 7 * DAY + hours * HOUR),
    looks=st.integers(0, 4),
    seen_at=st.none() | st.integers(-200, 200).map(lambda hours: NOW - hours * HOUR),
    hold=st.sampled_from(["", "under legal hold"]),
    retention=st.none() | st.integers(1, 400).map(lambda days: days * DAY),
)
FOUND = Found(1, "m", {"gpt": frozenset({1})}, {("gpt", 2): "odd"}, frozenset({"lost"}), {"o1": "Stale file handle"})


@settings(max_examples=300, deadline=None)
@given(st.lists(ROWS, max_size=6))
def test_nothing_within_its_grace_present_held_or_unseen_is_ever_deleted(rows: list[Application]) -> None:
    decisions = decide(rows, FOUND, WEEK, NOW)
    for row in decisions.of(DELETE):
        assert row.slug == "lost"
        assert not row.hold
        assert row.missing_since is not None
        assert NOW - row.missing_since > max(WEEK.retention, row.retention or WEEK.retention)
        assert row.looks >= LOOKS
    assert len(decisions.changes) + len(decisions.failed) <= decisions.scanned == len(rows)


# The pass


def test_marks_come_and_go_with_directories(scene: Scene) -> None:
    scene.applications(20)
    assert changed(scene.clean()) == []
    scene.remove(3)
    report = scene.clean()
    assert changed(report) == [("gpt/app3", MARK)]
    assert (report.status, report.outcome.changed, scene.marks()["gpt/app3"]) == ("success", 1, (True, 1))
    # A second run right after changes nothing.
    assert scene.clean().outcome.changed == 0
    (scene.root / "gpt" / "app3").mkdir()
    assert changed(scene.clean()) == [("gpt/app3", CLEAR)]
    assert scene.marks()["gpt/app3"] == (False, 0)


def test_an_application_is_deleted_after_its_grace_and_three_looks(scene: Scene) -> None:
    scene.applications(20)
    scene.clean()
    scene.remove(3)
    scene.clean()
    actions = []
    for _ in range(8):
        scene.grow_older(DAY)
        actions += [action for _, action in changed(scene.clean())]
    assert actions == [LOOK, LOOK, LOOK, DELETE]
    assert "gpt/app3" not in scene.marks()
    assert len(scene.marks()) == 19
    assert any("Marked 1 apps as missing (grace period: 7 days)" in line for line in scene.lines)
    assert "[MaintenanceService] Cleaned 1 orphan app records" in scene.lines
    assert "[MaintenanceService] 1 apps ready for deletion (missing > 7 days)" in scene.lines


def due(scene: Scene, *numbers: int, age: timedelta = 8 * DAY) -> None:
    """Mark applications as long missing and often enough seen so."""
    with writing(scene.engine) as connection:
        from ops_pipeline.database.engine import database_now

        since = database_now(connection) - age
        values = {"missing_since": since, "missing_looks": 3, "missing_seen_at": since + 5 * DAY}
        mine = generated_applications.c.app_number.in_(numbers)
        connection.execute(update(generated_applications).where(mine).values(values))


def settled(scene: Scene, count: int = 20) -> None:
    """A root that is known, with applications."""
    scene.applications(count)
    assert scene.clean().status == "success"


def test_a_deleted_application_can_be_restored_as_it_was(scene: Scene) -> None:
    settled(scene)
    scene.execute("UPDATE generated_applications SET labels = '{\"a\":  1}', error_message = 'ä' WHERE app_number = 4")
    scene.remove(4)
    due(scene, 4)
    before = scene.rows(generated_applications)
    report = scene.clean()
    assert changed(report) == [("gpt/app4", DELETE)]
    where = open_store(str(scene.archive))
    (manifest,) = read_manifests(where)
    assert report.facts["archives"] == [manifest.folder]
    assert (manifest.kind, manifest.rows, manifest.left_out) == (
        "generated_applications",
        {"generated_applications": 1},
        {},
    )
    restored = restore_rows(scene.engine, where, manifest, {"generated_applications": generated_applications})
    assert restored == {"generated_applications": 1}
    assert scene.rows(generated_applications) == before


def test_one_that_returns_between_the_look_and_the_deletion_stays(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(scene)
    scene.remove(4)
    due(scene, 4)
    real = deletion.look

    def returning(*arguments: Any, **keywords: Any) -> Found:
        (scene.root / "gpt" / "app4").mkdir()
        return real(*arguments, **keywords)

    monkeypatch.setattr(deletion, "look", returning)
    report = scene.clean()
    assert (report.outcome.skipped, report.facts["deleted"], len(scene.marks())) == (1, 0, 20)


@pytest.mark.parametrize(
    "meanwhile",
    [
        "UPDATE generated_applications SET missing_since = NULL WHERE app_number = 4",
        "UPDATE generated_applications SET labels = '{\"legal_hold\": true}' WHERE app_number = 4",
        "UPDATE generated_applications SET template_slug = 'other' WHERE app_number = 4",
    ],
)
def test_what_somebody_changes_between_archive_and_deletion_stays(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    settled(scene)
    scene.remove(4)
    due(scene, 4)
    real = deletion._delete_archived

    def after(*arguments: Any) -> Any:
        scene.execute(meanwhile)
        return real(*arguments)

    monkeypatch.setattr(deletion, "_delete_archived", after)
    report = scene.clean()
    assert (report.outcome.skipped, len(scene.marks())) == (1, 20)
    (manifest,) = read_manifests(open_store(str(scene.archive)))
    assert list((manifest.left_out or {})["generated_applications"]) != []


def test_a_dry_run_writes_nothing(scene: Scene) -> None:
    scene.applications(20)
    scene.remove(4)
    scene.remove(5)
    due(scene, 4)
    before = scene.rows(generated_applications)
    report = scene.clean(dry_run=True)
    assert sorted(changed(report)) == [("gpt/app4", DELETE), ("gpt/app5", MARK)]
    assert scene.rows(generated_applications) == before
    assert scene.rows(application_roots) == scene.rows(archives) == []
    assert not scene.archive.exists()
    assert not (scene.root / MARKER).exists()


@pytest.mark.parametrize(("gone", "refused"), [(2, False), (3, True)])
def test_more_than_a_fifth_newly_missing_refuses_the_pass(scene: Scene, *, gone: int, refused: bool) -> None:
    settled(scene, 10)
    for number in range(1, gone + 1):
        scene.remove(number)
    report = scene.clean()
    assert bool(report.error) is refused
    assert sum(marked for marked, _ in scene.marks().values()) == (0 if refused else gone)
    if refused:
        assert "Refused, applications would be marked missing at once: 3 of 10 objects are more than" in report.error
        assert len(report.changes) == 3


def test_of_fewer_than_ten_applications_a_share_says_nothing(scene: Scene) -> None:
    settled(scene, 9)
    for number in range(1, 8):
        scene.remove(number)
    assert scene.clean().outcome.changed == 7


@pytest.mark.parametrize(("limit", "deleted"), [(SafetyLimit(count=2), 0), (SafetyLimit(count=3), 3)])
def test_the_cap_on_deletions_refuses_one_more_than_it(scene: Scene, limit: SafetyLimit, deleted: int) -> None:
    settled(scene)
    for number in (1, 2, 3):
        scene.remove(number)
    due(scene, 1, 2, 3)
    report = scene.clean(limit=limit)
    assert (report.facts["deleted"], len(scene.marks())) == (deleted, 20 - deleted)
    if not deleted:
        assert "applications would be deleted: 3 changes are more than the limit of 2" in report.error
        assert report.backlog_seconds > 86_000


def test_a_share_of_deletions_is_refused_too(scene: Scene) -> None:
    settled(scene)
    scene.remove(1)
    due(scene, 1)
    assert "1 of 20 objects are more than the limit of 4%" in scene.clean(limit=SafetyLimit(share=0.04)).error


def test_when_the_time_is_up_the_rest_is_told_and_goes_with_the_next_run(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(scene)
    for number in (1, 2, 3):
        scene.remove(number)
    due(scene, 1, 2, 3)
    monkeypatch.setattr(deletion, "ROWS_PER_ARCHIVE", 1)
    ticks = itertools.count()
    report = scene.clean(clock=lambda: next(ticks), budget_seconds=2.5)
    assert (report.facts["deleted"], report.left, report.status) == (2, 1, "success")
    assert report.backlog_seconds == pytest.approx(86_400, abs=60)
    rest = scene.clean()
    assert (rest.facts["deleted"], rest.left, rest.backlog_seconds) == (1, 0, 0)


# The root at each moment


def renamed(scene: Scene) -> None:
    scene.root.rename(scene.folder / "elsewhere")


def emptied(scene: Scene) -> None:
    for path in scene.root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def replaced(scene: Scene) -> None:
    """Another root is mounted there, with applications of the same names."""
    scene.root.rename(scene.folder / "elsewhere")
    (scene.root / "gpt" / "app7").mkdir(parents=True)


def moved_to_another_device(scene: Scene) -> None:
    scene.execute("UPDATE application_roots SET device = device + 1")


GONE = [renamed, emptied, replaced, moved_to_another_device]


@pytest.mark.parametrize("happens", GONE)
@pytest.mark.parametrize("moment", ["before any mark", "while marked", "when due"])
def test_without_its_root_no_application_is_marked_or_deleted(
    scene: Scene, happens: Callable[[Scene], None], moment: str
) -> None:
    settled(scene)
    if moment != "before any mark":
        scene.remove(4)
        due(scene, 4, age=DAY if moment == "while marked" else 8 * DAY)
    before = scene.rows(generated_applications)
    happens(scene)
    report = scene.clean()
    assert (report.status, report.outcome.changed) == ("failed", 0)
    assert "No application was marked or deleted" in report.error
    assert scene.rows(generated_applications) == before
    assert scene.rows(archives) == []


@pytest.mark.parametrize("happens", GONE)
def test_a_root_that_goes_between_the_look_and_the_deletion_deletes_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Scene], None]
) -> None:
    settled(scene)
    scene.remove(4)
    due(scene, 4)
    real = deletion.look

    def going(*arguments: Any, **keywords: Any) -> Found:
        happens(scene)
        return real(*arguments, **keywords)

    monkeypatch.setattr(deletion, "look", going)
    report = scene.clean()
    assert report.status == "failed"
    assert len(scene.rows(generated_applications)) == 20
    assert scene.rows(archives) == []


def test_a_person_may_adopt_a_root_that_moved(scene: Scene) -> None:
    settled(scene)
    shutil.copytree(scene.root, scene.folder / "copy", ignore=shutil.ignore_patterns(MARKER))
    shutil.rmtree(scene.root)
    (scene.folder / "copy").rename(scene.root)
    assert "lacks the marker" in scene.clean().error
    assert scene.clean(adopt_root=True).status == "success"
    assert scene.clean().status == "success"
    assert (scene.root / MARKER).exists()


def test_folders_that_cannot_be_read_are_told_and_the_others_are_done(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(scene)
    scene.application("claude", 1)
    scene.remove(4)
    real = module.look

    def stale(*arguments: Any, **keywords: Any) -> Found:
        found = real(*arguments, **keywords)
        return replace(found, present={"gpt": found.present["gpt"]}, unknown={"claude": "Stale file handle"})

    monkeypatch.setattr(module, "look", stale)
    report = scene.clean()
    assert (report.status, report.outcome.failed, report.outcome.changed) == ("failed", 1, 1)
    assert scene.marks()["claude/app1"] == (False, 0)
    assert ("claude/app1", "could not look") in changed(report)


def test_without_a_root_the_pass_is_off(small: Scene) -> None:
    lab = small.lab(applications="")
    report = module.clean_orphan_applications(lab, WEEK, small.options())
    assert (report.status, report.skipped) == ("off", "GENERATED_APPS_DIR names no root of generated applications.")


# Two at once, and dead ones


def test_a_second_run_at_the_same_time_stops(scene: Scene) -> None:
    settled(scene)
    with leased(scene.engine, "maintenance orphan_applications"):
        report = scene.clean()
    assert "is at work in another run: wait for it" in report.error
    assert scene.clean().status == "success"


class Killed(BaseException):
    """The process is gone: nothing after it is done."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed


@pytest.mark.parametrize("step", ["written", "half deleted", "deleted"])
def test_what_a_dead_run_left_is_finished_and_nothing_is_lost_or_twice(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    settled(scene)
    scene.remove(4)
    scene.remove(5)
    due(scene, 4, 5)
    before = scene.rows(generated_applications)
    from ops_pipeline.archives import steps

    with monkeypatch.context() as patch:
        if step == "deleted":
            patch.setattr(steps, "conclude", killed)
        elif step == "half deleted":
            patch.setattr(deletion, "SMALLEST_BATCH", 1)
            real, calls = store.delete_archived, []

            def once(*arguments: Any) -> Any:
                if calls:
                    raise Killed
                calls.append(1)
                return real(*arguments)

            patch.setattr(store, "delete_archived", once)
        else:
            patch.setattr(deletion, "_delete_archived", killed)
        with pytest.raises(Killed):
            scene.clean()
    report = scene.clean()
    assert report.facts["finished_archives_of_dead_runs"] == 1
    where = open_store(str(scene.archive))
    (manifest,) = read_manifests(where)
    assert len(scene.rows(generated_applications)) == 18
    assert [row["state"] for row in scene.rows(archives)] == ["done"]
    restore_rows(scene.engine, where, manifest, {"generated_applications": generated_applications})
    assert scene.rows(generated_applications) == before


def test_a_directory_that_came_back_after_a_run_died_keeps_its_application(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run deleted what the dead one had archived, without a look at the disk."""
    settled(scene)
    scene.remove(4)
    scene.remove(5)
    due(scene, 4, 5)
    with monkeypatch.context() as patch:
        patch.setattr(deletion, "_delete_archived", killed)
        with pytest.raises(Killed):
            scene.clean()
    (scene.root / "gpt" / "app4").mkdir()
    report = scene.clean()
    assert (report.status, report.facts["finished_archives_of_dead_runs"]) == ("success", 1)
    assert "gpt/app4" in scene.marks()
    assert scene.marks()["gpt/app4"] == (False, 0)
    assert "gpt/app5" not in scene.marks()
    (manifest,) = read_manifests(open_store(str(scene.archive)))
    assert [len(keys) for keys in (manifest.left_out or {}).values()] == [1]


@pytest.mark.parametrize("happens", GONE)
def test_without_its_root_nothing_that_a_dead_run_archived_is_deleted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Scene], None]
) -> None:
    settled(scene)
    scene.remove(4)
    due(scene, 4)
    with monkeypatch.context() as patch:
        patch.setattr(deletion, "_delete_archived", killed)
        with pytest.raises(Killed):
            scene.clean()
    happens(scene)
    assert scene.clean().status == "failed"
    assert len(scene.rows(generated_applications)) == 20
    assert [row["state"] for row in scene.rows(archives)] == ["written"]


def test_an_archive_that_another_run_took_for_dead_deletes_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stood still while it wrote, another one removed its files, and it deleted what was archived nowhere."""
    settled(scene)
    scene.remove(4)
    due(scene, 4)
    from ops_pipeline.archives import steps
    from ops_pipeline.archives import writing as archive_writing

    real = archive_writing.write_manifest

    def paused(where: Any, manifest: Any) -> None:
        steps.give_up(scene.engine, where, manifest.kind, manifest.id, "writing")
        real(where, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(archive_writing, "write_manifest", paused)
        report = scene.clean()
    assert "was given up by another run. Nothing of it was deleted." in report.error
    assert len(scene.rows(generated_applications)) == 20
    assert list(read_manifests(open_store(str(scene.archive)))) == []
    assert scene.clean().facts["deleted"] == 1


def test_a_row_that_somebody_holds_stays_and_the_others_go(postgres_engine: Engine, tmp_path: Path) -> None:
    scene = Scene(postgres_engine, tmp_path)
    settled(scene)
    for number in (4, 5):
        scene.remove(number)
    due(scene, 4, 5)
    with writing(postgres_engine) as connection:
        connection.exec_driver_sql("SELECT * FROM generated_applications WHERE app_number = 4 FOR UPDATE")
        report = scene.clean()
    assert (report.status, report.facts["deleted"], report.outcome.skipped) == ("success", 1, 1)
    assert len(scene.rows(generated_applications)) == 19
    assert scene.clean().facts["deleted"] == 1


def test_every_model_is_looked_for_and_every_version_counts(scene: Scene) -> None:
    for slug in ("b", "a/b", "Ü", "a"):
        scene.applications(3, slug)
    scene.application("a", 2, version=2)
    scene.application("c", 7, on_disk=False, version=4)
    scene.application("a/b", 1, labels={"retention_days": 9}, version=3)
    with reading(scene.engine) as connection:
        assert sorted(store.read_slugs(connection)) == ["a", "a/b", "b", "c", "Ü"]
    report = scene.clean()
    assert (report.outcome.scanned, changed(report)) == (15, [("c/app7 version 4", MARK)])
    assert report.outcome.unchanged == 14


def test_without_any_application_there_is_nothing_to_look_for(scene: Scene) -> None:
    scene.root.mkdir(exist_ok=True)
    report = scene.clean()
    assert (report.status, report.outcome.scanned) == ("success", 0)


def test_an_archive_that_was_not_finished_is_removed_and_made_anew(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(scene)
    scene.remove(4)
    due(scene, 4)
    from ops_pipeline.archives import writing as archive_writing

    with monkeypatch.context() as patch:
        patch.setattr(archive_writing, "write_manifest", killed)
        with pytest.raises(Killed):
            scene.clean()
    assert [row["state"] for row in scene.rows(archives)] == ["writing"]
    report = scene.clean()
    assert report.status == "success"
    assert sorted(row["state"] for row in scene.rows(archives)) == ["done", "given_up"]
    assert len(list(read_manifests(open_store(str(scene.archive))))) == 1
    assert len(list(scene.archive.rglob("*.parquet"))) == 1


def test_a_full_disk_deletes_nothing_and_leaves_no_archive(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(scene)
    scene.remove(4)
    due(scene, 4)
    import errno
    import os

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        report = scene.clean()
    assert "No space left on device" in report.error
    assert len(scene.rows(generated_applications)) == 20
    assert list(scene.archive.rglob("*.parquet")) == []
    assert [row["state"] for row in scene.rows(archives)] == ["given_up"]
    assert scene.clean().facts["deleted"] == 1


def test_times_that_other_programs_wrote_are_read(small: Scene) -> None:
    """Naive times raised as soon as one application was due, and nothing was cleaned for months."""
    settled(small)
    for number, text in ((1, "2020-01-01T00:00:00"), (2, "2020-01-01 00:00:00+02:00"), (3, "2020-01-01T00:00:00.5Z")):
        small.remove(number)
        small.execute(
            f"UPDATE generated_applications SET missing_since = '{text}', missing_looks = 3,"
            f" missing_seen_at = '{text}' WHERE app_number = {number}"
        )
    report = small.clean()
    assert (report.status, report.facts["deleted"]) == ("success", 3)


@pytest.mark.parametrize("status", ["pending", "running"])
def test_an_application_that_is_still_to_be_made_is_not_missed(scene: Scene, status: str) -> None:
    """Its pipeline took its number and made it two days later: it was marked as missing all the while."""
    scene.applications(3)
    scene.application("gpt", 4, on_disk=False, generation_status=status)
    report = scene.clean()
    assert (report.outcome.scanned, report.outcome.changed) == (3, 0)
