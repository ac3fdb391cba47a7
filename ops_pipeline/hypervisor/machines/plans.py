"""The plan of a pass over all machines: pure, from what was looked at.

What belongs here: putting matches and rules together, and the safety limit of each host. What does not: any I/O.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ops_pipeline.hypervisor.hosts import Host
from ops_pipeline.hypervisor.machines.domains import HostFacts
from ops_pipeline.hypervisor.machines.matching import Finding, MachineRow, Matches, match
from ops_pipeline.hypervisor.machines.rules import (
    MISSING,
    UNKNOWN,
    Group,
    Policy,
    alert_of,
    group_of,
    is_quiet,
    judge,
    observed,
)
from ops_pipeline.hypervisor.machines.store import Observation, StatusChange
from ops_pipeline.reconcile import Change, Plan, SafetyLimit

FEWEST_KNOWN = 2
"""From so many machines on that a host was seen to have, none of them left means that it is not that host."""
NEVER_SEEN = ("", MISSING)


@dataclass(frozen=True)
class Observed:
    """What a pass looked at.

    Attributes:
        hosts: all of them.
        facts: by host id, of the hosts that answered.
        problems: by host id, why the others did not.
        machines: all rows, read after the look.
        looked_at: the database's time just before the look.
        unreached: of `problems`, hosts whose turn did not come in the time for all; they are not marked.
    """

    hosts: Sequence[Host]
    facts: Mapping[str, HostFacts]
    problems: Mapping[str, str]
    machines: Sequence[MachineRow]
    looked_at: datetime
    unreached: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PlannedChange:
    """A change of one machine's status."""

    host: str
    label: str
    write: StatusChange
    reason: str

    @property
    def goes_down(self) -> bool:
        """True when a machine that was up would be written down."""
        write = self.write
        return group_of(write.after) is Group.DOWN and group_of(write.before) in {Group.UP, Group.HALTED}

    def as_change(self) -> Change:
        """For tables and counts."""
        return Change(self.label, self.write.after, self.reason, self.write.before)


@dataclass(frozen=True)
class StatusPlan:
    """What a pass would do.

    Attributes:
        changes: of statuses.
        seen: machines whose observation is new, or whose time of it is due to be refreshed.
        findings: what is reported.
        scanned: machines looked at.
        unasked: machines whose host did not answer, and which nothing is said about.
        problems: by host id, why nothing was planned for it: it did not answer, or the plan was refused.
        refused: of `problems`, the hosts that answered.
        held: machines that would have gone down, had their host not been refused.
    """

    changes: tuple[PlannedChange, ...] = ()
    seen: tuple[Observation, ...] = ()
    findings: tuple[Finding, ...] = ()
    scanned: int = 0
    unasked: int = 0
    problems: Mapping[str, str] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()

    def as_plan(self) -> Plan:
        """In the words that every job shares."""
        kept = Counter(finding.kind for finding in self.findings)
        return Plan(tuple(change.as_change() for change in self.changes), self.scanned, dict(kept))


@dataclass(frozen=True)
class Limits:
    """What a pass may do, and how often what did not change is written.

    Attributes:
        policy: what statuses follow from what is seen.
        down_share: at most this share of a host's machines that are up may go down in one look; 1 for any.
        down_minimum: below so many machines that are up the share is not applied.
        refresh: how old the time of an unchanged observation may become.
    """

    policy: Policy = field(default_factory=Policy)
    down_share: float = 0.5
    down_minimum: int = 10
    refresh: timedelta = timedelta(minutes=15)


def plan_statuses(seen: Observed, limits: Limits, confirmed: Iterable[str] = ()) -> StatusPlan:
    """Plan a pass.

    Args:
        seen: what was looked at.
        limits: what the operator decides.
        confirmed: hosts whose machines may all go down, since a second look agreed and they were started again.
    """
    problems = dict(seen.problems)
    refused = set(_strangers(seen, problems)) if limits.down_share < 1 else set()
    answered = {host: facts.domains for host, facts in seen.facts.items() if host not in problems}
    matches = match(seen.machines, answered, [host.id for host in seen.hosts])
    plan = _Draft(seen, limits, everything_asked=len(answered) == len(seen.hosts))
    plan.add(matches)
    changes = []
    for host, planned in plan.by_host().items():
        objection = None if host in confirmed else plan.objection(host, planned)
        if objection:
            refused.add(host)
            problems[host] = objection
        changes += planned if not objection else [change for change in planned if not change.goes_down]
    planned_ids = {change.write.observation.id for change in changes}
    held = {change.write.observation.id for change in plan.changes} - planned_ids
    return StatusPlan(
        changes=tuple(changes),
        seen=tuple(one for one in plan.seen if one.id not in planned_ids and one.id not in held),
        findings=tuple(matches.findings + plan.findings),
        scanned=len(seen.machines) - matches.unasked,
        unasked=matches.unasked,
        problems=problems,
        refused=frozenset(refused),
        held=frozenset(held),
    )


