"""Pipelines in Dagster: the asset that shows them, the job `advance_pipelines` and the sensor that is its backstop.

Workers advance pipelines in the transactions that end tasks; what is written here is what they missed, and what they
did is told here.

What belongs here: translation between Dagster and `analysis.pipelines`.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from dagster import (
    AssetMaterialization,
    AssetObservation,
    AssetSpec,
    Config,
    DagsterInstance,
    DefaultSensorStatus,
    Definitions,
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    in_process_executor,
    job,
    op,
    sensor,
)
from pydantic import Field
from sqlalchemy import Connection, Engine

from ops_pipeline.analysis.operating import cancel_tasks
from ops_pipeline.analysis.pipelines.due import Looked, apply, observe, plan_of
from ops_pipeline.analysis.pipelines.forgetting import find_forgettable
from ops_pipeline.analysis.pipelines.reading import Line, read_lines
from ops_pipeline.analysis.pipelines.telling import Told, is_time, mark_told, untold
from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.database.errors import Conflict
from ops_pipeline.defs.looking import look_first, sensor_interval
from ops_pipeline.defs.metadata import JOB_METADATA, OWNERS, outcome_metadata, table
from ops_pipeline.defs.resources import FAILURES, OperationsDatabase, handed
from ops_pipeline.defs.runs import job_tags, resting_until
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import Plan, changes_table, counted
from ops_pipeline.settings import Settings

JOB = "advance_pipelines"
PIPELINES = "pipelines"
PATIENCE = timedelta(minutes=1)
"""Dagster keeps what the sensor tells for ever: under load a telling for every look would be 9,000 a day."""
SHOWN_PIPELINES = 25
MOST_OBSERVATIONS = 200
"""Per look: Dagster takes about 15 ms to write each."""


Seen = tuple[list[Looked], datetime, list[str]]
"""Unfinished pipelines, the database's time, and ended ones that can go."""
SEEN = handed("unfinished pipelines", "Pipelines that have not ended, what became of their tasks, and old ones.")
DECIDED = handed("what is due", "What is due for which pipeline.")


class AdvanceConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Show what is due for which pipeline, and change nothing.")


def pipelines_defs(settings: Settings) -> Definitions:
    """Build the asset, the job and the sensor."""
    return Definitions(assets=[pipelines_asset()], jobs=[advance_job()], sensors=[pipelines_sensor(settings)])


def pipelines_asset() -> AssetSpec:
    """The pipelines of the lab."""
    return AssetSpec(
        PIPELINES,
        description="Pipelines: steps of analysis tasks in order, each advance an observation, with a table of all."
        " They advance when a task ends; the job `advance_pipelines` does what was missed.",
        group_name="analysis",
        kinds={"table"},
        owners=OWNERS,
    )


def advance_job() -> JobDefinition:
    """Build the job."""

    @op(
        out=SEEN.out,
        description="Looks at every unfinished pipeline, at what became of its tasks, and for old ones.",
    )
    def observe_pipelines(context: OpExecutionContext, database: OperationsDatabase) -> Seen:
        with reading(database.engine) as connection:
            seen = _see(connection)
        context.add_output_metadata({"unfinished": len(seen[0]), "forgettable": len(seen[2])})
        return seen

    @op(out=DECIDED.out, ins={"observed": SEEN.into}, description="Shows what is due for which pipeline.")
    def plan_pipelines(context: OpExecutionContext, observed: Seen) -> Plan:
        plan = plan_of(*observed)
        changes = MetadataValue.md(changes_table(plan.changes) if plan.changes else "Nothing to do.")
        context.add_output_metadata({"due": len(plan.changes), "changes": changes})
        return plan

    @op(
        out=FAILURES.out,
        ins={"plan": DECIDED.into},
        description="Does what is due, pipeline by pipeline, and tells what happened to pipelines since.",
    )
    def apply_pipelines(
        context: OpExecutionContext, config: AdvanceConfig, plan: Plan, database: OperationsDatabase
    ) -> list[str]:
        if config.dry_run:
            context.log.info(
                f"Dry run: {counted(len(plan.changes), 'pipeline')} would be advanced, nothing was changed."
            )
            return []
        started = datetime.now(UTC)
        outcome, failures = apply(database.engine, plan, cancel_tasks)
        record_outcome(
            database.engine,
            job=JOB,
            run_id=context.run_id,
            started_at=started,
            outcome=outcome,
            details={"failures": failures},
        )
        tell(database.engine, context.log_event)
        context.add_output_metadata(outcome_metadata(outcome))
        return failures

    # In an op of its own: Dagster drops what an op that fails has reported.
    @op(ins={"failures": FAILURES.into}, description="Fails the run when a pipeline could not be advanced.")
    def judge_pipelines(failures: list[str]) -> None:
        if failures:
            raise Failure(
                f"{counted(len(failures), 'pipeline')} could not be advanced. {failures[0]}", allow_retries=False
            )

    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB),
        metadata=JOB_METADATA,
        description="Does for pipelines what no worker did: missed ends, deadlines, half done commands, old rows.",
    )
    def advance_pipelines() -> None:
        judge_pipelines(apply_pipelines(plan_pipelines(observe_pipelines())))

    return advance_pipelines


