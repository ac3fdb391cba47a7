"""Carrying out verdicts: keys go in batches, and no thread goes that has come alive since it was looked at.

What belongs here: what is sent to delete or to expire. What does not: which threads.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import redis

from ops_pipeline.checkpoints.connection import Store
from ops_pipeline.checkpoints.layouts import BLOB, CHECKPOINT, DOCUMENT, Reader
from ops_pipeline.checkpoints.policy import ERASED, ORPHANS, TRIMMED, WHOLE, Verdict
from ops_pipeline.checkpoints.values import ages_of, is_delta

BATCH_KEYS = 1_000
"""Keys per command: a thousand take Redis about a millisecond, during which nobody else is served."""
SCRIPT_KEYS = 500

UNLESS_MOVED = """
local count = tonumber(ARGV[1])
for i = 1, count do
  local value = redis.pcall('GET', KEYS[i])
  if (type(value) == 'string' and value or '') ~= ARGV[2 + i] then return -1 end
end
if ARGV[2] == '' then return redis.call('UNLINK', unpack(KEYS)) end
local done = 0
for i = 1, #KEYS do
  if redis.call('TTL', KEYS[i]) == -1 then done = done + redis.call('EXPIREAT', KEYS[i], ARGV[2]) end
end
return done
"""
"""Deletes keys, or lets them expire, only while the pointers among them (the first ones) are what they were.

