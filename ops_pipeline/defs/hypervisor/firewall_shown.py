"""What `flush_firewall` shows: tables, checks and sentences.

What belongs here: plans and outcomes of filters in an operator's words. What does not: ops and schedules.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dagster import AssetCheckResult, AssetCheckSeverity, MetadataValue

from ops_pipeline.defs.metadata import table
from ops_pipeline.hypervisor.filters.facts import DONE, FAILED
from ops_pipeline.hypervisor.filters.sync import Looked, Planned, Synced
from ops_pipeline.reconcile import changes_table, counted

FILTERS = "network_filters"
IN_SYNC, CARRIED, WIDER = "filters_match_the_database", "machines_carry_their_filters", "ipv6_is_no_wider_open"
CHECKS = {
    IN_SYNC: "Every host answers, and has every filter of the database as it stands there.",
    CARRIED: "Every machine that should carry a filter names it, and it is bound to its interfaces.",
    WIDER: "No filter blocks over IPv4 what nothing blocks over IPv6.",
}
NOTHING_TO_LOOK_AT = "No hypervisor is known: set LIBVIRT_URI, or write rows of hypervisor_hosts."
ALL_WELL = "All is well."
UNABLE = "libvirt's driver of the host knows no network filters"
SHOWN = 10
KEPT_DETAILS = 1000


def looked_metadata(looked: Looked) -> dict[str, Any]:
    """What was found."""
    return {
        "hosts": len(looked.hosts),
        "filters": sum(len(one.filters) for one in looked.looks.values()),
        "bindings": sum(len(one.bindings) for one in looked.looks.values()),
        "unread_domains": sum(len(one.unread) for one in looked.looks.values()),
        "unreachable": table(("host", "why"), list(looked.unreachable.items()), empty="None."),
    }


def plan_metadata(planned: Planned) -> dict[str, Any]:
    """What would be done, and what is left alone."""
    left = [(host_id, name, why) for host_id, one in planned.hosts.items() for name, why in one.kept.items()]
    refused = [*planned.wanted.desired.refused.items()]
    refused += [(name, why) for one in planned.hosts.values() for name, why in one.failed.items()]
    return {
        "changes": len(planned.changes),
        "in_sync": planned.in_sync,
        "plan": MetadataValue.md(changes_table(planned.changes) if planned.changes else "Nothing to do."),
        "left_alone": table(("host", "filter", "why"), left, empty="None."),
        "refused": table(("filter", "why"), refused, empty="None."),
        "machines_without_their_filter": table(("host", "machine", "what"), _lacking(planned), empty="None."),
        "wider_open_over_ipv6": table(("filter", "what"), list(planned.wider.items()), empty="None."),
    }


def _lacking(planned: Planned) -> list[tuple[str, str, str]]:
    return [(host_id, machine, why) for host_id, some in planned.uncarried.items() for machine, why in some.items()]


def host_table(synced: Synced) -> MetadataValue:
    """One row for each host."""
    rows = []
    for host in synced.planned.looked.hosts:
        plan, steps = synced.planned.hosts.get(host.id), synced.steps.get(host.id, ())
        problem = synced.planned.looked.unreachable.get(host.id) or synced.problems.get(host.id, "")
        look = synced.planned.looked.looks.get(host.id)
        problem = UNABLE if look is not None and not look.supported else problem
        what = Counter(step.what for step in steps)
        rows.append(
            (
                host.id,
                plan.wanted if plan else "",
                what[DONE],
                what[FAILED],
                len(plan.orphans) if plan else "",
                len(synced.planned.uncarried.get(host.id, ())),
                problem,
            )
        )
    header = ("host", "filters", "changed", "failed", "orphans", "machines without their filter", "problem")
    return table(header, rows, empty="None.")


def check_results(planned: Planned, failures: Sequence[str]) -> dict[str, AssetCheckResult]:
    """The results of the three checks."""
    lacking = [f"{machine} on {host_id}: {why}" for host_id, machine, why in _lacking(planned)]
    wider = [f"{planned.wanted.desired.labels[name]} ({name}): {why}" for name, why in planned.wider.items()]
    unable = [host_id for host_id, look in planned.looked.looks.items() if not look.supported]
    fine = f"Nothing to look at on {', '.join(unable[:SHOWN])}: {UNABLE}." if unable else ALL_WELL
    return {
        IN_SYNC: _result(failures, "problem", AssetCheckSeverity.ERROR, fine),
        CARRIED: _result(lacking, "machine", AssetCheckSeverity.ERROR, fine),
        WIDER: _result(wider, "filter", AssetCheckSeverity.WARN),
    }


def _result(found: Sequence[str], word: str, severity: AssetCheckSeverity, fine: str = ALL_WELL) -> AssetCheckResult:
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return AssetCheckResult(
        passed=not found,
        severity=severity,
        description=f"{counted(len(found), word)}: {'; '.join(found[:SHOWN])}{more}." if found else fine,
        metadata={f"{word}s": len(found)},
    )


def told_details(synced: Synced, failures: Sequence[str]) -> dict[str, Any]:
    """What the record of a run keeps; `told` counts what the next look must find gone for the checks to turn green."""
    planned = synced.planned
    changes = [f"{change.action} {change.key}: {change.reason}" for change in planned.changes]
    return {
        "failures": list(failures[:KEPT_DETAILS]),
        "changes": changes[:KEPT_DETAILS],
        "machines_without_their_filter": [" ".join(one) for one in _lacking(planned)][:KEPT_DETAILS],
        "told": len(failures) + len(_lacking(planned)) + len(planned.wider),
    }


def skip_text(planned: Planned) -> str:
    """Why there is nothing to do."""
    plans, looks = planned.hosts, planned.looked.looks
    unable = sum(not one.supported for one in looks.values())
    orphans = sum(len(one.orphans) for one in plans.values())
    odd = sum(len(one.kept.keys() - one.orphans.keys()) for one in plans.values())
    odd -= unable if planned.wanted.desired.names else 0
    parts = (
        f"In sync: {counted(planned.in_sync, 'filter')} on {counted(len(looks) - unable, 'host')}",
        counted(orphans, "orphan waits", "orphans wait") if orphans else "",
        counted(odd, "oddity is", "oddities are") + " left alone" if odd else "",
        counted(unable, "host knows", "hosts know") + " no network filters" if unable else "",
    )
    return "; ".join(part for part in parts if part) + "."
