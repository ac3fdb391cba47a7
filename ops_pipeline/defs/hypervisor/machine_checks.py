"""The checks of the asset `machines`.

What belongs here: their results, from a look and its plan.
"""

from dagster import AssetCheckResult, AssetCheckSeverity, AssetCheckSpec

from ops_pipeline.hypervisor.machines.news import ALARMS, CONFLICTS, STUCK, of_kinds, problems_text, told_text
from ops_pipeline.hypervisor.machines.plans import Observed, StatusPlan

CHECKS = {
    "hosts_answer": "Every hypervisor answers before its deadline, and what it answers can be believed.",
    "machines_need_no_help": "No machine is missing on its host, crashed, or paused by an I/O error.",
    "machines_are_not_stuck": "No machine is in a transition or under a lock for longer than it may be.",
    "machines_without_conflicts": "Platform and hypervisors do not contradict each other: errors that run, duplicates,"
    " machines without a name, domains without a machine.",
}


def check_specs(asset: str) -> list[AssetCheckSpec]:
    """What the checks promise."""
    return [AssetCheckSpec(name, asset=asset, description=words) for name, words in CHECKS.items()]


def check_results(seen: Observed, planned: StatusPlan) -> dict[str, AssetCheckResult]:
    """The result of each check."""
    problems = planned.problems
    results = {
        "hosts_answer": AssetCheckResult(
            passed=not problems,
            description=problems_text(problems),
            metadata={"hosts": len(seen.hosts), "hosts_with_problems": len(problems)},
        )
    }
    kinds = {"machines_need_no_help": ALARMS, "machines_are_not_stuck": STUCK, "machines_without_conflicts": CONFLICTS}
    for name, wanted in kinds.items():
        found = of_kinds(planned, wanted)
        results[name] = AssetCheckResult(
            passed=not found,
            severity=AssetCheckSeverity.ERROR if wanted is ALARMS else AssetCheckSeverity.WARN,
            description=told_text(found, "None."),
            metadata={"findings": len(found)},
        )
    return results
