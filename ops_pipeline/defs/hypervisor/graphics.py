"""The job `update_graphics_information`: the GPUs of the hosts, who has them, and whether the platform agrees.

What belongs here: translation between Dagster and `ops_pipeline.hypervisor.graphics`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetKey,
    AssetMaterialization,
    AssetSpec,
    Config,
    DefaultScheduleStatus,
    Definitions,
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    asset_check,
    in_process_executor,
    job,
    op,
    schedule,
)
from pydantic import Field
from sqlalchemy import Engine

from ops_pipeline.defs.hypervisor.firewall_shown import NOTHING_TO_LOOK_AT
from ops_pipeline.defs.looking import TICK_SECONDS, look_first, tell_check
from ops_pipeline.defs.metadata import JOB_METADATA, OWNERS, outcome_metadata, table
from ops_pipeline.defs.resources import FAILURES, OperationsDatabase, handed
from ops_pipeline.defs.runs import job_tags
from ops_pipeline.hypervisor.graphics.facts import GraphicsPolicy
from ops_pipeline.hypervisor.graphics.figures import GPU_HEADER, gpu_cells, gpu_rows
from ops_pipeline.hypervisor.graphics.store import Written
from ops_pipeline.hypervisor.graphics.update import (
    FORMING,
    RESTING,
    GraphicsPlan,
    GraphicsSeen,
    GraphicsSetup,
    apply,
    counts_text,
    look,
    outcome_of,
    plan,
)
from ops_pipeline.hypervisor.hosts import mark_unreachable
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import PlanRefused, changes_table, counted
from ops_pipeline.settings import Settings

JOB = "update_graphics_information"
GPUS = "gpus"
CHECK = "gpus_without_conflicts"
KEPT_CONFLICTS = 1000
"""So many are kept with the outcome of a run."""
SEEN = handed("devices of the hosts", "PCI devices of every host, and what its domains use of them.")
DECIDED = handed("changes of GPUs", "What differs from the inventory and the assignments, and conflicts.")


class PlanConfig(Config):
    """What a person may confirm."""

    accept_loss: list[str] = Field(
        default=[],
        description="Hosts whose known GPUs were all really taken out; otherwise a look without any counts as failed.",
    )


class ApplyConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Show what would be changed, and write nothing.")
    max_cleared_share: float = Field(
        default=0.5, ge=0, le=1, description="Refuse to clear a larger share of the assignments (from ten on)."
    )


def graphics_defs(settings: Settings) -> Definitions:
    """Build the asset, its check, the job and its schedule."""
    update = graphics_job(settings)
    return Definitions(
        assets=[gpus_asset()],
        asset_checks=[gpus_check(settings)],
        jobs=[update],
        schedules=[graphics_schedule(settings, update)],
    )


@dataclass(frozen=True)
class Planned:
    """What the ops hand on."""

    seen: GraphicsSeen
    plan: GraphicsPlan


def graphics_policy(settings: Settings) -> GraphicsPolicy:
    """The part of the settings that plans need."""
    return GraphicsPolicy(
        missing_scans=settings.graphics_missing_scans,
        missing_gap=timedelta(seconds=settings.graphics_missing_gap_seconds),
        allow_boot_vga=settings.graphics_allow_boot_vga,
        resting=RESTING,
        forming=FORMING,
    )


def graphics_setup(settings: Settings, engine: Engine) -> GraphicsSetup:
    """Where a pass looks and writes."""
    return GraphicsSetup(engine, settings.libvirt_uri, settings.hypervisor_deadline_seconds, graphics_policy(settings))


def gpus_asset() -> AssetSpec:
    """The GPUs of the hosts."""
    return AssetSpec(
        GPUS,
        description="The GPUs of the hypervisors: what they are, whether they can be handed out, and who has them."
        " Kept by the job `update_graphics_information`.",
        group_name="hypervisor",
        kinds={"libvirt"},
        owners=OWNERS,
    )


def gpus_check(settings: Settings) -> AssetChecksDefinition:
    """Build the check that fails while hypervisor and platform contradict each other about a GPU."""

    @asset_check(
        asset=AssetKey(GPUS),
        name=CHECK,
        description="No GPU is in two hands, and hypervisor and platform agree about whose each is.",
    )
    def gpus_without_conflicts(database: OperationsDatabase) -> AssetCheckResult:
        setup = graphics_setup(settings, database.engine)
        planned = plan(look(setup), setup.policy)
        if planned.problems and not planned.hosts:
            raise Failure(problems_text(planned), allow_retries=False)
        return check_result(planned)

    return gpus_without_conflicts


def check_result(planned: GraphicsPlan) -> AssetCheckResult:
    """The result of the check for a plan."""
    conflicts = planned.conflicts
    rows = [(one.host_id, one.address, one.text) for one in conflicts]
    words = f"{counted(len(conflicts), 'conflict')}. The first: {' '.join(rows[0])}." if rows else "No conflicts."
    return AssetCheckResult(
        passed=not conflicts,
        severity=AssetCheckSeverity.ERROR,
        description=words,
        metadata={
            "conflicts": len(conflicts),
            "conflict_list": table(("host", "GPU", "conflict"), rows, empty="None."),
            "hosts_not_looked_at": len(planned.problems),
        },
    )


def problems_text(planned: GraphicsPlan) -> str:
    """What could not be done, in words."""
    told = "; ".join(f"{host}: {problem}" for host, problem in planned.problems.items())
    return f"{counted(len(planned.problems), 'host was', 'hosts were')} left alone. {told}"


def graphics_job(settings: Settings) -> JobDefinition:
    """Build the job for a deployment's settings."""

    @op(out=SEEN.out, description="Asks every host for its PCI devices and for what each domain uses.")
    def observe_gpus(context: OpExecutionContext, database: OperationsDatabase) -> GraphicsSeen:
        seen = look(graphics_setup(settings, database.engine))
        if not seen.hosts:
            raise Failure(NOTHING_TO_LOOK_AT, allow_retries=False)
        context.add_output_metadata(
            {
                "hosts": len(seen.hosts),
                "gpus_found": sum(len(facts.gpus) for facts in seen.facts.values()),
                "domains": sum(len(facts.domains) for facts in seen.facts.values()),
                "hosts_not_looked_at": table(("host", "why"), list(seen.problems.items()), empty="None."),
            }
        )
        return seen

    @op(
        out=DECIDED.out,
        ins={"seen": SEEN.into},
        description="Compares inventory and assignments with what was found.",
    )
    def plan_gpus(context: OpExecutionContext, config: PlanConfig, seen: GraphicsSeen) -> Planned:
        planned = plan(seen, graphics_policy(settings), config.accept_loss)
        context.add_output_metadata(_plan_metadata(planned))
        return Planned(seen, planned)

    @op(
        out=FAILURES.out,
        ins={"planned": DECIDED.into},
        description="Writes what is still as it was when it was looked at, and reports.",
    )
    def apply_gpus(
        context: OpExecutionContext, config: ApplyConfig, database: OperationsDatabase, planned: Planned
    ) -> list[str]:
        if config.dry_run:
            context.log.info("Dry run: nothing was changed.")
            return []
        setup = replace(graphics_setup(settings, database.engine), clear_share=config.max_cleared_share)
        return _apply(context, setup, planned)

    # In an op of its own: Dagster drops what an op that fails has reported.
    @op(
        ins={"problems": FAILURES.into},
        description="Fails the run when a host could not be looked at, or when the plan was refused.",
    )
    def judge_gpus(problems: list[str]) -> None:
        if problems:
            raise Failure(" ".join(problems), allow_retries=False)

    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB),
        metadata=JOB_METADATA,
        description="Takes the inventory of GPUs, and clears assignments whose machine or GPU is gone.",
    )
    def update_graphics_information() -> None:
        judge_gpus(apply_gpus(plan_gpus(observe_gpus())))

    return update_graphics_information


