"""The pass over orphan applications: look, mark, look again for days, archive and delete.

What belongs here: the sequence. The rules are in `applications` and `root`, SQL in `application_store`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from subprocess import Popen

from ops_pipeline.analysis.maintenance import application_store as store
from ops_pipeline.analysis.maintenance.applications import (
    CLEAR,
    DELETE,
    LOOK,
    MARK,
    Decisions,
    Policy,
    decide,
)
from ops_pipeline.analysis.maintenance.delete_applications import delete_applications, finish_others
from ops_pipeline.analysis.maintenance.lab import Lab, telling
from ops_pipeline.analysis.maintenance.root import Found, Known, judge, look, new_marker, started
from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.database.leases import Lease, leased
from ops_pipeline.passes import SHOWN_CHANGES, Options, Report
from ops_pipeline.reconcile import Change, Outcome, Plan, SafetyLimit, Unavailable, count_reasons

NAME = "orphan_applications"


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
    with started(lab.applications) as process, leased(lab.engine, f"maintenance {NAME}") as lease:
        seen = _look(lab, policy, adopt=adopt, process=process)
        objection = _objection(seen, policy, options)
        finished = 0
        if not objection:
            _believe(lab, seen)
            # Only now: what a dead run has archived may have its directory back, or the whole root be gone.
            finished = finish_others(lab, policy)
        if finished:
            seen = _look(lab, policy, adopt=False)
            objection = _objection(seen, policy, options)
        if objection:
            return _planned(seen, objection)
        applied = _apply(lab, policy, options, seen, lease)
    _tell(options, policy, applied)
    return _report(seen, applied, finished)


def _look(lab: Lab, policy: Policy, *, adopt: bool, process: Popen[bytes] | None = None) -> Look:
    """Look at the disk while the database is read, in a snapshot from before: no application is newer than the look.

    Raises:
        Unavailable: the root could not be looked at, or is not to be believed.
    """
    with reading(lab.engine) as connection, ThreadPoolExecutor(1) as beside:
        slugs = store.read_slugs(connection)
        looking = beside.submit(look, lab.applications, slugs, seconds=lab.look_seconds, process=process)
        known = store.read_root(connection, lab.applications)
        now = database_now(connection)
        models = store.read_models(connection)
        noted = store.read_noted_of(connection, [model.slug for model in models if model.noted])
        found = looking.result()
        total = len(noted) + sum(model.plain for model in models)
        remember = judge(lab.applications, found, known, total, adopt=adopt)
        rows = noted + store.read_plain(connection, _without_directory(models, found))
    return Look(now, found, decide(rows, found, policy, now, others=total - len(rows)), remember)


def _without_directory(models: Iterable[store.Model], found: Found) -> list[str]:
    """What a look has not found, as targets: objects are made of these rows alone."""
    nowhere: frozenset[int] = frozenset()
    missing = ((model.slug, model.numbers - found.present.get(model.slug, nowhere)) for model in models)
    return [f"{slug}/app{number}" for slug, numbers in missing for number in sorted(numbers)]


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
    gone = delete_applications(lab, policy, options, decisions.of(DELETE), lease)
    done.deleted, done.left, done.archives = gone.deleted, gone.left, gone.archives
    done.skipped += gone.skipped
    return done


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
