"""Tasks that cannot come to an end: orphans are cancelled, stuck ones end, and who works on one is left alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from ops_pipeline.analysis.maintenance import end_tasks as module
from ops_pipeline.analysis.maintenance.end_tasks import cancel_orphan_tasks, end_stuck_tasks
from ops_pipeline.analysis.maintenance.tasks import Task, TaskPolicy, Version, decide_orphans, decide_stuck
from ops_pipeline.analysis.pipelines.tables import pipeline_steps, pipelines
from ops_pipeline.analysis.tables import TERMINAL, UNIFIED, analysis_tasks, task_events
from ops_pipeline.database.engine import writing
from ops_pipeline.database.leases import leased
from ops_pipeline.passes import Report
from ops_pipeline.reconcile import SafetyLimit
from ops_pipeline_tests.analysis.maintenance.scene import DAY, HOUR, MINUTE, SECOND, Scene, changed, now

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
POLICY = TaskPolicy()
GONE: dict[str, list[Version]] = {}
ids = itertools.count(1)
TIMES = {"created_at", "started_at", "updated_at", "next_attempt_at", "lease_expires_at", "last_child"}


def orphan(age: timedelta = HOUR, status: str = "pending", **fields: Any) -> Task:
    return Task("1", "static-analyzer", "gpt/app1", status, created_at=NOW - age, **fields)


def reason_of(task: Task, versions: Any = GONE) -> str | None:
    endings = decide_orphans([task], versions, POLICY, NOW).endings
    return endings[0].change.reason if endings else None


def stuck(status: str, **ages: Any) -> Task:
    """A task whose times are so long ago; a number is one of minutes."""
    times = {name: NOW - value * MINUTE for name, value in ages.items() if name in TIMES and value is not None}
    others = {name: value for name, value in ages.items() if name not in times}
    return Task("1", others.pop("service", "static-analyzer"), "gpt/app1", status, **times, **others)


def ended_as(task: Task) -> str | None:
    endings = decide_stuck([task], POLICY, NOW).endings
    return endings[0].status if endings else None


# The rules


@pytest.mark.parametrize("status", ["pending", "running"])
@pytest.mark.parametrize(
    ("age", "ends"), [(5 * MINUTE - SECOND, False), (5 * MINUTE, False), (5 * MINUTE + SECOND, True)]
)
def test_an_orphan_is_cancelled_after_its_grace(status: str, age: timedelta, *, ends: bool) -> None:
    """A task that was written a moment before its application was cancelled at once."""
    assert (reason_of(orphan(age, status)) is not None) is ends


def test_any_healthy_version_keeps_a_task() -> None:
    failed, well = Version(1, "failed", "backend", "no space"), Version(2, "completed")
    assert reason_of(orphan(), {"gpt/app1": [failed, well]}) is None
    assert reason_of(orphan(), {"gpt/app1": [well]}) is None
    assert reason_of(orphan(), {"gpt/app1": [Version(1, "pending")]}) is None
    assert reason_of(orphan(), {"gpt/app1": [Version(3, "failed"), failed]}) == (
        "the generation of its application gpt/app1 failed"
    )
    assert reason_of(orphan(), {"gpt/app1": [failed]}) == (
        "the generation of its application gpt/app1 failed at the stage backend: no space"
    )
    assert reason_of(orphan()) == "its application gpt/app1 does not exist"


def test_a_generation_that_failed_a_moment_ago_may_be_tried_again() -> None:
    assert reason_of(orphan(), {"gpt/app1": [Version(1, "failed", updated_at=NOW - MINUTE)]}) is None


def test_a_task_that_is_to_make_its_application_is_no_orphan() -> None:
    decisions = decide_orphans([orphan(generation=True)], GONE, POLICY, NOW)
    assert (decisions.endings, decisions.kept) == ((), {"it is to make its application": 1})


@pytest.mark.parametrize("status", ["created", *TERMINAL])
def test_only_pending_and_running_tasks_are_orphans(status: str) -> None:
    assert reason_of(orphan(status=status)) is None


def test_a_time_that_cannot_be_read_is_told_and_ends_nothing() -> None:
    task = Task("1", "s", "gpt/app1", "pending")
    for decisions in (decide_orphans([task], GONE, POLICY, NOW), decide_stuck([task], POLICY, NOW)):
        assert (decisions.endings, list(decisions.failed)) == ((), ["1"])


@pytest.mark.parametrize(
    ("task", "status"),
    [
        (stuck("running", created_at=500, started_at=121), "failed"),
        (stuck("running", created_at=500, started_at=120), None),
        (stuck("running", created_at=500, started_at=500, lease_expires_at=-1), None),
        (stuck("running", created_at=500, started_at=500, lease_expires_at=120), None),
        (stuck("running", created_at=500, started_at=500, lease_expires_at=121), "failed"),
        (stuck("running", created_at=121), "failed"),
        (stuck("running", created_at=119), None),
        (stuck("running", created_at=500, started_at=500, updated_at=10), None),
        (stuck("pending", created_at=241), "cancelled"),
        (stuck("pending", created_at=240), None),
        (stuck("pending", created_at=999, next_attempt_at=-1), None),
        (stuck("pending", created_at=999, next_attempt_at=239), None),
        (stuck("pending", created_at=999, next_attempt_at=241), "cancelled"),
        (stuck("pending", created_at=999, held=True), None),
        (stuck("pending", created_at=999, updated_at=30), None),
        (stuck("created", created_at=241), "cancelled"),
        (stuck("created", created_at=239), None),
        (stuck("pending", created_at=-999), None),
        (stuck("running", created_at=999, started_at=-5), None),
    ],
)
def test_a_task_is_stuck_when_nobody_has_worked_on_it_for_its_limit(task: Task, status: str | None) -> None:
    """A living task was failed at 120 minutes; one that came back from a dead worker was cancelled for its age."""
    assert ended_as(task) == status


def test_a_parent_follows_its_children() -> None:
    parent: dict[str, Any] = {"service": UNIFIED, "created_at": 999, "started_at": 999}
    assert ended_as(stuck("running", **parent, children=1)) is None
    assert ended_as(stuck("pending", **parent, children=2)) is None
    assert ended_as(stuck("running", **parent, children=0, last_child=119)) is None
    assert ended_as(stuck("running", **parent, children=0, last_child=121)) == "failed"


TASKS = st.builds(
    stuck,
    st.sampled_from(["created", "pending", "running"]),
    created_at=st.integers(-300, 600),
    started_at=st.none() | st.integers(-300, 600),
    updated_at=st.none() | st.integers(-300, 600),
    next_attempt_at=st.none() | st.integers(-300, 600),
    lease_expires_at=st.none() | st.integers(-300, 600),
    held=st.booleans(),
    children=st.sampled_from([None, None, 0, 2]),
)


@settings(max_examples=300, deadline=None)
@given(TASKS)
def test_no_task_ends_that_somebody_works_on_or_that_waits_for_something(task: Task) -> None:
    for ending in decide_stuck([task], POLICY, NOW).endings:
        assert not task.children
        assert not (task.status == "running" and task.lease_expires_at is not None and task.lease_expires_at > NOW)
        assert not (task.status == "pending" and (task.held or (task.next_attempt_at or NOW) > NOW))
        assert task.created_at is not None
        assert NOW - task.created_at > (POLICY.running if task.status == "running" else POLICY.pending) or (
            task.lease_expires_at is not None
        )
        assert ending.status == ("failed" if task.status == "running" or task.children == 0 else "cancelled")


# The passes


def put(scene: Scene, age: timedelta = DAY, status: str = "pending", **fields: Any) -> str:
    name = fields.pop("id", f"t{next(ids):05d}")
    then = now() - age
    times = {"created_at": then, "updated_at": then}
    scene.write(
        analysis_tasks,
        {"id": name, "service": "static-analyzer", "target": "gpt/app1", "status": status} | times | fields,
    )
    return name


def orphans(scene: Scene, **options: Any) -> Report:
    return cancel_orphan_tasks(scene.lab(), POLICY, scene.options(**options))


def end_stuck(scene: Scene, **options: Any) -> Report:
    return end_stuck_tasks(scene.lab(), POLICY, scene.options(**options))


def state(scene: Scene, name: str) -> dict[str, Any]:
    return next(row for row in scene.rows(analysis_tasks) if row["id"] == name)


def statuses(scene: Scene) -> dict[str, str]:
    return {row["id"]: row["status"] for row in scene.rows(analysis_tasks)}


def test_orphans_are_cancelled_with_the_reason_and_an_event(scene: Scene) -> None:
    scene.application("gpt", 2)
    scene.application("gpt", 3, generation_status="failed", failure_stage="backend", updated_at=now() - DAY)
    scene.application("gpt", 3, version=2)
    scene.application("gpt", 4, generation_status="failed", error_message="no space", updated_at=now() - DAY)
    lost = put(scene)
    running = put(scene, status="running", lease_owner="w", lease_expires_at=now() + HOUR, attempt=2)
    failed = put(scene, target="gpt/app4")
    stay = [put(scene, target="gpt/app2"), put(scene, target="gpt/app3"), put(scene, MINUTE), put(scene, target="url")]
    report = orphans(scene)
    assert (report.status, report.outcome.changed, report.outcome.scanned) == ("success", 3, 7)
    one = state(scene, running)
    assert (one["status"], one["error_class"], one["lease_owner"], one["lease_expires_at"]) == (
        "cancelled",
        "cancelled",
        None,
        None,
    )
    assert one["error_message"] == "its application gpt/app1 does not exist"
    assert one["completed_at"] is not None
    assert state(scene, failed)["error_message"] == "the generation of its application gpt/app4 failed: no space"
    assert {statuses(scene)[name] for name in stay} == {"pending"}
    events = {
        row["task_id"]: (row["kind"], row["before"], row["after"], row["owner"]) for row in scene.rows(task_events)
    }
    assert events[lost] == ("maintained", "pending", "cancelled", "maintenance")
    assert events[running] == ("maintained", "running", "cancelled", "maintenance")
    assert "[MaintenanceService] Cancelled 3 orphan tasks" in scene.lines
    assert orphans(scene).outcome.changed == 0


def test_a_parent_ends_with_its_orphaned_children(scene: Scene) -> None:
    parent = put(scene, service=UNIFIED, status="running")
    children = [put(scene, parent_id=parent), put(scene, parent_id=parent, status="running")]
    assert orphans(scene).outcome.changed == 3
    assert statuses(scene) == dict.fromkeys([parent, *children], "cancelled")


def test_a_pipeline_that_makes_applications_is_left_alone_and_one_that_is_paused_is_not(scene: Scene) -> None:
    scene.write(pipelines, {"id": "p", "definition": {}, "status": "running", "paused_at": now()})
    step = {"pipeline_id": "p", "name": "s", "concurrency": 1}
    scene.write(pipeline_steps, step | {"position": 0, "makes_applications": True}, step | {"position": 1})
    generation = put(scene, pipeline_id="p", step=0)
    analysis = put(scene, pipeline_id="p", step=1, held_since=now())
    report = orphans(scene)
    assert (statuses(scene)[generation], statuses(scene)[analysis]) == ("pending", "cancelled")
    assert report.kept == {"it is to make its application": 1}


def test_stuck_tasks_end_in_every_state(scene: Scene) -> None:
    scene.application("gpt", 1)
    scene.write(pipelines, {"id": "p", "definition": {}, "status": "running", "paused_at": now()})
    gone = {
        put(scene, status="running", started_at=now() - DAY): "failed",
        put(scene, status="running", lease_expires_at=now() - 3 * HOUR, lease_owner="dead"): "failed",
        put(scene, status="created"): "cancelled",
        put(scene): "cancelled",
    }
    stay = {
        put(scene, status="running", lease_expires_at=now() + MINUTE): "running",
        put(scene, status="running", lease_expires_at=now() - HOUR): "running",
        put(scene, next_attempt_at=now() + HOUR): "pending",
        put(scene, held_since=now(), pipeline_id="p"): "pending",
        put(scene, pipeline_id="p"): "pending",
        put(scene, HOUR): "pending",
    }
    parent = put(scene, service=UNIFIED, status="running")
    stay |= {
        parent: "running",
        put(scene, parent_id=parent, status="running", lease_expires_at=now() + HOUR): "running",
    }
    report = end_stuck(scene)
    assert (report.status, report.outcome.changed) == ("success", 4)
    assert statuses(scene) == gone | stay
    assert state(scene, next(iter(gone)))["error_message"] == "stuck: running without a live lease for 1440 minutes"
    assert "[MaintenanceService] Marked 2 stuck tasks as FAILED, cancelled 2 that waited too long" in scene.lines
    assert end_stuck(scene).outcome.changed == 0


@pytest.mark.parametrize("zone", ["UTC-14", "UTC+12"])
def test_the_zone_of_the_machine_changes_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    """At two hours east of UTC a new task was two hours old, and failed."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        started = now() - 119 * MINUTE
        put(scene, age=119 * MINUTE, status="running", started_at=started)
        young = put(scene, age=239 * MINUTE)
        old = put(scene, age=241 * MINUTE)
        report = end_stuck(scene)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [key for key, _ in changed(report)] == [f"{old} (gpt/app1)"]
    assert statuses(scene)[young] == "pending"


