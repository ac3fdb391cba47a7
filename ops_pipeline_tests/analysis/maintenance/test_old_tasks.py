"""Old tasks: whole trees are archived, then deleted, and nothing is lost, twice, or gone too early."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Table

from ops_pipeline.analysis.maintenance import archive_tasks as module
from ops_pipeline.analysis.maintenance import tree_archive, tree_store
from ops_pipeline.analysis.maintenance.archive_tasks import archive_old_tasks
from ops_pipeline.analysis.maintenance.old_trees import Member, Owner, Tree, decide_trees, trees_of
from ops_pipeline.analysis.pipelines.tables import pipelines
from ops_pipeline.analysis.tables import (
    TERMINAL,
    analysis_results,
    analysis_tasks,
    generated_applications,
    task_events,
)
from ops_pipeline.archives import steps
from ops_pipeline.archives import writing as archive_writing
from ops_pipeline.archives.manifest import Manifest, read_manifests
from ops_pipeline.archives.restoring import restore_folders, restore_rows
from ops_pipeline.archives.store import open_store
from ops_pipeline.archives.tables import archives
from ops_pipeline.database.engine import writing
from ops_pipeline.database.leases import leases
from ops_pipeline.passes import Report
from ops_pipeline.reconcile import SafetyLimit
from ops_pipeline_tests.analysis.maintenance.scene import DAY, SECOND, Scene, changed, now
from ops_pipeline_tests.object_store import bucket
from ops_pipeline_tests.servers import wait_until

MONTH = 30 * DAY
NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
TABLES: dict[str, Table] = {table.name: table for table in (analysis_tasks, analysis_results, task_events)}
ids = itertools.count(1)


# The rule


def member(age: timedelta | None = 31 * DAY, status: str = "completed", **fields: Any) -> Member:
    ended = None if age is None else NOW - age
    return Member(f"t{next(ids)}", fields.pop("parent_id", None), status, ended, **fields)


def kept(*members: Member, pipelines: Any = None, applications: Any = None, retention: timedelta = MONTH) -> str:
    """Why a tree stays; empty when it goes."""
    decisions = decide_trees([Tree(members)], pipelines or {}, applications or {}, retention, NOW)
    return next(iter(decisions.kept), "")


@pytest.mark.parametrize(
    ("age", "goes"), [(MONTH, False), (MONTH + SECOND, True), (MONTH - SECOND, False), (-DAY, False)]
)
def test_a_task_goes_after_thirty_days_and_not_exactly_at_them(age: timedelta, *, goes: bool) -> None:
    assert (kept(member(age)) == "") is goes


@pytest.mark.parametrize("status", TERMINAL)
def test_every_way_to_end_is_cleaned_up(status: str) -> None:
    """Tasks that ended with a partial success stayed for ever."""
    assert kept(member(status=status)) == ""


def test_a_tree_goes_only_as_a_whole() -> None:
    """An old failed parent took its living child with it, and an old child went from under its running parent."""
    assert kept(member(), member(status="running", age=None)) == "a child has not ended"
    assert kept(member(), member(DAY)) == "a child is younger than its retention"
    assert kept(member(status="running", age=None), member()) == "has not ended"
    assert kept(member(), member(None)) == "a child ended at no known time"
    assert kept(member(), member(), member()) == ""


def test_unfinished_pipelines_and_holds_keep_a_tree() -> None:
    assert kept(member(pipeline_id="p"), pipelines={"p": Owner(unfinished=True)}) == "its pipeline has not ended"
    assert kept(member(pipeline_id="p"), pipelines={"p": Owner()}) == ""
    assert kept(member(pipeline_id="p"), pipelines={"p": Owner(hold="under legal hold")}) == "under legal hold"
    assert kept(member(), member(hold="under legal hold")) == "under legal hold"
    assert kept(member(target="a/app1"), applications={"a/app1": Owner(hold="under legal hold")}) == "under legal hold"


def test_the_longest_retention_of_all_wins() -> None:
    assert kept(member(), member(retention=60 * DAY)) == "is younger than its retention"
    assert kept(member(pipeline_id="p"), pipelines={"p": Owner(retention=60 * DAY)}) == "is younger than its retention"
    assert kept(member(61 * DAY, retention=60 * DAY)) == ""
    assert kept(member(10 * DAY, retention=DAY)) == "is younger than its retention"


def test_trees_are_put_together_from_levels() -> None:
    top, other = member(), member()
    child, grandchild = member(parent_id=top.id), member()
    grandchild = Member(grandchild.id, child.id, "failed", NOW)
    assert trees_of([[top, other], [child], [grandchild], []]) == [Tree((top, child, grandchild)), Tree((other,))]
    assert trees_of([]) == []


MEMBERS = st.builds(
    member,
    st.none() | st.sampled_from([MONTH - SECOND, MONTH, MONTH + SECOND, 90 * DAY, -DAY]),
    st.sampled_from([*TERMINAL, "pending", "running", "created", "what"]),
    hold=st.sampled_from(["", "", "", "under legal hold"]),
    retention=st.sampled_from([None, None, DAY, 60 * DAY, timedelta.max]),
    pipeline_id=st.sampled_from([None, "open", "ended", "held"]),
)
OWNERS = {"open": Owner(unfinished=True), "ended": Owner(), "held": Owner(hold="under legal hold")}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(MEMBERS, min_size=1, max_size=4).map(lambda some: Tree(tuple(some))), max_size=5))
def test_no_live_tree_nothing_within_its_grace_and_no_held_row_ever_goes(trees: list[Tree]) -> None:
    decisions = decide_trees(trees, OWNERS, {}, MONTH, NOW)
    for tree in decisions.going:
        for one in tree.members:
            assert one.status in TERMINAL
            assert not one.hold
            assert one.pipeline_id not in {"open", "held"}
            assert one.completed_at is not None
            assert NOW - one.completed_at > max(MONTH, one.retention or MONTH)
    assert len(decisions.going) + sum(decisions.kept.values()) == len(trees)


# The pass


def task(
    scene: Scene, age: timedelta | None = 31 * DAY, *, results: int = 1, folder: bool = True, **fields: Any
) -> str:
    """A task that ended so long ago, with results, an event and a directory."""
    name = fields.pop("id", f"t{next(ids):06d}")
    row = {
        "id": name,
        "service": "static-analyzer",
        "target": "gpt/app1",
        "status": "completed",
        "completed_at": None if age is None else now() - age,
    } | fields
    scene.write(analysis_tasks, row)
    for number in range(results):
        finding = {"id": f"{name}-{number}", "task_id": name, "title": f"ä {number}", "data": {"n": [number, None]}}
        scene.write(analysis_results, finding)
    scene.write(task_events, {"task_id": name, "kind": "ended"})
    if folder:
        path = scene.results / "gpt" / "app1" / f"task_{name}" / "sarif"
        path.mkdir(parents=True)
        (path / "a.json").write_text(name)
    return name


def tree(scene: Scene, age: timedelta = 31 * DAY, children: int = 2, **fields: Any) -> str:
    """A parent with children."""
    root = task(scene, age, service="unified", **fields)
    for _ in range(children):
        task(scene, age, parent_id=root)
    return root


def sweep(scene: Scene, retention: timedelta = MONTH, **options: Any) -> Report:
    return archive_old_tasks(scene.lab(), retention, scene.options(**options))


def everything(scene: Scene) -> dict[str, list[dict[str, Any]]]:
    return {name: scene.rows(table) for name, table in TABLES.items()}


def folders(scene: Scene) -> list[str]:
    return sorted(path.name for path in scene.results.glob("*/*/*"))


def restored(scene: Scene) -> None:
    """Put every archive back."""
    where = open_store(str(scene.archive))
    for manifest in read_manifests(where):
        restore_rows(scene.engine, where, manifest, TABLES)
        restore_folders(where, manifest, scene.results, list((manifest.left_out or {}).get("files", [])))


def archived(scene: Scene) -> list[Manifest]:
    return list(read_manifests(open_store(str(scene.archive))))


def test_old_trees_go_with_results_events_and_directories(scene: Scene) -> None:
    tree(scene)
    task(scene, status="partial_success")
    young = task(scene, 29 * DAY)
    report = sweep(scene)
    assert (report.status, report.outcome.changed, report.planned, report.outcome.scanned) == ("success", 4, 2, 5)
    assert {
        name: [row["id"] if name != "task_events" else row["task_id"] for row in rows]
        for name, rows in everything(scene).items()
    } == {
        "analysis_tasks": [young],
        "analysis_results": [f"{young}-0"],
        "task_events": [young],
    }
    assert folders(scene) == [f"task_{young}"]
    assert "[MaintenanceService] Cleaned 4 old tasks (> 30 days)" in scene.lines
    (manifest,) = archived(scene)
    assert manifest.rows == {"analysis_tasks": 4, "analysis_results": 4, "task_events": 4, "files": 4}
    # A second run right after changes nothing.
    again = sweep(scene)
    assert (again.outcome.changed, again.planned, len(archived(scene))) == (0, 0, 1)


def test_a_restored_archive_equals_what_was_deleted(scene: Scene) -> None:
    for _ in range(3):
        tree(scene)
    scene.execute("UPDATE analysis_tasks SET options = '{\"a\" :  1}', error_message = 'ä'")
    before, paths = everything(scene), folders(scene)
    assert sweep(scene).outcome.changed == 9
    assert [len(rows) for rows in everything(scene).values()] == [0, 0, 0]
    assert folders(scene) == []
    restored(scene)
    assert everything(scene) == before
    assert folders(scene) == paths
    assert (scene.results / "gpt" / "app1" / paths[0] / "sarif" / "a.json").read_text() == paths[0].removeprefix(
        "task_"
    )
    # Again: nothing is there twice.
    restored(scene)
    assert everything(scene) == before


def test_an_archive_may_lie_in_an_object_store(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket(monkeypatch) as url:
        tree(scene)
        before, paths = everything(scene), folders(scene)
        report = archive_old_tasks(scene.lab(archive=f"{url}/archive"), MONTH, scene.options())
        assert (report.error, report.outcome.changed) == ("", 3)
        where = open_store(f"{url}/archive")
        (manifest,) = read_manifests(where)
        restore_rows(scene.engine, where, manifest, TABLES)
        restore_folders(where, manifest, scene.results, [])
        assert everything(scene) == before
        assert folders(scene) == paths


def test_what_must_stay_stays(scene: Scene) -> None:
    scene.write(pipelines, {"id": "open", "definition": {}, "status": "running"})
    scene.write(pipelines, {"id": "held", "definition": {}, "status": "completed", "labels": {"legal_hold": True}})
    scene.write(pipelines, {"id": "ended", "definition": {}, "status": "failed"})
    scene.application("gpt", 9, labels=["legal_hold"])
    stay = [
        task(scene, pipeline_id="open"),
        task(scene, pipeline_id="held"),
        task(scene, labels={"legal_hold": "case 7"}),
        task(scene, labels={"retention_days": 90}),
        task(scene, target="gpt/app9"),
        task(scene, 30 * DAY - 5 * SECOND),
        task(scene, None),
        task(scene, status="running"),
    ]
    parent = tree(scene)
    stay += [parent, *(row["id"] for row in scene.rows(analysis_tasks) if row["parent_id"] == parent)]
    stay.append(task(scene, None, status="pending", parent_id=parent))
    task(scene, pipeline_id="ended")
    report = sweep(scene)
    assert report.outcome.changed == 1
    assert [row["id"] for row in scene.rows(analysis_tasks)] == sorted(stay)
    assert report.kept == {
        "its pipeline has not ended": 1,
        "under legal hold": 3,
        "is younger than its retention": 1,
        "has not ended": 1,
        "a child has not ended": 1,
    }


def test_children_whose_parent_is_gone_go_too(scene: Scene) -> None:
    child = task(scene, parent_id="nobody")
    task(scene, parent_id=child)
    assert sweep(scene).outcome.changed == 2


@pytest.mark.parametrize("page", [1, 2, 3])
def test_pages_of_any_size_come_to_the_same(scene: Scene, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    """Trees that ended at the very same time lay on both sides of a page's end, and one of them was left out."""
    for name in ("FIRST_PAGE", "LARGEST_PAGE"):
        monkeypatch.setattr(module, name, page)
    at = now() - 31 * DAY
    for number in range(5):
        task(scene, completed_at=at, folder=False, labels={"legal_hold": True} if number == 2 else None)
    report = sweep(scene)
    assert (report.outcome.changed, report.kept) == (4, {"under legal hold": 1})


