"""The pass over orphan applications: look, mark, look again for days, archive and delete.

What belongs here: the sequence. The rules are in `applications` and `root`, SQL in `application_store`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select

from ops_pipeline.analysis.maintenance import application_store as store
from ops_pipeline.analysis.maintenance.applications import (
    CLEAR,
    DELETE,
    LOOK,
    MARK,
    Application,
    Decisions,
    Policy,
    decide,
)
from ops_pipeline.analysis.maintenance.lab import Lab, telling
from ops_pipeline.analysis.maintenance.root import Found, Known, judge, look, new_marker
from ops_pipeline.analysis.tables import generated_applications
from ops_pipeline.database.batches import next_batch
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.expressions import is_any_of
from ops_pipeline.database.leases import Lease, leased
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.passes import SHOWN_CHANGES, Options, Report
from ops_pipeline.reconcile import Change, Outcome, Plan, SafetyLimit, Unavailable, count_reasons

NAME = "orphan_applications"
KIND = "generated_applications"
ROWS_PER_ARCHIVE = 10_000
SMALLEST_BATCH, LARGEST_BATCH = 100, 10_000


@dataclass(frozen=True)
class Look:
    """What was seen, and what follows from it by the database's clock at `now`."""

    now: datetime
    found: Found
    decisions: Decisions
    adopt: bool


@dataclass
class Applied:
    """What was done."""

    marked: int = 0
    looked: int = 0
    cleared: int = 0
    deleted: int = 0
    skipped: int = 0
    left: int = 0
    archives: list[str] = field(default_factory=list)


def clean_orphan_applications(lab: Lab, policy: Policy, options: Options, *, adopt_root: bool = False) -> Report:
    """Run the pass; never raises for what an operator can cause.

    Args:
        lab: where.
        policy: the grace.
        options: how.
        adopt_root: believe the root, whatever was seen before.
    """
    if not lab.applications:
        return Report(NAME, skipped="GENERATED_APPS_DIR names no root of generated applications.")
    return telling(NAME, lambda: _run(lab, policy, options, adopt=adopt_root))


def _run(lab: Lab, policy: Policy, options: Options, *, adopt: bool) -> Report:
    if options.dry_run:
        seen = _look(lab, policy, adopt=adopt)
        return _planned(seen, _objection(seen, policy, options))
    with leased(lab.engine, f"maintenance {NAME}") as lease:
        finished = _finish_others(lab, policy)
        seen = _look(lab, policy, adopt=adopt)
        lease.keep(now=True)
        objection = _objection(seen, policy, options)
        if objection:
            return _planned(seen, objection)
        _believe(lab, seen)
        applied = _apply(lab, policy, options, seen, lease)
    _tell(options, policy, applied)
    return _report(seen, applied, finished)


def _look(lab: Lab, policy: Policy, *, adopt: bool) -> Look:
    """Read first, then look: an application that is made in between is not among those read.

    Raises:
        Unavailable: the root could not be looked at, or is not to be believed.
    """
    with reading(lab.engine) as connection:
        rows = store.read_applications(connection)
        known = store.read_root(connection, lab.applications)
        now = database_now(connection)
    found = look(lab.applications, {row.slug for row in rows}, seconds=lab.look_seconds)
    remember = judge(lab.applications, found, known, len(rows), adopt=adopt)
    return Look(now, found, decide(rows, found, policy, now), remember)


def _objection(seen: Look, policy: Policy, options: Options) -> str:
    """Why the whole pass is refused, in words; empty when it is not."""
    changes = [change for change, _ in seen.decisions.changes]
    newly = SafetyLimit(share=policy.newly_missing, minimum_population=policy.minimum_population)
    for limit, action in ((newly, MARK), (options.limit, DELETE)):
        plan = Plan(tuple(one for one in changes if one.action == action), seen.decisions.scanned)
        objection = limit.objection(plan)
        if objection:
            what = "would be marked missing at once" if action == MARK else "would be deleted"
            return (
                f"Refused, applications {what}: {objection}. Nothing was changed. See that GENERATED_APPS_DIR is whole;"
                " if the plan is right, launch again with the limit raised in the run config."
            )
    return ""


