"""The job `check_model_status`: do the models answer?

What belongs here: translation between Dagster and `usage.probes`.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

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
    DefaultSensorStatus,
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    asset_check,
    in_process_executor,
    job,
    op,
    schedule,
    sensor,
)
from pydantic import Field
from sqlalchemy import Connection

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.defs.looking import look_first, tell_check
from ops_pipeline.defs.metadata import JOB_METADATA, OWNERS, outcome_metadata, table
from ops_pipeline.defs.resources import OperationsDatabase, handed
from ops_pipeline.defs.runs import in_flight_text, job_tags, resting_until
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import changes_table, counted
from ops_pipeline.settings import Settings
from ops_pipeline.usage.probes.answers import UNAVAILABLE
from ops_pipeline.usage.probes.check import Report, check_models, longest_check_seconds, outcome_of, plan_of
from ops_pipeline.usage.probes.figures import ModelRow, model_rows
from ops_pipeline.usage.probes.states import (
    PROBE,
    TRAFFIC,
    Intent,
    Status,
    Traffic,
    failing,
    intent_for,
    name_of,
    plan_probes,
)
from ops_pipeline.usage.probes.store import Transition, read_statuses, read_traffic, spent_on
from ops_pipeline.usage.probes.targets import Probes

JOB = "check_model_status"
STATUSES = "model_statuses"
CHECK = "models_answer"
NO_FILE = "MODEL_PROBES_FILE names no file of models to probe: see docs/usage.md."
INTENTS = handed("models", "What to do about each model: probe it, take its real calls for a proof, or leave it.")


class ProbeConfig(Config):
    """Which models one run looks at."""

    only: list[str] = Field(
        default=[], description="Names as provider/model: probe these whatever their traffic. Empty: all, by the rules."
    )


class CheckConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Show which models would be probed, and send nothing.")


def statuses_asset() -> AssetSpec:
    """The table of model statuses."""
    return AssetSpec(
        STATUSES,
        deps=["model_calls"],
        description="The state of every model in MODEL_PROBES_FILE: available, limited, unavailable or not tested."
        " Kept by the job `check_model_status`, whose schedule is off until somebody switches it on.",
        group_name="usage",
        kinds={"table"},
        owners=OWNERS,
    )


def models_check() -> AssetChecksDefinition:
    """Build the check that fails while a model is unavailable."""

    @asset_check(asset=AssetKey(STATUSES), name=CHECK, description="No probed model is unavailable.")
    def models_answer(database: OperationsDatabase) -> AssetCheckResult:
        with reading(database.engine) as connection:
            down = _down(connection)
        return _check_result(down)

    return models_answer


def check_job(probes: Probes | None) -> JobDefinition:
    """Build the job; without a file of models its runs say that there is none."""

    @op(
        out=INTENTS.out,
        description="Reads what is known about each model, and how its recent calls went.",
    )
    def observe_model_status(
        context: OpExecutionContext, config: ProbeConfig, database: OperationsDatabase
    ) -> list[Intent]:
        if probes is None:
            raise Failure(NO_FILE, allow_retries=False)
        unknown = set(config.only) - {name_of(target.key) for target in probes.file.models}
        if unknown:
            raise Failure(f"Not in MODEL_PROBES_FILE: {', '.join(sorted(unknown))}.", allow_retries=False)
        with reading(database.engine) as connection:
            intents = _intents(connection, probes, config.only)
        context.add_output_metadata({"models": len(intents)})
        return intents

    @op(
        out=INTENTS.out,
        ins={"intents": INTENTS.into},
        description="Decides which models are probed, and which ones real calls have proved.",
    )
    def plan_model_status(context: OpExecutionContext, intents: list[Intent]) -> list[Intent]:
        plan = plan_of(intents)
        context.add_output_metadata(
            {
                "probes": len(plan.changes),
                "plan": MetadataValue.md(changes_table(plan.changes) if plan.changes else "No probe is needed."),
                "left_alone": table(("why", "models"), list(plan.kept.items()), empty="None."),
            }
        )
        return intents

    @op(
        ins={"intents": INTENTS.into},
        description="Probes within the day's budget, verifies what changed, and reports models that flipped.",
    )
    def apply_model_status(
        context: OpExecutionContext, config: CheckConfig, intents: list[Intent], database: OperationsDatabase
    ) -> None:
        if config.dry_run or probes is None:
            context.log.info(f"Dry run: {sum(one.action == PROBE for one in intents)} probes would be sent.")
            return
        started = datetime.now(UTC)
        report = check_models(database.engine, probes, intents, run_id=context.run_id, sleep=time.sleep)
        _report(context, database, probes, report)
        outcome = outcome_of(report, len(intents))
        flips = [f"{name_of(one.key)}: {one.before.state} -> {one.after.state}" for one in report.flips]
        record_outcome(
            database.engine,
            job=JOB,
            run_id=context.run_id,
            started_at=started,
            outcome=outcome,
            details={"flips": flips},
        )
        context.add_output_metadata(outcome_metadata(outcome))

    @job(
        name=JOB,
        executor_def=in_process_executor,
        # Twice as long as all deadlines together: a check that is killed has reported nothing.
        tags=job_tags(JOB, 2 * longest_check_seconds(probes.file) if probes else 0),
        metadata=JOB_METADATA,
        description="Probes the models that no real call has proved lately, and keeps the state of each.",
    )
    def check_model_status() -> None:
        apply_model_status(plan_model_status(observe_model_status()))

    return check_model_status


def _intents(connection: Connection, probes: Probes, only: Sequence[str] = ()) -> list[Intent]:
    traffic = read_traffic(connection, probes.file, database_now(connection))
    return plan_probes(probes.file, read_statuses(connection), traffic, only)


def _report(context: OpExecutionContext, database: OperationsDatabase, probes: Probes, report: Report) -> None:
    """Show flips, the table of models, and whether all of them answer."""
    with reading(database.engine) as connection:
        rows = model_rows(connection, [target.key for target in probes.file.models], database_now(connection))
        down = _down(connection)
    for one in report.flips:
        context.log_event(_flip(one, context.run_id))
    tell_check(context, STATUSES, CHECK, _check_result(down, flips=len(report.flips)))
    states = {f"models_{state}": sum(row.status.state == state for row in rows) for state in _STATES}
    metadata = {
        **states,
        "probes": report.probes,
        "models": table(_HEADER, [_cells(row) for row in rows], empty="None."),
    }
    context.log_event(AssetMaterialization(STATUSES, metadata=metadata))


_STATES = ("available", "limited", "unavailable", "not_tested")
_HEADER = ("model", "type", "state", "since (UTC)", "p50 ms", "p95 ms", "up 24 h", "up 7 d", "last error")


def _cells(row: ModelRow) -> tuple[object, ...]:
    since = row.status.changed_at
    return (
        name_of(row.key),
        row.key[2],
        row.status.state,
        f"{since:%d %b %H:%M}" if since else "",
        *("" if value is None else f"{value:.0f}" for value in (row.p50_ms, row.p95_ms)),
        *("" if value is None else f"{value:.1%}" for value in (row.uptime_day, row.uptime_week)),
        ": ".join(word for word in (row.status.error_code, row.status.error_message) if word),
    )


def _flip(one: Transition, run_id: str) -> AssetObservation:
    why = f" ({one.after.error_code}: {one.after.error_message})" if one.after.error_code else ""
    return AssetObservation(
        STATUSES,
        description=f"{name_of(one.key)} went from {one.before.state} to {one.after.state}{why}.",
        metadata={
            "provider": one.key[0],
            "model": one.key[1],
            "type": one.key[2],
            "before": one.before.state,
            "after": one.after.state,
            "error_code": one.after.error_code,
            "error_message": one.after.error_message,
            "run": MetadataValue.dagster_run(run_id),
        },
    )


def _down(connection: Connection) -> list[tuple[str, Status]]:
    statuses = read_statuses(connection)
    return [(name_of(key), status) for key, status in sorted(statuses.items()) if status.state == UNAVAILABLE]


def _check_result(down: Sequence[tuple[str, Status]], flips: int = 0) -> AssetCheckResult:
    return AssetCheckResult(
        passed=not down,
        severity=AssetCheckSeverity.ERROR,
        description=_down_text(down),
        metadata={"down": len(down), "flips": flips},
    )


def _down_text(down: Sequence[tuple[str, Status]]) -> str:
    if not down:
        return "No model is unavailable."
    named = "; ".join(f"{name} ({status.error_code})" for name, status in down[:10])
    return (
        f"{counted(len(down), 'model is', 'models are')} unavailable: {named}{' and more' if len(down) > 10 else ''}."
    )


def check_schedule(settings: Settings, check: JobDefinition, probes: Probes | None) -> ScheduleDefinition:
    """Build the schedule, off until somebody switches it on, since probes cost money."""

    @schedule(
        name=f"{JOB}_schedule",
        job=check,
        cron_schedule=settings.check_model_status_cron_time,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.STOPPED,
        description="Probes models that no real call has proved lately. Off at first, since probes cost money.",
    )
    def tick(context: ScheduleEvaluationContext, database: OperationsDatabase) -> RunRequest | SkipReason:
        if probes is None:
            return SkipReason(NO_FILE)

        def look() -> str | None:
            with reading(database.engine) as connection:
                intents = _intents(connection, probes)
            # A run without probes still keeps the states and the table of models fresh, and costs two seconds.
            due = any(one.action in {PROBE, TRAFFIC} for one in intents)
            return None if due else f"None of {counted(len(intents), 'model')} is to be probed."

        return look_first(context.instance, JOB, look)

    return tick


def _to_look_at(connection: Connection, probes: Probes) -> set[str]:
    """The names of models whose calls fail and that a run would probe: others would be asked for every minute."""
    now, file = database_now(connection), probes.file
    traffic, statuses = read_traffic(connection, file, now), read_statuses(connection)
    sent, credits = spent_on(connection, now)
    names = set()
    for target in file.models:
        calls, status = traffic.get(target.key, Traffic()), statuses.get(target.key, Status())
        looked_at = status.checked_at is not None and now - status.checked_at < timedelta(minutes=file.traffic_minutes)
        affordable = sent < file.probes_per_day and credits + target.expected_credits <= file.credits_per_day
        wanted = intent_for(file, target, status, calls, asked=True).action == PROBE
        if failing(file, calls) and wanted and affordable and not looked_at:
            names.add(name_of(target.key))
    return names


def failing_models_sensor(probes: Probes | None) -> SensorDefinition:
    """Build the sensor that has models probed whose real calls fail, off until somebody switches it on."""

    @sensor(
        name="failing_models_sensor",
        # By name: a sensor that holds a job made of ops is copied when resources are bound, and warns of a beta then.
        job_name=JOB,
        minimum_interval_seconds=60,
        default_status=DefaultSensorStatus.STOPPED,
        description="Probes a model at once when a large share of its real calls fails.",
    )
    def sense(context: SensorEvaluationContext, database: OperationsDatabase) -> RunRequest | SkipReason:
        if probes is None:
            return SkipReason(NO_FILE)
        busy = in_flight_text(context.instance, JOB)
        if busy:
            return SkipReason(busy)
        until = resting_until(context.instance, JOB, datetime.now(UTC))
        if until:
            return SkipReason(
                f"The last runs of {JOB} failed: read why there. The next try is at {until:%H:%M:%S} UTC."
            )
        with reading(database.engine) as connection:
            names = _to_look_at(connection, probes)
        if not names:
            return SkipReason(
                "No model's real calls fail in a large share, other than ones that cannot be probed or just were."
            )
        return RunRequest(run_config={"ops": {"observe_model_status": {"config": {"only": sorted(names)}}}})

    return sense
