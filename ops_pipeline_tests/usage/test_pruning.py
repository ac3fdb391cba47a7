"""Pruning of raw calls: archived first, by month, only where their roll-ups are true, and protected from then on."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from ops_pipeline.archives.manifest import Manifest, read_manifests
from ops_pipeline.archives.restoring import restore_rows
from ops_pipeline.archives.store import open_store
from ops_pipeline.archives.tables import archives
from ops_pipeline.database.engine import reading, writing
from ops_pipeline.database.leases import leased
from ops_pipeline.passes import Options, Report
from ops_pipeline.reconcile import SafetyLimit
from ops_pipeline.usage import call_archive, deleting_calls, pruning
from ops_pipeline.usage.aggregate import Policy, aggregate
from ops_pipeline.usage.hours import HOUR, Window, floor_hour
from ops_pipeline.usage.late import LateCursor, LatePolicy, look_for_late_calls
from ops_pipeline.usage.progress import CatchUpPolicy, read_missing
from ops_pipeline.usage.pruning import PrunePolicy, next_window, prune_old_calls
from ops_pipeline.usage.tables import hourly_model_usage, model_calls, usage_hours, usage_watermarks
from ops_pipeline.usage.watermarks import move_pruned_before, pruned_before
from ops_pipeline_tests.usage.calls import at, call, execute, rows, run, write

START = at("2020-01-01 00:00")
WEEK = timedelta(days=7)


def present(engine: Engine) -> datetime:
    from ops_pipeline.database.engine import database_now

    with reading(engine) as connection:
        return database_now(connection)


class Gateway:
    """A database with calls in each of some hours, all aggregated."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.archive = str(folder / "archive")
        self.lines: list[str] = []
        self.cutoff = floor_hour(present(engine) - WEEK)

    def fill(self, *hours: int, calls: int = 2) -> None:
        """Calls in hours counted from the cut-off, and aggregation of everything up to now."""
        moments = [self.cutoff + hour * HOUR for hour in hours]
        write(
            self.engine,
            *(call(moment + number * timedelta(minutes=1)) for moment in moments for number in range(calls)),
        )
        run(self.engine, *Window(min(moments), max(moments) + HOUR))

    def prune(self, **options: Any) -> Report:
        """One pass."""
        told = options.pop("pruned_before", None)
        policy = PrunePolicy(options.pop("start", START), options.pop("retention", WEEK), told)
        limits = {"limit": SafetyLimit(), "told": self.lines.append, "run_id": "run"}
        return prune_old_calls(self.engine, self.archive, policy, Options(**(limits | options)))

    def hour(self, number: int) -> datetime:
        """An hour counted from the cut-off."""
        return self.cutoff + number * HOUR

    def manifests(self) -> list[Manifest]:
        """Every archive of calls."""
        return list(read_manifests(open_store(self.archive), "model_calls"))

    def calls(self) -> list[datetime]:
        """The hours of the calls that are left."""
        return sorted({floor_hour(row["called_at"]) for row in rows(self.engine, model_calls)})

    def watermark(self) -> datetime | None:
        """The hour before which calls are pruned."""
        with reading(self.engine) as connection:
            return pruned_before(connection)


@pytest.fixture
def gateway(engine: Engine, tmp_path: Path) -> Gateway:
    return Gateway(engine, tmp_path)


