"""The rules of model status: whom to probe, and when a state changes. Pure: facts and `now` in, decisions out.

What belongs here: decisions. What does not: SQL (`store`) and HTTP (`client`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

from ops_pipeline.usage.probes.answers import (
    AVAILABLE,
    INCONCLUSIVE,
    LIMITED,
    NOT_TESTED,
    UNREACHABLE,
    Answer,
)
from ops_pipeline.usage.probes.targets import Key, ProbesFile, Target

NEVER = datetime(1970, 1, 1, tzinfo=UTC)
PROBE, TRAFFIC, LEAVE = "probe", "traffic", "leave"


@dataclass(frozen=True)
class Status:
    """The state of a model, as in `model_statuses`; `candidate` is what the last `agreeing` probes found instead."""

    state: str = NOT_TESTED
    error_code: str = ""
    error_message: str = ""
    response_time_ms: float | None = None
    checked_at: datetime | None = None
    changed_at: datetime | None = None
    candidate: str = ""
    agreeing: int = 0

    @property
    def available(self) -> bool | None:
        """Whether calls can be expected to succeed, some of them at least; None when nobody knows."""
        return None if self.state == NOT_TESTED else self.state in {AVAILABLE, LIMITED}


@dataclass(frozen=True)
class Traffic:
    """Real calls of a model that ended within the last minutes."""

    succeeded: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Intent:
    """What to do about one target, and why."""

    target: Target
    action: str
    reason: str


def plan_probes(
    file: ProbesFile, statuses: Mapping[Key, Status], traffic: Mapping[Key, Traffic], only: Sequence[str] = ()
) -> list[Intent]:
    """Decide about every target, those first that were not looked at for longest.

    Args:
        file: targets and thresholds.
        statuses: what is known; targets without an entry were never tested.
        traffic: recent real calls; targets without an entry had none.
        only: `provider/model` names of targets to probe whatever their traffic; empty for all, by the rules.
    """
    targets = [target for target in file.models if not only or name_of(target.key) in only]
    targets.sort(key=lambda target: statuses.get(target.key, Status()).checked_at or NEVER)
    intents = [
        intent_for(file, target, statuses.get(target.key, Status()), traffic.get(target.key, Traffic()), bool(only))
        for target in targets
    ]
    # Failing ones first: the budget may not last for all.
    return sorted(intents, key=lambda intent: not failing(file, traffic.get(intent.target.key, Traffic())))


def intent_for(file: ProbesFile, target: Target, status: Status, traffic: Traffic, asked: bool) -> Intent:
    """Decide about one target; `asked` when a person named it."""
    calls = traffic.succeeded + traffic.failed
    settled = status.state in {AVAILABLE, NOT_TESTED} and not status.candidate
    if not asked and settled and traffic.succeeded and not failing(file, traffic):
        return Intent(target, TRAFFIC, f"{traffic.succeeded} of {calls} calls succeeded lately, no probe is needed")
    if target.type == "imageGeneration" and not file.image_probes:
        return Intent(target, LEAVE, "image probes cost money and are off (image_probes)")
    if failing(file, traffic):
        return Intent(target, PROBE, f"{traffic.failed} of {calls} calls failed lately")
    if asked:
        return Intent(target, PROBE, "asked for")
    if settled:
        return Intent(target, PROBE, "no call succeeded lately")
    return Intent(target, PROBE, f"to see whether it is still {status.state}")


def failing(file: ProbesFile, traffic: Traffic) -> bool:
    """True when so large a share of enough recent calls failed that the model must be looked at."""
    calls = traffic.succeeded + traffic.failed
    # Not multiplied: 0.55 * 100 is a little more than 55.
    return calls >= file.traffic_fewest_calls and traffic.failed / calls >= file.traffic_failure_share


def advance(status: Status, answer: Answer, needed: int, now: datetime) -> Status:
    """The status after a probe: a state changes only after so many agreeing probes in a row.

    The first success of a model never tested counts at once, since there is no state that could flap. An
    inconclusive answer changes nothing but the time of the look and its error.

    Args:
        status: before.
        answer: of the probe.
        needed: how many agreeing probes in a row change the state.
        now: when the probe was made.
    """
    seen = replace(
        status,
        checked_at=now,
        error_code=answer.error_code,
        error_message=answer.error_message,
        response_time_ms=answer.response_time_ms,
    )
    if answer.result == INCONCLUSIVE:
        return seen
    if answer.result == status.state:
        return replace(seen, candidate="", agreeing=0)
    agreeing = status.agreeing + 1 if answer.result == status.candidate else 1
    first = status.state == NOT_TESTED and answer.result == AVAILABLE
    if agreeing >= needed or first:
        return replace(seen, state=answer.result, changed_at=now, candidate="", agreeing=0)
    return replace(seen, candidate=answer.result, agreeing=agreeing)


def advance_by_traffic(status: Status, now: datetime) -> Status:
    """The status of an available or never tested model after real calls succeeded."""
    changed = now if status.state != AVAILABLE else status.changed_at
    return replace(status, state=AVAILABLE, checked_at=now, changed_at=changed, error_code="", error_message="")


def own_network_down(targets: Sequence[Target], answers: Sequence[Answer]) -> bool:
    """True when no host at all of several could be reached: that says more about this machine than about models."""
    hosts = {urlsplit(target.base_url).hostname for target in targets}
    return len(hosts) > 1 and all(answer.error_code in UNREACHABLE for answer in answers)


def name_of(key: Key) -> str:
    """A model as an operator names it: `provider/model`."""
    return f"{key[0]}/{key[1]}"


def uptime(changes: Sequence[tuple[datetime, str]], start: datetime, end: datetime) -> float | None:
    """The share of the time from `start` to `end` during which a model was up, limited included.

    Args:
        changes: states and since when, oldest first; the last one before `start` is the state at `start`.
        start: of the time looked at.
        end: of it.

    Returns:
        0 to 1; None when nothing was known during all that time. Times of no knowledge do not count.
    """
    known = up = 0.0
    following = [*(at for at, _ in changes[1:]), end][: len(changes)]
    for (at, state), until in zip(changes, following, strict=True):
        seconds = (min(until, end) - max(at, start)).total_seconds()
        if seconds <= 0 or state == NOT_TESTED:
            continue
        known += seconds
        up += seconds if state in {AVAILABLE, LIMITED} else 0
    return up / known if known else None
