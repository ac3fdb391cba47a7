"""A sweep: scan, look at what only values tell, decide, and remove; in passes of bounded memory.

What belongs here: the sequence, and the result. The rules are in `policy`, the commands in `scanning`, `values` and
`removal`.
"""

from __future__ import annotations

import gc
import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ops_pipeline.checkpoints.collecting import Groups
from ops_pipeline.checkpoints.connection import Store, in_words
from ops_pipeline.checkpoints.expiry import EXPIRING, expiring, take_back
from ops_pipeline.checkpoints.groups import Group
from ops_pipeline.checkpoints.guards import Untouched
from ops_pipeline.checkpoints.layouts import Prefixes, Reader, beginnings, layouts_of, reader_of, shelved_by
from ops_pipeline.checkpoints.lock import LOCK, only_sweep
from ops_pipeline.checkpoints.lots import batches, expirable
from ops_pipeline.checkpoints.policy import DAY, ERASED, KEPT, ORPHANS, WHOLE, Policy, Verdict, judge, threads_of
from ops_pipeline.checkpoints.removal import Remover
from ops_pipeline.checkpoints.scanning import pages, size_of
from ops_pipeline.checkpoints.swept import Options, Swept
from ops_pipeline.checkpoints.values import read_ages
from ops_pipeline.log_fields import tell_changes
from ops_pipeline.reconcile import Change, Plan, counted

log = logging.getLogger(__name__)
NO_CHECKPOINT = "orphans, and no checkpoint anywhere"
TOLD_EVERY_SECONDS = 5.0
EXAMPLES = 50
LARGEST_THREADS = 20
RECIPES = (b"checkpoint$", b"writes$")
OURS = {LOCK.encode(), EXPIRING.encode()}