def _plan_metadata(planned: GraphicsPlan) -> dict[str, MetadataValue | int]:
    changes = planned.as_plan().changes
    conflicts = [(one.host_id, one.address, one.text) for one in planned.conflicts]
    return {
        "changes": len(changes),
        "plan": MetadataValue.md(changes_table(changes) if changes else "Nothing to do."),
        "conflicts": table(("host", "GPU", "conflict"), conflicts, empty="None."),
        "notes": table(("what is odd and left alone",), [(note,) for note in planned.notes], empty="None."),
        "hosts_left_alone": table(("host", "why"), list(planned.problems.items()), empty="None."),
    }


def _apply(context: OpExecutionContext, setup: GraphicsSetup, planned: Planned) -> list[str]:
    """Write and report; returns why the run fails, in words."""
    started = datetime.now(UTC)
    problems = [problems_text(planned.plan)] if planned.plan.problems else []
    tell_check(context, GPUS, CHECK, check_result(planned.plan))
    mark_unreachable(setup.engine, planned.seen.hosts, planned.seen.problems)
    try:
        planned.plan.check(setup)
        written = apply(setup, planned.plan)
    except PlanRefused as refused:
        written = Written()
        problems.append(f"{refused} The limit is max_cleared_share of apply_gpus.")
    outcome = outcome_of(planned.plan, written)
    outcome = replace(outcome, failed=max(outcome.failed, len(problems)))
    record_outcome(
        setup.engine,
        job=JOB,
        run_id=context.run_id,
        started_at=started,
        outcome=outcome,
        details={
            "conflicts": [f"{one.host_id} {one.address} {one.text}" for one in planned.plan.conflicts[:KEPT_CONFLICTS]],
            "problems": problems,
        },
    )
    # What a person looks for comes first.
    metadata = _inventory(setup.engine) | {"conflicts": len(planned.plan.conflicts)} | outcome_metadata(outcome)
    context.log_event(AssetMaterialization(GPUS, description="GPUs were looked at.", metadata=metadata))
    context.add_output_metadata(metadata)
    return problems