def tell(
    engine: Engine,
    report: Callable[[AssetObservation | AssetMaterialization], None],
    patience: timedelta = timedelta(0),
) -> int:
    """Tell Dagster what happened to pipelines since the last time, and show the table; how much there was.

    Told first and marked afterwards: whatever dies in between tells it twice, and never not at all.
    """
    with reading(engine) as connection:
        found = untold(connection)[:MOST_OBSERVATIONS]
        if not is_time(found, database_now(connection), patience):
            return 0
        lines = read_lines(connection, most=SHOWN_PIPELINES)
    for one in found:
        report(_observation(one))
    report(AssetMaterialization(PIPELINES, metadata=_table(lines)))
    mark_told(engine, found)
    return len(found)


def _observation(one: Told) -> AssetObservation:
    numbers = {"jobs_ended": one.ended, "jobs_submitted": one.submitted}
    return AssetObservation(
        PIPELINES,
        description=f"{one.name or one.pipeline_id}: {one.words}",
        metadata={"pipeline": one.pipeline_id, "at": one.at.isoformat(sep=" ", timespec="milliseconds"), **numbers},
    )


_HEADER = ("pipeline", "name", "status", "progress", "without success", "step", "started (UTC)", "error")
"""As few columns as tell it: the page of an asset cuts off what is wide."""


def _table(lines: Sequence[Line]) -> dict[str, MetadataValue | int]:
    unfinished = [line for line in lines if line.completed_at is None]
    return {
        "pipelines": table(_HEADER, [_cells(line) for line in lines], empty="None."),
        "unfinished": len(unfinished),
        "running_jobs": sum(line.progress.running for line in unfinished),
    }


def _cells(line: Line) -> tuple[object, ...]:
    done = line.progress
    return (
        line.id,
        line.name,
        line.status,
        f"{done.share:.0%}, {done.ended} of {counted(done.total, 'job')}",
        ", ".join(f"{count} {what}" for count, what in ((done.failed, "failed"), (done.skipped, "skipped")) if count),
        line.step,
        f"{line.started_at:%d %b %H:%M}" if line.started_at else "",
        line.error_message[:80],
    )


def pipelines_sensor(settings: Settings) -> SensorDefinition:
    """Build the sensor, which tells what workers did, and launches a run when something was missed."""

    @sensor(
        name="pipelines_sensor",
        # By name: of a sensor that is given a job, Dagster makes another one, and warns that its owners are beta.
        job_name=JOB,
        minimum_interval_seconds=sensor_interval(settings.task_poll_interval),
        default_status=DefaultSensorStatus.RUNNING,
        description="Tells advances of pipelines as they happened; launches a run for what no worker did.",
    )
    def sense(context: SensorEvaluationContext, database: OperationsDatabase) -> RunRequest | SkipReason:
        return look_first(context.instance, JOB, lambda: _look(context.instance, database.engine))

    return sense


def _see(connection: Connection) -> Seen:
    now = database_now(connection)
    return observe(connection), now, find_forgettable(connection, now)


def _look(instance: DagsterInstance, engine: Engine) -> str | None:
    with reading(engine) as connection:
        seen = _see(connection)
    looked, plan = seen[0], plan_of(*seen)
    until = resting_until(instance, JOB, datetime.now(UTC)) if plan.changes else None
    if plan.changes and until is None:
        return None
    told = _tell_from_sensor(instance, engine)
    if until is not None:
        due = counted(len(plan.changes), "pipeline is", "pipelines are")
        return f"{due} due, but the last runs failed: tried again at {until:%H:%M:%S} UTC."
    unfinished = counted(len(looked), "unfinished pipeline")
    return f"Nothing is due for {unfinished}; advances and transitions told: {told}."


def _tell_from_sensor(instance: DagsterInstance, engine: Engine) -> int:
    try:
        return tell(engine, instance.report_runless_asset_event, PATIENCE)
    except Conflict:
        # Somebody writes all the time: the next look tells it.
        return 0
