"""The job `check_running_services`: are the known services well, and what is done about those that are not.

What belongs here: translation between Dagster and `ops_pipeline.services`.
"""

import base64
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
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

from ops_pipeline.database.engine import reading
from ops_pipeline.defs.looking import look_first, tell_check
from ops_pipeline.defs.metadata import JOB_METADATA, OWNERS, outcome_metadata, table
from ops_pipeline.defs.resources import FAILURES, OperationsDatabase
from ops_pipeline.defs.runs import job_tags
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import changes_table, counted
from ops_pipeline.services.check import (
    Checked,
    Watch,
    check_services,
    longest_recovery_seconds,
    outcome_of,
    plan_of,
    prospect,
)
from ops_pipeline.services.figures import ServiceRow, service_rows, timeline
from ops_pipeline.services.registry import Registry, read_registry
from ops_pipeline.services.states import DOWN, GIVEN_UP, State
from ops_pipeline.services.store import Event, read_states, record_looks
from ops_pipeline.settings import Settings, SettingsError, secret_variable
from ops_pipeline.strict_yaml import FileRefused

JOB = "check_running_services"
SERVICES = "host_services"
CHECK = "services_are_well"
SHOWN_LETTERS = 80
NO_FILE = "SERVICES_FILE names no file of known services: see docs/services.md."


class CheckConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Look, show what would be restarted, and write nothing.")


def services_defs(settings: Settings) -> Definitions:
    """Build the asset, its check, the job and its schedule.

    Raises:
        SettingsError: the file of services cannot be used.
    """
    registry = load_registry(settings)
    check = check_job(registry)
    return Definitions(
        assets=[services_asset()],
        asset_checks=[services_check(registry)],
        jobs=[check],
        schedules=[check_schedule(settings, check, registry)],
    )


def load_registry(settings: Settings) -> Registry | None:
    """The known services; None when no file is named.

    Raises:
        SettingsError: the file cannot be used.
    """
    if settings.services_file is None:
        return None
    try:
        return read_registry(settings.services_file)
    except FileRefused as error:
        raise SettingsError(str(error)) from None


def services_asset() -> AssetSpec:
    """The services of the hosts."""
    return AssetSpec(
        SERVICES,
        description="The known services of the hosts: looked at, and recovered within bounds, by the job"
        " `check_running_services`.",
        group_name="services",
        kinds={"systemd"},
        owners=OWNERS,
    )


def services_check(registry: Registry | None) -> AssetChecksDefinition:
    """Build the check that fails while a service is down."""

    @asset_check(asset=AssetKey(SERVICES), name=CHECK, description="No known service is down or given up.")
    def services_are_well(database: OperationsDatabase) -> AssetCheckResult:
        with reading(database.engine) as connection:
            down = down_of(registry, read_states(connection))
        return _check_result(registry, down)

    return services_are_well


def check_job(registry: Registry | None) -> JobDefinition:
    """Build the job; without a file of services its runs say that there is none."""

    @op(
        description="Looks at every service, advances their states, and restarts what may be restarted.",
        out=FAILURES.out,
    )
    def check_services_of_hosts(
        context: OpExecutionContext, config: CheckConfig, database: OperationsDatabase
    ) -> list[str]:
        if registry is None:
            raise Failure(NO_FILE, allow_retries=False)
        watch = Watch(database.engine, secret_variable, time.sleep, context.run_id)
        if config.dry_run:
            plan = plan_of(prospect(registry, watch))
            context.add_output_metadata(
                {
                    "services": plan.scanned,
                    "plan": MetadataValue.md(changes_table(plan.changes) if plan.changes else "Nothing to do."),
                    "left_alone": table(("why", "services"), list(plan.kept.items()), empty="None."),
                }
            )
            return []
        started = datetime.now(UTC)
        checked = check_services(registry, watch)
        _report(context, database, registry, checked)
        outcome = outcome_of(checked)
        record_outcome(
            database.engine,
            job=JOB,
            run_id=context.run_id,
            started_at=started,
            outcome=outcome,
            details={"events": [_words(event) for event in checked.events]},
        )
        context.add_output_metadata(outcome_metadata(outcome))
        return [f"{name}: {done.output}" for name, done in checked.restarts if not done.ok]

    # In an op of its own: Dagster drops what an op that fails has reported.
    @op(ins={"failed": FAILURES.into}, description="Fails the run when a restart failed.")
    def judge_restarts(failed: list[str]) -> None:
        if failed:
            raise Failure(f"{counted(len(failed), 'restart')} failed. {failed[0]}", allow_retries=False)

    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB, longest_recovery_seconds(registry) if registry else 0),
        metadata=JOB_METADATA,
        description="Looks at the known services of the hosts, and recovers those that may be, within a budget.",
    )
    def check_running_services() -> None:
        judge_restarts(check_services_of_hosts())

    return check_running_services


