"""From the words of operators to what a sweep may do, and from what it did to the documented result."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from ops_pipeline.checkpoints.layouts import Prefixes
from ops_pipeline.checkpoints.plans import (
    MEGABYTE,
    SMALLEST_POPULATION,
    Request,
    Retention,
    changes_of,
    failure_of,
    largest_table,
    options_of,
    outcome_of,
    policy_of,
    prefixes_of,
    result_of,
    retention_now,
    summary_of,
    warnings_of,
)
from ops_pipeline.checkpoints.policy import DAY
from ops_pipeline.checkpoints.sweep import Swept
from ops_pipeline.reconcile import Change
from ops_pipeline.settings import Settings

USUAL = Retention(30)


def settings(**fields: Any) -> Settings:
    return Settings(**{f"checkpoint_{name}": value for name, value in fields.items()})


def now(used_megabytes: float, request: Request | None = None, **fields: Any) -> Retention:
    return retention_now(settings(**fields), request or Request(), int(used_megabytes * MEGABYTE))


def warned(swept: Swept, retention: Retention = USUAL) -> list[str]:
    return warnings_of(swept, retention, "redis at cache:6379", Prefixes("app", "app_write"), 2)


# Retention


def test_the_retention_is_the_settings() -> None:
    assert now(10**6) == Retention(30)
    assert now(10**6, retention_days=90) == Retention(90)


@pytest.mark.parametrize(("used", "days"), [(1000, 30), (1000 + 1 / MEGABYTE, 7), (5000, 7), (0, 30)])
def test_above_the_memory_limit_the_shorter_retention_counts(used: float, days: float) -> None:
    assert now(used, memory_limit_mb=1000).days == days


@pytest.mark.parametrize(
    ("usual", "short", "floor", "days"),
    [(30, 7, 7, 7), (30, 1, 7, 7), (30, 10, 7, 10), (30, 1, 1, 1), (5, 7, 7, 5), (30, 60, 7, 30), (30, 1, 90, 30)],
)
def test_no_shortage_of_memory_goes_below_the_floor_or_above_the_usual(
    usual: float, short: float, floor: float, days: float
) -> None:
    """A spike of memory deleted what had to be kept for a month."""
    fields: dict[str, Any] = {"retention_days": usual, "short_retention_days": short, "retention_floor_days": floor}
    found = now(5000, memory_limit_mb=1000, **fields)
    assert found.days == days
    assert bool(found.warning) == (days < usual)


def test_a_shorter_retention_is_said_loudly() -> None:
    assert now(1500, memory_limit_mb=1000).warning == (
        "Redis uses 1500 MB, more than CHECKPOINT_MEMORY_LIMIT_MB (1000):"
        " threads are kept 7 days instead of 30 by this run."
    )
    assert now(500, memory_limit_mb=1000).warning == ""


@pytest.mark.parametrize("days", [0.5, 3, 400])
def test_what_a_person_asks_for_wins(days: float) -> None:
    assert now(5000, Request(retention_days=days), memory_limit_mb=1000) == Retention(days)


# The policy


def test_the_policy_is_of_the_settings_in_seconds() -> None:
    fields = settings(
        grace_hours=12,
        keep_newest=5,
        trim_days=2,
        retention_by_thread={"vip-*": 365.0, "a": 1.0},
        pinned_threads=("hold-*", "b"),
    )
    policy = policy_of(fields, Request(), Retention(30))
    assert (policy.retention, policy.grace, policy.keep_newest, policy.trim_age) == (30 * DAY, DAY / 2, 5, 2 * DAY)
    assert [policy.retention_of(name) / DAY for name in (b"vip-1", b"a", b"b")] == [365, 1, 30]
    assert [pattern.fullmatch(b"hold-1") is not None for pattern in policy.pinned] == [True, False]
    assert (policy.erase, policy.only) == (False, ())


def test_the_environment_reads_lists_of_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_RETENTION_BY_THREAD", "user-42-*=7, vip-*=365")
    monkeypatch.setenv("CHECKPOINT_PINNED_THREADS", "a:b,c-*")
    policy = policy_of(Settings(), Request(), Retention(30))
    assert [policy.retention_of(name) / DAY for name in (b"user-42-x", b"vip-1", b"user-42")] == [7, 365, 30]
    assert [pattern.pattern for pattern in policy.pinned] == [b"a:b", rb"c\-.*"]


def test_a_request_names_threads_and_what_becomes_of_them() -> None:
    policy = policy_of(settings(), Request(threads=["user-1", "user-2-*"], delete_all=True), Retention(30))
    assert policy.erase
    assert [policy.wants(name) for name in (b"user-1", b"user-2-a:__empty__", b"user-2")] == [True, True, False]


@pytest.mark.parametrize(
    ("request_", "retention", "message"),
    [
        (Request(delete_all=True), 30, "name the threads"),
        (Request(delete_all=True, threads=["*"]), 30, "every one"),
        (Request(threads=[""]), 30, "names no thread"),
        (Request(retention_days=0), 0, "longer than nothing"),
        (Request(retention_days=-1), -1, "longer than nothing"),
    ],
)
def test_requests_that_cannot_have_been_meant_are_refused(request_: Request, retention: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_of(settings(), request_, Retention(retention))


def test_a_pin_of_everybody_is_refused() -> None:
    with pytest.raises(ValueError, match="every one"):
        policy_of(settings(pinned_threads=("*",)), Request(), USUAL)


def test_prefixes_are_those_of_the_settings() -> None:
    assert prefixes_of(settings()) == Prefixes()
    assert prefixes_of(settings(prefix="app:c", write_prefix="app:w")) == Prefixes("app:c", "app:w")


# Options


@pytest.mark.parametrize(
    ("request_", "share"),
    [
        (Request(), 0.8),
        (Request(max_share=0.1), 0.1),
        (Request(max_share=1.0), 1.0),
        (Request(threads=["user-1"]), None),
        (Request(threads=["user-*"], max_share=0.5), 0.5),
        (Request(threads=["user-*"], max_share=0.0), 0.0),
    ],
)
def test_named_threads_may_all_go_unless_a_limit_was_asked_for(request_: Request, share: float | None) -> None:
    """A limit that a person gave together with a pattern was not heeded."""
    limit = options_of(settings(), request_).limit
    assert (limit.share, limit.minimum_population) == (share, SMALLEST_POPULATION)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        options_of(settings(), Request(max_share=share))


def test_the_other_options_are_taken_over() -> None:
    options = options_of(settings(time_budget_seconds=77), Request(dry_run=True, expire_hours=1.5, purge_memory=True))
    assert (options.dry_run, options.expire_seconds, options.purge_memory, options.time_budget) == (
        True,
        5400,
        True,
        77,
    )
    usual = options_of(settings(), Request())
    assert (usual.dry_run, usual.expire_seconds, usual.purge_memory, usual.time_budget) == (False, None, False, 600)
    assert options_of(settings(), Request(expire_hours=0)).expire_seconds == 0
    assert (usual.unread_seconds, options_of(settings(in_use_minutes=0), Request()).unread_seconds) == (600, 0)


# The result

SWEPT = Swept(
    processed=1000,
    deleted=120,
    threads=50,
    removed=Counter(whole=10, orphans=2),
    kept=Counter({"live": 30, "pinned": 5}),
    unknown=3,
    unknown_examples=[b"checkpoint_write:x", b"\xff", b"b", b"c"],
    foreign=400,
    documents=7,
    left=3,
    passes=2,
    used_bytes=(10, 8),
    resident_bytes=(20, 19),
    seconds=1.23456,
)


def test_the_result_has_the_documented_fields() -> None:
    result = result_of(SWEPT, USUAL, None)
    documented = {
        name: result[name] for name in ("success", "processed_count", "deleted_count", "retention_days", "error")
    }
    assert documented == {
        "success": True,
        "processed_count": 1000,
        "deleted_count": 120,
        "retention_days": 30,
        "error": None,
    }
    assert type(result["success"]) is bool
    assert {type(result[name]) for name in ("processed_count", "deleted_count")} == {int}


def test_the_result_says_what_was_left_alone_and_why() -> None:
    result = result_of(SWEPT, USUAL, None)
    assert (result["threads"], result["threads_removed"], result["threads_left"], result["passes"]) == (50, 12, 3, 2)
    assert (result["removed"], result["kept"]) == ({"whole": 10, "orphans": 2}, {"live": 30, "pinned": 5})
    assert (result["matched_keys"], result["unknown_keys"], result["foreign_keys"]) == (600, 3, 400)
    assert (result["used_bytes_before"], result["used_bytes_after"]) == (10, 8)
    assert (result["resident_bytes_before"], result["resident_bytes_after"]) == (20, 19)
    assert (result["documents_read"], result["duration_seconds"]) == (7, 1.235)
    assert json.loads(json.dumps(result)) == result


def test_the_log_says_in_a_sentence_what_went_or_would_go() -> None:
    """A dry run told its totals nowhere: of 198 threads its table showed 50."""
    swept = replace(SWEPT, planned=15, planned_keys=150)
    went = "redis://r: 50 threads in 600 of 1000 keys; {}. Kept: 30 live, 5 pinned."
    assert summary_of(swept, "redis://r", Request()) == went.format(
        "12 threads with 120 keys went, of 15 threads with 150 keys that were to go"
    )
    assert "with 120 keys expire, of 15 threads" in summary_of(swept, "redis://r", Request(expire_hours=30))
    swept = replace(swept, removed=Counter(), deleted=0)
    assert summary_of(swept, "redis://r", Request(dry_run=True)) == went.format(
        "15 threads with 150 keys would go; this is a dry run"
    )


def test_changes_are_shown_under_how_many_there_are() -> None:
    some = [Change(key="a", action="delete: 5 keys", reason="old")]
    assert changes_of(Swept(changes=some, planned=1, planned_keys=5), None).startswith(
        "1 thread with 5 keys:\n\n| object"
    )
    many = changes_of(Swept(changes=some, planned=198, planned_keys=3200), None)
    assert many.startswith("198 threads with 3200 keys, the first 1 of them:\n\n| object")
    assert changes_of(Swept(), None) == "Nothing to do."
    assert changes_of(Swept(), "no such host") == "Nothing was decided."


def test_a_failure_says_what_was_done_before() -> None:
    assert failure_of(Swept(), "no such host") == "no such host. Nothing was deleted."
    assert failure_of(Swept(deleted=2), "Lost.") == "Lost. 2 keys were deleted before."
    assert failure_of(Swept(), "Too many. Nothing was changed. Read it.") == "Too many. Nothing was changed. Read it."
    result = result_of(Swept(processed=5, deleted=2), USUAL, "connection lost")
    assert (result["success"], result["error"], result["deleted_count"]) == (False, "connection lost", 2)
    assert json.loads(json.dumps(result_of(Swept(), USUAL, "")))["success"] is False


def test_the_outcome_counts_threads() -> None:
    outcome = outcome_of(SWEPT, failed=False)
    assert (outcome.scanned, outcome.changed, outcome.unchanged, outcome.skipped, outcome.failed) == (50, 12, 38, 3, 0)
    assert outcome.reasons == {"whole": 10, "orphans": 2, "kept: live": 30, "kept: pinned": 5}
    assert (outcome.status, outcome_of(SWEPT, failed=True).status) == ("success", "failed")
    assert outcome_of(Swept(), failed=True).failed == 1


# Warnings


def test_nothing_odd_is_no_warning() -> None:
    assert warned(Swept(processed=10, foreign=9, threads=1)) == []


def test_no_key_of_a_checkpoint_is_said_with_database_and_patterns() -> None:
    """The original looked into another database than the savers wrote to, and was a success for months."""
    assert warned(Swept(processed=10, foreign=10)) == [
        "None of 10 keys in database 2 of redis at cache:6379 is of a checkpoint (app:*, app_write:*): is it the right"
        " database (the number in CHECKPOINT_REDIS_URL, or LANGGRAPH_REDIS_DB)?"
    ]


def test_an_empty_database_is_said() -> None:
    (warning,) = warned(Swept())
    assert warning.startswith("Database 2 of redis at cache:6379 is empty: is it the right one (the number in ")


def test_unknown_keys_are_said_with_examples_whatever_their_bytes() -> None:
    (text,) = warned(Swept(processed=9, unknown=4, unknown_examples=[b"a", b"\xff:b", "ä".encode(), b"d"]))
    assert text == "4 keys under these prefixes are of no known layout, and left alone: a, \\xff:b, ä"


def test_threads_that_are_left_are_said() -> None:
    assert warned(Swept(processed=9, left=7)) == ["7 threads are left for the next sweep: the time was up."]


def test_a_pass_that_there_was_no_time_to_scan_is_said() -> None:
    (text,) = warned(Swept(processed=9, unscanned=2_000, passes=3))
    assert text.startswith("The time was up when 2000 keys were still to be scanned (pass 3), and nothing of that pass")
    assert text.endswith("raise CHECKPOINT_TIME_BUDGET_SECONDS.")
    assert result_of(Swept(unscanned=7), USUAL, None)["keys_unscanned"] == 7


def test_many_idle_threads_that_somebody_reads_are_said() -> None:
    """After a restart of Redis all keys look as if they had just been read: a run that removed nothing was green."""
    few = Swept(processed=9, removed=Counter(whole=3), kept=Counter({"in use": 3}))
    assert warned(few) == []
    few.removed["whole"] = 2
    (warning,) = warned(few)
    assert "3 idle threads stay" in warning and "CHECKPOINT_IN_USE_MINUTES" in warning and "restarted" in warning


def test_the_largest_threads_are_told_with_their_whole_names() -> None:
    name = b"user|" + b"x" * 60
    table = largest_table(Swept(largest=[(3, b"\xff"), (70, name)]))
    assert table.splitlines()[2:] == [f"| user\\|{'x' * 60} | 70 |", "| \\\\xff | 3 |"]
    assert largest_table(Swept()) == "No threads."


def test_every_warning_is_said_and_that_of_the_retention_first() -> None:
    found = warned(Swept(processed=9, unknown=1, unknown_examples=[b"x"], left=1), Retention(7, "memory is short"))
    assert (found[0], len(found)) == ("memory is short", 3)


def test_prefixes_by_which_nothing_could_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="CHECKPOINT_PREFIX and CHECKPOINT_WRITE_PREFIX are both 'c'"):
        Prefixes("c", "c")