def _believe(lab: Lab, seen: Look) -> None:
    """On first use, or when a person says so: write the marker, and remember the root as it is.

    Raises:
        Unavailable: the marker could not be written.
    """
    if not seen.adopt:
        store.saw_root(lab.engine, lab.applications, seen.found.applications)
        return
    found = seen.found
    if found.marker is None:
        found = look(lab.applications, (), seconds=lab.look_seconds, write_marker=new_marker())
    if found.marker is None or found.device != seen.found.device:
        raise Unavailable(f"The marker of {lab.applications} was written, and is not there: is it mounted?")
    store.remember_root(lab.engine, lab.applications, Known(found.marker, found.device), seen.found.applications)


def _apply(lab: Lab, policy: Policy, options: Options, seen: Look, lease: Lease) -> Applied:
    decisions, done = seen.decisions, Applied()
    marks, looks, clears = (decisions.of(action) for action in (MARK, LOOK, CLEAR))
    done.marked = store.mark(lab.engine, marks)
    done.looked = store.count_look(lab.engine, looks, policy.spacing())
    done.cleared = store.clear(lab.engine, clears)
    done.skipped = len(marks) + len(looks) + len(clears) - done.marked - done.looked - done.cleared
    _delete(lab, policy, options, planned=decisions.of(DELETE), lease=lease, done=done)
    return done


def _delete(
    lab: Lab, policy: Policy, options: Options, *, planned: Sequence[Application], lease: Lease, done: Applied
) -> None:
    deadline = options.deadline()
    for first in range(0, len(planned), ROWS_PER_ARCHIVE):
        if deadline.passed:
            done.left += len(planned) - first
            return
        rows = planned[first : first + ROWS_PER_ARCHIVE]
        # Once more, right before: one may have come back while the others were looked at.
        gone = _still_missing(lab, rows)
        deleted = _archive_and_delete(lab, policy, options, gone, done) if gone else 0
        done.deleted += deleted
        done.skipped += len(rows) - deleted
        lease.keep()


def _still_missing(lab: Lab, rows: Sequence[Application]) -> list[Application]:
    found = look(lab.applications, {row.slug for row in rows}, seconds=lab.look_seconds)
    with reading(lab.engine) as connection:
        known = store.read_root(connection, lab.applications)
    judge(lab.applications, found, known, 0)
    nowhere: frozenset[int] = frozenset()
    return [
        row
        for row in rows
        if row.number not in found.present.get(row.slug, nowhere)
        and row.slug not in found.unknown
        and (row.slug, row.number) not in found.odd
    ]


def _archive_and_delete(lab: Lab, policy: Policy, options: Options, rows: Sequence[Application], done: Applied) -> int:
    # pyarrow takes 0.3 s to import, which passes that delete nothing need not pay.
    from ops_pipeline.archives.columns import archived_columns  # noqa: PLC0415
    from ops_pipeline.archives.steps import archive, conclude  # noqa: PLC0415
    from ops_pipeline.archives.store import open_store  # noqa: PLC0415
    from ops_pipeline.archives.writing import ArchiveWriter  # noqa: PLC0415

    table = generated_applications
    wanted = is_any_of(table.c.id, [row.id for row in rows])
    with reading(lab.engine) as connection:
        found = [tuple(row) for row in connection.execute(select(*archived_columns(table)).where(wanted))]
    archived = {row[0]: row[-1] for row in found}

    def fill(writer: ArchiveWriter) -> Mapping[str, Any]:
        writer.write(table, found)
        return {"retention_days": policy.retention.total_seconds() / 86_400}

    where = open_store(lab.archive)
    manifest = archive(
        lab.engine, where, KIND, run_id=options.run_id, reason="their directories were missing", fill=fill
    )
    deleted, kept = _delete_archived(lab, policy, archived)
    conclude(lab.engine, where, manifest, {table.name: sorted(kept)})
    done.archives.append(manifest.folder)
    return deleted


