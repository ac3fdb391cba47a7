"""From settings and run config to what a sweep may do, and from what it did to the documented result.

What belongs here: translation of the words of operators. What does not: Redis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops_pipeline.checkpoints.layouts import Prefixes
from ops_pipeline.checkpoints.policy import DAY, Policy, glob_of
from ops_pipeline.checkpoints.removal import IN_USE
from ops_pipeline.checkpoints.sweep import NO_CHECKPOINT, Options, Swept
from ops_pipeline.reconcile import Outcome, SafetyLimit, changes_table, counted, markdown_table
from ops_pipeline.settings import Settings

MINUTE, HOUR, DAILY_HOURS = 60.0, 3600.0, 25.0
SMALLEST_POPULATION = 20
DATABASE_FROM = "the number in CHECKPOINT_REDIS_URL, or LANGGRAPH_REDIS_DB"
MEGABYTE = 1_048_576


@dataclass(frozen=True)
class Request:
    """What one run is asked for.

    Attributes:
        dry_run: decide and show, write nothing.
        threads: patterns of thread ids; empty for all.
        delete_all: erase these threads whatever their age.
        retention_days: another retention than the settings'.
        max_share: another limit than the settings'.
        expire_hours: let idle threads expire after so long instead of deleting them.
        purge_memory: ask Redis to give memory back at the end.
    """

    dry_run: bool = False
    threads: Sequence[str] = ()
    delete_all: bool = False
    retention_days: float | None = None
    max_share: float | None = None
    expire_hours: float | None = None
    purge_memory: bool = False


@dataclass(frozen=True)
class Retention:
    """How long idle threads are kept, in days, and why so when it is not what the settings say."""

    days: float
    warning: str = ""


def prefixes_of(settings: Settings) -> Prefixes:
    """What the keys begin with."""
    return Prefixes(settings.checkpoint_prefix, settings.checkpoint_write_prefix)


def retention_now(settings: Settings, request: Request, used_bytes: int) -> Retention:
    """The retention of a run: the settings', a shorter one when memory is short, or what the run was asked for.

    Args:
        settings: retentions and the memory limit.
        request: what a person asked for wins.
        used_bytes: memory that Redis uses.
    """
    if request.retention_days is not None:
        return Retention(request.retention_days)
    days, limit = settings.checkpoint_retention_days, settings.checkpoint_memory_limit_mb
    if limit is None or used_bytes <= limit * MEGABYTE:
        return Retention(days)
    short = min(days, max(settings.checkpoint_short_retention_days, settings.checkpoint_retention_floor_days))
    if short == days:
        return Retention(days)
    return Retention(
        short,
        f"Redis uses {used_bytes / MEGABYTE:.0f} MB, more than CHECKPOINT_MEMORY_LIMIT_MB ({limit}): threads are kept"
        f" {short:g} days instead of {days:g} by this run.",
    )


def policy_of(settings: Settings, request: Request, retention: Retention) -> Policy:
    """What may go.

    Raises:
        ValueError: the request names no thread, or every one; a retention is not longer than nothing.
    """
    return Policy(
        retention=retention.days * DAY,
        grace=settings.checkpoint_grace_hours * HOUR,
        by_thread=tuple(
            (glob_of(pattern), days * DAY) for pattern, days in settings.checkpoint_retention_by_thread.items()
        ),
        pinned=tuple(glob_of(pattern) for pattern in settings.checkpoint_pinned_threads),
        keep_newest=settings.checkpoint_keep_newest,
        trim_age=settings.checkpoint_trim_days * DAY,
        erase=request.delete_all,
        only=tuple(glob_of(pattern) for pattern in request.threads),
    )


def options_of(settings: Settings, request: Request) -> Options:
    """How the sweep works; threads that a person named may all go, unless a limit was asked for as well."""
    usual = None if request.threads else settings.checkpoint_max_share
    share = usual if request.max_share is None else request.max_share
    limit = SafetyLimit(share=share, minimum_population=SMALLEST_POPULATION)
    return Options(
        dry_run=request.dry_run,
        expire_seconds=None if request.expire_hours is None else request.expire_hours * HOUR,
        limit=limit,
        time_budget=settings.checkpoint_time_budget_seconds,
        unread_seconds=settings.checkpoint_in_use_minutes * MINUTE,
        purge_memory=request.purge_memory,
    )


def result_of(swept: Swept, retention: Retention, error: str | None) -> dict[str, Any]:
    """The documented result (success, processed_count, deleted_count, retention_days, error), and more."""
    return {
        "success": error is None,
        "processed_count": swept.processed,
        "deleted_count": swept.deleted,
        "retention_days": retention.days,
        "error": error,
        "threads": swept.threads,
        "threads_planned": swept.planned,
        "keys_planned": swept.planned_keys,
        "threads_removed": sum(swept.removed.values()),
        "removed": dict(swept.removed),
        "kept": dict(swept.kept),
        "threads_left": swept.left,
        "keys_unscanned": swept.unscanned,
        "threads_taken_back": swept.taken_back,
        "matched_keys": swept.matched,
        "unknown_keys": swept.unknown,
        "foreign_keys": swept.foreign,
        "documents_read": swept.documents,
        "passes": swept.passes,
        "used_bytes_before": swept.used_bytes[0],
        "used_bytes_after": swept.used_bytes[1],
        "resident_bytes_before": swept.resident_bytes[0],
        "resident_bytes_after": swept.resident_bytes[1],
        "duration_seconds": round(swept.seconds, 3),
    }


def summary_of(swept: Swept, where: str, request: Request) -> str:
    """What a sweep found and did, or would do, in a sentence for the log."""
    done = sum(swept.removed.values())
    if request.dry_run:
        what = f"{_size(swept.planned, swept.planned_keys)} would go; this is a dry run"
    else:
        goes = "went" if request.expire_hours is None else "expire"
        what = f"{_size(done, swept.deleted)} {goes}, of {_size(swept.planned, swept.planned_keys)} that were to go"
    stay = ", ".join(f"{count} {why}" for why, count in sorted(swept.kept.items(), key=lambda item: -item[1]))
    kept = f" Kept: {stay}." if stay else ""
    threads = counted(swept.threads, "thread")
    return f"{where}: {threads} in {swept.matched} of {swept.processed} keys; {what}.{kept}"


def _size(threads: int, keys: int) -> str:
    return f"{counted(threads, 'thread')} with {counted(keys, 'key')}"


def changes_of(swept: Swept, error: str | None) -> str:
    """The first of the changes as a Markdown table, under how many there are."""
    if not swept.changes:
        return "Nothing was decided." if error else "Nothing to do."
    more = f", the first {len(swept.changes)} of them" if swept.planned > len(swept.changes) else ""
    return f"{_size(swept.planned, swept.planned_keys)}{more}:\n\n{changes_table(swept.changes)}"


def failure_of(swept: Swept, error: str) -> str:
    """Why a sweep failed, and what it had done before."""
    before = counted(swept.deleted, "key was", "keys were")
    nothing = "" if "Nothing was changed." in error else " Nothing was deleted."
    return f"{error.rstrip('.')}." + (f" {before} deleted before." if swept.deleted else nothing)


def warnings_of_request(request: Request) -> list[str]:
    """What a person should know who asks for this."""
    if request.expire_hours is None or request.expire_hours > DAILY_HOURS:
        return []
    return [
        f"Threads expire in {request.expire_hours:g} hours. One that is used again before loses its older checkpoints"
        f" unless a sweep comes first, which takes the expiry back: with a sweep a day, give more than {DAILY_HOURS:g}."
    ]


def outcome_of(swept: Swept, *, failed: bool) -> Outcome:
    """The sweep as an outcome, in threads."""
    removed = sum(swept.removed.values())
    reasons: Mapping[str, int] = {**swept.removed, **{f"kept: {why}": count for why, count in swept.kept.items()}}
    return Outcome(
        scanned=swept.threads,
        changed=removed,
        unchanged=max(0, swept.threads - removed),
        skipped=swept.left,
        failed=int(failed),
        reasons=reasons,
    )


def warnings_of(swept: Swept, retention: Retention, where: str, prefixes: Prefixes, database: int) -> list[str]:
    """What a person should see although nothing failed."""
    found = [retention.warning] if retention.warning else []
    if swept.processed and not swept.matched:
        found.append(
            f"None of {swept.processed} keys in database {database} of {where} is of a checkpoint"
            f" ({prefixes.checkpoint}:*, {prefixes.write}:*): is it the right database ({DATABASE_FROM})?"
        )
    elif not swept.processed:
        found.append(f"Database {database} of {where} is empty: is it the right one ({DATABASE_FROM})?")
    if swept.unknown:
        examples = ", ".join(key.decode("utf-8", "backslashreplace") for key in swept.unknown_examples[:3])
        found.append(
            f"{counted(swept.unknown, 'key under these prefixes is', 'keys under these prefixes are')} of no known"
            f" layout, and left alone: {examples}"
        )
    if swept.kept[NO_CHECKPOINT]:
        found.append(
            f"There are writes of {swept.kept[NO_CHECKPOINT]} threads and no checkpoint at all, so that nothing was"
            f" deleted: do checkpoints begin with {prefixes.checkpoint}: (CHECKPOINT_PREFIX)?"
        )
    read = swept.kept[IN_USE]
    if read > sum(swept.removed.values()):
        found.append(
            f"{read} idle threads stay because their newest checkpoints were read within CHECKPOINT_IN_USE_MINUTES: has"
            " this Redis just been restarted, or does a program read them all? Set it to 0 to look at no reads."
        )
    if swept.unscanned:
        found.append(
            f"The time was up when {counted(swept.unscanned, 'key was', 'keys were')} still to be scanned"
            f" (pass {swept.passes}), and nothing of that pass was deleted: raise CHECKPOINT_TIME_BUDGET_SECONDS."
        )
    if swept.left:
        found.append(f"{counted(swept.left, 'thread is', 'threads are')} left for the next sweep: the time was up.")
    return found


def largest_table(swept: Swept) -> str:
    """The largest threads as a Markdown table, with their names in full."""
    rows = [(name.decode("utf-8", "backslashreplace"), keys) for keys, name in sorted(swept.largest, reverse=True)]
    return markdown_table(("thread", "keys"), rows) if rows else "No threads."