def _strangers(seen: Observed, problems: dict[str, str]) -> list[str]:
    """Hosts that answered but have not one of the machines that they were seen to have: another host, or an empty one.

    Their problem is added to `problems`.
    """
    known: dict[str, list[MachineRow]] = defaultdict(list)
    for row in seen.machines:
        if row.observed_state not in NEVER_SEEN and row.host in seen.facts:
            known[row.host].append(row)
    strangers = []
    for host, rows in known.items():
        uuids = {domain.uuid.lower() for domain in seen.facts[host].domains}
        names = {domain.name for domain in seen.facts[host].domains}
        if len(rows) >= FEWEST_KNOWN and not any(
            row.uuid.lower() in uuids or row.internal_name in names for row in rows
        ):
            strangers.append(host)
            problems[host] = (
                f"it answers, but has none of its {len(rows)} machines: is its libvirt_uri right? If they are really"
                " gone, launch with max_down_share 1"
            )
    return strangers


class _Draft:
    """Collects what follows for each machine."""

    def __init__(self, seen: Observed, limits: Limits, *, everything_asked: bool) -> None:
        self.looked_at = seen.looked_at
        self.stale_at = seen.looked_at - limits.refresh
        self.limits = limits
        self.everything_asked = everything_asked
        self.changes: list[PlannedChange] = []
        self.seen: list[Observation] = []
        self.findings: list[Finding] = []
        self.up: Counter[str] = Counter(
            row.host for row in seen.machines if group_of(row.status) in {Group.UP, Group.HALTED}
        )

    def add(self, matches: Matches) -> None:
        """Judge every machine."""
        for row, domain in matches.found:
            state, reason = observed(domain.state, domain.reason)
            if row.internal_name and row.internal_name != domain.name:
                words = f"its domain is called {domain.name!r}, not {row.internal_name!r}"
                self.findings.append(Finding("renamed", row.host, row.label, words))
            if is_quiet(row.status, state, reason):
                self.note(row, state, reason, 0)
            else:
                self.judge(row, state, reason, 0)
        for row in matches.missing:
            # On a host that does not answer it may run after all: it is not counted as missing.
            looks = row.missing_looks
            if self.everything_asked or not row.uuid:
                looks = min(looks + 1, self.limits.policy.missing_looks)
            self.judge(row, MISSING, "", looks)
        for row, host in matches.elsewhere:
            self.note(row, UNKNOWN, f"on host {host}", 0)
            if row.status != "moving":
                words = f"its domain is on host {host}, while the platform has it on {row.host}"
                self.findings.append(Finding("conflict", row.host, row.label, words))

    def judge(self, row: MachineRow, state: str, reason: str, looks: int) -> None:
        """Plan what follows for one machine."""
        age = self.looked_at - row.status_changed_at
        verdict = judge(row.status, state, reason, age, looks=looks, policy=self.limits.policy)
        alert = alert_of(row.status, state, reason)
        if alert:
            self.findings.append(Finding("alert", row.host, row.label, alert))
        if verdict.finding:
            self.findings.append(Finding(verdict.finding, row.host, row.label, verdict.reason))
        if verdict.status is not None:
            observation = Observation(row.id, state, reason, looks)
            write = StatusChange(observation, row.status, verdict.status)
            self.changes.append(PlannedChange(row.host, row.label, write, alert or verdict.reason))
        self.note(row, state, reason, looks)

    def note(self, row: MachineRow, state: str, reason: str, looks: int) -> None:
        """Plan to write what was seen, if it is new or the time of it is due."""
        same = state == row.observed_state and reason == row.observed_reason and looks == row.missing_looks
        if same and row.observed_at is not None and row.observed_at > self.stale_at:
            return
        self.seen.append(Observation(row.id, state, reason, looks))

    def by_host(self) -> dict[str, list[PlannedChange]]:
        """The changes of each host."""
        hosts: dict[str, list[PlannedChange]] = defaultdict(list)
        for change in self.changes:
            hosts[change.host].append(change)
        return hosts

    def objection(self, host: str, planned: Sequence[PlannedChange]) -> str | None:
        """Why too many machines of a host go down at once; None when they may."""
        down = tuple(change.as_change() for change in planned if change.goes_down)
        limit = SafetyLimit(share=self.limits.down_share, minimum_population=self.limits.down_minimum)
        if not limit.objection(Plan(down, self.up[host])):
            return None
        return (
            f"{len(down)} of its {self.up[host]} machines that are up would go down in one look, more than"
            f" {self.limits.down_share:.0%}; none of them was changed. If they are really down, launch with"
            " max_down_share 1"
        )