What expires already keeps its moment: every sweep would put it off.
"""
UNREADABLE = b"\xff"
"""Stands for what a pointer points at that is no string."""
ATTEMPTS = 2


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
    """Takes verdicts, and carries them out a thousand keys at a time."""

    def __init__(self, store: Store, read: Reader, *, expire_at: float | None = None, jitter: float = 0.0) -> None:
        """Prepare.

        Args:
            store: the Redis.
            read: tells the parts of a key.
            expire_at: Unix time from which on keys expire; None deletes them now.
            jitter: over how many seconds after that expiry is spread, thread by thread.
        """
        self._store, self._read = store, read
        self._expire_at, self._jitter = expire_at, jitter
        self._script = store.client.register_script(UNLESS_MOVED)
        self.removed = Removed()

    def carry_out(self, verdicts: Sequence[Verdict]) -> None:
        """Carry out a batch; pointers are read just before."""
        pointed = [verdict for verdict in verdicts if verdict.pointers]
        targets = self._targets(pointed)
        plain: list[tuple[Verdict, Sequence[bytes]]] = []
        guarded: list[Verdict] = []
        documented: dict[Verdict, Sequence[bytes]] = {}
        for verdict in verdicts:
            if verdict.action == TRIMMED:
                plain.append((verdict, self._trimmable(verdict, targets)))
            elif not verdict.pointers:
                documents = self._documents(verdict)
                if documents:
                    documented[verdict] = documents
                else:
                    plain.append((verdict, verdict.keys))
            elif spared := self._spared(verdict, targets):
                self.removed.spared[spared] += 1
            else:
                guarded.append(verdict)
        plain += self._with_pointers(guarded, targets)
        plain += self._with_documents(documented)
        self._remove([(verdict, keys) for verdict, keys in plain if keys or verdict.action != TRIMMED])

    def _targets(self, verdicts: Iterable[Verdict]) -> dict[bytes, bytes | None]:
        """What each pointer points at."""
        pointers = [pointer for verdict in verdicts for pointer in verdict.pointers]
        if not pointers:
            return {}
        pipeline = self._store.client.pipeline(transaction=False)
        for pointer in pointers:
            pipeline.get(pointer)
        answers = pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and "WRONGTYPE" not in str(answer):
                raise answer
        return {
            pointer: UNREADABLE if isinstance(answer, Exception) else answer
            for pointer, answer in zip(pointers, answers, strict=True)
        }

    def _spared(self, verdict: Verdict, targets: dict[bytes, bytes | None]) -> str:
        """Why a thread with pointers stays after all; empty when it goes."""
        if verdict.action == ERASED:
            return ""
        for pointer in verdict.pointers:
            target = targets[pointer]
            if target is None:
                continue
            part = self._read(target)
            seconds = part[3] if isinstance(part, tuple) else None
            if seconds is None:
                return "age unknown"
            if seconds >= verdict.alive_from:
                return "came alive"
            if verdict.action == ORPHANS and self._store.client.exists(target):
                return "came alive"
        return ""

    def _with_pointers(
        self, verdicts: Sequence[Verdict], targets: dict[bytes, bytes | None]
    ) -> list[tuple[Verdict, Sequence[bytes]]]:
        """Remove each thread in one step with its pointers, unless these moved meanwhile.

        Returns:
            The threads that went, and those of their keys that are left to be removed.
        """
        if not verdicts:
            return []
        cluster = self._store.cluster
        # In a cluster the keys of a thread lie in several slots: first the pointers, each while it is what it was.
        pipeline = None if cluster else self._store.client.pipeline(transaction=False)
        results: list[list[int]] = []
        for verdict in verdicts:
            expected = [(targets[pointer] or b"").removeprefix(UNREADABLE) for pointer in verdict.pointers]
            moment = "" if self._expire_at is None else str(self._moment())
            if pipeline is None:
                pairs = zip(verdict.pointers, expected, strict=True)
                results.append([self._script(keys=[one], args=[1, moment, value]) for one, value in pairs])
            else:
                keys = [*verdict.pointers, *verdict.keys[:SCRIPT_KEYS]]
                self._script(keys=keys, args=[len(expected), moment, *expected], client=pipeline)
        if pipeline is not None:
            results = [[answer] for answer in pipeline.execute()]
        gone: list[tuple[Verdict, Sequence[bytes]]] = []
        for verdict, answers in zip(verdicts, results, strict=True):
            if -1 in answers:
                self.removed.spared["came alive"] += 1
                continue
            self.removed.keys += sum(answers)
            gone.append((verdict, verdict.keys if cluster else verdict.keys[SCRIPT_KEYS:]))
        return gone

    def _documents(self, verdict: Verdict) -> list[bytes]:
        """Documents of an idle thread, which its saver may overwrite in place at any time."""
        found = []
        if verdict.action == WHOLE:
            # What tells no time comes last.
            for key in reversed(verdict.keys):
                part = self._read(key)
                if not part or part[3] is not None:
                    break
                if part[0] == DOCUMENT:
                    found.append(key)
        return found

    def _with_documents(self, documented: Mapping[Verdict, Sequence[bytes]]) -> list[tuple[Verdict, Sequence[bytes]]]:
        """Remove documents, with all else of their threads that tells no time, unless they were written meanwhile.

        Returns:
            The threads that went, and those of their keys that are left to be removed.
        """
        for _ in range(ATTEMPTS if documented else 0):
            with suppress(redis.WatchError):
                return self._in_one_step(documented)
        gone: list[tuple[Verdict, Sequence[bytes]]] = []
        for verdict, documents in documented.items():
            # Among many, one is always written: each by itself, only those stay that really are.
            try:
                gone += self._in_one_step({verdict: documents})
            except redis.WatchError:
                self._count_spared(1)
        return gone

    def _in_one_step(self, documented: Mapping[Verdict, Sequence[bytes]]) -> list[tuple[Verdict, Sequence[bytes]]]:
        if self._store.cluster:
            # Their slots differ: nothing can be done in one step, and a last look must do.
            idle = self._still_idle(documented)
            self._count_spared(len(documented) - len(idle))
            return [(verdict, verdict.keys) for verdict in idle]
        gone: list[tuple[Verdict, Sequence[bytes]]] = []
        with self._store.client.pipeline() as pipeline:
            pipeline.watch(*[key for keys in documented.values() for key in keys])
            idle = self._still_idle(documented)
            pipeline.multi()
            for verdict in idle:
                timeless = [key for key in verdict.keys if _seconds(self._read, key) == 0]
                moment = "" if self._expire_at is None else str(self._moment())
                for start in range(0, len(timeless), SCRIPT_KEYS):
                    self._script(keys=timeless[start : start + SCRIPT_KEYS], args=[0, moment], client=pipeline)
                known = set(timeless)
                gone.append((verdict, [key for key in verdict.keys if key not in known]))
            answers = pipeline.execute()
        self._count_spared(len(documented) - len(idle))
        self.removed.keys += sum(_counts(answers))
        return gone

    def _count_spared(self, count: int) -> None:
        if count:
            self.removed.spared["came alive"] += count

    def _still_idle(self, documented: Mapping[Verdict, Sequence[bytes]]) -> list[Verdict]:
        keys = [key for documents in documented.values() for key in documents]
        ages = dict(zip(keys, ages_of(self._store, keys), strict=True))
        return [
            verdict
            for verdict, documents in documented.items()
            if all((ages[key].seconds or verdict.alive_from) < verdict.alive_from for key in documents)
        ]

    def _trimmable(self, verdict: Verdict, targets: dict[bytes, bytes | None]) -> Sequence[bytes]:
        """The keys of a trimmed thread, less what a pointer points at; none when it lives on its ancestors."""
        if not verdict.examined or any(is_delta(self._store, key) for key in verdict.examined):
            self.removed.spared["delta channels"] += 1
            return ()
        # The newest stays whatever was counted: a scan may name a checkpoint twice.
        identifiers = {_identifier(self._read, key) for key in verdict.examined}
        for pointer in verdict.pointers:
            part = self._read(targets[pointer] or b"")
            if isinstance(part, tuple):
                identifiers.add(part[2])
        return [key for key in verdict.keys if _identifier(self._read, key) not in identifiers]

    def _remove(self, threads: Sequence[tuple[Verdict, Sequence[bytes]]]) -> None:
        """Remove keys that no pointer guards, and count their threads."""
        everything = [key for _, keys in threads for key in keys]
        if self._expire_at is not None:
            self._let_expire([keys for _, keys in threads])
        else:
            self._unlink(everything)
        for verdict, _ in threads:
            self.removed.threads[verdict.action] += 1

    def _let_expire(self, threads: Iterable[Sequence[bytes]]) -> None:
        pipeline = self._store.client.pipeline(transaction=False)
        for keys in threads:
            moment = self._moment()
            # In a cluster the keys of a thread lie in several slots.
            step = 1 if self._store.cluster else SCRIPT_KEYS
            for start in range(0, len(keys), step):
                some = keys[start : start + step]
                if self._store.cluster:
                    self.removed.keys += self._script(keys=some, args=[0, moment])
                else:
                    self._script(keys=some, args=[0, moment], client=pipeline)
        if not self._store.cluster:
            self.removed.keys += sum(_counts(pipeline.execute()))

    def _unlink(self, everything: list[bytes]) -> None:
        if len(everything) > BATCH_KEYS:
            # Of a thread that takes several commands the oldest goes first, each checkpoint before its writes: if the
            # sweep dies in between, what is left is whole, or reads as nothing, and the next sweep takes it.
            everything.sort(key=lambda key: _order(self._read, key))
        if self._store.cluster:
            pipeline = self._store.client.pipeline(transaction=False)
            for key in everything:
                pipeline.unlink(key)
            self.removed.keys += sum(_counts(pipeline.execute()))
            return
        for start in range(0, len(everything), BATCH_KEYS):
            self.removed.keys += self._store.client.unlink(*everything[start : start + BATCH_KEYS])

    def _moment(self) -> int:
        """When a thread expires: spread, since 100,000 keys that expire at once stop Redis for half a second."""
        return int((self._expire_at or 0) + random.uniform(0, self._jitter))  # noqa: S311 - no secret


def batches(verdicts: Iterable[Verdict]) -> Iterator[list[Verdict]]:
    """Verdicts of about a thousand keys each; one of a large thread stands alone."""
    batch: list[Verdict] = []
    size = 0
    for verdict in verdicts:
        if batch and size + len(verdict.keys) > BATCH_KEYS:
            yield batch
            batch, size = [], 0
        batch.append(verdict)
        size += len(verdict.keys) + len(verdict.pointers)
    if batch:
        yield batch


def expirable(verdict: Verdict) -> bool:
    """Whether a verdict can be carried out by expiry: whole idle threads only, and what was asked for by name."""
    return verdict.action in {WHOLE, ERASED}


def _identifier(read: Reader, key: bytes) -> bytes:
    part = read(key)
    return part[2] if isinstance(part, tuple) else b""


def _seconds(read: Reader, key: bytes) -> float:
    part = read(key)
    return part[3] or 0.0 if isinstance(part, tuple) else 0.0


def _order(read: Reader, key: bytes) -> tuple[bool, float, bool]:
    """Blobs, which any checkpoint may name, last; the older first; checkpoints before what hangs on them."""
    part = read(key)
    kind, seconds = (part[0], part[3] or 0.0) if isinstance(part, tuple) else (BLOB, 0.0)
    return kind == BLOB, seconds, kind != CHECKPOINT


def _counts(answers: Iterable[Any]) -> Iterator[int]:
    return (int(answer) for answer in answers)