def _inventory(engine: Engine) -> dict[str, MetadataValue | int]:
    rows = gpu_rows(engine)
    states = {"available": 0, "assigned": 0, "missing": 0, "unusable": 0}
    for row in rows:
        states[row.known.state] = states.get(row.known.state, 0) + 1
    shown = table(GPU_HEADER, [gpu_cells(row) for row in rows], empty="No host has GPUs.")
    return {GPUS: shown, "gpus_detected": len(rows) - states["missing"], **{f"gpus_{k}": v for k, v in states.items()}}


def graphics_schedule(settings: Settings, update: JobDefinition) -> ScheduleDefinition:
    """Build the schedule, which looks first, and launches a run when something differs or contradicts."""

    @schedule(
        name=f"{JOB}_schedule",
        job=update,
        cron_schedule=settings.graphics_interval,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Looks for GPUs; launches a run when the inventory changes, or something contradicts.",
    )
    def tick(context: ScheduleEvaluationContext, database: OperationsDatabase) -> RunRequest | SkipReason:
        def nothing_to_do() -> str | None:
            setup = replace(graphics_setup(settings, database.engine), total_seconds=TICK_SECONDS)
            seen = look(setup)
            if not seen.hosts:
                return NOTHING_TO_LOOK_AT
            planned = plan(seen, setup.policy)
            return None if planned.due else _in_sync(seen, planned.notes)

        return look_first(context.instance, JOB, nothing_to_do)

    return tick


def _in_sync(seen: GraphicsSeen, notes: Sequence[str]) -> str:
    return f"{counts_text(seen)}{f' {len(notes)} notes, the first: {notes[0]}.' if notes else ''}"
