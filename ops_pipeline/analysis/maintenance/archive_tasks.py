"""The pass over old tasks: pages of whole trees are archived, then deleted, the oldest first, as long as time is left.

While a server deletes a page, the next one is read and archived: each page is archived before it is deleted, and no
tree is in two of them.

What belongs here: the sequence. The rule is in `old_trees`, SQL in `tree_store`, archives in `tree_archive`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.analysis.maintenance import tree_store as store
from ops_pipeline.analysis.maintenance.lab import Lab, telling
from ops_pipeline.analysis.maintenance.old_trees import Tree, TreeDecisions, decide_trees
from ops_pipeline.analysis.maintenance.result_folders import Folders
from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.database.errors import DatabaseProblem, Unreachable
from ops_pipeline.database.leases import Lease, leased
from ops_pipeline.passes import SHOWN_CHANGES, Deadline, Options, Report
from ops_pipeline.reconcile import Change, Outcome, counted

NAME = "old_tasks"
KIND = "analysis_tasks"
FIRST_PAGE, SMALLEST_PAGE, LARGEST_PAGE = 250, 10, 2_000
"""Trees. What is archived of two pages is kept in memory at once: they shrink when trees have many rows."""
ROWS_PER_PAGE = 20_000
ARCHIVE = "archive and delete"
ADVICE = "Nothing was changed. Read the plan; if it is right, launch again with the limit raised in the run config."


@dataclass
class Done:
    """What the pass did so far.

    Attributes:
        after: where the last page that was read began.
        page: how many trees the next one has.
        oldest: when the first tree ended that was to go.
    """

    changes: list[Change] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    planned: int = 0
    trees: int = 0
    tasks: int = 0
    rows: int = 0
    changed_meanwhile: int = 0
    archives: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0
    finished: int = 0
    stopped: bool = False
    after: store.Key = field(default_factory=store.Key)
    page: int = field(default_factory=lambda: FIRST_PAGE)
    oldest: datetime | None = None


@dataclass(frozen=True)
class Sweep:
    """One run of the pass, by the database's clock at `now`."""

    lab: Lab
    retention: timedelta
    now: datetime
    options: Options
    deadline: Deadline
    done: Done = field(default_factory=Done)

    @property
    def cutoff(self) -> datetime:
        """What ended before it is old."""
        return self.now - self.retention

    @property
    def days(self) -> float:
        """The retention."""
        return self.retention / timedelta(days=1)


Delete = Callable[[], None]
"""Deletes what was just archived."""
Archive = Callable[[Connection, Sequence[Tree]], Delete]
"""Archives trees within the snapshot in which they were decided."""


def archive_old_tasks(lab: Lab, retention: timedelta, options: Options) -> Report:
    """Archive and delete trees of tasks that ended longer ago than the retention; never raises for it."""
    return telling(NAME, lambda: _run(lab, retention, options))


def _run(lab: Lab, retention: timedelta, options: Options) -> Report:
    with reading(lab.engine) as connection:
        now = database_now(connection)
        scanned, due = store.count_old(connection, now - retention)
    sweep = Sweep(lab, retention, now, options, options.deadline())
    objection = options.limit.objection_to(due, scanned)
    if objection or options.dry_run:
        _walk(sweep, None)
    else:
        with leased(lab.engine, f"maintenance {NAME}") as lease:
            sweep.done.finished = _finish_others(sweep, lease)
            _walk(sweep, _archiving(sweep, lease))
        options.say(f"Cleaned {sweep.done.tasks} old tasks (> {sweep.days:g} days)")
    return _report(sweep, scanned, f"Refused: {objection}. {ADVICE}" if objection else "")


def _walk(sweep: Sweep, archive: Archive | None) -> None:
    """Decide about page after page, and archive each before it is deleted."""
    after: store.Key | None = store.Key()
    with _behind(sweep.lab.engine) as behind:
        while after is not None:
            after = _page(sweep, archive, behind, store.read_page, after)
    abandoned: str | None = "" if not sweep.done.stopped else None
    with _behind(sweep.lab.engine) as behind:
        while abandoned is not None:
            abandoned = _page(sweep, archive, behind, store.read_abandoned, abandoned)


