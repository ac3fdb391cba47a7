"""The job `update_vm_status`: machines follow their domains.

What belongs here: translation between Dagster and `ops_pipeline.hypervisor.machines`.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dagster import (
    AssetMaterialization,
    AssetObservation,
    AssetSpec,
    Config,
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    in_process_executor,
    job,
    op,
)
from pydantic import Field

from ops_pipeline.defs.hypervisor.machine_checks import check_results
from ops_pipeline.defs.looking import tell_check
from ops_pipeline.defs.metadata import JOB_METADATA, OWNERS, outcome_metadata, table
from ops_pipeline.defs.resources import FAILURES, OperationsDatabase, handed
from ops_pipeline.defs.runs import job_tags
from ops_pipeline.hypervisor.machines.news import NO_HOSTS, findings_key, problems_text, states_of
from ops_pipeline.hypervisor.machines.plans import Limits, Observed, StatusPlan
from ops_pipeline.hypervisor.machines.rules import Policy
from ops_pipeline.hypervisor.machines.sync import Applied, Scene, apply, look, outcome_of, plan
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import MAX_TABLE_ROWS, changes_table
from ops_pipeline.settings import Settings

JOB = "update_vm_status"
MACHINES = "machines"
GROUP = "hypervisor"
SEEN = handed("machines and domains", "What the platform says of its machines, and what every host showed.")
DECIDED = handed("changes of machines", "What follows for each machine, and what needs a person.")


class StatusConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Look, show what would change, and write nothing.")
    max_down_share: float | None = Field(
        default=None,
        description="At most this share (0 to 1) of a host's machines may go down in this run; 1 believes every host,"
        " also one that has none of its machines any more. Left out: VM_MAX_DOWN_SHARE.",
    )


@dataclass(frozen=True)
class Pass:
    """What the ops hand on: the look, when it began, its plan, and whether it is only shown."""

    started: datetime
    seen: Observed
    plan: StatusPlan
    dry_run: bool


def scene_of(settings: Settings, database: OperationsDatabase, max_down_share: float | None = None) -> Scene:
    """Where a pass looks and writes, as the environment says."""
    policy = Policy(
        stopped=settings.vm_stopped_status,
        missing_looks=settings.vm_missing_looks,
        stuck_after=timedelta(minutes=settings.vm_stuck_minutes),
        lock_stuck_after=timedelta(minutes=settings.vm_lock_stuck_minutes),
    )
    limits = Limits(
        policy=policy,
        down_share=settings.vm_max_down_share if max_down_share is None else max_down_share,
        down_minimum=settings.vm_max_down_minimum,
        refresh=settings.hypervisor_refresh(),
    )
    return Scene(database.engine, settings.libvirt_uri, settings.hypervisor_deadline_seconds, limits)


def machines_asset() -> AssetSpec:
    """The platform's machines."""
    return AssetSpec(
        MACHINES,
        description="The platform's virtual machines: their status follows what their hypervisors show. Kept by the job"
        " `update_vm_status`, every minute and on events of libvirt; a materialization is a run that had work.",
        group_name=GROUP,
        kinds={"table"},
        owners=OWNERS,
    )


