"""One sync of the network filters of all hosts: look, read what is wanted, plan, change, and look again.

What belongs here: the sequence. The rules are in `plan`, `orphans`, `carried` and `families`, SQL is in `store`, calls
to libvirt are in `live`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from sqlalchemy import Engine

from ops_pipeline.database.engine import reading
from ops_pipeline.hypervisor.filters.carried import uncarried
from ops_pipeline.hypervisor.filters.facts import DONE, FAILED, SKIPPED, FilterLook, Step
from ops_pipeline.hypervisor.filters.families import wider_over_ipv6
from ops_pipeline.hypervisor.filters.orphans import orphan_key
from ops_pipeline.hypervisor.filters.plan import FilterPolicy, HostPlan, check_structure, plan_host
from ops_pipeline.hypervisor.filters.store import Wanted, read_names, read_wanted, remember_orphans
from ops_pipeline.hypervisor.hosts import Host, mark_unreachable, read_hosts
from ops_pipeline.hypervisor.looking import Answer, ask_hosts, tell_answers
from ops_pipeline.log_fields import fields
from ops_pipeline.reconcile import Change, Outcome, PlanRefused

log = logging.getLogger(__name__)
LIVE = "ops_pipeline.hypervisor.filters.live"


@dataclass(frozen=True)
class Firewall:
    """What a sync needs.

    Attributes:
        engine: the operations database.
        local_uri: libvirt of the host `local`; empty for none.
        policy: what may be touched.
        look_seconds: how long a look at one host may take.
        apply_seconds: how long the changes of one host may take.
        total_seconds: how long a look at all of them may take.
    """

    engine: Engine
    local_uri: str
    policy: FilterPolicy = field(default_factory=FilterPolicy)
    look_seconds: float = 20
    apply_seconds: float = 300
    total_seconds: float = math.inf


@dataclass(frozen=True)
class Looked:
    """What the hosts have; looked at before the database is read, so that what is new in both is no orphan.

    Attributes:
        hosts: all of them.
        looks: at those that answered.
        unreachable: why the others did not.
        early: what was wanted meanwhile; enough to find that nothing differs.
    """

    hosts: tuple[Host, ...]
    looks: Mapping[str, FilterLook]
    unreachable: Mapping[str, str]
    early: Wanted | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Planned:
    """What would be done.

    Attributes:
        looked: at the hosts.
        wanted: by the database.
        hosts: the plan of each host that could be looked at.
        uncarried: machines of each host that lack a filter, in words.
        wider: filters that block over IPv4 only, in words.
    """

    looked: Looked
    wanted: Wanted
    hosts: Mapping[str, HostPlan]
    uncarried: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    wider: Mapping[str, str] = field(default_factory=dict)

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every change, named by host."""
        return tuple(
            replace(change, key=f"{host_id}: {change.key}")
            for host_id, plan in self.hosts.items()
            for change in plan.changes
        )

    @property
    def settled(self) -> bool:
        """Whether nothing is to be done, now or later."""
        return not self.due and not any(plan.orphans for plan in self.hosts.values())

    @property
    def in_sync(self) -> int:
        """Filters that are as they should be, summed over the hosts."""
        return sum(max(0, plan.wanted - len(plan.orders) - len(plan.failed)) for plan in self.hosts.values())

    @property
    def due(self) -> bool:
        """Whether a run has something to do or to tell."""
        told = self.looked.unreachable or self.wanted.desired.refused or self.wider or any(self.uncarried.values())
        return bool(told) or any(
            plan.orders or plan.removals or plan.failed or plan.objection or self.orphans_differ(host_id)
            for host_id, plan in self.hosts.items()
        )

    def orphans_differ(self, host_id: str) -> bool:
        """Whether the orphans of a host, or why they are kept, are others than the database remembers."""
        plan, known = self.hosts[host_id], self.wanted.orphans.get(host_id, {})
        return {key: reason for key, (_, reason) in known.items()} != {
            orphan_key(name, uuid): plan.kept.get(name, "") for name, uuid in plan.orphans.items()
        }


