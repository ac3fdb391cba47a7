"""A pass over the GPUs of all hosts: look, plan, guard, apply.

What belongs here: the order of things. What does not: rules (`inventory`, `comparing`) and SQL (`store`).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Engine

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.hypervisor.graphics.comparing import CLEAR
from ops_pipeline.hypervisor.graphics.facts import (
    Assignment,
    Conflict,
    GraphicsPolicy,
    HostGraphics,
    HostPlan,
    HostRecords,
    Known,
    Machine,
)
from ops_pipeline.hypervisor.graphics.inventory import plan_host
from ops_pipeline.hypervisor.graphics.look import LOOK
from ops_pipeline.hypervisor.graphics.store import Written, read_assignments, read_gpus, write_plan
from ops_pipeline.hypervisor.hosts import Host, read_hosts
from ops_pipeline.hypervisor.looking import ask_hosts, tell_answers
from ops_pipeline.hypervisor.machines.domains import Domain as NamedDomain
from ops_pipeline.hypervisor.machines.matching import MachineRow, Matches, match
from ops_pipeline.hypervisor.machines.rules import GROUPS, Group
from ops_pipeline.hypervisor.machines.store import read_machines
from ops_pipeline.log_fields import tell_changes
from ops_pipeline.reconcile import Change, Outcome, Plan, SafetyLimit, count_reasons, counted

log = logging.getLogger(__name__)
RESTING = frozenset(name for name, group in GROUPS.items() if group in {Group.DOWN, Group.ENDED, Group.ERROR})
FORMING = frozenset(name for name, group in GROUPS.items() if group in {Group.TRANSITION, Group.LOCK})
ASSIGNMENT = "assignment"


@dataclass(frozen=True)
class GraphicsSetup:
    """Where a pass looks and writes, and its bounds.

    Attributes:
        engine: of the operations database.
        local_uri: LIBVIRT_URI.
        deadline_seconds: for each host.
        policy: the bounds of plans.
        total_seconds: for a look at all of them.
        clear_share: at most this share of the assignments may be cleared in one pass; 1 for any.
    """

    engine: Engine
    local_uri: str
    deadline_seconds: float
    policy: GraphicsPolicy
    clear_share: float = 0.5
    total_seconds: float = math.inf


@dataclass(frozen=True)
class GraphicsSeen:
    """What a pass looked at.

    Attributes:
        hosts: all of them.
        facts: by host id, of the hosts that answered.
        problems: by host id, why the others did not.
        known: all GPUs, by host and address.
        assignments: all of them, by host.
        machines: all rows.
        looked_at: the database's time just before the look.
    """

    hosts: Sequence[Host]
    facts: Mapping[str, HostGraphics]
    problems: Mapping[str, str]
    known: Mapping[str, Mapping[str, Known]]
    assignments: Mapping[str, Sequence[Assignment]]
    machines: Sequence[MachineRow]
    looked_at: datetime


@dataclass(frozen=True)
class GraphicsPlan:
    """What a pass would do.

    Attributes:
        hosts: the plans of the hosts that answered.
        problems: by host id, why nothing is done about it: it did not answer, or its look counts as failed.
        strays: conflicts of assignments whose host is none.
    """

    hosts: tuple[HostPlan, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    strays: tuple[Conflict, ...] = ()

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """All conflicts."""
        return (*self.strays, *(one for plan in self.hosts for one in plan.conflicts))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd and left alone, with its host."""
        return tuple(f"{plan.host_id}: {note}" for plan in self.hosts for note in plan.notes)

    @property
    def due(self) -> bool:
        """Whether there is something to do, or something that a person must see."""
        return bool(self.problems or self.conflicts or any(plan.changes or plan.assignments for plan in self.hosts))

    def as_plan(self) -> Plan:
        """In the words that every job shares."""
        changes = [change for plan in self.hosts for change in _changes(plan)]
        kept = Counter({"conflict": len(self.conflicts), "note": len(self.notes)})
        return Plan(tuple(changes), sum(plan.scanned for plan in self.hosts), dict(+kept))

    def check(self, setup: GraphicsSetup) -> None:
        """Refuse a pass that would clear too many assignments.

        Raises:
            PlanRefused: it would.
        """
        cleared = [change for plan in self.hosts for change in _changes(plan) if change.action == CLEAR]
        assigned = sum(plan.assigned for plan in self.hosts)
        SafetyLimit(share=setup.clear_share).check(Plan(tuple(cleared), assigned))