@dataclass
class _Behind:
    """What deletes one page while the next one is archived; without threads it deletes at once."""

    threads: ThreadPoolExecutor | None
    _last: Future[None] | None = None

    def follow(self, delete: Delete) -> None:
        """Delete a page once the last one is gone; raises what went wrong with the last one."""
        self.settle()
        if self.threads is None:
            delete()
        else:
            self._last = self.threads.submit(delete)

    def settle(self) -> None:
        """Wait until nothing is being deleted; raises what went wrong."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


@contextmanager
def _behind(engine: Engine) -> Generator[_Behind, None, None]:
    if engine.dialect.name != "postgresql":
        # SQLite works within this process, and a snapshot beside the deletion would only let its log grow.
        yield _Behind(None)
        return
    # Leaving waits for the deletion, whatever happened to the next page.
    with ThreadPoolExecutor(1, "deletes old tasks") as threads:
        behind = _Behind(threads)
        yield behind
        behind.settle()


def _page(
    sweep: Sweep,
    archive: Archive | None,
    behind: _Behind,
    read: Callable[..., tuple[list[Tree], Any]],
    after: Any,
) -> Any:
    done = sweep.done
    if sweep.deadline.passed:
        done.stopped = True
        return None
    if isinstance(after, store.Key):
        done.after = after
    with reading(sweep.lab.engine) as connection:
        trees, following = read(connection, sweep.cutoff, after, done.page)
        members = [member for tree in trees for member in tree.members]
        owners = store.read_pipelines(connection, {one.pipeline_id for one in members if one.pipeline_id})
        keepers = store.read_keepers(connection, {one.target for one in members})
        decisions = decide_trees(trees, owners, keepers, sweep.retention, sweep.now)
        delete = archive(connection, decisions.going) if archive and decisions.going else None
    _count(done, decisions, sweep.now)
    if delete is not None:
        behind.follow(delete)
    return following


def _count(done: Done, decisions: TreeDecisions, now: datetime) -> None:
    done.planned += len(decisions.going)
    done.kept.update(decisions.kept)
    if decisions.going and done.oldest is None:
        done.oldest = decisions.going[0].root.completed_at
    for tree in decisions.going[: max(0, SHOWN_CHANGES - len(done.changes))]:
        root, below = tree.root, len(tree.members) - 1
        age = (now - root.completed_at) / timedelta(days=1) if root.completed_at else 0
        reason = f"ended {age:.0f} days ago" + (f", with {counted(below, 'task')} below it" if below else "")
        done.changes.append(Change(f"{root.id} ({root.target})", ARCHIVE, reason, root.status))


def _archiving(sweep: Sweep, lease: Lease) -> Archive:
    """What writes the archive of a page, and then deletes it."""
    # pyarrow takes 0.3 s to import, which deployments without old tasks need not pay.
    from ops_pipeline.analysis.maintenance import tree_archive  # noqa: PLC0415
    from ops_pipeline.archives.steps import archive, conclude  # noqa: PLC0415
    from ops_pipeline.archives.store import open_store  # noqa: PLC0415
    from ops_pipeline.archives.writing import ArchiveWriter  # noqa: PLC0415

    engine, where, done = sweep.lab.engine, open_store(sweep.lab.archive), sweep.done

    def write(connection: Connection, trees: Sequence[Tree]) -> Delete:
        folders, archived = Folders(sweep.lab.results), []

        def fill(writer: ArchiveWriter) -> Mapping[str, Any]:
            archived[:] = tree_archive.fill(connection, writer, trees, folders)
            done.page = _next_page(len(trees), sum(one.size for one in archived))
            return tree_archive.facts_of(trees, sweep.days)

        reason = f"tasks that ended more than {sweep.days:g} days ago"
        manifest = archive(engine, where, KIND, run_id=sweep.options.run_id, reason=reason, fill=fill)

        def delete() -> None:
            lease.keep(now=True)
            deleted = tree_archive.delete_archived(engine, archived, sweep.cutoff, folders, lease.keep)
            lease.keep(now=True)
            conclude(engine, where, manifest, deleted.left_out)
            done.archives.append(manifest.folder)
            done.trees += deleted.trees
            done.tasks += deleted.tasks
            done.rows += deleted.rows
            done.changed_meanwhile += deleted.kept
            done.failed |= deleted.failed
            done.longest_seconds = max(done.longest_seconds, deleted.longest_seconds)

        return delete

    def halving(connection: Connection, trees: Sequence[Tree]) -> Delete:
        try:
            return write(connection, trees)
        except Unreachable:
            raise
        except (ValueError, DatabaseProblem, SQLAlchemyError) as error:
            if len(trees) == 1:
                done.failed[trees[0].root.id] = f"could not be archived: {str(error).partition(chr(10))[0]}"
                return lambda: None
        middle = len(trees) // 2

        def both() -> None:
            for half in (trees[:middle], trees[middle:]):
                # A snapshot of its own: on PostgreSQL the other one is aborted.
                with reading(engine) as another:
                    delete = halving(another, half)
                delete()

        return both

    return halving


def _next_page(trees: int, rows: int) -> int:
    """How many trees the next page has, from how many rows these ones have; at most twice as many."""
    wanted = trees * ROWS_PER_PAGE // max(rows, 1)
    return min(max(wanted, SMALLEST_PAGE), 2 * max(trees, SMALLEST_PAGE), LARGEST_PAGE)


def _finish_others(sweep: Sweep, lease: Lease) -> int:
    """Finish what dead runs have left."""
    from ops_pipeline.archives import tables  # noqa: PLC0415

    if not tables.unfinished(sweep.lab.engine, KIND):
        return 0
    from ops_pipeline.analysis.maintenance import tree_archive  # noqa: PLC0415
    from ops_pipeline.archives.steps import LeftOut, finish_others  # noqa: PLC0415

    def delete(where: Any, manifest: Any) -> LeftOut:
        folders = Folders(sweep.lab.results)
        trees = tree_archive.read_back(where, manifest, folders)
        deleted = tree_archive.delete_archived(sweep.lab.engine, trees, sweep.cutoff, folders, lease.keep)
        lease.keep(now=True)
        return deleted.left_out

    return finish_others(sweep.lab.engine, KIND, delete)


def _report(sweep: Sweep, scanned: int, error: str) -> Report:
    done = sweep.done
    left, oldest = 0, done.oldest if error or sweep.options.dry_run else None
    if done.stopped:
        with reading(sweep.lab.engine) as connection:
            _, left = store.count_old(connection, sweep.cutoff)
            oldest = oldest or store.oldest_root(connection, sweep.cutoff, done.after)
    failures = [Change(name, "could not be done", reason) for name, reason in done.failed.items()]
    return Report(
        NAME,
        Outcome(
            scanned=scanned,
            changed=done.tasks,
            unchanged=scanned - done.tasks,
            skipped=done.changed_meanwhile,
            failed=len(failures),
            reasons={ARCHIVE: done.trees} if done.trees else {},
        ),
        changes=tuple([*failures, *done.changes][:SHOWN_CHANGES]),
        planned=done.planned,
        kept=dict(done.kept),
        left=left if done.stopped else 0,
        backlog_seconds=(sweep.cutoff - oldest).total_seconds() if oldest else 0.0,
        error=error,
        facts={
            "trees": done.trees,
            "tasks": done.tasks,
            "rows": done.rows,
            "archives": done.archives,
            "longest_transaction_seconds": round(done.longest_seconds, 3),
            "finished_archives_of_dead_runs": done.finished,
        },
    )