@dataclass(frozen=True)
class Synced:
    """What was done.

    Attributes:
        planned: before.
        steps: what came of each change, by host.
        problems: hosts that did not answer while they were changed, in words.
        differing: what a second look found different from what is wanted, in words, by host.
    """

    planned: Planned
    steps: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    differing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def failures(self) -> list[str]:
        """Everything that fails the run, in words."""
        planned = self.planned
        found = [f"{host_id}: {why}" for host_id, why in {**planned.looked.unreachable, **self.problems}.items()]
        found += planned.wanted.desired.refused.values()
        for host_id, plan in planned.hosts.items():
            found += [f"{host_id}: {why}" for why in plan.failed.values()]
            found += [f"{host_id}: orphans are not removed: {plan.objection}"] if plan.objection else []
        for host_id, steps in self.steps.items():
            found += [f"{host_id}: {step.name}: {step.reason}" for step in steps if step.what == FAILED]
        for host_id, texts in self.differing.items():
            found += [f"{host_id}: a second look finds {text}" for text in texts]
        return found


def look(firewall: Firewall) -> Looked:
    """Look at every host, all at once; hosts that do not answer are told with the reason."""
    with reading(firewall.engine) as connection:
        hosts = read_hosts(connection, firewall.local_uri)
    with ThreadPoolExecutor(1) as background:
        reader = background.submit(read_wanted, firewall.engine, firewall.policy.prefix)
        answers = ask_hosts(
            hosts,
            f"{LIVE}:look_at_filters",
            deadline_seconds=firewall.look_seconds,
            total_seconds=firewall.total_seconds,
        )
    tell_answers(log, answers)
    return replace(_looked(hosts, answers), early=reader.result())


def _looked(hosts: Sequence[Host], answers: Mapping[str, Answer]) -> Looked:
    looks = {host_id: answer.facts for host_id, answer in answers.items() if not answer.problem}
    return Looked(tuple(hosts), looks, {name: answer.problem for name, answer in answers.items() if answer.problem})


def plan(firewall: Firewall, looked: Looked) -> Planned:
    """Compare with what is wanted, which is read once more when anything differs: it may be new in both.

    Raises:
        PlanRefused: filters include each other in a circle, or one that does not exist.
    """
    if looked.early is not None:
        with suppress(PlanRefused):
            early = _compared(firewall, looked, looked.early)
            if early.settled:
                return early
    return _compared(firewall, looked, read_wanted(firewall.engine, firewall.policy.prefix))


def _compared(firewall: Firewall, looked: Looked, wanted: Wanted) -> Planned:
    check_structure(wanted.desired)
    hosts = {
        host_id: plan_host(wanted.desired, found, firewall.policy, wanted.first_seen(host_id), wanted.now)
        for host_id, found in looked.looks.items()
    }
    lacking = {
        host_id: uncarried(found, [link for link in wanted.links if link.host_id == host_id])
        for host_id, found in looked.looks.items()
    }
    return Planned(looked, wanted, hosts, lacking, wider_over_ipv6(wanted.desired.filters))


def apply(firewall: Firewall, planned: Planned) -> Synced:
    """Define, then remove, then look again at every host where anything was to be changed."""
    mark_unreachable(firewall.engine, planned.looked.hosts, planned.looked.unreachable)
    orders = {host_id: one.orders for host_id, one in planned.hosts.items() if one.orders}
    answers = [_changed(firewall, planned, "define_filters", orders)]
    silent = {host_id for host_id, answer in answers[0].items() if answer.problem}
    answers.append(_changed(firewall, planned, "remove_filters", _removals(firewall, planned, silent)))
    steps: dict[str, tuple[Step, ...]] = {}
    problems: dict[str, str] = {}
    for host_id, answer in chain.from_iterable(one.items() for one in answers):
        steps[host_id] = (*steps.get(host_id, ()), *answer.items)
        if answer.problem:
            problems[host_id] = answer.problem
        for step in answer.items:
            known = fields(host=host_id, object=step.name, reason=step.reason)
            log.debug("%s: %s %s %s", host_id, step.name, step.what, step.reason, extra=known)
    for host_id, one in planned.hosts.items():
        if one.orphans or planned.wanted.orphans.get(host_id):
            _remember(firewall, host_id, one, steps.get(host_id, ()))
    differing = _second_look(firewall, planned, steps, problems)
    return Synced(planned, steps, problems, differing)