def _changes(plan: HostPlan) -> list[Change]:
    rows = [
        Change(f"{plan.host_id} {one.address}", one.action, one.reason, one.before.state if one.before else "")
        for one in plan.changes
    ]
    assignments = [
        Change(f"{plan.host_id} {one.before.address} of {one.before.machine_id}", one.action, one.reason, ASSIGNMENT)
        for one in plan.assignments
    ]
    return assignments + rows


def look(setup: GraphicsSetup) -> GraphicsSeen:
    """Look at all hosts, then read the database: what is written meanwhile is newer than the look."""
    with reading(setup.engine) as connection:
        hosts = read_hosts(connection, setup.local_uri)
        looked_at = database_now(connection)
    answers = ask_hosts(hosts, LOOK, deadline_seconds=setup.deadline_seconds, total_seconds=setup.total_seconds)
    tell_answers(log, answers)
    with reading(setup.engine) as connection:
        return GraphicsSeen(
            hosts=hosts,
            facts={host: answer.facts for host, answer in answers.items() if not answer.problem},
            problems={host: answer.problem for host, answer in answers.items() if answer.problem},
            known=read_gpus(connection),
            assignments=read_assignments(connection),
            machines=read_machines(connection),
            looked_at=looked_at,
        )


def plan(seen: GraphicsSeen, policy: GraphicsPolicy, accept_loss: Collection[str] = ()) -> GraphicsPlan:
    """Plan a pass.

    Args:
        seen: what was looked at.
        policy: the bounds.
        accept_loss: hosts of which an operator says that all their known GPUs were really taken out.
    """
    records = _records(seen)
    made = [
        plan_host(records[host], facts, policy, seen.looked_at, accept_loss=host in accept_loss)
        for host, facts in seen.facts.items()
    ]
    refused = {one.host_id: one.refused for one in made if one.refused}
    ids = {host.id for host in seen.hosts}
    strays = [
        Conflict(host, one.address, f"it was given to {one.machine_id} on a host that there is none of")
        for host, assignments in seen.assignments.items()
        if host not in ids
        for one in assignments
    ]
    return GraphicsPlan(
        tuple(one for one in made if not one.refused), {**seen.problems, **refused}, tuple(strays) if ids else ()
    )


def _records(seen: GraphicsSeen) -> dict[str, HostRecords]:
    """What the database has about each host that answered, with every machine's domain."""
    domains = {
        host: [NamedDomain(one.name, one.uuid, 1 if one.active else 5, -1) for one in facts.domains]
        for host, facts in seen.facts.items()
    }
    matches = match(seen.machines, domains, [host.id for host in seen.hosts])
    matched = {row.id: domain.uuid for row, domain in matches.found}
    found = {host: {one.uuid: one for one in facts.domains} for host, facts in seen.facts.items()}
    # While a domain cannot be read, whoever has none may be that one.
    certain = {*matched, *(row.id for row in matches.missing if not seen.facts[row.host].unreadable_domains)}
    machines = {
        row.id: Machine(
            row.id,
            row.host,
            row.internal_name or row.label,
            row.status,
            found.get(row.host, {}).get(matched.get(row.id, "")),
            certain=row.id in certain,
        )
        for row in seen.machines
    }
    return {
        host: HostRecords(
            host_id=host,
            known=seen.known.get(host, {}),
            assignments=tuple(seen.assignments.get(host, ())),
            machines=machines,
            owners=_owners(matches, host),
        )
        for host in seen.facts
    }


def _owners(matches: Matches, host: str) -> dict[str, str]:
    return {domain.uuid: row.id for row, domain in matches.found if row.host == host}


def apply(setup: GraphicsSetup, planned: GraphicsPlan) -> Written:
    """Write a plan, host by host; a second pass right after it writes nothing."""
    written = Written()
    for one in planned.hosts:
        written += write_plan(setup.engine, one)
        tell_changes(log, _changes(one))
    return written


def outcome_of(planned: GraphicsPlan, written: Written) -> Outcome:
    """What a pass did, in the words that every job shares. Hosts about which nothing was done count as failed."""
    made = planned.as_plan()
    return Outcome(
        scanned=made.scanned,
        changed=written.changed,
        unchanged=max(0, made.scanned - sum(len(one.changes) for one in planned.hosts)),
        skipped=written.skipped,
        failed=len(planned.problems),
        reasons=count_reasons(made.changes),
    )


def counts_text(seen: GraphicsSeen) -> str:
    """What is known, in one sentence."""
    states = Counter(one.state for host in seen.facts for one in seen.known.get(host, {}).values())
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return (
        f"{counted(states.total(), 'GPU')} on {counted(len(seen.facts), 'host')} in sync{f': {told}' if told else ''}."
    )
