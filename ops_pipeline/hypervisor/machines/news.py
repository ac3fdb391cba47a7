"""Whether a look found something that is worth a run.

What belongs here: pure functions over a look and its plan. What does not: launching.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ops_pipeline.hypervisor.machines.matching import Finding
from ops_pipeline.hypervisor.machines.plans import Observed, StatusPlan
from ops_pipeline.reconcile import counted

NO_HOSTS = "No host to look at: set LIBVIRT_URI, or fill hypervisor_hosts (docs/hypervisor.md)."

CONFLICTS = frozenset({"conflict", "duplicate", "unnamed", "renamed", "strange", "no_host", "unknown_domain"})
STUCK = frozenset({"stuck"})
ALARMS = frozenset({"alert", "missing"})


@dataclass(frozen=True)
class News:
    """What makes a run worth launching.

    Attributes:
        changes: statuses would change.
        findings: others than the last run reported.
        hosts: a host answers that did not, or the other way round.
        problems: hosts that do not answer or are not believed, as the last run saw too.
    """

    changes: bool
    findings: bool
    hosts: bool
    problems: bool


def news_of(seen: Observed, planned: StatusPlan, told: str) -> News:
    """Compare a look with what was told; `told` is `findings_key` of the last run."""
    different = [host for host in seen.hosts if not host.state or bool(host.reason) != (host.id in planned.problems)]
    return News(
        changes=bool(planned.changes),
        findings=findings_key(planned.findings) != told,
        hosts=bool(different),
        problems=bool(planned.problems),
    )


def findings_key(findings: Iterable[Finding]) -> str:
    """A short text that is the same for the same findings, in whatever order."""
    return _digest(f"{finding.kind} {finding.host} {finding.key}" for finding in findings)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def of_kinds(planned: StatusPlan, kinds: frozenset[str]) -> list[Finding]:
    """The findings of some kinds."""
    return [finding for finding in planned.findings if finding.kind in kinds]


def told_text(findings: list[Finding], none: str) -> str:
    """Findings in one sentence, the first ten by name."""
    if not findings:
        return none
    shown = "; ".join(f"{finding.key} on {finding.host}: {finding.words}" for finding in findings[:10])
    return f"{len(findings)} in all. {shown}."


def problems_text(problems: Mapping[str, str]) -> str:
    """Hosts that do not answer or are not believed, in one sentence."""
    if not problems:
        return "Every host answers."
    return f"{counted(len(problems), 'host')}: {'; '.join(f'{host}: {problem}' for host, problem in problems.items())}"


def states_of(seen: Observed) -> dict[str, int]:
    """How many machines there are by status, the most frequent first."""
    return dict(Counter(row.status for row in seen.machines).most_common())