def without_times(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without `updated_at`, which the database sets to the time of each write."""
    return [{name: value for name, value in row.items() if name != "updated_at"} for row in found]


def test_calls_of_old_hours_go_and_their_roll_ups_stay(gateway: Gateway) -> None:
    gateway.fill(-3, -2, -1, 0, 1)
    usage, before = rows(gateway.engine, hourly_model_usage), rows(gateway.engine, model_calls)
    report = gateway.prune()
    assert (report.status, report.outcome.changed, report.left, report.backlog_seconds) == ("success", 6, 0, 0)
    assert gateway.calls() == [gateway.hour(0), gateway.hour(1)]
    assert rows(gateway.engine, hourly_model_usage) == usage
    assert gateway.watermark() == gateway.hour(0)
    assert "[MaintenanceService] Pruned 6 raw model calls" in gateway.lines
    # Put back, they are what they were.
    for manifest in gateway.manifests():
        restore_rows(gateway.engine, open_store(gateway.archive), manifest, {"model_calls": model_calls})
    assert without_times(rows(gateway.engine, model_calls)) == without_times(before)


def test_an_hour_goes_when_all_of_it_is_older_than_the_retention(gateway: Gateway) -> None:
    gateway.fill(-1, 0)
    assert gateway.prune().outcome.changed == 2
    assert gateway.calls() == [gateway.hour(0)]
    assert gateway.prune().outcome.changed == 0


def test_without_a_retention_calls_are_kept_for_ever(gateway: Gateway) -> None:
    gateway.fill(-9000)
    report = gateway.prune(retention=None)
    assert (report.status, report.skipped) == ("off", "MODEL_CALL_RETENTION_DAYS is not set: raw calls are kept.")


def never_aggregated(gateway: Gateway) -> None:
    execute(gateway.engine, "DELETE FROM usage_hours")
    run(gateway.engine, gateway.hour(-3))
    run(gateway.engine, gateway.hour(-1))


def provisional(gateway: Gateway) -> None:
    write(gateway.engine, call(gateway.hour(-2), status="processing"))
    run(gateway.engine, *Window(gateway.hour(-3), gateway.hour(0)))


def changed_since(gateway: Gateway) -> None:
    write(gateway.engine, call(gateway.hour(-2)))


def wrong_roll_up(gateway: Gateway) -> None:
    hour = gateway.hour(-2)
    with writing(gateway.engine) as connection:
        mine = hourly_model_usage.c.hour == hour
        connection.execute(hourly_model_usage.update().where(mine).values(input_tokens=999_999))


UNTRUE: list[tuple[Callable[[Gateway], None], str]] = [
    (never_aggregated, "it was never aggregated"),
    (provisional, "it is provisional: 1 of its calls have not ended"),
    (changed_since, "its calls changed since it was aggregated (2 calls then, 3 now)"),
    (wrong_roll_up, "its roll-up has input_tokens 999999"),
]


@pytest.mark.parametrize(("harm", "says"), UNTRUE, ids=lambda one: getattr(one, "__name__", ""))
def test_an_hour_that_is_not_complete_and_true_stops_all_behind_it(
    gateway: Gateway, harm: Callable[[Gateway], None], says: str
) -> None:
    gateway.fill(-3, -2, -1)
    harm(gateway)
    report = gateway.prune()
    assert (report.status, report.outcome.changed) == ("success", 2)
    assert gateway.calls()[0] == gateway.hour(-2)
    assert gateway.watermark() == gateway.hour(-2)
    assert any(says in reason for reason in report.kept)
    assert report.backlog_seconds == 7200
    assert report.left > 0
    # Once it is mended, the rest goes.
    execute(gateway.engine, "UPDATE model_calls SET status = 'success' WHERE status = 'processing'")
    run(gateway.engine, *Window(gateway.hour(-2), gateway.hour(0)))
    gateway.prune()
    assert gateway.calls() == []


@pytest.mark.parametrize("happens", [changed_since, wrong_roll_up])
def test_what_changes_between_archive_and_deletion_stops_the_pass(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Gateway], None]
) -> None:
    gateway.fill(-3, -2, -1)
    real = call_archive.claim

    def late_claim(engine: Engine, window: Window) -> str:
        happens(gateway)
        return real(engine, window)

    monkeypatch.setattr(call_archive, "claim", late_claim)
    report = gateway.prune()
    assert (report.outcome.changed, gateway.watermark()) == (0, None)
    assert len(gateway.calls()) == 3
    assert gateway.manifests() == []
    assert [row["state"] for row in rows(gateway.engine, archives)] == ["given_up"]
    assert len(report.kept) == 1


def test_a_call_that_changes_or_comes_after_the_claim_stays_and_is_told(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.fill(-2, -1)
    real = call_archive.delete_calls

    def after(engine: Engine, archived: Any, *arguments: Any) -> list[str]:
        (known,) = archived
        write(gateway.engine, call(gateway.hour(-2), id="late"))
        execute(gateway.engine, f"UPDATE model_calls SET error_reason = 'x' WHERE id = '{min(known)}'")
        return real(engine, [known], *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(call_archive, "delete_calls", after)
        report = gateway.prune()
    assert (report.outcome.changed, report.outcome.skipped) == (3, 1)
    assert len(rows(gateway.engine, model_calls)) == 2
    (manifest,) = gateway.manifests()
    assert len((manifest.left_out or {})["model_calls"]) == 1
    again = gateway.prune()
    assert again.outcome.changed == 0
    assert again.kept == {"came after their hours were pruned: in no roll-up": 2}


def test_a_call_that_somebody_else_deleted_after_the_claim_is_no_obstacle(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.fill(-2, -1)
    real = call_archive.delete_calls

    def after(engine: Engine, archived: Any, *arguments: Any) -> list[str]:
        (known,) = archived
        execute(gateway.engine, f"DELETE FROM model_calls WHERE id = '{min(known)}'")
        return real(engine, [known], *arguments)

    monkeypatch.setattr(call_archive, "delete_calls", after)
    report = gateway.prune()
    assert (report.status, report.outcome.changed, report.outcome.skipped) == ("success", 3, 0)
    assert rows(gateway.engine, model_calls) == []


def test_an_archive_that_cannot_be_read_back_deletes_nothing(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.fill(-2, -1)
    real = call_archive.claim

    def damaging(*arguments: Any) -> str:
        for file in Path(gateway.archive).rglob("*.parquet"):
            file.write_bytes(b"x" * file.stat().st_size)
        return real(*arguments)

    monkeypatch.setattr(call_archive, "claim", damaging)
    report = gateway.prune()
    assert "is damaged, its checksum is another one" in report.error
    assert len(rows(gateway.engine, model_calls)) == 4


def test_an_archive_in_a_place_of_an_unknown_kind_is_an_error_in_words(gateway: Gateway) -> None:
    gateway.fill(-2)
    gateway.archive = "nowhere://bucket"
    assert gateway.prune().error.startswith("nowhere://bucket: Protocol not known")
    assert len(rows(gateway.engine, model_calls)) == 2


# The watermark


def test_pruned_hours_are_never_made_again(gateway: Gateway) -> None:
    """The roll-up of a pruned hour was made anew from the one call that had come late, and a month was lost."""
    gateway.fill(-3, -2, -1, 0)
    gateway.prune()
    usage = rows(gateway.engine, hourly_model_usage)
    write(gateway.engine, call(gateway.hour(-3)))
    (failure,) = [one for chunk in aggregate(gateway.engine, [gateway.hour(-3)], Policy()) for one in chunk.failures]
    assert "Its raw calls were pruned" in failure.error
    assert rows(gateway.engine, hourly_model_usage) == usage
    with reading(gateway.engine) as connection:
        policy = CatchUpPolicy(START, None, 744, 3)
        assert gateway.hour(-3) not in read_missing(connection, policy, gateway.hour(1))
        found = look_for_late_calls(
            connection, LateCursor(), LatePolicy(timedelta(seconds=5), timedelta(seconds=60), 168)
        )
    assert not found.stale


def test_hours_that_lack_behind_the_watermark_are_not_asked_for(gateway: Gateway) -> None:
    gateway.fill(-3, -2, -1)
    with writing(gateway.engine) as connection:
        move_pruned_before(connection, gateway.hour(-1))
    execute(gateway.engine, "DELETE FROM usage_hours")
    with reading(gateway.engine) as connection:
        assert read_missing(connection, CatchUpPolicy(START, None, 744, 3), gateway.hour(0)) == [gateway.hour(-1)]


def test_the_later_of_variable_and_row_counts_and_the_row_never_goes_back(engine: Engine) -> None:
    with writing(engine) as connection:
        assert pruned_before(connection) is None
        move_pruned_before(connection, at("2026-03-10 12:00"))
        move_pruned_before(connection, at("2026-03-10 11:00"))
        assert pruned_before(connection) == at("2026-03-10 12:00")
        assert pruned_before(connection, at("2026-03-10 11:00")) == at("2026-03-10 12:00")
        assert pruned_before(connection, at("2026-03-10 13:00")) == at("2026-03-10 13:00")
    assert len(rows(engine, usage_watermarks)) == 1


def test_calls_before_the_first_metered_hour_stay(gateway: Gateway) -> None:
    gateway.fill(-3, -2, -1)
    assert gateway.prune(start=gateway.hour(-2)).outcome.changed == 4
    assert gateway.calls() == [gateway.hour(-3)]


# Months, limits, time


def test_an_archive_holds_one_month_and_no_more_calls_than_it_should(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = at("2021-02-28 22:00")
    hours = [first + number * HOUR for number in range(5)]
    write(gateway.engine, *(call(hour + timedelta(minutes=one)) for hour in hours for one in range(3)))
    run(gateway.engine, *hours)
    monkeypatch.setattr(pruning, "CALLS_PER_ARCHIVE", 7)
    with reading(gateway.engine) as connection:
        due = Window(first, first + 5 * HOUR)
        assert next_window(connection, due) == Window(first, first + 2 * HOUR)
        assert len(next_window(connection, Window(first + 2 * HOUR, due.end))) == 2
    # Hours from there to now were never aggregated: they stop the pass.
    report = gateway.prune()
    assert report.outcome.changed == 15
    manifests = gateway.manifests()
    assert [manifest.facts["month"] for manifest in manifests] == ["2021-02", "2021-03", "2021-03"]
    assert [manifest.id[:8] for manifest in manifests] == ["2021-02-", "2021-03-", "2021-03-"]
    assert sorted(manifest.rows["model_calls"] for manifest in manifests) == [3, 6, 6]


def test_a_dry_run_writes_nothing(gateway: Gateway) -> None:
    gateway.fill(-3, -2, -1)
    before = rows(gateway.engine, model_calls)
    report = gateway.prune(dry_run=True)
    assert (report.planned, report.outcome.changed, report.backlog_seconds) == (1, 0, 10_800)
    assert rows(gateway.engine, model_calls) == before
    assert rows(gateway.engine, archives) == rows(gateway.engine, usage_watermarks) == []
    assert not Path(gateway.archive).exists()


@pytest.mark.parametrize(
    ("limit", "pruned"), [(SafetyLimit(count=5), 0), (SafetyLimit(count=6), 6), (SafetyLimit(share=0.5), 0)]
)
def test_caps_refuse_the_whole_pass(gateway: Gateway, limit: SafetyLimit, pruned: int) -> None:
    gateway.fill(-3, -2, -1, 0, 1)
    report = gateway.prune(limit=limit)
    assert (report.outcome.changed, bool(report.error)) == (pruned, not pruned)


def test_when_the_time_is_up_the_rest_is_told(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "CALLS_PER_ARCHIVE", 2)
    gateway.fill(-3, -2, -1)
    ticks = itertools.count()
    report = gateway.prune(clock=lambda: next(ticks), budget_seconds=2.5)
    assert (report.outcome.changed, report.left, report.backlog_seconds) == (4, 2, 3600)
    assert gateway.prune().outcome.changed == 2


def test_one_run_at_a_time(gateway: Gateway) -> None:
    gateway.fill(-1)
    with leased(gateway.engine, "maintenance old_model_calls"):
        assert "is at work in another run" in gateway.prune().error
    assert gateway.prune().outcome.changed == 2


# What dies


class Killed(BaseException):
    """The process is gone: nothing after it is done."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed


@pytest.mark.parametrize("step", ["claim", "delete_calls", "conclude", "half"])
def test_what_dies_at_any_step_loses_nothing_and_nothing_is_twice(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    gateway.fill(-3, -2, -1)
    before, usage = rows(gateway.engine, model_calls), rows(gateway.engine, hourly_model_usage)
    with monkeypatch.context() as patch:
        if step == "half":
            for name in ("FIRST_BATCH", "LARGEST_BATCH", "SMALLEST_BATCH"):
                patch.setattr(deleting_calls, name, 1)
            real, calls = deleting_calls.next_batch, []

            def second(*arguments: Any) -> int:
                calls.append(1)
                if len(calls) > 1:
                    raise Killed
                return real(*arguments)

            patch.setattr(deleting_calls, "next_batch", second)
        else:
            patch.setattr(call_archive, step, killed)
        with pytest.raises(Killed):
            gateway.prune()
    report = gateway.prune()
    assert (report.status, report.facts["finished_archives_of_dead_runs"]) == ("success", 1)
    assert rows(gateway.engine, model_calls) == []
    assert gateway.watermark() == gateway.hour(0)
    assert sum(manifest.rows["model_calls"] for manifest in gateway.manifests()) == 6
    assert rows(gateway.engine, hourly_model_usage) == usage
    for manifest in gateway.manifests():
        restore_rows(gateway.engine, open_store(gateway.archive), manifest, {"model_calls": model_calls})
    assert without_times(rows(gateway.engine, model_calls)) == without_times(before)


def test_a_full_disk_prunes_nothing(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.fill(-3, -2, -1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        report = gateway.prune()
    assert "No space left on device" in report.error
    assert (len(rows(gateway.engine, model_calls)), gateway.watermark(), gateway.manifests()) == (6, None, [])
    assert len(rows(gateway.engine, usage_hours)) == 3