def test_ends_without_a_time_get_one_so_that_their_retention_begins(scene: Scene) -> None:
    """Each task that a user had cancelled ended at no time, and stayed for ever."""
    names = [put(scene, status=status) for status in TERMINAL]
    report = end_stuck(scene)
    assert (report.outcome.changed, report.facts["stamped"]) == (4, 4)
    assert all(abs(state(scene, name)["completed_at"] - now()) < MINUTE for name in names)
    assert {action for _, action in changed(report)} == {"stamp its end"}
    assert end_stuck(scene).outcome.changed == 0


def test_a_status_that_nobody_knows_is_told_until_it_is_corrected(scene: Scene) -> None:
    """Another program inserted `Pending`: no worker claimed the task, it never ended, and nobody was told."""
    odd, other = put(scene, status="Pending"), put(scene)
    for dry_run in (True, False):
        report = end_stuck(scene, dry_run=dry_run)
        assert (report.status, report.outcome.failed, report.planned) == ("failed", 1, 1)
        assert (report.changes[0].key, report.changes[0].reason) == (
            odd,
            "its status 'Pending' is none of created, pending, running, completed, partial_success, failed, cancelled:"
            " correct it",
        )
    assert statuses(scene) == {odd: "Pending", other: "cancelled"}
    scene.execute(f"UPDATE analysis_tasks SET status = 'pending' WHERE id = '{odd}'")
    assert (end_stuck(scene).status, statuses(scene)[odd]) == ("success", "cancelled")