def status_job(settings: Settings) -> JobDefinition:
    """Build the job."""

    @op(description="Looks at every host at once, each with its own deadline, then reads all machines.", out=SEEN.out)
    def observe_machines(context: OpExecutionContext, database: OperationsDatabase) -> Observed:
        seen = look(scene_of(settings, database))
        if not seen.hosts:
            raise Failure(NO_HOSTS, allow_retries=False)
        domains = sum(len(facts.domains) for facts in seen.facts.values())
        numbers = {"hosts": len(seen.hosts), "hosts_that_answered": len(seen.facts), "domains": domains}
        context.add_output_metadata({**numbers, "machines": len(seen.machines)})
        return seen

    @op(
        description="Decides what follows for each machine, and refuses what cannot be believed.",
        out=DECIDED.out,
        ins={"seen": SEEN.into},
    )
    def plan_machines(
        context: OpExecutionContext, config: StatusConfig, database: OperationsDatabase, seen: Observed
    ) -> Pass:
        share = config.max_down_share
        if share is not None and not 0 <= share <= 1:
            raise Failure(f"max_down_share lies between 0 and 1, not at {share}", allow_retries=False)
        planned = plan(scene_of(settings, database, share), seen, time.sleep)
        context.add_output_metadata(
            {
                "machines": planned.scanned,
                "machines_of_hosts_that_did_not_answer": planned.unasked,
                "plan": MetadataValue.md(plan_text(planned)),
                "hosts": MetadataValue.md(problems_text(planned.problems)),
            }
        )
        return Pass(datetime.now(UTC), seen, planned, config.dry_run)

    @op(
        description="Writes the changes that still hold, and reports; a dry run writes nothing.",
        out=FAILURES.out,
        ins={"planned": DECIDED.into},
    )
    def apply_machines(context: OpExecutionContext, database: OperationsDatabase, planned: Pass) -> dict[str, str]:
        if planned.dry_run:
            return {}
        applied = apply(scene_of(settings, database), planned.seen, planned.plan)
        _report(context, planned, applied)
        outcome = outcome_of(planned.plan, applied)
        findings = [f"{one.kind}: {one.key} on {one.host}: {one.words}" for one in planned.plan.findings]
        record_outcome(
            database.engine,
            job=JOB,
            run_id=context.run_id,
            started_at=planned.started,
            outcome=outcome,
            details={
                "findings": findings[:MAX_TABLE_ROWS],
                "findings_count": len(findings),
                "findings_key": findings_key(planned.plan.findings),
                "hosts": dict(planned.plan.problems),
            },
        )
        context.add_output_metadata(outcome_metadata(outcome))
        return dict(planned.plan.problems)

    # In an op of its own: Dagster drops what an op that fails has reported.
    @op(
        ins={"problems": FAILURES.into},
        description="Fails the run when a host did not answer or was not believed; the others were done.",
    )
    def judge_hosts(problems: dict[str, str]) -> None:
        if problems:
            raise Failure(f"{problems_text(problems)}. The machines of the other hosts were done.", allow_retries=False)

    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB),
        metadata=JOB_METADATA,
        description="Compares the status of every machine with its hypervisor, and writes what differs.",
    )
    def update_vm_status() -> None:
        judge_hosts(apply_machines(plan_machines(observe_machines())))

    return update_vm_status


def plan_text(planned: StatusPlan) -> str:
    """The changes as a table."""
    changes = [change.as_change() for change in planned.changes]
    return changes_table(changes) if changes else "No status changes."


def _report(context: OpExecutionContext, planned: Pass, applied: Applied) -> None:
    """Show what changed, what needs a person, and the hosts."""
    seen, made = planned.seen, planned.plan
    for finding in made.findings[:MAX_TABLE_ROWS]:
        words = f"{finding.kind.replace('_', ' ')}: {finding.key} on {finding.host}: {finding.words}"
        context.log_event(AssetObservation(MACHINES, description=words, metadata={"host": finding.host}))
    for name, result in check_results(seen, made).items():
        tell_check(context, MACHINES, name, result)
    findings = [(one.kind.replace("_", " "), one.host, one.key, one.words) for one in made.findings]
    metadata = {
        "machines": made.scanned,
        "changed": applied.changed,
        "changed_by_others_meanwhile": applied.skipped,
        "findings": len(findings),
        "by_status": table(("status", "machines"), list(states_of(seen).items()), empty="No machines."),
        "changes": MetadataValue.md(plan_text(made)),
        "needs_a_person": table(("what", "host", "machine", "why"), findings, empty="Nothing."),
        "hosts": table(("host", "domains", "problem"), _hosts(seen, made), empty="None."),
    }
    context.log_event(AssetMaterialization(MACHINES, metadata=metadata))


def _hosts(seen: Observed, made: StatusPlan) -> list[tuple[object, ...]]:
    counts = {host: len(facts.domains) for host, facts in seen.facts.items()}
    return [(host.id, counts.get(host.id, ""), made.problems.get(host.id, "")) for host in seen.hosts]
