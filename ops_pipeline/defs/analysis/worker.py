"""The job `execute_analysis_tasks`: a run is a worker, and its sensor starts as many as there is work for.

What belongs here: translation between Dagster and `ops_pipeline.analysis.worker`.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetKey,
    AssetMaterialization,
    AssetSpec,
    Config,
    DagsterInstance,
    DagsterRun,
    DefaultSensorStatus,
    Definitions,
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    asset_check,
    in_process_executor,
    job,
    op,
    sensor,
)
from dagster._core.storage.tags import MAX_RUNTIME_SECONDS_TAG
from pydantic import Field

from ops_pipeline.analysis.policy import policy_of
from ops_pipeline.analysis.worker.life import run_worker
from ops_pipeline.analysis.worker.plan import WorkerPlan, worker_plan
from ops_pipeline.analysis.worker.report import Report
from ops_pipeline.analysis.worker.wanted import Crew, Look, free_places, look, workers_wanted
from ops_pipeline.analysis.worker.whole import last_flaws
from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.defs.looking import sensor_interval
from ops_pipeline.defs.metadata import JOB_METADATA, OWNERS, outcome_metadata, table
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.runs import JOB_TAG, UNFINISHED, job_tags, resting_until
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import counted
from ops_pipeline.settings import Settings

JOB = "execute_analysis_tasks"
TASKS = "analysis_tasks"
CHECK = "results_are_whole"
SENSOR = "pending_analysis_tasks_sensor"
LINES_PER_SECOND = 20
"""Dagster writes a line to its storage within milliseconds: thousands of tasks must not wait for that."""
GRACE_SECONDS = 600
DEAD_SECONDS = 60
START_SECONDS = 2
"""From a look to the first claim a run takes about so much more than five seconds, in the queue and being loaded."""
HEADER = ("task", "service", "target", "attempt", "became", "findings", "message")
SHOWN_LETTERS = 120


class WorkerConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Show what could be claimed, and claim nothing.")
    linger_seconds: float | None = Field(
        default=None,
        description="Wait so long for new tasks before the worker ends. Left out: ANALYSIS_WORKER_LINGER_SECONDS.",
    )


def worker_defs(settings: Settings) -> Definitions:
    """Build the asset, its check, the job and its sensor."""
    work = worker_job(settings)
    return Definitions(
        assets=[tasks_asset()], asset_checks=[results_check()], jobs=[work], sensors=[worker_sensor(settings)]
    )


def tasks_asset() -> AssetSpec:
    """The tasks, as they are submitted."""
    return AssetSpec(
        TASKS,
        description="Tasks for analyzer services: claimed by workers (runs of the job `execute_analysis_tasks`), done"
        " over WebSockets, stored with all findings.",
        group_name="analysis",
        kinds={"websocket"},
        owners=OWNERS,
    )


def results_check() -> AssetChecksDefinition:
    """Build the check that fails when files of results are missing, torn or not those of the database."""

    @asset_check(
        asset=AssetKey(TASKS),
        name=CHECK,
        description="The files of the newest results are there, and as they were stored.",
    )
    def results_are_whole(database: OperationsDatabase) -> AssetCheckResult:
        looked, flaws = last_flaws(database.engine)
        return AssetCheckResult(
            passed=not flaws,
            severity=AssetCheckSeverity.WARN,
            description=f"{counted(looked, 'result')} looked at, {len(flaws)} of them not whole.",
            metadata={"results": looked, "flaws": table(("flaw",), [(flaw,) for flaw in flaws], empty="None.")},
        )

    return results_are_whole


def worker_job(settings: Settings) -> JobDefinition:
    """Build the job for a deployment's settings."""

    @op(description="Claims tasks, talks to their services about many at once, and stores what comes of them.")
    def work_on_tasks(context: OpExecutionContext, config: WorkerConfig, database: OperationsDatabase) -> None:
        plan = worker_plan(settings)
        if config.linger_seconds is not None:
            plan = replace(plan, linger=config.linger_seconds)
        if config.dry_run:
            _show(context, database, plan)
            return
        started = datetime.now(UTC)
        report = run_worker(
            database.engine,
            plan,
            run_id=context.run_id,
            told=_few_lines(context.log.info),
            may_take=_maximum_runtime(context, settings),
        )
        outcome = report.outcome()
        record_outcome(
            database.engine,
            job=JOB,
            run_id=context.run_id,
            started_at=started,
            outcome=outcome,
            details={"findings": report.findings},
        )
        metadata = {**_shown(report), **outcome_metadata(outcome)}
        context.add_output_metadata(metadata)
        context.log_event(AssetMaterialization(AssetKey(TASKS), metadata=metadata))
        if report.gave_up:
            raise Failure(
                "The worker could not store everything that it had: those tasks are taken up again when their leases"
                " have run out. Read in its log what was wrong with the database.",
                allow_retries=False,
            )

    # The runs of the sensor have a place of their own each, so that several work at a time.
    @job(
        name=JOB,
        executor_def=in_process_executor,
        tags=job_tags(JOB, longest_run(settings)),
        metadata=JOB_METADATA,
        description="Does analysis tasks: a run is a worker. Terminating it hands its tasks back.",
    )
    def execute_analysis_tasks() -> None:
        work_on_tasks()

    return execute_analysis_tasks


def longest_run(settings: Settings, task_seconds: float = 0.0) -> float:
    """How long a worker may live: to the end of a task that it took at the very end of its lifetime.

    Args:
        settings: of the deployment.
        task_seconds: what a task may take that has a time-out of its own.
    """
    lifetime = worker_plan(settings).lifetime_with(task_seconds)
    return lifetime + max(task_seconds, settings.task_timeout) + GRACE_SECONDS