def completed(scene: Scene, name: str) -> None:
    scene.execute(f"UPDATE analysis_tasks SET status = 'completed', completed_at = '2026-01-01' WHERE id = '{name}'")


def claimed(scene: Scene, name: str) -> None:
    scene.execute(
        f"UPDATE analysis_tasks SET status = 'running', attempt = attempt + 1, lease_expires_at = '2999-01-01'"
        f" WHERE id = '{name}'"
    )


def made(scene: Scene, _: str) -> None:
    scene.application("gpt", 1)


@pytest.mark.parametrize(
    ("run", "meanwhile"),
    [(orphans, completed), (orphans, claimed), (orphans, made), (end_stuck, completed), (end_stuck, claimed)],
)
def test_whatever_happens_between_plan_and_apply_wins(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Scene], Report],
    meanwhile: Callable[[Scene, str], None],
) -> None:
    name = put(scene)
    real = module._apply

    def after(*arguments: Any) -> None:
        meanwhile(scene, name)
        real(*arguments)

    monkeypatch.setattr(module, "_apply", after)
    report = run(scene)
    assert (report.outcome.changed, report.outcome.skipped) == (0, 1)
    assert state(scene, name)["status"] not in {"cancelled", "failed"}


def test_a_row_that_a_worker_holds_is_left_to_it(postgres_engine: Engine, tmp_path: Any) -> None:
    scene = Scene(postgres_engine, tmp_path)
    held, other = put(scene), put(scene)
    with writing(postgres_engine) as connection:
        connection.exec_driver_sql(f"SELECT * FROM analysis_tasks WHERE id = '{held}' FOR UPDATE")
        report = orphans(scene)
    assert (report.outcome.changed, report.outcome.skipped) == (1, 1)
    assert (statuses(scene)[held], statuses(scene)[other]) == ("pending", "cancelled")