def _delete_archived(lab: Lab, policy: Policy, archived: Mapping[str, int]) -> tuple[int, set[str]]:
    """Delete archived rows that are still what they were; how many, and those that stay."""
    deleted, kept, ids, size = 0, set[str](), sorted(archived), SMALLEST_BATCH
    while ids:
        now, ids = ids[:size], ids[size:]
        started = time.perf_counter()
        batch = {one: archived[one] for one in now}

        def transaction(batch: dict[str, int] = batch) -> tuple[set[str], set[str]]:
            with writing(lab.engine) as connection:
                gone = store.delete_archived(connection, batch, policy)
                return gone, store.still_there(connection, sorted(set(batch) - gone))

        gone, there = despite_conflicts(transaction)
        deleted, kept = deleted + len(gone), kept | there
        size = next_batch(size, time.perf_counter() - started, SMALLEST_BATCH, LARGEST_BATCH)
    return deleted, kept


def _finish_others(lab: Lab, policy: Policy) -> int:
    """Finish what dead runs have left."""
    from ops_pipeline.archives import tables  # noqa: PLC0415

    if not tables.unfinished(lab.engine, KIND):
        return 0
    from ops_pipeline.archives.columns import HASH  # noqa: PLC0415
    from ops_pipeline.archives.restoring import rows_of  # noqa: PLC0415
    from ops_pipeline.archives.steps import LeftOut, finish_others  # noqa: PLC0415

    def delete(where: Any, manifest: Any) -> LeftOut:
        archived = dict(rows_of(where, manifest, generated_applications, ("id", HASH)))
        _, kept = _delete_archived(lab, policy, archived)
        return {generated_applications.name: sorted(kept)}

    return finish_others(lab.engine, KIND, delete)


def _tell(options: Options, policy: Policy, done: Applied) -> None:
    days = policy.retention.total_seconds() / 86_400
    if done.marked:
        options.say(f"Marked {done.marked} apps as missing (grace period: {days:g} days)")
    if done.cleared:
        options.say(f"Restored {done.cleared} apps whose directories are back")
    ready = done.deleted + done.skipped + done.left
    if done.deleted or done.left:
        options.say(f"{ready} apps ready for deletion (missing > {days:g} days)")
    options.say(f"Cleaned {done.deleted} orphan app records")


def _planned(seen: Look, objection: str) -> Report:
    return _report(seen, None, 0, error=objection)


def _report(seen: Look, done: Applied | None, finished: int, error: str = "") -> Report:
    decisions = seen.decisions
    changes = [change for change, _ in decisions.changes]
    counts = Counter(change.action for change in changes)
    changed = done.marked + done.looked + done.cleared + done.deleted if done else 0
    outcome = Outcome(
        scanned=decisions.scanned,
        changed=changed,
        unchanged=decisions.scanned - len(changes) - len(decisions.failed),
        skipped=done.skipped if done else 0,
        failed=len(decisions.failed),
        reasons={**count_reasons(changes), **Counter(decisions.failed.values())},
    )
    unseen = [Change(name, "could not look", reason) for name, reason in decisions.failed.items()]
    facts = {
        "applications_with_a_directory": seen.found.applications,
        "newly_missing": counts[MARK],
        "to_delete": counts[DELETE],
        "deleted": done.deleted if done else 0,
        "archives": done.archives if done else [],
        "finished_archives_of_dead_runs": finished,
    }
    return replace(
        Report(NAME),
        outcome=outcome,
        changes=tuple((unseen + changes)[:SHOWN_CHANGES]),
        planned=len(changes),
        kept=decisions.kept,
        left=done.left if done else 0,
        backlog_seconds=_backlog(seen, done),
        error=error,
        facts=facts,
    )


def _backlog(seen: Look, done: Applied | None) -> float:
    """How overdue the oldest is that is still there."""
    everything = done is not None and not done.left and not done.skipped and not seen.decisions.kept
    return 0.0 if everything else seen.decisions.oldest.total_seconds()