def _report(context: OpExecutionContext, database: OperationsDatabase, registry: Registry, checked: Checked) -> None:
    """Show what happened, the table of services and their last day, and whether they are well."""
    for event in checked.events:
        context.log_event(AssetObservation(SERVICES, description=_words(event), metadata={"service": event.service}))
    down = down_of(registry, checked.states)
    tell_check(context, SERVICES, CHECK, _check_result(registry, down))
    rows, transitions, now = service_rows(database.engine, registry)
    image = base64.b64encode(timeline(registry, transitions, now)).decode()
    metadata = {
        "services": table(_HEADER, [_cells(row) for row in rows], empty="None."),
        "last_day": MetadataValue.md(f"![The last 24 hours](data:image/png;base64,{image})"),
        "services_down": len(down),
        "restarts": len(checked.restarts),
    }
    context.log_event(AssetMaterialization(SERVICES, metadata=metadata))


_HEADER = ("service", "state", "since (UTC)", "up 24 h", "up 7 d", "up 30 d", "last action", "last look")
"""As few columns as tell it: pages of assets cut off what is wide."""


def _cells(row: ServiceRow) -> tuple[object, ...]:
    since = row.state.since
    return (
        f"{row.service.name}{' (critical)' if row.service.critical else ''}",
        row.state.state,
        f"{since:%d %b %H:%M}" if since else "",
        *("" if value is None else f"{value:.1%}" for value in row.uptimes),
        row.last_action,
        row.state.reason[:SHOWN_LETTERS],
    )


def _words(event: Event) -> str:
    arrow = f"{event.before} -> {event.after}" if event.before else event.after
    return f"{event.service}: {arrow}{f' ({event.reason})' if event.reason else ''}"


def down_of(registry: Registry | None, states: Mapping[str, State]) -> list[tuple[str, str]]:
    """The services that are down, each with its last reason."""
    if registry is None:
        return []
    found = ((one.name, states.get(one.name, State())) for one in registry.services)
    return [(name, state.reason) for name, state in found if state.state in {DOWN, GIVEN_UP}]


def _check_result(registry: Registry | None, down: list[tuple[str, str]]) -> AssetCheckResult:
    return AssetCheckResult(
        passed=not down,
        severity=severity_of(registry, down),
        description=down_text(down),
        metadata={"down": len(down)},
    )


def severity_of(registry: Registry | None, down: list[tuple[str, str]]) -> AssetCheckSeverity:
    """An error when a critical service is down, else a warning."""
    services = registry.by_name() if registry else {}
    critical = any(services[name].critical for name, _ in down)
    return AssetCheckSeverity.ERROR if critical else AssetCheckSeverity.WARN


def down_text(down: list[tuple[str, str]]) -> str:
    """What is down, in words."""
    if not down:
        return "No service is down."
    number = counted(len(down), "service is", "services are")
    return f"{number} down: {'; '.join(f'{name} ({reason})' for name, reason in down[:10])}."


def check_schedule(settings: Settings, check: JobDefinition, registry: Registry | None) -> ScheduleDefinition:
    """Build the schedule, which looks first, and launches a run when a state changes or an action is due."""

    @schedule(
        name=f"{JOB}_schedule",
        job=check,
        cron_schedule=settings.services_interval,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Looks at the known services; launches a run when a state changes or a restart is due.",
    )
    def tick(context: ScheduleEvaluationContext, database: OperationsDatabase) -> RunRequest | SkipReason:
        if registry is None:
            return SkipReason(NO_FILE)

        def look() -> str | None:
            found = prospect(registry, Watch(database.engine, secret_variable, time.sleep))
            if found.due:
                return None
            record_looks(database.engine, registry.services, found.looks, "")
            counts = Counter(state.state for state in found.states.values())
            told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
            return f"No change among {counted(len(found.states), 'service')}: {told}."

        return look_first(context.instance, JOB, look)

    return tick