@pytest.mark.parametrize("run", [orphans, end_stuck])
def test_a_dry_run_shows_and_writes_nothing(scene: Scene, run: Callable[..., Report]) -> None:
    put(scene)
    before = scene.rows(analysis_tasks)
    report = run(scene, dry_run=True)
    assert (report.planned, report.outcome.changed, len(report.changes)) == (1, 0, 1)
    assert report.backlog_seconds > 70_000
    assert scene.rows(analysis_tasks) == before
    assert scene.rows(task_events) == []


@pytest.mark.parametrize("run", [orphans, end_stuck])
@pytest.mark.parametrize(
    ("limit", "ended"),
    [(SafetyLimit(count=2), 0), (SafetyLimit(count=3), 3), (SafetyLimit(share=0.2), 0), (SafetyLimit(share=0.3), 3)],
)
def test_caps_refuse_the_whole_pass(scene: Scene, run: Callable[..., Report], limit: SafetyLimit, ended: int) -> None:
    scene.application("gpt", 2)
    for _ in range(3):
        put(scene)
    for _ in range(7):
        put(scene, MINUTE, target="gpt/app2")
    report = run(scene, limit=limit)
    assert (report.outcome.changed, bool(report.error)) == (ended, not ended)


@pytest.mark.parametrize("run", [orphans, end_stuck])
def test_when_the_time_is_up_the_rest_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Report]
) -> None:
    monkeypatch.setattr(module, "FIRST_BATCH", 1)
    monkeypatch.setattr(module, "LARGEST_BATCH", 1)
    for _ in range(4):
        put(scene)
    ticks = itertools.count()
    report = run(scene, clock=lambda: next(ticks), budget_seconds=2.5)
    assert (report.outcome.changed, report.left) == (2, 2)
    assert run(scene).outcome.changed == 2