def _changed(firewall: Firewall, planned: Planned, function: str, arguments: Mapping[str, Any]) -> dict[str, Answer]:
    hosts = [host for host in planned.looked.hosts if arguments.get(host.id)]
    return ask_hosts(
        hosts,
        f"{LIVE}:{function}",
        deadline_seconds=firewall.apply_seconds,
        arguments=arguments,
        writes=True,
        variable="NETWORK_FILTER_APPLY_SECONDS",
    )


def _removals(firewall: Firewall, planned: Planned, silent: Collection[str]) -> dict[str, dict[str, str]]:
    """UUIDs by name and host, but for what somebody has written into the database meanwhile: it is wanted again."""
    wanted = {host_id: one.removals for host_id, one in planned.hosts.items() if one.removals and host_id not in silent}
    names = read_names(firewall.engine) if wanted else set()
    if not names:
        return {}
    return {
        host_id: {name: uuid for name, uuid in removals.items() if name not in names}
        for host_id, removals in wanted.items()
    }


def _remember(firewall: Firewall, host_id: str, one: HostPlan, steps: Sequence[Step]) -> None:
    done = {step.name for step in steps if step.what == DONE}
    left = {name: uuid for name, uuid in one.orphans.items() if name not in done}
    remember_orphans(firewall.engine, host_id, left, {**one.kept, **{step.name: step.reason for step in steps}})


def _second_look(
    firewall: Firewall, planned: Planned, steps: Mapping[str, Sequence[Step]], problems: dict[str, str]
) -> dict[str, tuple[str, ...]]:
    """What differs from what was wanted all the same, apart from what is told as failed or left already."""
    hosts = [host for host in planned.looked.hosts if host.id in steps and host.id not in problems]
    answers = ask_hosts(hosts, f"{LIVE}:look_at_filters", deadline_seconds=firewall.look_seconds)
    looked = _looked(hosts, answers)
    problems.update(looked.unreachable)
    differing: dict[str, tuple[str, ...]] = {}
    wanted = planned.wanted
    for host_id, found in looked.looks.items():
        again = plan_host(wanted.desired, found, firewall.policy, {}, wanted.now)
        told = {step.name for step in steps[host_id] if step.what != DONE} | again.failed.keys()
        removed = {step.name for step in steps[host_id] if step.what == DONE} & planned.hosts[host_id].removals.keys()
        texts = [f"{one.name}: {again.reasons[one.name]}" for one in again.orders if one.name not in told]
        texts += [f"{name}: it is still there" for name in sorted(removed & again.orphans.keys())]
        if texts:
            differing[host_id] = tuple(texts)
    return differing


def outcome_of(synced: Synced) -> Outcome:
    """A sync as an outcome: changed are filters defined and removed, failed what fails the run."""
    planned, steps = synced.planned, list(chain.from_iterable(synced.steps.values()))
    what = Counter(step.what for step in steps)
    done = {(host_id, step.name) for host_id, some in synced.steps.items() for step in some if step.what == DONE}
    changes = Counter(
        change.action
        for host_id, one in planned.hosts.items()
        for change in one.changes
        if (host_id, change.key) in done
    )
    told = {
        "in sync": planned.in_sync,
        **changes,
        "orphans kept": sum(len(one.orphans) - len(one.removals) for one in planned.hosts.values()),
        "machines without their filter": sum(map(len, planned.uncarried.values())),
        "wider open over IPv6": len(planned.wider),
    }
    return Outcome(
        scanned=sum(max(one.wanted, one.ours) for one in planned.hosts.values()),
        changed=what[DONE],
        unchanged=planned.in_sync,
        skipped=what[SKIPPED],
        failed=len(synced.failures()),
        reasons={reason: count for reason, count in told.items() if count},
    )