MEANWHILE: dict[str, Callable[[Scene, str], None]] = {
    "run again": lambda scene, name: scene.execute(f"UPDATE analysis_tasks SET status = 'pending' WHERE id = '{name}'"),
    "held": lambda scene, name: scene.execute(
        f"UPDATE analysis_tasks SET labels = '[\"legal_hold\"]' WHERE id = '{name}'"
    ),
    "reviewed": lambda scene, name: scene.execute(
        f"UPDATE analysis_results SET review = 'resolved' WHERE task_id = '{name}'"
    ),
    "a new result": lambda scene, name: scene.write(analysis_results, {"id": "new", "task_id": name}),
    "a new child": lambda scene, name: scene.write(
        analysis_tasks, {"id": "zz", "parent_id": name, "service": "s", "target": "gpt/app1"}
    ),
    "a pipeline resumed": lambda scene, name: scene.execute("UPDATE pipelines SET status = 'running'"),
    "a pipeline held": lambda scene, name: scene.execute("UPDATE pipelines SET labels = '{\"legal_hold\": true}'"),
    "a pipeline kept longer": lambda scene, name: scene.execute(
        "UPDATE pipelines SET labels = '{\"retention_days\": 90}'"
    ),
    "an application held": lambda scene, name: scene.application("held", 1, labels=["legal_hold"]) and None,
    "an application kept longer": lambda scene, name: (
        scene.application("held", 1, labels={"retention_days": 90}) and None
    ),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_changes_between_archive_and_deletion_stays_as_a_whole(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    scene.write(pipelines, {"id": "p", "definition": {}, "status": "failed"})
    others = [tree(scene), tree(scene)]
    mine = tree(scene, pipeline_id="p", target="held/app1", folder=False)
    real = tree_archive.delete_archived

    def after(*arguments: Any) -> Any:
        MEANWHILE[what](scene, mine)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tree_archive, "delete_archived", after)
        report = sweep(scene)
    assert (report.outcome.changed, report.outcome.skipped, report.status) == (6, 1, "success")
    left = {row["id"] for row in scene.rows(analysis_tasks)}
    assert mine in left
    assert not left & set(others)
    assert len(folders(scene)) == 2
    # What stays is not in the archive, for whoever restores it.
    before = everything(scene)
    scene.empty(analysis_tasks, analysis_results, task_events)
    restored(scene)
    ids = {row["id"] for row in scene.rows(analysis_tasks)}
    assert len(ids) == 6
    assert not ids & {row["id"] for row in before["analysis_tasks"]}


def test_a_row_that_somebody_holds_is_left_to_the_next_run(
    postgres_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(postgres_engine, tmp_path)
    held, other = task(scene), task(scene)
    monkeypatch.setattr(tree_archive, "LOCK_SECONDS", 0.05)
    with writing(postgres_engine) as connection:
        connection.exec_driver_sql(f"SELECT * FROM analysis_tasks WHERE id = '{held}' FOR UPDATE")
        report = sweep(scene)
    assert (report.outcome.changed, report.outcome.skipped) == (1, 1)
    assert [row["id"] for row in scene.rows(analysis_tasks)] == [held]
    assert other not in {row["id"] for row in scene.rows(analysis_tasks)}
    assert sweep(scene).outcome.changed == 1


def test_a_dry_run_writes_nothing(scene: Scene) -> None:
    task(scene, 90 * DAY, labels=["legal_hold"], folder=False)
    root = tree(scene)
    before = everything(scene)
    report = sweep(scene, dry_run=True)
    assert changed(report) == [(f"{root} (gpt/app1)", "archive and delete")]
    assert "with 2 tasks below it" in report.changes[0].reason
    assert (report.planned, report.outcome.changed, report.left) == (1, 0, 0)
    # What is held is no backlog.
    assert report.backlog_seconds == pytest.approx(86_400, abs=60)
    assert everything(scene) == before
    assert len(folders(scene)) == 3
    assert not scene.archive.exists()
    assert scene.rows(archives) == scene.rows(leases) == []


@pytest.mark.parametrize(("limit", "refused"), [(SafetyLimit(count=4), True), (SafetyLimit(count=5), False)])
def test_the_cap_refuses_one_task_more_than_it(scene: Scene, limit: SafetyLimit, *, refused: bool) -> None:
    for _ in range(5):
        task(scene)
    report = sweep(scene, limit=limit)
    assert bool(report.error) is refused
    assert len(scene.rows(analysis_tasks)) == (5 if refused else 0)
    if refused:
        assert "5 changes are more than the limit of 4. Nothing was changed." in report.error
        assert report.planned == 5


def test_a_share_is_refused_from_ten_tasks_on(scene: Scene) -> None:
    for age in (*[31 * DAY] * 6, *[DAY] * 4):
        task(scene, age)
    assert "6 of 10 objects are more than the limit of 50%" in sweep(scene, limit=SafetyLimit(share=0.5)).error


def test_when_the_time_is_up_the_pass_says_what_is_left_and_the_next_one_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_PAGE", "LARGEST_PAGE"):
        monkeypatch.setattr(module, name, 2)
    for days in (40, 39, 38, 37, 36):
        task(scene, days * DAY)
    ticks = itertools.count()
    report = sweep(scene, clock=lambda: next(ticks), budget_seconds=2.5)
    assert (report.outcome.changed, report.left, report.status) == (4, 1, "success")
    assert report.backlog_seconds == pytest.approx(6 * 86_400, abs=60)
    done = sweep(scene)
    assert (done.outcome.changed, done.left, done.backlog_seconds) == (1, 0, 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_deletes_nothing_and_leaves_no_archive(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    tree(scene)
    before = everything(scene)

    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        report = sweep(scene)
    assert os.strerror(number) in report.error
    assert everything(scene) == before
    assert archived(scene) == []
    assert list(scene.archive.rglob("*.parquet")) == []
    assert [row["state"] for row in scene.rows(archives)] == ["given_up"]


def test_a_row_that_cannot_be_archived_stays_and_the_others_go(small: Scene) -> None:
    names = [task(small) for _ in range(5)]
    small.execute(f"UPDATE analysis_tasks SET attempt = 'many' WHERE id = '{names[2]}'")
    report = small_sweep = sweep(small)
    assert (report.outcome.changed, report.outcome.failed, report.status) == (4, 1, "failed")
    assert small_sweep.changes[0].key == names[2]
    assert "could not be archived: column attempt" in report.changes[0].reason
    assert [row["state"] for row in small.rows(archives) if row["state"] not in {"done", "given_up"}] == []


def test_times_in_any_spelling_are_read(small: Scene) -> None:
    for text in ("2020-01-01T00:00:00", "2020-01-01 00:00:00+02:00", "2020-01-01T00:00:00.25Z"):
        name = task(small)
        small.execute(f"UPDATE analysis_tasks SET completed_at = '{text}' WHERE id = '{name}'")
    soon = task(small)
    small.execute(f"UPDATE analysis_tasks SET completed_at = 'soon' WHERE id = '{soon}'")
    assert sweep(small).outcome.changed == 3
    with writing(small.engine) as connection:
        assert list(connection.exec_driver_sql("SELECT id FROM analysis_tasks").scalars()) == [soon]


@pytest.mark.parametrize("target", ["../../etc/app1", "/etc/app1", "no application", "..", "a/../b/app1"])
def test_a_target_that_leads_out_of_the_results_removes_nothing(small: Scene, target: str) -> None:
    outside = small.folder / "etc" / "app1"
    outside.mkdir(parents=True)
    task(small, target=target, folder=False)
    assert sweep(small).outcome.changed == 1
    assert outside.exists()


# Dead runs, and two at once


class Killed(BaseException):
    """The process is gone: nothing after it is done."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed


def half(patch: pytest.MonkeyPatch) -> None:
    """The process dies after the first of its deletions."""
    patch.setattr(tree_archive, "FIRST_BATCH", 1)
    patch.setattr(tree_archive, "LARGEST_BATCH", 1)
    real, calls = tree_archive._delete, []

    def once(*arguments: Any) -> None:
        if calls:
            raise Killed
        calls.append(1)
        real(*arguments)

    patch.setattr(tree_archive, "_delete", once)


STEPS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no manifest": lambda patch: patch.setattr(archive_writing, "write_manifest", killed),
    "not told in the database": lambda patch: patch.setattr(steps.tables, "move", killed),
    "nothing deleted": lambda patch: patch.setattr(tree_archive, "delete_archived", killed),
    "half deleted": half,
    "rows without folders": lambda patch: patch.setattr(module.Folders, "remove", killed),
    "all deleted": lambda patch: patch.setattr(steps, "conclude", killed),
    "told beside the manifest": lambda patch: patch.setattr(steps.tables, "move", killed_at_the_end),
}


def killed_at_the_end(engine: Any, archive_id: str, before: str, after: str, rows: int | None = None) -> bool:
    if after == "done":
        raise Killed
    with writing(engine) as connection:
        return steps.tables.move_within(connection, archive_id, before, after, rows)


@pytest.mark.parametrize("step", STEPS)
def test_what_dies_at_any_step_loses_nothing_and_nothing_is_twice(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    for _ in range(3):
        tree(scene)
    before, paths = everything(scene), folders(scene)
    with monkeypatch.context() as patch:
        STEPS[step](patch)
        with pytest.raises(Killed):
            sweep(scene)
    report = sweep(scene)
    assert report.status == "success"
    assert [len(rows) for rows in everything(scene).values()] == [0, 0, 0]
    assert folders(scene) == []
    whole = archived(scene)
    assert sum(manifest.rows["analysis_tasks"] for manifest in whole) == 9
    assert {row["state"] for row in scene.rows(archives)} <= {"done", "given_up"}
    restored(scene)
    assert everything(scene) == before
    assert folders(scene) == paths


def test_what_changed_while_nobody_was_there_stays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run died between archive and deletion, and before the next one a finding was reviewed."""
    mine = tree(scene)
    tree(scene)
    with monkeypatch.context() as patch:
        patch.setattr(tree_archive, "delete_archived", killed)
        with pytest.raises(Killed):
            sweep(scene)
    scene.execute(f"UPDATE analysis_results SET review = 'resolved' WHERE task_id = '{mine}'")
    # The retention is longer than before: what was archived then must stay, too.
    assert sweep(scene, 60 * DAY).outcome.changed == 0
    assert len(scene.rows(analysis_tasks)) == 6
    (first,) = archived(scene)
    assert len((first.left_out or {})["analysis_tasks"]) == 6
    assert sweep(scene).outcome.changed == 6
    scene.empty(analysis_tasks, analysis_results, task_events)
    restored(scene)
    assert {row["review"] for row in scene.rows(analysis_results) if row["task_id"] == mine} == {"resolved"}


@pytest.mark.parametrize("what", ["a pipeline held", "an application held", "an application kept longer"])
def test_a_hold_that_came_after_a_run_died_keeps_what_it_had_archived(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The next run deleted it days later: only labels of the task itself were compared."""
    scene.write(pipelines, {"id": "p", "definition": {}, "status": "failed"})
    mine = tree(scene, pipeline_id="p", target="held/app1")
    tree(scene)
    with monkeypatch.context() as patch:
        patch.setattr(tree_archive, "delete_archived", killed)
        with pytest.raises(Killed):
            sweep(scene)
    MEANWHILE[what](scene, mine)
    report = sweep(scene)
    assert (report.status, report.facts["finished_archives_of_dead_runs"]) == ("success", 1)
    left = {row["id"] for row in scene.rows(analysis_tasks)}
    assert mine in left
    assert len(left) == 3


def test_pages_shrink_when_trees_have_many_rows_and_grow_again() -> None:
    assert module._next_page(250, 1_000) == 500
    assert module._next_page(250, 250_000) == 20
    assert module._next_page(20, 20_000_000) == module.SMALLEST_PAGE
    assert module._next_page(2_000, 2_000) == module.LARGEST_PAGE


def test_whole_pages_go_whatever_their_size(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("FIRST_PAGE", 2), ("SMALLEST_PAGE", 1), ("ROWS_PER_PAGE", 12)):
        monkeypatch.setattr(module, name, size)
    for number in range(7):
        tree(scene, children=number % 3, results=1 + 5 * (number == 3))
    before = everything(scene)
    report = sweep(scene)
    assert (report.status, len(scene.rows(analysis_tasks))) == ("success", 0)
    assert len(report.facts["archives"]) > 2
    restored(scene)
    assert everything(scene) == before


def test_what_dies_while_it_deletes_one_page_and_has_archived_the_next_loses_neither(
    postgres_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server a page is deleted while the next one is archived: a dead run leaves two archives."""
    scene = Scene(postgres_engine, tmp_path)
    for name in ("FIRST_PAGE", "SMALLEST_PAGE", "LARGEST_PAGE"):
        monkeypatch.setattr(module, name, 2)
    for _ in range(8):
        tree(scene)
    before, paths = everything(scene), folders(scene)

    def states() -> list[str]:
        return [row["state"] for row in scene.rows(archives)]

    def killed_behind(*_: Any) -> None:
        wait_until(lambda: states() == ["written", "written"], 30, "the next page to be archived")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(tree_archive, "delete_archived", killed_behind)
        with pytest.raises(Killed):
            sweep(scene)
    assert states() == ["written", "written"]
    assert everything(scene) == before
    report = sweep(scene)
    assert (report.status, report.facts["finished_archives_of_dead_runs"]) == ("success", 2)
    assert [len(rows) for rows in everything(scene).values()] == [0, 0, 0]
    assert sum(manifest.rows["analysis_tasks"] for manifest in archived(scene)) == 24
    restored(scene)
    assert everything(scene) == before
    assert folders(scene) == paths


def test_a_page_is_deleted_to_its_end_when_the_next_one_cannot_be_archived(
    postgres_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(postgres_engine, tmp_path)
    for name in ("FIRST_PAGE", "SMALLEST_PAGE", "LARGEST_PAGE"):
        monkeypatch.setattr(module, name, 2)
    for _ in range(4):
        task(scene)
    real, failing = tree_archive.fill, threading.Event()

    def full(*arguments: Any) -> Any:
        if len(scene.rows(archives)) > 1:
            failing.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    def slow(*arguments: Any) -> Any:
        assert failing.wait(30)
        return deleting(*arguments)

    deleting = tree_archive.delete_archived
    with monkeypatch.context() as patch:
        patch.setattr(tree_archive, "fill", full)
        patch.setattr(tree_archive, "delete_archived", slow)
        report = sweep(scene)
    assert os.strerror(errno.ENOSPC) in report.error
    assert sorted(row["state"] for row in scene.rows(archives)) == ["done", "given_up"]
    assert len(scene.rows(analysis_tasks)) == 2
    assert sweep(scene).outcome.changed == 2


KILLED_CHILD = """
import sys, time
from datetime import timedelta
from pathlib import Path
from ops_pipeline.analysis.maintenance import tree_archive
from ops_pipeline.analysis.maintenance.archive_tasks import archive_old_tasks
from ops_pipeline.analysis.maintenance.lab import Lab
from ops_pipeline.database.engine import connect
from ops_pipeline.passes import Options
url, folder, step = sys.argv[1:]
real = tree_archive._delete
calls = []
def slow(*arguments):
    calls.append(1)
    if len(calls) > int(step):
        Path(folder, "here").write_text("")
        time.sleep(60)
    real(*arguments)
tree_archive._delete = slow
tree_archive.FIRST_BATCH = tree_archive.LARGEST_BATCH = 1
lab = Lab(connect(url), "", Path(folder, "results"), str(Path(folder, "archive")))
archive_old_tasks(lab, timedelta(days=30), Options())
"""


@pytest.mark.parametrize("step", [0, 2])
def test_kill_9_between_archive_and_deletion_loses_nothing(scene: Scene, step: int) -> None:
    for _ in range(4):
        tree(scene)
    before, paths = everything(scene), folders(scene)
    url = scene.engine.url.render_as_string(hide_password=False)
    child = subprocess.Popen([sys.executable, "-c", KILLED_CHILD, url, str(scene.folder), str(step)])
    wait_until((scene.folder / "here").exists, 60, "the child to delete")
    child.send_signal(signal.SIGKILL)
    child.wait()
    # Its lease is still there, and a dead run holds nothing up once it has run out.
    assert "is at work in another run" in sweep(scene).error
    assert len(scene.rows(analysis_tasks)) == 12 - 3 * step
    scene.execute("UPDATE leases SET expires_at = '2020-01-01 00:00:00'")
    report = sweep(scene)
    assert (report.status, report.facts["finished_archives_of_dead_runs"]) == ("success", 1)
    assert [len(rows) for rows in everything(scene).values()] == [0, 0, 0]
    assert sum(manifest.rows["analysis_tasks"] for manifest in archived(scene)) == 12
    restored(scene)
    assert everything(scene) == before
    assert folders(scene) == paths


def test_two_runs_at_once_delete_and_archive_each_tree_once(scene: Scene) -> None:
    for _ in range(30):
        tree(scene, children=1)
    before = everything(scene)
    url = scene.engine.url.render_as_string(hide_password=False)
    code = KILLED_CHILD.replace("int(step)", "10**9")
    command = [sys.executable, "-c", code, url, str(scene.folder), "0"]
    children = [subprocess.Popen(command) for _ in range(2)]
    deadline = time.monotonic() + 60
    while len(scene.rows(analysis_tasks)) and time.monotonic() < deadline:
        sweep(scene)
    assert [child.wait(60) for child in children] == [0, 0]
    assert sum(manifest.rows["analysis_tasks"] for manifest in archived(scene)) == 60
    restored(scene)
    assert everything(scene) == before


def test_a_run_that_stood_still_for_too_long_stops(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It woke up after another run had taken over, and told that what that one had deleted was still there."""
    tree(scene)
    real = tree_archive.delete_archived

    def paused(*arguments: Any) -> Any:
        scene.execute("UPDATE leases SET owner = 'another', expires_at = '2999-01-01 00:00:00'")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tree_archive, "delete_archived", paused)
        report = sweep(scene)
    assert "was taken over by another run" in report.error
    assert [row["state"] for row in scene.rows(archives)] == ["written"]
    assert [row["owner"] for row in scene.rows(leases)] == ["another"]


def test_applications_are_read_only_for_their_labels(scene: Scene) -> None:
    scene.application("gpt", 1)
    tree(scene)
    assert sweep(scene).outcome.changed == 3
    assert len(scene.rows(generated_applications)) == 1
    assert tree_store.DEEPEST > 2