def sweep(
    store: Store,
    prefixes: Prefixes,
    policy: Policy,
    options: Options,
    *,
    swept: Swept,
    told: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Swept:
    """Sweep a Redis once.

    Args:
        store: where the checkpoints are.
        prefixes: what their keys begin with.
        policy: what may go.
        options: how.
        swept: filled with what is done; what it holds when an error is raised was done.
        told: hears of progress every few seconds.
        clock: monotonic seconds.

    Raises:
        Unavailable: Redis cannot be reached, refuses, or another sweep is at work.
        PlanRefused: more would go than the limit allows; nothing of that pass was removed.
    """
    with in_words(store.where), _without_collector():
        sweeper = _Sweeper(store, prefixes, policy, options, swept, told, clock)
        if options.dry_run:
            sweeper.run(lambda: None)
        else:
            with only_sweep(store, clock) as keep:
                sweeper.run(keep)
    tell_changes(log, swept.changes)
    return swept


class _TimeIsUp(Exception):
    """The time budget is used up before a pass was scanned."""


@contextmanager
def _without_collector() -> Generator[None, None, None]:
    """Without Python's search for cycles, of which a sweep makes none: among half a million keys it takes a tenth."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass
class _Sweeper:
    store: Store
    prefixes: Prefixes
    policy: Policy
    options: Options
    swept: Swept
    told: Callable[[str], None]
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        """Take the time from Redis, whose clock the checkpoints' writers share more than this machine's."""
        self.started = self.spoke = self.began = self.clock()
        self.layouts = layouts_of(self.prefixes)
        self.read: Reader = reader_of(self.layouts)
        seconds, microseconds = self.store.scanned[0].time()
        self.now = int(seconds) + int(microseconds) / 1e6
        expire_at = None if self.options.expire_seconds is None else self.now + self.options.expire_seconds
        self.remover = Remover(
            self.store,
            self.read,
            untouched=Untouched(self.policy.grace, 0.0 if self.policy.erase else self.options.unread_seconds),
            expire_at=expire_at,
            jitter=self.options.jitter_seconds,
        )

    def run(self, keep: Callable[[], None]) -> None:
        """All passes."""
        used, resident = memory_of(self.store)
        self.swept.used_bytes, self.swept.resident_bytes = (used, used), (resident, resident)
        policy = self.policy
        self.expiring: dict[bytes, float] = {}
        if not self.options.dry_run:
            self.remover.try_out()
            self.expiring = expiring(self.store)
        groups = Groups(
            self.read,
            self.now - policy.grace,
            shelved=shelved_by(self.layouts),
            wanted=self._may_want if policy.only else None,
            everything=policy.erase,
            names=policy.keep_newest is not None,
            largest=self.options.largest_pass,
        )
        with suppress(_TimeIsUp):
            self._passes(groups, keep)
        if self.options.purge_memory and not self.options.dry_run:
            for client in self.store.scanned:
                client.execute_command("MEMORY", "PURGE")
        now_used, now_resident = memory_of(self.store)
        self.swept.used_bytes, self.swept.resident_bytes = (used, now_used), (resident, now_resident)
        self.swept.seconds = self.clock() - self.started

    def _may_want(self, name: bytes) -> bool:
        """Whether a group is looked at: whether it may be, or hold a document, of a thread that is wanted."""
        # Which of its colons ends the thread, only a value or another group can tell.
        return self.policy.wants(name) or any(self.policy.wants(one) for one in beginnings(name))

    def _passes(self, groups: Groups, keep: Callable[[], None]) -> None:
        while True:
            self._one_pass(groups, keep)
            if not groups.next_pass():
                return

    def _one_pass(self, groups: Groups, keep: Callable[[], None]) -> None:
        self._look(groups, keep)
        before = self.swept.threads
        verdicts = self._verdicts(groups.found, others=groups.others)
        self._guard(verdicts, self.swept.threads - before)
        if not self.options.dry_run:
            self._remove(verdicts, keep)

    def _look(self, groups: Groups, keep: Callable[[], None]) -> None:
        """Scan, and read what only values tell.

        Raises:
            _TimeIsUp: before all was seen; of threads that were seen in part nothing can be decided.
        """
        size, self.began = size_of(self.store), self.clock()

        def pause(what: str) -> None:
            keep()
            if self.clock() - self.started > self.options.time_budget:
                self.swept.unscanned = max(1, size - groups.scanned)
                raise _TimeIsUp
            if self._is_time_to_tell():
                self._tell(f"{what}, {self.swept.deleted} deleted", groups.scanned)

        try:
            for page in pages(self.store):
                groups.add(_without_ours(page))
                pause(f"{groups.scanned} of {size} keys scanned")
        finally:
            if groups.passes == 1:
                self.swept.processed, self.swept.foreign = groups.scanned, groups.foreign
                self.swept.unknown, self.swept.unknown_examples = groups.unknown_count, groups.unknown
            self.swept.passes = groups.passes
        self.swept.documents += read_ages(self.store, groups, everything=self.policy.erase, pause=pause)

    def _verdicts(self, found: dict[bytes, Group], *, others: bool) -> list[Verdict]:
        """What happens to the threads of a pass; those that stay are counted."""
        verdicts = []
        # With a wrong prefix for checkpoints, all writes look like orphans.
        lonely = not others and not any(group.has_checkpoints() for group in found.values())
        for thread, names in threads_of(found).items():
            if self.policy.only and not any(self.policy.wants(name) for name in (thread, *names)):
                continue
            self.swept.threads += 1
            groups = [found[name] for name in names] if len(names) > 1 else [found[names[0]]]
            verdict = judge(thread, groups, self.policy, self.read, self.now)
            if lonely and verdict.action == ORPHANS:
                verdict = verdict._replace(action=KEPT, reason=NO_CHECKPOINT)
            self._count(verdict, groups)
            if thread in self.expiring and verdict.action not in {WHOLE, ERASED}:
                self._take_back(thread, groups)
            if verdict.action == KEPT:
                self.swept.kept[verdict.reason] += 1
            elif self.options.expire_seconds is None or expirable(verdict):
                verdicts.append(verdict)
            else:
                self.swept.kept["not whole (only whole threads expire)"] += 1
        return verdicts

    def _take_back(self, thread: bytes, groups: Sequence[Group]) -> None:
        """Let a thread stay that was set to expire; young keys were written since, and expire by nobody's will."""
        keys = [key for group in groups for key in (*group.old, *(key for _, key in group.timeless))]
        self.swept.taken_back += take_back(self.store, thread, self.expiring[thread], keys) > 0

    def _count(self, verdict: Verdict, groups: Sequence[Group]) -> None:
        if verdict.newest:
            self.swept.ages[max(0, int((self.now - verdict.newest) / DAY))] += 1
        keys = 0
        for group in groups:
            keys += group.keys
        entry, largest = (keys, verdict.thread), self.swept.largest
        if len(largest) < LARGEST_THREADS:
            heapq.heappush(largest, entry)
        elif entry > largest[0]:
            heapq.heapreplace(largest, entry)

    def _guard(self, verdicts: Sequence[Verdict], population: int) -> None:
        """Refuse a pass in which too many threads would go; orphans are no threads."""
        self.swept.planned += len(verdicts)
        self.swept.planned_keys += sum(verdict.size for verdict in verdicts)
        shown = verdicts[: EXAMPLES - len(self.swept.changes)]
        expires = self.options.expire_seconds is not None
        self.swept.changes += [change_of(verdict, self.now, expires=expires) for verdict in shown]
        # The limit counts: 100,000 changes in words would take longer than deciding about them.
        whole = sum(verdict.action in {WHOLE, ERASED} for verdict in verdicts)
        self.options.limit.check(Plan((Change("thread", "delete", ""),) * whole, scanned=population))

    def _remove(self, verdicts: Sequence[Verdict], keep: Callable[[], None]) -> None:
        done, before, self.began = 0, self.swept.deleted, self.clock()
        try:
            for batch in batches(verdicts):
                if self.clock() - self.started > self.options.time_budget:
                    self.swept.left += len(verdicts) - done
                    break
                keep()
                self.remover.carry_out(batch)
                self._note()
                done += len(batch)
                if self._is_time_to_tell():
                    self.remover.finish()
                    self._note()
                    text = f"{done} of {len(verdicts)} threads removed, {self.swept.deleted} keys deleted"
                    self._tell(text, self.swept.deleted - before)
            self.remover.finish()
        finally:
            # What was done before a failure was done.
            self.remover.give_up()
            self._note()
        self.swept.kept.update(self.remover.removed.spared)
        self.remover.removed.spared.clear()

    def _note(self) -> None:
        self.swept.deleted = self.remover.removed.keys
        self.swept.removed = Counter(self.remover.removed.threads)
        self.swept.seconds = self.clock() - self.started

    def _is_time_to_tell(self) -> bool:
        return self.clock() - self.spoke >= TOLD_EVERY_SECONDS

    def _tell(self, text: str, keys: int) -> None:
        """Say how far it is, with the rate of what it is doing."""
        self.spoke = self.clock()
        rate = keys / max(self.spoke - self.began, 1e-3)
        self.told(f"{text}, {self.spoke - self.started:.0f} s, {rate:,.0f} keys/s")


def _without_ours(page: list[bytes]) -> list[bytes]:
    """A page without this sweep's own keys, which are not of somebody else."""
    return page if OURS.isdisjoint(page) else [key for key in page if key not in OURS]


def change_of(verdict: Verdict, now: float, *, expires: bool = False) -> Change:
    """A verdict as a plan shows it."""
    name = verdict.thread.decode("utf-8", "backslashreplace")
    if name.startswith("$") and any(key.startswith(RECIPES) for key in verdict.keys):
        # As a person has to name it: the dollar only tells it from a saver's thread of the same id.
        name = name.removeprefix("$")
    was = f"newest {(now - verdict.newest) / DAY:.0f} days old" if verdict.newest else ""
    what = {WHOLE: "delete", ERASED: "erase", ORPHANS: "delete orphans"}.get(verdict.action, "trim")
    what = "let expire" if expires else what
    return Change(key=name, action=f"{what}: {counted(verdict.size, 'key')}", reason=verdict.reason, planned_from=was)


def memory_of(store: Store) -> tuple[int, int]:
    """Memory in use and of the process, in bytes, of all servers together; 0 where it is not told."""
    used = resident = 0
    for client in store.scanned:
        memory = client.info("memory")
        used += int(memory.get("used_memory", 0))
        resident += int(memory.get("used_memory_rss", 0))
    return used, resident