def _maximum_runtime(context: OpExecutionContext, settings: Settings) -> Callable[[float], None]:
    """Let the run's maximum runtime follow its tasks, whose time-outs may be longer than TASK_TIMEOUT.

    Dagster would end the run before the task, which would be handed back and begun anew, again and again.
    """

    def may_take(task_seconds: float) -> None:
        if task_seconds > settings.task_timeout:
            longest = str(round(longest_run(settings, task_seconds)))
            context.instance.add_run_tags(context.run_id, {MAX_RUNTIME_SECONDS_TAG: longest})

    return may_take


def _show(context: OpExecutionContext, database: OperationsDatabase, plan: WorkerPlan) -> None:
    with reading(database.engine) as connection:
        found = look(connection, plan.policy, plan.concurrency, database_now(connection))
    context.add_output_metadata(
        {
            "claimable": sum(found.claimable.values()),
            "waiting": found.waiting,
            "running": found.running,
            "by_service": table(("service", "tasks"), list(found.claimable.items()), empty="Nothing to do."),
        }
    )


def _shown(report: Report) -> dict[str, MetadataValue | int]:
    rows = [
        (one.task_id, one.service, one.target, one.attempt, one.status, one.findings, one.message[:SHOWN_LETTERS])
        for one in reversed(report.rows)
    ]
    counts = {f"tasks_{name.replace(' ', '_')}": count for name, count in report.counts.items()}
    return {**counts, "findings": report.findings, "tasks": table(HEADER, rows, empty="None.")}


def _few_lines(write: Callable[[str], None]) -> Callable[[str], None]:
    """Writes lines, but not more than a few in each second; the others are counted, and stand in `task_events`."""
    second, written, left_out = 0, 0, 0

    def told(line: str) -> None:
        nonlocal second, written, left_out
        now = int(time.monotonic())
        if now != second:
            second, written = now, 0
        if written >= LINES_PER_SECOND:
            left_out += 1
            return
        if left_out:
            write(f"… and {left_out} more lines; `ops-pipeline tasks show` tells all of a task")
            left_out = 0
        written += 1
        write(line)

    return told


def worker_sensor(settings: Settings) -> SensorDefinition:
    """Build the sensor, which starts workers while there is more work than those at work can take."""

    @sensor(
        name=SENSOR,
        job_name=JOB,
        minimum_interval_seconds=sensor_interval(settings.task_poll_interval - START_SECONDS),
        default_status=DefaultSensorStatus.RUNNING,
        description="Starts a worker when tasks can be claimed and fewer workers live than may.",
    )
    def sense(context: SensorEvaluationContext, database: OperationsDatabase) -> list[RunRequest] | SkipReason:
        until = resting_until(context.instance, JOB, datetime.now(UTC))
        if until:
            return SkipReason(f"The last workers failed: read why there. The next try is at {until:%H:%M:%S} UTC.")
        runs = _runs(context.instance)
        try:
            found, now = _look(settings, database, list(runs))
        except DatabaseProblem as problem:
            context.update_cursor("")
            # A run that fails on the same database is seen and alerted; one is enough.
            return SkipReason(str(problem)) if runs else [_request(settings, 1)]
        context.update_cursor(_bury(context.instance, runs, found.dead, context.cursor, now))
        count, why = workers_wanted(found, _crew(settings, list(runs)), now)
        if not count:
            return SkipReason(why)
        taken = {run.tags.get(JOB_TAG, "").partition("/")[2] for run in runs.values()}
        return [_request(settings, place) for place in free_places(taken, count)]

    return sense


def _request(settings: Settings, place: int) -> RunRequest:
    tags = {JOB_TAG: f"{JOB}/{place}", MAX_RUNTIME_SECONDS_TAG: str(round(longest_run(settings)))}
    return RunRequest(tags=tags)


def _runs(instance: DagsterInstance) -> dict[str, DagsterRun]:
    """The workers' runs that have not ended."""
    return {run.run_id: run for run in instance.get_runs(RunsFilter(job_name=JOB, statuses=UNFINISHED))}


def _crew(settings: Settings, runs: list[str]) -> Crew:
    lifetime = timedelta(seconds=settings.analysis_worker_lifetime_seconds)
    return Crew(runs, settings.analysis_workers, settings.analysis_worker_concurrency, lifetime)


def _look(settings: Settings, database: OperationsDatabase, runs: list[str]) -> tuple[Look, datetime]:
    most = settings.analysis_workers * settings.analysis_worker_concurrency
    with reading(database.engine) as connection:
        now = database_now(connection)
        return look(connection, policy_of(settings), most, now, runs), now


def _bury(
    instance: DagsterInstance, runs: Mapping[str, DagsterRun], dead: Collection[str], cursor: str | None, now: datetime
) -> str:
    """Report runs as failed whose workers have been dead for a while; the cursor holds since when each is.

    To Dagster a run whose process was killed looks alive until its maximum runtime is over, and takes a place in the
    queue. Not at once: after an outage of the database all workers look dead until their next heartbeat.
    """
    before = json.loads(cursor) if cursor else {}
    seen = {run: before.get(run, now.timestamp()) for run in dead}
    for run, since in seen.items():
        if now.timestamp() - since >= DEAD_SECONDS:
            instance.report_run_failed(
                runs[run], "Its worker gives no sign of life: its process was killed. Its tasks are taken up by others."
            )
    return json.dumps({run: since for run, since in seen.items() if now.timestamp() - since < DEAD_SECONDS})