@pytest.mark.parametrize(("run", "name"), [(orphans, "orphan_tasks"), (end_stuck, "stuck_tasks")])
def test_one_run_at_a_time(scene: Scene, run: Callable[..., Report], name: str) -> None:
    put(scene)
    with leased(scene.engine, f"maintenance {name}"):
        assert "is at work in another run" in run(scene).error
    assert run(scene).outcome.changed == 1


def test_times_that_cannot_be_read_are_told_and_the_others_are_done(small: Scene) -> None:
    """Naive times in the table and aware ones in the program: one row, and nothing was cleaned up."""
    naive, junk, null = put(small), put(small), put(small, status="running")
    small.execute(
        f"UPDATE analysis_tasks SET created_at = '2020-01-01T00:00:00', updated_at = '2020-01-01' WHERE id = '{naive}'",
        f"UPDATE analysis_tasks SET created_at = 'yesterday', updated_at = '' WHERE id = '{junk}'",
    )
    report = end_stuck(small)
    assert (report.status, report.outcome.changed, report.outcome.failed) == ("failed", 2, 1)
    assert report.changes[0].key == junk
    with writing(small.engine) as connection:
        found = dict(connection.exec_driver_sql("SELECT id, status FROM analysis_tasks").all())
    assert found == {naive: "cancelled", junk: "pending", null: "failed"}
