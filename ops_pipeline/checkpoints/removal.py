"""Carrying out verdicts: keys go in batches, and no thread goes that has come alive since it was looked at.

What belongs here: what is sent to delete or to expire, batch by batch. What does not: which threads, and the step in
which Redis looks and removes (`guards`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import redis

from ops_pipeline.checkpoints.connection import Store
from ops_pipeline.checkpoints.expiry import remember
from ops_pipeline.checkpoints.guards import (
    BLOBS_IN_USE,
    MOVED,
    READ,
    SCRIPT_KEYS,
    UNTOLD,
    Guarded,
    Line,
    Untouched,
    command_of,
)
from ops_pipeline.checkpoints.layouts import DOCUMENT, POINTER, Reader
from ops_pipeline.checkpoints.looks import UNREADABLE, may_have_root, spared_by, targets_of, touched, trimmable
from ops_pipeline.checkpoints.lots import BATCH_KEYS, order_of
from ops_pipeline.checkpoints.policy import ERASED, TRIMMED, WHOLE, Verdict
from ops_pipeline.checkpoints.registries import shorten
from ops_pipeline.checkpoints.values import ages_of, deltas_of

ATTEMPTS = 2
IN_USE = "in use"
SPARED = {MOVED: "came alive", BLOBS_IN_USE: "blobs in use", UNTOLD: "age of blobs unknown", READ: IN_USE}


@dataclass
class Removed:
    """What became of verdicts so far.

    Attributes:
        keys: deleted, or set to expire.
        threads: by action.
        spared: threads left alone after all, by reason.
    """

    keys: int = 0
    threads: Counter[str] = field(default_factory=Counter)
    spared: Counter[str] = field(default_factory=Counter)


class Remover:
    """Takes verdicts, and carries them out some hundred keys at a time."""

    def __init__(
        self, store: Store, read: Reader, *, untouched: Untouched, expire_at: float | None = None, jitter: float = 0.0
    ) -> None:
        """Prepare.

        Args:
            store: the Redis.
            read: tells the parts of a key.
            untouched: for how long nobody may have touched a thread that goes.
            expire_at: Unix time from which on keys expire; None deletes them now.
            jitter: over how many seconds after that expiry is spread, thread by thread.
        """
        self._store, self._read, self._untouched = store, read, untouched
        self._expire_at, self._jitter = expire_at, jitter
        self._line = None if store.cluster else Line(store.client)
        self._moments: dict[bytes, int] = {}
        self.removed = Removed()

    def try_out(self) -> None:
        """Run the script on nothing: whoever lacks the right to is told before anything goes."""
        self._store.client.execute_command(*command_of((), self._untouched))

    def carry_out(self, verdicts: Sequence[Verdict]) -> None:
        """Carry out a batch; what it did is known for certain only after `finish`."""
        self._set_moments(verdicts)
        quick: list[tuple[Verdict, Guarded]] = []
        plain: list[tuple[Verdict, Sequence[bytes]]] = []
        careful: list[Verdict] = []
        documented: dict[int, tuple[Verdict, list[bytes]]] = {}
        for verdict in verdicts:
            documents = self._documents(verdict)
            if documents:
                documented[id(verdict)] = verdict, documents
            elif verdict.action == TRIMMED:
                careful.append(verdict)
            elif not verdict.pointers and not verdict.blobs and self._expire_at is None:
                plain.append((verdict, verdict.keys))
            elif self._line is not None and verdict.size <= SCRIPT_KEYS and (one := self._as_seen(verdict)):
                quick.append((verdict, one))
            else:
                careful.append(verdict)
        if quick and self._line:
            command = command_of((one for _, one in quick), self._untouched)
            self._line.send(command, partial(self._count, [verdict for verdict, _ in quick]))
        if plain:
            self._remove_plain(plain)
            shorten(self._store, [verdict for verdict, _ in plain])
        if careful:
            self._carefully(careful)
        if documented:
            self._with_documents(documented)

    def finish(self) -> None:
        """Wait until all that was sent is done."""
        if self._line:
            self._line.finish()

    def give_up(self) -> None:
        """Wait for nothing more."""
        if self._line:
            self._line.drop()

    def _as_seen(self, verdict: Verdict) -> Guarded | None:
        """A thread as the scan saw it, to go while that still holds; None when its pointers have to be read first."""
        expected = {
            key: group.newest_key for group in verdict.groups for kind, key in group.timeless if kind == POINTER
        }
        if not all(expected.get(pointer) for pointer in verdict.pointers) or may_have_root(verdict):
            return None
        return self._guarded(verdict, [expected[pointer] for pointer in verdict.pointers])

    def _guarded(self, verdict: Verdict, expected: Sequence[bytes]) -> Guarded:
        blobs = () if verdict.action == ERASED else verdict.blobs
        known = set(blobs)
        keys = [key for key in verdict.keys if key not in known] if blobs else verdict.keys
        return Guarded(keys, verdict.pointers, expected, blobs, self._moment(verdict))

    def _count(self, verdicts: Sequence[Verdict], answers: Sequence[int]) -> None:
        """Note what became of threads that were to go as the scan saw them; those whose pointers moved are read."""
        moved = []
        for verdict, answer in zip(verdicts, answers, strict=True):
            if answer == MOVED:
                moved.append(verdict)
            else:
                self._note(verdict, answer)
        if moved:
            self._carefully(moved)

    def _note(self, verdict: Verdict, answer: int) -> None:
        if answer < 0:
            self.removed.spared[SPARED[answer]] += 1
        else:
            self.removed.keys += answer
            self.removed.threads[verdict.action] += 1

    def _carefully(self, verdicts: Sequence[Verdict]) -> None:
        """Remove threads by what their pointers hold at this moment."""
        targets = targets_of(self._store, verdicts)
        deltas = deltas_of(self._store, [key for verdict in verdicts for key in verdict.examined])
        some, trimmed = list[tuple[Verdict, Guarded]](), list[tuple[Verdict, Sequence[bytes]]]()
        for verdict in verdicts:
            if verdict.action == TRIMMED:
                keys = trimmable(self._read, verdict, targets, deltas)
                if keys is None:
                    self.removed.spared["delta channels"] += 1
                elif keys:
                    trimmed.append((verdict, keys))
                continue
            if spared := spared_by(self._store, self._read, verdict, targets):
                self.removed.spared[spared] += 1
                continue
            one = self._guarded(verdict, _expected(verdict, targets))
            if self._store.cluster or verdict.size > SCRIPT_KEYS:
                self._note(verdict, self._in_steps(one))
            else:
                some.append((verdict, one))
        if trimmed:
            self._remove_plain(trimmed)
        if some:
            answers = self._store.client.execute_command(*command_of((one for _, one in some), self._untouched))
            for (verdict, _), answer in zip(some, answers, strict=True):
                self._note(verdict, answer)

    def _in_steps(self, one: Guarded) -> int:
        """Remove a thread in several steps: a large one, or one whose keys lie in several slots of a cluster.

        Its pointers go first, each while it is what it was, then its keys, the oldest first and each checkpoint
        before what hangs on it, and its blobs last, each lot while nobody has touched it: if the sweep dies in between,
        what is left is whole, or reads as nothing, and the next sweep takes it.

        Returns:
            0 when it went, its keys counted; else why it did not.
        """
        refused = touched(self._store, self._untouched.blobs, one.blobs)
        if refused:
            return refused
        if touched(self._store, self._untouched.newest, [key for key in one.expected if key]) == BLOBS_IN_USE:
            return READ
        step = 1 if self._store.cluster else SCRIPT_KEYS
        for start in range(0, len(one.pointers), step):
            pointers, expected = one.pointers[start : start + step], one.expected[start : start + step]
            answer = self._ask(Guarded((), pointers, expected, moment=one.moment))
            if answer < 0:
                return answer
            self.removed.keys += answer
        keys = sorted(one.keys, key=lambda key: order_of(self._read, key))
        if self._store.cluster and not one.moment:
            self._unlink_singly(keys)
        else:
            for start in range(0, len(keys), step):
                self.removed.keys += self._ask(Guarded(keys[start : start + step], moment=one.moment))
        for start in range(0, len(one.blobs), step):
            answer = self._ask(Guarded((), blobs=one.blobs[start : start + step], moment=one.moment))
            self.removed.keys += max(0, answer)
        return 0

    def _ask(self, one: Guarded) -> int:
        (answer,) = self._store.client.execute_command(*command_of([one], self._untouched))
        return int(answer)

    @staticmethod
    def _documents(verdict: Verdict) -> list[bytes]:
        """Documents of an idle thread, which its saver may overwrite in place at any time."""
        if verdict.action != WHOLE:
            return []
        return [key for group in verdict.groups for kind, key in group.timeless if kind == DOCUMENT]

    def _with_documents(self, documented: Mapping[int, tuple[Verdict, list[bytes]]]) -> None:
        """Remove documents, with all else of their threads that tells no time, unless they were written meanwhile."""
        for _ in range(ATTEMPTS):
            with suppress(redis.WatchError):
                self._in_one_step(list(documented.values()))
                return
        for one in documented.values():
            # Among many, one is always written: each by itself, only those stay that really are.
            try:
                self._in_one_step([one])
            except redis.WatchError:
                self.removed.spared["came alive"] += 1

    def _in_one_step(self, documented: Sequence[tuple[Verdict, list[bytes]]]) -> None:
        if self._store.cluster:
            # Their slots differ: nothing can be done in one step, and a last look must do.
            idle, spared = self._still_idle(documented)
            self.removed.spared.update(spared)
            for verdict, one in idle:
                self._note(verdict, self._in_steps(one))
            return
        rest: list[tuple[Verdict, Sequence[bytes]]] = []
        with self._store.client.pipeline() as pipeline:
            pipeline.watch(*[key for _, keys in documented for key in keys])
            idle, spared = self._still_idle(documented)
            pipeline.multi()
            for verdict, one in idle:
                timeless = {key for group in verdict.groups for kind, key in group.timeless}
                first = [key for key in one.keys if key in timeless]
                now = replace(one, keys=first[:SCRIPT_KEYS])
                pipeline.execute_command(*command_of([now], self._untouched))
                rest.append((verdict, [*first[SCRIPT_KEYS:], *(key for key in one.keys if key not in timeless)]))
            answers = pipeline.execute()
        # Only now: where a document was written meanwhile, all this is done again.
        self.removed.spared.update(spared)
        for (verdict, keys), (answer,) in zip(rest, answers, strict=True):
            if answer < 0:
                self.removed.spared[SPARED[answer]] += 1
            else:
                self.removed.keys += answer
                self._remove_plain([(verdict, keys)])

    def _still_idle(
        self, documented: Sequence[tuple[Verdict, list[bytes]]]
    ) -> tuple[list[tuple[Verdict, Guarded]], Counter[str]]:
        """Those whose documents and pointers still tell no other age, and why others stay."""
        keys = [key for _, documents in documented for key in documents]
        ages = dict(zip(keys, ages_of(self._store, keys), strict=True))
        targets = targets_of(self._store, [verdict for verdict, _ in documented])
        idle, spared = list[tuple[Verdict, Guarded]](), Counter[str]()
        for verdict, documents in documented:
            if any((ages[key].seconds or verdict.alive_from) >= verdict.alive_from for key in documents):
                spared["came alive"] += 1
            elif why := spared_by(self._store, self._read, verdict, targets):
                spared[why] += 1
            else:
                idle.append((verdict, self._guarded(verdict, _expected(verdict, targets))))
        return idle, spared

    def _remove_plain(self, threads: Sequence[tuple[Verdict, Sequence[bytes]]]) -> None:
        """Remove keys that nothing guards, and count their threads."""
        keys = [key for _, some in threads for key in some]
        if len(keys) > BATCH_KEYS:
            # Of a thread that takes several commands the oldest goes first, each checkpoint before its writes: if the
            # sweep dies in between, what is left is whole, or reads as nothing, and the next sweep takes it.
            keys.sort(key=lambda key: order_of(self._read, key))
        verdicts = [verdict for verdict, _ in threads]
        if self._line is None or self._expire_at is not None:
            for verdict, some in threads:
                self._singly(some, self._moment(verdict))
            self._count_threads(verdicts)
            return
        for start in range(0, len(keys), BATCH_KEYS):
            last = start + BATCH_KEYS >= len(keys)
            then = partial(self._count_keys, verdicts if last else ())
            self._line.send(["UNLINK", *keys[start : start + BATCH_KEYS]], then)
        if not keys:
            self._count_threads(verdicts)

    def _singly(self, keys: Sequence[bytes], moment: str) -> None:
        """Remove keys in a cluster, whose slots differ, or let some expire."""
        step = 1 if self._store.cluster else SCRIPT_KEYS
        if not moment:
            self._unlink_singly(keys)
            return
        for start in range(0, len(keys), step):
            self.removed.keys += self._ask(Guarded(keys[start : start + step], moment=moment))

    def _unlink_singly(self, keys: Sequence[bytes]) -> None:
        for start in range(0, len(keys), BATCH_KEYS):
            pipeline = self._store.client.pipeline(transaction=False)
            for key in keys[start : start + BATCH_KEYS]:
                pipeline.unlink(key)
            self.removed.keys += sum(int(answer) for answer in pipeline.execute())

    def _count_keys(self, verdicts: Sequence[Verdict], answer: int) -> None:
        self.removed.keys += answer
        self._count_threads(verdicts)

    def _count_threads(self, verdicts: Iterable[Verdict]) -> None:
        self.removed.threads.update(verdict.action for verdict in verdicts)

    def _set_moments(self, verdicts: Iterable[Verdict]) -> None:
        """When threads expire: spread, since 100,000 keys that expire at once stop Redis for half a second."""
        if self._expire_at is not None:
            begin, jitter = self._expire_at, self._jitter
            self._moments = {
                verdict.thread: int(begin + random.uniform(0, jitter))  # noqa: S311 - no secret
                for verdict in verdicts
            }
            remember(self._store, self._moments)

    def _moment(self, verdict: Verdict) -> str:
        """When a thread expires, as text; empty when it is deleted."""
        return "" if self._expire_at is None else str(self._moments[verdict.thread])


def _expected(verdict: Verdict, targets: Mapping[bytes, bytes | None]) -> list[bytes]:
    """What each pointer of a thread must still hold when it goes."""
    return [(targets[pointer] or b"").removeprefix(UNREADABLE) for pointer in verdict.pointers]
