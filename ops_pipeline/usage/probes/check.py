"""One check of models: probes in rounds, within the budget, until every state is settled or out of verifications.

What belongs here: the sequence. The rules are in `states`, the SQL in `store`, HTTP in `client`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Engine

from ops_pipeline.reconcile import Change, Outcome, Plan, Unavailable
from ops_pipeline.usage.probes.answers import INCONCLUSIVE, UNREACHABLE, Answer
from ops_pipeline.usage.probes.client import probe_all
from ops_pipeline.usage.probes.states import LEAVE, PROBE, TRAFFIC, Intent, name_of, own_network_down
from ops_pipeline.usage.probes.store import (
    PROBE_PURPOSE,
    VERIFICATION,
    Transition,
    complete,
    complete_by_traffic,
    reserve,
    retire,
)
from ops_pipeline.usage.probes.targets import Key, Probes, ProbesFile, Target

Ask = Callable[[Probes, Sequence[Target]], list[Answer]]


@dataclass(frozen=True)
class Report:
    """What a check did.

    Attributes:
        probes: how many were sent, verifications included.
        by_traffic: models that real calls proved.
        left: models left alone by the rules.
        over_budget: models for which a probe was wanted and the day's budget did not reach.
        answers: of every probe, in order.
        flips: models whose state is another one than before, from before the check to after it.
    """

    probes: int
    by_traffic: int
    left: int
    over_budget: tuple[Key, ...]
    answers: tuple[tuple[Key, Answer], ...]
    flips: tuple[Transition, ...]


def plan_of(intents: Sequence[Intent]) -> Plan:
    """The probes about to be sent, and why the other models get none."""
    changes = tuple(
        Change(key=f"{name_of(one.target.key)} ({one.target.type})", action=one.action, reason=one.reason)
        for one in intents
        if one.action == PROBE
    )
    kept = Counter(one.reason for one in intents if one.action != PROBE)
    return Plan(changes, scanned=len(intents), kept=kept)


def check_models(
    engine: Engine,
    probes: Probes,
    intents: Sequence[Intent],
    *,
    run_id: str,
    sleep: Callable[[float], object],
    ask: Ask = probe_all,
) -> Report:
    """Carry out a plan of probes.

    Args:
        engine: the operations database.
        probes: the file of models, with keys.
        intents: the plan.
        run_id: of the run that asks, kept with every result.
        sleep: waits between verifications, in seconds.
        ask: sends probes.

    Raises:
        Unavailable: no host at all could be reached; the probes are recorded, and no state was changed.
    """
    transitions: list[Transition] = []
    answers: list[tuple[Key, Answer]] = []
    over_budget: list[Key] = []

    def round_of(targets: Sequence[Target], purpose: str) -> list[Target]:
        """Probe, and return the targets whose state is in question afterwards."""
        ids = reserve(engine, probes.file, targets, purpose, run_id)
        over_budget.extend(target.key for target, row in zip(targets, ids, strict=True) if row is None)
        sent = [(row, target) for row, target in zip(ids, targets, strict=True) if row is not None]
        received = ask(probes, [target for _, target in sent])
        # Whoever was reached before vouches for the network: verification asks only those that are down.
        reached = any(answer.error_code not in UNREACHABLE for _, answer in answers)
        lost = not reached and own_network_down([target for _, target in sent], received)
        if lost:
            received = [replace(answer, result=INCONCLUSIVE) for answer in received]
        answers.extend((target.key, answer) for (_, target), answer in zip(sent, received, strict=True))
        results = [(row, target, answer) for (row, target), answer in zip(sent, received, strict=True)]
        found = complete(engine, results)
        transitions.extend(found)
        if lost:
            raise Unavailable(
                f"None of {len(sent)} models at several hosts could be reached ({received[0].error_code}): look at"
                " this machine's network. No state was changed."
            )
        asked = {target.key: target for _, target in sent}
        return [asked[one.key] for one in found if one.after.candidate]

    doubtful = round_of([one.target for one in intents if one.action == PROBE], PROBE_PURPOSE)
    # Only now: a run that could not look must change no state at all.
    by_traffic = [one.target for one in intents if one.action == TRAFFIC]
    transitions += complete_by_traffic(engine, by_traffic, run_id) + retire(engine, probes.file, run_id)
    verified: Counter[Key] = Counter()
    while doubtful := [target for target in doubtful if verified[target.key] < target.verify]:
        sleep(max(target.verify_after_seconds for target in doubtful))
        verified.update(target.key for target in doubtful)
        doubtful = round_of(doubtful, VERIFICATION)
    return Report(
        probes=len(answers),
        by_traffic=len(by_traffic),
        left=sum(one.action == LEAVE for one in intents),
        over_budget=tuple(over_budget),
        answers=tuple(answers),
        flips=_flips(transitions),
    )


def longest_check_seconds(file: ProbesFile) -> float:
    """How long a check may take when no model answers: every deadline of every round, as many at a time as may be."""
    in_turn: defaultdict[str, float] = defaultdict(float)
    for target in file.models:
        rounds = 1 + target.verify
        at_once = file.provider_concurrency.get(target.provider, 1)
        in_turn[target.provider] += rounds * target.timeout_seconds / at_once
    waits = max(target.verify * target.verify_after_seconds for target in file.models)
    everything = sum((1 + target.verify) * target.timeout_seconds for target in file.models) / file.concurrency
    return max(*in_turn.values(), everything) + waits


def _flips(transitions: Sequence[Transition]) -> tuple[Transition, ...]:
    first: dict[Key, Transition] = {}
    for one in transitions:
        known = first.get(one.key, one)
        first[one.key] = replace(known, after=one.after)
    return tuple(one for one in first.values() if one.flipped)


def outcome_of(report: Report, models: int) -> Outcome:
    """The check as an outcome: changed are states; probes that the budget did not allow are skipped."""
    results = Counter(answer.error_code or answer.result for _, answer in report.answers)
    reasons = {"probes sent": report.probes, "proved by traffic": report.by_traffic, **results}
    if report.over_budget:
        reasons["over the day's budget"] = len(report.over_budget)
    changed = len(report.flips)
    return Outcome(
        scanned=models,
        changed=changed,
        unchanged=max(0, models - changed - len(report.over_budget)),
        skipped=len(report.over_budget),
        reasons=reasons,
    )
