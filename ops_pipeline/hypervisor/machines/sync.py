"""A pass over all machines: look, plan, guard, apply.

What belongs here: the order of things. What does not: rules (`rules`, `plans`) and SQL (`store`).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Engine

from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.hypervisor.hosts import Host, Seen, hosts_due, mark_hosts, read_hosts, was_restarted
from ops_pipeline.hypervisor.looking import Answer, ask_hosts, tell_answers
from ops_pipeline.hypervisor.machines.domains import LOOK
from ops_pipeline.hypervisor.machines.plans import Limits, Observed, StatusPlan, plan_statuses
from ops_pipeline.hypervisor.machines.store import read_machines, write_changes, write_observations
from ops_pipeline.log_fields import tell_changes
from ops_pipeline.reconcile import Outcome, count_reasons, counted

log = logging.getLogger(__name__)
SECOND_LOOK_SECONDS = 5.0
"""The pause before a second look at hosts where too much went down at once."""


@dataclass(frozen=True)
class Scene:
    """Where a pass looks and writes.

    Attributes:
        engine: of the operations database.
        local_uri: LIBVIRT_URI.
        deadline_seconds: for each host.
        limits: what the operator decides.
        total_seconds: for all hosts.
    """

    engine: Engine
    local_uri: str
    deadline_seconds: float
    limits: Limits
    total_seconds: float = math.inf


@dataclass(frozen=True)
class Applied:
    """What a pass wrote: changed and skipped (changed by someone else meanwhile) machines, observations, hosts."""

    changed: int = 0
    skipped: int = 0
    observed: int = 0
    hosts: int = 0


def look(scene: Scene, wanted: Callable[[Host], bool] | None = None) -> Observed:
    """Look at all hosts, then read all machines: a status that is set meanwhile is newer than the look.

    Args:
        scene: where.
        wanted: which hosts to look at; the others count as hosts that did not answer.
    """
    with reading(scene.engine) as connection:
        hosts = read_hosts(connection, scene.local_uri)
        looked_at = database_now(connection)
    asked = [host for host in hosts if wanted is None or wanted(host)]
    answers = {host.id: Answer(host.id, problem=host.reason or "not asked") for host in hosts}
    answers |= _ask(scene, asked)
    tell_answers(log, answers)
    with reading(scene.engine) as connection:
        machines = read_machines(connection)
    facts = {host: answer.facts for host, answer in answers.items() if not answer.problem}
    problems = {host: answer.problem for host, answer in answers.items() if answer.problem}
    unreached = frozenset(host for host, answer in answers.items() if answer.unreached)
    return Observed(hosts, facts, problems, machines, looked_at, unreached)


def _ask(scene: Scene, hosts: Sequence[Host]) -> dict[str, Answer]:
    return ask_hosts(hosts, LOOK, deadline_seconds=scene.deadline_seconds, total_seconds=scene.total_seconds)


def plan(scene: Scene, seen: Observed, sleep: Callable[[float], None]) -> StatusPlan:
    """Plan a pass; a host that was started again is looked at twice before it is believed that all of it went down.

    Args:
        scene: where.
        seen: the first look.
        sleep: waits some seconds before the second look.
    """
    first = plan_statuses(seen, scene.limits)
    restarted = [
        host
        for host in seen.hosts
        if host.id in first.refused and was_restarted(host, seen.facts[host.id].uptime_seconds, seen.looked_at)
    ]
    if not restarted:
        return first
    sleep(SECOND_LOOK_SECONDS)
    again = {host: answer.facts for host, answer in _ask(scene, restarted).items() if not answer.problem}
    second = plan_statuses(replace(seen, facts={**seen.facts, **again}), scene.limits, again)
    agreed = all(
        change.write.observation.id in first.held
        for change in second.changes
        # What has come up since, as guests that start with their host do, contradicts nothing.
        if change.host in again and change.goes_down
    )
    return second if agreed else first


def apply(scene: Scene, seen: Observed, planned: StatusPlan) -> Applied:
    """Write a plan; a second pass right after it writes nothing."""
    changed = apply_changes(scene, seen, planned)
    observed = write_observations(scene.engine, planned.seen, seen.looked_at) if planned.seen else 0
    return replace(changed, observed=observed, hosts=mark(scene, seen, planned))


def apply_changes(scene: Scene, seen: Observed, planned: StatusPlan) -> Applied:
    """Write the changes of a plan only: no observation of other machines, and nothing about hosts."""
    changes = [change.write for change in planned.changes]
    done = write_changes(scene.engine, changes, seen.looked_at) if changes else set()
    tell_changes(log, [change.as_change() for change in planned.changes])
    return Applied(len(done), len(changes) - len(done))


def mark(scene: Scene, seen: Observed, planned: StatusPlan) -> int:
    """Write how the looks at the hosts ended, where that is new or due; returns how many rows were written."""
    looks = {host: Seen(uptime_seconds=facts.uptime_seconds) for host, facts in seen.facts.items()}
    looks |= {
        host: Seen(problem, refused=host in planned.refused)
        for host, problem in planned.problems.items()
        if host not in seen.unreached
    }
    if not hosts_due(seen.hosts, looks, seen.looked_at, scene.limits.refresh):
        return 0
    with writing(scene.engine) as connection:
        return mark_hosts(connection, seen.hosts, looks, seen.looked_at, scene.limits.refresh)


def outcome_of(planned: StatusPlan, applied: Applied) -> Outcome:
    """What a pass did, in the words that every job shares. Hosts that did not answer count as failed."""
    changes = [change.as_change() for change in planned.changes]
    return Outcome(
        scanned=planned.scanned,
        changed=applied.changed,
        unchanged=planned.scanned - len(changes),
        skipped=applied.skipped,
        failed=len(planned.problems),
        reasons=count_reasons(changes),
    )


def counts_text(seen: Observed, planned: StatusPlan) -> str:
    """What a pass saw, in one sentence."""
    findings = Counter(finding.kind for finding in planned.findings)
    told = "".join(f", {count} {kind.replace('_', ' ')}" for kind, count in sorted(findings.items()))
    return f"{counted(planned.scanned, 'machine')} on {counted(len(seen.facts), 'host')} in sync{told}."
